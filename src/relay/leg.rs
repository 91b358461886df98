//! A leg: one connection that has been accepted into an allocation, as the rest of the relay sees it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use quinn::PathStats;
use tokio::sync::Notify;

use super::{channel::Channel, notices::Notices, tls::DATAGRAM_SEND_BUFFER_BYTES};
use crate::{
    metrics::{DropReason, Metrics},
    quic::congestion,
    table::{ConnId, Grant, Limits, Meter, Now},
    wire::{
        CloseCode, Handle, Role,
        channel::Tag,
        control::{Throttled, Usage},
    },
};

/// Datagrams waiting to be sent are bounded in time: what has waited longer is better lost, for what is
/// relayed is usually congestion-controlled itself and reads delay as a sign.
const SEND_BUFFER_TIME: Duration = Duration::from_millis(100);
/// Room for a burst even at the lowest rates.
const SEND_BUFFER_MIN_BYTES: usize = 64 * 1024;
/// And at most, also where there is no rate. Half of quinn's own bound, so that quinn never evicts.
const SEND_BUFFER_MAX_BYTES: usize = DATAGRAM_SEND_BUFFER_BYTES / 2;

/// For so long after a control message, or four round trips, a lost packet may have been its.
const CONTROL_LOSS_TIME: Duration = Duration::from_secs(1);

/// More than so many challenges to prove a new address within [`CHALLENGES_TIME`], two or three a move, come from no
/// client that moves. quinn answers the first packet from each new address with a whole one, however small that was:
/// who writes others' addresses into its packets has them sent many times what it sends.
pub(super) const MAX_CHALLENGES: u64 = 48;
const CHALLENGES_TIME: Duration = Duration::from_secs(10);

/// Shared by the session that owns the connection, by the other legs that send to it, and by the hub.
///
/// In this order, so that a raw packet touches the first two cache lines and no more.
#[repr(C, align(64))]
pub(super) struct Leg {
    channel: Channel,
    /// Where what this leg sends goes. Set by the hub alone.
    link: ArcSwapOption<Leg>,
    pub meter: Arc<Meter>,
    pub role: Role,
    /// Whose thread drives the connection.
    pub shard: u8,
    /// Whether the client takes raw packets, and the relay moves them.
    pub wants_channel: bool,
    pub id: ConnId,
    /// The allocation's public name, for logs.
    pub handle: Handle,
    pub connection: quinn::Connection,
    link_changed: Notify,
    /// What quinn says of an empty send buffer.
    empty_buffer_bytes: usize,
    /// How many bytes of datagrams may wait to be sent to this leg.
    send_buffer_bytes: AtomicUsize,
    /// A control message is waiting behind the datagrams in the send buffer.
    control_pending: AtomicBool,
    /// One has been written since the sweep last looked.
    control_written: AtomicBool,
    outbox: Mutex<Outbox>,
    outbox_changed: Notify,
    /// Notified once, when the outbox has a close.
    close_decided: Notify,
    pub datagrams: DatagramCounts,
    /// The second in which its allocation was last reported to be over its rate; kept on the device's side.
    over_rate_secs: AtomicU64,
    /// QUIC had nothing to do between the sweep's last two looks.
    quiet: AtomicBool,
    pub notices: Notices,
    watched: Mutex<Watched>,
}

/// What the session still has to tell its client.
///
/// One slot a message, the latest wins: however fast things change and however slowly a client reads, this
/// stays small, and what the client reads last is true.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub peer_present: Option<bool>,
    pub path_limit: Option<PathLimits>,
    pub channel: Option<Tag>,
    pub refreshed: Option<Grant>,
    pub usage: Option<Usage>,
    pub throttled: Option<Throttled>,
    /// When the token expires, unix seconds.
    pub expiring: Option<u64>,
    pub close: Option<Close>,
}

/// What the other side can be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct PathLimits {
    /// As a QUIC datagram.
    pub datagram_bytes: u32,
    /// Raw; 0 where there is no channel on both sides.
    pub raw_bytes: u32,
}

