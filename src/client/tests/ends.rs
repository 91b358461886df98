//! How a session loses its connection, gets another one, or comes to its end.

use std::time::Duration;

use bytes::Bytes;
use tokio::{join, time::Instant};

use super::{
    fake::{Fake, Guest, Pair, refused, soon},
    traffic::joined,
};
use crate::{
    client::{ConnectError, End, Event, Events, ProtocolError, SendError, Session},
    wire::{
        CloseCode,
        control::{ClientMessage, Refused, RelayMessage},
    },
};

/// The next event that says what became of the connection.
pub async fn connection_event(events: &mut Events) -> Event {
    loop {
        let event = soon(events.recv()).await.expect("no further events");
        if matches!(event, Event::Connected { .. } | Event::Disconnected { .. } | Event::Ended(_)) {
            return event;
        }
    }
}

/// A datagram goes there, another one comes back.
pub async fn works(session: &Session, guest: &Guest) {
    session.send_datagram_wait(Bytes::from_static(b"there")).await.unwrap();
    assert_eq!(soon(guest.connection.read_datagram()).await.unwrap(), "there");
    guest.connection.send_datagram(Bytes::from_static(b"back")).unwrap();
    assert_eq!(soon(session.recv_datagram()).await.unwrap(), "back");
}

#[tokio::test(start_paused = true)]
async fn every_final_code_ends_a_session() {
    for code in CloseCode::ALL.iter().copied().filter(|code| !code.is_retryable()) {
        let (fake, session, guest) = joined(|_| {}).await;
        let mut events = session.events();
        let (end, ()) = join!(soon(session.closed()), guest.end(code));
        assert_eq!(end.code(), Some(code));
        assert!(matches!(&end, End::Relay(refusal) if refusal.message == "because"), "{end:?}");
        assert!(matches!(connection_event(&mut events).await, Event::Ended(end) if end.code() == Some(code)));
        assert!(events.recv().await.is_none());
        // Whoever asks later is told as well.
        assert!(matches!(soon(session.events().recv()).await, Some(Event::Ended(_))));
        assert!(
            matches!(session.send_datagram(Bytes::new()), Err(SendError::Ended(end)) if end.code() == Some(code))
        );
        assert_eq!(soon(session.recv_datagram()).await.unwrap_err().code(), Some(code));
        assert_eq!(soon(session.accept_bi()).await.unwrap_err().code(), Some(code));
        assert_eq!(soon(session.accept_uni()).await.unwrap_err().code(), Some(code));
        assert_eq!(soon(session.open_bi()).await.unwrap_err().code(), Some(code));
        assert_eq!(soon(session.open_uni()).await.unwrap_err().code(), Some(code));
        assert_eq!(soon(session.peer_arrived()).await.unwrap_err().code(), Some(code));
        assert!(!session.is_connected() && !session.peer_present());
        assert_eq!(session.max_datagram_bytes(), None);
        fake.nobody_comes_for(Duration::from_secs(60)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_retryable_code_is_followed_by_another_connection() {
    for code in CloseCode::ALL.iter().copied().filter(|code| code.is_retryable()) {
        let (fake, session, guest) = joined(|_| {}).await;
        let mut events = session.events();
        let (send, _recv) = session.open_bi().await.unwrap();
        guest.end(code).await;
        assert!(matches!(connection_event(&mut events).await, Event::Disconnected { .. }), "{code}");
        assert!(matches!(session.send_datagram(Bytes::new()), Err(SendError::NotConnected)));
        assert!(!session.is_connected() && !session.peer_present());
        let guest = fake.guest().await;
        assert!(
            matches!(connection_event(&mut events).await, Event::Connected { relay } if relay == fake.addr)
        );
        works(&session, &guest).await;
        // Streams die with their connection.
        assert!(soon(send.stopped()).await.is_err());
        assert_eq!(session.stats().reconnects, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_bare_close_code_counts_like_a_message() {
    let (fake, session, guest) = joined(|_| {}).await;
    guest.drop_with(CloseCode::Unavailable.number().into());
    let guest = fake.guest().await;
    works(&session, &guest).await;
    guest.drop_with(CloseCode::Killed.number().into());
    assert_eq!(soon(session.closed()).await.code(), Some(CloseCode::Killed));
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_connection_goes_on_with_the_next_one() {
    let (fake, session, guest) = joined(|_| {}).await;
    let mut events = session.events();
    guest.drop_with(CloseCode::Internal.number().into());
    assert!(matches!(connection_event(&mut events).await, Event::Disconnected { .. }));
    let (opened, sent, arrived, guest) = join!(
        session.open_uni(),
        session.send_datagram_wait(Bytes::from_static(b"late")),
        session.peer_arrived(),
        fake.guest()
    );
    let (mut send, ()) = (opened.unwrap(), sent.unwrap());
    arrived.unwrap();
    send.write_all(b"stream").await.unwrap();
    send.finish().unwrap();
    assert_eq!(soon(guest.connection.read_datagram()).await.unwrap(), "late");
    let mut recv = soon(guest.connection.accept_uni()).await.unwrap();
    assert_eq!(soon(recv.read_to_end(100)).await.unwrap(), b"\0stream");
}

#[tokio::test(start_paused = true)]
async fn what_arrived_before_the_loss_is_still_received() {
    let (_fake, session, guest) = joined(|_| {}).await;
    guest.connection.send_datagram(Bytes::from_static(b"one")).unwrap();
    guest.connection.send_datagram(Bytes::from_static(b"two")).unwrap();
    let mut uni = guest.connection.open_uni().await.unwrap();
    uni.write_all(b"\0three").await.unwrap();
    uni.finish().unwrap();
    soon(uni.stopped()).await.unwrap();
    guest.end(CloseCode::Released).await;
    soon(session.closed()).await;
    assert_eq!(session.recv_datagram().await.unwrap(), "one");
    assert_eq!(session.recv_datagram().await.unwrap(), "two");
    assert!(session.recv_datagram().await.is_err());
    let mut uni = session.accept_uni().await.unwrap();
    assert_eq!(soon(uni.read_to_end(100)).await.unwrap(), b"three");
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_falls_silent_under_traffic_is_left_within_seconds() {
    let (fake, session, guest) = joined(|_| {}).await;
    let mut events = session.events();
    let sending = session.clone();
    tokio::spawn(async move {
        loop {
            let _ = sending.send_datagram(Bytes::from_static(b"x"));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    // It acknowledges packets but answers no pings.
    guest.ignore_pings();
    let started = Instant::now();
    let next = fake.guest().await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    // The old connection was kept until the new one was joined.
    assert!(matches!(connection_event(&mut events).await, Event::Connected { .. }));
    assert_eq!(guest.closed_with().await, CloseCode::Closed);
    soon(next.connection.read_datagram()).await.unwrap();
    assert!(session.is_connected());
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_is_gone_is_tried_again_until_it_is_back() {
    let (fake, session, _guest) = joined(|_| {}).await;
    let mut events = session.events();
    let addr = fake.addr;
    fake.vanish();
    let sending = session.clone();
    tokio::spawn(async move {
        loop {
            let _ = sending.send_datagram(Bytes::from_static(b"x"));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    tokio::time::sleep(Duration::from_secs(100)).await;
    let socket = std::net::UdpSocket::bind(addr).unwrap();
    fake.endpoint.rebind(socket).unwrap();
    let back_at = Instant::now();
    let guest = fake.guest().await;
    // The longest pause and one attempt that had begun before.
    assert!(back_at.elapsed() < Duration::from_secs(36), "{:?}", back_at.elapsed());
    assert!(matches!(connection_event(&mut events).await, Event::Connected { .. }));
    soon(guest.connection.read_datagram()).await.unwrap();

    // A good time later the failures of then do not count any more.
    tokio::time::sleep(Duration::from_secs(11)).await;
    guest.ignore_pings();
    let silent_at = Instant::now();
    fake.guest().await;
    assert!(silent_at.elapsed() < Duration::from_secs(5), "{:?}", silent_at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_while_the_relay_refuses_and_start_over_after_a_good_time() {
    let (fake, session, guest) = joined(|_| {}).await;
    guest.drop_with(CloseCode::Draining.number().into());
    let mut lost_at = Instant::now();
    let mut ceiling = Duration::from_millis(250);
    let mut took = Duration::ZERO;
    for _ in 0..12 {
        let guest = fake.hello().await;
        // The pause, and a moment for the handshake.
        assert!(lost_at.elapsed() <= ceiling + Duration::from_secs(1), "{:?}", lost_at.elapsed());
        took += lost_at.elapsed();
        ceiling = (2 * ceiling).min(Duration::from_secs(30));
        guest.drop_with(CloseCode::Draining.number().into());
        lost_at = Instant::now();
    }
    // Five pauses of up to 30 s are shorter than 5 s together once in a million runs.
    assert!(took > Duration::from_secs(5), "{took:?}");
    let guest = fake.guest().await;
    works(&session, &guest).await;

    tokio::time::sleep(Duration::from_secs(11)).await;
    guest.drop_with(CloseCode::Draining.number().into());
    lost_at = Instant::now();
    fake.hello().await.drop_with(CloseCode::Draining.number().into());
    assert!(lost_at.elapsed() < Duration::from_secs(1), "{:?}", lost_at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_lets_in_and_throws_out_is_not_hammered() {
    let (fake, _session, guest) = joined(|_| {}).await;
    guest.drop_with(CloseCode::Internal.number().into());
    let lost_at = Instant::now();
    for _ in 0..12 {
        let guest = fake.guest().await;
        guest.drop_with(CloseCode::Internal.number().into());
    }
    // Five pauses of up to 30 s are shorter than 5 s together once in a million runs.
    assert!(lost_at.elapsed() > Duration::from_secs(5), "{:?}", lost_at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_final_code_on_the_way_back_ends_the_session() {
    let (fake, session, guest) = joined(|_| {}).await;
    guest.drop_with(CloseCode::Draining.number().into());
    fake.refuse(refused(CloseCode::Unavailable)).await;
    fake.refuse(refused(CloseCode::TokenExpired)).await;
    assert_eq!(soon(session.closed()).await.code(), Some(CloseCode::TokenExpired));
}

#[tokio::test(start_paused = true)]
async fn retry_after_counts_for_sessions_too() {
    let (fake, _session, guest) = joined(|_| {}).await;
    let told_at = Instant::now();
    guest.refuse(Refused { retry_after_ms: 70_000, ..refused(CloseCode::RateLimited) }).await;
    fake.hello().await;
    assert!(told_at.elapsed() >= Duration::from_secs(70));
    assert!(told_at.elapsed() < Duration::from_secs(72));
}

#[tokio::test(start_paused = true)]
async fn without_reconnecting_the_first_loss_is_the_end() {
    let (fake, session, guest) = joined(|options| options.reconnect = false).await;
    guest.end(CloseCode::Draining).await;
    assert_eq!(soon(session.closed()).await.code(), Some(CloseCode::Draining));
    fake.nobody_comes_for(Duration::from_secs(60)).await;

    let (fake, session, _guest) = joined(|options| options.reconnect = false).await;
    fake.vanish();
    let mut ended = false;
    for _ in 0..100 {
        ended = matches!(session.send_datagram(Bytes::new()), Err(SendError::Ended(_)));
        if ended {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(ended);
    assert!(
        matches!(soon(session.closed()).await, End::Failed(error) if matches!(*error, ConnectError::Timeout))
    );
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_relay_is_given_up_when_the_token_has_expired() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    // Expired by this machine's clock; this relay does not mind.
    let ticket = crate::client::Ticket::device(pair.token(-60), pair.device.clone()).unwrap();
    let relay = fake.relay();
    let (session, guest) = join!(relay.connect(ticket), fake.guest());
    let session = session.unwrap();
    fake.vanish();
    guest.drop_with(0x41);
    let sending = session.clone();
    tokio::spawn(async move {
        while sending.end().is_none() {
            let _ = sending.send_datagram(Bytes::from_static(b"x"));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(
        matches!(soon(session.closed()).await, End::Failed(error) if matches!(*error, ConnectError::Timeout))
    );
}

#[tokio::test(start_paused = true)]
async fn junk_in_the_middle_of_a_session_ends_it_with_a_typed_error() {
    for frame in [
        &b"\xff\xff\xff\xff"[..],
        b"\0\x01\0\x01",
        b"\0\0\0\x03\xff\xff\xff",
        b"\0\0\0\0",
        b"\0\0\0\x03\xfa\x06\0",
        // A Channel that was not asked for, a second Allocated.
        &RelayMessage::Channel(Default::default()).to_frame(),
        &RelayMessage::Allocated(Default::default()).to_frame(),
        &RelayMessage::Challenge(Default::default()).to_frame(),
    ] {
        let (fake, session, mut guest) = joined(|_| {}).await;
        guest.say_bytes(frame).await;
        let end = soon(session.closed()).await;
        assert!(
            matches!(&end, End::Failed(error) if matches!(**error, ConnectError::Protocol(_))),
            "{end:?}"
        );
        assert_eq!(end.code(), None);
        assert_eq!(guest.closed_with().await, CloseCode::ProtocolError);
        fake.nobody_comes_for(Duration::from_secs(60)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_control_stream_that_just_ends_is_a_broken_protocol() {
    let (_fake, session, mut guest) = joined(|_| {}).await;
    guest.finish().await;
    let end = soon(session.closed()).await;
    assert!(
        matches!(&end, End::Failed(error)
            if matches!(**error, ConnectError::Protocol(ProtocolError::ControlStreamEnded))),
        "{end:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn pongs_to_pings_never_sent_prove_nothing() {
    let (fake, session, mut guest) = joined(|_| {}).await;
    let sending = session.clone();
    tokio::spawn(async move {
        loop {
            let _ = sending.send_datagram(Bytes::from_static(b"x"));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    guest.ignore_pings();
    for value in [u64::MAX, 1000, 0] {
        guest.say(RelayMessage::Pong(crate::wire::control::Pong { value })).await;
    }
    fake.guest().await;
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_handle_closes() {
    let (fake, session, guest) = joined(|_| {}).await;
    let clone = session.clone();
    let stream = session.open_uni().await.unwrap();
    drop(session);
    works(&clone, &guest).await;
    drop(clone);
    assert_eq!(guest.closed_with().await, CloseCode::Closed);
    drop(stream);
    fake.nobody_comes_for(Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_handle_ends_attempts_to_reconnect() {
    let (fake, session, guest) = joined(|_| {}).await;
    guest.drop_with(CloseCode::Draining.number().into());
    let half_joined = fake.hello().await;
    drop(session);
    half_joined.closed_with().await;
    fake.nobody_comes_for(Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn closing_tells_the_relay_and_everybody_who_waits() {
    let (_fake, session, guest) = joined(|_| {}).await;
    let waiting = session.clone();
    let waiting = tokio::spawn(async move { waiting.recv_datagram().await });
    session.close();
    session.close();
    assert!(matches!(soon(session.closed()).await, End::Closed));
    // The relay knows by the time `closed` returns.
    assert!(guest.connection.close_reason().is_some());
    assert_eq!(guest.closed_with().await, CloseCode::Closed);
    assert!(matches!(soon(waiting).await.unwrap(), Err(End::Closed)));
    assert_eq!(session.end().unwrap().code(), Some(CloseCode::Closed));
}

#[tokio::test(start_paused = true)]
async fn releasing_waits_for_the_relay() {
    let (_fake, session, mut guest) = joined(|_| {}).await;
    let served = async {
        assert_eq!(guest.heard().await, ClientMessage::Release);
        guest.end(CloseCode::Released).await;
    };
    let (released, again, ()) = join!(session.release(), session.release(), served);
    released.unwrap();
    again.unwrap();
    assert_eq!(session.end().unwrap().code(), Some(CloseCode::Released));
    // It is released; asking again is no error.
    session.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_release_that_got_lost_is_said_again() {
    let (fake, session, guest) = joined(|_| {}).await;
    let served = async {
        guest.drop_with(CloseCode::Unavailable.number().into());
        let mut guest = fake.guest().await;
        assert_eq!(guest.heard().await, ClientMessage::Release);
        guest.drop_with(CloseCode::Internal.number().into());
        // This time the relay had heard it.
        fake.refuse(refused(CloseCode::Released)).await;
    };
    let (released, ()) = join!(session.release(), served);
    released.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_release_says_when_the_end_was_another() {
    let (_fake, session, mut guest) = joined(|_| {}).await;
    let served = async {
        guest.heard().await;
        guest.end(CloseCode::Killed).await;
    };
    let (released, ()) = join!(session.release(), served);
    assert_eq!(released.unwrap_err().code(), Some(CloseCode::Killed));
}

#[tokio::test(start_paused = true)]
async fn a_changed_local_address_is_the_same_session() {
    let (_fake, session, guest) = joined(|_| {}).await;
    let before = guest.connection.remote_address();
    let (mut send, _recv) = session.open_bi().await.unwrap();
    session.rebind().unwrap();
    works(&session, &guest).await;
    assert_ne!(guest.connection.remote_address(), before);
    send.write_all(b"still here").await.unwrap();
    assert_eq!(session.stats().reconnects, 0);
}

#[tokio::test(start_paused = true)]
async fn its_debug_form_has_no_secrets() {
    let (_fake, session, _guest) = joined(|_| {}).await;
    let shown = format!("{session:?}");
    assert_eq!(shown, "Session { connected: true, peer_present: true, end: None, .. }");
}
