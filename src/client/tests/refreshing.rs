//! Newer tokens: asked for, unasked, refused.

use std::time::Duration;

use tokio::join;

use super::{
    ends::works,
    fake::{Fake, Guest, Pair, refused, soon},
};
use crate::{
    client::{Event, RefreshError, Session, Ticket},
    wire::{
        CloseCode, SignedToken,
        control::{Allocated, ClientMessage, Migrate, Refreshed, RelayMessage},
    },
};

async fn joined(pair: &Pair) -> (Fake, Session, Guest) {
    let fake = Fake::new(pair);
    let relay = fake.relay();
    let (session, guest) = join!(relay.connect(pair.ticket()), fake.guest());
    (fake, session.unwrap(), guest)
}

fn refreshed(token: &SignedToken) -> RelayMessage {
    RelayMessage::Refreshed(Refreshed {
        expires_at: token.fields().expires_at_unix,
        bandwidth_limit: Some(5),
        burst_bytes: None,
        quota_bytes: Some(6),
        bytes_used: 4,
    })
}

/// The token that a guest is shown.
async fn shown(guest: &mut Guest) -> SignedToken {
    match guest.heard().await {
        ClientMessage::Refresh(refresh) => SignedToken::from_bytes(&refresh.token).unwrap(),
        other => panic!("no Refresh but {other:?}"),
    }
}

