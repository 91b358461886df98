//! From `Relay::connect` to a session, or to the right error.

use std::time::Duration;

use tokio::{join, time::Instant};

use super::fake::{Fake, Pair, refused, soon};
use crate::{
    client::{ConnectError, Options, Proof, ProtocolError, Relay, Ticket, TicketError, TrustError},
    wire::{
        CloseCode, Role, SpkiPin,
        control::{Allocated, Challenge, ClientMessage, Refused, RelayMessage},
        proof::Binding,
    },
};

#[tokio::test(start_paused = true)]
async fn joins_with_an_exporter_proof_and_tells_what_was_granted() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay_with(|options| options.agent = "tester/1".into());
    let (session, guest) = join!(relay.connect(pair.ticket()), fake.guest());
    let session = session.unwrap();
    let hello = &guest.hello;
    assert_eq!(hello.role, Role::Device);
    assert_eq!(hello.agent, "tester/1");
    assert_eq!(hello.allocation_id.as_ref(), pair.allocation_id.as_bytes());

    let grant = session.grant();
    assert_eq!(grant.allocation_id, pair.allocation_id);
    assert_eq!(grant.relay_addr, Some("192.0.2.1:4433".parse().unwrap()));
    assert_eq!(grant.bandwidth_bytes_per_sec, Some(1_250_000));
    assert_eq!(grant.quota_bytes, None);
    assert_eq!(grant.bytes_used, 7);
    assert_eq!(grant.idle_timeout, Some(Duration::from_secs(30)));
    assert_eq!(grant.keep_alive, None);
    assert_eq!(session.observed_addr(), Some(guest.connection.remote_address()));
    assert!(session.peer_present() && session.is_connected());
    assert!(session.max_datagram_bytes().unwrap() <= 1200);
    assert!(session.end().is_none());
}

#[tokio::test(start_paused = true)]
async fn the_peer_proves_its_own_key() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let ticket = Ticket::peer(pair.token(60), pair.peer.clone()).unwrap();
    let relay = fake.relay();
    let (session, guest) = join!(relay.connect(ticket), fake.guest());
    session.unwrap();
    assert_eq!(guest.hello.role, Role::Peer);
}

#[tokio::test(start_paused = true)]
async fn answers_a_challenge_when_told_to_prove_by_nonce() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay_with(|options| options.proof = Proof::Nonce);
    let served = async {
        let mut guest = fake.hello().await;
        assert_eq!(guest.hello.proof, None);
        guest.say(RelayMessage::Challenge(Challenge { nonce: vec![9; 32].into() })).await;
        let ClientMessage::Prove(prove) = guest.heard().await else { panic!("no Prove") };
        let binding = Binding::Nonce { nonce: [9; 32], spki_sha256: fake.spki.0 };
        assert!(guest.proves(&binding, &prove.proof));
        let allocated = guest.allocated();
        guest.say(RelayMessage::Allocated(allocated)).await;
        guest
    };
    let (session, _guest) = join!(relay.connect(pair.ticket()), served);
    session.unwrap();
}

#[tokio::test(start_paused = true)]
async fn hints_at_the_shard() {
    for _ in 0..4 {
        let pair = Pair::new();
        let fake = Fake::new(&pair);
        let relay = fake.relay();
        let (session, guest) = join!(relay.connect(pair.ticket()), fake.guest());
        session.unwrap();
        let expected = pair.allocation_id.0.iter().fold(0, |all, byte| all ^ byte);
        assert_eq!(guest.first_dcid_byte, expected);
    }
}

#[test]
fn a_ticket_needs_the_right_key() {
    let pair = Pair::new();
    let token = || pair.token(60);
    assert_eq!(Ticket::device(token(), pair.peer.clone()).unwrap_err(), TicketError::NotTheDevice);
    assert_eq!(Ticket::peer(token(), pair.device.clone()).unwrap_err(), TicketError::NotThePeer);
    let ticket = Ticket::peer(token(), pair.peer.clone()).unwrap();
    assert_eq!(ticket.role(), Role::Peer);
    assert_eq!(ticket.allocation_id(), pair.allocation_id);
    assert_eq!(format!("{ticket:?}"), "Ticket { role: Peer, .. }");
}

