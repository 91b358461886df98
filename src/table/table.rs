//! The state machine over all allocations.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use super::{
    Basis, ConnId, Counts, Effect, Ended, Joined, Limits, Meter, Now, Refusal, Rules, Stage, Tier, Verdict,
    allocation::{Allocation, Sides},
    fair::Pool,
    ledger::{Entry, Ledger, Past},
};
use crate::wire::{AllocationId, Claims, CloseCode, DeviceId, Handle, Identity, PeerId, Role, Signer};

/// A wall clock can be set, so no end that depends on it is awaited for longer than this without another look.
const WALL_CLOCK_CHECK: Duration = Duration::from_secs(60);
/// An administrator's reason is cut after so many characters: it travels in a close frame, which is one packet.
const MAX_REASON_CHARS: usize = 200;

/// An allocation's place in the table; never used twice. What orders the table's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key(u64);

/// All allocations of a relay and all that it remembers of past ones.
///
/// Memory is bounded by [`Rules`]: `max_ledger` identities, of which `max_allocations` are live with at most
/// `connections_per_role` connections a side. No input takes time in proportion to the table's size, except
/// [`Table::end_all`], [`Table::reconsider`], [`Table::set_rules`] and [`Table::set_global_limit`].
#[derive(Debug)]
pub struct Table {
    rules: Rules,
    /// What all allocations share, where they do or may.
    pool: Option<Arc<Pool>>,
    next_key: u64,
    allocations: BTreeMap<Key, Allocation>,
    ledger: Ledger,
    /// Who has joined what.
    connections: HashMap<ConnId, (Key, Role)>,
    /// For people who name an allocation. Not how a join finds it: a handle is only a hash.
    handles: BTreeSet<(Handle, Key)>,
    /// How many allocations a device has; no entry for none.
    per_device: HashMap<(Signer, DeviceId), u32>,
    /// When each allocation ends at the latest by the monotonic clock.
    due: BTreeSet<(Duration, Key)>,
    /// The unix second in which each allocation's token expires.
    expiries: BTreeSet<(u64, Key)>,
}

/// What an administrator sees of an allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Its public name.
    pub handle: Handle,
    /// As in its token.
    pub allocation_id: AllocationId,
    /// Whose it is.
    pub device_id: DeviceId,
    /// The other side's key.
    pub peer_id: PeerId,
    /// The tier that the token in force names; `None` for its signer's own.
    pub tier: Option<Arc<str>>,
    /// How far it has come.
    pub stage: Stage,
    /// By [`Role::index`].
    pub connections: [usize; 2],
    /// What each side has sent, by [`Role::index`].
    pub counts: [Counts; 2],
    /// Charged over the whole life of its identity.
    pub bytes_used: u64,
    /// When something passed last, in nanoseconds of the monotonic clock; 0 for never.
    pub last_activity_nanos: u64,
    /// When it came into being.
    pub created: Now,
    /// When its token expires, unix seconds.
    pub expires_at_unix: u64,
    /// What is in force.
    pub limits: Limits,
}

impl Table {
    /// An empty table.
    pub fn new(rules: Rules) -> Self {
        Self::sharing(rules, None)
    }

    /// An empty table whose allocations share this pool's limit, while it has one.
    pub fn sharing(rules: Rules, pool: Option<Arc<Pool>>) -> Self {
        Self {
            rules,
            pool,
            next_key: 0,
            allocations: BTreeMap::new(),
            ledger: Ledger::default(),
            connections: HashMap::new(),
            handles: BTreeSet::new(),
            per_device: HashMap::new(),
            due: BTreeSet::new(),
            expiries: BTreeSet::new(),
        }
    }

