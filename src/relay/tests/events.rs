//! R6.5: what the relay reports as security events, with the exact reason, and about whom.

use super::*;
use crate::{
    guard::{Heard, Limit, Record, SecurityEvent, Subscription},
    wire::control::Refresh,
};

/// The next event.
async fn next(events: &mut Subscription) -> Arc<Record> {
    match soon(events.next()).await {
        Heard::Event(record) => record,
        Heard::Missed(missed) => panic!("{missed} missed"),
    }
}

fn source(record: &Record) -> Option<String> {
    record.subject.source.map(|source| source.to_string())
}

#[tokio::test]
async fn r6_5_a_refused_token_is_reported_with_its_exact_reason_and_where_it_came_from() {
    let harness = Harness::start();
    let mut events = harness.security.subscribe();
    let now = harness.clock.unix_secs();
    let valid = harness.pair();
    let mut forged = valid.clone();
    let mut bytes = forged.token.to_bytes();
    bytes[100] ^= 1;
    forged.token = SignedToken::from_bytes(&bytes).unwrap();
    for (pair, reason) in [
        (forged, "signature"),
        (harness.pair_with(|fields| fields.relay_id.0[0] ^= 1), "wrong_relay"),
        (harness.pair_with(|fields| fields.expires_at_unix = now), "expired"),
        (harness.pair_with(|fields| fields.expires_at_unix = now + 48 * 3600), "lifetime_too_long"),
    ] {
        let _ = harness.connect().await.join(&pair, Role::Device).await.err().expect("refused");
        let record = next(&mut events).await;
        assert_eq!(record.event, SecurityEvent::BadToken { reason });
        assert_eq!(source(&record).as_deref(), Some("127.0.0.1"));
        assert!(record.subject.connection.is_some());
        assert_eq!(record.subject.allocation, None, "it names none that could be believed");
    }
    // What is accepted is no event: the next one is of the next refusal.
    harness.joined_pair(&valid).await;
    let thief = Pair { device: harness.pair().device, ..valid.clone() };
    let _ = harness.connect().await.join(&thief, Role::Device).await.err().expect("refused");
    let record = next(&mut events).await;
    assert_eq!(record.event, SecurityEvent::ProofFailed { role: Role::Device });
    assert_eq!(source(&record).as_deref(), Some("127.0.0.1"));
    assert!(record.subject.allocation.is_some());
    assert_eq!(harness.metric("zrc_relay_security_events_total{event=\"bad_token\"}"), 4);
    assert_eq!(harness.metric("zrc_relay_security_events_total{event=\"proof_failed\"}"), 1);
}

#[tokio::test]
async fn r6_5_a_client_that_has_moved_is_not_named_by_an_address_that_it_may_only_claim() {
    let harness = Harness::start();
    let mut events = harness.security.subscribe();
    let pair = harness.pair();
    let bad = ClientMessage::Refresh(Refresh { token: Bytes::from_static(b"no token") });
    for moves in [false, true] {
        let mut device = harness.join(&pair, Role::Device).await;
        if moves {
            let socket = std::net::UdpSocket::bind("127.0.0.2:0").unwrap();
            device.control.endpoint.rebind(socket).unwrap();
        }
        device.control.say(&bad).await;
        let record = next(&mut events).await;
        assert_eq!(record.event, SecurityEvent::BadToken { reason: "length" });
        assert_eq!(source(&record).as_deref(), (!moves).then_some("127.0.0.1"), "moves: {moves}");
        assert!(record.subject.allocation.is_some());
        assert_eq!(device.control.close_code().await, CloseCode::TokenInvalid);
    }
}

#[tokio::test]
async fn r6_5_each_limit_that_refuses_is_reported_as_itself() {
    let harness = Harness::with(|config| {
        config.admission.self_certified = Some(Tier { allocations_per_device: Some(1), ..Tier::default() });
        config.rules.max_allocations = 2;
        config.rules.max_ledger = 3;
    });
    let mut events = harness.security.subscribe();
    let hit = async |events: &mut Subscription| match next(events).await.event {
        SecurityEvent::LimitHit { limit } => limit,
        ref other => panic!("{other:?}"),
    };
    let pair = harness.pair_with(|fields| fields.quota_bytes = 1000);
    let (device, peer) = harness.joined_pair(&pair).await;
    // Another allocation of the same device.
    let second = Pair { token: pair.again(|fields| fields.allocation_id.0[0] ^= 1), ..pair.clone() };
    let _ = harness.connect().await.join(&second, Role::Device).await.err().expect("refused");
    assert_eq!(hit(&mut events).await, Limit::DeviceAllocations);
    let _other = harness.join(&harness.pair(), Role::Device).await;
    let _ = harness.connect().await.join(&harness.pair(), Role::Device).await.err().expect("refused");
    assert_eq!(hit(&mut events).await, Limit::Allocations);

    device.send_datagram(vec![1; 1001]);
    assert_eq!(peer.control.close_code().await, CloseCode::QuotaExceeded);
    let record = next(&mut events).await;
    assert_eq!(record.event, SecurityEvent::LimitHit { limit: Limit::Quota });
    assert!(record.subject.allocation.is_some());
    let _ = harness.connect().await.join(&pair, Role::Device).await.err().expect("refused");
    assert_eq!(hit(&mut events).await, Limit::Quota);

    let _third = harness.join(&harness.pair(), Role::Device).await;
    drop(_other);
    let early = harness.connect().await;
    for _ in 0..=crate::relay::session::MAX_EARLY_DATAGRAMS {
        let _ = early.connection.send_datagram(Bytes::new());
    }
    assert_eq!(hit(&mut events).await, Limit::EarlyDatagrams);
    let _silent = harness.connect().await;
    assert_eq!(hit(&mut events).await, Limit::AuthTimeout);
}

#[tokio::test]
async fn r4_3_an_allocation_over_its_rate_is_reported_once_a_second() {
    let harness = Harness::start();
    let mut events = harness.security.subscribe();
    let pair = harness.pair_with(|fields| fields.bandwidth_bytes_per_sec = 10_000);
    let (device, peer) = harness.joined_pair(&pair).await;
    let began = harness.clock.mono();
    let mut reported = 0;
    while reported < 3 {
        // Both directions, far over the rate.
        for _ in 0..20 {
            device.send_datagram(vec![1; 1000]);
            peer.send_datagram(vec![2; 1000]);
        }
        while let Ok(Heard::Event(record)) = timeout(Duration::from_millis(20), events.next()).await {
            assert_eq!(record.event, SecurityEvent::LimitHit { limit: Limit::ByteRate });
            assert!(record.subject.allocation.is_some() && record.subject.source.is_none());
            reported += 1;
        }
    }
    let seconds = (harness.clock.mono() - began).as_secs();
    assert!(seconds >= 1 && reported <= seconds + 2, "{reported} reports in {seconds} s");
    let dropped = harness.dropped("byte_rate");
    assert!(dropped > 10 * reported, "{dropped} dropped, {reported} reports");
}

#[tokio::test]
async fn r6_5_a_caller_for_whom_there_is_no_place_is_counted_and_not_named() {
    let harness = Harness::with(|config| config.max_unauthenticated = 1);
    let mut events = harness.security.subscribe();
    let _waiting = harness.connect().await;
    assert!(harness.try_connect(|_| {}).await.is_err());
    let record = next(&mut events).await;
    assert_eq!(record.event, SecurityEvent::LimitHit { limit: Limit::Unauthenticated });
    assert_eq!(record.subject, crate::guard::Subject::NOBODY);
}
