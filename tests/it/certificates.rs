//! The certificate of a relay that runs: another one takes its place while sessions go on.

use std::{fs, path::Path, time::Duration};

use ed25519_dalek::SigningKey;
use tokio::time::timeout;
use zrc_relay::{
    client::{Relay as Target, Session, Ticket},
    clock::Clock,
    wire::{AllocationId, DeviceId, PeerId, PublicKey, Role, SignedToken, TokenFields},
};

use crate::cli_serve::Relay;

const PATIENCE: Duration = Duration::from_secs(30);

/// A chain and a key in PEM, for this name, until this year.
fn certificate(name: &str, until: i32) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn put(folder: &Path, (chain, key): &(String, String)) {
    for (name, text) in [("chain.pem", chain), ("key.pem", key)] {
        fs::write(folder.join("new"), text).unwrap();
        fs::rename(folder.join("new"), folder.join(name)).unwrap();
    }
}

fn config(more: &str) -> String {
    format!(
        "state_dir = \"state\"\n[relay]\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\nself_certified = true\n\
         {more}[ops]\nlisten_port = 0\n"
    )
}

const FILES: &str = "quic_cert_path = \"chain.pem\"\nquic_key_path = \"key.pem\"\n";

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

struct Served {
    relay: Relay,
    token: SignedToken,
}

impl Served {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), &certificate("a.example", 2100));
        Self::start_with(folder)
    }

    /// With the certificate in this folder.
    fn start_with(folder: tempfile::TempDir) -> Self {
        let path = folder.path().join("relay.toml");
        fs::write(&path, config(FILES)).unwrap();
        let relay = Relay::start(&["serve", "--config", path.to_str().unwrap()], folder);
        let described = fs::read(relay.descriptor()).unwrap();
        let fields = TokenFields {
            relay_id: Target::from_json(described).unwrap().descriptor().relay_id,
            allocation_id: AllocationId::random().unwrap(),
            device_id: DeviceId(*PublicKey::from(&key(1)).as_bytes()),
            peer_id: PeerId(*PublicKey::from(&key(2)).as_bytes()),
            expires_at_unix: Clock::start().unix_secs() + 3600,
            bandwidth_bytes_per_sec: 0,
            quota_bytes: 0,
        };
        Self { relay, token: fields.sign(&key(1)) }
    }

    /// How clients find it now; the file and the page say the same.
    fn described(&self) -> serde_json::Value {
        let file = serde_json::from_slice(&fs::read(self.relay.descriptor()).unwrap()).unwrap();
        let (_, page) = self.relay.get("/.well-known/zrc-relay");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&page).unwrap(), file);
        file
    }

    async fn connect(&self, described: &serde_json::Value, role: Role) -> Option<Session> {
        let key = key(if role == Role::Device { 1 } else { 2 });
        let ticket = Ticket::new(self.token.clone(), role, key).unwrap();
        let target = Target::from_json(described.to_string()).unwrap();
        timeout(PATIENCE, target.connect(ticket)).await.expect("no answer").ok()
    }

    fn expiry(&self) -> i64 {
        let (_, metrics) = self.relay.get("/metrics");
        let name = "zrc_relay_certificate_expiry_timestamp_seconds ";
        metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
    }

    async fn said(&mut self, wanted: &'static str) -> String {
        tokio::task::block_in_place(|| self.relay.process.line_with(wanted))
    }

    fn folder(&self) -> &Path {
        self.relay.folder.path()
    }
}

fn unix(year: i32) -> i64 {
    rcgen::date_time_ymd(year, 1, 1).unix_timestamp()
}

#[tokio::test(flavor = "multi_thread")]
async fn r8_a_renewed_certificate_is_shown_to_new_clients_and_sessions_go_on() {
    let mut served = Served::start();
    let before = served.described();
    assert_eq!((served.expiry(), before["server_name"].as_str()), (unix(2100), Some("a.example")));
    let device = served.connect(&before, Role::Device).await.unwrap();

    // A key that is another one's: what is in force stays, and the log says why.
    let other = certificate("b.example", 2101);
    put(served.folder(), &(other.0.clone(), certificate("b.example", 2101).1));
    let fault = served.said("fault in the configuration").await;
    assert!(fault.contains("relay.quic_cert_path") && fault.contains("line 6"), "{fault}");
    assert_eq!(served.described(), before);
    served.connect(&before, Role::Device).await.expect("the last good one is still shown");

    put(served.folder(), &other);
    served.said("new connections are shown another certificate").await;
    let after = served.described();
    assert_eq!((served.expiry(), after["server_name"].as_str()), (unix(2101), Some("b.example")));
    assert_ne!(after["spki"], before["spki"]);
    // Whoever trusts the old pin stays out; whoever reads relay.json again comes in.
    assert!(served.connect(&before, Role::Peer).await.is_none());
    let peer = served.connect(&after, Role::Peer).await.unwrap();
    assert!(device.is_connected());
    peer.send_datagram("from a client of the new one".into()).unwrap();
    let heard = timeout(PATIENCE, device.recv_datagram()).await.unwrap().unwrap();
    assert_eq!(heard, "from a client of the new one");

    // On SIGHUP an unchanged one is nothing new, and disturbs nobody.
    served.relay.process.signal("HUP");
    served.said("configuration read again").await;
    assert_eq!(served.described(), after);

    // Without files the relay goes back to its own.
    fs::write(served.folder().join("relay.toml"), config("")).unwrap();
    let said = served.said("new connections are shown another certificate").await;
    assert!(said.contains("self-signed"), "{said}");
    let own = served.described();
    assert_eq!(own["server_name"], "zrc-relay");
    served.connect(&own, Role::Peer).await.unwrap();
    assert!(device.is_connected());
}

