//! Whether the process does what it is there for: what those ask who would start it anew.

use std::{sync::Arc, time::Duration};

/// How long a part that comes round four times a second may stay away, until the process counts as stuck. A machine that
/// is short of processors keeps nobody waiting so long.
const MAX_SILENCE: Duration = Duration::from_secs(5);

/// Whether all that has to come round comes round. Clones are the same.
#[derive(Clone)]
pub struct Liveness(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Liveness {
    /// `silent_for` is the time since the slowest part last came round. It must not wait.
    pub fn new(silent_for: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(silent_for))
    }

    /// Whether the process is alive.
    ///
    /// # Errors
    /// For how long a part of it has been silent.
    pub fn get(&self) -> Result<(), Duration> {
        let silent_for = (self.0)();
        if silent_for < MAX_SILENCE { Ok(()) } else { Err(silent_for) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_borne_for_seconds() {
        for (silent_ms, is_alive) in [(0, true), (250, true), (4999, true), (5000, false), (60_000, false)] {
            let silent_for = Duration::from_millis(silent_ms);
            let expected = if is_alive { Ok(()) } else { Err(silent_for) };
            assert_eq!(Liveness::new(move || silent_for).get(), expected);
        }
    }
}