#[tokio::test(start_paused = true)]
async fn a_token_for_another_relay_is_not_shown_to_this_one() {
    let (pair, other) = (Pair::new(), Pair::new());
    let fake = Fake::new(&pair);
    let error = fake.relay().connect(other.ticket()).await.unwrap_err();
    assert!(matches!(error, ConnectError::WrongRelay { token, .. } if token == other.relay_id));
    fake.nobody_comes_for(Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn every_final_code_is_final_at_once() {
    for code in CloseCode::ALL.iter().copied().filter(|code| !code.is_retryable()) {
        let pair = Pair::new();
        let fake = Fake::new(&pair);
        let started = Instant::now();
        let relay = fake.relay();
        let (result, ()) = join!(relay.connect(pair.ticket()), fake.refuse(refused(code)));
        let error = result.unwrap_err();
        assert_eq!(error.code(), Some(code));
        assert!(!error.is_retryable());
        let ConnectError::Refused(refusal) = error else { panic!("{code}: {error}") };
        assert_eq!(refusal.message, "no");
        assert!(started.elapsed() < Duration::from_secs(3), "{code} took {:?}", started.elapsed());
        fake.nobody_comes_for(Duration::from_secs(60)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_retryable_code_is_tried_again() {
    for code in CloseCode::ALL.iter().copied().filter(|code| code.is_retryable()) {
        let pair = Pair::new();
        let fake = Fake::new(&pair);
        let relay = fake.relay();
        let served = async {
            fake.refuse(refused(code)).await;
            fake.refuse(refused(code)).await;
            fake.guest().await
        };
        let (session, _guest) = join!(relay.connect(pair.ticket()), served);
        assert!(session.is_ok(), "{code}: {}", session.unwrap_err());
    }
}

#[tokio::test(start_paused = true)]
async fn the_code_of_a_bare_close_suffices() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay();
    let served = async {
        fake.hello().await.drop_with(CloseCode::Capacity.number().into());
        fake.hello().await.drop_with(CloseCode::Blocked.number().into());
    };
    let (result, ()) = join!(relay.connect(pair.ticket()), served);
    assert_eq!(result.unwrap_err().code(), Some(CloseCode::Blocked));
}

#[tokio::test(start_paused = true)]
async fn a_code_of_the_future_is_final() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay();
    let (result, ()) = join!(relay.connect(pair.ticket()), async { fake.hello().await.drop_with(0x77) });
    let error = result.unwrap_err();
    assert!(matches!(error, ConnectError::UnknownCode(0x77)) && !error.is_retryable());

    let refused = Refused { code: 0x78, ..Refused::default() };
    let (result, ()) = join!(relay.connect(pair.ticket()), fake.refuse(refused));
    assert!(matches!(result.unwrap_err(), ConnectError::UnknownCode(0x78)));
}

#[tokio::test(start_paused = true)]
async fn gives_up_when_the_time_is_over_with_the_last_reason() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay();
    let mut refusals = 0;
    let served = async {
        loop {
            fake.refuse(refused(CloseCode::Draining)).await;
            refusals += 1;
        }
    };
    let started = Instant::now();
    let error = tokio::select! {
        result = relay.connect(pair.ticket()) => result.unwrap_err(),
        () = served => unreachable!(),
    };
    assert_eq!(error.code(), Some(CloseCode::Draining));
    assert!(started.elapsed() <= Duration::from_secs(10));
    assert!(refusals >= 3, "tried {refusals} times");
}

#[tokio::test(start_paused = true)]
async fn silence_is_a_timeout() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    fake.vanish();
    let started = Instant::now();
    let relay = fake.relay_with(|options| options.connect_timeout = Duration::from_secs(4));
    let error = relay.connect(pair.ticket()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout), "{error:?}");
    assert_eq!(started.elapsed(), Duration::from_secs(4));
}

#[tokio::test(start_paused = true)]
async fn transport_refusals_are_tried_again() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay();
    let served = async {
        soon(fake.endpoint.accept()).await.unwrap().refuse();
        fake.guest().await
    };
    let (session, _guest) = join!(relay.connect(pair.ticket()), served);
    session.unwrap();
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_honoured() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay();
    let served = async {
        fake.refuse(Refused { retry_after_ms: 3000, ..refused(CloseCode::RateLimited) }).await;
        let refused_at = Instant::now();
        let guest = fake.guest().await;
        // The fake waits for its own close, the client does not: hence a little less.
        assert!(refused_at.elapsed() >= Duration::from_millis(2800), "{:?}", refused_at.elapsed());
        guest
    };
    let (session, _guest) = join!(relay.connect(pair.ticket()), served);
    session.unwrap();
}

