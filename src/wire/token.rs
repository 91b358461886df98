//! RelayTokenV1: the grant a device signs for one allocation on one relay. An issuer's is in `issuer.rs`.
//!
//! Bytes become a [`SignedToken`] (well formed, nothing believed), that a [`VerifiedToken`] (signed by the
//! right key), and that [`Claims`] (for this relay, this allocation, now). Each step is a type.

use std::{fmt, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey};
use sha2::{Digest, Sha256};

use super::{
    AllocationId, Claims, CloseCode, DeviceId, Identity, JwtError, KeyError, KeyId, PeerId, PublicKey,
    RelayId, Signer, issuer::IssuerFields,
};

/// Why a token is refused. The text is for the token's owner and for the relay's log; a caller over the
/// network learns [`TokenError::close_code`] only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not 180 bytes.
    #[error("a token is {} bytes, this is {got_bytes}", SignedToken::LEN)]
    Length {
        /// How many there were.
        got_bytes: usize,
    },
    /// The text form is not 240 characters of base64url without padding.
    #[error("a token's text is {} characters of base64url without padding", SignedToken::TEXT_LEN)]
    Text,
    /// Neither RelayTokenV1 nor a well-formed issuer token.
    #[error(transparent)]
    Jwt(#[from] JwtError),
    /// No issuer has this `kid`.
    #[error("the issuer is not known to this relay")]
    UnknownIssuer,
    /// No key is known for the device, and devices may not certify themselves here.
    #[error("the device is not known to this relay")]
    UnknownDevice,
    /// The operator has shut the device out, whoever vouches for it.
    #[error("the device has been revoked")]
    RevokedDevice,
    /// The device's key cannot be relied on.
    #[error("the device's key cannot be used: {0}")]
    DeviceKey(KeyError),
    /// The peer's key cannot be relied on.
    #[error("the peer's key cannot be used: {0}")]
    PeerKey(KeyError),
    /// The signature is not the device key's signature of these fields.
    #[error("the signature does not match")]
    Signature,
    /// Minted for another relay.
    #[error("the token is for another relay")]
    WrongRelay,
    /// The allocation asked for is not the token's.
    #[error("the token is for another allocation")]
    WrongAllocation,
    /// The issuer may not name this tier.
    #[error("the issuer may not name this tier")]
    TierNotAllowed,
    /// `nbf` is later than now.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `expires_at` is not later than now.
    #[error("the token has expired")]
    Expired,
    /// `expires_at` lies further ahead than this relay allows.
    #[error("the token lives longer than this relay allows")]
    LifetimeTooLong,
}

impl TokenError {
    /// A short stable word for programs: log fields, `token verify`.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Length { .. } => "length",
            Self::Text => "text",
            Self::Jwt(error) => error.reason(),
            Self::UnknownIssuer => "unknown_issuer",
            Self::UnknownDevice => "unknown_device",
            Self::RevokedDevice => "revoked_device",
            Self::DeviceKey(_) => "device_key",
            Self::PeerKey(_) => "peer_key",
            Self::Signature => "signature",
            Self::WrongRelay => "wrong_relay",
            Self::WrongAllocation => "wrong_allocation",
            Self::TierNotAllowed => "tier_not_allowed",
            Self::NotYetValid => "not_yet_valid",
            Self::Expired => "expired",
            Self::LifetimeTooLong => "lifetime_too_long",
        }
    }

    /// What the caller is told. Only facts about a token that verified are given away.
    pub const fn close_code(self) -> CloseCode {
        match self {
            Self::WrongAllocation => CloseCode::AllocationMismatch,
            Self::Expired => CloseCode::TokenExpired,
            Self::Length { .. }
            | Self::Text
            | Self::Jwt(_)
            | Self::UnknownIssuer
            | Self::UnknownDevice
            | Self::RevokedDevice
            | Self::DeviceKey(_)
            | Self::PeerKey(_)
            | Self::Signature
            | Self::WrongRelay
            | Self::TierNotAllowed
            | Self::NotYetValid
            | Self::LifetimeTooLong => CloseCode::TokenInvalid,
        }
    }
}

/// SHA-256 of a token exactly as it was sent, signature included.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl TokenHash {
    /// Hashes a token as it was sent.
    pub fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }
}

