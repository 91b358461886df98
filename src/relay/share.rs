//! Keeps dividing the relay's global limit among its allocations.

use std::sync::Arc;

use tokio::time::{MissedTickBehavior, interval};

use super::hub::Hub;
use crate::table::fair::{INTERVAL, Pool, Sharer};

/// The use that is shown is the mean of so many intervals: a second.
const SHOWN_INTERVALS: usize = 10;

/// Measures and divides, until dropped.
pub(super) async fn share(hub: Arc<Hub>, pool: Arc<Pool>) {
    let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    hub.metrics.global_limit.set(gauge(pool.limit_bytes_per_sec()));
    let mut sharer = Sharer::new(pool, hub.clock.nanos());
    let mut meters = Vec::new();
    let mut used = [0; SHOWN_INTERVALS];
    let mut ticks = interval(INTERVAL);
    // Late is late: the next measurement covers the time.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        hub.meters(&mut meters);
        used.rotate_left(1);
        if let Some(last) = used.last_mut() {
            *last = sharer.share(hub.clock.nanos(), &meters);
        }
        // Their allocations may end now.
        meters.clear();
        hub.metrics.global_use.set(gauge(used.iter().sum::<u64>() / SHOWN_INTERVALS as u64));
    }
}
