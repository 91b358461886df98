//! A shard's UDP socket: what is QUIC goes to the endpoint, what is of a raw channel goes straight on.
//!
//! The kernel hands over trains of packets of one size (GRO). A train of the raw channel is given the other leg's
//! tag in place, in the buffer it arrived in, and leaves as a train (GSO). What is left for QUIC is moved
//! together in its buffer.
//!
//! The kernel steers a train by its first packet, and one client's socket may carry connections of several
//! shards: QUIC packets of another shard are handed over to it through a bounded queue. A raw packet is
//! forwarded wherever it arrives.

use std::{
    collections::VecDeque,
    fmt, io,
    io::IoSliceMut,
    net::{SocketAddr, UdpSocket},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    channel::{Channel, Path},
    entry,
    forward::{drop_reason, forward_datagram, not_forwarded},
    hub::Hub,
    latency,
    leg::Leg,
    steer::shard_of,
};
use crate::{
    metrics::{DropReason, GuardIgnored, Withheld},
    quic::{moves, udp::Udp},
    wire::{
        Role,
        channel::{self, HEADER_LEN, Packet, Tag},
    },
};

/// Packets of raw channels that are moved in one go, before others have their turn; a batch more at most. The
/// runtime looks at timers each 61 turns, so a shard that has no rest looks at them each few milliseconds.
const MAX_PACKETS: usize = 64;
/// Packets that may wait for another shard. They are rare: a socket of several connections, in one train.
const MAX_STRAYS: usize = 256;
/// Larger packets than any that this protocol has need not be kept for another shard.
const MAX_STRAY_BYTES: usize = 2048;
/// As large as a datagram at least that asks whether an address is its client's.
const CHALLENGE_BYTES: usize = 1200;
/// The largest UDP payload over IPv4, which a train must not exceed.
const MAX_TRAIN_BYTES: usize = 65_507;

/// Makes the socket that receives it panic, in tests.
#[cfg(test)]
pub(super) const PANICKING_PACKET: &[u8] = b"\x3fpanic, please";
/// Makes the socket that receives it fail for good.
#[cfg(test)]
pub(super) const FAILING_PACKET: &[u8] = b"\x3ffail, please";

/// The queues of all shards.
pub(super) struct Mailboxes(Box<[Mailbox]>);

impl Mailboxes {
    pub fn new(shards: u8) -> Self {
        Self((0..shards).map(|_| Mailbox::default()).collect())
    }

    fn shards(&self) -> u8 {
        u8::try_from(self.0.len()).unwrap_or(u8::MAX)
    }

    fn of(&self, shard: u8) -> Option<&Mailbox> {
        self.0.get(usize::from(shard))
    }
}

/// QUIC packets that arrived at another shard's socket.
#[derive(Default)]
struct Mailbox {
    waiting: AtomicUsize,
    inner: Mutex<MailboxInner>,
}

#[derive(Default)]
struct MailboxInner {
    packets: VecDeque<(RecvMeta, Box<[u8]>)>,
    waker: Option<Waker>,
}

impl Mailbox {
    /// Whether there was room.
    fn put(&self, meta: &RecvMeta, packet: &[u8]) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.packets.len() >= MAX_STRAYS || packet.len() > MAX_STRAY_BYTES {
            return false;
        }
        let meta = RecvMeta { len: packet.len(), stride: packet.len(), ..*meta };
        inner.packets.push_back((meta, packet.into()));
        self.waiting.store(inner.packets.len(), Relaxed);
        if let Some(waker) = inner.waker.take() {
            waker.wake();
        }
        true
    }

    /// Has this task woken when there is something.
    fn register(&self, waker: &Waker) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.packets.is_empty() {
            match &mut inner.waker {
                Some(known) => known.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        } else {
            waker.wake_by_ref();
        }
    }

    /// Fills what fits; how many buffers.
    fn take(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        if self.waiting.load(Relaxed) == 0 {
            return 0;
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some((about, packet)) = inner.packets.pop_front() else { break };
            *meta = about;
            match buf.get_mut(..packet.len()) {
                Some(room) => room.copy_from_slice(&packet),
                None => meta.len = 0,
            }
            taken += 1;
        }
        self.waiting.store(inner.packets.len(), Relaxed);
        taken
    }
}

