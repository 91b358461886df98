//! Decides about everybody who comes: by list, by budget, by what floods there are.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{
            AtomicU8, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;

use super::{
    Block, BlockCause, GuardLevel, Limit, NetworkSet, SecurityEvent, SecurityEvents, Source, Subject,
    TooManyBlocks, ValidatedSource,
    flood::{Flood, Thresholds, Unproven},
    lists::Lists,
    sources::{Budget, PerMinute, SourceTable},
};
use crate::metrics::{GuardIgnored, GuardRefused, Metrics};

/// Sources whose unproven attempts are counted, one megabyte: forged packets fill it, and all that it decides is who
/// is sent a Retry.
const UNPROVEN_SOURCES: usize = 1 << 16;
/// A client's first datagram is that long at least (RFC 9000, section 14.1).
const MIN_INITIAL_BYTES: u64 = 1200;
/// What an unproven address may be sent, as a multiple of what came from it (RFC 9000, section 8.1).
const AMPLIFICATION_FACTOR: u64 = 3;
/// How often what anybody's packets can bring about is reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How often blocks that are over are let go.
const TIDY_INTERVAL: Duration = Duration::from_secs(10);

/// What the operator wants.
#[derive(Debug, Clone)]
pub struct GuardSettings {
    /// Connections of one source; `None` for no limit.
    pub connections: Option<PerMinute>,
    /// Requests for an allocation of one source; `None` for no limit.
    pub allocation_requests: Option<PerMinute>,
    /// Whether the loopback addresses have no such limits.
    pub exempt_loopback: bool,
    /// Networks whose addresses have no such limits.
    pub exempt: Vec<IpNet>,
    /// Networks that are let in where a wider block would keep them out.
    pub allow: Vec<IpNet>,
    /// Networks that are kept out.
    pub block: Vec<IpNet>,
    /// Unfinished handshakes of unproven addresses within five seconds, above which every caller first proves its
    /// address; 0: always.
    pub retry_above: u32,
    /// Answers to unproven addresses a second, above which there is silence; `None` for no bound.
    pub silence_above: Option<u32>,
    /// Sources that are remembered at once, 16 bytes each. Fixed at the start.
    pub max_sources: usize,
}

impl Default for GuardSettings {
    fn default() -> Self {
        Self {
            connections: PerMinute::new(30),
            allocation_requests: PerMinute::new(10),
            exempt_loopback: true,
            exempt: Vec::new(),
            allow: Vec::new(),
            block: Vec::new(),
            retry_above: 256,
            silence_above: Some(4000),
            max_sources: 1 << 20,
        }
    }
}

/// The part of the settings that each look needs.
#[derive(Debug)]
struct Rules {
    connections: Option<PerMinute>,
    allocation_requests: Option<PerMinute>,
    exempt_loopback: bool,
    exempt: NetworkSet,
}

impl Rules {
    fn of(settings: &GuardSettings) -> Self {
        Self {
            connections: settings.connections,
            allocation_requests: settings.allocation_requests,
            exempt_loopback: settings.exempt_loopback,
            exempt: settings.exempt.iter().copied().collect(),
        }
    }

    fn exempts(&self, ip: IpAddr) -> bool {
        self.exempt_loopback && ip.to_canonical().is_loopback() || self.exempt.contains(ip)
    }
}

/// What becomes of an attempt to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// It may begin its handshake. `counted`: its source has paid for it; otherwise [`Guard::finished`] has it paid.
    Handshake {
        /// Whether it is paid for.
        counted: bool,
    },
    /// It is to prove its address first.
    Retry,
    /// It is told that it is refused.
    Refuse,
    /// It is not answered.
    Ignore,
}

/// Why somebody who is in must go, or does not get what it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// Its address is on a block list.
    Blocked,
    /// Its source's budget is used up.
    Limited {
        /// Which.
        limit: Limit,
        /// When there is more of it.
        retry_after: Duration,
    },
}

/// A packet that begins a connection, or could.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// An Initial, and whether it carries a token.
    Initial {
        /// Of a Retry or an earlier connection, or so it seems.
        with_token: bool,
    },
    /// Of a version that is not spoken here: what answers it is a list of versions.
    UnknownVersion,
    /// Another packet of a handshake that has begun.
    Later,
}

