//! `bench`: what a relay carries, how fast, and what that costs it.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    Exit, Failure, OrFail as _, out,
    pair::{Ask, Granter, IssuerArgs, Pair, PairKeys, percentile, wait_for_mtu},
    proc_stat::Process,
    relay_arg::{RELAY_HELP, RelayArgs},
    signals::Signals,
};
use crate::{
    client::{End, MAX_DATAGRAM_BYTES, Options, RecvStream, Relay, SendError, SendStream, Session, Train},
    clock::Clock,
    wire::{CloseCode, Role},
};

/// Pairs that connect at the same time: enough to keep a core busy, few enough not to be a flood.
const CONNECTING: usize = 32;
/// For one client; a relay that is busy with all the others is asked again within it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Beyond the run, so that no token expires while many pairs connect.
const TTL_MARGIN: Duration = Duration::from_secs(600);
/// The pacer's step. What is due within it is sent at once, one to each pair in turn.
const TICK: Duration = Duration::from_millis(1);
/// A pacer that was held up sends what it missed, but no more than this much of it: the rest is not sent.
const CATCH_UP: Duration = Duration::from_millis(20);
/// How often to look whether any pair is left, once one has gone.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// After the last was sent: how long without any arrival until the rest counts as lost.
const QUIET: Duration = Duration::from_millis(300);
/// The same, at most, however many still arrive.
const DRAIN: Duration = Duration::from_secs(3);
/// How long the raw channels of all pairs may take to open, and how often to try whether they have.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
const OPEN_RETRY: Duration = Duration::from_millis(50);
/// What is sent to one pair at once, at most, in bytes: about what the kernel takes.
const TRAIN_BYTES: usize = 60_000;
/// For all goodbyes together.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
/// How many round trips to sample, about.
const RTT_SAMPLES: u64 = 2000;
/// One in this many is a sample, at most and at least.
const SAMPLED_ONE_IN: (u64, u64) = (10, 200);
/// Bytes of records that wait to be written to a stream.
const STREAM_QUEUE_BYTES: usize = 256 * 1024;
/// Datagrams that wait in a client, in bytes: a burst at the highest rate.
const DATAGRAM_BUFFER_BYTES: usize = 1024 * 1024;

/// The first byte of everything that is sent: no answer wanted; send it back; sent back; not to be counted.
const PLAIN: u8 = 0;
const SAMPLE: u8 = 1;
const ECHO: u8 = 2;
const TRIAL: u8 = 3;
/// The kind, and when it was sent.
const STAMPED_BYTES: usize = 9;

/// Measure a relay: many pairs, a steady rate, delivery, latency, and the relay's CPU and memory
#[derive(Debug, clap::Args)]
#[command(after_help = after_help())]
pub struct Bench {
    #[command(flatten)]
    relay: RelayArgs,
    /// How many pairs; each has its own keys and token, each client its own UDP socket
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pairs: u32,
    /// Payload of a datagram, or length of a record on a stream, in bytes
    #[arg(long, value_name = "B", default_value = "1200", value_parser = clap::value_parser!(u32).range(1..=MAX_DATAGRAM_BYTES as i64))]
    size: u32,
    /// Datagrams or records a second, over all pairs, echoes included; 0 connects, holds for --secs, and leaves
    #[arg(long, value_name = "PPS", default_value = "1000", value_parser = clap::value_parser!(u64).range(0..=100_000_000))]
    rate: u64,
    /// How long
    #[arg(long, value_name = "S", default_value = "10", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    secs: u32,
    /// What to send
    #[arg(long, value_enum, default_value = "datagram")]
    mode: Mode,
    /// The relay's process on this machine, for its CPU and memory
    #[arg(long, value_name = "PID")]
    relay_pid: Option<NonZeroU32>,
    /// The rate that the tokens ask for [default: the most that a token can]
    #[arg(long, value_name = "BYTES_PER_SEC", default_value_t = u32::MAX, hide_default_value = true)]
    bandwidth: u32,
    /// The quota that the tokens ask for [default: the most that a token can]
    #[arg(long, value_name = "BYTES", default_value_t = u64::MAX, hide_default_value = true)]
    quota: u64,
    #[command(flatten)]
    issuer: IssuerArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// Datagrams from each device to its peer
    Datagram,
    /// Records over a stream in each direction of each pair
    Stream,
    /// The same as packets beside the QUIC connections; what is due to a pair at once goes as a train
    Raw,
}

