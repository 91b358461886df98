//! Allocations that share one limit, in virtual time: who gets how much, and when.

use std::{ops::Range, sync::Arc};

use super::{
    Limits, Meter,
    fair::{INTERVAL, Pool, Sharer},
};
use crate::wire::Role;

const MS: u64 = 1_000_000;
const LIMIT: u64 = 10_000_000;
/// What is divided of it.
const DIVIDED: u64 = LIMIT - LIMIT / 32;
const DATAGRAM_BYTES: u64 = 1000;
const ALL_THERE_IS: u64 = 2 * LIMIT;

/// One allocation and what its clients send, in bytes per second from some millisecond on.
struct Sender {
    meter: Arc<Meter>,
    by_stream: bool,
    sends: Vec<(u64, u64)>,
    /// What of that is not a whole datagram yet, in thousandths of a byte.
    credit: u64,
    /// By millisecond.
    passed: Vec<u64>,
}

impl Sender {
    fn passed(&self, ms: Range<usize>) -> u64 {
        self.passed[ms].iter().sum()
    }
}

/// A relay with one limit for all.
struct World {
    /// What must hold now.
    limit: Option<u64>,
    pool: Arc<Pool>,
    sharer: Sharer,
    senders: Vec<Sender>,
    ms: u64,
    /// How much more than the limit has passed since the worst moment to begin counting.
    above: u64,
}

impl World {
    fn new() -> Self {
        Self::limited(Some(LIMIT))
    }

    fn limited(limit: Option<u64>) -> Self {
        let pool = Arc::new(Pool::new(limit));
        Self { limit, sharer: Sharer::new(pool.clone(), 0), pool, senders: Vec::new(), ms: 0, above: 0 }
    }

    /// As the table does it.
    fn set_limit(&mut self, limit: Option<u64>) {
        self.limit = limit;
        self.pool.set_limit(self.ms * MS, limit);
        for sender in &self.senders {
            sender.meter.follow_pool(self.ms * MS);
        }
        self.above = 0;
    }

    /// An allocation comes that sends at these rates from these milliseconds on; by one stream, or datagrams.
    fn joins(&mut self, weight: u32, by_stream: bool, sends: &[(u64, u64)]) {
        let limits = Limits { weight, ..Limits::default() };
        self.senders.push(Sender {
            meter: Arc::new(Meter::sharing(limits, 0, Some(self.pool.clone()))),
            by_stream,
            sends: sends.to_vec(),
            credit: 0,
            passed: vec![0; self.ms as usize],
        });
    }

    fn run_until(&mut self, ms: u64) {
        while self.ms < ms {
            if self.ms.is_multiple_of(INTERVAL.as_millis() as u64) {
                let meters: Vec<_> = self.senders.iter().map(|sender| sender.meter.clone()).collect();
                self.sharer.share(self.ms * MS, &meters);
            }
            let mut all = 0;
            // Always in this order: whoever comes first takes what there is.
            for sender in &mut self.senders {
                let rate =
                    sender.sends.iter().rev().find(|(from, _)| *from <= self.ms).map_or(0, |(_, rate)| *rate);
                sender.credit += rate;
                let mut passed = 0;
                while sender.credit >= DATAGRAM_BYTES * 1000 {
                    if sender.by_stream {
                        let want = sender.credit / 1000;
                        let granted = sender.meter.charge_stream(self.ms * MS, Role::Peer, want as usize);
                        passed += granted.unwrap_or(0) as u64;
                        // A stream waits; it does not ask for more than a window meanwhile.
                        sender.credit =
                            (sender.credit - granted.unwrap_or(0) as u64 * 1000).min(256_000 * 1000);
                        break;
                    }
                    let bytes = DATAGRAM_BYTES as usize;
                    if sender.meter.charge_datagram(self.ms * MS, Role::Device, bytes).is_ok() {
                        passed += DATAGRAM_BYTES;
                    }
                    sender.credit -= DATAGRAM_BYTES * 1000;
                }
                sender.passed.push(passed);
                all += passed;
            }
            // Of all windows that end now, the one in which most has passed above the limit.
            if let Some(limit) = self.limit {
                let flows_in = if self.ms == 0 { 0 } else { limit / 1000 };
                self.above = (self.above + all).saturating_sub(flows_in).max(all);
                assert!(self.above <= limit / 10, "{} above the limit at {} ms", self.above, self.ms);
            }
            self.ms += 1;
        }
    }

