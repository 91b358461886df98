//! The names of things: fixed-size identifiers that cannot be swapped for one another.

use std::{fmt, str::FromStr};

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} hex digits, got {got:?}")]
pub struct IdError {
    /// How many hex digits the identifier has.
    pub expected: usize,
    /// The text as given, cut after 80 characters.
    pub got: String,
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// Length on the wire, in bytes.
            pub const LEN: usize = $bytes;

            /// The raw bytes, as they stand on the wire.
            pub fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }

            /// A fresh one from the operating system's CSPRNG.
            ///
            /// # Errors
            /// When the operating system has no randomness to give.
            pub fn random() -> Result<Self, getrandom::Error> {
                let mut bytes = [0; $bytes];
                getrandom::fill(&mut bytes)?;
                Ok(Self(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            /// Reads exactly the hex digits of the identifier, in either case.
            fn from_str(text: &str) -> Result<Self, IdError> {
                let mut bytes = [0; $bytes];
                hex::decode_to_slice(text, &mut bytes)
                    .map_err(|_| IdError { expected: 2 * $bytes, got: text.chars().take(80).collect() })?;
                Ok(Self(bytes))
            }
        }
    };
}

identifier!(
    /// The audience of a token: one relay, or one cluster of relays. 16 bytes.
    RelayId,
    16
);
identifier!(
    /// Chosen at random by whoever mints the token; names an allocation together with its signer and pair. 16 bytes.
    AllocationId,
    16
);
identifier!(
    /// The device's name; where devices certify themselves, its Ed25519 public key. 32 bytes.
    DeviceId,
    32
);
identifier!(
    /// The peer's Ed25519 public key. 32 bytes.
    PeerId,
    32
);
identifier!(
    /// How logs, the admin API and people name one allocation: the first 16 bytes of SHA-256 over its
    /// [`Identity`](super::Identity). It reveals neither keys nor the allocation id.
    Handle,
    16
);

impl AllocationId {
    /// What a client puts first into its first Destination Connection ID, so that both legs of the allocation
    /// land on one shard: the XOR of the id's bytes. `PROTOCOL.md` section 7.
    pub fn affinity_byte(&self) -> u8 {
        self.0.iter().fold(0, |sum, byte| sum ^ byte)
    }
}

/// Which of an allocation's two sides a connection speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The side that signed the token.
    Device,
    /// The side that the token names.
    Peer,
}

impl Role {
    /// Both roles, in wire order.
    pub const BOTH: [Self; 2] = [Self::Device, Self::Peer];

    /// The role's number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Self::Device => 1,
            Self::Peer => 2,
        }
    }

    /// 0 for the device, 1 for the peer: where this role's things stand in a pair.
    pub const fn index(self) -> usize {
        match self {
            Self::Device => 0,
            Self::Peer => 1,
        }
    }

    /// The other side.
    pub const fn other(self) -> Self {
        match self {
            Self::Device => Self::Peer,
            Self::Peer => Self::Device,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "device",
            Self::Peer => "peer",
        })
    }
}
