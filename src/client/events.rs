//! What a session tells its application besides data.

use std::{net::SocketAddr, time::Duration};

use tokio::sync::broadcast;

use super::End;

/// How many events a slow receiver may fall behind before it misses some: with one a second, more than four minutes.
pub(super) const CAPACITY: usize = 256;

/// Something happened. All but [`Event::Ended`] and [`Event::Lagged`] go on the relay's word.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// The session has a connection again, after [`Event::Disconnected`] or because a better one took over. Its streams are new.
    Connected {
        /// The relay's address.
        relay: SocketAddr,
    },
    /// The connection is lost, its streams are dead; another one is being made.
    Disconnected {
        /// What happened to it, for people.
        reason: String,
    },
    /// The other side is there.
    PeerArrived,
    /// The other side is gone; it may come back.
    PeerLeft,
    /// Larger datagrams than this now go by stream.
    PathLimit {
        /// The largest datagram that the relay can deliver to the other side.
        max_datagram_bytes: usize,
    },
    /// Datagrams now go raw, beside QUIC, as far as they fit; or do so no more. A session begins without. The channel
    /// also closes when no datagram has crossed for ten seconds, so that an idle session sends no probes, and opens
    /// again a round trip or two after the next one.
    RawChannel {
        /// Whether its probes are answered.
        open: bool,
    },
    /// A mark of the quota has been passed.
    Usage {
        /// Both directions together, since the allocation began.
        bytes_used: u64,
        /// The quota.
        quota_bytes: u64,
        /// Which mark.
        percent: u32,
    },
    /// The relay dropped datagrams of this allocation because it was over its rate.
    Throttled {
        /// How many.
        datagrams: u64,
        /// Their payload.
        bytes: u64,
        /// Over how long.
        window: Duration,
    },
    /// The allocation's time is nearly over: [`refresh`](super::Session::refresh) it.
    Expiring {
        /// When it ends, unix seconds.
        expires_at_unix: u64,
    },
    /// A refresh was accepted; [`grant`](super::Session::grant) has the new limits.
    Refreshed {
        /// When the allocation ends now, unix seconds.
        expires_at_unix: u64,
    },
    /// The relay asks to move to another one; that is under way.
    Migrating {
        /// By when it wants to be rid of us.
        deadline: Duration,
    },
    /// The session is over; no further event follows.
    Ended(End),
    /// This receiver was too slow and has missed events.
    Lagged {
        /// How many.
        missed: u64,
    },
}

/// Receives a session's events from the moment it was made.
///
/// Bounded: who does not receive for a long time misses events, and is told how many; the session never waits.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    pub(super) fn new(receiver: broadcast::Receiver<Event>) -> Self {
        Self(receiver)
    }

    /// The next event; `None` after [`Event::Ended`]. Cancel safe.
    pub async fn recv(&mut self) -> Option<Event> {
        use broadcast::error::RecvError;
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(missed)) => Some(Event::Lagged { missed }),
            Err(RecvError::Closed) => None,
        }
    }
}
