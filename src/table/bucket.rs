//! A bucket that fills at a rate, on one atomic word: the generic cell rate algorithm.
//!
//! The word is the time at which the bucket will be full again. To take from the bucket is to move that time
//! later by what the amount takes to flow in; the bucket is empty when the time lies a whole burst ahead.
//! An amount's cost is rounded up and the burst's is rounded down, each to a nanosecond, so that in any
//! window `taken <= rate x window + burst` holds exactly and not only nearly.

use std::time::Duration;

use super::atomic::{AtomicU64, Ordering::Relaxed};

const NANOS_PER_SEC: u64 = 1_000_000_000;
/// A burst is what flows in during a tenth of a second: long enough for the trains in which applications
/// send, short enough that the queue a burst builds on a leg is not felt.
const BURSTS_PER_SEC: u64 = 10;
/// Streams take no less than what flows in during a hundredth of a second, if they want that much: to wake
/// for each few bytes would cost more than the bytes.
const PORTIONS_PER_SEC: u64 = 100;
/// What is kept apart is no more than this part of the burst.
const APART: u64 = 16;
/// The rate that stands for none.
const UNLIMITED: u64 = u64::MAX;

/// How large a bucket is, beside its rate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// The burst is never smaller than this, or a low rate would let nothing through at all.
    pub(super) least_burst: u64,
    /// A part of the burst that the caller may keep apart, to give out by itself: the bucket holds so much less. No
    /// more than this,
    pub(super) most_apart: u64,
    /// and nothing where it would be less than this.
    pub(super) least_apart: u64,
}

impl Size {
    /// What may pass at once, what is kept apart included.
    pub(super) fn burst(&self, rate_per_sec: u64) -> u64 {
        if rate_per_sec == 0 { 0 } else { (rate_per_sec / BURSTS_PER_SEC).max(self.least_burst) }
    }

    /// What the caller may keep apart. It follows from the rate alone, so that nobody ever sees the one without the
    /// other.
    pub(super) fn apart(&self, rate_per_sec: Option<u64>) -> u64 {
        match rate_per_sec.map(|rate| self.burst(rate) / APART) {
            Some(part) if part < self.least_apart => 0,
            Some(part) => part.min(self.most_apart),
            None => self.most_apart,
        }
    }
}

/// Why nothing was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dry {
    /// More than a full bucket holds.
    Never,
    /// Not until this much later.
    Wait(Duration),
}

/// Units (bytes or packets) that may pass: so many per second, and one burst at once.
#[derive(Debug)]
pub(super) struct Bucket {
    rate_per_sec: AtomicU64,
    size: Size,
    /// On the caller's clock.
    full_at_nanos: AtomicU64,
}

impl Bucket {
    /// A full bucket. `None` for no limit.
    pub(super) fn new(rate_per_sec: Option<u64>, size: Size) -> Self {
        Self {
            rate_per_sec: AtomicU64::new(rate_per_sec.unwrap_or(UNLIMITED)),
            size,
            full_at_nanos: AtomicU64::new(0),
        }
    }

    /// Takes all of `units` or nothing.
    pub(super) fn take(&self, now_nanos: u64, units: u64) -> Result<(), Dry> {
        let Some(flow) = self.flow() else { return Ok(()) };
        if units > flow.burst {
            return Err(Dry::Never);
        }
        let cost_nanos = flow.cost_nanos(units);
        self.update(|full_at_nanos| {
            flow.check(now_nanos, full_at_nanos, cost_nanos)?;
            Ok((full_at_nanos.max(now_nanos).saturating_add(cost_nanos), ()))
        })
    }

