//! MOVED and Migrate: from one relay to another.

use std::time::Duration;

use bytes::Bytes;
use tokio::{join, time::Instant};

use super::{
    ends::{connection_event, works},
    fake::{Fake, Guest, Pair, refused, soon},
};
use crate::{
    client::{ConnectError, Event, Events, Session, TrustError},
    wire::{
        CloseCode,
        control::{Migrate, Refused, RelayInfo, RelayMessage},
    },
};

fn moved(to: &[&Fake]) -> Refused {
    Refused { relays: to.iter().map(|fake| fake.info()).collect(), ..refused(CloseCode::Moved) }
}

fn migrate(to: Vec<RelayInfo>) -> RelayMessage {
    RelayMessage::Migrate(Migrate { relays: to, deadline_ms: 30_000 })
}

async fn joined(pair: &Pair) -> (Fake, Session, Guest) {
    let fake = Fake::new(pair);
    let relay = fake.relay();
    let (session, guest) = join!(relay.connect(pair.ticket()), fake.guest());
    (fake, session.unwrap(), guest)
}

/// Waits until the session has taken up another connection.
async fn arrived(events: &mut Events) {
    assert!(matches!(connection_event(events).await, Event::Connected { .. }));
}

/// Lets the next client in, to an empty room.
async fn alone(fake: &Fake) -> Guest {
    let mut guest = fake.hello().await;
    let mut allocated = guest.allocated();
    allocated.peer_present = false;
    guest.say(RelayMessage::Allocated(allocated)).await;
    guest
}

#[tokio::test(start_paused = true)]
async fn moved_is_followed_at_once() {
    let pair = Pair::new();
    let (home, away) = (Fake::new(&pair), Fake::new(&pair));
    let relay = home.relay();
    let started = Instant::now();
    let served = async {
        let (guest, ()) = join!(away.guest(), home.refuse(moved(&[&away])));
        guest
    };
    let (session, guest) = join!(relay.connect(pair.ticket()), served);
    works(&session.unwrap(), &guest).await;
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_cannot_be_reached_is_passed_over() {
    let pair = Pair::new();
    let (home, gone, away) = (Fake::new(&pair), Fake::new(&pair), Fake::new(&pair));
    gone.vanish();
    let relay = home.relay_with(|options| options.connect_timeout = Duration::from_secs(20));
    let served = async {
        let (guest, ()) = join!(away.guest(), home.refuse(moved(&[&gone, &away])));
        guest
    };
    let (session, guest) = join!(relay.connect(pair.ticket()), served);
    works(&session.unwrap(), &guest).await;
}

#[tokio::test(start_paused = true)]
async fn at_most_three_moves_in_a_row_are_followed() {
    let pair = Pair::new();
    let (home, away) = (Fake::new(&pair), Fake::new(&pair));
    let relay = home.relay();
    let mut visits = Vec::new();
    let mut serve = async || {
        let mut tell = async |fake: &Fake, to: &Fake, name: &'static str| {
            let guest = fake.hello().await;
            visits.push((name, Instant::now()));
            guest.refuse(moved(&[to])).await;
        };
        tell(&home, &away, "home").await;
        tell(&away, &home, "away").await;
        tell(&home, &away, "home").await;
        tell(&away, &home, "away").await;
        // That was the third move. From the beginning again.
        let guest = home.guest().await;
        visits.push(("let in", Instant::now()));
        guest
    };
    let (session, _guest) = join!(relay.connect(pair.ticket()), serve());
    session.unwrap();
    let names: Vec<_> = visits.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["home", "away", "home", "away", "let in"]);
}

