//! R3: datagrams and streams cross unmodified, with their ends; drops have reasons; a slow receiver is bounded.

use quinn::{ReadError, VarInt, WriteError};

use super::*;
use crate::relay::tls;

/// Bytes that differ everywhere, so that nothing can be swapped unnoticed.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(len)
    .collect()
}

#[tokio::test]
async fn r3_1_datagrams_cross_both_ways_unmodified() {
    let harness = Harness::start();
    let (device, peer) = harness.joined_pair(&harness.pair()).await;
    for len in [0, 1, 2, 100, 1000, 1100] {
        let (there, back) = (noise(len, 1 + len as u64), noise(len, 77 + len as u64));
        device.send_datagram(there.clone());
        assert_eq!(peer.datagram().await, there);
        peer.send_datagram(back.clone());
        assert_eq!(device.datagram().await, back);
    }
    harness.metric_becomes("zrc_relay_forwarded_datagrams_total{from=\"device\"}", 6).await;
    harness.metric_becomes("zrc_relay_forwarded_datagrams_total{from=\"peer\"}", 6).await;
    harness.metric_becomes("zrc_relay_forwarded_bytes_total{from=\"device\",kind=\"datagram\"}", 2203).await;
}

#[tokio::test]
async fn r3_1_streams_cross_both_ways_in_order_of_opening() {
    let harness = Harness::start();
    let (device, peer) = harness.joined_pair(&harness.pair()).await;
    for round in 0..3_u64 {
        for (here, there) in [(&device, &peer), (&peer, &device)] {
            let (mut send, mut recv) = soon(here.connection().open_bi()).await.unwrap();
            let question = noise(300_000, round + 5);
            let answer = noise(200_000, round + 9);
            let asking = async {
                send.write_all(&question).await.unwrap();
                send.finish().unwrap();
                recv.read_to_end(1 << 20).await.unwrap()
            };
            let answering = async {
                let (mut send, mut recv) = there.connection().accept_bi().await.unwrap();
                let heard = recv.read_to_end(1 << 20).await.unwrap();
                send.write_all(&answer).await.unwrap();
                send.finish().unwrap();
                heard
            };
            let (answered, asked) = soon(async { tokio::join!(asking, answering) }).await;
            assert!(asked == question && answered == answer);
        }
    }
    // Ten of one kind at once: the n-th opened here is the n-th accepted there.
    for n in 0..10_u8 {
        let mut send = soon(device.connection().open_uni()).await.unwrap();
        send.write_all(&[n; 10]).await.unwrap();
        send.finish().unwrap();
    }
    for n in 0..10_u8 {
        let mut recv = soon(peer.connection().accept_uni()).await.unwrap();
        assert_eq!(soon(recv.read_to_end(100)).await.unwrap(), [n; 10]);
    }
    harness.metric_becomes("zrc_relay_streams_spliced_total{kind=\"bi\"}", 6).await;
    harness.metric_becomes("zrc_relay_streams_spliced_total{kind=\"uni\"}", 10).await;
    harness
        .metric_becomes("zrc_relay_forwarded_bytes_total{from=\"peer\",kind=\"stream\"}", 3 * 500_000)
        .await;
}