fn after_help() -> String {
    format!(
        "\
The load is open: it keeps its rate whatever comes back. A sender that is held up catches
up by at most 20 ms. What does not fit its buffer is not sent, and not counted as sent.
Round trips are sampled: at most one in ten is sent back by the other side.

--json prints one object on stdout; what was not measured is null:
  sent, delivered             datagrams or records, both directions, echoes included
  delivered_bytes             their payload
  secs, pps                   how long was sent; how many were delivered a second
  loss                        the share of what was sent that did not arrive
  rtt_p50_us, rtt_p99_us      of the sampled round trips
  relay_cpu_us_per_delivered  CPU of the relay while sending and delivering alone
  relay_cpu_ms_per_setup      CPU of the relay for one pair (two handshakes, two proofs),
                              from before the first connect until all pairs are ready
  relay_rss_kib_per_pair      growth of the relay's memory since before the first connect
  raw_share                   with --mode raw: of the datagrams that clients sent and received,
                              the share that went beside QUIC
  closed                      allocations that the relay ended, by code

--mode raw waits until datagrams go and come raw on all pairs; a few for trial are not counted.

Each pair makes its own keys: this is for relays where devices certify themselves.
SIGINT ends the run early and reports. Exit 0: measured, whatever was lost or closed;
1: a client was refused; 69: no answer, or --mode raw and the relay or the path has no raw channel.

{RELAY_HELP}

Examples:
  zrc-relay bench --relay relay.json --pairs 200 --rate 20000 --relay-pid $(pidof zrc-relay)
  zrc-relay bench --relay relay.json --pairs 10 --rate 5000 --mode stream --json
  zrc-relay bench --relay relay.json --pairs 1000 --rate 0 --secs 5"
    )
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    sent: u64,
    delivered: u64,
    delivered_bytes: u64,
    secs: f64,
    pps: Option<f64>,
    loss: Option<f64>,
    rtt_p50_us: Option<u64>,
    rtt_p99_us: Option<u64>,
    relay_cpu_us_per_delivered: Option<f64>,
    relay_rss_kib_per_pair: Option<f64>,
    relay_cpu_ms_per_setup: Option<f64>,
    raw_share: Option<f64>,
    closed: BTreeMap<&'static str, u64>,
}

impl Bench {
    pub(super) async fn run(self) -> Result<Exit, Failure> {
        let process = match self.relay_pid {
            Some(pid) => Some(Process::find(pid.get()).ok_or_else(|| {
                Failure::new(Exit::Usage, format!("--relay-pid {pid}: there is no such process"))
            })?),
            None => None,
        };
        let relay = Relay::new(self.relay.resolve().await?).with_options(Options {
            connect_timeout: CONNECT_TIMEOUT,
            // A pair that the relay ends has ended: that is what is counted.
            reconnect: false,
            raw_channel: self.mode == Mode::Raw,
            agent: concat!("zrc-relay-bench/", env!("CARGO_PKG_VERSION")).into(),
            datagram_send_buffer_bytes: DATAGRAM_BUFFER_BYTES,
            datagram_receive_buffer_bytes: 4 * DATAGRAM_BUFFER_BYTES,
            ..Options::default()
        });
        let mut signals = Signals::new()?;
        allow_sockets(2 * u64::from(self.pairs));

        let before = Cost::of(process.as_ref());
        let mut pairs = Vec::new();
        let connected = self.connect(&relay, &mut pairs, &mut signals).await;
        let outcome = match connected {
            Ok(()) => self.load(pairs, process.as_ref(), before, &mut signals).await,
            Err(failure) => {
                release(pairs, &mut signals).await;
                Err(failure)
            }
        };
        self.show(&outcome?)?;
        Ok(Exit::Ok)
    }

    /// Connects all pairs. Those that are connected when it fails are in `pairs`, to be released.
    async fn connect(
        &self,
        relay: &Relay,
        pairs: &mut Vec<Pair>,
        signals: &mut Signals,
    ) -> Result<(), Failure> {
        let bar = bar(u64::from(self.pairs), "connecting");
        let ask = Ask {
            ttl: Duration::from_secs(u64::from(self.secs)) + TTL_MARGIN,
            bandwidth_bytes_per_sec: self.bandwidth,
            quota_bytes: self.quota,
        };
        let granter = self.issuer.granter()?;
        let mut connecting = JoinSet::new();
        let mut failed = None;
        let mut waiting = self.pairs;
        loop {
            while failed.is_none() && waiting > 0 && connecting.len() < CONNECTING {
                connecting.spawn(connect_one(relay.clone(), ask, granter.clone()));
                waiting -= 1;
            }
            tokio::select! {
                ended = connecting.join_next() => {
                    let Some(ended) = ended else { break };
                    match ended.or_fail(Exit::Software, "a client's task ended").and_then(|pair| pair) {
                        Ok(pair) => {
                            pairs.push(pair);
                            bar.inc(1);
                        }
                        Err(failure) => failed = failed.or(Some(failure)),
                    }
                }
                // Those that are under way are waited for, so that they can be released.
                _ = signals.next(), if failed.is_none() => {
                    failed = Some(Failure::new(Exit::Refused, "interrupted before all pairs were connected"));
                }
            }
        }
        bar.finish_and_clear();
        failed.map_or(Ok(()), Err)
    }