#[tokio::test(start_paused = true)]
async fn waits_no_longer_than_it_has_time_for() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay();
    let started = Instant::now();
    let refusal = Refused { retry_after_ms: 60_000, ..refused(CloseCode::RateLimited) };
    let (result, ()) = join!(relay.connect(pair.ticket()), fake.refuse(refusal));
    let ConnectError::Refused(refusal) = result.unwrap_err() else { panic!("not refused") };
    assert_eq!(refusal.retry_after, Some(Duration::from_secs(60)));
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn another_key_than_the_pinned_one_is_final() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let mut descriptor = fake.descriptor();
    descriptor.spki = Some(SpkiPin([7; 32]));
    let started = Instant::now();
    let relay = Relay::new(descriptor);
    let (result, refused) =
        join!(relay.connect(pair.ticket()), async { soon(fake.endpoint.accept()).await.unwrap().await });
    let error = result.unwrap_err();
    assert!(!error.is_retryable() && refused.is_err());
    let ConnectError::Trust(TrustError::PinMismatch { expected, got }) = error else { panic!("{error:?}") };
    assert_eq!((expected, got), (SpkiPin([7; 32]), fake.spki));
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn the_pin_replaces_the_name() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let mut descriptor = fake.descriptor();
    descriptor.server_name = "another.name".into();
    let relay = Relay::new(descriptor);
    let (session, _guest) = join!(relay.connect(pair.ticket()), fake.guest());
    session.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_a_pin_the_given_ca_and_the_name_count() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let other = Fake::new(&pair);
    let mut descriptor = fake.descriptor();
    descriptor.spki = None;

    let relay = Relay::new(descriptor.clone()).with_ca(fake.pem.as_bytes()).unwrap();
    let (session, _guest) = join!(relay.connect(pair.ticket()), fake.guest());
    session.unwrap();

    let stranger = Relay::new(descriptor.clone()).with_ca(other.pem.as_bytes()).unwrap();
    descriptor.server_name = "another.name".into();
    let misnamed = Relay::new(descriptor).with_ca(fake.pem.as_bytes()).unwrap();
    for relay in [stranger, misnamed] {
        let (result, refused) =
            join!(relay.connect(pair.ticket()), async { soon(fake.endpoint.accept()).await.unwrap().await });
        let error = result.unwrap_err();
        assert!(matches!(error, ConnectError::Trust(TrustError::Certificate(_))), "{error:?}");
        assert!(refused.is_err() && !error.is_retryable());
    }
}

#[tokio::test]
async fn without_pin_and_ca_the_systems_authorities_count() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let mut descriptor = fake.descriptor();
    descriptor.spki = None;
    let relay = Relay::new(descriptor);
    let served = async {
        match soon(fake.endpoint.accept()).await.unwrap().accept() {
            Ok(connecting) => connecting.await.map(drop),
            Err(error) => Err(error),
        }
    };
    tokio::select! {
        // A machine may have no authorities at all; it must not take that for trust.
        result = relay.connect(pair.ticket()) => {
            assert!(matches!(result.unwrap_err(), ConnectError::Trust(_)));
        }
        Ok(()) = served => panic!("trusted a stranger"),
    }
}