#[tokio::test]
async fn r3_1_reset_and_stop_sending_cross_with_their_codes() {
    let harness = Harness::start();
    let (device, peer) = harness.joined_pair(&harness.pair()).await;

    let (mut send, mut recv) = soon(device.connection().open_bi()).await.unwrap();
    send.write_all(b"first").await.unwrap();
    let (mut far_send, mut far_recv) = soon(peer.connection().accept_bi()).await.unwrap();
    let mut first = [0; 5];
    soon(far_recv.read_exact(&mut first)).await.unwrap();
    send.reset(VarInt::from_u32(4711)).unwrap();
    let reset = soon(far_recv.read_to_end(10)).await.unwrap_err();
    assert!(
        matches!(reset, quinn::ReadToEndError::Read(ReadError::Reset(code)) if code == VarInt::from_u32(4711)),
        "{reset:?}"
    );
    // The other direction of the same stream goes on.
    far_send.write_all(b"still here").await.unwrap();
    far_send.finish().unwrap();
    assert_eq!(soon(recv.read_to_end(100)).await.unwrap(), b"still here");

    let (mut send, _recv) = soon(device.connection().open_bi()).await.unwrap();
    send.write_all(b"x").await.unwrap();
    let (_far_send, mut far_recv) = soon(peer.connection().accept_bi()).await.unwrap();
    far_recv.stop(VarInt::from_u32(99)).unwrap();
    let stopped = soon(async {
        loop {
            if let Err(error) = send.write_all(&[0; 1000]).await {
                return error;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(matches!(stopped, WriteError::Stopped(code) if code == VarInt::from_u32(99)), "{stopped:?}");
}

#[tokio::test]
async fn r3_1_a_reset_reaches_a_receiver_that_does_not_read() {
    let harness = Harness::start();
    let (device, peer) = harness.joined_pair(&harness.pair()).await;
    let mut send = soon(device.connection().open_uni()).await.unwrap();
    // Until every buffer on the way is full.
    let filled = soon(async {
        let mut sent = 0_u64;
        while let Ok(Ok(n)) = timeout(Duration::from_millis(500), send.write(&[7; 65536])).await {
            sent += n as u64;
        }
        sent
    })
    .await;
    assert!(filled < 32 << 20, "a receiver that reads nothing costs bounded memory, not {filled} bytes");
    send.reset(VarInt::from_u32(12)).unwrap();
    let mut recv = soon(peer.connection().accept_uni()).await.unwrap();
    assert_eq!(soon(recv.received_reset()).await.unwrap(), Some(VarInt::from_u32(12)));
}

#[tokio::test]
async fn r3_4_a_slow_receiver_does_not_disturb_its_neighbours() {
    let harness = Harness::start();
    let (device, peer) = harness.joined_pair(&harness.pair()).await;
    let (neighbour, other) = harness.joined_pair(&harness.pair()).await;
    let mut stuck = Vec::new();
    for _ in 0..5 {
        let mut send = soon(device.connection().open_uni()).await.unwrap();
        while let Ok(Ok(_)) = timeout(Duration::from_millis(200), send.write(&[7; 65536])).await {}
        stuck.push(send);
    }
    // The neighbours, and the stuck allocation's own datagrams and control stream, go on.
    neighbour.send_datagram(&b"undisturbed"[..]);
    assert_eq!(other.datagram().await, &b"undisturbed"[..]);
    device.send_datagram(&b"past the streams"[..]);
    assert_eq!(peer.datagram().await, &b"past the streams"[..]);
    let mut device = device;
    device.control.say(&ClientMessage::Ping(5)).await;
    let pong = device.until(|m| if let RelayMessage::Pong(pong) = m { Some(pong.value) } else { None }).await;
    assert_eq!(pong, 5);
}

#[tokio::test]
async fn without_a_peer_datagrams_are_dropped_and_streams_wait() {
    let harness = Harness::start();
    let pair = harness.pair();
    let mut device = harness.join(&pair, Role::Device).await;
    assert!(!device.allocated.peer_present);
    device.send_datagram(&b"to nobody"[..]);
    let mut send = soon(device.connection().open_uni()).await.unwrap();
    send.write_all(b"wait for me").await.unwrap();
    send.finish().unwrap();
    harness.metric_becomes("zrc_relay_dropped_datagrams_total{reason=\"no_peer\"}", 1).await;
    let peer = harness.join(&pair, Role::Peer).await;
    device.until_present(true).await;
    let mut recv = soon(peer.connection().accept_uni()).await.unwrap();
    assert_eq!(soon(recv.read_to_end(100)).await.unwrap(), b"wait for me");
    // R3.5: only the stream was charged.
    let late = harness.join(&pair, Role::Peer).await;
    assert_eq!(late.allocated.bytes_used, 11);
}

#[tokio::test]
async fn streams_die_with_their_connection_and_datagrams_follow_the_allocation() {
    let harness = Harness::start();
    let pair = harness.pair();
    let (mut device, peer) = harness.joined_pair(&pair).await;
    let (mut send, mut recv) = soon(device.connection().open_bi()).await.unwrap();
    send.write_all(b"hello").await.unwrap();
    let _accepted = soon(peer.connection().accept_bi()).await.unwrap();
    peer.connection().close(VarInt::from_u32(0), b"");
    device.until_present(false).await;
    let gone = CloseCode::PeerGone.reset_code();
    let read = soon(recv.read_to_end(10)).await.unwrap_err();
    assert!(
        matches!(read, quinn::ReadToEndError::Read(ReadError::Reset(code)) if code.into_inner() == gone),
        "{read:?}"
    );
    assert_eq!(soon(send.stopped()).await.unwrap().map(VarInt::into_inner), Some(gone));
    let back = harness.join(&pair, Role::Peer).await;
    device.until_present(true).await;
    device.send_datagram(&b"after"[..]);
    assert_eq!(back.datagram().await, &b"after"[..]);
}

#[tokio::test]
async fn r2_5_the_newest_connection_carries_traffic_and_a_fifth_replaces_the_oldest() {
    let harness = Harness::start();
    let pair = harness.pair();
    let (device, mut first) = harness.joined_pair(&pair).await;
    let second = harness.join(&pair, Role::Peer).await;
    device.send_datagram(&b"to the newest"[..]);
    assert_eq!(second.datagram().await, &b"to the newest"[..]);
    first.send_datagram(&b"old ones still speak"[..]);
    assert_eq!(device.datagram().await, &b"old ones still speak"[..]);
    let _third = harness.join(&pair, Role::Peer).await;
    let fourth = harness.join(&pair, Role::Peer).await;
    let fifth = harness.join(&pair, Role::Peer).await;
    assert_eq!(first.closing().await.0, CloseCode::Replaced);
    // When the newest leaves, the one before it carries on.
    fifth.connection().close(VarInt::from_u32(0), b"");
    harness.metric_becomes("zrc_relay_connections", 4).await;
    device.send_datagram(&b"to the one before"[..]);
    assert_eq!(fourth.datagram().await, &b"to the one before"[..]);
}

/// Reads messages until the relay announces a limit that fits.
async fn path_limit(side: &mut Joined, fits: impl Fn(usize) -> bool) -> usize {
    side.until(|message| match message {
        RelayMessage::PathLimit(limit) => {
            Some(limit.max_datagram_bytes as usize).filter(|bytes| fits(*bytes))
        }
        _ => None,
    })
    .await
}

#[tokio::test]
async fn r3_3_what_fits_the_other_leg_is_announced_and_what_does_not_is_counted() {
    let harness = Harness::start();
    let pair = harness.pair();
    let mut device = harness.join(&pair, Role::Device).await;
    assert!(device.allocated.max_datagram_bytes > 1000, "alone, what its own leg carries");
    // A peer whose QUIC says that it takes DATAGRAM frames of 500 bytes. (quinn itself breaks the connection at
    // the last 32 of them: it counts its own overhead.)
    let small = harness
        .connect_with(|t| {
            t.datagram_receive_buffer_size(Some(500));
        })
        .await;
    let small = small.join(&pair, Role::Peer).await.unwrap();
    let limit = path_limit(&mut device, |bytes| bytes < 500).await;
    device.send_datagram(vec![1; 460]);
    assert_eq!(small.datagram().await.len(), 460);
    device.send_datagram(vec![1; limit + 1]);
    harness.metric_becomes("zrc_relay_dropped_datagrams_total{reason=\"too_large\"}", 1).await;
    // One that takes none at all: 0 is announced, and what is sent all the same is counted.
    let none = harness
        .connect_with(|t| {
            t.datagram_receive_buffer_size(None);
        })
        .await;
    let none = none.join(&pair, Role::Peer).await.unwrap();
    path_limit(&mut device, |bytes| bytes == 0).await;
    device.send_datagram(vec![1; 10]);
    harness.metric_becomes("zrc_relay_dropped_datagrams_total{reason=\"send_failed\"}", 1).await;
    none.connection().close(VarInt::from_u32(0), b"");
    path_limit(&mut device, |bytes| bytes == limit).await;
    // R3.5: nothing was charged for what was not handed over.
    let late = harness.join(&pair, Role::Device).await;
    assert_eq!(late.allocated.bytes_used, 460);
}

/// A path that stops taking large packets: found out, announced, and what waited for it is counted as lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r3_3_a_path_that_shrinks_is_announced_again() {
    let harness = Harness::start();
    let pair = harness.pair();
    let mut device = harness.join(&pair, Role::Device).await;
    let largest = Arc::new(AtomicUsize::new(2000));
    let far = harness.connect_far(Duration::from_millis(10), largest.clone()).await;
    let peer = far.join(&pair, Role::Peer).await.unwrap();
    let size = device.largest_datagram().await;
    let flooding = device.connection().clone();
    let flood = tokio::spawn(async move {
        let payload = Bytes::from(vec![3; size]);
        while flooding.send_datagram_wait(payload.clone()).await.is_ok() {}
    });
    let draining = peer.connection().clone();
    let drain = tokio::spawn(async move { while draining.read_datagram().await.is_ok() {} });
    harness.metric_reaches("zrc_relay_dropped_datagrams_total{reason=\"buffer_full\"}", 100).await;
    largest.store(1250, Ordering::Relaxed);
    let smaller = path_limit(&mut device, |bytes| bytes < 1250).await;
    assert!(smaller > 1000, "{smaller}");
    harness.metric_reaches("zrc_relay_dropped_datagrams_total{reason=\"path_shrank\"}", 1).await;
    harness.metric_reaches("zrc_relay_dropped_datagrams_total{reason=\"too_large\"}", 1).await;
    device.connection().close(VarInt::from_u32(0), b"");
    soon(flood).await.unwrap();
    drain.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrives_faster_than_it_is_read_is_counted() {
    let harness = Harness::with(|config| config.datagram_receive_buffer_bytes = 4000);
    let (device, _peer) = harness.joined_pair(&harness.pair()).await;
    let flooding = device.connection().clone();
    let flood = tokio::spawn(async move {
        while flooding.send_datagram_wait(Bytes::from_static(&[3; 100])).await.is_ok() {}
    });
    harness.metric_reaches("zrc_relay_dropped_datagrams_total{reason=\"receive_overflow\"}", 1).await;
    device.connection().close(VarInt::from_u32(0), b"");
    soon(flood).await.unwrap();
}

#[tokio::test]
async fn a_datagram_over_the_quota_is_counted_and_ends_the_allocation() {
    let harness = Harness::start();
    let pair = harness.pair_with(|fields| fields.quota_bytes = 1000);
    let (mut device, mut peer) = harness.joined_pair(&pair).await;
    device.send_datagram(vec![1; 600]);
    peer.datagram().await;
    peer.send_datagram(vec![1; 401]);
    assert_eq!(device.closing().await.0, CloseCode::QuotaExceeded);
    assert_eq!(peer.closing().await.0, CloseCode::QuotaExceeded);
    assert_eq!(harness.metric("zrc_relay_dropped_datagrams_total{reason=\"quota\"}"), 1);
    harness.metric_becomes("zrc_relay_allocations_ended_total{code=\"QUOTA_EXCEEDED\"}", 1).await;
}

#[tokio::test]
async fn r4_rate_and_quota_drop_with_their_reasons_and_quota_ends_the_allocation() {
    let harness = Harness::with(|config| {
        config.admission.self_certified = Some(Tier {
            limits: Limits { rate_bytes_per_sec: Some(20_000), ..quota(60_000) },
            ..Tier::default()
        });
    });
    let pair = harness.pair();
    let (mut device, mut peer) = harness.joined_pair(&pair).await;
    assert_eq!(device.allocated.quota_bytes, Some(60_000));
    assert_eq!(device.allocated.bandwidth_limit, Some(20_000));
    let burst = device.allocated.burst_bytes.unwrap();
    for _ in 0..60 {
        device.send_datagram(vec![5; 1000]);
    }
    harness.metric_reaches("zrc_relay_dropped_datagrams_total{reason=\"byte_rate\"}", 1).await;
    assert!(harness.metric("zrc_relay_forwarded_datagrams_total{from=\"device\"}") >= burst / 1000);
    // A stream is slowed, not dropped, and uses what is left of the quota to the last byte.
    let mut send = soon(device.connection().open_uni()).await.unwrap();
    let writing = async { while send.write_all(&[9; 1000]).await.is_ok() {} };
    let reading = async {
        let mut recv = peer.connection().accept_uni().await.unwrap();
        let mut bytes = 0;
        while let Ok(Some(chunk)) = recv.read_chunk(usize::MAX, true).await {
            bytes += chunk.bytes.len() as u64;
        }
        bytes
    };
    soon(async { tokio::join!(writing, reading) }).await;
    assert_eq!(device.closing().await.0, CloseCode::QuotaExceeded);
    assert_eq!(peer.closing().await.0, CloseCode::QuotaExceeded);
    let used = harness.metric("zrc_relay_forwarded_bytes_total{from=\"device\",kind=\"datagram\"}")
        + harness.metric("zrc_relay_forwarded_bytes_total{from=\"device\",kind=\"stream\"}");
    assert_eq!(used, 60_000, "to the byte, none over");
    let refused = harness.connect().await.join(&pair, Role::Device).await.err().unwrap();
    assert_eq!(refused.0, CloseCode::QuotaExceeded, "a used-up token stays used up");
}

#[tokio::test]
async fn a_flood_to_a_receiver_that_cannot_follow_is_dropped_and_counted() {
    let harness = Harness::with(|config| {
        config.admission.self_certified = Some(Tier {
            limits: Limits { rate_packets_per_sec: Some(50), ..Limits::default() },
            ..Tier::default()
        });
    });
    let (device, _peer) = harness.joined_pair(&harness.pair()).await;
    for _ in 0..500 {
        device.send_datagram(vec![5; 100]);
    }
    harness.metric_reaches("zrc_relay_dropped_datagrams_total{reason=\"packet_rate\"}", 1).await;
}

#[tokio::test]
async fn r5_1_works_over_ipv6() {
    let harness = Harness::with(|config| config.listen = "[::1]:0".parse().unwrap());
    let (device, peer) = harness.joined_pair(&harness.pair()).await;
    assert_eq!(device.allocated.relay_addr, "::1");
    device.send_datagram(&b"six"[..]);
    assert_eq!(peer.datagram().await, &b"six"[..]);
}

#[tokio::test]
async fn room_for_streams_grows_before_it_runs_out() {
    let harness = Harness::start();
    let (device, peer) = harness.joined_pair(&harness.pair()).await;
    // None of them ends, and each is opened when the one before has arrived: the limit is never run into.
    let mut open = Vec::new();
    for n in 0..tls::MAX_STREAMS_PER_KIND {
        let blocked = device.connection().stats().frame_tx.streams_blocked_bidi;
        let (mut send, recv) = soon(device.connection().open_bi()).await.unwrap();
        soon(send.write_all(&n.to_be_bytes())).await.unwrap();
        let (_, mut far) = soon(peer.connection().accept_bi()).await.unwrap();
        let mut seen = [0; 4];
        soon(far.read_exact(&mut seen)).await.unwrap();
        assert_eq!(seen, n.to_be_bytes());
        assert_eq!(device.connection().stats().frame_tx.streams_blocked_bidi, blocked, "stream {n}");
        let mut uni = soon(device.connection().open_uni()).await.unwrap();
        soon(uni.write_all(b"x")).await.unwrap();
        open.push((send, recv, far, uni, soon(peer.connection().accept_uni()).await.unwrap()));
    }
    // And no more than that.
    let mut one_more = std::pin::pin!(device.connection().open_bi());
    let waits =
        std::future::poll_fn(|context| std::task::Poll::Ready(one_more.as_mut().poll(context).is_pending()));
    assert!(waits.await);
}
