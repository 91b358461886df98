//! A relay that does as it is told, with virtual time on its side.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use ed25519_dalek::SigningKey;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream, VarInt};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::sync::mpsc;

use crate::{
    client::{Options, Relay, Ticket},
    clock::Clock,
    wire::{
        ALPN, AllocationId, CloseCode, Descriptor, DeviceId, PeerId, PublicKey, RelayId, Role, SignedToken,
        SpkiPin, TokenFields,
        channel::{self, Cookie, Nonce, Packet, Tag},
        control::{
            Allocated, ClientMessage, Closing, HEADER_LEN, Hello, PeerState, Pong, Refused, RelayInfo,
            RelayMessage,
        },
        proof::{self, Binding},
    },
};

/// Longer than anything here takes in virtual time: a test that waits this long waits for what never comes.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Waits for something that must happen.
pub async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, event).await.expect("it never happened")
}

/// Virtual time that goes on in small steps, and only when all that was under way in the kernel has been read:
/// otherwise it runs from timer to timer while packets wait.
pub fn steady_time() -> tokio::task::JoinSet<()> {
    let mut clock = tokio::task::JoinSet::new();
    clock.spawn(async {
        loop {
            // Each looks at the sockets; a round trip through a way is four packets.
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            tokio::time::advance(Duration::from_millis(10)).await;
        }
    });
    clock
}

/// Two keys, a relay's id, and tokens of theirs for one allocation.
pub struct Pair {
    pub relay_id: RelayId,
    pub allocation_id: AllocationId,
    pub device: SigningKey,
    pub peer: SigningKey,
    /// When it was made: what is asked for twice is the same twice.
    made_at_unix: u64,
}

impl Pair {
    pub fn new() -> Self {
        let key = || SigningKey::from_bytes(&AllocationId::random().unwrap().0.repeat(2).try_into().unwrap());
        Self {
            relay_id: RelayId::random().unwrap(),
            allocation_id: AllocationId::random().unwrap(),
            device: key(),
            peer: key(),
            made_at_unix: Clock::start().unix_secs(),
        }
    }

    /// A token that expires so many seconds after the pair was made.
    pub fn token(&self, secs: i64) -> SignedToken {
        TokenFields {
            relay_id: self.relay_id,
            allocation_id: self.allocation_id,
            device_id: DeviceId(self.device.verifying_key().to_bytes()),
            peer_id: PeerId(self.peer.verifying_key().to_bytes()),
            expires_at_unix: self.made_at_unix.saturating_add_signed(secs),
            bandwidth_bytes_per_sec: 0,
            quota_bytes: 0,
        }
        .sign(&self.device)
    }

    pub fn ticket(&self) -> Ticket {
        Ticket::device(self.token(3600), self.device.clone()).unwrap()
    }
}

/// One relay on loopback.
pub struct Fake {
    pub endpoint: Endpoint,
    pub addr: SocketAddr,
    pub spki: SpkiPin,
    pub pem: String,
    /// How many connection attempts were seen.
    pub relay_id: RelayId,
}

impl Fake {
    pub fn new(pair: &Pair) -> Self {
        Self::with(pair, |_| {})
    }

    pub fn with(pair: &Pair, change: impl FnOnce(&mut quinn::TransportConfig)) -> Self {
        Self::speaking(pair, ALPN, change)
    }

