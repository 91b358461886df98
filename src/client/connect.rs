//! One attempt: from a relay's name to a joined allocation, or to the reason why not.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use quinn::{
    ClientConfig, Connection, ConnectionError, ConnectionId, Endpoint, IdleTimeout, ReadExactError,
    RecvStream, SendStream, TransportConfig, VarInt, crypto::rustls::QuicClientConfig,
};
use rustls::pki_types::CertificateDer;
use tokio::{task::JoinSet, time::Instant};

use super::{
    Grant, Options, Proof, Ticket, TrustError,
    relay::Token,
    socket::Local,
    stats::Counters,
    trust::{self, Trust, Verdict},
};
use crate::{
    quic::{
        acks,
        congestion::{self, RateBasedFactory},
        mtu,
    },
    wire::{
        CloseCode, Descriptor, RelayId, SpkiPin,
        control::{
            Allocated, ClientMessage, Feature, FrameError, HEADER_LEN, Hello, MAX_FRAME, Prove, Refused,
            RelayInfo, RelayMessage, frame_len,
        },
        proof::{self, Binding, EXPORTER_LABEL},
    },
};

/// What one attempt may take, name resolution included.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the first address alone may take before the next is tried beside it (RFC 8305, section 8).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);
/// How many of a name's addresses are tried.
const MAX_ADDRESSES: usize = 8;
/// Longer than any relay's own idle timer should be, so that an end has a code.
const MAX_IDLE_TIMEOUT_MS: u32 = 120_000;
/// The smallest window a stream gets, in bytes, whatever the options say.
const MIN_STREAM_WINDOW: u32 = 16 * 1024;
/// How often a connection that is idle says something, at most and at least: twice in the idle timeout.
const MIN_KEEP_ALIVE: Duration = Duration::from_secs(1);
const MAX_KEEP_ALIVE: Duration = Duration::from_millis(MAX_IDLE_TIMEOUT_MS as u64 / 2);
/// quinn keeps a place for each stream from the beginning.
const MAX_STREAMS: u32 = 1024;
/// How much of a text from the relay is kept, in characters.
const MAX_TEXT: usize = 256;
/// How many alternatives a relay may name.
pub(super) const MAX_RELAYS: usize = 8;

/// Why there is no connection to the relay.
///
/// Texts of [`Refusal`] and of closed connections come from whoever answered: show them, do not act on them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The token is for another relay than the descriptor's.
    #[error("the token is for relay {token}, this is relay {relay}")]
    WrongRelay {
        /// The token's audience.
        token: RelayId,
        /// The descriptor's id.
        relay: RelayId,
    },
    /// The relay's name has no address now.
    #[error("cannot find the address of {host}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// No local UDP socket is to be had.
    #[error("cannot open a local UDP socket")]
    Bind(#[source] io::Error),
    /// What the descriptor names cannot be connected to: an impossible server name or port.
    #[error("the relay's address or server name cannot be used")]
    Unusable(#[source] quinn::ConnectError),
    /// Whoever answered is not the relay that was meant.
    #[error("the relay is not to be trusted")]
    Trust(#[from] TrustError),
    /// Whoever answered does not speak this protocol, or refused the TLS handshake.
    #[error("whoever answers there is no such relay")]
    Handshake(#[source] ConnectionError),
    /// The connection could not be made or was lost.
    #[error("no connection to the relay")]
    Transport(#[source] ConnectionError),
    /// No answer in the time allowed.
    #[error("the relay did not answer in time")]
    Timeout,
    /// The relay said no, and why.
    #[error("the relay refused: {0}")]
    Refused(Refusal),
    /// The relay closed with a code that this version does not know.
    #[error("the relay closed with the unknown code {0:#x}")]
    UnknownCode(u64),
    /// The relay did not keep to the protocol.
    #[error("the relay broke the protocol")]
    Protocol(#[from] ProtocolError),
}

impl ConnectError {
    /// The relay's code, when it gave one.
    pub fn code(&self) -> Option<CloseCode> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            _ => None,
        }
    }

    /// Whether another attempt may fare better. Every other error is final.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Resolve { .. } | Self::Bind(_) | Self::Transport(_) | Self::Timeout => true,
            Self::Refused(refusal) => refusal.code.is_retryable(),
            Self::WrongRelay { .. }
            | Self::Unusable(_)
            | Self::Trust(_)
            | Self::Handshake(_)
            | Self::UnknownCode(_)
            | Self::Protocol(_) => false,
        }
    }

    /// How long the relay asks to stay away.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_after,
            _ => None,
        }
    }
}

