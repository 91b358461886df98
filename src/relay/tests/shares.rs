//! One limit for all allocations, with real connections and real time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::task::JoinSet;

use super::{Harness, Joined, PATIENCE, in_one_of_five_tries, soon};

const LIMIT: u64 = 800_000;
const SECOND: Duration = Duration::from_secs(1);

/// Counts what arrives at this side: datagrams, and the bytes of streams.
fn counted(tasks: &mut JoinSet<()>, joined: &Joined) -> Arc<AtomicU64> {
    let bytes = Arc::new(AtomicU64::new(0));
    let (connection, count) = (joined.connection().clone(), bytes.clone());
    tasks.spawn(async move {
        while let Ok(datagram) = connection.read_datagram().await {
            count.fetch_add(datagram.len() as u64, Relaxed);
        }
    });
    let (connection, count) = (joined.connection().clone(), bytes.clone());
    tasks.spawn(async move {
        while let Ok(mut stream) = connection.accept_uni().await {
            while let Ok(Some(chunk)) = stream.read_chunk(usize::MAX, true).await {
                count.fetch_add(chunk.bytes.len() as u64, Relaxed);
            }
        }
    });
    bytes
}

/// Sends as much as there is room for, by one stream.
fn greedy(tasks: &mut JoinSet<()>, joined: &Joined) {
    let connection = joined.connection().clone();
    tasks.spawn(async move {
        let mut send = connection.open_uni().await.unwrap();
        while send.write_all(&[7; 4096]).await.is_ok() {}
    });
}

/// Sends 10 kB/s in datagrams.
fn modest(tasks: &mut JoinSet<()>, joined: &Joined) {
    let connection = joined.connection().clone();
    tasks.spawn(async move {
        let mut ticks = tokio::time::interval(SECOND / 20);
        loop {
            ticks.tick().await;
            if connection.send_datagram(vec![3; 500].into()).is_err() {
                return;
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r4_2_one_greedy_and_twenty_modest_share_and_a_newcomer_has_its_part_within_a_second() {
    in_one_of_five_tries(one_greedy_twenty_modest_and_a_newcomer).await;
}

/// That there is never more than the limit always holds; that all of it is used takes a machine that has the time.
async fn one_greedy_twenty_modest_and_a_newcomer() -> Result<(), String> {
    let harness = Harness::with(|config| config.global_bytes_per_sec = Some(LIMIT));
    assert_eq!(Some(LIMIT), harness.server_limit().await);
    let mut tasks = JoinSet::new();
    let mut pairs = Vec::new();
    for _ in 0..22 {
        let (device, peer) = harness.joined_pair(&harness.pair()).await;
        let arrived = counted(&mut tasks, &peer);
        pairs.push((device, peer, arrived));
    }
    let arrived = |pairs: &[(Joined, Joined, Arc<AtomicU64>)]| -> Vec<u64> {
        pairs.iter().map(|(_, _, arrived)| arrived.load(Relaxed)).collect()
    };
    greedy(&mut tasks, &pairs[0].0);
    for (device, ..) in &pairs[1..21] {
        modest(&mut tasks, device);
    }
    let begun = harness.clock.mono();
    tokio::time::sleep(SECOND).await;
    let (before, from) = (arrived(&pairs), harness.clock.mono());
    tokio::time::sleep(2 * SECOND).await;
    let (after, to) = (arrived(&pairs), harness.clock.mono());
    let rates = |before: &[u64], after: &[u64], time: Duration| -> Vec<u64> {
        let per_sec = |(before, after): (&u64, &u64)| ((after - before) as f64 / time.as_secs_f64()) as u64;
        before.iter().zip(after).map(per_sec).collect()
    };
    let alone = rates(&before, &after, to - from);
    // 20 x 10 kB/s are asked for, and the greedy one has the rest of what is divided, 775 kB/s.
    if alone[0] <= 450_000 || alone[1..21].iter().any(|rate| *rate < 9_000) {
        return Err(format!("{alone:?}"));
    }
    let shown = harness.metric("zrc_relay_global_use_bytes_per_second");
    if shown <= LIMIT / 2 || shown > LIMIT * 11 / 10 {
        return Err(format!("{shown} is shown"));
    }

    greedy(&mut tasks, &pairs[21].0);
    tokio::time::sleep(SECOND).await;
    let (before, from) = (arrived(&pairs), harness.clock.mono());
    tokio::time::sleep(2 * SECOND).await;
    let (after, to) = (arrived(&pairs), harness.clock.mono());
    let shared = rates(&before, &after, to - from);
    // All of it, from the first byte on.
    let all: u64 = after.iter().sum();
    let allowed = LIMIT as f64 * (to - begun).as_secs_f64() + LIMIT as f64 / 10.0;
    assert!((all as f64) <= allowed, "{all} of {allowed}");
    tasks.shutdown().await;
    let fair = shared[21] > 220_000 && shared[0] > 220_000 && shared[1..21].iter().all(|rate| *rate >= 9_000);
    fair.then_some(()).ok_or_else(|| format!("{shared:?}"))
}

#[tokio::test]
async fn what_the_global_limit_drops_has_a_reason_of_its_own() {
    let harness = Harness::with(|config| config.global_bytes_per_sec = Some(LIMIT));
    assert_eq!(Some(LIMIT), harness.server_limit().await);
    let (first, first_peer) = harness.joined_pair(&harness.pair()).await;
    let (second, second_peer) = harness.joined_pair(&harness.pair()).await;
    // Each may have nearly all of it while the other asks for nothing, but not both at once.
    soon(async {
        while harness.dropped("global_rate") == 0 {
            for _ in 0..100 {
                first.send_datagram(vec![1; 1000]);
                second.send_datagram(vec![2; 1000]);
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    // A stream waits, and all of it arrives.
    let sending = async {
        let mut send = first.connection().open_uni().await.unwrap();
        send.write_all(&vec![9; 200_000]).await.unwrap();
        send.finish().unwrap();
    };
    let receiving = async {
        let mut recv = first_peer.connection().accept_uni().await.unwrap();
        recv.read_to_end(1 << 20).await.unwrap()
    };
    let (_, received) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(sending, receiving) }).await.unwrap();
    assert_eq!(received, vec![9; 200_000]);
    drop(second_peer);
}

#[tokio::test]
async fn without_a_global_limit_there_is_none() {
    let harness = Harness::start();
    assert_eq!(harness.metric("zrc_relay_global_limit_bytes_per_second"), 0);
    let (device, peer) = harness.joined_pair(&harness.pair()).await;
    for _ in 0..20 {
        device.send_datagram(vec![1; 1000]);
        peer.datagram().await;
    }
    assert_eq!(harness.metric("zrc_relay_global_use_bytes_per_second"), 0);
    assert_eq!(harness.dropped("global_rate"), 0);
}

impl Harness {
    /// The global limit, as a scrape shows it once it is being divided.
    async fn server_limit(&self) -> Option<u64> {
        let series = "zrc_relay_global_limit_bytes_per_second";
        self.metric_reaches(series, 1).await;
        Some(self.metric(series))
    }
}
