//! The control stream: length-prefixed protobuf frames, each with a limit, each refused by type.
//!
//! Reading takes two steps, so that nothing is allocated on the word of a caller: [`frame_len`] judges the
//! four bytes of length, then [`ClientMessage::parse`] or [`RelayMessage::parse`] judges the body.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;

use super::{CloseCode, Role};

/// The generated messages; their field numbers are `relay.proto`'s.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/zrc_relay.v1.rs"));
}

pub use proto::{
    Allocated, Challenge, Channel, Closing, Expiring, Feature, Migrate, PathLimit, PeerState, Ping, Pong,
    Prove, Refresh, Refreshed, Refused, RelayInfo, Release, Throttled, Usage,
};

/// Bytes of length before each frame.
pub const HEADER_LEN: usize = 4;
/// The largest frame before a token is accepted, in bytes without its header.
pub const MAX_FRAME_UNAUTHENTICATED: usize = 4 * 1024;
/// The largest frame afterwards, and the largest a client accepts, in bytes without its header.
pub const MAX_FRAME: usize = 64 * 1024;
/// How much of a client's `agent` is sent and kept, in bytes.
pub const MAX_AGENT_BYTES: usize = 128;
/// How many relays of a list are kept. A client that could reach none of sixteen will not reach a seventeenth,
/// and a relay's list of empty entries would otherwise cost fifty times its size in memory.
pub const MAX_RELAYS: usize = 16;

/// Why a frame is refused; each closes the connection with PROTOCOL_ERROR.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length says more than the limit in force.
    #[error("a frame of {got_bytes} bytes, at most {max_bytes} are allowed here")]
    TooLarge {
        /// What the header said.
        got_bytes: u32,
        /// The limit in force.
        max_bytes: usize,
    },
    /// The body is not a protobuf message of this protocol.
    #[error("the frame is not a control message: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// The body holds no message, or one this side does not know.
    #[error("an unknown control message")]
    Unknown,
    /// A Hello without a role.
    #[error("Hello names no role")]
    NoRole,
}

impl FrameError {
    /// What the sender is told.
    pub const fn close_code(&self) -> CloseCode {
        CloseCode::ProtocolError
    }
}

/// Judges the length before a frame.
///
/// # Errors
/// [`FrameError::TooLarge`] when it is beyond `max_bytes`.
pub const fn frame_len(header: [u8; HEADER_LEN], max_bytes: usize) -> Result<usize, FrameError> {
    let got_bytes = u32::from_be_bytes(header);
    if got_bytes as usize > max_bytes {
        return Err(FrameError::TooLarge { got_bytes, max_bytes });
    }
    Ok(got_bytes as usize)
}

fn frame(message: &impl prost::Message) -> Bytes {
    let len = message.encoded_len();
    let mut frame = BytesMut::with_capacity(HEADER_LEN + len);
    // Our own messages are small: the largest, Migrate, holds a few relays.
    frame.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    frame.put_slice(&message.encode_to_vec());
    frame.freeze()
}

/// The first thing a client says.
#[derive(Clone, PartialEq, Eq)]
pub struct Hello {
    /// The token as sent: 180 raw bytes, or the ASCII of a JWT.
    pub token: Bytes,
    /// Which side is speaking.
    pub role: Role,
    /// The allocation asked for; any length, since it is only ever compared.
    pub allocation_id: Bytes,
    /// Mode 1 proof; `None` asks for a Challenge.
    pub proof: Option<Bytes>,
    /// What the client can do beyond the base protocol: each once, unknown ones left out.
    pub features: Vec<Feature>,
    /// The client's name and version, cut to [`MAX_AGENT_BYTES`]. Chosen by the caller: escape it in logs.
    pub agent: String,
}

/// Leaves the token out.
impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hello")
            .field("role", &self.role)
            .field("features", &self.features)
            .field("agent", &self.agent)
            .finish_non_exhaustive()
    }
}

/// Messages that carry a token, a signature or a tag: shown without it, so that no log can hold one.
macro_rules! debug_without_contents {
    ($($message:ident),*) => {
        $(impl std::fmt::Debug for proto::$message {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($message), " { .. }"))
            }
        })*
    };
}

debug_without_contents!(Hello, Prove, Refresh, Channel);

