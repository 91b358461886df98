//! What keeps abuse away from the relay, and who is told of it.
//!
//! | file | what it is for |
//! |---|---|
//! | `events.rs` | what happened: one typed stream of security events, logged, counted and handed to listeners |
//! | `webhook.rs` | the same for outside systems, signed |

mod events;
mod webhook;

pub use events::{
    BlockCause, EventSettings, GuardLevel, Heard, Limit, RING_EVENTS, Record, SecurityEvent, SecurityEvents,
    Subject, Subscription, TARGET, ValidatedSource,
};
pub use webhook::{SigningKeys, Timing, Webhook, WebhookError, WebhookSettings};
