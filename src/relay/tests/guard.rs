//! R6.1 to R6.3 and R5.1: who is turned away for where it comes from or for how many it is, and who is not.

use ipnet::IpNet;
use quinn::{ConnectionId, VarInt};

use super::*;
use crate::guard::{Heard, Limit, PerMinute, SecurityEvent, Subscription, Turned};

/// The loopback addresses are limited like others.
fn limited(change: impl FnOnce(&mut GuardSettings)) -> Harness {
    Harness::with(|config| {
        config.guard.exempt_loopback = false;
        change(&mut config.guard);
    })
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

impl Harness {
    /// A connection from this address, or why there is none.
    async fn connect_from(&self, ip: &str) -> Result<Raw, ConnectionError> {
        let endpoint = Endpoint::client(SocketAddr::new(ip.parse().unwrap(), 0)).unwrap();
        self.connect_on(endpoint, self.addr(), |_| {}).await
    }

    fn refused(&self, reason: &str) -> u64 {
        self.metric(&format!("zrc_relay_guard_refused_total{{reason=\"{reason}\"}}"))
    }

    fn ignored(reason: &str) -> String {
        format!("zrc_relay_guard_ignored_total{{reason=\"{reason}\"}}")
    }

    /// A datagram that begins a handshake, as another client would each time.
    fn initial(&self) -> Vec<u8> {
        let config = quinn_proto::EndpointConfig::default();
        let mut endpoint = quinn_proto::Endpoint::new(Arc::new(config), None, false, None);
        let now = tokio::time::Instant::now().into_std();
        let anywhere = "192.0.2.1:4433".parse().unwrap();
        let (_, mut connection) = endpoint.connect(now, self.client_config(), anywhere, "localhost").unwrap();
        let mut datagram = Vec::new();
        let _ = connection.poll_transmit(now, 1, &mut datagram).unwrap();
        assert_eq!(datagram.len(), 1200);
        datagram
    }

    /// As many clients that never answer: whose addresses are made up.
    async fn forge_initials(&self, from: &str, times: usize) -> tokio::net::UdpSocket {
        let socket = tokio::net::UdpSocket::bind(SocketAddr::new(from.parse().unwrap(), 0)).await.unwrap();
        // Made before, so that they come all at once.
        let initials: Vec<_> = (0..times).map(|_| self.initial()).collect();
        for initial in &initials {
            socket.send_to(initial, self.addr()).await.unwrap();
        }
        socket
    }
}

fn is_refused(outcome: Result<Raw, ConnectionError>) -> bool {
    match outcome.err() {
        Some(ConnectionError::ConnectionClosed(close)) => {
            assert_eq!(close.error_code, quinn::TransportErrorCode::CONNECTION_REFUSED);
            true
        }
        None => false,
        other => panic!("{other:?}"),
    }
}

async fn next(events: &mut Subscription) -> (SecurityEvent, Option<String>) {
    match soon(events.next()).await {
        Heard::Event(record) => {
            (record.event.clone(), record.subject.source.map(|source| source.to_string()))
        }
        Heard::Missed(missed) => panic!("{missed} missed"),
    }
}

#[tokio::test]
async fn r6_1_connections_over_a_sources_limit_are_refused_before_a_handshake() {
    let harness = limited(|guard| guard.connections = PerMinute::new(3));
    let mut events = harness.security.subscribe();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(harness.connect().await);
    }
    for _ in 0..5 {
        assert!(is_refused(harness.try_connect(|_| {}).await));
    }
    assert_eq!(harness.metric("zrc_relay_connections_opened_total"), 3, "nothing was signed for the others");
    assert_eq!(harness.refused("connection_rate"), 5);
    let (event, source) = next(&mut events).await;
    assert_eq!(event, SecurityEvent::LimitHit { limit: Limit::SourceConnections });
    assert_eq!(source, None, "the attempt was refused before its address had proven itself");
    // Its neighbour is another source.
    assert!(!is_refused(harness.connect_from("127.0.0.2").await));
}

