//! The raw channel by clients with nothing around it: the same sockets, buffers and calls as for the plain UDP forwarder,
//! and a QUIC connection beside them that does what the protocol asks for.
//!
//! The client library puts packets together and hands trains on, which costs a core that sends and receives both ends of a flow more than
//! the relay needs for it. Whoever wants to know what the relay can do needs clients that can do as much.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, RecvStream, SendStream, TokioRuntime, UdpPoller};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject as _},
    version::TLS13,
};
use tokio::{
    io::Interest,
    net::UdpSocket,
    time::{interval, sleep, timeout},
};
use zrc_relay::{
    client::SigningKey,
    wire::{
        ALPN, Descriptor, Role, SignedToken,
        channel::{self, Cookie, HEADER_LEN, Packet, Tag},
        control::{self, ClientMessage, Feature, Hello, MAX_FRAME, RelayMessage},
        proof::{self, Binding, EXPORTER_LABEL},
    },
};

use super::{
    lanes::{Client, Lane, Load, TRIAL},
    quic, udp,
};

/// As the protocol says.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Until raw packets go and come, path MTU discovery included.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(20);
const BATCHES_IN_A_ROW: usize = 8;

/// Where clients connect, and how.
pub struct Relay {
    descriptor: Descriptor,
    addr: SocketAddr,
    config: quinn::ClientConfig,
}

/// What keeps a client's channel open.
pub struct Leg {
    socket: Arc<Socket>,
    tag: Tag,
    relay: SocketAddr,
    /// The control stream; the connection lives as long as these.
    _control: (SendStream, RecvStream, quinn::Connection),
}

impl Relay {
    /// The relay that wrote this `relay.json`, and `cert.pem` beside it.
    pub fn new(descriptor: &Path) -> anyhow::Result<Arc<Self>> {
        let certificate = CertificateDer::from_pem_file(descriptor.with_file_name("cert.pem"))?;
        let descriptor: Descriptor = serde_json::from_slice(&std::fs::read(descriptor)?)?;
        let addr = SocketAddr::new(descriptor.addr.parse()?, descriptor.port);
        let mut roots = RootCertStore::empty();
        roots.add(certificate)?;
        let mut tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
        Ok(Arc::new(Self { descriptor, addr, config: quinn::ClientConfig::new(Arc::new(crypto)) }))
    }

    /// Both sides of a new allocation.
    pub async fn pair(&self, train: bool) -> anyhow::Result<[Leg; 2]> {
        let (token, keys) = quic::mint(self.descriptor.relay_id, train)?;
        let [device_key, peer_key] = keys;
        // Neither is told of its channel before the other is there.
        let (device, peer) = tokio::try_join!(
            self.connect(&token, Role::Device, device_key),
            self.connect(&token, Role::Peer, peer_key)
        )?;
        Ok([device, peer])
    }

    async fn connect(&self, token: &SignedToken, role: Role, key: SigningKey) -> anyhow::Result<Leg> {
        let socket = Arc::new(Socket::bind()?);
        let mut config = EndpointConfig::default();
        config.grease_quic_bit(false);
        let endpoint =
            Endpoint::new_with_abstract_socket(config, None, socket.clone(), Arc::new(TokioRuntime))?;
        let name = &self.descriptor.server_name;
        let connection = endpoint.connect_with(self.config.clone(), self.addr, name)?.await?;
        let mut exported = [0; 32];
        if connection.export_keying_material(&mut exported, EXPORTER_LABEL, b"").is_err() {
            bail!("no TLS exporter");
        }
        let shown = proof::prove(&key, role, &token.hash(), &Binding::Exporter(exported));
        let hello = ClientMessage::Hello(Hello {
            token: Bytes::copy_from_slice(&token.to_bytes()),
            role,
            allocation_id: Bytes::copy_from_slice(token.fields().allocation_id.as_bytes()),
            proof: Some(Bytes::copy_from_slice(&shown)),
            features: vec![Feature::RawChannel],
            agent: "load".into(),
        });
        let (mut send, mut recv) = connection.open_bi().await?;
        send.write_all(&hello.to_frame()).await?;
        let tag = loop {
            match read_frame(&mut recv).await? {
                RelayMessage::Channel(named) => {
                    break Tag::from_slice(&named.tag).context("a malformed tag")?;
                }
                RelayMessage::Refused(refused) => bail!("refused: {}", refused.message),
                _ => {}
            }
        };
        Ok(Leg { socket, tag, relay: self.addr, _control: (send, recv, connection) })
    }
}

async fn read_frame(recv: &mut RecvStream) -> anyhow::Result<RelayMessage> {
    let mut header = [0; control::HEADER_LEN];
    recv.read_exact(&mut header).await?;
    let mut body = vec![0; control::frame_len(header, MAX_FRAME)?];
    recv.read_exact(&mut body).await?;
    Ok(RelayMessage::parse(body.into())?)
}

