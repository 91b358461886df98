//! `admin drain --wait`: until nobody is left, for scripts that take the machine away afterwards.
//!
//! The relay's events tell when to look: a look costs the relay time in proportion to its allocations.

#![allow(clippy::indexing_slicing, reason = "what a JSON value lacks reads as null")]

use std::{future::pending, time::Duration};

use reqwest::{Method, Response};
use tokio::time::timeout;

use super::{
    super::{Exit, Failure},
    client::Client,
};

/// Between two looks at the least, however much happens.
const AGAIN: Duration = Duration::from_millis(200);
/// At the most, whatever is heard: as many listen to the events as may, say.
const AT_LATEST: Duration = Duration::from_secs(1);
/// Beyond the deadline, for the goodbyes.
const GOODBYES: Duration = Duration::from_secs(2);

/// Waits until no allocation is left.
///
/// # Errors
/// [`Exit::Refused`] when the drain was taken back, or somebody is left after its deadline; and as [`Client::ask`].
pub(super) async fn wait(client: &Client, deadline: Duration) -> Result<(), Failure> {
    let late = || Failure::new(Exit::Refused, "the deadline is over, and the relay is not empty");
    timeout(deadline.saturating_add(GOODBYES), empty(client, AT_LATEST)).await.unwrap_or_else(|_| Err(late()))
}

async fn empty(client: &Client, at_latest: Duration) -> Result<(), Failure> {
    // Before the first look, so that nothing comes between.
    let mut events = listen(client, at_latest).await;
    loop {
        let stats = client.get("/admin/stats", &[]).await?;
        if stats["allocations"]["now"] == 0 {
            return Ok(());
        }
        if stats["drain"]["draining"] != true {
            return Err(Failure::new(Exit::Refused, "the drain was taken back: the relay is not empty"));
        }
        let was_heard = events.is_some();
        if !pause(&mut events).await {
            let _ = timeout(at_latest, something(&mut events)).await;
        }
        // An hour is its whole life, and the relay cuts off who leaves too much unread.
        if was_heard && events.is_none() {
            events = listen(client, at_latest).await;
        }
    }
}

/// The relay's events; none where they do not begin in time. Behind a proxy that collects answers they do not.
async fn listen(client: &Client, at_latest: Duration) -> Option<Response> {
    let asked = client.send(Method::GET, "/admin/events", &[], None, None);
    timeout(at_latest, asked).await.ok()?.ok()
}

/// Lets [`AGAIN`] pass, and reads whatever comes meanwhile, so that a backlog does not grow; whether something has
/// happened.
async fn pause(events: &mut Option<Response>) -> bool {
    let mut has_happened = false;
    let reading = async {
        loop {
            something(events).await;
            has_happened = true;
        }
    };
    let _: Result<(), _> = timeout(AGAIN, reading).await;
    has_happened
}

