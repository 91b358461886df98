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