    /// Puts the load on, measures, and releases everything.
    async fn load(
        &self,
        pairs: Vec<Pair>,
        process: Option<&Process>,
        before: Cost,
        signals: &mut Signals,
    ) -> Result<Report, Failure> {
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        if self.mode == Mode::Datagram && self.rate > 0 {
            let sessions = || pairs.iter().flat_map(|pair| [&pair.device, &pair.peer]);
            if !wait_for_mtu(sessions, size).await {
                out::say(format_args!(
                    "warning: {size} bytes do not fit a datagram on this path; each goes by a stream"
                ));
            }
        }
        if self.mode == Mode::Raw
            && let Err(failure) = open_channels(&pairs, size).await
        {
            release(pairs, signals).await;
            return Err(failure);
        }
        let mut tasks = JoinSet::new();
        let load = match self.start(pairs, &mut tasks).await {
            Ok(load) => load,
            Err((pairs, failure)) => {
                release(pairs, signals).await;
                return Err(failure);
            }
        };
        let ready = Cost::of(process);
        let wanted = Duration::from_secs(u64::from(self.secs));
        let progress = bar(u64::from(self.secs), if self.rate == 0 { "holding" } else { "sending" });
        let started = Instant::now();
        tokio::select! {
            () = async {
                if self.rate == 0 {
                    sleep(wanted).await;
                } else {
                    pace(&load, self.rate, wanted, &progress).await;
                }
            } => {}
            _ = signals.next() => out::say("interrupted: reporting what was measured so far"),
        }
        let secs = started.elapsed().as_secs_f64();
        progress.finish_and_clear();
        if self.rate > 0 {
            drain(&load).await;
        }
        let after = Cost::of(process);
        let report = self.report(&load, secs, [before, ready, after]);
        // What ends from now on was ended from here.
        tasks.shutdown().await;
        release(load.into_pairs(), signals).await;
        Ok(report)
    }

    /// Opens the streams, if there are to be any, and starts all that receives.
    async fn start(
        &self,
        pairs: Vec<Pair>,
        tasks: &mut JoinSet<()>,
    ) -> Result<Arc<Load>, (Vec<Pair>, Failure)> {
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        let mut outlets = Vec::new();
        let mut ends = Vec::new();
        if self.mode == Mode::Stream {
            for pair in &pairs {
                match open_streams(pair, size).await {
                    Ok((outlet, end)) => {
                        outlets.push(outlet);
                        ends.push(end);
                    }
                    Err(failure) => return Err((pairs, failure)),
                }
            }
        }
        let load = Arc::new(Load::new(pairs, outlets, size, self.mode));
        for lane in 0..load.lanes.len() {
            match self.mode {
                Mode::Stream => {}
                Mode::Datagram | Mode::Raw => {
                    for role in Role::BOTH {
                        tasks.spawn(receive_datagrams(load.clone(), lane, role));
                    }
                }
            }
        }
        for (lane, ends) in ends.into_iter().enumerate() {
            for end in ends {
                let StreamEnd { role, send, queue, recv } = end;
                tasks.spawn(write_records(load.clone(), send, queue));
                tasks.spawn(read_records(load.clone(), lane, role, recv));
            }
        }
        Ok(load)
    }

    fn report(&self, load: &Load, secs: f64, [before, ready, after]: [Cost; 3]) -> Report {
        let (sent, delivered) = (load.sent.load(Relaxed), load.delivered.load(Relaxed));
        let mut rtts_us = std::mem::take(&mut *load.rtts_us.lock().unwrap_or_else(PoisonError::into_inner));
        rtts_us.sort_unstable();
        let pairs = f64::from(self.pairs);
        let cpu = |from: Cost, to: Cost| Some((to.cpu? - from.cpu?.min(to.cpu?)).as_secs_f64());
        let growth_kib = || Some(after.rss_kib? as f64 - before.rss_kib? as f64);
        let mut closed = BTreeMap::new();
        for lane in &load.lanes {
            if let Some(code) = lane.ended() {
                *closed.entry(code).or_default() += 1;
            }
        }
        Report {
            sent,
            delivered,
            delivered_bytes: load.delivered_bytes.load(Relaxed),
            secs: rounded(secs, 3),
            pps: (self.rate > 0 && secs > 0.0).then(|| rounded(delivered as f64 / secs, 1)),
            loss: (sent > 0).then(|| rounded(1.0 - (delivered as f64 / sent as f64).min(1.0), 6)),
            rtt_p50_us: percentile(&rtts_us, 50),
            rtt_p99_us: percentile(&rtts_us, 99),
            relay_cpu_us_per_delivered: cpu(ready, after)
                .filter(|_| delivered > 0)
                .map(|secs| rounded(secs * 1e6 / delivered as f64, 3)),
            relay_rss_kib_per_pair: growth_kib().map(|kib| rounded(kib / pairs, 2)),
            relay_cpu_ms_per_setup: cpu(before, ready).map(|secs| rounded(secs * 1e3 / pairs, 4)),
            raw_share: (self.mode == Mode::Raw).then(|| load.raw_share()).flatten(),
            closed,
        }
    }

