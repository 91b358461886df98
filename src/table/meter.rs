//! How much may pass: the byte bucket, the packet bucket and the quota of one allocation.

use std::{sync::Arc, time::Duration};

use super::{
    Limits,
    advance::{Advance, Sum},
    atomic::{
        AtomicBool, AtomicU64, Mutex,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
        lock,
    },
    bucket::{Bucket, Dry, Size},
    fair::{Pool, per_sec, remembered},
};
use crate::wire::Role;

/// The least burst is room for one datagram of any size that QUIC carries on common paths, and for a few of the usual
/// ones. What is charged in advance is at most enough for half a hundred of them, so that what charging it costs is
/// not seen, and then no less than half of that.
const BYTES: Size = Size { least_burst: 16 * 1024, most_apart: 64 * 1024, least_apart: 32 * 1024 };
/// The least burst is as many as an application sends back to back for one picture or one window.
const PACKETS: Size = Size { least_burst: 16, most_apart: 64, least_apart: 32 };
/// The quota that stands for none: nobody lives to use it up.
const NO_QUOTA: u64 = u64::MAX;
/// The last so many bytes of a quota are charged one by one.
const NEAR_QUOTA_BYTES: u64 = 1024 * 1024;
/// How often a charge looks again when the quota seems used up while other threads move parts of it,
const QUOTA_ATTEMPTS: usize = 3;
/// and when it is worth to ask again after that.
const QUOTA_SETTLES: Duration = Duration::from_millis(1);

/// Why something may not pass now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// Over the byte rate; not until this much later.
    ByteRate(Duration),
    /// Over the packet rate; not until this much later.
    PacketRate(Duration),
    /// Over the limit of all allocations together; not until this much later.
    GlobalRate(Duration),
    /// Larger than the whole burst: never, at this rate.
    OverBurst,
    /// More than what is left of the quota.
    Quota,
}

/// What has passed in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Payload bytes, of datagrams and streams.
    pub bytes: u64,
    /// Datagrams.
    pub packets: u64,
}

/// The limits of one allocation and what has been used of them; shared by both legs, atomics only where a
/// packet passes.
///
/// A charge is made before sending and is all or nothing; what could not be sent is refunded. With any number
/// of threads the quota is never overshot. In any window T no more than `rate x T + burst` passes, at the
/// higher rate where the rate changed within the window. A refund belongs right behind its charge: one that
/// comes later gives back to the rate what has flowed in again by itself, and so lets up to that much more pass.
///
/// The byte rate is charged first and the quota last: a charge that is going to be rolled back may make
/// another one wait, but never makes another one believe that the quota is used up, which would be final.
///
/// An atomic step costs more than all arithmetic between two of them, and all three limits and the counts take
/// five. So where rates and quota leave room, datagrams are charged some dozens at a time, in advance, and each
/// takes its part from that in one step. The buckets hold so much less than the burst, and what
/// was charged in advance is the rest of it.
#[derive(Debug)]
#[repr(align(128))]
pub struct Meter {
    /// What datagrams take from without looking further.
    advance: AtomicU64,
    last_activity_nanos: AtomicU64,
    bytes: Bucket,
    packets: Bucket,
    quota_bytes: AtomicU64,
    /// Over the whole life of the allocation's identity, what was charged in advance included.
    bytes_charged: AtomicU64,
    /// In both directions, what was charged in advance included.
    packets_charged: AtomicU64,
    /// The device's part of what has been charged, as far as the advance does not know of it. Refunds may be known
    /// here before their charges are: the sums with what the advance knows are right, modulo 2^64.
    device_bytes: AtomicU64,
    device_packets: AtomicU64,
    /// What says whether something charged is on its way from one of the words above to another.
    moves: Moves,
    /// How much may be charged in advance.
    most_bytes_in_advance: AtomicU64,
    most_packets_in_advance: AtomicU64,
    /// What an earlier life of the allocation's identity used.
    bytes_before: u64,
    /// Where all allocations together may be limited.
    pool: Option<Arc<Pool>>,
    demand: Demand,
    dropped: Dropped,
    /// As they were set, for those who ask. Also keeps two changes of the limits apart.
    terms: Mutex<Terms>,
}

/// Counts what is moved between what is charged and what was charged in advance: while something is on its way, it
/// is in neither, and nobody must believe that the quota is used up.
#[derive(Debug, Default)]
struct Moves(AtomicU64);

impl Moves {
    /// Moves under way are counted in the lower half of the word, those that are over in the upper.
    const OVER: u64 = 1 << 32;

    fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.fetch_add(1, Relaxed);
        let done = work();
        self.0.fetch_add(Self::OVER - 1, Release);
        done
    }

    /// What [`Moves::none_since`] compares with.
    fn seen(&self) -> u64 {
        self.0.load(Acquire)
    }

    fn none_since(&self, seen: u64) -> bool {
        seen.is_multiple_of(Self::OVER) && self.0.load(Relaxed) == seen
    }
}

/// What was asked for in vain since somebody looked. Kept only where all allocations together are limited.
#[derive(Debug, Default)]
struct Demand {
    /// Of datagrams.
    denied_bytes: AtomicU64,
    /// A stream waits for more.
    stream_waits: AtomicBool,
    /// What had passed when it was last measured.
    seen_bytes: AtomicU64,
    /// As it was measured.
    bytes_per_sec: AtomicU64,
}

impl Demand {
    /// From now on, nothing was asked for yet.
    fn begin(&self, used_bytes: u64) {
        self.denied_bytes.store(0, Relaxed);
        self.stream_waits.store(false, Relaxed);
        self.seen_bytes.store(used_bytes, Relaxed);
        self.bytes_per_sec.store(0, Relaxed);
    }
}