/// A shard's socket, as quinn sees it.
pub(super) struct ShardSocket {
    shard: u8,
    /// Registered for what arrives alone. Each packet that has been sent makes room in the send buffer, which would
    /// be news as well, at the price of a tenth of the packet's, and would wake up a shard that has nothing to do.
    io: AsyncFd<UdpSocket>,
    room: Room,
    udp: Udp,
    mailboxes: Arc<Mailboxes>,
    /// What quinn was last given came from other shards.
    had_strays: AtomicBool,
    /// Whether the system has shown that it hands over several messages at once.
    hands_over_many: AtomicBool,
    /// Bound to all addresses: what is sent must say from which.
    is_wildcard: bool,
    hub: Arc<Hub>,
}

impl fmt::Debug for ShardSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardSocket").field("shard", &self.shard).finish_non_exhaustive()
    }
}

impl ShardSocket {
    /// Call it inside the shard's runtime.
    pub fn new(shard: u8, socket: UdpSocket, mailboxes: Arc<Mailboxes>, hub: Arc<Hub>) -> io::Result<Self> {
        let udp = Udp::new(&socket)?;
        Ok(Self {
            shard,
            udp,
            hands_over_many: AtomicBool::new(false),
            is_wildcard: socket.local_addr()?.ip().is_unspecified(),
            room: Room::default(),
            io: registered(socket, Interest::READABLE)?,
            mailboxes,
            had_strays: AtomicBool::new(false),
            hub,
        })
    }

    /// Fewer messages than there were buffers for: there are no more now, and the kernel says when there are. Asking
    /// again only to hear so would be a system call for each time the shard wakes up.
    fn note_drained(&self, received: usize, buffers: usize) {
        if received > 1 && !self.hands_over_many.load(Relaxed) {
            self.hands_over_many.store(true, Relaxed);
        }
        // A system that hands over one message at a time always has fewer.
        if received < buffers && self.hands_over_many.load(Relaxed) {
            let nothing = |_: &_| Err::<(), _>(io::ErrorKind::WouldBlock.into());
            let _ = self.io.try_io(Interest::READABLE, nothing);
        }
    }

    /// Takes out of what was received all that is not QUIC of this shard. Whether anything is left.
    fn sort(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> bool {
        let mut left = false;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            if let Some(train) = buf.get_mut(..meta.len) {
                meta.len = self.sort_train(train, meta);
                left |= meta.len > 0;
            }
        }
        left
    }

    /// The same for one train; how many bytes are left, moved to its beginning.
    fn sort_train(&self, train: &mut [u8], meta: &RecvMeta) -> usize {
        let stride = meta.stride.max(1);
        let (mut kept, mut at) = (0, 0);
        while at < train.len() {
            let whose = self.whose(train, at, stride);
            let mut end = (at + stride).min(train.len());
            while end < train.len() && self.whose(train, end, stride) == whose {
                end = (end + stride).min(train.len());
            }
            match whose {
                Whose::Long(shard) => {
                    for from in (at..end).step_by(stride) {
                        let to = (from + stride).min(end);
                        let packet = train.get(from..to).unwrap_or_default();
                        if !self.is_worth_it(meta, packet) {
                            continue;
                        }
                        if shard == self.shard {
                            train.copy_within(from..to, kept);
                            kept += to - from;
                        } else {
                            self.hand_over(shard, meta, packet);
                        }
                    }
                }
                Whose::Mine => {
                    if kept != at {
                        train.copy_within(at..end, kept);
                    }
                    kept += end - at;
                }
                Whose::Shard(shard) => {
                    for packet in chunks(train, at, end, stride) {
                        self.hand_over(shard, meta, packet);
                    }
                }
                Whose::Channel(tag) => {
                    if let Some(run) = train.get_mut(at..end) {
                        self.forward_run(meta, run, stride, tag);
                    }
                }
                Whose::Other => {
                    for packet in chunks(train, at, end, stride) {
                        self.answer_probe(meta, packet);
                    }
                }
            }
            at = end;
        }
        kept
    }

    /// Who gets the packet that begins there.
    fn whose(&self, train: &[u8], at: usize, stride: usize) -> Whose {
        let packet = train.get(at..(at + stride).min(train.len())).unwrap_or_default();
        match packet.first() {
            Some(first) if channel::is_not_quic(*first) => match Packet::parse(packet) {
                Some(Packet::Data { tag, .. }) => Whose::Channel(tag),
                _ => Whose::Other,
            },
            Some(first) if entry::is_long(*first) => Whose::Long(shard_of(packet, self.mailboxes.shards())),
            _ => match shard_of(packet, self.mailboxes.shards()) {
                shard if shard == self.shard => Whose::Mine,
                shard => Whose::Shard(shard),
            },
        }
    }

