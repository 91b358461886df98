//! What those who look after a running relay may see and do, without being able to end it by letting go.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::broadcast;

use super::hub::Hub;
use crate::{
    guard::Guard,
    table::{ConnId, Lifecycle, Summary},
    wire::{Handle, Role},
};

/// A view of a [`RelayServer`](super::RelayServer). Clones are the same; it may outlive the server, and then shows
/// and does nothing.
#[derive(Clone)]
pub struct RelayHandle(Arc<Hub>);

/// A connection of an allocation, as an administrator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegInfo {
    /// For the log.
    pub id: ConnId,
    /// Its side.
    pub role: Role,
    /// Where it comes from now.
    pub remote: SocketAddr,
    /// What QUIC measures.
    pub rtt: Duration,
    /// Whether it has a raw channel.
    pub has_channel: bool,
    /// The largest UDP payload that its path carries, in bytes.
    pub path_mtu_bytes: usize,
}

impl RelayHandle {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        Self(hub)
    }

    /// What is live, in order of handles. Takes time in proportion to their number, and is not of one moment.
    pub fn allocations(&self) -> Vec<Summary> {
        self.0.allocations()
    }

    /// One live allocation.
    pub fn allocation(&self, handle: Handle) -> Option<Summary> {
        self.0.allocation(handle)
    }

    /// Its connections, the oldest first. Takes time in proportion to all connections of the relay.
    pub fn legs(&self, handle: Handle) -> Vec<LegInfo> {
        let legs = self.0.legs_of(handle);
        let info = |leg: &Arc<super::leg::Leg>| LegInfo {
            id: leg.id,
            role: leg.role,
            remote: leg.connection.remote_address(),
            rtt: leg.connection.rtt(),
            has_channel: leg.channel().is_some(),
            path_mtu_bytes: leg.path_mtu_bytes(),
        };
        legs.iter().map(info).collect()
    }

    /// Ends an allocation for good, with KILLED; answers whether there was one of that name. Both sides read
    /// the reason.
    pub fn kill(&self, handle: Handle, reason: &str) -> bool {
        self.0.kill(handle, reason)
    }

    /// Whether whoever comes is refused with DRAINING. What is live goes on.
    pub fn set_draining(&self, draining: bool) {
        self.0.set_draining(draining);
    }

    /// Ends all allocations with DRAINING.
    pub fn end_all(&self, message: &str) {
        self.0.end_all(message);
    }

    /// Hears of allocations that come and go, from now on; a listener that is far behind misses the oldest.
    pub fn lifecycle(&self) -> broadcast::Receiver<Lifecycle> {
        self.0.lifecycle()
    }

    /// Who decides who may come.
    pub fn guard(&self) -> &Arc<Guard> {
        &self.0.guard
    }
}