    pub fn speaking(pair: &Pair, alpn: &[u8], change: impl FnOnce(&mut quinn::TransportConfig)) -> Self {
        let certified = rcgen::generate_simple_self_signed(["relay.test".to_owned()]).unwrap();
        let certificate = certified.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key.into())
            .unwrap();
        tls.alpn_protocols = vec![alpn.to_vec()];
        let quic = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(quic));
        let mut transport = quinn::TransportConfig::default();
        transport.max_idle_timeout(Some(VarInt::from_u32(300_000).into()));
        change(&mut transport);
        config.transport_config(Arc::new(transport));
        let mut ours = quinn::EndpointConfig::default();
        ours.grease_quic_bit(false);
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(ours, Some(config), socket, runtime).unwrap();
        Self {
            addr: endpoint.local_addr().unwrap(),
            endpoint,
            spki: crate::client::trust::spki_pin(&certificate).map(|pin| SpkiPin(pin.0)).unwrap(),
            pem: certified.cert.pem(),
            relay_id: pair.relay_id,
        }
    }

    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            addr: self.addr.ip().to_string(),
            port: self.addr.port(),
            server_name: "relay.test".into(),
            spki: Some(self.spki),
            relay_id: self.relay_id,
            region: None,
        }
    }

    /// The client's view of this relay.
    pub fn relay(&self) -> Relay {
        Relay::new(self.descriptor())
    }

    pub fn relay_with(&self, change: impl FnOnce(&mut Options)) -> Relay {
        let mut options = Options::default();
        change(&mut options);
        self.relay().with_options(options)
    }

    /// How another relay names this one.
    pub fn info(&self) -> RelayInfo {
        RelayInfo {
            addr: self.addr.ip().to_string(),
            port: self.addr.port().into(),
            server_name: "relay.test".into(),
            spki: self.spki.to_string(),
            region: String::new(),
        }
    }

    /// The next client that connects and says Hello. Those that give up on the way are passed over.
    pub async fn hello(&self) -> Guest {
        loop {
            let incoming = soon(self.endpoint.accept()).await.unwrap();
            let first_dcid_byte = *incoming.orig_dst_cid().first().unwrap();
            let Ok(connection) = soon(incoming.accept().unwrap()).await else { continue };
            let Ok((send, recv)) = soon(connection.accept_bi()).await else { continue };
            return Guest::greeted(connection, send, recv, first_dcid_byte).await;
        }
    }

    /// The next client, let in.
    pub async fn guest(&self) -> Guest {
        let mut guest = self.hello().await;
        guest.allocate().await;
        guest
    }

    /// Refuses whoever comes next.
    pub async fn refuse(&self, refused: Refused) {
        self.hello().await.refuse(refused).await;
    }

    /// How many clients have knocked and were not let in.
    pub async fn nobody_comes_for(&self, time: Duration) {
        assert!(tokio::time::timeout(time, self.endpoint.accept()).await.is_err(), "somebody came");
    }

    /// Falls silent for good: its port is gone.
    pub fn vanish(&self) {
        // quinn still reads the socket before the present one.
        for _ in 0..2 {
            self.endpoint.rebind(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        }
    }
}

/// The pings that came, and whether to answer them.
#[derive(Clone, Default)]
pub struct Pings {
    pub ignored: Arc<AtomicBool>,
    pub seen: Arc<Mutex<Vec<u64>>>,
}

/// Answers pings, and passes on the rest.
async fn listen(
    mut recv: RecvStream,
    send: Arc<tokio::sync::Mutex<SendStream>>,
    pings: Pings,
    heard: mpsc::UnboundedSender<ClientMessage>,
) {
    while let Some(message) = next(&mut recv).await {
        if let ClientMessage::Ping(value) = message {
            pings.seen.lock().unwrap().push(value);
            if !pings.ignored.load(Relaxed) {
                let _ = send.lock().await.write_all(&RelayMessage::Pong(Pong { value }).to_frame()).await;
            }
        } else if heard.send(message).is_err() {
            return;
        }
    }
}

async fn next(recv: &mut RecvStream) -> Option<ClientMessage> {
    let mut header = [0; HEADER_LEN];
    recv.read_exact(&mut header).await.ok()?;
    let mut body = vec![0; u32::from_be_bytes(header) as usize];
    recv.read_exact(&mut body).await.ok()?;
    Some(ClientMessage::parse(body.into()).unwrap())
}

/// A client, seen from the relay.
pub struct Guest {
    pub connection: Connection,
    pub send: Arc<tokio::sync::Mutex<SendStream>>,
    messages: mpsc::UnboundedReceiver<ClientMessage>,
    pub hello: Hello,
    pub first_dcid_byte: u8,
    pub pings: Pings,
}

impl Guest {
    async fn greeted(
        connection: Connection,
        send: SendStream,
        mut recv: RecvStream,
        first_dcid_byte: u8,
    ) -> Self {
        let Some(ClientMessage::Hello(hello)) = soon(next(&mut recv)).await else {
            panic!("not Hello first")
        };
        let send = Arc::new(tokio::sync::Mutex::new(send));
        let pings = Pings::default();
        let (heard, messages) = mpsc::unbounded_channel();
        tokio::spawn(listen(recv, send.clone(), pings.clone(), heard));
        Self { connection, send, messages, hello, first_dcid_byte, pings }
    }

    pub async fn say(&mut self, message: RelayMessage) {
        self.say_bytes(&message.to_frame()).await;
    }

    pub async fn say_bytes(&mut self, bytes: &[u8]) {
        self.send.lock().await.write_all(bytes).await.unwrap();
    }

    /// Ends the control stream.
    pub async fn finish(&mut self) {
        self.send.lock().await.finish().unwrap();
    }

    /// From now on pings go unanswered.
    pub fn ignore_pings(&self) {
        self.pings.ignored.store(true, Relaxed);
    }

    /// The next message that is no ping.
    pub async fn heard(&mut self) -> ClientMessage {
        soon(self.messages.recv()).await.expect("the client said no more")
    }

