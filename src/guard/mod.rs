//! What keeps abuse away from the relay, and who is told of it.
//!
//! | file | what it is for |
//! |---|---|
//! | `gate.rs` | decides about everybody who comes, by what the others know |
//! | `source.rs` | who is counted as one: an IPv4 address, an IPv6 /64 |
//! | `sources.rs` | what each source has used up, in a table of fixed size |
//! | `lists.rs` | networks let in and kept out, configured and pushed |
//! | `flood.rs` | how unproven addresses are answered: handshake, Retry, silence |
//! | `events.rs` | what happened: one typed stream of security events, logged, counted and handed to listeners |
//! | `webhook.rs` | the same for outside systems, signed |
//!
//! All but the last two are logic without I/O, and are told the time.

mod events;
mod flood;
mod gate;
mod lists;
mod source;
mod sources;
mod webhook;

pub use events::{
    BlockCause, EventSettings, GuardLevel, Heard, Limit, RING_EVENTS, Record, SecurityEvent, SecurityEvents,
    Subject, Subscription, TARGET, ValidatedSource,
};
pub use gate::{Entry, Guard, GuardSettings, Opening, Turned};
pub use lists::{Block, MAX_PUSHED, MAX_REASON_CHARS, NetworkSet, TooManyBlocks};
pub use source::{Source, folded};
pub use sources::{BYTES_PER_SOURCE, Budget, PerMinute, SourceTable};
pub use webhook::{SigningKeys, Timing, Webhook, WebhookError, WebhookSettings};
