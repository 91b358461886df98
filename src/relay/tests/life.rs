//! R2: how allocations end, what is remembered, how many there may be, and how the relay stops.

use super::*;
use quinn::VarInt;

#[tokio::test]
async fn allocated_says_what_the_caller_needs() {
    let harness = Harness::with(|config| {
        config.public_addr = Some("192.0.2.7:4433".parse().unwrap());
    });
    let pair = harness.pair_with(|fields| {
        fields.bandwidth_bytes_per_sec = 500_000;
        fields.quota_bytes = 7_000_000;
    });
    let raw = harness.connect().await;
    let local = raw.endpoint.local_addr().unwrap();
    let allocated = raw.join(&pair, Role::Device).await.unwrap().allocated;
    assert_eq!(allocated.allocation_id, &pair.token.fields().allocation_id.0[..]);
    assert_eq!((allocated.relay_addr.as_str(), allocated.relay_port), ("192.0.2.7", 4433));
    assert_eq!(allocated.expires_at, pair.token.fields().expires_at_unix);
    assert_eq!(allocated.bandwidth_limit, Some(500_000));
    assert_eq!(allocated.burst_bytes, Some(50_000));
    assert_eq!(allocated.quota_bytes, Some(7_000_000));
    assert_eq!(allocated.bytes_used, 0);
    assert_eq!(allocated.observed_addr, local.to_string());
    assert!(!allocated.peer_present);
    assert!(allocated.max_datagram_bytes > 1000);
    assert_eq!(allocated.keepalive_ms, 15_000);
    assert_eq!(allocated.idle_timeout_ms, 30_000);
}

#[tokio::test]
async fn without_a_public_address_the_one_that_was_reached_is_named() {
    let harness = Harness::start();
    let device = harness.join(&harness.pair(), Role::Device).await;
    assert_eq!(device.allocated.relay_addr, "127.0.0.1");
    assert_eq!(device.allocated.relay_port, u32::from(harness.addr().port()));
}

#[tokio::test]
async fn release_ends_both_sides_for_good() {
    let harness = Harness::start();
    let pair = harness.pair();
    let (mut device, mut peer) = harness.joined_pair(&pair).await;
    peer.control.say(&ClientMessage::Release).await;
    assert_eq!(device.closing().await.0, CloseCode::Released);
    assert_eq!(peer.closing().await.0, CloseCode::Released);
    let (code, _) = harness.connect().await.join(&pair, Role::Device).await.err().unwrap();
    assert_eq!(code, CloseCode::Released);
    harness.metric_becomes("zrc_relay_connections", 0).await;
    assert_eq!(harness.metric("zrc_relay_allocations"), 0);
    assert_eq!(harness.metric("zrc_relay_allocations_ended_total{code=\"RELEASED\"}"), 1);
    // The same pair under another id is another allocation.
    let fresh = Pair { token: pair.again(|fields| fields.allocation_id.0[0] ^= 1), ..pair };
    harness.join(&fresh, Role::Device).await;
}

#[tokio::test]
async fn token_expiry_ends_the_allocation() {
    let harness = Harness::start();
    // Long enough to join on a busy machine.
    let pair = harness.pair_with(|fields| fields.expires_at_unix = harness.clock.unix_secs() + 5);
    let (mut device, mut peer) = harness.joined_pair(&pair).await;
    assert_eq!(device.closing().await.0, CloseCode::Expired);
    assert_eq!(peer.closing().await.0, CloseCode::Expired);
    let (code, _) = harness.connect().await.join(&pair, Role::Peer).await.err().unwrap();
    assert_eq!(code, CloseCode::TokenExpired);
}

#[tokio::test]
async fn allocation_timeout_ends_it_too() {
    let harness = Harness::with(|config| config.rules.allocation_timeout = Duration::from_millis(300));
    let mut device = harness.join(&harness.pair(), Role::Device).await;
    assert_eq!(device.closing().await.0, CloseCode::Expired);
}

