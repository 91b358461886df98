//! The wire contract, without I/O: tokens, proofs, control messages, close codes.
//!
//! Shared by the relay and its clients. Nothing here opens a socket, reads a clock or awaits; times are
//! arguments. Everything that parses takes bytes that an attacker may have chosen, allocates no more than
//! those bytes warrant, and answers with a typed error. `PROTOCOL.md` in this folder is the contract in prose.

pub mod any_token;
pub mod channel;
pub mod claims;
pub mod codes;
pub mod control;
pub mod descriptor;
pub mod ids;
pub mod issuer;
pub mod key;
pub mod proof;
pub mod token;
pub mod verified;

#[cfg(test)]
mod vectors;
#[cfg(test)]
mod vectors_issuer;

pub use any_token::AnyToken;
pub use claims::{Claims, Identity, Signer};
pub use codes::CloseCode;
pub use descriptor::{Descriptor, SpkiPin};
pub use ids::{AllocationId, DeviceId, Handle, PeerId, RelayId, Role};
pub use issuer::{IssuerFields, IssuerToken, JwtClaim, JwtError, KeyId};
pub use key::{KeyError, PublicKey};
pub use token::{SignedToken, TokenError, TokenFields, TokenHash};
pub use verified::VerifiedTokens;

/// The ALPN identifier of this protocol, and the name people know it by.
pub const ALPN: &[u8] = b"zrc-relay/1";
