//! Issuer tokens: JWTs in which an operator's back end grants an allocation. `PROTOCOL.md` section 2.
//!
//! Bytes become an [`IssuerToken`] (well formed, nothing believed), that a [`VerifiedToken`] (signed by the issuer
//! that its `kid` names), and that [`Claims`](super::Claims), the same as those of a device's token. The header is
//! read before the signature is checked, because it names the key; the claims are read after.
//!
//! JSON is read strictly: no member twice, at any depth; numbers are whole; base64url has one spelling. What a token
//! says beyond what is asked for is ignored, except the header members that would name another key or demand an
//! extension.

use std::{fmt, str::FromStr, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value, json};

use super::{
    AllocationId, DeviceId, PeerId, PublicKey, RelayId, Signer, TokenError, TokenHash, token::VerifiedToken,
};

/// What the header's `typ` must say.
const TYP: &str = "relay+jwt";
/// Header members that are refused: three would have the token bring its own key, one demands an extension.
const FORBIDDEN: [&str; 4] = ["jwk", "jku", "x5u", "crit"];
/// How the texts of duplicate members' errors begin, by which they are told from other faults of JSON.
const DUPLICATE: &str = "duplicate member";

/// A member of the claims that is missing or is not what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JwtClaim {
    /// The relay's id, 32 hex digits.
    Aud,
    /// Unix seconds.
    Exp,
    /// Unix seconds, optional.
    Nbf,
    /// The allocation's id, 32 hex digits.
    Jti,
    /// The device's id, 64 hex digits.
    Dev,
    /// The peer's key, 64 hex digits.
    Peer,
    /// Bytes per second, optional.
    Bps,
    /// Bytes, optional.
    Quota,
    /// A tier's name, optional.
    Tier,
}

impl JwtClaim {
    /// Its name in the JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aud => "aud",
            Self::Exp => "exp",
            Self::Nbf => "nbf",
            Self::Jti => "jti",
            Self::Dev => "dev",
            Self::Peer => "peer",
            Self::Bps => "bps",
            Self::Quota => "quota",
            Self::Tier => "tier",
        }
    }

    const fn must_be(self) -> &'static str {
        match self {
            Self::Aud => "one relay id, 32 hex digits",
            Self::Exp => "a whole number of unix seconds",
            Self::Nbf => "absent or a whole number of unix seconds",
            Self::Jti => "an allocation id, 32 hex digits",
            Self::Dev => "a device id, 64 hex digits",
            Self::Peer => "a peer's public key, 64 hex digits",
            Self::Bps => "absent or a whole number of bytes per second",
            Self::Quota => "absent or a whole number of bytes",
            Self::Tier => "absent or the name of a tier",
        }
    }
}

/// Why bytes are no issuer token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Longer than [`IssuerToken::MAX_LEN`].
    #[error("an issuer token is at most {} bytes", IssuerToken::MAX_LEN)]
    TooLong,
    /// Not three parts of base64url, separated by dots, in their one spelling; or the last is not 64 bytes.
    #[error(
        "an issuer token is three parts of base64url without padding, separated by dots, the last of 64 bytes"
    )]
    Form,
    /// Header or claims are no JSON object.
    #[error("header and claims must be JSON objects")]
    Json,
    /// A member stands twice in one object.
    #[error("a member stands twice in one JSON object")]
    Duplicate,
    /// Another `typ`.
    #[error("the header's typ must be {TYP}")]
    Typ,
    /// Another `alg`.
    #[error("the header's alg must be EdDSA or Ed25519")]
    Alg,
    /// No `kid`, or one that no issuer has.
    #[error("the header's kid must name an issuer: {KeyIdError}")]
    Kid,
    /// A header member that is not allowed.
    #[error("the header has {0}, which is not allowed")]
    Header(&'static str),
    /// A claim that is missing or wrong.
    #[error("the claim {} must be {}", .0.name(), .0.must_be())]
    Claim(JwtClaim),
}

impl JwtError {
    /// A short stable word for programs.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::TooLong => "jwt_too_long",
            Self::Form => "jwt_form",
            Self::Json => "jwt_json",
            Self::Duplicate => "jwt_duplicate",
            Self::Typ => "jwt_typ",
            Self::Alg => "jwt_alg",
            Self::Kid => "jwt_kid",
            Self::Header(_) => "jwt_header",
            Self::Claim(claim) => match claim {
                JwtClaim::Aud => "jwt_aud",
                JwtClaim::Exp => "jwt_exp",
                JwtClaim::Nbf => "jwt_nbf",
                JwtClaim::Jti => "jwt_jti",
                JwtClaim::Dev => "jwt_dev",
                JwtClaim::Peer => "jwt_peer",
                JwtClaim::Bps => "jwt_bps",
                JwtClaim::Quota => "jwt_quota",
                JwtClaim::Tier => "jwt_tier",
            },
        }
    }
}

