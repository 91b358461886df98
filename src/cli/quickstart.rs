//! `quickstart`: a relay, two clients and everything they can do, without configuration or privilege.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    Exit, Failure, OrFail as _, files, keygen, out,
    pair::{Ask, PairKeys, percentile, wait_for_mtu},
    running::Running,
    serve::STOP_TIMEOUT,
    signals::Signals,
    state,
};
use crate::{
    client::{ConnectError, RecvStream, Relay, SendStream, Session, Ticket},
    clock::Clock,
    config::Config,
    wire::{AllocationId, CloseCode, Role, SignedToken},
};

/// Datagrams each way.
const DATAGRAMS: u64 = 10_000;
const DATAGRAM_BYTES: usize = 1200;
/// A rate at which nothing queues, 5000 a second, so that the round trip is the path's and not a queue's.
const DATAGRAMS_PER_TICK: u64 = 5;
const TICK: Duration = Duration::from_millis(1);
/// Datagrams on their way at most: a machine that is busy with something else slows the sender, it loses nothing.
const DATAGRAMS_UNDER_WAY: usize = 256;
/// How long a datagram waits for its place among them.
const PLACE_TIMEOUT: Duration = Duration::from_millis(100);
/// After the last datagram: how long to wait for those that are still on their way.
const STRAGGLERS: Duration = Duration::from_secs(2);
/// A datagram service loses some on a bad day; on a loopback path more than this is a fault.
const MOST_LOST_PERCENT: u64 = 1;

/// Bytes over a stream each way.
const STREAM_BYTES: u64 = 64 * 1024 * 1024;
const CHUNK_BYTES: usize = 64 * 1024;

/// For each of the steps; far more than any takes on a machine that is not stuck.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);

/// See it work: a relay and two clients on this machine, no configuration needed
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Makes certificate and keys in a state directory (~/.local/state/zrc-relay/quickstart),
starts a relay on free ports of 127.0.0.1, mints a token, connects a device and a peer
through it, and shows: the handshake, 10 000 datagrams each way, 64 MiB over a stream each
way, a forged token refused, a client killed and resumed. Then the relay stays up and the
next commands to try are printed; with --once it ends, exit 0 if all held, else 1.

