//! What the relay granted, and where this side stands.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::wire::{
    AllocationId,
    control::{Allocated, Feature, Refreshed},
};

/// The allocation as the relay described it last. All on the relay's word.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Grant {
    /// The token's allocation id.
    pub allocation_id: AllocationId,
    /// The address at which this very relay instance is reached, past any load balancer.
    pub relay_addr: Option<SocketAddr>,
    /// When the allocation ends, unix seconds by the relay's clock.
    pub expires_at_unix: u64,
    /// Payload bytes per second in both directions together; `None`: no limit.
    pub bandwidth_bytes_per_sec: Option<u64>,
    /// How far a burst may go beyond that, in bytes; `None`: no limit.
    pub burst_bytes: Option<u64>,
    /// Payload bytes over the allocation's whole life; `None`: no limit.
    pub quota_bytes: Option<u64>,
    /// How many of them had been used then.
    pub bytes_used: u64,
    /// This side's address as the relay sees it.
    pub observed_addr: Option<SocketAddr>,
    /// How long the relay waits for a sign of life; `None` when it did not say.
    pub idle_timeout: Option<Duration>,
    /// How often the relay wants a sign of life; `None` when it did not say.
    pub keep_alive: Option<Duration>,
    /// Whether datagrams may go raw: this side asked for it and the relay offers it.
    pub raw_channel: bool,
}

impl Grant {
    pub(super) fn new(allocated: &Allocated, allocation_id: AllocationId, raw_channel_asked: bool) -> Self {
        let relay_port = u16::try_from(allocated.relay_port).ok().filter(|port| *port != 0);
        let relay_ip = allocated.relay_addr.parse::<IpAddr>().ok();
        Self {
            allocation_id,
            relay_addr: relay_ip.zip(relay_port).map(SocketAddr::from),
            expires_at_unix: allocated.expires_at,
            bandwidth_bytes_per_sec: allocated.bandwidth_limit,
            burst_bytes: allocated.burst_bytes,
            quota_bytes: allocated.quota_bytes,
            bytes_used: allocated.bytes_used,
            observed_addr: allocated.observed_addr.parse().ok(),
            idle_timeout: millis(allocated.idle_timeout_ms),
            keep_alive: millis(allocated.keepalive_ms),
            raw_channel: raw_channel_asked
                && allocated.features().any(|feature| feature == Feature::RawChannel),
        }
    }

    /// What a refresh changes.
    pub(super) fn refreshed(&mut self, by: &Refreshed) {
        self.expires_at_unix = by.expires_at;
        self.bandwidth_bytes_per_sec = by.bandwidth_limit;
        self.burst_bytes = by.burst_bytes;
        self.quota_bytes = by.quota_bytes;
        self.bytes_used = by.bytes_used;
    }
}

/// On the wire, 0 is "did not say".
fn millis(value: u32) -> Option<Duration> {
    (value != 0).then(|| Duration::from_millis(value.into()))
}
