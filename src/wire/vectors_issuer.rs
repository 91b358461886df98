//! Issuer tokens against the vectors of `tests/vectors/jwt.json`.

use std::{collections::BTreeSet, time::Duration};

use ed25519_dalek::SigningKey;
use serde::Deserialize;

use super::{
    IssuerFields, IssuerToken, PublicKey, TokenError,
    token::Expected,
    vectors::{RefusedToken, array, bytes, number, read},
};

#[derive(Deserialize)]
struct JwtFields {
    relay_id: String,
    allocation_id: String,
    device_id: String,
    peer_id: String,
    expires_at: String,
    not_before: Option<String>,
    bandwidth_limit: String,
    quota_bytes: String,
    tier: Option<String>,
}

impl JwtFields {
    fn parse(&self) -> IssuerFields {
        IssuerFields {
            relay_id: self.relay_id.parse().unwrap(),
            allocation_id: self.allocation_id.parse().unwrap(),
            device_id: self.device_id.parse().unwrap(),
            peer_id: self.peer_id.parse().unwrap(),
            expires_at_unix: number(&self.expires_at),
            not_before_unix: self.not_before.as_deref().map(number),
            bandwidth_bytes_per_sec: Some(number(&self.bandwidth_limit)).filter(|rate| *rate != 0),
            quota_bytes: Some(number(&self.quota_bytes)).filter(|quota| *quota != 0),
            tier: self.tier.as_deref().map(Into::into),
        }
    }
}

#[derive(Deserialize)]
struct ValidJwt {
    name: String,
    fields: JwtFields,
    token: String,
    token_sha256: String,
}

#[derive(Deserialize)]
struct Jwts {
    issuer_seed: String,
    issuer_key: String,
    kid: String,
    valid: Vec<ValidJwt>,
    refused: Vec<RefusedToken>,
}

#[test]
fn issuer_tokens_are_read() {
    let jwts: Jwts = read("jwt.json");
    let key = PublicKey::from(&SigningKey::from_bytes(&array(&jwts.issuer_seed)));
    assert_eq!(hex::encode(key.as_bytes()), jwts.issuer_key);
    assert!(jwts.valid.len() >= 8);
    for case in &jwts.valid {
        let name = &case.name;
        let token = IssuerToken::from_bytes(case.token.as_bytes()).unwrap();
        let fields = case.fields.parse();
        assert_eq!(token.kid().as_str(), jwts.kid, "{name}");
        assert_eq!(token.fields().unwrap(), fields, "{name}");
        assert_eq!(hex::encode(token.hash().0), case.token_sha256, "{name}");
        let claims = token.verify(&key, |_| None).unwrap().check(&Expected {
            relay_id: &fields.relay_id,
            allocation_id: fields.allocation_id.as_bytes(),
            now_unix: fields.expires_at_unix - 1,
            max_lifetime: None,
        });
        let claims = claims.unwrap();
        assert_eq!(claims.quota_bytes, fields.quota_bytes, "{name}");
        assert_eq!(claims.tier, fields.tier, "{name}");
        assert_eq!(hex::encode(claims.token_hash.0), case.token_sha256, "{name}");
    }
}

#[test]
fn issuer_tokens_are_refused() {
    let jwts: Jwts = read("jwt.json");
    let key = PublicKey::from_bytes(&array(&jwts.issuer_key)).unwrap();
    let judge = |case: &RefusedToken| {
        let token = IssuerToken::from_bytes(case.token.as_bytes())?;
        if token.kid().as_str() != jwts.kid {
            return Err(TokenError::UnknownIssuer);
        }
        let expected = &case.expected;
        token.verify(&key, |_| None)?.check(&Expected {
            relay_id: &expected.relay_id.parse().unwrap(),
            allocation_id: &bytes(&expected.allocation_id),
            now_unix: number(&expected.now),
            max_lifetime: Some(Duration::from_secs(number(&expected.max_lifetime_s))),
        })
    };
    let mut reasons = BTreeSet::new();
    for case in &jwts.refused {
        let error = judge(case).expect_err(&case.name);
        assert_eq!(error.reason(), case.reason, "{}", case.name);
        assert_eq!(error.close_code().name(), case.code, "{}", case.name);
        reasons.insert(error.reason());
    }
    assert_eq!(reasons.len(), 26, "every reason that there is: {reasons:?}");
}
