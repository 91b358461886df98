//! Several shards behind one port: each connection has its thread, and stays with it.

use std::{net::UdpSocket, num::NonZeroU8, time::Duration};

use quinn::ConnectionId;

use super::{super::MAX_SHARDS, Harness, Joined, PATIENCE, Pair, Role, soon, steer};
use crate::{
    relay::{
        StartError,
        socket::{FAILING_PACKET, PANICKING_PACKET},
    },
    wire::control::ClientMessage,
};

const SHARDS: u8 = 4;

fn harness() -> Harness {
    Harness::with(|config| config.shards = NonZeroU8::new(SHARDS))
}

fn on_shards(harness: &Harness) -> Vec<u64> {
    (0..SHARDS)
        .map(|shard| harness.metric(&format!("zrc_relay_shard_connections{{shard=\"{shard}\"}}")))
        .collect()
}

/// A client that asks for a shard as clients do: by the first byte of its first connection ID.
async fn join_asking_for(harness: &Harness, byte: u8, pair: &Pair, role: Role) -> Joined {
    let ask = move |config: &mut quinn::ClientConfig| {
        config.initial_dst_cid_provider(std::sync::Arc::new(move || {
            let mut id = [0; 12];
            getrandom::fill(&mut id).unwrap();
            id[0] = byte;
            ConnectionId::new(&id)
        }));
    };
    harness.try_connect(ask).await.unwrap().join(pair, role).await.unwrap()
}

/// Datagrams and a stream cross in both directions.
async fn exchange(one: &Joined, other: &Joined) {
    for (from, to) in [(one, other), (other, one)] {
        from.send_datagram(&b"datagram"[..]);
        assert_eq!(to.datagram().await, b"datagram"[..]);
        let mut send = soon(from.connection().open_uni()).await.unwrap();
        soon(send.write_all(b"stream")).await.unwrap();
        send.finish().unwrap();
        let mut recv = soon(to.connection().accept_uni()).await.unwrap();
        assert_eq!(soon(recv.read_to_end(100)).await.unwrap(), b"stream");
    }
}

#[tokio::test]
async fn every_shard_serves_and_pairs_meet_across_them() {
    let harness = harness();
    assert_eq!(harness.server.shards(), usize::from(SHARDS));
    let mut held = Vec::new();
    for device_at in 0..SHARDS {
        for peer_at in 0..SHARDS {
            let pair = harness.pair();
            let mut device = join_asking_for(&harness, device_at, &pair, Role::Device).await;
            let peer = join_asking_for(&harness, peer_at, &pair, Role::Peer).await;
            device.until_present(true).await;
            exchange(&device, &peer).await;
            held.push((device, peer));
        }
    }
    assert_eq!(on_shards(&harness), [8; SHARDS as usize]);
    assert_eq!(harness.metric("zrc_relay_shard_handoffs_total"), 0, "steered by the kernel");
    // Ends cross too.
    let (mut device, mut peer) = held.swap_remove(1);
    device.control.say(&ClientMessage::Release).await;
    assert_eq!(device.closing().await.0, peer.closing().await.0);
    drop(held);
    for shard in 0..SHARDS {
        harness.metric_becomes(&format!("zrc_relay_shard_connections{{shard=\"{shard}\"}}"), 0).await;
    }
}

#[tokio::test]
async fn connection_ids_without_a_wish_are_spread_by_chance() {
    let harness = harness();
    let mut held = Vec::new();
    // All on one shard of four, by chance: once in 4^39 runs.
    while on_shards(&harness).contains(&0) && held.len() < 400 {
        held.push(harness.connect().await);
    }
    assert!(!on_shards(&harness).contains(&0), "{:?}", on_shards(&harness));
}

