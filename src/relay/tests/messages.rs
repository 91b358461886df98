//! What clients are told of their limits, and what they can do about it in time.

use std::time::Duration;

use bytes::Bytes;
use tokio::{task::JoinSet, time::timeout};

use super::{Harness, Joined, PATIENCE, Pair, in_one_of_five_tries, quota, soon};
use crate::{
    table::{Limits, Tier},
    wire::{
        CloseCode,
        control::{ClientMessage, Refresh, RelayMessage, Throttled, Usage},
    },
};

const SECOND: Duration = Duration::from_secs(1);

fn with_limits(limits: Limits) -> Harness {
    Harness::with(|config| {
        config.admission.self_certified = Some(Tier { limits, ..Tier::default() });
    })
}

async fn usage(joined: &mut Joined) -> Usage {
    joined
        .until(|message| match message {
            RelayMessage::Usage(usage) => Some(usage),
            _ => None,
        })
        .await
}

async fn throttled(joined: &mut Joined) -> Throttled {
    joined
        .until(|message| match message {
            RelayMessage::Throttled(throttled) => Some(throttled),
            _ => None,
        })
        .await
}

async fn refreshed(joined: &mut Joined) -> Option<u64> {
    joined
        .until(|message| match message {
            RelayMessage::Refreshed(refreshed) => Some(refreshed.quota_bytes),
            _ => None,
        })
        .await
}

/// A token with this quota that expires later than any before.
async fn top_up(joined: &mut Joined, pair: &mut Pair, quota_bytes: u64) {
    pair.token = pair.again(|fields| {
        fields.quota_bytes = quota_bytes;
        fields.expires_at_unix += 1;
    });
    let token = Bytes::copy_from_slice(&pair.token.to_bytes());
    joined.control.say(&ClientMessage::Refresh(Refresh { token })).await;
}

