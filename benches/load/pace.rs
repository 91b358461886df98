//! When what is sent: an open load, in steps of a millisecond, in turn over the pairs, whatever comes back.

use std::time::Duration;

use tokio::{
    task::yield_now,
    time::{Instant, MissedTickBehavior, interval},
};

use super::lanes::{Load, Offered};

/// The pacer's step. What is due within it is sent at once, to each pair in turn.
const TICK: Duration = Duration::from_millis(1);
/// A pacer that was held up sends what it missed, but no more than this much of it: the rest is not sent.
const CATCH_UP: Duration = Duration::from_millis(20);
/// After this many the receivers get a turn, so that what comes back does not wait for the whole step.
const YIELD_EVERY: u64 = 64;
/// How many round trips to sample, about.
const RTT_SAMPLES: u64 = 4000;
/// One in this many is a sample, at most and at least.
const SAMPLED_ONE_IN: (u64, u64) = (10, 200);

/// Sends `rate_per_sec` for `duration`, echoes included, in trains of at most `train` segments.
pub async fn pace(load: &Load, rate_per_sec: u64, duration: Duration, train: u64) {
    let directions = load.directions();
    let mut schedule = Schedule::new(rate_per_sec, duration, load.lanes.len() as u64, directions);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let started = Instant::now();
    loop {
        tick.tick().await;
        let elapsed = started.elapsed();
        let mut due = schedule.due(elapsed.min(duration));
        // Once around without a place for a single one: the rest of what is due has none either.
        let (mut in_vain, mut since_yield) = (0, 0);
        while due > 0 && in_vain < schedule.slots {
            let turn = schedule.next(due.min(train));
            due = due.saturating_sub(turn.weight());
            match load.offer_turn(&turn) {
                Offered::Sent => in_vain = 0,
                Offered::Refused => in_vain += 1,
            }
            since_yield += turn.count;
            if since_yield >= YIELD_EVERY {
                since_yield = 0;
                yield_now().await;
            }
        }
        if elapsed >= duration {
            return;
        }
    }
}

/// How much is due, and what is a sample: the pacer's arithmetic, without a clock.
struct Schedule {
    rate_per_sec: u64,
    /// What has been sent, or let go.
    done: u64,
    sample_one_in: u64,
    /// Until the next sample.
    until_sample: u64,
    /// Each gets one in turn: for each pair one, or one for each direction.
    slots: u64,
    directions: u64,
    turn: u64,
}

/// What [`Schedule::next`] decides.
pub struct Turn {
    /// Which pair.
    pub pair: u64,
    /// 0: from the device to the peer; 1: the other way.
    pub direction: u64,
    /// How many packets, all to the same receiver.
    pub count: u64,
    /// Whether the first of them is to be sent back.
    pub sample: bool,
}

impl Turn {
    /// How many packets it causes.
    fn weight(&self) -> u64 {
        self.count + u64::from(self.sample)
    }
}

impl Schedule {
    fn new(rate_per_sec: u64, duration: Duration, pairs: u64, directions: u64) -> Self {
        let slots = (pairs * directions).max(1);
        let total = u128::from(rate_per_sec) * duration.as_millis() / 1000;
        let (most, least) = SAMPLED_ONE_IN;
        let one_in = u64::try_from(total).unwrap_or(u64::MAX) / RTT_SAMPLES;
        let mut sample_one_in = one_in.clamp(most, least);
        // No common factor with the slots, or only some of them would ever be sampled.
        while gcd(sample_one_in, slots) != 1 {
            sample_one_in += 1;
        }
        Self { rate_per_sec, done: 0, sample_one_in, until_sample: sample_one_in, slots, directions, turn: 0 }
    }

    /// How many are due now; what lies further back than [`CATCH_UP`] is let go.
    fn due(&mut self, elapsed: Duration) -> u64 {
        let by = |time: Duration| {
            let due = u128::from(self.rate_per_sec) * time.as_nanos() / 1_000_000_000;
            u64::try_from(due).unwrap_or(u64::MAX)
        };
        let due = by(elapsed);
        self.done = self.done.max(due.saturating_sub(by(CATCH_UP).max(1)));
        due.saturating_sub(self.done)
    }

    /// Whose turn it is, with `count` packets, and whether the first of them is a sample. A sample's echo is sent in
    /// place of one that is due.
    fn next(&mut self, count: u64) -> Turn {
        let slot = self.turn % self.slots;
        let direction = slot % self.directions;
        self.turn += 1;
        self.until_sample = self.until_sample.saturating_sub(count);
        // Only the first direction, the device's, takes times.
        let sample = self.until_sample == 0 && direction == 0;
        if self.until_sample == 0 {
            self.until_sample = self.sample_one_in;
        }
        let turn = Turn { pair: slot / self.directions, direction, count, sample };
        self.done += turn.weight();
        turn
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_rate_is_kept_echoes_included_in_trains_or_not() {
        for train in [1, 7, 54] {
            let mut schedule = Schedule::new(20_000, 10 * SECOND, 200, 1);
            let mut sent = 0;
            for ms in 1..=10_000 {
                let mut due = schedule.due(Duration::from_millis(ms));
                assert!(due <= 21, "{due}");
                while due > 0 {
                    let weight = schedule.next(due.min(train)).weight();
                    sent += weight;
                    due = due.saturating_sub(weight);
                }
            }
            assert!((200_000..=200_001).contains(&sent), "{sent}");
        }
    }

    #[test]
    fn catching_up_is_bounded_and_what_was_let_go_does_not_come_back() {
        let mut schedule = Schedule::new(1000, 10 * SECOND, 1, 1);
        assert_eq!(schedule.due(5 * SECOND), 20);
        let mut done = 0;
        while done < 20 {
            done += schedule.next(1).weight();
        }
        assert_eq!(schedule.due(5 * SECOND), 20 - done);
        assert_eq!(schedule.due(5 * SECOND + Duration::from_millis(3)), 23 - done);
    }

    #[test]
    fn every_pair_is_sampled_and_few_are() {
        for (pairs, directions) in [(1, 1), (20, 1), (200, 1), (1, 2), (100, 2)] {
            for rate in [1000, 20_000, 1_000_000] {
                let mut schedule = Schedule::new(rate, 10 * SECOND, pairs, directions);
                let mut sampled = vec![0_u64; pairs as usize];
                let turns = 300 * pairs * directions;
                for _ in 0..turns {
                    let turn = schedule.next(1);
                    assert!(!turn.sample || turn.direction == 0);
                    sampled[turn.pair as usize] += u64::from(turn.sample);
                }
                assert!(sampled.iter().all(|samples| *samples > 0), "{pairs} {rate}");
                assert!(sampled.iter().sum::<u64>() * 10 <= turns, "{pairs} {rate}");
            }
        }
    }
}
