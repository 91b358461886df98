//! The congestion controller on links in virtual time, and quinn's Cubic on the same links.
//!
//! Both ends are quinn's own protocol machines, with its pacing, loss detection and acknowledgements; only the clock
//! and the link between them are made up. The link has a rate, a buffer that drops what does not fit, and a delay;
//! some packets are lost at random, both ways. Timers fire at whole milliseconds, as tokio's do. The seed is printed;
//! `ZRC_SEED=<number>` loses the same packets again.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use quinn::{
    TransportConfig, VarInt,
    congestion::{ControllerFactory, CubicConfig},
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    Event as QuicEvent, ServerConfig, StreamId,
};

use super::{
    acks,
    congestion::{RateBasedFactory, set_rate_of},
    mtu,
};

/// In bytes per second.
const MBIT: f64 = 125_000.0;
/// Of a datagram. Small enough for a path of which quinn believes, for the losses, that its MTU has shrunk.
const PAYLOAD_BYTES: usize = 1100;
/// The datagrams of a flow that wait in its sender, at most; as a leg bounds them.
const WAIT: Duration = Duration::from_millis(100);
const MIN_WAIT_BYTES: f64 = 65_536.0;
const DATAGRAM_BUFFER_BYTES: usize = 4 << 20;
/// Of what a link carries, how much is a stream's payload: 1452-byte packets in IPv4, and the acknowledgements.
const PAYLOAD_SHARE: f64 = 0.96;

/// Of any link: two bursts as quinn's pacer lets them go.
const MIN_BUFFER_BYTES: f64 = 30_000.0;

#[derive(Debug, Clone, Copy)]
struct Link {
    bytes_per_sec: f64,
    buffer_bytes: f64,
    round_trip: Duration,
    /// The share of packets that is lost, each way.
    loss: f64,
}

impl Link {
    /// With a buffer that holds `buffer` times what the link carries in a round trip.
    fn new(mbit: f64, round_trip_ms: u64, buffer: f64, loss: f64) -> Self {
        let (bytes_per_sec, round_trip) = (mbit * MBIT, Duration::from_millis(round_trip_ms));
        let buffer_bytes = (buffer * bytes_per_sec * round_trip.as_secs_f64()).max(MIN_BUFFER_BYTES);
        Self { bytes_per_sec, buffer_bytes, round_trip, loss }
    }
}

/// What a flow's sender has to send.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Load {
    Nothing,
    /// Datagrams, this many bytes of payload a second.
    Datagrams(f64),
    /// A stream without end.
    Stream,
}

/// Whose congestion control.
#[derive(Debug, Clone, Copy, PartialEq)]
enum By {
    RateBased,
    Cubic,
}

struct Flow {
    sender: End,
    receiver: End,
    load: Load,
    due_bytes: f64,
    stream: Option<StreamId>,
    delivered_bytes: u64,
}

struct End {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    wake: Option<Instant>,
    connected: bool,
}

/// One end of one flow.
#[derive(Debug, Clone, Copy, PartialEq)]
struct At {
    flow: usize,
    is_sender: bool,
}

enum Event {
    Arrival(At, BytesMut),
    Wake(At),
    Tick,
}

struct World {
    link: Link,
    start: Instant,
    now: Instant,
    events: BTreeMap<(Instant, u64), Event>,
    scheduled: u64,
    /// When the link will have carried all that waits in its buffer.
    idle_at: Instant,
    random: u64,
    flows: Vec<Flow>,
    seen: Seen,
}

/// What the link saw, on the way from senders to receivers.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    packets: u64,
    overflowed: u64,
    bytes: u64,
    waited: Duration,
}

/// One span of time, as it was.
#[derive(Debug)]
struct Span {
    /// Delivered payload of each flow, bytes per second.
    rates: Vec<f64>,
    /// Packets that did not fit the link's buffer, of all.
    overflow: f64,
    /// What a packet waited in the link's buffer, on average.
    wait: Duration,
    /// What was sent, losses included, in bytes per second.
    sent: f64,
}

impl World {
    #[allow(clippy::print_stderr, reason = "the seed must be there to read when a simulation fails")]
    fn new(link: Link) -> Self {
        let seed = match std::env::var("ZRC_SEED") {
            Ok(text) => text.parse().expect("ZRC_SEED is a number"),
            Err(_) => {
                let mut bytes = [0; 8];
                getrandom::fill(&mut bytes).unwrap();
                u64::from_le_bytes(bytes)
            }
        };
        eprintln!("ZRC_SEED={seed}");
        let start = some_time();
        let mut world = Self {
            link,
            start,
            now: start,
            events: BTreeMap::new(),
            scheduled: 0,
            idle_at: start,
            random: seed,
            flows: Vec::new(),
            seen: Seen::default(),
        };
        world.schedule(start, Event::Tick);
        world
    }

