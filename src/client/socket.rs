//! The client's UDP socket: what is QUIC goes to quinn, what is not to the raw channel that owns it.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket as StdSocket},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use arc_swap::ArcSwap;
use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, UdpPoller};
use quinn_udp::{RecvMeta, Transmit};
use tokio::{io::Interest, net::UdpSocket};

use super::{channel::Channel, stats::Counters};
use crate::{
    quic::{runtime::Runtime, udp::Udp},
    wire::channel::{HEADER_LEN, Packet, Tag, is_not_quic},
};

/// What the kernel is asked to hold of what arrives and of what leaves, in bytes; it may allow less. A raw packet has
/// nobody who would send it again.
const RECEIVE_BUFFER_BYTES: usize = 4 * 1024 * 1024;
const SEND_BUFFER_BYTES: usize = 2 * 1024 * 1024;
/// How many packets that are not for QUIC are taken in a row before other tasks get their turn; an attempt that brings
/// none counts as one.
const PACKETS_IN_A_ROW: usize = 1024;
/// How many connections of one session may have a raw channel on the same socket: the one in charge, its successor,
/// and those that linger are fewer.
const MAX_CHANNELS: usize = 8;

/// A local UDP address: a QUIC endpoint, and the raw channels beside its connections. Cheap to clone.
#[derive(Clone)]
pub(super) struct Local {
    pub(super) endpoint: Endpoint,
    pub(super) port: Arc<Port>,
}

impl Port {
    /// Puts a new socket in place without anybody noticing: one that nobody knows yet to have room.
    #[cfg(test)]
    pub(super) fn swap_socket(&self) {
        let local = self.socket.load().local_addr().unwrap();
        let fresh = Socket::bind(SocketAddr::new(local.ip(), 0), self.channels.clone()).unwrap();
        self.socket.store(Arc::new(fresh));
    }
}

impl Local {
    pub(super) fn bind(local: SocketAddr, counters: Arc<Counters>) -> io::Result<Self> {
        let channels = Arc::new(Channels { entries: ArcSwap::default(), counters });
        let socket = Arc::new(Socket::bind(local, channels.clone())?);
        let mut config = EndpointConfig::default();
        // The relay's port carries packets that are not QUIC, told apart by the bit that greasing would set.
        config.grease_quic_bit(false);
        let endpoint = Endpoint::new_with_abstract_socket(config, None, socket.clone(), Arc::new(Runtime))?;
        Ok(Self { endpoint, port: Arc::new(Port { socket: ArcSwap::new(socket), channels }) })
    }

    /// Moves to a new socket, connections and channels included.
    pub(super) fn rebind(&self, local: SocketAddr) -> io::Result<()> {
        let socket = Arc::new(Socket::bind(local, self.port.channels.clone())?);
        self.endpoint.rebind_abstract(socket.clone())?;
        self.port.socket.store(socket);
        self.port.channels.entries.load().iter().for_each(|(_, channel)| channel.rebound());
        Ok(())
    }
}

/// What the raw channels use of a local address.
pub(super) struct Port {
    /// The present one; read for each train that is sent.
    pub(super) socket: ArcSwap<Socket>,
    pub(super) channels: Arc<Channels>,
}

/// Which tag is whose. Written when a channel opens or ends, read for every train that arrives.
pub(super) struct Channels {
    entries: ArcSwap<Vec<(Tag, Arc<Channel>)>>,
    counters: Arc<Counters>,
}

impl Channels {
    /// What arrives with this tag is the channel's from now on, and what arrives with its last one no more. `false`
    /// when there are too many channels already.
    pub(super) fn enter(&self, tag: Tag, channel: &Arc<Channel>) -> bool {
        let mut entered = false;
        self.entries.rcu(|entries| {
            let mut entries = without(entries, channel);
            entered = entries.len() < MAX_CHANNELS;
            if entered {
                entries.push((tag, channel.clone()));
            }
            entries
        });
        entered
    }

    pub(super) fn leave(&self, channel: &Arc<Channel>) {
        self.entries.rcu(|entries| without(entries, channel));
    }

