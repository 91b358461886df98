//! Starting and stopping the relay as a whole.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    num::NonZeroU8,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::available_parallelism,
    time::Duration,
};

use tokio::{sync::Notify, task::JoinHandle};

use super::{
    auth::Admission,
    channel::Channels,
    handle::RelayHandle,
    handshake::ServerCrypto,
    hub::{Accepting, Hub},
    session::Terms,
    shard::{Common, RunningShard, Shard},
    share::share,
    socket::Mailboxes,
    steer::{self, Sockets, Steer},
    tls::{self, TlsIdentity, Transport},
};
use crate::{
    clock::Clock,
    guard::{Guard, GuardSettings, SecurityEvents},
    metrics::Metrics,
    table::{Rules, Summary, Table, fair::Pool},
    wire::{Handle, RelayId, SpkiPin},
};

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
    /// Who may come, how often, and what floods bring.
    pub guard: GuardSettings,
    /// Payload bytes per second of all allocations together, in both directions: divided fairly where they ask for
    /// more, by the weights of their tiers. `None` for no such limit.
    pub global_bytes_per_sec: Option<u64>,
    /// Connections that may be without an accepted token at once. Each costs some 30 KiB and a handshake;
    /// beyond, attempts are refused before a certificate is signed.
    pub max_unauthenticated: usize,
    /// Datagrams of one connection that have been received and not yet read; the oldest go first. Reading never
    /// waits for anything, so this holds one burst: [`DATAGRAM_RECEIVE_BUFFER_BYTES`] is plenty.
    pub datagram_receive_buffer_bytes: usize,
    /// How often a silent path is kept open; `None` for never.
    pub keepalive: Option<Duration>,
    /// Threads that move packets, each with a socket of its own; `None` for one a core, at most [`MAX_SHARDS`].
    pub shards: Option<NonZeroU8>,
    /// Whether clients are offered a raw channel beside their connection.
    pub raw_channel: bool,
}

/// More threads than that have never been asked for; the wire has room for 256.
pub const MAX_SHARDS: u8 = 64;

/// The limits that can be others while a relay runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveLimits {
    /// How many, for how long. Smaller numbers end nothing, they refuse more; shorter times may be over at once. How
    /// long a connection may be silent is fixed for some when they come: what is longer than before holds for new ones.
    pub rules: Rules,
    /// As [`RelayConfig::global_bytes_per_sec`]; from one moment to the next, for what is live too.
    pub global_bytes_per_sec: Option<u64>,
    /// As [`RelayConfig::max_unauthenticated`].
    pub max_unauthenticated: usize,
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
    /// The system has no randomness to give.
    #[error("the system has no randomness to give")]
    Random(#[from] getrandom::Error),
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
    crypto: Arc<ServerCrypto>,
    /// As it was started with.
    transport: Transport,
    /// In the order of their numbers.
    shards: Vec<RunningShard>,
    timekeeper: Option<JoinHandle<()>>,
    /// Divides the limit that all allocations share, while there is one.
    sharer: Option<JoinHandle<()>>,
    lost: Arc<Notify>,
    /// Closing one socket of several on a port gives its number to another, and packets would go astray while the
    /// other shards still say goodbye. So all are closed together, when this is dropped.
    held_open: Vec<UdpSocket>,
}

