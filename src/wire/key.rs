//! Ed25519 public keys that are safe to trust: canonical, and not of small order.

use std::fmt;

use ed25519_dalek::{Signature, VerifyingKey};

/// Why 32 bytes are not a key to rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes.
    #[error("an Ed25519 public key is 32 bytes")]
    Length,
    /// The bytes name no point of the curve.
    #[error("the bytes are not a point of the curve")]
    NotOnCurve,
    /// A second spelling of a point that has a canonical one.
    #[error("the key's encoding is not canonical")]
    NotCanonical,
    /// A point of small order: signatures by it prove nothing.
    #[error("the key is of small order")]
    SmallOrder,
}

/// A checked Ed25519 public key.
///
/// Signatures are verified strictly: the cofactorless equation of RFC 8032, `S` reduced, `R` canonical and not
/// of small order. A key with a component of small order beside its large one is allowed: it gives its owner
/// nothing that a second key would not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Checks 32 bytes, as pinned in a configuration or carried in a token.
    ///
    /// # Errors
    /// [`KeyError`] says what is wrong with them.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::NotOnCurve)?;
        if key.to_edwards().compress().as_bytes() != bytes {
            return Err(KeyError::NotCanonical);
        }
        if key.is_weak() {
            return Err(KeyError::SmallOrder);
        }
        Ok(Self(key))
    }

    /// As [`PublicKey::from_bytes`], for bytes of any length.
    ///
    /// # Errors
    /// [`KeyError`] says what is wrong with them.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, KeyError> {
        Self::from_bytes(bytes.try_into().map_err(|_| KeyError::Length)?)
    }

    /// The canonical encoding.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Whether `signature` is this key's signature of `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }
}

impl From<&ed25519_dalek::SigningKey> for PublicKey {
    fn from(key: &ed25519_dalek::SigningKey) -> Self {
        Self(key.verifying_key())
    }
}

/// Shows the first four bytes: enough to tell keys apart in a test, and no key in a log.
impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = hex::encode(self.as_bytes());
        write!(f, "PublicKey({}..)", hex.get(..8).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_is_32_bytes() {
        let key = PublicKey::from(&SigningKey::from_bytes(&[7; 32]));
        assert_eq!(PublicKey::from_slice(key.as_bytes()), Ok(key));
        for len in (0..32).chain([33, 64]) {
            assert_eq!(PublicKey::from_slice(&vec![1; len]), Err(KeyError::Length), "{len}");
        }
    }

    #[test]
    fn a_part_of_a_key_is_shown() {
        let key = PublicKey::from(&SigningKey::from_bytes(&[7; 32]));
        let hex = hex::encode(key.as_bytes());
        assert_eq!(format!("{key:?}"), format!("PublicKey({}..)", &hex[..8]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn own_signatures_hold_and_no_others(
            seed: [u8; 32],
            other: [u8; 32],
            message in prop::collection::vec(any::<u8>(), 0..200),
            bit in 0..512_usize,
        ) {
            let signing = SigningKey::from_bytes(&seed);
            let key = PublicKey::from(&signing);
            prop_assert_eq!(PublicKey::from_bytes(key.as_bytes()), Ok(key));
            let signature = signing.sign(&message).to_bytes();
            prop_assert!(key.verifies(&message, &signature));
            let mut longer = message.clone();
            longer.push(0);
            prop_assert!(!key.verifies(&longer, &signature));
            let mut wrong = signature;
            wrong[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!key.verifies(&message, &wrong));
            prop_assume!(seed != other);
            prop_assert!(!PublicKey::from(&SigningKey::from_bytes(&other)).verifies(&message, &signature));
        }

        #[test]
        fn any_32_bytes_are_judged(bytes: [u8; 32], signature in prop::collection::vec(any::<u8>(), 64)) {
            if let Ok(key) = PublicKey::from_bytes(&bytes) {
                prop_assert_eq!(key.as_bytes(), &bytes);
                prop_assert!(!key.verifies(b"message", &signature.try_into().unwrap()));
            }
        }
    }
}
