//! Where security events are sent, which may change while the relay runs.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    clock::Clock,
    config,
    guard::{SecurityEvents, SigningKeys, Timing, Webhook, WebhookError, WebhookSettings},
    metrics::Metrics,
    wire::RelayId,
};

/// Sends them there, if there is somewhere, for as long as it is here.
pub(super) struct Webhooks {
    events: SecurityEvents,
    relay_id: RelayId,
    clock: Clock,
    metrics: Arc<Metrics>,
    sending: Mutex<Option<Webhook>>,
}

impl Webhooks {
    /// Sends nothing yet.
    pub(super) fn new(
        events: SecurityEvents,
        relay_id: RelayId,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { events, relay_id, clock, metrics, sending: Mutex::default() }
    }

    /// Sends there from now on, or nowhere; what waits goes there too. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When nothing can be sent at all: then everything stays as it was.
    pub(super) fn send_to(&self, wanted: Option<config::Webhook>) -> Result<(), WebhookError> {
        let mut sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(config::Webhook { url, secrets }) = wanted else {
            if sending.take().is_some() {
                tracing::info!("security events are sent nowhere now");
            }
            return Ok(());
        };
        let keys = SigningKeys::new(&secrets);
        match &*sending {
            Some(webhook) => webhook.retarget(url, keys),
            None => {
                let settings =
                    WebhookSettings { url, keys, relay_id: self.relay_id, timing: Timing::default() };
                *sending = Some(Webhook::start(settings, &self.events, self.clock, self.metrics.clone())?);
            }
        }
        Ok(())
    }
}