#[test]
fn a_ca_file_without_certificates_is_refused() {
    let pair = Pair::new();
    for pem in ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _guard = runtime.enter();
        assert!(matches!(Fake::new(&pair).relay().with_ca(pem.as_bytes()), Err(TrustError::Ca)));
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_speaks_another_protocol_is_no_relay() {
    let pair = Pair::new();
    let fake = Fake::speaking(&pair, b"h3", |_| {});
    let relay = fake.relay();
    let (result, _) =
        join!(relay.connect(pair.ticket()), async { soon(fake.endpoint.accept()).await.unwrap().await });
    let error = result.unwrap_err();
    assert!(matches!(error, ConnectError::Handshake(_)) && !error.is_retryable(), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_relay_without_datagrams_is_refused() {
    let pair = Pair::new();
    let fake = Fake::with(&pair, |transport| {
        transport.datagram_receive_buffer_size(None);
    });
    let relay = fake.relay();
    let served = async {
        let connection = soon(fake.endpoint.accept()).await.unwrap().await.unwrap();
        connection.closed().await
    };
    let (result, _) = join!(relay.connect(pair.ticket()), served);
    assert!(matches!(result.unwrap_err(), ConnectError::Protocol(ProtocolError::NoDatagrams)));
}

/// What a relay may say instead of the right answer, and how it is told.
async fn instead_of_allocated(proof: Proof, say: impl AsyncFnOnce(&mut super::fake::Guest)) -> ProtocolError {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay_with(|options| options.proof = proof);
    let served = async {
        let mut guest = fake.hello().await;
        say(&mut guest).await;
        assert_eq!(guest.closed_with().await, CloseCode::ProtocolError);
    };
    let (result, ()) = join!(relay.connect(pair.ticket()), served);
    let error = result.unwrap_err();
    assert!(!error.is_retryable());
    match error {
        ConnectError::Protocol(error) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_breaks_the_protocol_is_told_so_and_left() {
    let challenge = |len| RelayMessage::Challenge(Challenge { nonce: vec![1; len].into() });
    let error = instead_of_allocated(Proof::Exporter, async |guest| guest.say(challenge(32)).await).await;
    assert_eq!(error, ProtocolError::Unexpected("Challenge"));

    let error = instead_of_allocated(Proof::Nonce, async |guest| guest.say(challenge(31)).await).await;
    assert!(matches!(error, ProtocolError::Content(_)));

    let error = instead_of_allocated(Proof::Nonce, async |guest| {
        guest.say(challenge(32)).await;
        guest.say(challenge(32)).await;
    })
    .await;
    assert_eq!(error, ProtocolError::Unexpected("Challenge"));

    let error = instead_of_allocated(Proof::Nonce, async |guest| {
        let allocated = guest.allocated();
        guest.say(RelayMessage::Allocated(allocated)).await;
    })
    .await;
    assert!(matches!(error, ProtocolError::Unexpected(_)));

    let error = instead_of_allocated(Proof::Exporter, async |guest| {
        let allocated = Allocated { allocation_id: vec![0; 16].into(), ..guest.allocated() };
        guest.say(RelayMessage::Allocated(allocated)).await;
    })
    .await;
    assert!(matches!(error, ProtocolError::Content(_)));

    // A frame of 4 GiB, one of junk, one with a message of the future.
    for frame in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x03\xff\xff\xff", b"\0\0\0\x03\xfa\x06\0"] {
        let error = instead_of_allocated(Proof::Exporter, async |guest| guest.say_bytes(frame).await).await;
        assert!(matches!(error, ProtocolError::Frame(_)), "{error}");
    }

    let error = instead_of_allocated(Proof::Exporter, async |guest| guest.finish().await).await;
    assert_eq!(error, ProtocolError::ControlStreamEnded);
}

#[tokio::test(start_paused = true)]
async fn texts_of_a_refusal_are_made_harmless() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay();
    let message = format!("\u{1b}[2J\n{}", "é".repeat(1000));
    let refused = Refused { message, ..refused(CloseCode::Blocked) };
    let (result, ()) = join!(relay.connect(pair.ticket()), fake.refuse(refused));
    let ConnectError::Refused(refusal) = result.unwrap_err() else { panic!("not refused") };
    assert_eq!(refusal.message.chars().count(), 256);
    assert!(!refusal.message.chars().any(char::is_control));
}

#[tokio::test(start_paused = true)]
async fn numbers_that_make_no_sense_are_survived() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay();
    let served = async {
        let mut guest = fake.hello().await;
        let allocated = Allocated {
            relay_addr: "nowhere".into(),
            relay_port: 1 << 20,
            expires_at: u64::MAX,
            bandwidth_limit: Some(0),
            observed_addr: "?".into(),
            max_datagram_bytes: u32::MAX,
            keepalive_ms: u32::MAX,
            ..guest.allocated()
        };
        guest.say(RelayMessage::Allocated(allocated)).await;
        guest
    };
    let (session, guest) = join!(relay.connect(pair.ticket()), served);
    let session = session.unwrap();
    assert_eq!(session.grant().relay_addr, None);
    assert_eq!(session.observed_addr(), None);
    // What the path carries bounds what the relay claims.
    assert!(session.max_datagram_bytes().unwrap() < 1500);
    session.send_datagram(vec![1; 1100].into()).unwrap();
    assert_eq!(soon(guest.connection.read_datagram()).await.unwrap().len(), 1100);
}

#[tokio::test(start_paused = true)]
async fn names_are_resolved_and_a_name_without_an_address_is_tried_again() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let mut descriptor = fake.descriptor();
    descriptor.addr = "localhost".into();
    // It may stand for ::1 as well, where nobody answers.
    let relay = Relay::new(descriptor.clone());
    let (session, _guest) = join!(relay.connect(pair.ticket()), fake.guest());
    session.unwrap();

    descriptor.addr = "name.invalid".into();
    let options = Options { connect_timeout: Duration::from_secs(1), ..Options::default() };
    let relay = Relay::new(descriptor).with_options(options);
    let error = relay.connect(pair.ticket()).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert!(matches!(error, ConnectError::Resolve { .. } | ConnectError::Timeout), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_connected_to_is_said_at_once() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let mut descriptor = fake.descriptor();
    descriptor.server_name = "not a name".into();
    let error = Relay::new(descriptor).connect(pair.ticket()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unusable(_)) && !error.is_retryable());

    let relay = fake.relay_with(|options| {
        options.local_addr = Some("192.0.2.77:0".parse().unwrap());
        options.connect_timeout = Duration::from_secs(1);
    });
    let error = relay.connect(pair.ticket()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Bind(_)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_local_address_can_be_chosen() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay_with(|options| options.local_addr = Some("127.0.0.7:0".parse().unwrap()));
    let (session, guest) = join!(relay.connect(pair.ticket()), fake.guest());
    session.unwrap();
    assert_eq!(guest.connection.remote_address().ip().to_string(), "127.0.0.7");
}

#[tokio::test(start_paused = true)]
async fn a_local_port_of_ones_own_is_kept_over_reconnects() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let relay = fake.relay_with(|options| options.local_addr = Some(port));
    let served = async {
        soon(fake.endpoint.accept()).await.unwrap().refuse();
        fake.guest().await
    };
    let (session, guest) = join!(relay.connect(pair.ticket()), served);
    let _session = session.unwrap();
    assert_eq!(guest.connection.remote_address(), port);
    guest.drop_with(CloseCode::Draining.number().into());
    assert_eq!(fake.guest().await.connection.remote_address(), port);
}

#[tokio::test(start_paused = true)]
async fn extreme_options_are_survived() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    for extreme in [0, u32::MAX] {
        let time = if extreme == 0 { Duration::ZERO } else { Duration::MAX };
        let relay = fake.relay_with(|options| {
            options.connect_timeout = Duration::MAX;
            options.backoff_initial = time;
            options.backoff_max = Duration::ZERO;
            options.keep_alive = time;
            options.max_streams = extreme;
            options.stream_window_bytes = extreme;
            options.datagram_send_buffer_bytes = usize::try_from(extreme).unwrap();
            options.datagram_receive_buffer_bytes = usize::try_from(extreme).unwrap();
        });
        let served = async {
            fake.refuse(refused(CloseCode::Draining)).await;
            fake.guest().await
        };
        let (session, _guest) = join!(relay.connect(pair.ticket()), served);
        session.unwrap();
    }
    let relay = fake.relay_with(|options| options.connect_timeout = Duration::ZERO);
    assert!(matches!(relay.connect(pair.ticket()).await, Err(ConnectError::Timeout)));
}

