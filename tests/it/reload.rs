//! Who may have what, changed while `serve` runs: device file, tiers and issuers, by a change of a file and by SIGHUP.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::SigningKey;
use tokio::{net::TcpListener, time::timeout};
use zrc_relay::{
    client::{End, RefreshError, Relay as Target, Session, Ticket, TicketError},
    clock::Clock,
    guard::SigningKeys,
    wire::{
        AllocationId, AnyToken, CloseCode, DeviceId, IssuerFields, PeerId, PublicKey, RelayId, Role,
        TokenFields,
    },
};

use crate::{cli_serve::Relay, webhook::Request};

/// Longer than anything takes on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn hex(key: &SigningKey) -> String {
    DeviceId(*PublicKey::from(key).as_bytes()).to_string()
}

/// A relay for two devices in a file of their own, and for one issuer.
struct Served {
    relay: Relay,
    target: Target,
    relay_id: RelayId,
}

/// The devices of the file: `1` and `2`.
fn devices(first: &str, second: &str) -> String {
    let device = |seed, more: &str| {
        let id = hex(&key(seed));
        format!("[[device]]\nid = \"{id}\"\nkey = \"{id}\"\n{more}\n")
    };
    device(1, first) + &device(2, second)
}

fn config(gold_quota: u64) -> String {
    format!(
        "state_dir = \"state\"\n[relay]\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\n\
         device_file = \"devices.toml\"\n[[relay.tier]]\nname = \"gold\"\nquota = {gold_quota}\n\
         [[relay.issuer]]\nkid = \"k\"\nkey = \"{}\"\ntier = \"gold\"\n[ops]\nlisten_port = 0\n",
        hex(&key(5))
    )
}

impl Served {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("devices.toml"), devices("", "tier = \"gold\"")).unwrap();
        let path = folder.path().join("relay.toml");
        fs::write(&path, config(3_000_000)).unwrap();
        let relay = Relay::start(&["serve", "--config", path.to_str().unwrap()], folder);
        let target = Target::from_json(fs::read(relay.descriptor()).unwrap()).unwrap();
        let relay_id = target.descriptor().relay_id;
        Self { relay, target, relay_id }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.relay.folder.path().join(name)
    }

    /// Puts another file in its place, as a careful operator does.
    fn replace(&self, name: &str, text: &str) {
        let beside = self.file("new");
        fs::write(&beside, text).unwrap();
        fs::rename(beside, self.file(name)).unwrap();
    }

    fn token(&self, seed: u8) -> AnyToken {
        let fields = TokenFields {
            relay_id: self.relay_id,
            allocation_id: AllocationId::random().unwrap(),
            device_id: DeviceId(*PublicKey::from(&key(seed)).as_bytes()),
            peer_id: PeerId(*PublicKey::from(&key(9)).as_bytes()),
            expires_at_unix: Clock::start().unix_secs() + 3600,
            bandwidth_bytes_per_sec: 0,
            quota_bytes: 0,
        };
        fields.sign(&key(seed)).into()
    }

    /// Granted by the issuer to a device that nobody has pinned.
    fn issued(&self, seed: u8) -> AnyToken {
        let fields = IssuerFields {
            relay_id: self.relay_id,
            allocation_id: AllocationId::random().unwrap(),
            device_id: DeviceId(*PublicKey::from(&key(seed)).as_bytes()),
            peer_id: PeerId(*PublicKey::from(&key(9)).as_bytes()),
            expires_at_unix: Clock::start().unix_secs() + 3600,
            not_before_unix: None,
            bandwidth_bytes_per_sec: None,
            quota_bytes: None,
            tier: None,
        };
        fields.sign(&key(5), &"k".parse().unwrap()).unwrap().into()
    }

    async fn connect(&self, token: AnyToken, seed: u8) -> Result<Session, Option<CloseCode>> {
        let ticket = Ticket::new(token, Role::Device, key(seed)).unwrap();
        self.target.connect(ticket).await.map_err(|error| error.code())
    }

    /// Revokes the first device in its file: how long it takes until this session of its hears of it.
    async fn revoke(&mut self, session: &Session) -> Duration {
        #[allow(clippy::disallowed_methods, reason = "how long it takes by the clock of the operator")]
        let replaced = Instant::now();
        self.replace("devices.toml", &devices("revoked = true", "tier = \"gold\""));
        assert_eq!(ended(session).await, (Some(CloseCode::Killed), "device revoked".to_owned()));
        let took = replaced.elapsed();
        self.said("configuration read again").await;
        took
    }

    /// Waits until the relay has said that it has read its files, or why not.
    async fn said(&mut self, wanted: &'static str) -> String {
        tokio::task::block_in_place(|| self.relay.process.line_with(wanted))
    }
}

