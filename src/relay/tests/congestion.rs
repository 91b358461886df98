//! The congestion controller's place in a leg: it knows the allocation's rate, and a slow path does not hold seconds.

use std::net::UdpSocket;

use quinn::VarInt;
use tokio::{
    sync::mpsc,
    time::{Instant, interval, sleep_until},
};

use super::*;
use crate::{quic::congestion, wire::control::Refresh};

impl Harness {
    /// What the controllers of all legs were told.
    fn rates(&self) -> Vec<Option<u64>> {
        self.server.legs().iter().map(|leg| congestion::rate(&leg.connection)).collect()
    }

    async fn rates_become(&self, rates: [Option<u64>; 2]) {
        soon(async {
            while self.rates() != rates {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn the_controllers_of_both_legs_follow_the_allocations_rate() {
    let harness = Harness::start();
    let pair = harness.pair_with(|fields| fields.bandwidth_bytes_per_sec = 500_000);
    let (device, mut peer) = harness.joined_pair(&pair).await;
    assert_eq!(harness.rates(), [Some(500_000); 2]);

    let newer = pair.again(|fields| {
        fields.expires_at_unix += 60;
        fields.bandwidth_bytes_per_sec = 700_000;
    });
    let refresh = Refresh { token: Bytes::copy_from_slice(&newer.to_bytes()) };
    peer.control.say(&ClientMessage::Refresh(refresh)).await;
    harness.rates_become([Some(700_000); 2]).await;

    // Another address, not only another port: a path that quinn starts anew.
    device.control.endpoint.rebind(UdpSocket::bind("127.0.0.2:0").unwrap()).unwrap();
    device.send_datagram(&b"from elsewhere"[..]);
    assert_eq!(peer.datagram().await, &b"from elsewhere"[..]);
    harness.metric_becomes("zrc_relay_migrations_total", 1).await;
    harness.rates_become([Some(700_000); 2]).await;

    let unlimited = Harness::start();
    let _both = unlimited.joined_pair(&unlimited.pair()).await;
    assert_eq!(unlimited.rates(), [None; 2]);
}

/// A path that carries so much towards the client, and holds four seconds of it.
async fn slow(relay: SocketAddr, bytes_per_sec: usize) -> SocketAddr {
    let near = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let far = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    far.connect(relay).await.unwrap();
    let addr = near.local_addr().unwrap();
    let (queue, mut queued) = mpsc::channel::<(Instant, Vec<u8>, SocketAddr)>(4 * bytes_per_sec / 1200);
    let out = near.clone();
    tokio::spawn(async move {
        let mut free_at = Instant::now();
        while let Some((arrived, packet, client)) = queued.recv().await {
            let took = Duration::from_secs_f64(packet.len() as f64 / bytes_per_sec as f64);
            free_at = free_at.max(arrived) + took;
            sleep_until(free_at).await;
            let _ = out.send_to(&packet, client).await;
        }
    });
    tokio::spawn(async move {
        let (mut from_client, mut from_relay) = ([0; 2000], [0; 2000]);
        let mut client = None;
        loop {
            tokio::select! {
                Ok((len, from)) = near.recv_from(&mut from_client) => {
                    client = Some(from);
                    let _ = far.send(&from_client[..len]).await;
                }
                Ok(len) = far.recv(&mut from_relay) => if let Some(client) = client {
                    let _ = queue.try_send((Instant::now(), from_relay[..len].to_vec(), client));
                }
            }
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_towards_a_slow_path_does_not_wait_for_seconds() {
    in_one_of_five_tries(async || {
        let (median, most) = waits_in_a_flood().await;
        // A tenth of a second in the leg, and in the path what the controller has in flight.
        let short = median < Duration::from_millis(500) && most < Duration::from_millis(1500);
        short.then_some(()).ok_or_else(|| format!("{median:?} of at most {most:?}"))
    })
    .await;
}

/// How long datagrams of a flood take over a slow path, once it has lasted for a second: the median and the most.
async fn waits_in_a_flood() -> (Duration, Duration) {
    const PATH_BYTES_PER_SEC: usize = 250_000;
    let harness = Harness::start();
    let pair = harness.pair();
    let mut device = harness.join(&pair, Role::Device).await;
    let peer = harness.connect_to(slow(harness.addr(), PATH_BYTES_PER_SEC).await, |_| {}).await;
    let peer = peer.join(&pair, Role::Peer).await.unwrap();
    device.until_present(true).await;

    // Five times what the path carries, for three seconds.
    let started = Instant::now();
    let flooding = device.connection().clone();
    let flood = tokio::spawn(async move {
        let mut ticks = interval(Duration::from_millis(4));
        while started.elapsed() < Duration::from_secs(3) {
            ticks.tick().await;
            for _ in 0..5 {
                let mut payload = vec![0; 1000];
                payload[..8].copy_from_slice(&(started.elapsed().as_micros() as u64).to_le_bytes());
                flooding.send_datagram(payload.into()).unwrap();
            }
        }
    });
    let mut waited = Vec::new();
    while started.elapsed() < Duration::from_secs(3) {
        let payload = peer.datagram().await;
        let sent = Duration::from_micros(u64::from_le_bytes(payload[..8].try_into().unwrap()));
        if sent > Duration::from_secs(1) {
            waited.push(started.elapsed() - sent);
        }
    }
    flood.await.unwrap();
    waited.sort();
    device.connection().close(VarInt::from_u32(0), b"");
    // Half of what the path carries in two seconds; where so few arrived, nothing has been measured.
    if waited.len() <= PATH_BYTES_PER_SEC / 1000 {
        return (Duration::MAX, Duration::MAX);
    }
    (waited[waited.len() / 2], waited[waited.len() - 1])
}
