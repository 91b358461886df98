//! What is counted of those who are turned away for where they come from, or for how many they are.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Why somebody was refused or sent away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardRefused {
    /// The source has used up its connections of this minute.
    ConnectionRate,
    /// The source has used up its allocation requests of this minute.
    AllocationRate,
    /// The address is on a block list.
    Blocked,
}

/// Why a packet or an attempt got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardIgnored {
    /// Its address is on a block list.
    Blocked,
    /// More came from unproven addresses than are answered.
    Flood,
    /// Nothing that a client sends.
    Malformed,
}

/// Why the relay did not send what it had to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withheld {
    /// It would have been more than three times what came from that address, which is not proven.
    Unproven,
    /// Its connection changes its address all the time.
    Restless,
}

/// What the guard did.
pub struct GuardMetrics {
    /// 0 normal, 1 Retry, 2 silence.
    pub level: IntGauge,
    raised: [IntCounter; 2],
    refused: [IntCounter; 3],
    ignored: [IntCounter; 3],
    withheld: [IntCounter; 2],
    /// Blocks that were pushed and have not ended.
    pub blocks: IntGauge,
    /// Sources that lost what was counted of them to others.
    pub sources_forgotten: IntCounter,
}

impl GuardMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let raised = family(
            registry,
            "zrc_relay_guard_raised_total",
            "How often the guard against floods of handshakes was raised, by the level it was raised to.",
            "level",
        )?;
        let refused = family(
            registry,
            "zrc_relay_guard_refused_total",
            "Connections and requests refused, and connections closed, for where they come from.",
            "reason",
        )?;
        let ignored = family(
            registry,
            "zrc_relay_guard_ignored_total",
            "Packets that would begin a connection and got no answer.",
            "reason",
        )?;
        let withheld = family(
            registry,
            "zrc_relay_guard_withheld_datagrams_total",
            "Datagrams of QUIC not sent, so that nobody is sent much more than came from there.",
            "reason",
        )?;
        Ok(Self {
            level: gauge(
                registry,
                "zrc_relay_guard_level",
                "How callers with unproven addresses are answered: 0 by a handshake, 1 by a Retry, 2 so many a second.",
            )?,
            raised: ["retry", "silence"].map(|level| raised.with_label_values(&[level])),
            refused: ["connection_rate", "allocation_rate", "blocked"]
                .map(|reason| refused.with_label_values(&[reason])),
            ignored: ["blocked", "flood", "malformed"].map(|reason| ignored.with_label_values(&[reason])),
            withheld: ["unproven", "restless"].map(|reason| withheld.with_label_values(&[reason])),
            blocks: gauge(
                registry,
                "zrc_relay_guard_blocks",
                "Blocks pushed while running and in force now.",
            )?,
            sources_forgotten: {
                let counter = IntCounter::new(
                    "zrc_relay_guard_sources_forgotten_total",
                    "Sources that lost what was counted of them to others, for want of room.",
                )?;
                registry.register(Box::new(counter.clone()))?;
                counter
            },
        })
    }

    /// The guard was raised to Retry, or to silence.
    pub fn raised(&self, to_silence: bool) {
        let [retry, silence] = &self.raised;
        if to_silence { silence } else { retry }.inc();
    }

    /// Somebody was refused or sent away.
    pub fn refused(&self, reason: GuardRefused) {
        // In the order of the variants.
        if let Some(counter) = self.refused.get(reason as usize) {
            counter.inc();
        }
    }

    /// So many datagrams were not sent.
    pub fn withheld(&self, why: Withheld, datagrams: u64) {
        if let Some(counter) = self.withheld.get(why as usize) {
            counter.inc_by(datagrams);
        }
    }

    /// Something got no answer.
    pub fn ignored(&self, reason: GuardIgnored) {
        if let Some(counter) = self.ignored.get(reason as usize) {
            counter.inc();
        }
    }
}

fn family(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
) -> Result<IntCounterVec, prometheus::Error> {
    let family = IntCounterVec::new(Opts::new(name, help), &[label])?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    let gauge = IntGauge::new(name, help)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}