#[tokio::test]
async fn r6_1_connections_over_the_limit_are_refused_after_a_retry_too() {
    let harness = limited(|guard| {
        guard.connections = PerMinute::new(2);
        guard.retry_above = 0;
    });
    let mut events = harness.security.subscribe();
    // The level that this begins with was not changed to.
    let _held = (harness.connect().await, harness.connect().await);
    assert_eq!(harness.metric("zrc_relay_handshakes_retried_total"), 2);
    assert!(is_refused(harness.try_connect(|_| {}).await));
    assert_eq!(harness.refused("connection_rate"), 1);
    let (event, _) = next(&mut events).await;
    assert_eq!(event, SecurityEvent::LimitHit { limit: Limit::SourceConnections });
    assert_eq!(harness.metric("zrc_relay_guard_level"), 1);
}

#[tokio::test]
async fn r6_1_loopback_and_other_networks_can_be_exempt() {
    for (exempt_loopback, exempt) in [(true, None), (false, Some("127.0.0.0/24"))] {
        let harness = Harness::with(|config| {
            config.guard.connections = PerMinute::new(1);
            config.guard.allocation_requests = PerMinute::new(1);
            config.guard.exempt_loopback = exempt_loopback;
            config.guard.exempt = exempt.map(net).into_iter().collect();
        });
        for _ in 0..3 {
            harness.joined_pair(&harness.pair()).await;
        }
        assert_eq!(harness.refused("connection_rate"), 0);
        if !exempt_loopback {
            assert!(!is_refused(harness.connect_from("127.0.1.1").await));
            assert!(is_refused(harness.connect_from("127.0.1.1").await));
        }
    }
}

#[tokio::test]
async fn r6_1_requests_over_a_sources_limit_are_told_when_to_come_again() {
    let harness = limited(|guard| guard.allocation_requests = PerMinute::new(2));
    let mut events = harness.security.subscribe();
    let _pair = harness.joined_pair(&harness.pair()).await;
    let raw = harness.connect().await;
    let hello = ClientMessage::Hello(raw.hello(&harness.pair(), Role::Device)).to_frame();
    let mut control = raw.begin(&hello).await;
    let Some(RelayMessage::Refused(refused)) = control.next().await else { panic!("not refused") };
    assert_eq!(CloseCode::from_number(refused.code.into()), Some(CloseCode::RateLimited));
    assert!((1..=30_000).contains(&refused.retry_after_ms), "{}", refused.retry_after_ms);
    assert_eq!(control.close_code().await, CloseCode::RateLimited);
    assert_eq!(harness.refused("allocation_rate"), 1);
    assert_eq!(harness.metric("zrc_relay_refused_total{code=\"RATE_LIMITED\"}"), 1);
    let (event, source) = next(&mut events).await;
    assert_eq!(event, SecurityEvent::LimitHit { limit: Limit::SourceRequests });
    assert_eq!(source.as_deref(), Some("127.0.0.1"));
    // Nobody else waits, and requests that are refused count as well.
    let other = harness.connect_from("127.0.0.2").await.unwrap();
    other.join(&harness.pair(), Role::Device).await.unwrap();
    let bad = harness.pair_with(|fields| fields.relay_id.0[0] ^= 1);
    let third = |pair: Pair| {
        let harness = &harness;
        async move {
            let raw = harness.connect_from("127.0.0.3").await.unwrap();
            raw.join(&pair, Role::Device).await.map(|_| ()).map_err(|(code, _)| code)
        }
    };
    assert_eq!(third(bad.clone()).await, Err(CloseCode::TokenInvalid));
    assert_eq!(third(bad).await, Err(CloseCode::TokenInvalid));
    assert_eq!(third(harness.pair()).await, Err(CloseCode::RateLimited));
}

/// Packets in a victim's name: as many as anybody likes.
#[tokio::test]
async fn r6_1_forged_packets_lock_nobody_out() {
    let harness = limited(|guard| guard.connections = PerMinute::new(3));
    let mut events = harness.security.subscribe();
    let _forger = harness.forge_initials("127.0.0.1", 60).await;
    harness.metric_reaches("zrc_relay_handshakes_retried_total", 57).await;
    assert_eq!(harness.refused("connection_rate"), 0);
    // Three were begun without a Retry, as many as the source may: no signature was made for the others.
    let (event, source) = next(&mut events).await;
    assert!(matches!(event, SecurityEvent::Amplification { received_bytes: 3600, .. }), "{event:?}");
    assert_eq!(source, None, "it is the victim's");
    // And the victim has all of its budget.
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(harness.connect().await);
    }
    assert!(is_refused(harness.try_connect(|_| {}).await));
    assert_eq!(harness.metric("zrc_relay_connections_opened_total"), 3);
}

