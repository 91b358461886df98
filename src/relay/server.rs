//! Starting and stopping the relay as a whole.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::JoinHandle;

use super::{
    auth::Admission,
    hub::Hub,
    session::Terms,
    shard::RunningShard,
    tls::{self, TlsIdentity},
};
use crate::{
    clock::Clock,
    metrics::Metrics,
    table::{Rules, Summary},
    wire::{Handle, RelayId, SpkiPin},
};

/// What the kernel may hold for the relay's socket while its thread is busy. Where the system allows less
/// (`net.core.rmem_max`), it takes what it allows.
const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// What a connection may receive faster than it is read, unless configured otherwise.
pub const DATAGRAM_RECEIVE_BUFFER_BYTES: usize = 1024 * 1024;
/// How much of a shutdown's time is kept for saying goodbye to what is left.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// All that a relay needs to know.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// UDP address; port 0 takes a free one. `[::]` listens on IPv4 too.
    pub listen: SocketAddr,
    /// The audience of the tokens it takes.
    pub relay_id: RelayId,
    /// What `Allocated` names as the relay's address; `None`: the one that the client's packets came to.
    pub public_addr: Option<SocketAddr>,
    /// Certificate and key.
    pub tls: TlsIdentity,
    /// Who may have an allocation.
    pub admission: Admission,
    /// How many, for how long.
    pub rules: Rules,
    /// Connections that may be without an accepted token at once. Each costs some 30 KiB and a handshake;
    /// beyond, attempts are refused before a certificate is signed.
    pub max_unauthenticated: usize,
    /// Datagrams of one connection that have been received and not yet read; the oldest go first. Reading never
    /// waits for anything, so this holds one burst: [`DATAGRAM_RECEIVE_BUFFER_BYTES`] is plenty.
    pub datagram_receive_buffer_bytes: usize,
    /// How often a silent path is kept open; `None` for never.
    pub keepalive: Option<Duration>,
}

/// Why a relay did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The UDP address cannot be had.
    #[error("cannot listen on UDP {addr}")]
    Bind {
        /// The address as configured.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The system has no thread or no timer to give.
    #[error("the system refuses what a shard needs")]
    Io(#[from] io::Error),
    /// The certificate and its key do not make a TLS server.
    #[error("certificate or key cannot be used")]
    Tls(#[from] rustls::Error),
    /// The certificate's provider lacks what QUIC needs.
    #[error("the TLS provider has no QUIC initial cipher")]
    NoInitialCipher,
    /// The idle timeout is more than QUIC can express.
    #[error("idle_timeout is too long")]
    IdleTimeout,
}

/// A relay that runs until it is shut down.
///
/// Dropped without [`RelayServer::shutdown`] it stops at once, without goodbye.
pub struct RelayServer {
    hub: Arc<Hub>,
    local_addr: SocketAddr,
    spki: SpkiPin,
    shards: Vec<RunningShard>,
    timekeeper: JoinHandle<()>,
}

impl RelayServer {
    /// Binds the socket and starts the shards. Call it inside a tokio runtime that has timers: allocations
    /// expire there.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub fn start(config: RelayConfig, clock: Clock, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        let spki = config.tls.spki()?;
        // The first randomness that the TLS library draws costs it tens of milliseconds: not the first client.
        let mut drawn = [0; 32];
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.secure_random.fill(&mut drawn).map_err(|_| rustls::Error::FailedToGetRandomBytes)?;
        let server_config = tls::server_config(
            &config.tls,
            config.keepalive,
            config.rules.idle_timeout,
            config.datagram_receive_buffer_bytes,
        )?;
        let socket =
            bind(config.listen).map_err(|source| StartError::Bind { addr: config.listen, source })?;
        let local_addr = socket.local_addr()?;
        let terms = Terms {
            public_addr: config.public_addr,
            listen_port: local_addr.port(),
            keepalive: config.keepalive,
            idle_timeout: config.rules.idle_timeout,
            max_unauthenticated: config.max_unauthenticated,
            spki_sha256: spki.0,
        };
        let hub = Arc::new(Hub::new(clock, metrics, config.relay_id, config.admission, config.rules));
        let reset_key = tls::reset_key(&config.tls);
        let shard = RunningShard::start(0, socket, server_config, reset_key, terms, hub.clone())?;
        let timekeeper = tokio::spawn({
            let hub = hub.clone();
            async move { hub.keep_time().await }
        });
        Ok(Self { hub, local_addr, spki, shards: vec![shard], timekeeper })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The pin of its certificate's key.
    pub fn spki(&self) -> SpkiPin {
        self.spki
    }

    /// How many tasks and handles hold the hub: every session, forwarder and splice does.
    #[cfg(test)]
    pub(super) fn holders(&self) -> usize {
        Arc::strong_count(&self.hub)
    }

    /// What is live now, in order of handles: for an administrator. Takes time in proportion to their number.
    pub fn allocations(&self) -> Vec<Summary> {
        self.hub.allocations()
    }

    /// Ends an allocation for good, with KILLED; answers whether there was one of that name. Both sides read
    /// the reason.
    pub fn kill(&self, handle: Handle, reason: &str) -> bool {
        self.hub.kill(handle, reason)
    }

    /// Refuses what is new, tells every client DRAINING, and ends within about `deadline`.
    ///
    /// Not cancel-safe: dropped halfway it ends without waiting.
    pub async fn shutdown(mut self, deadline: Duration) {
        self.hub.drain("this relay is about to stop; connect again, here or to another one");
        let patience = deadline.saturating_sub(LAST_WORDS);
        if tokio::time::timeout(patience, self.hub.emptied()).await.is_err() {
            tracing::warn!("some clients did not acknowledge the end in time");
        }
        for shard in std::mem::take(&mut self.shards) {
            // Joining a thread blocks; the caller's runtime may have other things to do.
            let stopped = tokio::task::spawn_blocking(move || shard.stop(LAST_WORDS)).await;
            if stopped.is_err() {
                tracing::error!("a shard could not be stopped");
            }
        }
    }
}

impl Drop for RelayServer {
    fn drop(&mut self) {
        self.timekeeper.abort();
        for shard in self.shards.drain(..) {
            shard.stop(Duration::ZERO);
        }
    }
}

fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Fewer bytes than asked for are no reason not to start.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}
