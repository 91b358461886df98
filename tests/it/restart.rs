//! A relay that is killed and started anew: its clients come back with what they have, and go on.

use std::{net::UdpSocket, process::Stdio, time::Duration};

use ed25519_dalek::SigningKey;
use zrc_relay::{
    client::{Event, Relay, Session, Ticket},
    clock::Clock,
    wire::{AllocationId, DeviceId, PeerId, TokenFields},
};

use crate::{cli::command, cli_serve::Running};

const PATIENCE: Duration = Duration::from_secs(60);

/// Sends until something arrives at the other side: datagrams are lost while there is no connection.
async fn until_it_arrives(from: &Session, to: &Session, payload: &'static [u8]) {
    let sending = async {
        loop {
            // Between connections it says so; that is what is being waited for.
            let _ = from.send_datagram(payload.into());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let receiving = async { while to.recv_datagram().await.unwrap() != payload {} };
    tokio::select! {
        () = sending => {}
        () = receiving => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_come_back_to_a_relay_that_was_killed_and_started_anew() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    // Free now, and nobody else's business until the relay takes it.
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = folder.path().join("relay.toml");
    let text = format!(
        "state_dir = {state:?}\n[relay]\nlisten_addr = \"127.0.0.1\"\nlisten_port = {port}\nself_certified = true\n\
         [ops]\nlisten_port = 0\n"
    );
    std::fs::write(&config, text).unwrap();
    let start = || {
        let mut serve = command(&["serve", "--config", config.to_str().unwrap()]);
        let mut running = Running::start(&mut serve, Stdio::null());
        running.line_with("clients:");
        running
    };

    let mut running = start();
    let relay = Relay::from_json(std::fs::read(state.join("relay.json")).unwrap()).unwrap();
    let (device, peer) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
    let token = TokenFields {
        relay_id: relay.descriptor().relay_id,
        allocation_id: AllocationId::random().unwrap(),
        device_id: DeviceId(device.verifying_key().to_bytes()),
        peer_id: PeerId(peer.verifying_key().to_bytes()),
        expires_at_unix: Clock::start().unix_secs() + 600,
        bandwidth_bytes_per_sec: 0,
        quota_bytes: 0,
    }
    .sign(&device);
    tokio::time::timeout(PATIENCE, async {
        let here = relay.connect(Ticket::device(token.clone(), device).unwrap()).await.unwrap();
        let there = relay.connect(Ticket::peer(token, peer).unwrap()).await.unwrap();
        until_it_arrives(&here, &there, b"before").await;
        let mut events = here.events();

        // By a reset that they believe. Pings take three seconds to give up, and where a relay takes as long to start,
        // they may be first.
        let mut reasons = Vec::new();
        while !reasons.iter().any(|reason: &String| reason.contains("reset")) {
            assert!(reasons.len() < 5, "{reasons:?}");
            running.child.kill().unwrap();
            running.child.wait().unwrap();
            running = start();
            let clock = Clock::start();
            until_it_arrives(&here, &there, b"there").await;
            until_it_arrives(&there, &here, b"and back").await;
            eprintln!("both ways again {:?} after the relay was back", clock.mono());
            reasons.push(loop {
                if let Event::Disconnected { reason } = events.recv().await.unwrap() {
                    break reason;
                }
            });
        }
    })
    .await
    .unwrap();
}
