//! Callers who break the rules: each ends with its code, within bounds, and the neighbours do not notice.

use super::*;
use quinn::VarInt;

/// A pair whose datagrams must keep crossing while something bad happens.
struct Neighbours {
    harness_pair: (Joined, Joined),
}

impl Neighbours {
    async fn of(harness: &Harness) -> Self {
        Self { harness_pair: harness.joined_pair(&harness.pair()).await }
    }

    async fn are_undisturbed(&self) {
        let (device, peer) = &self.harness_pair;
        device.send_datagram(&b"ping"[..]);
        assert_eq!(peer.datagram().await, &b"ping"[..]);
        peer.send_datagram(&b"pong"[..]);
        assert_eq!(device.datagram().await, &b"pong"[..]);
    }
}

#[tokio::test]
async fn malformed_first_frames() {
    let harness = Harness::start();
    let neighbours = Neighbours::of(&harness).await;
    let frames: &[(&str, &[u8])] = &[
        ("4 GiB", &[0xff; 4]),
        ("one above the limit", &4097_u32.to_be_bytes()),
        ("empty", &[0, 0, 0, 0]),
        ("junk", b"\0\0\0\x04\xff\xff\xff\xff"),
        ("unknown message", b"\0\0\0\x02\xfa\x06"),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n"),
        ("Ping before Hello", &ClientMessage::Ping(1).to_frame()),
        ("Release before Hello", &ClientMessage::Release.to_frame()),
    ];
    for (what, frame) in frames {
        let control = harness.connect().await.begin(frame).await;
        assert_eq!(control.close_code().await, CloseCode::ProtocolError, "{what}");
    }
    let mut control = harness.connect().await.begin(b"\0\0\x01\0half a fra").await;
    control.send.finish().unwrap();
    assert_eq!(control.close_code().await, CloseCode::ProtocolError, "truncated");
    let mut control = harness.connect().await.begin(b"\0\0").await;
    control.send.reset(VarInt::from_u32(3)).unwrap();
    assert_eq!(control.close_code().await, CloseCode::ProtocolError, "reset");
    neighbours.are_undisturbed().await;
    harness.metric_becomes("zrc_relay_connections", 2).await;
}

#[tokio::test]
async fn misplaced_frames_after_hello() {
    let harness = Harness::start();
    let neighbours = Neighbours::of(&harness).await;
    let pair = harness.pair();
    for twice in [true, false] {
        let raw = harness.connect().await;
        let hello = ClientMessage::Hello(raw.hello(&pair, Role::Device));
        let mut joined = raw.join(&pair, Role::Device).await.unwrap();
        if twice {
            joined.control.say(&hello).await;
        } else {
            let proof = Bytes::from_static(&[1; 64]);
            joined.control.say(&ClientMessage::Prove(crate::wire::control::Prove { proof })).await;
        }
        assert_eq!(joined.control.close_code().await, CloseCode::ProtocolError);
    }
    let mut joined = harness.join(&pair, Role::Device).await;
    soon(joined.control.send.write_all(&65537_u32.to_be_bytes())).await.unwrap();
    assert_eq!(joined.control.close_code().await, CloseCode::ProtocolError);
    neighbours.are_undisturbed().await;
}

#[tokio::test]
async fn silence_ends_after_three_seconds() {
    let harness = Harness::start();
    let neighbours = Neighbours::of(&harness).await;
    let pair = harness.pair();
    let started = harness.clock.mono();
    // Nothing at all; half a header; Hello without a proof and then nothing.
    let silent = harness.connect().await;
    let half = harness.connect().await.begin(b"\0\0").await;
    let raw = harness.connect().await;
    let hello = Hello { proof: None, ..raw.hello(&pair, Role::Device) };
    let unproven = raw.begin(&ClientMessage::Hello(hello).to_frame()).await;
    for connection in [&silent.connection, &half.connection, &unproven.connection] {
        assert_eq!(close_code(connection).await, CloseCode::AuthTimeout);
    }
    let took = harness.clock.mono() - started;
    assert!(took > Duration::from_millis(2900), "{took:?}");
    assert_eq!(harness.metric("zrc_relay_refused_total{code=\"AUTH_TIMEOUT\"}"), 3);
    assert_eq!(harness.metric("zrc_relay_allocations"), 1, "the neighbours'");
    neighbours.are_undisturbed().await;
}

