//! R5.3: no payload, token or key is ever logged, and no address above debug, whatever a client does.

use std::{
    fmt::{self, Write as _},
    sync::{Arc, Mutex},
    time::Duration,
};

use ed25519_dalek::SigningKey;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context, layer::SubscriberExt as _, registry::LookupSpan};
use zrc_relay::{
    client::{Relay, Ticket},
    clock::Clock,
    guard::{EventSettings, GuardSettings, SecurityEvents, TARGET},
    metrics::Metrics,
    relay::{Admission, DATAGRAM_RECEIVE_BUFFER_BYTES, RelayConfig, RelayServer, TlsIdentity},
    table::{Rules, Tier},
    wire::{AllocationId, Descriptor, DeviceId, PeerId, RelayId, SignedToken, TokenFields},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Everything this crate logs, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(Level, String)>>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let target = event.metadata().target();
        if target.starts_with("zrc_relay") || target == TARGET {
            let mut line = Line(String::new());
            event.record(&mut line);
            self.0.lock().unwrap().push((*event.metadata().level(), line.0));
        }
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

/// All the ways in which bytes could show up in a text.
fn spellings(bytes: &[u8]) -> Vec<String> {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("{bytes:?}");
    vec![hex.to_uppercase(), hex, list[1..list.len() - 1].to_owned()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r5_3_no_payload_token_key_or_address_is_logged() {
    let log = Log::default();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(log.clone())).unwrap();

    let certified = rcgen::generate_simple_self_signed(["relay".to_owned()]).unwrap();
    let relay_id = RelayId::random().unwrap();
    let clock = Clock::start();
    let metrics = Arc::new(Metrics::new().unwrap());
    let security = SecurityEvents::new(clock, metrics.clone(), EventSettings::default());
    let server = RelayServer::start(
        RelayConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            relay_id,
            public_addr: None,
            tls: TlsIdentity {
                chain: vec![certified.cert.der().clone()],
                key: certified.signing_key.serialize_der().try_into().unwrap(),
            },
            admission: Admission {
                self_certified: Some(Tier::default()),
                max_token_lifetime: Duration::from_secs(3600),
                ..Admission::default()
            },
            rules: Rules {
                max_allocations: 10,
                max_ledger: 100,
                connections_per_role: 4,
                allocation_timeout: Duration::from_secs(3600),
                idle_timeout: Duration::from_secs(30),
                pair_timeout: Duration::from_secs(30),
            },
            guard: GuardSettings::default(),
            global_bytes_per_sec: None,
            max_unauthenticated: 10,
            datagram_receive_buffer_bytes: DATAGRAM_RECEIVE_BUFFER_BYTES,
            keepalive: None,
            shards: None,
            raw_channel: true,
        },
        clock,
        metrics,
        security,
    )
    .unwrap();
    let addr = server.local_addr();
    let relay = Relay::new(Descriptor {
        addr: addr.ip().to_string(),
        port: addr.port(),
        server_name: "relay".to_owned(),
        spki: Some(server.spki()),
        relay_id,
        region: None,
    });

    let (device, peer) = (SigningKey::from_bytes(&[0xd1; 32]), SigningKey::from_bytes(&[0xe2; 32]));
    let token = |expires_at_unix, last: u8| {
        TokenFields {
            relay_id,
            allocation_id: AllocationId([last; 16]),
            device_id: DeviceId(device.verifying_key().to_bytes()),
            peer_id: PeerId(peer.verifying_key().to_bytes()),
            expires_at_unix,
            bandwidth_bytes_per_sec: 0,
            quota_bytes: 30_000,
        }
        .sign(&device)
    };
    let good = token(clock.unix_secs() + 600, 1);
    let expired = token(5, 2);
    let payload = b"canary-in-the-coal-mine".repeat(20);
    tokio::time::timeout(PATIENCE, async {
        // A refused one, with an agent that would like to write log lines of its own.
        let mut options = relay.options().clone();
        options.agent = "agent\r\nERROR forged\u{1b}[31m".to_owned();
        let late = Ticket::device(expired.clone(), device.clone()).unwrap();
        relay.connect(late).await.unwrap_err();
        // A whole session: datagrams, streams, refresh, quota, the end.
        let ticket = Ticket::device(good.clone(), device.clone()).unwrap();
        let here = relay.clone().with_options(options).connect(ticket).await.unwrap();
        let there = relay.connect(Ticket::peer(good.clone(), peer.clone()).unwrap()).await.unwrap();
        here.peer_arrived().await.unwrap();
        here.send_datagram(payload.clone().into()).unwrap();
        assert_eq!(there.recv_datagram().await.unwrap(), payload);
        let mut stream = here.open_uni().await.unwrap();
        stream.write_all(&payload.repeat(100)).await.unwrap();
        there.closed().await;
        here.closed().await;
    })
    .await
    .unwrap();
    server.shutdown(Duration::from_secs(2)).await;

    let lines = log.0.lock().unwrap().clone();
    let text: String = lines.iter().map(|(level, line)| format!("{level}{line}\n")).collect();
    // The log does speak: of the allocation, of its end, of the agent.
    for expected in ["allocation created", "QUOTA_EXCEEDED", "connection joined", "token refused", "expired"]
    {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
    let mut secrets = vec![String::from("canary")];
    for token in [&good, &expired] {
        secrets.push(SignedToken::to_text(token)[200..].to_owned());
        secrets.extend(spellings(&token.signature()[..16]));
    }
    for key in [&device, &peer] {
        secrets.extend(spellings(&key.to_bytes()[..16]));
        secrets.extend(spellings(&key.verifying_key().to_bytes()[..16]));
    }
    for secret in &secrets {
        assert!(!text.contains(secret.as_str()), "{secret} is in\n{text}");
    }
    for (level, line) in &lines {
        assert!(!line.contains(['\r', '\n', '\u{1b}']), "unescaped: {line:?}");
        if *level <= Level::INFO {
            assert!(!line.contains("127.0.0.1"), "an address at {level}: {line}");
        }
    }
}
