//! What a program says before it connects: which relay, by what right, and how patient to be.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use ed25519_dalek::SigningKey;

use super::{
    ConnectError, Session, TrustError, driver,
    trust::{self, Trust},
};
use crate::wire::{
    AllocationId, AnyToken, Descriptor, DeviceId, PeerId, PublicKey, RelayId, Role, Signer, TokenError,
    TokenHash,
};

/// A relay: where it is, why it is trusted, and how to connect to it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Relay {
    descriptor: Arc<Descriptor>,
    ca: Option<Trust>,
    options: Arc<Options>,
}

impl Relay {
    /// The relay that introduces itself so.
    ///
    /// It is trusted by the descriptor's pin; without a pin by [`with_ca`](Self::with_ca), else by the
    /// certificate authorities of the operating system. Whoever can change the descriptor can name another
    /// relay: get it from where you get the token.
    pub fn new(descriptor: Descriptor) -> Self {
        Self { descriptor: Arc::new(descriptor), ca: None, options: Arc::new(Options::default()) }
    }

    /// As [`Relay::new`], from the text of a `relay.json` (what a relay writes into its state directory and
    /// serves at `/.well-known/zrc-relay`).
    ///
    /// # Errors
    /// When the text is not a descriptor.
    pub fn from_json(text: impl AsRef<[u8]>) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text.as_ref()).map(Self::new)
    }

    /// Trusts the certificates in this PEM text, and those they sign, instead of the operating system's
    /// authorities. A pin in the descriptor still comes first.
    ///
    /// # Errors
    /// [`TrustError::Ca`] when the text holds no usable certificate.
    pub fn with_ca(mut self, pem: &[u8]) -> Result<Self, TrustError> {
        self.ca = Some(Trust::Roots(trust::roots_from_pem(pem)?));
        Ok(self)
    }

    /// Sets how to connect; the default is [`Options::default`].
    #[must_use]
    pub fn with_options(mut self, options: Options) -> Self {
        self.options = Arc::new(options);
        self
    }

    /// How the relay introduces itself.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// How connections to it are made.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Connects, proves possession of the ticket's key, and joins the allocation; the first to come creates it.
    ///
    /// What may pass by itself (a lost packet, a relay that is full, draining or restarting) is tried again,
    /// with growing random pauses, until [`Options::connect_timeout`] is over. Call it inside a tokio runtime
    /// with time and I/O enabled. The other side need not be there yet:
    /// [`Session::peer_arrived`] waits for it.
    ///
    /// Dropping the future gives up and leaves nothing behind.
    ///
    /// # Errors
    /// [`ConnectError`]: what happened to the last attempt. Texts in it may come from whoever answered.
    pub async fn connect(&self, ticket: Ticket) -> Result<Session, ConnectError> {
        Box::pin(driver::connect(self, ticket)).await
    }

    /// What vouches for relays without a pin of their own.
    pub(super) fn unpinned_trust(&self) -> Trust {
        self.ca.clone().unwrap_or(Trust::System)
    }
}

/// How to connect, and how to stay connected. Set what matters, take the rest from [`Options::default`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How long [`Relay::connect`] tries (10 s). A single attempt, then and later, gets at most 5 s of it.
    pub connect_timeout: Duration,
    /// Whether a session connects anew when it loses its connection (true). Without, the loss ends it.
    pub reconnect: bool,
    /// The first pause between attempts is random between zero and this (250 ms); it doubles each time.
    pub backoff_initial: Duration,
    /// No pause is longer than this (30 s), unless the relay asks for more (at most five minutes).
    pub backoff_max: Duration,
    /// How often an idle connection says something, so that NATs on the way keep their binding (15 s; from 1 s to
    /// 60 s). A relay may ask for more often, at most once a second.
    pub keep_alive: Duration,
    /// The local address; `None` takes any address and a free port, of the family that the relay needs (`None`).
    pub local_addr: Option<SocketAddr>,
    /// This program's name and version for the relay's log, which keeps 128 bytes of it.
    pub agent: String,
    /// How to prove possession of the key (`Proof::Exporter`).
    pub proof: Proof,
    /// Whether datagrams go beside QUIC where relay and path allow it (true): not encrypted once more on the way to
    /// the relay, at a fraction of the cost. For what is encrypted end to end, as it should be; lengths and times are
    /// as visible as before, and who sees the path can inject packets and spend the quota. Costs a small packet a second
    /// while datagrams cross and for ten seconds after.
    pub raw_channel: bool,
    /// How many streams of each kind the other side may have open at once (128, at most 1024).
    pub max_streams: u32,
    /// How much of a stream the other side may send ahead of the reader, in bytes (512 KiB, at least 16 KiB). Times
    /// `max_streams`, for both kinds: the most that a peer can make an application hold that reads nothing.
    pub stream_window_bytes: u32,
    /// How much may wait to be sent as datagrams, in bytes (256 KiB).
    pub datagram_send_buffer_bytes: usize,
    /// How much may wait to be received as datagrams, in bytes (1 MiB), counting 64 for each beside its payload; then
    /// the oldest goes.
    pub datagram_receive_buffer_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            reconnect: true,
            backoff_initial: Duration::from_millis(250),
            backoff_max: Duration::from_secs(30),
            keep_alive: Duration::from_secs(15),
            local_addr: None,
            agent: concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")).to_owned(),
            proof: Proof::Exporter,
            raw_channel: true,
            max_streams: 128,
            stream_window_bytes: 512 * 1024,
            datagram_send_buffer_bytes: 256 * 1024,
            datagram_receive_buffer_bytes: 1024 * 1024,
        }
    }
}

