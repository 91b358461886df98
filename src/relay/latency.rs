//! How long datagrams stay in the relay: from the read of the socket to the hand-over, for one in some 256.
//!
//! A raw packet is measured from the read that brought it until the kernel has taken it. Which ones is decided by the
//! low bits of the time that its charge needs anyway, so that the others cost a multiplication. A QUIC datagram is measured
//! from the last read of its shard's socket until quinn has taken it, which leaves out what it waited behind others of an
//! earlier read: every datagram that is handed over after one read in 256, so that the other reads need no clock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::metrics::Metrics;

/// One in so many is measured: a power of two.
const ONE_IN: u64 = 256;

/// When each shard last read packets for QUIC, if that read is one of those that are measured.
pub(super) struct Reads(Box<[LastRead]>);

/// In a cache line of its own: each is written by one thread for every batch.
#[derive(Default)]
#[repr(align(64))]
struct LastRead {
    reads: AtomicU64,
    /// 0: not to be measured.
    at_nanos: AtomicU64,
}

impl Reads {
    /// None yet.
    pub fn new(shards: usize) -> Self {
        Self((0..shards).map(|_| LastRead::default()).collect())
    }

    /// A shard has read its socket; `clock_nanos` is asked if that is to be measured. For the shard's own thread.
    pub fn note(&self, shard: u8, clock_nanos: impl FnOnce() -> u64) {
        let Some(last) = self.0.get(usize::from(shard)) else { return };
        let reads = last.reads.load(Relaxed).wrapping_add(1);
        last.reads.store(reads, Relaxed);
        if reads % ONE_IN == 0 {
            last.at_nanos.store(clock_nanos(), Relaxed);
        } else if reads % ONE_IN == 1 {
            last.at_nanos.store(0, Relaxed);
        }
    }

    /// When it last did, if what was read then is measured.
    pub fn measured(&self, shard: u8) -> Option<u64> {
        self.0.get(usize::from(shard)).map(|last| last.at_nanos.load(Relaxed)).filter(|at| *at > 0)
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
    fn one_read_in_256_is_measured_until_the_next_and_the_clock_is_asked_for_no_other() {
        let reads = Reads::new(2);
        let mut asked = 0;
        for read in 1..=4 * ONE_IN {
            reads.note(1, || {
                asked += 1;
                read
            });
            assert_eq!(reads.measured(1), (read % ONE_IN == 0).then_some(read));
        }
        assert_eq!((asked, reads.measured(0), reads.measured(9)), (4, None, None));
    }
}