/// The guard of one relay, for all its shards. It is told the time, monotonic since its clock's start, and never
/// waits.
///
/// Only addresses that have proven themselves are counted and reported: by a finished handshake, by a token that came
/// back. What anybody can write into a packet decides about nobody: unproven addresses get a Retry or silence, all of
/// them alike.
#[derive(Debug)]
pub struct Guard {
    metrics: Arc<Metrics>,
    security: SecurityEvents,
    rules: ArcSwap<Rules>,
    lists: Lists,
    /// What proven sources have used up.
    sources: SourceTable,
    /// Attempts from addresses without proof.
    unproven: SourceTable,
    flood: Mutex<Flood>,
    /// The flood's level, for those who only want to know whether to look closer.
    level: AtomicU8,
    /// In milliseconds: when what anybody can bring about was last reported, and blocks were last tidied.
    reported_ms: AtomicU64,
    tidied_ms: AtomicU64,
    forgotten: AtomicU64,
}

impl Guard {
    /// A guard with nobody counted and nobody pushed out.
    pub fn new(settings: &GuardSettings, metrics: Arc<Metrics>, security: SecurityEvents) -> Self {
        let thresholds = thresholds(settings);
        let guard = Self {
            metrics,
            security,
            rules: ArcSwap::from_pointee(Rules::of(settings)),
            lists: Lists::default(),
            sources: SourceTable::new(settings.max_sources),
            unproven: SourceTable::new(UNPROVEN_SOURCES),
            flood: Mutex::new(Flood::new(thresholds)),
            level: AtomicU8::new(0),
            reported_ms: AtomicU64::new(0),
            tidied_ms: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
        };
        guard.lists.configure(&settings.allow, &settings.block);
        guard.show_level(guard.flood().level());
        guard
    }

    /// Where it reports what happens.
    pub fn security(&self) -> &SecurityEvents {
        &self.security
    }

    /// Changes everything but how many sources are remembered. What was counted and what was pushed stays; those who
    /// are connected from an address that is blocked now are found by the next [`Guard::list_changes`].
    pub fn configure(&self, settings: &GuardSettings) {
        self.rules.store(Arc::new(Rules::of(settings)));
        self.lists.configure(&settings.allow, &settings.block);
        self.with_flood(|flood| flood.configure(thresholds(settings)));
    }

    /// What becomes of an attempt to connect, before anything is signed. `proven`: a token that only the address's
    /// owner can have came back with it.
    pub fn enter(&self, ip: IpAddr, proven: bool, now: Duration) -> Entry {
        if self.lists.is_blocked(ip, now) {
            self.ignored(GuardIgnored::Blocked, now);
            return Entry::Ignore;
        }
        let rules = self.rules.load();
        let limit = rules.connections.filter(|_| !rules.exempts(ip));
        let source = Source::of(ip);
        if proven {
            self.with_flood(|flood| flood.proven(now));
            return match limit.map(|limit| self.sources.charge(source, Budget::Connections, limit, now)) {
                Some(Err(_)) => {
                    self.metrics.guard.refused(GuardRefused::ConnectionRate);
                    self.limited(Subject::source(ValidatedSource::vouched(ip)));
                    Entry::Refuse
                }
                _ => Entry::Handshake { counted: true },
            };
        }
        let answer = self.with_flood(|flood| flood.attempt(now));
        if answer == Unproven::Silence {
            self.ignored(GuardIgnored::Flood, now);
            return Entry::Ignore;
        }
        let Some(limit) = limit else {
            return if answer == Unproven::Retry {
                Entry::Retry
            } else {
                Entry::Handshake { counted: false }
            };
        };
        // Used up by those who have proven to be there: then whoever it is need not prove it once more.
        if self.sources.peek(source, Budget::Connections, limit, now).is_err() {
            self.metrics.guard.refused(GuardRefused::ConnectionRate);
            if self.may_report(now) {
                self.limited(Subject::NOBODY);
            }
            return Entry::Refuse;
        }
        if answer == Unproven::Retry {
            return Entry::Retry;
        }
        // A source that begins more than its budget without ever proving itself proves itself first from then on: so
        // no more is signed for it than its budget.
        if self.unproven.charge(source, Budget::Connections, limit, now).is_err() {
            if self.may_report(now) {
                let received_bytes = MIN_INITIAL_BYTES * u64::from(limit.get());
                let wanted_bytes = received_bytes * AMPLIFICATION_FACTOR;
                self.security
                    .emit(SecurityEvent::Amplification { received_bytes, wanted_bytes }, Subject::NOBODY);
            }
            return Entry::Retry;
        }
        Entry::Handshake { counted: false }
    }