async fn ended(session: &Session) -> (Option<CloseCode>, String) {
    let end = timeout(PATIENCE, session.closed()).await.expect("it goes on");
    let End::Relay(refusal) = end else { panic!("{end}") };
    (Some(refusal.code), refusal.message.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn r8_revoking_a_device_in_its_file_ends_its_allocations_within_a_second() {
    let mut served = Served::start().await;
    let mut revoked = served.connect(served.token(1), 1).await.unwrap();
    let neighbour = served.connect(served.token(2), 2).await.unwrap();
    let issued = served.connect(served.issued(3), 3).await.unwrap();
    assert_eq!(neighbour.grant().quota_bytes, Some(3_000_000));
    assert_eq!(issued.grant().quota_bytes, Some(3_000_000));

    // A file with a fault changes nothing, and the log says where.
    served.replace("devices.toml", &devices("revoked = true", "tier = \"platinum\""));
    let fault = served.said("fault in the configuration").await;
    assert!(fault.contains("devices.toml: device[1].tier"), "{fault}");
    served.connect(served.token(1), 1).await.unwrap();

    // Others use this machine too: that is not what is measured.
    let mut fastest = served.revoke(&revoked).await;
    for _ in 0..4 {
        if fastest < Duration::from_secs(1) {
            break;
        }
        served.replace("devices.toml", &devices("", "tier = \"gold\""));
        served.said("configuration read again").await;
        revoked = served.connect(served.token(1), 1).await.unwrap();
        fastest = fastest.min(served.revoke(&revoked).await);
    }
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
    assert_eq!(served.connect(served.token(1), 1).await.err(), Some(Some(CloseCode::TokenInvalid)));
    // Not even an issuer lets it in.
    assert_eq!(served.connect(served.issued(1), 1).await.err(), Some(Some(CloseCode::TokenInvalid)));
    for session in [&neighbour, &issued] {
        assert!(session.is_connected(), "undisturbed");
    }
    // Written in place, the device is back: with a new allocation.
    fs::write(served.file("devices.toml"), devices("", "tier = \"gold\"")).unwrap();
    served.said("configuration read again").await;
    served.connect(served.token(1), 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn r8_a_changed_tier_is_felt_at_once() {
    let mut served = Served::start().await;
    let device = served.connect(served.token(2), 2).await.unwrap();
    let issued = served.connect(served.issued(3), 3).await.unwrap();
    let mut events = [device.events(), issued.events()];
    served.replace("relay.toml", &config(77));
    for events in &mut events {
        while !matches!(
            timeout(PATIENCE, events.recv()).await.expect("nothing was told"),
            Some(zrc_relay::client::Event::Refreshed { .. })
        ) {}
    }
    for session in [&device, &issued] {
        assert_eq!(session.grant().quota_bytes, Some(77));
    }
    served.said("configuration read again").await;
    // The issuer's key is another one: what it has granted ends, what devices have does not.
    let other = config(77).replace(&hex(&key(5)), &hex(&key(6)));
    served.replace("relay.toml", &other.replace("listen_port = 0\ndevice", "listen_port = 1\ndevice"));
    assert_eq!(ended(&issued).await.0, Some(CloseCode::Killed));
    // The port is another one too, which is not for a relay that runs.
    served.said("are read at the next start").await;
    assert!(device.is_connected());
    served.connect(served.token(2), 2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn r6_2_a_network_that_is_blocked_while_the_relay_runs_is_kept_out() {
    let mut served = Served::start().await;
    let device = served.connect(served.token(1), 1).await.unwrap();
    served.replace("relay.toml", &(config(3_000_000) + "[guard]\nblock = [\"127.0.0.0/8\"]\n"));
    served.said("configuration read again").await;
    assert_eq!(ended(&device).await.0, Some(CloseCode::Blocked));
}

#[tokio::test(flavor = "multi_thread")]
async fn r8_sighup_reads_again_what_nobody_noticed() {
    let mut served = Served::start().await;
    let device = served.connect(served.token(1), 1).await.unwrap();
    // Unchanged, it is read all the same, and nobody is disturbed.
    served.relay.process.signal("HUP");
    served.said("configuration read again").await;
    assert!(device.is_connected());
    fs::remove_file(served.file("devices.toml")).unwrap();
    served.relay.process.signal("HUP");
    served.said("what is in force stays").await;
    assert!(device.is_connected());
    served.replace("devices.toml", &devices("", ""));
    served.relay.process.signal("HUP");
    served.said("configuration read again").await;
    assert!(device.is_connected());
    served.relay.process.signal("TERM");
    assert!(tokio::task::block_in_place(|| served.relay.process.end()).success());
}

#[tokio::test(flavor = "multi_thread")]
async fn r8_limits_and_reports_change_without_disturbing_anybody() {
    let mut served = Served::start().await;
    let device = served.connect(served.token(1), 1).await.unwrap();
    let neighbour = served.connect(served.token(2), 2).await.unwrap();
    let unwelcome = |served: &Served| served.token(4);
    served.connect(unwelcome(&served), 4).await.unwrap_err();
    let line = served.said("event=\"bad_token\"").await;
    assert!(!line.contains("127.0.0.1"), "{line}");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let [first, second] = [[7_u8; 32], [8; 32]];
    let secret = |key: [u8; 32]| format!("# newest first\nwhsec_{}\n", STANDARD.encode(key));
    fs::write(served.file("secret"), secret(first)).unwrap();
    let limits = "max_allocations = 2\nglobal_bandwidth_limit = 1_000_000\nkeepalive_interval = \"5s\"\nmax_ledger = 7\n";
    let reports = format!(
        "[security]\nlog_addresses = true\nwebhook_url = \"http://{}/\"\nwebhook_secret_file = \"secret\"\n",
        listener.local_addr().unwrap()
    );
    let text = config(3_000_000).replace("device_file", &format!("{limits}device_file")) + &reports;
    served.replace("relay.toml", &text);
    served.said("configuration read again").await;
    let waits = served.said("are read at the next start").await;
    assert!(waits.contains("relay.keepalive_interval") && !waits.contains("max_"), "{waits}");
    // In force a moment after it was said, and shown when it is divided for the first time.
    let shown = |line: &str| served.relay.get("/metrics").1.contains(line);
    assert!((0..10_000).any(|_| shown("zrc_relay_global_limit_bytes_per_second 1000000\n")));
    assert!(shown("zrc_relay_max_allocations 2\n"));
    assert_eq!(served.connect(served.issued(3), 3).await.err(), Some(Some(CloseCode::Capacity)));
    for key in [first, second] {
        served.connect(unwelcome(&served), 4).await.unwrap_err();
        let line = served.said("event=\"bad_token\"").await;
        assert!(line.contains("127.0.0.1"), "{line}");
        let request = Request::read(&listener).await;
        let signed = SigningKeys::new(&[key]).sign(
            &request.headers["webhook-id"],
            request.headers["webhook-timestamp"].parse().unwrap(),
            &request.body,
        );
        assert_eq!(request.headers["webhook-signature"], signed);
        request.answer(200, "").await;
        // The file of the secret alone is another one.
        served.replace("secret", &secret(second));
        if key == first {
            served.said("configuration read again").await;
        }
    }
    served.replace("relay.toml", &config(3_000_000));
    served.said("security events are sent nowhere now").await;
    served.connect(served.issued(3), 3).await.unwrap();
    assert!(device.is_connected() && neighbour.is_connected(), "undisturbed");
}

/// The client library takes an issuer's token wherever it takes a device's.
#[tokio::test(flavor = "multi_thread")]
async fn r1_6_a_session_is_refreshed_with_an_issuers_token() {
    let served = Served::start().await;
    let fields = IssuerFields {
        relay_id: served.relay_id,
        allocation_id: AllocationId([7; 16]),
        device_id: DeviceId(*PublicKey::from(&key(3)).as_bytes()),
        peer_id: PeerId(*PublicKey::from(&key(9)).as_bytes()),
        expires_at_unix: Clock::start().unix_secs() + 600,
        not_before_unix: None,
        bandwidth_bytes_per_sec: None,
        quota_bytes: Some(1000),
        tier: None,
    };
    let mint = |fields: &IssuerFields| fields.sign(&key(5), &"k".parse().unwrap()).unwrap();
    // A ticket is for the key that the token names.
    let stranger = Ticket::peer(mint(&fields), key(8)).map(drop);
    assert_eq!(stranger, Err(TicketError::NotThePeer));
    let peer = served.target.connect(Ticket::peer(mint(&fields), key(9)).unwrap()).await.unwrap();
    assert_eq!(peer.grant().quota_bytes, Some(1000));
    let later = IssuerFields {
        expires_at_unix: fields.expires_at_unix + 60,
        quota_bytes: Some(2000),
        ..fields.clone()
    };
    let grant = peer.refresh(mint(&later)).await.unwrap();
    assert_eq!((grant.quota_bytes, grant.expires_at_unix), (Some(2000), later.expires_at_unix));
    // By another issuer it is another allocation, whatever else is the same.
    let other = later.sign(&key(5), &"k2".parse().unwrap()).unwrap();
    assert!(matches!(peer.refresh(other).await, Err(RefreshError::OtherAllocation)));
    assert!(peer.is_connected());
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_does_not_end_a_relay_without_a_configuration() {
    let mut relay = Relay::dev();
    relay.process.signal("HUP");
    tokio::task::block_in_place(|| relay.process.line_with("there is no configuration file"));
    relay.process.signal("TERM");
    assert!(tokio::task::block_in_place(|| relay.process.end()).success());
}