/// As certbot and Kubernetes do: what the configuration names is a link, and another one takes its place.
#[tokio::test(flavor = "multi_thread")]
async fn r8_a_certificate_behind_links_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    for (name, year) in [("v1", 2100), ("v2", 2102)] {
        fs::create_dir(folder.path().join(name)).unwrap();
        put(&folder.path().join(name), &certificate("a.example", year));
    }
    let link = |to: &str| {
        let (new, live) = (folder.path().join("new-link"), folder.path().join("live"));
        std::os::unix::fs::symlink(to, &new).unwrap();
        fs::rename(new, live).unwrap();
    };
    link("v1");
    let path = folder.path().join("relay.toml");
    fs::write(&path, config(&FILES.replace("= \"", "= \"live/"))).unwrap();
    // The folder itself is what is watched where the files are reached through it.
    for name in ["chain.pem", "key.pem"] {
        std::os::unix::fs::symlink(format!("live/{name}"), folder.path().join(name)).unwrap();
    }
    fs::write(&path, config(FILES)).unwrap();
    let other = tempfile::tempdir().unwrap();
    let mut relay = Relay::start(&["serve", "--config", path.to_str().unwrap()], other);
    link("v2");
    tokio::task::block_in_place(|| relay.process.line_with("new connections are shown another certificate"));
    assert!(relay.get("/metrics").1.contains(&format!("expiry_timestamp_seconds {}", unix(2102))));
}

#[test]
fn r7_2_a_certificate_that_has_expired_is_said() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), &certificate("a.example", 2021));
    let path = folder.path().join("relay.toml");
    fs::write(&path, config(FILES)).unwrap();
    let mut relay = Relay::start(&["serve", "--config", path.to_str().unwrap()], folder);
    // The log has a thread of its own: its lines come before or after what the relay says.
    let words = "the certificate has expired";
    let seen = relay.process.seen.iter().find(|line| line.contains(words)).cloned();
    let said = seen.unwrap_or_else(|| relay.process.line_with(words));
    assert!(said.contains("ERROR") && said.contains("2021-01-01"), "{said}");
}

/// A certificate for the relay's own key, as it has signed one 400 s ago that it signs anew `lead_secs` from now.
fn sign_own(state: &Path, lead_secs: u64) -> u64 {
    let key = rcgen::KeyPair::from_pem(&fs::read_to_string(state.join("key.pem")).unwrap()).unwrap();
    let due = Clock::start().unix_secs() + lead_secs;
    let at = |unix_secs| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(unix_secs);
    let mut params = rcgen::CertificateParams::new(["zrc-relay".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (at(due - 400), at(due + 200));
    fs::write(state.join("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    due + 200
}

#[test]
fn r7_2_its_own_certificate_is_signed_anew_while_it_runs() {
    const METRIC: &str = "zrc_relay_certificate_expiry_timestamp_seconds";
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let path = folder.path().join("relay.toml");
    fs::write(&path, config("")).unwrap();
    let mut relay = Relay::start(&["serve", "--config", path.to_str().unwrap()], folder);
    let before = fs::read_to_string(relay.descriptor()).unwrap();
    let key = fs::read(state.join("key.pem")).unwrap();
    for lead_secs in [2, 20, 200] {
        let Relay { process, folder, .. } = relay;
        drop(process);
        let until = sign_own(&state, lead_secs);
        relay = Relay::start(&["serve", "--config", path.to_str().unwrap()], folder);
        if !relay.get("/metrics").1.contains(&format!("{METRIC} {until}\n")) {
            // The start took longer than that, and it was renewed then.
            continue;
        }
        relay.process.line_with("new connections are shown another certificate");
        let (_, metrics) = relay.get("/metrics");
        let expiry = metrics.lines().find_map(|line| line.strip_prefix(METRIC)?.strip_prefix(' '));
        let expiry: u64 = expiry.unwrap().parse().unwrap();
        assert!((363..=365).contains(&((expiry - Clock::start().unix_secs()) / 86_400)), "{expiry}");
        let (_, ready) = relay.get("/ready?verbose");
        assert!(ready.contains("self-signed, expires 20"), "{ready}");
        // Clients pin the key, and it is the same.
        assert_eq!(fs::read(state.join("key.pem")).unwrap(), key);
        let pin = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["spki"].clone();
        assert_eq!(pin(&relay.get("/.well-known/zrc-relay").1), pin(&before));
        return;
    }
    panic!("the machine is too slow for this test");
}

/// Nothing makes an operator's certificate good again but another one: those who pin its key come in, and the relay says
/// what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn r7_2_past_the_end_of_its_certificate_a_relay_serves_those_who_pin_its_key() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), &certificate("a.example", 2021));
    let served = Served::start_with(folder);
    assert_eq!(served.expiry(), unix(2021));
    served.connect(&served.described(), Role::Device).await.expect("pinned");
    let (status, ready) = served.relay.get("/ready?verbose");
    assert!(status == 200 && ready.contains("expires 2021-01-01"), "{status} {ready}");
}