impl RelayServer {
    /// Binds the socket and starts the shards. Call it inside a tokio runtime that has timers: allocations
    /// expire there.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub fn start(
        config: RelayConfig,
        clock: Clock,
        metrics: Arc<Metrics>,
        security: SecurityEvents,
    ) -> Result<Self, StartError> {
        Self::start_steered(config, clock, metrics, security, steer::by_packet)
    }

    pub(super) fn start_steered(
        config: RelayConfig,
        clock: Clock,
        metrics: Arc<Metrics>,
        security: SecurityEvents,
        steer: Steer,
    ) -> Result<Self, StartError> {
        // The first randomness that the TLS library draws costs it tens of milliseconds: not the first client.
        let mut drawn = [0; 32];
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.secure_random.fill(&mut drawn).map_err(|_| rustls::Error::FailedToGetRandomBytes)?;
        let transport = Transport {
            keepalive: config.keepalive,
            idle_timeout: config.rules.idle_timeout,
            datagram_receive_buffer_bytes: config.datagram_receive_buffer_bytes,
        };
        let (server_config, crypto) = tls::server_config(&config.tls, transport)?;
        let wanted = match config.shards {
            Some(shards) => shards.get(),
            None => available_parallelism().map_or(1, |cores| u8::try_from(cores.get()).unwrap_or(u8::MAX)),
        };
        let bind_error = |source| StartError::Bind { addr: config.listen, source };
        let Sockets { sockets, refused } =
            steer::bind(config.listen, wanted.min(MAX_SHARDS), steer).map_err(bind_error)?;
        if let Some(error) = refused {
            tracing::warn!(%error, wanted, "the kernel does not steer packets to shards: there is one shard");
        }
        let local_addr = sockets.first().map_or(Ok(config.listen), UdpSocket::local_addr)?;
        let shards = u8::try_from(sockets.len()).unwrap_or(MAX_SHARDS);
        let terms = Terms {
            public_addr: config.public_addr,
            listen_port: local_addr.port(),
            keepalive: config.keepalive,
            raw_channel: config.raw_channel,
        };
        let channels = Channels::new(shards)?;
        let guard = Arc::new(Guard::new(&config.guard, metrics.clone(), security));
        metrics.show_max_allocations(config.rules.max_allocations);
        let pool = Arc::new(Pool::new(config.global_bytes_per_sec));
        let accepting = Accepting {
            max_unauthenticated: config.max_unauthenticated,
            idle_timeout: config.rules.idle_timeout,
            with: Arc::new(server_config.clone()),
        };
        let hub = Arc::new(Hub::new(
            clock,
            metrics,
            guard,
            config.relay_id,
            config.admission,
            accepting,
            Table::sharing(config.rules, Some(pool.clone())),
            channels,
        ));
        let common = Common {
            shards,
            server_config,
            reset_key: tls::reset_key(&config.tls),
            mailboxes: Arc::new(Mailboxes::new(shards)),
            lost: Arc::default(),
        };
        let unauthenticated = Arc::default();
        let mut server = Self {
            hub: hub.clone(),
            local_addr,
            crypto,
            transport,
            shards: Vec::new(),
            timekeeper: None,
            sharer: None,
            lost: common.lost.clone(),
            held_open: Vec::new(),
        };
        for (number, socket) in (0..shards).zip(sockets) {
            server.held_open.push(socket.try_clone()?);
            let connections = hub.metrics.shard_connections(number);
            let shard = Shard::new(number, terms.clone(), connections, Arc::clone(&unauthenticated));
            server.shards.push(RunningShard::start(shard, socket, &common, hub.clone())?);
        }
        server.sharer = Some(tokio::spawn(share(hub.clone(), pool)));
        server.timekeeper = Some(tokio::spawn(async move { hub.keep_time().await }));
        Ok(server)
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// How many threads move packets. One, where the kernel does not steer packets to more.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The pin of its certificate's key.
    pub fn spki(&self) -> SpkiPin {
        self.crypto.spki()
    }

    /// Shows another certificate to whoever connects from now on, and answers with the pin of its key. Sessions go on.
    ///
    /// # Errors
    /// When certificate and key cannot be used, or not together: then nothing has changed.
    pub fn set_identity(&self, identity: &TlsIdentity) -> Result<SpkiPin, rustls::Error> {
        let shown = tls::shown(identity)?;
        let spki = shown.spki;
        self.crypto.show(shown);
        Ok(spki)
    }

    /// How many tasks and handles hold the hub: every session, forwarder and splice does.
    #[cfg(test)]
    pub(super) fn holders(&self) -> usize {
        Arc::strong_count(&self.hub)
    }

    #[cfg(test)]
    pub(super) fn accepting(&self) -> Accepting {
        self.hub.accepting().as_ref().clone()
    }

    #[cfg(test)]
    pub(super) fn legs(&self) -> Vec<Arc<super::leg::Leg>> {
        self.hub.legs()
    }

    /// Who decides who may come: to block networks, and to change what it was started with.
    pub fn guard(&self) -> &Arc<Guard> {
        &self.hub.guard
    }

    /// For those who look after it while it runs.
    pub fn handle(&self) -> RelayHandle {
        RelayHandle::new(self.hub.clone())
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

    /// Other rules of who may have what, from now on and for what is live: allocations of a device that is no longer
    /// welcome, or of an issuer that is gone, end with KILLED; a changed tier applies at once. Takes time in
    /// proportion to the number of allocations.
    pub fn set_admission(&self, admission: Admission) {
        self.hub.set_admission(admission);
    }

    /// Other limits, from now on and for what is live: see [`LiveLimits`]. No session ends for it, but those that the
    /// shorter timeouts make due. Takes time in proportion to the number of allocations.
    ///
    /// # Errors
    /// When the idle timeout is more than QUIC can express: then nothing has changed.
    pub fn set_limits(&self, limits: LiveLimits) -> Result<(), StartError> {
        let LiveLimits { rules, global_bytes_per_sec, max_unauthenticated } = limits;
        // A quiet client speaks as often as it was told to: that is no silence.
        let spoken = self.transport.keepalive.unwrap_or_default().saturating_mul(2);
        let idle_timeout = rules.idle_timeout.max(spoken);
        let transport = Transport { idle_timeout, ..self.transport };
        let before = self.hub.accepting().with.clone();
        let mut with = quinn::ServerConfig::clone(&before);
        with.transport_config(Arc::new(transport.config()?));
        let accepting = Accepting { max_unauthenticated, idle_timeout, with: Arc::new(with) };
        self.hub.set_limits(accepting, rules, global_bytes_per_sec);
        Ok(())
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
        let mut shards = std::mem::take(&mut self.shards);
        for shard in &mut shards {
            shard.ask_to_stop(LAST_WORDS);
        }
        // Joining a thread blocks; the caller's runtime may have other things to do.
        let joined = tokio::task::spawn_blocking(|| shards.into_iter().for_each(RunningShard::join)).await;
        if joined.is_err() {
            tracing::error!("the shards could not be stopped");
        }
    }

    /// By which others see whether its shards come round.
    pub fn pulse(&self) -> Pulse {
        let rounds_ms = self.shards.iter().map(RunningShard::round_ms).collect();
        Pulse { clock: self.hub.clock, rounds_ms }
    }

    /// Keeps one shard from coming round.
    #[cfg(test)]
    pub(crate) fn hold_up(&self) -> Option<impl Drop + '_> {
        self.shards.last().map(RunningShard::hold_up)
    }

    /// Waits until a shard ends that was not asked to: then part of the clients is lost, and nothing brings them
    /// back but a new start. Cancel-safe; for one caller.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }
}

/// Whether the shards of a [`RelayServer`] come round; clones are the same.
#[derive(Debug, Clone)]
pub struct Pulse {
    clock: Clock,
    rounds_ms: Arc<[Arc<AtomicU64>]>,
}

impl Pulse {
    /// How long ago the slowest shard last came round. Each does four times a second, whatever else it has to do: one
    /// that has not for seconds is stuck, and its clients with it.
    pub fn silent_for(&self) -> Duration {
        let now = self.clock.mono();
        let rounds = self.rounds_ms.iter().map(|ms| Duration::from_millis(ms.load(Ordering::Relaxed)));
        rounds.map(|round| now.saturating_sub(round)).max().unwrap_or_default()
    }
}

impl Drop for RelayServer {
    fn drop(&mut self) {
        for task in self.timekeeper.iter().chain(&self.sharer) {
            task.abort();
        }
        for shard in &mut self.shards {
            shard.ask_to_stop(Duration::ZERO);
        }
        self.shards.drain(..).for_each(RunningShard::join);
    }
}
