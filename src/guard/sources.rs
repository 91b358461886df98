//! What sources have used up of their budgets, in a table of fixed size.
//!
//! A budget is so many a minute: all of them at once, and then one whenever a part of the minute has passed (GCRA,
//! which needs one number: when all that was taken is paid for). A source that owes nothing needs no place. When
//! all places that a source could have are taken, the one that owes least loses its own and begins anew: that is
//! to its favour, never to its harm. Where a source's places are depends on a secret drawn at the start, so that
//! nobody can choose addresses that push each other out.

use std::{
    hash::{BuildHasher as _, RandomState},
    num::NonZeroU32,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::Source;

/// Over which a budget is given.
const MINUTE: Duration = Duration::from_secs(60);
/// Places that one source could have.
const WAYS: usize = 8;
/// Parts with a mutex of their own.
const STRIPES: usize = 16;

/// Times are kept in quarters of a millisecond, in 40 bits: for nine years.
const TICKS_PER_SEC: u64 = 4000;
const TICK_BITS: u32 = 40;
const MAX_TICK: u64 = (1 << TICK_BITS) - 1;
const MINUTE_TICKS: u64 = MINUTE.as_secs() * TICKS_PER_SEC;
const NAME_BITS: u32 = 128 - 2 * TICK_BITS;

/// What one place costs.
pub const BYTES_PER_SOURCE: usize = size_of::<u128>();

/// How many a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerMinute(NonZeroU32);

impl PerMinute {
    /// The most: one each six milliseconds.
    pub const MAX: u32 = 10_000;

    /// `None` for 0, which is no limit. More than [`PerMinute::MAX`] counts as that.
    pub fn new(times: u32) -> Option<Self> {
        NonZeroU32::new(times.min(Self::MAX)).map(Self)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    fn interval_ticks(self) -> u64 {
        MINUTE_TICKS / u64::from(self.0.get())
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// Connections from addresses that have proven themselves.
    Connections,
    /// Requests for an allocation.
    AllocationRequests,
}

/// A source's place. All zero: nobody's.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// A part of the source's keyed hash; another part says where the entry lies.
    name: u64,
    /// When all that was taken is paid for, by budget.
    paid: [u64; 2],
}

impl Entry {
    fn unpack(packed: u128) -> Self {
        let part = |shift: u32, bits: u32| (packed >> shift) as u64 & ((1 << bits) - 1);
        Self { name: part(2 * TICK_BITS, NAME_BITS), paid: [part(TICK_BITS, TICK_BITS), part(0, TICK_BITS)] }
    }

    fn pack(self) -> u128 {
        let [connections, requests] = self.paid.map(|tick| u128::from(tick.min(MAX_TICK)));
        u128::from(self.name) << (2 * TICK_BITS) | connections << TICK_BITS | requests
    }

    fn paid(&self, budget: Budget) -> u64 {
        let [connections, requests] = self.paid;
        match budget {
            Budget::Connections => connections,
            Budget::AllocationRequests => requests,
        }
    }

    fn set_paid(&mut self, budget: Budget, tick: u64) {
        let [connections, requests] = &mut self.paid;
        match budget {
            Budget::Connections => *connections = tick,
            Budget::AllocationRequests => *requests = tick,
        }
    }

    fn last_paid(&self) -> u64 {
        let [connections, requests] = self.paid;
        connections.max(requests)
    }
}

/// The table. It is told the time: monotonic, since any beginning, never back.
#[derive(Debug)]
pub struct SourceTable {
    hasher: RandomState,
    stripes: Box<[Mutex<Vec<u128>>]>,
    /// In each stripe.
    buckets: usize,
    forgotten: AtomicU64,
}

impl SourceTable {
    /// Room for about so many sources. The memory, [`BYTES_PER_SOURCE`] each, is only touched where it is used.
    pub fn new(sources: usize) -> Self {
        let buckets = sources.div_ceil(STRIPES * WAYS).max(1);
        Self {
            hasher: RandomState::new(),
            stripes: (0..STRIPES).map(|_| Mutex::new(vec![0; buckets * WAYS])).collect(),
            buckets,
            forgotten: AtomicU64::new(0),
        }
    }

    /// Takes one of a source's budget.
    ///
    /// # Errors
    /// When there will be one; nothing was taken.
    pub fn charge(
        &self,
        source: Source,
        budget: Budget,
        limit: PerMinute,
        now: Duration,
    ) -> Result<(), Duration> {
        let now = ticks(now);
        let Some((name, mut stripe, at)) = self.place(source) else { return Ok(()) };
        let Some(bucket) = stripe.get_mut(at..at + WAYS) else { return Ok(()) };
        let found = bucket.iter().position(|packed| Entry::unpack(*packed).name == name);
        let mut entry = Entry { name, ..Entry::default() };
        if let Some(packed) = found.and_then(|found| bucket.get(found)) {
            entry = Entry::unpack(*packed);
        }
        let paid = after_one(entry.paid(budget), limit, now)?;
        entry.set_paid(budget, paid);
        let slot = match found {
            Some(found) => bucket.get_mut(found),
            None => {
                let least = bucket.iter_mut().min_by_key(|packed| Entry::unpack(**packed).last_paid());
                if least.as_ref().is_some_and(|packed| Entry::unpack(**packed).last_paid() > now) {
                    self.forgotten.fetch_add(1, Relaxed);
                }
                least
            }
        };
        if let Some(slot) = slot {
            *slot = entry.pack();
        }
        Ok(())
    }

    /// Whether [`SourceTable::charge`] would take one now.
    ///
    /// # Errors
    /// When it would.
    pub fn peek(
        &self,
        source: Source,
        budget: Budget,
        limit: PerMinute,
        now: Duration,
    ) -> Result<(), Duration> {
        let Some((name, stripe, at)) = self.place(source) else { return Ok(()) };
        let mut entries = stripe.iter().skip(at).take(WAYS).map(|packed| Entry::unpack(*packed));
        match entries.find(|entry| entry.name == name) {
            Some(entry) => after_one(entry.paid(budget), limit, ticks(now)).map(|_| ()),
            None => Ok(()),
        }
    }

    /// How many sources lost their place while they owed something.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Relaxed)
    }

    /// The most memory it ever holds.
    pub fn max_bytes(&self) -> usize {
        STRIPES * self.buckets * WAYS * BYTES_PER_SOURCE
    }

    /// A source's name, its stripe, and where its places begin there. Always there is one.
    fn place(&self, source: Source) -> Option<(u64, MutexGuard<'_, Vec<u128>>, usize)> {
        let hash = self.hasher.hash_one(source);
        let name = (hash & ((1 << NAME_BITS) - 1)).max(1);
        // Of the upper bits, so that they say little about the name.
        let all = (STRIPES * self.buckets) as u128;
        let bucket = ((u128::from(hash) * all) >> 64) as usize;
        let (stripe, bucket) = (bucket % STRIPES, bucket / STRIPES);
        let stripe = self.stripes.get(stripe)?;
        Some((name, stripe.lock().unwrap_or_else(PoisonError::into_inner), bucket * WAYS))
    }
}

/// When all is paid for after one more.
fn after_one(paid: u64, limit: PerMinute, now: u64) -> Result<u64, Duration> {
    let paid = paid.max(now) + limit.interval_ticks();
    // The interval is cut to whole ticks: so many of them, not the whole minute.
    let saved = limit.interval_ticks() * u64::from(limit.get());
    match paid.checked_sub(now + saved) {
        None | Some(0) => Ok(paid),
        Some(wait) => Err(Duration::from_micros(wait * 1_000_000 / TICKS_PER_SEC)),
    }
}

/// 0 is before anything was ever taken.
fn ticks(now: Duration) -> u64 {
    let ticks = now.as_micros() * u128::from(TICKS_PER_SEC) / 1_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX).min(MAX_TICK - MINUTE_TICKS)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    const START: Duration = Duration::from_secs(1000);

    fn v4(n: u32) -> Source {
        Source::of(IpAddr::V4(Ipv4Addr::from_bits(n)))
    }

    fn limit(times: u32) -> PerMinute {
        PerMinute::new(times).unwrap()
    }

    fn burst(table: &SourceTable, source: Source, times: u32, now: Duration) -> usize {
        let budget = Budget::Connections;
        (0..100_000).take_while(|_| table.charge(source, budget, limit(times), now).is_ok()).count()
    }

    #[test]
    fn r6_1_a_budget_is_had_at_once_and_then_piece_by_piece() {
        let table = SourceTable::new(1000);
        let (one, other) = (v4(1), v4(2));
        assert_eq!(burst(&table, one, 30, START), 30);
        assert_eq!(burst(&table, other, 30, START), 30, "each source has its own");
        assert_eq!(
            table.charge(one, Budget::Connections, limit(30), START),
            Err(Duration::from_secs(2)),
            "and is told when there is more"
        );
        let requests = Budget::AllocationRequests;
        assert_eq!(table.charge(one, requests, limit(10), START), Ok(()), "and its own for each kind");
        assert_eq!(burst(&table, one, 30, START + Duration::from_millis(1999)), 0);
        assert_eq!(burst(&table, one, 30, START + Duration::from_secs(2)), 1);
        assert_eq!(burst(&table, one, 30, START + Duration::from_secs(12)), 5);
        assert_eq!(burst(&table, one, 30, START + Duration::from_secs(3600)), 30, "one minute is saved up");
        assert_eq!(table.forgotten(), 0);
    }

    #[test]
    fn to_look_takes_nothing() {
        let table = SourceTable::new(1000);
        for _ in 0..100 {
            assert_eq!(table.peek(v4(1), Budget::Connections, limit(1), START), Ok(()));
        }
        assert_eq!(burst(&table, v4(1), 1, START), 1);
        let wait = Err(Duration::from_secs(60));
        assert_eq!(table.peek(v4(1), Budget::Connections, limit(1), START), wait);
        assert_eq!(table.peek(v4(1), Budget::Connections, limit(1), START + Duration::from_secs(60)), Ok(()));
        assert_eq!(table.peek(v4(1), Budget::AllocationRequests, limit(1), START), Ok(()));
    }

    #[test]
    fn a_limit_may_change_meanwhile() {
        let table = SourceTable::new(1000);
        assert_eq!(burst(&table, v4(1), 10, START), 10);
        assert_eq!(burst(&table, v4(1), 1000, START), 0, "what was taken was a minute's worth");
        assert_eq!(burst(&table, v4(1), 1000, START + Duration::from_secs(6)), 100);
    }

    #[test]
    fn time_ends_late_and_without_locking_anybody_out() {
        let table = SourceTable::new(1000);
        let nine_years = Duration::from_secs(9 * 365 * 86_400);
        assert_eq!(burst(&table, v4(1), 30, nine_years - Duration::from_secs(365 * 86_400)), 30);
        let entry = Entry { name: (1 << NAME_BITS) - 1, paid: [MAX_TICK, 7] };
        let unpacked = Entry::unpack(entry.pack());
        assert_eq!((unpacked.name, unpacked.paid), (entry.name, entry.paid));
    }

    /// The memory of a million sources is what the table was made with, whoever comes; and a source that owes much
    /// is not pushed out by others that owe little.
    #[test]
    fn r6_1_a_million_sources_take_bounded_memory() {
        const SOURCES: u32 = 1_000_000;
        let table = SourceTable::new(1 << 20);
        assert_eq!(table.max_bytes(), 16 << 20);
        let before = resident_bytes();
        assert_eq!(burst(&table, v4(0), 30, START), 30);
        for n in 1..=SOURCES {
            let source = if n % 2 == 0 {
                v4(n)
            } else {
                let ip = Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(n) << 64 | 1);
                Source::of(IpAddr::V6(ip))
            };
            table.charge(source, Budget::Connections, limit(30), START).unwrap();
        }
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown <= 24 << 20, "{grown} bytes for {SOURCES} sources");
        assert!(table.forgotten() < u64::from(SOURCES) / 5, "{}", table.forgotten());
        assert_eq!(burst(&table, v4(0), 30, START), 0, "who owes most is forgotten last");
        // Ten times as many as there is room for.
        let small = SourceTable::new(1000);
        assert_eq!(burst(&small, v4(0), 30, START), 30);
        for n in 1..=10_000 {
            small.charge(v4(n), Budget::Connections, limit(30), START).unwrap();
        }
        assert!(small.forgotten() > 8000);
        assert_eq!(burst(&small, v4(0), 30, START), 0);
    }

    fn resident_bytes() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
    }

    proptest! {
        /// Whatever comes when: in each window, no more than its part of the budget and one minute's burst.
        #[test]
        fn r6_1_no_window_lets_more_through(
            times in 1..200_u32,
            steps in prop::collection::vec((0..20_000_u64, 0..100_u32), 1..60),
        ) {
            let table = SourceTable::new(8);
            let mut now = START;
            let mut taken: Vec<Duration> = Vec::new();
            for (wait_ms, tries) in steps {
                now += Duration::from_millis(wait_ms);
                for _ in 0..tries {
                    let outcome = table.charge(v4(1), Budget::Connections, limit(times), now);
                    match outcome {
                        Ok(()) => taken.push(now),
                        Err(wait) => {
                            prop_assert!(wait > Duration::ZERO && wait <= MINUTE);
                            prop_assert_eq!(table.peek(v4(1), Budget::Connections, limit(times), now + wait), Ok(()));
                        }
                    }
                }
            }
            for (n, from) in taken.iter().enumerate() {
                for (m, to) in taken.iter().enumerate().skip(n) {
                    let window = (*to - *from).as_secs_f64();
                    let most = f64::from(times) * (1.0 + window / 60.0) * 1.01 + 1.0;
                    prop_assert!((m - n + 1) as f64 <= most, "{} in {window} s", m - n + 1);
                }
            }
        }
    }
}
