//! Datagrams and streams, and what a slow, careless or hostile other side can do to them.

use std::time::Duration;

use bytes::Bytes;
use quinn::VarInt;
use tokio::{join, time::Instant};

use super::fake::{Fake, Guest, Pair, SlowWay, soon};
use crate::{
    client::{Event, MAX_DATAGRAM_BYTES, Options, Relay, SendError, Session, Stats},
    wire::control::{Allocated, Expiring, PathLimit, RelayMessage, Throttled, Usage},
};

pub async fn joined(change: impl FnOnce(&mut Options)) -> (Fake, Session, Guest) {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay_with(change);
    let (session, guest) = join!(relay.connect(pair.ticket()), fake.guest());
    (fake, session.unwrap(), guest)
}

#[tokio::test(start_paused = true)]
async fn datagrams_cross_both_ways_and_are_counted() {
    let (_fake, session, guest) = joined(|_| {}).await;
    tokio::spawn(guest.echo());
    for size in [0, 1, 1000] {
        session.send_datagram(vec![7; size].into()).unwrap();
        assert_eq!(soon(session.recv_datagram()).await.unwrap().len(), size);
    }
    assert!(session.try_recv_datagram().is_none());
    session.send_datagram_wait(Bytes::from_static(b"patient")).await.unwrap();
    assert_eq!(soon(session.recv_datagram()).await.unwrap(), "patient");
    let stats = session.stats();
    assert_eq!((stats.datagrams_sent, stats.datagram_bytes_sent), (4, 1008));
    assert_eq!((stats.datagrams_received, stats.datagram_bytes_received), (4, 1008));
    assert!(stats.rtt.is_some() && stats.path_mtu_bytes.is_some());
    assert_eq!((stats.reconnects, stats.receive_dropped, stats.send_buffer_full), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn streams_cross_with_their_first_byte_hidden() {
    let (_fake, session, guest) = joined(|_| {}).await;
    let (mut send, mut recv) = session.open_bi().await.unwrap();
    send.write_all(b"question").await.unwrap();
    send.finish().unwrap();
    let (mut there_send, mut there_recv) = soon(guest.connection.accept_bi()).await.unwrap();
    assert_eq!(soon(there_recv.read_to_end(100)).await.unwrap(), b"\0question");
    there_send.write_all(b"answer").await.unwrap();
    there_send.finish().unwrap();
    assert_eq!(soon(recv.read_to_end(100)).await.unwrap(), b"answer");

    let mut send = session.open_uni().await.unwrap();
    send.write_all(b"one way").await.unwrap();
    send.finish().unwrap();
    let mut there = soon(guest.connection.accept_uni()).await.unwrap();
    assert_eq!(soon(there.read_to_end(100)).await.unwrap(), b"\0one way");

    let (mut send, _recv) = guest.connection.open_bi().await.unwrap();
    send.write_all(b"\0hello").await.unwrap();
    send.finish().unwrap();
    let (mut here_send, mut here_recv) = soon(session.accept_bi()).await.unwrap();
    assert_eq!(soon(here_recv.read_to_end(100)).await.unwrap(), b"hello");
    // Codes cross as they are.
    here_send.reset(VarInt::from_u32(77)).unwrap();

    let mut send = guest.connection.open_uni().await.unwrap();
    send.write_all(b"\0note").await.unwrap();
    send.finish().unwrap();
    let mut here = soon(session.accept_uni()).await.unwrap();
    assert_eq!(soon(here.read_to_end(100)).await.unwrap(), b"note");
}

#[tokio::test(start_paused = true)]
async fn streams_are_accepted_in_the_order_of_opening() {
    let (_fake, session, guest) = joined(|_| {}).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(guest.connection.open_uni().await.unwrap());
    }
    // The last one speaks first, and a datagram beside them waits for none.
    for number in [2u8, 1] {
        streams[usize::from(number)].write_all(&[0, number]).await.unwrap();
    }
    let mut datagram = guest.connection.open_uni().await.unwrap();
    datagram.write_all(b"\x01oversized").await.unwrap();
    datagram.finish().unwrap();
    assert_eq!(soon(session.recv_datagram()).await.unwrap(), "oversized");
    let early = tokio::time::timeout(Duration::from_secs(5), session.accept_uni()).await;
    assert!(early.is_err(), "accepted before the first one spoke");

    streams[0].write_all(&[0, 0]).await.unwrap();
    for number in 0..3u8 {
        let mut recv = soon(session.accept_uni()).await.unwrap();
        let mut byte = [9];
        recv.read_exact(&mut byte).await.unwrap();
        assert_eq!(byte, [number]);
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_say_nothing_sensible_are_refused_and_counted() {
    let (_fake, session, guest) = joined(|_| {}).await;
    let mut unknown = guest.connection.open_uni().await.unwrap();
    unknown.write_all(&[2, 2, 2]).await.unwrap();
    assert_eq!(soon(unknown.stopped()).await.unwrap(), Some(VarInt::from_u32(1)));

    // A datagram is unidirectional.
    let (mut send, mut recv) = guest.connection.open_bi().await.unwrap();
    send.write_all(&[1, 2, 2]).await.unwrap();
    assert_eq!(soon(send.stopped()).await.unwrap(), Some(VarInt::from_u32(1)));
    assert!(soon(recv.read_to_end(10)).await.is_err());

    let mut empty = guest.connection.open_uni().await.unwrap();
    empty.finish().unwrap();

    // Opened with a later one, and then silent: it holds up its successor for ten seconds, no longer.
    let mut silent = guest.connection.open_uni().await.unwrap();
    let mut next = guest.connection.open_uni().await.unwrap();
    next.write_all(b"\0next").await.unwrap();
    let started = Instant::now();
    soon(session.accept_uni()).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(9), "{:?}", started.elapsed());
    assert_eq!(soon(silent.stopped()).await.unwrap(), Some(VarInt::from_u32(1)));
    assert!(silent.write_all(b"too late").await.is_err());
    assert_eq!(session.stats().streams_refused, 4);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_a_datagram_goes_by_stream() {
    let (_fake, session, mut guest) = joined(|_| {}).await;
    let mut events = session.events();
    guest.say(RelayMessage::PathLimit(PathLimit { max_datagram_bytes: 500, max_raw_bytes: 0 })).await;
    let event = soon(events.recv()).await.unwrap();
    assert!(matches!(event, Event::PathLimit { max_datagram_bytes: 500 }), "{event:?}");
    assert_eq!(session.max_datagram_bytes(), Some(500));

    session.send_datagram(vec![1; 500].into()).unwrap();
    assert_eq!(soon(guest.connection.read_datagram()).await.unwrap().len(), 500);
    session.send_datagram(vec![2; 501].into()).unwrap();
    session.send_datagram_wait(vec![2; MAX_DATAGRAM_BYTES].into()).await.unwrap();
    for size in [501, MAX_DATAGRAM_BYTES] {
        let mut recv = soon(guest.connection.accept_uni()).await.unwrap();
        let data = soon(recv.read_to_end(1 << 20)).await.unwrap();
        assert_eq!((data[0], data.len()), (1, size + 1));
        assert!(data[1..].iter().all(|byte| *byte == 2));
    }
    let got_bytes = MAX_DATAGRAM_BYTES + 1;
    let too_large = || Bytes::from(vec![3; got_bytes]);
    assert!(
        matches!(session.send_datagram(too_large()), Err(SendError::TooLarge { got_bytes: got }) if got == got_bytes)
    );
    assert!(matches!(session.send_datagram_wait(too_large()).await, Err(SendError::TooLarge { .. })));
    let stats = session.stats();
    assert_eq!((stats.datagrams_sent, stats.oversize_sent), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_the_path_goes_by_stream_even_when_the_relay_thinks_otherwise() {
    let (_fake, session, mut guest) = joined(|_| {}).await;
    guest.say(RelayMessage::PathLimit(PathLimit { max_datagram_bytes: 9000, max_raw_bytes: 0 })).await;
    let mut events = session.events();
    if session.max_datagram_bytes() == Some(1200) {
        soon(events.recv()).await.unwrap();
    }
    session.send_datagram(vec![1; 5000].into()).unwrap();
    session.send_datagram_wait(vec![2; 5000].into()).await.unwrap();
    for _ in 0..2 {
        let mut recv = soon(guest.connection.accept_uni()).await.unwrap();
        assert_eq!(soon(recv.read_to_end(1 << 20)).await.unwrap().len(), 5001);
    }
}

#[tokio::test(start_paused = true)]
async fn oversized_datagrams_in_flight_are_bounded() {
    let pair = Pair::new();
    let fake = Fake::with(&pair, |transport| {
        transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    });
    let relay = fake.relay();
    let (session, guest) = join!(relay.connect(pair.ticket()), fake.guest());
    let session = session.unwrap();
    let mut accepted = 0;
    while session.send_datagram(vec![1; 5000].into()).is_ok() {
        accepted += 1;
        assert!(accepted < 100);
        tokio::task::yield_now().await;
    }
    assert!(matches!(session.send_datagram(vec![1; 5000].into()), Err(SendError::BufferFull)));
    assert_eq!(session.stats().send_buffer_full, 2);
    assert_eq!(session.stats().oversize_sent, accepted);
    // Small ones are not affected.
    session.send_datagram(Bytes::from_static(b"small")).unwrap();
    assert_eq!(soon(guest.connection.read_datagram()).await.unwrap(), "small");
    // As soon as the relay allows streams, what waited goes out.
    guest.connection.set_max_concurrent_uni_streams(VarInt::from_u32(8));
    for _ in 0..accepted {
        let mut recv = soon(guest.connection.accept_uni()).await.unwrap();
        assert_eq!(soon(recv.read_to_end(1 << 20)).await.unwrap().len(), 5001);
    }
}

#[tokio::test(start_paused = true)]
async fn oversized_datagrams_that_do_not_arrive_whole_are_counted() {
    let (_fake, session, guest) = joined(|_| {}).await;
    let mut reset = guest.connection.open_uni().await.unwrap();
    reset.write_all(b"\x01abc").await.unwrap();
    let mut too_large = guest.connection.open_uni().await.unwrap();
    too_large.write_all(&vec![1; MAX_DATAGRAM_BYTES + 2]).await.unwrap();
    let _ = too_large.finish();
    let mut slow = guest.connection.open_uni().await.unwrap();
    slow.write_all(b"\x01abc").await.unwrap();
    let mut good = guest.connection.open_uni().await.unwrap();
    good.write_all(&vec![1; MAX_DATAGRAM_BYTES + 1]).await.unwrap();
    good.finish().unwrap();
    assert_eq!(soon(session.recv_datagram()).await.unwrap().len(), MAX_DATAGRAM_BYTES);
    reset.reset(VarInt::from_u32(5)).unwrap();
    // After ten seconds the slow one is stopped.
    assert!(soon(slow.stopped()).await.unwrap().is_some());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let stats = session.stats();
    assert_eq!((stats.oversize_lost, stats.oversize_received), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_full_send_buffer_refuses_the_newest_and_a_patient_sender_waits() {
    let (_fake, session, guest) = joined(|options| options.datagram_send_buffer_bytes = 20_000).await;
    // Nothing leaves as long as no task runs.
    let mut accepted = 0u32;
    while session.send_datagram(vec![1; 1000].into()).is_ok() {
        accepted += 1;
        assert!(accepted < 100);
    }
    assert!(matches!(session.send_datagram(vec![1; 1000].into()), Err(SendError::BufferFull)));
    assert_eq!(session.stats().send_buffer_full, 2);
    assert_eq!(session.stats().datagrams_sent, u64::from(accepted));
    soon(session.send_datagram_wait(vec![2; 1000].into())).await.unwrap();
    for _ in 0..accepted {
        assert_eq!(soon(guest.connection.read_datagram()).await.unwrap()[0], 1);
    }
    assert_eq!(soon(guest.connection.read_datagram()).await.unwrap()[0], 2);
}

#[tokio::test(start_paused = true)]
async fn a_slow_receiver_loses_the_oldest() {
    let (_fake, session, guest) = joined(|options| options.datagram_receive_buffer_bytes = 64 * 1024).await;
    let total = 200u8;
    for number in 0..total {
        guest.connection.send_datagram(vec![number; 1000].into()).unwrap();
        while session.stats().datagrams_received <= number.into() {
            tokio::task::yield_now().await;
        }
    }
    let mut received = Vec::new();
    while let Some(data) = session.try_recv_datagram() {
        received.push(data[0]);
    }
    assert_eq!(received.last(), Some(&(total - 1)));
    assert!(received.windows(2).all(|two| two[0] + 1 == two[1]), "the newest, without a gap");
    assert_eq!(received.len() as u64 + session.stats().receive_dropped, u64::from(total));
    assert!(received.len() * 1000 <= 64 * 1024 && received.len() > 50);
}

#[tokio::test(start_paused = true)]
async fn what_quic_drops_before_it_is_read_is_counted_too() {
    let pair = Pair::new();
    let fake = Fake::with(&pair, |transport| {
        transport.initial_mtu(1452).datagram_send_buffer_size(10_000_000);
    });
    let relay = fake.relay_with(|options| options.datagram_receive_buffer_bytes = 1);
    let (session, guest) = join!(relay.connect(pair.ticket()), fake.guest());
    let session = session.unwrap();
    // In one go: the client's socket is read in batches of many packets.
    for _ in 0..2000 {
        guest.connection.send_datagram(vec![7; 1200].into()).unwrap();
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let lost = guest.connection.stats().path.lost_packets;
    let stats = session.stats();
    let arrived = stats.datagrams_received + (stats.receive_dropped - evicted_here(&stats));
    assert!(stats.receive_dropped > evicted_here(&stats), "nothing was dropped by QUIC");
    assert!(arrived <= 2000 && arrived + lost >= 2000, "{arrived} arrived, {lost} lost");
}

/// Of what was received, all but the last was dropped from the queue, where there is room for none.
fn evicted_here(stats: &Stats) -> u64 {
    stats.datagrams_received
}

#[tokio::test(start_paused = true)]
async fn streams_nobody_reads_do_not_block_the_control_stream() {
    let (_fake, session, mut guest) = joined(|options| {
        options.max_streams = 8;
        options.stream_window_bytes = 32 * 1024;
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let (mut bi, recv) = guest.connection.open_bi().await.unwrap();
        let mut uni = guest.connection.open_uni().await.unwrap();
        bi.write_all(&[0; 32 * 1024]).await.unwrap();
        uni.write_all(&[0; 32 * 1024]).await.unwrap();
        held.push((bi, recv, uni));
    }
    let mut events = session.events();
    guest.peer(false).await;
    assert!(matches!(soon(events.recv()).await, Some(Event::PeerLeft)));
    // And no more streams than allowed.
    assert!(tokio::time::timeout(Duration::from_secs(5), guest.connection.open_uni()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn events_say_what_the_relay_says() {
    let (_fake, session, mut guest) = joined(|_| {}).await;
    let mut events = session.events();
    guest.peer(true).await;
    guest.peer(false).await;
    assert!(matches!(soon(events.recv()).await, Some(Event::PeerLeft)));
    assert!(!session.peer_present());
    guest.peer(true).await;
    soon(session.peer_arrived()).await.unwrap();
    assert!(matches!(soon(events.recv()).await, Some(Event::PeerArrived)));
    guest.say(RelayMessage::Usage(Usage { bytes_used: 5, quota_bytes: 10, percent: 50 })).await;
    let event = soon(events.recv()).await;
    assert!(matches!(event, Some(Event::Usage { bytes_used: 5, quota_bytes: 10, percent: 50 })));
    guest.say(RelayMessage::Throttled(Throttled { datagrams: 3, bytes: 9, window_ms: 1000 })).await;
    let event = soon(events.recv()).await;
    let second = Duration::from_secs(1);
    assert!(matches!(event, Some(Event::Throttled { datagrams: 3, bytes: 9, window }) if window == second));
    guest.say(RelayMessage::Expiring(Expiring { expires_at: 12 })).await;
    assert!(matches!(soon(events.recv()).await, Some(Event::Expiring { expires_at_unix: 12 })));
}

#[tokio::test(start_paused = true)]
async fn a_slow_listener_is_told_what_it_missed() {
    let (_fake, session, mut guest) = joined(|_| {}).await;
    let mut events = session.events();
    let mut watching = session.events();
    for number in 0..300 {
        guest.say(RelayMessage::Expiring(Expiring { expires_at: number })).await;
        soon(watching.recv()).await.unwrap();
    }
    let Some(Event::Lagged { missed }) = soon(events.recv()).await else { panic!("missed nothing") };
    assert_eq!(missed, 300 - 256);
    assert!(matches!(soon(events.recv()).await, Some(Event::Expiring { expires_at_unix: 44 })));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_not_pinged() {
    let (_fake, _session, guest) = joined(|_| {}).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*guest.pings.seen.lock().unwrap(), [0u64; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_busy_connection_is_pinged_once_a_second() {
    let (_fake, session, guest) = joined(|_| {}).await;
    for _ in 0..200 {
        session.send_datagram(Bytes::from_static(b"x")).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let pings = guest.pings.seen.lock().unwrap().clone();
    assert!((19..=21).contains(&pings.len()), "{pings:?}");
    assert!(pings.windows(2).all(|two| two[0] + 1 == two[1]));
    assert_eq!(session.stats().reconnects, 0);
}

#[tokio::test(start_paused = true)]
async fn busy_streams_count_as_traffic_too() {
    let (_fake, session, guest) = joined(|_| {}).await;
    let mut send = session.open_uni().await.unwrap();
    for _ in 0..100 {
        send.write_all(b"x").await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let busy = guest.pings.seen.lock().unwrap().len();
    assert!((18..=21).contains(&busy), "{busy}");
    // Its own pings are no traffic.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(guest.pings.seen.lock().unwrap().len() <= busy + 2);
}

#[tokio::test(start_paused = true)]
async fn the_relay_may_ask_for_signs_of_life() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay();
    let served = async {
        let mut guest = fake.hello().await;
        let allocated = Allocated { keepalive_ms: 4000, ..guest.allocated() };
        guest.say(RelayMessage::Allocated(allocated)).await;
        guest
    };
    let (session, guest) = join!(relay.connect(pair.ticket()), served);
    let _session = session.unwrap();
    tokio::time::sleep(Duration::from_secs(41)).await;
    let pings = guest.pings.seen.lock().unwrap().clone();
    assert!((9..=11).contains(&pings.len()), "{pings:?}");
}

/// In real time, until the fifth ping: with so many timers, virtual time can run ahead of packets that are still in
/// the kernel.
#[tokio::test]
async fn pings_get_past_a_flood_of_datagrams() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let way = SlowWay::to(&fake, 125_000).await;
    let mut descriptor = fake.descriptor();
    descriptor.port = way.addr.port();
    let relay = Relay::new(descriptor);
    let served = async {
        let mut guest = fake.hello().await;
        let allocated = Allocated { max_datagram_bytes: 1500, ..guest.allocated() };
        guest.say(RelayMessage::Allocated(allocated)).await;
        guest
    };
    let (session, guest) = join!(relay.connect(pair.ticket()), served);
    let session = session.unwrap();
    // Twice what the way carries, so that something always waits to be sent; and as large as the packets, so that
    // they have no room for anything else.
    let flood = async {
        loop {
            for _ in 0..2 {
                let size = session.max_datagram_bytes().unwrap();
                let _ = session.send_datagram(vec![1; size].into());
            }
            tokio::time::sleep(Duration::from_millis(8)).await;
        }
    };
    let pings = async {
        while guest.pings.seen.lock().unwrap().len() < 5 {
            soon(guest.connection.read_datagram()).await.unwrap();
        }
    };
    tokio::select! {
        () = pings => {}
        () = flood => unreachable!(),
        () = fake.nobody_comes_for(Duration::from_secs(3600)) => unreachable!(),
    }
    assert!(session.stats().send_buffer_full > 100, "it was no flood");
    assert_eq!(session.stats().reconnects, 0);
}