    /// Hands on what is not QUIC: whole packets of `stride` bytes each, the last at most that long.
    fn deliver(&self, from: SocketAddr, packets: &[u8], stride: usize) {
        let entries = self.entries.load();
        let mut rest = packets;
        while !rest.is_empty() {
            let (train, after) = rest.split_at(first_train(rest, stride));
            rest = after;
            let first = train.get(..stride).unwrap_or(train);
            let (tag, answer) = match Packet::parse(first) {
                Some(Packet::Data { tag, .. }) => (tag, None),
                Some(Packet::Answer { tag, nonce, cookie }) => (tag, Some((nonce, cookie))),
                // Only clients send probes.
                Some(Packet::Probe { .. }) | None => {
                    self.counters.raw_dropped_malformed.add(1);
                    continue;
                }
            };
            let count = || train.len().div_ceil(stride) as u64;
            let mut known = entries.iter().filter(|(its, _)| *its == tag).peekable();
            if known.peek().is_none() {
                self.counters.raw_dropped_tag.add(count());
                continue;
            }
            // Two relays may have given the same tag.
            match known.find(|(_, channel)| channel.remote() == from) {
                None => self.counters.raw_dropped_source.add(count()),
                Some((_, channel)) => match answer {
                    None => channel.receive(train, stride),
                    Some((nonce, cookie)) => channel.answered(&nonce, cookie),
                },
            }
        }
    }
}

fn without(entries: &[(Tag, Arc<Channel>)], channel: &Arc<Channel>) -> Vec<(Tag, Arc<Channel>)> {
    entries.iter().filter(|(_, other)| !Arc::ptr_eq(other, channel)).cloned().collect()
}

/// How many bytes at the beginning are one train: data packets with one tag. A packet without a payload, or one that
/// is no data, goes alone.
fn first_train(packets: &[u8], stride: usize) -> usize {
    let mut segments = packets.chunks(stride);
    let Some(first) = segments.next() else { return 0 };
    let header = first.first_chunk::<HEADER_LEN>();
    let is_data = matches!(Packet::parse(first), Some(Packet::Data { payload: [_, ..], .. }));
    if !is_data {
        return first.len();
    }
    let same = |segment: &&[u8]| segment.len() > HEADER_LEN && segment.first_chunk::<HEADER_LEN>() == header;
    first.len() + segments.take_while(same).map(<[u8]>::len).sum::<usize>()
}

/// Takes out of one receive buffer what is not QUIC, in runs of whole packets, and moves the rest together. The
/// stride stays; a length of 0 says that nothing is left.
fn sift(buffer: &mut [u8], meta: &mut RecvMeta, mut not_quic: impl FnMut(&[u8])) {
    let (len, stride) = (meta.len.min(buffer.len()), meta.stride.max(1));
    let other = |buffer: &[u8], at: usize| buffer.get(at).copied().is_some_and(is_not_quic);
    let (mut kept, mut at) = (0, 0);
    while at < len {
        let run_is_other = other(buffer, at);
        let mut end = at;
        while end < len && other(buffer, end) == run_is_other {
            end = (end + stride).min(len);
        }
        if run_is_other {
            not_quic(buffer.get(at..end).unwrap_or_default());
        } else {
            if kept != at {
                buffer.copy_within(at..end, kept);
            }
            kept += end - at;
        }
        at = end;
    }
    meta.len = kept;
}

/// A UDP socket for quinn that keeps the raw channels' packets to itself.
pub(super) struct Socket {
    io: UdpSocket,
    udp: Udp,
    channels: Arc<Channels>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("local_addr", &self.io.local_addr()).finish_non_exhaustive()
    }
}

impl Socket {
    fn bind(local: SocketAddr, channels: Arc<Channels>) -> io::Result<Self> {
        let socket = StdSocket::bind(local)?;
        let udp = Udp::new(&socket)?;
        udp.ask_for_buffers(&socket, RECEIVE_BUFFER_BYTES, SEND_BUFFER_BYTES);
        Ok(Self { io: UdpSocket::from_std(socket)?, udp, channels })
    }

