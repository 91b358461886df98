//! `admin drain --wait`: until nobody is left, for scripts that take the machine away afterwards.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{super::Failure, client::Client};

/// How often is looked whether anybody is left.
const AGAIN: Duration = Duration::from_millis(200);
/// Beyond the deadline, for the goodbyes.
const GOODBYES: Duration = Duration::from_secs(2);

/// Waits until no allocation is left, the deadline is over, or the drain has been taken back.
///
/// # Errors
/// As [`Client::ask`].
pub(super) async fn wait(client: &Client, deadline: Duration) -> Result<(), Failure> {
    let over = async {
        loop {
            let stats = client.get("/admin/stats", &[]).await?;
            if stats["allocations"]["now"] == 0 || stats["drain"]["draining"] != true {
                return Ok(());
            }
            sleep(AGAIN).await;
        }
    };
    timeout(deadline.saturating_add(GOODBYES), over).await.unwrap_or(Ok(()))
}
