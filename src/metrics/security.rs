//! What is counted of security events and of what became of them.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// The kinds of security events: what a label, a log line and a webhook call them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SecurityKind {
    /// A limit refused something, or held it back.
    LimitHit,
    /// An address that may not come was turned away.
    Blocked,
    /// A token was refused.
    BadToken,
    /// A caller did not hold the key that its role needs.
    ProofFailed,
    /// Somebody tried to make the relay send more than it received.
    Amplification,
    /// More handshakes were begun than finished.
    HandshakeFlood,
    /// The guard against such floods was raised or lowered.
    GuardLevel,
    /// Somebody did something by the admin API.
    AdminAction,
    /// A device lost its right to be here.
    DeviceRevoked,
}

impl SecurityKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::LimitHit,
        Self::Blocked,
        Self::BadToken,
        Self::ProofFailed,
        Self::Amplification,
        Self::HandshakeFlood,
        Self::GuardLevel,
        Self::AdminAction,
        Self::DeviceRevoked,
    ];

    /// The label's value, and the name everywhere else.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LimitHit => "limit_hit",
            Self::Blocked => "blocked",
            Self::BadToken => "bad_token",
            Self::ProofFailed => "proof_failed",
            Self::Amplification => "amplification",
            Self::HandshakeFlood => "handshake_flood",
            Self::GuardLevel => "guard_level",
            Self::AdminAction => "admin_action",
            Self::DeviceRevoked => "device_revoked",
        }
    }
}

/// What became of an event that the webhook was to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebhookOutcome {
    /// The endpoint took it.
    Delivered,
    /// The endpoint did not, however often it was tried.
    Failed,
    /// More waited than may.
    Dropped,
}

/// Security events by kind: seen, and seen but not logged; and what became of them outside.
pub struct SecurityMetrics {
    events: Vec<IntCounter>,
    unlogged: Vec<IntCounter>,
    /// In the order of [`WebhookOutcome`].
    webhook: [IntCounter; 3],
    webhook_attempts_failed: IntCounter,
}

impl SecurityMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let webhook = IntCounterVec::new(
            Opts::new(
                "zrc_relay_security_webhook_events_total",
                "Security events that the webhook was to send, by what became of them.",
            ),
            &["outcome"],
        )?;
        registry.register(Box::new(webhook.clone()))?;
        let webhook_attempts_failed = IntCounter::new(
            "zrc_relay_security_webhook_attempts_failed_total",
            "Requests to the webhook that were not answered, or not with success.",
        )?;
        registry.register(Box::new(webhook_attempts_failed.clone()))?;
        Ok(Self {
            webhook: ["delivered", "failed", "dropped"].map(|outcome| webhook.with_label_values(&[outcome])),
            webhook_attempts_failed,
            events: per_kind(
                registry,
                "zrc_relay_security_events_total",
                "Security events, by what happened.",
            )?,
            unlogged: per_kind(
                registry,
                "zrc_relay_security_log_suppressed_total",
                "Security events that have no log line of their own because there were too many in a second.",
            )?,
        })
    }

    /// How many there were of this kind.
    pub fn events_of(&self, kind: SecurityKind) -> u64 {
        self.events.get(kind as usize).map_or(0, IntCounter::get)
    }

    /// One more of this kind.
    pub fn event(&self, kind: SecurityKind) {
        // ALL is in the order of the variants, and both lists were made from ALL.
        if let Some(counter) = self.events.get(kind as usize) {
            counter.inc();
        }
    }

    /// What became of so many events that the webhook was to send.
    pub fn webhook(&self, outcome: WebhookOutcome, events: u64) {
        if let Some(counter) = self.webhook.get(outcome as usize) {
            counter.inc_by(events);
        }
    }

    /// One more request that the webhook's endpoint did not take.
    pub fn webhook_attempt_failed(&self) {
        self.webhook_attempts_failed.inc();
    }

    /// One more of this kind that was not logged.
    pub fn unlogged(&self, kind: SecurityKind) {
        if let Some(counter) = self.unlogged.get(kind as usize) {
            counter.inc();
        }
    }
}

fn per_kind(registry: &Registry, name: &str, help: &str) -> Result<Vec<IntCounter>, prometheus::Error> {
    let family = IntCounterVec::new(Opts::new(name, help), &["event"])?;
    registry.register(Box::new(family.clone()))?;
    Ok(SecurityKind::ALL.iter().map(|kind| family.with_label_values(&[kind.name()])).collect())
}
