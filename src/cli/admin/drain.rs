//! `admin drain --wait`: until nobody is left, for scripts that take the machine away afterwards.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{
    super::{Exit, Failure},
    client::Client,
};

/// How often is looked whether anybody is left.
const AGAIN: Duration = Duration::from_millis(200);
/// Beyond the deadline, for the goodbyes.
const GOODBYES: Duration = Duration::from_secs(2);

/// Waits until no allocation is left.
///
/// # Errors
/// [`Exit::Refused`] when the drain was taken back, or somebody is left after its deadline; and as [`Client::ask`].
pub(super) async fn wait(client: &Client, deadline: Duration) -> Result<(), Failure> {
    let over = async {
        loop {
            let stats = client.get("/admin/stats", &[]).await?;
            if stats["allocations"]["now"] == 0 {
                return Ok(());
            }
            if stats["drain"]["draining"] != true {
                return Err(Failure::new(Exit::Refused, "the drain was taken back: the relay is not empty"));
            }
            sleep(AGAIN).await;
        }
    };
    let late = || Failure::new(Exit::Refused, "the deadline is over, and the relay is not empty");
    timeout(deadline.saturating_add(GOODBYES), over).await.unwrap_or_else(|_| Err(late()))
}