/// Datagrams that did not pass because they were over a rate.
#[derive(Debug, Default)]
struct Dropped {
    packets: AtomicU64,
    bytes: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct Terms {
    limits: Limits,
    /// Of the limit of all allocations together.
    share_bytes_per_sec: Option<u64>,
}

impl Terms {
    fn rate_bytes_per_sec(&self) -> Option<u64> {
        match (self.limits.rate_bytes_per_sec, self.share_bytes_per_sec) {
            (Some(own), Some(share)) => Some(own.min(share)),
            (own, share) => own.or(share),
        }
    }
}

impl Meter {
    /// Full buckets, and a quota of which `bytes_used` are gone.
    pub fn new(limits: Limits, bytes_used: u64) -> Self {
        Self::sharing(limits, bytes_used, None)
    }

    /// The same for an allocation that shares a limit with others, where there is one.
    pub fn sharing(limits: Limits, bytes_used: u64, pool: Option<Arc<Pool>>) -> Self {
        let share_bytes_per_sec = pool.as_ref().and_then(|pool| pool.first_share(limits.weight));
        let terms = Terms { limits, share_bytes_per_sec };
        let in_advance = most_in_advance(&terms);
        Self {
            advance: AtomicU64::new(Advance::default().word()),
            last_activity_nanos: AtomicU64::new(0),
            bytes: Bucket::new(terms.rate_bytes_per_sec(), BYTES),
            packets: Bucket::new(limits.rate_packets_per_sec, PACKETS),
            quota_bytes: AtomicU64::new(limits.quota_bytes.unwrap_or(NO_QUOTA)),
            bytes_charged: AtomicU64::new(bytes_used),
            packets_charged: AtomicU64::new(0),
            device_bytes: AtomicU64::new(0),
            device_packets: AtomicU64::new(0),
            moves: Moves::default(),
            most_bytes_in_advance: AtomicU64::new(in_advance.bytes),
            most_packets_in_advance: AtomicU64::new(in_advance.packets),
            bytes_before: bytes_used,
            pool,
            demand: Demand { seen_bytes: AtomicU64::new(bytes_used), ..Demand::default() },
            dropped: Dropped::default(),
            terms: Mutex::new(terms),
        }
    }

    /// Charges one datagram against byte rate, packet rate and quota: against all of them or none.
    ///
    /// # Errors
    /// Why it must not be sent. [`Denied::Quota`] is not passing: the allocation is over.
    pub fn charge_datagram(&self, now_nanos: u64, from: Role, bytes: usize) -> Result<(), Denied> {
        self.charge_datagrams(now_nanos, from, 1, bytes)
    }

    /// The same for a train of datagrams with so many bytes together: all of them or none.
    ///
    /// # Errors
    /// As [`Meter::charge_datagram`]. Fewer of them might pass, also where the answer is [`Denied::Quota`] or
    /// [`Denied::OverBurst`]: only when one alone is refused so, that is final.
    pub fn charge_datagrams(
        &self,
        now_nanos: u64,
        from: Role,
        packets: usize,
        bytes: usize,
    ) -> Result<(), Denied> {
        let sum = Sum { bytes: bytes as u64, packets: packets as u64 };
        let device = from == Role::Device;
        let taken = self.advance.fetch_update(Relaxed, Relaxed, |word| {
            Advance::from_word(word).less(sum, device).map(Advance::word)
        });
        if taken.is_err() {
            self.charge_now(now_nanos, sum)?;
            self.count(device, sum);
            self.charge_in_advance(now_nanos);
        }
        self.last_activity_nanos.store(now_nanos, Relaxed);
        Ok(())
    }

    /// Takes back the charge of a datagram that was not sent after all. At once, see [`Meter`].
    pub fn refund_datagram(&self, from: Role, bytes: usize) {
        self.refund_datagrams(from, 1, bytes);
    }

    /// Takes back the charge of a train that was not sent after all. At once, see [`Meter`].
    pub fn refund_datagrams(&self, from: Role, packets: usize, bytes: usize) {
        let sum = Sum { bytes: bytes as u64, packets: packets as u64 };
        self.discount(from, sum);
        let most = self.most_in_advance();
        let back = self.advance.fetch_update(Relaxed, Relaxed, |word| {
            Advance::from_word(word).more(sum, most).map(Advance::word)
        });
        if back.is_err() {
            self.give_back(sum, most == Sum::default());
        }
    }

    /// Charges as much of `want_bytes` as may pass now and says how much that is: 0 only when 0 is wanted.
    /// Streams have no packets, so the packet rate does not concern them.
    ///
    /// # Errors
    /// [`Denied::ByteRate`] and [`Denied::GlobalRate`] say when there will be enough to be worth the wake-up;
    /// [`Denied::Quota`] when nothing is left; [`Denied::OverBurst`] at a rate of nothing per second.
    pub fn charge_stream(&self, now_nanos: u64, from: Role, want_bytes: usize) -> Result<usize, Denied> {
        if want_bytes == 0 {
            return Ok(0);
        }
        let want = want_bytes as u64;
        let granted = self.to_the_last_byte(|| self.grant_stream(now_nanos, want));
        if granted != Ok(want) && self.is_shared() {
            self.demand.stream_waits.store(true, Relaxed);
        }
        let bytes = granted?;
        self.count(from == Role::Device, Sum { bytes, packets: 0 });
        self.last_activity_nanos.store(now_nanos, Relaxed);
        // No more than was wanted, so it fits.
        Ok(bytes as usize)
    }

    /// Takes back the part of a stream's charge that was not written after all. At once, see [`Meter`].
    pub fn refund_stream(&self, from: Role, bytes: usize) {
        let sum = Sum { bytes: bytes as u64, packets: 0 };
        self.discount(from, sum);
        self.give_back(sum, false);
    }

    /// What is in force.
    pub fn limits(&self) -> Limits {
        lock(&self.terms).limits
    }

    /// Puts other limits in force. What has been used stays used; charges that other threads are making at
    /// this very moment go by either.
    pub fn set_limits(&self, limits: Limits) {
        let mut terms = lock(&self.terms);
        terms.limits = limits;
        // It may have rested in the ledger while the limit of all together changed.
        self.share_as_the_pool_does(&mut terms);
        self.put_in_force(&terms, self.last_activity_nanos());
    }

