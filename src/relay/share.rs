//! Keeps dividing the relay's global limit among its allocations.

use std::sync::Arc;

use tokio::time::{MissedTickBehavior, interval};

use super::hub::Hub;
use crate::table::fair::{INTERVAL, Pool, Sharer};

/// The use that is shown is the mean of so many intervals: a second.
const SHOWN_INTERVALS: usize = 10;

/// Measures and divides whenever there is a limit, until dropped.
pub(super) async fn share(hub: Arc<Hub>, pool: Arc<Pool>) {
    loop {
        if pool.limit_bytes_per_sec().is_some() {
            divide(&hub, &pool).await;
        }
        hub.metrics.global_limit.set(0);
        hub.metrics.global_use.set(0);
        // Notified also when the limit came before this was awaited.
        hub.shared_anew.notified().await;
    }
}

/// Divides for as long as there is a limit.
async fn divide(hub: &Hub, pool: &Arc<Pool>) {
    let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let mut sharer = Sharer::new(pool.clone(), hub.clock.nanos());
    let mut meters = Vec::new();
    let mut used = [0; SHOWN_INTERVALS];
    let mut ticks = interval(INTERVAL);
    // Late is late: the next measurement covers the time.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        let Some(limit) = pool.limit_bytes_per_sec() else { return };
        hub.metrics.global_limit.set(gauge(limit));
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