    /// Whether a packet of a handshake gets as far as quinn.
    fn is_worth_it(&self, meta: &RecvMeta, packet: &[u8]) -> bool {
        let hub = &*self.hub;
        match entry::opening(packet) {
            Some(opening) => {
                hub.unproven.received(meta.addr, packet.len());
                hub.guard.lets_through(meta.addr.ip(), opening, hub.clock.mono())
            }
            None => {
                hub.metrics.guard.ignored(GuardIgnored::Malformed);
                false
            }
        }
    }

    fn hand_over(&self, shard: u8, meta: &RecvMeta, packet: &[u8]) {
        let metrics = &self.hub.metrics;
        match self.mailboxes.of(shard) {
            Some(mailbox) if mailbox.put(meta, packet) => metrics.shard_handoffs.inc(),
            _ => metrics.dropped(DropReason::ShardQueue, 1),
        }
    }

    /// Answers a probe; whatever else it is, it is dropped.
    fn answer_probe(&self, meta: &RecvMeta, packet: &[u8]) {
        #[cfg(test)]
        assert_ne!(packet, PANICKING_PACKET, "as a test asked for");
        if let Err(reason) = self.try_answer_probe(meta, packet) {
            self.hub.metrics.dropped(reason, 1);
            tracing::trace!(reason = reason.name(), "packet dropped");
        }
    }

    fn try_answer_probe(&self, meta: &RecvMeta, packet: &[u8]) -> Result<(), DropReason> {
        let Some(Packet::Probe { tag, nonce, cookie }) = Packet::parse(packet) else {
            return Err(DropReason::RawMalformed);
        };
        let channels = &self.hub.channels;
        let leg = channels.leg(tag).ok_or(DropReason::RawTag)?;
        let channel = leg.channel().ok_or(DropReason::RawTag)?;
        // Where the QUIC connection is now. Its path may not be validated yet: the cookie does that for the channel.
        if leg.connection.remote_address() != meta.addr {
            return Err(DropReason::RawSource);
        }
        let now_nanos = self.hub.clock.nanos();
        if !channel.take_probe(now_nanos) {
            return Err(DropReason::RawProbeRate);
        }
        if channels.knows(cookie, tag, meta.addr, now_nanos) {
            channel.prove(Path { remote: meta.addr, local_ip: meta.dst_ip }, now_nanos);
        }
        // As long as the probe, to where the probe came from.
        let answer = channel::answer(tag, nonce, channels.cookie(tag, meta.addr, now_nanos));
        let path = Path { remote: meta.addr, local_ip: meta.dst_ip };
        self.send(path, None, &answer, answer.len())?;
        self.hub.metrics.raw_probes_answered.inc();
        Ok(())
    }

    /// Forwards packets of one leg, all of them data and as long as `stride`, but for the last.
    fn forward_run(&self, meta: &RecvMeta, run: &mut [u8], stride: usize, tag: Tag) {
        let now_nanos = self.hub.clock.nanos();
        let way = self.hub.channels.look(tag, |leg| self.charge_whole(leg, meta, run, stride, now_nanos));
        match way {
            Some(Some(way)) => {
                self.send_whole(&way, meta, run, stride, tag);
                if latency::is_sampled(now_nanos) {
                    latency::observe(&self.hub.metrics, true, now_nanos, self.hub.clock.nanos());
                }
            }
            Some(None) => self.forward_in_parts(meta, run, stride, tag, now_nanos),
            None => self.hub.metrics.dropped(DropReason::RawTag, run.len().div_ceil(stride) as u64),
        }
    }

    /// The way of nearly every packet: where to send all of them at once, if all may pass, and are charged.
    fn charge_whole(
        &self,
        leg: &Leg,
        meta: &RecvMeta,
        run: &[u8],
        stride: usize,
        now_nanos: u64,
    ) -> Option<Way> {
        leg.channel().filter(|channel| channel.is_at(meta.addr))?;
        let link = leg.link();
        let other = link.as_ref()?.channel()?;
        let way = Way { path: other.open_path(now_nanos)?, tag: other.tag()?, role: leg.role };
        let fits =
            stride.min(run.len()) <= other.max_packet_bytes() && run.len() <= self.together(stride) * stride;
        let (packets, bytes) = weight(run, stride);
        (fits && leg.meter.charge_datagrams(now_nanos, leg.role, packets, bytes).is_ok()).then_some(way)
    }

