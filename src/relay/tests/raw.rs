//! PROTOCOL.md, section 6: the raw channel, from a client that can also send what it should not.

use std::{
    collections::VecDeque,
    io::{self, IoSliceMut},
    num::NonZeroU8,
    pin::Pin,
    sync::{Mutex, atomic::AtomicBool},
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, EndpointConfig, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit, UdpSocketState},
};
use tokio::{net::UdpSocket, sync::Notify};

use super::*;
use crate::wire::{
    Identity, Signer,
    channel::{self, Cookie, HEADER_LEN as RAW_HEADER_LEN, Packet, Tag},
    control::{Feature, PathLimit},
};

/// A client's socket: quinn gets what is QUIC, the test what is not.
#[derive(Debug)]
struct Split {
    io: Arc<UdpSocket>,
    beside: Mutex<VecDeque<Vec<u8>>>,
    arrived: Notify,
}

impl Split {
    fn bind(local: SocketAddr) -> Arc<Self> {
        let socket = std::net::UdpSocket::bind(local).unwrap();
        socket.set_nonblocking(true).unwrap();
        let io = Arc::new(UdpSocket::from_std(socket).unwrap());
        Arc::new(Self { io, beside: Mutex::default(), arrived: Notify::new() })
    }

    /// The next packet that is not QUIC.
    async fn next(&self) -> Vec<u8> {
        soon(async {
            loop {
                let arrived = self.arrived.notified();
                if let Some(packet) = self.beside.lock().unwrap().pop_front() {
                    return packet;
                }
                arrived.await;
            }
        })
        .await
    }

    fn has_more(&self) -> bool {
        !self.beside.lock().unwrap().is_empty()
    }
}

impl AsyncUdpSocket for Split {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Always)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // Past tokio, which does not know of a new socket that it can be written to.
        let socket = socket2::SockRef::from(&*self.io);
        // Loss, where the socket is full, is nothing new to QUIC.
        let _ = socket.send_to(transmit.contents, &transmit.destination.into());
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(receive(&self.io, cx, bufs, meta))?;
            let packet = &bufs[0][..meta[0].len];
            if !channel::is_not_quic(packet[0]) {
                return Poll::Ready(Ok(1));
            }
            self.beside.lock().unwrap().push_back(packet.to_vec());
            self.arrived.notify_one();
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }
}