/// When something has happened; without events, never. Cancel-safe.
async fn something(events: &mut Option<Response>) {
    while let Some(stream) = events {
        match stream.chunk().await {
            // Comments alone: nothing happens.
            Ok(Some(part))
                if part
                    .split(|byte| *byte == b'\n')
                    .all(|line| line.is_empty() || line.starts_with(b":")) => {}
            Ok(Some(_)) => return,
            Ok(None) | Err(_) => *events = None,
        }
    }
    pending().await
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use clap::Parser;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{UnixListener, UnixStream},
        sync::watch,
    };

    use tokio::time::sleep;

    use super::{super::Reach, *};

    const PATIENCE: Duration = Duration::from_secs(60);
    /// Less than the client waits for a relay that is silent.
    const AT_ONCE: Duration = Duration::from_secs(30);
    const NEVER: Duration = Duration::from_secs(3600);

    #[derive(Parser)]
    struct Args {
        #[command(flatten)]
        reach: Reach,
    }

    /// What becomes of those who listen.
    #[derive(Clone)]
    enum Events {
        /// They are told what is sent.
        Told(watch::Receiver<&'static str>),
        Refused,
        /// Nothing is answered, as by a proxy that waits for the end.
        HeldBack,
        /// An answer that ends at once. How many there were is counted.
        Ended(Arc<AtomicUsize>),
        /// So many pieces, as fast as they are read, before the last allocation ends.
        Many(usize, watch::Sender<usize>),
    }

    /// A relay with so many allocations.
    struct Relay {
        client: Client,
        now: watch::Sender<usize>,
        looks: Arc<AtomicUsize>,
        _folder: tempfile::TempDir,
    }

    impl Relay {
        fn start(events: Events) -> Self {
            let now = match &events {
                Events::Many(_, now) => now.clone(),
                _ => watch::Sender::new(3),
            };
            let shown = now.subscribe();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("admin.sock");
            let looks = Arc::new(AtomicUsize::new(0));
            let listener = UnixListener::bind(&path).unwrap();
            let seen = looks.clone();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(answer(stream, shown.clone(), seen.clone(), events.clone()));
                }
            });
            let args = Args::parse_from(["x", "--socket", path.to_str().unwrap()]);
            Self { client: args.reach.client().unwrap(), now, looks, _folder: folder }
        }
    }

    async fn answer(
        mut stream: UnixStream,
        now: watch::Receiver<usize>,
        looks: Arc<AtomicUsize>,
        events: Events,
    ) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        if head.starts_with(b"GET /admin/stats ") {
            looks.fetch_add(1, Ordering::Relaxed);
            let body =
                format!(r#"{{"allocations":{{"now":{}}},"drain":{{"draining":true}}}}"#, *now.borrow());
            let head =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
            return;
        }
        const BEGINS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
        let mut events = match events {
            Events::Told(events) => events,
            Events::Refused => {
                let refused =
                    "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(refused.as_bytes()).await.unwrap();
                return;
            }
            Events::HeldBack => pending().await,
            Events::Ended(count) => {
                count.fetch_add(1, Ordering::Relaxed);
                let ended = format!("{BEGINS}connection: close\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(ended.as_bytes()).await.unwrap();
                return;
            }
            Events::Many(pieces, now) => {
                let begins = format!("{BEGINS}transfer-encoding: chunked\r\n\r\n");
                stream.write_all(begins.as_bytes()).await.unwrap();
                let piece = format!("{:x}\r\n{}\r\n", 16 << 10, "e".repeat(16 << 10));
                for _ in 0..pieces {
                    // Whoever waited may have gone.
                    if stream.write_all(piece.as_bytes()).await.is_err() {
                        return;
                    }
                }
                now.send_replace(0);
                pending().await
            }
        };
        stream.write_all(format!("{BEGINS}\r\n").as_bytes()).await.unwrap();
        while events.changed().await.is_ok() {
            let event = *events.borrow();
            // Whoever waited may have gone.
            let _ = stream.write_all(event.as_bytes()).await;
        }
    }

    #[tokio::test]
    async fn looks_when_something_happens_and_not_before() {
        let (happens, events) = watch::channel("");
        let relay = Relay::start(Events::Told(events));
        let waiting = empty(&relay.client, NEVER);
        let world = async {
            while relay.looks.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
            for (left, event) in [(2, ": still here\n\n"), (1, "event: x\n\n"), (0, "event: y\n\n")] {
                relay.now.send_replace(left);
                happens.send_replace(event);
                // Long enough for looks that nothing is a reason for.
                sleep(3 * AGAIN).await;
            }
            pending::<()>().await;
        };
        tokio::select! {
            ended = timeout(PATIENCE, waiting) => ended.expect("events are not heard").unwrap(),
            () = world => {}
        }
        // At first, and for each of two events; on a busy machine they may come as one.
        let looks = relay.looks.load(Ordering::Relaxed);
        assert!((2..=3).contains(&looks), "{looks}");
    }

    /// Until the relay is empty, which it is after two looks.
    async fn looks_by_the_clock(relay: &Relay) {
        let waiting = empty(&relay.client, Duration::from_millis(10));
        let world = async {
            while relay.looks.load(Ordering::Relaxed) < 2 {
                tokio::task::yield_now().await;
            }
            relay.now.send_replace(0);
            pending::<()>().await;
        };
        tokio::select! {
            ended = timeout(AT_ONCE, waiting) => ended.expect("it waits for events alone").unwrap(),
            () = world => {}
        }
    }

    #[tokio::test]
    async fn looks_by_the_clock_where_no_events_are_to_be_had() {
        looks_by_the_clock(&Relay::start(Events::Refused)).await;
    }

    #[tokio::test]
    async fn looks_by_the_clock_where_events_are_held_back() {
        looks_by_the_clock(&Relay::start(Events::HeldBack)).await;
    }

    #[tokio::test]
    async fn listens_again_when_events_have_ended() {
        let count = Arc::new(AtomicUsize::new(0));
        let relay = Relay::start(Events::Ended(count.clone()));
        looks_by_the_clock(&relay).await;
        assert!(count.load(Ordering::Relaxed) >= 2, "what happens from now on is not heard");
    }

    #[tokio::test]
    async fn a_backlog_is_read_as_fast_as_it_comes() {
        // One each look would take minutes.
        let relay = Relay::start(Events::Many(1000, watch::Sender::new(3)));
        let ended = timeout(PATIENCE, empty(&relay.client, NEVER)).await;
        ended.expect("what is unread stays unread").unwrap();
        let looks = relay.looks.load(Ordering::Relaxed);
        assert!(looks < 200, "{looks} looks for 1000 pieces");
    }
}