/// Says nothing: a token's hash in a log would let a reader recognise the token.
impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

/// The fields of a RelayTokenV1, before its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenFields {
    /// The audience.
    pub relay_id: RelayId,
    /// From a CSPRNG.
    pub allocation_id: AllocationId,
    /// Who signs.
    pub device_id: DeviceId,
    /// Who may meet the device.
    pub peer_id: PeerId,
    /// Unix seconds.
    pub expires_at_unix: u64,
    /// 0 asks for the tier's default.
    pub bandwidth_bytes_per_sec: u32,
    /// 0 asks for the tier's default.
    pub quota_bytes: u64,
}

impl TokenFields {
    /// Length of the signed part, in bytes.
    pub const LEN: usize = 116;

    /// The signed part: integers little-endian, in the order of the fields.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let mut rest = bytes.as_mut_slice();
        for part in [
            self.relay_id.as_bytes().as_slice(),
            self.allocation_id.as_bytes(),
            self.device_id.as_bytes(),
            self.peer_id.as_bytes(),
            &self.expires_at_unix.to_le_bytes(),
            &self.bandwidth_bytes_per_sec.to_le_bytes(),
            &self.quota_bytes.to_le_bytes(),
        ] {
            let (here, after) = rest.split_at_mut(part.len());
            here.copy_from_slice(part);
            rest = after;
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            relay_id: RelayId(take(&mut rest)),
            allocation_id: AllocationId(take(&mut rest)),
            device_id: DeviceId(take(&mut rest)),
            peer_id: PeerId(take(&mut rest)),
            expires_at_unix: u64::from_le_bytes(take(&mut rest)),
            bandwidth_bytes_per_sec: u32::from_le_bytes(take(&mut rest)),
            quota_bytes: u64::from_le_bytes(take(&mut rest)),
        }
    }

    /// Signs the fields with the device's key.
    pub fn sign(self, device_key: &SigningKey) -> SignedToken {
        let digest = Sha256::digest(self.to_bytes());
        SignedToken { fields: self, signature: device_key.sign(&digest).to_bytes() }
    }
}

/// Takes the next `N` bytes; the callers' lengths add up, so there are always that many.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let mut taken = [0; N];
    if let Some((here, after)) = rest.split_first_chunk::<N>() {
        taken = *here;
        *rest = after;
    }
    taken
}

/// A well-formed token; nothing in it is believed yet.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedToken {
    fields: TokenFields,
    signature: [u8; 64],
}

impl SignedToken {
    /// Length on the wire, in bytes.
    pub const LEN: usize = TokenFields::LEN + 64;
    /// Length of the text form, in characters.
    pub const TEXT_LEN: usize = 240;