    /// A world with one flow.
    fn with(link: Link, by: By, load: Load) -> Self {
        let mut world = Self::new(link);
        world.add(by, load);
        world
    }

    /// Connects one more flow and lets it find the path's MTU before its load begins.
    fn add(&mut self, by: By, load: Load) {
        let flow = self.flows.len();
        self.flows.push(new_flow(by, self.now, flow));
        self.drive(At { flow, is_sender: true });
        while !(self.flows[flow].sender.connected && self.flows[flow].receiver.connected) {
            self.step();
        }
        self.run(10 * self.link.round_trip);
        self.flows[flow].load = load;
    }

    fn set_rate(&self, flow: usize, bytes_per_sec: f64) {
        let controller = self.connection(flow).congestion_state().clone_box();
        set_rate_of(controller, Some(bytes_per_sec as u64));
    }

    fn window(&self, flow: usize) -> u64 {
        self.connection(flow).congestion_state().window()
    }

    fn connection(&self, flow: usize) -> &Connection {
        &self.flows[flow].sender.connection.as_ref().unwrap().1
    }

    /// Lets `time` pass, and tells how it was.
    #[allow(clippy::print_stderr, reason = "figures to look at: cargo test -- --nocapture")]
    fn run(&mut self, time: Duration) -> Span {
        let before: Vec<u64> = self.flows.iter().map(|flow| flow.delivered_bytes).collect();
        self.seen = Seen::default();
        let end = self.now + time;
        while self.events.first_key_value().is_some_and(|((at, _), _)| *at <= end) {
            self.step();
        }
        self.now = end;
        let per_sec = |bytes: u64| bytes as f64 / time.as_secs_f64();
        let seen = self.seen;
        let carried = u32::try_from((seen.packets - seen.overflowed).max(1)).unwrap();
        let span = Span {
            rates: self
                .flows
                .iter()
                .zip(before)
                .map(|(f, before)| per_sec(f.delivered_bytes - before))
                .collect(),
            overflow: seen.overflowed as f64 / seen.packets.max(1) as f64,
            wait: seen.waited / carried,
            sent: per_sec(seen.bytes),
        };
        let mbit: Vec<f64> = span.rates.iter().map(|rate| (rate / MBIT * 100.0).round() / 100.0).collect();
        eprintln!(
            "{:>6.2} s: {mbit:?} Mbit/s delivered, {:.3} overflowed, {:?} waited",
            (self.now - self.start).as_secs_f64(),
            span.overflow,
            span.wait
        );
        span
    }

    fn schedule(&mut self, at: Instant, event: Event) {
        self.scheduled += 1;
        self.events.insert((at, self.scheduled), event);
    }

    fn step(&mut self) {
        let ((now, _), event) = self.events.pop_first().unwrap();
        self.now = now;
        match event {
            Event::Tick => {
                for flow in 0..self.flows.len() {
                    self.load(flow);
                    self.drive(At { flow, is_sender: true });
                }
                self.schedule(now + Duration::from_millis(1), Event::Tick);
            }
            Event::Wake(at) => {
                let end = self.end(at);
                if end.wake == Some(now) {
                    end.wake = None;
                    end.connection.as_mut().unwrap().1.handle_timeout(now);
                    self.drive(at);
                }
            }
            Event::Arrival(at, packet) => {
                self.receive(at, packet);
                self.drive(at);
            }
        }
    }

    fn end(&mut self, at: At) -> &mut End {
        let flow = &mut self.flows[at.flow];
        if at.is_sender { &mut flow.sender } else { &mut flow.receiver }
    }