    fn show(&self, report: &Report) -> Result<(), Failure> {
        if self.json {
            return out::json(report);
        }
        let or_dash = |value: Option<f64>| value.map_or("-".into(), |value| value.to_string());
        let micros = |value: Option<u64>| value.map_or("-".into(), |value| format!("{value} us"));
        let closed: Vec<_> = report.closed.iter().map(|(code, count)| format!("{count} {code}")).collect();
        let mbytes_per_sec = report.delivered_bytes as f64 / report.secs.max(f64::MIN_POSITIVE) / 1e6;
        for (name, value) in [
            ("sent", report.sent.to_string()),
            (
                "delivered",
                format!("{} ({} bytes, {mbytes_per_sec:.1} MB/s)", report.delivered, report.delivered_bytes),
            ),
            ("loss", report.loss.map_or("-".into(), |loss| format!("{:.3} %", loss * 100.0))),
            ("time", format!("{} s, {} delivered a second", report.secs, or_dash(report.pps))),
            ("round trip", format!("p50 {}, p99 {}", micros(report.rtt_p50_us), micros(report.rtt_p99_us))),
            (
                "relay CPU",
                format!(
                    "{} us each delivered, {} ms each pair set up",
                    or_dash(report.relay_cpu_us_per_delivered),
                    or_dash(report.relay_cpu_ms_per_setup)
                ),
            ),
            ("relay memory", format!("{} KiB each pair", or_dash(report.relay_rss_kib_per_pair))),
            ("raw", report.raw_share.map_or("-".into(), |share| format!("{:.2} %", share * 100.0))),
            ("closed", if closed.is_empty() { "none".into() } else { closed.join(", ") }),
        ] {
            out::data(format_args!("{name:<14} {value}"))?;
        }
        Ok(())
    }
}

fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

fn bar(length: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(length).with_message(what);
    match ProgressStyle::with_template("{msg:10} {wide_bar} {pos}/{len} {elapsed}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Raises the limit of open files as far as it goes: each client has a socket of its own.
fn allow_sockets(wanted: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // A few for everything else.
    let needed = wanted + 64;
    if current.is_none_or(|current| current >= needed) {
        return;
    }
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    if raised.is_err() || maximum.is_some_and(|maximum| maximum < needed) {
        out::say(format_args!("warning: {needed} open files are needed, the limit is lower (ulimit -n)"));
    }
}

/// What the relay's process has used by now, as far as that is known.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    cpu: Option<Duration>,
    rss_kib: Option<u64>,
}

impl Cost {
    fn of(process: Option<&Process>) -> Self {
        process.map_or(Self::default(), |process| Self { cpu: process.cpu(), rss_kib: process.rss_kib() })
    }
}

async fn connect_one(relay: Relay, ask: Ask, granter: Option<Granter>) -> Result<Pair, Failure> {
    let keys = PairKeys::random()?;
    let token = keys.mint(relay.descriptor().relay_id, &ask, granter.as_ref())?;
    let device = keys.ticket(token.clone(), Role::Device)?;
    Pair::connect(&relay, device, keys.ticket(token, Role::Peer)?).await
}

/// Waits until datagrams of this size go and come raw on all pairs: sends some for trial until each side has had one.
async fn open_channels(pairs: &[Pair], size: usize) -> Result<(), Failure> {
    let unavailable = |text: String| Failure::new(Exit::Unavailable, format!("--mode raw: {text}"));
    if pairs.iter().any(|pair| !pair.device.grant().raw_channel || !pair.peer.grant().raw_channel) {
        return Err(unavailable("the relay offers no raw channel".into()));
    }
    let trial = Bytes::from(vec![TRIAL; size]);
    let mut missing: Vec<_> =
        pairs.iter().flat_map(|pair| [(&pair.device, &pair.peer), (&pair.peer, &pair.device)]).collect();
    let all = missing.len();
    let started = Instant::now();
    while !missing.is_empty() {
        if started.elapsed() >= OPEN_TIMEOUT {
            let fits = |(from, _): &&(&Session, &Session)| {
                from.stats().raw_max_bytes.is_some_and(|most| most >= size)
            };
            let fitting = missing.iter().filter(fits).count();
            return Err(unavailable(format!(
                "no raw datagram of {size} bytes has come through within {} s in {} of {all} directions, and in {} of \
                 those they are larger than the path carries, or the relay does not answer",
                OPEN_TIMEOUT.as_secs(),
                missing.len(),
                missing.len() - fitting,
            )));
        }
        for (from, _) in &missing {
            if from.stats().raw_max_bytes.is_some_and(|most| most >= size) {
                // What has no room or no connection is tried again.
                let _ = from.send_datagram(trial.clone());
            }
        }
        sleep(OPEN_RETRY).await;
        missing.retain(|(_, to)| to.stats().raw_received == 0);
        for (_, to) in &missing {
            if let Some(end) = to.end() {
                return Err(Failure::new(Exit::Refused, format!("--mode raw: a pair has ended: {end}")));
            }
        }
    }
    Ok(())
}

/// Says goodbye for all pairs at once, and waits until the relay has heard it.
async fn release(pairs: Vec<Pair>, signals: &mut Signals) {
    let mut releasing: JoinSet<()> = pairs.into_iter().map(Pair::release).collect();
    let all = async { while releasing.join_next().await.is_some() {} };
    if signals.last(timeout(RELEASE_TIMEOUT, all)).await.is_err() {
        out::say("warning: the relay did not confirm all goodbyes");
    }
}

/// One pair under load.
struct Lane {
    pair: Pair,
    /// Where records go, by the role that sends them; without streams there are none.
    outlets: Option<[mpsc::Sender<Bytes>; 2]>,
    /// Set once, by the first who notices.
    ended: OnceLock<&'static str>,
}

impl Lane {
    fn session(&self, role: Role) -> &Session {
        match role {
            Role::Device => &self.pair.device,
            Role::Peer => &self.pair.peer,
        }
    }

    fn note(&self, end: &End) {
        let _ = self.ended.set(end.code().map_or("TRANSPORT", CloseCode::name));
    }

    /// The code that the relay ended the allocation with, if it did.
    fn ended(&self) -> Option<&'static str> {
        for role in Role::BOTH {
            if let Some(end) = self.session(role).end() {
                self.note(&end);
            }
        }
        self.ended.get().copied()
    }
}