    /// A connection that has shown a valid token and proved its role's key joins the token's allocation, which
    /// begins with it if it is not live.
    ///
    /// Limits and expiry of a live allocation stay as they are, whatever this token says: only
    /// [`Table::refresh`] changes them.
    ///
    /// # Errors
    /// The effects of what was due are there also then. In this order: [`Refusal::AlreadyJoined`], [`Refusal::Expired`], [`Refusal::Ended`],
    /// [`Refusal::AllocationsFull`], [`Refusal::DeviceFull`], [`Refusal::LedgerFull`].
    pub fn join(
        &mut self,
        now: Now,
        conn: ConnId,
        role: Role,
        claims: &Claims,
        tier: &Tier,
        effects: &mut Vec<Effect>,
    ) -> Result<Joined, Refusal> {
        self.advance(now, effects);
        if self.connections.contains_key(&conn) {
            return Err(Refusal::AlreadyJoined);
        }
        if has_passed(claims.expires_at_unix, now) {
            return Err(Refusal::Expired);
        }
        self.note(claims);
        let (key, created) = match self.ledger.get(&claims.identity) {
            Some(Entry::Live(key)) => (*key, false),
            Some(Entry::Over { past: Past::Final(code), .. }) => return Err(Refusal::Ended(*code)),
            Some(Entry::Over { until_unix, past: Past::Used(meter) }) => {
                let (meter, latest_expires_at_unix) = (meter.clone(), *until_unix);
                self.check_room(&claims.identity, tier)?;
                meter.set_limits(Limits::granted(claims, tier));
                (self.create(now, conn, role, claims, meter, latest_expires_at_unix), true)
            }
            None => {
                self.check_room(&claims.identity, tier)?;
                if self.ledger.len() >= self.rules.max_ledger {
                    return Err(Refusal::LedgerFull);
                }
                let meter = Arc::new(Meter::sharing(Limits::granted(claims, tier), 0, self.pool.clone()));
                (self.create(now, conn, role, claims, meter, claims.expires_at_unix), true)
            }
        };
        let Some(allocation) = self.allocations.get_mut(&key) else { return Err(Refusal::Gone) };
        self.connections.insert(conn, (key, role));
        let other = allocation.sides.newest(role.other());
        if !created {
            let excess = allocation.sides.arrive(role, conn, self.rules.connections_per_role);
            if other.is_some() {
                effects.push(Effect::Link { conn, to: other });
            }
            link(allocation, role.other(), Some(conn), effects);
            let message: Arc<str> = "newer connections of this side took this one's place".into();
            for conn in excess {
                self.connections.remove(&conn);
                effects.push(Effect::Close { conn, code: CloseCode::Replaced, message: message.clone() });
            }
        }
        let joined = Joined {
            handle: allocation.handle,
            meter: allocation.meter.clone(),
            grant: allocation.grant(),
            peer_present: other.is_some(),
            created,
        };
        self.schedule(key);
        Ok(joined)
    }

    /// A connection is lost or closed, for whatever reason. Nothing happens when the table does not know it,
    /// so that the relay may say it of every connection that it has closed.
    pub fn leave(&mut self, now: Now, conn: ConnId, effects: &mut Vec<Effect>) {
        self.advance(now, effects);
        let Some((key, role)) = self.connections.remove(&conn) else { return };
        let Some(allocation) = self.allocations.get_mut(&key) else { return };
        let before = allocation.sides.newest(role);
        allocation.sides.depart(role, conn, now);
        let after = allocation.sides.newest(role);
        if before != after {
            link(allocation, role.other(), after, effects);
        }
        self.schedule(key);
    }