--json prints one object on stdout, null where nothing was measured:
  {\"ok\", \"handshake_ms\",
   \"datagrams\": {\"sent\", \"received\", \"rtt_p50_us\", \"rtt_p99_us\"},
   \"streams\": {\"bytes\", \"sha256_equal\", \"mbytes_per_sec\"},
   \"forged_token_refused\", \"resumed\"}
sent is what the device sent, received what came back from the peer; bytes are one way's.

Examples:
  zrc-relay quickstart
  zrc-relay quickstart --once --json")]
pub struct Quickstart {
    /// End when all has been shown
    #[arg(long)]
    once: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Where certificate, keys and relay.json are kept
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// What `--json` prints.
#[derive(Debug, Default, Serialize)]
struct Report {
    ok: bool,
    handshake_ms: Option<f64>,
    datagrams: Datagrams,
    streams: Streams,
    forged_token_refused: bool,
    resumed: bool,
}

#[derive(Debug, Default, Serialize)]
struct Datagrams {
    sent: u64,
    received: u64,
    rtt_p50_us: Option<u64>,
    rtt_p99_us: Option<u64>,
}

#[derive(Debug, Default, Serialize)]
struct Streams {
    bytes: u64,
    sha256_equal: bool,
    mbytes_per_sec: Option<f64>,
}

impl Datagrams {
    fn held(&self) -> bool {
        self.sent == DATAGRAMS
            && (self.sent - self.received.min(self.sent)) * 100 <= self.sent * MOST_LOST_PERCENT
    }
}

impl Quickstart {
    pub(super) async fn run(self) -> Result<Exit, Failure> {
        let folder = match &self.state_dir {
            Some(folder) => folder.clone(),
            None => state::user_folder("quickstart")?,
        };
        let mut signals = Signals::new()?;
        let running = Running::start(Config::development(folder.clone()), None).await?;
        running.announce();
        let keys = Keys::find(&folder)?;

        let mut report = Report::default();
        let shown = tokio::select! {
            shown = self.show(&running, &keys, &mut report) => Some(shown),
            _ = signals.next() => None,
        };
        report.ok = matches!(shown, Some(Ok(())))
            && report.datagrams.held()
            && report.streams.sha256_equal
            && report.forged_token_refused
            && report.resumed;
        match &shown {
            Some(Ok(())) => {}
            Some(Err(Failure { error, .. })) => out::say(format_args!("FAIL {error:#}")),
            None => out::say("interrupted"),
        }
        if self.json {
            out::json(&report)?;
        }
        self.tell(if report.ok { "\nAll of it held." } else { "\nNot all of it held." })?;
        if !self.once && shown.is_some() {
            self.tell(next_steps(&running, &keys))?;
            signals.next().await;
        }
        signals.last(running.stop(STOP_TIMEOUT)).await;
        Ok(if report.ok { Exit::Ok } else { Exit::Refused })
    }

    /// Results are what was asked for, unless it is the JSON that was asked for.
    fn tell(&self, text: impl std::fmt::Display) -> Result<(), Failure> {
        if self.json {
            out::say(text);
            return Ok(());
        }
        out::data(text)
    }

    async fn show(&self, running: &Running, keys: &Keys, report: &mut Report) -> Result<(), Failure> {
        self.tell("")?;
        let relay = Relay::new(running.descriptor().as_ref().clone());
        let ask = Ask { ttl: Duration::from_secs(3600), bandwidth_bytes_per_sec: 0, quota_bytes: 0 };
        let token = keys.pair.fields(running.descriptor().relay_id, &ask)?.sign(&keys.pair.device);
        let device_ticket = keys.pair.ticket(token.clone(), Role::Device)?;

        // The device lives on a runtime of its own, which can be killed with everything on it.
        let device = Doomed::connect(&relay, device_ticket.clone()).await?;
        let times = device.session.stats().connect;
        report.handshake_ms = Some(millis(times.handshake));
        let peer = connect(&relay, keys.pair.ticket(token.clone(), Role::Peer)?).await?;
        in_time("the two sides meet", async {
            peer.peer_arrived().await.or_fail(Exit::Refused, "the device is not there")?;
            device.session.peer_arrived().await.or_fail(Exit::Refused, "the peer is not there")
        })
        .await?;
        self.tell(format_args!(
            "ok   handshake      {:.2} ms, then {:.2} ms for token and proof",
            millis(times.handshake),
            millis(times.join)
        ))?;

        report.datagrams = in_time("datagrams", datagrams(&device.session, &peer)).await?;
        let Datagrams { sent, received, rtt_p50_us, rtt_p99_us } = &report.datagrams;
        let stats = device.session.stats();
        self.tell(format_args!(
            "{} datagrams      {sent} of {DATAGRAM_BYTES} bytes there, {received} back, {} lost, {} % raw; round trip p50 {} us, p99 {} us",
            sign(report.datagrams.held()),
            sent - received.min(sent),
            100 * (stats.raw_sent + stats.raw_received)
                / (stats.datagrams_sent + stats.datagrams_received).max(1),
            or_dash(*rtt_p50_us),
            or_dash(*rtt_p99_us),
        ))?;

        report.streams = in_time("streams", streams(&device.session, &peer)).await?;
        self.tell(format_args!(
            "{} stream         {} MiB each way, SHA-256 {}, {:.0} MB/s",
            sign(report.streams.sha256_equal),
            report.streams.bytes >> 20,
            if report.streams.sha256_equal { "equal" } else { "DIFFERENT" },
            report.streams.mbytes_per_sec.unwrap_or_default(),
        ))?;

        let refused = in_time("a forged token", forged(&relay, &token)).await?;
        report.forged_token_refused = refused == Some(CloseCode::TokenInvalid);
        self.tell(format_args!(
            "{} forged token   {}",
            sign(report.forged_token_refused),
            refused.map_or("accepted".into(), |code| format!("refused, {code}")),
        ))?;

        let (resumed, detail) =
            in_time("a killed client comes back", resume(&relay, device, device_ticket, &peer)).await?;
        report.resumed = resumed;
        self.tell(format_args!("{} kill, resume   {detail}", sign(resumed)))?;
        Ok(())
    }
}

fn sign(held: bool) -> &'static str {
    if held { "ok  " } else { "FAIL" }
}

fn or_dash(value: Option<u64>) -> String {
    value.map_or("-".into(), |value| value.to_string())
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

async fn in_time<T>(step: &str, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(STEP_TIMEOUT, work).await.unwrap_or_else(|_| {
        Err(Failure::new(Exit::Refused, format!("{step}: not done within {} s", STEP_TIMEOUT.as_secs())))
    })
}

/// The device's and the peer's keys, in files that the next commands can use.
struct Keys {
    pair: PairKeys,
    device_path: PathBuf,
    peer_path: PathBuf,
}

impl Keys {
    fn find(folder: &Path) -> Result<Self, Failure> {
        let (device_path, peer_path) = (folder.join("device.pem"), folder.join("peer.pem"));
        let pair = PairKeys::new(find_key(&device_path)?, find_key(&peer_path)?);
        Ok(Self { pair, device_path, peer_path })
    }
}

fn find_key(path: &Path) -> Result<SigningKey, Failure> {
    if !path.exists() {
        let pem = keygen::to_pem(&keygen::random_key()?)?;
        files::create_unless_there(path, pem.as_bytes(), files::SECRET)
            .or_fail(Exit::CantCreate, format!("cannot write {}", path.display()))?;
    }
    files::read_signing_key(path)
}

async fn connect(relay: &Relay, ticket: Ticket) -> Result<Session, Failure> {
    let role = ticket.role();
    relay.connect(ticket).await.map_err(|error| super::pair::not_connected(relay, role, error))
}

/// A session that can be killed as a power cut would: its tasks and its socket are gone at once, without a word.
struct Doomed {
    session: Session,
    runtime: tokio::runtime::Runtime,
}

impl Doomed {
    async fn connect(relay: &Relay, ticket: Ticket) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .or_fail(Exit::Software, "cannot start a runtime")?;
        let role = ticket.role();
        let connecting = runtime.spawn({
            let relay = relay.clone();
            async move { relay.connect(ticket).await }
        });
        let connected = connecting.await.or_fail(Exit::Software, "the client's task ended")?;
        match connected {
            Ok(session) => Ok(Self { session, runtime }),
            Err(error) => {
                runtime.shutdown_background();
                Err(super::pair::not_connected(relay, role, error))
            }
        }
    }

    /// When it returns, nothing of the client runs any more; the relay has not been told.
    async fn kill(self) -> Result<(), Failure> {
        let Self { session, runtime } = self;
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(5)))
            .await
            .or_fail(Exit::Software, "the client could not be killed")?;
        // Only now: a session that is dropped alive says goodbye.
        drop(session);
        Ok(())
    }
}