/// Opens the channels, and makes a load of the legs once everything goes and comes raw.
pub async fn load(legs: Vec<[Leg; 2]>, size: usize) -> anyhow::Result<Arc<Load>> {
    let mut lanes = Vec::new();
    for leg in legs.iter().flatten() {
        tokio::spawn(probe(leg.socket.clone(), leg.tag, leg.relay));
    }
    for [device, peer] in &legs {
        lanes.push(Lane([Client::Udp(device.client(size)), Client::Udp(peer.client(size))]));
    }
    timeout(READY_TIMEOUT, try_until_open(&legs, size)).await.context("the raw channels do not open")??;
    let load = Arc::new(Load::new(lanes, size));
    for (lane, pair) in legs.iter().enumerate() {
        for (role, leg) in pair.iter().enumerate() {
            let inbound = Inbound { load: load.clone(), lane, role, packet_len: HEADER_LEN + size };
            // Nobody else sets it.
            let _ = leg.socket.inbound.set(inbound);
        }
    }
    // Their connections are to live until the process ends.
    std::mem::forget(legs);
    Ok(load)
}

async fn try_until_open(legs: &[[Leg; 2]], size: usize) -> io::Result<()> {
    loop {
        let mut all_open = true;
        for [device, peer] in legs {
            for (from, to) in [(device, peer), (peer, device)] {
                if !to.socket.is_open.load(Relaxed) {
                    all_open = false;
                    let trial = [&channel::data_header(from.tag)[..], &vec![TRIAL; size]].concat();
                    from.socket.io.send_to(&trial, from.relay).await?;
                }
            }
        }
        if all_open {
            return Ok(());
        }
        sleep(RETRY).await;
    }
}

/// Asks once a second whether raw packets pass, with the cookie of the last answer.
async fn probe(socket: Arc<Socket>, tag: Tag, relay: SocketAddr) -> io::Result<()> {
    let mut tick = interval(PROBE_EVERY);
    let mut cookie_shown = false;
    loop {
        tick.tick().await;
        loop {
            let cookie = *socket.cookie.lock().unwrap_or_else(PoisonError::into_inner);
            socket.io.send_to(&channel::probe(tag, [1; 8], cookie), relay).await?;
            if cookie_shown {
                break;
            }
            // The first answer brings the cookie that opens the channel.
            sleep(RETRY).await;
            cookie_shown = cookie != Cookie::default();
        }
    }
}

impl Leg {
    fn client(&self, size: usize) -> udp::Client {
        let Socket { io, state, .. } = &*self.socket;
        udp::Client::new(io.clone(), state.clone(), self.relay, &channel::data_header(self.tag), size)
    }
}

/// A socket for quinn that keeps raw packets to itself.
struct Socket {
    io: Arc<UdpSocket>,
    state: Arc<UdpSocketState>,
    cookie: Mutex<Cookie>,
    /// Something has come raw.
    is_open: AtomicBool,
    inbound: OnceLock<Inbound>,
}

/// Where raw packets go.
struct Inbound {
    load: Arc<Load>,
    lane: usize,
    role: usize,
    packet_len: usize,
}

impl Socket {
    fn bind() -> io::Result<Self> {
        let io = UdpSocket::from_std(udp::bind()?)?;
        Ok(Self {
            state: Arc::new(UdpSocketState::new((&io).into())?),
            io: Arc::new(io),
            cookie: Mutex::default(),
            is_open: AtomicBool::new(false),
            inbound: OnceLock::new(),
        })
    }

    /// Takes a train of raw packets, of `stride` bytes each. The relay sends trains of one kind.
    fn take(&self, packets: &[u8], stride: usize) {
        match Packet::parse(packets.get(..stride).unwrap_or(packets)) {
            Some(Packet::Answer { cookie, .. }) => {
                *self.cookie.lock().unwrap_or_else(PoisonError::into_inner) = cookie;
            }
            Some(Packet::Data { .. }) => {
                self.is_open.store(true, Relaxed);
                let Some(Inbound { load, lane, role, packet_len }) = self.inbound.get() else { return };
                let Some(lane) = load.lanes.get(*lane) else { return };
                let whole = packets.chunks(stride).filter(|packet| packet.len() == *packet_len);
                load.arrived(lane, *role, whole.filter_map(|packet| packet.get(HEADER_LEN..)));
            }
            _ => {}
        }
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.io.try_io(Interest::WRITABLE, || self.state.try_send((&*self.io).into(), transmit))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        for _ in 0..BATCHES_IN_A_ROW {
            ready!(self.io.poll_recv_ready(cx))?;
            let received =
                self.io.try_io(Interest::READABLE, || self.state.recv((&*self.io).into(), buffers, metas));
            let Ok(received) = received else { continue };
            let mut any_quic = false;
            for (buffer, meta) in buffers.iter().zip(metas.iter_mut()).take(received) {
                let train = buffer.get(..meta.len).unwrap_or_default();
                if train.first().is_some_and(|first| channel::is_not_quic(*first)) {
                    self.take(train, meta.stride.max(1));
                    // quinn passes over what is empty.
                    meta.len = 0;
                } else {
                    any_quic = true;
                }
            }
            if any_quic {
                return Poll::Ready(Ok(received));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Socket")
    }
}

/// One that waits for room.
#[derive(Debug)]
struct Writable(Arc<Socket>);

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.io.poll_send_ready(cx)
    }
}