    /// Reads the 180 bytes of a token.
    ///
    /// # Errors
    /// [`TokenError::Length`] for any other number of bytes. Every 180 bytes are well formed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenError> {
        let length = TokenError::Length { got_bytes: bytes.len() };
        let (fields, signature) = bytes.split_first_chunk::<{ TokenFields::LEN }>().ok_or(length)?;
        let signature = signature.try_into().map_err(|_| length)?;
        Ok(Self { fields: TokenFields::from_bytes(fields), signature })
    }

    /// Reads the text form.
    ///
    /// # Errors
    /// [`TokenError::Text`] unless it is 240 characters of base64url without padding.
    pub fn from_text(text: &str) -> Result<Self, TokenError> {
        if text.len() != Self::TEXT_LEN {
            return Err(TokenError::Text);
        }
        Self::from_bytes(&URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Text)?)
    }

    /// The bytes as they go over the wire.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let (fields, signature) = bytes.split_at_mut(TokenFields::LEN);
        fields.copy_from_slice(&self.fields.to_bytes());
        signature.copy_from_slice(&self.signature);
        bytes
    }

    /// The text form: base64url without padding.
    pub fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.to_bytes())
    }

    /// What the token says of itself. Unverified.
    pub fn fields(&self) -> &TokenFields {
        &self.fields
    }

    /// The signature, as it stands on the wire.
    pub fn signature(&self) -> &[u8; 64] {
        &self.signature
    }

    /// The hash that proofs and caches are bound to.
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(&self.to_bytes())
    }

    /// The device's key where devices certify themselves: `device_id` itself.
    ///
    /// # Errors
    /// [`TokenError::DeviceKey`] when it is no key to rely on.
    pub fn self_certified_key(&self) -> Result<PublicKey, TokenError> {
        PublicKey::from_bytes(self.fields.device_id.as_bytes()).map_err(TokenError::DeviceKey)
    }

    /// Checks the signature against the key that must have made it, and that the peer's key is usable.
    ///
    /// # Errors
    /// [`TokenError::Signature`] or [`TokenError::PeerKey`].
    pub fn verify(&self, device_key: &PublicKey) -> Result<VerifiedToken, TokenError> {
        let digest = Sha256::digest(self.fields.to_bytes());
        if !device_key.verifies(&digest, &self.signature) {
            return Err(TokenError::Signature);
        }
        let peer_key = PublicKey::from_bytes(self.fields.peer_id.as_bytes()).map_err(TokenError::PeerKey)?;
        let fields = &self.fields;
        let identity = Identity {
            signer: Signer::Device,
            device_id: fields.device_id,
            peer_id: fields.peer_id,
            allocation_id: fields.allocation_id,
        };
        let rate = u64::from(fields.bandwidth_bytes_per_sec);
        Ok(VerifiedToken {
            relay_id: fields.relay_id,
            not_before_unix: None,
            claims: Claims {
                identity,
                expires_at_unix: fields.expires_at_unix,
                bandwidth_bytes_per_sec: Some(rate).filter(|rate| *rate != 0),
                quota_bytes: Some(fields.quota_bytes).filter(|quota| *quota != 0),
                tier: None,
                signed_by: *device_key,
                device_key: *device_key,
                peer_key,
                token_hash: self.hash(),
            },
        })
    }
}

/// Shows the fields without the signature: what is logged cannot be used.
impl fmt::Debug for SignedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedToken").field("fields", &self.fields).finish_non_exhaustive()
    }
}

/// What a relay expects of a token that is shown to it.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// This relay's own id.
    pub relay_id: &'a RelayId,
    /// The allocation the caller asks for, as many bytes as it sent.
    pub allocation_id: &'a [u8],
    /// Unix seconds.
    pub now_unix: u64,
    /// How far ahead `expires_at` may lie; `None` for no cap.
    pub max_lifetime: Option<Duration>,
}

/// A token that the right key has signed.
#[derive(Debug, Clone)]
pub struct VerifiedToken {
    relay_id: RelayId,
    not_before_unix: Option<u64>,
    /// What it becomes when audience, allocation and times are right.
    claims: Claims,
}

impl VerifiedToken {
    /// What an issuer's token says, whose signature and keys have been checked.
    pub(super) fn issued(
        kid: &KeyId,
        fields: &IssuerFields,
        token_hash: TokenHash,
        signed_by: PublicKey,
        device_key: PublicKey,
        peer_key: PublicKey,
    ) -> Self {
        let identity = Identity {
            signer: kid.signer(),
            device_id: fields.device_id,
            peer_id: fields.peer_id,
            allocation_id: fields.allocation_id,
        };
        let claims = Claims {
            identity,
            expires_at_unix: fields.expires_at_unix,
            bandwidth_bytes_per_sec: fields.bandwidth_bytes_per_sec,
            quota_bytes: fields.quota_bytes,
            tier: fields.tier.clone(),
            signed_by,
            device_key,
            peer_key,
            token_hash,
        };
        Self { relay_id: fields.relay_id, not_before_unix: fields.not_before_unix, claims }
    }

    /// The key that it verified with.
    pub fn signed_by(&self) -> &PublicKey {
        &self.claims.signed_by
    }

    /// The key that the device must prove it holds.
    pub fn device_key(&self) -> &PublicKey {
        &self.claims.device_key
    }

    /// Whose grant it is.
    pub fn identity(&self) -> &Identity {
        &self.claims.identity
    }

    /// The tier that it names, if it names one.
    pub fn tier(&self) -> Option<&Arc<str>> {
        self.claims.tier.as_ref()
    }