fn bar(length: u64, what: &'static str, unit: &str) -> ProgressBar {
    let template = match unit {
        "bytes" => "{msg:14} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec}",
        _ => "{msg:14} {wide_bar} {pos}/{len} {per_sec}",
    };
    let bar = ProgressBar::new(length).with_message(what);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// A datagram that says which it is and when it was sent; what follows from that fills the rest.
fn numbered(number: u64, sent_nanos: u64) -> Bytes {
    let mut payload = Vec::with_capacity(DATAGRAM_BYTES);
    payload.extend_from_slice(&number.to_le_bytes());
    payload.extend_from_slice(&sent_nanos.to_le_bytes());
    payload.resize(DATAGRAM_BYTES, number as u8);
    payload.into()
}

/// When a datagram was sent; `None` when it is not, to the last byte, one that was.
fn sent_nanos(datagram: &Bytes) -> Option<u64> {
    let (number, rest) = datagram.split_first_chunk::<8>()?;
    let sent_nanos = u64::from_le_bytes(*rest.first_chunk::<8>()?);
    (numbered(u64::from_le_bytes(*number), sent_nanos) == datagram).then_some(sent_nanos)
}

/// Sends numbered datagrams at an even rate; the peer sends each back.
async fn datagrams(device: &Session, peer: &Session) -> Result<Datagrams, Failure> {
    if !wait_for_mtu(|| [device, peer].into_iter(), DATAGRAM_BYTES).await {
        tracing::warn!("the path does not carry datagrams of {DATAGRAM_BYTES} bytes: each goes by a stream");
    }
    let clock = Clock::start();
    let mut echo = JoinSet::new();
    let echoing = peer.clone();
    echo.spawn(async move {
        while let Ok(datagram) = echoing.recv_datagram().await {
            if echoing.send_datagram_wait(datagram).await.is_err() {
                break;
            }
        }
    });

    let bar = bar(DATAGRAMS, "datagrams", "");
    let room = Semaphore::new(DATAGRAMS_UNDER_WAY);
    let sent = AtomicU64::new(0);
    let sending = async {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0..DATAGRAMS {
            if number % DATAGRAMS_PER_TICK == 0 {
                tick.tick().await;
            }
            // A lost one gives its place back to nobody: after a while another one takes it all the same.
            if let Ok(Ok(place)) = timeout(PLACE_TIMEOUT, room.acquire()).await {
                place.forget();
            }
            device
                .send_datagram_wait(numbered(number, clock.nanos()))
                .await
                .or_fail(Exit::Refused, "a datagram cannot be sent")?;
            sent.fetch_add(1, Relaxed);
        }
        sleep(STRAGGLERS).await;
        Ok::<_, Failure>(())
    };
    tokio::pin!(sending);
    let mut rtts_us = Vec::new();
    while rtts_us.len() as u64 != DATAGRAMS {
        tokio::select! {
            arrived = device.recv_datagram() => {
                let datagram = arrived.or_fail(Exit::Refused, "the device's session ended")?;
                let sent_nanos = sent_nanos(&datagram)
                    .ok_or_else(|| Failure::new(Exit::Refused, "a datagram came back altered"))?;
                rtts_us.push(clock.nanos().saturating_sub(sent_nanos) / 1000);
                room.add_permits(1);
                bar.inc(1);
            }
            sent = &mut sending => {
                sent?;
                break;
            }
        }
    }
    bar.finish_and_clear();
    rtts_us.sort_unstable();
    Ok(Datagrams {
        sent: sent.load(Relaxed),
        received: rtts_us.len() as u64,
        rtt_p50_us: percentile(&rtts_us, 50),
        rtt_p99_us: percentile(&rtts_us, 99),
    })
}

/// What is sent over a stream: chunks that differ in their number.
#[derive(Clone)]
struct Content(Bytes);

impl Content {
    fn random() -> Result<Self, Failure> {
        let mut rest = vec![0; CHUNK_BYTES - 8];
        getrandom::fill(&mut rest)
            .or_fail(Exit::Software, "the operating system has no randomness to give")?;
        Ok(Self(rest.into()))
    }

    fn chunks(&self) -> impl Iterator<Item = [Bytes; 2]> {
        let number = |number: u64| Bytes::copy_from_slice(&number.to_le_bytes());
        (0..STREAM_BYTES / CHUNK_BYTES as u64).map(move |n| [number(n), self.0.clone()])
    }

    fn sha256(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in self.chunks().flatten() {
            hash.update(&part);
        }
        hash.finalize().into()
    }
}

/// One stream, first from the device to the peer, then back.
async fn streams(device: &Session, peer: &Session) -> Result<Streams, Failure> {
    let content = Content::random()?;
    let hashed = content.clone();
    let expected = tokio::task::spawn_blocking(move || hashed.sha256())
        .await
        .or_fail(Exit::Software, "cannot compute SHA-256")?;
    let bar = bar(2 * STREAM_BYTES, "stream", "bytes");
    let ended = "the session ended";
    let (mut there_send, mut back_recv) = device.open_bi().await.or_fail(Exit::Refused, ended)?;
    let (mut back_send, mut there_recv) = peer.accept_bi().await.or_fail(Exit::Refused, ended)?;
    let started = Instant::now();
    let there = cross(&content, &mut there_send, &mut there_recv, &bar).await?;
    let back = cross(&content, &mut back_send, &mut back_recv, &bar).await?;
    let secs = started.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let crossed = there.bytes + back.bytes;
    Ok(Streams {
        bytes: there.bytes.min(back.bytes),
        sha256_equal: there.sha256 == expected && back.sha256 == expected,
        mbytes_per_sec: (secs > 0.0).then(|| (crossed as f64 / secs / 1e5).round() / 10.0),
    })
}

/// What came out at the other end.
struct Crossed {
    bytes: u64,
    sha256: [u8; 32],
}

async fn cross(
    content: &Content,
    send: &mut SendStream,
    recv: &mut RecvStream,
    bar: &ProgressBar,
) -> Result<Crossed, Failure> {
    let sending = async {
        for mut chunk in content.chunks() {
            send.write_all_chunks(&mut chunk)
                .await
                .or_fail(Exit::Refused, "the stream broke while sending")?;
        }
        send.finish().or_fail(Exit::Refused, "the stream broke at its end")
    };
    let receiving = async {
        let mut hash = Sha256::new();
        let mut bytes = 0;
        while let Some(chunk) = recv
            .read_chunk(CHUNK_BYTES, true)
            .await
            .or_fail(Exit::Refused, "the stream broke while receiving")?
        {
            hash.update(&chunk.bytes);
            bytes += chunk.bytes.len() as u64;
            bar.inc(chunk.bytes.len() as u64);
        }
        Ok(Crossed { bytes, sha256: hash.finalize().into() })
    };
    let ((), crossed) = tokio::try_join!(sending, receiving)?;
    Ok(crossed)
}

/// Shows the relay a token in the device's name that another key has signed; answers with the refusal.
async fn forged(relay: &Relay, token: &SignedToken) -> Result<Option<CloseCode>, Failure> {
    let forger = keygen::random_key()?;
    let forged = token.fields().sign(&forger);
    let ticket = Ticket::device(forged, forger).or_fail(Exit::Software, "the forgery is refused at home")?;
    match relay.connect(ticket).await {
        Ok(session) => {
            session.close();
            session.closed().await;
            Ok(None)
        }
        Err(ConnectError::Refused(refusal)) => Ok(Some(refusal.code)),
        Err(error) => Err(super::pair::not_connected(relay, Role::Device, error)),
    }
}

/// Kills the device and starts it anew with the same token, as its supervisor would. Answers whether it took its
/// place again: data both ways, the peer's session undisturbed, what has been used not forgotten.
async fn resume(
    relay: &Relay,
    device: Doomed,
    ticket: Ticket,
    peer: &Session,
) -> Result<(bool, String), Failure> {
    let (sent, received) = (device.session.stats(), peer.stats());
    let used_bytes = sent.datagram_bytes_received + received.datagram_bytes_received + 2 * STREAM_BYTES;
    device.kill().await?;
    let started = Instant::now();
    let device = connect(relay, ticket).await?;
    both_ways(&device, peer).await?;
    let took = started.elapsed();
    let kept_bytes = device.grant().bytes_used;
    let undisturbed = peer.end().is_none() && peer.stats().reconnects == 0;
    device.release().await.or_fail(Exit::Refused, "the allocation cannot be released")?;
    peer.closed().await;
    let detail = format!(
        "killed without a goodbye, back with the same token and data both ways after {:.1} ms; {} MB of use {}, the peer {}",
        millis(took),
        kept_bytes / 1_000_000,
        if kept_bytes >= used_bytes { "kept" } else { "NOT ALL KEPT" },
        if undisturbed { "stayed" } else { "HAD TO RECONNECT" },
    );
    Ok((kept_bytes >= used_bytes && undisturbed, detail))
}

/// Waits until a datagram of today has crossed in each direction.
async fn both_ways(device: &Session, peer: &Session) -> Result<(), Failure> {
    let mut marker = [0; 16];
    getrandom::fill(&mut marker).or_fail(Exit::Software, "the operating system has no randomness to give")?;
    for (from, to) in [(device, peer), (peer, device)] {
        loop {
            // While the relay still links the killed one, what is sent there is lost.
            let _ = from.send_datagram(Bytes::copy_from_slice(&marker));
            match timeout(Duration::from_millis(20), to.recv_datagram()).await {
                Ok(Ok(datagram)) if datagram == marker.as_slice() => break,
                Ok(Ok(_)) | Err(_) => {}
                Ok(Err(end)) => return Err(end).or_fail(Exit::Refused, "a session ended"),
            }
        }
    }
    Ok(())
}

/// Commands that work as they stand, in another terminal.
fn next_steps(running: &Running, keys: &Keys) -> String {
    let program = std::env::current_exe().unwrap_or_else(|_| "zrc-relay".into());
    let program = out::quoted(&program);
    let relay = out::quoted(&running.descriptor_path);
    let (device_pem, peer_pem) = (out::quoted(&keys.device_path), out::quoted(&keys.peer_path));
    let device_id = keys.pair.device_id;
    let peer_id = hex::encode(keys.pair.peer.verifying_key().as_bytes());
    let relay_id = running.descriptor().relay_id;
    let allocation_id = AllocationId::random().map_or_else(|_| "0f".repeat(16), |id| id.to_string());
    let (ops, pid) = (running.ops_url(), std::process::id());
    format!(
        "
The relay stays up until Ctrl-C. In another terminal:

  # how is it?
  curl -s {ops}/health
  curl -s {ops}/metrics
  {program} probe --relay {relay}

  # a token of your own (the keys: {device_pem}, {peer_pem})
  TOKEN=$({program} token mint --device-key {device_pem} --peer-id {peer_id} --relay {relay} --allocation-id {allocation_id} --ttl 1h)
  {program} token inspect \"$TOKEN\"
  {program} token verify \"$TOKEN\" --device-key-hex {device_id} --relay-id {relay_id} --allocation-id {allocation_id}

  # how fast is it?
  {program} bench --relay {relay} --pairs 10 --size 1200 --rate 10000 --secs 5 --mode datagram --relay-pid {pid}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_altered_datagram_is_noticed() {
        let datagram = numbered(300, 7);
        assert_eq!((datagram.len(), sent_nanos(&datagram)), (DATAGRAM_BYTES, Some(7)));
        for at in [0, 16, DATAGRAM_BYTES - 1] {
            let mut altered = datagram.to_vec();
            altered[at] ^= 1;
            assert_eq!(sent_nanos(&altered.into()), None, "{at}");
        }
        assert_eq!(sent_nanos(&datagram.slice(..DATAGRAM_BYTES - 1)), None);
        assert_eq!(sent_nanos(&Bytes::new()), None);
    }

    #[test]
    fn loss_is_bounded() {
        let held = |sent, received| Datagrams { sent, received, ..Datagrams::default() }.held();
        assert!(held(DATAGRAMS, DATAGRAMS) && held(DATAGRAMS, DATAGRAMS - 100));
        assert!(!held(DATAGRAMS, DATAGRAMS - 101) && !held(DATAGRAMS - 1, DATAGRAMS - 1) && !held(0, 0));
    }
}
