//! How long datagrams stay in the relay: from the read of the socket to the hand-over, for one in some 256.
//!
//! Which ones is decided by the clock's own low bits, so that the others cost a multiplication and nothing is written
//! for them. A raw packet is measured from the read that brought it until the kernel has taken it; a QUIC datagram
//! from the last read of its shard's socket until quinn has taken it, which leaves out what it waited behind others
//! of an earlier read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::metrics::Metrics;

/// One in so many is measured: a power of two.
const ONE_IN: u64 = 256;

/// When each shard last read packets for QUIC.
pub(super) struct Reads(Box<[LastRead]>);

/// In a cache line of its own: each is written by one thread for every batch.
#[derive(Default)]
#[repr(align(64))]
struct LastRead(AtomicU64);

impl Reads {
    /// None yet.
    pub fn new(shards: usize) -> Self {
        Self((0..shards).map(|_| LastRead::default()).collect())
    }

    /// A shard has read its socket.
    pub fn note(&self, shard: u8, now_nanos: u64) {
        if let Some(read) = self.0.get(usize::from(shard)) {
            read.0.store(now_nanos, Relaxed);
        }
    }

    /// When it last did, if this datagram is one of those that are measured.
    pub fn sampled(&self, shard: u8, now_nanos: u64) -> Option<u64> {
        if !is_sampled(now_nanos) {
            return None;
        }
        self.0.get(usize::from(shard)).map(|read| read.0.load(Relaxed)).filter(|read| *read > 0)
    }
}

/// Whether what comes at this nanosecond is measured: spread over all bits, should a clock have coarse steps.
pub(super) fn is_sampled(now_nanos: u64) -> bool {
    now_nanos.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - ONE_IN.trailing_zeros()) == 0
}

/// One was handed over.
#[cold]
pub(super) fn observe(metrics: &Metrics, is_raw: bool, read_nanos: u64, now_nanos: u64) {
    metrics.forward_latency(is_raw).observe(now_nanos.saturating_sub(read_nanos) as f64 / 1e9);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_some_256_is_measured_whatever_the_clocks_steps() {
        for step in [1, 7, 100, 256, 1000, 4096, 1_000_000] {
            let sampled = (0..100_000_u64).filter(|n| is_sampled(n * step)).count();
            assert!((200..600).contains(&sampled), "{sampled} of 100000 in steps of {step}");
        }
    }

    #[test]
    fn before_the_first_read_nothing_is_known() {
        let reads = Reads::new(2);
        assert_eq!(reads.sampled(1, 0), None);
        reads.note(1, 5);
        assert_eq!((reads.sampled(1, 0), reads.sampled(0, 0), reads.sampled(9, 0)), (Some(5), None, None));
    }
}
