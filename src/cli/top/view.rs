//! How `top` looks.

#![allow(clippy::indexing_slicing, reason = "what a JSON value lacks reads as null")]

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Modifier, Style, Stylize as _},
    text::{Line, Text},
    widgets::{Block, Clear, Paragraph, Row, Table, TableState},
};

use super::{
    super::admin::{bytes, duration, plain},
    state::State,
};

pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let rows = [Constraint::Length(3), Constraint::Min(3), Constraint::Length(1)];
    let [head, table, foot] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(head_of(state), head);
    draw_table(frame, table, state);
    let keys = "up/down choose  s sort  r turn  x end it  p pause  q quit";
    let foot_text = match (&state.trouble, state.said.as_str()) {
        (None, "") => keys.to_owned(),
        (None, said) => said.to_owned(),
        // All else is in doubt while this lasts.
        (Some(trouble), said) => format!("{trouble}  {said}"),
    };
    frame.render_widget(Paragraph::new(foot_text).dim(), foot);
    if let Some(id) = &state.question {
        ask(frame, id);
    }
}

/// Bytes a second.
fn rate(bytes_per_sec: f64) -> String {
    format!("{}/s", bytes(bytes_per_sec as u64))
}

fn head_of(state: &State) -> Paragraph<'_> {
    let stats = &state.stats;
    let text = |value: &serde_json::Value| match value.as_str() {
        Some(text) => plain(text),
        None => value.to_string(),
    };
    let ready = match (stats["drain"]["draining"] == true, stats["ready"] == true) {
        // All that follows is from before.
        _ if state.trouble.is_some() => "NOT ANSWERING",
        _ if state.is_late => "NO ANSWER YET",
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "NOT READY",
    };
    let [from_device, from_peer] = state.rates.bytes;
    let paused = if state.paused { "  PAUSED" } else { "" };
    Paragraph::new(vec![
        Line::from(format!(
            "zrc-relay {}  up {}  {ready}  guard {}{paused}",
            text(&stats["version"]),
            duration(stats["uptime_secs"].as_u64().unwrap_or_default()),
            text(&stats["guard"]["level"]),
        ))
        .bold(),
        Line::from(format!(
            "allocations {} of {}  connections {}  blocks {}",
            stats["allocations"]["now"],
            stats["allocations"]["max"],
            stats["connections"]["now"],
            stats["guard"]["blocks"],
        )),
        Line::from(format!(
            "from devices {}  from peers {}  datagrams {:.0}/s  dropped {:.0}/s",
            rate(from_device),
            rate(from_peer),
            state.rates.datagrams,
            state.rates.dropped,
        )),
    ])
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let rows = state.rows.iter().map(|row| {
        let [from_device, from_peer] = row.rates;
        let right = |text: String| Text::from(text).alignment(Alignment::Right);
        Row::new([
            Text::from(row.id.chars().take(12).collect::<String>()),
            Text::from(row.state.as_str()),
            Text::from(row.device.chars().take(12).collect::<String>()),
            right(rate(from_device)),
            right(rate(from_peer)),
            right(bytes(row.bytes)),
            right(row.quota.map_or("-".into(), bytes)),
            right(duration(row.age_secs)),
        ])
    });
    let right = |text| Text::from(text).alignment(Alignment::Right);
    let header = [
        Text::from("ID"),
        Text::from("STATE"),
        Text::from("DEVICE"),
        right("FROM DEVICE"),
        right("FROM PEER"),
        right("BYTES"),
        right("QUOTA"),
        right("AGE"),
    ];
    let order = if state.reversed { "turned round" } else { "" };
    let shown = state.rows.len() as u64;
    let of = if shown < state.total { format!(" {shown} of {}", state.total) } else { String::new() };
    let widths = [12, 12, 12, 13, 13, 10, 10, 8].map(Constraint::Length);
    let table = Table::new(rows, widths)
        .header(Row::new(header).style(Style::new().add_modifier(Modifier::UNDERLINED)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(Block::new().title(format!("by {} {order}{of}", state.sort.name())));
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(state.chosen()));
}

/// In the middle, over what is there.
fn ask(frame: &mut Frame<'_>, id: &str) {
    let area = frame.area();
    let [_, middle, _] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(4), Constraint::Fill(1)]).areas(area);
    let [_, middle, _] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Max(48), Constraint::Fill(1)]).areas(middle);
    frame.render_widget(Clear, middle);
    let question = Paragraph::new(format!("End {id} for good?\ny: yes, any other key: no"))
        .alignment(Alignment::Center)
        .block(Block::bordered());
    frame.render_widget(question, middle);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::{
        Terminal,
        backend::TestBackend,
        crossterm::event::{KeyCode, KeyEvent},
    };

    use super::{super::state::tests::answers, *};

    fn shown(state: &State, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn the_screen_shows_rates_rows_and_keys() {
        let mut state = State::default();
        state.update(answers([1000, 1000, 1000], 0), Duration::from_secs(1));
        state.update(answers([1000, 2001000, 1000], 4), Duration::from_secs(3));
        let screen = shown(&state, 100, 10);
        let lines: Vec<&str> = screen.lines().collect();
        assert!(lines[0].contains("zrc-relay 1.2.3  up 1h1m  ready  guard normal"), "{screen}");
        assert!(lines[1].contains("allocations 3 of 1000  connections 6"), "{screen}");
        assert!(lines[2].contains("from devices 1.00 MB/s") && lines[2].contains("dropped 2/s"), "{screen}");
        assert!(lines[4].contains("FROM DEVICE"), "{screen}");
        assert!(lines[5].contains("bbbbbbbbbbbb") && lines[5].contains("1.00 MB/s"), "{screen}");
        assert!(lines[9].contains("q quit"), "{screen}");
        state.is_late = true;
        let screen = shown(&state, 100, 10);
        assert!(screen.contains("NO ANSWER YET") && !screen.contains("  ready  "), "{screen}");
        state.say("it goes on".into());
        state.fail("nobody is there");
        let screen = shown(&state, 100, 10);
        assert!(screen.contains("nobody is there") && screen.contains("NOT ANSWERING"), "{screen}");
        assert!(screen.contains("it goes on"), "{screen}");
        state.update(answers([1000, 3001000, 1000], 4), Duration::from_secs(4));
        let screen = shown(&state, 100, 10);
        assert!(!screen.contains("nobody is there") && screen.contains("  ready  "), "{screen}");
        state.key(KeyEvent::from(KeyCode::Down));
        state.key(KeyEvent::from(KeyCode::Char('x')));
        let screen = shown(&state, 100, 12);
        assert!(screen.contains(&format!("End {} for good?", "bb".repeat(16))), "{screen}");
    }

    #[test]
    fn no_screen_is_too_small_and_no_answer_too_poor() {
        let mut state = State::default();
        for (width, height) in [(1, 1), (3, 2), (20, 5), (80, 24), (300, 3)] {
            shown(&state, width, height);
        }
        state.update((serde_json::json!({}), serde_json::json!([])), Duration::ZERO);
        state.question = Some("aa".repeat(16));
        for (width, height) in [(1, 1), (3, 2), (20, 5), (80, 24)] {
            shown(&state, width, height);
        }
    }
}
