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
            .finish_non_exhaustive()
    }
}
