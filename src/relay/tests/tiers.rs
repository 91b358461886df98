//! R1.2, R1.5, R4.5: tiers, issuers and devices, and what becomes of live allocations when they change.

use std::collections::HashMap;

use super::*;
use crate::{
    relay::{Issuer, Pinned},
    wire::{AnyToken, IssuerFields, IssuerToken, KeyId, control::Refresh},
};

/// What a reload may take to be felt.
const AT_ONCE: Duration = Duration::from_secs(1);

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn kid() -> KeyId {
    "backend".parse().unwrap()
}

fn tier(rate_bytes_per_sec: u64, quota_bytes: u64) -> Tier {
    let limits = Limits {
        rate_bytes_per_sec: Some(rate_bytes_per_sec),
        quota_bytes: Some(quota_bytes),
        ..Limits::default()
    };
    Tier { limits, ..Tier::default() }
}

/// One issuer, with the tiers `own` (by default) and `gold`, and one pinned device, with the tier `device`.
fn admission(own: Tier, gold: Tier, device: Tier) -> Admission {
    let issuer = Issuer { key: public(&key(5)), tier: own, tiers: HashMap::from([("gold".into(), gold)]) };
    Admission {
        pinned: HashMap::from([(DeviceId([42; 32]), Pinned { key: public(&key(7)), tier: device })]),
        issuers: HashMap::from([("backend".into(), issuer)]),
        max_token_lifetime: Duration::from_secs(24 * 3600),
        ..Admission::default()
    }
}

fn usual() -> Admission {
    admission(tier(100_000, 1000), tier(900_000, 9000), tier(50_000, 500))
}

fn harness() -> Harness {
    Harness::with(|config| config.admission = usual())
}

/// Who holds which key, and what the issuer says of them.
struct Issued {
    device: SigningKey,
    peer: SigningKey,
    fields: IssuerFields,
}

impl Issued {
    fn new(harness: &Harness) -> Self {
        let pair = harness.pair();
        let fields = IssuerFields {
            relay_id: harness.relay_id,
            allocation_id: AllocationId::random().unwrap(),
            device_id: DeviceId(*public(&pair.device).as_bytes()),
            peer_id: PeerId(*public(&pair.peer).as_bytes()),
            expires_at_unix: harness.clock.unix_secs() + 3600,
            not_before_unix: None,
            bandwidth_bytes_per_sec: None,
            quota_bytes: None,
            tier: None,
        };
        Self { device: pair.device, peer: pair.peer, fields }
    }

    fn token(&self) -> IssuerToken {
        self.fields.sign(&key(5), &kid()).unwrap()
    }

    async fn try_join(
        &self,
        harness: &Harness,
        role: Role,
        token: &str,
    ) -> Result<Joined, (CloseCode, String)> {
        let raw = harness.connect().await;
        let key = match role {
            Role::Device => &self.device,
            Role::Peer => &self.peer,
        };
        let hello = raw.hello_with(token.as_bytes(), self.fields.allocation_id, key, role);
        raw.join_with(hello).await
    }

    async fn join(&self, harness: &Harness, role: Role) -> Joined {
        self.try_join(harness, role, self.token().as_text()).await.unwrap()
    }

    async fn refused(&self, harness: &Harness) -> CloseCode {
        self.refused_with(harness, self.token().as_text()).await
    }

    async fn refused_with(&self, harness: &Harness, token: &str) -> CloseCode {
        self.try_join(harness, Role::Device, token).await.err().expect("it was let in").0
    }
}

/// The device that is pinned under an id that is no key.
fn pinned(harness: &Harness, change: impl FnOnce(&mut TokenFields)) -> Pair {
    let mut pair = harness.pair();
    pair.device = key(7);
    pair.token = pair.again(|fields| {
        fields.device_id = DeviceId([42; 32]);
        change(fields);
    });
    pair
}

async fn refreshed(joined: &mut Joined) -> (Option<u64>, Option<u64>) {
    joined
        .until(|message| match message {
            RelayMessage::Refreshed(refreshed) => Some((refreshed.bandwidth_limit, refreshed.quota_bytes)),
            _ => None,
        })
        .await
}

