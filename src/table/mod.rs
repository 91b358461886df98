//! Which connections belong together, and until when. No I/O, no clock: inputs in, effects out.
//!
//! The relay feeds [`Table`] with what happened (a connection joined, left, refreshed, released) and when,
//! and carries out the [`Effect`]s it answers with, in their order. Time passes only by what it is told:
//! every input first does all that is due, and [`Table::advance`] does only that; it is due at
//! [`Table::deadline`]. The table is touched when connections come and go, never per packet:
//! what a packet needs is the [`Meter`] that both legs share.
//!
//! - `table` is the state machine over all allocations, with the one list of deadlines.
//! - `allocation` is one of them: who is here, who is awaited, when it ends by itself.
//! - `ledger` remembers every identity that lives, that has used something, or that ended for good.
//! - [`meter`] says how much may pass, with atomics; `bucket` is its rate, `advance` what it has charged beforehand.
//! - [`fair`] divides a limit of the whole relay among the allocations.

mod advance;
mod allocation;
mod atomic;
mod bucket;
pub mod fair;
mod ledger;
#[cfg(all(test, zrc_loom))]
mod loom;
pub mod meter;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod sharing;
#[cfg(test)]
mod simulation;
#[allow(clippy::module_inception, reason = "the type's own file, as its siblings have theirs")]
mod table;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

pub use allocation::Stage;
pub use meter::{Counts, Denied, Meter};
pub use table::{Summary, Table};

use crate::wire::{AllocationId, Claims, CloseCode, DeviceId, Handle, Role};

/// One reading of both clocks. Only `clock.rs` makes one from real clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time since the process chose to begin counting.
    pub mono: Duration,
    /// Wall time since the Unix epoch.
    pub unix: Duration,
}

/// A connection, for as long as the process lives; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// What may pass, in both directions together. `None` means that there is no such limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Payload bytes per second.
    pub rate_bytes_per_sec: Option<u64>,
    /// Datagrams per second.
    pub rate_packets_per_sec: Option<u64>,
    /// Payload bytes over the allocation's whole life.
    pub quota_bytes: Option<u64>,
    /// How large a share of the relay's global limit is its own beside the others', where not all can have what
    /// they want. The tier's alone: no token asks for one. 0 counts as 1.
    pub weight: u32,
}

/// No limit, and the weight of one.
impl Default for Limits {
    fn default() -> Self {
        Self { rate_bytes_per_sec: None, rate_packets_per_sec: None, quota_bytes: None, weight: 1 }
    }
}

impl Limits {
    /// What a token gets: what it asks for up to the tier's cap, the tier's default where it asks for nothing.
    pub fn granted(claims: &Claims, tier: &Tier) -> Self {
        Self::capped(claims.bandwidth_bytes_per_sec, claims.quota_bytes, tier)
    }

    /// What somebody gets who asks for this rate and this quota.
    fn capped(rate_bytes_per_sec: Option<u64>, quota_bytes: Option<u64>, tier: &Tier) -> Self {
        let granted = |asked: Option<u64>, cap: Option<u64>| match (asked, cap) {
            (Some(asked), Some(cap)) => Some(asked.min(cap)),
            (asked, cap) => asked.or(cap),
        };
        Self {
            rate_bytes_per_sec: granted(rate_bytes_per_sec, tier.limits.rate_bytes_per_sec),
            rate_packets_per_sec: tier.limits.rate_packets_per_sec,
            quota_bytes: granted(quota_bytes, tier.limits.quota_bytes),
            weight: tier.limits.weight,
        }
    }
}

/// What a kind of customer gets when the token asks for nothing, and at most when it asks for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tier {
    /// Defaults and caps of each allocation.
    pub limits: Limits,
    /// How many allocations a device may have at once.
    pub allocations_per_device: Option<u32>,
    /// How far ahead its tokens may expire; judged with the token, not here.
    pub max_token_lifetime: Option<Duration>,
}

/// What the grant of a live allocation rests on: what is judged anew when the operator changes who may have what.
#[derive(Clone, PartialEq, Eq)]
pub struct Basis {
    /// The key that the token in force was signed with.
    pub signed_by: [u8; 32],
    /// The key that the device has proven.
    pub device_key: [u8; 32],
    /// The tier that the token in force names.
    pub tier: Option<Arc<str>>,
    /// The rate that it asks for.
    pub bandwidth_bytes_per_sec: Option<u64>,
    /// The quota that it asks for.
    pub quota_bytes: Option<u64>,
}

impl From<&Claims> for Basis {
    fn from(claims: &Claims) -> Self {
        Self {
            signed_by: *claims.signed_by.as_bytes(),
            device_key: *claims.device_key.as_bytes(),
            tier: claims.tier.clone(),
            bandwidth_bytes_per_sec: claims.bandwidth_bytes_per_sec,
            quota_bytes: claims.quota_bytes,
        }
    }
}

/// Leaves the keys out.
impl fmt::Debug for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Basis").field("tier", &self.tier).finish_non_exhaustive()
    }
}

