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
    /// Datagrams accepted for sending, those sent raw or by stream included.
    pub datagrams_sent: u64,
    /// Their payload, in bytes.
    pub datagram_bytes_sent: u64,
    /// Datagrams that arrived, those raw or by stream included.
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
    /// Of the datagrams sent, how many went raw: beside QUIC, not encrypted for the relay.
    pub raw_sent: u64,
    /// Of the datagrams received, how many came raw.
    pub raw_received: u64,
    /// Raw packets dropped because they came from another address than the relay's.
    pub raw_dropped_source: u64,
    /// Raw packets dropped because their tag is no channel's of this session: any more, or at all.
    pub raw_dropped_tag: u64,
    /// Raw packets dropped because they are none, or answer no probe.
    pub raw_dropped_malformed: u64,
    /// Probes of the raw channel sent.
    pub probes_sent: u64,
    /// Of those, how many were answered.
    pub probes_answered: u64,
    /// Whether the present connection's raw channel is open: its probes are answered. It sleeps, closed, when no datagram
    /// has crossed for ten seconds.
    pub raw_open: bool,
    /// The largest payload that now goes raw, in bytes; `None` when none does.
    pub raw_max_bytes: Option<usize>,
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
    pub(super) raw_sent: Counter,
    pub(super) raw_received: Counter,
    pub(super) raw_dropped_source: Counter,
    pub(super) raw_dropped_tag: Counter,
    pub(super) raw_dropped_malformed: Counter,
    pub(super) probes_sent: Counter,
    pub(super) probes_answered: Counter,
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
            raw_sent: self.raw_sent.get(),
            raw_received: self.raw_received.get(),
            raw_dropped_source: self.raw_dropped_source.get(),
            raw_dropped_tag: self.raw_dropped_tag.get(),
            raw_dropped_malformed: self.raw_dropped_malformed.get(),
            probes_sent: self.probes_sent.get(),
            probes_answered: self.probes_answered.get(),
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

    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