#[tokio::test]
async fn r4_5_a_token_is_clamped_to_its_tier() {
    let harness = harness();
    let greedy = pinned(&harness, |fields| {
        fields.bandwidth_bytes_per_sec = u32::MAX;
        fields.quota_bytes = u64::MAX;
    });
    let joined = harness.join(&greedy, Role::Device).await;
    assert_eq!(joined.allocated.bandwidth_limit, Some(50_000));
    assert_eq!(joined.allocated.quota_bytes, Some(500));
    let modest = pinned(&harness, |fields| {
        fields.allocation_id = AllocationId([1; 16]);
        fields.bandwidth_bytes_per_sec = 7;
        fields.quota_bytes = 8;
    });
    let joined = harness.join(&modest, Role::Device).await;
    assert_eq!((joined.allocated.bandwidth_limit, joined.allocated.quota_bytes), (Some(7), Some(8)));

    let mut issued = Issued::new(&harness);
    issued.fields.bandwidth_bytes_per_sec = Some(u64::MAX);
    issued.fields.quota_bytes = Some(2000);
    for (name, rate, quota) in [(None, 100_000, 1000), (Some("gold"), 900_000, 2000)] {
        issued.fields.tier = name.map(Into::into);
        issued.fields.allocation_id = AllocationId::random().unwrap();
        let joined = issued.join(&harness, Role::Peer).await;
        assert_eq!(joined.allocated.bandwidth_limit, Some(rate), "{name:?}");
        assert_eq!(joined.allocated.quota_bytes, Some(quota), "{name:?}");
    }
    issued.fields.tier = Some("unlimited".into());
    assert_eq!(issued.refused(&harness).await, CloseCode::TokenInvalid);
}

#[tokio::test]
async fn r4_5_a_tier_has_its_own_lifetime_and_its_own_count_of_allocations() {
    let short = Tier {
        allocations_per_device: Some(1),
        max_token_lifetime: Some(Duration::from_secs(60)),
        ..Tier::default()
    };
    let harness = Harness::with(|config| {
        config.admission = admission(Tier::default(), short, Tier::default());
    });
    let now = harness.clock.unix_secs();
    let mut issued = Issued::new(&harness);
    let _own = issued.join(&harness, Role::Device).await;
    issued.fields.tier = Some("gold".into());
    issued.fields.allocation_id = AllocationId::random().unwrap();
    assert_eq!(issued.refused(&harness).await, CloseCode::TokenInvalid, "an hour is too long");
    issued.fields.expires_at_unix = now + 50;
    assert_eq!(issued.refused(&harness).await, CloseCode::DeviceLimit, "the second of this device");
    let mut other = Issued::new(&harness);
    other.fields.tier = Some("gold".into());
    other.fields.expires_at_unix = now + 50;
    other.join(&harness, Role::Device).await;
}

#[tokio::test]
async fn r1_2_an_issuers_token_pairs_two_sides_that_prove_their_keys() {
    let harness = harness();
    let issued = Issued::new(&harness);
    let mut device = issued.join(&harness, Role::Device).await;
    let peer = issued.join(&harness, Role::Peer).await;
    device.until_present(true).await;
    device.send_datagram("through");
    assert_eq!(peer.datagram().await, "through");
    // The token alone is worth nothing.
    let thief = Issued { device: key(99), peer: key(98), fields: issued.fields.clone() };
    for role in Role::BOTH {
        let refused = thief.try_join(&harness, role, issued.token().as_text()).await;
        assert_eq!(refused.err().unwrap().0, CloseCode::ProofInvalid);
    }
    // A device may not vouch for itself here, whatever an issuer may.
    let own = harness.connect().await.join(&harness.pair(), Role::Device).await;
    assert_eq!(own.err().unwrap().0, CloseCode::TokenInvalid);
}

