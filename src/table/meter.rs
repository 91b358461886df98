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
/// higher rate where the rate changed within the window. A refund that is not made at once can stretch this:
/// when another charge came between a charge and its refund, by the rate times the time between the two.
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
        let bytes = bytes as u64;
        self.bytes.take(now_nanos, bytes).map_err(over_byte_rate)?;
        if let Err(dry) = self.packets.take(now_nanos, 1) {
            self.bytes.undo(bytes);
            return Err(match dry {
                Dry::Never => Denied::OverBurst,
                Dry::Wait(wait) => Denied::PacketRate(wait),
            });
        }
        let quota_bytes = self.quota_bytes.load(Relaxed);
        let charge = |used: u64| used.checked_add(bytes).filter(|total| *total <= quota_bytes);
        if self.bytes_used.fetch_update(Relaxed, Relaxed, charge).is_err() {
            self.packets.undo(1);
            self.bytes.undo(bytes);
            return Err(Denied::Quota);
        }
        let passed = self.passed(from);
        passed.bytes.fetch_add(bytes, Relaxed);
        passed.packets.fetch_add(1, Relaxed);
        self.last_activity_nanos.store(now_nanos, Relaxed);
        Ok(())
    }

    /// Takes back the charge of a datagram that was not sent after all. At once, see [`Meter`].
    pub fn refund_datagram(&self, from: Role, bytes: usize) {
        let bytes = bytes as u64;
        self.packets.undo(1);
        self.bytes.undo(bytes);
        subtract(&self.bytes_used, bytes);
        let passed = self.passed(from);
        subtract(&passed.bytes, bytes);
        subtract(&passed.packets, 1);
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
        let charge = |used: u64| Some(used + granted_of(used)).filter(|total| *total > used);
        let granted = self.bytes_used.fetch_update(Relaxed, Relaxed, charge).map_or(0, granted_of);
        if granted < in_bucket {
            self.bytes.give_back(in_bucket - granted);
        }
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