    /// Sends packets of `segment_bytes` each, the last at most that long, or says why not.
    pub(super) fn send(&self, to: SocketAddr, packets: &[u8], segment_bytes: usize) -> io::Result<()> {
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents: packets,
            segment_size: (packets.len() > segment_bytes).then_some(segment_bytes),
            src_ip: None,
        };
        self.io.try_io(Interest::WRITABLE, || self.udp.send(&self.io, &transmit))
    }

    /// How many packets the kernel takes at once.
    pub(super) fn max_segments(&self) -> usize {
        self.udp.max_send_segments()
    }

    /// Waits until there is room for another packet.
    pub(super) async fn writable(&self) -> io::Result<()> {
        self.io.writable().await
    }

    /// Hands what is not QUIC to its channels. Says how many packets that were, and whether anything is left for QUIC.
    fn sift(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> (usize, bool) {
        let (mut taken, mut any_quic) = (0, false);
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let (from, stride) = (meta.addr, meta.stride.max(1));
            sift(buffer, meta, |packets| {
                taken += packets.len().div_ceil(stride);
                self.channels.deliver(from, packets, stride);
            });
            any_quic |= meta.len > 0;
        }
        (taken, any_quic)
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.io.try_io(Interest::WRITABLE, || self.udp.send_or_lose(&self.io, transmit))
    }

    /// quinn takes any error for the end of the socket, so none that may pass is passed on; and it comes back at
    /// once after an empty batch, so there is none.
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut packets = 0;
        while packets < PACKETS_IN_A_ROW {
            packets += 1;
            ready!(self.io.poll_recv_ready(cx))?;
            let received = self.io.try_io(Interest::READABLE, || self.udp.recv(&self.io, buffers, metas));
            let Ok(count) = received else { continue };
            let (Some(buffers), Some(metas)) = (buffers.get_mut(..count), metas.get_mut(..count)) else {
                continue;
            };
            let (taken, any_quic) = self.sift(buffers, metas);
            if any_quic {
                return Poll::Ready(Ok(count));
            }
            packets += taken;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
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

/// One waiter for room in the socket's send buffer.
struct Writable {
    socket: Arc<Socket>,
    waiting: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writable").finish_non_exhaustive()
    }
}

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket, waiting } = self.get_mut();
        let future = waiting.get_or_insert_with(|| {
            let socket = socket.clone();
            Box::pin(async move { socket.writable().await })
        });
        let outcome = ready!(future.as_mut().poll(cx));
        *waiting = None;
        Poll::Ready(outcome)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use proptest::prelude::*;

    use super::*;
    use crate::wire::channel::{answer, data_header};

    const TAG: Tag = Tag::new(1, [2; 6]);

    fn meta(len: usize, stride: usize) -> RecvMeta {
        RecvMeta { len, stride, ..RecvMeta::default() }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        /// Any mix of segments, whatever is in them: quinn sees exactly those that may be QUIC, in order, and the
        /// channels exactly the others.
        #[test]
        fn quinn_sees_what_is_quic_and_nothing_else(
            stride in 1usize..60,
            firsts in prop::collection::vec(any::<u8>(), 0..70),
            last_bytes in 1usize..60,
            spare in 0usize..20,
        ) {
            let mut segments: Vec<Vec<u8>> = firsts
                .iter()
                .enumerate()
                .map(|(index, first)| {
                    let mut segment = vec![index as u8; stride];
                    segment[0] = *first;
                    segment
                })
                .collect();
            if let Some(last) = segments.last_mut() {
                last.truncate(last_bytes);
            }
            let mut buffer = segments.concat();
            let mut meta = meta(buffer.len(), stride);
            buffer.resize(buffer.len() + spare, 0xff);
            let mut taken = Vec::new();
            sift(&mut buffer, &mut meta, |run| taken.extend(run.chunks(stride).map(<[u8]>::to_vec)));
            let seen: Vec<_> = buffer[..meta.len].chunks(stride).map(<[u8]>::to_vec).collect();
            let (other, quic): (Vec<_>, Vec<_>) =
                segments.into_iter().partition(|segment| is_not_quic(segment[0]));
            prop_assert_eq!(seen, quic);
            prop_assert_eq!(taken, other);
            prop_assert_eq!(meta.stride, stride);
        }

        /// Cut into trains, no packet is lost or cut; each train is one packet, or data with one tag.
        #[test]
        fn trains_are_whole_packets_of_one_tag(
            stride in 1usize..30,
            kinds in prop::collection::vec((0u8..4, 0u8..3), 1..70),
            last_bytes in 1usize..30,
        ) {
            let mut packets: Vec<Vec<u8>> = kinds
                .into_iter()
                .map(|(kind, tag)| {
                    let tag = Tag::new(tag, [9; 6]);
                    let mut packet = match kind {
                        0 => answer(tag, [1; 8], [2; 8]).to_vec(),
                        1 => vec![0x3f; stride],
                        _ => data_header(tag).to_vec(),
                    };
                    packet.resize(stride, 7);
                    packet
                })
                .collect();
            packets.last_mut().unwrap().truncate(last_bytes);
            let all = packets.concat();
            let mut rest = &all[..];
            let mut seen = Vec::new();
            while !rest.is_empty() {
                let (train, after) = rest.split_at(first_train(rest, stride));
                prop_assert!(!train.is_empty());
                let in_train: Vec<_> = train.chunks(stride).map(<[u8]>::to_vec).collect();
                if in_train.len() > 1 {
                    for packet in &in_train {
                        prop_assert_eq!(&packet[..HEADER_LEN], &in_train[0][..HEADER_LEN]);
                        let payload = matches!(
                            Packet::parse(packet), Some(Packet::Data { payload: [_, ..], .. })
                        );
                        prop_assert!(payload);
                    }
                }
                seen.extend(in_train);
                rest = after;
            }
            prop_assert_eq!(seen, packets);
        }
    }

    /// What quinn sees in one go: how many buffers, and the packets in them; or nothing, and whether it is to come back
    /// at once.
    fn poll(socket: &Socket) -> Result<Vec<Vec<u8>>, bool> {
        let mut memory = vec![vec![0; 1472 * socket.max_receive_segments()]; quinn_udp::BATCH_SIZE];
        let mut buffers: Vec<_> = memory.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let mut metas = vec![RecvMeta::default(); buffers.len()];
        let (woken, waker) = Flag::new();
        match socket.poll_recv(&mut Context::from_waker(&waker), &mut buffers, &mut metas) {
            Poll::Ready(Ok(count)) => {
                assert!(count > 0 && metas[..count].iter().any(|meta| meta.len > 0), "an empty batch");
                let filled = buffers.iter().zip(&metas).take(count);
                Ok(filled
                    .flat_map(|(buffer, meta)| buffer[..meta.len].chunks(meta.stride).map(<[u8]>::to_vec))
                    .collect())
            }
            Poll::Ready(Err(error)) => panic!("{error}"),
            Poll::Pending => Err(woken.0.load(Relaxed)),
        }
    }

    #[derive(Default)]
    struct Flag(AtomicBool);

    impl Flag {
        fn new() -> (Arc<Self>, std::task::Waker) {
            let flag = Arc::new(Self::default());
            (flag.clone(), flag.into())
        }
    }

    impl std::task::Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }

    fn lone_socket() -> (Arc<Counters>, Socket, Socket) {
        let counters = Arc::new(Counters::default());
        let bind = |counters: &Arc<Counters>| {
            let channels = Channels { entries: ArcSwap::default(), counters: counters.clone() };
            Socket::bind("127.0.0.1:0".parse().unwrap(), Arc::new(channels)).unwrap()
        };
        (counters.clone(), bind(&counters), bind(&counters))
    }

    #[tokio::test]
    async fn quinn_is_never_given_an_empty_batch_and_others_get_their_turn() {
        let (counters, socket, sender) = lone_socket();
        let to = socket.local_addr().unwrap();
        sender.writable().await.unwrap();
        // As many at once as the kernel takes; they cost no room of their own.
        let train = vec![0x3f; 10 * sender.max_segments()];
        let trains = 5 * PACKETS_IN_A_ROW / sender.max_segments();
        for _ in 0..trains {
            sender.send(to, &train, 10).unwrap();
        }
        let dropped = || counters.snapshot().raw_dropped_malformed as usize;
        socket.io.readable().await.unwrap();
        assert_eq!(poll(&socket), Err(true));
        let at_once = dropped();
        assert!((PACKETS_IN_A_ROW..=4 * PACKETS_IN_A_ROW).contains(&at_once), "{at_once}");
        while poll(&socket) == Err(true) {}
        assert_eq!(dropped(), trains * sender.max_segments());
        // Nothing, too, is no batch.
        sender.send(to, &[], 1).unwrap();
        sender.send(to, &[0x3f], 1).unwrap();
        socket.io.readable().await.unwrap();
        assert_eq!(poll(&socket), Err(false));
        sender.send(to, &[[0x3f, 1], [0xc0, 1], [0x20, 2], [0x40, 2]].concat(), 2).unwrap();
        socket.io.readable().await.unwrap();
        assert_eq!(poll(&socket), Ok(vec![vec![0xc0, 1], vec![0x40, 2]]));
        assert_eq!(dropped(), trains * sender.max_segments() + 3);
    }

    #[tokio::test]
    async fn a_poller_waits_for_room_and_can_be_used_again() {
        let (_, socket, _) = lone_socket();
        let socket = Arc::new(socket);
        let mut poller = socket.clone().create_io_poller();
        for _ in 0..3 {
            std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.unwrap();
        }
    }

    #[test]
    fn nothing_is_moved_when_there_is_nothing_to_take_out() {
        let mut buffer = [0xc0, 1, 0x40, 1, 0x40];
        let mut meta = meta(5, 2);
        sift(&mut buffer, &mut meta, |_| panic!("this is all QUIC"));
        assert_eq!((buffer, meta.len), ([0xc0, 1, 0x40, 1, 0x40], 5));
    }

    #[test]
    fn a_train_of_one_channel_is_one_piece() {
        let mut train = [&data_header(TAG)[..], &[7; 12]].concat().repeat(64);
        train.truncate(train.len() - 3);
        assert_eq!(first_train(&train, 20), train.len());
    }
}