/// The token that a guest came with.
fn brought(guest: &Guest) -> SignedToken {
    SignedToken::from_bytes(&guest.hello.token).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_accepted_token_is_used_from_then_on() {
    let pair = Pair::new();
    let (fake, session, mut guest) = joined(&pair).await;
    let mut events = session.events();
    let token = pair.token(7200);
    let served = async {
        assert_eq!(shown(&mut guest).await, token);
        guest.say(refreshed(&token)).await;
    };
    let (grant, ()) = join!(session.refresh(token.clone()), served);
    let grant = grant.unwrap();
    assert_eq!(grant.expires_at_unix, token.fields().expires_at_unix);
    assert_eq!((grant.bandwidth_bytes_per_sec, grant.burst_bytes), (Some(5), None));
    assert_eq!((grant.quota_bytes, grant.bytes_used), (Some(6), 4));
    assert_eq!(session.grant(), grant);
    let event = soon(events.recv()).await;
    assert!(
        matches!(event, Some(Event::Refreshed { expires_at_unix }) if expires_at_unix == grant.expires_at_unix)
    );

    guest.drop_with(CloseCode::Draining.number().into());
    assert_eq!(brought(&fake.guest().await), token);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_a_refresh_is_not_shown_to_the_relay() {
    let (pair, other) = (Pair::new(), Pair::new());
    let (_fake, session, mut guest) = joined(&pair).await;
    assert!(matches!(session.refresh(other.token(7200)).await, Err(RefreshError::NotTheDevice)));
    let mut fields = *pair.token(7200).fields();
    fields.allocation_id = other.allocation_id;
    let error = session.refresh(fields.sign(&pair.device)).await.unwrap_err();
    assert!(matches!(error, RefreshError::OtherAllocation));
    assert!(matches!(session.refresh(pair.token(3000)).await, Err(RefreshError::NotLater)));

    let peers_ticket = Ticket::peer(pair.token(3600), pair.peer.clone()).unwrap();
    let fake = Fake::new(&pair);
    let relay = fake.relay();
    let (peer, _guest) = join!(relay.connect(peers_ticket), fake.guest());
    let error = peer.unwrap().refresh(other.token(7200)).await.unwrap_err();
    assert!(matches!(error, RefreshError::OtherAllocation));

    assert!(tokio::time::timeout(Duration::from_secs(60), guest.heard()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_an_error_and_the_session_goes_on_with_the_old_one() {
    for bare in [false, true] {
        let pair = Pair::new();
        let (fake, session, mut guest) = joined(&pair).await;
        let served = async {
            shown(&mut guest).await;
            if bare {
                guest.drop_with(CloseCode::TokenInvalid.number().into());
            } else {
                guest.refuse(refused(CloseCode::TokenInvalid)).await;
            }
        };
        let (result, ()) = join!(session.refresh(pair.token(7200)), served);
        let Err(RefreshError::Refused(refusal)) = result else { panic!("{result:?}") };
        assert_eq!(refusal.code, CloseCode::TokenInvalid);
        let guest = fake.guest().await;
        assert_eq!(brought(&guest), pair.token(3600));
        works(&session, &guest).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_allocation_is_not_the_answer_to_a_refresh() {
    let pair = Pair::new();
    let (_fake, session, mut guest) = joined(&pair).await;
    let served = async {
        shown(&mut guest).await;
        guest.end(CloseCode::QuotaExceeded).await;
    };
    let (result, ()) = join!(session.refresh(pair.token(7200)), served);
    assert!(matches!(result, Err(RefreshError::Ended(end)) if end.code() == Some(CloseCode::QuotaExceeded)));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_without_an_answer_is_repeated_on_the_next_connection() {
    let pair = Pair::new();
    let (fake, session, mut guest) = joined(&pair).await;
    let token = pair.token(7200);
    let served = async {
        shown(&mut guest).await;
        guest.drop_with(CloseCode::Internal.number().into());
        let mut guest = fake.guest().await;
        assert_eq!(brought(&guest), pair.token(3600));
        assert_eq!(shown(&mut guest).await, token);
        guest.say(refreshed(&token)).await;
        guest
    };
    let (grant, _guest) = join!(session.refresh(token.clone()), served);
    assert_eq!(grant.unwrap().expires_at_unix, token.fields().expires_at_unix);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_without_an_answer_is_repeated_after_a_move() {
    for closes in [false, true] {
        let pair = Pair::new();
        let (_old, session, mut guest) = joined(&pair).await;
        let away = Fake::new(&pair);
        let token = pair.token(7200);
        let served = async {
            shown(&mut guest).await;
            let relays = vec![away.info()];
            guest.say(RelayMessage::Migrate(Migrate { relays, deadline_ms: 5000 })).await;
            let mut next = away.hello().await;
            let allocated = Allocated { peer_present: !closes, ..next.allocated() };
            next.say(RelayMessage::Allocated(allocated)).await;
            if closes {
                guest.drop_with(CloseCode::Draining.number().into());
            }
            assert_eq!(shown(&mut next).await, token);
            next.say(refreshed(&token)).await;
            next
        };
        let (grant, _next) = join!(session.refresh(token.clone()), served);
        assert_eq!(grant.unwrap().expires_at_unix, token.fields().expires_at_unix);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_waits_for_a_connection() {
    let pair = Pair::new();
    let (fake, session, guest) = joined(&pair).await;
    let mut events = session.events();
    guest.drop_with(CloseCode::Internal.number().into());
    while !matches!(soon(events.recv()).await, Some(Event::Disconnected { .. })) {}
    let token = pair.token(7200);
    let served = async {
        let mut guest = fake.guest().await;
        assert_eq!(shown(&mut guest).await, token);
        guest.say(refreshed(&token)).await;
        guest
    };
    let (grant, _guest) = join!(session.refresh(token.clone()), served);
    grant.unwrap();
}

#[tokio::test(start_paused = true)]
async fn refreshes_are_answered_in_order() {
    let pair = Pair::new();
    let (_fake, session, mut guest) = joined(&pair).await;
    let (first, second) = (pair.token(7200), pair.token(9000));
    let served = async {
        assert_eq!(shown(&mut guest).await, first);
        assert_eq!(shown(&mut guest).await, second);
        guest.say(refreshed(&first)).await;
        guest.say(refreshed(&second)).await;
    };
    let (one, two, ()) = join!(session.refresh(first.clone()), session.refresh(second.clone()), served);
    assert_eq!(one.unwrap().expires_at_unix, first.fields().expires_at_unix);
    assert_eq!(two.unwrap().expires_at_unix, second.fields().expires_at_unix);
}

#[tokio::test(start_paused = true)]
async fn the_other_sides_refresh_is_news_and_not_the_answer() {
    let pair = Pair::new();
    let (_fake, session, mut guest) = joined(&pair).await;
    let (theirs, ours) = (pair.token(5000), pair.token(7200));
    let mut events = session.events();
    let served = async {
        shown(&mut guest).await;
        guest.say(refreshed(&theirs)).await;
        let event = soon(events.recv()).await;
        let expected = theirs.fields().expires_at_unix;
        assert!(matches!(event, Some(Event::Refreshed { expires_at_unix }) if expires_at_unix == expected));
        guest.say(refreshed(&ours)).await;
    };
    let (grant, ()) = join!(session.refresh(ours.clone()), served);
    assert_eq!(grant.unwrap().expires_at_unix, ours.fields().expires_at_unix);
}

/// A session whose allocation was made with an older token than its own.
async fn joined_older(pair: &Pair) -> (Fake, Session, Guest) {
    let fake = Fake::new(pair);
    let relay = fake.relay();
    let (session, guest) = join!(relay.connect(pair.ticket()), older(&fake));
    (fake, session.unwrap(), guest)
}

async fn older(fake: &Fake) -> Guest {
    let mut guest = fake.hello().await;
    let mut allocated = guest.allocated();
    allocated.expires_at -= 1000;
    guest.say(RelayMessage::Allocated(allocated)).await;
    guest
}

#[tokio::test(start_paused = true)]
async fn a_newer_token_lengthens_the_allocation_unasked() {
    let pair = Pair::new();
    let (_fake, session, mut guest) = joined_older(&pair).await;
    let mut events = session.events();
    let token = shown(&mut guest).await;
    assert_eq!(token, pair.token(3600));
    guest.say(refreshed(&token)).await;
    assert!(matches!(soon(events.recv()).await, Some(Event::Refreshed { .. })));
    assert_eq!(session.grant().expires_at_unix, token.fields().expires_at_unix);
}

#[tokio::test(start_paused = true)]
async fn an_unasked_refresh_that_is_refused_is_not_repeated() {
    let pair = Pair::new();
    let (fake, session, mut guest) = joined_older(&pair).await;
    shown(&mut guest).await;
    guest.refuse(refused(CloseCode::TokenInvalid)).await;
    let mut guest = older(&fake).await;
    works(&session, &guest).await;
    assert!(tokio::time::timeout(Duration::from_secs(60), guest.heard()).await.is_err());
    assert!(session.end().is_none());
}
