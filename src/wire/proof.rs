//! Proof of possession: what turns a token that may have been stolen into a caller who owns it.

use ed25519_dalek::{Signer as _, SigningKey};

use super::{PublicKey, Role, TokenHash};

/// Begins every signed proof, so that no other protocol's signature can pass for one.
const CONTEXT: &[u8] = b"zrc-relay/1 proof\0";

/// The TLS exporter label of mode 1.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-zrc-relay-proof";

/// What ties a proof to one connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// Mode 1: 32 bytes of TLS exporter, label [`EXPORTER_LABEL`], empty context.
    Exporter([u8; 32]),
    /// Mode 2, for QUIC stacks without an exporter.
    Nonce {
        /// The relay's Challenge, used once.
        nonce: [u8; 32],
        /// SHA-256 of the SubjectPublicKeyInfo of the certificate the relay showed: a relay in the middle
        /// cannot pass a Challenge on.
        spki_sha256: [u8; 32],
    },
}

impl Binding {
    const fn mode(&self) -> u8 {
        match self {
            Self::Exporter(_) => 1,
            Self::Nonce { .. } => 2,
        }
    }
}

/// The exact bytes that a proof signs.
pub fn message(role: Role, token: &TokenHash, binding: &Binding) -> Vec<u8> {
    let mut message = Vec::with_capacity(CONTEXT.len() + 2 + 3 * 32);
    message.extend_from_slice(CONTEXT);
    message.push(role.number());
    message.push(binding.mode());
    message.extend_from_slice(&token.0);
    match binding {
        Binding::Exporter(secret) => message.extend_from_slice(secret),
        Binding::Nonce { nonce, spki_sha256 } => {
            message.extend_from_slice(nonce);
            message.extend_from_slice(spki_sha256);
        }
    }
    message
}

/// Proves to the relay at the other end of `binding` that the caller holds the role's key.
pub fn prove(key: &SigningKey, role: Role, token: &TokenHash, binding: &Binding) -> [u8; 64] {
    key.sign(&message(role, token, binding)).to_bytes()
}

/// Whether `proof` is 64 bytes made by `key` for exactly this role, token and connection.
pub fn verifies(key: &PublicKey, role: Role, token: &TokenHash, binding: &Binding, proof: &[u8]) -> bool {
    <&[u8; 64]>::try_from(proof).is_ok_and(|proof| key.verifies(&message(role, token, binding), proof))
}