#[tokio::test]
async fn r1_2_a_pinned_device_proves_its_pinned_key_to_an_issuers_grant() {
    let harness = harness();
    let mut issued = Issued::new(&harness);
    issued.fields.device_id = DeviceId([42; 32]);
    let refused = issued.refused(&harness).await;
    assert_eq!(refused, CloseCode::ProofInvalid, "its own key is not the pinned one");
    issued.device = key(7);
    let joined = issued.join(&harness, Role::Device).await;
    assert_eq!(joined.allocated.quota_bytes, Some(1000), "the issuer's tier, not the device's");
}

#[tokio::test]
async fn r1_4_issuer_tokens_are_refused_alike_whatever_is_wrong() {
    let harness = harness();
    let issued = Issued::new(&harness);
    let with = |change: fn(&mut IssuerFields)| {
        let mut fields = issued.fields.clone();
        change(&mut fields);
        fields
    };
    let by = |fields: &IssuerFields, seed: u8, kid: &str| {
        fields.sign(&key(seed), &kid.parse().unwrap()).unwrap().as_text().to_owned()
    };
    let good = issued.token().as_text().to_owned();
    let mut heard = Vec::new();
    for (what, token) in [
        ("another issuer's key", by(&issued.fields, 6, "backend")),
        ("an unknown kid", by(&issued.fields, 5, "frontend")),
        ("the device's own key", by(&issued.fields, 7, "backend")),
        ("another relay", by(&with(|fields| fields.relay_id.0[0] ^= 1), 5, "backend")),
        ("too long a life", by(&with(|fields| fields.expires_at_unix += 86_400), 5, "backend")),
        ("not valid yet", by(&with(|fields| fields.not_before_unix = Some(u64::MAX)), 5, "backend")),
        ("a weak peer", by(&with(|fields| fields.peer_id.0 = [0; 32]), 5, "backend")),
        ("a weak device", by(&with(|fields| fields.device_id.0 = [0; 32]), 5, "backend")),
        ("a zeroed signature", format!("{}.{}", good.rsplit_once('.').unwrap().0, "A".repeat(86))),
        ("no signature", format!("{}.", good.rsplit_once('.').unwrap().0)),
        ("a blank", format!("{good} ")),
        ("too long a text", format!("{good}{}", "A".repeat(2048))),
    ] {
        let (code, message) = issued.try_join(&harness, Role::Device, &token).await.err().expect(what);
        assert_eq!(code, CloseCode::TokenInvalid, "{what}");
        heard.push(message);
    }
    heard.dedup();
    assert_eq!(heard.len(), 1, "{heard:?}");
    let expired = by(&with(|fields| fields.expires_at_unix = 1), 5, "backend");
    assert_eq!(issued.refused_with(&harness, &expired).await, CloseCode::TokenExpired);
    let other = by(&with(|fields| fields.allocation_id.0[0] ^= 1), 5, "backend");
    assert_eq!(issued.refused_with(&harness, &other).await, CloseCode::AllocationMismatch);
    assert_eq!(harness.metric("zrc_relay_allocations"), 0);
    issued.join(&harness, Role::Device).await;
}

