//! A connection's raw channel: packets beside QUIC on the same socket, for as long as its probes are answered.
//!
//! Probes cost an idle phone its radio's rest, so the channel sleeps while nothing crosses: it is closed, nothing is
//! sent and no timer runs. What is sent or received next goes as without a channel and wakes it.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use quinn::Connection;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{
    inbox::{Inbox, Train},
    link::Link,
    session::Shared,
    socket::Port,
    stats::Counters,
};
use crate::wire::channel::{self, Cookie, HEADER_LEN, Nonce, PROBE_LEN, Tag};

/// How often the relay is asked whether raw packets pass.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How long an open channel's answer may take before the next probe goes and QUIC has a look: four round trips, but
/// no less than this. A changed NAT binding swallows everything until then.
const LEAST_PATIENCE: Duration = Duration::from_millis(400);
/// How long an answered channel without datagrams stays awake. Longer than the pauses of who types, polls or measures
/// once in a few seconds, for whom each waking would cost a round trip by QUIC; shorter than the time between two
/// keep-alives of what is relayed (15 s and more), or these alone would keep it awake for good.
const IDLE: Duration = Duration::from_secs(10);
/// The same while probes are not answered. A path that is down loses what would keep this side awake; but a relay bears
/// that for so long as a rule and then ends the connection, so by then it is only raw packets that do not pass.
const IDLE_UNANSWERED: Duration = Duration::from_secs(30);
/// How many of the last probes' answers still count.
const MAX_OUTSTANDING: usize = 4;
/// How much goes to the kernel at once: less than any UDP packet may hold.
const MAX_SEND_BYTES: usize = 64_000;
/// No channel, or one whose probes are not answered. No data header is all zero.
const CLOSED: u64 = 0;

