//! The relay and its log, as the admin API reaches them: what ties `ops` to `relay`, which do not know each other.

use std::{net::SocketAddr, sync::Arc};

use tokio::sync::broadcast;

use super::certificate::Shown;
use crate::{
    ops::admin::{Certificate, Connection, Control},
    relay::{LegInfo, RelayHandle},
    table::{Lifecycle, Summary},
    telemetry::LevelHandle,
    wire::Handle,
};

/// A relay that runs here.
pub(super) struct Controlled {
    pub(super) relay: RelayHandle,
    /// Of the log; `None` where nobody may change it.
    pub(super) log: Option<LevelHandle>,
    pub(super) certificate: Arc<Shown>,
}

impl Control for Controlled {
    fn allocations(&self) -> Vec<Summary> {
        self.relay.allocations()
    }

    fn allocation(&self, handle: Handle) -> Option<Summary> {
        self.relay.allocation(handle)
    }

    fn connections(&self, handle: Handle) -> Vec<Connection> {
        let legs = self.relay.legs(handle).into_iter();
        legs.map(|leg| {
            let LegInfo { id, role, remote, rtt, has_channel, path_mtu_bytes } = leg;
            // A socket for IPv6 has IPv4's addresses in a form of its own.
            let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
            Connection { id, role, remote, rtt, raw_channel: has_channel, path_mtu_bytes }
        })
        .collect()
    }

    fn kill(&self, handle: Handle, reason: &str) -> bool {
        self.relay.kill(handle, reason)
    }

    fn set_draining(&self, draining: bool) {
        self.relay.set_draining(draining);
    }

    fn end_all(&self, message: &str) {
        self.relay.end_all(message);
    }

    fn lifecycle(&self) -> broadcast::Receiver<Lifecycle> {
        self.relay.lifecycle()
    }

    fn log_filter(&self) -> String {
        let filter = self.log.as_ref().and_then(|log| log.get().ok());
        filter.unwrap_or_else(|| "unknown".into())
    }

    fn set_log_filter(&self, filter: &str) -> Result<(), String> {
        let log = self.log.as_ref().ok_or("what is logged is fixed here")?;
        log.set(filter).map_err(|error| error.to_string())
    }

    fn certificate(&self) -> Certificate {
        Certificate {
            expires_at_unix: self.certificate.expires().and_then(|at| u64::try_from(at).ok()),
            origin: self.certificate.origin().name(),
        }
    }
}