/// What a relay answered instead of an allocation, or ended one with.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{code}{}{message}", if message.is_empty() { "" } else { ": " })]
#[non_exhaustive]
pub struct Refusal {
    /// Why. It alone decides what this library does.
    pub code: CloseCode,
    /// For people; may be empty. Without control characters and at most 256 characters long.
    pub message: String,
    /// How long the relay asks to stay away.
    pub retry_after: Option<Duration>,
    /// Where to go instead.
    pub(super) relays: Vec<RelayInfo>,
}

/// How a relay broke the protocol; final, since it would again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A frame that is none.
    #[error("a bad control frame: {0}")]
    Frame(FrameError),
    /// A message that has no place here.
    #[error("an unexpected {0}")]
    Unexpected(&'static str),
    /// A message whose content cannot be.
    #[error("{0}")]
    Content(&'static str),
    /// The control stream ended, the connection did not.
    #[error("the control stream ended without a reason")]
    ControlStreamEnded,
    /// The relay does not take datagrams.
    #[error("the relay's QUIC has no datagrams")]
    NoDatagrams,
}

/// Where to connect to, and by what trust.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) server_name: String,
    pub(super) trust: Trust,
}

impl Target {
    pub(super) fn new(descriptor: &Descriptor, unpinned: &Trust) -> Self {
        Self {
            host: descriptor.addr.clone(),
            port: descriptor.port,
            server_name: descriptor.server_name.clone(),
            trust: descriptor.spki.map_or_else(|| unpinned.clone(), Trust::Pin),
        }
    }

    /// A relay that another one named; `None` when the name makes no sense.
    ///
    /// A trusted relay may name any other and its pin: who moves an allocation vouches for where it goes.
    pub(super) fn named(info: &RelayInfo, unpinned: &Trust) -> Option<Self> {
        let port = u16::try_from(info.port).ok().filter(|port| *port != 0)?;
        let trust = match info.spki.as_str() {
            "" => unpinned.clone(),
            pin => Trust::Pin(pin.parse::<SpkiPin>().ok()?),
        };
        if info.addr.is_empty() || info.addr.len() > 255 || info.server_name.len() > 255 {
            return None;
        }
        Some(Self { host: info.addr.clone(), port, server_name: info.server_name.clone(), trust })
    }

    /// What the name in the certificate and in SNI is.
    fn name(&self) -> &str {
        if self.server_name.is_empty() { &self.host } else { &self.server_name }
    }

    /// The target's addresses, families alternating, the resolver's favourite first.
    async fn resolve(&self) -> Result<Vec<SocketAddr>, ConnectError> {
        let literal = self.host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = literal.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, self.port)]);
        }
        let failed = |source| ConnectError::Resolve { host: self.host.clone(), source };
        let found: Vec<_> =
            tokio::net::lookup_host((self.host.as_str(), self.port)).await.map_err(failed)?.collect();
        let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
        let (preferred, other): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|addr| addr.is_ipv6() == first_is_v6);
        let mut other = other.into_iter();
        let mut addresses = Vec::new();
        for addr in preferred {
            addresses.push(addr);
            addresses.extend(other.next());
        }
        addresses.extend(other);
        addresses.truncate(MAX_ADDRESSES);
        if addresses.is_empty() {
            return Err(failed(io::Error::from(io::ErrorKind::NotFound)));
        }
        Ok(addresses)
    }
}