    /// Hands a flow's connection what is due; once a millisecond.
    fn load(&mut self, flow: usize) {
        let Flow { sender, load, due_bytes, stream, .. } = &mut self.flows[flow];
        let (_, connection) = sender.connection.as_mut().unwrap();
        match *load {
            Load::Nothing => {}
            Load::Datagrams(rate) => {
                *due_bytes += rate / 1000.0;
                let room = (rate * WAIT.as_secs_f64()).max(MIN_WAIT_BYTES);
                while *due_bytes >= PAYLOAD_BYTES as f64 {
                    *due_bytes -= PAYLOAD_BYTES as f64;
                    let mut datagrams = connection.datagrams();
                    let waiting = DATAGRAM_BUFFER_BYTES - datagrams.send_buffer_space();
                    if ((waiting + PAYLOAD_BYTES) as f64) < room {
                        datagrams.send(Bytes::from_static(&[7; PAYLOAD_BYTES]), false).unwrap();
                    }
                }
            }
            Load::Stream => {
                let id = *stream.get_or_insert_with(|| connection.streams().open(Dir::Uni).unwrap());
                while connection.send_stream(id).write(&[7; 16384]).is_ok() {}
            }
        }
    }

    fn receive(&mut self, at: At, packet: BytesMut) {
        let now = self.now;
        let from = address(At { is_sender: !at.is_sender, ..at });
        let end = self.end(at);
        let mut answer = Vec::new();
        match end.endpoint.handle(now, from, None, None, packet, &mut answer) {
            Some(DatagramEvent::NewConnection(incoming)) => {
                let accepted = end.endpoint.accept(incoming, now, &mut answer, None);
                end.connection = Some(accepted.ok().unwrap());
            }
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                end.connection.as_mut().unwrap().1.handle_event(event);
            }
            Some(DatagramEvent::Response(_)) => panic!("an answer to no connection's packet"),
            None => {}
        }
    }

    /// Takes what a connection has for its endpoint, for the application and for the link, until it has no more.
    fn drive(&mut self, at: At) {
        if at.is_sender && self.flows[at.flow].load == Load::Stream {
            self.load(at.flow);
        }
        let (now, start) = (self.now, self.start);
        let end = self.end(at);
        let Some((handle, connection)) = &mut end.connection else { return };
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = end.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        while let Some(event) = connection.poll() {
            match event {
                QuicEvent::Connected => end.connected = true,
                QuicEvent::ConnectionLost { reason } => panic!("flow {} is lost: {reason}", at.flow),
                _ => {}
            }
        }
        let mut packets = Vec::new();
        let mut buffer = Vec::new();
        let mut delivered_bytes = 0;
        if !at.is_sender {
            delivered_bytes = read(connection);
        }
        while let Some(transmit) = connection.poll_transmit(now, 10, &mut buffer) {
            let segment_size = transmit.segment_size.unwrap_or(transmit.size);
            packets.extend(buffer[..transmit.size].chunks(segment_size).map(BytesMut::from));
            buffer.clear();
        }
        let wake = connection.poll_timeout().map(|at| {
            let since_start = at.max(now) - start;
            start + Duration::from_millis(since_start.as_nanos().div_ceil(1_000_000) as u64)
        });
        if wake != end.wake {
            end.wake = wake;
            if let Some(wake) = wake {
                self.schedule(wake, Event::Wake(at));
            }
        }
        self.flows[at.flow].delivered_bytes += delivered_bytes;
        for packet in packets {
            self.send(At { is_sender: !at.is_sender, ..at }, packet);
        }
    }

    /// Puts a packet on its way. The way back to senders is not limited.
    fn send(&mut self, to: At, packet: BytesMut) {
        let mut leaves = self.now;
        if !to.is_sender {
            // With the headers of UDP and IPv4.
            let bytes = packet.len() as f64 + 28.0;
            let waits = self.idle_at.saturating_duration_since(self.now);
            self.seen.packets += 1;
            self.seen.bytes += packet.len() as u64;
            if waits.as_secs_f64() * self.link.bytes_per_sec + bytes > self.link.buffer_bytes {
                self.seen.overflowed += 1;
                return;
            }
            self.seen.waited += waits;
            leaves += waits + Duration::from_secs_f64(bytes / self.link.bytes_per_sec);
            self.idle_at = leaves;
        }
        if self.chance() >= self.link.loss {
            self.schedule(leaves + self.link.round_trip / 2, Event::Arrival(to, packet));
        }
    }

    /// From 0 to 1 (splitmix64).
    fn chance(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Where virtual time begins.
#[expect(clippy::disallowed_methods, reason = "there is no other way to an Instant")]
pub(super) fn some_time() -> Instant {
    Instant::now()
}

/// Reads all that has arrived, and tells how many bytes.
fn read(connection: &mut Connection) -> u64 {
    let mut bytes = 0;
    while let Some(datagram) = connection.datagrams().recv() {
        bytes += datagram.len() as u64;
    }
    while connection.streams().accept(Dir::Uni).is_some() {}
    let stream = StreamId::new(quinn::Side::Client, Dir::Uni, 0);
    if let Ok(mut chunks) = connection.recv_stream(stream).read(true) {
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            bytes += chunk.bytes.len() as u64;
        }
        let _ = chunks.finalize();
    }
    bytes
}

