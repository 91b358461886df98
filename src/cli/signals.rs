//! SIGTERM and SIGINT: the first asks to leave in order, the second ends the process at once.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Exit, Failure, OrFail as _, out};

/// Listens from the moment it is made.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes over both signals. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub(super) fn new() -> Result<Self, Failure> {
        let take = |kind| signal(kind).or_fail(Exit::Software, "cannot take over signals");
        Ok(Self { terminate: take(SignalKind::terminate())?, interrupt: take(SignalKind::interrupt())? })
    }

    /// Waits for the next one; answers with its number. Cancel safe.
    pub(super) async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        }
    }

    /// Does the last work; another signal ends the process in the middle of it.
    pub(super) async fn last<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            number = self.next() => {
                out::say("ended at once by a second signal");
                std::process::exit(128 + number)
            }
        }
    }
}
