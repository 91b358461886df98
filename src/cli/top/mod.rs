//! `top`: a live table of allocations in the terminal, with rates and drops.

mod state;
mod view;

use std::{pin::Pin, time::Duration};

use ratatui::{
    Terminal,
    backend::Backend,
    crossterm::event::{self, Event, KeyEventKind},
};
use reqwest::Method;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout},
};

use self::state::{Asked, State};
use super::{
    Exit, Failure, OrFail as _,
    admin::{Client, Reach, plain},
    out,
};
use crate::{clock::Clock, config::parse_duration};

/// How long the thread that reads keys waits at once: so long its end may take.
const KEY_WAIT: Duration = Duration::from_millis(200);
/// Keys that wait to be drawn; more are lost.
const KEYS: usize = 64;
/// Of whoever ends an allocation and quits: how long its outcome is waited for.
const LAST_ANSWER: Duration = Duration::from_secs(2);
/// However often is wanted, no more often is asked.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

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
        let (ended, last) =
            watch(&mut terminal, &client, clock, &mut state, self.interval, read_keys()).await;
        ratatui::restore();
        if let Some(last) = last {
            out::say(last);
        }
        ended.map(|()| Exit::Ok)
    }
}

/// Keys as they are pressed, and whatever else a terminal has to say.
fn read_keys() -> mpsc::Receiver<Event> {
    let (sender, keys) = mpsc::channel(KEYS);
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
    keys
}

/// What the relay answers to a look: totals, and a list of allocations.
type Answers = (serde_json::Value, serde_json::Value);

/// The relay, as this command asks it. Dropping an answer gives the question up.
trait Relay {
    /// Totals, and the allocations that have moved most.
    async fn look(&self) -> Result<Answers, Failure>;
    /// Ends an allocation for good.
    async fn end(&self, id: &str) -> Result<(), Failure>;
}

impl Relay for Client {
    async fn look(&self) -> Result<Answers, Failure> {
        fetch(self).await
    }

    async fn end(&self, id: &str) -> Result<(), Failure> {
        let path = format!("/admin/allocations/{id}");
        let query = [("reason", "ended by its operator".to_owned())];
        self.ask(Method::DELETE, &path, &query, None).await.map(|_| ())
    }
}

/// An answer that is waited for, beside other things.
type Awaited<'a, T> = Option<Pin<Box<dyn Future<Output = T> + 'a>>>;

/// The answer, when there is one; without a question, never. Cancel-safe.
async fn answered<T>(awaited: &mut Awaited<'_, T>) -> T {
    match awaited {
        Some(answer) => {
            let answer = answer.await;
            *awaited = None;
            answer
        }
        None => std::future::pending().await,
    }
}

/// An allocation that is being ended, and what is to be said of it.
struct Ending<'a> {
    id: String,
    said: Awaited<'a, String>,
}

impl Ending<'_> {
    /// What has become of the one that is being ended, if there is one, for whoever does not stay to read it. A question
    /// that is given up may never have been sent.
    async fn last(mut self) -> Option<String> {
        self.said.as_ref()?;
        let said = timeout(LAST_ANSWER, answered(&mut self.said)).await;
        Some(said.map_or_else(
            |_| format!("{}: not known whether it ended; the relay has not answered", self.id),
            |said| plain(&said),
        ))
    }
}

/// Until its user quits, and what there is to say then.
async fn watch<B: Backend<Error: std::error::Error + Send + Sync + 'static>>(
    terminal: &mut Terminal<B>,
    relay: &impl Relay,
    clock: Clock,
    state: &mut State,
    every: Duration,
    keys: mpsc::Receiver<Event>,
) -> (Result<(), Failure>, Option<String>) {
    let mut ending = Ending { id: String::new(), said: None };
    let ended = until_quit(terminal, relay, clock, state, every, keys, &mut ending).await;
    (ended, ending.last().await)
}