fn address(at: At) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, u8::from(at.is_sender)], 1000 + at.flow as u16))
}

fn new_flow(by: By, now: Instant, flow: usize) -> Flow {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = certified.cert.der().clone();
    let key = certified.signing_key.serialize_der().try_into().unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = [&rustls::version::TLS13];
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone());
    let tls = builder.with_protocol_versions(&versions).unwrap().with_no_client_auth();
    let tls = tls.with_single_cert(vec![certificate], key).unwrap();
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    server.transport_config(transport(by, flow));
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let tls = builder.with_protocol_versions(&versions).unwrap().with_root_certificates(roots);
    let tls = tls.with_no_client_auth();
    let mut client = ClientConfig::new(acks::client(Arc::new(QuicClientConfig::try_from(tls).unwrap())));
    client.transport_config(transport(by, flow));

    let seeded = |seed: u8| {
        let mut config = EndpointConfig::default();
        config.rng_seed(Some([seed; 32]));
        Arc::new(config)
    };
    let end = |endpoint, connection| End { endpoint, connection, wake: None, connected: false };
    let mut connecting = Endpoint::new(seeded(2 * flow as u8), None, true, None);
    let accepting = Endpoint::new(seeded(2 * flow as u8 + 1), Some(Arc::new(server)), true, None);
    let to = address(At { flow, is_sender: false });
    let connection = connecting.connect(now, client, to, "localhost").unwrap();
    Flow {
        sender: end(connecting, Some(connection)),
        receiver: end(accepting, None),
        load: Load::Nothing,
        due_bytes: 0.0,
        stream: None,
        delivered_bytes: 0,
    }
}

/// As relay and clients have it where it matters here, and windows that limit nothing.
fn transport(by: By, flow: usize) -> Arc<TransportConfig> {
    let controllers: Arc<dyn ControllerFactory + Send + Sync> = match by {
        By::RateBased => Arc::new(RateBasedFactory::seeded(flow as u32)),
        By::Cubic => {
            let mut cubic = CubicConfig::default();
            cubic.initial_window(64 * 1024);
            Arc::new(cubic)
        }
    };
    let mut transport = TransportConfig::default();
    transport
        .congestion_controller_factory(controllers)
        .mtu_discovery_config(Some(mtu::discovery()))
        .stream_receive_window(VarInt::from_u32(16 << 20))
        .receive_window(VarInt::from_u32(16 << 20))
        .send_window(16 << 20)
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES));
    acks::ask_for_few(&mut transport);
    Arc::new(transport)
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn a_flow_below_the_links_rate_is_not_held_back_by_random_loss() {
    for (mbit, round_trip_ms, loss, most_by_cubic) in [
        (50.0, 60, 0.05, 0.1),
        (50.0, 60, 0.08, 0.1),
        (10.0, 200, 0.05, 0.2),
        (4.0, 30, 0.05, 0.9),
        (100.0, 20, 0.05, 0.1),
    ] {
        let offered = mbit / 2.0 * MBIT;
        let link = Link::new(mbit, round_trip_ms, 1.0, loss);
        let delivered = |by| {
            let mut world = World::with(link, by, Load::Datagrams(offered));
            world.run(secs(1));
            world.run(secs(4)).rates[0] / offered / (1.0 - loss)
        };
        let (rate_based, cubic) = (delivered(By::RateBased), delivered(By::Cubic));
        // Losses are counted, and so vary by themselves.
        assert!(rate_based > 0.95, "{mbit} Mbit/s {round_trip_ms} ms: {rate_based:.3}");
        assert!(cubic < most_by_cubic, "{mbit} Mbit/s {round_trip_ms} ms: Cubic {cubic:.3}");
    }
}

#[test]
fn heavy_random_loss_does_not_collapse_a_flow() {
    for (loss, least) in [(0.12, 0.7), (0.18, 0.2)] {
        let offered = 25.0 * MBIT;
        let mut world = World::with(Link::new(50.0, 60, 1.0, loss), By::RateBased, Load::Datagrams(offered));
        world.run(secs(4));
        let delivered = world.run(secs(4)).rates[0] / offered / (1.0 - loss);
        assert!(delivered > least, "{loss}: {delivered:.3}");
    }
}