    fn passed(&self, ms: Range<usize>) -> u64 {
        self.senders.iter().map(|sender| sender.passed(ms.clone())).sum()
    }
}

/// Within so many per cent.
fn near(got: u64, expected: u64, percent: u64) -> bool {
    got.abs_diff(expected) * 100 <= expected * percent
}

#[test]
fn r4_2_one_greedy_allocation_starves_none_of_twenty_modest_ones() {
    for by_stream in [false, true] {
        let mut world = World::new();
        world.joins(1, by_stream, &[(0, ALL_THERE_IS)]);
        for _ in 0..20 {
            world.joins(1, false, &[(0, 300_000)]);
        }
        world.run_until(4000);
        for modest in &world.senders[1..] {
            assert!(modest.passed(1000..4000) >= 895_000, "{}", modest.passed(1000..4000));
        }
        // The greedy one has all that the others leave.
        let greedy = world.senders[0].passed(1000..4000) / 3;
        assert!(near(greedy, DIVIDED - 20 * 300_000, 5), "{greedy}");
    }
}

#[test]
fn r4_2_a_newcomer_has_its_share_within_a_second() {
    for (by_stream, others) in [(false, 1), (true, 1), (false, 20), (true, 20)] {
        let mut world = World::new();
        for other in 0..others {
            world.joins(1, other % 2 == 0, &[(0, ALL_THERE_IS)]);
        }
        world.run_until(2000);
        world.joins(1, by_stream, &[(0, ALL_THERE_IS)]);
        world.run_until(5000);
        let newcomer = &world.senders[others];
        let share = DIVIDED / (others as u64 + 1);
        assert!(near(newcomer.passed(3000..5000) / 2, share, 5), "{}", newcomer.passed(3000..5000));
        assert!(newcomer.passed(2000..3000) > share / 2, "{}", newcomer.passed(2000..3000));
        assert!(world.passed(1000..5000) / 4 > LIMIT * 9 / 10, "{}", world.passed(1000..5000));
    }
}

#[test]
fn r4_2_shares_follow_the_weights() {
    let mut world = World::new();
    for weight in [1, 2, 4] {
        world.joins(weight, weight == 2, &[(0, ALL_THERE_IS)]);
    }
    // Asks for less than its weight would give it; 0 counts as 1.
    world.joins(8, false, &[(0, 500_000)]);
    world.joins(0, false, &[(0, ALL_THERE_IS)]);
    world.run_until(4000);
    let got: Vec<u64> = world.senders.iter().map(|sender| sender.passed(1000..4000) / 3).collect();
    let unit = (DIVIDED - 500_000) / 8;
    for (got, expected) in got.iter().zip([unit, 2 * unit, 4 * unit, 500_000, unit]) {
        assert!(near(*got, expected, 5), "{got} for {expected}");
    }
}

#[test]
fn r4_2_shares_follow_demands_that_fall_and_rise() {
    let mut world = World::new();
    world.joins(1, true, &[(0, ALL_THERE_IS)]);
    world.joins(1, false, &[(0, ALL_THERE_IS), (2000, 200_000), (5000, ALL_THERE_IS)]);
    world.run_until(8000);
    let rate = |sender: usize, ms: Range<usize>| {
        let seconds = (ms.end - ms.start) as u64 / 1000;
        world.senders[sender].passed(ms) / seconds
    };
    for (sender, ms, expected) in [
        (0, 1000..2000, DIVIDED / 2),
        (1, 1000..2000, DIVIDED / 2),
        (0, 3000..5000, DIVIDED - 200_000),
        (1, 3000..5000, 200_000),
        (0, 6000..8000, DIVIDED / 2),
        (1, 6000..8000, DIVIDED / 2),
    ] {
        assert!(
            near(rate(sender, ms.clone()), expected, 8),
            "{sender} in {ms:?}: {}",
            rate(sender, ms.clone())
        );
    }
}

