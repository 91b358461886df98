//! What has been counted so far, as one value: for those who show it otherwise than Prometheus does.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{DropReason, Forwarded, Metrics, PerCode, SecurityKind};
use crate::wire::Role;

/// Everything that is counted of clients, since the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Connections now.
    pub connections: i64,
    /// Connections whose handshake finished.
    pub connections_opened: u64,
    /// Connections that are over, by close code.
    pub connections_closed: BTreeMap<&'static str, u64>,
    /// Allocations that came into being.
    pub allocations_created: u64,
    /// Allocations that are over, by close code.
    pub allocations_ended: BTreeMap<&'static str, u64>,
    /// What passed.
    pub forwarded: Sent,
    /// Datagrams that were not forwarded, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Requests refused, by close code.
    pub refused: BTreeMap<&'static str, u64>,
    /// Security events, by kind.
    pub security_events: BTreeMap<&'static str, u64>,
}

/// What passed, by who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// From devices to peers.
    pub device: Passed,
    /// From peers to devices.
    pub peer: Passed,
}

/// What passed in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Passed {
    /// Datagrams.
    pub datagrams: u64,
    /// Their payload bytes.
    pub datagram_bytes: u64,
    /// Of the datagrams, those that left raw.
    pub raw_datagrams: u64,
    /// Stream bytes.
    pub stream_bytes: u64,
}

impl From<&Forwarded> for Passed {
    fn from(forwarded: &Forwarded) -> Self {
        Self {
            datagrams: forwarded.datagrams.get(),
            datagram_bytes: forwarded.datagram_bytes.get(),
            raw_datagrams: forwarded.raw_datagrams.get(),
            stream_bytes: forwarded.stream_bytes.get(),
        }
    }
}

impl PerCode {
    /// Those that are not 0.
    fn totals(&self) -> BTreeMap<&'static str, u64> {
        let all = self.0.iter().map(|(code, counter)| (code.name(), counter.get()));
        all.filter(|(_, count)| *count > 0).collect()
    }
}

impl Metrics {
    /// What has been counted so far. What was never counted by reason or code is left out.
    pub fn totals(&self) -> Totals {
        let dropped = DropReason::ALL.iter().zip(&self.dropped);
        let security = SecurityKind::ALL.iter().map(|kind| (kind.name(), self.security.events_of(*kind)));
        Totals {
            connections: self.connections.get(),
            connections_opened: self.connections_opened.get(),
            connections_closed: self.connections_closed.totals(),
            allocations_created: self.allocations_created.get(),
            allocations_ended: self.allocations_ended.totals(),
            forwarded: Sent {
                device: self.forwarded(Role::Device).into(),
                peer: self.forwarded(Role::Peer).into(),
            },
            dropped: dropped
                .map(|(reason, counter)| (reason.name(), counter.get()))
                .filter(|(_, count)| *count > 0)
                .collect(),
            refused: self.refused.totals(),
            security_events: security.filter(|(_, count)| *count > 0).collect(),
        }
    }
}
