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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(len: u32) -> [u8; HEADER_LEN] {
        len.to_be_bytes()
    }

    fn body(frame: &Bytes) -> Bytes {
        let (head, body) = frame.split_first_chunk::<HEADER_LEN>().unwrap();
        assert_eq!(u32::from_be_bytes(*head) as usize, body.len());
        frame.slice(HEADER_LEN..)
    }

    fn hello() -> Hello {
        Hello {
            token: Bytes::from_static(&[0x71; 180]),
            role: Role::Device,
            allocation_id: Bytes::from_static(&[0x72; 16]),
            proof: Some(Bytes::from_static(&[0x73; 64])),
            features: vec![Feature::RawChannel],
            agent: "example/1.0".to_owned(),
        }
    }

    fn proto_hello() -> proto::Hello {
        proto::Hello { role: proto::Role::Device.into(), ..proto::Hello::default() }
    }

    fn client_body(hello: proto::Hello) -> Bytes {
        let kind = Some(proto::client_message::Kind::Hello(hello));
        proto::ClientMessage { kind }.encode_to_vec().into()
    }

    fn parse_hello(sent: proto::Hello) -> Hello {
        match ClientMessage::parse(client_body(sent)).unwrap() {
            ClientMessage::Hello(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_length_is_judged_before_anything_is_read() {
        let refused = |got_bytes, max_bytes| Err(FrameError::TooLarge { got_bytes, max_bytes });
        assert_eq!(frame_len(header(0), 4096), Ok(0));
        assert_eq!(frame_len(header(4095), 4096), Ok(4095));
        assert_eq!(frame_len(header(4096), MAX_FRAME_UNAUTHENTICATED), Ok(4096));
        assert_eq!(frame_len(header(4097), MAX_FRAME_UNAUTHENTICATED), refused(4097, 4096));
        assert_eq!(frame_len(header(65_536), MAX_FRAME), Ok(65_536));
        assert_eq!(frame_len(header(65_537), MAX_FRAME), refused(65_537, 65_536));
        assert_eq!(frame_len(header(u32::MAX), MAX_FRAME), refused(u32::MAX, 65_536));
        // Big-endian: this is 1, not 16 MiB.
        assert_eq!(frame_len([0, 0, 0, 1], MAX_FRAME), Ok(1));
        assert_eq!(frame_len([1, 0, 0, 0], MAX_FRAME), refused(1 << 24, 65_536));
    }

    #[test]
    fn every_refused_frame_is_a_protocol_error() {
        let malformed = ClientMessage::parse(Bytes::from_static(&[0x0e])).unwrap_err();
        assert!(matches!(malformed, FrameError::Malformed(_)));
        let too_large = FrameError::TooLarge { got_bytes: 2, max_bytes: 1 };
        assert_eq!(too_large.to_string(), "a frame of 2 bytes, at most 1 are allowed here");
        for error in [malformed, too_large, FrameError::Unknown, FrameError::NoRole] {
            assert_eq!(error.close_code(), CloseCode::ProtocolError);
        }
    }

    #[test]
    fn a_frame_cut_anywhere_is_refused() {
        let messages = [
            ClientMessage::Hello(hello()),
            ClientMessage::Prove(Prove { proof: Bytes::from_static(&[7; 64]) }),
            ClientMessage::Refresh(Refresh { token: Bytes::from_static(&[7; 180]) }),
            ClientMessage::Release,
            ClientMessage::Ping(u64::MAX),
        ];
        for message in messages {
            let whole = body(&message.to_frame());
            assert_eq!(ClientMessage::parse(whole.clone()), Ok(message));
            assert_eq!(ClientMessage::parse(whole.slice(..0)), Err(FrameError::Unknown));
            for len in 1..whole.len() {
                let error = ClientMessage::parse(whole.slice(..len)).unwrap_err();
                assert!(matches!(error, FrameError::Malformed(_)), "{len}: {error}");
            }
        }
        let migrate = RelayMessage::Migrate(Migrate { relays: relays(3), deadline_ms: 1 });
        let whole = body(&migrate.to_frame());
        assert_eq!(RelayMessage::parse(whole.clone()), Ok(migrate));
        assert_eq!(RelayMessage::parse(whole.slice(..0)), Err(FrameError::Unknown));
        for len in 1..whole.len() {
            let error = RelayMessage::parse(whole.slice(..len)).unwrap_err();
            assert!(matches!(error, FrameError::Malformed(_)), "{len}: {error}");
        }
    }

    #[test]
    fn hello_names_a_role() {
        for (role, parsed) in [(1, Role::Device), (2, Role::Peer)] {
            assert_eq!(parse_hello(proto::Hello { role, ..proto_hello() }).role, parsed);
        }
        for role in [0, 3, -1, i32::MAX, i32::MIN] {
            let sent = client_body(proto::Hello { role, ..proto_hello() });
            assert_eq!(ClientMessage::parse(sent), Err(FrameError::NoRole), "{role}");
        }
    }

    #[test]
    fn no_proof_asks_for_a_challenge_and_a_short_one_does_not() {
        assert_eq!(parse_hello(proto_hello()).proof, None);
        let short = Bytes::from_static(b"x");
        assert_eq!(parse_hello(proto::Hello { proof: short.clone(), ..proto_hello() }).proof, Some(short));
    }

    #[test]
    fn an_agent_is_cut_at_a_characters_edge() {
        let read = |agent: &str| parse_hello(proto::Hello { agent: agent.to_owned(), ..proto_hello() }).agent;
        assert_eq!(read(""), "");
        assert_eq!(read(&"a".repeat(128)), "a".repeat(128));
        assert_eq!(read(&"a".repeat(129)), "a".repeat(128));
        assert_eq!(read(&"a".repeat(3000)), "a".repeat(128));
        assert_eq!(read(&format!("{}é", "a".repeat(127))), "a".repeat(127));
        assert_eq!(read(&format!("{}é", "a".repeat(126))), format!("{}é", "a".repeat(126)));
        assert_eq!(read(&format!("{}😀😀", "a".repeat(125))), "a".repeat(125));
        assert_eq!(read(&"😀".repeat(40)), "😀".repeat(32));
    }

    #[test]
    fn an_agent_is_cut_before_it_is_sent() {
        let agent = format!("{}é{}", "a".repeat(127), "b".repeat(70_000));
        let sent = ClientMessage::Hello(Hello { agent, ..hello() }).to_frame();
        assert!(sent.len() < 512, "{}", sent.len());
        let Ok(ClientMessage::Hello(read)) = ClientMessage::parse(body(&sent)) else { panic!("no Hello") };
        assert_eq!(read.agent, "a".repeat(127));
    }

    #[test]
    fn the_largest_hello_fits_its_frame() {
        let largest = Hello { token: vec![b'j'; 2048].into(), agent: "a".repeat(MAX_AGENT_BYTES), ..hello() };
        let frame = ClientMessage::Hello(largest).to_frame();
        assert!(frame.len() - HEADER_LEN <= MAX_FRAME_UNAUTHENTICATED);
    }

    #[test]
    fn features_do_not_grow_with_the_frame() {
        let features: Vec<i32> = [0, 1, 2, -1, i32::MAX].into_iter().cycle().take(10_000).collect();
        assert_eq!(
            parse_hello(proto::Hello { features: features.clone(), ..proto_hello() }).features,
            [Feature::RawChannel]
        );
        assert!(parse_hello(proto::Hello { features: vec![0, 9], ..proto_hello() }).features.is_empty());
        let allocated = RelayMessage::Allocated(Allocated { features, ..Allocated::default() });
        match RelayMessage::parse(body(&allocated.to_frame())).unwrap() {
            RelayMessage::Allocated(read) => assert_eq!(read.features, [1]),
            other => panic!("{other:?}"),
        }
    }

    fn relays(count: usize) -> Vec<RelayInfo> {
        (0..count)
            .map(|n| RelayInfo { addr: format!("192.0.2.{n}"), port: 4433, ..RelayInfo::default() })
            .collect()
    }

    #[test]
    fn lists_of_relays_are_cut_and_give_memory_back() {
        for count in [0, 1, 15, 16, 17, 1000] {
            let sent = relays(count);
            for message in [
                RelayMessage::Allocated(Allocated { relays: sent.clone(), ..Allocated::default() }),
                RelayMessage::Refused(Refused { relays: sent.clone(), ..Refused::default() }),
                RelayMessage::Migrate(Migrate { relays: sent.clone(), deadline_ms: 1 }),
            ] {
                let read = match RelayMessage::parse(body(&message.to_frame())).unwrap() {
                    RelayMessage::Allocated(Allocated { relays, .. })
                    | RelayMessage::Refused(Refused { relays, .. })
                    | RelayMessage::Migrate(Migrate { relays, .. }) => relays,
                    other => panic!("{other:?}"),
                };
                assert_eq!(read, sent[..count.min(MAX_RELAYS)]);
                assert!(read.capacity() <= MAX_RELAYS, "{}", read.capacity());
            }
        }
    }

    #[test]
    fn limits_that_are_absent_stay_absent() {
        for limit in [None, Some(0), Some(u64::MAX)] {
            let sent = RelayMessage::Refreshed(Refreshed {
                bandwidth_limit: limit,
                burst_bytes: limit,
                quota_bytes: limit,
                ..Refreshed::default()
            });
            assert_eq!(RelayMessage::parse(body(&sent.to_frame())), Ok(sent));
        }
    }

    /// The worst that fits in the largest frame: each is judged, none recurses or grows beyond its bounds.
    #[test]
    fn the_largest_frames_are_judged() {
        let nested = |open: &[u8]| open.iter().copied().cycle().take(MAX_FRAME).collect::<Bytes>();
        for hostile in [
            nested(&[0x4b]),             // groups without end
            nested(&[0xcb, 0x06]),       // the same, with a longer number
            nested(&[0x0a]),             // messages in messages
            nested(&[0x0a, 0x00]),       // thirty thousand Hellos in one
            nested(&[0x2a, 0x00]),       // thirty thousand Pings
            nested(&[0xfa, 0x01, 0x00]), // unknown fields only
            nested(&[0xff]),
            nested(&[0x80]),
            nested(&[0x00]),
        ] {
            assert!(
                ClientMessage::parse(hostile.clone())
                    .is_err_and(|e| e.close_code() == CloseCode::ProtocolError)
                    || hostile[0] == 0x2a,
                "{:?}",
                &hostile[..4]
            );
            drop(RelayMessage::parse(hostile));
        }
        // Ping after Ping is one Ping: the last counts.
        assert_eq!(ClientMessage::parse(nested(&[0x2a, 0x00])), Ok(ClientMessage::Ping(0)));
    }

    #[test]
    fn the_last_of_several_messages_counts() {
        let mut two = body(&ClientMessage::Ping(1).to_frame()).to_vec();
        two.extend_from_slice(&body(&ClientMessage::Release.to_frame()));
        assert_eq!(ClientMessage::parse(two.into()), Ok(ClientMessage::Release));
    }

    #[test]
    fn no_token_proof_or_tag_is_shown() {
        const SECRET: [u8; 64] = [0xd7; 64];
        let secret = Bytes::from_static(&SECRET);
        let sent_hello = Hello { token: secret.clone(), proof: Some(secret.clone()), ..hello() };
        let wire_hello = proto::Hello { token: secret.clone(), proof: secret.clone(), ..proto_hello() };
        let refresh = Refresh { token: secret.clone() };
        let prove = Prove { proof: secret.clone() };
        let channel = Channel { tag: secret.clone() };
        let shown = [
            format!("{sent_hello:?} {sent_hello:#?} {:?}", ClientMessage::Hello(sent_hello.clone())),
            format!("{wire_hello:?} {:?}", proto::client_message::Kind::Hello(wire_hello.clone())),
            format!("{refresh:?} {:?}", ClientMessage::Refresh(refresh.clone())),
            format!("{prove:?} {:?}", ClientMessage::Prove(prove.clone())),
            format!("{channel:?} {:?}", RelayMessage::Channel(channel.clone())),
        ];
        for shown in shown {
            for spelling in ["d7", "\\xd7", "215", "D7"] {
                assert!(!shown.contains(spelling), "{shown}");
            }
        }
        assert!(format!("{:?}", hello()).contains("example/1.0"));
        assert_eq!(format!("{refresh:?}"), "Refresh { .. }");
    }

    fn any_bytes(max: usize) -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
    }

    fn any_client_message() -> impl Strategy<Value = ClientMessage> {
        let role = prop_oneof![Just(Role::Device), Just(Role::Peer)];
        let features = prop_oneof![Just(vec![]), Just(vec![Feature::RawChannel])];
        let proof =
            prop::option::of(any_bytes(100).prop_filter("empty asks for a Challenge", |p| !p.is_empty()));
        let hello = (any_bytes(2100), role, any_bytes(40), proof, features, ".{0,32}").prop_map(
            |(token, role, allocation_id, proof, features, agent)| {
                ClientMessage::Hello(Hello { token, role, allocation_id, proof, features, agent })
            },
        );
        prop_oneof![
            hello,
            any_bytes(100).prop_map(|proof| ClientMessage::Prove(Prove { proof })),
            any_bytes(2100).prop_map(|token| ClientMessage::Refresh(Refresh { token })),
            Just(ClientMessage::Release),
            any::<u64>().prop_map(ClientMessage::Ping),
        ]
    }

    fn any_relays() -> impl Strategy<Value = Vec<RelayInfo>> {
        let relay =
            (".*", any::<u32>(), ".*", ".*", ".*").prop_map(|(addr, port, server_name, spki, region)| {
                RelayInfo { addr, port, server_name, spki, region }
            });
        prop::collection::vec(relay, 0..=4)
    }

    fn any_relay_message() -> impl Strategy<Value = RelayMessage> {
        let limits = any::<[Option<u64>; 3]>();
        let allocated =
            (any::<[u64; 2]>(), any::<[u32; 4]>(), limits.clone(), ".*", any_bytes(40), any_relays())
                .prop_map(
                    |(
                        [expires_at, bytes_used],
                        [port, datagram, keepalive, idle],
                        limits,
                        text,
                        id,
                        relays,
                    )| {
                        RelayMessage::Allocated(Allocated {
                            allocation_id: id,
                            relay_addr: text.clone(),
                            relay_port: port,
                            expires_at,
                            bandwidth_limit: limits[0],
                            burst_bytes: limits[1],
                            quota_bytes: limits[2],
                            bytes_used,
                            observed_addr: text,
                            peer_present: port % 2 == 0,
                            max_datagram_bytes: datagram,
                            keepalive_ms: keepalive,
                            idle_timeout_ms: idle,
                            features: if idle % 2 == 0 { vec![] } else { vec![1] },
                            relays,
                        })
                    },
                );
        let refreshed = (any::<[u64; 2]>(), limits).prop_map(|([expires_at, bytes_used], limits)| {
            RelayMessage::Refreshed(Refreshed {
                expires_at,
                bandwidth_limit: limits[0],
                burst_bytes: limits[1],
                quota_bytes: limits[2],
                bytes_used,
            })
        });
        let refused = (any::<u32>(), ".*", any::<u32>(), any_relays()).prop_map(
            |(code, message, retry_after_ms, relays)| {
                RelayMessage::Refused(Refused { code, message, retry_after_ms, relays })
            },
        );
        prop_oneof![
            any_bytes(64).prop_map(|nonce| RelayMessage::Challenge(Challenge { nonce })),
            allocated,
            refreshed,
            refused,
            any::<bool>().prop_map(|present| RelayMessage::PeerState(PeerState { present })),
            any::<[u32; 2]>().prop_map(|[max_datagram_bytes, max_raw_bytes]| {
                RelayMessage::PathLimit(PathLimit { max_datagram_bytes, max_raw_bytes })
            }),
            (any::<[u64; 2]>(), any::<u32>()).prop_map(|([bytes_used, quota_bytes], percent)| {
                RelayMessage::Usage(Usage { bytes_used, quota_bytes, percent })
            }),
            (any::<[u64; 2]>(), any::<u32>()).prop_map(|([datagrams, bytes], window_ms)| {
                RelayMessage::Throttled(Throttled { datagrams, bytes, window_ms })
            }),
            any::<u64>().prop_map(|expires_at| RelayMessage::Expiring(Expiring { expires_at })),
            any_bytes(9).prop_map(|tag| RelayMessage::Channel(Channel { tag })),
            (any_relays(), any::<u32>())
                .prop_map(|(relays, deadline_ms)| RelayMessage::Migrate(Migrate { relays, deadline_ms })),
            any::<u64>().prop_map(|value| RelayMessage::Pong(Pong { value })),
            (any::<u32>(), ".*").prop_map(|(code, message)| RelayMessage::Closing(Closing { code, message })),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn every_client_message_survives_its_frame(message in any_client_message()) {
            prop_assert_eq!(ClientMessage::parse(body(&message.to_frame())), Ok(message));
        }

        #[test]
        fn every_relay_message_survives_its_frame(message in any_relay_message()) {
            prop_assert_eq!(RelayMessage::parse(body(&message.to_frame())), Ok(message));
        }

        #[test]
        fn arbitrary_bodies_are_judged(bytes in any_bytes(600)) {
            drop(RelayMessage::parse(bytes.clone()));
            if let Ok(message) = ClientMessage::parse(bytes) {
                prop_assert_eq!(ClientMessage::parse(body(&message.to_frame())), Ok(message));
            }
        }

        #[test]
        fn a_wrong_byte_is_judged(
            client in any_client_message(), relay in any_relay_message(), at: prop::sample::Index, flip in 1..=255_u8,
        ) {
            let spoil = |frame: Bytes| {
                let mut bytes = body(&frame).to_vec();
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
                Bytes::from(bytes)
            };
            drop(ClientMessage::parse(spoil(client.to_frame())));
            drop(RelayMessage::parse(spoil(relay.to_frame())));
        }

        #[test]
        fn unknown_fields_are_ignored(message in any_client_message(), number in 6..10_000_u32, junk in any_bytes(50)) {
            let mut bytes = body(&message.to_frame()).to_vec();
            prost::encoding::bytes::encode(number, &junk, &mut bytes);
            prop_assert_eq!(ClientMessage::parse(bytes.into()), Ok(message));
        }

        #[test]
        fn every_length_is_judged(len: u32, max in 0..200_000_usize) {
            let judged = frame_len(header(len), max);
            prop_assert_eq!(judged.is_ok(), u64::from(len) <= max as u64);
            prop_assert_eq!(judged.unwrap_or(len as usize), len as usize);
        }
    }
}
