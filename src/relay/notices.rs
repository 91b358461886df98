//! What a client is told of its limits before they end something: how much of the quota is used, what was dropped for
//! being over the rate, that the token is about to expire.
//!
//! Each leg looks for itself, a few times a second, at what both legs share; so both sides hear the same, whichever of
//! them sent.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    table::{Counts, Meter},
    wire::control::{Throttled, Usage},
};

/// The marks of a quota, in per cent, from the highest.
const MARKS: [u32; 3] = [90, 75, 50];
/// No more often than this is a client told that datagrams are dropped.
const THROTTLED_INTERVAL: Duration = Duration::from_secs(1);
/// A client is told so long before its token expires, long enough to have another one minted; of a token that is for
/// less than ten times that, in the last tenth.
const EXPIRING: Duration = Duration::from_secs(60);
const EXPIRING_PART: u32 = 10;
/// But no later than this: a connection that rests is looked at once a second.
const LEAST_EXPIRING: Duration = Duration::from_secs(2);

/// What one leg's client has been told, and what comes next.
#[derive(Debug)]
pub(super) struct Notices {
    /// Once so much is used, there is something to tell; for those who look often.
    next_mark_bytes: AtomicU64,
    told: Mutex<Told>,
}

#[derive(Debug)]
struct Told {
    /// The quota that the marks are of.
    quota_bytes: Option<u64>,
    /// The highest mark told of it.
    percent: u32,
    expires_at_unix: u64,
    /// How long before that it is told; `None` when it has been.
    expiring: Option<Duration>,
    /// What had been dropped when that was last told, or looked at and nothing was new.
    dropped: Counts,
    dropped_since: Duration,
    throttled_at: Option<Duration>,
}

impl Notices {
    /// Nothing has been told; what was dropped before is not this client's.
    pub fn new(meter: &Meter, mono: Duration) -> Self {
        let told = Told {
            quota_bytes: None,
            percent: 0,
            expires_at_unix: u64::MAX,
            expiring: None,
            dropped: meter.dropped(),
            dropped_since: mono,
            throttled_at: None,
        };
        Self { next_mark_bytes: AtomicU64::new(0), told: Mutex::new(told) }
    }

    /// The time at which the token in force expires has become this one.
    pub fn expires(&self, at_unix: u64, unix: Duration) {
        let mut told = self.told();
        if told.expires_at_unix != at_unix {
            told.expires_at_unix = at_unix;
            let lifetime = Duration::from_secs(at_unix).saturating_sub(unix);
            told.expiring = Some((lifetime / EXPIRING_PART).clamp(LEAST_EXPIRING, EXPIRING));
        }
    }

    /// Whether [`Notices::usage`] may have something to tell. Wait-free.
    pub fn mark_is_near(&self, bytes_used: u64) -> bool {
        bytes_used >= self.next_mark_bytes.load(Relaxed)
    }

    /// The highest mark of the quota that has been passed, if it has not been told.
    pub fn usage(&self, meter: &Meter) -> Option<Usage> {
        let (quota_bytes, bytes_used) = (meter.limits().quota_bytes, meter.bytes_used());
        let mut told = self.told();
        if told.quota_bytes != quota_bytes {
            (told.quota_bytes, told.percent) = (quota_bytes, 0);
        }
        // Without a quota there is nothing to tell until there is one, and then the next look finds it.
        let quota = quota_bytes.filter(|quota| *quota > 0);
        let of_quota = |percent: u32| quota.map(|quota| part(quota, percent));
        let passed = MARKS.into_iter().find(|mark| of_quota(*mark).is_some_and(|bytes| bytes_used >= bytes));
        let news = passed.filter(|mark| *mark > told.percent);
        if let Some(percent) = news {
            told.percent = percent;
        }
        let next = MARKS.into_iter().rev().find(|mark| *mark > told.percent);
        self.next_mark_bytes.store(next.and_then(of_quota).unwrap_or(u64::MAX), Relaxed);
        Some(Usage { bytes_used, quota_bytes: quota?, percent: news? })
    }

    /// What has been dropped for being over the rate since that was last told.
    pub fn throttled(&self, meter: &Meter, mono: Duration) -> Option<Throttled> {
        let dropped = meter.dropped();
        let mut told = self.told();
        if dropped == told.dropped {
            told.dropped_since = mono;
            return None;
        }
        if told.throttled_at.is_some_and(|at| mono < at + THROTTLED_INTERVAL) {
            return None;
        }
        let window = mono.saturating_sub(told.dropped_since);
        let before = std::mem::replace(&mut told.dropped, dropped);
        (told.dropped_since, told.throttled_at) = (mono, Some(mono));
        Some(Throttled {
            datagrams: dropped.packets.saturating_sub(before.packets),
            bytes: dropped.bytes.saturating_sub(before.bytes),
            window_ms: u32::try_from(window.as_millis()).unwrap_or(u32::MAX).max(1),
        })
    }