thread_local! {
    /// Where packets are put together; reused, so that sending allocates nothing.
    static PACKETS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What became of datagrams that were to go raw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Raw {
    /// They have gone.
    Sent,
    /// There is no room in the socket now.
    Full,
    /// They do not fit, or the channel is closed: not this way.
    Closed,
}

/// One connection's raw channel.
pub(super) struct Channel {
    remote: SocketAddr,
    /// Whether both sides have listed the feature.
    offered: bool,
    port: Arc<Port>,
    inbox: Arc<Inbox>,
    counters: Arc<Counters>,
    /// The header of what is sent now, as a number; or [`CLOSED`].
    header: AtomicU64,
    /// What the relay says that the other side's path carries, in bytes of payload.
    limit: AtomicUsize,
    /// The same of this side's path, as of the last look.
    path_limit: AtomicUsize,
    probing: Mutex<Probing>,
    /// Nobody probes until this is taken back.
    asleep: AtomicBool,
    /// Datagrams have crossed that would have gone raw through an open channel. What goes raw is counted already.
    used: AtomicBool,
    /// There is something new for [`run`].
    news: Notify,
}

impl Channel {
    pub(super) fn new(
        remote: SocketAddr,
        offered: bool,
        port: Arc<Port>,
        inbox: Arc<Inbox>,
        counters: Arc<Counters>,
    ) -> Arc<Self> {
        Arc::new(Self {
            remote,
            offered,
            port,
            inbox,
            counters,
            header: AtomicU64::new(CLOSED),
            limit: AtomicUsize::new(0),
            path_limit: AtomicUsize::new(0),
            probing: Mutex::default(),
            asleep: AtomicBool::new(false),
            used: AtomicBool::new(false),
            news: Notify::new(),
        })
    }

    /// The relay's address.
    pub(super) fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Whether the relay may open it.
    pub(super) fn is_offered(&self) -> bool {
        self.offered
    }

    /// Whether probes are answered.
    pub(super) fn is_open(&self) -> bool {
        self.header.load(Relaxed) != CLOSED
    }

    /// The largest payload that goes raw now, in bytes; `None` when none does.
    pub(super) fn max_bytes(&self) -> Option<usize> {
        let max = self.limit.load(Relaxed).min(self.path_limit.load(Relaxed));
        (self.is_open() && self.limit.load(Relaxed) > 0).then_some(max)
    }

    /// The relay has named the channel, or named it anew.
    pub(super) fn begin(self: &Arc<Self>, tag: Tag) {
        if self.port.channels.enter(tag, self) {
            self.probing(|probing| {
                probing.begin(tag, Instant::now());
                self.asleep.store(false, Relaxed);
            });
        } else {
            tracing::debug!("too many raw channels on one socket");
            self.probing(|probing| *probing = Probing::default());
        }
        self.news.notify_one();
    }

    /// The relay's word on how large a payload the other side's path carries.
    pub(super) fn set_limit(&self, max_raw_bytes: usize) {
        self.limit.store(max_raw_bytes, Relaxed);
    }

    /// A datagram has come as without a channel, which would have come raw with one: it is to be awake.
    pub(super) fn touch(&self) {
        self.used.store(true, Relaxed);
        if self.asleep.load(Relaxed) && self.asleep.swap(false, Relaxed) {
            self.news.notify_one();
        }
    }

    /// As [`touch`](Self::touch), for a datagram of this size that came by a stream, if it would have come raw: the
    /// relay has no other way for what fits the channel and no QUIC datagram.
    pub(super) fn touch_by_stream(&self, bytes: usize, connection: &Connection) {
        if self.offered {
            self.look_at_path(connection);
            if bytes <= self.path_limit.load(Relaxed) {
                self.touch();
            }
        }
    }

    /// The channel is closed, and there is a datagram of this size for it.
    fn wanted(&self, bytes: usize) {
        let limit = self.limit.load(Relaxed);
        if limit > 0 && bytes <= limit {
            self.touch();
        }
    }

    /// Whether anything has crossed since this was asked last, given how many raw packets had then.
    fn was_used(&self, raw_packets: &mut u64) -> bool {
        let now = self.counters.raw_sent.get() + self.counters.raw_received.get();
        let raw = std::mem::replace(raw_packets, now) != now;
        self.used.swap(false, Relaxed) || raw
    }

    /// The local address is another: the relay has to find out first, by QUIC, and answer from there.
    pub(super) fn rebound(&self) {
        self.probing(Probing::silence);
        self.news.notify_one();
    }

    fn end(self: &Arc<Self>) {
        self.probing(|probing| *probing = Probing::default());
        self.port.channels.leave(self);
    }

    /// Takes in data packets of `stride` bytes each, their headers included.
    pub(super) fn receive(&self, packets: &[u8], stride: usize) {
        let count = packets.len().div_ceil(stride.max(1));
        let mut data = BytesMut::with_capacity(packets.len().saturating_sub(count * HEADER_LEN));
        for packet in packets.chunks(stride.max(1)) {
            data.extend_from_slice(packet.get(HEADER_LEN..).unwrap_or_default());
        }
        self.counters.raw_received.add(count as u64);
        if self.asleep.load(Relaxed) {
            self.touch();
        }
        let segment_bytes = stride.saturating_sub(HEADER_LEN).min(data.len()).max(1);
        self.inbox.receive(Train { data: data.freeze(), segment_bytes });
    }

    /// Takes in the relay's answer to a probe.
    pub(super) fn answered(&self, nonce: &Nonce, cookie: Cookie) {
        if self.probing(|probing| probing.answer(nonce, cookie, Instant::now())) {
            self.counters.probes_answered.add(1);
            self.news.notify_one();
        } else {
            self.counters.raw_dropped_malformed.add(1);
        }
    }

    /// Sends datagrams of `segment_bytes` each, the last at most that long; none when `data` is empty. Says how many
    /// went, and what about the others.
    pub(super) fn send(&self, data: &[u8], segment_bytes: usize, connection: &Connection) -> (usize, Raw) {
        let header = self.header.load(Relaxed);
        if header == CLOSED {
            self.wanted(segment_bytes);
            return (0, Raw::Closed);
        }
        if segment_bytes > self.limit.load(Relaxed) {
            return (0, Raw::Closed);
        }
        if segment_bytes > self.path_limit.load(Relaxed) {
            self.look_at_path(connection);
            if segment_bytes > self.path_limit.load(Relaxed) {
                return (0, Raw::Closed);
            }
        }
        let socket = self.port.socket.load();
        let mut sent = 0;
        let mut rest = data;
        let outcome = PACKETS.with_borrow_mut(|packets| {
            while !rest.is_empty() {
                let packet_bytes = HEADER_LEN + segment_bytes;
                let at_once = socket.max_segments().min(MAX_SEND_BYTES / packet_bytes).max(1);
                let (now, later) = rest.split_at(rest.len().min(at_once * segment_bytes));
                packets.clear();
                for segment in now.chunks(segment_bytes) {
                    packets.extend_from_slice(&header.to_be_bytes());
                    packets.extend_from_slice(segment);
                }
                match socket.send(self.remote, packets, packet_bytes) {
                    Ok(()) => {
                        sent += now.len().div_ceil(segment_bytes);
                        rest = later;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Raw::Full,
                    // The socket has found out that the kernel does not take several at once.
                    Err(_) if at_once > 1 && socket.max_segments() == 1 => {}
                    Err(_) => return Raw::Closed,
                }
            }
            Raw::Sent
        });
        self.counters.raw_sent.add(sent as u64);
        (sent, outcome)
    }

    /// As [`send`](Self::send), for one datagram, which may be empty.
    pub(super) fn send_one(&self, data: &Bytes, connection: &Connection) -> Raw {
        if !data.is_empty() {
            return self.send(data, data.len(), connection).1;
        }
        let header = self.header.load(Relaxed);
        if header == CLOSED {
            self.wanted(0);
            return Raw::Closed;
        }
        if self.limit.load(Relaxed) == 0 {
            return Raw::Closed;
        }
        match self.port.socket.load().send(self.remote, &header.to_be_bytes(), HEADER_LEN) {
            Ok(()) => {
                self.counters.raw_sent.add(1);
                Raw::Sent
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Raw::Full,
            Err(_) => Raw::Closed,
        }
    }

    /// Waits until there is room in the socket; `false` when there will be none.
    pub(super) async fn writable(&self) -> bool {
        let socket = self.port.socket.load_full();
        socket.writable().await.is_ok()
    }

    /// What this side's path carries; QUIC finds out.
    fn look_at_path(&self, connection: &Connection) {
        let packet_bytes = usize::from(connection.stats().path.current_mtu);
        self.path_limit.store(packet_bytes.saturating_sub(HEADER_LEN), Relaxed);
    }

    /// Does something to the probes, and sends from now on as they then say.
    fn probing<T>(&self, act: impl FnOnce(&mut Probing) -> T) -> T {
        let mut probing = self.probing.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = act(&mut probing);
        self.header.store(probing.header(), Relaxed);
        outcome
    }
}

/// Ends the channel when its connection's task does, however that ends.
pub(super) struct Ending(pub(super) Arc<Channel>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Probes, opens and closes the channel, and lets it sleep. Never done.
pub(super) async fn run(link: &Link, shared: &Shared) {
    let channel = &link.channel;
    let mut raw_packets = 0;
    loop {
        let due = channel.probing(|probing| probing.next);
        tokio::select! {
            () = channel.news.notified() => {}
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
        let mut nonce = Nonce::default();
        // Without randomness TLS fails too, so it does not matter what the nonce then is.
        let _ = getrandom::fill(&mut nonce);
        channel.look_at_path(&link.connection);
        let patience = (link.connection.rtt() * 4).clamp(LEAST_PATIENCE, PROBE_EVERY);
        let used = channel.was_used(&mut raw_packets);
        let slept = channel.probing(|probing| {
            let now = Instant::now();
            if !channel.asleep.load(Relaxed) {
                probing.wake(now);
            }
            if used {
                probing.used_at = Some(now);
            }
            if probing.fall_asleep(now) {
                channel.asleep.store(true, Relaxed);
                return true;
            }
            let Some(Step { packet, unanswered }) = probing.step(now, nonce, patience) else { return false };
            if unanswered {
                link.ping_soon();
            }
            channel.counters.probes_sent.add(1);
            // Before any data: the cookie in it may be what the relay takes data for. One that does not leave is one
            // that is not answered.
            let _ = channel.port.socket.load().send(channel.remote, &packet, PROBE_LEN);
            false
        });
        // What crossed in between did not know that it had to wake anybody.
        if slept && channel.was_used(&mut raw_packets) {
            channel.touch();
        }
        shared.tell_raw_channel();
    }
}

/// Which probes are on their way, and whether their answers keep the channel open. Knows no clock and no socket.
#[derive(Default)]
struct Probing {
    tag: Option<Tag>,
    /// Of the latest probe that was answered.
    cookie: Cookie,
    cookie_of: u64,
    /// The one that the last probe showed.
    shown: Cookie,
    /// How many probes have been sent with this tag; the last one's number.
    sent: u64,
    outstanding: VecDeque<(u64, Nonce)>,
    /// The last probe has been answered.
    last_answered: bool,
    /// When it was sent.
    last_sent: Option<Instant>,
    /// It went because of an answer, not because it was time.
    last_at_once: bool,
    /// The next one does.
    at_once: bool,
    open: bool,
    /// When the next probe is due; never without a tag, or asleep.
    next: Option<Instant>,
    /// When the application was last known to use the connection.
    used_at: Option<Instant>,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    /// To be sent.
    packet: [u8; PROBE_LEN],
    /// The channel was open, and its last probe has not been answered.
    unanswered: bool,
}

impl Probing {
    /// A new tag: nothing that was before counts, and the first probe is due.
    fn begin(&mut self, tag: Tag, now: Instant) {
        *self = Self { tag: Some(tag), next: Some(now), used_at: Some(now), ..Self::default() };
    }

    /// No answer to what has been sent counts any more.
    fn silence(&mut self) {
        self.outstanding.clear();
        self.last_answered = false;
        self.at_once = false;
        self.open = false;
    }

    /// When a probe is due but nothing has crossed for long: closes the channel, and no probe is due any more. Whether
    /// it did.
    fn fall_asleep(&mut self, now: Instant) -> bool {
        let idle = if self.last_answered && !self.at_once { IDLE } else { IDLE_UNANSWERED };
        let long_idle = self.used_at.is_none_or(|used| now >= used + idle);
        let sleeps = long_idle && self.next.is_some_and(|next| now >= next);
        if sleeps {
            // An answer that is still on its way brings its cookie.
            (self.last_answered, self.at_once, self.open) = (false, false, false);
            self.next = None;
        }
        sleeps
    }

    /// If it sleeps, it does no more: a probe is due, with the cookie of before, which may still be good.
    fn wake(&mut self, now: Instant) {
        if self.tag.is_some() && self.next.is_none() {
            self.silence();
            self.next = Some(now);
            self.used_at = Some(now);
        }
    }

    /// What stands before data now, as a number.
    fn header(&self) -> u64 {
        match self.tag {
            Some(tag) if self.open => u64::from_be_bytes(channel::data_header(tag)),
            _ => CLOSED,
        }
    }

    /// The next probe, when it is due. Whether the channel is open follows from the one before. While it is open, the
    /// one after is due after this patience, or once answered, a second after this one.
    fn step(&mut self, now: Instant, nonce: Nonce, patience: Duration) -> Option<Step> {
        let tag = self.tag.filter(|_| self.next.is_some_and(|next| now >= next))?;
        let unanswered = self.open && !self.last_answered;
        self.open = self.last_answered;
        self.sent += 1;
        self.last_answered = false;
        self.outstanding.push_back((self.sent, nonce));
        if self.outstanding.len() > MAX_OUTSTANDING {
            self.outstanding.pop_front();
        }
        self.shown = self.cookie;
        self.last_sent = Some(now);
        self.last_at_once = std::mem::take(&mut self.at_once);
        self.next = Some(now + if self.open { patience } else { PROBE_EVERY });
        Some(Step { packet: channel::probe(tag, nonce, self.cookie), unanswered })
    }

    /// Whether this answers a probe. After the answer of the last one, if there was silence or the cookie is another
    /// one than that probe's, another probe is due at once: with the new cookie, so that the relay opens its direction
    /// too, and takes data from an address that it does not know yet. With it the channel is open. An answer to an earlier one brings its cookie and opens
    /// nothing, or a path slower than a second would open and close forever.
    fn answer(&mut self, nonce: &Nonce, cookie: Cookie, now: Instant) -> bool {
        let Some(at) = self.outstanding.iter().position(|(_, its)| its == nonce) else { return false };
        let Some((number, _)) = self.outstanding.remove(at) else { return false };
        if number > self.cookie_of {
            (self.cookie, self.cookie_of) = (cookie, number);
        }
        if number == self.sent && self.next.is_some() {
            self.last_answered = true;
            self.at_once = !self.open || (cookie != self.shown && !self.last_at_once);
            self.next = match self.last_sent {
                Some(sent) if !self.at_once => Some(sent + PROBE_EVERY),
                _ => Some(now),
            };
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::channel::Packet;

    const PATIENCE: Duration = Duration::from_millis(500);
    const TAG: Tag = Tag::new(1, [2; 6]);

    fn cookie_in(step: &Step) -> Cookie {
        match Packet::parse(&step.packet) {
            Some(Packet::Probe { tag: TAG, cookie, .. }) => cookie,
            other => panic!("{other:?}"),
        }
    }

    fn begun() -> (Probing, Instant) {
        let mut probing = Probing::default();
        let now = Instant::now();
        assert_eq!((probing.next, probing.step(now, [0; 8], PATIENCE)), (None, None));
        probing.begin(TAG, now);
        (probing, now)
    }

    #[test]
    fn the_first_answer_opens_and_one_further_probe_is_due_at_once() {
        let (mut probing, now) = begun();
        assert_eq!(probing.next, Some(now));
        assert_eq!(cookie_in(&probing.step(now, [1; 8], PATIENCE).unwrap()), [0; 8]);
        assert_eq!(probing.step(now, [1; 8], PATIENCE), None);
        assert_eq!(probing.header(), CLOSED);
        assert!(probing.answer(&[1; 8], [9; 8], now));
        assert_eq!(probing.header(), CLOSED, "not before the cookie is on its way");
        let further = probing.step(now, [2; 8], PATIENCE).unwrap();
        assert_eq!(probing.header().to_be_bytes(), channel::data_header(TAG));
        assert_eq!((cookie_in(&further), further.unanswered), ([9; 8], false));
        // At most one such.
        assert!(probing.answer(&[2; 8], [8; 8], now));
        assert_eq!(probing.next, Some(now + PROBE_EVERY));
        // And an answer counts once.
        assert!(!probing.answer(&[2; 8], [7; 8], now));
        assert!(!probing.answer(&[1; 8], [7; 8], now));
        assert_eq!(cookie_in(&probing.step(now + PROBE_EVERY, [3; 8], PATIENCE).unwrap()), [8; 8]);
    }

    #[test]
    fn silence_closes_and_an_answer_opens_again() {
        let (mut probing, mut now) = begun();
        probing.step(now, [1; 8], PATIENCE);
        probing.answer(&[1; 8], [9; 8], now);
        probing.step(now, [2; 8], PATIENCE);
        assert_ne!(probing.header(), CLOSED);
        now += PROBE_EVERY;
        let step = probing.step(now, [3; 8], PATIENCE).unwrap();
        assert!(step.unanswered);
        assert_eq!((cookie_in(&step), probing.header()), ([9; 8], CLOSED));
        now += PROBE_EVERY;
        assert!(!probing.step(now, [4; 8], PATIENCE).unwrap().unanswered, "it is said once");
        assert!(probing.answer(&[4; 8], [5; 8], now));
        assert_eq!(cookie_in(&probing.step(now, [5; 8], PATIENCE).unwrap()), [5; 8]);
        assert_ne!(probing.header(), CLOSED);
    }

    #[test]
    fn while_it_is_open_an_answer_is_missed_before_the_second_is_over() {
        let (mut probing, mut now) = begun();
        probing.step(now, [1; 8], PATIENCE);
        assert_eq!(probing.next, Some(now + PROBE_EVERY), "nothing is at stake yet");
        probing.answer(&[1; 8], [9; 8], now);
        probing.step(now, [2; 8], PATIENCE);
        assert_eq!(probing.next, Some(now + PATIENCE));
        probing.answer(&[2; 8], [9; 8], now + PATIENCE / 2);
        assert_eq!(probing.next, Some(now + PROBE_EVERY), "a second after it was sent");
        now += PROBE_EVERY;
        probing.step(now, [3; 8], PATIENCE);
        now += PATIENCE;
        assert!(probing.step(now, [4; 8], PATIENCE).unwrap().unanswered);
        assert_eq!((probing.header(), probing.next), (CLOSED, Some(now + PROBE_EVERY)));
        // It was only slow: as soon as any answer of the last one is there, it is open again.
        probing.answer(&[4; 8], [9; 8], now + PATIENCE);
        probing.step(now + PATIENCE, [5; 8], PATIENCE);
        assert_ne!(probing.header(), CLOSED);
    }

    #[test]
    fn another_cookie_is_shown_at_once_and_no_more_than_once_a_second() {
        let (mut probing, mut now) = begun();
        probing.step(now, [1; 8], PATIENCE);
        probing.answer(&[1; 8], [1; 8], now);
        probing.step(now, [2; 8], PATIENCE);
        for round in 1..5 {
            // QUIC may have moved to another address, from which the relay takes no data before it has this one back.
            probing.answer(&[2; 8], [round; 8], now);
            assert_eq!(probing.next, Some(now + PROBE_EVERY));
            now += PROBE_EVERY;
            probing.step(now, [1; 8], PATIENCE);
            probing.answer(&[1; 8], [round + 100; 8], now);
            assert_eq!(probing.next, Some(now));
            let step = probing.step(now, [2; 8], PATIENCE).unwrap();
            assert_eq!((cookie_in(&step), step.unanswered), ([round + 100; 8], false));
        }
    }

    #[test]
    fn a_late_answer_brings_its_cookie_and_opens_nothing() {
        let (mut probing, mut now) = begun();
        for nonce in 1..=6 {
            probing.step(now, [nonce; 8], PATIENCE);
            now += PROBE_EVERY;
        }
        assert!(!probing.answer(&[2; 8], [2; 8], now), "too long ago");
        assert!(probing.answer(&[5; 8], [5; 8], now));
        assert!(probing.answer(&[3; 8], [3; 8], now));
        assert_eq!(cookie_in(&probing.step(now, [7; 8], PATIENCE).unwrap()), [5; 8], "the newest cookie");
        assert_eq!(probing.header(), CLOSED);
    }

    #[test]
    fn without_datagrams_it_falls_asleep_and_forgets_nothing_but_that_it_was_open() {
        let (mut probing, mut now) = begun();
        let begun_at = now;
        probing.step(now, [1; 8], PATIENCE);
        probing.answer(&[1; 8], [9; 8], now);
        while now < begun_at + IDLE {
            assert!(!probing.fall_asleep(now));
            probing.step(now, [2; 8], PATIENCE).unwrap();
            assert!(probing.answer(&[2; 8], [9; 8], now));
            assert_eq!(probing.next, Some(now + PROBE_EVERY));
            now += PROBE_EVERY;
        }
        // Something has crossed.
        probing.used_at = Some(now);
        assert!(!probing.fall_asleep(now));
        probing.used_at = Some(begun_at);
        assert!(!probing.fall_asleep(now - PROBE_EVERY / 2), "not between probes");
        assert!(probing.fall_asleep(now));
        assert_eq!((probing.next, probing.header()), (None, CLOSED));
        assert!(!probing.fall_asleep(now), "once");
        now += IDLE;
        assert_eq!(probing.step(now, [3; 8], PATIENCE), None);
        probing.silence();
        assert_eq!(probing.next, None, "another address is no reason");
        probing.wake(now);
        assert!(!probing.fall_asleep(now));
        let step = probing.step(now, [3; 8], PATIENCE).unwrap();
        assert_eq!((cookie_in(&step), step.unanswered, probing.header()), ([9; 8], false, CLOSED));
        // It is awake already.
        probing.wake(now);
        assert_eq!(probing.next, Some(now + PROBE_EVERY));
        probing.answer(&[3; 8], [4; 8], now);
        assert_eq!(cookie_in(&probing.step(now, [4; 8], PATIENCE).unwrap()), [4; 8]);
        assert_ne!(probing.header(), CLOSED);
    }

    #[test]
    fn unanswered_it_stays_awake_for_longer_and_asleep_an_answer_opens_nothing() {
        let (mut probing, mut now) = begun();
        let begun_at = now;
        while now < begun_at + IDLE_UNANSWERED {
            assert!(!probing.fall_asleep(now));
            probing.step(now, [1; 8], PATIENCE).unwrap();
            now += PROBE_EVERY;
        }
        assert!(probing.fall_asleep(now));
        assert!(probing.answer(&[1; 8], [9; 8], now), "it is one");
        assert_eq!((probing.next, probing.header()), (None, CLOSED));
        probing.wake(now);
        assert!(!probing.answer(&[1; 8], [8; 8], now));
        assert_eq!(cookie_in(&probing.step(now, [2; 8], PATIENCE).unwrap()), [9; 8]);
        assert_eq!(probing.header(), CLOSED);
        // Without a channel there is nobody to wake.
        let mut probing = Probing::default();
        probing.wake(now);
        assert_eq!((probing.next, probing.fall_asleep(now)), (None, false));
    }

    #[test]
    fn a_new_tag_and_a_new_address_forget_what_is_on_its_way() {
        let (mut probing, now) = begun();
        probing.step(now, [1; 8], PATIENCE);
        probing.answer(&[1; 8], [9; 8], now);
        probing.step(now, [2; 8], PATIENCE);
        probing.silence();
        assert_eq!((probing.header(), probing.answer(&[2; 8], [8; 8], now)), (CLOSED, false));
        let other = Tag::new(7, [7; 6]);
        probing.begin(other, now);
        let step = probing.step(now, [3; 8], PATIENCE).unwrap();
        assert_eq!(step.packet, channel::probe(other, [3; 8], [0; 8]));
    }
}
