//! The raw channel's packets: what passes beside the QUIC connection on the same UDP four-tuple.
//!
//! PROTOCOL.md, section 6. Everything here is slicing of fixed offsets: nothing is allocated, nothing can fail
//! half way, and a packet that is not exactly right is not a packet.

use std::fmt;

/// The bytes before a data packet's payload: kind and tag.
pub const HEADER_LEN: usize = 1 + Tag::LEN;
/// The length of a probe and of its answer.
pub const PROBE_LEN: usize = HEADER_LEN + 8 + 8;

/// First bytes. Their two high bits are clear; those of a QUIC packet never are here (RFC 9443, and nobody
/// greases the QUIC bit).
const DATA: u8 = 0x20;
const PROBE: u8 = 0x21;
const ANSWER: u8 = 0x22;

/// A value that a probe carries out and its answer brings back.
pub type Nonce = [u8; 8];
/// The relay's proof that whoever returns it receives at an address. All zero in a first probe.
pub type Cookie = [u8; 8];

/// The name of one leg's raw channel: the shard's byte, then six secret ones.
///
/// Whoever knows it and can send from the leg's address can spend its quota, so it is shown nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag([u8; Self::LEN]);

impl Tag {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 7;

    /// The tag that this shard gives, of bytes from a CSPRNG.
    pub const fn new(shard: u8, random: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = random;
        Self([shard, a, b, c, d, e, f])
    }

    /// Reads a tag; `None` unless there are exactly seven bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Which shard made it.
    pub const fn shard(&self) -> u8 {
        self.0[0]
    }

    /// As it stands on the wire.
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tag(..)")
    }
}

/// Whether a UDP payload belongs to the raw channel or to nobody, by its first byte, rather than to QUIC.
pub const fn is_not_quic(first: u8) -> bool {
    first & 0xc0 == 0
}

/// A packet of the raw channel, in the buffer it arrived in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Something to pass on.
    Data {
        /// The sender's tag towards the relay; the receiver's from the relay on.
        tag: Tag,
        /// May be empty.
        payload: &'a [u8],
    },
    /// A client asks whether raw packets pass, and shows the cookie of the last answer.
    Probe {
        /// The client's tag.
        tag: Tag,
        /// To be sent back.
        nonce: Nonce,
        /// All zero when there is none yet.
        cookie: Cookie,
    },
    /// The relay's answer.
    Answer {
        /// The client's tag.
        tag: Tag,
        /// The probe's.
        nonce: Nonce,
        /// To be shown in the next probe.
        cookie: Cookie,
    },
}

impl<'a> Packet<'a> {
    /// Reads one UDP payload; `None` when it is not a packet of the raw channel: an unknown first byte, too
    /// short for its tag, or a probe that is not exactly as long as one.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let [kind, tag @ ..] = *header;
        let tag = Tag(tag);
        if kind == DATA {
            return Some(Self::Data { tag, payload: rest });
        }
        let (nonce, cookie) = rest.split_first_chunk::<8>()?;
        let (nonce, cookie) = (*nonce, cookie.try_into().ok()?);
        match kind {
            PROBE => Some(Self::Probe { tag, nonce, cookie }),
            ANSWER => Some(Self::Answer { tag, nonce, cookie }),
            _ => None,
        }
    }
}

/// What goes before a payload.
pub const fn data_header(tag: Tag) -> [u8; HEADER_LEN] {
    let [a, b, c, d, e, f, g] = tag.0;
    [DATA, a, b, c, d, e, f, g]
}

/// A probe.
pub fn probe(tag: Tag, nonce: Nonce, cookie: Cookie) -> [u8; PROBE_LEN] {
    three(PROBE, tag, nonce, cookie)
}

/// A probe's answer.
pub fn answer(tag: Tag, nonce: Nonce, cookie: Cookie) -> [u8; PROBE_LEN] {
    three(ANSWER, tag, nonce, cookie)
}

fn three(kind: u8, tag: Tag, nonce: Nonce, cookie: Cookie) -> [u8; PROBE_LEN] {
    let mut packet = [kind; PROBE_LEN];
    let parts = [&tag.0[..], &nonce, &cookie];
    for (to, from) in packet[1..].iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
    }
    packet
}