/// R1.5 over the network: what is near a token that was believed is still refused.
#[tokio::test]
async fn r1_5_after_a_valid_token_its_relations_are_refused() {
    let harness = harness();
    let issued = Issued::new(&harness);
    let _joined = issued.join(&harness, Role::Device).await;
    let good = issued.token().as_text().to_owned();
    let (_, signature) = good.rsplit_once('.').unwrap();
    let body = |fields: IssuerFields| {
        let token = fields.sign(&key(5), &kid()).unwrap();
        token.as_text().rsplit_once('.').unwrap().0.to_owned()
    };
    for token in [
        format!("{}.{}", body(issued.fields.clone()), "A".repeat(86)),
        format!("{}.{signature}", body(IssuerFields { quota_bytes: Some(5000), ..issued.fields.clone() })),
        format!("{}.{signature}", body(IssuerFields { peer_id: PeerId([3; 32]), ..issued.fields.clone() })),
        format!("{}.{signature}", body(IssuerFields { tier: Some("gold".into()), ..issued.fields.clone() })),
    ] {
        assert_eq!(issued.refused_with(&harness, &token).await, CloseCode::TokenInvalid);
    }
    // The issuer's key is another one, then the issuer is gone, then all is as it was.
    let mut changed = usual();
    changed.issuers.get_mut("backend").unwrap().key = public(&key(6));
    let mut removed = usual();
    removed.issuers.clear();
    for admission in [changed, removed] {
        harness.server.set_admission(admission);
        assert_eq!(issued.refused(&harness).await, CloseCode::TokenInvalid);
    }
    harness.server.set_admission(usual());
    let mut fresh = Issued::new(&harness);
    fresh.join(&harness, Role::Device).await;
    // What was ended for it stays ended: KILLED is final.
    assert_eq!(issued.refused(&harness).await, CloseCode::Killed);
    // The device is pinned with another key: the cached token no longer makes its own key the proof.
    let mut admission = usual();
    let id = fresh.fields.device_id;
    admission.pinned.insert(id, Pinned { key: public(&key(11)), tier: Tier::default() });
    harness.server.set_admission(admission.clone());
    fresh.fields.allocation_id = AllocationId::random().unwrap();
    assert_eq!(fresh.refused(&harness).await, CloseCode::ProofInvalid);
    // The device is revoked, under every issuer.
    admission.revoked.insert(id);
    harness.server.set_admission(admission);
    assert_eq!(fresh.refused(&harness).await, CloseCode::TokenInvalid);
}

#[tokio::test]
async fn r1_5_a_devices_cached_token_is_worth_nothing_once_its_key_has_changed() {
    let harness = harness();
    let pair = pinned(&harness, |_| {});
    harness.join(&pair, Role::Device).await;
    let mut changed = usual();
    changed.pinned.get_mut(&DeviceId([42; 32])).unwrap().key = public(&key(8));
    harness.server.set_admission(changed);
    let refused = harness.connect().await.join(&pair, Role::Device).await;
    assert_eq!(refused.err().unwrap().0, CloseCode::TokenInvalid);
}

#[tokio::test]
async fn revoking_a_device_ends_its_allocations_and_no_others() {
    in_one_of_five_tries(async || {
        let took = revoking_a_device().await;
        (took < AT_ONCE).then_some(()).ok_or_else(|| format!("{took:?}"))
    })
    .await;
}

/// How long it took until both sides knew.
async fn revoking_a_device() -> Duration {
    let harness = harness();
    let pair = pinned(&harness, |_| {});
    let (mut device, mut peer) = harness.joined_pair(&pair).await;
    let neighbours = Issued::new(&harness);
    let mut neighbour = neighbours.join(&harness, Role::Device).await;
    let other_side = neighbours.join(&harness, Role::Peer).await;
    neighbour.until_present(true).await;

    let mut admission = usual();
    admission.pinned.clear();
    admission.revoked.insert(DeviceId([42; 32]));
    let asked = harness.clock.mono();
    harness.server.set_admission(admission);
    for side in [&mut device, &mut peer] {
        assert_eq!(side.closing().await, (CloseCode::Killed, "device revoked".to_owned()));
    }
    let took = harness.clock.mono() - asked;
    assert_eq!(harness.metric("zrc_relay_security_events_total{event=\"device_revoked\"}"), 1);
    neighbour.send_datagram("undisturbed");
    assert_eq!(other_side.datagram().await, "undisturbed");
    let refused = harness.connect().await.join(&pair, Role::Peer).await;
    assert_eq!(refused.err().unwrap().0, CloseCode::TokenInvalid);
    took
}