    /// A handshake from this address has finished, which proves it. `counted` is what [`Entry::Handshake`] said.
    ///
    /// # Errors
    /// It must go: so many others of its source were begun before one of them was finished.
    pub fn finished(&self, ip: IpAddr, counted: bool, now: Duration) -> Result<(), Turned> {
        if counted {
            return Ok(());
        }
        self.with_flood(|flood| flood.proven(now));
        let rules = self.rules.load();
        let Some(limit) = rules.connections.filter(|_| !rules.exempts(ip)) else { return Ok(()) };
        self.sources.charge(Source::of(ip), Budget::Connections, limit, now).map_err(|retry_after| {
            self.metrics.guard.refused(GuardRefused::ConnectionRate);
            Turned::Limited { limit: Limit::SourceConnections, retry_after }
        })
    }

    /// A connection asks for an allocation. Its address has proven itself.
    ///
    /// # Errors
    /// It does not get one now, or never.
    pub fn request(&self, ip: IpAddr, now: Duration) -> Result<(), Turned> {
        self.check(ip, now)?;
        let rules = self.rules.load();
        let Some(limit) = rules.allocation_requests.filter(|_| !rules.exempts(ip)) else { return Ok(()) };
        let charged = self.sources.charge(Source::of(ip), Budget::AllocationRequests, limit, now);
        charged.map_err(|retry_after| {
            self.metrics.guard.refused(GuardRefused::AllocationRate);
            Turned::Limited { limit: Limit::SourceRequests, retry_after }
        })
    }

    /// A connection has moved to this address, or claims so: where its source is another one, that must be one that
    /// could connect now. Nothing is counted, because whoever writes packets can make his own connection seem to be
    /// anywhere.
    ///
    /// # Errors
    /// It must go.
    pub fn moved(&self, from: IpAddr, ip: IpAddr, now: Duration) -> Result<(), Turned> {
        self.check(ip, now)?;
        if Source::of(from) == Source::of(ip) {
            return Ok(());
        }
        let rules = self.rules.load();
        let Some(limit) = rules.connections.filter(|_| !rules.exempts(ip)) else { return Ok(()) };
        self.sources.peek(Source::of(ip), Budget::Connections, limit, now).map_err(|retry_after| {
            self.metrics.guard.refused(GuardRefused::ConnectionRate);
            Turned::Limited { limit: Limit::SourceConnections, retry_after }
        })
    }

    /// Whether a connection may be at this address.
    ///
    /// # Errors
    /// [`Turned::Blocked`].
    pub fn check(&self, ip: IpAddr, now: Duration) -> Result<(), Turned> {
        if self.lists.is_blocked(ip, now) {
            self.metrics.guard.refused(GuardRefused::Blocked);
            return Err(Turned::Blocked);
        }
        Ok(())
    }

    /// Whether a packet is worth being looked at, before anything is computed for it. Call it once for each.
    pub fn lets_through(&self, ip: IpAddr, opening: Opening, now: Duration) -> bool {
        if self.lists.is_blocked(ip, now) {
            self.ignored(GuardIgnored::Blocked, now);
            return false;
        }
        let through = match opening {
            Opening::Later => true,
            Opening::UnknownVersion => self.with_flood(|flood| flood.may_answer(now)),
            Opening::Initial { with_token } => {
                self.level.load(Relaxed) < GuardLevel::Silence as u8
                    || match self.flood.try_lock() {
                        Ok(mut flood) => !flood.overlooks(now, with_token),
                        Err(TryLockError::Poisoned(poisoned)) => {
                            !poisoned.into_inner().overlooks(now, with_token)
                        }
                        // Beyond the rate anyway, and other threads are busy finding that out.
                        Err(TryLockError::WouldBlock) => false,
                    }
            }
        };
        if !through {
            self.ignored(GuardIgnored::Flood, now);
        }
        through
    }

    /// Lets time pass: the level falls, what is over is let go. Call it a few times a second.
    pub fn tick(&self, now: Duration) {
        self.with_flood(|flood| flood.advance(now));
        if is_due(&self.tidied_ms, now, TIDY_INTERVAL) {
            self.show_blocks(self.lists.tidy(now));
        }
        let forgotten = self.sources.forgotten();
        let before = self.forgotten.swap(forgotten, AcqRel);
        self.metrics.guard.sources_forgotten.inc_by(forgotten.saturating_sub(before));
    }

    /// How much is let through now.
    pub fn level(&self) -> GuardLevel {
        self.flood().level()
    }