    /// Checks audience, allocation and times.
    ///
    /// # Errors
    /// In this order: [`TokenError::WrongRelay`], [`TokenError::WrongAllocation`], [`TokenError::NotYetValid`],
    /// [`TokenError::Expired`], [`TokenError::LifetimeTooLong`].
    pub fn check(&self, expected: &Expected<'_>) -> Result<Claims, TokenError> {
        let claims = &self.claims;
        if self.relay_id != *expected.relay_id {
            return Err(TokenError::WrongRelay);
        }
        if claims.identity.allocation_id.as_bytes() != expected.allocation_id {
            return Err(TokenError::WrongAllocation);
        }
        if self.not_before_unix.is_some_and(|from| from > expected.now_unix) {
            return Err(TokenError::NotYetValid);
        }
        if claims.expires_at_unix <= expected.now_unix {
            return Err(TokenError::Expired);
        }
        if let Some(cap) = expected.max_lifetime
            && claims.expires_at_unix - expected.now_unix > cap.as_secs()
        {
            return Err(TokenError::LifetimeTooLong);
        }
        Ok(claims.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_893_452_400;

    fn device() -> SigningKey {
        SigningKey::from_bytes(&[1; 32])
    }

    fn device_key() -> PublicKey {
        PublicKey::from(&device())
    }

    fn fields() -> TokenFields {
        TokenFields {
            relay_id: RelayId([0xa1; 16]),
            allocation_id: AllocationId([0xa2; 16]),
            device_id: DeviceId(*device_key().as_bytes()),
            peer_id: PeerId(*PublicKey::from(&SigningKey::from_bytes(&[2; 32])).as_bytes()),
            expires_at_unix: NOW + 60,
            bandwidth_bytes_per_sec: 1_250_000,
            quota_bytes: 1_000_000_000,
        }
    }

    fn expected() -> Expected<'static> {
        Expected {
            relay_id: const { &RelayId([0xa1; 16]) },
            allocation_id: &[0xa2; 16],
            now_unix: NOW,
            max_lifetime: Some(Duration::from_secs(3600)),
        }
    }

    /// All that a relay with self-certified devices does with a token's bytes.
    fn judge(bytes: &[u8], expected: &Expected<'_>) -> Result<Claims, TokenError> {
        let token = SignedToken::from_bytes(bytes)?;
        token.verify(&token.self_certified_key()?)?.check(expected)
    }

    fn judge_fields(fields: TokenFields, expected: &Expected<'_>) -> Result<Claims, TokenError> {
        judge(&fields.sign(&device()).to_bytes(), expected)
    }

    #[test]
    fn a_good_token_becomes_claims() {
        let token = fields().sign(&device());
        let claims = judge(&token.to_bytes(), &expected()).unwrap();
        assert_eq!(claims.identity.signer, Signer::Device);
        assert_eq!(claims.identity.device_id, fields().device_id);
        assert_eq!(claims.identity.peer_id, fields().peer_id);
        assert_eq!(claims.identity.allocation_id, fields().allocation_id);
        assert_eq!(claims.expires_at_unix, NOW + 60);
        assert_eq!(claims.bandwidth_bytes_per_sec, Some(1_250_000));
        assert_eq!(claims.quota_bytes, Some(1_000_000_000));
        assert_eq!(claims.device_key, device_key());
        assert_eq!(claims.peer_key.as_bytes(), fields().peer_id.as_bytes());
        assert_eq!(claims.token_hash, TokenHash::of(&token.to_bytes()));
        assert_eq!(claims.token_hash, token.hash());
    }

    #[test]
    fn zero_asks_for_the_tiers_default() {
        let one_byte = TokenFields { bandwidth_bytes_per_sec: 1, quota_bytes: 1, ..fields() };
        let claims = judge_fields(one_byte, &expected()).unwrap();
        assert_eq!((claims.bandwidth_bytes_per_sec, claims.quota_bytes), (Some(1), Some(1)));
        let nothing = TokenFields { bandwidth_bytes_per_sec: 0, quota_bytes: 0, ..fields() };
        let claims = judge_fields(nothing, &expected()).unwrap();
        assert_eq!((claims.bandwidth_bytes_per_sec, claims.quota_bytes), (None, None));
    }

    #[test]
    fn a_token_is_180_bytes() {
        let mut long = fields().sign(&device()).to_bytes().to_vec();
        long.extend_from_slice(&[0; 4096]);
        for len in (0..180).chain([181, 232, 360, 4096]) {
            let error = TokenError::Length { got_bytes: len };
            assert_eq!(SignedToken::from_bytes(&long[..len]), Err(error), "{len}");
        }
        assert!(SignedToken::from_bytes(&long[..180]).is_ok());
        assert_eq!((TokenFields::LEN, SignedToken::LEN, SignedToken::TEXT_LEN), (116, 180, 240));
    }

    #[test]
    fn every_wrong_bit_is_refused() {
        let good = fields().sign(&device()).to_bytes();
        for bit in 0..8 * SignedToken::LEN {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            let token = SignedToken::from_bytes(&bytes).unwrap();
            assert_eq!(
                token.verify(&device_key()).unwrap_err(),
                TokenError::Signature,
                "bit {bit}, pinned key"
            );
            // Where the device certifies itself, a wrong bit of its id may also be no key at all.
            match judge(&bytes, &expected()).unwrap_err() {
                TokenError::Signature => {}
                TokenError::DeviceKey(_) if (32 * 8..64 * 8).contains(&bit) => {}
                other => panic!("bit {bit}: {other:?}"),
            }
        }
    }

    #[test]
    fn another_signature_quota_or_peer_is_another_token() {
        let hashes: HashSet<_> = [
            fields().sign(&device()),
            TokenFields { quota_bytes: 1, ..fields() }.sign(&device()),
            TokenFields { peer_id: PeerId([3; 32]), ..fields() }.sign(&device()),
            fields().sign(&SigningKey::from_bytes(&[3; 32])),
        ]
        .iter()
        .map(SignedToken::hash)
        .collect();
        assert_eq!(hashes.len(), 4);
    }

    #[test]
    fn a_token_ends_at_its_second() {
        let at = |expires_at_unix| judge_fields(TokenFields { expires_at_unix, ..fields() }, &expected());
        assert_eq!(at(0), Err(TokenError::Expired));
        assert_eq!(at(NOW - 1), Err(TokenError::Expired));
        assert_eq!(at(NOW), Err(TokenError::Expired));
        assert_eq!(at(NOW + 1).unwrap().expires_at_unix, NOW + 1);
    }

    #[test]
    fn a_token_lives_as_long_as_the_relay_allows() {
        let at = |expires_at_unix, max_lifetime, now_unix| {
            let expected = Expected { max_lifetime, now_unix, ..expected() };
            judge_fields(TokenFields { expires_at_unix, ..fields() }, &expected).map(drop)
        };
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(at(NOW + 3600, hour, NOW), Ok(()));
        assert_eq!(at(NOW + 3601, hour, NOW), Err(TokenError::LifetimeTooLong));
        assert_eq!(at(u64::MAX, hour, NOW), Err(TokenError::LifetimeTooLong));
        assert_eq!(at(u64::MAX, hour, u64::MAX), Err(TokenError::Expired));
        assert_eq!(at(u64::MAX, hour, u64::MAX - 3600), Ok(()));
        assert_eq!(at(u64::MAX, hour, u64::MAX - 3601), Err(TokenError::LifetimeTooLong));
        assert_eq!(at(u64::MAX, Some(Duration::MAX), 0), Ok(()));
        assert_eq!(at(u64::MAX, None, 0), Ok(()));
        assert_eq!(at(1, Some(Duration::ZERO), 0), Err(TokenError::LifetimeTooLong));
        // A part of a second does not buy another second.
        assert_eq!(at(NOW + 2, Some(Duration::from_millis(1999)), NOW), Err(TokenError::LifetimeTooLong));
        assert_eq!(at(NOW + 1, Some(Duration::from_millis(1999)), NOW), Ok(()));
    }

    #[test]
    fn the_allocation_asked_for_is_the_tokens() {
        let ask = |allocation_id: &[u8]| {
            judge_fields(fields(), &Expected { allocation_id, ..expected() }).map(|claims| claims.identity)
        };
        assert!(ask(&[0xa2; 16]).is_ok());
        for other in [&[0xa2; 15][..], &[0xa2; 17], &[], &[0xa3; 16], &[0; 16]] {
            assert_eq!(ask(other), Err(TokenError::WrongAllocation));
        }
    }

    #[test]
    fn checks_come_in_their_order() {
        // Everything is wrong; then the first fault is mended, and the next one shows.
        let weak = [0; 32];
        let mut fields = TokenFields { device_id: DeviceId(weak), peer_id: PeerId(weak), ..fields() };
        let relay_id = RelayId([0xff; 16]);
        let now_late = fields.expires_at_unix;
        let mut expected = Expected {
            relay_id: &relay_id,
            allocation_id: &[],
            now_unix: now_late,
            max_lifetime: Some(Duration::ZERO),
        };
        let forged = |fields: TokenFields| {
            let mut bytes = fields.sign(&device()).to_bytes();
            bytes[150] ^= 1;
            bytes
        };
        let bytes = forged(fields);
        assert_eq!(judge(&bytes[1..], &expected), Err(TokenError::Length { got_bytes: 179 }));
        assert_eq!(judge(&bytes, &expected), Err(TokenError::DeviceKey(KeyError::SmallOrder)));
        fields.device_id = DeviceId(*device_key().as_bytes());
        assert_eq!(judge(&forged(fields), &expected), Err(TokenError::Signature));
        let signed = |fields: TokenFields| fields.sign(&device()).to_bytes();
        assert_eq!(judge(&signed(fields), &expected), Err(TokenError::PeerKey(KeyError::SmallOrder)));
        fields.peer_id = self::fields().peer_id;
        assert_eq!(judge(&signed(fields), &expected), Err(TokenError::WrongRelay));
        expected.relay_id = &fields.relay_id;
        assert_eq!(judge(&signed(fields), &expected), Err(TokenError::WrongAllocation));
        expected.allocation_id = fields.allocation_id.as_bytes();
        assert_eq!(judge(&signed(fields), &expected), Err(TokenError::Expired));
        expected.now_unix = NOW;
        assert_eq!(judge(&signed(fields), &expected), Err(TokenError::LifetimeTooLong));
        expected.max_lifetime = Some(Duration::from_secs(60));
        assert!(judge(&signed(fields), &expected).is_ok());
    }

    #[test]
    fn each_refusal_has_its_reason_and_its_code() {
        let all = [
            (TokenError::Length { got_bytes: 1 }, "length", CloseCode::TokenInvalid),
            (TokenError::Text, "text", CloseCode::TokenInvalid),
            (TokenError::UnknownDevice, "unknown_device", CloseCode::TokenInvalid),
            (TokenError::DeviceKey(KeyError::NotOnCurve), "device_key", CloseCode::TokenInvalid),
            (TokenError::PeerKey(KeyError::NotCanonical), "peer_key", CloseCode::TokenInvalid),
            (TokenError::Signature, "signature", CloseCode::TokenInvalid),
            (TokenError::WrongRelay, "wrong_relay", CloseCode::TokenInvalid),
            (TokenError::WrongAllocation, "wrong_allocation", CloseCode::AllocationMismatch),
            (TokenError::Expired, "expired", CloseCode::TokenExpired),
            (TokenError::LifetimeTooLong, "lifetime_too_long", CloseCode::TokenInvalid),
        ];
        for (error, reason, code) in all {
            assert_eq!((error.reason(), error.close_code()), (reason, code));
            assert!(!error.to_string().is_empty());
        }
        assert_eq!(TokenError::Length { got_bytes: 1 }.to_string(), "a token is 180 bytes, this is 1");
    }

    #[test]
    fn a_token_has_one_text() {
        // Of 180 bytes nothing is left over: no text has unused bits or needs padding.
        let token = fields().sign(&device());
        let text = token.to_text();
        assert_eq!(text.len(), 240);
        assert_eq!(SignedToken::from_text(&text), Ok(token));
        let bytes = [0xfb; 180];
        let dashes = SignedToken::from_bytes(&bytes).unwrap().to_text();
        assert!(dashes.starts_with("-_v7-_v7"), "{dashes}");
        assert_eq!(SignedToken::from_text(&dashes).unwrap().to_bytes(), bytes);
        for bad in [
            "",
            &text[1..],
            &text[4..],
            &format!("{text}A"),
            &format!("{text}AAAA"),
            &format!("{text}="),
            &format!("{}=", &text[..239]),
            &format!("{}==", &text[..238]),
            &format!(" {}", &text[1..]),
            &format!("{}\n", &text[..239]),
            &format!("{}é", &text[..238]),
            &dashes.replace('-', "+"),
            &dashes.replace('_', "/"),
        ] {
            assert_eq!(SignedToken::from_text(bad), Err(TokenError::Text), "{bad}");
        }
    }

    #[test]
    fn nothing_that_could_be_used_is_shown() {
        let token = fields().sign(&device());
        let verified = token.verify(&device_key()).unwrap();
        let claims = verified.check(&expected()).unwrap();
        let shown = format!("{token:?} {token:#?} {verified:?} {claims:?} {:?}", token.hash());
        assert!(shown.contains("SignedToken") && shown.contains("TokenHash(..)"));
        for secret in [token.signature().as_slice(), &token.hash().0] {
            for window in secret.windows(4) {
                assert!(!shown.contains(&hex::encode(window)), "hex of {window:?}");
                let decimal = format!("{window:?}");
                assert!(!shown.contains(decimal.trim_matches(['[', ']'])), "{decimal}");
            }
        }
        assert!(!shown.contains(&token.to_text()[..16]));
    }

    prop_compose! {
        fn any_fields()(
            relay_id: [u8; 16], allocation_id: [u8; 16], device_id: [u8; 32], peer_id: [u8; 32],
            expires_at_unix: u64, bandwidth_bytes_per_sec: u32, quota_bytes: u64,
        ) -> TokenFields {
            TokenFields {
                relay_id: RelayId(relay_id),
                allocation_id: AllocationId(allocation_id),
                device_id: DeviceId(device_id),
                peer_id: PeerId(peer_id),
                expires_at_unix,
                bandwidth_bytes_per_sec,
                quota_bytes,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn every_token_survives_its_bytes_and_its_text(fields in any_fields(), seed: [u8; 32]) {
            let key = SigningKey::from_bytes(&seed);
            let token = fields.sign(&key);
            prop_assert_eq!(token.fields(), &fields);
            prop_assert_eq!(&SignedToken::from_bytes(&token.to_bytes()).unwrap(), &token);
            prop_assert_eq!(&SignedToken::from_text(&token.to_text()).unwrap(), &token);
            // A pinned key signs for any device id; only the peer's key is then still in doubt.
            match token.verify(&PublicKey::from(&key)) {
                Ok(_) => prop_assert!(PublicKey::from_bytes(fields.peer_id.as_bytes()).is_ok()),
                Err(error) => prop_assert!(matches!(error, TokenError::PeerKey(_)), "{:?}", error),
            }
        }

        #[test]
        fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(judge(&bytes, &expected()).is_err());
        }

        #[test]
        fn arbitrary_180_bytes_are_well_formed_and_refused(bytes in prop::collection::vec(any::<u8>(), 180)) {
            let token = SignedToken::from_bytes(&bytes).unwrap();
            prop_assert_eq!(token.to_bytes().to_vec(), bytes.clone());
            prop_assert_eq!(token.hash(), TokenHash::of(&bytes));
            let error = judge(&bytes, &expected()).unwrap_err();
            prop_assert!(matches!(error, TokenError::Signature | TokenError::DeviceKey(_)));
        }

        #[test]
        fn any_text_is_one_token_or_none(text in "[A-Za-z0-9_=+/-]{236,244}") {
            if let Ok(token) = SignedToken::from_text(&text) {
                prop_assert_eq!(token.to_text(), text);
            }
        }

        #[test]
        fn times_are_judged_as_written(now: u64, expires_at_unix: u64, cap: u64) {
            let expected = Expected { now_unix: now, max_lifetime: Some(Duration::from_secs(cap)), ..expected() };
            let outcome = judge_fields(TokenFields { expires_at_unix, ..fields() }, &expected).map(drop);
            let (now, end) = (u128::from(now), u128::from(expires_at_unix));
            let right = if end <= now {
                Err(TokenError::Expired)
            } else if end > now + u128::from(cap) {
                Err(TokenError::LifetimeTooLong)
            } else {
                Ok(())
            };
            prop_assert_eq!(outcome, right);
        }
    }
}