/// What becomes of a live allocation that is judged anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, in this tier.
    Keep(Tier),
    /// It ends for good, with KILLED; both sides read why.
    End(&'static str),
}

/// The relay's rules, the same for all allocations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Allocations at once.
    pub max_allocations: usize,
    /// Allocations and remembered ends together; a full ledger refuses new allocations, it never forgets.
    pub max_ledger: usize,
    /// Connections per role of one allocation; one more replaces the oldest.
    pub connections_per_role: usize,
    /// The longest life of an allocation, whatever its token says.
    pub allocation_timeout: Duration,
    /// How long an allocation outlives the last connection of a side.
    pub idle_timeout: Duration,
    /// How long the first side waits for the second.
    pub pair_timeout: Duration,
}

/// The outcome of a join.
#[derive(Debug, Clone)]
pub struct Joined {
    /// The allocation's public name.
    pub handle: Handle,
    /// Shared by both legs.
    pub meter: Arc<Meter>,
    /// What is in force now.
    pub grant: Grant,
    /// Whether the other side has a connection.
    pub peer_present: bool,
    /// Whether this join brought the allocation into being.
    pub created: bool,
}

/// What an allocation's clients are told of their limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Unix seconds.
    pub expires_at_unix: u64,
    /// What is in force.
    pub limits: Limits,
    /// How much may pass at once above the rate.
    pub burst_bytes: Option<u64>,
    /// Charged so far, in both directions.
    pub bytes_used: u64,
}

/// What the relay must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// From now on what `conn` sends goes to `to`; `None` while the other side is away.
    Link {
        /// The connection that is told.
        conn: ConnId,
        /// The newest connection of the other side.
        to: Option<ConnId>,
    },
    /// The allocation's limits or expiry changed.
    Refreshed {
        /// The connection that is told.
        conn: ConnId,
        /// What is in force now.
        grant: Grant,
    },
    /// Close the connection; the table has already forgotten it.
    Close {
        /// The connection to close.
        conn: ConnId,
        /// Why.
        code: CloseCode,
        /// For people; says what to do next where there is something to do.
        message: Arc<str>,
    },
    /// An allocation is over: all its connections have been closed by effects before this one.
    Ended(Ended),
}

/// What is left to say of an allocation that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its public name.
    pub handle: Handle,
    /// Why it ended.
    pub code: CloseCode,
    /// How long it lived.
    pub lifetime: Duration,
    /// Charged over its whole life, in both directions.
    pub bytes_used: u64,
    /// Of how many; `None` for no such limit.
    pub quota_bytes: Option<u64>,
}

/// What those who watch a relay hear of its allocations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lifecycle {
    /// One has come into being.
    Created {
        /// Wall time since the Unix epoch.
        at: Duration,
        /// Its public name.
        handle: Handle,
        /// As in its token.
        allocation_id: AllocationId,
        /// Whose it is.
        device_id: DeviceId,
        /// The side that came first.
        by: Role,
    },
    /// One is over.
    Ended {
        /// Wall time since the Unix epoch.
        at: Duration,
        /// What is left to say.
        ended: Ended,
    },
}

/// Why a join or a refresh is refused. Nothing was changed, except that what is remembered of the token's
/// identity is kept as long as the token lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The relay has as many allocations as it may.
    #[error("the relay is full")]
    AllocationsFull,
    /// The ledger of use is full.
    #[error("the relay's ledger of used tokens is full")]
    LedgerFull,
    /// The device has as many allocations as it may.
    #[error("the device has as many allocations as its tier allows")]
    DeviceFull,
    /// The allocation ended for good; the code is RELEASED, KILLED or QUOTA_EXCEEDED.
    #[error("the allocation ended for good: {0}; mint a token for a new allocation")]
    Ended(CloseCode),
    /// A refresh for another allocation.
    #[error("the refresh is for another allocation")]
    OtherAllocation,
    /// A refresh that would not extend the allocation.
    #[error("a refresh must expire later than the token in force")]
    NotLater,
    /// The connection belongs to no allocation (any more). When the table closed it, the effect that did so
    /// said why, and that code goes before this one.
    #[error("the allocation has ended")]
    Gone,
    /// The token expired between its check and now.
    #[error("the token has expired")]
    Expired,
    /// The connection belongs to an allocation already.
    #[error("the connection has joined an allocation already")]
    AlreadyJoined,
}

impl Refusal {
    /// What the caller is told.
    pub const fn close_code(self) -> CloseCode {
        match self {
            Self::AllocationsFull | Self::LedgerFull => CloseCode::Capacity,
            Self::DeviceFull => CloseCode::DeviceLimit,
            Self::Ended(code) => code,
            Self::OtherAllocation => CloseCode::AllocationMismatch,
            Self::NotLater => CloseCode::TokenInvalid,
            Self::Gone => CloseCode::Internal,
            Self::Expired => CloseCode::TokenExpired,
            Self::AlreadyJoined => CloseCode::ProtocolError,
        }
    }
}
