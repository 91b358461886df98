//! RelayTokenV1: the grant a device signs for one allocation on one relay.
//!
//! Bytes become a [`SignedToken`] (well formed, nothing believed), that a [`VerifiedToken`] (signed by the
//! right key), and that [`Claims`] (for this relay, this allocation, now). Each step is a type.

use std::{fmt, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey};
use sha2::{Digest, Sha256};

use super::{
    AllocationId, Claims, CloseCode, DeviceId, Identity, KeyError, PeerId, PublicKey, RelayId, Signer,
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
    /// No key is known for the device, and devices may not certify themselves here.
    #[error("the device is not known to this relay")]
    UnknownDevice,
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
            Self::UnknownDevice => "unknown_device",
            Self::DeviceKey(_) => "device_key",
            Self::PeerKey(_) => "peer_key",
            Self::Signature => "signature",
            Self::WrongRelay => "wrong_relay",
            Self::WrongAllocation => "wrong_allocation",
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
            | Self::UnknownDevice
            | Self::DeviceKey(_)
            | Self::PeerKey(_)
            | Self::Signature
            | Self::WrongRelay
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
        Ok(VerifiedToken { fields: self.fields, hash: self.hash(), device_key: *device_key, peer_key })
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
    fields: TokenFields,
    hash: TokenHash,
    device_key: PublicKey,
    peer_key: PublicKey,
}

impl VerifiedToken {
    /// Checks audience, allocation and times.
    ///
    /// # Errors
    /// In this order: [`TokenError::WrongRelay`], [`TokenError::WrongAllocation`], [`TokenError::Expired`],
    /// [`TokenError::LifetimeTooLong`].
    pub fn check(&self, expected: &Expected<'_>) -> Result<Claims, TokenError> {
        let fields = &self.fields;
        if fields.relay_id != *expected.relay_id {
            return Err(TokenError::WrongRelay);
        }
        if fields.allocation_id.as_bytes() != expected.allocation_id {
            return Err(TokenError::WrongAllocation);
        }
        if fields.expires_at_unix <= expected.now_unix {
            return Err(TokenError::Expired);
        }
        if let Some(cap) = expected.max_lifetime
            && fields.expires_at_unix - expected.now_unix > cap.as_secs()
        {
            return Err(TokenError::LifetimeTooLong);
        }
        Ok(Claims {
            identity: Identity {
                signer: Signer::Device,
                device_id: fields.device_id,
                peer_id: fields.peer_id,
                allocation_id: fields.allocation_id,
            },
            expires_at_unix: fields.expires_at_unix,
            bandwidth_bytes_per_sec: (fields.bandwidth_bytes_per_sec != 0)
                .then_some(u64::from(fields.bandwidth_bytes_per_sec)),
            quota_bytes: (fields.quota_bytes != 0).then_some(fields.quota_bytes),
            device_key: self.device_key,
            peer_key: self.peer_key,
            token_hash: self.hash,
        })
    }
}