#[tokio::test]
async fn nobody_to_pair_with() {
    let harness = Harness::with(|config| config.rules.pair_timeout = Duration::from_millis(300));
    let mut device = harness.join(&harness.pair(), Role::Device).await;
    assert_eq!(device.closing().await.0, CloseCode::PairTimeout);
    let (first, second) = harness.joined_pair(&harness.pair()).await;
    harness.metric_becomes("zrc_relay_allocations_ended_total{code=\"PAIR_TIMEOUT\"}", 1).await;
    tokio::time::sleep(Duration::from_millis(600)).await; // twice the timeout: a pair is safe from it
    assert!(first.connection().close_reason().is_none() && second.connection().close_reason().is_none());
}

#[tokio::test]
async fn the_peer_has_gone() {
    let harness = Harness::with(|config| config.rules.idle_timeout = Duration::from_secs(1));
    let pair = harness.pair();
    let (mut device, peer) = harness.joined_pair(&pair).await;
    device.send_datagram(vec![1; 500]);
    peer.datagram().await;
    peer.connection().close(VarInt::from_u32(0), b"");
    device.until_present(false).await;
    // A device that speaks is not idle; what ends is the allocation whose other side stayed away.
    let speaking = device.connection().clone();
    let chatter = tokio::spawn(async move {
        while speaking.send_datagram(Bytes::from_static(b"?")).is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert_eq!(device.closing().await.0, CloseCode::PeerGone);
    soon(chatter).await.unwrap();
    // Use is remembered: the end was not final, the count goes on.
    let again = harness.join(&pair, Role::Device).await;
    assert_eq!(again.allocated.bytes_used, 500);
}

#[tokio::test]
async fn r5_2_a_silent_connection_ends_with_a_code() {
    let harness = Harness::with(|config| {
        config.rules.idle_timeout = Duration::from_millis(700);
        config.keepalive = None;
    });
    let mut device = harness.join(&harness.pair(), Role::Device).await;
    assert_eq!(device.closing().await.0, CloseCode::Idle);
}

#[tokio::test]
async fn r5_2_keepalive_holds_a_silent_connection() {
    let ends_silence_after = |secs, keepalive| {
        Harness::with(|config| {
            config.rules.idle_timeout = Duration::from_secs(secs);
            config.keepalive = keepalive;
        })
    };
    // Often enough for a machine that is late by many of them.
    let harness = ends_silence_after(3, Some(Duration::from_millis(100)));
    let mut device = harness.join(&harness.pair(), Role::Device).await;
    assert_eq!(device.allocated.keepalive_ms, 100);
    // Silent for longer than one that ends for it, and ought to have ended before.
    let without = ends_silence_after(4, None);
    let mut other = without.join(&without.pair(), Role::Device).await;
    assert_eq!(other.closing().await.0, CloseCode::Idle);
    device.control.say(&ClientMessage::Ping(4)).await;
    device
        .until(|message| matches!(message, RelayMessage::Pong(pong) if pong.value == 4).then_some(()))
        .await;
}

#[tokio::test]
async fn r2_4_maximums_are_refused_by_code() {
    let tier = Tier { allocations_per_device: Some(2), ..Tier::default() };
    let harness = Harness::with(|config| {
        config.rules.max_allocations = 3;
        config.admission.self_certified = Some(tier);
    });
    let pair = harness.pair();
    let mut held = vec![harness.join(&pair, Role::Device).await];
    let second = Pair { token: pair.again(|fields| fields.allocation_id.0[0] ^= 1), ..pair.clone() };
    held.push(harness.join(&second, Role::Device).await);
    let third = Pair { token: pair.again(|fields| fields.allocation_id.0[0] ^= 2), ..pair.clone() };
    let (code, _) = harness.connect().await.join(&third, Role::Device).await.err().unwrap();
    assert_eq!(code, CloseCode::DeviceLimit);
    held.push(harness.join(&harness.pair(), Role::Device).await);
    let (code, _) = harness.connect().await.join(&harness.pair(), Role::Device).await.err().unwrap();
    assert_eq!(code, CloseCode::Capacity);
    // Joining what there is needs no room.
    held.push(harness.join(&pair, Role::Peer).await);
    held[2].control.say(&ClientMessage::Release).await;
    held[2].closing().await;
    harness.join(&harness.pair(), Role::Device).await;
}

#[tokio::test]
async fn a_full_ledger_refuses_and_does_not_forget() {
    let harness = Harness::with(|config| config.rules.max_ledger = 1);
    let pair = harness.pair();
    let mut device = harness.join(&pair, Role::Device).await;
    device.control.say(&ClientMessage::Release).await;
    device.closing().await;
    let (code, _) = harness.connect().await.join(&harness.pair(), Role::Device).await.err().unwrap();
    assert_eq!(code, CloseCode::Capacity);
    let (code, _) = harness.connect().await.join(&pair, Role::Device).await.err().unwrap();
    assert_eq!(code, CloseCode::Released);
}

#[tokio::test]
async fn r5_1_migration_keeps_the_session_and_is_counted() {
    let harness = Harness::start();
    let (device, peer) = harness.joined_pair(&harness.pair()).await;
    let elsewhere = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    device.control.endpoint.rebind(elsewhere).unwrap();
    device.send_datagram(&b"from elsewhere"[..]);
    assert_eq!(peer.datagram().await, &b"from elsewhere"[..]);
    harness.metric_becomes("zrc_relay_migrations_total", 1).await;
    peer.send_datagram(&b"and back"[..]);
    assert_eq!(device.datagram().await, &b"and back"[..]);
}

#[tokio::test]
async fn r5_1_the_largest_packets_pass_again_after_a_move_to_another_network() {
    let harness = Harness::start();
    let pair = harness.pair();
    let (device, peer) = harness.joined_pair(&pair).await;
    let handle = harness.server.handle();
    // A fresh path: quinn begins anew with 1200 bytes, and its first look for more is withheld.
    let elsewhere = std::net::UdpSocket::bind("127.0.0.9:0").unwrap();
    let addr = elsewhere.local_addr().unwrap();
    let unproven = || harness.metric("zrc_relay_guard_withheld_datagrams_total{reason=\"unproven\"}");
    let withheld_before = unproven();
    device.control.endpoint.rebind(elsewhere).unwrap();
    soon(async {
        loop {
            let legs = handle.legs(handle.allocations().first().unwrap().handle);
            let moved = legs.iter().find(|leg| leg.remote == addr);
            if moved.is_some_and(|leg| leg.path_mtu_bytes == 1452) {
                break;
            }
            device.send_datagram(&b"from elsewhere"[..]);
            let _ = timeout(Duration::from_millis(50), peer.datagram()).await;
        }
    })
    .await;
    assert_eq!(unproven(), withheld_before + 1);
}

#[tokio::test]
async fn r5_2_a_panic_ends_one_session_and_is_counted() {
    let harness = Harness::start();
    let (device, peer) = harness.joined_pair(&harness.pair()).await;
    let pair = harness.pair();
    let raw = harness.connect().await;
    let agent = crate::relay::session::PANICKING_AGENT.to_owned();
    let hello = Hello { agent, ..raw.hello(&pair, Role::Device) };
    let control = raw.begin(&ClientMessage::Hello(hello).to_frame()).await;
    assert_eq!(control.close_code().await, CloseCode::Internal);
    harness.metric_becomes("zrc_relay_session_panics_total", 1).await;
    harness.metric_becomes("zrc_relay_connections", 2).await;
    device.send_datagram(&b"undisturbed"[..]);
    assert_eq!(peer.datagram().await, &b"undisturbed"[..]);
    // It left nothing behind: the table let its connection go, and the allocation can be joined.
    harness.join(&pair, Role::Device).await;
}

#[tokio::test]
async fn shutdown_tells_every_client_and_refuses_new_ones() {
    let harness = Harness::start();
    let pair = harness.pair();
    let (mut device, mut peer) = harness.joined_pair(&pair).await;
    let early = harness.connect().await;
    let Harness { server, metrics, .. } = harness;
    let stopping = tokio::spawn(server.shutdown(Duration::from_secs(5)));
    assert_eq!(device.closing().await.0, CloseCode::Draining);
    assert_eq!(peer.closing().await.0, CloseCode::Draining);
    // A connection from before the end is told, by Refused or by the close alone.
    assert_eq!(close_code(&early.connection).await, CloseCode::Draining);
    soon(stopping).await.unwrap();
    assert!(metrics.encode().unwrap().contains("zrc_relay_allocations 0\n"));
}

#[tokio::test]
async fn a_port_that_is_taken_is_a_typed_error() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let error = Harness::try_with(|config| config.listen = addr).err().unwrap();
    assert!(matches!(error, crate::relay::StartError::Bind { addr: named, .. } if named == addr));
}

#[tokio::test]
async fn a_relay_that_was_killed_sends_its_former_clients_away_when_it_is_back() {
    let mut identity = None;
    let harness = Harness::with(|config| identity = Some(config.tls.clone()));
    let addr = harness.addr();
    let device = harness.join(&harness.pair(), Role::Device).await;
    drop(harness);
    let _back = Harness::with(|config| {
        config.listen = addr;
        config.tls = identity.unwrap();
    });
    device.send_datagram(vec![1; 500]);
    assert_eq!(soon(device.connection().closed()).await, ConnectionError::Reset);
}

#[tokio::test]
async fn r2_3_an_administrator_sees_allocations_and_kills_one_for_good() {
    let harness = Harness::start();
    let pair = harness.pair();
    let (mut device, mut peer) = harness.joined_pair(&pair).await;
    let (neighbour, other) = harness.joined_pair(&harness.pair()).await;
    device.send_datagram(vec![1; 300]);
    peer.datagram().await;
    let listed = harness.server.allocations();
    assert_eq!(listed.len(), 2);
    let ours = listed.iter().find(|it| it.allocation_id == pair.token.fields().allocation_id).unwrap();
    assert_eq!(ours.stage, crate::table::Stage::Paired);
    assert_eq!(ours.connections, [1, 1]);
    assert_eq!((ours.counts[0].bytes, ours.counts[0].packets, ours.counts[1].packets), (300, 1, 0));
    assert!(harness.server.kill(ours.handle, "abuse report 17"));
    for side in [&mut device, &mut peer] {
        let (code, message) = side.closing().await;
        assert_eq!(code, CloseCode::Killed);
        assert!(message.contains("abuse report 17"), "{message}");
    }
    assert!(!harness.server.kill(ours.handle, ""), "it is gone");
    let (code, _) = harness.connect().await.join(&pair, Role::Peer).await.err().unwrap();
    assert_eq!(code, CloseCode::Killed);
    neighbour.send_datagram(&b"undisturbed"[..]);
    assert_eq!(other.datagram().await, &b"undisturbed"[..]);
}

/// No task, leg or count outlives its connection, whichever way it goes and whatever was under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_behind_however_sessions_end() {
    let harness = Harness::with(|config| config.rules.idle_timeout = Duration::from_secs(1));
    let before = harness.server.holders();
    for round in 0..24 {
        // Some are held up by the rate, some by a peer that has no room, some end by their quota.
        let pair = harness.pair_with(|fields| {
            fields.bandwidth_bytes_per_sec = if round % 3 == 0 { 50_000 } else { 0 };
            fields.quota_bytes = if round % 4 == 1 { 20_000 } else { 0 };
        });
        let mut device = harness.join(&pair, Role::Device).await;
        let narrow = harness
            .connect_with(|t| {
                t.stream_receive_window(VarInt::from_u32(2000)).max_concurrent_uni_streams(2_u32.into());
            })
            .await;
        let mut peer = narrow.join(&pair, Role::Peer).await.unwrap();
        let mut open = Vec::new();
        for n in 0..6_u8 {
            let mut uni = soon(device.connection().open_uni()).await.unwrap();
            let (mut send, recv) = soon(device.connection().open_bi()).await.unwrap();
            if n > 0 {
                // The relay may have ended the allocation by now.
                let _ = timeout(Duration::from_millis(20), uni.write_all(&[n; 10_000])).await;
                let _ = timeout(Duration::from_millis(20), send.write_all(&[n; 10_000])).await;
            }
            open.push((uni, send, recv));
        }
        match round % 6 {
            0 => device.connection().close(VarInt::from_u32(0), b""),
            1 => peer.connection().close(VarInt::from_u32(0), b""),
            2 => {
                // All three at the same moment.
                let _ = device.control.send.write_all(&ClientMessage::Release.to_frame()).await;
                let _ = peer.control.send.write_all(&ClientMessage::Release.to_frame()).await;
                peer.connection().close(VarInt::from_u32(0), b"");
            }
            3 => {
                let _ = peer.control.send.write_all(&[0xff; 4]).await;
            }
            4 => drop(open.drain(..3)),
            _ => peer.control.recv.stop(VarInt::from_u32(3)).unwrap(),
        }
        // The rest of it goes with its handles.
        drop((device, peer, open));
    }
    harness.metric_becomes("zrc_relay_connections", 0).await;
    harness.metric_becomes("zrc_relay_allocations", 0).await;
    soon(async {
        while harness.server.holders() != before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let text = harness.metrics.encode().unwrap();
    let sum = |name: &str| -> u64 {
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    };
    assert_eq!(sum("zrc_relay_connections_opened_total"), 48);
    assert_eq!(sum("zrc_relay_connections_closed_total"), 48);
    assert_eq!(sum("zrc_relay_allocations_created_total"), sum("zrc_relay_allocations_ended_total"));
    assert_eq!(sum("zrc_relay_connections_closed_total{code=\"INTERNAL\"}"), 0);
    assert_eq!(sum("zrc_relay_session_panics_total"), 0);
}

#[tokio::test]
async fn r7_2_how_long_datagrams_stay_is_measured_for_some_of_them() {
    let harness = Harness::start();
    let (device, peer) = harness.joined_pair(&harness.pair()).await;
    let count = || harness.metric("zrc_relay_forward_latency_seconds_count{kind=\"datagram\"}");
    // One read in some 256 is measured, and each datagram here is a read of its own: a dozen rounds are enough, and a
    // hundred without three of them have no chance.
    for _ in 0..100 {
        if count() >= 3 {
            break;
        }
        for _ in 0..64 {
            device.send_datagram(bytes::Bytes::from_static(&[1; 100]));
            peer.datagram().await;
        }
    }
    let passed = harness.metric("zrc_relay_forwarded_datagrams_total{from=\"device\"}");
    assert!(count() >= 3, "{} of {passed}", count());
    assert!(count() < passed / 20, "{} of {passed}", count());
}

#[tokio::test]
async fn r7_2_an_allocation_that_is_over_is_in_the_distributions() {
    let harness = Harness::start();
    let (device, _peer) = harness.joined_pair(&harness.pair()).await;
    drop(device);
    let handle = harness.server.allocations()[0].handle;
    assert!(harness.server.kill(handle, ""));
    assert_eq!(harness.metric("zrc_relay_allocation_duration_seconds_count"), 1);
    assert_eq!(harness.metric("zrc_relay_allocation_quota_used_ratio_count"), 0, "it had none");
}