#[test]
fn one_stream_fills_a_link_without_filling_its_buffer() {
    for (mbit, round_trip_ms) in [(50.0, 60), (10.0, 20), (200.0, 10), (2.0, 100), (2.0, 1), (20.0, 1)] {
        let mut world = World::with(Link::new(mbit, round_trip_ms, 4.0, 0.0), By::RateBased, Load::Stream);
        world.run(secs(3));
        let span = world.run(secs(5));
        let used = span.rates[0] / mbit / MBIT / PAYLOAD_SHARE;
        assert!(used > 0.85, "{mbit} Mbit/s {round_trip_ms} ms: {used:.3}");
        assert!(span.overflow < 0.001, "{mbit} Mbit/s {round_trip_ms} ms: {}", span.overflow);
        // Ten packets wait for their acknowledgement at any rate.
        let lump = Duration::from_secs_f64(15_000.0 / mbit / MBIT);
        let bound = world.link.round_trip / 2 + lump;
        assert!(span.wait < bound, "{mbit} Mbit/s {round_trip_ms} ms: {:?}", span.wait);
    }
}

#[test]
fn one_stream_fills_a_lossy_link() {
    let link = Link::new(50.0, 60, 1.0, 0.05);
    let used = |by| {
        let mut world = World::with(link, by, Load::Stream);
        world.run(secs(3));
        world.run(secs(5)).rates[0] / 50.0 / MBIT / PAYLOAD_SHARE / 0.95
    };
    let (rate_based, cubic) = (used(By::RateBased), used(By::Cubic));
    assert!(rate_based > 0.85, "{rate_based:.3}");
    assert!(cubic < 0.1, "{cubic:.3}");
}

#[test]
fn a_shallow_buffer_loses_little_of_a_stream() {
    for (buffer, least_used, most_lost) in [(0.3, 0.85, 0.05), (0.1, 0.75, 0.12)] {
        let mut world = World::with(Link::new(50.0, 60, buffer, 0.0), By::RateBased, Load::Stream);
        let first = world.run(secs(1));
        assert!(first.overflow < 0.25, "{buffer}, the first second: {:.3}", first.overflow);
        let span = world.run(secs(6));
        let used = span.rates[0] / 50.0 / MBIT / PAYLOAD_SHARE;
        assert!(used > least_used, "{buffer}: {used:.3}");
        assert!(span.overflow < most_lost, "{buffer}: {:.3}", span.overflow);
    }
}

#[test]
fn a_stream_follows_the_links_rate_down_and_up() {
    for buffer in [0.5, 1.0, 4.0] {
        let mut world = World::with(Link::new(50.0, 60, buffer, 0.0), By::RateBased, Load::Stream);
        world.run(secs(3));
        for factor in [0.5, 2.0, 4.0, 0.1] {
            world.link.bytes_per_sec *= factor;
            world.run(secs(4));
            let span = world.run(secs(2));
            let used = span.rates[0] / world.link.bytes_per_sec / PAYLOAD_SHARE;
            assert!((0.8..1.05).contains(&used), "buffer {buffer}, then times {factor}: {used:.3}");
            assert!(span.overflow < 0.1, "buffer {buffer}, then times {factor}: {:.3}", span.overflow);
            let wait = span.wait;
            assert!(wait < world.link.round_trip, "buffer {buffer}, then times {factor}: {wait:?}");
        }
    }
}

#[test]
fn two_streams_share_a_link() {
    for (mbit, round_trip_ms, buffer) in [(50.0, 60, 1.0), (50.0, 60, 4.0), (100.0, 10, 1.0)] {
        let mut world = World::with(Link::new(mbit, round_trip_ms, buffer, 0.0), By::RateBased, Load::Stream);
        world.run(secs(2));
        world.add(By::RateBased, Load::Stream);
        world.run(secs(6));
        let span = world.run(secs(12));
        let (older, newer) = (span.rates[0], span.rates[1]);
        assert!(older < 3.0 * newer && newer < 3.0 * older, "{mbit} Mbit/s buffer {buffer}: {older} {newer}");
        let used = (older + newer) / mbit / MBIT / PAYLOAD_SHARE;
        assert!(used > 0.9, "{mbit} Mbit/s buffer {buffer}: {used:.3}");
        assert!(span.wait < world.link.round_trip, "{mbit} Mbit/s buffer {buffer}: {:?}", span.wait);
        assert!(span.overflow < 0.02, "{mbit} Mbit/s buffer {buffer}: {:.3}", span.overflow);
    }
}

