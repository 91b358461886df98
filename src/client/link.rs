//! One connection of a session, from the moment it has joined until it is lost.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    ConnectError, Event, ProtocolError,
    channel::{self, Channel},
    connect::{self, Target, classify, datagram_limit, ended_by},
    inbox::Train,
    session::{MAX_DATAGRAM_BYTES, Shared},
    socket::Local,
};
use crate::wire::{
    CloseCode,
    channel::Tag,
    control::{ClientMessage, Migrate, Refreshed, RelayMessage},
};

/// First byte of a stream that belongs to the application.
pub(super) const STREAM_APPLICATION: u8 = 0;
/// First byte of a unidirectional stream whose rest is one datagram.
const STREAM_DATAGRAM: u8 = 1;
/// How many oversized datagrams wait to be written; 64 KiB each, so 2 MiB.
const OVERSIZE_WAITING: usize = 32;
/// How many control messages wait to be written; there is a ping a second, and little else.
const CONTROL_WAITING: usize = 16;
/// How long the first byte of a stream, or the whole of an oversized datagram, may take.
const STREAM_DEADLINE: Duration = Duration::from_secs(10);
/// How often a connection with traffic is asked whether it is alive.
const PING_EVERY: Duration = Duration::from_secs(1);
/// How many pings in a row may go unanswered before another connection is tried.
const PINGS_UNANSWERED: u64 = 3;
/// The same while acknowledgements come but the path is full: then pings are lost like anything else, and what is
/// lost is sent again behind datagrams.
const PINGS_UNANSWERED_CONGESTED: u64 = 10;
/// How often to look whether a control message has got past the datagrams.
const HOLD_POLL: Duration = Duration::from_millis(5);
/// So many datagrams sent in a second show that acknowledgements still come: without any, all that is sent are probes.
const PROGRESS_DATAGRAMS: u64 = 4;

/// A connection that has joined the allocation.
pub(super) struct Link {
    pub(super) id: u64,
    pub(super) connection: Connection,
    pub(super) local: Local,
    pub(super) channel: Arc<Channel>,
    pub(super) target: Target,
    /// Since when it has been joined.
    pub(super) since: Instant,
    /// What the relay says it can deliver to the other side as one datagram, in bytes.
    pub(super) limit: AtomicUsize,
    /// Whether this connection's relay says that the other side is there.
    pub(super) peer_present: AtomicBool,
    /// Datagrams wait while a control message is stuck behind those already waiting.
    pub(super) held: AtomicBool,
    hold_over: Notify,
    /// To be written on the control stream.
    pub(super) control: mpsc::Sender<ClientMessage>,
    /// To be sent by a stream each.
    pub(super) oversize: mpsc::Sender<Bytes>,
    /// Control messages written and read, to tell their frames from the application's.
    control_messages: AtomicU64,
    pings_sent: AtomicU64,
    pings_answered: AtomicU64,
    /// Something is amiss: a ping is due now.
    ping_due: Notify,
    datagram_send_buffer_bytes: usize,
    datagrams_read: AtomicU64,
    /// Of those that arrived, how many QUIC had dropped before they were read; counted so far.
    datagrams_evicted: AtomicU64,
}

/// The parts of a link that its task alone uses.
pub(super) struct Parts {
    control_streams: (SendStream, RecvStream),
    control: mpsc::Receiver<ClientMessage>,
    oversize: mpsc::Receiver<Bytes>,
    keep_alive: Option<Duration>,
    channel_ending: channel::Ending,
}

/// What a link tells the driver.
pub(super) enum Report {
    Peer {
        present: bool,
    },
    Refreshed(Refreshed),
    Migrate(Migrate),
    /// It does not answer any more, though it is not known to be lost.
    Stalled,
}

/// How a link ended.
pub(super) struct LinkEnd {
    pub(super) id: u64,
    pub(super) cause: ConnectError,
    /// The relay said Refused: the answer to something that was asked, not the end of the allocation.
    pub(super) was_answer: bool,
}