/// How many datagrams clients have sent and received, and how many of them raw.
#[derive(Debug, Clone, Copy)]
struct Crossed {
    raw: u64,
    all: u64,
}

impl Crossed {
    fn of(lanes: &[Lane]) -> Self {
        let mut crossed = Self { raw: 0, all: 0 };
        for stats in lanes.iter().flat_map(|lane| [lane.pair.device.stats(), lane.pair.peer.stats()]) {
            crossed.raw += stats.raw_sent + stats.raw_received;
            crossed.all += stats.datagrams_sent + stats.datagrams_received;
        }
        crossed
    }
}

/// All pairs, and what has been counted.
struct Load {
    lanes: Vec<Lane>,
    clock: Clock,
    size: usize,
    /// What is sent unless it is a sample: always the same.
    plain: Bytes,
    /// As many of the same end to end as go at once.
    plain_train: Bytes,
    mode: Mode,
    /// What the sessions had sent and received before.
    crossed_before: Crossed,
    sent: AtomicU64,
    delivered: AtomicU64,
    delivered_bytes: AtomicU64,
    rtts_us: Mutex<Vec<u64>>,
}

/// What became of one payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Offered {
    Sent,
    /// The sender's buffer is full: not now.
    Full,
    /// The pair is no more.
    Gone,
}

impl Load {
    fn new(pairs: Vec<Pair>, outlets: Vec<[mpsc::Sender<Bytes>; 2]>, size: usize, mode: Mode) -> Self {
        let mut outlets = outlets.into_iter();
        let lanes: Vec<_> = pairs
            .into_iter()
            .map(|pair| Lane { pair, outlets: outlets.next(), ended: OnceLock::new() })
            .collect();
        Self {
            crossed_before: Crossed::of(&lanes),
            lanes,
            clock: Clock::start(),
            size,
            plain: vec![PLAIN; size].into(),
            plain_train: vec![PLAIN; (TRAIN_BYTES / size.max(1)).max(1) * size].into(),
            mode,
            sent: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            delivered_bytes: AtomicU64::new(0),
            rtts_us: Mutex::default(),
        }
    }

    /// The sessions, once nobody else uses them.
    fn into_pairs(self: Arc<Self>) -> Vec<Pair> {
        match Arc::try_unwrap(self) {
            Ok(load) => load.lanes.into_iter().map(|lane| lane.pair).collect(),
            Err(shared) => shared
                .lanes
                .iter()
                .map(|lane| Pair { device: lane.pair.device.clone(), peer: lane.pair.peer.clone() })
                .collect(),
        }
    }

    /// Of the datagrams that clients sent and received, the share that went raw.
    fn raw_share(&self) -> Option<f64> {
        let Crossed { raw, all } = Crossed::of(&self.lanes);
        let (raw, all) = (raw - self.crossed_before.raw, all - self.crossed_before.all);
        (all > 0).then(|| rounded(raw as f64 / all as f64, 6))
    }

    fn payload(&self, kind: u8, stamp_nanos: u64) -> Bytes {
        let mut payload = vec![0; self.size];
        if let Some((stamped, _)) = payload.split_first_chunk_mut::<STAMPED_BYTES>() {
            *stamped = stamped_with(kind, stamp_nanos);
        }
        payload.into()
    }