/// Addresses a data packet anew, in place. The packet must be one; anything shorter than a header is left alone.
pub fn readdress(packet: &mut [u8], tag: Tag) {
    if let Some(header) = packet.first_chunk_mut::<HEADER_LEN>() {
        *header = data_header(tag);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TAG: Tag = Tag::new(3, [1, 2, 3, 4, 5, 6]);

    #[test]
    fn packets_are_what_the_protocol_says_byte_for_byte() {
        assert_eq!(data_header(TAG), [0x20, 3, 1, 2, 3, 4, 5, 6]);
        let tail = [3, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7, 7, 7, 7, 9, 9, 9, 9, 9, 9, 9, 9];
        let three = |kind: u8| [&[kind], &tail[..]].concat();
        assert_eq!(probe(TAG, [7; 8], [9; 8]).to_vec(), three(0x21));
        assert_eq!(answer(TAG, [7; 8], [9; 8]).to_vec(), three(0x22));
        assert_eq!((TAG.shard(), TAG.as_bytes()), (3, &[3, 1, 2, 3, 4, 5, 6]));
    }

    #[test]
    fn packets_read_back_as_written() {
        let data = [&data_header(TAG)[..], b"payload"].concat();
        assert_eq!(Packet::parse(&data), Some(Packet::Data { tag: TAG, payload: b"payload" }));
        assert_eq!(
            Packet::parse(&data_header(TAG)),
            Some(Packet::Data { tag: TAG, payload: b"" }),
            "an empty payload is one"
        );
        let (nonce, cookie) = ([1; 8], [2; 8]);
        assert_eq!(
            Packet::parse(&probe(TAG, nonce, cookie)),
            Some(Packet::Probe { tag: TAG, nonce, cookie })
        );
        assert_eq!(
            Packet::parse(&answer(TAG, nonce, cookie)),
            Some(Packet::Answer { tag: TAG, nonce, cookie })
        );
    }

    #[test]
    fn a_probe_of_another_length_is_none() {
        for kind in [PROBE, ANSWER] {
            for len in (0..2 * PROBE_LEN).filter(|len| *len != PROBE_LEN) {
                assert_eq!(Packet::parse(&vec![kind; len]), None, "{kind:#x}, {len} bytes");
            }
        }
    }

    #[test]
    fn readdressing_changes_the_tag_alone() {
        let other = Tag::new(0xff, [0xaa; 6]);
        let mut packet = [&data_header(TAG)[..], b"payload"].concat();
        readdress(&mut packet, other);
        assert_eq!(Packet::parse(&packet), Some(Packet::Data { tag: other, payload: b"payload" }));
        let mut short = [0x20; HEADER_LEN - 1];
        readdress(&mut short, other);
        assert_eq!(short, [0x20; HEADER_LEN - 1]);
    }

    #[test]
    fn a_tag_shows_itself_to_nobody() {
        assert_eq!(format!("{TAG:?}"), "Tag(..)");
        assert_eq!(Tag::from_slice(&[0; 6]), None);
        assert_eq!(Tag::from_slice(&[0; 8]), None);
        assert_eq!(Tag::from_slice(TAG.as_bytes()), Some(TAG));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// Whatever arrives: no panic, and what is taken for a packet is one, byte for byte.
        #[test]
        fn anything_parses_to_itself_or_to_nothing(
            first in prop_oneof![0x1fu8..=0x23, any::<u8>()],
            rest in prop_oneof![
                prop::collection::vec(any::<u8>(), PROBE_LEN - 1),
                prop::collection::vec(any::<u8>(), 0..64),
            ],
        ) {
            let bytes = [&[first], &rest[..]].concat();
            match Packet::parse(&bytes) {
                Some(Packet::Data { tag, payload }) => {
                    prop_assert_eq!(&[&data_header(tag)[..], payload].concat(), &bytes);
                }
                Some(Packet::Probe { tag, nonce, cookie }) => {
                    prop_assert_eq!(&probe(tag, nonce, cookie)[..], &bytes);
                }
                Some(Packet::Answer { tag, nonce, cookie }) => {
                    prop_assert_eq!(&answer(tag, nonce, cookie)[..], &bytes);
                }
                None => {
                    let right_length = match first {
                        DATA => bytes.len() >= HEADER_LEN,
                        PROBE | ANSWER => bytes.len() == PROBE_LEN,
                        _ => false,
                    };
                    prop_assert!(!right_length);
                }
            }
            // And nothing of it could have been QUIC.
            prop_assert!(Packet::parse(&bytes).is_none() || is_not_quic(first));
        }
    }
}
