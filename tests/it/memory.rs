//! What a relay holds while receivers read nothing: no more than `src/lib.rs` says, whatever is sent.

use std::{
    fs,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ed25519_dalek::SigningKey;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use zrc_relay::{
    client::{Options, Relay, Session, Ticket},
    clock::Clock,
    wire::{AllocationId, DeviceId, PeerId, TokenFields},
};

use crate::{cli::command, cli_serve::Running};

/// "What one connection can make the relay hold", added up.
const MOST_KIB: u64 = 23 * 1024;
/// The streams alone are 16 MiB; so much at least shows that they were filled.
const LEAST_KIB: u64 = 14 * 1024;
const PATIENCE: Duration = Duration::from_secs(60);

fn rss_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Writes to as many streams as the relay allows, for as long as it takes any. Datagrams would go before them.
async fn fill(session: Arc<Session>, taken: Arc<AtomicU64>) {
    let mut writers = JoinSet::new();
    loop {
        // More streams are allowed once the first are used; in the end there are none to wait for.
        let (session, taken) = (session.clone(), taken.clone());
        let opened = tokio::select! {
            opened = session.open_uni() => opened,
            opened = async { session.open_bi().await.map(|(send, _)| send) } => opened,
        };
        let Ok(mut stream) = opened else { break };
        writers.spawn(async move {
            let chunk = vec![7; 16 * 1024];
            while stream.write_all(&chunk).await.is_ok() {
                taken.fetch_add(chunk.len() as u64, Relaxed);
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r3_4_receivers_that_read_nothing_cost_bounded_memory() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let config = folder.path().join("relay.toml");
    let text = format!(
        "state_dir = {state:?}\n[relay]\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\nself_certified = true\n\
         default_bandwidth_limit = 0\ndefault_packet_rate = 0\ndefault_quota = 0\n[ops]\nlisten_port = 0\n"
    );
    fs::write(&config, text).unwrap();
    let mut serve = command(&["serve", "--config", config.to_str().unwrap()]);
    let mut running = Running::start(&mut serve, Stdio::null());
    running.line_with("clients:");
    let pid = running.child.id();
    // Clients that have room for streams and hardly any for what is on them.
    let options = Options { max_streams: 64, stream_window_bytes: 16 * 1024, ..Options::default() };
    let relay = Relay::from_json(fs::read(state.join("relay.json")).unwrap()).unwrap().with_options(options);

    let (device, peer) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
    let token = TokenFields {
        relay_id: relay.descriptor().relay_id,
        allocation_id: AllocationId::random().unwrap(),
        device_id: DeviceId(device.verifying_key().to_bytes()),
        peer_id: PeerId(peer.verifying_key().to_bytes()),
        expires_at_unix: Clock::start().unix_secs() + 600,
        bandwidth_bytes_per_sec: 0,
        quota_bytes: 0,
    }
    .sign(&device);
    let from = Arc::new(relay.connect(Ticket::device(token.clone(), device).unwrap()).await.unwrap());
    let to = relay.connect(Ticket::peer(token, peer).unwrap()).await.unwrap();
    timeout(PATIENCE, from.peer_arrived()).await.unwrap().unwrap();
    let before_kib = rss_kib(pid);
    let taken = Arc::new(AtomicU64::new(0));
    let filling = tokio::spawn(fill(from.clone(), taken.clone()));
    // Until nothing more is taken, and what it holds meanwhile counts as well.
    let (mut most_kib, mut last, mut same) = (0, 0, 0);
    timeout(PATIENCE, async {
        while same < 20 {
            sleep(Duration::from_millis(100)).await;
            most_kib = most_kib.max(rss_kib(pid) - before_kib);
            let now = taken.load(Relaxed);
            same = if now == last && now > 0 { same + 1 } else { 0 };
            last = now;
        }
    })
    .await
    .unwrap();
    eprintln!("{} MiB taken, {} MiB of them held", last >> 20, most_kib >> 10);
    assert!(most_kib <= MOST_KIB, "{most_kib} KiB");
    assert!(most_kib >= LEAST_KIB, "{most_kib} KiB: the test fills too little");
    assert!(from.is_connected() && to.is_connected());
    filling.abort();
}