/// Receives one datagram, into the first buffer.
pub(super) fn receive(
    io: &UdpSocket,
    cx: &mut Context<'_>,
    bufs: &mut [IoSliceMut<'_>],
    meta: &mut [RecvMeta],
) -> Poll<io::Result<()>> {
    let mut buffer = tokio::io::ReadBuf::new(&mut bufs[0]);
    let addr = ready!(io.poll_recv_from(cx, &mut buffer))?;
    let len = buffer.filled().len();
    meta[0] = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
    Poll::Ready(Ok(()))
}

/// There is always room.
#[derive(Debug)]
pub(super) struct Always;

impl UdpPoller for Always {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A client with a raw channel.
struct Client {
    joined: Joined,
    socket: Arc<Split>,
    relay: SocketAddr,
    tag: Tag,
}

impl Client {
    async fn send(&self, packet: &[u8]) {
        soon(self.socket.io.send_to(packet, self.relay)).await.unwrap();
    }

    async fn send_data(&self, payload: &[u8]) {
        self.send(&data(self.tag, payload)).await;
    }

    /// The payload of the next packet, which must be data under this client's tag.
    async fn data(&self) -> Vec<u8> {
        let packet = self.socket.next().await;
        match Packet::parse(&packet) {
            Some(Packet::Data { tag, payload }) if tag == self.tag => payload.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// Probes with this cookie; the answer's.
    async fn probe(&self, cookie: Cookie) -> Cookie {
        let asked = getrandom_nonce();
        self.send(&channel::probe(self.tag, asked, cookie)).await;
        let packet = self.socket.next().await;
        match Packet::parse(&packet) {
            Some(Packet::Answer { tag, nonce, cookie }) if (tag, nonce) == (self.tag, asked) => cookie,
            other => panic!("{other:?}"),
        }
    }

    /// Has the relay send raw from now on.
    async fn open(&self) {
        let cookie = self.probe([0; 8]).await;
        self.probe(cookie).await;
    }

    /// Has it go on for as long as the test takes: opened then, it is opened anew in time. Answers when it last was.
    async fn stays_open(&self, harness: &Harness, opened: Duration) -> Duration {
        if harness.clock.mono() - opened < Duration::from_secs(1) {
            return opened;
        }
        self.open().await;
        harness.clock.mono()
    }
}

fn getrandom_nonce() -> [u8; 8] {
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce).unwrap();
    nonce
}

fn data(tag: Tag, payload: &[u8]) -> Vec<u8> {
    [&channel::data_header(tag)[..], payload].concat()
}

impl Harness {
    /// Joins on a socket that tells raw packets apart, and asks for these features.
    async fn join_split(&self, pair: &Pair, role: Role, features: &[Feature]) -> (Joined, Arc<Split>) {
        let socket = Split::bind(self.local());
        let (mut config, runtime) = (EndpointConfig::default(), Arc::new(TokioRuntime));
        // Or the relay would clear the bit by which QUIC is told apart.
        config.grease_quic_bit(false);
        let endpoint = Endpoint::new_with_abstract_socket(config, None, socket.clone(), runtime).unwrap();
        let raw = self.connect_on(endpoint, self.addr(), |_| {}).await.unwrap();
        let hello = Hello { features: features.to_vec(), ..raw.hello(pair, role) };
        let mut control = raw.begin(&ClientMessage::Hello(hello).to_frame()).await;
        match control.next().await {
            Some(RelayMessage::Allocated(allocated)) => (Joined { control, allocated }, socket),
            other => panic!("{other:?}"),
        }
    }

    /// Both sides with a channel each, which neither has proven yet.
    async fn channels(&self, pair: &Pair) -> (Client, Client) {
        let (device, device_socket) = self.join_split(pair, Role::Device, &[Feature::RawChannel]).await;
        let (peer, peer_socket) = self.join_split(pair, Role::Peer, &[Feature::RawChannel]).await;
        let mut clients = Vec::new();
        for (mut joined, socket) in [(device, device_socket), (peer, peer_socket)] {
            assert_eq!(joined.allocated.features, [i32::from(Feature::RawChannel)]);
            let tag = joined
                .until(|message| match message {
                    RelayMessage::Channel(channel) => Some(Tag::from_slice(&channel.tag).unwrap()),
                    _ => None,
                })
                .await;
            clients.push(Client { joined, socket, relay: self.addr(), tag });
        }
        let [device, peer] = clients.try_into().ok().unwrap();
        (device, peer)
    }

    async fn open_channels(&self, pair: &Pair) -> (Client, Client) {
        let (device, peer) = self.channels(pair).await;
        device.open().await;
        peer.open().await;
        (device, peer)
    }

    /// Waits until so many have been dropped for this reason.
    async fn drops(&self, reason: &str, packets: u64) {
        let series = format!("zrc_relay_dropped_datagrams_total{{reason=\"{reason}\"}}");
        self.metric_becomes(&series, packets).await;
    }
}

#[tokio::test]
async fn payloads_cross_unchanged_in_both_directions_under_the_receivers_tag() {
    let harness = Harness::start();
    let (device, peer) = harness.open_channels(&harness.pair()).await;
    assert_ne!(device.tag, peer.tag);
    let mut bytes = 0;
    for (from, to) in [(&device, &peer), (&peer, &device)] {
        for len in [0, 1, 7, 8, 500, 1100] {
            let payload: Vec<u8> = (0..len).map(|n| n as u8 ^ 0x5a).collect();
            from.send_data(&payload).await;
            assert_eq!(to.data().await, payload);
            bytes += len as u64;
        }
    }
    assert_eq!(harness.metric("zrc_relay_raw_channels"), 2);
    assert_eq!(harness.metric("zrc_relay_raw_probes_answered_total"), 4);
    // Counted when sent, which a receiver on another thread may see first.
    harness
        .metric_becomes("zrc_relay_forwarded_bytes_total{from=\"peer\",kind=\"datagram\"}", bytes / 2)
        .await;
    let of = |series: &str, from: &str| harness.metric(&format!("{series}{{from=\"{from}\"}}"));
    for from in ["device", "peer"] {
        // As datagrams are counted, and once more by themselves.
        assert_eq!(of("zrc_relay_forwarded_datagrams_total", from), 6);
        assert_eq!(of("zrc_relay_forwarded_raw_datagrams_total", from), 6);
        let kind = format!("zrc_relay_forwarded_bytes_total{{from=\"{from}\",kind=\"datagram\"}}");
        assert_eq!(harness.metric(&kind), bytes / 2);
    }
    assert_eq!(harness.server.allocations()[0].bytes_used, bytes);
    let held = (device, peer);
    drop(held);
    harness.metric_becomes("zrc_relay_raw_channels", 0).await;
}

#[tokio::test]
async fn until_a_cookie_comes_back_a_leg_is_sent_datagrams() {
    let harness = Harness::start();
    let (device, peer) = harness.channels(&harness.pair()).await;
    device.send_data(b"one").await;
    assert_eq!(peer.joined.datagram().await, b"one"[..]);
    // A first probe is answered, and opens nothing: anybody can send one from anywhere.
    let cookie = peer.probe([0; 8]).await;
    device.send_data(b"two").await;
    assert_eq!(peer.joined.datagram().await, b"two"[..]);
    let forged = cookie.map(|byte| byte ^ 1);
    peer.probe(forged).await;
    device.send_data(b"three").await;
    assert_eq!(peer.joined.datagram().await, b"three"[..]);
    peer.probe(cookie).await;
    device.send_data(b"four").await;
    assert_eq!(peer.data().await, b"four");
    // Each direction proves itself: the device has not.
    peer.send_data(b"five").await;
    assert_eq!(device.joined.datagram().await, b"five"[..]);
    assert!(!peer.socket.has_more() && !device.socket.has_more());
}

#[tokio::test]
async fn three_seconds_after_the_last_cookie_datagrams_are_sent_again() {
    let harness = Harness::start();
    let (device, peer) = harness.channels(&harness.pair()).await;
    let before = harness.clock.mono();
    peer.open().await;
    let opened = harness.clock.mono();
    let (mut numbers, mut last_raw_sent) = (0_u32, opened);
    let first = loop {
        let sent = harness.clock.mono();
        device.send_data(&numbers.to_be_bytes()).await;
        numbers += 1;
        tokio::select! {
            datagram = peer.joined.connection().read_datagram() => break datagram.unwrap(),
            raw = peer.socket.next() => assert_eq!(raw.len(), RAW_HEADER_LEN + 4),
        }
        last_raw_sent = sent;
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(first, numbers.wrapping_sub(1).to_be_bytes()[..], "none was lost on the way over");
    // The relay looked at its clock after the one and before the other, however long that took.
    let closed = harness.clock.mono();
    assert!(closed - before >= Duration::from_secs(3), "{:?}", closed - before);
    assert!(last_raw_sent - opened <= Duration::from_secs(3), "{:?}", last_raw_sent - opened);
    // And a new cookie opens it anew.
    peer.open().await;
    device.send_data(b"again").await;
    assert_eq!(peer.data().await, b"again");
}

#[tokio::test]
async fn the_knob_turns_it_off() {
    let harness = Harness::with(|config| config.raw_channel = false);
    let pair = harness.pair();
    let (mut device, socket) = harness.join_split(&pair, Role::Device, &[Feature::RawChannel]).await;
    let (peer, _) = harness.join_split(&pair, Role::Peer, &[Feature::RawChannel]).await;
    device.until_present(true).await;
    assert!(device.allocated.features.is_empty() && peer.allocated.features.is_empty());
    assert_eq!(harness.metric("zrc_relay_raw_channels"), 0);
    let relay = harness.addr();
    socket.io.send_to(&data(Tag::new(0, [0; 6]), b"x"), relay).await.unwrap();
    harness.drops("raw_tag", 1).await;
    device.send_datagram(&b"by QUIC"[..]);
    assert_eq!(peer.datagram().await, b"by QUIC"[..]);
}

#[tokio::test]
async fn there_is_a_channel_only_where_both_sides_want_one() {
    let harness = Harness::start();
    let pair = harness.pair();
    let (mut device, _socket) = harness.join_split(&pair, Role::Device, &[Feature::RawChannel]).await;
    let (mut peer, _) = harness.join_split(&pair, Role::Peer, &[]).await;
    device.until_present(true).await;
    // What each is told next is the answer to its Ping: no Channel came before it, and no room for raw packets.
    for client in [&mut device, &mut peer] {
        client.control.say(&ClientMessage::Ping(7)).await;
        loop {
            match client.control.next().await.unwrap() {
                RelayMessage::Pong(_) => break,
                RelayMessage::PathLimit(PathLimit { max_raw_bytes: 0, .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(harness.metric("zrc_relay_raw_channels"), 0);
    // A newer connection of the peer that wants one gets one, and so does the device now.
    let (_newer, _) = harness.join_split(&pair, Role::Peer, &[Feature::RawChannel]).await;
    let tag = |message| match message {
        RelayMessage::Channel(channel) => Some(channel.tag),
        _ => None,
    };
    device.until(tag).await;
    assert_eq!(harness.metric("zrc_relay_raw_channels"), 2);
}

#[tokio::test]
async fn the_limit_is_the_receivers_mtu_less_the_header_and_holds() {
    let harness = Harness::start();
    let (mut device, peer) = harness.open_channels(&harness.pair()).await;
    // MTU discovery finds what the loopback carries, as far as it looks.
    let limit = device
        .joined
        .until(|message| match message {
            RelayMessage::PathLimit(limit) if limit.max_raw_bytes == 1444 => Some(limit),
            _ => None,
        })
        .await;
    assert!(limit.max_datagram_bytes < 1444);
    peer.open().await;
    device.send_data(&[7; 1444]).await;
    assert_eq!(peer.data().await, [7; 1444]);
    device.send_data(&[8; 1445]).await;
    harness.drops("too_large", 1).await;
    assert_eq!(harness.server.allocations()[0].bytes_used, 1444, "what was not sent is not charged");
}

#[tokio::test]
async fn a_spoofed_source_is_dropped_and_counted_and_never_answered() {
    let harness = Harness::start();
    let (device, peer) = harness.open_channels(&harness.pair()).await;
    let stranger = UdpSocket::bind(harness.local()).await.unwrap();
    stranger.send_to(&data(device.tag, b"forged"), harness.addr()).await.unwrap();
    harness.drops("raw_source", 1).await;
    let cookie = device.probe([0; 8]).await;
    for cookie in [[0; 8], cookie] {
        stranger.send_to(&channel::probe(device.tag, [1; 8], cookie), harness.addr()).await.unwrap();
    }
    harness.drops("raw_source", 3).await;
    // What the rightful owner sends next is the first to arrive, and nothing has come to the stranger.
    device.send_data(b"genuine").await;
    assert_eq!(peer.data().await, b"genuine");
    let nothing = stranger.try_recv_from(&mut [0; 100]).unwrap_err();
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    // Nor has the stranger's probe moved the channel.
    peer.send_data(b"home").await;
    assert_eq!(device.data().await, b"home");
}

#[tokio::test]
async fn a_tag_that_names_nobody_is_dropped_and_counted_and_never_answered() {
    let harness = Harness::with(|config| config.shards = NonZeroU8::new(2));
    let (device, mut peer) = harness.open_channels(&harness.pair()).await;
    let [shard, random @ ..] = *device.tag.as_bytes();
    let unknown = Tag::new(shard, random.map(|byte| byte ^ 0x55));
    let elsewhere = Tag::new(shard ^ 1, random);
    let nowhere = Tag::new(shard.wrapping_add(200), random);
    for tag in [unknown, elsewhere, nowhere] {
        device.send(&data(tag, b"x")).await;
        device.send(&channel::probe(tag, [1; 8], [0; 8])).await;
    }
    harness.drops("raw_tag", 6).await;
    assert!(!device.socket.has_more() && !peer.socket.has_more());
    // After the end the tag is nobody's, and what is sent under it again goes nowhere.
    device.send_data(b"last").await;
    assert_eq!(peer.data().await, b"last");
    peer.joined.control.say(&ClientMessage::Release).await;
    peer.joined.closing().await;
    harness.metric_becomes("zrc_relay_raw_channels", 0).await;
    let before = harness.metric("zrc_relay_forwarded_raw_datagrams_total{from=\"device\"}");
    device.send_data(b"last").await;
    device.send(&channel::probe(device.tag, [1; 8], [0; 8])).await;
    harness.drops("raw_tag", 8).await;
    assert_eq!(harness.metric("zrc_relay_forwarded_raw_datagrams_total{from=\"device\"}"), before);
    assert!(!device.socket.has_more());
}

#[tokio::test]
async fn what_is_neither_quic_nor_of_the_channel_is_dropped_and_counted() {
    let harness = Harness::start();
    let (device, peer) = harness.open_channels(&harness.pair()).await;
    let probe = channel::probe(device.tag, [1; 8], [0; 8]);
    let answer = channel::answer(device.tag, [1; 8], [0; 8]);
    let stun = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[0; 12]].concat();
    let packets: &[&[u8]] =
        &[&[0x20], &data(device.tag, b"")[..7], &probe[..23], &answer, &[0x23; 24], &[0x3f; 100], &stun];
    for packet in packets {
        device.send(packet).await;
    }
    harness.drops("raw_malformed", packets.len() as u64).await;
    device.send_data(b"next").await;
    assert_eq!(peer.data().await, b"next");
    assert!(!device.socket.has_more(), "answered");
}

#[tokio::test]
async fn probes_are_answered_in_kind_and_not_without_end() {
    let harness = Harness::start();
    let (device, _peer) = harness.channels(&harness.pair()).await;
    let (started, probes) = (harness.clock.mono(), 20);
    for _ in 0..probes {
        device.send(&channel::probe(device.tag, [1; 8], [0; 8])).await;
    }
    let answered = || harness.metric("zrc_relay_raw_probes_answered_total");
    soon(async {
        while answered() + harness.dropped("raw_probe_rate") < probes {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // Four at once, and then four a second.
    let (answered, took) = (answered(), harness.clock.mono() - started);
    let most = 4 + took.as_millis() as u64 / 250;
    assert!((4..=most).contains(&answered), "{answered} in {took:?}");
    for _ in 0..answered {
        assert_eq!(device.socket.next().await.len(), channel::PROBE_LEN, "as long as the probe");
    }
    assert!(!device.socket.has_more());
}

#[tokio::test]
async fn a_new_address_proves_itself_before_it_sends_or_receives() {
    let harness = Harness::start();
    let (mut device, peer) = harness.open_channels(&harness.pair()).await;
    let moved = Split::bind(harness.local());
    let old = std::mem::replace(&mut device.socket, moved.clone());
    // Before QUIC knows: neither data nor probes.
    device.send_data(b"too early").await;
    device.send(&channel::probe(device.tag, [1; 8], [0; 8])).await;
    harness.drops("raw_source", 2).await;
    device.joined.control.endpoint.rebind_abstract(moved).unwrap();
    device.joined.send_datagram(&b"moved"[..]);
    assert_eq!(peer.joined.datagram().await, b"moved"[..]);
    // Now probes are answered; data still has to wait for the cookie, which the old address's is not.
    let cookie = device.probe([0; 8]).await;
    device.send_data(b"still too early").await;
    harness.drops("raw_source", 3).await;
    harness.metric_reaches("zrc_relay_migrations_total", 1).await;
    peer.send_data(b"by QUIC").await;
    assert_eq!(device.joined.datagram().await, b"by QUIC"[..]);
    device.probe(cookie).await;
    device.send_data(b"arrived").await;
    assert_eq!(peer.data().await, b"arrived");
    peer.send_data(b"welcome").await;
    assert_eq!(device.data().await, b"welcome");
    assert!(!old.has_more());
}

#[tokio::test]
async fn a_channel_that_was_proven_at_the_new_address_stays_open() {
    let harness = Harness::start();
    let (mut device, peer) = harness.open_channels(&harness.pair()).await;
    device.socket = Split::bind(harness.local());
    device.joined.control.endpoint.rebind_abstract(device.socket.clone()).unwrap();
    device.joined.send_datagram(&b"moved"[..]);
    assert_eq!(peer.joined.datagram().await, b"moved"[..]);
    // Most likely before the sweep sees that the client moved.
    device.open().await;
    harness.metric_reaches("zrc_relay_migrations_total", 1).await;
    peer.send_data(b"still raw").await;
    assert_eq!(device.data().await, b"still raw");
}

#[tokio::test]
async fn the_quota_holds_to_the_byte_and_ends_the_allocation() {
    let harness = Harness::start();
    let (mut device, mut peer) =
        harness.open_channels(&harness.pair_with(|fields| fields.quota_bytes = 2500)).await;
    let packets: Vec<u8> = (0..10).flat_map(|n| data(device.tag, &[n; 600])).collect();
    send_train(&device, &packets, RAW_HEADER_LEN + 600);
    for n in 0..4 {
        assert_eq!(peer.data().await, [n; 600]);
    }
    for client in [&mut device, &mut peer] {
        assert_eq!(client.joined.closing().await.0, CloseCode::QuotaExceeded);
    }
    assert_eq!(harness.metric("zrc_relay_forwarded_bytes_total{from=\"device\",kind=\"datagram\"}"), 2400);
    assert!(harness.dropped("quota") >= 1);
    assert!(!peer.socket.has_more());
}

#[tokio::test]
async fn the_rate_holds_and_what_is_over_it_is_counted() {
    let harness = Harness::start();
    let rate = |fields: &mut TokenFields| fields.bandwidth_bytes_per_sec = 100_000;
    let (device, peer) = harness.open_channels(&harness.pair_with(rate)).await;
    let started = harness.clock.mono();
    // Ten bursts of 16 KiB at once.
    for _ in 0..10 {
        let packets: Vec<u8> = (0..16).flat_map(|n| data(device.tag, &[n; 1024])).collect();
        send_train(&device, &packets, RAW_HEADER_LEN + 1024);
    }
    let passed = "zrc_relay_forwarded_datagrams_total{from=\"device\"}";
    soon(async {
        while harness.metric(passed) + harness.dropped("byte_rate") < 160 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let elapsed = harness.clock.mono() - started;
    let most = 16.0 + 1.0 + elapsed.as_secs_f64() * 100_000.0 / 1024.0;
    let count = harness.metric(passed);
    assert!(count >= 16 && count as f64 <= most, "{count} in {elapsed:?}");
    for n in 0..16 {
        assert_eq!(peer.data().await, [n; 1024], "the first burst as a whole");
    }
}

/// One train, as GSO makes it.
fn send_train(client: &Client, packets: &[u8], stride: usize) {
    let io = &*client.socket.io;
    let state = UdpSocketState::new(io.into()).unwrap();
    let transmit = Transmit {
        destination: client.relay,
        ecn: None,
        contents: packets,
        segment_size: Some(stride),
        src_ip: None,
    };
    state.send(io.into(), &transmit).unwrap();
}

#[tokio::test]
async fn a_train_of_many_tags_is_sorted_to_whom_it_belongs() {
    let harness = Harness::start();
    let (device, peer) = harness.open_channels(&harness.pair()).await;
    let unknown = Tag::new(0, [9; 6]);
    let payload = |n: u8| [n; RAW_HEADER_LEN * 2];
    let mut packets = Vec::new();
    for n in 0..30 {
        let tag = if n % 5 == 4 { unknown } else { device.tag };
        packets.extend(data(tag, &payload(n)));
    }
    // A probe is as long as the data here, and a shorter packet may end a train.
    packets.extend(channel::probe(device.tag, [3; 8], [0; 8]));
    packets.extend(data(device.tag, b"end"));
    send_train(&device, &packets, channel::PROBE_LEN);
    for n in (0..30).filter(|n| n % 5 != 4) {
        assert_eq!(peer.data().await, payload(n));
    }
    assert_eq!(peer.data().await, b"end");
    assert_eq!(device.socket.next().await.len(), channel::PROBE_LEN);
    harness.drops("raw_tag", 6).await;
}

#[tokio::test]
async fn long_trains_cross_whole_and_in_order() {
    let harness = Harness::start();
    let (device, peer) = harness.open_channels(&harness.pair()).await;
    let mut opened = harness.clock.mono();
    for round in 0..20_u8 {
        opened = peer.stays_open(&harness, opened).await;
        let packets: Vec<u8> = (0..50).flat_map(|n| data(device.tag, &[round ^ n; 1100])).collect();
        send_train(&device, &packets, RAW_HEADER_LEN + 1100);
        for n in 0..50 {
            assert_eq!(peer.data().await, [round ^ n; 1100], "{n} of {round}");
        }
    }
}

#[tokio::test]
async fn a_channel_crosses_shards() {
    let harness = Harness::with(|config| config.shards = NonZeroU8::new(4));
    let mut across = 0;
    // All pairs on one shard each, by chance: once in 4^40 runs.
    for _ in 0..40 {
        let (device, peer) = harness.open_channels(&harness.pair()).await;
        across += u32::from(device.tag.shard() != peer.tag.shard());
        device.send_data(b"there").await;
        assert_eq!(peer.data().await, b"there");
        peer.send_data(b"back").await;
        assert_eq!(device.data().await, b"back");
        if across > 2 {
            return;
        }
    }
    panic!("no pair of forty on two shards");
}

#[tokio::test]
async fn without_a_peer_raw_packets_are_dropped_as_datagrams_are() {
    let harness = Harness::start();
    let (device, peer) = harness.open_channels(&harness.pair()).await;
    let Client { mut joined, .. } = device;
    drop(peer);
    joined.until_present(false).await;
    let socket = device.socket;
    socket.io.send_to(&data(device.tag, b"x"), harness.addr()).await.unwrap();
    harness.drops("no_peer", 1).await;
    assert_eq!(harness.server.allocations()[0].bytes_used, 0);
}

/// Trains from a client's own address, without rest, under this tag: one at least.
fn flood(client: &Client, payload_bytes: usize, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let socket = socket2::SockRef::from(&*client.socket.io).try_clone().unwrap();
    let (stop, tag, relay) = (stop.clone(), client.tag, client.relay);
    let packets: Vec<u8> = (0..20).flat_map(|n| data(tag, &vec![n; payload_bytes])).collect();
    std::thread::spawn(move || {
        let state = UdpSocketState::new((&socket).into()).unwrap();
        let transmit = Transmit {
            destination: relay,
            ecn: None,
            contents: &packets,
            segment_size: Some(RAW_HEADER_LEN + payload_bytes),
            src_ip: None,
        };
        let mut sent = 0;
        while sent == 0 || !stop.load(Ordering::Relaxed) {
            match state.try_send((&socket).into(), &transmit) {
                Ok(()) => sent += 20,
                Err(_) => std::thread::yield_now(),
            }
            std::thread::park_timeout(Duration::from_micros(200));
        }
        sent
    })
}

#[tokio::test]
async fn however_channels_end_under_load_nothing_is_left_of_them() {
    let harness = Harness::with(|config| {
        config.shards = NonZeroU8::new(3);
        config.rules.connections_per_role = 1;
        // A goodbye may be lost in the floods.
        config.rules.idle_timeout = Duration::from_secs(3);
    });
    let before = harness.server.holders();
    let lane = |lane: usize| {
        let harness = &harness;
        async move {
            for round in lane..lane + 6 {
                let quota = if round % 6 == 5 { 2_000_000 } else { 0 };
                let pair = harness.pair_with(|fields| fields.quota_bytes = quota);
                let (mut device, mut peer) = harness.open_channels(&pair).await;
                let stop = Arc::new(AtomicBool::new(false));
                let floods = [&device, &peer].map(|client| flood(client, 100 + lane, &stop));
                tokio::time::sleep(Duration::from_millis(50)).await;
                match round % 6 {
                    0 => device.joined.connection().close(quinn::VarInt::from_u32(0), b""),
                    1 => {
                        // A newer connection takes the place of one whose channel is in use.
                        let newer = harness.join_split(&pair, Role::Device, &[Feature::RawChannel]).await;
                        assert_eq!(device.joined.closing().await.0, CloseCode::Replaced);
                        tokio::time::sleep(Duration::from_millis(30)).await;
                        drop(newer);
                    }
                    2 => {
                        let fields = pair.token.fields();
                        let identity = Identity {
                            signer: Signer::Device,
                            device_id: fields.device_id,
                            peer_id: fields.peer_id,
                            allocation_id: fields.allocation_id,
                        };
                        assert!(harness.server.kill(identity.handle(), "a test"));
                    }
                    3 => device.joined.control.say(&ClientMessage::Release).await,
                    4 => {
                        device.socket = Split::bind(harness.local());
                        device.joined.control.endpoint.rebind_abstract(device.socket.clone()).unwrap();
                        device.joined.send_datagram(&b"moved"[..]);
                        while peer.joined.datagram().await != b"moved"[..] {}
                        device.send(&channel::probe(device.tag, [1; 8], [0; 8])).await;
                        while device.socket.next().await.len() != channel::PROBE_LEN {}
                    }
                    _ => assert_eq!(peer.joined.closing().await.0, CloseCode::QuotaExceeded),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                stop.store(true, Ordering::Relaxed);
                assert!(floods.into_iter().all(|flood| flood.join().unwrap() > 0));
            }
        }
    };
    tokio::join!(lane(0), lane(1), lane(2), lane(3));
    harness.metric_becomes("zrc_relay_connections", 0).await;
    harness.metric_becomes("zrc_relay_raw_channels", 0).await;
    harness.metric_becomes("zrc_relay_allocations", 0).await;
    soon(async {
        while harness.server.holders() != before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(harness.metric("zrc_relay_socket_panics_total"), 0);
    assert_eq!(harness.metric("zrc_relay_session_panics_total"), 0);
}

#[tokio::test]
async fn all_ways_together_and_on_all_shards_the_quota_is_never_overshot() {
    const QUOTA: u64 = 3_000_000;
    let harness = Harness::with(|config| config.shards = NonZeroU8::new(2));
    for _ in 0..4 {
        let pair = harness.pair_with(|fields| fields.quota_bytes = QUOTA);
        let (device, mut peer) = harness.open_channels(&pair).await;
        let series = ["device", "peer"].map(|from| {
            ["datagram", "stream"]
                .map(|kind| format!("zrc_relay_forwarded_bytes_total{{from=\"{from}\",kind=\"{kind}\"}}"))
        });
        let forwarded = || series.iter().flatten().map(|series| harness.metric(series)).sum::<u64>();
        // Before anything flows: on a busy machine much has passed when this task has its next turn.
        let before = forwarded();
        let stop = Arc::new(AtomicBool::new(false));
        let floods = [&device, &peer].map(|client| flood(client, 700, &stop));
        let mut stream = soon(device.joined.connection().open_uni()).await.unwrap();
        let streaming = tokio::spawn(async move { while stream.write_all(&[7; 5000]).await.is_ok() {} });
        let connection = peer.joined.connection().clone();
        let datagrams = tokio::spawn(async move {
            while connection.send_datagram_wait(Bytes::from_static(&[1; 900])).await.is_ok() {}
        });
        let ended = async {
            let closing = peer.joined.closing().await;
            assert_eq!(closing.0, CloseCode::QuotaExceeded);
        };
        let watched = async {
            while let Some(summary) = harness.server.allocations().first() {
                assert!(summary.bytes_used <= QUOTA, "{}", summary.bytes_used);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::join!(ended, watched);
        stop.store(true, Ordering::Relaxed);
        assert!(floods.into_iter().all(|flood| flood.join().unwrap() > 0));
        drop((device, peer));
        soon(streaming).await.unwrap();
        soon(datagrams).await.unwrap();
        harness.metric_becomes("zrc_relay_connections", 0).await;
        let used = forwarded() - before;
        assert!(used > QUOTA - 200_000 && used <= QUOTA, "{used}");
    }
}

#[tokio::test]
async fn a_shutdown_is_said_and_done_while_trains_flow() {
    let harness = Harness::with(|config| config.shards = NonZeroU8::new(2));
    let (mut device, mut peer) = harness.open_channels(&harness.pair()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let floods = [&device, &peer].map(|client| flood(client, 1100, &stop));
    let from_peer = "zrc_relay_forwarded_raw_datagrams_total{from=\"peer\"}";
    harness.metric_reaches(from_peer, 1000).await;
    let (clock, started) = (harness.clock, harness.clock.mono());
    let (device, peer, ()) =
        tokio::join!(device.joined.closing(), peer.joined.closing(), harness.server.shutdown(2 * PATIENCE),);
    assert_eq!((device.0, peer.0), (CloseCode::Draining, CloseCode::Draining));
    // Not because its time was over.
    let took = clock.mono() - started;
    assert!(took < PATIENCE, "{took:?}");
    stop.store(true, Ordering::Relaxed);
    assert!(floods.into_iter().all(|flood| flood.join().unwrap() > 0));
}

/// The shard does not ask the kernel again for what it knows is not there; what comes later must wake it all the same.
#[tokio::test]
async fn a_shard_that_has_read_all_hears_of_what_comes_later() {
    let harness = Harness::start();
    let (device, peer) = harness.open_channels(&harness.pair()).await;
    let mut opened = harness.clock.mono();
    for round in 0..200_u32 {
        opened = peer.stays_open(&harness, opened).await;
        // Several messages of unequal length, so that the kernel makes no train of them.
        for n in 0..1 + round % 5 {
            device.send_data(&vec![n as u8; 100 + 7 * (5 - n as usize)]).await;
        }
        for n in 0..1 + round % 5 {
            assert_eq!(peer.data().await.first(), Some(&(n as u8)), "round {round}");
        }
        peer.joined.send_datagram(&b"by QUIC"[..]);
        assert_eq!(device.joined.datagram().await, b"by QUIC"[..]);
    }
}
