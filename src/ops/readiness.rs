//! Whether new work is welcome: one answer, shared by those who know and those who ask.

use std::{sync::Arc, sync::atomic::AtomicU8, sync::atomic::Ordering};

use serde::Serialize;

/// Why new work is not welcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NotReady {
    /// Not everything has been started yet.
    Starting,
    /// The relay is about to stop.
    Draining,
}

/// Begins as [`NotReady::Starting`]. Draining is for good: nothing makes it ready again.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<AtomicU8>);

const STARTING: u8 = 0;
const READY: u8 = 1;
const DRAINING: u8 = 2;

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(AtomicU8::new(STARTING)))
    }
}

impl Readiness {
    /// Everything has been started.
    pub fn set_ready(&self) {
        let _ = self.0.compare_exchange(STARTING, READY, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The relay is about to stop.
    pub fn set_draining(&self) {
        self.0.store(DRAINING, Ordering::Release);
    }

    /// Whether new work is welcome.
    ///
    /// # Errors
    /// Why it is not.
    pub fn get(&self) -> Result<(), NotReady> {
        match self.0.load(Ordering::Acquire) {
            STARTING => Err(NotReady::Starting),
            READY => Ok(()),
            _ => Err(NotReady::Draining),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draining_is_for_good() {
        let readiness = Readiness::default();
        assert_eq!(readiness.get(), Err(NotReady::Starting));
        readiness.set_ready();
        assert_eq!(readiness.clone().get(), Ok(()));
        readiness.set_draining();
        readiness.set_ready();
        assert_eq!(readiness.get(), Err(NotReady::Draining));
    }
}
