//! How much may pass: the byte bucket, the packet bucket and the quota of one allocation.

use std::time::Duration;

/// Why something may not pass now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// Over the byte rate; not until this much later.
    ByteRate(Duration),
    /// Over the packet rate; not until this much later.
    PacketRate(Duration),
    /// Larger than the whole burst: never, at this rate.
    OverBurst,
    /// More than what is left of the quota.
    Quota,
}

/// The limits of one allocation and what has been used of them; shared by both legs, atomics only.
#[derive(Debug)]
pub struct Meter {}
