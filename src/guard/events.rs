//! Security events: one typed stream of what a person who looks after the relay would want to know.
//!
//! [`SecurityEvents::emit`] counts an event, writes a line with target [`TARGET`] unless there were too many of its
//! kind this second, and hands it to whoever has subscribed. It never waits, and without subscribers costs two
//! atomics and the line.
//!
//! An address is named only when its owner has shown to receive what is sent there ([`ValidatedSource`]): whoever
//! reads these events blocks addresses, and forged packets must not bring that upon a stranger. In lines it stands at
//! debug alone unless [`EventSettings::log_addresses`] asks for more.

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use serde_json::{Map, Value, json};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{
    clock::Clock,
    metrics::{Metrics, SecurityKind},
    table::ConnId,
    wire::{DeviceId, Handle, Role},
};

/// The target of the log lines, whatever module the event comes from.
pub const TARGET: &str = "security";

/// Events that a subscriber may be behind before it misses the oldest: at some 300 bytes each, a burst that a
/// webhook takes a minute for, and no burden.
pub const RING_EVENTS: usize = 1024;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecurityEvent {
    /// A limit refused something, or held it back.
    LimitHit {
        /// Which.
        limit: Limit,
    },
    /// An address that may not come was turned away.
    Blocked {
        /// By what.
        cause: BlockCause,
    },
    /// A token was refused.
    BadToken {
        /// Exactly why, which the caller is not told: [`TokenError::reason`](crate::wire::TokenError::reason).
        reason: &'static str,
    },
    /// A caller did not hold the key of the role that it claimed.
    ProofFailed {
        /// The role.
        role: Role,
    },
    /// Somebody tried to make the relay send more than it received.
    Amplification {
        /// From there.
        received_bytes: u64,
        /// What answering would have come to.
        wanted_bytes: u64,
    },
    /// More handshakes were begun than finished.
    HandshakeFlood {
        /// Unfinished ones in the last second.
        unfinished: u64,
    },
    /// The guard against such floods was raised or lowered.
    GuardLevel {
        /// It was.
        from: GuardLevel,
        /// It is.
        to: GuardLevel,
    },
    /// Somebody did something by the admin API.
    AdminAction {
        /// What: `kill`, `block`, `drain`.
        action: &'static str,
        /// To what and why; may hold what the caller chose, and is escaped wherever it is shown.
        detail: Box<str>,
    },
    /// A device lost its right to be here; its allocations ended.
    DeviceRevoked {
        /// Which. Never logged: it may be a key.
        device: DeviceId,
        /// What its operator calls it.
        name: Option<Box<str>>,
    },
}

/// The limits whose being hit is an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Connections of one source per minute.
    SourceConnections,
    /// Allocation requests of one source per minute.
    SourceRequests,
    /// Connections without an accepted token, of the whole relay.
    Unauthenticated,
    /// Time until a token is accepted.
    AuthTimeout,
    /// Datagrams sent before a token is accepted.
    EarlyDatagrams,
    /// Allocations of the whole relay.
    Allocations,
    /// Remembered uses of the whole relay.
    Ledger,
    /// Allocations of one device.
    DeviceAllocations,
    /// An allocation's byte rate.
    ByteRate,
    /// An allocation's packet rate.
    PacketRate,
    /// An allocation's quota.
    Quota,
}

impl Limit {
    /// Its name in lines and webhooks.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SourceConnections => "source_connections",
            Self::SourceRequests => "source_requests",
            Self::Unauthenticated => "unauthenticated",
            Self::AuthTimeout => "auth_timeout",
            Self::EarlyDatagrams => "early_datagrams",
            Self::Allocations => "allocations",
            Self::Ledger => "ledger",
            Self::DeviceAllocations => "device_allocations",
            Self::ByteRate => "byte_rate",
            Self::PacketRate => "packet_rate",
            Self::Quota => "quota",
        }
    }

    /// Whether hitting it is part of ordinary use.
    const fn is_ordinary(self) -> bool {
        matches!(self, Self::ByteRate | Self::PacketRate | Self::Quota)
    }
}