    fn send_whole(&self, way: &Way, meta: &RecvMeta, run: &mut [u8], stride: usize, tag: Tag) {
        if let Err(reason) = self.send_charged(way, meta, run, stride) {
            let (packets, bytes) = weight(run, stride);
            // Either leg may have left in this very moment; they share one meter. Where both have, nobody is there
            // to whom this train, the last of theirs, would matter.
            let refund = |leg: &Leg| leg.meter.refund_datagrams(way.role, packets, bytes);
            let channels = &self.hub.channels;
            let _ = channels.look(tag, refund).or_else(|| channels.look(way.tag, refund));
            self.hub.metrics.dropped(reason, packets as u64);
        }
    }

    /// Counts datagrams that are not sent.
    fn withhold(&self, why: Withheld, datagrams: usize) {
        self.hub.metrics.guard.withheld(why, datagrams as u64);
    }

    /// How many packets of this length can be sent at once.
    fn together(&self, stride: usize) -> usize {
        self.udp.max_send_segments().min(MAX_TRAIN_BYTES / stride).max(1)
    }

    /// Where not all may go the same way, or not at all: packet by packet, each counted.
    #[cold]
    fn forward_in_parts(&self, meta: &RecvMeta, run: &mut [u8], stride: usize, tag: Tag, now_nanos: u64) {
        let hub = &*self.hub;
        let packets = run.len().div_ceil(stride) as u64;
        let Some(leg) = hub.channels.leg(tag) else {
            return hub.metrics.dropped(DropReason::RawTag, packets);
        };
        if !leg.channel().is_some_and(|channel| channel.is_at(meta.addr)) {
            return hub.metrics.dropped(DropReason::RawSource, packets);
        }
        let link = leg.link();
        let Some(other) = link.as_ref() else {
            return hub.metrics.dropped(DropReason::NoPeer, packets);
        };
        let way = |channel: &Channel| {
            let way = Way { path: channel.open_path(now_nanos)?, tag: channel.tag()?, role: leg.role };
            Some((way, channel.max_packet_bytes()))
        };
        let Some((way, max_bytes)) = other.channel().and_then(way) else {
            for packet in run.chunks(stride) {
                let payload = packet.get(HEADER_LEN..).unwrap_or_default();
                forward_datagram(hub, &leg, Bytes::copy_from_slice(payload));
            }
            return;
        };
        let send = |packets: &mut [u8], stride: usize| {
            let (number, bytes) = weight(packets, stride);
            leg.meter.charge_datagrams(now_nanos, leg.role, number, bytes).map_err(drop_reason)?;
            if let Err(reason) = self.send_charged(&way, meta, packets, stride) {
                leg.meter.refund_datagrams(leg.role, number, bytes);
                hub.metrics.dropped(reason, number as u64);
            }
            Ok(())
        };
        for group in run.chunks_mut(stride.saturating_mul(self.together(stride))) {
            // A train passes as a whole, or packet by packet where not all of it may.
            if stride.min(group.len()) <= max_bytes && send(group, stride).is_ok() {
                continue;
            }
            for packet in group.chunks_mut(stride) {
                let len = packet.len();
                let sent = if len > max_bytes { Err(DropReason::TooLarge) } else { send(packet, len) };
                if let Err(reason) = sent {
                    not_forwarded(hub, &leg, len.saturating_sub(HEADER_LEN), reason);
                    if reason == DropReason::Quota {
                        return;
                    }
                }
            }
        }
    }

    /// Sends packets that have been charged, all of them or none.
    ///
    /// # Errors
    /// Why none was sent; it is for the caller to refund and count them.
    fn send_charged(
        &self,
        way: &Way,
        meta: &RecvMeta,
        group: &mut [u8],
        stride: usize,
    ) -> Result<(), DropReason> {
        let (packets, bytes) = weight(group, stride);
        for packet in group.chunks_mut(stride) {
            channel::readdress(packet, way.tag);
        }
        self.send(way.path, meta.ecn, group, stride)?;
        let (packets, bytes) = (packets as u64, bytes as u64);
        let forwarded = self.hub.metrics.forwarded(way.role);
        forwarded.raw_datagrams.inc_by(packets);
        forwarded.datagrams.inc_by(packets);
        forwarded.datagram_bytes.inc_by(bytes);
        Ok(())
    }