    /// A connection shows a newer token for its allocation: the token's limits and expiry are in force from now
    /// on, and all connections are told. The token in force shown again is answered to this connection alone.
    ///
    /// # Errors
    /// The effects of what was due are there also then. In this order: [`Refusal::Gone`], [`Refusal::Expired`], [`Refusal::OtherAllocation`],
    /// [`Refusal::NotLater`].
    pub fn refresh(
        &mut self,
        now: Now,
        conn: ConnId,
        claims: &Claims,
        tier: &Tier,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        self.advance(now, effects);
        let (key, _) = *self.connections.get(&conn).ok_or(Refusal::Gone)?;
        if has_passed(claims.expires_at_unix, now) {
            return Err(Refusal::Expired);
        }
        self.note(claims);
        let allocation = self.allocations.get_mut(&key).ok_or(Refusal::Gone)?;
        if *allocation.identity != claims.identity {
            return Err(Refusal::OtherAllocation);
        }
        if allocation.token_hash == claims.token_hash {
            effects.push(Effect::Refreshed { conn, grant: allocation.grant() });
            return Ok(());
        }
        if claims.expires_at_unix <= allocation.expires_at_unix {
            return Err(Refusal::NotLater);
        }
        allocation.meter.set_limits(Limits::granted(claims, tier));
        allocation.token_hash = claims.token_hash;
        allocation.basis = claims.into();
        self.expiries.remove(&(allocation.expires_at_unix, key));
        allocation.expires_at_unix = claims.expires_at_unix;
        self.expiries.insert((allocation.expires_at_unix, key));
        let grant = allocation.grant();
        for conn in Role::BOTH.into_iter().flat_map(|role| allocation.sides.connections(role)) {
            effects.push(Effect::Refreshed { conn, grant });
        }
        Ok(())
    }

    /// A connection ends its allocation for good, for both sides.
    pub fn release(&mut self, now: Now, conn: ConnId, effects: &mut Vec<Effect>) {
        self.end_of(now, conn, CloseCode::Released, effects);
    }

    /// The meter of this connection's allocation has answered [`Denied::Quota`](super::Denied::Quota): the
    /// allocation ends for good.
    pub fn quota_exceeded(&mut self, now: Now, conn: ConnId, effects: &mut Vec<Effect>) {
        self.end_of(now, conn, CloseCode::QuotaExceeded, effects);
    }

    /// An administrator ends an allocation for good. Answers whether there is one of that name; the reason is
    /// for both sides to read.
    pub fn kill(&mut self, now: Now, handle: Handle, reason: &str, effects: &mut Vec<Effect>) -> bool {
        self.advance(now, effects);
        let Some(key) = self.key_of(handle) else { return false };
        let reason: String = reason.chars().take(MAX_REASON_CHARS).collect();
        let message = match reason.trim() {
            "" => message(CloseCode::Killed).to_owned(),
            reason => format!("{}: {reason}", message(CloseCode::Killed)),
        };
        self.end(now, key, CloseCode::Killed, &message, effects);
        true
    }

    /// Who may have what has changed: every allocation is judged anew. Those that go on get what their tier now
    /// grants of what their token in force asks for, and hear of it when that is something else than before; its
    /// count of allocations and its lifetime are for newcomers.
    pub fn reconsider(
        &mut self,
        now: Now,
        judge: impl Fn(&Identity, &Basis) -> Verdict,
        effects: &mut Vec<Effect>,
    ) {
        self.advance(now, effects);
        let keys: Vec<Key> = self.allocations.keys().copied().collect();
        for key in keys {
            let Some(allocation) = self.allocations.get(&key) else { continue };
            let basis = &allocation.basis;
            match judge(&allocation.identity, basis) {
                Verdict::End(reason) => self.end(now, key, CloseCode::Killed, reason, effects),
                Verdict::Keep(tier) => {
                    let limits = Limits::capped(basis.bandwidth_bytes_per_sec, basis.quota_bytes, &tier);
                    if limits != allocation.meter.limits() {
                        allocation.meter.set_limits(limits);
                        let grant = allocation.grant();
                        let all = Role::BOTH.into_iter().flat_map(|role| allocation.sides.connections(role));
                        effects.extend(all.map(|conn| Effect::Refreshed { conn, grant }));
                    }
                }
            }
        }
    }

    /// Ends all allocations, with a code that the caller chooses: DRAINING when the relay is about to stop.
    pub fn end_all(&mut self, now: Now, code: CloseCode, message: &str, effects: &mut Vec<Effect>) {
        self.advance(now, effects);
        while let Some((key, _)) = self.allocations.first_key_value() {
            self.end(now, *key, code, message, effects);
        }
    }

