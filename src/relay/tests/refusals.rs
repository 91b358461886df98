//! R1: every refusal has its code; nothing is created before token and proof are checked.

use super::*;
use crate::wire::control::{Prove, Refresh};

async fn refused(harness: &Harness, pair: &Pair, role: Role, code: CloseCode) {
    let refused = harness.connect().await.join(pair, role).await;
    assert_eq!(refused.err().map(|(code, _)| code), Some(code));
    assert_eq!(harness.metric("zrc_relay_allocations"), 0, "nothing was created");
}

#[tokio::test]
async fn r1_1_a_token_must_be_signed_for_this_relay_and_live() {
    let harness = Harness::start();
    let now = harness.clock.unix_secs();
    let valid = harness.pair();

    let mut forged = valid.clone();
    let mut bytes = forged.token.to_bytes();
    bytes[100] ^= 1;
    forged.token = SignedToken::from_bytes(&bytes).unwrap();
    refused(&harness, &forged, Role::Device, CloseCode::TokenInvalid).await;

    let elsewhere = harness.pair_with(|fields| fields.relay_id.0[0] ^= 1);
    refused(&harness, &elsewhere, Role::Device, CloseCode::TokenInvalid).await;

    for expired in [0, now - 1, now] {
        let expired = harness.pair_with(|fields| fields.expires_at_unix = expired);
        refused(&harness, &expired, Role::Peer, CloseCode::TokenExpired).await;
    }
    let eternal = harness.pair_with(|fields| fields.expires_at_unix = now + 24 * 3600 + 100);
    refused(&harness, &eternal, Role::Peer, CloseCode::TokenInvalid).await;

    let weak_peer = harness.pair_with(|fields| fields.peer_id.0 = [0; 32]);
    refused(&harness, &weak_peer, Role::Device, CloseCode::TokenInvalid).await;
    assert_eq!(harness.metric("zrc_relay_refused_total{code=\"TOKEN_INVALID\"}"), 4);
    assert_eq!(harness.metric("zrc_relay_refused_total{code=\"TOKEN_EXPIRED\"}"), 3);
    harness.join(&valid, Role::Device).await;
}

#[tokio::test]
async fn r1_2_only_known_devices_where_devices_may_not_certify_themselves() {
    let operator = SigningKey::from_bytes(&[7; 32]);
    let id = DeviceId([42; 32]);
    let harness = Harness::with(|config| {
        config.admission.self_certified = None;
        let pinned = super::super::Pinned { key: public(&operator), tier: Tier::default() };
        config.admission.pinned.insert(id, pinned);
    });
    refused(&harness, &harness.pair(), Role::Device, CloseCode::TokenInvalid).await;
    // The pinned device signs with its pinned key; its id is no key at all.
    let mut known = harness.pair();
    known.device = operator;
    known.token = known.again(|fields| fields.device_id = id);
    harness.join(&known, Role::Device).await;
    harness.join(&known, Role::Peer).await;
}

#[tokio::test]
async fn r1_2_a_pinned_device_id_is_never_read_as_a_key() {
    let harness_key = SigningKey::from_bytes(&[8; 32]);
    let mut id = None;
    let device = SigningKey::from_bytes(&[9; 32]);
    let harness = Harness::with(|config| {
        let self_named = DeviceId(device.verifying_key().to_bytes());
        id = Some(self_named);
        let pinned = super::super::Pinned { key: public(&harness_key), tier: Tier::default() };
        config.admission.pinned.insert(self_named, pinned);
    });
    let mut pair = harness.pair();
    pair.device = device;
    pair.token = pair.again(|fields| fields.device_id = id.unwrap());
    refused(&harness, &pair, Role::Device, CloseCode::TokenInvalid).await;
}

#[tokio::test]
async fn r1_3_the_allocation_asked_for_is_the_tokens() {
    let harness = Harness::start();
    let pair = harness.pair();
    for asked in [&[][..], &[0; 16], &[1; 15], &[2; 300]] {
        let raw = harness.connect().await;
        let hello = Hello { allocation_id: Bytes::copy_from_slice(asked), ..raw.hello(&pair, Role::Device) };
        let control = raw.begin(&ClientMessage::Hello(hello).to_frame()).await;
        assert_eq!(control.close_code().await, CloseCode::AllocationMismatch);
    }
}

#[tokio::test]
async fn r1_7_a_stolen_token_is_useless() {
    let harness = Harness::start();
    let pair = harness.pair();
    // With another key.
    let thief = Pair { device: harness.pair().device, ..pair.clone() };
    refused(&harness, &thief, Role::Device, CloseCode::ProofInvalid).await;
    // With the right key, but as the other role.
    let raw = harness.connect().await;
    let hello = Hello { role: Role::Peer, ..raw.hello(&pair, Role::Device) };
    let control = raw.begin(&ClientMessage::Hello(hello).to_frame()).await;
    assert_eq!(control.close_code().await, CloseCode::ProofInvalid);
    // A proof seen on another connection.
    let seen = harness.connect().await.hello(&pair, Role::Device);
    let control = harness.connect().await.begin(&ClientMessage::Hello(seen).to_frame()).await;
    assert_eq!(control.close_code().await, CloseCode::ProofInvalid);
    // A proof of the wrong length.
    for len in [1, 63, 65, 1000] {
        let raw = harness.connect().await;
        let hello = Hello { proof: Some(vec![1; len].into()), ..raw.hello(&pair, Role::Device) };
        let control = raw.begin(&ClientMessage::Hello(hello).to_frame()).await;
        assert_eq!(control.close_code().await, CloseCode::ProofInvalid);
    }
    assert_eq!(harness.metric("zrc_relay_allocations"), 0);
}

