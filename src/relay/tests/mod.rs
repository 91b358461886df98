//! The relay on loopback, driven by a bare client that can also misbehave.

mod congestion;
mod events;
mod forwarding;
mod guard;
mod hostile;
mod identity;
mod lean;
mod life;
mod limits;
mod messages;
mod properties;
mod raw;
mod refusals;
mod shards;
mod shares;
mod spoofing;
mod stream_ends;
mod tiers;

use std::{
    net::SocketAddr,
    num::NonZeroU8,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use quinn::{ConnectionError, Endpoint, RecvStream, SendStream};
use tokio::time::timeout;

use super::{
    Admission, DATAGRAM_RECEIVE_BUFFER_BYTES, RelayConfig, RelayServer, TlsIdentity,
    channel::Channels,
    hub::Hub,
    leg::{Leg, Origin},
    steer,
};
use crate::{
    clock::Clock,
    guard::{EventSettings, Guard, GuardSettings, SecurityEvents},
    metrics::Metrics,
    table::{ConnId, Limits, Meter, Rules, Table, Tier},
    wire::{
        ALPN, AllocationId, CloseCode, DeviceId, Handle, PeerId, PublicKey, RelayId, Role, SignedToken,
        SpkiPin, TokenFields, TokenHash,
        control::{Allocated, ClientMessage, HEADER_LEN, Hello, RelayMessage},
        proof::{self, Binding},
    },
};

/// No event in these tests takes longer, whatever else the machine does.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for something that must happen.
pub(super) async fn soon<T>(event: impl Future<Output = T>) -> T {
    timeout(PATIENCE, event).await.expect("it did not happen in time")
}

/// For what is measured in time while others use the machine too: it holds in one of a few tries. What the relay does
/// not do by itself, it does in none of them.
pub(super) async fn in_one_of_five_tries(mut tried: impl AsyncFnMut() -> Result<(), String>) {
    let mut faults = Vec::new();
    for _ in 0..5 {
        match tried().await {
            Ok(()) => return,
            Err(fault) => faults.push(fault),
        }
    }
    panic!("{faults:#?}");
}

pub(super) struct Harness {
    pub server: RelayServer,
    pub metrics: Arc<Metrics>,
    pub security: SecurityEvents,
    pub relay_id: RelayId,
    pub clock: Clock,
    roots: Arc<rustls::RootCertStore>,
}

pub(super) fn rules() -> Rules {
    Rules {
        max_allocations: 10_000,
        max_ledger: 100_000,
        connections_per_role: 4,
        allocation_timeout: Duration::from_secs(8 * 3600),
        idle_timeout: Duration::from_secs(30),
        pair_timeout: Duration::from_secs(120),
    }
}

impl Harness {
    pub fn start() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut RelayConfig)) -> Self {
        Self::try_with(change).unwrap()
    }

    pub fn try_with(change: impl FnOnce(&mut RelayConfig)) -> Result<Self, super::StartError> {
        Self::try_steered(change, steer::by_packet)
    }

    pub fn try_steered(
        change: impl FnOnce(&mut RelayConfig),
        steer: steer::Steer,
    ) -> Result<Self, super::StartError> {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = certified.cert.der().clone();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let relay_id = RelayId::random().unwrap();
        let mut config = RelayConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            relay_id,
            public_addr: None,
            tls: TlsIdentity {
                chain: vec![certificate],
                key: certified.signing_key.serialize_der().try_into().unwrap(),
            },
            admission: Admission {
                self_certified: Some(Tier::default()),
                max_token_lifetime: Duration::from_secs(24 * 3600),
                ..Admission::default()
            },
            rules: rules(),
            guard: GuardSettings::default(),
            global_bytes_per_sec: None,
            max_unauthenticated: 100,
            datagram_receive_buffer_bytes: DATAGRAM_RECEIVE_BUFFER_BYTES,
            keepalive: Some(Duration::from_secs(15)),
            shards: NonZeroU8::new(1),
            raw_channel: true,
        };
        change(&mut config);
        let metrics = Arc::new(Metrics::new().unwrap());
        let clock = Clock::start();
        let security = SecurityEvents::new(clock, metrics.clone(), EventSettings::default());
        let server = RelayServer::start_steered(config, clock, metrics.clone(), security.clone(), steer)?;
        Ok(Self { server, metrics, security, relay_id, clock, roots: Arc::new(roots) })
    }

    pub fn addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Two keys and a token of theirs, good for an hour.
    pub fn pair(&self) -> Pair {
        self.pair_with(|_| {})
    }

    pub fn pair_with(&self, change: impl FnOnce(&mut TokenFields)) -> Pair {
        let key = || {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).unwrap();
            SigningKey::from_bytes(&seed)
        };
        let (device, peer) = (key(), key());
        let mut fields = TokenFields {
            relay_id: self.relay_id,
            allocation_id: AllocationId::random().unwrap(),
            device_id: DeviceId(device.verifying_key().to_bytes()),
            peer_id: PeerId(peer.verifying_key().to_bytes()),
            expires_at_unix: self.clock.unix_secs() + 3600,
            bandwidth_bytes_per_sec: 0,
            quota_bytes: 0,
        };
        change(&mut fields);
        let token = fields.sign(&device);
        Pair { device, peer, token }
    }

    fn client_config(&self) -> quinn::ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let quic = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        quinn::ClientConfig::new(Arc::new(quic))
    }

    /// A connection on a socket of its own, handshake done, nothing said.
    pub async fn connect(&self) -> Raw {
        self.connect_with(|_| {}).await
    }

    /// A connection over a path with this delay in each direction, which takes packets of up to `largest` bytes.
    pub async fn connect_far(&self, delay: Duration, largest: Arc<AtomicUsize>) -> Raw {
        self.connect_to(far_away(self.addr(), delay, largest).await, |_| {}).await
    }

    pub async fn connect_with(&self, change: impl FnOnce(&mut quinn::TransportConfig)) -> Raw {
        self.connect_to(self.addr(), change).await
    }

    async fn connect_to(&self, addr: SocketAddr, change: impl FnOnce(&mut quinn::TransportConfig)) -> Raw {
        let mut transport = quinn::TransportConfig::default();
        change(&mut transport);
        let endpoint = Endpoint::client(self.local()).unwrap();
        self.connect_on(endpoint, addr, |config| {
            config.transport_config(Arc::new(transport));
        })
        .await
        .unwrap()
    }

    /// As `connect`, or why not.
    pub async fn try_connect(
        &self,
        change: impl FnOnce(&mut quinn::ClientConfig),
    ) -> Result<Raw, ConnectionError> {
        self.connect_on(Endpoint::client(self.local()).unwrap(), self.addr(), change).await
    }

    async fn connect_on(
        &self,
        endpoint: Endpoint,
        addr: SocketAddr,
        change: impl FnOnce(&mut quinn::ClientConfig),
    ) -> Result<Raw, ConnectionError> {
        let mut config = self.client_config();
        change(&mut config);
        let connecting = endpoint.connect_with(config, addr, "localhost").unwrap();
        Ok(Raw { connection: soon(connecting).await?, endpoint })
    }

    /// Any port of the loopback address that the relay is on.
    pub fn local(&self) -> SocketAddr {
        if self.addr().is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }.parse().unwrap()
    }

    /// A connection that has been let in.
    pub async fn join(&self, pair: &Pair, role: Role) -> Joined {
        self.connect().await.join(pair, role).await.expect("joined")
    }

    /// Both sides, each having seen the other.
    pub async fn joined_pair(&self, pair: &Pair) -> (Joined, Joined) {
        let mut device = self.join(pair, Role::Device).await;
        let peer = self.join(pair, Role::Peer).await;
        assert!(peer.allocated.peer_present);
        device.until_present(true).await;
        (device, peer)
    }

    /// The value of one series, as a scrape would show it.
    pub fn metric(&self, series: &str) -> u64 {
        let text = self.metrics.encode().unwrap();
        let line =
            text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        line.and_then(|line| line.rsplit(' ').next())
            .unwrap_or_else(|| panic!("no {series} in {text}"))
            .parse()
            .unwrap()
    }

    /// How much was dropped for this reason.
    pub fn dropped(&self, reason: &str) -> u64 {
        self.metric(&format!("zrc_relay_dropped_datagrams_total{{reason=\"{reason}\"}}"))
    }

    /// Waits until a series has at least this value.
    pub async fn metric_reaches(&self, series: &str, value: u64) {
        soon(async {
            while self.metric(series) < value {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Waits until a series has this value.
    pub async fn metric_becomes(&self, series: &str, value: u64) {
        soon(async {
            while self.metric(series) != value {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

/// An address whose packets reach `relay` after `delay`, and the answers come back after `delay`: for one client,
/// until the test's runtime ends.
async fn far_away(relay: SocketAddr, delay: Duration, largest: Arc<AtomicUsize>) -> SocketAddr {
    let near = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let far = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
    far.connect(relay).await.unwrap();
    let addr = near.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut from_client, mut from_relay) = ([0; 2000], [0; 2000]);
        let mut client = None;
        loop {
            tokio::select! {
                Ok((len, from)) = near.recv_from(&mut from_client) => {
                    client = Some(from);
                    let (packet, far) = (from_client[..len].to_vec(), far.clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(delay).await;
                        let _ = far.send(&packet).await;
                    });
                }
                Ok(len) = far.recv(&mut from_relay) => {
                    if len > largest.load(Ordering::Relaxed) {
                        continue;
                    }
                    let (packet, near) = (from_relay[..len].to_vec(), near.clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(delay).await;
                        if let Some(client) = client {
                            let _ = near.send_to(&packet, client).await;
                        }
                    });
                }
            }
        }
    });
    addr
}

#[derive(Clone)]
pub(super) struct Pair {
    pub device: SigningKey,
    pub peer: SigningKey,
    pub token: SignedToken,
}

impl Pair {
    pub fn key(&self, role: Role) -> &SigningKey {
        match role {
            Role::Device => &self.device,
            Role::Peer => &self.peer,
        }
    }

    /// Another token of the same pair.
    pub fn again(&self, change: impl FnOnce(&mut TokenFields)) -> SignedToken {
        let mut fields = *self.token.fields();
        change(&mut fields);
        fields.sign(&self.device)
    }
}

/// A connection that has said nothing yet.
pub(super) struct Raw {
    pub endpoint: Endpoint,
    pub connection: quinn::Connection,
}

impl Raw {
    /// Hello with a mode 1 proof.
    pub fn hello(&self, pair: &Pair, role: Role) -> Hello {
        let allocation_id = pair.token.fields().allocation_id;
        self.hello_with(&pair.token.to_bytes(), allocation_id, pair.key(role), role)
    }

    /// The same with a token of any kind.
    pub fn hello_with(&self, token: &[u8], id: AllocationId, key: &SigningKey, role: Role) -> Hello {
        let mut secret = [0; 32];
        self.connection.export_keying_material(&mut secret, proof::EXPORTER_LABEL, &[]).unwrap();
        let proof = proof::prove(key, role, &TokenHash::of(token), &Binding::Exporter(secret));
        Hello {
            token: Bytes::copy_from_slice(token),
            role,
            allocation_id: Bytes::copy_from_slice(id.as_bytes()),
            proof: Some(Bytes::copy_from_slice(&proof)),
            features: Vec::new(),
            agent: "tests".to_owned(),
        }
    }

    /// Opens the control stream and sends these bytes on it.
    pub async fn begin(self, bytes: &[u8]) -> Control {
        let (mut send, recv) = soon(self.connection.open_bi()).await.unwrap();
        soon(send.write_all(bytes)).await.unwrap();
        Control { endpoint: self.endpoint, connection: self.connection, send, recv, buffer: Vec::new() }
    }

    pub async fn join(self, pair: &Pair, role: Role) -> Result<Joined, (CloseCode, String)> {
        let hello = self.hello(pair, role);
        self.join_with(hello).await
    }

    pub async fn join_with(self, hello: Hello) -> Result<Joined, (CloseCode, String)> {
        let mut control = self.begin(&ClientMessage::Hello(hello).to_frame()).await;
        match control.next().await {
            Some(RelayMessage::Allocated(allocated)) => Ok(Joined { control, allocated }),
            Some(RelayMessage::Refused(refused)) => {
                let code = CloseCode::from_number(u64::from(refused.code)).unwrap();
                assert_eq!(control.close_code().await, code, "the close code repeats Refused");
                Err((code, refused.message))
            }
            other => panic!("neither Allocated nor Refused but {other:?}"),
        }
    }
}

/// A connection with a control stream.
pub(super) struct Control {
    pub endpoint: Endpoint,
    pub connection: quinn::Connection,
    pub send: SendStream,
    pub recv: RecvStream,
    buffer: Vec<u8>,
}

impl Control {
    pub async fn say(&mut self, message: &ClientMessage) {
        soon(self.send.write_all(&message.to_frame())).await.unwrap();
    }

    /// The next message; `None` when the stream or the connection is over.
    pub async fn next(&mut self) -> Option<RelayMessage> {
        soon(async {
            loop {
                if let Some(header) = self.buffer.first_chunk::<HEADER_LEN>() {
                    let end = HEADER_LEN + u32::from_be_bytes(*header) as usize;
                    if self.buffer.len() >= end {
                        let rest = self.buffer.split_off(end);
                        let frame = std::mem::replace(&mut self.buffer, rest);
                        return Some(RelayMessage::parse(Bytes::from(frame).slice(HEADER_LEN..)).unwrap());
                    }
                }
                let chunk = self.recv.read_chunk(usize::MAX, true).await.ok()??;
                self.buffer.extend_from_slice(&chunk.bytes);
            }
        })
        .await
    }

    /// Waits for the relay to close the connection.
    pub async fn close_code(&self) -> CloseCode {
        close_code(&self.connection).await
    }
}

/// Waits for the relay to close the connection, by application code.
pub(super) async fn close_code(connection: &quinn::Connection) -> CloseCode {
    match soon(connection.closed()).await {
        ConnectionError::ApplicationClosed(close) => {
            CloseCode::from_number(close.error_code.into_inner()).expect("a code of ours")
        }
        other => panic!("closed by {other:?}"),
    }
}

/// A connection that has been let in.
pub(super) struct Joined {
    pub control: Control,
    pub allocated: Allocated,
}

impl Joined {
    pub fn connection(&self) -> &quinn::Connection {
        &self.control.connection
    }

    /// Reads messages until the relay says that the peer is there, or not.
    pub async fn until_present(&mut self, present: bool) {
        loop {
            match self.control.next().await {
                Some(RelayMessage::PeerState(state)) if state.present == present => return,
                Some(_) => {}
                None => panic!("ended before PeerState"),
            }
        }
    }

    /// Reads messages until one is of interest.
    pub async fn until<T>(&mut self, wanted: impl Fn(RelayMessage) -> Option<T>) -> T {
        loop {
            let message = self.control.next().await.expect("the control stream ended");
            if let Some(found) = wanted(message) {
                return found;
            }
        }
    }

    /// What it may send as one datagram, once that is more than 1390 bytes: when path MTU discovery is through.
    pub async fn largest_datagram(&mut self) -> usize {
        let large = |bytes: u32| Some(bytes as usize).filter(|bytes| *bytes > 1390);
        // It may be through before Allocated is sent.
        if let Some(found) = large(self.allocated.max_datagram_bytes) {
            return found;
        }
        self.until(|message| match message {
            RelayMessage::PathLimit(limit) => large(limit.max_datagram_bytes),
            _ => None,
        })
        .await
    }

    /// Waits for the end: the code of Closing, which the close repeats.
    pub async fn closing(&mut self) -> (CloseCode, String) {
        let closing = self
            .until(|message| match message {
                RelayMessage::Closing(closing) => Some(closing),
                _ => None,
            })
            .await;
        let code = self.control.close_code().await;
        assert_eq!(u32::from(code.number()), closing.code, "the close code repeats Closing");
        (code, closing.message)
    }

    pub async fn datagram(&self) -> Bytes {
        soon(self.connection().read_datagram()).await.unwrap()
    }

    pub fn send_datagram(&self, payload: impl Into<Bytes>) {
        self.connection().send_datagram(payload.into()).unwrap();
    }
}

/// A hub of its own, for tests of a part of a session.
pub(super) fn hub(harness: &Harness) -> Hub {
    let admission = Admission {
        self_certified: None,
        max_token_lifetime: Duration::from_secs(24 * 3600),
        ..Admission::default()
    };
    let channels = Channels::new(1).unwrap();
    Hub::new(
        harness.clock,
        harness.metrics.clone(),
        Arc::new(Guard::new(&GuardSettings::default(), harness.metrics.clone(), harness.security.clone())),
        harness.relay_id,
        admission,
        harness.server.accepting(),
        Table::new(rules()),
        channels,
    )
}

/// A leg over the client's end of a connection, for tests of a part of a session.
pub(super) fn leg(harness: &Harness, joined: &Joined, role: Role) -> Leg {
    let handle = Handle([0; 16]);
    let meter = Arc::new(Meter::new(Limits::default(), 0));
    Leg::new(
        ConnId(0),
        role,
        handle,
        joined.connection().clone(),
        Origin { shard: 0, wants_channel: false },
        meter,
        harness.clock.mono(),
    )
}

/// Limits with only a quota.
pub(super) fn quota(bytes: u64) -> Limits {
    Limits { quota_bytes: Some(bytes), ..Limits::default() }
}

/// A key pinned under an id that is not the key.
pub(super) fn public(key: &SigningKey) -> PublicKey {
    PublicKey::from(key)
}

pub(super) fn spki(harness: &Harness) -> SpkiPin {
    harness.server.spki()
}
