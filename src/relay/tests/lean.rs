//! What a leg costs its client and the relay: acknowledgements, keys.

use tokio::time::{Instant, sleep};

use super::*;
use crate::quic::acks::MAX_ACK_DELAY;

#[tokio::test]
async fn a_client_is_asked_to_acknowledge_seldom() {
    let harness = Harness::start();
    let (device, peer) = harness.joined_pair(&harness.pair()).await;
    let acks = || peer.connection().stats().frame_tx.acks;
    let (started, before) = (Instant::now(), acks());
    for n in 0..60_u8 {
        device.send_datagram(vec![n; 100]);
        assert_eq!(peer.datagram().await, vec![n; 100]);
        // The pace of a call: too slow for the threshold of packets.
        sleep(Duration::from_millis(5)).await;
    }
    let (acks, elapsed) = (acks() - before, started.elapsed());
    assert_eq!(peer.connection().stats().frame_rx.ack_frequency, 1);
    // Probes of the path's MTU and what the relay asks for at once bring a few more.
    let most = elapsed.as_millis() / MAX_ACK_DELAY.as_millis() + 5;
    assert!(u128::from(acks) <= most, "{acks} acknowledgements in {elapsed:?}");
    assert!(acks > 0);
}

#[tokio::test]
async fn clients_may_update_their_keys_as_often_as_they_like() {
    let harness = Harness::start();
    let (device, peer) = harness.joined_pair(&harness.pair()).await;
    for n in 0..5_u8 {
        for (here, there) in [(&device, &peer), (&peer, &device)] {
            here.send_datagram(vec![n; 100]);
            assert_eq!(there.datagram().await, vec![n; 100]);
        }
        device.connection().force_key_update();
        if n % 2 == 0 {
            peer.connection().force_key_update();
        }
    }
}