    pub fn allocated(&self) -> Allocated {
        let hello = &self.hello;
        let token = SignedToken::from_bytes(&hello.token).unwrap();
        Allocated {
            allocation_id: hello.allocation_id.clone(),
            relay_addr: "192.0.2.1".into(),
            relay_port: 4433,
            expires_at: token.fields().expires_at_unix,
            bandwidth_limit: Some(1_250_000),
            burst_bytes: Some(125_000),
            quota_bytes: None,
            bytes_used: 7,
            observed_addr: self.connection.remote_address().to_string(),
            peer_present: true,
            max_datagram_bytes: 1200,
            keepalive_ms: 0,
            idle_timeout_ms: 30_000,
            features: Vec::new(),
            relays: Vec::new(),
        }
    }

    /// Checks the proof of a Hello that has one, and lets the client in.
    pub async fn allocate(&mut self) {
        assert!(self.proof_holds());
        let allocated = self.allocated();
        self.say(RelayMessage::Allocated(allocated)).await;
    }

    pub fn proof_holds(&self) -> bool {
        let mut secret = [0; 32];
        self.connection.export_keying_material(&mut secret, proof::EXPORTER_LABEL, b"").unwrap();
        let hello = &self.hello;
        self.proves(&Binding::Exporter(secret), hello.proof.as_deref().unwrap_or_default())
    }

    pub fn proves(&self, binding: &Binding, proof: &[u8]) -> bool {
        let hello = &self.hello;
        let token = SignedToken::from_bytes(&hello.token).unwrap();
        let key = match hello.role {
            Role::Device => token.fields().device_id.0,
            Role::Peer => token.fields().peer_id.0,
        };
        let key = PublicKey::from_bytes(&key).unwrap();
        proof::verifies(&key, hello.role, &token.hash(), binding, proof)
    }

    pub async fn peer(&mut self, present: bool) {
        self.say(RelayMessage::PeerState(PeerState { present })).await;
    }

    /// Says Refused, lets the client have it, closes.
    pub async fn refuse(mut self, refused: Refused) {
        let code = refused.code;
        self.say(RelayMessage::Refused(refused)).await;
        self.leave(code).await;
    }

    /// Says Closing, lets the client have it, closes.
    pub async fn end(mut self, code: CloseCode) {
        let number = code.number().into();
        self.say(RelayMessage::Closing(Closing { code: number, message: "because".into() })).await;
        self.leave(number).await;
    }

    /// Closes with nothing but the code.
    pub fn drop_with(&self, code: u32) {
        self.connection.close(code.into(), b"");
    }

    async fn leave(self, code: u32) {
        let mut send = self.send.lock().await;
        let _ = send.finish();
        let _ = tokio::time::timeout(Duration::from_secs(1), send.stopped()).await;
        self.drop_with(code);
    }

    /// With which code the client closed.
    pub async fn closed_with(&self) -> CloseCode {
        match soon(self.connection.closed()).await {
            ConnectionError::ApplicationClosed(close) => {
                CloseCode::from_number(close.error_code.into_inner()).unwrap()
            }
            other => panic!("not closed by the client: {other}"),
        }
    }

    /// Sends datagrams back to where they came from, until the client is gone.
    pub async fn echo(self) {
        while let Ok(data) = self.connection.read_datagram().await {
            self.connection.send_datagram(data).unwrap();
        }
    }
}

/// A slow way to a relay: so many bytes per second and no more, at most 64 packets waiting. The way back is fast.
pub struct SlowWay {
    pub addr: SocketAddr,
    _forward: tokio::task::JoinSet<()>,
}

impl SlowWay {
    pub async fn to(fake: &Fake, bytes_per_sec: u32) -> Self {
        let front = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let back = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
        back.connect(fake.addr).await.unwrap();
        let addr = front.local_addr().unwrap();
        let client = Arc::new(Mutex::new(None));
        let (queue, mut waiting) = mpsc::channel::<Vec<u8>>(64);
        let mut forward = tokio::task::JoinSet::new();
        let (front_in, client_in) = (front.clone(), client.clone());
        forward.spawn(async move {
            let mut buffer = vec![0; 65536];
            while let Ok((len, from)) = front_in.recv_from(&mut buffer).await {
                *client_in.lock().unwrap() = Some(from);
                // A full queue drops, as routers do.
                let _ = queue.try_send(buffer[..len].to_vec());
            }
        });
        let out = back.clone();
        forward.spawn(async move {
            while let Some(packet) = waiting.recv().await {
                let len = u32::try_from(packet.len()).unwrap();
                tokio::time::sleep(Duration::from_secs(1) * len / bytes_per_sec).await;
                let _ = out.send(&packet).await;
            }
        });
        forward.spawn(async move {
            let mut buffer = vec![0; 65536];
            while let Ok(len) = back.recv(&mut buffer).await {
                let to = *client.lock().unwrap();
                if let Some(to) = to {
                    let _ = front.send_to(&buffer[..len], to).await;
                }
            }
        });
        Self { addr, _forward: forward }
    }
}