#[tokio::test]
async fn whoever_is_taken_out_of_the_lists_is_ended_with_the_reason() {
    for (change, reason) in [
        ((|it| it.pinned.clear()) as fn(&mut Admission), "device removed"),
        (
            |it| it.pinned.values_mut().for_each(|device| device.key = public(&key(8))),
            "the key of device or issuer was changed; mint a new token",
        ),
    ] {
        let harness = harness();
        let mut device = harness.join(&pinned(&harness, |_| {}), Role::Device).await;
        let mut admission = usual();
        change(&mut admission);
        harness.server.set_admission(admission);
        assert_eq!(device.closing().await, (CloseCode::Killed, reason.to_owned()));
    }
    for (change, reason) in [
        ((|it| it.issuers.clear()) as fn(&mut Admission), "issuer removed"),
        (
            |it| it.issuers.values_mut().for_each(|issuer| issuer.tiers.clear()),
            "the issuer may no longer grant this tier",
        ),
    ] {
        let harness = harness();
        let mut issued = Issued::new(&harness);
        issued.fields.tier = Some("gold".into());
        let mut device = issued.join(&harness, Role::Device).await;
        let mut admission = usual();
        change(&mut admission);
        harness.server.set_admission(admission);
        assert_eq!(device.closing().await, (CloseCode::Killed, reason.to_owned()));
    }
}

#[tokio::test]
async fn r4_5_a_changed_tier_applies_to_running_allocations() {
    let harness = harness();
    let mut greedy = Issued::new(&harness);
    greedy.fields.quota_bytes = Some(5000);
    let mut device = greedy.join(&harness, Role::Device).await;
    let mut peer = greedy.join(&harness, Role::Peer).await;
    device.until_present(true).await;
    assert_eq!(device.allocated.quota_bytes, Some(1000));
    // More is given: up to what the token asks for.
    harness.server.set_admission(admission(tier(200_000, 9000), Tier::default(), Tier::default()));
    for side in [&mut device, &mut peer] {
        assert_eq!(refreshed(side).await, (Some(200_000), Some(5000)));
    }
    for _ in 0..3 {
        device.send_datagram(vec![7; 600]);
        assert_eq!(peer.datagram().await.len(), 600, "beyond the 1000 bytes of before");
    }
    // Less is given, less than was used: the next byte is one too many.
    harness.server.set_admission(admission(tier(200_000, 1801), Tier::default(), Tier::default()));
    assert_eq!(refreshed(&mut device).await.1, Some(1801));
    device.send_datagram("xy");
    assert_eq!(device.closing().await.0, CloseCode::QuotaExceeded);
}

/// Between Hello and proof a caller is nowhere yet; revoked meanwhile, it does not come in.
#[tokio::test]
async fn a_device_that_is_revoked_while_it_proves_its_key_stays_out() {
    use crate::wire::control::Prove;
    let harness = harness();
    let pair = pinned(&harness, |_| {});
    let raw = harness.connect().await;
    let hello = Hello { proof: None, ..raw.hello(&pair, Role::Device) };
    let mut control = raw.begin(&ClientMessage::Hello(hello).to_frame()).await;
    let Some(RelayMessage::Challenge(challenge)) = control.next().await else { panic!("no Challenge") };
    let mut admission = usual();
    admission.revoked.insert(DeviceId([42; 32]));
    harness.server.set_admission(admission);
    let nonce = challenge.nonce.as_ref().try_into().unwrap();
    let binding = Binding::Nonce { nonce, spki_sha256: spki(&harness).0 };
    let proof = proof::prove(&pair.device, Role::Device, &pair.token.hash(), &binding);
    control.say(&ClientMessage::Prove(Prove { proof: Bytes::copy_from_slice(&proof) })).await;
    assert_eq!(control.close_code().await, CloseCode::TokenInvalid);
    assert_eq!(harness.metric("zrc_relay_allocations"), 0);
}

#[tokio::test]
async fn r1_6_an_issuers_refresh_brings_another_tier() {
    let harness = harness();
    let mut issued = Issued::new(&harness);
    let mut device = issued.join(&harness, Role::Device).await;
    issued.fields.expires_at_unix += 60;
    issued.fields.tier = Some("gold".into());
    let refresh = |token: IssuerToken| {
        ClientMessage::Refresh(Refresh { token: AnyToken::from(token).to_bytes().into() })
    };
    device.control.say(&refresh(issued.token())).await;
    assert_eq!(refreshed(&mut device).await, (Some(900_000), Some(9000)));
    issued.fields.expires_at_unix += 60;
    issued.fields.tier = Some("unlimited".into());
    device.control.say(&refresh(issued.token())).await;
    assert_eq!(device.control.close_code().await, CloseCode::TokenInvalid);
}
