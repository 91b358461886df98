//! The load of `benches/peers.py`: the same work for every relay, by clients of its own kind.
//!
//! ```text
//! cargo run --release --example load -- --transport turn --relay 127.0.0.1:3478 --pairs 200 --rate 20000 --relay-pid PID
//! cargo run --release --example load -- --transport datagram --relay /tmp/relay/relay.json --search --relay-pid PID
//! ```
//!
//! Both ends of each pair are in this process, each with a socket of its own, and one pacer serves all transports
//! (`pace.rs`). It prints one JSON object.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program tells programs on stdout and people on stderr"
)]

mod bare;
mod lanes;
mod pace;
#[path = "../../src/cli/proc_stat.rs"]
mod proc_stat;
mod quic;
mod records;
mod report;
mod stun;
mod tls;
mod turn;
mod udp;

use std::{
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    process,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Parser, ValueEnum};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
    time::sleep,
};
use zrc_relay::client::Session;

use lanes::{Client, Lane, Load, longest_train};
use proc_stat::Process;
use records::End;
use report::{Lap, Meter, Probe, Report};
use tls::Proxied;

/// Pairs that are set up at the same time: enough to keep a core busy, few enough not to be a flood.
const CONNECTING: usize = 32;

/// Put a load on a relay and measure it
#[derive(Debug, Parser)]
struct Arguments {
    /// Which relay, and by which of its ways
    #[arg(long, value_enum)]
    transport: Transport,
    /// Its address; of zrc-relay, its relay.json
    #[arg(long)]
    relay: String,
    /// With `tls`: where the proxy finds the peers
    #[arg(long, required_if_eq("transport", "tls"))]
    backend: Option<SocketAddr>,
    /// With `tls`: certificate and key of both ends, PEM
    #[arg(long, required_if_eq("transport", "tls"))]
    certificate: Option<PathBuf>,
    /// Its process, for its CPU and memory
    #[arg(long)]
    relay_pid: u32,
    /// How many pairs
    #[arg(long, default_value = "1")]
    pairs: u32,
    /// Payload of a packet or length of a record, in bytes
    #[arg(long, default_value = "1200")]
    size: usize,
    /// Packets or records a second over all pairs, echoes included; 0 sets up and holds
    #[arg(long, default_value = "1000")]
    rate: u64,
    /// How long; of a search, each rate
    #[arg(long, default_value = "5", value_parser = secs)]
    secs: Duration,
    /// What is due to one receiver goes in GSO trains of at most so many packets
    #[arg(long, default_value = "1")]
    train: u64,
    /// Look for the highest rate up to --rate of which less than 1 % is lost
    #[arg(long)]
    search: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Transport {
    /// A plain UDP forwarder (`udpfwd`)
    Floor,
    /// A TURN server, both ends its clients
    Turn,
    /// zrc-relay, datagrams in QUIC
    Datagram,
    /// zrc-relay, packets beside QUIC
    Raw,
    /// The same, by clients that do nothing else
    Bare,
    /// zrc-relay, a stream each way
    Stream,
    /// A TCP proxy that ends TLS on both sides
    Tls,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(arguments.run())
}

impl Arguments {
    async fn run(&self) -> anyhow::Result<()> {
        let relay = Process::find(self.relay_pid).context("there is no process --relay-pid")?;
        let load = Process::find(process::id()).context("there is no /proc")?;
        allow_sockets()?;

        let mut meter = Meter::new(relay, load);
        let (load, set_up) = self.set_up(&mut meter).await?;

        // Whoever profiles the relay waits for it.
        eprintln!("set up");
        let mut report = Report::new(self.pairs, set_up);
        if self.search {
            report.search(self.search(&load, &mut meter).await);
        } else if self.rate == 0 {
            sleep(self.secs).await;
            report.idle(meter.lap());
        } else {
            pace::pace(&load, self.rate, self.secs, self.train()).await;
            let sending = meter.lap();
            load.drain().await;
            report.loaded(load.counts(), [sending, meter.lap()], &load.take_rtts_us());
        }
        report.raw_share = load.raw_share();
        println!("{}", serde_json::to_string(&report)?);
        // Nobody waits for goodbyes: the relay is stopped next.
        process::exit(0)
    }

    fn train(&self) -> u64 {
        self.train.min(longest_train(self.size) as u64)
    }