/// Why a text is no key id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a kid is 1 to {} printable ASCII characters without blanks", KeyId::MAX_LEN)]
pub struct KeyIdError;

/// What a JWT's header calls its issuer's key: printable, so that logs may show it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Arc<str>);

impl KeyId {
    /// The most characters.
    pub const MAX_LEN: usize = 128;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As it stands in identities.
    pub fn signer(&self) -> Signer {
        Signer::Issuer(self.0.clone())
    }
}

impl FromStr for KeyId {
    type Err = KeyIdError;

    fn from_str(text: &str) -> Result<Self, KeyIdError> {
        let fits =
            !text.is_empty() && text.len() <= Self::MAX_LEN && text.bytes().all(|b| b.is_ascii_graphic());
        if fits { Ok(Self(text.into())) } else { Err(KeyIdError) }
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The claims of an issuer token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerFields {
    /// `aud`: the audience.
    pub relay_id: RelayId,
    /// `jti`: from a CSPRNG.
    pub allocation_id: AllocationId,
    /// `dev`: the device's key, unless the relay has pinned another one for this id.
    pub device_id: DeviceId,
    /// `peer`: the peer's key.
    pub peer_id: PeerId,
    /// `exp`: unix seconds.
    pub expires_at_unix: u64,
    /// `nbf`: unix seconds before which the token is not valid yet.
    pub not_before_unix: Option<u64>,
    /// `bps`: bytes per second; `None`, on the wire also 0, asks for the tier's default.
    pub bandwidth_bytes_per_sec: Option<u64>,
    /// `quota`: bytes; `None`, on the wire also 0, asks for the tier's default.
    pub quota_bytes: Option<u64>,
    /// `tier`: one of those that the relay lets this issuer name; `None` asks for the issuer's own.
    pub tier: Option<Arc<str>>,
}

impl IssuerFields {
    /// Signs the claims with the issuer's key.
    ///
    /// # Errors
    /// [`JwtError::TooLong`], for a tier's name that is.
    pub fn sign(&self, issuer_key: &SigningKey, kid: &KeyId) -> Result<IssuerToken, TokenError> {
        let header = json!({"alg": "EdDSA", "kid": kid.as_str(), "typ": TYP});
        let mut claims = json!({
            "aud": self.relay_id.to_string(),
            "dev": self.device_id.to_string(),
            "exp": self.expires_at_unix,
            "jti": self.allocation_id.to_string(),
            "peer": self.peer_id.to_string(),
        });
        if let Some(claims) = claims.as_object_mut() {
            let numbers = [
                (JwtClaim::Nbf, self.not_before_unix),
                (JwtClaim::Bps, self.bandwidth_bytes_per_sec),
                (JwtClaim::Quota, self.quota_bytes),
            ];
            for (claim, number) in numbers {
                claims.extend(number.map(|number| (claim.name().to_owned(), number.into())));
            }
            let tier =
                self.tier.as_ref().map(|tier| (JwtClaim::Tier.name().to_owned(), tier.as_ref().into()));
            claims.extend(tier);
        }
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = issuer_key.sign(signed.as_bytes()).to_bytes();
        IssuerToken::from_text(&format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Reads the JSON of the claims.
    fn parse(json: &[u8]) -> Result<Self, JwtError> {
        let claims = object(json)?;
        let wrong = JwtError::Claim;
        let exp = number(&claims, JwtClaim::Exp)?;
        Ok(Self {
            relay_id: id(&claims, JwtClaim::Aud)?,
            expires_at_unix: exp.ok_or(wrong(JwtClaim::Exp))?,
            not_before_unix: number(&claims, JwtClaim::Nbf)?,
            allocation_id: id(&claims, JwtClaim::Jti)?,
            device_id: id(&claims, JwtClaim::Dev)?,
            peer_id: id(&claims, JwtClaim::Peer)?,
            bandwidth_bytes_per_sec: number(&claims, JwtClaim::Bps)?.filter(|rate| *rate != 0),
            quota_bytes: number(&claims, JwtClaim::Quota)?.filter(|quota| *quota != 0),
            tier: match claims.get(JwtClaim::Tier.name()) {
                None => None,
                Some(tier) => Some(tier.as_str().ok_or(wrong(JwtClaim::Tier))?.into()),
            },
        })
    }
}

fn id<T: FromStr>(claims: &Map<String, Value>, claim: JwtClaim) -> Result<T, JwtError> {
    let text = claims.get(claim.name()).and_then(Value::as_str);
    text.and_then(|text| text.parse().ok()).ok_or(JwtError::Claim(claim))
}

fn number(claims: &Map<String, Value>, claim: JwtClaim) -> Result<Option<u64>, JwtError> {
    match claims.get(claim.name()) {
        None => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or(JwtError::Claim(claim)),
    }
}

/// A well-formed issuer token; nothing in it is believed yet.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuerToken {
    text: Arc<str>,
    /// How much of the text is signed.
    signed_len: usize,
    kid: KeyId,
    /// The JSON of the claims.
    claims: Vec<u8>,
    signature: [u8; 64],
}

impl IssuerToken {
    /// The most bytes.
    pub const MAX_LEN: usize = 2048;

    /// Reads a token as it is sent: its ASCII.
    ///
    /// # Errors
    /// [`TokenError::Jwt`]; the claims are not looked at.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenError> {
        if bytes.len() > Self::MAX_LEN {
            return Err(JwtError::TooLong.into());
        }
        Self::from_text(std::str::from_utf8(bytes).map_err(|_| JwtError::Form)?)
    }

    /// Reads a token's text.
    ///
    /// # Errors
    /// As [`IssuerToken::from_bytes`].
    pub fn from_text(text: &str) -> Result<Self, TokenError> {
        if text.len() > Self::MAX_LEN {
            return Err(JwtError::TooLong.into());
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(JwtError::Form)?;
        let (header, claims) = signed.split_once('.').ok_or(JwtError::Form)?;
        // The engine refuses padding, unused bits that are set, and a third dot.
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| JwtError::Form);
        let (header, claims) = (decode(header)?, decode(claims)?);
        let signature = decode(signature)?.try_into().map_err(|_| JwtError::Form)?;
        let kid = key_id(&object(&header)?)?;
        Ok(Self { text: text.into(), signed_len: signed.len(), kid, claims, signature })
    }

    /// The text, which is also what is sent.
    pub fn as_text(&self) -> &str {
        &self.text
    }

    /// Whose key must have signed. Unverified.
    pub fn kid(&self) -> &KeyId {
        &self.kid
    }

    /// The signature.
    pub fn signature(&self) -> &[u8; 64] {
        &self.signature
    }

    /// The hash that proofs and caches are bound to.
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(self.text.as_bytes())
    }

    /// What the token says of itself. Unverified.
    ///
    /// # Errors
    /// [`TokenError::Jwt`] when the claims are not what they must be.
    pub fn fields(&self) -> Result<IssuerFields, TokenError> {
        Ok(IssuerFields::parse(&self.claims)?)
    }

    /// Checks the signature against the issuer's key, then the claims, then that the keys of both sides are usable.
    /// `pinned` answers with the key that the relay has pinned for a device; without one, its id is its key.
    ///
    /// # Errors
    /// In this order: [`TokenError::Signature`], [`TokenError::Jwt`], [`TokenError::DeviceKey`],
    /// [`TokenError::PeerKey`].
    pub fn verify(
        &self,
        issuer_key: &PublicKey,
        pinned: impl FnOnce(&DeviceId) -> Option<PublicKey>,
    ) -> Result<VerifiedToken, TokenError> {
        let signed = self.text.as_bytes().get(..self.signed_len).unwrap_or_default();
        if !issuer_key.verifies(signed, &self.signature) {
            return Err(TokenError::Signature);
        }
        let fields = self.fields()?;
        let device_key = match pinned(&fields.device_id) {
            Some(key) => key,
            None => PublicKey::from_bytes(fields.device_id.as_bytes()).map_err(TokenError::DeviceKey)?,
        };
        let peer_key = PublicKey::from_bytes(fields.peer_id.as_bytes()).map_err(TokenError::PeerKey)?;
        Ok(VerifiedToken::issued(&self.kid, &fields, self.hash(), *issuer_key, device_key, peer_key))
    }
}

/// Shows the kid alone: what is logged cannot be used.
impl fmt::Debug for IssuerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuerToken").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// What the header is asked for: that this is an issuer token, and whose.
fn key_id(header: &Map<String, Value>) -> Result<KeyId, JwtError> {
    if let Some(forbidden) = FORBIDDEN.iter().find(|name| header.contains_key(**name)) {
        return Err(JwtError::Header(forbidden));
    }
    let text = |name: &str| header.get(name).and_then(Value::as_str);
    if text("typ") != Some(TYP) {
        return Err(JwtError::Typ);
    }
    if !matches!(text("alg"), Some("EdDSA" | "Ed25519")) {
        return Err(JwtError::Alg);
    }
    text("kid").and_then(|kid| kid.parse().ok()).ok_or(JwtError::Kid)
}

/// Reads a JSON object in which no member stands twice.
fn object(json: &[u8]) -> Result<Map<String, Value>, JwtError> {
    match serde_json::from_slice::<Strict>(json) {
        Ok(Strict(Value::Object(object))) => Ok(object),
        Ok(_) => Err(JwtError::Json),
        Err(error) if error.to_string().starts_with(DUPLICATE) => Err(JwtError::Duplicate),
        Err(_) => Err(JwtError::Json),
    }
}

/// Any JSON in which no object has a member twice. Its depth is bounded by the parser, its size by the token's.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Strict(one)) = seq.next_element()? {
            all.push(one);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some((name, Strict(value))) = map.next_entry::<String, Strict>()? {
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom(DUPLICATE));
            }
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
#[path = "issuer_tests.rs"]
mod tests;
