//! What a session has done, in numbers.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::ConnectTimes;

/// A session's counters since it began, over all its connections, and how its present connection is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Datagrams accepted by [`send_datagram`](super::Session::send_datagram), those sent by stream included.
    pub datagrams_sent: u64,
    /// Their payload, in bytes.
    pub datagram_bytes_sent: u64,
    /// Datagrams that arrived, those by stream included.
    pub datagrams_received: u64,
    /// Their payload, in bytes.
    pub datagram_bytes_received: u64,
    /// Of those sent, how many were too large for a datagram and went by stream.
    pub oversize_sent: u64,
    /// Of those received, how many came by stream.
    pub oversize_received: u64,
    /// Oversized datagrams that were lost on the way: reset, cut off, too large or too slow.
    pub oversize_lost: u64,
    /// Datagrams not accepted because too much was waiting to be sent.
    pub send_buffer_full: u64,
    /// Datagrams dropped, oldest first, because the application did not receive them in time. Those that QUIC dropped
    /// before this library could read them, because the runtime was busy, are added within two seconds.
    pub receive_dropped: u64,
    /// Streams of the other side that were refused: an unknown first byte, none in time, or too many unaccepted.
    pub streams_refused: u64,
    /// Connections made after the first one, by reconnecting or by moving.
    pub reconnects: u64,
    /// Of those, how many were moves that the relay asked for.
    pub moves: u64,
    /// The present path's round-trip time to the relay.
    pub rtt: Option<Duration>,
    /// QUIC packets that the present connection lost on the way to the relay.
    pub packets_lost: u64,
    /// The largest UDP payload that the present path is known to carry, in bytes.
    pub path_mtu_bytes: Option<u16>,
    /// How long the steps to the present connection took.
    pub connect: ConnectTimes,
}

/// The counters behind [`Stats`].
#[derive(Default)]
pub(super) struct Counters {
    pub(super) datagrams_sent: Counter,
    pub(super) datagram_bytes_sent: Counter,
    pub(super) datagrams_received: Counter,
    pub(super) datagram_bytes_received: Counter,
    pub(super) oversize_sent: Counter,
    pub(super) oversize_received: Counter,
    pub(super) oversize_lost: Counter,
    pub(super) send_buffer_full: Counter,
    pub(super) receive_dropped: Counter,
    pub(super) streams_refused: Counter,
    pub(super) reconnects: Counter,
    pub(super) moves: Counter,
}

impl Counters {
    /// The counters alone; what belongs to a connection is left at its default.
    pub(super) fn snapshot(&self) -> Stats {
        Stats {
            datagrams_sent: self.datagrams_sent.get(),
            datagram_bytes_sent: self.datagram_bytes_sent.get(),
            datagrams_received: self.datagrams_received.get(),
            datagram_bytes_received: self.datagram_bytes_received.get(),
            oversize_sent: self.oversize_sent.get(),
            oversize_received: self.oversize_received.get(),
            oversize_lost: self.oversize_lost.get(),
            send_buffer_full: self.send_buffer_full.get(),
            receive_dropped: self.receive_dropped.get(),
            streams_refused: self.streams_refused.get(),
            reconnects: self.reconnects.get(),
            moves: self.moves.get(),
            ..Stats::default()
        }
    }
}

/// Counts up.
#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