#[tokio::test]
async fn r6_2_packets_from_blocked_networks_get_no_answer() {
    // IPv4 clients appear at this socket with IPv4-mapped addresses.
    for listen in ["127.0.0.1:0", "[::]:0"] {
        let harness = Harness::with(|config| {
            config.listen = listen.parse().unwrap();
            config.guard.block = vec![net("127.0.0.2/31"), net("127.0.0.4/32")];
            config.guard.allow = vec![net("127.0.0.3/32"), net("127.0.0.4/32")];
        });
        let addr = SocketAddr::new("127.0.0.1".parse().unwrap(), harness.addr().port());
        let blocked = tokio::net::UdpSocket::bind("127.0.0.2:0").await.unwrap();
        blocked.send_to(&harness.initial(), addr).await.unwrap();
        harness.metric_becomes(&Harness::ignored("blocked"), 1).await;
        for ip in ["127.0.0.1", "127.0.0.3", "127.0.0.4"] {
            let endpoint = Endpoint::client(SocketAddr::new(ip.parse().unwrap(), 0)).unwrap();
            harness.connect_on(endpoint, addr, |_| {}).await.unwrap_or_else(|error| panic!("{ip}: {error}"));
        }
        assert!(blocked.try_recv(&mut [0; 2000]).is_err(), "an answer");
        harness.metric_becomes("zrc_relay_connections_opened_total", 3).await;
    }
}

#[tokio::test]
async fn r6_2_who_is_blocked_while_connected_is_told_so_and_may_come_back_when_it_ends() {
    let harness = Harness::start();
    let neighbours = harness.joined_pair(&harness.pair()).await;
    let pair = harness.pair();
    let mut there = harness.connect_from("127.0.0.2").await.unwrap().join(&pair, Role::Device).await.unwrap();
    let waiting = harness.connect_from("127.0.0.2").await.unwrap();
    // The relay, too, has seen the handshake finish: what is left of it would get no answer.
    harness.metric_becomes("zrc_relay_connections_opened_total", 4).await;
    let mut events = harness.security.subscribe();
    let guard = harness.server.guard();
    guard.block(net("127.0.0.2/32"), None, "a test", harness.clock.mono()).unwrap();
    // Who has not shown its token yet is told so when it does. What it says then gets through: its connection is there.
    let hello = ClientMessage::Hello(waiting.hello(&pair, Role::Device)).to_frame();
    let mut waiting = waiting.begin(&hello).await;
    assert!(matches!(waiting.next().await, Some(RelayMessage::Refused(_))));
    assert_eq!(waiting.close_code().await, CloseCode::Blocked);
    assert_eq!(there.closing().await.0, CloseCode::Blocked);
    let (event, _) = next(&mut events).await;
    assert!(matches!(event, SecurityEvent::Blocked { .. }), "{event:?}");
    assert!(harness.refused("blocked") >= 2);
    assert_eq!(harness.metric("zrc_relay_guard_blocks"), 1);
    assert_eq!(guard.list(harness.clock.mono()).len(), 1);
    // Its first packets get no answer; it asks again until then.
    let until = harness.clock.mono() + Duration::from_secs(1);
    guard.block(net("127.0.0.2/32"), Some(until), "a test", harness.clock.mono()).unwrap();
    let again = harness.connect_from("127.0.0.2").await.unwrap();
    assert!(harness.clock.mono() >= until);
    again.join(&pair, Role::Device).await.unwrap();
    assert!(guard.list(harness.clock.mono()).is_empty());
    let (device, peer) = neighbours;
    device.send_datagram(&b"undisturbed"[..]);
    assert_eq!(peer.datagram().await, &b"undisturbed"[..]);
}