/// How long the steps to a joined allocation took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ConnectTimes {
    /// Finding the relay's addresses.
    pub resolve: Duration,
    /// The QUIC handshake, the attempts at other addresses included.
    pub handshake: Duration,
    /// Token, proof and answer.
    pub join: Duration,
}

/// A connection that has joined its allocation.
pub(super) struct Joined {
    pub(super) connection: Connection,
    pub(super) local: Local,
    pub(super) target: Target,
    pub(super) control: (SendStream, RecvStream),
    pub(super) grant: Grant,
    pub(super) peer_present: bool,
    pub(super) max_datagram_bytes: usize,
    pub(super) times: ConnectTimes,
}

/// The local sockets, one per address family, opened when first needed.
pub(super) struct Sockets {
    by_family: Mutex<[Option<Local>; 2]>,
    counters: Arc<Counters>,
}

impl Sockets {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self { by_family: Mutex::default(), counters }
    }

    fn for_remote(&self, remote: SocketAddr, options: &Options) -> Result<Local, ConnectError> {
        let mut sockets = self.by_family.lock().unwrap_or_else(PoisonError::into_inner);
        let [v4, v6] = &mut *sockets;
        let slot = if remote.is_ipv4() { v4 } else { v6 };
        if let Some(local) = slot {
            return Ok(local.clone());
        }
        let local = options.local_addr.unwrap_or_else(|| any_address_like(remote));
        let local = Local::bind(local, self.counters.clone()).map_err(ConnectError::Bind)?;
        Ok(slot.insert(local).clone())
    }

    /// The endpoints in use.
    pub(super) fn all(&self) -> Vec<Endpoint> {
        let sockets = self.by_family.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.iter().flatten().map(|local| local.endpoint.clone()).collect()
    }

    /// Opens new sockets next time: one that outlived a sleep or a change of network may be dead without saying
    /// so. Connections that use the old ones keep them.
    /// A port that was asked for by number stays: it could not be opened again while the old socket is in use.
    pub(super) fn forget(&self, options: &Options) {
        if options.local_addr.is_some_and(|local| local.port() != 0) {
            return;
        }
        *self.by_family.lock().unwrap_or_else(PoisonError::into_inner) = [None, None];
    }
}

/// Any local address, of the family that `remote` needs.
pub(super) fn any_address_like(remote: SocketAddr) -> SocketAddr {
    let ip: IpAddr =
        if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(ip, 0)
}

/// Connects to `target` and joins the ticket's allocation there.
pub(super) async fn attempt(
    target: &Target,
    ticket: &Ticket,
    options: &Options,
    sockets: &Sockets,
) -> Result<Joined, ConnectError> {
    let started = Instant::now();
    let trust = target.trust.loaded().await?;
    let addresses = target.resolve().await?;
    let resolved = Instant::now();
    let (connection, local) = race(&addresses, target, &trust, &ticket.token, options, sockets).await?;
    let shaken = Instant::now();
    tracing::debug!(relay = %connection.remote_address(), "QUIC handshake done");
    let joined = join(&connection, ticket, options).await;
    let (control, allocated) = joined.inspect_err(|error| {
        let code = if matches!(error, ConnectError::Protocol(_)) {
            CloseCode::ProtocolError
        } else {
            CloseCode::Closed
        };
        connection.close(u32::from(code.number()).into(), b"");
    })?;
    let times =
        ConnectTimes { resolve: resolved - started, handshake: shaken - resolved, join: shaken.elapsed() };
    let grant = Grant::new(&allocated, ticket.token.allocation_id, options.raw_channel);
    congestion::set_rate(&connection, grant.bandwidth_bytes_per_sec);
    Ok(Joined {
        grant,
        peer_present: allocated.peer_present,
        max_datagram_bytes: datagram_limit(allocated.max_datagram_bytes),
        connection,
        local,
        target: target.clone(),
        control,
        times,
    })
}