    /// Sends packets of this length, the last may be shorter. The kernel takes all or none, at once.
    fn send(
        &self,
        to: Path,
        ecn: Option<EcnCodepoint>,
        contents: &[u8],
        stride: usize,
    ) -> Result<(), DropReason> {
        let transmit = Transmit {
            destination: to.remote,
            ecn,
            contents,
            segment_size: (contents.len() > stride).then_some(stride),
            src_ip: to.local_ip.filter(|_| self.is_wildcard),
        };
        self.udp.send(self.io.get_ref(), &transmit).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => DropReason::BufferFull,
            _ => DropReason::SendFailed,
        })
    }
}

/// Where packets go.
struct Way {
    path: Path,
    /// The receiver's.
    tag: Tag,
    /// Who sent them.
    role: Role,
}

/// How many packets, and how many bytes of payload.
fn weight(group: &[u8], stride: usize) -> (usize, usize) {
    let packets = group.len().div_ceil(stride);
    (packets, group.len().saturating_sub(packets * HEADER_LEN))
}

/// Whose a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// QUIC with a long header, of this shard or another: a handshake's.
    Long(u8),
    /// QUIC, of this shard.
    Mine,
    /// QUIC, of another.
    Shard(u8),
    /// Data of a raw channel.
    Channel(Tag),
    /// Neither: a probe, or nothing.
    Other,
}

fn chunks(train: &[u8], at: usize, end: usize, stride: usize) -> std::slice::Chunks<'_, u8> {
    train.get(at..end).unwrap_or_default().chunks(stride)
}

impl AsyncUdpSocket for ShardSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut transmit =
            Transmit { src_ip: transmit.src_ip.filter(|_| self.is_wildcard), ..transmit.clone() };
        if transmit.contents.first().is_some_and(|first| entry::is_long(*first)) {
            let (bytes, stride) = (transmit.contents.len(), transmit.segment_size);
            let stride_bytes = stride.unwrap_or(bytes).max(1);
            let covered = self.hub.unproven.cover(transmit.destination, bytes, stride_bytes);
            if covered < bytes {
                self.withhold(Withheld::Unproven, (bytes - covered).div_ceil(stride_bytes));
            }
            transmit.contents = transmit.contents.get(..covered).unwrap_or_default();
            transmit.segment_size = stride.filter(|stride| *stride < covered);
            if covered == 0 {
                return Ok(());
            }
        } else {
            let bytes = transmit.contents.len();
            let is_probe = || {
                // Alone and large: one in a train is none. Where a client sends much, it may be data.
                let is_large = transmit.segment_size.is_none() && bytes > CHALLENGE_BYTES;
                is_large && moves::is_second_to(transmit.destination)
            };
            let why = if bytes < CHALLENGE_BYTES {
                None
            } else if moves::is_restless() {
                Some(Withheld::Restless)
            } else {
                is_probe().then_some(Withheld::Unproven)
            };
            if let Some(why) = why {
                // To quinn it is lost on the way. Where the sweep then closes the connection, that is smaller.
                self.withhold(why, bytes.div_ceil(transmit.segment_size.unwrap_or(bytes).max(1)));
                return Ok(());
            }
            self.hub.unproven.sent(transmit.destination, bytes);
        }
        self.room.try_send(|| self.udp.send_or_lose(self.io.get_ref(), &transmit))?;
        moves::sent(transmit.destination);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        if let Some(mailbox) = self.mailboxes.of(self.shard).filter(|_| self.mailboxes.shards() > 1) {
            // In turn with what arrives here: whoever can fill the mailbox must not keep the others out.
            if !self.had_strays.swap(false, Relaxed) {
                let taken = mailbox.take(bufs, meta);
                if taken > 0 {
                    self.had_strays.store(true, Relaxed);
                    return Poll::Ready(Ok(taken));
                }
            }
            mailbox.register(cx.waker());
        }
        let mut packets = 0;
        while packets < MAX_PACKETS {
            packets += 1;
            let mut readable = ready!(self.io.poll_read_ready(cx))?;
            let received = readable.try_io(|io| self.udp.recv(io.get_ref(), bufs, meta));
            // An error is that of one packet, or there was none: the readiness says which, next time round.
            let Ok(Ok(received)) = received else { continue };
            self.note_drained(received, meta.len());
            let (Some(bufs), Some(meta)) = (bufs.get_mut(..received), meta.get_mut(..received)) else {
                continue;
            };
            packets += meta.iter().map(|meta| meta.len / meta.stride.max(1)).sum::<usize>();
            #[cfg(test)]
            if bufs.first().is_some_and(|buf| buf.starts_with(FAILING_PACKET)) {
                return Poll::Ready(Err(io::ErrorKind::Other.into()));
            }
            // A panic here would poison the endpoint's lock, and quinn would then abort the process.
            match catch_unwind(AssertUnwindSafe(|| self.sort(bufs, meta))) {
                Ok(true) => {
                    self.hub.reads.note(self.shard, || self.hub.clock.nanos());
                    return Poll::Ready(Ok(received));
                }
                Ok(false) => {}
                Err(_) => {
                    self.hub.metrics.socket_panics.inc();
                    tracing::error!(
                        shard = self.shard,
                        "a panic over a packet: what arrived with it is dropped"
                    );
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.udp.max_send_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.udp.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.udp.may_fragment()
    }
}

/// tokio's newer way is unsafe, for the sake of types that may close their descriptor early or change it. A socket
/// of the standard library's does neither.
#[allow(deprecated)]
fn registered(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, interest)
}

