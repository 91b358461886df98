//! How long to wait before the next attempt: exponential, with full jitter, and never shorter than the relay asked.

use std::time::Duration;

/// What a relay may ask for at most: a hostile one must not put a client to sleep for years.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Pauses between attempts that failed.
///
/// Each is uniformly random between zero and a ceiling that doubles from `initial` to `max`: thousands of
/// clients that lost the same relay come back spread out, not in waves.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    initial: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, failures: 0 }
    }

    /// Forgets the failures so far: the connection has held.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The next pause. `random` is uniform over its type.
    pub(super) fn next(&mut self, retry_after: Option<Duration>, random: u64) -> Duration {
        let ceiling = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        let jitter = scaled(ceiling, random);
        match retry_after {
            // Jitter on top, or all who were told the same come back together.
            Some(asked) => asked.min(MAX_RETRY_AFTER).saturating_add(jitter),
            None => jitter,
        }
    }

    fn ceiling(&self) -> Duration {
        // The exponent stays small enough for the power to be exact; the ceiling is long reached by then.
        self.initial.saturating_mul(1 << self.failures.min(20)).min(self.max)
    }
}

/// `duration` times `random` / 2^64.
fn scaled(duration: Duration, random: u64) -> Duration {
    let nanos = (duration.as_nanos().saturating_mul(u128::from(random))) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// A random number; without randomness the longest pause.
pub(super) fn random() -> u64 {
    getrandom::u64().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backoff() -> Backoff {
        Backoff::new(Duration::from_millis(250), Duration::from_secs(30))
    }

    #[test]
    fn doubles_up_to_the_maximum_and_starts_over() {
        let mut backoff = backoff();
        let ceilings: Vec<_> = (0..10).map(|_| backoff.next(None, u64::MAX).as_millis() + 1).collect();
        assert_eq!(ceilings, [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        backoff.reset();
        assert_eq!(backoff.next(None, u64::MAX).as_millis() + 1, 250);
    }

    #[test]
    fn jitter_is_full() {
        assert_eq!(backoff().next(None, 0), Duration::ZERO);
        assert_eq!(backoff().next(None, 1 << 63), Duration::from_millis(125));
    }

    proptest! {
        #[test]
        fn stays_within_its_bounds(
            initial_ms in 0u64..10_000,
            max_ms in 0u64..100_000,
            randoms in prop::collection::vec(any::<u64>(), 1..60),
        ) {
            let mut backoff = Backoff::new(Duration::from_millis(initial_ms), Duration::from_millis(max_ms));
            for (failures, random) in randoms.into_iter().enumerate() {
                let pause = backoff.next(None, random);
                prop_assert!(pause <= Duration::from_millis(max_ms));
                let ceiling = initial_ms.saturating_mul(1 << failures.min(40));
                prop_assert!(pause <= Duration::from_millis(ceiling));
            }
        }

        #[test]
        fn honours_the_relay_within_reason(asked_ms in any::<u32>(), random in any::<u64>()) {
            let asked = Duration::from_millis(asked_ms.into());
            let pause = backoff().next(Some(asked), random);
            prop_assert!(pause >= asked.min(MAX_RETRY_AFTER));
            prop_assert!(pause <= asked.min(MAX_RETRY_AFTER) + Duration::from_millis(250));
        }

        #[test]
        fn no_number_of_failures_overflows(failures in any::<u32>(), random in any::<u64>()) {
            let mut backoff = Backoff { initial: Duration::MAX, max: Duration::MAX, failures };
            backoff.next(Some(Duration::MAX), random);
        }
    }
}