#[tokio::test(start_paused = true)]
async fn moved_to_nowhere_is_tried_again() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay();
    let nonsense = RelayInfo { addr: "192.0.2.1".into(), port: 1 << 16, ..RelayInfo::default() };
    let bad_pin =
        RelayInfo { addr: "192.0.2.1".into(), port: 1, spki: "md5/x".into(), ..RelayInfo::default() };
    let served = async {
        fake.refuse(Refused { relays: vec![nonsense, bad_pin], ..refused(CloseCode::Moved) }).await;
        fake.guest().await
    };
    let (session, _guest) = join!(relay.connect(pair.ticket()), served);
    session.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_named_relay_has_to_have_the_named_key() {
    let pair = Pair::new();
    let (home, away) = (Fake::new(&pair), Fake::new(&pair));
    let relay = home.relay();
    let info = RelayInfo { spki: home.spki.to_string(), ..away.info() };
    let served = async {
        home.refuse(Refused { relays: vec![info], ..refused(CloseCode::Moved) }).await;
        soon(away.endpoint.accept()).await.unwrap().await.err()
    };
    let (result, _) = join!(relay.connect(pair.ticket()), served);
    let error = result.unwrap_err();
    assert!(matches!(error, ConnectError::Trust(TrustError::PinMismatch { .. })), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_session_moves_without_a_gap() {
    let pair = Pair::new();
    let (_old, session, mut guest) = joined(&pair).await;
    let away = Fake::new(&pair);
    let mut events = session.events();
    guest.say(migrate(vec![away.info()])).await;
    let deadline = Duration::from_secs(30);
    assert!(
        matches!(soon(events.recv()).await, Some(Event::Migrating { deadline: told }) if told == deadline)
    );
    let mut next = alone(&away).await;
    // The other side is not there yet: sent the old way, received both ways.
    works(&session, &guest).await;
    next.connection.send_datagram(Bytes::from_static(b"from there")).unwrap();
    assert_eq!(soon(session.recv_datagram()).await.unwrap(), "from there");
    assert!(session.peer_present());

    next.peer(true).await;
    assert!(matches!(soon(events.recv()).await, Some(Event::Connected { relay }) if relay == away.addr));
    // What the other side sent the old way before it moved too.
    guest.connection.send_datagram(Bytes::from_static(b"late")).unwrap();
    assert_eq!(soon(session.recv_datagram()).await.unwrap(), "late");
    works(&session, &next).await;
    assert_eq!(guest.closed_with().await, CloseCode::Closed);
    works(&session, &next).await;
    assert!(session.peer_present());
    let stats = session.stats();
    assert_eq!((stats.reconnects, stats.moves), (1, 1));

    // From now on this is where it comes back to.
    next.drop_with(CloseCode::Internal.number().into());
    let next = away.guest().await;
    works(&session, &next).await;
}

#[tokio::test(start_paused = true)]
async fn a_move_is_completed_at_once_when_the_other_side_is_there() {
    let pair = Pair::new();
    let (_old, session, mut guest) = joined(&pair).await;
    let away = Fake::new(&pair);
    let mut events = session.events();
    guest.say(migrate(vec![away.info()])).await;
    let next = away.guest().await;
    arrived(&mut events).await;
    works(&session, &next).await;
    assert_eq!(guest.closed_with().await, CloseCode::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_move_is_completed_when_the_old_relay_closes_or_the_time_is_over() {
    for closes in [true, false] {
        let pair = Pair::new();
        let (_old, session, mut guest) = joined(&pair).await;
        let away = Fake::new(&pair);
        let mut events = session.events();
        let told_at = Instant::now();
        guest.say(migrate(vec![away.info()])).await;
        let next = alone(&away).await;
        if closes {
            guest.end(CloseCode::Draining).await;
        }
        arrived(&mut events).await;
        assert_eq!(told_at.elapsed() >= Duration::from_secs(29), !closes);
        assert!(!session.peer_present());
        works(&session, &next).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_move_that_fails_leaves_the_session_where_it_is() {
    let pair = Pair::new();
    let (home, session, mut guest) = joined(&pair).await;
    let away = Fake::new(&pair);
    guest.say(migrate(vec![away.info()])).await;
    away.refuse(refused(CloseCode::Capacity)).await;
    works(&session, &guest).await;
    // When the relay then closes, the session goes where it can.
    guest.end(CloseCode::Draining).await;
    let next = tokio::select! {
        next = home.guest() => next,
        () = async { loop { away.refuse(refused(CloseCode::Capacity)).await } } => unreachable!(),
    };
    works(&session, &next).await;
}

#[tokio::test(start_paused = true)]
async fn a_move_to_nowhere_is_another_connection_to_the_same_name() {
    let pair = Pair::new();
    let (home, session, mut guest) = joined(&pair).await;
    let mut events = session.events();
    guest.say(migrate(Vec::new())).await;
    let next = home.guest().await;
    arrived(&mut events).await;
    works(&session, &next).await;
    assert_eq!(guest.closed_with().await, CloseCode::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_not_sent_round_in_circles() {
    let pair = Pair::new();
    let (_home, session, mut guest) = joined(&pair).await;
    let fakes = [Fake::new(&pair), Fake::new(&pair)];
    let mut events = session.events();
    for round in 0..3 {
        let next = &fakes[round % 2];
        guest.say(migrate(vec![next.info()])).await;
        guest = next.guest().await;
        arrived(&mut events).await;
        works(&session, &guest).await;
    }
    guest.say(migrate(vec![fakes[1].info()])).await;
    fakes[1].nobody_comes_for(Duration::from_secs(5)).await;
    works(&session, &guest).await;
    // A relay that has kept the session for a while may ask again.
    tokio::time::sleep(Duration::from_secs(10)).await;
    guest.say(migrate(vec![fakes[1].info()])).await;
    let guest = fakes[1].guest().await;
    arrived(&mut events).await;
    works(&session, &guest).await;
}