/// Sessions and their futures go wherever tasks go.
#[test]
fn everything_can_be_sent_between_threads() {
    fn check<T: Send + Sync + 'static>() {}
    check::<Relay>();
    check::<crate::client::Session>();
    check::<ConnectError>();
    fn check_future(future: impl Future + Send) {
        drop(future);
    }
    let pair = Pair::new();
    let relay = Relay::new(
        serde_json::from_str(&format!(
            r#"{{"addr":"::1","port":1,"server_name":"x","relay_id":"{}","region":null}}"#,
            pair.relay_id
        ))
        .unwrap(),
    );
    check_future(relay.connect(pair.ticket()));
    check_future(async {
        let session = relay.connect(pair.ticket()).await.unwrap();
        let _ = session.refresh(pair.token(1)).await;
        let _ = session.recv_datagram().await;
        let _ = session.send_datagram_wait("x".into()).await;
        let _ = session.open_bi().await;
        let _ = session.accept_uni().await;
        let _ = session.release().await;
        session.events().recv().await
    });
}

#[tokio::test(start_paused = true)]
async fn giving_up_leaves_nothing_behind() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay();
    let guest = tokio::select! {
        _ = relay.connect(pair.ticket()) => panic!("nobody let it in"),
        guest = fake.hello() => guest,
    };
    // The future is gone, and with it the connection.
    guest.closed_with().await;
    fake.nobody_comes_for(Duration::from_secs(60)).await;
}
