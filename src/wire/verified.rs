//! Tokens whose signature has been checked: both sides of an allocation show the same one.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{DeviceId, IssuerToken, PublicKey, SignedToken, TokenError, TokenHash, token::VerifiedToken};

/// Remembers the last tokens that verified, each some 1 KiB.
///
/// A token is known by the hash of all its bytes, signature included, and by the keys that it verified with: with
/// another signature, quota or peer, or under another key, it is another token. Only signatures and keys are
/// remembered; audience, allocation, times, and what the signer may grant are judged anew each time.
pub struct VerifiedTokens {
    max: usize,
    remembered: Mutex<Remembered>,
}

#[derive(Default)]
struct Remembered {
    tokens: HashMap<TokenHash, VerifiedToken>,
    /// The oldest first.
    order: VecDeque<TokenHash>,
}

impl VerifiedTokens {
    /// Remembers `max` tokens; then the oldest goes.
    pub fn new(max: usize) -> Self {
        Self { max, remembered: Mutex::default() }
    }

    /// As [`SignedToken::verify`].
    ///
    /// # Errors
    /// As [`SignedToken::verify`]; what failed is not remembered.
    pub fn verify(&self, token: &SignedToken, device_key: &PublicKey) -> Result<VerifiedToken, TokenError> {
        let hash = token.hash();
        // A device's token is never mistaken for an issuer's: the hash is of other bytes.
        match self.known(&hash).filter(|known| known.signed_by() == device_key) {
            Some(known) => Ok(known),
            None => token.verify(device_key).inspect(|verified| self.remember(hash, verified)),
        }
    }

    /// As [`IssuerToken::verify`].
    ///
    /// # Errors
    /// As [`IssuerToken::verify`]; what failed is not remembered.
    pub fn verify_issued(
        &self,
        token: &IssuerToken,
        issuer_key: &PublicKey,
        pinned: impl Fn(&DeviceId) -> Option<PublicKey>,
    ) -> Result<VerifiedToken, TokenError> {
        let hash = token.hash();
        // The device's key may have been pinned, or pinned anew, since.
        let still_holds = |known: &VerifiedToken| {
            let device_id = &known.identity().device_id;
            known.signed_by() == issuer_key
                && match pinned(device_id) {
                    Some(key) => key == *known.device_key(),
                    None => known.device_key().as_bytes() == device_id.as_bytes(),
                }
        };
        match self.known(&hash).filter(still_holds) {
            Some(known) => Ok(known),
            None => token.verify(issuer_key, &pinned).inspect(|verified| self.remember(hash, verified)),
        }
    }

    fn known(&self, hash: &TokenHash) -> Option<VerifiedToken> {
        self.lock().tokens.get(hash).cloned()
    }

    fn remember(&self, hash: TokenHash, verified: &VerifiedToken) {
        let mut remembered = self.lock();
        if remembered.tokens.insert(hash, verified.clone()).is_none() {
            remembered.order.push_back(hash);
        }
        while remembered.order.len() > self.max {
            if let Some(oldest) = remembered.order.pop_front() {
                remembered.tokens.remove(&oldest);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for VerifiedTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedTokens").field("max", &self.max).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::wire::{AllocationId, DeviceId, PeerId, RelayId, TokenFields};

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn fields() -> TokenFields {
        TokenFields {
            relay_id: RelayId([1; 16]),
            allocation_id: AllocationId([2; 16]),
            device_id: DeviceId(key(3).verifying_key().to_bytes()),
            peer_id: PeerId(key(4).verifying_key().to_bytes()),
            expires_at_unix: 5,
            bandwidth_bytes_per_sec: 6,
            quota_bytes: 7,
        }
    }

    fn remembered(tokens: &VerifiedTokens) -> (usize, usize) {
        let remembered = tokens.remembered.lock().unwrap();
        (remembered.tokens.len(), remembered.order.len())
    }

    #[test]
    fn a_token_that_is_known_is_as_it_was() {
        let tokens = VerifiedTokens::new(4);
        let (token, key) = (fields().sign(&key(3)), PublicKey::from(&key(3)));
        for _ in 0..3 {
            let verified = tokens.verify(&token, &key).unwrap();
            assert_eq!(format!("{verified:?}"), format!("{:?}", token.verify(&key).unwrap()));
            assert_eq!(remembered(&tokens), (1, 1));
        }
    }

    /// After the valid one, each of its near relations is still refused.
    #[test]
    fn r1_5_any_other_byte_makes_it_another_token() {
        let tokens = VerifiedTokens::new(1000);
        let (token, signer) = (fields().sign(&key(3)), PublicKey::from(&key(3)));
        tokens.verify(&token, &signer).unwrap();
        let valid = token.to_bytes();
        // Another quota, another peer, a zeroed signature, and any single bit.
        let mut others = vec![valid; 3];
        others[0][108] ^= 1;
        others[1][64..96].copy_from_slice(key(9).verifying_key().as_bytes());
        others[2][116..].fill(0);
        for bit in 0..valid.len() * 8 {
            let mut other = valid;
            other[bit / 8] ^= 1 << (bit % 8);
            others.push(other);
        }
        for other in others {
            let other = SignedToken::from_bytes(&other).unwrap();
            assert!(tokens.verify(&other, &signer).is_err());
        }
        assert_eq!(remembered(&tokens), (1, 1), "what is refused is not remembered");
        // The device has been given another key since.
        assert!(matches!(tokens.verify(&token, &PublicKey::from(&key(8))), Err(TokenError::Signature)));
        tokens.verify(&token, &signer).unwrap();
    }

    #[test]
    fn it_remembers_so_many_and_no_more() {
        let tokens = VerifiedTokens::new(3);
        let signer = PublicKey::from(&key(3));
        for quota_bytes in (0..10).chain(0..10) {
            tokens.verify(&TokenFields { quota_bytes, ..fields() }.sign(&key(3)), &signer).unwrap();
            let (known, order) = remembered(&tokens);
            assert!(known <= 3 && order == known, "{known} {order}");
        }
        assert_eq!(remembered(&tokens), (3, 3));
    }
}