#[test]
fn r4_2_who_asks_for_little_is_not_held_back_when_all_is_taken() {
    let mut world = World::new();
    for _ in 0..50 {
        world.joins(1, false, &[(0, ALL_THERE_IS)]);
    }
    // A burst each quarter of a second: 20 kB, where a share is 190 kB/s.
    let bursts: Vec<_> = (0..16).flat_map(|at| [(at * 250, 20_000_000), (at * 250 + 1, 0)]).collect();
    world.joins(1, false, &bursts);
    world.run_until(4000);
    let got = world.senders[50].passed(1000..4000);
    assert!(got > 200_000, "{got}");
}

#[test]
fn an_allocations_own_rate_stands_below_its_share() {
    let pool = Arc::new(Pool::new(Some(LIMIT)));
    let own = Limits { rate_bytes_per_sec: Some(200_000), ..Limits::default() };
    let meter = Arc::new(Meter::sharing(own, 0, Some(pool.clone())));
    let mut sharer = Sharer::new(pool, 0);
    for round in 1..50 {
        meter.charge_stream(round * 100 * MS, Role::Peer, 10_000_000).unwrap();
        let used = sharer.share(round * 100 * MS, std::slice::from_ref(&meter));
        assert!(used == 200_000, "{used}");
    }
    assert_eq!(meter.limits(), own);
    assert_eq!(meter.burst_bytes(), Some(20_000));
}

/// `run_until` holds each limit to the byte, from the moment that it is set.
#[test]
fn r8_a_limit_that_comes_changes_and_goes_holds_at_once_and_is_shared_fairly() {
    for by_stream in [false, true] {
        let mut world = World::limited(None);
        for _ in 0..10 {
            world.joins(1, by_stream, &[(0, 3_000_000)]);
        }
        world.run_until(1000);
        assert!(near(world.passed(0..1000), 30_000_000, 1), "{}", world.passed(0..1000));
        for (from, limit) in [(1000, 8_000_000), (4000, 2_000_000), (7000, 16_000_000)] {
            world.set_limit(Some(limit));
            world.run_until(from + 3000);
            // After a second, all of what is divided, and everybody the same of it.
            let (from, to) = (from as usize + 1000, from as usize + 3000);
            for sender in &world.senders {
                let got = sender.passed(from..to) / 2;
                assert!(near(got, (limit - limit / 32) / 10, 10), "{got} of {limit}");
            }
        }
        world.set_limit(None);
        world.run_until(11_000);
        assert!(near(world.passed(10_050..11_000), 28_500_000, 2), "{}", world.passed(10_050..11_000));
    }
}

#[test]
fn r8_who_comes_or_comes_back_after_a_limit_was_set_shares_it() {
    let pool = Arc::new(Pool::new(None));
    let meter = Meter::sharing(Limits::default(), 0, Some(pool.clone()));
    // Charges in advance.
    meter.charge_datagram(0, Role::Device, 1000).unwrap();
    pool.set_limit(MS, Some(LIMIT));
    // As one in the ledger, which nobody tells.
    meter.set_limits(Limits::default());
    let newcomer = Meter::sharing(Limits::default(), 0, Some(pool.clone()));
    let mut passed = 0;
    while meter.charge_datagram(MS, Role::Device, 1000).is_ok() {
        passed += 1000;
    }
    while newcomer.charge_datagram(MS, Role::Device, 1000).is_ok() {
        passed += 1000;
    }
    assert!(passed <= LIMIT / 10, "{passed}");
    // A share that was on its way while the limit was taken away does not stay.
    pool.set_limit(2 * MS, None);
    meter.follow_pool(2 * MS);
    meter.set_share(2 * MS, 1);
    assert_eq!(meter.charge_stream(2 * MS, Role::Peer, 50_000_000), Ok(50_000_000));
}