/// Until its user quits. Keys wait for no answer: neither for one that is slow, nor for one that does not come.
async fn until_quit<'a, B: Backend<Error: std::error::Error + Send + Sync + 'static>>(
    terminal: &mut Terminal<B>,
    relay: &'a impl Relay,
    clock: Clock,
    state: &mut State,
    every: Duration,
    mut keys: mpsc::Receiver<Event>,
    ending: &mut Ending<'a>,
) -> Result<(), Failure> {
    let every = every.max(SHORTEST_INTERVAL);
    // The first look has been taken.
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looking: Awaited<'_, _> = None;
    let mut late_at = Instant::now();
    loop {
        terminal.draw(|frame| view::draw(frame, state)).or_fail(Exit::Io, "cannot draw")?;
        let asked = tokio::select! {
            _ = ticks.tick(), if looking.is_none() => {
                looking = Some(Box::pin(relay.look()));
                late_at = Instant::now() + every;
                continue;
            }
            () = sleep_until(late_at), if looking.is_some() && !state.is_late => {
                state.is_late = true;
                continue;
            }
            seen = answered(&mut looking) => {
                match seen {
                    Ok(seen) => state.update(seen, clock.mono()),
                    Err(failure) => state.fail(&format!("{:#}", failure.error)),
                }
                continue;
            }
            said = answered(&mut ending.said) => {
                state.say(said);
                ticks.reset_immediately();
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
            Asked::Kill(_) if ending.said.is_some() => state.say("the one before has not ended yet".into()),
            Asked::Kill(id) => {
                state.say(format!("{id} is being ended"));
                ending.id.clone_from(&id);
                ending.said = Some(Box::pin(async move {
                    match relay.end(&id).await {
                        Ok(()) => format!("{id} is over"),
                        Err(failure) => format!("{:#}", failure.error),
                    }
                }));
            }
        }
    }
}

/// Totals, and the allocations that have moved most.
async fn fetch(client: &Client) -> Result<Answers, Failure> {
    let query = [("limit", "1000".to_owned()), ("sort", "activity".to_owned()), ("order", "desc".to_owned())];
    let stats = client.get("/admin/stats", &[]).await?;
    Ok((stats, client.get("/admin/allocations", &query).await?))
}

#[cfg(test)]
mod tests {
    use ratatui::{
        backend::TestBackend,
        crossterm::event::{KeyCode, KeyEvent},
    };
    use tokio::sync::Notify;

    use super::{state::tests::answers, *};

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A relay that takes what it is asked, and answers nothing.
    #[derive(Default)]
    struct Silent {
        asked: Notify,
        ended: Notify,
    }

    impl Relay for Silent {
        async fn look(&self) -> Result<Answers, Failure> {
            self.asked.notify_one();
            std::future::pending().await
        }

        async fn end(&self, _: &str) -> Result<(), Failure> {
            self.ended.notify_one();
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn keys_wait_for_no_answer() {
        let relay = Silent::default();
        let mut state = State::default();
        state.update(answers([3, 2, 1], 0), Duration::from_secs(1));
        let mut terminal = Terminal::new(TestBackend::new(100, 10)).unwrap();
        let (sender, keys) = mpsc::channel(KEYS);
        let press = async |key: char| {
            sender.send(Event::Key(KeyEvent::from(KeyCode::Char(key)))).await.unwrap();
        };
        let user = async {
            relay.asked.notified().await;
            for key in ['j', 'x', 'y'] {
                press(key).await;
            }
            relay.ended.notified().await;
            // Longer than the interval.
            tokio::time::sleep(3 * SHORTEST_INTERVAL).await;
            // While neither has answered.
            press('q').await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = timeout(
                PATIENCE,
                watch(&mut terminal, &relay, Clock::start(), &mut state, SHORTEST_INTERVAL, keys),
            ) => {
                let (ended, last) = ended.expect("keys wait for an answer");
                assert!(ended.is_ok());
                let last = last.expect("what was asked for is not mentioned");
                assert!(last.contains(&"aa".repeat(16)) && last.contains("not known whether"), "{last}");
            }
            () = user => {}
        }
        assert!(terminal.backend().to_string().contains("NO ANSWER YET"), "{}", terminal.backend());
    }

    /// A relay that does what it is asked, and counts it.
    #[derive(Default)]
    struct Obeys(std::cell::Cell<u32>);

    impl Relay for Obeys {
        async fn look(&self) -> Result<Answers, Failure> {
            std::future::pending().await
        }

        async fn end(&self, _: &str) -> Result<(), Failure> {
            // As a request is: not in one go.
            tokio::task::yield_now().await;
            self.0.set(self.0.get() + 1);
            Ok(())
        }
    }

    #[tokio::test]
    async fn who_ends_one_and_quits_at_once_has_ended_it() {
        // What is chosen among several that are ready is chance.
        for _ in 0..20 {
            let relay = Obeys::default();
            let mut state = State::default();
            state.update(answers([3, 2, 1], 0), Duration::from_secs(1));
            let mut terminal = Terminal::new(TestBackend::new(100, 10)).unwrap();
            let (sender, keys) = mpsc::channel(KEYS);
            for key in ['j', 'x', 'y', 'q'] {
                sender.send(Event::Key(KeyEvent::from(KeyCode::Char(key)))).await.unwrap();
            }
            let (ended, last) =
                watch(&mut terminal, &relay, Clock::start(), &mut state, PATIENCE, keys).await;
            assert!(ended.is_ok());
            assert_eq!(relay.0.get(), 1, "it was never asked");
            // Said on the screen, or after it.
            let over = format!("{} is over", "aa".repeat(16));
            assert!(last.is_none_or(|last| last == over));
        }
    }

    /// A relay that fails once and then answers.
    #[derive(Default)]
    struct Recovers {
        looks: std::cell::Cell<u32>,
        seen: Notify,
    }

    impl Relay for Recovers {
        async fn look(&self) -> Result<Answers, Failure> {
            self.looks.set(self.looks.get() + 1);
            match self.looks.get() {
                1 => Err(Failure::new(Exit::Unavailable, "nobody is there")),
                // What was answered is drawn before the next question.
                3 => {
                    self.seen.notify_one();
                    std::future::pending().await
                }
                _ => Ok(answers([3, 2, 1], 0)),
            }
        }

        async fn end(&self, _: &str) -> Result<(), Failure> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_failed_is_not_shown_once_the_relay_answers() {
        let relay = Recovers::default();
        let mut state = State::default();
        let mut terminal = Terminal::new(TestBackend::new(100, 10)).unwrap();
        let (_sender, keys) = mpsc::channel(KEYS);
        let watching = watch(&mut terminal, &relay, Clock::start(), &mut state, SHORTEST_INTERVAL, keys);
        tokio::select! {
            _ = watching => panic!("nobody quits"),
            seen = timeout(PATIENCE, relay.seen.notified()) => seen.unwrap(),
        }
        assert_eq!(relay.looks.get(), 3);
        let screen = terminal.backend().to_string();
        assert!(!screen.contains("nobody is there") && screen.contains("q quit"), "{screen}");
    }
}
