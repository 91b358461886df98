//! Ordinary and hostile JWTs.

use std::{collections::HashSet, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::wire::{AnyToken, Claims, CloseCode, KeyError, VerifiedTokens, token::Expected};

const NOW: u64 = 1_893_452_400;
const RELAY: RelayId = RelayId([0xa1; 16]);

fn issuer() -> SigningKey {
    SigningKey::from_bytes(&[5; 32])
}

fn issuer_key() -> PublicKey {
    PublicKey::from(&issuer())
}

fn kid() -> KeyId {
    "backend-2026".parse().unwrap()
}

fn public(seed: u8) -> [u8; 32] {
    *PublicKey::from(&SigningKey::from_bytes(&[seed; 32])).as_bytes()
}

fn fields() -> IssuerFields {
    IssuerFields {
        relay_id: RELAY,
        allocation_id: AllocationId([0xa2; 16]),
        device_id: DeviceId(public(1)),
        peer_id: PeerId(public(2)),
        expires_at_unix: NOW + 60,
        not_before_unix: None,
        bandwidth_bytes_per_sec: Some(1_250_000),
        quota_bytes: Some(1_000_000_000),
        tier: Some("gold".into()),
    }
}

fn expected() -> Expected<'static> {
    Expected {
        relay_id: &RELAY,
        allocation_id: &[0xa2; 16],
        now_unix: NOW,
        max_lifetime: Some(Duration::from_secs(3600)),
    }
}

const HEADER: &str = r#"{"typ":"relay+jwt","alg":"EdDSA","kid":"backend-2026"}"#;

fn claims_json() -> String {
    let (dev, peer) = (hex::encode(public(1)), hex::encode(public(2)));
    let (aud, jti) = ("a1".repeat(16), "a2".repeat(16));
    format!(r#"{{"aud":"{aud}","exp":{},"jti":"{jti}","dev":"{dev}","peer":"{peer}"}}"#, NOW + 60)
}

/// A token of exactly these texts, with a good signature.
fn signed(header: &str, claims: &str) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = issuer().sign(signed.as_bytes()).to_bytes();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn judge(text: &str) -> Result<Claims, TokenError> {
    IssuerToken::from_bytes(text.as_bytes())?.verify(&issuer_key(), |_| None)?.check(&expected())
}

fn refused(text: &str) -> &'static str {
    let error = judge(text).expect_err(text);
    assert!(!error.to_string().is_empty());
    assert_eq!(error.close_code(), CloseCode::TokenInvalid);
    error.reason()
}

#[test]
fn a_good_token_becomes_the_claims_that_a_devices_would() {
    let token = fields().sign(&issuer(), &kid()).unwrap();
    assert_eq!(token.fields().unwrap(), fields());
    let claims = judge(token.as_text()).unwrap();
    assert_eq!(claims.identity.signer, Signer::Issuer("backend-2026".into()));
    assert_eq!(claims.identity.device_id, fields().device_id);
    assert_eq!(claims.identity.peer_id, fields().peer_id);
    assert_eq!(claims.identity.allocation_id, fields().allocation_id);
    assert_eq!(claims.expires_at_unix, NOW + 60);
    assert_eq!(claims.bandwidth_bytes_per_sec, Some(1_250_000));
    assert_eq!(claims.quota_bytes, Some(1_000_000_000));
    assert_eq!(claims.tier.as_deref(), Some("gold"));
    assert_eq!(claims.signed_by, issuer_key());
    assert_eq!(*claims.device_key.as_bytes(), public(1));
    assert_eq!(*claims.peer_key.as_bytes(), public(2));
    assert_eq!(claims.token_hash, TokenHash::of(token.as_text().as_bytes()));
    // The least that a token says.
    let claims = judge(&signed(HEADER, &claims_json())).unwrap();
    assert_eq!((claims.bandwidth_bytes_per_sec, claims.quota_bytes, claims.tier), (None, None, None));
}

#[test]
fn a_pinned_key_comes_before_the_device_id() {
    let weak = IssuerFields { device_id: DeviceId([0; 32]), ..fields() }.sign(&issuer(), &kid()).unwrap();
    let error = weak.verify(&issuer_key(), |_| None).unwrap_err();
    assert_eq!(error, TokenError::DeviceKey(KeyError::SmallOrder));
    let pinned = PublicKey::from(&SigningKey::from_bytes(&[9; 32]));
    let verified = weak.verify(&issuer_key(), |id| (id.0 == [0; 32]).then_some(pinned)).unwrap();
    assert_eq!(*verified.device_key(), pinned);
    let weak = IssuerFields { peer_id: PeerId([0; 32]), ..fields() }.sign(&issuer(), &kid()).unwrap();
    assert_eq!(refused(weak.as_text()), "peer_key");
}