#[test]
fn a_flow_that_sends_less_than_its_share_keeps_its_rate_beside_one_that_fills_the_buffer() {
    for (mbit, round_trip_ms) in [(20.0, 40), (100.0, 20)] {
        let offered = mbit / 4.0 * MBIT;
        let link = Link::new(mbit, round_trip_ms, 4.0, 0.0);
        let mut world = World::with(link, By::RateBased, Load::Datagrams(offered));
        world.run(secs(2));
        world.add(By::Cubic, Load::Stream);
        world.run(secs(2));
        let span = world.run(secs(6));
        assert!(span.wait > link.round_trip, "the buffer was not filled: {:?}", span.wait);
        assert!(span.rates[0] > 0.9 * offered, "{mbit} Mbit/s: {:.3}", span.rates[0] / offered);
    }
}

#[test]
fn a_flow_that_sent_little_grows_to_the_links_rate_in_a_second() {
    let mut world = World::with(Link::new(50.0, 60, 1.0, 0.0), By::RateBased, Load::Datagrams(5.0 * MBIT));
    world.run(secs(5));
    let window = world.window(0);
    assert!(window >= 2 * 5_000_000 / 8 * 60 / 1000, "{window}");
    world.flows[0].load = Load::Stream;
    world.run(secs(1));
    let used = world.run(secs(1)).rates[0] / 50.0 / MBIT / PAYLOAD_SHARE;
    assert!(used > 0.8, "{used:.3}");
}

#[test]
fn more_than_the_link_carries_waits_in_the_sender() {
    for (mbit, buffer) in [(1.0, 16.0), (1.0, 2.0), (5.0, 8.0)] {
        let mut world = World::new(Link::new(mbit, 60, buffer, 0.01));
        world.add(By::RateBased, Load::Nothing);
        world.set_rate(0, 10.0 * MBIT);
        world.flows[0].load = Load::Datagrams(10.0 * MBIT);
        world.run(secs(3));
        let span = world.run(secs(4));
        let used = span.rates[0] / mbit / MBIT;
        assert!(used > 0.75, "{mbit} Mbit/s: {used:.3}");
        let lump = Duration::from_secs_f64(15_000.0 / mbit / MBIT);
        assert!(span.wait < world.link.round_trip + lump, "{mbit} Mbit/s: {:?}", span.wait);
        assert!(span.overflow < 0.06, "{mbit} Mbit/s: {:.3}", span.overflow);
    }
}

#[test]
fn an_outage_is_recovered_from() {
    let mut world = World::with(Link::new(50.0, 60, 1.0, 0.0), By::RateBased, Load::Stream);
    world.run(secs(3));
    world.link.loss = 1.0;
    world.run(secs(5));
    world.link.loss = 0.0;
    // quinn's probes are seconds apart by then.
    world.run(secs(6));
    let used = world.run(secs(2)).rates[0] / 50.0 / MBIT / PAYLOAD_SHARE;
    assert!(used > 0.8, "{used:.3}");
}

#[test]
fn a_known_rate_is_started_at_and_not_much_exceeded() {
    let link = Link::new(200.0, 100, 1.0, 0.0);
    let delivered_at_first = |rate: Option<f64>| {
        let mut world = World::new(link);
        world.add(By::RateBased, Load::Nothing);
        if let Some(rate) = rate {
            world.set_rate(0, rate);
            // The controller looks at it when something is acknowledged.
            world.flows[0].sender.connection.as_mut().unwrap().1.ping();
            world.run(secs(1));
        }
        world.flows[0].load = Load::Datagrams(30.0 * MBIT);
        world.run(Duration::from_millis(400)).rates[0] / 30.0 / MBIT
    };
    let (told, untold) = (delivered_at_first(Some(30.0 * MBIT)), delivered_at_first(None));
    // What was sent in the first 350 ms of the 400 has arrived.
    assert!(told > 0.8, "{told:.3}");
    assert!(untold < 0.75, "{untold:.3}");

    let mut world = World::new(link);
    world.add(By::RateBased, Load::Nothing);
    world.set_rate(0, 20.0 * MBIT);
    world.flows[0].load = Load::Stream;
    world.run(secs(1));
    let sent = world.run(secs(3)).sent / 20.0 / MBIT;
    assert!((1.2..1.7).contains(&sent), "{sent:.3}");
    world.set_rate(0, 40.0 * MBIT);
    world.run(secs(1));
    let sent = world.run(secs(2)).sent / 40.0 / MBIT;
    assert!((1.2..1.7).contains(&sent), "{sent:.3}");
}
