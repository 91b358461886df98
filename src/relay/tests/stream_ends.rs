//! However a connection ends, what it had not yet delivered never looks as if it were whole.

use super::*;
use quinn::{ReadError, ReadToEndError, VarInt};

/// What the relay resets streams with whose other end is gone.
fn gone() -> VarInt {
    VarInt::from_u64(CloseCode::PeerGone.reset_code()).unwrap()
}

/// A stream of each kind from the device, of which the peer has seen `hello` and nothing more.
async fn begun(device: &Joined, peer: &Joined) -> ([SendStream; 2], SendStream, [RecvStream; 2], RecvStream) {
    let (mut send, recv) = soon(device.connection().open_bi()).await.unwrap();
    let mut uni = soon(device.connection().open_uni()).await.unwrap();
    for send in [&mut send, &mut uni] {
        send.write_all(b"hello").await.unwrap();
    }
    let (mut far_send, mut far_recv) = soon(peer.connection().accept_bi()).await.unwrap();
    far_send.write_all(b"hello").await.unwrap();
    let mut far_uni = soon(peer.connection().accept_uni()).await.unwrap();
    let mut recv = recv;
    for recv in [&mut far_recv, &mut far_uni, &mut recv] {
        let mut hello = [0; 5];
        soon(recv.read_exact(&mut hello)).await.unwrap();
    }
    ([send, uni], far_send, [far_recv, far_uni], recv)
}

async fn is_cut_off(mut recv: RecvStream, what: &str) {
    let end = soon(recv.read_to_end(64 << 20)).await.map(|whole| whole.len());
    assert!(
        matches!(end, Err(ReadToEndError::Read(ReadError::Reset(code))) if code == gone()),
        "{what}: {end:?}"
    );
}

#[tokio::test]
async fn a_sender_that_is_thrown_out_has_not_finished_its_streams() {
    let harness = Harness::start();
    let (mut device, peer) = harness.joined_pair(&harness.pair()).await;
    let (_ours, far_send, far_recvs, _recv) = begun(&device, &peer).await;
    soon(device.control.send.write_all(&[0xff; 4])).await.unwrap();
    assert_eq!(device.control.close_code().await, CloseCode::ProtocolError);
    for recv in far_recvs {
        is_cut_off(recv, "thrown out").await;
    }
    assert_eq!(soon(far_send.stopped()).await.unwrap(), Some(gone()));
}

#[tokio::test]
async fn a_sender_that_leaves_has_not_finished_its_streams() {
    let harness = Harness::start();
    for round in 0..10 {
        let (device, peer) = harness.joined_pair(&harness.pair()).await;
        let (_ours, far_send, far_recvs, _recv) = begun(&device, &peer).await;
        device.connection().close(VarInt::from_u32(0), b"");
        for recv in far_recvs {
            is_cut_off(recv, &format!("left, round {round}")).await;
        }
        assert_eq!(soon(far_send.stopped()).await.unwrap(), Some(gone()));
    }
}

/// The pump is not waiting for the sender then, but for the receiver or for the rate.
#[tokio::test]
async fn a_sender_that_leaves_behind_a_slow_receiver_has_not_finished_its_stream() {
    let harness = Harness::start();
    for bandwidth_bytes_per_sec in [0, 200_000] {
        let pair = harness.pair_with(|fields| fields.bandwidth_bytes_per_sec = bandwidth_bytes_per_sec);
        let (device, peer) = harness.joined_pair(&pair).await;
        let mut send = soon(device.connection().open_uni()).await.unwrap();
        while let Ok(Ok(_)) = timeout(Duration::from_millis(300), send.write(&[7; 65536])).await {}
        let recv = soon(peer.connection().accept_uni()).await.unwrap();
        device.connection().close(VarInt::from_u32(0), b"");
        is_cut_off(recv, &format!("at {bandwidth_bytes_per_sec} bytes/s")).await;
    }
}

#[tokio::test]
async fn the_end_of_an_allocation_finishes_no_stream() {
    let harness = Harness::start();
    let (mut device, mut peer) = harness.joined_pair(&harness.pair()).await;
    let (_ours, _far_send, far_recvs, recv) = begun(&device, &peer).await;
    let reads: Vec<_> = far_recvs
        .into_iter()
        .chain([recv])
        .map(|mut recv| tokio::spawn(async move { recv.read_to_end(100).await.map(|whole| whole.len()) }))
        .collect();
    device.control.say(&ClientMessage::Release).await;
    assert_eq!(device.closing().await.0, CloseCode::Released);
    assert_eq!(peer.closing().await.0, CloseCode::Released);
    for read in reads {
        let end = soon(read).await.unwrap();
        assert!(end.is_err(), "a stream was cut off by the end and looks whole: {end:?}");
    }
}

/// Streams that wait for a peer, or for room on its side, have reached nobody.
#[tokio::test]
async fn a_stream_that_never_got_through_is_not_answered_by_an_end() {
    let harness = Harness::start();
    let pair = harness.pair();
    let peer = harness
        .connect_with(|t| {
            t.max_concurrent_bidi_streams(VarInt::from_u32(0));
        })
        .await;
    let mut peer = peer.join(&pair, Role::Peer).await.unwrap();
    let device = harness.join(&pair, Role::Device).await;
    peer.until_present(true).await;
    let (mut send, mut recv) = soon(device.connection().open_bi()).await.unwrap();
    send.write_all(b"hello?").await.unwrap();
    let read = tokio::spawn(async move { recv.read_to_end(100).await.map(|whole| whole.len()) });
    device.send_datagram(&b"after it"[..]);
    peer.datagram().await;
    peer.control.say(&ClientMessage::Release).await;
    assert_eq!(peer.closing().await.0, CloseCode::Released);
    let end = soon(read).await.unwrap();
    assert!(end.is_err(), "{end:?}");
}

/// R3.5: what waits for room on the other side has not been handed to it, so it is not charged.
#[tokio::test]
async fn r3_5_what_waits_for_a_slow_receiver_is_not_charged() {
    let harness = Harness::start();
    let pair = harness.pair();
    let mut device = harness.join(&pair, Role::Device).await;
    let peer = harness
        .connect_with(|t| {
            t.stream_receive_window(VarInt::from_u32(1000));
        })
        .await
        .join(&pair, Role::Peer)
        .await
        .unwrap();
    device.until_present(true).await;
    let mut sends = Vec::new();
    for _ in 0..10 {
        let mut send = soon(device.connection().open_uni()).await.unwrap();
        send.write_all(&[7; 50_000]).await.unwrap();
        sends.push(send);
    }
    let series = "zrc_relay_forwarded_bytes_total{from=\"device\",kind=\"stream\"}";
    harness.metric_becomes(series, 10 * 1000).await;
    let again = harness.join(&pair, Role::Device).await;
    assert_eq!(again.allocated.bytes_used, 10 * 1000);
    drop(peer);
}