    /// Sets up all pairs, takes what that cost, and starts everything that receives.
    async fn set_up(&self, meter: &mut Meter) -> anyhow::Result<(Arc<Load>, Lap)> {
        let (size, train) = (self.size, self.train() > 1);
        let (load, set_up) = match self.transport {
            Transport::Floor | Transport::Turn => {
                let relay = self.addr()?;
                let lanes = if self.transport == Transport::Floor {
                    many(self.pairs, |pair| udp::floor_pair(relay, pair, size)).await?
                } else {
                    many(self.pairs, |_| turn::pair(relay, size)).await?
                };
                let set_up = meter.lap();
                let load = Arc::new(Load::new(lanes, size));
                udp::start(&load);
                (load, set_up)
            }
            Transport::Datagram | Transport::Raw => {
                let sessions = self.sessions().await?;
                let set_up = meter.lap();
                if self.transport == Transport::Raw {
                    quic::wait_for_raw(&sessions, size).await?;
                } else {
                    quic::wait_for_mtu(&sessions, size).await?;
                }
                let lanes = sessions.into_iter().map(|pair| Lane(pair.map(Client::Datagrams))).collect();
                let load = Arc::new(Load::new(lanes, size));
                quic::start_datagrams(&load);
                (load, set_up)
            }
            Transport::Bare => {
                let relay = bare::Relay::new(Path::new(&self.relay))?;
                let legs = many(self.pairs, |_| {
                    let relay = relay.clone();
                    async move { relay.pair(train).await }
                })
                .await?;
                let set_up = meter.lap();
                (bare::load(legs, size).await?, set_up)
            }
            Transport::Stream => {
                let sessions = self.sessions().await?;
                let set_up = meter.lap();
                let mut ends = Vec::new();
                for pair in &sessions {
                    ends.push(quic::streams(pair).await?);
                }
                // Streams do not keep their session open.
                std::mem::forget(sessions);
                (wired(ends, size), set_up)
            }
            Transport::Tls => {
                let (Some(backend), Some(certificate)) = (self.backend, &self.certificate) else {
                    bail!("tls needs --backend and --certificate");
                };
                let proxied = Proxied::listen(self.addr()?, backend, certificate).await?;
                let ends = many(self.pairs, |number| {
                    let proxied = proxied.clone();
                    async move { proxied.pair(number).await }
                })
                .await?;
                let set_up = meter.lap();
                (wired(ends, size), set_up)
            }
        };
        // What the relay did meanwhile is neither set-up nor load.
        meter.lap();
        Ok((load, set_up))
    }

    async fn sessions(&self) -> anyhow::Result<Vec<[Session; 2]>> {
        let train = self.train() > 1;
        let relay = quic::relay(Path::new(&self.relay), self.transport == Transport::Raw)?;
        many(self.pairs, |_| {
            let relay = relay.clone();
            async move { quic::pair(&relay, train).await }
        })
        .await
    }

    /// Doubles the rate until one does not pass, then halves the interval on a logarithmic scale. What does not pass is
    /// tried again: another process may have interfered.
    async fn search(&self, load: &Load, meter: &mut Meter) -> Vec<Probe> {
        const FIRST_RATE: f64 = 20_000.0;
        const BISECTIONS: usize = 5;
        const TRIES: usize = 4;
        let mut probes = Vec::new();
        let (mut passed, mut failed, mut bisections) = (0.0, None, 0);
        let mut rate = FIRST_RATE;
        while bisections < BISECTIONS && rate <= self.rate as f64 {
            let mut passes = false;
            for _ in 0..TRIES {
                let before = load.counts();
                meter.lap();
                pace::pace(load, rate as u64, self.secs, self.train()).await;
                let sending = meter.lap();
                load.drain().await;
                let probe = Probe::new(rate, load.counts().since(before), [sending, meter.lap()]);
                passes = probe.passes();
                probes.push(probe);
                if passes {
                    break;
                }
            }
            if passes {
                passed = rate;
            } else {
                failed = Some(rate);
            }
            rate = match failed {
                None => passed * 2.0,
                Some(failed) => {
                    bisections += 1;
                    f64::sqrt(f64::max(passed, FIRST_RATE / 16.0) * failed)
                }
            };
        }
        probes
    }

    fn addr(&self) -> anyhow::Result<SocketAddr> {
        self.relay.parse().with_context(|| format!("--relay {}: no address", self.relay))
    }
}

/// A load over streams that stand.
fn wired<S, R>(ends: Vec<[End<S, R>; 2]>, size: usize) -> Arc<Load>
where
    S: AsyncWrite + Unpin + Send + 'static,
    R: AsyncRead + Unpin + Send + 'static,
{
    let (lanes, wired) = ends.into_iter().map(|ends| records::lane(ends, size)).unzip();
    let load = Arc::new(Load::new(lanes, size));
    records::start(&load, wired);
    load
}

/// Sets up all pairs, some at a time; the first failure ends it.
async fn many<T, F>(pairs: u32, mut one: impl FnMut(u32) -> F) -> anyhow::Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
{
    let mut done = Vec::new();
    let mut connecting = JoinSet::new();
    let mut waiting = 0..pairs;
    loop {
        while connecting.len() < CONNECTING
            && let Some(pair) = waiting.next()
        {
            connecting.spawn(one(pair));
        }
        match connecting.join_next().await {
            Some(pair) => done.push(pair??),
            None => return Ok(done),
        }
    }
}

fn secs(text: &str) -> anyhow::Result<Duration> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}

/// Raises the limit of open files as far as it goes: each client has a socket of its own.
fn allow_sockets() -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}
