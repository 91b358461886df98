//! `admin drain --wait`: until nobody is left, for scripts that take the machine away afterwards.
//!
//! The relay's events tell when to look: a look costs the relay time in proportion to its allocations.

#![allow(clippy::indexing_slicing, reason = "what a JSON value lacks reads as null")]

use std::{future::pending, time::Duration};

use reqwest::{Method, Response};
use tokio::time::{sleep, timeout};

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
    let mut events = client.send(Method::GET, "/admin/events", &[], None, None).await.ok();
    loop {
        let stats = client.get("/admin/stats", &[]).await?;
        if stats["allocations"]["now"] == 0 {
            return Ok(());
        }
        if stats["drain"]["draining"] != true {
            return Err(Failure::new(Exit::Refused, "the drain was taken back: the relay is not empty"));
        }
        sleep(AGAIN).await;
        let _ = timeout(at_latest, something(&mut events)).await;
    }
}

/// When something has happened; without events, never. Cancel-safe.
async fn something(events: &mut Option<Response>) {
    while let Some(stream) = events {
        match stream.chunk().await {
            // A comment: nothing happens.
            Ok(Some(part)) if part.starts_with(b":") => {}
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

    use super::{super::Reach, *};

    const PATIENCE: Duration = Duration::from_secs(60);
    const NEVER: Duration = Duration::from_secs(3600);

    #[derive(Parser)]
    struct Args {
        #[command(flatten)]
        reach: Reach,
    }

    /// A relay with so many allocations.
    struct Relay {
        client: Client,
        now: watch::Sender<usize>,
        looks: Arc<AtomicUsize>,
        _folder: tempfile::TempDir,
    }

    impl Relay {
        /// Its events are what is sent; without somebody who sends there are none.
        fn start(events: Option<watch::Receiver<&'static str>>) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("admin.sock");
            let (now, shown) = watch::channel(3);
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
        events: Option<watch::Receiver<&'static str>>,
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
        let Some(mut events) = events else {
            let refused =
                "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(refused.as_bytes()).await.unwrap();
            return;
        };
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").await.unwrap();
        while events.changed().await.is_ok() {
            let event = *events.borrow();
            // Whoever waited may have gone.
            let _ = stream.write_all(event.as_bytes()).await;
        }
    }

    #[tokio::test]
    async fn looks_when_something_happens_and_not_before() {
        let (happens, events) = watch::channel("");
        let relay = Relay::start(Some(events));
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

    #[tokio::test]
    async fn looks_by_the_clock_where_no_events_are_to_be_had() {
        let relay = Relay::start(None);
        let waiting = empty(&relay.client, Duration::from_millis(10));
        let world = async {
            while relay.looks.load(Ordering::Relaxed) < 2 {
                tokio::task::yield_now().await;
            }
            relay.now.send_replace(0);
            pending::<()>().await;
        };
        tokio::select! {
            ended = timeout(PATIENCE, waiting) => ended.expect("it waits for events alone").unwrap(),
            () = world => {}
        }
    }
}