/// What ties the proof of possession to the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Proof {
    /// A TLS exporter; no extra round trip.
    #[default]
    Exporter,
    /// A nonce that the relay is asked for; one more round trip. For trying what QUIC stacks without an exporter do.
    Nonce,
}

/// Why a token and a key do not go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TicketError {
    /// The token was not signed with the key given for the device.
    #[error("the token was not signed with this device's key")]
    NotTheDevice,
    /// The token is for another peer than the key's.
    #[error("the token is for another peer than this key's")]
    NotThePeer,
    /// The token cannot be used by anybody.
    #[error("the token cannot be used: {0}")]
    Token(TokenError),
}

/// The right to one side of an allocation: a token, the side, and that side's key.
#[derive(Clone)]
pub struct Ticket {
    pub(super) token: Token,
    pub(super) role: Role,
    pub(super) key: SigningKey,
}

impl Ticket {
    /// Checks that the key fits the role: the device's made the token's signature, the peer's is named in it. An
    /// issuer's token does not tell which key a relay has pinned for the device, so there only the peer's is checked.
    ///
    /// Expiry is left to the relay, whose clock counts.
    ///
    /// # Errors
    /// [`TicketError`] when the relay would refuse the pair.
    pub fn new(token: impl Into<AnyToken>, role: Role, key: SigningKey) -> Result<Self, TicketError> {
        let any = token.into();
        let public = PublicKey::from(&key);
        let token = Token::try_from(&any).map_err(TicketError::Token)?;
        match (role, &any) {
            (Role::Device, AnyToken::Device(signed)) => {
                signed.verify(&public).map_err(|error| match error {
                    TokenError::Signature => TicketError::NotTheDevice,
                    other => TicketError::Token(other),
                })?;
            }
            (Role::Peer, _) if public.as_bytes() != token.peer_id.as_bytes() => {
                return Err(TicketError::NotThePeer);
            }
            _ => {}
        }
        Ok(Self { token, role, key })
    }

    /// The device's side.
    ///
    /// # Errors
    /// As [`Ticket::new`].
    pub fn device(token: impl Into<AnyToken>, key: SigningKey) -> Result<Self, TicketError> {
        Self::new(token, Role::Device, key)
    }

    /// The peer's side.
    ///
    /// # Errors
    /// As [`Ticket::new`].
    pub fn peer(token: impl Into<AnyToken>, key: SigningKey) -> Result<Self, TicketError> {
        Self::new(token, Role::Peer, key)
    }

    /// Which side it is for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The allocation it is for.
    pub fn allocation_id(&self) -> AllocationId {
        self.token.allocation_id
    }

    /// The relay, or cluster of relays, that it is for.
    pub fn relay_id(&self) -> RelayId {
        self.token.relay_id
    }
}

/// Leaves key and token out.
impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("role", &self.role).finish_non_exhaustive()
    }
}

/// Any kind of token: the bytes to send, and what they say of themselves.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) bytes: Bytes,
    pub(super) hash: TokenHash,
    pub(super) signer: Signer,
    pub(super) relay_id: RelayId,
    pub(super) allocation_id: AllocationId,
    pub(super) device_id: DeviceId,
    pub(super) peer_id: PeerId,
    pub(super) expires_at_unix: u64,
}

impl Token {
    /// Whether both are for the same allocation of the same relay.
    pub(super) fn is_for_the_same_as(&self, other: &Self) -> bool {
        (&self.signer, self.relay_id, self.allocation_id, self.device_id, self.peer_id)
            == (&other.signer, other.relay_id, other.allocation_id, other.device_id, other.peer_id)
    }

    /// The allocation's hint to a sharded relay: XOR of the sixteen bytes of its id.
    pub(super) fn affinity(&self) -> u8 {
        self.allocation_id.0.iter().fold(0, |all, byte| all ^ byte)
    }
}

impl TryFrom<&AnyToken> for Token {
    type Error = TokenError;

    /// # Errors
    /// For an issuer's token whose claims cannot be read.
    fn try_from(token: &AnyToken) -> Result<Self, TokenError> {
        let bytes = Bytes::from(token.to_bytes());
        let hash = token.hash();
        Ok(match token {
            AnyToken::Device(token) => {
                let fields = token.fields();
                Self {
                    bytes,
                    hash,
                    signer: Signer::Device,
                    relay_id: fields.relay_id,
                    allocation_id: fields.allocation_id,
                    device_id: fields.device_id,
                    peer_id: fields.peer_id,
                    expires_at_unix: fields.expires_at_unix,
                }
            }
            AnyToken::Issuer(token) => {
                let fields = token.fields()?;
                Self {
                    bytes,
                    hash,
                    signer: token.kid().signer(),
                    relay_id: fields.relay_id,
                    allocation_id: fields.allocation_id,
                    device_id: fields.device_id,
                    peer_id: fields.peer_id,
                    expires_at_unix: fields.expires_at_unix,
                }
            }
        })
    }
}