#[test]
fn both_names_of_the_algorithm_are_read_and_no_other() {
    for alg in ["EdDSA", "Ed25519"] {
        judge(&signed(&HEADER.replace("EdDSA", alg), &claims_json())).unwrap();
    }
    for alg in ["none", "None", "", "eddsa", "ED25519", "Ed448", "HS256", "HS512", "RS256", "ES256", "ES256K"]
    {
        assert_eq!(refused(&signed(&HEADER.replace("EdDSA", alg), &claims_json())), "jwt_alg", "{alg}");
    }
    assert_eq!(refused(&signed(&HEADER.replace(r#""EdDSA""#, r#"["EdDSA"]"#), &claims_json())), "jwt_alg");
}

#[test]
fn the_header_says_what_it_must_and_nothing_that_is_dangerous() {
    for (header, reason) in [
        (HEADER.replace("relay+jwt", "JWT"), "jwt_typ"),
        (HEADER.replace("relay+jwt", "RELAY+JWT"), "jwt_typ"),
        (HEADER.replace(r#""typ":"relay+jwt","#, ""), "jwt_typ"),
        (HEADER.replace(r#""alg":"EdDSA","#, ""), "jwt_alg"),
        (HEADER.replace(r#","kid":"backend-2026""#, ""), "jwt_kid"),
        (HEADER.replace("backend-2026", ""), "jwt_kid"),
        (HEADER.replace("backend-2026", "a b"), "jwt_kid"),
        (HEADER.replace("backend-2026", r"a\nb"), "jwt_kid"),
        (HEADER.replace("backend-2026", &"k".repeat(129)), "jwt_kid"),
        (HEADER.replace(r#""backend-2026""#, "7"), "jwt_kid"),
        (HEADER.replace("{", r#"{"jwk":{},"#), "jwt_header"),
        (HEADER.replace("{", r#"{"jku":"https://example.com","#), "jwt_header"),
        (HEADER.replace("{", r#"{"x5u":null,"#), "jwt_header"),
        (HEADER.replace("{", r#"{"crit":[],"#), "jwt_header"),
        // The same name, spelled otherwise.
        (HEADER.replace("{", r#"{"jw\u006b":{},"#), "jwt_header"),
        (HEADER.replace("{", r#"{"alg":"none","#), "jwt_duplicate"),
        (HEADER.replace("{", r#"{"al\u0067":"none","#), "jwt_duplicate"),
        (format!("[{HEADER}]"), "jwt_json"),
        (format!("{HEADER}{HEADER}"), "jwt_json"),
        (String::new(), "jwt_json"),
        ("null".into(), "jwt_json"),
    ] {
        assert_eq!(refused(&signed(&header, &claims_json())), reason, "{header}");
    }
    judge(&signed(&HEADER.replace("{", r#"{"cty":"x","x-of-mine":[1],"#), &claims_json())).unwrap();
}

#[test]
fn claims_are_whole_and_strict() {
    let json = claims_json();
    let with = |member: &str| json.replacen('{', &format!("{{{member},"), 1);
    for (claims, reason) in [
        (json.replace("\"aud\"", "\"for\""), "jwt_aud"),
        (json.replace(&"a1".repeat(16), &"a1".repeat(15)), "jwt_aud"),
        (json.replace(&format!("\"{}\"", "a1".repeat(16)), &format!("[\"{}\"]", "a1".repeat(16))), "jwt_aud"),
        (json.replace("\"exp\"", "\"till\""), "jwt_exp"),
        (json.replace(&format!("{}", NOW + 60), "1.9e9"), "jwt_exp"),
        (json.replace(&format!("{}", NOW + 60), &format!("{}.0", NOW + 60)), "jwt_exp"),
        (json.replace(&format!("{}", NOW + 60), "-1"), "jwt_exp"),
        (json.replace(&format!("{}", NOW + 60), &format!("\"{}\"", NOW + 60)), "jwt_exp"),
        (json.replace(&format!("{}", NOW + 60), "18446744073709551616"), "jwt_exp"),
        (json.replace("\"jti\"", "\"id\""), "jwt_jti"),
        (json.replace(&"a2".repeat(16), "a2-a2"), "jwt_jti"),
        (json.replace("\"dev\"", "\"sub\""), "jwt_dev"),
        (json.replace("\"peer\"", "\"pear\""), "jwt_peer"),
        (with(r#""nbf":null"#), "jwt_nbf"),
        (with(r#""bps":"10""#), "jwt_bps"),
        (with(r#""bps":-1"#), "jwt_bps"),
        (with(r#""quota":1.5"#), "jwt_quota"),
        (with(r#""tier":7"#), "jwt_tier"),
        (with(r#""exp":1"#), "jwt_duplicate"),
        (with(r#""quota":1,"quota":2"#), "jwt_duplicate"),
        (with(r#""mine":1,"mine":1"#), "jwt_duplicate"),
        (with(r#""mine":{"a":[{"b":1,"b":1}]}"#), "jwt_duplicate"),
        (json.replace('}', ""), "jwt_json"),
        (format!("{json} x"), "jwt_json"),
        (format!("[{json}]"), "jwt_json"),
        (with(&format!("\"deep\":{}1{}", "[".repeat(200), "]".repeat(200))), "jwt_json"),
    ] {
        assert_eq!(refused(&signed(HEADER, &claims)), reason, "{claims}");
    }
    // What is not asked for may be there; 0 is the tier's default.
    let claims =
        judge(&signed(HEADER, &with(r#""iss":"x","iat":1.5,"sub":null,"mine":{},"bps":0,"quota":0"#)));
    let claims = claims.unwrap();
    assert_eq!((claims.bandwidth_bytes_per_sec, claims.quota_bytes), (None, None));
}

#[test]
fn every_kind_of_wrong_claim_has_a_reason_of_its_own() {
    let claims = [
        JwtClaim::Aud,
        JwtClaim::Exp,
        JwtClaim::Nbf,
        JwtClaim::Jti,
        JwtClaim::Dev,
        JwtClaim::Peer,
        JwtClaim::Bps,
        JwtClaim::Quota,
        JwtClaim::Tier,
    ];
    let reasons: HashSet<_> = claims.map(|claim| JwtError::Claim(claim).reason()).into();
    assert_eq!(reasons.len(), claims.len());
    for claim in claims {
        let error = JwtError::Claim(claim);
        assert_eq!(error.reason(), format!("jwt_{}", claim.name()));
        assert!(error.to_string().contains(claim.name()), "{error}");
    }
}

#[test]
fn times_audience_and_allocation_are_judged_at_their_edges() {
    let outcome = |change: fn(&mut IssuerFields)| {
        let mut fields = fields();
        change(&mut fields);
        judge(fields.sign(&issuer(), &kid()).unwrap().as_text()).map(drop)
    };
    assert_eq!(outcome(|fields| fields.expires_at_unix = NOW), Err(TokenError::Expired));
    assert_eq!(outcome(|fields| fields.expires_at_unix = NOW + 1), Ok(()));
    assert_eq!(outcome(|fields| fields.expires_at_unix = NOW + 3600), Ok(()));
    assert_eq!(outcome(|fields| fields.expires_at_unix = NOW + 3601), Err(TokenError::LifetimeTooLong));
    assert_eq!(outcome(|fields| fields.expires_at_unix = u64::MAX), Err(TokenError::LifetimeTooLong));
    assert_eq!(outcome(|fields| fields.not_before_unix = Some(NOW)), Ok(()));
    assert_eq!(outcome(|fields| fields.not_before_unix = Some(NOW + 1)), Err(TokenError::NotYetValid));
    assert_eq!(outcome(|fields| fields.relay_id = RelayId([9; 16])), Err(TokenError::WrongRelay));
    let other = outcome(|fields| fields.allocation_id = AllocationId([9; 16]));
    assert_eq!(other, Err(TokenError::WrongAllocation));
}

/// Also every other spelling of base64url.
#[test]
fn every_wrong_bit_is_refused() {
    let good = fields().sign(&issuer(), &kid()).unwrap().as_text().to_owned();
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut wrong = good.clone().into_bytes();
            wrong[at] ^= 1 << bit;
            let judged =
                IssuerToken::from_bytes(&wrong).and_then(|token| token.verify(&issuer_key(), |_| None));
            assert!(judged.is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn the_form_is_three_parts_of_base64url() {
    let good = signed(HEADER, &claims_json());
    let (signed_part, signature) = good.rsplit_once('.').unwrap();
    let (header, claims) = signed_part.split_once('.').unwrap();
    for bad in [
        String::new(),
        ".".into(),
        "..".into(),
        signed_part.to_owned(),
        format!("{signed_part}."),
        format!("{good}."),
        format!(".{good}"),
        format!("{good}="),
        format!("{good}\n"),
        format!(" {good}"),
        format!("{header}.{claims}.{signature}.{signature}"),
        format!("{header}=.{claims}.{signature}"),
        format!("{signed_part}.{}", &signature[1..]),
        format!("{signed_part}.{}", URL_SAFE_NO_PAD.encode([0; 63])),
        format!("{signed_part}.{}", URL_SAFE_NO_PAD.encode([0; 65])),
        // The last character has two bits that say nothing: only 0 may stand there.
        format!("{signed_part}.{}B", "A".repeat(85)),
        good.replace('.', "+"),
        "é.é.é".into(),
    ] {
        let reason = refused(&bad);
        assert!(matches!(reason, "jwt_form" | "jwt_json"), "{reason}: {bad}");
    }
    assert_eq!(IssuerToken::from_bytes(&[0xff; 300]).unwrap_err().reason(), "jwt_form");
    // A zeroed signature is well formed, and nobody's.
    assert_eq!(refused(&format!("{signed_part}.{}", "A".repeat(86))), "signature");
}

#[test]
fn a_token_is_at_most_2_kib() {
    let padded = |len: usize| {
        let text = |pad: usize| {
            signed(HEADER, &claims_json().replacen('{', &format!(r#"{{"pad":"{}","#, "x".repeat(pad)), 1))
        };
        (0..len).map(text).find(|text| text.len() >= len).unwrap()
    };
    let longest = padded(2047);
    assert!((2047..=2048).contains(&longest.len()), "{}", longest.len());
    judge(&longest).unwrap();
    let long = padded(2049);
    assert_eq!(refused(&long), "jwt_too_long");
    assert_eq!(IssuerToken::from_text(&long).unwrap_err().reason(), "jwt_too_long");
    assert_eq!(refused(&"a.".repeat(40_000)), "jwt_too_long");
    let fields = IssuerFields { tier: Some("t".repeat(2000).into()), ..fields() };
    assert_eq!(fields.sign(&issuer(), &kid()).unwrap_err().reason(), "jwt_too_long");
}

/// After the valid one, each of its near relations is still refused, and the valid one too under another key.
#[test]
fn r1_5_a_known_token_is_known_under_its_keys_alone() {
    let tokens = VerifiedTokens::new(16);
    let nobody = |_: &DeviceId| None;
    let token = fields().sign(&issuer(), &kid()).unwrap();
    for _ in 0..3 {
        tokens.verify_issued(&token, &issuer_key(), nobody).unwrap();
    }
    // A zeroed signature, a larger quota, another peer: under the signature that was seen.
    let (signed_part, signature) = token.as_text().rsplit_once('.').unwrap();
    let part_of = |fields: IssuerFields| {
        let other = fields.sign(&issuer(), &kid()).unwrap();
        other.as_text().rsplit_once('.').unwrap().0.to_owned()
    };
    for forged in [
        format!("{signed_part}.{}", "A".repeat(86)),
        format!("{}.{signature}", part_of(IssuerFields { quota_bytes: Some(2_000_000_000), ..fields() })),
        format!("{}.{signature}", part_of(IssuerFields { peer_id: PeerId(public(3)), ..fields() })),
        format!("{}.{signature}", part_of(IssuerFields { tier: Some("unlimited".into()), ..fields() })),
    ] {
        let forged = IssuerToken::from_text(&forged).unwrap();
        let error = tokens.verify_issued(&forged, &issuer_key(), nobody).unwrap_err();
        assert_eq!(error, TokenError::Signature);
    }
    // The issuer has another key now.
    let other = PublicKey::from(&SigningKey::from_bytes(&[6; 32]));
    let error = tokens.verify_issued(&token, &other, nobody).unwrap_err();
    assert_eq!(error, TokenError::Signature);
    // The device's key is pinned since, then pinned anew, then no more: the proof must be made by that one.
    for seed in [7, 8] {
        let pinned = PublicKey::from(&SigningKey::from_bytes(&[seed; 32]));
        let verified = tokens.verify_issued(&token, &issuer_key(), |_| Some(pinned)).unwrap();
        assert_eq!(*verified.device_key(), pinned);
    }
    let verified = tokens.verify_issued(&token, &issuer_key(), nobody).unwrap();
    assert_eq!(*verified.device_key().as_bytes(), public(1));
}

#[test]
fn either_kind_is_told_by_its_form() {
    let issued = fields().sign(&issuer(), &kid()).unwrap();
    let text = issued.as_text().to_owned();
    let any = AnyToken::from(issued.clone());
    assert_eq!(AnyToken::from_text(&text), Ok(any.clone()));
    assert_eq!(AnyToken::from_bytes(text.as_bytes()), Ok(any.clone()));
    assert_eq!((any.to_text(), any.to_bytes(), any.hash()), (text.clone(), text.into_bytes(), issued.hash()));
    // 180 bytes are RelayTokenV1, whatever stands in them; what has no dot is no JWT.
    assert!(matches!(AnyToken::from_bytes(&[b'.'; 180]), Ok(AnyToken::Device(_))));
    assert_eq!(AnyToken::from_bytes(&[7; 181]).unwrap_err().reason(), "length");
    assert_eq!(AnyToken::from_text("abc").unwrap_err().reason(), "text");
    assert_eq!(AnyToken::from_text("a.b").unwrap_err().reason(), "jwt_form");
}

#[test]
fn nothing_of_a_token_is_shown_but_its_kid() {
    let token = fields().sign(&issuer(), &kid()).unwrap();
    let shown = format!("{token:?} {:?}", AnyToken::from(token.clone()));
    assert!(shown.contains("backend-2026"));
    for part in token.as_text().split('.') {
        assert!(!shown.contains(&part[..12]), "{shown}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_token_comes_back(
        ids: ([u8; 16], [u8; 16], [u8; 32], [u8; 32]), expires_at_unix: u64, not_before_unix: Option<u64>,
        rate in prop::option::of(1..=u64::MAX), quota in prop::option::of(1..=u64::MAX),
        tier in prop::option::of("\\PC{0,40}"), seed: [u8; 32], kid in "[!-~]{1,128}",
    ) {
        let fields = IssuerFields {
            relay_id: RelayId(ids.0),
            allocation_id: AllocationId(ids.1),
            device_id: DeviceId(ids.2),
            peer_id: PeerId(ids.3),
            expires_at_unix,
            not_before_unix,
            bandwidth_bytes_per_sec: rate,
            quota_bytes: quota,
            tier: tier.map(Into::into),
        };
        let key = SigningKey::from_bytes(&seed);
        let token = fields.sign(&key, &kid.parse().unwrap()).unwrap();
        prop_assert_eq!(token.kid().as_str(), kid);
        prop_assert_eq!(token.fields().unwrap(), fields);
        prop_assert_eq!(&IssuerToken::from_bytes(token.as_text().as_bytes()).unwrap(), &token);
        match token.verify(&PublicKey::from(&key), |_| None) {
            Ok(_) => {}
            Err(error) => prop_assert!(matches!(error, TokenError::PeerKey(_) | TokenError::DeviceKey(_))),
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        prop_assert!(IssuerToken::from_bytes(&bytes).is_err());
    }

    #[test]
    fn arbitrary_json_is_judged(header in "\\PC{0,80}", claims in "\\PC{0,300}") {
        prop_assert!(judge(&signed(&header, &claims)).is_err());
        prop_assert!(judge(&signed(HEADER, &claims)).is_err());
    }

    /// Good JSON, cut, doubled or with a byte changed somewhere.
    #[test]
    fn mangled_claims_are_judged(at in 0..250_usize, byte: u8, kind in 0..3) {
        let mut json = claims_json().into_bytes();
        let at = at % json.len();
        match kind {
            0 => json.truncate(at),
            1 => json[at] = byte,
            _ => json.insert(at, byte),
        }
        if let Ok(json) = String::from_utf8(json)
            && let Ok(claims) = judge(&signed(HEADER, &json))
        {
            prop_assert_eq!(claims.identity.allocation_id.0, [0xa2; 16]);
        }
    }
}