#[tokio::test]
async fn r5_1_lists_and_limits_apply_where_a_client_moves_to() {
    let harness = limited(|guard| {
        guard.block = vec![net("127.0.0.2/32")];
        guard.connections = PerMinute::new(2);
    });
    // Used up, and so nobody may move there; but who is there may change its port.
    let at_its_limit = harness.connect_from("127.0.0.3").await.unwrap();
    let mut stays = at_its_limit.join(&harness.pair(), Role::Device).await.unwrap();
    let _second = harness.connect_from("127.0.0.3").await.unwrap();
    let rebind = |joined: &Joined, ip: &str| {
        let socket = std::net::UdpSocket::bind(SocketAddr::new(ip.parse().unwrap(), 0)).unwrap();
        joined.control.endpoint.rebind(socket).unwrap();
        joined.send_datagram(&b"from elsewhere"[..]);
    };
    rebind(&stays, "127.0.0.3");
    harness.metric_reaches("zrc_relay_migrations_total", 1).await;
    for (from, to, code) in [
        ("127.0.0.4", "127.0.0.2", Some(CloseCode::Blocked)),
        ("127.0.0.4", "127.0.0.3", Some(CloseCode::RateLimited)),
        ("127.0.0.5", "127.0.0.6", None),
    ] {
        let raw = harness.connect_from(from).await.unwrap();
        let mut moves = raw.join(&harness.pair(), Role::Device).await.unwrap();
        let before = harness.metric("zrc_relay_migrations_total");
        rebind(&moves, to);
        harness.metric_reaches("zrc_relay_migrations_total", before + 1).await;
        match code {
            Some(code) => assert_eq!(moves.closing().await.0, code, "{from} to {to}"),
            None => {
                moves.control.say(&ClientMessage::Ping(3)).await;
                moves.until(|m| matches!(m, RelayMessage::Pong(_)).then_some(())).await;
            }
        }
    }
    stays.control.say(&ClientMessage::Ping(3)).await;
    stays.until(|m| matches!(m, RelayMessage::Pong(_)).then_some(())).await;
    // To have moved there has cost the new address nothing: that could be anybody's claim.
    let now = harness.clock.mono();
    let guard = harness.server.guard();
    assert_eq!(guard.moved("127.0.0.1".parse().unwrap(), "127.0.0.6".parse().unwrap(), now), Ok(()));
    let moved = guard.moved("127.0.0.1".parse().unwrap(), "127.0.0.3".parse().unwrap(), now);
    assert!(matches!(moved, Err(Turned::Limited { .. })), "{moved:?}");
}

#[tokio::test]
async fn r6_3_unfinished_handshakes_raise_the_guard_and_it_falls_back_by_itself() {
    let harness = Harness::with(|config| config.guard.retry_above = 10);
    let mut events = harness.security.subscribe();
    let _forger = harness.forge_initials("127.0.0.9", 40).await;
    harness.metric_becomes("zrc_relay_guard_level", 1).await;
    harness.metric_reaches("zrc_relay_handshakes_retried_total", 25).await;
    assert_eq!(harness.metric("zrc_relay_guard_raised_total{level=\"retry\"}"), 1);
    let (event, _) = next(&mut events).await;
    assert!(matches!(event, SecurityEvent::HandshakeFlood { unfinished: 10..=11 }), "{event:?}");
    // Whoever can be answered is let in all the same, by way of a Retry. What was forged came before the first of them,
    // and has been counted when that is in.
    let _pair = harness.joined_pair(&harness.pair()).await;
    let before = harness.metric("zrc_relay_handshakes_retried_total");
    let _pair = harness.joined_pair(&harness.pair()).await;
    assert_eq!(harness.metric("zrc_relay_handshakes_retried_total"), before + 2);
    harness.metric_becomes("zrc_relay_guard_level", 0).await;
    let _pair = harness.joined_pair(&harness.pair()).await;
    assert_eq!(harness.metric("zrc_relay_handshakes_retried_total"), before + 2);
}