/// The handshake with whichever address answers first. Each gets a head start over the next.
async fn race(
    addresses: &[SocketAddr],
    target: &Target,
    trust: &Trust,
    token: &Token,
    options: &Options,
    sockets: &Sockets,
) -> Result<(Connection, Local), ConnectError> {
    let mut runners = JoinSet::new();
    let mut head_start = Duration::ZERO;
    let mut failure: Option<ConnectError> = None;
    for address in addresses.iter().copied() {
        let tls = trust::tls(trust)?;
        let config = client_config(tls.config, token.affinity(), options)?;
        let local = match sockets.for_remote(address, options) {
            Ok(local) => local,
            Err(error) => {
                failure.get_or_insert(error);
                continue;
            }
        };
        let (name, wait) = (target.name().to_owned(), head_start);
        runners.spawn(async move {
            tokio::time::sleep(wait).await;
            let connecting =
                local.endpoint.connect_with(config, address, &name).map_err(ConnectError::Unusable)?;
            let connection = connecting.await.map_err(|error| classify(error, Some(&tls.verdict)))?;
            Ok((connection, local))
        });
        head_start += NEXT_ADDRESS_AFTER;
    }
    while let Some(result) = runners.join_next().await {
        match result {
            Ok(Ok(winner)) => return Ok(winner),
            // What is final tells more than what is not.
            Ok(Err(error)) if failure.as_ref().is_none_or(ConnectError::is_retryable) => {
                failure = Some(error)
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
    Err(failure.unwrap_or(ConnectError::Timeout))
}

fn client_config(
    tls: Arc<rustls::ClientConfig>,
    affinity: u8,
    options: &Options,
) -> Result<ClientConfig, TrustError> {
    let crypto = QuicClientConfig::try_from(tls)
        .map_err(|_| TrustError::Provider(rustls::Error::General("no initial cipher suite".into())))?;
    let mut config = ClientConfig::new(acks::client(Arc::new(crypto)));
    config.transport_config(Arc::new(transport_config(options)));
    config.initial_dst_cid_provider(Arc::new(move || {
        let mut id = [0; 16];
        // Without randomness TLS fails too, so it does not matter what the id then is.
        let _ = getrandom::fill(&mut id);
        let [first, ..] = &mut id;
        *first = affinity;
        ConnectionId::new(&id)
    }));
    Ok(config)
}

fn transport_config(options: &Options) -> TransportConfig {
    let mut config = TransportConfig::default();
    let streams = options.max_streams.clamp(1, MAX_STREAMS);
    // The control stream's window is the same, and it has to carry something.
    let window = options.stream_window_bytes.max(MIN_STREAM_WINDOW);
    let all_windows = u64::from(window).saturating_mul(2 * u64::from(streams));
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(MAX_IDLE_TIMEOUT_MS))))
        .keep_alive_interval(Some(options.keep_alive.clamp(MIN_KEEP_ALIVE, MAX_KEEP_ALIVE)))
        .mtu_discovery_config(Some(mtu::discovery()))
        .congestion_controller_factory(Arc::new(RateBasedFactory::new()))
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(streams))
        .stream_receive_window(VarInt::from_u32(window))
        // Streams that the application does not read must not block the control stream: room for it beside them all.
        .receive_window(
            VarInt::from_u64(all_windows.saturating_add(2 * MAX_FRAME as u64)).unwrap_or(VarInt::MAX),
        )
        .datagram_receive_buffer_size(Some(options.datagram_receive_buffer_bytes.max(64 * 1024)))
        .datagram_send_buffer_size(options.datagram_send_buffer_bytes);
    acks::ask_for_few(&mut config);
    config
}