    /// Takes as much of `want` as there is, unless that is too little to be worth a wake-up.
    pub(super) fn take_some(&self, now_nanos: u64, want: u64) -> Result<u64, Dry> {
        let Some(flow) = self.flow() else { return Ok(want) };
        if flow.burst == 0 {
            return Err(Dry::Never);
        }
        let least = want.min(flow.portion);
        self.update(|full_at_nanos| {
            flow.check(now_nanos, full_at_nanos, flow.cost_nanos(least))?;
            let taken = want.min(flow.held(now_nanos, full_at_nanos));
            Ok((full_at_nanos.max(now_nanos).saturating_add(flow.cost_nanos(taken)), taken))
        })
    }

    /// Undoes a `take` of just so many units.
    pub(super) fn undo(&self, units: u64) {
        if let Some(flow) = self.flow() {
            self.give_back_nanos(flow.cost_nanos(units));
        }
    }

    /// Gives back a part of what `take_some` took. Rounded against the taker: the parts of an amount cost no
    /// less than the whole.
    pub(super) fn give_back(&self, units: u64) {
        if let Some(flow) = self.flow() {
            self.give_back_nanos(flow.flow_nanos(units));
        }
    }

    /// Changes the rate. The bucket holds afterwards what it held before, as of `at_nanos`, and no more than
    /// the new burst: otherwise one could earn by changing the rate to and fro. Out of no limit it comes full.
    pub(super) fn set_rate(&self, at_nanos: u64, rate_per_sec: Option<u64>) {
        let old = self.flow();
        self.rate_per_sec.store(rate_per_sec.unwrap_or(UNLIMITED), Relaxed);
        let new = self.flow();
        let restate = |full_at_nanos: u64| match (&old, &new) {
            (Some(old), Some(new)) => {
                let missing = new.burst.saturating_sub(old.held(at_nanos, full_at_nanos));
                at_nanos.saturating_add(new.cost_nanos(missing))
            }
            _ => 0,
        };
        let _ =
            self.full_at_nanos.fetch_update(Relaxed, Relaxed, |full_at_nanos| Some(restate(full_at_nanos)));
    }

    /// What flows in per second; `None` without a limit.
    pub(super) fn rate_per_sec(&self) -> Option<u64> {
        Some(self.rate_per_sec.load(Relaxed)).filter(|rate| *rate != UNLIMITED)
    }

    fn flow(&self) -> Option<Flow> {
        Flow::new(self.rate_per_sec.load(Relaxed), &self.size)
    }

    /// Earlier than now is as good as now: so a bucket that is given back to never holds more than a burst.
    fn give_back_nanos(&self, nanos: u64) {
        let _ = self.full_at_nanos.fetch_update(Relaxed, Relaxed, |at| Some(at.saturating_sub(nanos)));
    }

    /// Replaces the word by what `step` makes of it, again when another thread was faster.
    fn update<T>(&self, mut step: impl FnMut(u64) -> Result<(u64, T), Dry>) -> Result<T, Dry> {
        let mut seen = self.full_at_nanos.load(Relaxed);
        loop {
            let (next, answer) = step(seen)?;
            match self.full_at_nanos.compare_exchange_weak(seen, next, Relaxed, Relaxed) {
                Ok(_) => return Ok(answer),
                Err(newer) => seen = newer,
            }
        }
    }
}

/// A rate, and what follows from it.
struct Flow {
    rate_per_sec: u64,
    /// What a full bucket holds.
    burst: u64,
    /// What the burst takes to flow in, rounded down.
    burst_nanos: u64,
    /// The least that `take_some` takes, when that much is wanted.
    portion: u64,
}

impl Flow {
    fn new(rate_per_sec: u64, size: &Size) -> Option<Self> {
        match rate_per_sec {
            UNLIMITED => None,
            0 => Some(Self { rate_per_sec, burst: 0, burst_nanos: 0, portion: 0 }),
            _ => {
                let burst = size.burst(rate_per_sec) - size.apart(Some(rate_per_sec));
                let mut flow = Self { rate_per_sec, burst, burst_nanos: 0, portion: 0 };
                flow.burst_nanos = flow.flow_nanos(burst);
                flow.portion = (rate_per_sec / PORTIONS_PER_SEC).max(1);
                Some(flow)
            }
        }
    }

