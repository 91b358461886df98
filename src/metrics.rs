//! Every metric of the process, declared once. Handles are cached: nothing looks up a label on the packet path.
//!
//! Counters end in `_total`; no label takes a value that a caller chooses.

mod allocations;
mod countries;
mod guard;
#[cfg(target_os = "linux")]
mod process;
mod security;
mod striped;
mod totals;

use std::fmt;

use prometheus::{
    Encoder as _, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use self::allocations::Distributions;
pub use self::countries::{CountryMetrics, FromCountry};
pub use self::guard::{GuardIgnored, GuardMetrics, GuardRefused, Withheld};
pub use self::security::{SecurityKind, SecurityMetrics, WebhookOutcome};
pub use self::striped::Counter;
use self::striped::{Counters, Family};
pub use self::totals::{Passed, Sent, Totals};

use crate::wire::{CloseCode, Role};

/// Why a datagram was not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// Sent before the connection's token was accepted.
    Unauthenticated,
    /// The other side is away.
    NoPeer,
    /// Larger than the other leg can carry.
    TooLarge,
    /// Over the allocation's byte rate.
    ByteRate,
    /// Over the allocation's packet rate.
    PacketRate,
    /// Over the limit of all allocations together.
    GlobalRate,
    /// Over what is left of the quota.
    Quota,
    /// The other leg's send buffer holds as much as it may.
    BufferFull,
    /// The other leg's connection was closing, or its client takes no datagrams.
    SendFailed,
    /// Arrived faster than this leg was read; the receive buffer let the oldest go.
    ReceiveOverflow,
    /// Let go from a send buffer because the path's limit shrank below its size.
    PathShrank,
    /// A raw packet with a tag that names no leg: it is over, or was never there.
    RawTag,
    /// A raw packet from another address than its leg's.
    RawSource,
    /// Neither QUIC nor a packet that clients send on a raw channel.
    RawMalformed,
    /// More probes of a raw channel than are answered.
    RawProbeRate,
    /// A QUIC packet for another shard, whose queue was full.
    ShardQueue,
}

impl DropReason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::Unauthenticated,
        Self::NoPeer,
        Self::TooLarge,
        Self::ByteRate,
        Self::PacketRate,
        Self::GlobalRate,
        Self::Quota,
        Self::BufferFull,
        Self::SendFailed,
        Self::ReceiveOverflow,
        Self::PathShrank,
        Self::RawTag,
        Self::RawSource,
        Self::RawMalformed,
        Self::RawProbeRate,
        Self::ShardQueue,
    ];

    /// The label's value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::NoPeer => "no_peer",
            Self::TooLarge => "too_large",
            Self::ByteRate => "byte_rate",
            Self::PacketRate => "packet_rate",
            Self::GlobalRate => "global_rate",
            Self::Quota => "quota",
            Self::BufferFull => "buffer_full",
            Self::SendFailed => "send_failed",
            Self::ReceiveOverflow => "receive_overflow",
            Self::PathShrank => "path_shrank",
            Self::RawTag => "raw_tag",
            Self::RawSource => "raw_source",
            Self::RawMalformed => "raw_malformed",
            Self::RawProbeRate => "raw_probe_rate",
            Self::ShardQueue => "shard_queue",
        }
    }
}

/// What went through in one direction.
pub struct Forwarded {
    /// Datagrams handed to the other leg.
    pub datagrams: Counter,
    /// Their payload bytes.
    pub datagram_bytes: Counter,
    /// Of those datagrams, how many left by the other leg's raw channel.
    pub raw_datagrams: Counter,
    /// Stream bytes handed to the other leg.
    pub stream_bytes: Counter,
}