/// From client to relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientMessage {
    /// Asks for an allocation.
    Hello(Hello),
    /// Answers a Challenge.
    Prove(Prove),
    /// Brings a newer token for the same allocation.
    Refresh(Refresh),
    /// Ends the allocation for both sides.
    Release,
    /// Asks for a Pong with the same value.
    Ping(u64),
}

impl ClientMessage {
    /// Reads a frame's body.
    ///
    /// # Errors
    /// [`FrameError`]; unknown fields are ignored, an unknown message is not.
    pub fn parse(body: Bytes) -> Result<Self, FrameError> {
        use proto::client_message::Kind;
        let message = proto::ClientMessage::decode(body)?;
        Ok(match message.kind.ok_or(FrameError::Unknown)? {
            Kind::Hello(hello) => Self::Hello(Hello {
                role: match hello.role() {
                    proto::Role::Device => Role::Device,
                    proto::Role::Peer => Role::Peer,
                    proto::Role::Unspecified => return Err(FrameError::NoRole),
                },
                features: known(hello.features()),
                agent: truncated(hello.agent, MAX_AGENT_BYTES),
                token: hello.token,
                allocation_id: hello.allocation_id,
                proof: (!hello.proof.is_empty()).then_some(hello.proof),
            }),
            Kind::Prove(prove) => Self::Prove(prove),
            Kind::Refresh(refresh) => Self::Refresh(refresh),
            Kind::Release(Release {}) => Self::Release,
            Kind::Ping(ping) => Self::Ping(ping.value),
        })
    }

    /// The frame, header included.
    pub fn to_frame(&self) -> Bytes {
        use proto::client_message::Kind;
        let kind = match self.clone() {
            Self::Hello(hello) => Kind::Hello(proto::Hello {
                token: hello.token,
                role: match hello.role {
                    Role::Device => proto::Role::Device,
                    Role::Peer => proto::Role::Peer,
                }
                .into(),
                allocation_id: hello.allocation_id,
                proof: hello.proof.unwrap_or_default(),
                features: hello.features.into_iter().map(i32::from).collect(),
                agent: truncated(hello.agent, MAX_AGENT_BYTES),
            }),
            Self::Prove(prove) => Kind::Prove(prove),
            Self::Refresh(refresh) => Kind::Refresh(refresh),
            Self::Release => Kind::Release(Release {}),
            Self::Ping(value) => Kind::Ping(Ping { value }),
        };
        frame(&proto::ClientMessage { kind: Some(kind) })
    }
}

/// Each known feature once, however often it was sent: the list must not grow with the frame.
fn known(sent: impl Iterator<Item = Feature>) -> Vec<Feature> {
    let mut known = Vec::new();
    for feature in sent {
        if feature != Feature::Unspecified && !known.contains(&feature) {
            known.push(feature);
        }
    }
    known
}

/// Cuts a text to at most `max_bytes`, at a character's edge.
fn truncated(mut text: String, max_bytes: usize) -> String {
    let mut end = max_bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// Cuts a list of relays, and gives its memory back.
fn cut(relays: &mut Vec<RelayInfo>) {
    relays.truncate(MAX_RELAYS);
    relays.shrink_to_fit();
}

/// From relay to client.
pub type RelayMessage = proto::relay_message::Kind;

impl RelayMessage {
    /// Reads a frame's body; lists of relays are cut to [`MAX_RELAYS`].
    ///
    /// # Errors
    /// [`FrameError`]; unknown fields are ignored, an unknown message is not.
    pub fn parse(body: Bytes) -> Result<Self, FrameError> {
        let mut message = proto::RelayMessage::decode(body)?.kind.ok_or(FrameError::Unknown)?;
        match &mut message {
            Self::Allocated(allocated) => {
                allocated.features = known(allocated.features()).into_iter().map(i32::from).collect();
                cut(&mut allocated.relays);
            }
            Self::Migrate(migrate) => cut(&mut migrate.relays),
            Self::Refused(refused) => cut(&mut refused.relays),
            _ => {}
        }
        Ok(message)
    }

    /// The frame, header included.
    pub fn to_frame(&self) -> Bytes {
        frame(&proto::RelayMessage { kind: Some(self.clone()) })
    }
}