/// Says Hello and waits for the answer, proving possession on the way.
async fn join(
    connection: &Connection,
    ticket: &Ticket,
    options: &Options,
) -> Result<((SendStream, RecvStream), Allocated), ConnectError> {
    if connection.max_datagram_size().is_none() {
        return Err(ProtocolError::NoDatagrams.into());
    }
    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| classify(error, None))?;
    // It fails only for a stream that is closed already.
    let _ = send.set_priority(i32::MAX);
    let prove = |binding| {
        let proof = proof::prove(&ticket.key, ticket.role, &ticket.token.hash, &binding);
        bytes::Bytes::copy_from_slice(&proof)
    };
    let proof = match options.proof {
        Proof::Exporter => Some(prove(Binding::Exporter(exporter(connection)?))),
        Proof::Nonce => None,
    };
    let mut asked_for_challenge = proof.is_none();
    let hello = ClientMessage::Hello(Hello {
        token: ticket.token.bytes.clone(),
        role: ticket.role,
        allocation_id: bytes::Bytes::copy_from_slice(ticket.token.allocation_id.as_bytes()),
        proof,
        features: if options.raw_channel { vec![Feature::RawChannel] } else { Vec::new() },
        agent: options.agent.clone(),
    });
    write_frame(connection, &mut send, &hello).await?;
    loop {
        match read_frame(connection, &mut recv).await? {
            RelayMessage::Challenge(challenge) if asked_for_challenge => {
                asked_for_challenge = false;
                let nonce = <[u8; 32]>::try_from(challenge.nonce.as_ref())
                    .map_err(|_| ProtocolError::Content("a nonce that is not 32 bytes long"))?;
                let SpkiPin(spki_sha256) = leaf_pin(connection)?;
                let proof = prove(Binding::Nonce { nonce, spki_sha256 });
                write_frame(connection, &mut send, &ClientMessage::Prove(Prove { proof })).await?;
            }
            RelayMessage::Allocated(_) if asked_for_challenge => {
                return Err(ProtocolError::Unexpected("Allocated, before any proof").into());
            }
            RelayMessage::Allocated(allocated) => {
                if allocated.allocation_id.as_ref() != ticket.token.allocation_id.as_bytes() {
                    return Err(ProtocolError::Content("an allocation that was not asked for").into());
                }
                return Ok(((send, recv), allocated));
            }
            other => return Err(ended_by(other)),
        }
    }
}

fn exporter(connection: &Connection) -> Result<[u8; 32], ConnectError> {
    let mut secret = [0; 32];
    connection
        .export_keying_material(&mut secret, EXPORTER_LABEL, b"")
        .map_err(|_| TrustError::Provider(rustls::Error::General("no TLS exporter".into())))?;
    Ok(secret)
}

/// The pin of the certificate that the relay showed.
fn leaf_pin(connection: &Connection) -> Result<SpkiPin, ConnectError> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .unwrap_or_default();
    let leaf = chain.first().ok_or(ProtocolError::Content("no certificate"))?;
    Ok(trust::spki_pin(leaf).map_err(TrustError::Certificate)?)
}

/// Reads one control frame. Not cancel safe. Allocates at most [`MAX_FRAME`].
pub(super) async fn read_frame(
    connection: &Connection,
    recv: &mut RecvStream,
) -> Result<RelayMessage, ConnectError> {
    let mut header = [0; HEADER_LEN];
    read_exact(connection, recv, &mut header).await?;
    let len = frame_len(header, MAX_FRAME).map_err(ProtocolError::Frame)?;
    let mut body = vec![0; len];
    read_exact(connection, recv, &mut body).await?;
    Ok(RelayMessage::parse(body.into()).map_err(ProtocolError::Frame)?)
}

async fn read_exact(
    connection: &Connection,
    recv: &mut RecvStream,
    buffer: &mut [u8],
) -> Result<(), ConnectError> {
    match recv.read_exact(buffer).await {
        Ok(()) => Ok(()),
        Err(ReadExactError::ReadError(quinn::ReadError::ConnectionLost(error))) => Err(classify(error, None)),
        // The stream is over; the connection's own end, which says why, is on its way or never comes.
        Err(_) => match tokio::time::timeout(Duration::from_secs(2), connection.closed()).await {
            Ok(error) => Err(classify(error, None)),
            Err(_) => Err(ProtocolError::ControlStreamEnded.into()),
        },
    }
}

