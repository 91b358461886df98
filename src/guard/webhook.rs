//! Security events for outside systems: batches of them, POSTed and signed after Standard Webhooks.
//!
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>
//!
//! One task reads the stream of events and sends one batch at a time. While it waits for the endpoint, events queue in
//! the stream's ring, [`RING_EVENTS`](super::RING_EVENTS) of them; beyond, the oldest are dropped and counted, and
//! the next batch says how many. Nobody waits for this task, so an endpoint that is slow or gone costs events, never
//! packets. What still waits when the relay stops is lost.

use std::{error::Error as _, fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{
    Client, StatusCode, Url,
    header::{CONTENT_TYPE, RETRY_AFTER},
    redirect,
};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::timeout};

use super::events::{Heard, SecurityEvents, Subscription};
use crate::{
    clock::{Clock, rfc3339},
    https::{self, Trusted},
    metrics::{Metrics, WebhookOutcome},
    wire::RelayId,
};

/// Events in one batch: some 30 KiB of JSON, far below what endpoints take.
const MAX_BATCH_EVENTS: usize = 100;
/// Attempts for one batch: over a minute and a half where nothing answers.
const MAX_ATTEMPTS: u32 = 5;
/// The most that an endpoint's Retry-After is heeded.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Where to send, and how.
pub struct WebhookSettings {
    /// `http` or `https`; the host may be private, and user and password in it become Basic authorization.
    pub url: Url,
    /// With what to sign: the newest first, and the one before it while receivers change over.
    pub keys: SigningKeys,
    /// Who is sending.
    pub relay_id: RelayId,
    /// How long to wait for what.
    pub timing: Timing,
}

/// How long the webhook waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// For more events, after the first of a batch.
    pub gather: Duration,
    /// For the answer to one attempt, from name look-up to status.
    pub attempt: Duration,
    /// Before the second attempt; four times as long before each later one. Up to half of it is left to chance.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            gather: Duration::from_millis(500),
            attempt: Duration::from_secs(10),
            retry: Duration::from_secs(1),
        }
    }
}

/// HMAC-SHA256 keys of a webhook. Shows nothing of them.
pub struct SigningKeys(Vec<hmac::Key>);

impl SigningKeys {
    /// From the bytes that `whsec_` stands before, in base64.
    pub fn new<T: AsRef<[u8]>>(secrets: &[T]) -> Self {
        Self(secrets.iter().map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.as_ref())).collect())
    }

    /// The value of `webhook-signature`: one signature for each key, with blanks between.
    pub fn sign(&self, id: &str, timestamp_unix_secs: u64, body: &[u8]) -> String {
        let signatures: Vec<String> = self
            .0
            .iter()
            .map(|key| {
                let mut signed = hmac::Context::with_key(key);
                signed.update(format!("{id}.{timestamp_unix_secs}.").as_bytes());
                signed.update(body);
                format!("v1,{}", STANDARD.encode(signed.sign()))
            })
            .collect();
        signatures.join(" ")
    }
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

/// Why there is no webhook.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The certificates that the system trusts cannot be used.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The HTTP client cannot be made.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(reqwest::Error),
}

/// Sends events until it is dropped.
pub struct Webhook {
    task: JoinHandle<()>,
    target: Arc<ArcSwap<Target>>,
}

/// Where to, and signed with what.
struct Target {
    url: Url,
    keys: SigningKeys,
}

