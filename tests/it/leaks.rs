//! R5.3, for a whole daemon: what it writes at trace, its libraries' lines included, in either form, while good and
//! bad sessions come and go and security events go out. No payload, token, key or secret; addresses at debug and
//! below alone; one line each, whatever clients send.

use std::{fs, process::Stdio, time::Duration};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use zrc_relay::{
    client::{Options, Relay, Session, Ticket},
    clock::Clock,
    wire::{AllocationId, DeviceId, IssuerFields, PeerId, SignedToken, TokenFields},
};

use crate::{cli::command, cli_serve::Running};

const PATIENCE: Duration = Duration::from_secs(60);
const KID: &str = "backend-2026";
const PAYLOAD: &[u8] = b"canary-in-the-coal-mine";
const WEBHOOK_SECRET: [u8; 32] = *b"the webhook's secret, 32 bytes..";
const WEBHOOK_PASSWORD: &str = "hunter2-hunter2-hunter2";
const WEBHOOK_PATH: &str = "a-path-that-only-we-know";
/// An agent that would like to write lines of its own, for people and for fail2ban.
const HOSTILE_AGENT: &str = "a\r\n2026-11-20T00:00:00Z  WARN security: token refused event=\"bad_token\" reason=\"text\" \
                             source=192.0.2.1\u{1b}[31m\u{9b}2J\u{85}\u{2028}\u{202e}";
/// What the daemon says to whoever started it, beside the log.
const ANNOUNCEMENTS: [&str; 5] = ["zrc-relay ", "relay on ", "ops on ", "clients: ", "leaving: "];