#[tokio::test]
async fn mode_2_proves_by_the_relays_nonce_and_its_key() {
    let harness = Harness::start();
    let pair = harness.pair();
    let spki_sha256 = spki(&harness).0;
    for (wrong, expected) in [(None, None), (Some(0), Some(())), (Some(1), Some(()))] {
        let raw = harness.connect().await;
        let hello = Hello { proof: None, ..raw.hello(&pair, Role::Peer) };
        let mut control = raw.begin(&ClientMessage::Hello(hello).to_frame()).await;
        let Some(RelayMessage::Challenge(challenge)) = control.next().await else { panic!("no Challenge") };
        let mut nonce: [u8; 32] = challenge.nonce.as_ref().try_into().unwrap();
        let mut spki_sha256 = spki_sha256;
        match wrong {
            Some(0) => nonce[0] ^= 1,
            Some(_) => spki_sha256[31] ^= 1,
            None => {}
        }
        let binding = Binding::Nonce { nonce, spki_sha256 };
        let proof = proof::prove(&pair.peer, Role::Peer, &pair.token.hash(), &binding);
        control.say(&ClientMessage::Prove(Prove { proof: Bytes::copy_from_slice(&proof) })).await;
        match expected {
            None => assert!(matches!(control.next().await, Some(RelayMessage::Allocated(_)))),
            Some(()) => assert_eq!(control.close_code().await, CloseCode::ProofInvalid),
        }
    }
}

#[tokio::test]
async fn r1_6_a_refresh_replaces_limits_without_pairing_again_and_never_resets_use() {
    let harness = Harness::start();
    let pair = harness.pair_with(|fields| fields.quota_bytes = 10_000);
    let (mut device, mut peer) = harness.joined_pair(&pair).await;
    device.send_datagram(vec![1; 1000]);
    peer.datagram().await;
    let expires = pair.token.fields().expires_at_unix + 60;
    let newer = pair.again(|fields| {
        fields.expires_at_unix = expires;
        fields.quota_bytes = 50_000;
        fields.bandwidth_bytes_per_sec = 1_000_000;
    });
    // From the peer: either role may bring it.
    let refresh = ClientMessage::Refresh(Refresh { token: Bytes::copy_from_slice(&newer.to_bytes()) });
    peer.control.say(&refresh).await;
    for side in [&mut device, &mut peer] {
        let refreshed = side.until(|m| if let RelayMessage::Refreshed(r) = m { Some(r) } else { None }).await;
        assert_eq!(refreshed.expires_at, expires);
        assert_eq!(refreshed.quota_bytes, Some(50_000));
        assert_eq!(refreshed.bandwidth_limit, Some(1_000_000));
        assert_eq!(refreshed.bytes_used, 1000);
    }
    // The same token again, as after a lost answer, is answered again.
    peer.control.say(&refresh).await;
    let again = peer.until(|m| if let RelayMessage::Refreshed(r) = m { Some(r) } else { None }).await;
    assert_eq!(again.expires_at, expires);
    device.send_datagram(&b"still paired"[..]);
    assert_eq!(peer.datagram().await, &b"still paired"[..]);
    // The token before it still joins, under the limits in force.
    let late = harness.join(&pair, Role::Device).await;
    assert_eq!(late.allocated.quota_bytes, Some(50_000));
    assert_eq!(late.allocated.expires_at, expires);
    assert_eq!(late.allocated.bytes_used, 1012);
}

#[tokio::test]
async fn a_refused_refresh_closes_its_connection_and_no_other() {
    let harness = Harness::start();
    let pair = harness.pair();
    let (_device, peer) = harness.joined_pair(&pair).await;
    let earlier = pair.again(|fields| fields.expires_at_unix -= 1);
    let other = pair.again(|fields| fields.allocation_id.0[3] ^= 1);
    let mut forged = pair.again(|fields| fields.expires_at_unix += 9).to_bytes();
    forged[179] ^= 1;
    for (token, code) in [
        (earlier.to_bytes().to_vec(), CloseCode::TokenInvalid),
        (other.to_bytes().to_vec(), CloseCode::AllocationMismatch),
        (forged.to_vec(), CloseCode::TokenInvalid),
        (vec![1; 3], CloseCode::TokenInvalid),
    ] {
        let mut again = harness.join(&pair, Role::Device).await;
        again.control.say(&ClientMessage::Refresh(Refresh { token: token.into() })).await;
        let refused =
            again.until(|m| if let RelayMessage::Refused(r) = m { Some(r.code) } else { None }).await;
        assert_eq!(refused, u32::from(code.number()));
        assert_eq!(again.control.close_code().await, code);
    }
    assert!(peer.connection().close_reason().is_none());
}
