//! Pairs of sessions of zrc-relay's own client library.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use tokio::time::{sleep, timeout};
use zrc_relay::{
    client::{Options, RecvStream, Relay, SendStream, Session, SigningKey, Ticket},
    clock::Clock,
    wire::{AllocationId, DeviceId, PeerId, RelayId, Role, SignedToken, TokenFields},
};

use super::{
    lanes::{Client, Load, TRIAL},
    records::End,
};

/// For one client; a relay that is busy with all the others is asked again within it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longer than any run.
const TOKEN_TTL_SECS: u64 = 3600;
/// Until path MTU discovery has found what the path carries, and raw channels are open.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(20);
/// Datagrams that wait in a client, in bytes: a burst at the highest rate.
const DATAGRAM_BUFFER_BYTES: usize = 1024 * 1024;
/// The same of what has arrived: the other end is at work on the same core, at gigabytes a second.
const RECEIVE_BUFFER_BYTES: usize = 32 * 1024 * 1024;

/// The relay that wrote this `relay.json`.
pub fn relay(descriptor: &Path, raw_channel: bool) -> anyhow::Result<Relay> {
    let text = std::fs::read(descriptor).with_context(|| format!("cannot read {}", descriptor.display()))?;
    Ok(Relay::from_json(text)?.with_options(Options {
        connect_timeout: CONNECT_TIMEOUT,
        reconnect: false,
        raw_channel,
        datagram_send_buffer_bytes: DATAGRAM_BUFFER_BYTES,
        datagram_receive_buffer_bytes: RECEIVE_BUFFER_BYTES,
        ..Options::default()
    }))
}

/// Both sides of a new allocation.
pub async fn pair(relay: &Relay, train: bool) -> anyhow::Result<[Session; 2]> {
    let (token, [device_key, peer_key]) = mint(relay.descriptor().relay_id, train)?;
    let device = relay.connect(ticket(&token, Role::Device, device_key)?).await?;
    let peer = relay.connect(ticket(&token, Role::Peer, peer_key)?).await?;
    for session in [&device, &peer] {
        session.peer_arrived().await?;
    }
    Ok([device, peer])
}

/// A token for a new allocation, and the keys of both sides, which nobody has had before.
///
/// With `train` it asks for no rate: trains carry more than a token can ask for.
pub fn mint(relay_id: RelayId, train: bool) -> anyhow::Result<(SignedToken, [SigningKey; 2])> {
    let (device, peer) = (random_key()?, random_key()?);
    let fields = TokenFields {
        relay_id,
        allocation_id: AllocationId::random().context("no randomness")?,
        device_id: DeviceId(*device.verifying_key().as_bytes()),
        peer_id: PeerId(*peer.verifying_key().as_bytes()),
        expires_at_unix: Clock::start().unix_secs() + TOKEN_TTL_SECS,
        bandwidth_bytes_per_sec: if train { 0 } else { u32::MAX },
        quota_bytes: u64::MAX,
    };
    Ok((fields.sign(&device), [device, peer]))
}

fn ticket(token: &SignedToken, role: Role, key: SigningKey) -> anyhow::Result<Ticket> {
    Ok(Ticket::new(token.clone(), role, key)?)
}

fn random_key() -> anyhow::Result<SigningKey> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("no randomness")?;
    Ok(SigningKey::from_bytes(&seed))
}

/// Until this much goes as one datagram.
pub async fn wait_for_mtu(pairs: &[[Session; 2]], size: usize) -> anyhow::Result<()> {
    let fits = |session: &Session| session.max_datagram_bytes().is_some_and(|most| most >= size);
    let fitting = async {
        while !pairs.iter().flatten().all(fits) {
            sleep(RETRY).await;
        }
    };
    timeout(READY_TIMEOUT, fitting)
        .await
        .with_context(|| format!("{size} bytes do not fit a datagram on this path"))
}

/// Until this much goes and comes raw: each side is sent something for trial until it has had it.
pub async fn wait_for_raw(pairs: &[[Session; 2]], size: usize) -> anyhow::Result<()> {
    let trial = Bytes::from(vec![TRIAL; size]);
    let mut missing: Vec<_> = pairs.iter().flat_map(|[a, b]| [(a, b), (b, a)]).collect();
    let opening = async {
        while !missing.is_empty() {
            for (from, _) in &missing {
                if from.stats().raw_max_bytes.is_some_and(|most| most >= size) {
                    // What has no room is tried again.
                    let _ = from.send_datagram(trial.clone());
                }
            }
            sleep(RETRY).await;
            missing.retain(|(_, to)| to.stats().raw_received == 0);
        }
    };
    timeout(READY_TIMEOUT, opening).await.context("the raw channels do not open")
}

/// A stream each way.
pub async fn streams(sessions: &[Session; 2]) -> anyhow::Result<[End<SendStream, RecvStream>; 2]> {
    let [device, peer] = sessions;
    let (device_send, peer_send) = (device.open_uni().await?, peer.open_uni().await?);
    let (device_recv, peer_recv) = (device.accept_uni().await?, peer.accept_uni().await?);
    Ok([End { send: device_send, recv: device_recv }, End { send: peer_send, recv: peer_recv }])
}

/// Starts everything that receives datagrams.
pub fn start_datagrams(load: &Arc<Load>) {
    for index in 0..load.lanes.len() {
        for role in 0..2 {
            tokio::spawn(receive_datagrams(load.clone(), index, role));
        }
    }
}

async fn receive_datagrams(load: Arc<Load>, index: usize, role: usize) {
    let Some(lane) = load.lanes.get(index) else { return };
    let Some(Client::Datagrams(session)) = lane.0.get(role) else { return };
    while let Ok(train) = session.recv_train().await {
        load.arrived(lane, role, train.data.chunks(train.segment_bytes));
    }
}
