//! The only place that reads clocks.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::table::Now;

/// A reader of both clocks. Cheap to copy; copies count from the same beginning.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
}

impl Clock {
    /// Begins counting.
    #[allow(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// Monotonic time since the start.
    #[allow(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn mono(&self) -> Duration {
        Instant::now().saturating_duration_since(self.started)
    }

    /// Monotonic nanoseconds since the start, for meters; wraps after 584 years.
    pub fn nanos(&self) -> u64 {
        u64::try_from(self.mono().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Both clocks. A wall clock before 1970 reads as 1970: every token is then valid too long, never too short.
    #[allow(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn now(&self) -> Now {
        Now { mono: self.mono(), unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() }
    }

    /// Wall time in whole unix seconds.
    pub fn unix_secs(&self) -> u64 {
        self.now().unix.as_secs()
    }
}

/// Unix seconds as RFC 3339 writes them: `2026-11-20T06:30:00Z`. Years past 9999 have more digits.
pub fn rfc3339(unix_secs: u64) -> String {
    const DAY_SECS: u64 = 86_400;
    let (days, secs) = (unix_secs / DAY_SECS, unix_secs % DAY_SECS);
    // Years are counted from March: then a leap day is a year's last, and the months' lengths follow a line.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (secs / 3600, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}