    /// Does all that is due: ends what has expired or waited for too long, forgets what nobody can come back to.
    pub fn advance(&mut self, now: Now, effects: &mut Vec<Effect>) {
        while let Some((at_unix, key)) = self.expiries.first().copied()
            && has_passed(at_unix, now)
        {
            self.expiries.pop_first();
            self.end(now, key, CloseCode::Expired, message(CloseCode::Expired), effects);
        }
        while let Some((at, key)) = self.due.first().copied()
            && at <= now.mono
        {
            self.due.pop_first();
            if let Some(allocation) = self.allocations.get(&key) {
                let (_, code) = allocation.next_end(&self.rules);
                self.end(now, key, code, message(code), effects);
            }
        }
        self.ledger.forget(now.unix);
    }

    /// When [`Table::advance`] is due next, on the monotonic clock; `None` when nothing is waited for. What
    /// depends on the wall clock is converted by `now`, and looked at again within a minute, because that
    /// clock can be set.
    pub fn deadline(&self, now: Now) -> Option<Duration> {
        let expiry_unix = self.expiries.first().map(|(at_unix, _)| *at_unix);
        let wall_unix = expiry_unix.into_iter().chain(self.ledger.next_forget_unix()).min();
        let wall = wall_unix.map(|at_unix| {
            let ahead = Duration::from_secs(at_unix).saturating_sub(now.unix);
            now.mono.saturating_add(ahead.min(WALL_CLOCK_CHECK))
        });
        let due = self.due.first().map(|(at, _)| *at);
        due.into_iter().chain(wall).min()
    }

    /// How many allocations are live.
    pub fn len(&self) -> usize {
        self.allocations.len()
    }

    /// Whether no allocation is live.
    pub fn is_empty(&self) -> bool {
        self.allocations.is_empty()
    }

    /// How many connections have joined.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// How many identities are live or remembered; never more than [`Rules::max_ledger`].
    pub fn remembered(&self) -> usize {
        self.ledger.len()
    }