/// All metrics. Share it by `Arc`; each field is its own set of atomics.
pub struct Metrics {
    registry: Registry,
    distributions: Distributions,
    /// Connections whose handshake finished. opened - closed = `connections`.
    pub connections_opened: IntCounter,
    /// Connections that are over, by the code they ended with.
    connections_closed: PerCode,
    /// Connections now.
    pub connections: IntGauge,
    /// Handshakes that did not finish.
    pub handshakes_failed: IntCounter,
    /// Connection attempts turned away because too many were not yet authenticated.
    pub handshakes_refused: IntCounter,
    /// Connection attempts asked to prove their address first.
    pub handshakes_retried: IntCounter,
    /// Allocations that came into being. created - ended = `allocations`.
    pub allocations_created: IntCounter,
    /// Allocations that are over, by code.
    allocations_ended: PerCode,
    /// Allocations now.
    pub allocations: IntGauge,
    /// When the process started.
    started: IntGauge,
    /// Allocations that there may be at once.
    pub max_allocations: IntGauge,
    /// Requests refused, by code.
    refused: PerCode,
    /// What passed, by the role that sent it. This and what was dropped is counted for each packet, so it is striped.
    forwarded: [Forwarded; 2],
    /// Streams spliced, by kind: bidirectional, unidirectional.
    streams: [IntCounter; 2],
    dropped: Vec<Counter>,
    /// What all allocations together may pass, in payload bytes per second; 0 where there is no such limit.
    pub global_limit: IntGauge,
    /// What they passed in the last second, where there is such a limit.
    pub global_use: IntGauge,
    certificate_renewals: [IntCounter; 2],
    /// When the certificate that new connections are shown ceases to be valid, in Unix seconds; 0 when that is not known.
    pub certificate_expiry: IntGauge,
    /// Connections with a raw channel now.
    pub raw_channels: IntGauge,
    /// Probes of raw channels answered.
    pub raw_probes_answered: IntCounter,
    /// QUIC packets that arrived at another shard's socket and were handed over.
    pub shard_handoffs: IntCounter,
    /// Connections now, by shard.
    shard_connections: IntGaugeVec,
    region: IntGaugeVec,
    /// Connections whose client appeared at another address.
    pub migrations: IntCounter,
    /// Sessions that ended by a panic. Anything but 0 is a bug.
    pub session_panics: IntCounter,
    /// Batches of packets dropped for a panic. Anything but 0 is a bug.
    pub socket_panics: IntCounter,
    /// From which countries clients come.
    pub countries: CountryMetrics,
    /// What the guard did.
    pub guard: GuardMetrics,
    /// Security events.
    pub security: SecurityMetrics,
}

/// One counter for each close code, looked up by number.
struct PerCode(Vec<(CloseCode, IntCounter)>);

impl PerCode {
    fn new(registry: &Registry, name: &str, help: &str) -> Result<Self, prometheus::Error> {
        let family = family(registry, name, help, &["code"])?;
        Ok(Self(
            CloseCode::ALL.iter().map(|code| (*code, family.with_label_values(&[code.name()]))).collect(),
        ))
    }

    fn of(&self, code: CloseCode) -> Option<&IntCounter> {
        self.0.iter().find(|(known, _)| *known == code).map(|(_, counter)| counter)
    }