/// What is known of a connection that joins, beside the connection itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    pub shard: u8,
    pub wants_channel: bool,
}

/// The end of a connection, as the hub or the sweep decided it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Close {
    pub code: CloseCode,
    pub message: Arc<str>,
}

/// Datagram counts of one leg that quinn's own are compared with, to find what quinn dropped by itself.
#[derive(Debug, Default)]
pub(super) struct DatagramCounts {
    /// Taken from quinn's receive buffer.
    pub read: AtomicU64,
    /// Whether the reader has found the receive buffer empty since it last read.
    pub reader_waits: AtomicBool,
    /// Handed to quinn's send buffer.
    pub handed: AtomicU64,
}

/// What the sweep saw last.
#[derive(Debug)]
struct Watched {
    address: SocketAddr,
    received_packets: u64,
    last_received: Duration,
    handed: u64,
    announced: Option<PathLimits>,
    receive_overflow: u64,
    path_shrank: u64,
    lost_packets: u64,
    /// As they were counted then.
    challenges: u64,
    challenges_since: Duration,
    /// Until then a lost packet may have held the last control message.
    control_may_be_lost_until: Duration,
}

/// What the sweep found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Observed {
    /// The client sends from another address now.
    pub migrated_to: Option<SocketAddr>,
    /// Where it was before.
    pub was_at: SocketAddr,
    /// Nothing was received for this long.
    pub silent_for: Duration,
    /// Challenges to prove a new address, lately; more than [`MAX_CHALLENGES`] are abuse.
    pub challenges: u64,
}

impl Leg {
    pub fn new(
        id: ConnId,
        role: Role,
        handle: Handle,
        connection: quinn::Connection,
        origin: Origin,
        meter: Arc<Meter>,
        mono: Duration,
    ) -> Self {
        let watched = Watched {
            address: connection.remote_address(),
            received_packets: 0,
            last_received: mono,
            handed: 0,
            announced: None,
            receive_overflow: 0,
            path_shrank: 0,
            lost_packets: 0,
            challenges: 0,
            challenges_since: mono,
            control_may_be_lost_until: Duration::ZERO,
        };
        let notices = Notices::new(&meter, mono);
        let leg = Self {
            // Nothing has been sent to a leg that is not yet one.
            empty_buffer_bytes: connection.datagram_send_buffer_space(),
            id,
            role,
            handle,
            connection,
            shard: origin.shard,
            wants_channel: origin.wants_channel,
            channel: Channel::none(),
            meter,
            link: ArcSwapOption::empty(),
            link_changed: Notify::new(),
            send_buffer_bytes: AtomicUsize::new(0),
            control_pending: AtomicBool::new(false),
            control_written: AtomicBool::new(false),
            outbox: Mutex::default(),
            outbox_changed: Notify::new(),
            close_decided: Notify::new(),
            datagrams: DatagramCounts::default(),
            over_rate_secs: AtomicU64::new(0),
            quiet: AtomicBool::new(false),
            notices,
            watched: Mutex::new(watched),
        };
        leg.fit_to_limits();
        leg
    }

    /// Its raw channel, if it has been given one.
    pub fn channel(&self) -> Option<&Channel> {
        self.channel.tag().is_some().then_some(&self.channel)
    }

    /// Where its raw channel will be, for who gives it one.
    pub(super) fn place_for_channel(&self) -> &Channel {
        &self.channel
    }

    /// The largest UDP payload that the path to the client is known to carry.
    pub fn path_mtu_bytes(&self) -> usize {
        self.connection.stats().path.current_mtu.into()
    }

    /// Where traffic goes now. Wait-free.
    pub fn link(&self) -> arc_swap::Guard<Option<Arc<Self>>> {
        self.link.load()
    }

