//! How much may pass: the byte bucket, the packet bucket and the quota of one allocation.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    Limits,
    bucket::{Bucket, Dry},
};
use crate::wire::Role;

/// Room for one datagram of any size that QUIC carries on common paths, and for a few of the usual ones.
const LEAST_BURST_BYTES: u64 = 16 * 1024;
/// As many as an application sends back to back for one picture or one window.
const LEAST_BURST_PACKETS: u64 = 16;
/// The quota that stands for none: nobody lives to use it up.
const NO_QUOTA: u64 = u64::MAX;

/// Why something may not pass now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// Over the byte rate; not until this much later.
    ByteRate(Duration),
    /// Over the packet rate; not until this much later.
    PacketRate(Duration),
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
#[derive(Debug)]
pub struct Meter {
    bytes: Bucket,
    packets: Bucket,
    quota_bytes: AtomicU64,
    /// Over the whole life of the allocation's identity.
    bytes_used: AtomicU64,
    /// By [`Role::index`] of the sender.
    passed: [Passed; 2],
    last_activity_nanos: AtomicU64,
    /// As they were set, for those who ask. Also keeps two changes of the limits apart.
    limits: Mutex<Limits>,
}

#[derive(Debug, Default)]
struct Passed {
    bytes: AtomicU64,
    packets: AtomicU64,
}

impl Meter {
    /// Full buckets, and a quota of which `bytes_used` are gone.
    pub fn new(limits: Limits, bytes_used: u64) -> Self {
        Self {
            bytes: Bucket::new(limits.rate_bytes_per_sec, LEAST_BURST_BYTES),
            packets: Bucket::new(limits.rate_packets_per_sec, LEAST_BURST_PACKETS),
            quota_bytes: AtomicU64::new(limits.quota_bytes.unwrap_or(NO_QUOTA)),
            bytes_used: AtomicU64::new(bytes_used),
            passed: Default::default(),
            last_activity_nanos: AtomicU64::new(0),
            limits: Mutex::new(limits),
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
        let (packets, bytes) = (packets as u64, bytes as u64);
        self.bytes.take(now_nanos, bytes).map_err(over_byte_rate)?;
        if let Err(dry) = self.packets.take(now_nanos, packets) {
            self.bytes.undo(bytes);
            return Err(match dry {
                Dry::Never => Denied::OverBurst,
                Dry::Wait(wait) => Denied::PacketRate(wait),
            });
        }
        let quota_bytes = self.quota_bytes.load(Relaxed);
        let charge = |used: u64| used.checked_add(bytes).filter(|total| *total <= quota_bytes);
        if self.bytes_used.fetch_update(Relaxed, Relaxed, charge).is_err() {
            self.packets.undo(packets);
            self.bytes.undo(bytes);
            return Err(Denied::Quota);
        }
        let passed = self.passed(from);
        passed.bytes.fetch_add(bytes, Relaxed);
        passed.packets.fetch_add(packets, Relaxed);
        self.last_activity_nanos.store(now_nanos, Relaxed);
        Ok(())
    }

    /// Takes back the charge of a datagram that was not sent after all. At once, see [`Meter`].
    pub fn refund_datagram(&self, from: Role, bytes: usize) {
        self.refund_datagrams(from, 1, bytes);
    }

    /// Takes back the charge of a train that was not sent after all. At once, see [`Meter`].
    pub fn refund_datagrams(&self, from: Role, packets: usize, bytes: usize) {
        let (packets, bytes) = (packets as u64, bytes as u64);
        self.packets.undo(packets);
        self.bytes.undo(bytes);
        subtract(&self.bytes_used, bytes);
        let passed = self.passed(from);
        subtract(&passed.bytes, bytes);
        subtract(&passed.packets, packets);
    }

    /// Charges as much of `want_bytes` as may pass now and says how much that is: 0 only when 0 is wanted.
    /// Streams have no packets, so the packet rate does not concern them.
    ///
    /// # Errors
    /// [`Denied::ByteRate`] says when there will be enough to be worth the wake-up; [`Denied::Quota`] when
    /// nothing is left; [`Denied::OverBurst`] at a rate of nothing per second.
    pub fn charge_stream(&self, now_nanos: u64, from: Role, want_bytes: usize) -> Result<usize, Denied> {
        if want_bytes == 0 {
            return Ok(0);
        }
        let in_bucket = self.bytes.take_some(now_nanos, want_bytes as u64).map_err(over_byte_rate)?;
        let quota_bytes = self.quota_bytes.load(Relaxed);
        let granted_of = |used: u64| in_bucket.min(quota_bytes.saturating_sub(used));
        let charge = |used: u64| Some(used + granted_of(used));
        let granted = self.bytes_used.fetch_update(Relaxed, Relaxed, charge).map_or(0, granted_of);
        self.bytes.give_back(in_bucket - granted);
        if granted == 0 {
            return Err(Denied::Quota);
        }
        self.passed(from).bytes.fetch_add(granted, Relaxed);
        self.last_activity_nanos.store(now_nanos, Relaxed);
        // No more than was wanted, so it fits.
        Ok(granted as usize)
    }

    /// Takes back the part of a stream's charge that was not written after all. At once, see [`Meter`].
    pub fn refund_stream(&self, from: Role, bytes: usize) {
        let bytes = bytes as u64;
        self.bytes.give_back(bytes);
        subtract(&self.bytes_used, bytes);
        subtract(&self.passed(from).bytes, bytes);
    }

    /// What is in force.
    pub fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts other limits in force. What has been used stays used; charges that other threads are making at
    /// this very moment go by either.
    pub fn set_limits(&self, limits: Limits) {
        let mut in_force = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let at_nanos = self.last_activity_nanos();
        self.bytes.set_rate(at_nanos, limits.rate_bytes_per_sec);
        self.packets.set_rate(at_nanos, limits.rate_packets_per_sec);
        self.quota_bytes.store(limits.quota_bytes.unwrap_or(NO_QUOTA), Relaxed);
        *in_force = limits;
    }

    /// Charged so far in both directions, earlier lives of the allocation included.
    pub fn bytes_used(&self) -> u64 {
        self.bytes_used.load(Relaxed)
    }

    /// What has passed from this side to the other, live.
    pub fn counts(&self, from: Role) -> Counts {
        let passed = self.passed(from);
        Counts { bytes: passed.bytes.load(Relaxed), packets: passed.packets.load(Relaxed) }
    }

    /// How many bytes may pass at once after a pause: 100 ms of the rate, at least 16 KiB. `None` without a rate.
    pub fn burst_bytes(&self) -> Option<u64> {
        self.bytes.burst()
    }

    /// When something was last charged, on the clock of the charges; 0 before.
    pub fn last_activity_nanos(&self) -> u64 {
        self.last_activity_nanos.load(Relaxed)
    }

    fn passed(&self, from: Role) -> &Passed {
        let [device, peer] = &self.passed;
        match from {
            Role::Device => device,
            Role::Peer => peer,
        }
    }
}

fn over_byte_rate(dry: Dry) -> Denied {
    match dry {
        Dry::Never => Denied::OverBurst,
        Dry::Wait(wait) => Denied::ByteRate(wait),
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
            assert_eq!(meter.charge_datagram(0, Role::Device, burst), Ok(()), "{bytes_per_sec}");
            assert!(matches!(meter.charge_datagram(0, Role::Device, burst), Err(Denied::ByteRate(_))));
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
