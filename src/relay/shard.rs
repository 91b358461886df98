//! A shard: one thread with its own runtime, endpoint and sessions.
//!
//! Nothing on the packet path leaves the thread that owns the connection, but for handing a datagram to a leg
//! that another shard owns.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use prometheus::IntGauge;
use quinn::{Endpoint, EndpointConfig, VarInt};
use quinn_proto::crypto::HmacKey;
use tokio::{
    sync::{Notify, oneshot},
    task::JoinSet,
    time::MissedTickBehavior,
};

use super::{
    StartError,
    auth::Rejection,
    entry,
    hub::Hub,
    leg::{Leg, MAX_CHALLENGES},
    session::{self, Terms},
    socket::{Mailboxes, ShardSocket},
    tls::ShardConnectionIds,
};
use crate::{
    guard::{SecurityEvent, Subject, Turned},
    quic::runtime::Runtime,
    table::ConnId,
    wire::CloseCode,
};

/// How often to look for what quinn has no events for: migration, path limits, silence.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// One look in so many at a connection where QUIC rests.
const QUIET_SWEEPS: u64 = 4;

/// The least packet that shows another address, and what answers it.
const LEAST_MOVE_BYTES: u64 = 30;
const CHALLENGE_BYTES: u64 = 1200;

/// What a shard's sessions share.
pub(super) struct Shard {
    pub number: u8,
    pub terms: Terms,
    /// Its connections now.
    pub connections: IntGauge,
    /// Of all shards.
    unauthenticated: Arc<AtomicUsize>,
    legs: Mutex<HashMap<ConnId, Arc<Leg>>>,
    /// What the lists were when all legs were last compared with them.
    list_changes: AtomicU64,
    sweeps: AtomicU64,
    /// When its thread last came round, in monotonic milliseconds; read by those who see whether it is alive.
    round_ms: Arc<AtomicU64>,
}

impl Shard {
    pub fn new(number: u8, terms: Terms, connections: IntGauge, unauthenticated: Arc<AtomicUsize>) -> Self {
        Self {
            number,
            terms,
            connections,
            unauthenticated,
            legs: Mutex::default(),
            list_changes: AtomicU64::new(0),
            sweeps: AtomicU64::new(0),
            round_ms: Arc::default(),
        }
    }

    /// A place among the connections without a token; `None` when all are taken.
    pub fn unauthenticated(&self, hub: &Hub) -> Option<Unauthenticated> {
        let taken = self.unauthenticated.fetch_add(1, Ordering::Relaxed);
        let max = hub.accepting().max_unauthenticated;
        let place =
            Unauthenticated { all: self.unauthenticated.clone(), among_many: taken >= max.div_ceil(2) };
        (taken < max).then_some(place)
    }

    /// Has the sweep look at this leg for as long as the answer lives.
    pub fn watch(self: &Arc<Self>, hub: &Hub, leg: Arc<Leg>) -> Watch {
        let id = leg.id;
        self.legs().insert(id, leg.clone());
        // Its address may have been blocked since it was let in, and the sweep has looked at the others already.
        if let Err(turned) = hub.guard.check(leg.connection.remote_address().ip(), hub.clock.mono()) {
            turn_out(hub, &leg, turned);
        }
        Watch { shard: self.clone(), id }
    }

    fn legs(&self) -> std::sync::MutexGuard<'_, HashMap<ConnId, Arc<Leg>>> {
        self.legs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sweep(&self, hub: &Hub) {
        let now = hub.clock.now();
        let mono = now.mono;
        hub.guard.tick(mono);
        hub.unproven.tidy(mono);
        let changes = hub.guard.list_changes();
        let lists_changed = self.list_changes.swap(changes, Ordering::Relaxed) != changes;
        let idle_timeout = hub.accepting().idle_timeout;
        let round = self.sweeps.fetch_add(1, Ordering::Relaxed);
        for leg in self.legs().values() {
            leg.tell_notices(now);
            // A look costs some microseconds, for it finds a connection in cold memory: those that rest have one a
            // second, each in its turn.
            if leg.is_quiet() && !lists_changed && leg.id.0.wrapping_add(round) % QUIET_SWEEPS != 0 {
                continue;
            }
            let observed = leg.observe(mono, &hub.metrics);
            if let Some(address) = observed.migrated_to {
                hub.metrics.migrations.inc();
                tracing::info!(allocation = %leg.handle, connection = leg.id.0, "client migrated");
                tracing::debug!(connection = leg.id.0, %address, "client migrated");
            }
            let may_stay = match observed.migrated_to {
                Some(address) => hub.guard.moved(observed.was_at.ip(), address.ip(), mono),
                None if lists_changed => hub.guard.check(observed.was_at.ip(), mono),
                None => Ok(()),
            };
            if let Err(turned) = may_stay {
                turn_out(hub, leg, turned);
            }
            if observed.challenges > MAX_CHALLENGES && leg.close(CloseCode::RateLimited, RESTLESS) {
                report_restless(hub, observed.challenges, Subject::NOBODY.on(leg.id).of(leg.handle));
            }
            if observed.silent_for >= idle_timeout {
                leg.close(CloseCode::Idle, "nothing was heard from this connection for the idle timeout");
            }
        }
        self.came_round(mono);
    }