    /// Whether its allocation's being over its rate is worth a word: once a second, for both directions together.
    pub fn is_over_rate_news(&self, mono: Duration) -> bool {
        let link = self.link();
        let Some(device) = (match self.role {
            Role::Device => Some(self),
            Role::Peer => link.as_deref(),
        }) else {
            return false;
        };
        // Not 0, which stands for never.
        let second = mono.as_secs().saturating_add(1);
        let told = &device.over_rate_secs;
        told.load(Ordering::Relaxed) != second && told.swap(second, Ordering::Relaxed) != second
    }

    /// Changes where traffic goes, and has the client told when that means that its peer came or went.
    pub fn set_link(&self, to: Option<Arc<Self>>) {
        let present = to.is_some();
        let before = self.link.swap(to);
        self.link_changed.notify_waiters();
        if before.is_some() != present {
            self.tell(|outbox| outbox.peer_present = Some(present));
        }
        self.announce_path();
    }

    /// Waits until there is somewhere for traffic to go. Cancel-safe.
    pub async fn linked(&self) -> Arc<Self> {
        loop {
            let changed = self.link_changed.notified();
            if let Some(other) = self.link.load_full() {
                return other;
            }
            changed.await;
        }
    }

    /// Waits until traffic no longer goes to `other`. Cancel-safe.
    pub async fn link_leaves(&self, other: &Arc<Self>) {
        loop {
            let changed = self.link_changed.notified();
            match &*self.link.load() {
                Some(now) if Arc::ptr_eq(now, other) => {}
                _ => return,
            }
            changed.await;
        }
    }

    /// Puts something into the outbox and wakes the session.
    pub fn tell(&self, change: impl FnOnce(&mut Outbox)) {
        change(&mut self.outbox.lock().unwrap_or_else(PoisonError::into_inner));
        self.outbox_changed.notify_one();
    }

    /// Has the client told which mark of the quota has been passed, if it does not know yet; whether there was one.
    pub fn tell_usage(&self) -> bool {
        let usage = self.notices.usage(&self.meter);
        if usage.is_some() {
            self.tell(|outbox| outbox.usage = usage);
        }
        usage.is_some()
    }

    /// Has the client told what is new about its limits, and the other side's of the same. Called by the sweep.
    pub fn tell_notices(&self, now: Now) {
        if let Some(expires_at_unix) = self.notices.expiring(now.unix) {
            self.tell(|outbox| outbox.expiring = Some(expires_at_unix));
        }
        // The other side may rest while this one sends, and would be looked at later.
        if self.tell_of_use(now.mono)
            && let Some(other) = &*self.link()
        {
            other.tell_of_use(now.mono);
        }
    }

    fn tell_of_use(&self, mono: Duration) -> bool {
        let throttled = self.notices.throttled(&self.meter, mono);
        if let Some(throttled) = throttled {
            self.tell(|outbox| {
                // What is still to be told is told with it.
                let before = outbox.throttled.unwrap_or_default();
                outbox.throttled = Some(Throttled {
                    datagrams: throttled.datagrams.saturating_add(before.datagrams),
                    bytes: throttled.bytes.saturating_add(before.bytes),
                    window_ms: throttled.window_ms.saturating_add(before.window_ms),
                });
            });
        }
        self.tell_usage() || throttled.is_some()
    }

    /// Has the session close the connection. The first reason stands; whether it is this one.
    pub fn close(&self, code: CloseCode, message: impl Into<Arc<str>>) -> bool {
        let mut is_first = false;
        self.tell(|outbox| {
            is_first = outbox.close.is_none();
            outbox.close.get_or_insert(Close { code, message: message.into() });
        });
        self.close_decided.notify_one();
        is_first
    }

    /// Waits until the connection is to be closed. Cancel-safe; for the session alone.
    pub async fn told_to_close(&self) -> Close {
        loop {
            let decided = self.close_decided.notified();
            let close = self.outbox.lock().unwrap_or_else(PoisonError::into_inner).close.clone();
            if let Some(close) = close {
                return close;
            }
            decided.await;
        }
    }

    /// Waits until the outbox holds something. Cancel-safe.
    pub async fn outbox_filled(&self) {
        self.outbox_changed.notified().await;
    }