/// Why an address may not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockCause {
    /// It lies in a network that is kept out, by the configuration or by an administrator.
    BlockList,
}

impl BlockCause {
    /// Its name in lines and webhooks.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BlockList => "block_list",
        }
    }
}

/// What callers whose address is not validated may expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum GuardLevel {
    /// A handshake.
    #[default]
    Normal,
    /// A Retry.
    Retry,
    /// Nothing.
    Silence,
}

impl GuardLevel {
    /// Its name in lines and webhooks.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Retry => "retry",
            Self::Silence => "silence",
        }
    }
}

impl SecurityEvent {
    /// Its kind.
    pub const fn kind(&self) -> SecurityKind {
        match self {
            Self::LimitHit { .. } => SecurityKind::LimitHit,
            Self::Blocked { .. } => SecurityKind::Blocked,
            Self::BadToken { .. } => SecurityKind::BadToken,
            Self::ProofFailed { .. } => SecurityKind::ProofFailed,
            Self::Amplification { .. } => SecurityKind::Amplification,
            Self::HandshakeFlood { .. } => SecurityKind::HandshakeFlood,
            Self::GuardLevel { .. } => SecurityKind::GuardLevel,
            Self::AdminAction { .. } => SecurityKind::AdminAction,
            Self::DeviceRevoked { .. } => SecurityKind::DeviceRevoked,
        }
    }

    /// Which of its kind, in one word from a fixed set.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::LimitHit { limit } => limit.name(),
            Self::Blocked { cause } => cause.name(),
            Self::BadToken { reason } => reason,
            Self::ProofFailed { role: Role::Device } => "device",
            Self::ProofFailed { role: Role::Peer } => "peer",
            Self::Amplification { .. } => "reply_bytes",
            Self::HandshakeFlood { .. } => "unfinished",
            Self::GuardLevel { to, .. } => to.name(),
            Self::AdminAction { action, .. } => action,
            Self::DeviceRevoked { .. } => "revoked",
        }
    }

    /// What a line says beside the fields.
    const fn words(&self) -> &'static str {
        match self {
            Self::LimitHit { .. } => "limit hit",
            Self::Blocked { .. } => "blocked",
            Self::BadToken { .. } => "token refused",
            Self::ProofFailed { .. } => "proof refused",
            Self::Amplification { .. } => "amplification refused",
            Self::HandshakeFlood { .. } => "handshakes begun and not finished",
            Self::GuardLevel { .. } => "guard level changed",
            Self::AdminAction { .. } => "admin action",
            Self::DeviceRevoked { .. } => "device revoked",
        }
    }

    /// Whether a person should read of it tomorrow.
    const fn is_warning(&self) -> bool {
        match self {
            Self::LimitHit { limit } => !limit.is_ordinary(),
            Self::AdminAction { .. } | Self::DeviceRevoked { .. } => false,
            _ => true,
        }
    }

    /// A number that belongs to it.
    const fn count(&self) -> Option<u64> {
        match self {
            Self::Amplification { wanted_bytes, .. } => Some(*wanted_bytes),
            Self::HandshakeFlood { unfinished } => Some(*unfinished),
            _ => None,
        }
    }

    /// Words of the operator's that belong to it.
    fn detail(&self) -> Option<&str> {
        match self {
            Self::AdminAction { detail, .. } => Some(detail),
            Self::DeviceRevoked { name, .. } => name.as_deref(),
            Self::GuardLevel { from, .. } => Some(from.name()),
            _ => None,
        }
    }
}

/// An address whose owner has shown to receive what is sent there: by a handshake that finished, a Retry that
/// came back, or the cookie of a raw channel. An address that a packet merely claims is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ValidatedSource(IpAddr);

