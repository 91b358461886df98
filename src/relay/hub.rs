//! The table behind one mutex, and the legs that its effects are carried out on.
//!
//! Taken when connections come, go, refresh or expire; never per packet. Effects are carried out while the
//! mutex is held (none of them waits), so that two shards never see them in different orders.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use tokio::sync::{Notify, broadcast};

use super::{
    auth::{Admission, Rejection},
    channel::Channels,
    latency::Reads,
    leg::{Leg, Origin},
    unproven::Unproven,
};
use crate::{
    clock::Clock,
    guard::{Guard, Limit, SecurityEvent, SecurityEvents, Subject},
    metrics::Metrics,
    table::{ConnId, Effect, Joined, Lifecycle, Meter, Now, Rules, Summary, Table},
    wire::{Claims, CloseCode, Handle, RelayId, Role, VerifiedTokens},
};

/// The wall clock may be set while the monotonic one runs on; look at expiries at least this often.
const MAX_TIMER: Duration = Duration::from_secs(1);

/// Both sides of an allocation come within seconds of each other, or come back together after a break.
const MAX_VERIFIED_TOKENS: usize = 1024;

/// Comings and goings that a watcher may be behind: some 100 bytes each, and all allocations of a usual relay at once.
const LIFECYCLE_EVENTS: usize = 2048;

/// How many allocations are described while the table waits: some hundred microseconds.
const DESCRIBED_AT_ONCE: usize = 1024;

/// How connections are accepted and kept, now.
#[derive(Debug, Clone)]
pub(super) struct Accepting {
    /// Connections of all shards that may be without an accepted token at once.
    pub max_unauthenticated: usize,
    /// How long a connection may be silent.
    pub idle_timeout: Duration,
    /// What a connection is accepted with.
    pub with: Arc<quinn::ServerConfig>,
}

/// What all sessions share.
pub(super) struct Hub {
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    pub security: SecurityEvents,
    pub guard: Arc<Guard>,
    pub unproven: Arc<Unproven>,
    pub relay_id: RelayId,
    pub verified: VerifiedTokens,
    pub channels: Channels,
    /// When the shards read their sockets.
    pub reads: Reads,
    /// Changed under the table's mutex, so that whoever joins is judged by it or with the others.
    admission: ArcSwap<Admission>,
    accepting: ArcSwap<Accepting>,
    table: Mutex<Table>,
    /// Wakes whoever divides the limit of all allocations together, when there is another one.
    pub shared_anew: Notify,
    legs: DashMap<ConnId, Arc<Leg>>,
    next_connection: AtomicU64,
    /// Refuses what is new: for good, or until somebody takes it back.
    stopping: AtomicBool,
    draining: AtomicBool,
    /// Who watches allocations come and go.
    lifecycle: broadcast::Sender<Lifecycle>,
    /// When the timekeeper will next look by itself, monotonic nanoseconds; changed under the table's mutex.
    alarm_nanos: AtomicU64,
    /// Wakes the timekeeper when something is due earlier than that.
    sooner: Notify,
    /// Wakes whoever waits for the last leg to go.
    emptied: Notify,
}