    /// Takes all that the outbox holds, but leaves a close in it for whoever asks next.
    pub fn take_outbox(&self) -> Outbox {
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        let close = outbox.close.clone();
        std::mem::replace(&mut *outbox, Outbox { close, ..Outbox::default() })
    }

    /// Whether a datagram of this size may wait to be sent to this leg.
    pub fn has_room_for(&self, bytes: usize) -> bool {
        let used_bytes = self.waiting_bytes();
        if used_bytes > 0 && self.control_pending.load(Ordering::Relaxed) {
            return false;
        }
        if used_bytes == 0 {
            self.control_pending.store(false, Ordering::Relaxed);
        }
        used_bytes + bytes <= self.send_buffer_bytes.load(Ordering::Relaxed)
    }

    /// Datagrams in the send buffer, in bytes and with quinn's overhead.
    fn waiting_bytes(&self) -> usize {
        self.empty_buffer_bytes.saturating_sub(self.connection.datagram_send_buffer_space())
    }

    /// Says that a control message has been written.
    ///
    /// QUIC sends datagrams before stream data, so a steady flood would hold the message back for ever: until
    /// the send buffer has run empty once, and the message gone out behind it, no datagram finds room.
    ///
    /// Should a packet be lost within the next moments, it may have been that one, and what is sent again waits
    /// behind datagrams again: the sweep then makes room once more.
    pub fn control_pending(&self) {
        self.control_pending.store(true, Ordering::Relaxed);
        self.control_written.store(true, Ordering::Relaxed);
    }

    /// Fits the send buffer and the congestion controller to the limits in force and to what the path carries.
    pub fn fit_to_limits(&self) {
        congestion::set_rate(&self.connection, self.meter.limits().rate_bytes_per_sec);
        self.fit_send_buffer(&self.connection.stats().path);
    }

    fn fit_send_buffer(&self, path: &PathStats) {
        let bytes = send_buffer_bytes(&self.meter.limits(), path.cwnd, path.rtt);
        self.send_buffer_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The largest payloads that can be delivered to the other side now; without a peer, what this leg itself
    /// could carry.
    pub fn path_limits(&self) -> PathLimits {
        let link = self.link.load();
        let datagram = link.as_deref().unwrap_or(self).connection.max_datagram_size();
        // The other side's channel has one size for whoever sends; this side must be able to send at all.
        let raw = link.as_deref().and_then(Self::channel).filter(|_| self.channel().is_some());
        let bytes = |bytes: Option<usize>| bytes.and_then(|bytes| u32::try_from(bytes).ok()).unwrap_or(0);
        PathLimits { datagram_bytes: bytes(datagram), raw_bytes: bytes(raw.map(Channel::max_payload_bytes)) }
    }

    /// Has the client told what it may send, if that has changed since it was last told.
    fn announce_path(&self) {
        let limits = self.path_limits();
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if watched.announced.replace(limits) != Some(limits) {
            drop(watched);
            self.tell(|outbox| outbox.path_limit = Some(limits));
        }
    }

    /// Whether QUIC had nothing to do when it was last looked at: then there is no hurry to look again.
    pub fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }

    /// Looks at what quinn has no events for. Called every few hundred milliseconds, and once a second while quiet.
    pub fn observe(&self, mono: Duration, metrics: &Metrics) -> Observed {
        self.announce_path();
        // Read before the statistics: what is handed over in between is then seen as sent, not as lost.
        let handed = self.datagrams.handed.load(Ordering::Acquire);
        let address = self.connection.remote_address();
        let all_sent = self.waiting_bytes() == 0;
        let stats = self.connection.stats();
        self.fit_send_buffer(&stats.path);
        if let Some(channel) = self.channel() {
            channel.set_max_packet_bytes(stats.path.current_mtu.into());
        }
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);