/// What must not show up, in every spelling of it.
#[derive(Default)]
struct Secrets(Vec<(&'static str, String)>);

impl Secrets {
    fn add(&mut self, name: &'static str, bytes: &[u8]) {
        let list = format!("{bytes:?}");
        let literal = format!("{:?}", Bytes::copy_from_slice(bytes));
        let mut spellings =
            vec![hex::encode(bytes), hex::encode_upper(bytes), list[1..list.len() - 1].to_owned()];
        spellings.push(literal[2..literal.len() - 1].to_owned());
        spellings.extend(String::from_utf8(bytes.to_vec()));
        // Wherever it begins in what is encoded, three bytes make four characters.
        for at in 0..3 {
            let whole = &bytes[at..];
            let whole = &whole[..whole.len() / 3 * 3];
            spellings.extend([STANDARD_NO_PAD.encode(whole), URL_SAFE_NO_PAD.encode(whole)]);
        }
        self.0.extend(spellings.into_iter().map(|spelling| (name, spelling)));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Json,
}

/// What is wrong with a log: one text for each fault.
fn faults(form: Form, lines: &[String], secrets: &Secrets) -> Vec<String> {
    let mut faults = Vec::new();
    for line in lines {
        let mut fault = |what: &str| faults.push(format!("{what}: {line:?}"));
        for (name, spelling) in &secrets.0 {
            if line.contains(spelling) {
                fault(name);
            }
        }
        if line.contains(char::is_control) || line.contains(['\u{2028}', '\u{202e}']) {
            fault("not escaped");
        }
        if ANNOUNCEMENTS.iter().any(|begin| line.starts_with(begin)) {
            continue;
        }
        let Some(level) = level(form, line) else {
            fault("no line of the log");
            continue;
        };
        if !matches!(level.as_str(), "DEBUG" | "TRACE") && line.contains("127.0.0.1") {
            fault("an address");
        }
    }
    faults
}

fn level(form: Form, line: &str) -> Option<String> {
    let (at, level) = match form {
        Form::Json => {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            (line["timestamp"].as_str()?.to_owned(), line["level"].as_str()?.to_owned())
        }
        Form::Text => {
            let mut words = line.split_whitespace();
            (words.next()?.to_owned(), words.next()?.to_owned())
        }
    };
    let known = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&level.as_str());
    (known && at.len() == 27 && at.ends_with('Z')).then_some(level)
}

/// Whoever it is, 204.
async fn endpoint(listener: TcpListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { return };
        tokio::spawn(async move {
            let mut buffer = vec![0; 65536];
            while stream.read(&mut buffer).await.is_ok_and(|len| len > 0) {
                if stream.write_all(b"HTTP/1.1 204 X\r\n\r\n").await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Who may grant allocations, beside the devices.
fn issuer() -> SigningKey {
    SigningKey::from_bytes(&[0xf3; 32])
}

/// As a client that would like to write into the log.
fn hostile(relay: &Relay, raw_channel: bool) -> Relay {
    let agent = HOSTILE_AGENT.to_owned();
    relay.clone().with_options(Options { agent, raw_channel, ..relay.options().clone() })
}

/// What an issuer granted, what nobody did, and what somebody stole.
async fn issuers_sessions(relay: &Relay, device: &SigningKey, peer: &SigningKey, secrets: &mut Secrets) {
    for (signer, key) in [(issuer(), device), (peer.clone(), device), (issuer(), peer)] {
        let jwt = IssuerFields {
            relay_id: relay.descriptor().relay_id,
            allocation_id: AllocationId([9; 16]),
            device_id: DeviceId(device.verifying_key().to_bytes()),
            peer_id: PeerId(peer.verifying_key().to_bytes()),
            expires_at_unix: Clock::start().unix_secs() + 600,
            not_before_unix: None,
            bandwidth_bytes_per_sec: None,
            quota_bytes: None,
            tier: None,
        };
        let jwt = jwt.sign(&signer, &KID.parse().unwrap()).unwrap();
        let [_, claims, signature] = jwt.as_text().split('.').collect::<Vec<_>>()[..] else {
            panic!("no JWT")
        };
        secrets.add("a JWT", &claims.as_bytes()[claims.len() - 60..]);
        secrets.add("a JWT", signature.as_bytes());
        secrets.add("a JWT", jwt.signature());
        // The first is good; the second is forged, and the third stolen: its thief has another key than the device's.
        let joined = hostile(relay, true).connect(Ticket::device(jwt, key.clone()).unwrap()).await;
        assert_eq!(joined.is_ok(), signer == issuer() && key == device);
    }
}

/// Good sessions and bad ones.
async fn sessions(relay: &Relay, secrets: &mut Secrets) {
    let (device, peer) = (SigningKey::from_bytes(&[0xd1; 32]), SigningKey::from_bytes(&[0xe2; 32]));
    for key in [&device, &peer, &issuer()] {
        secrets.add("a private key", &key.to_bytes()[..18]);
        secrets.add("a public key", &key.verifying_key().to_bytes()[..18]);
    }
    issuers_sessions(relay, &device, &peer, secrets).await;
    let clock = Clock::start();
    let mut token = |allocation: u8, expires_at_unix, quota_bytes| {
        let token = TokenFields {
            relay_id: relay.descriptor().relay_id,
            allocation_id: AllocationId([allocation; 16]),
            device_id: DeviceId(device.verifying_key().to_bytes()),
            peer_id: PeerId(peer.verifying_key().to_bytes()),
            expires_at_unix,
            bandwidth_bytes_per_sec: 0,
            quota_bytes,
        }
        .sign(&device);
        secrets.add("a token", &token.signature()[..18]);
        secrets.add("a token", &token.signature()[46..]);
        token
    };
    let later = clock.unix_secs() + 600;
    let expired = token(1, 5, 0);
    let mut forged = token(2, later, 0).to_bytes();
    forged[170] ^= 1;
    // The client itself refuses a device's ticket that the device did not sign, so a peer brings the forged one.
    let forged = SignedToken::from_bytes(&forged).unwrap();
    for bad in [Ticket::device(expired, device.clone()), Ticket::peer(forged, peer.clone())] {
        hostile(relay, true).connect(bad.unwrap()).await.unwrap_err();
    }
    for (allocation, raw_channel) in [(3, false), (4, true)] {
        let good = token(allocation, later, 200_000);
        let ticket = Ticket::device(good.clone(), device.clone()).unwrap();
        let here = hostile(relay, raw_channel).connect(ticket).await.unwrap();
        let there =
            hostile(relay, raw_channel).connect(Ticket::peer(good, peer.clone()).unwrap()).await.unwrap();
        here.peer_arrived().await.unwrap();
        there.peer_arrived().await.unwrap();
        if raw_channel {
            raw_datagrams(&here, &there).await;
        }
        here.send_datagram(PAYLOAD.into()).unwrap();
        assert_eq!(there.recv_datagram().await.unwrap(), PAYLOAD);
        let (mut send, _recv) = here.open_bi().await.unwrap();
        send.write_all(&PAYLOAD.repeat(50)).await.unwrap();
        send.finish().unwrap();
        let (_send, mut recv) = there.accept_bi().await.unwrap();
        assert_eq!(recv.read_to_end(1 << 20).await.unwrap(), PAYLOAD.repeat(50));
        here.refresh(token(allocation, later + 60, 220_000)).await.unwrap();
        // More than the quota: the end.
        let mut stream = here.open_uni().await.unwrap();
        let _ = stream.write_all(&PAYLOAD.repeat(20_000)).await;
        there.closed().await;
        here.closed().await;
    }
}

/// Sends until some of it has gone beside QUIC.
async fn raw_datagrams(here: &Session, there: &Session) {
    while here.stats().raw_sent == 0 {
        here.send_datagram(PAYLOAD.into()).unwrap();
        there.recv_datagram().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r5_3_a_whole_daemon_at_trace_keeps_what_it_is_told_to_itself() {
    for (form, name) in [(Form::Text, "text"), (Form::Json, "json")] {
        let mut secrets = Secrets::default();
        secrets.add("a payload", PAYLOAD);
        secrets.add("the webhook's secret", &WEBHOOK_SECRET);
        secrets.add("the webhook's password", WEBHOOK_PASSWORD.as_bytes());
        secrets.add("the webhook's path", WEBHOOK_PATH.as_bytes());

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(endpoint(listener));
        let folder = tempfile::tempdir().unwrap();
        let secret = base64::engine::general_purpose::STANDARD.encode(WEBHOOK_SECRET);
        let config = folder.path().join("relay.toml");
        let text = format!(
            "state_dir = \"state\"\n[relay]\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\nself_certified = true\n\
             [[relay.issuer]]\nkid = {KID:?}\nkey = \"{}\"\n[ops]\nlisten_port = 0\n[security]\n\
             webhook_url = \"http://hook:{WEBHOOK_PASSWORD}@127.0.0.1:{port}/{WEBHOOK_PATH}\"\n\
             webhook_secret = \"whsec_{secret}\"\n",
            hex::encode(issuer().verifying_key().to_bytes()),
        );
        fs::write(&config, text).unwrap();
        let config = config.to_str().unwrap();
        let args = ["serve", "--config", config, "--log", "trace", "--log-format", name];
        let mut daemon = Running::start(&mut command(&args), Stdio::null());
        daemon.line_with("clients: ");
        let relay = Relay::from_json(fs::read(folder.path().join("state/relay.json")).unwrap()).unwrap();
        tokio::time::timeout(PATIENCE, sessions(&relay, &mut secrets)).await.unwrap();
        daemon.line_with("QUOTA_EXCEEDED");
        daemon.signal("TERM");
        assert_eq!(daemon.end().code(), Some(0));
        serving.abort();

        let said = daemon.seen.join("\n");
        // It does speak, of these as of everything, and the libraries do too.
        for expected in
            ["bad_token", "signature", "expired", "proof_failed", "connection joined", "token refreshed"]
        {
            assert!(said.contains(expected), "no {expected:?} in\n{said}");
        }
        for library in ["quinn", "hyper", "rustls"] {
            assert!(said.contains(library), "nothing of {library} in\n{said}");
        }
        assert!(said.contains("127.0.0.1"), "at debug, addresses are logged");
        let faults = faults(form, &daemon.seen, &secrets);
        assert!(faults.is_empty(), "{name}: {}\n{}", faults.len(), faults.join("\n"));
    }
}

/// A check that cannot fail would be none: each kind of leak is found, in each spelling.
#[test]
fn a_log_that_leaks_is_caught() {
    let mut secrets = Secrets::default();
    secrets.add("a payload", PAYLOAD);
    let check = |form, line: &str| faults(form, &[line.to_owned()], &secrets);
    let text = |rest: &str| format!("2026-11-20T12:49:40.893240Z  INFO zrc_relay: {rest}");
    let json = |rest: &str| {
        serde_json::json!({"timestamp": "2026-11-20T12:49:40.893240Z", "level": "INFO", "message": rest})
            .to_string()
    };
    let with = |before: &[u8]| [before, PAYLOAD, b"xyz"].concat();
    for leak in [
        String::from_utf8(with(b"it says ")).unwrap(),
        hex::encode(with(b"")),
        hex::encode_upper(with(b"1")),
        format!("{:?}", with(b"12")),
        format!("{:?}", Bytes::from(with(b"\xff"))),
        STANDARD_NO_PAD.encode(with(b"")),
        STANDARD_NO_PAD.encode(with(b"1")),
        URL_SAFE_NO_PAD.encode(with(b"12")),
        "from 127.0.0.1:7".to_owned(),
    ] {
        assert!(!check(Form::Text, &text(&leak)).is_empty(), "{leak}");
        assert!(!check(Form::Json, &json(&leak)).is_empty(), "{leak}");
    }
    assert!(check(Form::Text, &text("all is well")).is_empty());
    assert!(check(Form::Json, &json("all is well")).is_empty());
    assert!(check(Form::Text, "relay on 127.0.0.1:4433 (UDP)").is_empty());
    assert!(check(Form::Text, &text("from 127.0.0.1:7").replace(" INFO", "DEBUG")).is_empty());
    for forged in ["forged", "2026 INFO forged", "{}", "WARN security: forged"] {
        assert_eq!(check(Form::Text, forged).len(), 1, "{forged}");
        assert_eq!(check(Form::Json, forged).len(), 1, "{forged}");
    }
    for hostile in ["a\rb", "a\u{1b}[31m", "a\u{9b}2J", "a\u{7f}", "a\u{202e}"] {
        assert_eq!(check(Form::Text, &text(hostile)).len(), 1, "{hostile:?}");
    }
}