#[tokio::test]
async fn a_change_of_address_stays_on_its_shard() {
    let harness = harness();
    let mut pairs = Vec::new();
    for at in 0..SHARDS {
        let pair = harness.pair();
        let mut device = join_asking_for(&harness, at, &pair, Role::Device).await;
        let peer = join_asking_for(&harness, at, &pair, Role::Peer).await;
        device.until_present(true).await;
        pairs.push((device, peer));
    }
    let before = on_shards(&harness);
    for round in 1..=4 {
        for (device, peer) in &pairs {
            // Another port, so another hash: without steering three in four would go astray.
            device.control.endpoint.rebind(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
            exchange(device, peer).await;
        }
        harness.metric_reaches("zrc_relay_migrations_total", round * u64::from(SHARDS)).await;
    }
    assert_eq!(on_shards(&harness), before);
    assert_eq!(harness.metric("zrc_relay_shard_handoffs_total"), 0);
    assert_eq!(harness.metric("zrc_relay_connections"), 2 * u64::from(SHARDS));
}

/// A kernel that spreads packets by the hash of their addresses: what a train of several connections looks like.
#[tokio::test]
async fn packets_that_arrive_at_another_shard_are_handed_over() {
    let harness =
        Harness::try_steered(|config| config.shards = NonZeroU8::new(SHARDS), |_, _| Ok(())).unwrap();
    assert_eq!(harness.server.shards(), usize::from(SHARDS));
    let mut held = Vec::new();
    for at in 0..SHARDS {
        let pair = harness.pair();
        let mut device = join_asking_for(&harness, at, &pair, Role::Device).await;
        let peer = join_asking_for(&harness, at, &pair, Role::Peer).await;
        device.until_present(true).await;
        for _ in 0..3 {
            device.control.endpoint.rebind(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
            exchange(&device, &peer).await;
        }
        held.push((device, peer));
    }
    assert_eq!(on_shards(&harness), [2; SHARDS as usize]);
    assert!(harness.metric("zrc_relay_shard_handoffs_total") > 0);
    assert_eq!(harness.metric("zrc_relay_dropped_datagrams_total{reason=\"shard_queue\"}"), 0);
}

#[tokio::test]
async fn where_the_kernel_does_not_steer_there_is_one_shard() {
    let refuse: steer::Steer = |_, _| Err(std::io::ErrorKind::PermissionDenied.into());
    let harness = Harness::try_steered(|config| config.shards = NonZeroU8::new(SHARDS), refuse).unwrap();
    assert_eq!(harness.server.shards(), 1);
    let (device, peer) = harness.joined_pair(&harness.pair()).await;
    exchange(&device, &peer).await;
}

#[tokio::test]
async fn without_a_number_there_is_one_shard_a_core() {
    let harness = Harness::with(|config| config.shards = None);
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(harness.server.shards(), cores.min(MAX_SHARDS.into()));
}

#[tokio::test]
async fn a_second_relay_cannot_have_the_port_of_a_running_one() {
    let harness = harness();
    let addr = harness.addr();
    for shards in [1, SHARDS] {
        let taken = Harness::try_with(|config| {
            config.listen = addr;
            config.shards = NonZeroU8::new(shards);
        });
        assert!(matches!(taken, Err(StartError::Bind { .. })), "{shards} shards");
    }
}

#[tokio::test]
async fn the_bound_on_unauthenticated_connections_is_that_of_all_shards() {
    let harness = Harness::with(|config| {
        config.shards = NonZeroU8::new(SHARDS);
        config.max_unauthenticated = 2;
    });
    let mut silent = Vec::new();
    for at in 0..2 {
        silent.push(
            harness
                .try_connect(move |config| {
                    config.initial_dst_cid_provider(std::sync::Arc::new(move || {
                        ConnectionId::new(&[at, 1, 2, 3, 4, 5, 6, 7])
                    }));
                })
                .await
                .unwrap(),
        );
    }
    let refused = harness.try_connect(|_| {}).await;
    assert!(matches!(refused, Err(quinn::ConnectionError::ConnectionClosed(_))), "{:?}", refused.err());
    assert_eq!(harness.metric("zrc_relay_handshakes_refused_total"), 1);
}

#[tokio::test]
async fn a_panic_over_a_packet_costs_what_arrived_with_it_and_nothing_else() {
    let harness = Harness::start();
    let (device, peer) = harness.joined_pair(&harness.pair()).await;
    let enemy = UdpSocket::bind(harness.local()).unwrap();
    for panics in 1..=3 {
        enemy.send_to(PANICKING_PACKET, harness.addr()).unwrap();
        harness.metric_becomes("zrc_relay_socket_panics_total", panics).await;
        exchange(&device, &peer).await;
    }
}

#[tokio::test]
async fn the_loss_of_a_shard_is_reported_and_the_others_go_on() {
    let harness = harness();
    let pair = harness.pair();
    let mut device = join_asking_for(&harness, 1, &pair, Role::Device).await;
    let peer = join_asking_for(&harness, 1, &pair, Role::Peer).await;
    device.until_present(true).await;
    assert_ne!(FAILING_PACKET[1] % SHARDS, 1, "another shard's");
    UdpSocket::bind(harness.local()).unwrap().send_to(FAILING_PACKET, harness.addr()).unwrap();
    soon(harness.server.lost()).await;
    exchange(&device, &peer).await;
    harness.server.shutdown(std::time::Duration::from_secs(5)).await;
}

/// What the service manager's watchdog is fed by.
#[test]
fn a_shard_that_does_not_come_round_is_noticed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let harness = harness();
    let wait = |until: &dyn Fn(Duration) -> bool| {
        let started = harness.clock.mono();
        while !until(harness.server.pulse().silent_for()) {
            assert!(harness.clock.mono() - started < PATIENCE, "{:?}", harness.server.pulse().silent_for());
            std::thread::yield_now();
        }
    };
    // Four rounds: more than a shard is late that is only slow.
    let stuck = Duration::from_secs(1);
    wait(&|silent| silent < stuck);
    let held = harness.server.hold_up();
    wait(&|silent| silent > stuck);
    drop(held);
    wait(&|silent| silent < stuck);
}