#[tokio::test]
async fn before_a_token_there_is_one_stream_and_a_small_window() {
    let harness = Harness::start();
    let raw = harness.connect().await;
    let (mut send, _recv) = soon(raw.connection.open_bi()).await.unwrap();
    let second = timeout(Duration::from_millis(300), raw.connection.open_bi()).await;
    assert!(second.is_err(), "a second stream was allowed");
    let uni = timeout(Duration::from_millis(300), raw.connection.open_uni()).await;
    assert!(uni.is_err(), "a unidirectional stream was allowed");
    // A frame header that never completes lets no more than the window in.
    let mut bytes = 0;
    send.write_all(&4096_u32.to_be_bytes()).await.unwrap();
    while let Ok(Ok(n)) = timeout(Duration::from_millis(300), send.write(&[0; 4096])).await {
        bytes += n;
        if bytes > 64 * 1024 {
            panic!("more than 64 KiB were taken from a caller without a token");
        }
    }
}

#[tokio::test]
async fn datagrams_before_a_token_are_dropped_and_counted() {
    let harness = Harness::start();
    let raw = harness.connect().await;
    for _ in 0..100 {
        raw.connection.send_datagram(Bytes::from_static(&[1; 1000])).unwrap();
    }
    harness.metric_reaches("zrc_relay_dropped_datagrams_total{reason=\"unauthenticated\"}", 90).await;
    // They do not stand in the way of a Hello, nor are they counted again as lost.
    let pair = harness.pair();
    let _device = raw.join(&pair, Role::Device).await.unwrap();
    assert_eq!(harness.metric("zrc_relay_dropped_datagrams_total{reason=\"no_peer\"}"), 0);
}

