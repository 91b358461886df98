//! Who gets as far as a handshake: decided before anything is computed for a packet, and before anything is signed.

use quinn::Incoming;

use super::{
    hub::Hub,
    shard::{Shard, Unauthenticated},
    unproven::Handshake,
};
use crate::guard::{Entry, Limit, Opening, SecurityEvent, Subject};

/// Versions that quinn speaks: 1, and the drafts that preceded it.
const VERSIONS: [u32; 7] = [1, 0xff00_001d, 0xff00_001e, 0xff00_001f, 0xff00_0020, 0xff00_0021, 0xff00_0022];
/// A client's first datagram is that long at least, and so is every one with an Initial (RFC 9000, section 14.1).
const MIN_INITIAL_BYTES: usize = 1200;
/// A client's first destination ID is that long at least (section 7.2), and so are ours.
const MIN_FIRST_ID_BYTES: u8 = 8;

/// An attempt to connect that may begin its handshake.
pub(super) struct Caller {
    pub incoming: Incoming,
    /// Its place among the connections without a token.
    pub place: Unauthenticated,
    /// Whether its source has paid for it.
    pub counted: bool,
    /// Unless its address has proven itself: what may be sent there.
    pub cover: Option<Handshake>,
}

/// Whether an attempt may begin its handshake. If not, what there is to say has been said.
pub(super) fn screen(hub: &Hub, shard: &Shard, incoming: Incoming) -> Option<Caller> {
    let (from, proven) = (incoming.remote_address().ip(), incoming.remote_address_validated());
    let counted = match hub.guard.enter(from, proven, hub.clock.mono()) {
        Entry::Handshake { counted } => counted,
        Entry::Retry => {
            retry(hub, incoming);
            return None;
        }
        Entry::Refuse => {
            incoming.refuse();
            return None;
        }
        Entry::Ignore => {
            incoming.ignore();
            return None;
        }
    };
    let Some(place) = shard.unauthenticated(hub) else {
        hub.metrics.handshakes_refused.inc();
        hub.security.emit(SecurityEvent::LimitHit { limit: Limit::Unauthenticated }, Subject::NOBODY);
        incoming.refuse();
        return None;
    };
    // Whoever makes addresses up takes no more than half of the places.
    if place.among_many && !proven {
        retry(hub, incoming);
        return None;
    }
    let cover = if proven {
        None
    } else {
        let Some(cover) = hub.unproven.open(incoming.remote_address()) else {
            retry(hub, incoming);
            return None;
        };
        Some(cover)
    };
    Some(Caller { incoming, place, counted, cover })
}

fn retry(hub: &Hub, incoming: Incoming) {
    hub.metrics.handshakes_retried.inc();
    // Fails only for an address that has proven itself.
    let _ = incoming.retry();
}

/// Whether a packet has a long header: one of a handshake.
pub(super) fn is_long(first: u8) -> bool {
    first & 0x80 != 0
}

/// What a datagram with a long header is; `None` when no client sends such a one, and it needs no answer.
pub(super) fn opening(datagram: &[u8]) -> Option<Opening> {
    // Shorter ones open nothing: quinn answers none.
    if datagram.len() < MIN_INITIAL_BYTES {
        return Some(Opening::Later);
    }
    let (first, rest) = datagram.split_first()?;
    let (version, rest) = rest.split_first_chunk::<4>()?;
    let version = u32::from_be_bytes(*version);
    // 0 is itself a list of versions, which only servers send.
    if version != 0 && !VERSIONS.contains(&version) {
        return Some(Opening::UnknownVersion);
    }
    let is_initial = version != 0 && first & 0x30 == 0;
    if !is_initial {
        return Some(Opening::Later);
    }
    let (to_bytes, rest) = rest.split_first()?;
    if *to_bytes < MIN_FIRST_ID_BYTES {
        return None;
    }
    let (from_bytes, rest) = rest.get(usize::from(*to_bytes)..)?.split_first()?;
    // The token's length follows: a variable-length integer, of which all forms of nothing are zero but for the two
    // bits that say the form.
    let (token, rest) = rest.get(usize::from(*from_bytes)..)?.split_first()?;
    let more = (1_usize << (token >> 6)) - 1;
    let with_token = token & 0x3f != 0 || rest.get(..more)?.iter().any(|byte| *byte != 0);
    Some(Opening::Initial { with_token })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn initial(version: u32, to: usize, from: usize, token_len: &[u8], len: usize) -> Vec<u8> {
        let mut packet = vec![0xc3];
        packet.extend(version.to_be_bytes());
        packet.push(to as u8);
        packet.extend(vec![7; to]);
        packet.push(from as u8);
        packet.extend(vec![9; from]);
        packet.extend(token_len);
        packet.resize(len, 0xaa);
        packet
    }

    #[test]
    fn a_datagram_is_told_by_its_header() {
        let with = |with_token| Some(Opening::Initial { with_token });
        for (packet, expected) in [
            (initial(1, 8, 8, &[0], 1200), with(false)),
            (initial(1, 20, 0, &[0x40, 0], 1200), with(false)),
            (initial(1, 20, 0, &[0x80, 0, 0, 0], 1252), with(false)),
            (initial(0xff00_001d, 8, 8, &[0x40, 70], 1200), with(true)),
            (initial(1, 8, 20, &[63], 1200), with(true)),
            (initial(1, 8, 8, &[0], 1199), Some(Opening::Later)),
            (initial(1, 7, 8, &[0], 1200), None),
            (initial(1, 0, 8, &[1], 1200), None),
            (initial(0x6b33_43cf, 8, 8, &[0], 1200), Some(Opening::UnknownVersion)),
            (initial(0x0a1a_2a3a, 0, 0, &[0], 1199), Some(Opening::Later)),
            (initial(0, 8, 8, &[0], 1200), Some(Opening::Later)),
            (vec![0xc0, 0, 0, 0, 1], Some(Opening::Later)),
            (vec![0xc0], Some(Opening::Later)),
            (vec![], Some(Opening::Later)),
        ] {
            assert_eq!(opening(&packet), expected, "{packet:02x?}");
        }
        let mut handshake = initial(1, 8, 8, &[0], 1200);
        handshake[0] = 0xe0;
        assert_eq!(opening(&handshake), Some(Opening::Later));
        assert!(is_long(0xc0) && !is_long(0x40));
    }

    /// What a real client's first packet is, and the one after a Retry, is checked where real clients are.
    #[test]
    fn the_versions_are_quinns() {
        assert_eq!(VERSIONS, *quinn_proto::DEFAULT_SUPPORTED_VERSIONS);
    }

    proptest! {
        #[test]
        fn any_bytes_are_told_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..1300), pad in any::<bool>()) {
            if pad {
                bytes.resize(1300, 0);
            }
            let _ = opening(&bytes);
        }
    }
}
