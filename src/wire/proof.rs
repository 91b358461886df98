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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXPORTER: Binding = Binding::Exporter([0xe1; 32]);
    const NONCE: Binding = Binding::Nonce { nonce: [0xe1; 32], spki_sha256: [0x5b; 32] };

    fn key() -> (SigningKey, PublicKey) {
        let signing = SigningKey::from_bytes(&[9; 32]);
        let public = PublicKey::from(&signing);
        (signing, public)
    }

    #[test]
    fn the_signed_bytes_are_laid_out_as_the_protocol_says() {
        let bytes = message(Role::Peer, &TokenHash([0x70; 32]), &EXPORTER);
        assert_eq!(bytes.len(), 18 + 2 + 32 + 32);
        assert_eq!(bytes[..18], *b"zrc-relay/1 proof\0");
        assert_eq!(bytes[18..20], [2, 1]);
        assert_eq!(bytes[20..52], [0x70; 32]);
        assert_eq!(bytes[52..], [0xe1; 32]);

        let bytes = message(Role::Device, &TokenHash([0x70; 32]), &NONCE);
        assert_eq!(bytes.len(), 18 + 2 + 3 * 32);
        assert_eq!(bytes[18..20], [1, 2]);
        assert_eq!(bytes[52..84], [0xe1; 32]);
        assert_eq!(bytes[84..], [0x5b; 32]);
    }

    #[test]
    fn every_wrong_bit_of_a_proof_is_refused() {
        let (signing, public) = key();
        let token = TokenHash([0x70; 32]);
        for (role, binding) in Role::BOTH.into_iter().flat_map(|role| [(role, EXPORTER), (role, NONCE)]) {
            let proof = prove(&signing, role, &token, &binding);
            assert!(verifies(&public, role, &token, &binding, &proof));
            for bit in 0..512 {
                let mut wrong = proof;
                wrong[bit / 8] ^= 1 << (bit % 8);
                assert!(!verifies(&public, role, &token, &binding, &wrong), "bit {bit}");
            }
        }
    }

    #[test]
    fn every_wrong_bit_of_what_is_bound_is_refused() {
        let (signing, public) = key();
        let token = TokenHash([0x70; 32]);
        let proof_1 = prove(&signing, Role::Device, &token, &EXPORTER);
        let proof_2 = prove(&signing, Role::Device, &token, &NONCE);
        for bit in 0..256 {
            let flip = |mut bytes: [u8; 32]| {
                bytes[bit / 8] ^= 1 << (bit % 8);
                bytes
            };
            let other_token = TokenHash(flip(token.0));
            assert!(!verifies(&public, Role::Device, &other_token, &EXPORTER, &proof_1), "token, bit {bit}");
            assert!(!verifies(&public, Role::Device, &other_token, &NONCE, &proof_2), "token, bit {bit}");
            for (binding, proof) in [
                (Binding::Exporter(flip([0xe1; 32])), &proof_1),
                (Binding::Nonce { nonce: flip([0xe1; 32]), spki_sha256: [0x5b; 32] }, &proof_2),
                (Binding::Nonce { nonce: [0xe1; 32], spki_sha256: flip([0x5b; 32]) }, &proof_2),
            ] {
                assert!(!verifies(&public, Role::Device, &token, &binding, proof), "binding, bit {bit}");
            }
        }
    }

    #[test]
    fn a_proof_is_for_one_role_one_mode_and_one_key() {
        let (signing, public) = key();
        let token = TokenHash([0x70; 32]);
        let stranger = PublicKey::from(&SigningKey::from_bytes(&[10; 32]));
        for (binding, other) in [(EXPORTER, NONCE), (NONCE, EXPORTER)] {
            let proof = prove(&signing, Role::Device, &token, &binding);
            assert!(verifies(&public, Role::Device, &token, &binding, &proof));
            assert!(!verifies(&public, Role::Peer, &token, &binding, &proof));
            assert!(!verifies(&public, Role::Device, &token, &other, &proof));
            assert!(!verifies(&stranger, Role::Device, &token, &binding, &proof));
        }
    }

    #[test]
    fn a_proof_is_64_bytes() {
        let (signing, public) = key();
        let token = TokenHash([0x70; 32]);
        let mut long = prove(&signing, Role::Peer, &token, &EXPORTER).to_vec();
        long.push(0);
        for len in (0..64).chain([65]) {
            assert!(!verifies(&public, Role::Peer, &token, &EXPORTER, &long[..len]), "{len} bytes");
        }
        assert!(verifies(&public, Role::Peer, &token, &EXPORTER, &long[..64]));
    }

    #[test]
    fn the_exporters_label_is_the_protocols() {
        assert_eq!(EXPORTER_LABEL, b"EXPORTER-zrc-relay-proof");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn arbitrary_bytes_prove_nothing(
            proof in prop::collection::vec(any::<u8>(), 0..130), token: [u8; 32], nonce: [u8; 32],
        ) {
            let binding = Binding::Nonce { nonce, spki_sha256: token };
            prop_assert!(!verifies(&key().1, Role::Device, &TokenHash(token), &binding, &proof));
        }

        #[test]
        fn own_proofs_hold(seed: [u8; 32], token: [u8; 32], secret: [u8; 32], peer: bool) {
            let signing = SigningKey::from_bytes(&seed);
            let role = if peer { Role::Peer } else { Role::Device };
            let binding = Binding::Exporter(secret);
            let proof = prove(&signing, role, &TokenHash(token), &binding);
            prop_assert!(verifies(&PublicKey::from(&signing), role, &TokenHash(token), &binding, &proof));
        }
    }
}
