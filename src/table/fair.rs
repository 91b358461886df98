//! One limit for the whole relay, divided among its allocations: max-min fair, by what each of them asks for.
//!
//! Whoever asks for less than its fair share gets what it asks for, and what it leaves goes to the others, by their
//! weights. A [`Sharer`] measures and divides every [`INTERVAL`] and writes each meter's share. Behind that stands one
//! bucket that everything passes, so that the limit holds also while demands change faster than they are measured.
//!
//! The limit can be another one, or none, while allocations live: see [`Pool::set_limit`].

use std::{sync::Arc, time::Duration};

use super::{
    Meter,
    atomic::{AtomicU64, Ordering::Relaxed},
    bucket::{Bucket, Dry, Size},
};

/// How often the limit is divided anew: as long as a burst takes.
pub const INTERVAL: Duration = Duration::from_millis(100);
/// The least burst is an allocation's. Nothing is kept apart: others are waiting for it.
const SIZE: Size = Size { least_burst: 16 * 1024, most_apart: 0, least_apart: 0 };
/// This part of the limit, 3 %, is given to nobody, so that the bucket behind it fills up again when it was drained
/// by demands that grew within an interval: from an empty bucket, whoever sends the most takes the most.
const RESERVED: u64 = 32;
/// What an allocation asked for lately counts for so much of itself an interval later, and less and less: many send
/// in bursts with pauses between them. After a second a twentieth is left.
const REMEMBERED: (u64, u64) = (3, 4);

/// The limit that all allocations share, if there is one, and the bucket that enforces it.
#[derive(Debug)]
pub struct Pool {
    bucket: Bucket,
    /// What a newcomer of weight 1 may have until it has been measured.
    level_bytes_per_sec: AtomicU64,
}

impl Pool {
    /// So much for all allocations together, in both directions; `None` for no limit.
    pub fn new(limit_bytes_per_sec: Option<u64>) -> Self {
        Self {
            bucket: Bucket::new(limit_bytes_per_sec, SIZE),
            level_bytes_per_sec: AtomicU64::new(limit_bytes_per_sec.unwrap_or_default()),
        }
    }

    /// What is in force.
    pub fn limit_bytes_per_sec(&self) -> Option<u64> {
        self.bucket.rate_per_sec()
    }

    /// Puts another limit in force. Of what may pass at once nobody gains by that, except where there was none before:
    /// then there is a whole burst. Each meter is to be told, by [`Meter::follow_pool`], before more are made.
    pub fn set_limit(&self, now_nanos: u64, limit_bytes_per_sec: Option<u64>) {
        if self.limit_bytes_per_sec().is_none() {
            self.level_bytes_per_sec.store(limit_bytes_per_sec.unwrap_or_default(), Relaxed);
        }
        self.bucket.set_rate(now_nanos, limit_bytes_per_sec);
    }

    /// What an allocation begins with: what one of its weight is sure to get now. `None` where there is no limit.
    pub(super) fn first_share(&self, weight: u32) -> Option<u64> {
        let limit = self.limit_bytes_per_sec()?;
        let level = self.level_bytes_per_sec.load(Relaxed);
        Some(level.saturating_mul(u64::from(weight.max(1))).clamp(1, limit.max(1)))
    }

    /// Whether there is a limit.
    pub(super) fn is_limited(&self) -> bool {
        self.limit_bytes_per_sec().is_some()
    }

    pub(super) fn take(&self, now_nanos: u64, bytes: u64) -> Result<(), Dry> {
        self.bucket.take(now_nanos, bytes)
    }

    pub(super) fn take_some(&self, now_nanos: u64, want_bytes: u64) -> Result<u64, Dry> {
        self.bucket.take_some(now_nanos, want_bytes)
    }

    pub(super) fn undo(&self, bytes: u64) {
        self.bucket.undo(bytes);
    }

    pub(super) fn give_back(&self, bytes: u64) {
        self.bucket.give_back(bytes);
    }
}

/// What one allocation asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    demand_bytes_per_sec: u64,
    weight: u64,
}

/// Divides a [`Pool`] among meters, again and again.
#[derive(Debug)]
pub struct Sharer {
    pool: Arc<Pool>,
    last_nanos: u64,
    /// Kept for its memory.
    claims: Vec<Claim>,
}