    /// Once more the thread has done all that it had to do.
    fn came_round(&self, mono: Duration) {
        self.round_ms.store(u64::try_from(mono.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// What a client is told whose address changes all the time.
pub(super) const RESTLESS: &str = "this connection changes its address too often";

/// Reports a connection that has had so many addresses challenged. Its address is left out: it is a mere claim.
pub(super) fn report_restless(hub: &Hub, challenges: u64, of: Subject) {
    let event = SecurityEvent::Amplification {
        received_bytes: challenges * LEAST_MOVE_BYTES,
        wanted_bytes: challenges * CHALLENGE_BYTES,
    };
    hub.security.emit(event, of);
}

/// Closes a connection that may not be where it is. Where that is may be a mere claim, so it is not reported.
fn turn_out(hub: &Hub, leg: &Leg, turned: Turned) {
    hub.guard.report(turned, Subject::NOBODY.on(leg.id).of(leg.handle));
    let Rejection { code, message, .. } = turned.into();
    leg.close(code, message);
}

/// A place among the connections without a token.
pub(super) struct Unauthenticated {
    all: Arc<AtomicUsize>,
    /// Half of the places were taken before.
    pub among_many: bool,
}

impl Drop for Unauthenticated {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
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

/// What all shards are started with.
pub(super) struct Common {
    pub shards: u8,
    pub server_config: quinn::ServerConfig,
    pub reset_key: Arc<dyn HmacKey>,
    pub mailboxes: Arc<Mailboxes>,
    /// Notified when a shard ends that was not asked to.
    pub lost: Arc<Notify>,
}

/// A running shard's thread.
pub(super) struct RunningShard {
    /// Sent once: stop, and take at most this long; at once and without a goodbye when that is nothing.
    stop: Option<oneshot::Sender<Duration>>,
    thread: JoinHandle<()>,
    shard: Arc<Shard>,
}

/// Says that the shard has ended, unless that was wanted.
struct Alarm {
    lost: Arc<Notify>,
    wanted: bool,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if !self.wanted {
            self.lost.notify_one();
        }
    }
}

impl RunningShard {
    /// Starts a shard on its socket, which must be non-blocking.
    pub fn start(
        shard: Shard,
        socket: std::net::UdpSocket,
        common: &Common,
        hub: Arc<Hub>,
    ) -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint = {
            let _inside = runtime.enter();
            let (number, shards) = (shard.number, common.shards);
            let mut endpoint_config = EndpointConfig::new(common.reset_key.clone());
            endpoint_config
                .grease_quic_bit(false)
                .cid_generator(move || Box::new(ShardConnectionIds { shard: number, shards }));
            let socket = ShardSocket::new(number, socket, common.mailboxes.clone(), hub.clone())?;
            Endpoint::new_with_abstract_socket(
                endpoint_config,
                Some(common.server_config.clone()),
                Arc::new(socket),
                Arc::new(Runtime),
            )?
        };
        let (stop, stopped) = oneshot::channel();
        let name = format!("zrc-shard-{}", shard.number);
        shard.came_round(hub.clock.mono());
        let shard = Arc::new(shard);
        let its_shard = shard.clone();
        let lost = common.lost.clone();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let mut alarm = Alarm { lost, wanted: false };
            alarm.wanted = runtime.block_on(run(endpoint, its_shard, hub, stopped));
            // Dropped here: tasks that are left end with their runtime.
        })?;
        Ok(Self { stop: Some(stop), thread, shard })
    }

    /// When its thread last came round, in monotonic milliseconds: it does four times a second.
    pub fn round_ms(&self) -> Arc<AtomicU64> {
        self.shard.round_ms.clone()
    }

    /// Keeps its thread from coming round.
    #[cfg(test)]
    pub fn hold_up(&self) -> impl Drop + '_ {
        self.shard.legs()
    }

    /// Has it close all that is left, within about `deadline`, and end.
    pub fn ask_to_stop(&mut self, deadline: Duration) {
        // A shard that has ended by itself has nothing to stop.
        let _ = self.stop.take().map(|stop| stop.send(deadline));
    }

    /// Blocks until the thread, which has been asked to, has ended.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("a shard ended by a panic");
        }
    }
}

/// Whether it ended because it was asked to.
async fn run(
    endpoint: Endpoint,
    shard: Arc<Shard>,
    hub: Arc<Hub>,
    mut stopped: oneshot::Receiver<Duration>,
) -> bool {
    let mut sessions = JoinSet::new();
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let deadline = loop {
        tokio::select! {
            deadline = &mut stopped => break deadline.unwrap_or_default(),
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => {
                    if let Some(caller) = entry::screen(&hub, &shard, incoming) {
                        let session = session::serve(hub.clone(), shard.clone(), caller);
                        // A collector has what is logged in it, from the handshake to the end.
                        #[cfg(feature = "otel")]
                        let session = tracing::Instrument::instrument(
                            session,
                            tracing::info_span!("session", shard = shard.number),
                        );
                        sessions.spawn(session);
                    }
                }
                None => {
                    tracing::error!(shard = shard.number, "the shard's socket is gone");
                    return false;
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
        return true;
    }
    endpoint.close(VarInt::from_u32(u32::from(CloseCode::Draining.number())), b"the relay stops");
    // What does not leave in time is left to its own timeout.
    let _ = tokio::time::timeout(deadline, endpoint.wait_idle()).await;
    true
}