    /// The live allocations in order of their handles.
    pub fn summaries(&self) -> impl Iterator<Item = Summary> + '_ {
        self.handles.iter().filter_map(|(_, key)| self.allocations.get(key)).map(summarize)
    }

    /// The live allocations whose handles come after this one, in their order: a walk in parts.
    pub fn summaries_after(&self, handle: Handle) -> impl Iterator<Item = Summary> + '_ {
        let after = (Bound::Excluded((handle, Key(u64::MAX))), Bound::Unbounded);
        self.handles.range(after).filter_map(|(_, key)| self.allocations.get(key)).map(summarize)
    }

    /// The meters of the live allocations, in order of their coming.
    pub fn meters(&self) -> impl Iterator<Item = &Arc<Meter>> + '_ {
        self.allocations.values().map(|allocation| &allocation.meter)
    }

    /// One live allocation.
    pub fn summary(&self, handle: Handle) -> Option<Summary> {
        self.allocations.get(&self.key_of(handle)?).map(summarize)
    }

    /// What is in force.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Puts other rules in force, also for what is live. Smaller maximums end nothing, they only refuse more;
    /// shorter timeouts may be due at once.
    pub fn set_rules(&mut self, now: Now, rules: Rules, effects: &mut Vec<Effect>) {
        self.rules = rules;
        let keys: Vec<Key> = self.allocations.keys().copied().collect();
        for key in keys {
            self.schedule(key);
        }
        self.advance(now, effects);
    }

    /// Puts another limit of all allocations together in force, or none, also for what is live. Nothing happens to a
    /// table that was made without a pool.
    pub fn set_global_limit(&mut self, now_nanos: u64, limit_bytes_per_sec: Option<u64>) {
        let Some(pool) = &self.pool else { return };
        pool.set_limit(now_nanos, limit_bytes_per_sec);
        for meter in self.meters() {
            meter.follow_pool(now_nanos);
        }
    }

    /// A valid token was seen: what its identity has used or how it ended is not forgotten while that token
    /// lives. What was never live is not remembered for having been seen.
    fn note(&mut self, claims: &Claims) {
        match self.ledger.get(&claims.identity) {
            Some(Entry::Live(key)) => {
                if let Some(allocation) = self.allocations.get_mut(key) {
                    let latest = &mut allocation.latest_expires_at_unix;
                    *latest = claims.expires_at_unix.max(*latest);
                }
            }
            Some(Entry::Over { .. }) => self.ledger.keep_until(&claims.identity, claims.expires_at_unix),
            None => {}
        }
    }

    fn check_room(&self, identity: &Identity, tier: &Tier) -> Result<(), Refusal> {
        if self.allocations.len() >= self.rules.max_allocations {
            return Err(Refusal::AllocationsFull);
        }
        let has = self.per_device.get(&device_of(identity)).copied().unwrap_or(0);
        if tier.allocations_per_device.is_some_and(|most| has >= most) {
            return Err(Refusal::DeviceFull);
        }
        Ok(())
    }

    /// Brings an allocation into being, with its first connection.
    fn create(
        &mut self,
        now: Now,
        conn: ConnId,
        role: Role,
        claims: &Claims,
        meter: Arc<Meter>,
        latest_expires_at_unix: u64,
    ) -> Key {
        let key = Key(self.next_key);
        self.next_key += 1;
        let allocation = Allocation {
            identity: Arc::new(claims.identity.clone()),
            handle: claims.identity.handle(),
            meter,
            created: now,
            expires_at_unix: claims.expires_at_unix,
            latest_expires_at_unix,
            token_hash: claims.token_hash,
            basis: claims.into(),
            sides: Sides::new(role, conn),
            due: Duration::MAX,
        };
        self.ledger.begin(allocation.identity.clone(), key);
        self.handles.insert((allocation.handle, key));
        self.expiries.insert((allocation.expires_at_unix, key));
        *self.per_device.entry(device_of(&allocation.identity)).or_default() += 1;
        self.allocations.insert(key, allocation);
        key
    }

    /// Puts an allocation's monotonic deadline where it belongs, after whatever happened to it.
    fn schedule(&mut self, key: Key) {
        let Some(allocation) = self.allocations.get_mut(&key) else { return };
        let (due, _) = allocation.next_end(&self.rules);
        self.due.remove(&(allocation.due, key));
        self.due.insert((due, key));
        allocation.due = due;
    }

    fn end_of(&mut self, now: Now, conn: ConnId, code: CloseCode, effects: &mut Vec<Effect>) {
        self.advance(now, effects);
        if let Some((key, _)) = self.connections.get(&conn).copied() {
            self.end(now, key, code, message(code), effects);
        }
    }

    /// Ends an allocation and frees all of it but what the ledger must keep.
    fn end(&mut self, now: Now, key: Key, code: CloseCode, message: &str, effects: &mut Vec<Effect>) {
        let Some(allocation) = self.allocations.remove(&key) else { return };
        self.due.remove(&(allocation.due, key));
        self.expiries.remove(&(allocation.expires_at_unix, key));
        self.handles.remove(&(allocation.handle, key));
        let device = device_of(&allocation.identity);
        if let Some(has) = self.per_device.get_mut(&device) {
            *has -= 1;
            if *has == 0 {
                self.per_device.remove(&device);
            }
        }
        let message: Arc<str> = message.into();
        for conn in Role::BOTH.into_iter().flat_map(|role| allocation.sides.connections(role)) {
            self.connections.remove(&conn);
            effects.push(Effect::Close { conn, code, message: message.clone() });
        }
        let bytes_used = allocation.meter.bytes_used();
        let quota_bytes = allocation.meter.limits().quota_bytes;
        let past = if has_passed(allocation.latest_expires_at_unix, now) {
            None
        } else if code.is_final_for_allocation() {
            Some(Past::Final(code))
        } else {
            (bytes_used > 0).then_some(Past::Used(allocation.meter))
        };
        self.ledger.end(allocation.identity, allocation.latest_expires_at_unix, past);
        effects.push(Effect::Ended(Ended {
            handle: allocation.handle,
            code,
            lifetime: now.mono.saturating_sub(allocation.created.mono),
            bytes_used,
            quota_bytes,
        }));
    }

    /// That the indexes say nothing but what the allocations say.
    #[cfg(test)]
    pub(super) fn assert_consistent(&self) {
        assert_eq!(self.due, self.allocations.iter().map(|(key, it)| (it.due, *key)).collect());
        assert_eq!(
            self.expiries,
            self.allocations.iter().map(|(key, it)| (it.expires_at_unix, *key)).collect()
        );
        assert_eq!(self.handles, self.allocations.iter().map(|(key, it)| (it.handle, *key)).collect());
        let mut per_device: HashMap<(Signer, DeviceId), u32> = HashMap::new();
        let mut connections = HashMap::new();
        for (key, allocation) in &self.allocations {
            *per_device.entry(device_of(&allocation.identity)).or_default() += 1;
            assert!(matches!(self.ledger.get(&allocation.identity), Some(Entry::Live(live)) if live == key));
            assert_eq!(allocation.due, allocation.next_end(&self.rules).0);
            assert!(allocation.latest_expires_at_unix >= allocation.expires_at_unix);
            for role in Role::BOTH {
                connections.extend(allocation.sides.connections(role).map(|conn| (conn, (*key, role))));
            }
        }
        assert_eq!(self.per_device, per_device);
        assert_eq!(self.connections, connections);
        assert_eq!(self.ledger.assert_consistent(), self.allocations.len());
    }

    fn key_of(&self, handle: Handle) -> Option<Key> {
        let of_handle = (handle, Key(0))..=(handle, Key(u64::MAX));
        self.handles.range(of_handle).next().map(|(_, key)| *key)
    }
}