/// Room in the socket's send buffer: the system is asked to tell of it only while somebody waits.
#[derive(Default)]
struct Room {
    /// There was none when it was last looked for.
    lacking: AtomicBool,
    /// The socket, registered for that by those who wait now.
    awaited: Mutex<Weak<AsyncFd<UdpSocket>>>,
}

impl Room {
    fn awaited(&self) -> std::sync::MutexGuard<'_, Weak<AsyncFd<UdpSocket>>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_send(&self, send: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let sent = if self.lacking.load(Relaxed) {
            let awaited = self.awaited().upgrade();
            let sent = match awaited {
                // Has those who wait go on waiting when there is no room after all.
                Some(io) => io.try_io(Interest::WRITABLE, |_| send()),
                None => send(),
            };
            if sent.is_ok() {
                self.lacking.store(false, Relaxed);
            }
            sent
        } else {
            send()
        };
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.lacking.store(true, Relaxed);
        }
        sent
    }

    /// Waits until there is room. Cancel-safe.
    async fn wait(&self, socket: &UdpSocket) -> io::Result<()> {
        let io = {
            let mut awaited = self.awaited();
            match awaited.upgrade() {
                Some(io) => io,
                None => {
                    let io = Arc::new(registered(socket.try_clone()?, Interest::WRITABLE)?);
                    *awaited = Arc::downgrade(&io);
                    io
                }
            }
        };
        io.writable().await.map(|_| ())
    }
}

type Waiting = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