    /// Sends from one side of a pair. Records count as sent when they are written.
    fn offer(&self, lane: &Lane, from: Role, payload: Bytes) -> Offered {
        if let Some(outlets) = &lane.outlets {
            let Some(outlet) = outlets.get(from.index()) else { return Offered::Gone };
            return match outlet.try_send(payload) {
                Ok(()) => Offered::Sent,
                Err(mpsc::error::TrySendError::Full(_)) => Offered::Full,
                Err(mpsc::error::TrySendError::Closed(_)) => Offered::Gone,
            };
        }
        self.noted(lane, lane.session(from).send_datagram(payload).map(|()| 1))
    }

    /// Sends datagrams end to end to one side of a pair.
    fn offer_train(&self, lane: &Lane, from: Role, data: &[u8]) -> Offered {
        self.noted(lane, lane.session(from).send_train(data, self.size))
    }

    fn noted(&self, lane: &Lane, outcome: Result<usize, SendError>) -> Offered {
        match outcome {
            Ok(count) => {
                self.sent.fetch_add(count as u64, Relaxed);
                Offered::Sent
            }
            Err(SendError::Ended(end)) => {
                lane.note(&end);
                Offered::Gone
            }
            Err(SendError::NotConnected) => Offered::Gone,
            Err(_) => Offered::Full,
        }
    }

    /// Counts arrivals, all of one size but for the last, and looks at those that are not plain.
    fn arrived(&self, lane: &Lane, at: Role, payloads: &[u8], segment_bytes: usize) {
        let (mut count, mut bytes) = (0, payloads.len());
        for payload in payloads.chunks(segment_bytes.max(1)) {
            count += 1;
            match payload.first() {
                Some(&PLAIN) => {}
                Some(&TRIAL) => {
                    count -= 1;
                    bytes -= payload.len();
                }
                _ => self.answer(lane, at, payload),
            }
        }
        self.delivered.fetch_add(count, Relaxed);
        self.delivered_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Sends a sample back, takes the time of one that came back.
    fn answer(&self, lane: &Lane, at: Role, payload: &[u8]) {
        let Some((kind, stamp_nanos)) = stamp_of(payload) else { return };
        match (kind, at) {
            (SAMPLE, Role::Peer) => {
                // What does not fit is one sample less.
                self.offer(lane, Role::Peer, self.payload(ECHO, stamp_nanos));
            }
            (ECHO, Role::Device) => {
                let rtt_us = self.clock.nanos().saturating_sub(stamp_nanos) / 1000;
                self.rtts_us.lock().unwrap_or_else(PoisonError::into_inner).push(rtt_us);
            }
            _ => {}
        }
    }
}

fn stamped_with(kind: u8, nanos: u64) -> [u8; STAMPED_BYTES] {
    let [a, b, c, d, e, f, g, h] = nanos.to_le_bytes();
    [kind, a, b, c, d, e, f, g, h]
}

/// Kind and time; `None` when it is too short to have a time.
fn stamp_of(payload: &[u8]) -> Option<(u8, u64)> {
    let [kind, a, b, c, d, e, f, g, h] = *payload.first_chunk::<STAMPED_BYTES>()?;
    Some((kind, u64::from_le_bytes([a, b, c, d, e, f, g, h])))
}

/// How much is due, and what is a sample: the pacer's arithmetic, without a clock.
struct Schedule {
    rate_per_sec: u64,
    /// What has been sent, or let go.
    done: u64,
    sample_one_in: u64,
    /// Each gets one in turn: for each pair one, or one for each direction.
    slots: u64,
    directions: u64,
    turn: u64,
}

impl Schedule {
    fn new(rate_per_sec: u64, duration: Duration, pairs: u64, directions: u64, can_sample: bool) -> Self {
        let slots = (pairs * directions).max(1);
        let total = rate_per_sec.saturating_mul(duration.as_secs());
        let (most, least) = SAMPLED_ONE_IN;
        let mut sample_one_in = (total / RTT_SAMPLES).clamp(most, least);
        // No common factor with the slots, or only some of them would ever be sampled.
        while gcd(sample_one_in, slots) != 1 {
            sample_one_in += 1;
        }
        Self {
            rate_per_sec,
            done: 0,
            sample_one_in: if can_sample { sample_one_in } else { u64::MAX },
            slots,
            directions,
            turn: 0,
        }
    }

    /// How many are due now; what lies further back than [`CATCH_UP`] is let go.
    fn due(&mut self, elapsed: Duration) -> u64 {
        let by = |time: Duration| {
            let due = u128::from(self.rate_per_sec) * time.as_nanos() / 1_000_000_000;
            u64::try_from(due).unwrap_or(u64::MAX)
        };
        let due = by(elapsed);
        self.done = self.done.max(due.saturating_sub(by(CATCH_UP).max(1)));
        due.saturating_sub(self.done)
    }