impl Link {
    pub(super) fn new(
        id: u64,
        joined: connect::Joined,
        keep_alive: Option<Duration>,
        datagram_send_buffer_bytes: usize,
        shared: &Shared,
    ) -> (Arc<Self>, Parts) {
        let (control, control_queue) = mpsc::channel(CONTROL_WAITING);
        let (oversize, oversize_queue) = mpsc::channel(OVERSIZE_WAITING);
        let channel = Channel::new(
            joined.connection.remote_address(),
            joined.grant.raw_channel,
            joined.local.port.clone(),
            shared.inbox.clone(),
            shared.counters.clone(),
        );
        let channel_ending = channel::Ending(channel.clone());
        let link = Self {
            id,
            connection: joined.connection,
            local: joined.local,
            channel,
            target: joined.target,
            since: Instant::now(),
            limit: AtomicUsize::new(joined.max_datagram_bytes),
            peer_present: AtomicBool::new(joined.peer_present),
            held: AtomicBool::new(false),
            hold_over: Notify::new(),
            control,
            oversize,
            control_messages: AtomicU64::new(0),
            pings_sent: AtomicU64::new(0),
            pings_answered: AtomicU64::new(0),
            ping_due: Notify::new(),
            datagram_send_buffer_bytes,
            datagrams_read: AtomicU64::new(0),
            datagrams_evicted: AtomicU64::new(0),
        };
        let parts = Parts {
            control_streams: joined.control,
            control: control_queue,
            oversize: oversize_queue,
            keep_alive,
            channel_ending,
        };
        (Arc::new(link), parts)
    }

    pub(super) fn close(&self, code: CloseCode) {
        self.connection.close(u32::from(code.number()).into(), b"");
    }

    /// Waits until datagrams are not held back.
    pub(super) async fn released(&self) {
        loop {
            let over = self.hold_over.notified();
            if !self.held.load(Relaxed) || self.connection.close_reason().is_some() {
                return;
            }
            over.await;
        }
    }

    fn receive(&self, data: Bytes, shared: &Shared) {
        self.datagrams_read.fetch_add(1, Relaxed);
        self.channel.touch();
        shared.inbox.receive(Train::single(data));
    }

    /// How many datagrams have arrived and were not read: QUIC dropped them for want of room, or still has them.
    fn unread(&self) -> u64 {
        self.connection.stats().frame_rx.datagram.saturating_sub(self.datagrams_read.load(Relaxed))
    }

    /// Counts what QUIC dropped, given that so many in all were.
    fn count_evicted(&self, evicted: u64, shared: &Shared) {
        let counted = self.datagrams_evicted.fetch_max(evicted, Relaxed);
        shared.counters.receive_dropped.add(evicted.saturating_sub(counted));
    }

    /// Whether more waits to be sent than leaves at once.
    fn is_congested(&self) -> bool {
        self.connection.datagram_send_buffer_space() < self.datagram_send_buffer_bytes / 2
    }

    fn ping(&self) {
        let number = self.pings_sent.fetch_add(1, Relaxed) + 1;
        // When there is no room, pings are stuck already, and this one counts as unanswered with them.
        let _ = self.control.try_send(ClientMessage::Ping(number));
    }

    /// Asks the relay for a sign of life now rather than within a second.
    pub(super) fn ping_soon(&self) {
        self.ping_due.notify_one();
    }

    fn is_current(&self, shared: &Shared) -> bool {
        shared.current.load().as_ref().is_some_and(|current| current.id == self.id)
    }
}

