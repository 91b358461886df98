//! `probe`: does a relay work, from here, step by step.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Exit, Failure, files, keygen, out,
    pair::{Ask, IssuerArgs, PairKeys, Step, reason_of, step_of},
    relay_arg::{RELAY_HELP, RelayArgs},
};
use crate::{
    client::{ConnectError, End, Event, Options, Relay, Session},
    config::parse_duration,
    wire::{CloseCode, DeviceId, Role},
};

/// A datagram of the size that most clients send; large enough to see a path that carries only small packets.
const DATAGRAM_BYTES: usize = 1000;
/// One datagram may be lost on its way: how long to wait before the next one.
const DATAGRAM_RETRY: Duration = Duration::from_millis(200);
/// A raw channel opens within a round trip or two; where it is blocked on the way, datagrams go without.
const RAW_TIMEOUT: Duration = Duration::from_millis(500);
/// How often datagrams are tried again that came by QUIC though the raw channel is open.
const RAW_RETRIES: u32 = 10;
const RAW_RETRY: Duration = Duration::from_millis(10);
/// The allocation is released at the end; should this process die before, it is gone soon.
const TOKEN_TTL: Duration = Duration::from_secs(60);

/// Try a relay: connect, authenticate, meet, send, and say how long each took
#[derive(Debug, clap::Args)]
#[command(after_help = after_help())]
pub struct Probe {
    #[command(flatten)]
    relay: RelayArgs,
    /// The key of a device that the relay knows [default: a new key, for relays where devices certify themselves]
    #[arg(long, value_name = "FILE")]
    device_key: Option<PathBuf>,
    /// What the relay calls that device, when it has pinned the key under another id
    #[arg(long, value_name = "HEX", requires = "device_key")]
    device_id: Option<DeviceId>,
    #[command(flatten)]
    issuer: IssuerArgs,
    /// How long each step may take
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    timeout: Duration,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn after_help() -> String {
    format!(
        "\
Steps:
  find       what --relay says        meet      the other side joins, both are told
  resolve    the relay's address      datagram  there and back
  handshake  QUIC and trust           stream    there and back
  join       token and proof          release   the allocation ends
datagram says whether it went raw, beside the QUIC connections, where relay and path let it.
A step that fails says why in one word: the relay's code (TOKEN_INVALID, CAPACITY, ...), or
timeout, transport, resolve, untrusted, handshake, protocol.
Exit 0: all held; 1: the relay refused, or a step failed; 69: no answer.

{RELAY_HELP}

Examples:
  zrc-relay probe --relay /var/lib/zrc-relay/relay.json
  zrc-relay probe --relay http://127.0.0.1:9433 --json
  zrc-relay probe --relay relay.json --device-key device.pem
  zrc-relay probe --relay relay.json --issuer-key issuer.pem --kid backend-2026"
    )
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Line {
    step: &'static str,
    ok: bool,
    ms: f64,
    /// Why it failed, in one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    ok: bool,
    steps: &'a [Line],
}

/// Why the probe ends early.
struct Broken {
    exit: Exit,
    reason: String,
    detail: String,
}

impl Broken {
    fn new(exit: Exit, reason: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { exit, reason: reason.into(), detail: detail.into() }
    }

    fn timeout() -> Self {
        Self::new(Exit::Refused, "timeout", "not done in time (--timeout)")
    }
}

impl From<End> for Broken {
    fn from(end: End) -> Self {
        let reason = end.code().map_or("transport", CloseCode::name);
        Self::new(Exit::Refused, reason, chain(&end))
    }
}

/// The report while it grows: steps are printed as they end, unless they are kept for JSON.
struct Steps {
    json: bool,
    lines: Vec<Line>,
}

impl Steps {
    fn add(&mut self, line: Line) -> Result<(), Failure> {
        if !self.json {
            let sign = if line.ok { "ok  " } else { "FAIL" };
            let reason = line.reason.as_deref().unwrap_or_default();
            let blank = if reason.is_empty() || line.detail.is_empty() { "" } else { ": " };
            out::data(format_args!(
                "{sign} {:<10} {:>9.3} ms  {reason}{blank}{}",
                line.step, line.ms, line.detail
            ))?;
        }
        self.lines.push(line);
        Ok(())
    }

    fn done(&mut self, step: &'static str, took: Duration, detail: impl Into<String>) -> Result<(), Failure> {
        self.add(Line { step, ok: true, ms: millis(took), reason: None, detail: detail.into() })
    }

    fn failed(&mut self, step: &'static str, took: Duration, broken: Broken) -> Result<Exit, Failure> {
        let Broken { exit, reason, detail } = broken;
        self.add(Line { step, ok: false, ms: millis(took), reason: Some(reason), detail })?;
        Ok(exit)
    }

    /// Does a step; its outcome is a detail for people.
    async fn take(
        &mut self,
        step: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<String, Broken>>,
    ) -> Result<Option<Exit>, Failure> {
        let started = Instant::now();
        match timeout(limit, work).await.unwrap_or_else(|_| Err(Broken::timeout())) {
            Ok(detail) => self.done(step, started.elapsed(), detail).map(|()| None),
            Err(broken) => self.failed(step, started.elapsed(), broken).map(Some),
        }
    }
}

impl Probe {
    pub(super) async fn run(self) -> Result<Exit, Failure> {
        let mut steps = Steps { json: self.json, lines: Vec::new() };
        let exit = self.steps(&mut steps).await?;
        if self.json {
            out::json(&Report { ok: exit == Exit::Ok, steps: &steps.lines })?;
        }
        Ok(exit)
    }

    async fn steps(&self, steps: &mut Steps) -> Result<Exit, Failure> {
        let started = Instant::now();
        let descriptor = match self.relay.resolve().await {
            Ok(descriptor) => descriptor,
            // A wrong command line is no property of the relay.
            Err(failure) if failure.exit != Exit::Unavailable => return Err(failure),
            Err(Failure { exit, error }) => {
                return steps.failed(
                    "find",
                    started.elapsed(),
                    Broken::new(exit, "transport", format!("{error:#}")),
                );
            }
        };
        let place = format!("{} port {}, relay {}", descriptor.addr, descriptor.port, descriptor.relay_id);
        steps.done("find", started.elapsed(), place)?;

        let device = match &self.device_key {
            Some(path) => files::read_signing_key(path)?,
            None => keygen::random_key()?,
        };
        let mut keys = PairKeys::new(device, keygen::random_key()?);
        keys.device_id = self.device_id.unwrap_or(keys.device_id);
        let ask = Ask { ttl: TOKEN_TTL, bandwidth_bytes_per_sec: 0, quota_bytes: 0 };
        let token = keys.mint(descriptor.relay_id, &ask, self.issuer.granter()?.as_ref())?;
        let options = Options { connect_timeout: self.timeout, reconnect: false, ..Options::default() };
        let relay = Relay::new(descriptor).with_options(options);

        super::warm_up_tls();
        let started = Instant::now();
        let device = match relay.connect(keys.ticket(token.clone(), Role::Device)?).await {
            Ok(session) => session,
            Err(error) => return self.refused(steps, started.elapsed(), &error),
        };
        let times = device.stats().connect;
        steps.done("resolve", times.resolve, "")?;
        steps.done("handshake", times.handshake, "QUIC, and the relay is the one that is meant")?;
        steps.done("join", times.join, granted(&device))?;

        let mut peer = None;
        let meet = async {
            let joined = relay.connect(keys.ticket(token.clone(), Role::Peer).map_err(internal)?).await;
            let session = peer.insert(joined.map_err(|error| broken(&error))?);
            session.peer_arrived().await?;
            device.peer_arrived().await?;
            Ok("both sides are there".into())
        };
        let mut exit = steps.take("meet", self.timeout, meet).await?;
        if let (None, Some(peer)) = (exit, &peer) {
            exit = steps.take("datagram", self.timeout, datagram(&device, peer)).await?;
            if exit.is_none() {
                exit = steps.take("stream", self.timeout, stream(&device, peer)).await?;
            }
        }
        let release = async {
            // The relay's word is what counts; the connection lingers a little after it.
            let mut events = device.events();
            let released = async {
                loop {
                    match events.recv().await {
                        Some(Event::Ended(end)) => break end,
                        Some(_) => {}
                        None => break device.closed().await,
                    }
                }
            };
            let end = tokio::select! {
                end = released => end,
                _ = device.release() => device.closed().await,
            };
            match end.code() {
                Some(CloseCode::Released) => Ok("the allocation is over".into()),
                _ => Err(end.into()),
            }
        };
        let released = steps.take("release", self.timeout, release).await?;
        if let Some(peer) = peer {
            // Its goodbye is the relay's affair; a moment is enough.
            let _ = timeout(Duration::from_secs(1), peer.closed()).await;
        }
        Ok(exit.or(released).unwrap_or(Exit::Ok))
    }

    fn refused(&self, steps: &mut Steps, took: Duration, error: &ConnectError) -> Result<Exit, Failure> {
        let step = match (step_of(error), error) {
            (_, ConnectError::Resolve { .. }) => "resolve",
            (Step::Join, _) => "join",
            _ => "handshake",
        };
        let mut broken = broken(error);
        if error.code() == Some(CloseCode::TokenInvalid) && self.device_key.is_none() {
            broken.detail += "; does this relay know its devices? give the key of one: --device-key FILE";
        }
        steps.failed(step, took, broken)
    }
}

fn broken(error: &ConnectError) -> Broken {
    let exit = if step_of(error) == Step::Reach { Exit::Unavailable } else { Exit::Refused };
    let detail = match error {
        ConnectError::Refused(refusal) => refusal.message.clone(),
        other => chain(other),
    };
    Broken::new(exit, reason_of(error), detail)
}

fn internal(failure: Failure) -> Broken {
    Broken::new(failure.exit, "internal", format!("{:#}", failure.error))
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

fn granted(session: &Session) -> String {
    let grant = session.grant();
    let or_none =
        |limit: Option<u64>, unit: &str| limit.map_or("none".into(), |limit| format!("{limit} {unit}"));
    format!(
        "seen as {}; rate limit {}, quota {}",
        grant.observed_addr.map_or("nobody".into(), |addr| addr.to_string()),
        or_none(grant.bandwidth_bytes_per_sec, "bytes/s"),
        or_none(grant.quota_bytes, "bytes"),
    )
}

/// Sends until one has come back, as datagrams may be lost.
async fn datagram(device: &Session, peer: &Session) -> Result<String, Broken> {
    let payload = Bytes::from(vec![0xa5; DATAGRAM_BYTES]);
    let offered = device.grant().raw_channel && peer.grant().raw_channel;
    if offered {
        let goes_raw =
            |session: &Session| session.stats().raw_max_bytes.is_some_and(|most| most >= DATAGRAM_BYTES);
        let open = async {
            while !(goes_raw(device) && goes_raw(peer)) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = timeout(RAW_TIMEOUT, open).await;
    }
    let (mut lost, mut not_raw) = (0, 0);
    loop {
        let started = Instant::now();
        device.send_datagram_wait(payload.clone()).await.map_err(|error| internal_send(&error))?;
        let there_and_back = async {
            let there = peer.recv_datagram().await?;
            peer.send_datagram_wait(there).await.map_err(|error| internal_send(&error))?;
            Ok::<_, Broken>(device.recv_datagram().await?)
        };
        let Ok(back) = timeout(DATAGRAM_RETRY, there_and_back).await else {
            lost += 1;
            continue;
        };
        if back? != payload {
            return Err(Broken::new(Exit::Refused, "altered", "what came back is not what was sent"));
        }
        let took = millis(started.elapsed());
        let stats = [device, peer].map(|session| session.stats());
        let raw = stats.iter().all(|stats| stats.raw_sent > 0 && stats.raw_received > 0);
        // Where this side's half is open, the relay's is about to be.
        if !raw && stats.iter().all(|stats| stats.raw_open) && not_raw < RAW_RETRIES {
            not_raw += 1;
            sleep(RAW_RETRY).await;
            continue;
        }
        let way = match (offered, raw) {
            (true, true) => ", raw",
            (true, false) => ", not raw though the relay offers it",
            (false, _) => "",
        };
        let lost = if lost == 0 { String::new() } else { format!(", {lost} lost before") };
        return Ok(format!("{DATAGRAM_BYTES} bytes back after {took:.3} ms{way}{lost}"));
    }
}

fn internal_send(error: &crate::client::SendError) -> Broken {
    Broken::new(Exit::Refused, "transport", chain(error))
}

async fn stream(device: &Session, peer: &Session) -> Result<String, Broken> {
    let cut = |error: &dyn std::error::Error| Broken::new(Exit::Refused, "stream", chain(error));
    let payload = [0x5a; 4096];
    let (mut send, mut recv) = device.open_bi().await?;
    send.write_all(&payload).await.map_err(|error| cut(&error))?;
    send.finish().map_err(|error| cut(&error))?;
    let (mut back, mut there) = peer.accept_bi().await?;
    let arrived = there.read_to_end(2 * payload.len()).await.map_err(|error| cut(&error))?;
    back.write_all(&arrived).await.map_err(|error| cut(&error))?;
    back.finish().map_err(|error| cut(&error))?;
    let returned = recv.read_to_end(2 * payload.len()).await.map_err(|error| cut(&error))?;
    if returned != payload {
        return Err(Broken::new(Exit::Refused, "altered", "what came back is not what was sent"));
    }
    Ok(format!("{} bytes there and back", payload.len()))
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
