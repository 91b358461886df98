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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hex_is_read_in_either_case_and_written_in_lower() {
        let id: RelayId = "A1b2C3d4e5f60718293a4b5c6d7e8f90".parse().unwrap();
        assert_eq!(id.to_string(), "a1b2c3d4e5f60718293a4b5c6d7e8f90");
        assert_eq!(format!("{id:?}"), "RelayId(a1b2c3d4e5f60718293a4b5c6d7e8f90)");
        assert_eq!(id.as_bytes()[..2], [0xa1, 0xb2]);
        assert_eq!((RelayId::LEN, AllocationId::LEN, Handle::LEN), (16, 16, 16));
        assert_eq!((DeviceId::LEN, PeerId::LEN), (32, 32));
    }

    #[test]
    fn other_texts_are_no_identifiers() {
        let good = "a1b2c3d4e5f60718293a4b5c6d7e8f90";
        for bad in [
            "",
            &good[1..],
            &good[2..],
            &format!("{good}0"),
            &format!("{good}00"),
            &format!(" {}", &good[1..]),
            &format!("{}\n", &good[1..]),
            &format!("0x{}", &good[2..]),
            &good.replace('f', "g"),
            &good.replace('f', "é"),
        ] {
            let error = bad.parse::<AllocationId>().unwrap_err();
            assert_eq!(error, IdError { expected: 32, got: bad.to_owned() }, "{bad}");
        }
        assert_eq!(good.parse::<PeerId>().unwrap_err().expected, 64);
    }

    #[test]
    fn an_error_holds_a_bounded_part_of_the_text() {
        let error = "é".repeat(10_000).parse::<DeviceId>().unwrap_err();
        assert_eq!(error.got, "é".repeat(80));
        let error = "\u{1b}[2J".parse::<DeviceId>().unwrap_err();
        assert_eq!(error.to_string(), r#"expected 64 hex digits, got "\u{1b}[2J""#);
    }

    #[test]
    fn random_ones_differ() {
        let ids: std::collections::HashSet<_> = (0..64).map(|_| AllocationId::random().unwrap()).collect();
        assert_eq!(ids.len(), 64);
    }

    #[test]
    fn roles_stand_where_the_protocol_puts_them() {
        assert_eq!(Role::BOTH.map(Role::number), [1, 2]);
        assert_eq!(Role::BOTH.map(Role::index), [0, 1]);
        assert_eq!(Role::BOTH.map(Role::other), [Role::Peer, Role::Device]);
        assert_eq!(Role::BOTH.map(|role| role.to_string()), ["device", "peer"]);
    }

    proptest! {
        #[test]
        fn every_identifier_survives_its_text(bytes: [u8; 32]) {
            prop_assert_eq!(PeerId(bytes).to_string().parse::<PeerId>(), Ok(PeerId(bytes)));
        }

        #[test]
        fn any_text_is_read_or_refused(text in any::<String>()) {
            if let Ok(id) = text.parse::<Handle>() {
                prop_assert_eq!(id.to_string(), text.to_lowercase());
            }
        }

        #[test]
        fn each_byte_has_its_part_in_the_affinity(bytes: [u8; 16], at in 0..16_usize, flip in 1..=255_u8) {
            let mut other = bytes;
            other[at] ^= flip;
            let (one, two) = (AllocationId(bytes).affinity_byte(), AllocationId(other).affinity_byte());
            prop_assert_eq!(one ^ two, flip);
        }
    }
}