/// Carries everything that crosses this connection, until it is lost. Owned by the driver.
pub(super) async fn run(
    link: Arc<Link>,
    parts: Parts,
    shared: Arc<Shared>,
    reports: mpsc::Sender<(u64, Report)>,
) -> LinkEnd {
    let Parts {
        control_streams: (control_send, control_recv),
        control,
        oversize,
        keep_alive,
        channel_ending,
    } = parts;
    let end = tokio::select! {
        // First the relay's own words: they may say more than the connection's end.
        biased;
        end = read_control(&link, control_recv, &shared, &reports) => end,
        error = write_control(&link, control_send, control) => (error, false),
        () = receive_datagrams(&link, &shared) => (link_lost(&link).await, false),
        () = accept_streams(&link, &shared, Kind::Bi) => (link_lost(&link).await, false),
        () = accept_streams(&link, &shared, Kind::Uni) => (link_lost(&link).await, false),
        () = send_oversize(&link, oversize, &shared) => (link_lost(&link).await, false),
        () = watch_liveness(&link, keep_alive, &shared, &reports) => (link_lost(&link).await, false),
        () = channel::run(&link, &shared) => (link_lost(&link).await, false),
    };
    drop(channel_ending);
    // Whoever waits for the hold to end looks at the connection then.
    link.held.store(false, Relaxed);
    link.hold_over.notify_waiters();
    // What had arrived before the end still counts.
    while let Some(data) = arrived(&link.connection) {
        link.receive(data, &shared);
    }
    link.count_evicted(link.unread(), &shared);
    let (cause, was_answer) = end;
    link.close(if matches!(cause, ConnectError::Protocol(_)) {
        CloseCode::ProtocolError
    } else {
        CloseCode::Closed
    });
    LinkEnd { id: link.id, cause, was_answer }
}

async fn link_lost(link: &Link) -> ConnectError {
    classify(link.connection.closed().await, None)
}

/// A datagram that is there already.
fn arrived(connection: &Connection) -> Option<Bytes> {
    let reading = std::pin::pin!(connection.read_datagram());
    match Future::poll(reading, &mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(data)) => Some(data),
        Poll::Ready(Err(_)) | Poll::Pending => None,
    }
}

/// Acts on what the relay says, until it says that it is over. Yields the reason, and whether it was an answer.
async fn read_control(
    link: &Link,
    mut recv: RecvStream,
    shared: &Shared,
    reports: &mpsc::Sender<(u64, Report)>,
) -> (ConnectError, bool) {
    loop {
        let message = match connect::read_frame(&link.connection, &mut recv).await {
            Ok(message) => message,
            Err(error) => return (error, false),
        };
        link.control_messages.fetch_add(1, Relaxed);
        let report = match message {
            RelayMessage::PeerState(state) => {
                link.peer_present.store(state.present, Relaxed);
                Report::Peer { present: state.present }
            }
            RelayMessage::Refreshed(refreshed) => Report::Refreshed(refreshed),
            RelayMessage::Migrate(migrate) => Report::Migrate(migrate),
            RelayMessage::Pong(pong) => {
                // A Pong to a Ping never sent says nothing.
                if pong.value <= link.pings_sent.load(Relaxed) {
                    link.pings_answered.fetch_max(pong.value, Relaxed);
                }
                continue;
            }
            RelayMessage::PathLimit(path) => {
                let max_datagram_bytes = datagram_limit(path.max_datagram_bytes);
                link.limit.store(max_datagram_bytes, Relaxed);
                link.channel.set_limit(datagram_limit(path.max_raw_bytes));
                tell(link, shared, Event::PathLimit { max_datagram_bytes });
                continue;
            }
            RelayMessage::Usage(usage) => {
                let (bytes_used, quota_bytes, percent) = (usage.bytes_used, usage.quota_bytes, usage.percent);
                tell(link, shared, Event::Usage { bytes_used, quota_bytes, percent });
                continue;
            }
            RelayMessage::Throttled(throttled) => {
                let (datagrams, bytes) = (throttled.datagrams, throttled.bytes);
                let window = Duration::from_millis(throttled.window_ms.into());
                tell(link, shared, Event::Throttled { datagrams, bytes, window });
                continue;
            }
            RelayMessage::Expiring(expiring) => {
                tell(link, shared, Event::Expiring { expires_at_unix: expiring.expires_at });
                continue;
            }
            RelayMessage::Channel(channel) if link.channel.is_offered() => {
                let Some(tag) = Tag::from_slice(&channel.tag) else {
                    return (
                        ProtocolError::Content("a channel's tag that is not 7 bytes long").into(),
                        false,
                    );
                };
                link.channel.begin(tag);
                continue;
            }
            RelayMessage::Refused(_) => return (ended_by(message), true),
            // This Channel needs a feature that was not asked for.
            RelayMessage::Closing(_)
            | RelayMessage::Challenge(_)
            | RelayMessage::Allocated(_)
            | RelayMessage::Channel(_) => return (ended_by(message), false),
        };
        // The driver is gone only when this task is about to be.
        let _ = reports.send((link.id, report)).await;
    }
}

