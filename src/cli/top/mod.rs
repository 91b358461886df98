//! `top`: a live table of allocations in the terminal, with rates and drops.

mod state;
mod view;

use std::time::Duration;

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyEventKind},
};
use reqwest::Method;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use self::state::{Asked, State};
use super::{
    Exit, Failure, OrFail as _,
    admin::{Client, Reach},
};
use crate::{clock::Clock, config::parse_duration};

/// How long the thread that reads keys waits at once: so long its end may take.
const KEY_WAIT: Duration = Duration::from_millis(200);
/// Keys that wait for a slow relay; more are lost.
const KEYS: usize = 64;

/// Watch a running relay in the terminal: rates, drops, allocations, and an end for those that must go
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Keys: up and down or j and k choose, s sorts by the next column, r turns the order, x ends the
chosen allocation after a question, p pauses, q quits.

Example:
  zrc-relay top --url http://127.0.0.1:9434 --token-file ann.token")]
pub(super) struct Top {
    #[command(flatten)]
    reach: Reach,
    /// How often to ask the relay
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "1s")]
    interval: Duration,
}

impl Top {
    pub(super) async fn run(self) -> Result<Exit, Failure> {
        let client = self.reach.client()?;
        let clock = Clock::start();
        let mut state = State::default();
        // Before the screen is taken: what is wrong is said where it can be read.
        state.update(fetch(&client).await?, clock.mono());
        let mut terminal = ratatui::try_init().or_fail(Exit::Unavailable, "top needs a terminal")?;
        let ended = watch(&mut terminal, &client, clock, &mut state, self.interval).await;
        ratatui::restore();
        ended.map(|()| Exit::Ok)
    }
}

async fn watch(
    terminal: &mut DefaultTerminal,
    client: &Client,
    clock: Clock,
    state: &mut State,
    every: Duration,
) -> Result<(), Failure> {
    let (sender, mut keys) = mpsc::channel(KEYS);
    // Reading the terminal blocks. The thread ends when nobody wants its keys any more.
    std::thread::spawn(move || {
        while !sender.is_closed() {
            match event::poll(KEY_WAIT)
                .and_then(|there| if there { event::read().map(Some) } else { Ok(None) })
            {
                Ok(Some(event)) => {
                    let _ = sender.try_send(event);
                }
                Ok(None) => {}
                Err(_) => break,
            }
        }
    });
    let mut ticks = interval(every.max(Duration::from_millis(100)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| view::draw(frame, state)).or_fail(Exit::Io, "cannot draw")?;
        let asked = tokio::select! {
            _ = ticks.tick() => {
                match fetch(client).await {
                    Ok(seen) => state.update(seen, clock.mono()),
                    Err(failure) => state.say(format!("{:#}", failure.error)),
                }
                continue;
            }
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.kind == KeyEventKind::Press => state.key(key),
                Some(_) => continue,
                None => return Err(Failure::new(Exit::Io, "the terminal cannot be read")),
            },
        };
        match asked {
            Asked::Nothing => {}
            Asked::Quit => return Ok(()),
            Asked::Kill(id) => {
                let path = format!("/admin/allocations/{id}");
                let query = [("reason", "ended by its operator".to_owned())];
                match client.ask(Method::DELETE, &path, &query, None).await {
                    Ok(_) => state.say(format!("{id} is over")),
                    Err(failure) => state.say(format!("{:#}", failure.error)),
                }
                ticks.reset_immediately();
            }
        }
    }
}

/// Totals, and the allocations that have moved most.
async fn fetch(client: &Client) -> Result<(serde_json::Value, serde_json::Value), Failure> {
    let query = [("limit", "1000".to_owned()), ("sort", "activity".to_owned()), ("order", "desc".to_owned())];
    let stats = client.get("/admin/stats", &[]).await?;
    Ok((stats, client.get("/admin/allocations", &query).await?))
}