impl ValidatedSource {
    /// The caller vouches for it. IPv4-mapped addresses are folded.
    pub fn vouched(ip: IpAddr) -> Self {
        Self(ip.to_canonical())
    }

    /// The address; never an IPv4-mapped one.
    pub fn ip(self) -> IpAddr {
        self.0
    }
}

impl fmt::Display for ValidatedSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whom an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Subject {
    /// Where from, when that is certain.
    pub source: Option<ValidatedSource>,
    /// Which connection.
    pub connection: Option<ConnId>,
    /// Which allocation.
    pub allocation: Option<Handle>,
}

impl Subject {
    /// The relay as a whole, or nobody who could be named.
    pub const NOBODY: Self = Self { source: None, connection: None, allocation: None };

    /// A source, before there is a connection.
    pub const fn source(source: ValidatedSource) -> Self {
        Self { source: Some(source), ..Self::NOBODY }
    }

    /// The same, of this connection.
    pub const fn on(self, connection: ConnId) -> Self {
        Self { connection: Some(connection), ..self }
    }

    /// The same, of this allocation.
    pub const fn of(self, allocation: Handle) -> Self {
        Self { allocation: Some(allocation), ..self }
    }
}

/// An event as subscribers get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Wall time since the Unix epoch.
    pub at: Duration,
    /// What happened.
    pub event: SecurityEvent,
    /// To whom, or by whom.
    pub subject: Subject,
}

impl Record {
    /// As outside systems are told it. Fields that do not apply are left out.
    pub fn to_json(&self) -> Value {
        let Self { at, event, subject } = self;
        let mut fields = Map::new();
        fields.insert("event".into(), event.kind().name().into());
        fields.insert("reason".into(), event.reason().into());
        fields.insert("at_unix_ms".into(), u64::try_from(at.as_millis()).unwrap_or(u64::MAX).into());
        let mut maybe = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                fields.insert(key.into(), value);
            }
        };
        maybe("source", subject.source.map(|source| source.to_string().into()));
        maybe("connection", subject.connection.map(|connection| connection.0.into()));
        maybe("allocation", subject.allocation.map(|allocation| allocation.to_string().into()));
        match event {
            SecurityEvent::Amplification { received_bytes, wanted_bytes } => {
                maybe("received_bytes", Some(json!(received_bytes)));
                maybe("wanted_bytes", Some(json!(wanted_bytes)));
            }
            SecurityEvent::HandshakeFlood { unfinished } => maybe("unfinished", Some(json!(unfinished))),
            SecurityEvent::GuardLevel { from, to } => {
                maybe("from", Some(json!(from.name())));
                maybe("to", Some(json!(to.name())));
            }
            SecurityEvent::AdminAction { detail, .. } => maybe("detail", Some(json!(detail))),
            SecurityEvent::DeviceRevoked { device, name } => {
                maybe("device", Some(json!(device.to_string())));
                maybe("name", name.as_deref().map(Value::from));
            }
            SecurityEvent::LimitHit { .. }
            | SecurityEvent::Blocked { .. }
            | SecurityEvent::BadToken { .. }
            | SecurityEvent::ProofFailed { .. } => {}
        }
        Value::Object(fields)
    }
}

/// How events are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventSettings {
    /// Whether lines above debug name the source.
    pub log_addresses: bool,
    /// Lines of one kind in one second; 0 for none. What is beyond is counted alone.
    pub log_lines_per_sec: u32,
}

impl Default for EventSettings {
    fn default() -> Self {
        Self { log_addresses: false, log_lines_per_sec: 10 }
    }
}

/// Where events are emitted and subscribed to. Clones are the same stream.
#[derive(Clone)]
pub struct SecurityEvents(Arc<Stream>);

struct Stream {
    clock: Clock,
    metrics: Arc<Metrics>,
    settings: ArcSwap<EventSettings>,
    lines: [LineLimit; BUCKETS],
    ring: broadcast::Sender<Arc<Record>>,
    /// So that nothing is made for nobody: asking the ring takes a lock.
    subscribers: AtomicUsize,
}