fn tell(link: &Link, shared: &Shared, event: Event) {
    if link.is_current(shared) {
        shared.emit(event);
    }
}

/// Writes what the driver and the liveness check have to say. Yields why it cannot any more.
async fn write_control(
    link: &Link,
    mut send: SendStream,
    mut queue: mpsc::Receiver<ClientMessage>,
) -> ConnectError {
    while let Some(message) = queue.recv().await {
        let before = link.connection.stats().frame_tx.stream;
        if let Err(error) = connect::write_frame(&link.connection, &mut send, &message).await {
            return error;
        }
        link.control_messages.fetch_add(1, Relaxed);
        if link.is_congested() {
            hold_datagrams(link, before).await;
        }
    }
    // The link itself holds the sending end.
    link_lost(link).await
}

/// Lets waiting datagrams drain and takes no more until a stream frame has been sent: QUIC datagrams go before
/// streams, so a sender that never pauses would starve the control stream, and seem dead. Nothing is lost by it
/// but what would have had no room anyway.
async fn hold_datagrams(link: &Link, stream_frames_before: u64) {
    link.held.store(true, Relaxed);
    while link.connection.stats().frame_tx.stream == stream_frames_before
        && link.connection.close_reason().is_none()
    {
        sleep(HOLD_POLL).await;
    }
    link.held.store(false, Relaxed);
    link.hold_over.notify_waiters();
}

/// Hands on datagrams until the connection is lost.
async fn receive_datagrams(link: &Link, shared: &Shared) {
    while let Ok(data) = link.connection.read_datagram().await {
        link.receive(data, shared);
    }
}