    /// Whose turn it is: which pair, which direction, and whether it is a sample. A sample's echo is sent in place
    /// of one that is due.
    fn next(&mut self) -> Turn {
        let slot = self.turn % self.slots;
        let direction = slot % self.directions;
        // Only the first direction, the device's, takes times.
        let sample = self.turn % self.sample_one_in == self.sample_one_in - 1 && direction == 0;
        self.turn += 1;
        self.done += 1 + u64::from(sample);
        Turn { pair: slot / self.directions, direction, sample }
    }
}

/// What [`Schedule::next`] decides.
struct Turn {
    pair: u64,
    direction: u64,
    sample: bool,
}

impl Turn {
    /// How many datagrams or records it causes.
    fn weight(&self) -> u64 {
        1 + u64::from(self.sample)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Sends at an even rate until the time is over, or no pair is left.
async fn pace(load: &Load, rate: u64, duration: Duration, progress: &ProgressBar) {
    let directions = if load.mode == Mode::Stream { 2 } else { 1 };
    let mut trains = Trains::default();
    let pairs = load.lanes.len() as u64;
    let mut schedule = Schedule::new(rate, duration, pairs, directions, load.size >= STAMPED_BYTES);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut any_gone, mut next_look) = (false, Duration::ZERO);
    let started = Instant::now();
    loop {
        tick.tick().await;
        let elapsed = started.elapsed();
        progress.set_position(elapsed.as_secs());
        let mut due = schedule.due(elapsed.min(duration));
        // Once around without a place for a single one: the rest of what is due has none either.
        let mut in_vain = 0;
        while due > 0 && in_vain < schedule.slots {
            let turn = schedule.next();
            due = due.saturating_sub(turn.weight());
            let Some(lane) = usize::try_from(turn.pair).ok().and_then(|pair| load.lanes.get(pair)) else {
                continue;
            };
            let from = if turn.direction == 0 { Role::Device } else { Role::Peer };
            if load.mode == Mode::Raw {
                trains.add(turn.pair, turn.sample);
                continue;
            }
            let payload =
                if turn.sample { load.payload(SAMPLE, load.clock.nanos()) } else { load.plain.clone() };
            match load.offer(lane, from, payload) {
                Offered::Sent => in_vain = 0,
                Offered::Full => in_vain += 1,
                Offered::Gone => {
                    in_vain += 1;
                    any_gone = true;
                }
            }
        }
        any_gone |= trains.send(load);
        if elapsed >= duration {
            return;
        }
        if any_gone && elapsed >= next_look {
            if load.lanes.iter().all(|lane| lane.ended().is_some()) {
                return;
            }
            next_look = elapsed + LOOK_INTERVAL;
        }
    }
}

/// What is due at once, by pair: how many datagrams, and which of them are samples.
#[derive(Default)]
struct Trains {
    by_pair: BTreeMap<u64, (usize, Vec<usize>)>,
    data: Vec<u8>,
}

impl Trains {
    fn add(&mut self, pair: u64, sample: bool) {
        let (count, samples) = self.by_pair.entry(pair).or_default();
        if sample {
            samples.push(*count);
        }
        *count += 1;
    }