    fn inc(&self, code: CloseCode) {
        if let Some(counter) = self.of(code) {
            counter.inc();
        }
    }
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let counter = IntCounter::new(name, help)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    let gauge = IntGauge::new(name, help)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

fn family(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    let family = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

impl Metrics {
    /// Declares and registers everything.
    ///
    /// # Errors
    /// Only if two declarations share a name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let r = &registry;
        let mut counters = Counters::new();
        let mut datagrams = Family::new(
            "zrc_relay_forwarded_datagrams_total",
            "Datagrams handed to the other leg, by the role that sent them.",
            &["from"],
        )?;
        let mut bytes = Family::new(
            "zrc_relay_forwarded_bytes_total",
            "Payload bytes handed to the other leg, by the role that sent them and by kind.",
            &["from", "kind"],
        )?;
        let mut raw = Family::new(
            "zrc_relay_forwarded_raw_datagrams_total",
            "Of the datagrams forwarded, those that left by the other leg's raw channel, by the role that sent them.",
            &["from"],
        )?;
        let shard_connections = IntGaugeVec::new(
            Opts::new("zrc_relay_shard_connections", "Connections now, by shard: one thread each."),
            &["shard"],
        )?;
        r.register(Box::new(shard_connections.clone()))?;
        let streams =
            family(r, "zrc_relay_streams_spliced_total", "Streams opened on the other leg.", &["kind"])?;
        let mut dropped = Family::new(
            "zrc_relay_dropped_datagrams_total",
            "Datagrams and packets that were not forwarded, by reason.",
            &["reason"],
        )?;
        let mut forwarded = |role: Role| {
            let from = role.to_string();
            let mut counter = |family: &mut Family, values: &[&str]| {
                let counter = counters.counter()?;
                family.add(values, &counter);
                Ok::<_, prometheus::Error>(counter)
            };
            Ok::<_, prometheus::Error>(Forwarded {
                datagrams: counter(&mut datagrams, &[&from])?,
                datagram_bytes: counter(&mut bytes, &[&from, "datagram"])?,
                raw_datagrams: counter(&mut raw, &[&from])?,
                stream_bytes: counter(&mut bytes, &[&from, "stream"])?,
            })
        };
        let forwarded = [forwarded(Role::Device)?, forwarded(Role::Peer)?];
        let dropped_by_reason = DropReason::ALL
            .iter()
            .map(|reason| {
                let counter = counters.counter()?;
                dropped.add(&[reason.name()], &counter);
                Ok(counter)
            })
            .collect::<Result<Vec<_>, prometheus::Error>>()?;
        for family in [datagrams, bytes, raw, dropped] {
            r.register(Box::new(family))?;
        }
        let renewals = family(
            r,
            "zrc_relay_certificate_renewals_total",
            "Attempts to have a certificate signed by an authority (ACME).",
            &["outcome"],
        )?;
        let region = IntGaugeVec::new(
            Opts::new(
                "zrc_relay_region_info",
                "Always 1: the region that the relay stands in, where it has one.",
            ),
            &["region"],
        )?;
        r.register(Box::new(region.clone()))?;
        let build = IntGaugeVec::new(Opts::new("zrc_relay_build_info", "Always 1."), &["version", "commit"])?;
        r.register(Box::new(build.clone()))?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), env!("ZRC_COMMIT")]).set(1);
        #[cfg(target_os = "linux")]
        r.register(Box::new(process::Process::new()))?;
        Ok(Self {
            connections_opened: counter(
                r,
                "zrc_relay_connections_opened_total",
                "Connections whose handshake finished.",
            )?,
            connections_closed: PerCode::new(
                r,
                "zrc_relay_connections_closed_total",
                "Connections that are over, by close code.",
            )?,
            connections: gauge(r, "zrc_relay_connections", "Connections now.")?,
            handshakes_failed: counter(
                r,
                "zrc_relay_handshakes_failed_total",
                "Handshakes that did not finish.",
            )?,
            handshakes_refused: counter(
                r,
                "zrc_relay_handshakes_refused_total",
                "Connection attempts turned away because too many were not yet authenticated.",
            )?,
            handshakes_retried: counter(
                r,
                "zrc_relay_handshakes_retried_total",
                "Connection attempts asked to prove their address first, by a Retry.",
            )?,
            allocations_created: counter(
                r,
                "zrc_relay_allocations_created_total",
                "Allocations that came into being.",
            )?,
            allocations_ended: PerCode::new(
                r,
                "zrc_relay_allocations_ended_total",
                "Allocations that are over, by close code.",
            )?,
            allocations: gauge(r, "zrc_relay_allocations", "Allocations now.")?,
            started: gauge(r, "process_start_time_seconds", "When the process started, in Unix seconds.")?,
            max_allocations: gauge(
                r,
                "zrc_relay_max_allocations",
                "Allocations that there may be at once; the next one is refused.",
            )?,
            refused: PerCode::new(r, "zrc_relay_refused_total", "Requests refused, by close code.")?,
            forwarded,
            streams: ["bi", "uni"].map(|kind| streams.with_label_values(&[kind])),
            dropped: dropped_by_reason,
            global_limit: gauge(
                r,
                "zrc_relay_global_limit_bytes_per_second",
                "What all allocations together may pass, in payload bytes per second; 0 without such a limit.",
            )?,
            global_use: gauge(
                r,
                "zrc_relay_global_use_bytes_per_second",
                "Payload bytes that all allocations passed in the last second; 0 without a global limit.",
            )?,
            certificate_renewals: [
                renewals.with_label_values(&["failed"]),
                renewals.with_label_values(&["ok"]),
            ],
            certificate_expiry: gauge(
                r,
                "zrc_relay_certificate_expiry_timestamp_seconds",
                "When the certificate that new connections are shown ceases to be valid, in Unix seconds; 0: not known.",
            )?,
            raw_channels: gauge(r, "zrc_relay_raw_channels", "Connections with a raw channel now.")?,
            raw_probes_answered: counter(
                r,
                "zrc_relay_raw_probes_answered_total",
                "Probes of raw channels answered; each open channel sends one a second.",
            )?,
            shard_handoffs: counter(
                r,
                "zrc_relay_shard_handoffs_total",
                "QUIC packets that arrived at another shard's socket and were handed over.",
            )?,
            shard_connections,
            region,
            migrations: counter(
                r,
                "zrc_relay_migrations_total",
                "Connections whose client appeared at another address.",
            )?,
            socket_panics: counter(
                r,
                "zrc_relay_socket_panics_total",
                "Batches of packets dropped for a panic; anything but 0 is a bug.",
            )?,
            session_panics: counter(
                r,
                "zrc_relay_session_panics_total",
                "Sessions that ended by a panic; anything but 0 is a bug.",
            )?,
            distributions: Distributions::new(r)?,
            countries: CountryMetrics::new(r)?,
            guard: GuardMetrics::new(r)?,
            security: SecurityMetrics::new(r)?,
            registry,
        })
    }

    /// What passed from this role to the other.
    pub fn forwarded(&self, from: Role) -> &Forwarded {
        let [device, peer] = &self.forwarded;
        match from {
            Role::Device => device,
            Role::Peer => peer,
        }
    }

    /// Names the region that the relay stands in, so that several relays can be added up by it.
    pub fn set_region(&self, region: &str) {
        self.region.with_label_values(&[region]).set(1);
    }

    /// When the process started, in Unix seconds.
    pub fn show_start(&self, unix_secs: u64) {
        self.started.set(i64::try_from(unix_secs).unwrap_or(i64::MAX));
    }

    /// So many allocations there may be at once.
    pub fn show_max_allocations(&self, max_allocations: usize) {
        self.max_allocations.set(i64::try_from(max_allocations).unwrap_or(i64::MAX));
    }

    /// Connections of one shard.
    pub fn shard_connections(&self, shard: u8) -> IntGauge {
        self.shard_connections.with_label_values(&[&shard.to_string()])
    }

    /// Streams spliced: `true` for bidirectional ones.
    pub fn streams(&self, bidirectional: bool) -> &IntCounter {
        let [bi, uni] = &self.streams;
        if bidirectional { bi } else { uni }
    }

    /// Counts datagrams that were not forwarded.
    pub fn dropped(&self, reason: DropReason, datagrams: u64) {
        // ALL is in the order of the variants, and `dropped` was made from ALL.
        if let Some(counter) = self.dropped.get(reason as usize) {
            counter.inc_by(datagrams);
        }
    }

    /// Attempts to have a certificate signed, that came to this.
    pub fn certificate_renewals(&self, is_ok: bool) -> &IntCounter {
        let [failed, ok] = &self.certificate_renewals;
        if is_ok { ok } else { failed }
    }

    /// A connection is over.
    pub fn connection_closed(&self, code: CloseCode) {
        self.connections_closed.inc(code);
        self.connections.dec();
    }

    /// An allocation is over.
    pub fn allocation_ended(&self, code: CloseCode) {
        self.allocations_ended.inc(code);
        self.allocations.dec();
    }

    /// A request was refused.
    pub fn refused(&self, code: CloseCode) {
        self.refused.inc(code);
    }

    /// All of it in Prometheus' text format.
    ///
    /// # Errors
    /// Only if a metric is inconsistent with itself.
    pub fn encode(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drop_reason_moves_its_own_series() {
        let metrics = Metrics::new().unwrap();
        for (n, reason) in DropReason::ALL.into_iter().enumerate() {
            metrics.dropped(reason, n as u64 + 1);
        }
        let text = metrics.encode().unwrap();
        for (n, reason) in DropReason::ALL.into_iter().enumerate() {
            let line =
                format!("zrc_relay_dropped_datagrams_total{{reason=\"{}\"}} {}\n", reason.name(), n + 1);
            assert!(text.contains(&line), "{line} not in {text}");
        }
    }

    #[test]
    fn every_close_code_has_its_series() {
        let metrics = Metrics::new().unwrap();
        for code in CloseCode::ALL {
            metrics.connections.inc();
            metrics.connection_closed(*code);
        }
        let text = metrics.encode().unwrap();
        for code in CloseCode::ALL {
            assert!(text.contains(&format!("closed_total{{code=\"{}\"}} 1\n", code.name())), "{code}");
        }
        assert!(text.contains("zrc_relay_connections 0\n"));
    }
}