/// Sends oversized datagrams, each by its stream. One after the other: what limits them is the connection.
async fn send_oversize(link: &Link, mut queue: mpsc::Receiver<Bytes>, shared: &Shared) {
    while let Some(data) = queue.recv().await {
        let Ok(mut send) = link.connection.open_uni().await else { return };
        let mut chunks = [Bytes::from_static(&[STREAM_DATAGRAM]), data];
        if send.write_all_chunks(&mut chunks).await.is_err() || send.finish().is_err() {
            shared.counters.oversize_lost.add(1);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bi,
    Uni,
}

/// A stream of the other side; the sending half when there is one.
type Stream = (Option<SendStream>, RecvStream);

/// What the first byte of a stream says.
enum First {
    Application(Stream),
    Datagram(RecvStream),
    /// None of these, or there was none.
    Nothing,
}

/// Takes in the streams of one kind until the connection is lost.
///
/// Their first bytes are read side by side, so that a stream whose beginning was lost on the way holds up
/// no datagram; but they are handed on in the order of opening.
async fn accept_streams(link: &Link, shared: &Shared, kind: Kind) {
    // Both hold at most as many as the other side may have open.
    let mut beginning = JoinSet::new();
    let mut datagrams = JoinSet::new();
    let mut order = Order::default();
    loop {
        tokio::select! {
            accepted = accept(&link.connection, kind) => match accepted {
                Some(stream) => {
                    let seq = order.opened();
                    beginning.spawn(async move { (seq, first_byte(stream, kind).await) });
                }
                None => return,
            },
            Some(begun) = beginning.join_next() => {
                let Ok((seq, first)) = begun else { continue };
                let stream = match first {
                    First::Application(stream) => Some(stream),
                    First::Datagram(recv) => {
                        datagrams.spawn(read_datagram(recv));
                        None
                    }
                    First::Nothing => {
                        shared.counters.streams_refused.add(1);
                        None
                    }
                };
                order.settle(seq, stream);
                while let Some(stream) = order.next() {
                    hand_on(stream, shared);
                }
            }
            Some(read) = datagrams.join_next() => match read {
                Ok(Some(data)) => {
                    shared.counters.oversize_received.add(1);
                    link.channel.touch_by_stream(data.len(), &link.connection);
                    shared.inbox.receive(Train::single(data));
                }
                Ok(None) | Err(_) => shared.counters.oversize_lost.add(1),
            },
        }
    }
}

async fn accept(connection: &Connection, kind: Kind) -> Option<Stream> {
    match kind {
        Kind::Bi => connection.accept_bi().await.ok().map(|(send, recv)| (Some(send), recv)),
        Kind::Uni => connection.accept_uni().await.ok().map(|recv| (None, recv)),
    }
}

async fn first_byte(mut stream: Stream, kind: Kind) -> First {
    let mut first = [0];
    match timeout(STREAM_DEADLINE, stream.1.read_exact(&mut first)).await {
        Ok(Ok(())) if first == [STREAM_APPLICATION] => First::Application(stream),
        Ok(Ok(())) if first == [STREAM_DATAGRAM] && kind == Kind::Uni => First::Datagram(stream.1),
        _ => {
            refuse(stream);
            First::Nothing
        }
    }
}

/// Tells the other side that its stream is not wanted.
fn refuse((send, mut recv): Stream) {
    let code = VarInt::from_u32(CloseCode::ProtocolError.number().into());
    // Both fail only for a stream that is over already.
    let _ = recv.stop(code);
    if let Some(mut send) = send {
        let _ = send.reset(code);
    }
}

async fn read_datagram(mut recv: RecvStream) -> Option<Bytes> {
    let data = timeout(STREAM_DEADLINE, recv.read_to_end(MAX_DATAGRAM_BYTES)).await.ok()?.ok()?;
    Some(data.into())
}

fn hand_on(stream: Stream, shared: &Shared) {
    let full = match stream {
        (Some(send), recv) => {
            shared.accepted_bi.push((send, recv)).map_err(|(send, recv)| (Some(send), recv))
        }
        (None, recv) => shared.accepted_uni.push(recv).map_err(|recv| (None, recv)),
    };
    if let Err(stream) = full {
        shared.counters.streams_refused.add(1);
        refuse(stream);
    }
}

/// Puts what is settled in any order back into the order of opening.
struct Order<T> {
    /// From the oldest that is not handed on yet; the outer `None` is not settled, the inner one is nothing to hand on.
    slots: VecDeque<Option<Option<T>>>,
    first_seq: u64,
}

impl<T> Default for Order<T> {
    fn default() -> Self {
        Self { slots: VecDeque::new(), first_seq: 0 }
    }
}

impl<T> Order<T> {
    /// Notes one more, and names it.
    fn opened(&mut self) -> u64 {
        self.slots.push_back(None);
        self.first_seq + self.slots.len() as u64 - 1
    }

    fn settle(&mut self, seq: u64, what: Option<T>) {
        let index = usize::try_from(seq - self.first_seq).unwrap_or(usize::MAX);
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(what);
        }
    }

    /// The next one whose turn it is.
    fn next(&mut self) -> Option<T> {
        while let Some(Some(_)) = self.slots.front() {
            self.first_seq += 1;
            if let Some(Some(Some(what))) = self.slots.pop_front() {
                return Some(what);
            }
        }
        None
    }
}

/// Asks once a second whether the relay is still there, while there is traffic; and as often as it wants to hear
/// from us. Reports when it does not answer, then says no more.
async fn watch_liveness(
    link: &Link,
    keep_alive: Option<Duration>,
    shared: &Shared,
    reports: &mpsc::Sender<(u64, Report)>,
) {
    let mut tick = interval(PING_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut traffic = application_frames(link);
    let mut datagrams = link.connection.stats().frame_tx.datagram;
    let mut unread = link.unread();
    let mut last_ping = Instant::now();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = link.ping_due.notified() => {
                // One that is on its way already will do.
                if link.pings_sent.load(Relaxed) == link.pings_answered.load(Relaxed) {
                    last_ping = Instant::now();
                    tick.reset();
                    link.ping();
                }
                continue;
            }
        }
        // What was unread a second ago and still is, is gone: reading never waits that long.
        let unread_now = link.unread();
        link.count_evicted(unread_now.min(std::mem::replace(&mut unread, unread_now)), shared);
        let datagrams_now = link.connection.stats().frame_tx.datagram;
        let sent_lately = datagrams_now - std::mem::replace(&mut datagrams, datagrams_now);
        let held = link.held.load(Relaxed);
        let slow_but_alive = (held || link.is_congested()) && sent_lately >= PROGRESS_DATAGRAMS;
        if slow_but_alive && held {
            // A ping is on its way behind datagrams.
            continue;
        }
        let sent = link.pings_sent.load(Relaxed);
        let unanswered = sent.saturating_sub(link.pings_answered.load(Relaxed));
        let allowed = if slow_but_alive { PINGS_UNANSWERED_CONGESTED } else { PINGS_UNANSWERED };
        if unanswered >= allowed {
            tracing::debug!(unanswered, "the relay does not answer");
            let _ = reports.send((link.id, Report::Stalled)).await;
            return std::future::pending().await;
        }
        let traffic_now = application_frames(link);
        let busy = std::mem::replace(&mut traffic, traffic_now) != traffic_now;
        let due = keep_alive.is_some_and(|every| last_ping.elapsed() >= every);
        if busy || due || unanswered > 0 {
            last_ping = Instant::now();
            link.ping();
        }
    }
}

