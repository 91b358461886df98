//! Who may have an allocation: from the bytes of a token to claims and a tier, and the proof of possession.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use crate::{
    guard::{Limit, Turned},
    table::{Basis, Refusal, Tier, Verdict},
    wire::{
        AnyToken, Claims, CloseCode, DeviceId, Identity, PublicKey, RelayId, Signer, SpkiPin, TokenError,
        VerifiedTokens, proof::Binding, token::Expected,
    },
};

/// Which devices and issuers this relay knows, and what each may have. Nobody, unless it says otherwise.
#[derive(Debug, Clone, Default)]
pub struct Admission {
    /// The tier of devices whose id is their own key; `None` refuses every device that is not pinned.
    pub self_certified: Option<Tier>,
    /// Devices with a key of their own in the configuration. A pinned device's id is never read as a key.
    pub pinned: HashMap<DeviceId, Pinned>,
    /// Devices that are refused, whoever vouches for them.
    pub revoked: HashSet<DeviceId>,
    /// What the operator calls devices.
    pub names: HashMap<DeviceId, Box<str>>,
    /// Who may sign JWTs, by `kid`.
    pub issuers: HashMap<Arc<str>, Issuer>,
    /// How far ahead a token's `expires_at` may lie, in every tier.
    pub max_token_lifetime: Duration,
}

/// A device that the operator knows.
#[derive(Debug, Clone)]
pub struct Pinned {
    /// The key that must have signed its tokens.
    pub key: PublicKey,
    /// What it may have.
    pub tier: Tier,
}

/// A back end that grants allocations.
#[derive(Debug, Clone)]
pub struct Issuer {
    /// The key that must have signed its tokens.
    pub key: PublicKey,
    /// What those get that name no tier.
    pub tier: Tier,
    /// What those get that do, by name. Naming another tier is refused.
    pub tiers: HashMap<Arc<str>, Tier>,
}

impl Admission {
    /// Checks a token as it was sent: form, signer's key, signature, audience, allocation, tier, times.
    ///
    /// # Errors
    /// [`TokenError`]; the caller may be told its close code and no more.
    pub(super) fn admit(
        &self,
        relay_id: &RelayId,
        token: &[u8],
        allocation_id: &[u8],
        now_unix: u64,
        verified: &VerifiedTokens,
    ) -> Result<Claims, TokenError> {
        let pinned_key = |device: &DeviceId| self.pinned.get(device).map(|pinned| pinned.key);
        let verified = match AnyToken::from_bytes(token)? {
            AnyToken::Device(token) => {
                let device_id = &token.fields().device_id;
                self.tier_of_device(device_id)?;
                let key = match pinned_key(device_id) {
                    Some(key) => key,
                    None => token.self_certified_key()?,
                };
                verified.verify(&token, &key)?
            }
            AnyToken::Issuer(token) => {
                let issuer = self.issuers.get(token.kid().as_str()).ok_or(TokenError::UnknownIssuer)?;
                verified.verify_issued(&token, &issuer.key, pinned_key)?
            }
        };
        let claims = verified.check(&Expected {
            relay_id,
            allocation_id,
            now_unix,
            max_lifetime: Some(self.max_token_lifetime),
        })?;
        let lifetime = self.tier_of(&claims.identity, &Basis::from(&claims))?.max_token_lifetime;
        if lifetime.is_some_and(|most| claims.expires_at_unix - now_unix > most.as_secs()) {
            return Err(TokenError::LifetimeTooLong);
        }
        Ok(claims)
    }

    /// What somebody may have whose token was believed, then or now.
    ///
    /// # Errors
    /// [`TokenError`]: why it would not be believed any more.
    pub(super) fn tier_of(&self, identity: &Identity, basis: &Basis) -> Result<Tier, TokenError> {
        let device_id = &identity.device_id;
        if self.revoked.contains(device_id) {
            return Err(TokenError::RevokedDevice);
        }
        let device_key = match self.pinned.get(device_id) {
            Some(pinned) => pinned.key.as_bytes(),
            None => device_id.as_bytes(),
        };
        let (tier, signer_key) = match &identity.signer {
            Signer::Device => (self.tier_of_device(device_id)?, device_key),
            Signer::Issuer(kid) => {
                let issuer = self.issuers.get(kid).ok_or(TokenError::UnknownIssuer)?;
                let tier = match &basis.tier {
                    None => issuer.tier,
                    Some(tier) => issuer.tiers.get(tier).copied().ok_or(TokenError::TierNotAllowed)?,
                };
                (tier, issuer.key.as_bytes())
            }
        };
        if basis.signed_by != *signer_key || basis.device_key != *device_key {
            return Err(TokenError::Signature);
        }
        Ok(tier)
    }