impl Sharer {
    /// Begins to measure at this moment, on the clock of the charges.
    pub fn new(pool: Arc<Pool>, now_nanos: u64) -> Self {
        Self { pool, last_nanos: now_nanos, claims: Vec::new() }
    }

    /// Measures what these meters, which are all that live, were asked for since the last time, and writes the share
    /// of each. Answers how many bytes have passed per second; nothing is done while there is no limit. Takes time in
    /// proportion to `n log n`.
    pub fn share(&mut self, now_nanos: u64, meters: &[Arc<Meter>]) -> u64 {
        let window_nanos = now_nanos.saturating_sub(self.last_nanos);
        if window_nanos == 0 {
            return 0;
        }
        self.last_nanos = now_nanos;
        let Some(limit_bytes_per_sec) = self.pool.limit_bytes_per_sec() else { return 0 };
        self.claims.clear();
        let mut passed_bytes = 0_u64;
        for meter in meters {
            let passed = meter.measure(window_nanos, limit_bytes_per_sec);
            passed_bytes = passed_bytes.saturating_add(passed);
            self.claims.push(Claim {
                demand_bytes_per_sec: meter.demand_bytes_per_sec(),
                weight: u64::from(meter.limits().weight.max(1)),
            });
        }
        let capacity = limit_bytes_per_sec - limit_bytes_per_sec / RESERVED;
        let division = Division::of(capacity, &self.claims);
        for (meter, claim) in meters.iter().zip(&self.claims) {
            meter.set_share(now_nanos, division.share(claim).clamp(1, limit_bytes_per_sec.max(1)));
        }
        self.pool.level_bytes_per_sec.store(division.level_bytes_per_sec.max(1), Relaxed);
        per_sec(passed_bytes, window_nanos)
    }
}

/// So many bytes in so long a time, as a rate.
pub(super) fn per_sec(bytes: u64, nanos: u64) -> u64 {
    let rate = u128::from(bytes) * 1_000_000_000 / u128::from(nanos.max(1));
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// What is left of a demand after one more interval without it.
pub(super) fn remembered(demand_bytes_per_sec: u64) -> u64 {
    let (times, of) = REMEMBERED;
    u64::try_from(u128::from(demand_bytes_per_sec) * u128::from(times) / u128::from(of)).unwrap_or(u64::MAX)
}

/// How a capacity is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Division {
    /// Each may have this much for each unit of its weight,
    level_bytes_per_sec: u64,
    /// and where not everything is asked for, each so much more than it asks for.
    unused_bytes_per_sec: u64,
}

impl Division {
    /// The level at which everything is used up when each gets the lower of what it asks for and its weight's part.
    fn of(capacity: u64, claims: &[Claim]) -> Self {
        let mut order: Vec<Claim> = claims.to_vec();
        // By what each asks for a unit of weight: a/b < c/d where ad < cb.
        order.sort_unstable_by(|a, b| {
            let [left, right] = [(a, b), (b, a)]
                .map(|(one, other)| u128::from(one.demand_bytes_per_sec) * u128::from(other.weight));
            left.cmp(&right)
        });
        let mut left = u128::from(capacity);
        let all: u128 = claims.iter().map(|claim| u128::from(claim.weight)).sum();
        let mut weights = all;
        for claim in &order {
            let demand = u128::from(claim.demand_bytes_per_sec);
            // Whoever asks for more than its part of what is left, so do all that follow.
            if demand * weights > left * u128::from(claim.weight) {
                let level = left / weights.max(1);
                return Self { level_bytes_per_sec: narrow(level), unused_bytes_per_sec: 0 };
            }
            left -= demand;
            weights -= u128::from(claim.weight);
        }
        Self {
            level_bytes_per_sec: narrow(u128::from(capacity) / all.max(1)),
            unused_bytes_per_sec: narrow(left),
        }
    }

    /// What this one may have. More than it asks for, where it asks for less than it may: it may grow until the next
    /// division, and should all of them, the bucket behind stops them.
    fn share(&self, claim: &Claim) -> u64 {
        let part = self.level_bytes_per_sec.saturating_mul(claim.weight);
        match self.unused_bytes_per_sec {
            0 => part,
            unused => part.max(claim.demand_bytes_per_sec.saturating_add(unused)),
        }
    }
}

fn narrow(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}