impl Webhook {
    /// Sends every event from now on. Call it inside a tokio runtime that moves no packets.
    ///
    /// # Errors
    /// [`WebhookError`]; whether the endpoint is there is not asked.
    pub fn start(
        settings: WebhookSettings,
        events: &SecurityEvents,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, WebhookError> {
        let client = Client::builder()
            .tls_backend_preconfigured(https::client(Trusted::System)?)
            .http1_only()
            // A redirect could lead the operator's events, and this machine's requests, anywhere.
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .timeout(settings.timing.attempt)
            .pool_max_idle_per_host(1)
            .user_agent(concat!("zrc-relay/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| WebhookError::Client(error.without_url()))?;
        let WebhookSettings { url, keys, relay_id, timing } = settings;
        let target = Arc::new(ArcSwap::from_pointee(Target { url, keys }));
        let sender =
            Sender { client, target: target.clone(), relay_id, timing, clock, metrics, failing: false };
        Ok(Self { task: tokio::spawn(sender.run(events.subscribe())), target })
    }

    /// Sends there from the next attempt on, what waits already included.
    pub fn retarget(&self, url: Url, keys: SigningKeys) {
        self.target.store(Arc::new(Target { url, keys }));
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Sender {
    client: Client,
    target: Arc<ArcSwap<Target>>,
    relay_id: RelayId,
    timing: Timing,
    clock: Clock,
    metrics: Arc<Metrics>,
    /// Whether the last attempt failed. Only changes are logged above debug.
    failing: bool,
}

/// Events that travel together.
#[derive(Default)]
struct Batch {
    events: Vec<Value>,
    /// Dropped before these.
    missed: u64,
}

impl Batch {
    fn add(&mut self, heard: Heard, metrics: &Metrics) {
        match heard {
            Heard::Event(record) => self.events.push(record.to_json()),
            Heard::Missed(missed) => {
                metrics.security.webhook(WebhookOutcome::Dropped, missed);
                self.missed = self.missed.saturating_add(missed);
            }
        }
    }
}

/// What became of one attempt.
enum Attempt {
    Taken,
    /// It may be taken another time, not before so long.
    Later(String, Option<Duration>),
    /// It will not be taken.
    Never(String),
}

impl Sender {
    async fn run(mut self, mut events: Subscription) {
        loop {
            let batch = self.gather(&mut events).await;
            let taken = self.deliver(&batch).await;
            let outcome = if taken { WebhookOutcome::Delivered } else { WebhookOutcome::Failed };
            self.metrics.security.webhook(outcome, batch.events.len() as u64);
        }
    }

    /// Waits for an event, and a little for those that follow.
    async fn gather(&self, events: &mut Subscription) -> Batch {
        let mut batch = Batch::default();
        batch.add(events.next().await, &self.metrics);
        // An end of the time is no loss: `next` is cancel-safe.
        let _ = timeout(self.timing.gather, async {
            while batch.events.len() < MAX_BATCH_EVENTS {
                batch.add(events.next().await, &self.metrics);
            }
        })
        .await;
        batch
    }

    /// Whether the endpoint took it, in the end.
    async fn deliver(&mut self, batch: &Batch) -> bool {
        let Ok(id) = message_id() else {
            tracing::error!("no randomness to be had: security events are not sent");
            return false;
        };
        let body = self.body(batch);
        let mut wait = self.timing.retry;
        for attempt in 1..=MAX_ATTEMPTS {
            let (why, not_before) = match self.attempt(&id, &body).await {
                Attempt::Taken => {
                    if std::mem::take(&mut self.failing) {
                        tracing::info!("the webhook takes security events again");
                    }
                    return true;
                }
                Attempt::Later(why, not_before) => (why, not_before),
                Attempt::Never(why) => {
                    self.failed(attempt, &why);
                    return false;
                }
            };
            self.failed(attempt, &why);
            if attempt < MAX_ATTEMPTS {
                let not_before = not_before.unwrap_or_default().min(MAX_RETRY_AFTER);
                tokio::time::sleep(jittered(wait).max(not_before)).await;
                wait *= 4;
            }
        }
        false
    }

    fn failed(&mut self, attempt: u32, why: &str) {
        self.metrics.security.webhook_attempt_failed();
        if std::mem::replace(&mut self.failing, true) {
            tracing::debug!(attempt, why, "the webhook did not take security events");
        } else {
            tracing::warn!(
                attempt,
                why,
                "the webhook did not take security events; more of this at debug, until it does again"
            );
        }
    }

    fn body(&self, batch: &Batch) -> Vec<u8> {
        json!({
            "type": "security.events",
            "timestamp": rfc3339(self.clock.unix_secs()),
            "data": {
                "relay_id": self.relay_id.to_string(),
                "missed": batch.missed,
                "events": batch.events,
            },
        })
        .to_string()
        .into_bytes()
    }

    async fn attempt(&self, id: &str, body: &[u8]) -> Attempt {
        let timestamp = self.clock.unix_secs();
        let target = self.target.load_full();
        let request = self
            .client
            .post(target.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", target.keys.sign(id, timestamp, body))
            .body(body.to_vec());
        match request.send().await {
            Ok(response) => {
                let status = response.status();
                let retry_after = response
                    .headers()
                    .get(RETRY_AFTER)
                    .and_then(|value| value.to_str().ok()?.parse().ok())
                    .map(Duration::from_secs);
                // What else it says is not read: it could be endless.
                if status.is_success() {
                    Attempt::Taken
                } else if status.is_redirection() {
                    Attempt::Never(format!("it redirects ({}), which is not followed", status.as_u16()))
                } else if status == StatusCode::GONE {
                    Attempt::Never("it wants no more (410)".into())
                } else {
                    Attempt::Later(format!("its status is {}", status.as_u16()), retry_after)
                }
            }
            Err(error) => Attempt::Later(self.describe(&error), None),
        }
    }

    /// Why a request failed, without the URL, which may hold a password, and without addresses.
    fn describe(&self, error: &reqwest::Error) -> String {
        if error.is_timeout() {
            return format!("no answer within {} ms", self.timing.attempt.as_millis());
        }
        let mut cause = error.source();
        while let Some(deeper) = cause.and_then(std::error::Error::source) {
            cause = Some(deeper);
        }
        let what = if error.is_connect() { "no connection" } else { "the request failed" };
        cause.map_or_else(|| what.to_owned(), |cause| format!("{what}: {cause}"))
    }
}

/// Names a message, for the receiver to know a repetition by.
fn message_id() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(format!("msg_{}", hex::encode(bytes)))
}

/// Between half and all of it, so that relays which failed together do not come back together.
fn jittered(wait: Duration) -> Duration {
    let mut random = [0; 1];
    // Without randomness, half of it.
    let _ = getrandom::fill(&mut random);
    let [share] = random.map(u32::from);
    wait / 2 + wait / 2 * share / 256
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification and of its libraries.
    #[test]
    fn signs_as_the_published_example() {
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let body = br#"{"test": 2432232314}"#;
        let (id, timestamp) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330);
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(SigningKeys::new(&[&secret]).sign(id, timestamp, body), expected);
        let other = SigningKeys::new(&[[7; 32]]).sign(id, timestamp, body);
        assert_ne!(other, expected);
        let both = SigningKeys::new(&[[7; 32].to_vec(), secret]).sign(id, timestamp, body);
        assert_eq!(both, format!("{other} {expected}"));
    }

    #[test]
    fn keys_are_not_shown() {
        assert_eq!(format!("{:?}", SigningKeys::new(&[b"secret"])), "1 keys");
    }

    #[test]
    fn jitter_leaves_half() {
        let wait = Duration::from_secs(4);
        for _ in 0..1000 {
            let jittered = jittered(wait);
            assert!(jittered >= wait / 2 && jittered < wait, "{jittered:?}");
        }
    }
}