/// How many frames with the application's data have crossed. A count that is now and then too high costs a ping.
fn application_frames(link: &Link) -> u64 {
    let stats = link.connection.stats();
    let frames = |frames: &quinn::FrameStats| frames.datagram + frames.stream;
    let all = frames(&stats.frame_tx) + frames(&stats.frame_rx);
    all.wrapping_sub(link.control_messages.load(Relaxed))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever settles first, and whatever comes to nothing: what is left comes in the order of opening.
        #[test]
        fn order_is_that_of_opening(steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>(), any::<bool>()), 0..200)) {
            let mut order = Order::default();
            let (mut open, mut settled, mut handed_on) = (Vec::new(), Vec::new(), Vec::new());
            for (opens, which, keep) in steps {
                if opens || open.is_empty() {
                    open.push(order.opened());
                } else {
                    let seq = open.remove(which.index(open.len()));
                    order.settle(seq, keep.then_some(seq));
                    if keep {
                        settled.push(seq);
                    }
                }
                while let Some(seq) = order.next() {
                    handed_on.push(seq);
                }
                // Everything older than the oldest unsettled one is out.
                let oldest = open.iter().min().copied().unwrap_or(u64::MAX);
                let mut expected: Vec<_> = settled.iter().copied().filter(|seq| *seq < oldest).collect();
                expected.sort_unstable();
                prop_assert_eq!(&handed_on, &expected);
                prop_assert!(order.slots.is_empty() == open.is_empty(), "nothing is kept for nothing");
            }
        }
    }
}