    /// Blocks a network until then, or until it is unblocked; connections from it are closed within a quarter of a
    /// second. A block of the same network is replaced. What is to outlive the process is kept by whoever calls this.
    ///
    /// # Errors
    /// [`TooManyBlocks`]; nothing has changed.
    pub fn block(
        &self,
        network: IpNet,
        until: Option<Duration>,
        reason: &str,
        now: Duration,
    ) -> Result<(), TooManyBlocks> {
        self.show_blocks(self.lists.block(network, until, reason, now)?);
        Ok(())
    }

    /// Blocks what was blocked before: `blocks` are not configured ones. Answers how many there was no room for.
    pub fn restore(&self, blocks: Vec<Block>, now: Duration) -> usize {
        let all = blocks.into_iter();
        let refused =
            all.filter(|it| self.lists.block(it.network, it.until, &it.reason, now).is_err()).count();
        self.show_blocks(self.lists.tidy(now));
        refused
    }

    /// Ends a block that was pushed; whether there was one of exactly this network.
    pub fn unblock(&self, network: IpNet, now: Duration) -> bool {
        let ended = self.lists.unblock(network, now);
        self.show_blocks(self.lists.tidy(now));
        ended
    }

    /// The blocks in force, the configuration's first.
    pub fn list(&self, now: Duration) -> Vec<Block> {
        self.lists.blocks(now)
    }

    /// How many these are.
    pub fn count(&self, now: Duration) -> usize {
        self.lists.count(now)
    }

    /// A number that is another one whenever an address may be blocked that was not: then look at everybody.
    pub fn list_changes(&self) -> u64 {
        self.lists.changes()
    }

    /// Reports that somebody who was in had to go.
    pub fn report(&self, turned: Turned, subject: Subject) {
        let event = match turned {
            Turned::Blocked => SecurityEvent::Blocked { cause: BlockCause::BlockList },
            Turned::Limited { limit, .. } => SecurityEvent::LimitHit { limit },
        };
        self.security.emit(event, subject);
    }

    fn limited(&self, subject: Subject) {
        self.security.emit(SecurityEvent::LimitHit { limit: Limit::SourceConnections }, subject);
    }

    /// Counts what got no answer. Each packet of anybody's can come here, so little of it is reported.
    fn ignored(&self, reason: GuardIgnored, now: Duration) {
        self.metrics.guard.ignored(reason);
        if reason == GuardIgnored::Blocked && self.may_report(now) {
            self.security.emit(SecurityEvent::Blocked { cause: BlockCause::BlockList }, Subject::NOBODY);
        }
    }

    fn may_report(&self, now: Duration) -> bool {
        is_due(&self.reported_ms, now, REPORT_INTERVAL)
    }

    fn flood(&self) -> MutexGuard<'_, Flood> {
        self.flood.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports a change of level, in the order in which they happen.
    fn with_flood<T>(&self, change: impl FnOnce(&mut Flood) -> T) -> T {
        let mut flood = self.flood();
        let answer = change(&mut flood);
        let to = flood.level();
        if to as u8 != self.level.load(Acquire) {
            let unfinished = flood.unproven();
            let from = match self.level.load(Acquire) {
                0 => GuardLevel::Normal,
                1 => GuardLevel::Retry,
                _ => GuardLevel::Silence,
            };
            self.show_level(to);
            if to > from {
                self.metrics.guard.raised(to == GuardLevel::Silence);
                self.security.emit(SecurityEvent::HandshakeFlood { unfinished }, Subject::NOBODY);
            }
            self.security.emit(SecurityEvent::GuardLevel { from, to }, Subject::NOBODY);
        }
        answer
    }

    fn show_level(&self, level: GuardLevel) {
        self.level.store(level as u8, Release);
        self.metrics.guard.level.set(level as i64);
    }

    fn show_blocks(&self, blocks: usize) {
        self.metrics.guard.blocks.set(i64::try_from(blocks).unwrap_or(i64::MAX));
    }
}

fn thresholds(settings: &GuardSettings) -> Thresholds {
    Thresholds { retry_above: settings.retry_above, silence_above: settings.silence_above }
}

/// Whether so much time has passed since this was last true; 0 is before the first time.
fn is_due(last_ms: &AtomicU64, now: Duration, interval: Duration) -> bool {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let now_ms = millis(now).max(1);
    let due = |last: u64| (last == 0 || now_ms >= last + millis(interval)).then_some(now_ms);
    last_ms.fetch_update(Relaxed, Relaxed, due).is_ok()
}