    /// Learns that the limit of all allocations together is another one, or is there now, or is no more. The allocation
    /// goes on with what it has used; charges that other threads are making at this very moment go by either.
    pub fn follow_pool(&self, now_nanos: u64) {
        let mut terms = lock(&self.terms);
        if self.share_as_the_pool_does(&mut terms) {
            self.put_in_force(&terms, now_nanos);
        }
    }

    /// Whether that is another state than before.
    fn share_as_the_pool_does(&self, terms: &mut Terms) -> bool {
        let first = self.pool.as_ref().and_then(|pool| pool.first_share(terms.limits.weight));
        if first.is_some() == terms.share_bytes_per_sec.is_some() {
            return false;
        }
        terms.share_bytes_per_sec = first;
        // What passed while nobody measured is no demand of the next window.
        self.demand.begin(self.bytes_used());
        true
    }

    fn put_in_force(&self, terms: &Terms, at_nanos: u64) {
        // First what was charged in advance goes back into the buckets that it was taken from.
        self.call_in();
        let most = most_in_advance(terms);
        self.most_bytes_in_advance.store(most.bytes, Relaxed);
        self.most_packets_in_advance.store(most.packets, Relaxed);
        self.bytes.set_rate(at_nanos, terms.rate_bytes_per_sec());
        self.packets.set_rate(at_nanos, terms.limits.rate_packets_per_sec);
        self.quota_bytes.store(terms.limits.quota_bytes.unwrap_or(NO_QUOTA), Relaxed);
        // And then what others have charged meanwhile by what was in force before.
        self.call_in();
    }

    /// This allocation's share of the limit of all together: it has the lower of the two rates. Nothing happens where
    /// there is no such limit any more.
    pub fn set_share(&self, now_nanos: u64, share_bytes_per_sec: u64) {
        let mut terms = lock(&self.terms);
        // Under the lock: a limit that is taken away is gone before the meters hear of it.
        if terms.share_bytes_per_sec.is_none() || !self.is_shared() {
            return;
        }
        let before = terms.rate_bytes_per_sec();
        terms.share_bytes_per_sec = Some(share_bytes_per_sec);
        if terms.rate_bytes_per_sec() != before {
            self.bytes.set_rate(now_nanos, terms.rate_bytes_per_sec());
        }
    }

    /// Whether all allocations together are limited now.
    fn is_shared(&self) -> bool {
        self.pool.as_ref().is_some_and(|pool| pool.is_limited())
    }

    /// Measures what was asked for in a window that begins where the last one ended: what passed, and what was refused
    /// for want of bytes per second. A stream that waits asks for all that there is, `most_bytes_per_sec`. Answers what
    /// has passed. For one caller.
    pub(super) fn measure(&self, window_nanos: u64, most_bytes_per_sec: u64) -> u64 {
        let Demand { denied_bytes, stream_waits, seen_bytes, bytes_per_sec } = &self.demand;
        let used = self.bytes_used();
        let passed = used.saturating_sub(seen_bytes.swap(used, Relaxed));
        let denied = denied_bytes.swap(0, Relaxed);
        let asked = match stream_waits.swap(false, Relaxed) {
            true => most_bytes_per_sec,
            false => per_sec(passed.saturating_add(denied), window_nanos),
        };
        let most = self.limits().rate_bytes_per_sec.unwrap_or(u64::MAX).min(most_bytes_per_sec);
        let demand = asked.max(remembered(bytes_per_sec.load(Relaxed))).min(most);
        bytes_per_sec.store(demand, Relaxed);
        passed
    }

    /// What it was asked for lately.
    pub(super) fn demand_bytes_per_sec(&self) -> u64 {
        self.demand.bytes_per_sec.load(Relaxed)
    }

    /// Charged so far in both directions, earlier lives of the allocation included.
    ///
    /// While others charge, up to what may be charged in advance too much or too little.
    pub fn bytes_used(&self) -> u64 {
        let left = self.advance().left;
        self.bytes_charged.load(Relaxed).saturating_sub(left.bytes)
    }

    /// What has passed from this side to the other, live. As exact as [`Meter::bytes_used`].
    pub fn counts(&self, from: Role) -> Counts {
        let advance = self.advance();
        let known = |settled: &AtomicU64, in_advance: u64| {
            // Below zero while a refund is known before its charge.
            u64::try_from(settled.load(Relaxed).wrapping_add(in_advance).cast_signed()).unwrap_or(0)
        };
        let device = Counts {
            bytes: known(&self.device_bytes, advance.by_device.bytes),
            packets: known(&self.device_packets, advance.by_device.packets),
        };
        let charged = |counter: &AtomicU64, left: u64| counter.load(Relaxed).saturating_sub(left);
        match from {
            Role::Device => device,
            Role::Peer => Counts {
                bytes: charged(&self.bytes_charged, advance.left.bytes)
                    .saturating_sub(self.bytes_before)
                    .saturating_sub(device.bytes),
                packets: charged(&self.packets_charged, advance.left.packets).saturating_sub(device.packets),
            },
        }
    }