#[tokio::test]
async fn r6_3_beyond_the_rate_there_is_silence_but_not_for_who_was_here_before() {
    const PER_SECOND: u32 = 20;
    let harness = Harness::with(|config| {
        config.guard.retry_above = 10;
        config.guard.silence_above = Some(PER_SECOND);
    });
    // The relay gives each client tokens for the next time.
    let config = harness.client_config();
    let endpoint = Endpoint::client(harness.local()).unwrap();
    let first =
        soon(endpoint.connect_with(config.clone(), harness.addr(), "localhost").unwrap()).await.unwrap();
    soon(async {
        while first.stats().frame_rx.new_token == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let initials: Vec<_> = (0..400).map(|_| harness.initial()).collect();
    let forger = tokio::net::UdpSocket::bind("127.0.0.9:0").await.unwrap();
    let started = harness.clock.mono();
    for initial in &initials {
        forger.send_to(initial, harness.addr()).await.unwrap();
    }
    harness.metric_becomes("zrc_relay_guard_level", 2).await;
    let second = soon(endpoint.connect_with(config, harness.addr(), "localhost").unwrap()).await.unwrap();
    assert_eq!(second.close_reason(), None);
    soon(async {
        while harness.metric(&Harness::ignored("flood")) < 300 {
            // The kernel may have had no room for all.
            for initial in &initials[300..310] {
                forger.send_to(initial, harness.addr()).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let took = (harness.clock.mono() - started).as_secs_f64();
    let mut answered = 0;
    while forger.try_recv(&mut [0; 2000]).is_ok() {
        answered += 1;
    }
    // Ten handshakes of a few packets each, and Retries: one burst, and so many a second.
    let most = f64::from(PER_SECOND) * (1.0 + took) + 4.0 * 11.0;
    assert!(f64::from(answered) <= most, "{answered} packets in {took} s");
    assert_eq!(harness.metric("zrc_relay_guard_raised_total{level=\"silence\"}"), 1);
    // A client that was never here asks again until there is room: soon, for the flood is over.
    harness.joined_pair(&harness.pair()).await;
    harness.metric_becomes("zrc_relay_guard_level", 0).await;
}

#[tokio::test]
async fn r6_3_a_token_of_one_shard_is_good_on_another() {
    const SHARDS: u8 = 4;
    let harness = Harness::with(|config| {
        config.shards = NonZeroU8::new(SHARDS);
        config.guard.retry_above = 0;
    });
    let endpoint = Endpoint::client(harness.local()).unwrap();
    let mut config = harness.client_config();
    for shard in 0..SHARDS {
        config.initial_dst_cid_provider(Arc::new(move || {
            let mut id = [0; 12];
            getrandom::fill(&mut id).unwrap();
            id[0] = shard;
            ConnectionId::new(&id)
        }));
        let connecting = endpoint.connect_with(config.clone(), harness.addr(), "localhost").unwrap();
        let connection = soon(connecting).await.unwrap();
        soon(async {
            while connection.stats().frame_rx.new_token == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let on_shard = format!("zrc_relay_shard_connections{{shard=\"{shard}\"}}");
        harness.metric_becomes(&on_shard, 1).await;
        connection.close(VarInt::from_u32(0), b"");
    }
    assert_eq!(harness.metric("zrc_relay_handshakes_retried_total"), 1, "the first time alone");
}

/// What comes back for these datagrams to a socket that never says anything else, until all is quiet.
async fn reply_bytes(
    what: &str,
    harness: &Harness,
    datagrams: &[Vec<u8>],
    answered: bool,
    quiet: Duration,
) -> (usize, usize) {
    let socket = tokio::net::UdpSocket::bind("127.0.0.7:0").await.unwrap();
    socket.connect(harness.addr()).await.unwrap();
    let (mut sent, mut received) = (0, 0);
    for datagram in datagrams {
        sent += socket.send(datagram).await.unwrap();
    }
    let mut buf = [0; 2000];
    let mut sizes = Vec::new();
    loop {
        // Where an answer must come, it comes, however late.
        let patience = if answered && sizes.is_empty() { PATIENCE } else { quiet };
        let Ok(len) = timeout(patience, socket.recv(&mut buf)).await else { break };
        let len = len.unwrap();
        received += len;
        sizes.push(len);
        assert!(received <= 3 * sent, "{what}: {received} bytes for {sent}, {sizes:?}");
    }
    (sent, received)
}

/// A plain socket counts, for everything that an address without a proof can send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r6_3_an_unproven_address_never_gets_more_than_three_times_what_it_sent() {
    let normal = Harness::start();
    let retrying = Harness::with(|config| config.guard.retry_above = 0);
    let full = Harness::with(|config| config.max_unauthenticated = 1);
    let _waiting = full.connect().await;
    let initial = normal.initial();
    let versioned = |version: u32, len: usize| {
        let mut datagram = initial.clone();
        datagram[1..5].copy_from_slice(&version.to_be_bytes());
        datagram.resize(len, 0);
        datagram
    };
    let short_id = {
        let mut datagram = vec![0xc3, 0, 0, 0, 1, 4, 1, 2, 3, 4, 0, 0];
        datagram.resize(1200, 7);
        datagram
    };
    // A short header and a connection ID of the relay's making: of another time, so it is answered by a reset.
    let stale = |len: usize| {
        let mut datagram = vec![0x40, 0];
        datagram.resize(len, 0x5a);
        datagram
    };
    let probe = |len: usize| {
        let mut datagram = vec![0x21, 0];
        datagram.resize(len, 0x5a);
        datagram
    };
    let long = Duration::from_secs(4);
    let moment = Duration::from_millis(500);
    let cases = [
        // Before the place is given back.
        ("no place", &full, vec![full.initial()], moment, 20..=400),
        // The whole of the relay's patience: its first flight is sent again and again. quinn would send 3738 bytes.
        ("an Initial", &normal, vec![normal.initial()], long, 1..=3600),
        ("the same, again and again", &normal, vec![initial.clone(); 3], long, 1..=3 * 3600),
        ("several at once", &normal, (0..10).map(|_| normal.initial()).collect(), long, 1..=36_000),
        ("a Retry", &retrying, vec![retrying.initial()], moment, 50..=400),
        ("an unknown version", &normal, vec![versioned(0x0a0a_0a0a, 1200)], moment, 20..=100),
        ("the same, too short", &normal, vec![versioned(0x0a0a_0a0a, 1199)], moment, 0..=0),
        ("a list of versions", &normal, vec![versioned(0, 1200)], moment, 0..=0),
        ("too short an Initial", &normal, vec![initial[..1199].to_vec()], moment, 0..=0),
        ("too short a connection ID", &normal, vec![short_id], moment, 0..=0),
        ("a stale connection", &normal, vec![stale(1200)], moment, 21..=1199),
        ("the same, tiny", &normal, vec![stale(21)], moment, 0..=0),
        ("probes of nobody's channel", &normal, (8..40).map(probe).collect(), moment, 0..=0),
    ];
    for (what, harness, datagrams, quiet, expected) in cases {
        let (sent, received) = reply_bytes(what, harness, &datagrams, *expected.start() > 0, quiet).await;
        assert!(expected.contains(&received), "{what}: {received} bytes for {sent}");
    }
    let withheld = "zrc_relay_guard_withheld_datagrams_total{reason=\"unproven\"}";
    assert!(normal.metric(withheld) > 0 && retrying.metric(withheld) == 0);
    // Many stale packets earn few resets.
    let (_, received) = reply_bytes("stale", &normal, &vec![stale(60); 200], false, moment).await;
    assert!(received <= 20 * 60, "{received}");
}

/// quinn answers the first packet from each address with a whole datagram, whatever came.
#[tokio::test]
async fn r6_3_a_connection_that_moves_all_the_time_is_closed_with_a_token_and_without() {
    let harness = Harness::start();
    let (device, mut peer) = harness.joined_pair(&harness.pair()).await;
    let moved = "zrc_relay_security_events_total{event=\"amplification\"}";
    for round in 0..2_u64 {
        // It has 3 s for its token.
        let stranger = harness.connect().await;
        let (endpoint, connection) = match round {
            0 => (&device.control.endpoint, device.connection()),
            _ => (&stranger.endpoint, &stranger.connection),
        };
        let moving = async {
            loop {
                endpoint.rebind(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
                if connection.send_datagram_wait(Bytes::from_static(b"here")).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let closed = "zrc_relay_connections_closed_total{code=\"RATE_LIMITED\"}";
        // What it hears of that depends on where it is then: the close goes to where the relay saw it last.
        tokio::select! {
            () = moving => {}
            () = harness.metric_becomes(closed, round + 1) => {}
        }
        harness.metric_becomes(closed, round + 1).await;
        harness.metric_becomes(moved, round + 1).await;
    }
    // The other side is still there, and so is the allocation.
    peer.until_present(false).await;
}