impl Hub {
    #[allow(
        clippy::too_many_arguments,
        reason = "each is another thing that all sessions share, and there is one caller"
    )]
    pub fn new(
        clock: Clock,
        metrics: Arc<Metrics>,
        guard: Arc<Guard>,
        relay_id: RelayId,
        admission: Admission,
        accepting: Accepting,
        table: Table,
        channels: Channels,
    ) -> Self {
        Self {
            clock,
            metrics,
            security: guard.security().clone(),
            guard,
            unproven: Arc::default(),
            relay_id,
            verified: VerifiedTokens::new(MAX_VERIFIED_TOKENS),
            reads: Reads::new(channels.shards()),
            channels,
            admission: ArcSwap::from_pointee(admission),
            accepting: ArcSwap::from_pointee(accepting),
            table: Mutex::new(table),
            shared_anew: Notify::new(),
            legs: DashMap::new(),
            next_connection: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            lifecycle: broadcast::Sender::new(LIFECYCLE_EVENTS),
            alarm_nanos: AtomicU64::new(u64::MAX),
            sooner: Notify::new(),
            emptied: Notify::new(),
        }
    }

    /// A name for a connection, never used before.
    pub fn next_connection(&self) -> ConnId {
        ConnId(self.next_connection.fetch_add(1, Ordering::Relaxed))
    }

    /// Who may have an allocation, now.
    pub fn admission(&self) -> Arc<Admission> {
        self.admission.load_full()
    }

    /// Judges what is live by other rules of who may have what, and from now on whoever comes.
    pub fn set_admission(&self, admission: Admission) {
        let admission = Arc::new(admission);
        let before = self.admission.load_full();
        for device in admission.shut_out_since(&before) {
            let name = admission.names.get(&device).or_else(|| before.names.get(&device)).cloned();
            self.security.emit(SecurityEvent::DeviceRevoked { device, name }, Subject::NOBODY);
        }
        let table = self.lock();
        self.admission.store(admission.clone());
        self.change(table, |table, now, effects| {
            table.reconsider(now, |identity, basis| admission.judge(identity, basis), effects);
        });
    }

    /// What is in force now. For what happens once a connection, not once a packet.
    pub fn accepting(&self) -> arc_swap::Guard<Arc<Accepting>> {
        self.accepting.load()
    }

    /// Puts other limits in force, also for what is live.
    pub fn set_limits(&self, accepting: Accepting, rules: Rules, global_bytes_per_sec: Option<u64>) {
        self.accepting.store(Arc::new(accepting));
        self.metrics.show_max_allocations(rules.max_allocations);
        self.change(self.lock(), |table, now, effects| {
            table.set_rules(now, rules, effects);
            // Under the mutex: an allocation that is made now shares it from the beginning.
            table.set_global_limit(self.clock.nanos(), global_bytes_per_sec);
        });
        self.shared_anew.notify_one();
    }

    /// Brings a connection into its allocation. Token and proof have been checked.
    ///
    /// # Errors
    /// The typed refusal; nothing was created.
    pub fn join(
        &self,
        connection: &quinn::Connection,
        id: ConnId,
        origin: Origin,
        role: Role,
        claims: &Claims,
    ) -> Result<(Arc<Leg>, Joined), Rejection> {
        let mut table = self.lock();
        // Under the mutex: what joins before the drain is ended by it, what comes after is refused here.
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Rejection::new(CloseCode::Draining, "this relay is about to stop"));
        }
        if self.draining.load(Ordering::Relaxed) {
            return Err(Rejection::new(CloseCode::Draining, "this relay takes nobody new; try another one"));
        }
        // Again, under the mutex: the device may have been revoked while it proved its key.
        let tier = self.admission.load().tier_of(&claims.identity, &claims.into())?;
        let now = self.clock.now();
        let mut effects = Vec::new();
        let joined = match table.join(now, id, role, claims, &tier, &mut effects) {
            Ok(joined) => joined,
            Err(refusal) => {
                // What was due has happened all the same.
                self.carry_out(table, now, effects);
                return Err(refusal.into());
            }
        };
        let meter = joined.meter.clone();
        let leg = Arc::new(Leg::new(id, role, joined.handle, connection.clone(), origin, meter, now.mono));
        leg.notices.expires(joined.grant.expires_at_unix, now.unix);
        self.legs.insert(id, leg.clone());
        if joined.created {
            self.metrics.allocations_created.inc();
            self.metrics.allocations.inc();
            tracing::info!(allocation = %joined.handle, "allocation created");
            self.tell(|| Lifecycle::Created {
                at: now.unix,
                handle: joined.handle,
                allocation_id: claims.identity.allocation_id,
                device_id: claims.identity.device_id,
                by: role,
            });
        }
        self.carry_out(table, now, effects);
        Ok((leg, joined))
    }

    /// A connection is over, for whatever reason. Idempotent.
    pub fn leave(&self, id: ConnId) {
        let table = self.lock();
        if let Some((_, leg)) = self.legs.remove(&id) {
            // Two legs of a pair hold each other; this lets go.
            leg.set_link(None);
            if self.channels.close(&leg) {
                self.metrics.raw_channels.dec();
            }
        }
        self.change(table, |table, now, effects| table.leave(now, id, effects));
        if self.legs.is_empty() {
            self.emptied.notify_waiters();
        }
    }

    /// A connection is about to be closed: traffic goes past it from now on. [`Hub::leave`] follows.
    pub fn depart(&self, id: ConnId) {
        self.change(self.lock(), |table, now, effects| table.leave(now, id, effects));
    }

    /// Replaces limits and expiry by those of a newer token.
    ///
    /// # Errors
    /// The typed refusal; nothing was changed.
    pub fn refresh(&self, id: ConnId, claims: &Claims) -> Result<(), Rejection> {
        let table = self.lock();
        let tier = self.admission.load().tier_of(&claims.identity, &claims.into())?;
        Ok(self.change(table, |table, now, effects| table.refresh(now, id, claims, &tier, effects))?)
    }

    /// Ends the allocation for both sides, for good.
    pub fn release(&self, id: ConnId) {
        self.change(self.lock(), |table, now, effects| table.release(now, id, effects));
    }

    /// Ends the allocation because what it wanted to send is more than is left of its quota.
    pub fn quota_exceeded(&self, leg: &Leg) {
        self.change(self.lock(), |table, now, effects| table.quota_exceeded(now, leg.id, effects));
    }

    /// The live allocations, in order of their handles.
    ///
    /// Not of one moment: those that sessions need the table for are not kept waiting for all of it.
    pub fn allocations(&self) -> Vec<Summary> {
        let mut all: Vec<Summary> = self.lock().summaries().take(DESCRIBED_AT_ONCE).collect();
        while all.len().is_multiple_of(DESCRIBED_AT_ONCE)
            && let Some(last) = all.last().map(|last| last.handle)
        {
            let before = all.len();
            all.extend(self.lock().summaries_after(last).take(DESCRIBED_AT_ONCE));
            if all.len() == before {
                break;
            }
        }
        all
    }

    /// One live allocation.
    pub fn allocation(&self, handle: Handle) -> Option<Summary> {
        self.lock().summary(handle)
    }

    /// The legs of an allocation, the oldest connection first. Takes time in proportion to all legs.
    pub fn legs_of(&self, handle: Handle) -> Vec<Arc<Leg>> {
        let mut legs: Vec<_> =
            self.legs.iter().filter(|leg| leg.handle == handle).map(|leg| leg.clone()).collect();
        legs.sort_by_key(|leg| leg.id);
        legs
    }

    /// Whoever comes from now on is refused with DRAINING, or welcome again.
    pub fn set_draining(&self, draining: bool) {
        // Under the mutex: when this returns, nobody joins who was let in before.
        let _table = self.lock();
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// Ends all allocations with DRAINING.
    pub fn end_all(&self, message: &str) {
        self.change(self.lock(), |table, now, effects| {
            table.end_all(now, CloseCode::Draining, message, effects);
        });
    }

    /// Hears of allocations that come and go, from now on.
    pub fn lifecycle(&self) -> broadcast::Receiver<Lifecycle> {
        self.lifecycle.subscribe()
    }

    fn tell(&self, what: impl FnOnce() -> Lifecycle) {
        if self.lifecycle.receiver_count() > 0 {
            // Fails when the last one has gone meanwhile.
            let _ = self.lifecycle.send(what());
        }
    }

    /// The meters of the live allocations: those that are there are forgotten, the list keeps its memory.
    pub fn meters(&self, meters: &mut Vec<Arc<Meter>>) {
        meters.clear();
        meters.extend(self.lock().meters().cloned());
    }

    /// Ends an allocation for good; answers whether there was one of that name.
    pub fn kill(&self, handle: Handle, reason: &str) -> bool {
        self.change(self.lock(), |table, now, effects| table.kill(now, handle, reason, effects))
    }

    /// Refuses what is new and ends what there is.
    pub fn drain(&self, message: &str) {
        let table = self.lock();
        self.stopping.store(true, Ordering::Relaxed);
        self.change(table, |table, now, effects| {
            table.end_all(now, CloseCode::Draining, message, effects);
        });
    }

    /// Waits until no leg is left.
    pub async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.legs.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// Carries out what time brings, until dropped.
    pub async fn keep_time(&self) {
        loop {
            let wait = self.change(self.lock(), |table, now, effects| {
                table.advance(now, effects);
                let wait = table
                    .deadline(now)
                    .map_or(MAX_TIMER, |deadline| deadline.saturating_sub(now.mono).min(MAX_TIMER));
                self.alarm_nanos.store(nanos(now.mono + wait), Ordering::Relaxed);
                wait
            });
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.sooner.notified() => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // A panic under the lock ends one session; the table's own invariants hold between its methods.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(
        &self,
        mut table: MutexGuard<'_, Table>,
        change: impl FnOnce(&mut Table, Now, &mut Vec<Effect>) -> T,
    ) -> T {
        let now = self.clock.now();
        let mut effects = Vec::new();
        let result = change(&mut table, now, &mut effects);
        self.carry_out(table, now, effects);
        result
    }

    fn carry_out(&self, table: MutexGuard<'_, Table>, now: Now, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Link { conn, to } => {
                    let to = to.and_then(|to| self.leg(to));
                    if let Some(leg) = self.leg(conn) {
                        if let Some(to) = to.as_ref().filter(|to| leg.wants_channel && to.wants_channel) {
                            let opened = [&leg, to].into_iter().filter(|leg| self.channels.open(leg)).count();
                            self.metrics.raw_channels.add(opened as i64);
                        }
                        leg.set_link(to);
                    }
                }
                Effect::Refreshed { conn, grant } => {
                    if let Some(leg) = self.leg(conn) {
                        leg.fit_to_limits();
                        leg.notices.expires(grant.expires_at_unix, now.unix);
                        leg.tell(|outbox| outbox.refreshed = Some(grant));
                        // Another quota has other marks, and what streams carry may pass them before the next sweep.
                        leg.tell_usage();
                    }
                }
                Effect::Close { conn, code, message } => {
                    if let Some(leg) = self.leg(conn) {
                        leg.set_link(None);
                        leg.close(code, message);
                    }
                }
                Effect::Ended(ended) => {
                    self.metrics.allocation_ended(ended.code);
                    self.metrics.allocation_used(ended.lifetime, ended.bytes_used, ended.quota_bytes);
                    if ended.code == CloseCode::QuotaExceeded {
                        let event = SecurityEvent::LimitHit { limit: Limit::Quota };
                        self.security.emit(event, Subject::NOBODY.of(ended.handle));
                    }
                    tracing::info!(
                        allocation = %ended.handle,
                        code = ended.code.name(),
                        bytes_used = ended.bytes_used,
                        lifetime_ms = u64::try_from(ended.lifetime.as_millis()).unwrap_or(u64::MAX),
                        "allocation ended"
                    );
                    self.tell(|| Lifecycle::Ended { at: now.unix, ended });
                }
            }
        }
        if table
            .deadline(now)
            .is_some_and(|deadline| nanos(deadline) < self.alarm_nanos.load(Ordering::Relaxed))
        {
            self.sooner.notify_one();
        }
    }

    #[cfg(test)]
    pub fn legs(&self) -> Vec<Arc<Leg>> {
        self.legs.iter().map(|leg| leg.clone()).collect()
    }

    fn leg(&self, id: ConnId) -> Option<Arc<Leg>> {
        self.legs.get(&id).map(|leg| leg.clone())
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