        let received = std::mem::replace(&mut watched.received_packets, stats.udp_rx.datagrams);
        let handed_before = std::mem::replace(&mut watched.handed, handed);
        let control_written = self.control_written.swap(false, Ordering::Relaxed);
        let quiet = received == stats.udp_rx.datagrams && handed == handed_before && !control_written;
        self.quiet.store(quiet, Ordering::Relaxed);
        if received != stats.udp_rx.datagrams {
            watched.last_received = mono;
        }
        if self.datagrams.reader_waits.load(Ordering::Acquire) {
            let lost = stats.frame_rx.datagram.saturating_sub(self.datagrams.read.load(Ordering::Relaxed));
            metrics.dropped(DropReason::ReceiveOverflow, lost.saturating_sub(watched.receive_overflow));
            watched.receive_overflow = watched.receive_overflow.max(lost);
        }
        if all_sent {
            let lost = handed.saturating_sub(stats.frame_tx.datagram);
            metrics.dropped(DropReason::PathShrank, lost.saturating_sub(watched.path_shrank));
            watched.path_shrank = watched.path_shrank.max(lost);
        }
        if control_written {
            watched.control_may_be_lost_until = mono + CONTROL_LOSS_TIME.max(stats.path.rtt * 4);
        }
        if stats.path.lost_packets != watched.lost_packets {
            watched.lost_packets = stats.path.lost_packets;
            if mono < watched.control_may_be_lost_until {
                self.control_pending.store(true, Ordering::Relaxed);
            }
        }
        let migrated_to = (address != watched.address).then_some(address);
        if migrated_to.is_some() {
            // quinn has made a new controller for the new path.
            congestion::set_rate(&self.connection, self.meter.limits().rate_bytes_per_sec);
        }
        if let Some(channel) = self.channel().filter(|channel| !channel.is_at(address)) {
            channel.close();
        }
        let was_at = std::mem::replace(&mut watched.address, address);
        let challenges = stats.frame_tx.path_challenge.saturating_sub(watched.challenges);
        if mono.saturating_sub(watched.challenges_since) >= CHALLENGES_TIME {
            (watched.challenges, watched.challenges_since) = (stats.frame_tx.path_challenge, mono);
        }
        let silent_for = mono.saturating_sub(watched.last_received);
        Observed { migrated_to, was_at, silent_for, challenges }
    }
}

/// How many bytes of datagrams may wait for a leg: what the allocation's rate, or the path if that is slower,
/// carries in [`SEND_BUFFER_TIME`].
fn send_buffer_bytes(limits: &Limits, congestion_window_bytes: u64, rtt: Duration) -> usize {
    let within = |bytes: u64, time: Duration| {
        let bytes = u128::from(bytes) * SEND_BUFFER_TIME.as_nanos() / time.as_nanos().max(1);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    };
    let by_rate = limits.rate_bytes_per_sec.map_or(usize::MAX, |rate| within(rate, Duration::from_secs(1)));
    by_rate.min(within(congestion_window_bytes, rtt)).clamp(SEND_BUFFER_MIN_BYTES, SEND_BUFFER_MAX_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_send_buffer_holds_a_tenth_of_a_second_within_its_bounds() {
        let limits = |rate| Limits { rate_bytes_per_sec: rate, ..Limits::default() };
        let near = |rate| send_buffer_bytes(&limits(rate), 1 << 20, Duration::from_micros(200));
        assert_eq!(near(Some(1_250_000)), 125_000);
        assert_eq!(near(Some(1)), SEND_BUFFER_MIN_BYTES);
        assert_eq!(near(Some(u64::MAX)), SEND_BUFFER_MAX_BYTES);
        assert_eq!(near(None), SEND_BUFFER_MAX_BYTES);
        // A path that carries 2 MB/s holds no more than 200 kB, whatever the rate allows.
        let far = |rate| send_buffer_bytes(&limits(rate), 100_000, Duration::from_millis(50));
        assert_eq!(far(None), 200_000);
        assert_eq!(far(Some(1_250_000)), 125_000);
        assert_eq!(send_buffer_bytes(&limits(None), 0, Duration::ZERO), SEND_BUFFER_MIN_BYTES);
    }
}
