//! What happens, as it happens: server-sent events, one stream for each who listens.
//!
//! Nothing waits for a listener. One that reads too slowly is told how many it missed, by kind, and reads on with what
//! is newest. One that takes less than some tens of kilobytes in [`STALLED`], while events wait for it, is cut off and its
//! place is free. Streams end after an hour; whoever wants to goes on with another.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::{
    sync::{broadcast::error::RecvError, mpsc},
    time::{interval, sleep, timeout},
};

use super::{App, auth::Caller};
use crate::{
    guard::{Heard, Record},
    metrics::SecurityKind,
    ops::{problem::problem, server::Peer},
    table::Lifecycle,
};

/// Listeners at once.
const MAX_STREAMS: usize = 32;
/// Events that wait for one listener to read, beside what the sources keep.
const WAITING: usize = 64;
/// How often something is sent when nothing happens, so that both ends know of each other.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long nothing more may go to a listener, once as much waits for it as the kernel and this keep, some hundreds of
/// kilobytes: longer than a network takes to find another route. What is measured is room, and the kernel makes that for
/// some tens of kilobytes at a time: who takes less in this time seems to take nothing.
const STALLED: Duration = Duration::from_secs(30);
/// A stream's whole life.
const LIFETIME: Duration = Duration::from_secs(3600);

/// How many listen, and how long one is waited for.
#[derive(Debug)]
pub(super) struct Streams {
    listening: AtomicUsize,
    stalled: Duration,
}

impl Default for Streams {
    fn default() -> Self {
        Self::with_patience(STALLED)
    }
}

impl Streams {
    pub(super) fn with_patience(stalled: Duration) -> Self {
        Self { listening: AtomicUsize::new(0), stalled }
    }
}

/// One that listens, until dropped.
struct Listening(Arc<Streams>);

impl Listening {
    fn new(streams: &Arc<Streams>) -> Option<Self> {
        let one_more = |now: usize| (now < MAX_STREAMS).then_some(now + 1);
        streams.listening.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(Self(streams.clone()))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.listening.fetch_sub(1, Ordering::AcqRel);
    }
}

pub(super) async fn events(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Extension(caller): Extension<Caller>,
) -> Response {
    let Some(listening) = Listening::new(&app.streams) else {
        let detail = format!("{MAX_STREAMS} listen already");
        return problem(StatusCode::SERVICE_UNAVAILABLE, detail);
    };
    peer.held.store(true, Ordering::Relaxed);
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(tell(app, peer, caller, listening, sender));
    let mut response = Body::new(Stream(receiver)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // Proxies that collect answers would keep events back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// The body: what comes out of the channel.
struct Stream(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Until the listener has gone, has stalled, or its time is over.
async fn tell(app: App, peer: Peer, caller: Caller, listening: Listening, sender: mpsc::Sender<Bytes>) {
    let mut stopped = peer.stopped.clone();
    let mut security = app.handles.guard.security().subscribe();
    let mut lifecycle = app.handles.control.lifecycle();
    let mut keep_alive = interval(KEEP_ALIVE);
    keep_alive.reset();
    let end = sleep(LIFETIME);
    tokio::pin!(end);
    let hello = json!({
        "version": app.handles.version,
        "at_unix_ms": u64::try_from(app.handles.clock.now().unix.as_millis()).unwrap_or(u64::MAX),
    });
    let mut next = event("hello", &hello);
    // The connection that carries it is one of those that may be held.
    loop {
        match timeout(listening.0.stalled, sender.send(next)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => break,
            Err(_) => {
                tracing::info!(by = %caller.actor.name, "a listener to events reads too little and is cut off");
                peer.cut.notify_one();
                break;
            }
        }
        next = tokio::select! {
            heard = security.next() => match heard {
                Heard::Event(record) => security_event(&record),
                Heard::Missed(missed) => missed_event("security", missed),
            },
            heard = lifecycle.recv() => match heard {
                Ok(lifecycle) => lifecycle_event(&lifecycle),
                Err(RecvError::Lagged(missed)) => missed_event("allocations", missed),
                Err(RecvError::Closed) => break,
            },
            _ = keep_alive.tick() => Bytes::from_static(b": still here\n\n"),
            () = &mut end => break,
            _ = stopped.wait_for(|stopped| *stopped) => break,
            () = sender.closed() => break,
        };
    }
    peer.held.store(false, Ordering::Relaxed);
}

fn event(name: &str, data: &Value) -> Bytes {
    // JSON has no line breaks of its own.
    format!("event: {name}\ndata: {data}\n\n").into()
}

fn missed_event(stream: &str, missed: u64) -> Bytes {
    event("missed", &json!({ "stream": stream, "missed": missed }))
}

fn security_event(record: &Record) -> Bytes {
    let name = match record.event.kind() {
        SecurityKind::AdminAction => "admin",
        _ => "security",
    };
    event(name, &record.to_json())
}

fn lifecycle_event(lifecycle: &Lifecycle) -> Bytes {
    let unix_ms = |at: &Duration| u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
    match lifecycle {
        Lifecycle::Created { at, handle, allocation_id, device_id, by } => event(
            "allocation_created",
            &json!({
                "at_unix_ms": unix_ms(at),
                "id": handle.to_string(),
                "allocation_id": allocation_id.to_string(),
                "device_id": device_id.to_string(),
                "by": by.to_string(),
            }),
        ),
        Lifecycle::Ended { at, ended } => event(
            "allocation_ended",
            &json!({
                "at_unix_ms": unix_ms(at),
                "id": ended.handle.to_string(),
                "code": ended.code.name(),
                "lifetime_ms": unix_ms(&ended.lifetime),
                "bytes_used": ended.bytes_used,
            }),
        ),
    }
}