/// Writes one control frame. Not cancel safe.
pub(super) async fn write_frame(
    connection: &Connection,
    send: &mut SendStream,
    message: &ClientMessage,
) -> Result<(), ConnectError> {
    match send.write_all(&message.to_frame()).await {
        Ok(()) => Ok(()),
        Err(quinn::WriteError::ConnectionLost(error)) => Err(classify(error, None)),
        // A relay that stopped reading is about to say why on the other half.
        Err(_) => match tokio::time::timeout(Duration::from_secs(2), connection.closed()).await {
            Ok(error) => Err(classify(error, None)),
            Err(_) => Err(ProtocolError::ControlStreamEnded.into()),
        },
    }
}

/// What a message that ends the connection means; any other has no place where it came.
pub(super) fn ended_by(message: RelayMessage) -> ConnectError {
    match message {
        RelayMessage::Refused(refused) => refusal(refused),
        RelayMessage::Closing(closing) => {
            refusal(Refused { code: closing.code, message: closing.message, ..Refused::default() })
        }
        other => ProtocolError::Unexpected(name(&other)).into(),
    }
}

fn refusal(refused: Refused) -> ConnectError {
    let Some(code) = CloseCode::from_number(refused.code.into()) else {
        return ConnectError::UnknownCode(refused.code.into());
    };
    let mut relays = refused.relays;
    relays.truncate(MAX_RELAYS);
    ConnectError::Refused(Refusal {
        code,
        message: printable(&refused.message),
        retry_after: (refused.retry_after_ms > 0)
            .then(|| Duration::from_millis(refused.retry_after_ms.into())),
        relays,
    })
}

/// What the end of a QUIC connection means.
pub(super) fn classify(error: ConnectionError, verdict: Option<&Verdict>) -> ConnectError {
    if let Some(refused) = verdict.and_then(Verdict::refused) {
        return refused.into();
    }
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let number = close.error_code.into_inner();
            match CloseCode::from_number(number) {
                Some(code) => ConnectError::Refused(Refusal {
                    code,
                    message: printable(&String::from_utf8_lossy(&close.reason)),
                    retry_after: None,
                    relays: Vec::new(),
                }),
                None => ConnectError::UnknownCode(number),
            }
        }
        ConnectionError::VersionMismatch => ConnectError::Handshake(error),
        ConnectionError::TransportError(ref transport) if is_tls_alert(transport.code) => {
            ConnectError::Handshake(error)
        }
        ConnectionError::ConnectionClosed(ref close) if is_tls_alert(close.error_code) => {
            ConnectError::Handshake(error)
        }
        other => ConnectError::Transport(other),
    }
}

/// RFC 9001, section 4.8.
fn is_tls_alert(code: quinn::TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

/// A text from the network, safe to show and of bounded length.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().take(MAX_TEXT).map(shown).collect()
}

/// A relay's word on datagram size; no UDP packet holds more than 64 KiB whatever it says.
pub(super) fn datagram_limit(max_datagram_bytes: u32) -> usize {
    usize::from(u16::try_from(max_datagram_bytes).unwrap_or(u16::MAX))
}

fn name(message: &RelayMessage) -> &'static str {
    match message {
        RelayMessage::Challenge(_) => "Challenge",
        RelayMessage::Allocated(_) => "Allocated",
        RelayMessage::Refreshed(_) => "Refreshed",
        RelayMessage::PeerState(_) => "PeerState",
        RelayMessage::PathLimit(_) => "PathLimit",
        RelayMessage::Usage(_) => "Usage",
        RelayMessage::Throttled(_) => "Throttled",
        RelayMessage::Expiring(_) => "Expiring",
        RelayMessage::Channel(_) => "Channel",
        RelayMessage::Migrate(_) => "Migrate",
        RelayMessage::Pong(_) => "Pong",
        RelayMessage::Refused(_) => "Refused",
        RelayMessage::Closing(_) => "Closing",
    }
}