impl SecurityEvents {
    /// A stream that nobody has subscribed to yet.
    pub fn new(clock: Clock, metrics: Arc<Metrics>, settings: EventSettings) -> Self {
        Self(Arc::new(Stream {
            clock,
            metrics,
            settings: ArcSwap::from_pointee(settings),
            lines: Default::default(),
            ring: broadcast::Sender::new(RING_EVENTS),
            subscribers: AtomicUsize::new(0),
        }))
    }

    /// Logs otherwise from now on.
    pub fn configure(&self, settings: EventSettings) {
        self.0.settings.store(Arc::new(settings));
    }

    /// Counts, logs and hands on an event. Never waits.
    pub fn emit(&self, event: SecurityEvent, subject: Subject) {
        let stream = &*self.0;
        let EventSettings { log_addresses, log_lines_per_sec } = **stream.settings.load();
        let kind = event.kind();
        stream.metrics.security.event(kind);
        let passed = stream
            .lines
            .get(bucket(&event))
            .and_then(|limit| limit.pass(stream.clock.mono().as_secs(), log_lines_per_sec));
        match passed {
            Some(suppressed) => log(&event, &subject, suppressed, log_addresses),
            None => stream.metrics.security.unlogged(kind),
        }
        if stream.subscribers.load(Ordering::Relaxed) > 0 {
            let record = Record { at: stream.clock.now().unix, event, subject };
            // Fails when the last subscriber has gone meanwhile.
            let _ = stream.ring.send(Arc::new(record));
        }
    }

    /// Hears of every event from now on.
    pub fn subscribe(&self) -> Subscription {
        self.0.subscribers.fetch_add(1, Ordering::Relaxed);
        Subscription { receiver: self.0.ring.subscribe(), stream: self.0.clone() }
    }
}

impl fmt::Debug for SecurityEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecurityEvents(..)")
    }
}

/// Reads the stream. A subscriber that is more than [`RING_EVENTS`] behind misses the oldest; nobody waits for it.
pub struct Subscription {
    receiver: broadcast::Receiver<Arc<Record>>,
    stream: Arc<Stream>,
}

/// What a subscriber reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// The next event.
    Event(Arc<Record>),
    /// So many events went by unread.
    Missed(u64),
}

