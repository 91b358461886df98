//! What a meter has charged in advance, in one word: a datagram takes its part of it in one atomic step.

/// Bytes and packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sum {
    pub(super) bytes: u64,
    pub(super) packets: u64,
}

impl Sum {
    /// What is left of it without the other one.
    pub(super) fn less(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            packets: self.packets.saturating_sub(other.packets),
        }
    }

    fn checked_sub(self, other: Self) -> Option<Self> {
        Some(Self {
            bytes: self.bytes.checked_sub(other.bytes)?,
            packets: self.packets.checked_sub(other.packets)?,
        })
    }

    fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            packets: self.packets.saturating_add(other.packets),
        }
    }

    fn fits(self, most: Self) -> bool {
        self.bytes <= most.bytes && self.packets <= most.packets
    }
}

/// The bits of one number of bytes, and of one of packets.
const BYTES_BITS: u32 = 18;
const PACKETS_BITS: u32 = 9;
const SUM_BITS: u32 = BYTES_BITS + PACKETS_BITS;
const LARGEST: Sum = Sum { bytes: (1 << BYTES_BITS) - 1, packets: (1 << PACKETS_BITS) - 1 };

/// Charged against every limit and not yet used; and how much of what was used the device sent, so that a datagram
/// need not be counted anywhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Advance {
    /// What datagrams may take.
    pub(super) left: Sum,
    /// What the device has taken or was counted for, since that was last moved to the meter's own counters.
    pub(super) by_device: Sum,
    /// How often it was called in, modulo 2^10: so that a word that was read before is not taken for the same.
    recalls: u64,
}

impl Advance {
    pub(super) fn from_word(word: u64) -> Self {
        let sum = |word: u64| Sum {
            bytes: (word >> PACKETS_BITS) & LARGEST.bytes,
            packets: word & LARGEST.packets,
        };
        Self { left: sum(word >> SUM_BITS), by_device: sum(word), recalls: word >> (2 * SUM_BITS) }
    }

    pub(super) fn word(self) -> u64 {
        let bits = |sum: Sum| sum.bytes << PACKETS_BITS | sum.packets;
        self.recalls << (2 * SUM_BITS) | bits(self.left) << SUM_BITS | bits(self.by_device)
    }

    /// After a datagram or a train of them has taken its part; `None` when there is not so much, or no room to count.
    pub(super) fn less(self, sum: Sum, by_device: bool) -> Option<Self> {
        let taken = Self { left: self.left.checked_sub(sum)?, ..self };
        if by_device { taken.count_device(sum) } else { Some(taken) }
    }

    /// After a part was given back; `None` when that would make more than `most`.
    pub(super) fn more(self, sum: Sum, most: Sum) -> Option<Self> {
        let left = self.left.plus(sum);
        left.fits(most).then_some(Self { left, ..self })
    }

    /// With this much more from the device; `None` when there is no room to count.
    pub(super) fn count_device(self, sum: Sum) -> Option<Self> {
        let by_device = self.by_device.plus(sum);
        by_device.fits(LARGEST).then_some(Self { by_device, ..self })
    }

    /// With so much to take, and what the device has taken moved elsewhere.
    pub(super) fn filled(self, left: Sum) -> Self {
        Self { left, ..self.settled() }
    }

    /// What the device has taken has been moved elsewhere.
    pub(super) fn settled(self) -> Self {
        Self { by_device: Sum::default(), ..self }
    }

    /// After it was called in: nothing is left, and the word is another one.
    pub(super) fn emptied(self) -> Self {
        Self { recalls: self.recalls.wrapping_add(1) & (u64::MAX >> (2 * SUM_BITS)), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum() -> impl Strategy<Value = Sum> {
        (0..=LARGEST.bytes, 0..=LARGEST.packets).prop_map(|(bytes, packets)| Sum { bytes, packets })
    }

    proptest! {
        #[test]
        fn a_word_holds_all_of_it(left in sum(), by_device in sum(), recalls in 0..1024_u64) {
            let advance = Advance { left, by_device, recalls };
            prop_assert_eq!(Advance::from_word(advance.word()), advance);
            let emptied = advance.emptied();
            prop_assert_eq!(Advance::from_word(emptied.word()), emptied);
            prop_assert_ne!(emptied.word(), advance.word());
            prop_assert_eq!(emptied.left, Sum::default());
        }

        #[test]
        fn what_is_taken_is_all_of_it_or_nothing(left in sum(), by_device in sum(), taken in sum()) {
            let advance = Advance { left, by_device, recalls: 7 };
            let fits = taken.fits(left);
            let by_peer = advance.less(taken, false);
            prop_assert_eq!(by_peer.is_some(), fits);
            if let Some(after) = by_peer {
                prop_assert_eq!((after.left.plus(taken), after.by_device), (left, by_device));
                prop_assert_eq!(after.more(taken, left), Some(advance));
                prop_assert!(taken == Sum::default() || advance.more(taken, left).is_none());
            }
            let room = by_device.plus(taken).fits(LARGEST);
            let by_device_after = advance.less(taken, true);
            prop_assert_eq!(by_device_after.is_some(), fits && room);
            if let Some(after) = by_device_after {
                prop_assert_eq!(after.by_device, by_device.plus(taken));
                prop_assert_eq!(Advance::from_word(after.word()), after);
            }
        }
    }
}
