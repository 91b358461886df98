//! What `top` knows: the last two answers of the relay, and what its user has chosen.

#![allow(clippy::indexing_slicing, reason = "what a JSON value lacks reads as null")]

use std::{cmp::Reverse, collections::HashMap, time::Duration};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::Value;

use super::super::admin::plain;

/// Rates over less than this would be wild. What comes sooner, after an allocation was ended say, is shown, and leaves the
/// rates as they are.
const LEAST_LOOK: Duration = Duration::from_millis(250);

/// By what the table is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Sort {
    #[default]
    Rate,
    Bytes,
    Age,
    Id,
}

impl Sort {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Bytes => "bytes",
            Self::Age => "age",
            Self::Id => "id",
        }
    }

    const fn next(self) -> Self {
        match self {
            Self::Rate => Self::Bytes,
            Self::Bytes => Self::Age,
            Self::Age => Self::Id,
            Self::Id => Self::Rate,
        }
    }
}

/// A line of the table.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Row {
    pub(super) id: String,
    pub(super) state: String,
    pub(super) device: String,
    /// Bytes a second from device and peer.
    pub(super) rates: [f64; 2],
    pub(super) bytes: u64,
    pub(super) quota: Option<u64>,
    pub(super) age_secs: u64,
}

/// What is counted of the whole relay, a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) bytes: [f64; 2],
    pub(super) datagrams: f64,
    pub(super) dropped: f64,
}

/// What the user wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    Nothing,
    Quit,
    Kill(String),
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// The totals as the relay last told them.
    pub(super) stats: Value,
    pub(super) rates: Rates,
    pub(super) rows: Vec<Row>,
    pub(super) total: u64,
    /// The id of the chosen line: lines move.
    chosen: Option<String>,
    pub(super) sort: Sort,
    pub(super) reversed: bool,
    pub(super) paused: bool,
    /// The id that a question is about.
    pub(super) question: Option<String>,
    pub(super) said: String,
    /// Why the relay did not answer the last time, if it did not.
    pub(super) trouble: Option<String>,
    /// Whether a question has waited for its answer for more than the interval.
    pub(super) is_late: bool,
    before: Before,
}

#[derive(Debug, Default)]
struct Before {
    at: Duration,
    bytes: [u64; 2],
    datagrams: u64,
    dropped: u64,
    by_id: HashMap<String, [u64; 2]>,
}

impl State {
    /// What the relay told, and when, monotonic.
    pub(super) fn update(&mut self, (stats, list): (Value, Value), at: Duration) {
        self.trouble = None;
        self.is_late = false;
        if self.paused {
            return;
        }
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        let is_first = self.before.at.is_zero() && self.stats.is_null();
        let elapsed = at.saturating_sub(self.before.at);
        let is_too_soon = !is_first && elapsed < LEAST_LOOK;
        let secs = elapsed.as_secs_f64();
        let per_sec = |now: u64, before: u64| {
            if is_first { 0.0 } else { now.saturating_sub(before) as f64 / secs }
        };
        let sides = ["device", "peer"];
        let bytes = sides.map(|side| {
            let passed = &stats["forwarded"][side];
            number(&passed["datagram_bytes"]) + number(&passed["stream_bytes"])
        });
        let datagrams = sides.iter().map(|side| number(&stats["forwarded"][side]["datagrams"])).sum();
        let dropped =
            stats["dropped"].as_object().into_iter().flatten().map(|(_, count)| number(count)).sum();
        let [from_device, from_peer] = bytes;
        let [device_before, peer_before] = self.before.bytes;
        if !is_too_soon {
            self.rates = Rates {
                bytes: [per_sec(from_device, device_before), per_sec(from_peer, peer_before)],
                datagrams: per_sec(datagrams, self.before.datagrams),
                dropped: per_sec(dropped, self.before.dropped),
            };
        }
        let mut by_id = HashMap::new();
        let text = |value: &Value| plain(value.as_str().unwrap_or_default());
        let rates_before: HashMap<String, [f64; 2]> =
            self.rows.drain(..).map(|row| (row.id, row.rates)).collect();
        for it in list["allocations"].as_array().into_iter().flatten() {
            let id = text(&it["id"]);
            let [device, peer] = sides.map(|side| number(&it["sent"][side]["bytes"]));
            let rates = match self.before.by_id.get(&id) {
                _ if is_too_soon => rates_before.get(&id).copied().unwrap_or_default(),
                Some([device_before, peer_before]) => {
                    [per_sec(device, *device_before), per_sec(peer, *peer_before)]
                }
                None => [0.0, 0.0],
            };
            by_id.insert(id.clone(), [device, peer]);
            self.rows.push(Row {
                id,
                state: text(&it["state"]),
                device: text(&it["device_id"]),
                rates,
                bytes: number(&it["bytes_used"]),
                quota: it["limits"]["quota_bytes"].as_u64(),
                age_secs: number(&it["age_secs"]),
            });
        }
        self.total = number(&list["total"]);
        if !is_too_soon {
            self.before = Before { at, bytes, datagrams, dropped, by_id };
        }
        self.stats = stats;
        self.order();
        if self.chosen.as_ref().is_some_and(|chosen| !self.rows.iter().any(|row| row.id == *chosen)) {
            self.chosen = None;
        }
    }

