//! What the service manager is told: ready, reading the configuration again, leaving, and still alive (`sd_notify`).
//!
//! Where no service manager listens (`NOTIFY_SOCKET` is not set), nothing is sent. Nothing here fails: a relay serves
//! its clients whether or not it can say so.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

/// So often within the time that the service manager allows: one message may be lost, and one may be late.
const BEATS: u32 = 4;
/// More often than that says nothing more.
const LEAST_BEAT: Duration = Duration::from_millis(50);

/// The relay serves; `status` is what `systemctl status` shows.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is being read again; [`reloaded`] follows.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the service manager is not told of the reload"),
    }
}

/// The configuration has been read again, and either put in force or refused.
pub(super) fn reloaded() {
    tell(&[NotifyState::Ready]);
}

/// The relay is about to leave.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("telling the clients")]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// The relay is alive: what the watchdog is fed with.
pub(super) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// Calls `feed`, for as long as it is polled, while the relay is alive: while `silent_for`, the time since the slowest
/// part of the relay last came round, is below half of what the service manager allows. Beyond that nothing is fed, and
/// the service manager kills the process in the end. Cancel safe; where no watchdog watches, it waits for ever.
pub(super) async fn feed_watchdog(
    allowed: Option<Duration>,
    silent_for: impl Fn() -> Duration,
    feed: impl Fn(),
) {
    let Some(allowed) = allowed else { return std::future::pending().await };
    let mut beat = interval((allowed / BEATS).max(LEAST_BEAT));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_alive = true;
    loop {
        beat.tick().await;
        let silent_for = silent_for();
        let is_alive = silent_for < allowed / 2;
        if is_alive {
            feed();
        } else if was_alive {
            tracing::error!(
                silent_ms = u64::try_from(silent_for.as_millis()).unwrap_or(u64::MAX),
                "a shard does not come round: the watchdog is no longer fed"
            );
        }
        was_alive = is_alive;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_starves_while_a_shard_is_stuck() {
        const ALLOWED: Duration = Duration::from_secs(30);
        let (silent_ms, fed) = (Cell::new(250), Cell::new(0));
        let silent_for = || Duration::from_millis(silent_ms.get());
        let feeding = feed_watchdog(Some(ALLOWED), silent_for, || fed.set(fed.get() + 1));
        tokio::pin!(feeding);
        let minute = Duration::from_secs(60);
        assert!(timeout(minute, feeding.as_mut()).await.is_err());
        let often = fed.take();
        assert!((8..=10).contains(&often), "{often} times in two of its times");
        silent_ms.set(15_000);
        assert!(timeout(minute, feeding.as_mut()).await.is_err());
        assert_eq!(fed.take(), 0);
        // A shard that comes round again is forgiven: the service manager has not lost its patience yet.
        silent_ms.set(250);
        assert!(timeout(ALLOWED, feeding.as_mut()).await.is_err());
        assert!(fed.take() >= 3);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_fed_where_nobody_watches() {
        let feeding = feed_watchdog(None, || Duration::ZERO, || panic!("fed"));
        assert!(timeout(Duration::from_secs(3600), feeding).await.is_err());
    }
}
