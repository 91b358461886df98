//! Limits that are changed while sessions run: they hold at once, and nobody is sent away for them who need not go.

use std::time::Duration;

use tokio::task::JoinSet;

use super::{Harness, Joined, rules, soon};
use crate::{
    relay::LiveLimits,
    table::Rules,
    wire::{CloseCode, Role, control::ClientMessage},
};

impl Harness {
    /// What it was started with, but for this.
    fn change(&self, change: impl FnOnce(&mut LiveLimits)) {
        let mut limits = LiveLimits { rules: rules(), global_bytes_per_sec: None, max_unauthenticated: 100 };
        change(&mut limits);
        self.server.set_limits(limits).unwrap();
    }

    fn change_rules(&self, rules: Rules) {
        self.change(|limits| limits.rules = rules);
    }
}

/// One datagram there and one back.
async fn works(device: &Joined, peer: &Joined) {
    device.send_datagram(vec![1; 100]);
    assert_eq!(peer.datagram().await.len(), 100);
    peer.send_datagram(vec![2; 50]);
    assert_eq!(device.datagram().await.len(), 50);
}

#[tokio::test]
async fn r8_a_global_limit_comes_and_goes_while_sessions_run() {
    const LIMIT: u64 = 800_000;
    let harness = Harness::start();
    let pairs = [harness.joined_pair(&harness.pair()).await, harness.joined_pair(&harness.pair()).await];
    let mut tasks = JoinSet::new();
    for (device, peer) in &pairs {
        let (from, to) = (device.connection().clone(), peer.connection().clone());
        tasks.spawn(async move {
            let mut send = from.open_uni().await.unwrap();
            while send.write_all(&[7; 4096]).await.is_ok() {}
        });
        tasks.spawn(async move {
            let mut recv = to.accept_uni().await.unwrap();
            while recv.read_chunk(usize::MAX, true).await.is_ok_and(|chunk| chunk.is_some()) {}
        });
    }
    let passed = || harness.metric("zrc_relay_forwarded_bytes_total{from=\"device\",kind=\"stream\"}");
    let (use_, shown) = ("zrc_relay_global_use_bytes_per_second", "zrc_relay_global_limit_bytes_per_second");
    for _ in 0..2 {
        // Without a limit, megabytes take no time.
        let before = passed();
        soon(async {
            while passed() < before + 5_000_000 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        harness.change(|limits| limits.global_bytes_per_sec = Some(LIMIT));
        // What was charged before that may be counted a moment later.
        harness.metric_becomes(shown, LIMIT).await;
        let (before, since) = (passed(), harness.clock.mono());
        harness.metric_reaches(use_, LIMIT / 2).await;
        let (after, now) = (passed(), harness.clock.mono());
        let allowed = LIMIT as f64 * (now - since).as_secs_f64() + LIMIT as f64 / 10.0;
        assert!((after - before) as f64 <= allowed, "{} of {allowed}", after - before);
        harness.change(|_| {});
        harness.metric_becomes(shown, 0).await;
        harness.metric_becomes(use_, 0).await;
    }
    tasks.shutdown().await;
    for (device, peer) in &pairs {
        works(device, peer).await;
    }
    assert_eq!(harness.metric("zrc_relay_allocations"), 2);
}

#[tokio::test]
async fn r8_maximums_that_shrink_end_nothing_and_refuse_more() {
    let harness = Harness::start();
    let pair = harness.pair();
    let (device, peer) = harness.joined_pair(&pair).await;
    let (second, second_peer) = harness.joined_pair(&harness.pair()).await;
    let refused = async || harness.connect().await.join(&harness.pair(), Role::Device).await.err().unwrap().0;
    harness.change_rules(Rules { max_allocations: 1, ..rules() });
    assert_eq!(harness.metric("zrc_relay_max_allocations"), 1);
    assert_eq!(refused().await, CloseCode::Capacity);
    harness.change_rules(Rules { max_ledger: 2, ..rules() });
    assert_eq!(refused().await, CloseCode::Capacity);
    // Who has an allocation may still join it.
    let again = harness.join(&pair, Role::Device).await;
    works(&again, &peer).await;
    works(&second, &second_peer).await;
    harness.change_rules(rules());
    harness.join(&harness.pair(), Role::Device).await;
    // The third connection of a side takes the place of the first two.
    harness.change_rules(Rules { connections_per_role: 1, ..rules() });
    let mut others = [device, again];
    harness.join(&pair, Role::Device).await;
    for other in &mut others {
        assert_eq!(other.closing().await.0, CloseCode::Replaced);
    }
}

#[tokio::test]
async fn r8_shorter_times_are_over_at_once_and_longer_ones_later() {
    let second = Duration::from_secs(1);
    let harness = Harness::with(|config| {
        config.rules.pair_timeout = second;
        config.keepalive = None;
    });
    // Longer than what it came with.
    let mut waiting = harness.join(&harness.pair(), Role::Device).await;
    harness.change_rules(rules());
    let ended = tokio::time::timeout(2 * second, waiting.closing()).await;
    assert!(ended.is_err(), "{ended:?}");
    let (mut left, gone) = harness.joined_pair(&harness.pair()).await;
    gone.connection().close(0_u32.into(), b"");
    left.until_present(false).await;
    let (device, peer) = harness.joined_pair(&harness.pair()).await;
    harness.change_rules(Rules { pair_timeout: Duration::from_millis(1), ..rules() });
    assert_eq!(waiting.closing().await.0, CloseCode::PairTimeout);
    works(&device, &peer).await;
    // A side that stays away, and connections that are silent.
    harness.change_rules(Rules { idle_timeout: 2 * second, ..rules() });
    assert_eq!(left.closing().await.0, CloseCode::PeerGone);
    let (mut device, mut peer) = (device, peer);
    let codes = [device.closing().await.0, peer.closing().await.0];
    // When the one has gone for its silence, the other may be gone for that.
    assert!(codes.contains(&CloseCode::Idle), "{codes:?}");
    // Who comes now is told, and has as long.
    let mut last = harness.join(&harness.pair(), Role::Device).await;
    assert_eq!(last.allocated.idle_timeout_ms, 2000);
    harness.change_rules(Rules { allocation_timeout: Duration::from_millis(1), ..rules() });
    assert_eq!(last.closing().await.0, CloseCode::Expired);
}

/// A client that speaks as often as it was told to is not silent, whatever the operator says afterwards.
#[tokio::test]
async fn r8_an_idle_timeout_below_the_keepalive_in_force_takes_nobody_for_gone() {
    let harness = Harness::with(|config| config.keepalive = Some(Duration::from_secs(1)));
    let (device, peer) = harness.joined_pair(&harness.pair()).await;
    harness.change_rules(Rules { idle_timeout: Duration::from_millis(100), ..rules() });
    let ended = tokio::time::timeout(Duration::from_secs(5), device.connection().closed()).await;
    assert!(ended.is_err(), "{ended:?}");
    works(&device, &peer).await;
    let newcomer = harness.join(&harness.pair(), Role::Device).await;
    assert_eq!(newcomer.allocated.idle_timeout_ms, 2000);
}

#[tokio::test]
async fn r8_fewer_may_be_unauthenticated_from_now_on() {
    let harness = Harness::start();
    let (mut device, peer) = harness.joined_pair(&harness.pair()).await;
    harness.change(|limits| limits.max_unauthenticated = 1);
    let held = harness.connect().await;
    harness.try_connect(|_| {}).await.err().expect("refused");
    assert_eq!(harness.metric("zrc_relay_handshakes_refused_total"), 1);
    harness.change(|_| {});
    let other = harness.connect().await;
    works(&device, &peer).await;
    drop((held, other));
    device.control.say(&ClientMessage::Release).await;
    assert_eq!(device.closing().await.0, CloseCode::Released);
}
