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

const PATIENCE: Duration = Duration::from_secs(60);

/// A chain and a key in PEM, for this name, until this year.
fn certificate(name: &str, until: i32) -> (String, String) {
    certificate_for(&[name], until)
}

/// The same, for several names.
fn certificate_for(names: &[&str], until: i32) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
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

/// What the log says when there is one.
const ANOTHER: &str = "new connections are shown another certificate";

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
    served.said(ANOTHER).await;
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
    let said = served.said(ANOTHER).await;
    assert!(said.contains("self-signed"), "{said}");
    let shown = served.relay.process.seen.iter().filter(|line| line.contains(ANOTHER)).count();
    assert_eq!(shown, 2, "{:#?}", served.relay.process.seen);
    let own = served.described();
    assert_eq!(own["server_name"], "zrc-relay");
    served.connect(&own, Role::Peer).await.unwrap();
    assert!(device.is_connected());
}

/// As certbot and Kubernetes do: what the configuration names is a link, or lies behind one, and another one takes its
/// place. The configuration lies elsewhere, so that its folder is watched for the links' sake alone.
#[test]
fn r8_a_certificate_behind_links_is_noticed() {
    // What the configuration names, and each link with what it leads to for one version.
    type Links = &'static [(&'static str, &'static str)];
    let cases: [(&str, Links); 3] = [
        (
            "certs",
            &[
                ("certs/chain.pem", "../archive/VERSION/chain.pem"),
                ("certs/key.pem", "../archive/VERSION/key.pem"),
            ],
        ),
        ("certs", &[("certs/..data", "../archive/VERSION")]),
        ("certs/current", &[("certs/current", "../archive/VERSION")]),
    ];
    for (named, links) in cases {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["etc", "certs", "archive", "archive/v1", "archive/v2"] {
            fs::create_dir(at(name)).unwrap();
        }
        put(&at("archive/v1"), &certificate("a.example", 2100));
        put(&at("archive/v2"), &certificate("a.example", 2102));
        let link = |version: &str| {
            for (name, to) in links {
                std::os::unix::fs::symlink(to.replace("VERSION", version), at("certs/new")).unwrap();
                fs::rename(at("certs/new"), at(name)).unwrap();
            }
        };
        link("v1");
        if links[0].0.ends_with("..data") {
            for name in ["chain.pem", "key.pem"] {
                std::os::unix::fs::symlink(format!("..data/{name}"), at("certs").join(name)).unwrap();
            }
        }
        fs::write(at("etc/relay.toml"), config(&FILES.replace("= \"", &format!("= \"../{named}/")))).unwrap();
        let config = at("etc/relay.toml").to_str().unwrap().to_owned();
        let mut relay = Relay::start(&["serve", "--config", &config], tempfile::tempdir().unwrap());
        let expires = |relay: &Relay, year| {
            let wanted = format!("\nzrc_relay_certificate_expiry_timestamp_seconds {}\n", unix(year));
            relay.get("/metrics").1.contains(&wanted)
        };
        assert!(expires(&relay, 2100), "{links:?}");
        link("v2");
        relay.process.line_with(ANOTHER);
        assert!(expires(&relay, 2102), "{links:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r8_another_server_name_is_told_while_it_runs() {
    const TOLD: &str = "clients are told another server_name";
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), &certificate_for(&["a.example", "b.example"], 2100));
    let mut served = Served::start_with(folder);
    let before = served.described();
    assert_eq!(before["server_name"], "a.example");
    let path = served.folder().join("relay.toml");
    let device = served.connect(&before, Role::Device).await.unwrap();
    let named = |files: &str, name: &str| {
        fs::write(path.with_extension("new"), config(&format!("{files}server_name = {name:?}\n"))).unwrap();
        fs::rename(path.with_extension("new"), &path).unwrap();
    };
    // Of the same certificate.
    named(FILES, "b.example");
    served.said(TOLD).await;
    let after = served.described();
    assert_eq!((&after["server_name"], &after["spki"]), (&"b.example".into(), &before["spki"]));
    // One that the certificate is not for changes nothing.
    named(FILES, "c.example");
    let fault = served.said("fault in the configuration").await;
    assert!(fault.contains("relay.server_name"), "{fault}");
    assert_eq!(served.described(), after);
    // Its own certificate is made for each.
    for name in ["c.example", "d.example"] {
        named("", name);
        served.said(TOLD).await;
        let said = served.said(ANOTHER).await;
        assert!(said.contains("self-signed") && said.contains(name), "{said}");
        let own = served.described();
        assert_eq!(own["server_name"], name);
        served.connect(&own, Role::Peer).await.expect("the pin of its own");
    }
    assert!(device.is_connected());
    // No restart was asked for.
    let restart = "keys have changed that are read at the next start";
    assert!(!served.relay.process.seen.iter().any(|line| line.contains(restart)));
}

#[test]
fn r7_2_a_certificate_that_has_expired_is_said() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), &certificate("a.example", 2021));
    let path = folder.path().join("relay.toml");
    fs::write(&path, config(FILES)).unwrap();
    let mut relay = Relay::start(&["serve", "--config", path.to_str().unwrap()], folder);
    let words = "the certificate has expired";
    let said = relay.process.line_somewhere_with(words);
    assert!(said.contains("ERROR") && said.contains("2021-01-01"), "{said}");
    // Once, until an hour has gone by.
    relay.process.signal("HUP");
    relay.process.line_with("configuration read again");
    relay.process.signal("TERM");
    assert!(relay.process.end().success());
    let times = relay.process.seen.iter().filter(|line| line.contains(words)).count();
    assert_eq!(times, 1, "{:#?}", relay.process.seen);
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
        relay.process.line_with(ANOTHER);
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
    assert_eq!(served.relay.get("/ready").0, 200);
    let ready: serde_json::Value = serde_json::from_str(&served.relay.get("/readyz?verbose").1).unwrap();
    let checks = ready["checks"].as_array().unwrap();
    let certificate = checks.iter().find(|check| check["name"] == "certificate").unwrap();
    let said = certificate["detail"].as_str().unwrap();
    assert!(said.contains("has expired") && said.contains("2021-01-01"), "{said}");
}