/// From now on all connections of `role` send to `to`.
fn link(allocation: &Allocation, role: Role, to: Option<ConnId>, effects: &mut Vec<Effect>) {
    effects.extend(allocation.sides.connections(role).map(|conn| Effect::Link { conn, to }));
}

/// What an allocation counts against: the device, as this signer names it.
fn device_of(identity: &Identity) -> (Signer, DeviceId) {
    (identity.signer.clone(), identity.device_id)
}

fn has_passed(at_unix: u64, now: Now) -> bool {
    Duration::from_secs(at_unix) <= now.unix
}

fn summarize(allocation: &Allocation) -> Summary {
    let meter = &allocation.meter;
    Summary {
        handle: allocation.handle,
        allocation_id: allocation.identity.allocation_id,
        device_id: allocation.identity.device_id,
        peer_id: allocation.identity.peer_id,
        tier: allocation.basis.tier.clone(),
        stage: allocation.sides.stage(),
        connections: Role::BOTH.map(|role| allocation.sides.connections(role).count()),
        counts: Role::BOTH.map(|role| meter.counts(role)),
        bytes_used: meter.bytes_used(),
        last_activity_nanos: meter.last_activity_nanos(),
        created: allocation.created,
        expires_at_unix: allocation.expires_at_unix,
        limits: meter.limits(),
    }
}

/// What both sides are told of an end that the table decides on itself.
fn message(code: CloseCode) -> &'static str {
    match code {
        CloseCode::Expired => "the allocation's time is over; come back with a token that expires later",
        CloseCode::QuotaExceeded => "the quota is used up; mint a token for a new allocation",
        CloseCode::PairTimeout => "the other side never came; come back when it does",
        CloseCode::PeerGone => "the other side left and did not come back in time",
        CloseCode::Released => "one side released the allocation; mint a token for a new one",
        CloseCode::Killed => "an administrator ended the allocation; mint a token for a new one",
        _ => "",
    }
}