#[tokio::test]
async fn r4_4_both_sides_are_told_at_each_mark_of_the_quota_and_again_of_a_larger_one() {
    let harness = Harness::start();
    let mut pair = harness.pair_with(|fields| fields.quota_bytes = 100_000);
    let (mut device, mut peer) = harness.joined_pair(&pair).await;
    let mut used = 0;
    let pass = async |device: &Joined, peer: &Joined, until: u64| {
        for _ in 0..until / 1000 {
            device.send_datagram(vec![1; 1000]);
            assert_eq!(peer.datagram().await.len(), 1000);
        }
    };
    // To the mark and not beyond: what is told is what was used when it was looked at.
    for (percent, bytes) in [(50, 50_000), (75, 25_000), (90, 15_000)] {
        pass(&device, &peer, bytes).await;
        used += bytes;
        let expected = Usage { bytes_used: used, quota_bytes: 100_000, percent };
        assert_eq!(usage(&mut device).await, expected);
        assert_eq!(usage(&mut peer).await, expected);
    }
    // 90 000 of 200 000 are less than half: nothing is told until that is passed again.
    top_up(&mut peer, &mut pair, 200_000).await;
    assert_eq!(refreshed(&mut device).await, Some(200_000));
    pass(&device, &peer, 10_000).await;
    let expected = Usage { bytes_used: 100_000, quota_bytes: 200_000, percent: 50 };
    assert_eq!(usage(&mut device).await, expected);
    assert_eq!(usage(&mut peer).await, expected);
    // The last byte passes, and one more ends it.
    pass(&device, &peer, 100_000).await;
    device.send_datagram(&b"x"[..]);
    assert_eq!(device.closing().await.0, CloseCode::QuotaExceeded);
    assert_eq!(peer.closing().await.0, CloseCode::QuotaExceeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r4_4_messages_arrive_within_a_second_of_their_cause_under_a_flood_of_datagrams() {
    in_one_of_five_tries(async || {
        let took = throttled_under_a_flood().await;
        (took < SECOND).then_some(()).ok_or_else(|| format!("{took:?}"))
    })
    .await;
}

/// How long it took until the first was told of what the rate had dropped.
async fn throttled_under_a_flood() -> Duration {
    let harness = with_limits(Limits { rate_bytes_per_sec: Some(400_000), ..quota(1_500_000) });
    let (mut device, mut peer) = harness.joined_pair(&harness.pair()).await;
    let mut floods = JoinSet::new();
    for connection in [device.connection().clone(), peer.connection().clone()] {
        let receiving = connection.clone();
        floods.spawn(async move { while receiving.read_datagram().await.is_ok() {} });
        floods.spawn(async move {
            while connection.send_datagram_wait(Bytes::from_static(&[3; 1000])).await.is_ok() {}
        });
    }
    let begun = harness.clock.mono();
    let mut told = Vec::new();
    // Of 1 500 000 bytes half are gone after 1.8 s (with the burst), 90 % after 3.3 s.
    for side in [&mut device, &mut peer] {
        let mut throttled_at = Vec::new();
        let (mut percents, mut dropped) = (Vec::new(), 0);
        let code = loop {
            let message = timeout(PATIENCE, side.control.next()).await.unwrap();
            match message {
                Some(RelayMessage::Usage(usage)) => percents.push(usage.percent),
                Some(RelayMessage::Throttled(throttled)) => {
                    assert!(throttled.datagrams > 0 && throttled.bytes == throttled.datagrams * 1000);
                    dropped += throttled.datagrams;
                    throttled_at.push(harness.clock.mono() - begun);
                }
                Some(RelayMessage::Closing(closing)) => break closing.code,
                Some(_) => {}
                None => panic!("ended without a reason"),
            }
        };
        assert_eq!(code, u32::from(CloseCode::QuotaExceeded.number()));
        told.push((percents, throttled_at, dropped, harness.clock.mono() - begun));
    }
    floods.shutdown().await;
    for (percents, ..) in &told {
        assert_eq!(percents, &[50, 75, 90]);
    }
    // The other side's were read when they were all there.
    let (_, throttled_at, dropped, ended) = &told[0];
    assert!(throttled_at.len() as u64 <= ended.as_secs() + 1, "{throttled_at:?} in {ended:?}");
    let all = harness.dropped("byte_rate");
    assert!(*dropped <= all && *dropped > all / 2, "{dropped} of {all}");
    throttled_at[0]
}

#[tokio::test]
async fn r4_4_both_sides_are_told_what_was_dropped_and_then_no_more() {
    let harness = with_limits(Limits { rate_packets_per_sec: Some(100), ..Limits::default() });
    let (mut device, mut peer) = harness.joined_pair(&harness.pair()).await;
    for _ in 0..100 {
        device.send_datagram(vec![5; 100]);
    }
    let told = [throttled(&mut device).await, throttled(&mut peer).await];
    let dropped = harness.dropped("packet_rate");
    for told in told {
        assert!(told.datagrams > 0 && told.datagrams <= dropped, "{told:?} of {dropped}");
        assert_eq!(told.bytes, told.datagrams * 100);
        assert!(told.window_ms > 0 && told.window_ms < 20_000);
    }
}

#[tokio::test]
async fn r4_4_both_sides_are_told_before_the_token_expires() {
    let harness = Harness::start();
    let expires_at_unix = harness.clock.unix_secs() + 5;
    let pair = harness.pair_with(|fields| fields.expires_at_unix = expires_at_unix);
    let (mut device, mut peer) = harness.joined_pair(&pair).await;
    for side in [&mut device, &mut peer] {
        let expires_at = side
            .until(|message| match message {
                RelayMessage::Expiring(expiring) => Some(expiring.expires_at),
                _ => None,
            })
            .await;
        assert_eq!(expires_at, expires_at_unix);
        assert!(harness.clock.unix_secs() < expires_at_unix, "too late");
    }
    assert_eq!(device.closing().await.0, CloseCode::Expired);
    assert_eq!(peer.closing().await.0, CloseCode::Expired);
}

#[tokio::test]
async fn r4_a_quota_is_topped_up_in_mid_transfer_without_losing_a_byte() {
    const TOP_UP: u64 = 1_000_000;
    let harness = with_limits(Limits { rate_bytes_per_sec: Some(2_000_000), ..Limits::default() });
    let mut pair = harness.pair_with(|fields| fields.quota_bytes = TOP_UP);
    let (mut device, peer) = harness.joined_pair(&pair).await;
    let sent: Vec<u8> = (0..3 * TOP_UP as usize).map(|at| (at * 31 / 7) as u8).collect();
    let sending = {
        let (connection, sent) = (device.connection().clone(), sent.clone());
        async move {
            let mut send = connection.open_uni().await.unwrap();
            send.write_all(&sent).await.unwrap();
            send.finish().unwrap();
            send.stopped().await.unwrap();
        }
    };
    let receiving = async {
        let mut recv = peer.connection().accept_uni().await.unwrap();
        recv.read_to_end(sent.len()).await.unwrap()
    };
    // Whenever the relay says that half of it is used, there is as much again.
    let topping = async {
        let mut quota_bytes = TOP_UP;
        loop {
            let told = usage(&mut device).await;
            assert_eq!(told.quota_bytes, quota_bytes);
            quota_bytes += TOP_UP;
            top_up(&mut device, &mut pair, quota_bytes).await;
            assert_eq!(refreshed(&mut device).await, Some(quota_bytes));
        }
    };
    let received = soon(async {
        tokio::select! {
            (_, received) = async { tokio::join!(sending, receiving) } => received,
            () = topping => unreachable!(),
        }
    })
    .await;
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
}