    /// The relay did not answer, and why. Shown until it does.
    pub(super) fn fail(&mut self, why: &str) {
        self.trouble = Some(plain(why));
        self.is_late = false;
    }

    /// Shown until something else is.
    pub(super) fn say(&mut self, what: String) {
        self.said = plain(&what);
    }

    /// Where the chosen line is now.
    pub(super) fn chosen(&self) -> Option<usize> {
        self.rows.iter().position(|row| Some(&row.id) == self.chosen.as_ref())
    }

    fn order(&mut self) {
        let rate = |row: &Row| row.rates.iter().sum::<f64>() as u64;
        match self.sort {
            Sort::Rate => self.rows.sort_by_cached_key(|row| (Reverse(rate(row)), row.id.clone())),
            Sort::Bytes => self.rows.sort_by_cached_key(|row| (Reverse(row.bytes), row.id.clone())),
            Sort::Age => self.rows.sort_by_cached_key(|row| (Reverse(row.age_secs), row.id.clone())),
            Sort::Id => self.rows.sort_by_cached_key(|row| row.id.clone()),
        }
        if self.reversed {
            self.rows.reverse();
        }
    }

    fn choose(&mut self, down: bool) {
        let last = self.rows.len().saturating_sub(1);
        let to = match (self.chosen(), down) {
            (None, _) => 0,
            (Some(at), true) => (at + 1).min(last),
            (Some(at), false) => at.saturating_sub(1),
        };
        self.chosen = self.rows.get(to).map(|row| row.id.clone());
    }