#[tokio::test]
async fn a_flood_of_datagrams_before_a_token_ends_the_connection() {
    let harness = Harness::start();
    let neighbours = Neighbours::of(&harness).await;
    let raw = harness.connect().await;
    let flooding = raw.connection.clone();
    let flood = tokio::spawn(async move { while flooding.send_datagram_wait(Bytes::new()).await.is_ok() {} });
    assert_eq!(close_code(&raw.connection).await, CloseCode::ProtocolError);
    soon(flood).await.unwrap();
    harness.metric_becomes("zrc_relay_connections", 2).await;
    assert_eq!(
        harness.metric("zrc_relay_dropped_datagrams_total{reason=\"unauthenticated\"}"),
        crate::relay::session::MAX_EARLY_DATAGRAMS + 1
    );
    neighbours.are_undisturbed().await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_closed_and_costs_little() {
    let harness = Harness::start();
    let neighbours = Neighbours::of(&harness).await;
    // A control stream on which the relay may write 300 bytes and no more.
    let raw = harness
        .connect_with(|t| {
            t.stream_receive_window(VarInt::from_u32(300));
        })
        .await;
    let pair = harness.pair();
    let mut joined = raw.join(&pair, Role::Device).await.unwrap();
    let flood: Vec<u8> =
        (0..200).flat_map(|n| ClientMessage::Ping(u64::MAX - n).to_frame().to_vec()).collect();
    soon(joined.control.send.write_all(&flood)).await.unwrap();
    neighbours.are_undisturbed().await;
    assert_eq!(joined.control.close_code().await, CloseCode::ProtocolError);
    harness.metric_becomes("zrc_relay_connections", 2).await;
    assert_eq!(harness.metric("zrc_relay_connections_closed_total{code=\"PROTOCOL_ERROR\"}"), 1);
    neighbours.are_undisturbed().await;
}

/// It is the client's fault, so it is not counted as the relay's.
#[tokio::test]
async fn a_client_that_stops_the_control_stream_is_closed_with_a_code() {
    let harness = Harness::start();
    let neighbours = Neighbours::of(&harness).await;
    let pair = harness.pair();
    let mut joined = harness.join(&pair, Role::Device).await;
    joined.control.recv.stop(VarInt::from_u32(1)).unwrap();
    joined.control.say(&ClientMessage::Ping(1)).await;
    assert_eq!(joined.control.close_code().await, CloseCode::ProtocolError);

    // The same before the first message, with a proof and without.
    for proven in [true, false] {
        let raw = harness.connect().await;
        let mut hello = raw.hello(&pair, Role::Device);
        hello.proof = hello.proof.filter(|_| proven);
        let (mut send, mut recv) = soon(raw.connection.open_bi()).await.unwrap();
        recv.stop(VarInt::from_u32(1)).unwrap();
        send.write_all(&ClientMessage::Hello(hello).to_frame()).await.unwrap();
        assert_eq!(close_code(&raw.connection).await, CloseCode::ProtocolError, "proven: {proven}");
    }
    harness.metric_becomes("zrc_relay_connections", 2).await;
    assert_eq!(harness.metric("zrc_relay_connections_closed_total{code=\"PROTOCOL_ERROR\"}"), 3);
    neighbours.are_undisturbed().await;
}

#[tokio::test]
async fn hello_may_come_in_single_bytes_and_with_more_behind_it() {
    let harness = Harness::start();
    let pair = harness.pair();
    let raw = harness.connect().await;
    let hello = ClientMessage::Hello(raw.hello(&pair, Role::Device)).to_frame();
    let mut control = raw.begin(b"").await;
    for byte in hello {
        soon(control.send.write_all(&[byte])).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert!(matches!(control.next().await, Some(RelayMessage::Allocated(_))));

    // A frame above the limit before a token, in the same write as Hello: the limit is the one behind Hello.
    let raw = harness.connect().await;
    let token = Bytes::from(vec![0; 10_000]);
    let bytes = [
        ClientMessage::Hello(raw.hello(&pair, Role::Peer)).to_frame(),
        ClientMessage::Ping(7).to_frame(),
        ClientMessage::Refresh(crate::wire::control::Refresh { token }).to_frame(),
    ]
    .concat();
    let mut control = raw.begin(&bytes).await;
    control.send.finish().unwrap();
    assert!(matches!(control.next().await, Some(RelayMessage::Allocated(_))));
    let mut said = Vec::new();
    while let Some(message) = control.next().await {
        said.push(message);
    }
    assert!(said.iter().any(|m| matches!(m, RelayMessage::Pong(pong) if pong.value == 7)), "{said:?}");
    assert_eq!(control.close_code().await, CloseCode::TokenInvalid);

    // A client may finish its side at once and go on with datagrams.
    let raw = harness.connect().await;
    let mut control = raw.begin(b"").await;
    let hello = Raw { endpoint: control.endpoint.clone(), connection: control.connection.clone() };
    let hello = ClientMessage::Hello(hello.hello(&pair, Role::Peer)).to_frame();
    soon(control.send.write_all(&hello)).await.unwrap();
    control.send.finish().unwrap();
    assert!(matches!(control.next().await, Some(RelayMessage::Allocated(_))));
    control.connection.send_datagram(Bytes::from_static(b"still here")).unwrap();
    harness.metric_becomes("zrc_relay_forwarded_datagrams_total{from=\"peer\"}", 1).await;
}

#[tokio::test]
async fn a_flood_of_control_messages_is_slowed() {
    let harness = Harness::start();
    let mut joined = harness.join(&harness.pair(), Role::Device).await;
    let started = harness.clock.mono();
    for n in 0..42 {
        joined.control.say(&ClientMessage::Ping(n)).await;
    }
    for n in 0..42 {
        let pong =
            joined.until(|m| if let RelayMessage::Pong(pong) = m { Some(pong.value) } else { None }).await;
        assert_eq!(pong, n);
    }
    assert!(harness.clock.mono() - started > Duration::from_millis(900), "42 Pings were answered at once");
}

#[tokio::test]
async fn too_many_without_a_token_are_refused_before_a_handshake() {
    let harness = Harness::with(|config| config.max_unauthenticated = 2);
    let pair = harness.pair();
    // Those who have been let in take no place.
    let _pair = harness.joined_pair(&pair).await;
    let first = harness.connect().await;
    let _second = harness.connect().await;
    match harness.try_connect(|_| {}).await.err() {
        Some(ConnectionError::ConnectionClosed(close)) => {
            assert_eq!(close.error_code, quinn::TransportErrorCode::CONNECTION_REFUSED);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(harness.metric("zrc_relay_handshakes_refused_total"), 1);
    first.connection.close(VarInt::from_u32(0), b"");
    harness.metric_becomes("zrc_relay_connections", 3).await;
    harness.join(&pair, Role::Device).await;
}

/// More datagrams than the receiver's path carries: its send buffer is never empty by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_messages_get_through_a_flood_of_datagrams() {
    let harness = Harness::start();
    let pair = harness.pair();
    let mut device = harness.join(&pair, Role::Device).await;
    let far = harness.connect_far(Duration::from_millis(25), Arc::new(AtomicUsize::new(2000))).await;
    let mut peer = far.join(&pair, Role::Peer).await.unwrap();
    // As large as the path takes, once that is known: a packet with one of them has no room for anything else.
    let largest = device.largest_datagram().await;
    let flooding = device.connection().clone();
    let flood = tokio::spawn(async move {
        let payload = Bytes::from(vec![3; largest]);
        while flooding.send_datagram_wait(payload.clone()).await.is_ok() {}
    });
    let draining = peer.connection().clone();
    let drain = tokio::spawn(async move { while draining.read_datagram().await.is_ok() {} });
    harness.metric_reaches("zrc_relay_dropped_datagrams_total{reason=\"buffer_full\"}", 1000).await;
    // Each is awaited, however slow the machine; without room made for them they would never come.
    for n in 0..3 {
        peer.control.say(&ClientMessage::Ping(n)).await;
        let pong =
            peer.until(|m| if let RelayMessage::Pong(pong) = m { Some(pong.value) } else { None }).await;
        assert_eq!(pong, n);
    }
    device.connection().close(VarInt::from_u32(0), b"");
    soon(flood).await.unwrap();
    drain.abort();
}

#[tokio::test]
async fn other_protocols_are_refused_in_the_handshake() {
    let harness = Harness::start();
    let mut tls =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(harness.roots.clone())
            .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let quic = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connecting =
        endpoint.connect_with(quinn::ClientConfig::new(Arc::new(quic)), harness.addr(), "localhost").unwrap();
    assert!(soon(connecting).await.is_err());
    harness.metric_becomes("zrc_relay_handshakes_failed_total", 1).await;
}

#[tokio::test]
async fn junk_on_the_port_is_ignored() {
    let harness = Harness::start();
    let neighbours = Neighbours::of(&harness).await;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for len in [0, 1, 7, 20, 100, 1200, 1400, 9000] {
        for first in [0x00_u8, 0x20, 0x21, 0x40, 0x80, 0xc0, 0xff] {
            let mut packet = vec![first; len];
            packet.iter_mut().skip(1).enumerate().for_each(|(n, byte)| *byte = n as u8);
            socket.send_to(&packet, harness.addr()).unwrap();
        }
    }
    neighbours.are_undisturbed().await;
}

/// A decision does not wait for a client that reads nothing.
#[tokio::test]
async fn a_client_that_never_reads_is_killed_at_once() {
    let harness = Harness::start();
    let pair = harness.pair();
    let raw = harness
        .connect_with(|t| {
            t.stream_receive_window(VarInt::from_u32(300));
        })
        .await;
    let mut stuck = raw.join(&pair, Role::Device).await.unwrap();
    let flood: Vec<u8> =
        (0..32).flat_map(|n| ClientMessage::Ping(u64::MAX - n).to_frame().to_vec()).collect();
    soon(stuck.control.send.write_all(&flood)).await.unwrap();
    // The relay has taken the flood, and is stuck in answering it: a Ping behind it is not read any more.
    let handle = harness.server.allocations()[0].handle;
    soon(async {
        while stuck.connection().stats().frame_rx.stream_data_blocked == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(harness.server.kill(handle, "enough"));
    assert_eq!(stuck.control.close_code().await, CloseCode::Killed);
}

/// While the newest connection of a side is told why it is closed, the one before it has the traffic already.
#[tokio::test]
async fn traffic_goes_past_a_connection_that_is_being_closed() {
    let harness = Harness::start();
    let pair = harness.pair();
    let (device, older) = harness.joined_pair(&pair).await;
    let mut newest = harness.join(&pair, Role::Peer).await;
    newest.control.say(&ClientMessage::Prove(crate::wire::control::Prove { proof: Bytes::new() })).await;
    let refused = newest.until(|m| if let RelayMessage::Refused(r) = m { Some(r.code) } else { None }).await;
    assert_eq!(refused, u32::from(CloseCode::ProtocolError.number()));
    device.send_datagram(&b"past it"[..]);
    assert_eq!(older.datagram().await, &b"past it"[..]);
}

/// A caller whose handshake never ends: the relay's answers do not reach it.
#[tokio::test]
async fn a_handshake_that_does_not_end_gives_its_place_back() {
    let harness = Harness::with(|config| config.max_unauthenticated = 1);
    let unanswered = far_away(harness.addr(), Duration::ZERO, Arc::new(AtomicUsize::new(0))).await;
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connecting = endpoint.connect_with(harness.client_config(), unanswered, "localhost").unwrap();
    harness.metric_becomes("zrc_relay_handshakes_failed_total", 1).await;
    assert_eq!(harness.metric("zrc_relay_connections_opened_total"), 0);
    drop((connecting, endpoint));
    harness.join(&harness.pair(), Role::Device).await;
}

/// Callers whose addresses are made up: no answer reaches them.
#[tokio::test]
async fn made_up_addresses_do_not_take_all_places() {
    let harness = Harness::with(|config| config.max_unauthenticated = 4);
    let mut callers = Vec::new();
    for _ in 0..12 {
        let unanswered = far_away(harness.addr(), Duration::ZERO, Arc::new(AtomicUsize::new(0))).await;
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connecting = endpoint.connect_with(harness.client_config(), unanswered, "localhost").unwrap();
        callers.push((connecting, endpoint));
    }
    harness.metric_reaches("zrc_relay_handshakes_retried_total", 10).await;
    // None of them has given its place back yet, and whoever can be answered is let in all the same.
    let _pair = harness.joined_pair(&harness.pair()).await;
    assert_eq!(harness.metric("zrc_relay_handshakes_failed_total"), 0);
    assert_eq!(harness.metric("zrc_relay_handshakes_refused_total"), 0);
}

/// All streams that a client may have, each as full as it may be, and nobody reads them.
#[tokio::test]
async fn full_streams_are_bounded_and_leave_room_for_the_control_stream() {
    let harness = Harness::start();
    let (mut device, peer) = harness.joined_pair(&harness.pair()).await;
    // One that uses streams may have more of them.
    for _ in 0..crate::relay::tls::FIRST_STREAMS_PER_KIND {
        let mut bi = soon(device.connection().open_bi()).await.unwrap();
        let mut uni = soon(device.connection().open_uni()).await.unwrap();
        for stream in [&mut bi.0, &mut uni] {
            soon(stream.write_all(b"x")).await.unwrap();
            stream.finish().unwrap();
        }
        soon(peer.connection().accept_bi()).await.unwrap();
        soon(peer.connection().accept_uni()).await.unwrap();
    }
    // And from here on nobody reads them.
    drop(peer);
    device.until_present(false).await;
    let mut streams = Vec::new();
    let max = crate::relay::tls::MAX_STREAMS_PER_KIND;
    // quinn says that streams may follow those that ended when an eighth of all have.
    for _ in 0..max - max / 8 {
        streams.push(soon(device.connection().open_uni()).await.unwrap());
        streams.push(soon(device.connection().open_bi()).await.unwrap().0);
    }
    // And as many of the others as it is allowed.
    let patience = Duration::from_millis(200);
    let (mut uni, mut bi) = (streams.len() / 2, streams.len() / 2);
    while let Ok(more) = timeout(patience, device.connection().open_uni()).await {
        streams.push(more.unwrap());
        uni += 1;
        assert!(uni <= max as usize, "one stream too many");
    }
    while let Ok(more) = timeout(patience, device.connection().open_bi()).await {
        streams.push(more.unwrap().0);
        bi += 1;
        assert!(bi <= max as usize, "one stream too many");
    }
    let mut taken = 0;
    for stream in &mut streams {
        while let Ok(Ok(bytes)) = timeout(Duration::from_millis(50), stream.write(&[7; 65536])).await {
            taken += bytes;
        }
    }
    assert!((8 << 20..20 << 20).contains(&taken), "{taken} bytes were taken");
    device.control.say(&ClientMessage::Ping(9)).await;
    let pong = device.until(|m| if let RelayMessage::Pong(pong) = m { Some(pong.value) } else { None }).await;
    assert_eq!(pong, 9);
}