    /// Whether the cost may be taken from a bucket that will be full again at `full_at_nanos`.
    ///
    /// A full bucket lets a whole burst pass although that cost, rounded up, may be a nanosecond more than the
    /// burst's, rounded down. The bound still holds: up to that moment no more than the rate had passed.
    fn check(&self, now_nanos: u64, full_at_nanos: u64, cost_nanos: u64) -> Result<(), Dry> {
        let until_full_nanos = full_at_nanos.saturating_sub(now_nanos);
        let missing_nanos = until_full_nanos.saturating_add(cost_nanos).saturating_sub(self.burst_nanos);
        match missing_nanos.min(until_full_nanos) {
            0 => Ok(()),
            wait_nanos => Err(Dry::Wait(Duration::from_nanos(wait_nanos))),
        }
    }

    /// What a bucket holds that will be full again at `full_at_nanos`.
    fn held(&self, now_nanos: u64, full_at_nanos: u64) -> u64 {
        match full_at_nanos.saturating_sub(now_nanos) {
            0 => self.burst,
            until_full_nanos => self.units_in(self.burst_nanos.saturating_sub(until_full_nanos)),
        }
    }

    /// How long so many units take to flow in, rounded up.
    fn cost_nanos(&self, units: u64) -> u64 {
        scale(units, NANOS_PER_SEC, self.rate_per_sec, true)
    }

    /// How long so many units take to flow in, rounded down.
    fn flow_nanos(&self, units: u64) -> u64 {
        scale(units, NANOS_PER_SEC, self.rate_per_sec, false)
    }

    /// How many units flow in during so long, rounded down.
    fn units_in(&self, nanos: u64) -> u64 {
        scale(nanos, self.rate_per_sec, NANOS_PER_SEC, false)
    }
}

/// `value * numerator / denominator`, at most `u64::MAX`; 0 when the denominator is.
fn scale(value: u64, numerator: u64, denominator: u64, round_up: bool) -> u64 {
    let rounding = if round_up { denominator.saturating_sub(1) } else { 0 };
    // Datagrams stay within 64 bits, where a division costs a third.
    if let Some(product) = value.checked_mul(numerator).and_then(|product| product.checked_add(rounding)) {
        return product.checked_div(denominator).unwrap_or(0);
    }
    let product = u128::from(value) * u128::from(numerator) + u128::from(rounding);
    product
        .checked_div(u128::from(denominator))
        .map_or(0, |quotient| u64::try_from(quotient).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_is_exact_within_64_bits_and_beyond() {
        assert_eq!(scale(7, 10, 4, false), 17);
        assert_eq!(scale(7, 10, 4, true), 18);
        assert_eq!(scale(8, 10, 4, true), 20);
        assert_eq!(scale(u64::MAX, 3, 7, false), 7_905_747_460_161_236_406);
        assert_eq!(scale(u64::MAX, 3, 7, true), 7_905_747_460_161_236_407);
        assert_eq!(scale(u64::MAX, NANOS_PER_SEC, u64::MAX, true), NANOS_PER_SEC);
        assert_eq!(scale(u64::MAX, 1, u64::MAX, true), 1);
        assert_eq!(scale(u64::MAX, 1, 3, true), 6_148_914_691_236_517_205);
    }

    #[test]
    fn scaling_stops_at_the_ends() {
        assert_eq!(scale(u64::MAX, 2, 1, false), u64::MAX);
        assert_eq!(scale(u64::MAX, u64::MAX, 2, true), u64::MAX);
        for round_up in [false, true] {
            assert_eq!(scale(5, NANOS_PER_SEC, 0, round_up), 0);
            assert_eq!(scale(u64::MAX, NANOS_PER_SEC, 0, round_up), 0);
        }
    }
}