    /// Sends all of it. What has no room is not sent. Whether a pair is gone.
    fn send(&mut self, load: &Load) -> bool {
        let mut any_gone = false;
        while let Some((pair, (count, samples))) = self.by_pair.pop_first() {
            let Some(lane) = usize::try_from(pair).ok().and_then(|pair| load.lanes.get(pair)) else {
                continue;
            };
            let at_once = (load.plain_train.len() / load.size.max(1)).max(1);
            let mut samples = samples.into_iter().peekable();
            for first in (0..count).step_by(at_once) {
                let past = count.min(first + at_once);
                let plain = load.plain_train.get(..(past - first) * load.size).unwrap_or_default();
                let offered = if samples.peek().is_some_and(|sample| *sample < past) {
                    self.data.clear();
                    self.data.extend_from_slice(plain);
                    while let Some(sample) = samples.next_if(|sample| *sample < past) {
                        let at = (sample - first) * load.size;
                        let stamp = stamped_with(SAMPLE, load.clock.nanos());
                        if let Some(payload) = self.data.get_mut(at..at + STAMPED_BYTES) {
                            payload.copy_from_slice(&stamp);
                        }
                    }
                    load.offer_train(lane, Role::Device, &self.data)
                } else {
                    load.offer_train(lane, Role::Device, plain)
                };
                any_gone |= offered == Offered::Gone;
                if offered != Offered::Sent {
                    break;
                }
            }
        }
        any_gone
    }
}

/// Waits for what is still on its way.
async fn drain(load: &Load) {
    let started = Instant::now();
    let mut delivered = load.delivered.load(Relaxed);
    let mut since = started;
    while delivered < load.sent.load(Relaxed) && since.elapsed() < QUIET && started.elapsed() < DRAIN {
        sleep(Duration::from_millis(5)).await;
        let now = load.delivered.load(Relaxed);
        if now != delivered {
            (delivered, since) = (now, Instant::now());
        }
    }
}

async fn receive_datagrams(load: Arc<Load>, lane: usize, role: Role) {
    let Some(lane) = load.lanes.get(lane) else { return };
    let session = lane.session(role);
    loop {
        match session.recv_train().await {
            Ok(Train { data, segment_bytes, .. }) => load.arrived(lane, role, &data, segment_bytes),
            Err(end) => return lane.note(&end),
        }
    }
}

/// One side's stream to the other, and the other's to it.
struct StreamEnd {
    role: Role,
    send: SendStream,
    queue: mpsc::Receiver<Bytes>,
    recv: RecvStream,
}

async fn open_streams(
    pair: &Pair,
    size: usize,
) -> Result<([mpsc::Sender<Bytes>; 2], [StreamEnd; 2]), Failure> {
    let ended = "a pair ended before its streams were open";
    let device_send = pair.device.open_uni().await.or_fail(Exit::Refused, ended)?;
    let peer_send = pair.peer.open_uni().await.or_fail(Exit::Refused, ended)?;
    let peer_recv = pair.peer.accept_uni().await.or_fail(Exit::Refused, ended)?;
    let device_recv = pair.device.accept_uni().await.or_fail(Exit::Refused, ended)?;
    let records = (STREAM_QUEUE_BYTES / size.max(1)).clamp(4, 1024);
    let (device_outlet, device_queue) = mpsc::channel(records);
    let (peer_outlet, peer_queue) = mpsc::channel(records);
    let ends = [
        StreamEnd { role: Role::Device, send: device_send, queue: device_queue, recv: device_recv },
        StreamEnd { role: Role::Peer, send: peer_send, queue: peer_queue, recv: peer_recv },
    ];
    Ok(([device_outlet, peer_outlet], ends))
}

async fn write_records(load: Arc<Load>, mut send: SendStream, mut queue: mpsc::Receiver<Bytes>) {
    while let Some(record) = queue.recv().await {
        if send.write_chunk(record).await.is_err() {
            return;
        }
        load.sent.fetch_add(1, Relaxed);
    }
}

async fn read_records(load: Arc<Load>, lane: usize, role: Role, mut recv: RecvStream) {
    let Some(lane) = load.lanes.get(lane) else { return };
    let mut record = vec![0; load.size];
    while recv.read_exact(&mut record).await.is_ok() {
        load.arrived(lane, role, &record, load.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_rate_is_kept_echoes_included() {
        let mut schedule = Schedule::new(20_000, 10 * SECOND, 200, 1, true);
        let mut sent = 0;
        for ms in 1..=10_000 {
            let mut due = schedule.due(Duration::from_millis(ms));
            assert!(due <= 20 + 1, "{due}");
            while due > 0 {
                let weight = schedule.next().weight();
                sent += weight;
                due = due.saturating_sub(weight);
            }
        }
        assert!((200_000..=200_001).contains(&sent), "{sent}");
    }

    #[test]
    fn catching_up_is_bounded() {
        let mut schedule = Schedule::new(1000, 10 * SECOND, 1, 1, false);
        assert_eq!(schedule.due(5 * SECOND), 20);
        // What was let go does not come back.
        for _ in 0..20 {
            schedule.next();
        }
        assert_eq!(schedule.due(5 * SECOND), 0);
        assert_eq!(schedule.due(5 * SECOND + Duration::from_millis(3)), 3);
    }

    #[test]
    fn a_slow_rate_is_not_rounded_away() {
        let mut schedule = Schedule::new(3, 10 * SECOND, 1, 1, false);
        let mut sent = 0;
        for ms in 1..=10_000 {
            for _ in 0..schedule.due(Duration::from_millis(ms)) {
                schedule.next();
                sent += 1;
            }
        }
        assert_eq!(sent, 30);
    }

    #[test]
    fn every_pair_is_sampled_and_few_are() {
        for (pairs, directions) in [(1, 1), (2, 1), (20, 1), (210, 1), (1, 2), (100, 2)] {
            for rate in [100, 20_000, 1_000_000] {
                let mut schedule = Schedule::new(rate, 10 * SECOND, pairs, directions, true);
                let mut sampled = vec![0_u64; pairs as usize];
                let turns = 300 * pairs * directions;
                for _ in 0..turns {
                    let turn = schedule.next();
                    assert!(!turn.sample || turn.direction == 0);
                    sampled[turn.pair as usize] += u64::from(turn.sample);
                }
                assert!(sampled.iter().all(|samples| *samples > 0), "{pairs} {rate}");
                assert!(sampled.iter().sum::<u64>() * 10 <= turns, "{pairs} {rate}");
            }
        }
    }

    #[test]
    fn stamps_come_back() {
        assert_eq!(stamp_of(&stamped_with(SAMPLE, u64::MAX - 1)), Some((SAMPLE, u64::MAX - 1)));
        assert_eq!(stamp_of(&[SAMPLE; STAMPED_BYTES - 1]), None);
    }
}