    /// When the token expires, once, when that is near.
    pub fn expiring(&self, unix: Duration) -> Option<u64> {
        let mut told = self.told();
        let left = Duration::from_secs(told.expires_at_unix).saturating_sub(unix);
        told.expiring.take_if(|before| left <= *before).map(|_| told.expires_at_unix)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// So many per cent, rounded up.
fn part(bytes: u64, percent: u32) -> u64 {
    let part = (u128::from(bytes) * u128::from(percent)).div_ceil(100);
    u64::try_from(part).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{table::Limits, wire::Role};

    const SECOND: Duration = Duration::from_secs(1);

    fn quota(bytes: u64) -> Limits {
        Limits { quota_bytes: Some(bytes), ..Limits::default() }
    }

    fn spend(meter: &Meter, bytes: usize) {
        assert_eq!(meter.charge_stream(0, Role::Device, bytes), Ok(bytes));
    }

    #[test]
    fn each_mark_of_a_quota_is_told_once() {
        let meter = Meter::new(quota(1001), 0);
        let notices = Notices::new(&meter, SECOND);
        let percent = || notices.usage(&meter).map(|usage| (usage.percent, usage.bytes_used));
        assert!(notices.mark_is_near(0), "nobody has looked yet");
        assert_eq!(percent(), None);
        assert!(!notices.mark_is_near(500) && notices.mark_is_near(501));
        spend(&meter, 500);
        assert_eq!(percent(), None);
        spend(&meter, 1);
        assert_eq!(percent(), Some((50, 501)));
        assert_eq!(percent(), None);
        assert!(!notices.mark_is_near(750) && notices.mark_is_near(751));
        // Only the highest of those that were passed since.
        spend(&meter, 400);
        assert_eq!(percent(), Some((90, 901)));
        spend(&meter, 100);
        assert_eq!(percent(), None);
        assert!(!notices.mark_is_near(1001));
    }

    #[test]
    fn a_larger_quota_has_its_own_marks() {
        let meter = Meter::new(quota(1000), 0);
        let notices = Notices::new(&meter, SECOND);
        spend(&meter, 950);
        assert_eq!(notices.usage(&meter).unwrap().percent, 90);
        meter.set_limits(quota(1200));
        let usage = notices.usage(&meter).unwrap();
        assert_eq!((usage.percent, usage.bytes_used, usage.quota_bytes), (75, 950, 1200));
        meter.set_limits(quota(2000));
        assert_eq!(notices.usage(&meter), None);
        spend(&meter, 50);
        assert_eq!(notices.usage(&meter).unwrap().percent, 50);
        meter.set_limits(Limits::default());
        assert_eq!(notices.usage(&meter), None);
        meter.set_limits(quota(u64::MAX));
        assert_eq!(notices.usage(&meter), None);
    }

    #[test]
    fn what_is_dropped_is_told_once_a_second_and_all_of_it() {
        let meter = Meter::new(Limits::default(), 0);
        meter.count_dropped(70);
        let notices = Notices::new(&meter, SECOND);
        assert_eq!(notices.throttled(&meter, 2 * SECOND), None, "before this client came");
        meter.count_dropped(100);
        meter.count_dropped(50);
        let first = Throttled { datagrams: 2, bytes: 150, window_ms: 250 };
        assert_eq!(notices.throttled(&meter, 2 * SECOND + SECOND / 4), Some(first));
        meter.count_dropped(10);
        assert_eq!(notices.throttled(&meter, 3 * SECOND), None, "not so soon again");
        meter.count_dropped(10);
        let second = Throttled { datagrams: 2, bytes: 20, window_ms: 1000 };
        assert_eq!(notices.throttled(&meter, 3 * SECOND + SECOND / 4), Some(second));
        assert_eq!(notices.throttled(&meter, 9 * SECOND), None);
        meter.count_dropped(1);
        let third = Throttled { datagrams: 1, bytes: 1, window_ms: 500 };
        assert_eq!(notices.throttled(&meter, 9 * SECOND + SECOND / 2), Some(third), "since it was quiet");
    }

    #[test]
    fn an_expiry_is_told_once_a_minute_or_a_tenth_before() {
        for (lifetime, before) in [(3600, 60), (600, 60), (100, 10), (20, 2), (5, 2)] {
            let (now, end) = (1_000_000 * SECOND, 1_000_000 + lifetime);
            let notices = Notices::new(&Meter::new(Limits::default(), 0), SECOND);
            notices.expires(end, now);
            let due = Duration::from_secs(end - before);
            assert_eq!(notices.expiring(due - SECOND / 4), None, "{lifetime}");
            // A token shown again changes nothing.
            notices.expires(end, due - SECOND / 4);
            assert_eq!(notices.expiring(due), Some(end), "{lifetime}");
            assert_eq!(notices.expiring(due + SECOND), None);
            notices.expires(end + 3600, due);
            assert_eq!(notices.expiring(due + SECOND), None);
            assert_eq!(notices.expiring(Duration::from_secs(end + 3540)), Some(end + 3600));
        }
    }
}
