//! What a checked token says: the one type that every kind of token becomes.

use std::{fmt, sync::Arc};

use sha2::{Digest, Sha256};

use super::{AllocationId, DeviceId, Handle, PeerId, PublicKey, Role, TokenHash};

/// Who vouches for an allocation. Part of its identity: an allocation of one signer is never another's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signer {
    /// The device itself signed.
    Device,
    /// A configured issuer signed; its key id.
    Issuer(Arc<str>),
}

/// What makes an allocation the same one: in the table, in the ledger of use, in the tombstones.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Who vouches for it.
    pub signer: Signer,
    /// The device's name.
    pub device_id: DeviceId,
    /// The peer's key.
    pub peer_id: PeerId,
    /// The token's allocation id.
    pub allocation_id: AllocationId,
}

impl Identity {
    /// The allocation's public name. Two identities share one only by a SHA-256 collision in 128 bits.
    pub fn handle(&self) -> Handle {
        let mut hash = Sha256::new();
        match &self.signer {
            Signer::Device => hash.update([0]),
            Signer::Issuer(kid) => {
                hash.update([1]);
                hash.update((kid.len() as u64).to_le_bytes());
                hash.update(kid.as_bytes());
            }
        }
        hash.update(self.device_id.0);
        hash.update(self.peer_id.0);
        hash.update(self.allocation_id.0);
        let digest: [u8; 32] = hash.finalize().into();
        let mut handle = [0; 16];
        handle.copy_from_slice(digest.split_at(16).0);
        Handle(handle)
    }
}

/// Shows the handle alone: keys and ids stay out of logs.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.handle())
    }
}

/// A token whose signature, audience, allocation and times have all been checked.
///
/// From the network they come only by [`VerifiedToken::check`](super::token::VerifiedToken::check).
#[derive(Clone, PartialEq, Eq)]
pub struct Claims {
    /// The allocation it grants.
    pub identity: Identity,
    /// When the grant ends, unix seconds; it has ended when this is not later than now.
    pub expires_at_unix: u64,
    /// Bytes per second that it asks for; `None` asks for the tier's default.
    pub bandwidth_bytes_per_sec: Option<u64>,
    /// Bytes in both directions together that it asks for; `None` asks for the tier's default.
    pub quota_bytes: Option<u64>,
    /// The tier that an issuer's token names; `None` where it names none, and in a device's token.
    pub tier: Option<Arc<str>>,
    /// The key that the token's signature was checked with: the device's, or the issuer's.
    pub signed_by: PublicKey,
    /// The key that the device must prove it holds.
    pub device_key: PublicKey,
    /// The key that the peer must prove it holds.
    pub peer_key: PublicKey,
    /// Of the token exactly as it was sent.
    pub token_hash: TokenHash,
}

impl Claims {
    /// The key that a connection of this role proves possession of.
    pub fn key_of(&self, role: Role) -> &PublicKey {
        match role {
            Role::Device => &self.device_key,
            Role::Peer => &self.peer_key,
        }
    }
}

/// Shows the allocation's handle and what was granted; neither keys nor ids.
impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims")
            .field("identity", &self.identity)
            .field("expires_at_unix", &self.expires_at_unix)
            .field("bandwidth_bytes_per_sec", &self.bandwidth_bytes_per_sec)
            .field("quota_bytes", &self.quota_bytes)
            .field("tier", &self.tier)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use ed25519_dalek::SigningKey;

    use super::*;

    fn identity() -> Identity {
        Identity {
            signer: Signer::Device,
            device_id: DeviceId([0x11; 32]),
            peer_id: PeerId([0x22; 32]),
            allocation_id: AllocationId([0x33; 16]),
        }
    }

    fn claims() -> Claims {
        Claims {
            identity: identity(),
            expires_at_unix: 7,
            bandwidth_bytes_per_sec: Some(8),
            quota_bytes: None,
            tier: Some("gold".into()),
            signed_by: PublicKey::from(&SigningKey::from_bytes(&[3; 32])),
            device_key: PublicKey::from(&SigningKey::from_bytes(&[1; 32])),
            peer_key: PublicKey::from(&SigningKey::from_bytes(&[2; 32])),
            token_hash: TokenHash([0xab; 32]),
        }
    }

    /// A handle is in logs and in the admin API: it may not change from one version to the next.
    #[test]
    fn handles_are_pinned() {
        assert_eq!(identity().handle().to_string(), "97fdc5505c59615dfd86664a98d515ee");
        let issued = Identity { signer: Signer::Issuer("k1".into()), ..identity() };
        assert_eq!(issued.handle().to_string(), "cf18c99f453744b8e7ecf59042724348");
    }

    #[test]
    fn each_part_of_an_identity_makes_another_handle() {
        let handles: HashSet<Handle> = [
            identity(),
            Identity { signer: Signer::Issuer("".into()), ..identity() },
            Identity { signer: Signer::Issuer("k".into()), ..identity() },
            Identity { signer: Signer::Issuer("k\u{11}".into()), ..identity() },
            Identity { device_id: DeviceId([0x12; 32]), ..identity() },
            Identity { peer_id: PeerId([0x23; 32]), ..identity() },
            Identity { allocation_id: AllocationId([0x34; 16]), ..identity() },
        ]
        .iter()
        .map(Identity::handle)
        .collect();
        assert_eq!(handles.len(), 7);
    }

    #[test]
    fn each_role_proves_its_own_key() {
        let claims = claims();
        assert_eq!(claims.key_of(Role::Device), &claims.device_key);
        assert_eq!(claims.key_of(Role::Peer), &claims.peer_key);
        assert_ne!(claims.device_key, claims.peer_key);
    }

    #[test]
    fn no_key_no_id_and_no_hash_is_shown() {
        let shown = format!("{:?} {:#?}", claims(), claims());
        assert!(shown.contains(&identity().handle().to_string()));
        assert!(shown.contains("expires_at_unix: 7"));
        let claims = claims();
        for secret in [
            hex::encode(claims.signed_by.as_bytes()),
            hex::encode(claims.device_key.as_bytes()),
            hex::encode(claims.peer_key.as_bytes()),
            identity().device_id.to_string(),
            identity().peer_id.to_string(),
            identity().allocation_id.to_string(),
            "abab".to_owned(),
            "171".to_owned(),
        ] {
            assert!(!shown.contains(&secret), "{shown} has {secret}");
        }
    }
}