    /// A datagram of this size was dropped because it was over a rate.
    pub fn count_dropped(&self, bytes: usize) {
        self.dropped.packets.fetch_add(1, Relaxed);
        self.dropped.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// What was dropped so, of both sides together.
    pub fn dropped(&self) -> Counts {
        Counts { bytes: self.dropped.bytes.load(Relaxed), packets: self.dropped.packets.load(Relaxed) }
    }

    /// How many bytes may pass at once after a pause: 100 ms of the rate, at least 16 KiB. `None` without a rate.
    /// The allocation's own rate: what it shares with others does not lower what its clients are told.
    pub fn burst_bytes(&self) -> Option<u64> {
        self.limits().rate_bytes_per_sec.map(|rate| BYTES.burst(rate))
    }

    /// When something was last charged, on the clock of the charges; 0 before.
    pub fn last_activity_nanos(&self) -> u64 {
        self.last_activity_nanos.load(Relaxed)
    }

    fn advance(&self) -> Advance {
        Advance::from_word(self.advance.load(Relaxed))
    }

    fn most_in_advance(&self) -> Sum {
        Sum {
            bytes: self.most_bytes_in_advance.load(Relaxed),
            packets: self.most_packets_in_advance.load(Relaxed),
        }
    }

    /// Charges against all limits or none.
    fn charge_now(&self, now_nanos: u64, sum: Sum) -> Result<(), Denied> {
        let result = self.to_the_last_byte(|| self.take(now_nanos, sum));
        if matches!(result, Err(Denied::ByteRate(_) | Denied::GlobalRate(_))) && self.is_shared() {
            self.demand.denied_bytes.fetch_add(sum.bytes, Relaxed);
        }
        result
    }

    /// Tries, and believes that the quota is used up only when nothing of it lies elsewhere.
    fn to_the_last_byte<T>(&self, attempt: impl Fn() -> Result<T, Denied>) -> Result<T, Denied> {
        for _ in 0..QUOTA_ATTEMPTS {
            let seen = self.moves.seen();
            match attempt() {
                Err(Denied::Quota) => {}
                result => return result,
            }
            if Advance::from_word(self.advance.load(Acquire)).left.bytes > 0 {
                self.call_in();
            } else if self.moves.none_since(seen) {
                return Err(Denied::Quota);
            }
        }
        // Others are at it; by then they are done.
        Err(Denied::ByteRate(QUOTA_SETTLES))
    }

    fn take(&self, now_nanos: u64, sum: Sum) -> Result<(), Denied> {
        self.bytes.take(now_nanos, sum.bytes).map_err(over_byte_rate)?;
        if let Err(dry) = self.packets.take(now_nanos, sum.packets) {
            self.bytes.undo(sum.bytes);
            return Err(match dry {
                Dry::Never => Denied::OverBurst,
                Dry::Wait(wait) => Denied::PacketRate(wait),
            });
        }
        if let Some(pool) = &self.pool
            && let Err(dry) = pool.take(now_nanos, sum.bytes)
        {
            self.packets.undo(sum.packets);
            self.bytes.undo(sum.bytes);
            return Err(over_global_rate(dry));
        }
        let quota_bytes = self.quota_bytes.load(Relaxed);
        let charge = |charged: u64| charged.checked_add(sum.bytes).filter(|total| *total <= quota_bytes);
        if self.bytes_charged.fetch_update(AcqRel, Acquire, charge).is_err() {
            if let Some(pool) = &self.pool {
                pool.undo(sum.bytes);
            }
            self.packets.undo(sum.packets);
            self.bytes.undo(sum.bytes);
            return Err(Denied::Quota);
        }
        self.packets_charged.fetch_add(sum.packets, Relaxed);
        Ok(())
    }

    /// Charges what the next datagrams will need, if limits and quota leave room for that.
    fn charge_in_advance(&self, now_nanos: u64) {
        // Before the limits: see `call_in`.
        let word = self.advance.load(Acquire);
        let advance = Advance::from_word(word);
        let most = self.most_in_advance();
        let missing = most.less(advance.left);
        let quota_left = self.quota_bytes.load(Relaxed).saturating_sub(self.bytes_charged.load(Relaxed));
        if most == Sum::default() || quota_left < NEAR_QUOTA_BYTES {
            return;
        }
        self.moves.during(|| {
            if self.take(now_nanos, missing).is_err() {
                return;
            }
            let filled = advance.filled(most);
            if self.advance.compare_exchange(word, filled.word(), Release, Relaxed).is_ok() {
                self.settle(advance.by_device);
            } else {
                // Somebody else takes from it, so somebody else fills it.
                self.give_back(missing, true);
            }
        });
    }

    /// Takes back what was charged in advance and not yet used.
    ///
    /// The word is another one afterwards even where nothing was left: a thread that is about to fill it by the
    /// limits that it saw before will not succeed.
    fn call_in(&self) {
        self.moves.during(|| {
            let next = |word| Some(Advance::from_word(word).emptied().word());
            if let Ok(word) = self.advance.fetch_update(AcqRel, Relaxed, next) {
                let advance = Advance::from_word(word);
                self.settle(advance.by_device);
                self.give_back(advance.left, false);
            }
        });
    }

    /// Counts what has been charged, and not in advance.
    fn count(&self, by_device: bool, sum: Sum) {
        if !by_device {
            return;
        }
        let counted = self.advance.fetch_update(Relaxed, Relaxed, |word| {
            Advance::from_word(word).count_device(sum).map(Advance::word)
        });
        if counted.is_err() {
            self.settle(sum);
            // Makes room for the next ones.
            let next = |word| Some(Advance::from_word(word).settled().word());
            if let Ok(word) = self.advance.fetch_update(Relaxed, Relaxed, next) {
                self.settle(Advance::from_word(word).by_device);
            }
        }
    }

    fn settle(&self, by_device: Sum) {
        if by_device != Sum::default() {
            self.device_bytes.fetch_add(by_device.bytes, Relaxed);
            self.device_packets.fetch_add(by_device.packets, Relaxed);
        }
    }

    fn discount(&self, from: Role, sum: Sum) {
        if from == Role::Device {
            self.device_bytes.fetch_sub(sum.bytes, Relaxed);
            self.device_packets.fetch_sub(sum.packets, Relaxed);
        }
    }

    /// Undoes a charge: one of just this size, or a part of one, which is rounded against the taker.
    fn give_back(&self, sum: Sum, whole: bool) {
        if whole {
            self.bytes.undo(sum.bytes);
            self.packets.undo(sum.packets);
        } else {
            self.bytes.give_back(sum.bytes);
            self.packets.give_back(sum.packets);
        }
        if let Some(pool) = &self.pool {
            pool.give_back(sum.bytes);
        }
        subtract(&self.bytes_charged, sum.bytes);
        subtract(&self.packets_charged, sum.packets);
    }

    fn grant_stream(&self, now_nanos: u64, want: u64) -> Result<u64, Denied> {
        let in_bucket = self.bytes.take_some(now_nanos, want).map_err(over_byte_rate)?;
        let in_pool = match &self.pool {
            None => in_bucket,
            Some(pool) => match pool.take_some(now_nanos, in_bucket) {
                Ok(in_pool) => in_pool,
                Err(dry) => {
                    self.bytes.give_back(in_bucket);
                    return Err(over_global_rate(dry));
                }
            },
        };
        let quota_bytes = self.quota_bytes.load(Relaxed);
        if self.bytes_charged.load(Relaxed).saturating_add(in_pool) > quota_bytes
            && self.advance().left.bytes > 0
        {
            self.call_in();
        }
        let granted_of = |charged: u64| in_pool.min(quota_bytes.saturating_sub(charged));
        let charge = |charged: u64| Some(charged + granted_of(charged));
        let granted = self.bytes_charged.fetch_update(AcqRel, Acquire, charge).map_or(0, granted_of);
        self.bytes.give_back(in_bucket - granted);
        if let Some(pool) = &self.pool {
            pool.give_back(in_pool - granted);
        }
        if granted == 0 { Err(Denied::Quota) } else { Ok(granted) }
    }
}

/// How much may be charged in advance under these limits: nothing where that is not worth it, or where others are
/// waiting for what lies unused.
fn most_in_advance(terms: &Terms) -> Sum {
    let bytes = BYTES.apart(terms.limits.rate_bytes_per_sec);
    let packets = PACKETS.apart(terms.limits.rate_packets_per_sec);
    if terms.share_bytes_per_sec.is_some() || bytes == 0 || packets == 0 {
        Sum::default()
    } else {
        Sum { bytes, packets }
    }
}

fn over_byte_rate(dry: Dry) -> Denied {
    match dry {
        Dry::Never => Denied::OverBurst,
        Dry::Wait(wait) => Denied::ByteRate(wait),
    }
}

fn over_global_rate(dry: Dry) -> Denied {
    match dry {
        Dry::Never => Denied::OverBurst,
        Dry::Wait(wait) => Denied::GlobalRate(wait),
    }
}

/// Stops at 0, so that a refund of more than was charged cannot turn into an unlimited quota.
fn subtract(counter: &AtomicU64, amount: u64) {
    let _ = counter.fetch_update(Relaxed, Relaxed, |value| Some(value.saturating_sub(amount)));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const SECOND: u64 = 1000 * MS;
    const UNLIMITED: Limits =
        Limits { rate_bytes_per_sec: None, rate_packets_per_sec: None, quota_bytes: None, weight: 1 };

    fn rate(bytes_per_sec: u64) -> Limits {
        Limits { rate_bytes_per_sec: Some(bytes_per_sec), ..UNLIMITED }
    }

    fn packets(per_sec: u64) -> Limits {
        Limits { rate_packets_per_sec: Some(per_sec), ..UNLIMITED }
    }

    fn quota(bytes: u64) -> Limits {
        Limits { quota_bytes: Some(bytes), ..UNLIMITED }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn without_limits_everything_passes_and_is_counted() {
        let meter = Meter::new(UNLIMITED, 0);
        assert_eq!(meter.charge_datagram(0, Role::Device, 100_000_000), Ok(()));
        assert_eq!(meter.charge_datagram(5, Role::Device, 0), Ok(()));
        assert_eq!(meter.charge_stream(6, Role::Peer, 7), Ok(7));
        assert_eq!(meter.counts(Role::Device), Counts { bytes: 100_000_000, packets: 2 });
        assert_eq!(meter.counts(Role::Peer), Counts { bytes: 7, packets: 0 });
        assert_eq!(meter.bytes_used(), 100_000_007);
        assert_eq!(meter.last_activity_nanos(), 6);
        assert_eq!(meter.burst_bytes(), None);
        assert_eq!(meter.limits(), UNLIMITED);
    }

    #[test]
    fn a_datagram_waits_for_just_as_long_as_it_must() {
        let meter = Meter::new(rate(1_000_000), 0);
        assert_eq!(meter.burst_bytes(), Some(100_000));
        for _ in 0..100 {
            assert_eq!(meter.charge_datagram(MS, Role::Device, 1000), Ok(()));
        }
        assert_eq!(meter.charge_datagram(MS, Role::Peer, 1000), Err(Denied::ByteRate(ms(1))));
        assert_eq!(meter.charge_datagram(MS, Role::Peer, 2000), Err(Denied::ByteRate(ms(2))));
        let nearly = Err(Denied::ByteRate(Duration::from_nanos(1)));
        assert_eq!(meter.charge_datagram(2 * MS - 1, Role::Device, 1000), nearly);
        assert_eq!(meter.charge_datagram(2 * MS, Role::Device, 1000), Ok(()));
        assert_eq!(meter.bytes_used(), 101_000);
        assert_eq!(meter.counts(Role::Device), Counts { bytes: 101_000, packets: 101 });
    }

    #[test]
    fn the_packet_rate_is_one_of_its_own() {
        let meter = Meter::new(Limits { rate_bytes_per_sec: Some(1_000_000), ..packets(1000) }, 0);
        for _ in 0..100 {
            assert_eq!(meter.charge_datagram(0, Role::Device, 10), Ok(()));
        }
        assert_eq!(meter.charge_datagram(0, Role::Device, 10), Err(Denied::PacketRate(ms(1))));
        assert_eq!(meter.charge_stream(0, Role::Device, 10), Ok(10), "streams have no packets");
        // What the packet rate held back was not charged to the byte rate: 98 990 are left, and no more.
        assert_eq!(meter.charge_stream(0, Role::Device, 100_000), Ok(98_990));
        assert_eq!(meter.bytes_used(), 100_000);
    }

    #[test]
    fn low_rates_have_a_burst_to_speak_of() {
        assert_eq!(Meter::new(rate(1), 0).burst_bytes(), Some(16_384));
        assert_eq!(Meter::new(rate(163_840), 0).burst_bytes(), Some(16_384));
        assert_eq!(Meter::new(rate(163_850), 0).burst_bytes(), Some(16_385));
        let meter = Meter::new(packets(1), 0);
        for _ in 0..16 {
            assert_eq!(meter.charge_datagram(0, Role::Device, 1), Ok(()));
        }
        assert_eq!(meter.charge_datagram(0, Role::Device, 1), Err(Denied::PacketRate(ms(1000))));
    }

    #[test]
    fn what_exceeds_the_burst_never_passes() {
        for bytes_per_sec in [1, 7, 1_000_003, 163_847, u64::from(u32::MAX), 999_999_999_999, u64::MAX - 1] {
            let meter = Meter::new(rate(bytes_per_sec), 0);
            let burst = meter.burst_bytes().unwrap() as usize;
            assert_eq!(meter.charge_datagram(0, Role::Device, burst + 1), Err(Denied::OverBurst));
            // Not in one piece where some of it is kept for the small ones.
            let largest = burst - BYTES.apart(Some(bytes_per_sec)) as usize;
            assert!(largest == burst || largest > 65_535);
            assert_eq!(meter.charge_datagram(0, Role::Device, largest), Ok(()), "{bytes_per_sec}");
            assert!(matches!(meter.charge_datagram(0, Role::Device, largest), Err(Denied::ByteRate(_))));
            assert!(matches!(meter.charge_datagram(0, Role::Device, 1), Err(Denied::ByteRate(_))));
        }
    }

    #[test]
    fn at_a_rate_of_nothing_nothing_passes() {
        let meter = Meter::new(rate(0), 0);
        assert_eq!(meter.burst_bytes(), Some(0));
        assert_eq!(meter.charge_datagram(0, Role::Device, 1), Err(Denied::OverBurst));
        assert_eq!(meter.charge_stream(0, Role::Device, 1), Err(Denied::OverBurst));
        assert_eq!(meter.charge_stream(0, Role::Device, 0), Ok(0));
        let meter = Meter::new(packets(0), 0);
        assert_eq!(meter.charge_datagram(0, Role::Device, 1), Err(Denied::OverBurst));
        assert_eq!(meter.bytes_used(), 0);
    }

    #[test]
    fn a_pause_earns_one_burst_and_no_more() {
        let meter = Meter::new(rate(1_000_000), 0);
        let hour = 3_600_000 * MS;
        assert_eq!(meter.charge_stream(hour, Role::Device, 1_000_000), Ok(100_000));
        assert_eq!(meter.charge_stream(2 * hour, Role::Device, 1_000_000), Ok(100_000));
        assert_eq!(
            meter.charge_datagram(2 * hour, Role::Device, 1),
            Err(Denied::ByteRate(Duration::from_micros(1)))
        );
    }

    #[test]
    fn a_stream_gets_what_is_there_or_waits_for_a_portion() {
        let meter = Meter::new(rate(1_000_000), 0);
        assert_eq!(meter.charge_stream(0, Role::Device, 60_000), Ok(60_000));
        assert_eq!(meter.charge_stream(0, Role::Device, 60_000), Ok(40_000));
        // 10 ms of the rate are worth waking up for, or all that is wanted.
        assert_eq!(meter.charge_stream(0, Role::Device, 60_000), Err(Denied::ByteRate(ms(10))));
        assert_eq!(meter.charge_stream(0, Role::Device, 3_000), Err(Denied::ByteRate(ms(3))));
        assert_eq!(meter.charge_stream(4 * MS, Role::Device, 60_000), Err(Denied::ByteRate(ms(6))));
        assert_eq!(meter.charge_stream(10 * MS, Role::Device, 60_000), Ok(10_000));
        assert_eq!(meter.charge_stream(25 * MS, Role::Device, 60_000), Ok(15_000));
        assert_eq!(meter.counts(Role::Device), Counts { bytes: 125_000, packets: 0 });
        let slow = Meter::new(rate(5), 0);
        assert_eq!(slow.charge_stream(0, Role::Device, 60_000), Ok(16_384));
        assert_eq!(slow.charge_stream(0, Role::Device, 60_000), Err(Denied::ByteRate(ms(200))));
        assert_eq!(slow.charge_stream(200 * MS, Role::Device, 60_000), Ok(1));
    }

    #[test]
    fn the_quota_is_used_to_the_last_byte_and_not_beyond() {
        let meter = Meter::new(Limits { rate_bytes_per_sec: Some(1_000_000), ..quota(1000) }, 300);
        assert_eq!(meter.bytes_used(), 300);
        assert_eq!(meter.charge_datagram(0, Role::Device, 701), Err(Denied::Quota));
        assert_eq!(meter.charge_datagram(0, Role::Device, 600), Ok(()));
        assert_eq!(meter.charge_datagram(0, Role::Device, 101), Err(Denied::Quota));
        assert_eq!(meter.charge_stream(0, Role::Peer, 5000), Ok(100));
        assert_eq!(meter.charge_stream(0, Role::Peer, 1), Err(Denied::Quota));
        assert_eq!(meter.charge_datagram(0, Role::Device, 1), Err(Denied::Quota));
        assert_eq!(meter.charge_datagram(0, Role::Device, 0), Ok(()));
        assert_eq!(meter.bytes_used(), 1000);
        // What the quota held back was charged to no rate.
        meter.set_limits(rate(1_000_000));
        assert_eq!(meter.charge_stream(0, Role::Device, 200_000), Ok(99_300));
    }

    #[test]
    fn what_the_quota_holds_back_is_not_charged_to_the_packet_rate() {
        let meter = Meter::new(Limits { quota_bytes: Some(100), ..packets(100) }, 0);
        for _ in 0..30 {
            assert_eq!(meter.charge_datagram(0, Role::Device, 101), Err(Denied::Quota));
        }
        for _ in 0..16 {
            assert_eq!(meter.charge_datagram(0, Role::Device, 1), Ok(()));
        }
        assert_eq!(meter.charge_datagram(0, Role::Device, 1), Err(Denied::PacketRate(ms(10))));
    }

    #[test]
    fn the_largest_quota_overflows_nothing() {
        for limits in [quota(u64::MAX), UNLIMITED] {
            let meter = Meter::new(limits, u64::MAX - 10);
            assert_eq!(meter.charge_datagram(0, Role::Device, 11), Err(Denied::Quota));
            assert_eq!(meter.charge_stream(u64::MAX, Role::Device, 11), Ok(10));
            assert_eq!(meter.charge_stream(u64::MAX, Role::Device, 1), Err(Denied::Quota));
        }
        let meter = Meter::new(rate(1), 0);
        assert_eq!(meter.charge_datagram(u64::MAX - 5, Role::Device, 16_384), Ok(()));
        let _ = meter.charge_datagram(u64::MAX - 5, Role::Device, 1);
    }

    /// Enough for charges in advance; nothing ever comes near it.
    const FAST: Limits = Limits {
        rate_bytes_per_sec: Some(1 << 40),
        rate_packets_per_sec: Some(1 << 40),
        quota_bytes: Some(1 << 60),
        weight: 1,
    };

    #[test]
    fn datagrams_are_charged_in_advance_where_limits_leave_room() {
        let charged_once = |limits| {
            let meter = Meter::new(limits, 0);
            assert_eq!(meter.charge_datagram(0, Role::Peer, 1000), Ok(()));
            assert_eq!((meter.bytes_used(), meter.counts(Role::Device)), (1000, Counts::default()));
            assert_eq!(meter.counts(Role::Peer), Counts { bytes: 1000, packets: 1 });
            meter.advance().left
        };
        for limits in [UNLIMITED, FAST, quota(2 << 20), rate(10_500_000), packets(20_480)] {
            assert_ne!(charged_once(limits), Sum::default(), "{limits:?}");
        }
        for limits in
            [quota(1 << 20), rate(5_000_000), packets(5_000), Limits { quota_bytes: Some(1000), ..FAST }]
        {
            assert_eq!(charged_once(limits), Sum::default(), "{limits:?}");
        }
        let shared = Meter::sharing(FAST, 0, Some(Arc::new(Pool::new(Some(1 << 40)))));
        assert_eq!(shared.charge_datagram(0, Role::Peer, 1000), Ok(()));
        assert_eq!(shared.advance().left, Sum::default());
    }

    #[test]
    fn what_is_charged_in_advance_is_counted_when_it_is_used() {
        let meter = Meter::new(FAST, 77);
        let mut expected = [Counts::default(); 2];
        for round in 0..5000_usize {
            let from = Role::BOTH[usize::from(!round.is_multiple_of(3))];
            let (packets, bytes) = (1 + round % 40, round * 13 % 40_000);
            assert_eq!(meter.charge_datagrams(0, from, packets, bytes), Ok(()));
            if round.is_multiple_of(7) {
                meter.refund_datagrams(from, packets, bytes);
            } else {
                expected[from.index()].bytes += bytes as u64;
                expected[from.index()].packets += packets as u64;
            }
            if round.is_multiple_of(11) {
                assert_eq!(meter.charge_stream(0, from, 100_000), Ok(100_000));
                meter.refund_stream(from, 1);
                expected[from.index()].bytes += 99_999;
            }
            assert_eq!(Role::BOTH.map(|role| meter.counts(role)), expected, "{round}");
            assert_eq!(meter.bytes_used(), 77 + expected[0].bytes + expected[1].bytes);
        }
    }

    #[test]
    fn a_quota_that_was_charged_in_advance_is_used_to_its_last_byte() {
        for streams_finish in [false, true] {
            let meter = Meter::new(quota((2 << 20) + 777), 0);
            assert_eq!(meter.charge_datagram(0, Role::Device, 1000), Ok(()));
            assert_ne!(meter.advance().left, Sum::default());
            let left = (2 << 20) + 777 - 1000;
            if streams_finish {
                assert_eq!(meter.charge_stream(0, Role::Peer, 10 << 20), Ok(left));
            } else {
                assert_eq!(meter.charge_datagrams(0, Role::Peer, 64, left + 1), Err(Denied::Quota));
                assert_eq!(meter.charge_datagrams(0, Role::Peer, 64, left), Ok(()));
            }
            assert_eq!(meter.charge_stream(0, Role::Peer, 1), Err(Denied::Quota));
            assert_eq!(meter.charge_datagram(0, Role::Device, 1), Err(Denied::Quota));
            assert_eq!(meter.bytes_used(), (2 << 20) + 777);
        }
    }

    #[test]
    fn small_datagrams_get_the_whole_burst_and_no_more() {
        let meter = Meter::new(Limits { rate_packets_per_sec: Some(100_000), ..rate(50_000_000) }, 0);
        let burst = meter.burst_bytes().unwrap();
        let mut now_nanos = 0;
        for pause_nanos in [0, SECOND, 100 * MS, 99 * MS, 3600 * SECOND] {
            now_nanos += pause_nanos;
            let passed = (0..).take_while(|_| meter.charge_datagram(now_nanos, Role::Device, 500).is_ok());
            let bytes = passed.count() as u64 * 500;
            // An advance is not filled up during a pause, and of the last one some bytes stay without a packet.
            let least = burst - 2 * BYTES.most_apart;
            assert!(
                bytes <= burst && (bytes >= least || pause_nanos == 99 * MS),
                "{bytes} after {pause_nanos}"
            );
        }
    }

    #[test]
    fn other_limits_call_in_what_was_charged_in_advance() {
        let meter = Meter::new(FAST, 0);
        assert_eq!(meter.charge_datagram(SECOND, Role::Device, 1000), Ok(()));
        meter.set_limits(Limits { quota_bytes: Some(17_000), ..rate(10_000) });
        assert_eq!(meter.advance().left, Sum::default());
        assert_eq!(meter.charge_datagram(SECOND, Role::Device, 16_001), Err(Denied::Quota));
        assert_eq!(meter.charge_datagram(SECOND, Role::Device, 16_000), Ok(()));
        assert_eq!(meter.counts(Role::Device), Counts { bytes: 17_000, packets: 2 });
        assert_eq!(
            meter.charge_datagram(SECOND, Role::Device, 385),
            Err(Denied::ByteRate(Duration::from_micros(100)))
        );
    }

    #[test]
    fn a_refund_gives_everything_back() {
        let limits =
            Limits { rate_bytes_per_sec: Some(1_000_000), quota_bytes: Some(100_000), ..packets(100) };
        let meter = Meter::new(limits, 0);
        for _ in 0..200 {
            assert_eq!(meter.charge_datagram(0, Role::Peer, 60_000), Ok(()));
            meter.refund_datagram(Role::Peer, 60_000);
            assert_eq!(meter.charge_stream(0, Role::Peer, 200_000), Ok(100_000));
            meter.refund_stream(Role::Peer, 100_000);
        }
        assert_eq!(meter.counts(Role::Peer), Counts::default());
        assert_eq!(meter.bytes_used(), 0);
        assert_eq!(meter.charge_stream(0, Role::Peer, 5), Ok(5));
        meter.refund_stream(Role::Peer, 2);
        assert_eq!(meter.counts(Role::Peer), Counts { bytes: 3, packets: 0 });
        assert_eq!(meter.bytes_used(), 3);
    }

    #[test]
    fn refunds_leave_no_more_than_one_burst() {
        let meter = Meter::new(rate(1_000_000), 0);
        assert_eq!(meter.charge_datagram(0, Role::Device, 90_000), Ok(()));
        meter.refund_datagram(Role::Device, 90_000);
        meter.refund_datagram(Role::Device, 90_000);
        assert_eq!((meter.bytes_used(), meter.counts(Role::Device)), (0, Counts::default()));
        assert_eq!(meter.charge_stream(MS, Role::Device, 1_000_000), Ok(100_000));
        assert!(meter.charge_datagram(MS, Role::Device, 1).is_err());
    }

    #[test]
    fn other_limits_keep_what_was_used() {
        let meter = Meter::new(Limits { quota_bytes: Some(500_000), ..rate(1_000_000) }, 0);
        assert_eq!(meter.charge_stream(SECOND, Role::Device, 60_000), Ok(60_000));
        let faster = Limits { quota_bytes: Some(70_000), ..rate(10_000_000) };
        meter.set_limits(faster);
        assert_eq!(
            (meter.limits(), meter.bytes_used(), meter.burst_bytes()),
            (faster, 60_000, Some(1_000_000))
        );
        assert_eq!(meter.charge_datagram(SECOND, Role::Device, 10_001), Err(Denied::Quota));
        meter.set_limits(UNLIMITED);
        assert_eq!(meter.charge_datagram(SECOND, Role::Device, 10_001), Ok(()));
        assert_eq!(meter.bytes_used(), 70_001);
    }

    #[test]
    fn a_changed_rate_keeps_what_the_bucket_holds() {
        let meter = Meter::new(rate(1_000_000), 0);
        assert_eq!(meter.charge_stream(SECOND, Role::Device, 60_000), Ok(60_000));
        // 40 000 are left: a faster bucket has them and fills up faster, a slower one has its burst of them.
        meter.set_limits(rate(10_000_000));
        assert_eq!(
            meter.charge_datagram(SECOND, Role::Device, 41_000),
            Err(Denied::ByteRate(Duration::from_micros(100)))
        );
        assert_eq!(meter.charge_datagram(SECOND + MS, Role::Device, 30_000), Ok(()));
        meter.set_limits(rate(100_000));
        assert_eq!(meter.charge_datagram(SECOND + MS, Role::Device, 16_384), Ok(()));
        assert_eq!(meter.charge_datagram(SECOND + MS, Role::Device, 100), Err(Denied::ByteRate(ms(1))));
        // The same limits once more change nothing.
        meter.set_limits(rate(100_000));
        assert_eq!(meter.charge_datagram(SECOND + MS, Role::Device, 100), Err(Denied::ByteRate(ms(1))));
        // Out of a time without a limit comes a full bucket.
        meter.set_limits(UNLIMITED);
        assert_eq!(meter.charge_datagram(SECOND + MS, Role::Device, 1_000_000), Ok(()));
        meter.set_limits(rate(100_000));
        assert_eq!(meter.charge_datagram(SECOND + MS, Role::Device, 16_384), Ok(()));
        // Out of one in which nothing may pass comes an empty one.
        meter.set_limits(rate(0));
        meter.set_limits(rate(100_000));
        assert_eq!(meter.charge_datagram(SECOND + MS, Role::Device, 100), Err(Denied::ByteRate(ms(1))));
    }

    #[test]
    fn the_packet_rate_changes_with_the_limits() {
        let meter = Meter::new(packets(100), 0);
        for _ in 0..16 {
            assert_eq!(meter.charge_datagram(0, Role::Device, 1), Ok(()));
        }
        meter.set_limits(packets(1000));
        assert_eq!(meter.charge_datagram(0, Role::Device, 1), Err(Denied::PacketRate(ms(1))));
        for _ in 0..100 {
            assert_eq!(meter.charge_datagram(SECOND, Role::Device, 1), Ok(()));
        }
        assert_eq!(meter.charge_datagram(SECOND, Role::Device, 1), Err(Denied::PacketRate(ms(1))));
    }
}