/// A way to a relay that keeps what is not QUIC to itself: the relay's side of the raw channel, played by the test.
pub struct RawWay {
    pub addr: SocketAddr,
    front: Arc<tokio::net::UdpSocket>,
    state: quinn_udp::UdpSocketState,
    arrived: mpsc::UnboundedReceiver<(Vec<u8>, SocketAddr)>,
    /// Whether probes are answered without the test; the n-th of these answers has a cookie of all n.
    pub answers: Arc<AtomicBool>,
    /// Where the client was heard from last.
    pub client: Arc<Mutex<Option<SocketAddr>>>,
    _forward: tokio::task::JoinSet<()>,
}

impl RawWay {
    pub async fn to(fake: &Fake) -> Self {
        let front = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let back = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
        back.connect(fake.addr).await.unwrap();
        let addr = front.local_addr().unwrap();
        // Made before the state, which asks for trains: the test wants packets.
        let state =
            quinn_udp::UdpSocketState::new((&std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).into());
        let client = Arc::new(Mutex::new(None));
        let answers = Arc::new(AtomicBool::new(false));
        let (note, arrived) = mpsc::unbounded_channel();
        let mut forward = tokio::task::JoinSet::new();
        let (from_front, to_back, heard, answering) =
            (front.clone(), back.clone(), client.clone(), answers.clone());
        forward.spawn(async move {
            let mut buffer = vec![0; 65536];
            let mut answered = 0u8;
            while let Ok((len, from)) = from_front.recv_from(&mut buffer).await {
                *heard.lock().unwrap() = Some(from);
                let packet = &buffer[..len];
                if packet.first().is_some_and(|first| !channel::is_not_quic(*first)) {
                    let _ = to_back.send(packet).await;
                    continue;
                }
                if let Some(Packet::Probe { tag, nonce, .. }) = Packet::parse(packet)
                    && answering.load(Relaxed)
                {
                    answered = answered.wrapping_add(1);
                    let answer = channel::answer(tag, nonce, [answered; 8]);
                    from_front.send_to(&answer, from).await.unwrap();
                }
                if note.send((packet.to_vec(), from)).is_err() {
                    return;
                }
            }
        });
        let (to_front, heard) = (front.clone(), client.clone());
        forward.spawn(async move {
            let mut buffer = vec![0; 65536];
            while let Ok(len) = back.recv(&mut buffer).await {
                let to = *heard.lock().unwrap();
                if let Some(to) = to {
                    let _ = to_front.send_to(&buffer[..len], to).await;
                }
            }
        });
        Self { addr, front, state: state.unwrap(), arrived, answers, client, _forward: forward }
    }

    /// The relay at the end of it, as a client sees it.
    pub fn relay(&self, fake: &Fake) -> Relay {
        Relay::new(Descriptor { port: self.addr.port(), ..fake.descriptor() })
    }

    /// The next packet that is not QUIC.
    pub async fn packet(&mut self) -> Vec<u8> {
        soon(self.arrived.recv()).await.unwrap().0
    }

    /// The next probe. Data before it is passed over.
    pub async fn probe(&mut self) -> (Tag, Nonce, Cookie) {
        loop {
            if let Some(Packet::Probe { tag, nonce, cookie }) = Packet::parse(&self.packet().await) {
                return (tag, nonce, cookie);
            }
        }
    }

    /// The payload and the tag of the next data packet. Probes before it are passed over.
    pub async fn data(&mut self) -> (Tag, Vec<u8>) {
        loop {
            if let Some(Packet::Data { tag, payload }) = Packet::parse(&self.packet().await) {
                return (tag, payload.to_vec());
            }
        }
    }

    /// Whether nothing that is not QUIC has arrived that was not looked at.
    pub fn is_quiet(&mut self) -> bool {
        self.arrived.try_recv().is_err()
    }

    /// Sends to the client, from where the relay is.
    pub async fn send(&self, packet: &[u8]) {
        let to = self.client.lock().unwrap().unwrap();
        self.front.send_to(packet, to).await.unwrap();
    }

    /// The same, many at once.
    pub fn send_train(&self, packets: &[u8], segment_bytes: usize) {
        let to = self.client.lock().unwrap().unwrap();
        let transmit = quinn_udp::Transmit {
            destination: to,
            ecn: None,
            contents: packets,
            segment_size: Some(segment_bytes),
            src_ip: None,
        };
        self.state.try_send((&*self.front).into(), &transmit).unwrap();
    }

    /// Sends to the client, from elsewhere.
    pub async fn spoof(&self, packet: &[u8]) {
        let to = self.client.lock().unwrap().unwrap();
        let elsewhere = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        elsewhere.send_to(packet, to).await.unwrap();
    }
}

/// A refusal with nothing but a code.
pub fn refused(code: CloseCode) -> Refused {
    Refused { code: code.number().into(), message: "no".into(), ..Refused::default() }
}