    fn tier_of_device(&self, device_id: &DeviceId) -> Result<Tier, TokenError> {
        if self.revoked.contains(device_id) {
            return Err(TokenError::RevokedDevice);
        }
        let pinned = self.pinned.get(device_id).map(|pinned| pinned.tier);
        pinned.or(self.self_certified).ok_or(TokenError::UnknownDevice)
    }

    /// The devices that were welcome by themselves before, and are no more.
    pub(super) fn shut_out_since(&self, before: &Self) -> Vec<DeviceId> {
        let known: HashSet<&DeviceId> = before.pinned.keys().chain(&self.revoked).collect();
        known
            .into_iter()
            .filter(|id| before.tier_of_device(id).is_ok() && self.tier_of_device(id).is_err())
            .copied()
            .collect()
    }

    /// What becomes of a live allocation now.
    pub(super) fn judge(&self, identity: &Identity, basis: &Basis) -> Verdict {
        match self.tier_of(identity, basis) {
            Ok(tier) => Verdict::Keep(tier),
            Err(TokenError::RevokedDevice) => Verdict::End("device revoked"),
            Err(TokenError::UnknownDevice) => Verdict::End("device removed"),
            Err(TokenError::UnknownIssuer) => Verdict::End("issuer removed"),
            Err(TokenError::TierNotAllowed) => Verdict::End("the issuer may no longer grant this tier"),
            Err(_) => Verdict::End("the key of device or issuer was changed; mint a new token"),
        }
    }
}

/// Why a request is refused or a connection closed: the code, words for people, and how long to stay away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rejection {
    pub code: CloseCode,
    /// Helps the caller, tells an attacker nothing.
    pub message: String,
    pub retry_after: Option<Duration>,
    /// The limit that is the reason, where one is.
    pub limit: Option<Limit>,
}

impl Rejection {
    pub fn new(code: CloseCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after: None, limit: None }
    }

    /// The same, because of this limit.
    pub fn by(self, limit: Limit) -> Self {
        Self { limit: Some(limit), ..self }
    }
}

/// What the caller of a refused token is told. The exact reason is for the log alone.
impl From<TokenError> for Rejection {
    fn from(error: TokenError) -> Self {
        let code = error.close_code();
        Self::new(
            code,
            match code {
                CloseCode::TokenExpired => "the token has expired; mint a new one and check the clocks",
                CloseCode::AllocationMismatch => "allocation_id is not the token's",
                _ => "the token is not valid here; try `zrc-relay token verify` with this relay's id",
            },
        )
    }
}

/// The limit has been reported by whoever found it.
impl From<Turned> for Rejection {
    fn from(turned: Turned) -> Self {
        match turned {
            Turned::Blocked => Self::new(CloseCode::Blocked, "the relay's operator has blocked this address"),
            Turned::Limited { limit, retry_after } => {
                let what = match limit {
                    Limit::SourceRequests => "requests for an allocation",
                    _ => "connections",
                };
                // Whole seconds, upwards: whoever comes then is served.
                let secs = retry_after.as_millis().div_ceil(1000);
                let message = format!("too many {what} from this address; come again in {secs} s");
                Self { retry_after: Some(retry_after), ..Self::new(CloseCode::RateLimited, message) }
            }
        }
    }
}

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Self {
        let limit = match refusal {
            Refusal::AllocationsFull => Some(Limit::Allocations),
            Refusal::LedgerFull => Some(Limit::Ledger),
            Refusal::DeviceFull => Some(Limit::DeviceAllocations),
            Refusal::Ended(CloseCode::QuotaExceeded) => Some(Limit::Quota),
            Refusal::Ended(_)
            | Refusal::OtherAllocation
            | Refusal::NotLater
            | Refusal::Gone
            | Refusal::Expired
            | Refusal::AlreadyJoined => None,
        };
        Self { limit, ..Self::new(refusal.close_code(), refusal.to_string()) }
    }
}

/// The binding of a mode 1 proof: what only the two ends of this TLS session know.
///
/// # Errors
/// INTERNAL when TLS yields no keying material, which a finished handshake always does.
pub(super) fn exporter_binding(connection: &quinn::Connection) -> Result<Binding, Rejection> {
    let mut secret = [0; 32];
    connection
        .export_keying_material(&mut secret, crate::wire::proof::EXPORTER_LABEL, &[])
        .map_err(|_| Rejection::new(CloseCode::Internal, "no keying material"))?;
    Ok(Binding::Exporter(secret))
}

/// What proofs of mode 2 are bound to beside the nonce: the key in the certificate that this connection was shown, which
/// is another one than today's where that has changed since.
///
/// # Errors
/// INTERNAL when the TLS session does not know, which cannot be.
pub(super) fn shown_key(connection: &quinn::Connection) -> Result<[u8; 32], Rejection> {
    let shown = connection.handshake_data().and_then(|data| data.downcast::<SpkiPin>().ok());
    shown.map(|pin| pin.0).ok_or_else(|| Rejection::new(CloseCode::Internal, "no certificate was shown"))
}