    pub(super) fn key(&mut self, key: KeyEvent) -> Asked {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Asked::Quit;
        }
        if let Some(id) = self.question.take() {
            if key.code == KeyCode::Char('y') {
                return Asked::Kill(id);
            }
            self.say("it goes on".into());
            return Asked::Nothing;
        }
        self.said.clear();
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Asked::Quit,
            KeyCode::Down | KeyCode::Char('j') => self.choose(true),
            KeyCode::Up | KeyCode::Char('k') => self.choose(false),
            KeyCode::Char('s') => {
                self.sort = self.sort.next();
                self.order();
            }
            KeyCode::Char('r') => {
                self.reversed = !self.reversed;
                self.order();
            }
            KeyCode::Char('p') => self.paused = !self.paused,
            KeyCode::Char('x') => match self.chosen.clone() {
                Some(id) => self.question = Some(id),
                None => self.say("choose an allocation first, with the arrow keys".into()),
            },
            _ => {}
        }
        Asked::Nothing
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub(in super::super) fn answers(bytes: [u64; 3], dropped: u64) -> (Value, Value) {
        let allocations: Vec<Value> = ["aa", "bb", "cc"]
            .iter()
            .zip(bytes)
            .map(|(id, bytes)| {
                json!({
                    "id": id.repeat(16), "state": "paired", "device_id": "0d".repeat(32),
                    "sent": { "device": { "bytes": bytes }, "peer": { "bytes": 0 } },
                    "bytes_used": bytes, "limits": { "quota_bytes": 1_000_000 }, "age_secs": 61,
                })
            })
            .collect();
        let stats = json!({
            "version": "1.2.3", "uptime_secs": 3661, "ready": true,
            "allocations": { "now": 3, "max": 1000 }, "connections": { "now": 6 },
            "forwarded": {
                "device": { "datagrams": 10, "datagram_bytes": bytes.iter().sum::<u64>(), "stream_bytes": 0 },
                "peer": { "datagrams": 0, "datagram_bytes": 0, "stream_bytes": 0 },
            },
            "dropped": { "byte_rate": dropped }, "guard": { "level": "normal", "blocks": 0 },
        });
        (stats, json!({ "allocations": allocations, "total": 3 }))
    }

    fn press(state: &mut State, key: char) -> Asked {
        state.key(KeyEvent::from(KeyCode::Char(key)))
    }

    fn ids(state: &State) -> Vec<&str> {
        state.rows.iter().map(|row| &row.id[..2]).collect()
    }

    #[test]
    fn rates_are_what_came_between_two_looks() {
        let mut state = State::default();
        state.update(answers([1000, 1000, 1000], 5), Duration::from_secs(1));
        assert_eq!(state.rates, Rates::default(), "one look shows no rate");
        state.update(answers([1000, 5000, 2000], 9), Duration::from_secs(3));
        assert_eq!((state.rates.bytes, state.rates.dropped), ([2500.0, 0.0], 2.0));
        assert_eq!(ids(&state), ["bb", "cc", "aa"], "the fastest first");
        press(&mut state, 'r');
        assert_eq!(ids(&state), ["aa", "cc", "bb"]);
        press(&mut state, 'p');
        state.update(answers([9000, 0, 0], 9), Duration::from_secs(4));
        assert_eq!(state.rates.dropped, 2.0, "paused");
    }

    #[test]
    fn rates_over_a_few_milliseconds_are_none() {
        let ms = Duration::from_millis;
        let mut state = State::default();
        state.update(answers([0, 0, 0], 0), ms(1000));
        state.update(answers([0, 3000, 0], 3), ms(1003));
        assert_eq!(state.rates, Rates::default(), "3 kB in 3 ms are no MB/s");
        assert_eq!((state.rows[0].rates, state.rows[1].bytes), ([0.0; 2], 3000), "what has passed is shown");
        state.update(answers([0, 4000, 0], 8), ms(3000));
        assert_eq!((state.rates.bytes, state.rates.dropped), ([2000.0, 0.0], 4.0), "since the first look");
        assert_eq!(state.rows[0].rates, [2000.0, 0.0]);
        // Sooner than usual, as after an end: as it was.
        state.update(answers([0, 9000, 0], 90), ms(3010));
        assert_eq!((state.rates.bytes, state.rates.dropped), ([2000.0, 0.0], 4.0));
        assert_eq!((state.rows[0].rates, state.rows[0].bytes), ([2000.0, 0.0], 9000));
    }

    #[test]
    fn trouble_is_over_when_the_relay_answers() {
        let mut state = State::default();
        state.fail("gone\u{1b}");
        assert_eq!(state.trouble.as_deref(), Some("gone\\u{1b}"));
        press(&mut state, 'p');
        assert!(state.trouble.is_some(), "a key mends nothing");
        state.update(answers([0, 0, 0], 0), Duration::from_secs(1));
        assert!(state.trouble.is_none(), "paused or not");
    }

    #[test]
    fn nothing_ends_without_a_question() {
        let mut state = State::default();
        state.update(answers([3, 2, 1], 0), Duration::from_secs(1));
        assert_eq!(press(&mut state, 'x'), Asked::Nothing);
        assert!(state.question.is_none() && !state.said.is_empty(), "nothing is chosen");
        press(&mut state, 'j');
        press(&mut state, 'j');
        assert_eq!(press(&mut state, 'x'), Asked::Nothing);
        assert_eq!(press(&mut state, 'x'), Asked::Nothing, "that was no yes");
        assert!(state.question.is_none());
        press(&mut state, 'x');
        assert_eq!(press(&mut state, 'y'), Asked::Kill("bb".repeat(16)));
        // The chosen one stays chosen where it goes.
        for _ in 0..3 {
            press(&mut state, 's');
            assert_eq!(state.rows[state.chosen().unwrap()].id, "bb".repeat(16), "{:?}", state.sort);
        }
        assert_eq!(press(&mut state, 'q'), Asked::Quit);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(state.key(interrupt), Asked::Quit);
    }
}