/// Waits for room in the socket's send buffer, for one of any number of tasks.
struct Writable {
    socket: Arc<ShardSocket>,
    waiting: Option<Waiting>,
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writable").finish_non_exhaustive()
    }
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // There nearly always is room, and what waits for it costs memory.
        if self.waiting.is_none() && !self.socket.room.lacking.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let socket = self.socket.clone();
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(async move { socket.room.wait(socket.io.get_ref()).await }));
        let outcome = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(outcome)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        relay::tests::{Harness, hub, leg},
        table::Counts,
    };

    const SHARDS: u8 = 3;

    fn socket(hub: Arc<Hub>, shard: u8, mailboxes: Arc<Mailboxes>) -> ShardSocket {
        ShardSocket::new(shard, std::net::UdpSocket::bind("127.0.0.1:0").unwrap(), mailboxes, hub).unwrap()
    }

    /// Packets of one length, as they may stand in a train; the last may be cut.
    fn packet(len: usize) -> impl Strategy<Value = Vec<u8>> {
        let first = prop_oneof![Just(0x20), Just(0x21), Just(0x40), Just(0xc0), any::<u8>()];
        (first, 0..SHARDS, prop::collection::vec(any::<u8>(), len)).prop_map(|(first, shard, mut packet)| {
            packet[0] = first;
            // Half of the connection IDs are this relay's own.
            if packet.last().is_some_and(|byte| byte % 2 == 0) {
                for at in [1, 6] {
                    if let Some(byte) = packet.get_mut(at) {
                        *byte = shard;
                    }
                }
            }
            packet
        })
    }

    fn train() -> impl Strategy<Value = (usize, Vec<Vec<u8>>)> {
        (1..40_usize).prop_flat_map(|len| {
            (prop::collection::vec(packet(len), 1..50), 1..=len).prop_map(move |(mut packets, last)| {
                packets.last_mut().unwrap().truncate(last);
                (len, packets)
            })
        })
    }

    /// Whatever stands in a train: quinn gets its shard's QUIC packets in their order and nothing else, other
    /// shards get theirs, and each packet is either somewhere or counted.
    #[test]
    fn a_train_is_sorted_without_loss() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let harness = Harness::start();
        let hub = Arc::new(hub(&harness));
        let mailboxes = Arc::new(Mailboxes::new(SHARDS));
        let socket = socket(hub, 1, mailboxes.clone());
        let dropped = || -> u64 {
            ["raw_tag", "raw_malformed", "shard_queue"].iter().map(|reason| harness.dropped(reason)).sum()
        };
        proptest!(ProptestConfig::with_cases(2000), |((stride, packets) in train())| {
            let before = dropped();
            let mut bytes = packets.concat();
            let meta = RecvMeta { len: bytes.len(), stride, ..RecvMeta::default() };
            let kept = socket.sort_train(&mut bytes, &meta);
            let quic = |packet: &&Vec<u8>| !channel::is_not_quic(packet[0]);
            let of = |shard| packets.iter().filter(quic).filter(move |packet| shard_of(packet, SHARDS) == shard);
            prop_assert_eq!(&bytes[..kept], of(1).flatten().copied().collect::<Vec<_>>());
            for shard in [0, 2] {
                let mut waiting = mailboxes.of(shard).unwrap().inner.lock().unwrap();
                let waiting: Vec<_> = waiting.packets.drain(..).map(|(_, packet)| packet.to_vec()).collect();
                prop_assert_eq!(waiting, of(shard).cloned().collect::<Vec<_>>());
            }
            let beside = packets.iter().filter(|packet| channel::is_not_quic(packet[0])).count();
            prop_assert_eq!(dropped() - before, beside as u64, "no tag is known here");
        });
    }

    #[test]
    fn a_mailbox_holds_so_much_and_wakes_whoever_waits() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let harness = Harness::start();
        let mailboxes = Arc::new(Mailboxes::new(2));
        let socket = socket(Arc::new(hub(&harness)), 0, mailboxes.clone());
        let meta = RecvMeta::default();
        let packet = |n: usize| [&[0x40, 1][..], &n.to_be_bytes()].concat();
        let woken = Arc::new(Woken::default());
        mailboxes.of(1).unwrap().register(&Waker::from(woken.clone()));
        for n in 0..MAX_STRAYS + 5 {
            socket.hand_over(1, &meta, &packet(n));
        }
        assert_eq!(woken.0.load(Relaxed), 1, "once, until it waits again");
        assert_eq!(harness.dropped("shard_queue"), 5, "the newest go");
        assert_eq!(harness.metric("zrc_relay_shard_handoffs_total"), MAX_STRAYS as u64);
        // Whoever comes to wait when there is something is woken at once.
        mailboxes.of(1).unwrap().register(&Waker::from(woken.clone()));
        assert_eq!(woken.0.load(Relaxed), 2);

        let mut space = vec![[0; 64]; 8];
        let mut next = 0;
        loop {
            let mut bufs: Vec<_> = space.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
            let mut meta = [meta; 8];
            let taken = mailboxes.of(1).unwrap().take(&mut bufs, &mut meta);
            if taken == 0 {
                break;
            }
            for (buf, meta) in bufs.iter().zip(meta).take(taken) {
                assert_eq!(buf[..meta.len], packet(next));
                next += 1;
            }
        }
        assert_eq!(next, MAX_STRAYS);
        socket.hand_over(1, &meta, &[0x40; MAX_STRAY_BYTES + 1]);
        socket.hand_over(7, &meta, &packet(0));
        assert_eq!(harness.dropped("shard_queue"), 7, "too large, and to nobody");
    }

    /// What quinn is given next, if anything.
    fn poll(socket: &ShardSocket, waker: &Waker) -> Poll<Vec<Vec<u8>>> {
        let mut space = vec![[0; 64]; 8];
        let mut bufs: Vec<_> = space.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
        let mut meta = [RecvMeta::default(); 8];
        let received =
            ready!(socket.poll_recv(&mut Context::from_waker(waker), &mut bufs, &mut meta)).unwrap();
        Poll::Ready(
            bufs.iter().zip(meta).take(received).map(|(buf, meta)| buf[..meta.len].to_vec()).collect(),
        )
    }

    #[tokio::test]
    async fn strays_without_end_do_not_keep_out_what_arrives_here() {
        let harness = Harness::start();
        let mailboxes = Arc::new(Mailboxes::new(2));
        let socket = socket(Arc::new(hub(&harness)), 1, mailboxes.clone());
        let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(&[0x40, 1, 7], socket.local_addr().unwrap()).await.unwrap();
        let _ = socket.io.readable().await.unwrap();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        for stray in 0..2 {
            while mailboxes.of(1).unwrap().put(&RecvMeta::default(), &[0x40, 1, 0]) {}
            let expected: &[u8] = if stray == 0 { &[0x40, 1, 0] } else { &[0x40, 1, 7] };
            let Poll::Ready(given) = poll(&socket, &waker) else { panic!("there is something") };
            assert_eq!(given.first().map(Vec::as_slice), Some(expected));
        }
        // And with nothing more to arrive here, all of the mailbox is had.
        let mut strays = 0;
        while strays < MAX_STRAYS {
            let before = woken.0.load(Relaxed);
            match poll(&socket, &waker) {
                Poll::Ready(given) => strays += given.len(),
                Poll::Pending => assert!(woken.0.load(Relaxed) > before, "nobody comes back for the rest"),
            }
        }
        assert!(poll(&socket, &waker).is_pending());
    }

    #[tokio::test]
    async fn a_flood_of_raw_packets_gives_way_to_others() {
        let harness = Harness::start();
        let socket = socket(Arc::new(hub(&harness)), 0, Arc::new(Mailboxes::new(1)));
        let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let packet = channel::data_header(Tag::new(0, [9; 6]));
        for _ in 0..200 {
            client.send_to(&packet, socket.local_addr().unwrap()).await.unwrap();
        }
        let _ = socket.io.readable().await.unwrap();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut turns = 0;
        while harness.dropped("raw_tag") < 200 {
            let before = harness.dropped("raw_tag");
            assert!(poll(&socket, &waker).is_pending());
            turns += 1;
            let moved = harness.dropped("raw_tag") - before;
            assert!(moved <= (MAX_PACKETS + 8) as u64, "{moved} in one go");
            if before + moved < 200 {
                assert_eq!(woken.0.load(Relaxed), turns, "it comes back by itself");
            }
        }
        assert!(turns >= 3);
    }

    #[tokio::test]
    async fn r3_5_what_could_not_be_sent_is_not_charged_where_one_of_both_has_just_left() {
        let harness = Harness::start();
        let (device, peer) = harness.joined_pair(&harness.pair()).await;
        let hub = Arc::new(hub(&harness));
        let socket = socket(hub.clone(), 0, Arc::new(Mailboxes::new(1)));
        for gone in [None, Some(Role::Device), Some(Role::Peer)] {
            let from = Arc::new(leg(&harness, &device, Role::Device));
            let mut to = leg(&harness, &peer, Role::Peer);
            to.meter = from.meter.clone();
            let to = Arc::new(to);
            let [tag, other_tag] = [&from, &to].map(|leg| {
                assert!(hub.channels.open(leg));
                leg.channel().unwrap().tag().unwrap()
            });
            if let Some(gone) = gone {
                assert!(hub.channels.close(if gone == Role::Device { &from } else { &to }));
            }
            let mut train = [&channel::data_header(tag)[..], b"payload"].concat().repeat(2);
            let stride = train.len() / 2;
            from.meter.charge_datagrams(1, Role::Device, 2, 14).unwrap();
            let before = harness.dropped("send_failed");
            // Nothing can be sent to that port.
            let path = Path { remote: "127.0.0.1:0".parse().unwrap(), local_ip: None };
            let way = Way { path, tag: other_tag, role: Role::Device };
            socket.send_whole(&way, &RecvMeta::default(), &mut train, stride, tag);
            assert_eq!(harness.dropped("send_failed") - before, 2, "{gone:?}");
            assert_eq!(from.meter.bytes_used(), 0, "{gone:?}");
            assert_eq!(from.meter.counts(Role::Device), Counts::default(), "{gone:?}");
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }
}