impl Subscription {
    /// The next event, or how many were missed before it. Waits until there is one. Cancel-safe.
    pub async fn next(&mut self) -> Heard {
        match self.receiver.recv().await {
            Ok(record) => Heard::Event(record),
            Err(RecvError::Lagged(missed)) => Heard::Missed(missed),
            // This subscription holds the stream, and so the sender.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.stream.subscribers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One bucket of lines for each kind, and one for what is ordinary: allocations that are held to their rates, of which
/// there can be many, must not hide attacks.
const BUCKETS: usize = SecurityKind::ALL.len() + 1;

fn bucket(event: &SecurityEvent) -> usize {
    match event {
        SecurityEvent::LimitHit { limit } if limit.is_ordinary() => SecurityKind::ALL.len(),
        // ALL is in the order of the variants.
        _ => event.kind() as usize,
    }
}

/// So many lines in each second.
#[derive(Debug, Default)]
struct LineLimit {
    /// The second that is being counted, in the upper half, and its lines, in the lower.
    window: AtomicU64,
    /// Events without a line since the last one.
    suppressed: AtomicU64,
}

impl LineLimit {
    /// Whether there may be one more line; if so, how many events have had none since the last.
    fn pass(&self, second: u64, most: u32) -> Option<u64> {
        let second = second & u64::from(u32::MAX);
        let counted = self.window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |window| {
            let lines = if window >> 32 == second { window & u64::from(u32::MAX) } else { 0 };
            (lines < u64::from(most)).then_some(second << 32 | (lines + 1))
        });
        if counted.is_err() {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        // Most lines have nothing to report, and need not write.
        match self.suppressed.load(Ordering::Relaxed) {
            0 => Some(0),
            _ => Some(self.suppressed.swap(0, Ordering::Relaxed)),
        }
    }
}

/// Writes the line. Its fields and their order are what `deploy/fail2ban` and `deploy/crowdsec` read.
fn log(event: &SecurityEvent, subject: &Subject, suppressed: u64, log_addresses: bool) {
    let kind = event.kind().name();
    let reason = event.reason();
    let source = subject.source.map(tracing::field::display);
    let shown = if log_addresses { source.as_ref() } else { None };
    let connection = subject.connection.map(|connection| connection.0);
    let allocation = subject.allocation.map(tracing::field::display);
    let detail = event.detail().map(tracing::field::debug);
    let count = event.count();
    let suppressed = (suppressed > 0).then_some(suppressed);
    let words = event.words();
    macro_rules! line {
        ($level:expr) => {
            tracing::event!(
                target: TARGET, $level,
                event = kind, reason, source = shown, connection, allocation, count, detail, suppressed,
                "{words}"
            )
        };
    }
    if event.is_warning() {
        line!(tracing::Level::WARN);
    } else {
        line!(tracing::Level::INFO);
    }
    if source.is_some() && !log_addresses {
        tracing::debug!(target: TARGET, event = kind, reason, source, connection, "{words}: its source");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(settings: EventSettings) -> (SecurityEvents, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new().unwrap());
        (SecurityEvents::new(Clock::start(), metrics.clone(), settings), metrics)
    }

    fn bad_token(reason: &'static str) -> SecurityEvent {
        SecurityEvent::BadToken { reason }
    }

    /// One of each kind, in the order of the kinds.
    fn one_of_each() -> Vec<SecurityEvent> {
        vec![
            SecurityEvent::LimitHit { limit: Limit::Quota },
            SecurityEvent::Blocked { cause: BlockCause::BlockList },
            bad_token("expired"),
            SecurityEvent::ProofFailed { role: Role::Peer },
            SecurityEvent::Amplification { received_bytes: 40, wanted_bytes: 1200 },
            SecurityEvent::HandshakeFlood { unfinished: 900 },
            SecurityEvent::GuardLevel { from: GuardLevel::Normal, to: GuardLevel::Retry },
            SecurityEvent::AdminAction { action: "kill", detail: "as \"they\"\r\nasked".into() },
            SecurityEvent::DeviceRevoked { device: DeviceId([7; 32]), name: Some("laptop".into()) },
        ]
    }

    #[test]
    fn r6_5_every_kind_moves_its_own_series() {
        let (events, metrics) = events(EventSettings::default());
        let each = one_of_each();
        assert_eq!(each.iter().map(SecurityEvent::kind).collect::<Vec<_>>(), SecurityKind::ALL);
        for (n, event) in each.iter().enumerate() {
            for _ in 0..=n {
                events.emit(event.clone(), Subject::NOBODY);
            }
        }
        let text = metrics.encode().unwrap();
        for (n, kind) in SecurityKind::ALL.into_iter().enumerate() {
            let line = format!("zrc_relay_security_events_total{{event=\"{}\"}} {}\n", kind.name(), n + 1);
            assert!(text.contains(&line), "{line} not in {text}");
        }
    }

    #[tokio::test]
    async fn subscribers_hear_what_comes_after_them_and_are_told_what_they_missed() {
        let (events, _) = events(EventSettings::default());
        events.emit(bad_token("text"), Subject::NOBODY);
        let source = ValidatedSource::vouched("::ffff:192.0.2.7".parse().unwrap());
        let mut first = events.subscribe();
        let mut second = events.subscribe();
        let subject = Subject::source(source).on(ConnId(3)).of(Handle([1; 16]));
        events.emit(bad_token("expired"), subject);
        for subscription in [&mut first, &mut second] {
            let Heard::Event(record) = subscription.next().await else { panic!("missed") };
            assert_eq!((&record.event, &record.subject), (&bad_token("expired"), &subject));
            assert_eq!(record.subject.source.unwrap().to_string(), "192.0.2.7");
        }
        drop(second);
        for _ in 0..RING_EVENTS + 5 {
            events.emit(bad_token("length"), Subject::NOBODY);
        }
        assert_eq!(first.next().await, Heard::Missed(5));
        for _ in 0..RING_EVENTS {
            assert!(matches!(first.next().await, Heard::Event(_)));
        }
        assert_eq!(events.0.subscribers.load(Ordering::Relaxed), 1);
        drop(first);
        assert_eq!(events.0.subscribers.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn lines_are_limited_by_kind_and_second_and_what_had_none_is_told_once() {
        let limit = LineLimit::default();
        assert_eq!(limit.pass(0, 0), None);
        let limit = LineLimit::default();
        for second in [0, 1, 7, 1 << 32] {
            for line in 0..3 {
                let before = if line == 0 && second != 0 { 4 } else { 0 };
                assert_eq!(limit.pass(second, 3), Some(before), "{second} {line}");
            }
            for _ in 0..4 {
                assert_eq!(limit.pass(second, 3), None);
            }
        }
    }

    #[test]
    fn what_has_no_line_is_counted() {
        let (events, metrics) = events(EventSettings { log_lines_per_sec: 0, ..EventSettings::default() });
        for _ in 0..3 {
            events.emit(bad_token("expired"), Subject::NOBODY);
        }
        let text = metrics.encode().unwrap();
        assert!(text.contains("zrc_relay_security_log_suppressed_total{event=\"bad_token\"} 3\n"), "{text}");
        assert!(text.contains("zrc_relay_security_events_total{event=\"bad_token\"} 3\n"), "{text}");
    }

    #[test]
    fn what_is_ordinary_does_not_hide_what_is_not() {
        let mut buckets: Vec<_> = one_of_each().iter().map(bucket).collect();
        for limit in [Limit::SourceConnections, Limit::SourceRequests, Limit::AuthTimeout] {
            let event = SecurityEvent::LimitHit { limit };
            assert_eq!(bucket(&event), SecurityKind::LimitHit as usize, "{limit:?}");
        }
        buckets.push(SecurityKind::LimitHit as usize);
        buckets.sort_unstable();
        assert_eq!(buckets, (0..BUCKETS).collect::<Vec<_>>(), "the quota's is not that of other limits");
    }

    #[test]
    fn records_say_what_applies_and_no_more() {
        let subject = Subject::source(ValidatedSource::vouched("2001:db8::7".parse().unwrap()));
        for (event, subject, expected) in [
            (
                bad_token("signature"),
                subject.on(ConnId(9)),
                json!({"event": "bad_token", "reason": "signature", "source": "2001:db8::7", "connection": 9}),
            ),
            (
                SecurityEvent::LimitHit { limit: Limit::ByteRate },
                Subject::NOBODY.of(Handle([0x1f; 16])),
                json!({"event": "limit_hit", "reason": "byte_rate", "allocation": "1f".repeat(16)}),
            ),
            (
                one_of_each().remove(4),
                Subject::NOBODY,
                json!({"event": "amplification", "reason": "reply_bytes", "received_bytes": 40, "wanted_bytes": 1200}),
            ),
            (
                one_of_each().remove(8),
                Subject::NOBODY,
                json!({"event": "device_revoked", "reason": "revoked", "device": "07".repeat(32), "name": "laptop"}),
            ),
        ] {
            let mut json = Record { at: Duration::from_millis(5), event, subject }.to_json();
            assert_eq!(json.as_object_mut().unwrap().remove("at_unix_ms"), Some(json!(5)));
            assert_eq!(json, expected);
        }
    }
}
