//! A shard: one thread with its own runtime, endpoint and sessions.
//!
//! Nothing on the packet path leaves the thread that owns the connection, but for handing a datagram to a leg
//! that another shard owns.

use std::{
    collections::HashMap,
    net::UdpSocket,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use quinn::{Endpoint, EndpointConfig, TokioRuntime, VarInt};
use quinn_proto::crypto::HmacKey;
use tokio::{sync::oneshot, task::JoinSet, time::MissedTickBehavior};

use super::{
    StartError,
    hub::Hub,
    leg::Leg,
    session::{self, Terms},
    tls::ShardConnectionIds,
};
use crate::{table::ConnId, wire::CloseCode};

/// How often to look for what quinn has no events for: migration, path limits, silence.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// What a shard's sessions share.
pub(super) struct Shard {
    pub terms: Terms,
    unauthenticated: Arc<AtomicUsize>,
    legs: Mutex<HashMap<ConnId, Arc<Leg>>>,
}

impl Shard {
    pub fn new(terms: Terms) -> Self {
        Self { terms, unauthenticated: Arc::default(), legs: Mutex::default() }
    }

    /// A place among the connections without a token; `None` when all are taken.
    pub fn unauthenticated(&self) -> Option<Unauthenticated> {
        let place = Unauthenticated(self.unauthenticated.clone());
        let taken = self.unauthenticated.fetch_add(1, Ordering::Relaxed);
        (taken < self.terms.max_unauthenticated).then_some(place)
    }

    /// Has the sweep look at this leg for as long as the answer lives.
    pub fn watch(self: &Arc<Self>, leg: Arc<Leg>) -> Watch {
        let id = leg.id;
        self.legs().insert(id, leg);
        Watch { shard: self.clone(), id }
    }

    fn legs(&self) -> std::sync::MutexGuard<'_, HashMap<ConnId, Arc<Leg>>> {
        self.legs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sweep(&self, hub: &Hub) {
        let mono = hub.clock.mono();
        for leg in self.legs().values() {
            let observed = leg.observe(mono, &hub.metrics);
            if let Some(address) = observed.migrated_to {
                hub.metrics.migrations.inc();
                tracing::info!(allocation = %leg.handle, connection = leg.id.0, "client migrated");
                tracing::debug!(connection = leg.id.0, %address, "client migrated");
            }
            if observed.silent_for >= self.terms.idle_timeout {
                leg.close(CloseCode::Idle, "nothing was heard from this connection for the idle timeout");
            }
        }
    }
}

/// A place among the connections without a token.
pub(super) struct Unauthenticated(Arc<AtomicUsize>);

impl Drop for Unauthenticated {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Keeps a leg under the sweep's eyes.
pub(super) struct Watch {
    shard: Arc<Shard>,
    id: ConnId,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shard.legs().remove(&self.id);
    }
}

/// A running shard's thread.
pub(super) struct RunningShard {
    /// Sent once: stop, and take at most this long; at once and without a goodbye when that is nothing.
    stop: oneshot::Sender<Duration>,
    thread: JoinHandle<()>,
}

impl RunningShard {
    /// Starts shard `number` on `socket`, which must be non-blocking.
    pub fn start(
        number: u8,
        socket: UdpSocket,
        config: quinn::ServerConfig,
        reset_key: Arc<dyn HmacKey>,
        terms: Terms,
        hub: Arc<Hub>,
    ) -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint = {
            let _inside = runtime.enter();
            let mut endpoint_config = EndpointConfig::new(reset_key);
            endpoint_config
                .grease_quic_bit(false)
                .cid_generator(move || Box::new(ShardConnectionIds { shard: number }));
            Endpoint::new(endpoint_config, Some(config), socket, Arc::new(TokioRuntime))?
        };
        let (stop, stopped) = oneshot::channel();
        let shard = Arc::new(Shard::new(terms));
        let thread = std::thread::Builder::new().name(format!("zrc-shard-{number}")).spawn(move || {
            runtime.block_on(run(endpoint, shard, hub, stopped));
            // Dropped here: tasks that are left end with their runtime.
        })?;
        Ok(Self { stop, thread })
    }

    /// Closes all that is left and ends the thread. Blocks for at most about `deadline`.
    pub fn stop(self, deadline: Duration) {
        // A shard that has ended by itself has nothing to stop.
        let _ = self.stop.send(deadline);
        if self.thread.join().is_err() {
            tracing::error!("a shard ended by a panic");
        }
    }
}

async fn run(endpoint: Endpoint, shard: Arc<Shard>, hub: Arc<Hub>, mut stopped: oneshot::Receiver<Duration>) {
    let mut sessions = JoinSet::new();
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let deadline = loop {
        tokio::select! {
            deadline = &mut stopped => break deadline.unwrap_or_default(),
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => {
                    sessions.spawn(session::serve(hub.clone(), shard.clone(), incoming));
                }
                None => {
                    tracing::error!("the socket is gone");
                    break Duration::ZERO;
                }
            },
            Some(ended) = sessions.join_next() => if let Err(error) = ended && error.is_panic() {
                hub.metrics.session_panics.inc();
                tracing::error!("a session panicked; its connection was closed, the others go on");
            },
            _ = sweep.tick() => shard.sweep(&hub),
        }
    };
    if deadline.is_zero() {
        // No goodbye: as if killed.
        return;
    }
    endpoint.close(VarInt::from_u32(u32::from(CloseCode::Draining.number())), b"the relay stops");
    // What does not leave in time is left to its own timeout.
    let _ = tokio::time::timeout(deadline, endpoint.wait_idle()).await;
}
