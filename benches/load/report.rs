//! What a run cost, and what is said about it.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::{lanes::Counts, proc_stat::Process};

/// Below this a rate counts as carried.
const MAX_LOSS: f64 = 0.01;

/// Takes time, CPU and memory, lap by lap.
pub struct Meter {
    relay: Process,
    load: Process,
    last: Reading,
}

#[derive(Clone, Copy)]
struct Reading {
    at: Instant,
    relay_cpu: Duration,
    load_cpu: Duration,
    relay_rss_kib: f64,
}

/// What a lap took, and what memory grew by.
#[derive(Clone, Copy)]
pub struct Lap {
    pub wall: Duration,
    pub relay_cpu: Duration,
    pub load_cpu: Duration,
    pub relay_rss_kib: f64,
}

impl Meter {
    pub fn new(relay: Process, load: Process) -> Self {
        let last = Reading::take(&relay, &load);
        Self { relay, load, last }
    }

    pub fn lap(&mut self) -> Lap {
        let now = Reading::take(&self.relay, &self.load);
        let last = std::mem::replace(&mut self.last, now);
        Lap {
            wall: now.at - last.at,
            relay_cpu: now.relay_cpu.saturating_sub(last.relay_cpu),
            load_cpu: now.load_cpu.saturating_sub(last.load_cpu),
            relay_rss_kib: now.relay_rss_kib - last.relay_rss_kib,
        }
    }
}

impl Reading {
    fn take(relay: &Process, load: &Process) -> Self {
        Self {
            at: Instant::now(),
            relay_cpu: relay.cpu().unwrap_or_default(),
            load_cpu: load.cpu().unwrap_or_default(),
            relay_rss_kib: relay.rss_kib().unwrap_or_default() as f64,
        }
    }
}

/// What is printed; what was not measured is null.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pairs: u32,
    setups_per_sec: f64,
    relay_cpu_ms_per_setup: f64,
    #[serde(skip)]
    set_up_rss_kib: f64,
    relay_rss_kib_per_pair: Option<f64>,
    sent: Option<u64>,
    refused: Option<u64>,
    delivered: Option<u64>,
    loss: Option<f64>,
    pps: Option<f64>,
    mbytes_per_sec: Option<f64>,
    rtt_samples: Option<usize>,
    rtt_p50_us: Option<u64>,
    rtt_p99_us: Option<u64>,
    relay_cpu_us_per_delivered: Option<f64>,
    /// Megabytes in a second of the relay's CPU.
    mbytes_per_core_sec: Option<f64>,
    relay_cpu_share: Option<f64>,
    load_cpu_share: Option<f64>,
    /// Of the datagrams of sessions, those that went beside QUIC.
    pub raw_share: Option<f64>,
    probes: Option<Vec<Probe>>,
}

impl Report {
    pub fn new(pairs: u32, set_up: Lap) -> Self {
        let each = f64::from(pairs.max(1));
        Self {
            pairs,
            setups_per_sec: each / set_up.wall.as_secs_f64(),
            relay_cpu_ms_per_setup: set_up.relay_cpu.as_secs_f64() * 1e3 / each,
            set_up_rss_kib: set_up.relay_rss_kib,
            ..Self::default()
        }
    }

    /// Nothing was sent for a while.
    pub fn idle(&mut self, held: Lap) {
        let kib = self.set_up_rss_kib + held.relay_rss_kib;
        self.relay_rss_kib_per_pair = Some(kib / f64::from(self.pairs.max(1)));
        self.relay_cpu_share = Some(share(held.relay_cpu, held));
    }

    /// A load was on: what sending took, and what the drain after it did.
    pub fn loaded(&mut self, counts: Counts, [sending, draining]: [Lap; 2], rtts_us: &[u64]) {
        let mbytes = counts.delivered_bytes as f64 / 1e6;
        let relay_cpu_secs = (sending.relay_cpu + draining.relay_cpu).as_secs_f64();
        self.sent = Some(counts.sent);
        self.refused = Some(counts.refused);
        self.delivered = Some(counts.delivered);
        self.loss = Some(loss(counts));
        self.pps = Some(counts.delivered as f64 / sending.wall.as_secs_f64());
        self.mbytes_per_sec = Some(mbytes / sending.wall.as_secs_f64());
        self.rtt_samples = Some(rtts_us.len());
        self.rtt_p50_us = percentile(rtts_us, 50);
        self.rtt_p99_us = percentile(rtts_us, 99);
        self.relay_cpu_us_per_delivered = Some(relay_cpu_secs * 1e6 / counts.delivered.max(1) as f64);
        self.mbytes_per_core_sec = Some(mbytes / relay_cpu_secs);
        self.relay_cpu_share = Some(share(sending.relay_cpu, sending));
        self.load_cpu_share = Some(share(sending.load_cpu, sending));
    }

    /// Many loads were on, one after the other.
    pub fn search(&mut self, probes: Vec<Probe>) {
        let best = probes.iter().filter(|probe| probe.loss < MAX_LOSS).max_by(|a, b| a.pps.total_cmp(&b.pps));
        if let Some(best) = best {
            self.pps = Some(best.pps);
            self.loss = Some(best.loss);
            self.relay_cpu_us_per_delivered = Some(best.relay_cpu_us_per_delivered);
            self.relay_cpu_share = Some(best.relay_cpu_share);
            self.load_cpu_share = Some(best.load_cpu_share);
        }
        self.probes = Some(probes);
    }
}

/// One rate that was tried.
#[derive(Debug, Serialize)]
pub struct Probe {
    asked_pps: f64,
    pps: f64,
    loss: f64,
    relay_cpu_us_per_delivered: f64,
    relay_cpu_share: f64,
    load_cpu_share: f64,
}

impl Probe {
    pub fn new(asked_pps: f64, counts: Counts, [sending, draining]: [Lap; 2]) -> Self {
        let relay_cpu_us = (sending.relay_cpu + draining.relay_cpu).as_secs_f64() * 1e6;
        Self {
            asked_pps,
            pps: counts.delivered as f64 / sending.wall.as_secs_f64(),
            loss: loss(counts),
            relay_cpu_us_per_delivered: relay_cpu_us / counts.delivered.max(1) as f64,
            relay_cpu_share: share(sending.relay_cpu, sending),
            load_cpu_share: share(sending.load_cpu, sending),
        }
    }

    /// Whether a higher rate is worth a try: nearly all that was asked for was sent, and arrived.
    pub fn passes(&self) -> bool {
        self.loss < MAX_LOSS && self.pps > (1.0 - 2.0 * MAX_LOSS) * self.asked_pps
    }
}

fn loss(counts: Counts) -> f64 {
    if counts.sent == 0 {
        return 1.0;
    }
    1.0 - (counts.delivered as f64 / counts.sent as f64).min(1.0)
}

fn share(cpu: Duration, lap: Lap) -> f64 {
    cpu.as_secs_f64() / lap.wall.as_secs_f64()
}

/// The value below which `percent` of the sorted samples lie (nearest rank).
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied()
}
