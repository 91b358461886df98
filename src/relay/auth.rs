//! Who may have an allocation: from the bytes of a token to claims and a tier, and the proof of possession.

use std::{collections::HashMap, time::Duration};

use crate::{
    guard::Limit,
    table::{Refusal, Tier},
    wire::{
        Claims, CloseCode, DeviceId, PublicKey, RelayId, SignedToken, TokenError, VerifiedTokens,
        proof::Binding, token::Expected,
    },
};

/// Which devices this relay knows, and what each may have.
#[derive(Debug, Clone)]
pub struct Admission {
    /// The tier of devices whose id is their own key; `None` refuses every device that is not pinned.
    pub self_certified: Option<Tier>,
    /// Devices with a key of their own in the configuration. A pinned device's id is never read as a key.
    pub pinned: HashMap<DeviceId, Pinned>,
    /// How far ahead a token's `expires_at` may lie.
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

impl Admission {
    /// Checks a token as it was sent: form, signer's key, signature, audience, allocation, times.
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
    ) -> Result<(Claims, Tier), TokenError> {
        let token = SignedToken::from_bytes(token)?;
        let (key, tier) = match (self.pinned.get(&token.fields().device_id), self.self_certified) {
            (Some(pinned), _) => (pinned.key, pinned.tier),
            (None, Some(tier)) => (token.self_certified_key()?, tier),
            (None, None) => return Err(TokenError::UnknownDevice),
        };
        let claims = verified.verify(&token, &key)?.check(&Expected {
            relay_id,
            allocation_id,
            now_unix,
            max_lifetime: Some(self.max_token_lifetime),
        })?;
        Ok((claims, tier))
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
