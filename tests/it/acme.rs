//! Certificates by ACME, from Debian's `pebble`, an authority for tests, and its challenge test server, which is a DNS.
//!
//! `tests/run.sh acme` installs both and runs these; without them there is nothing to test against.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    time::Duration,
};

use rustls::pki_types::PrivatePkcs8KeyDer;
use tempfile::TempDir;

use crate::cli_serve::Relay;

/// A process that does not outlive its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ports that nobody has, for both protocols: all are held until all are known.
fn free_ports<const N: usize>() -> [u16; N] {
    let held: Vec<_> = std::iter::repeat_with(|| {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind(tcp.local_addr().unwrap());
        (tcp, udp)
    })
    .filter(|(_, udp)| udp.is_ok())
    .take(N)
    .collect();
    std::array::from_fn(|n| held[n].0.local_addr().unwrap().port())
}

#[allow(clippy::disallowed_methods, reason = "neither program says when it listens")]
fn until_it_listens(port: u16) {
    for _ in 0..600 {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("nobody listens on {port}");
}

/// An authority whose certificates are good for this many seconds, and a DNS in which all names are this machine.
struct Authority {
    folder: TempDir,
    port: u16,
    /// Where it asks for HTTP-01 challenges.
    http: u16,
    dns_management: u16,
    dns: u16,
    pebble: Option<Process>,
    _dns: Process,
}

impl Authority {
    fn start(validity_secs: u32) -> Self {
        let [port, management, http, tls, dns, dns_management] = free_ports();
        let folder = tempfile::tempdir().unwrap();
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        fs::write(folder.path().join("ca.pem"), certified.cert.pem()).unwrap();
        fs::write(folder.path().join("ca.key"), certified.signing_key.serialize_pem()).unwrap();
        let config = serde_json::json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": folder.path().join("ca.pem"),
            "privateKey": folder.path().join("ca.key"),
            "httpPort": http,
            "tlsPort": tls,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "certificateValidityPeriod": validity_secs,
        }});
        fs::write(folder.path().join("pebble.json"), config.to_string()).unwrap();
        let mut server = Command::new("pebble-challtestsrv");
        server.args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""]);
        server.args([
            "-dns01",
            &format!("127.0.0.1:{dns}"),
            "-management",
            &format!("127.0.0.1:{dns_management}"),
        ]);
        let server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let server =
            Process(server.expect("Debian's package pebble is needed: tests/run.sh acme installs it"));
        until_it_listens(dns_management);
        let mut authority = Self { folder, port, http, dns_management, dns, pebble: None, _dns: server };
        authority.come();
        authority
    }

    /// Starts, or starts anew, having forgotten all accounts.
    fn come(&mut self) {
        let mut pebble = Command::new("pebble");
        pebble.arg("-config").arg(self.folder.path().join("pebble.json"));
        pebble.args(["-dnsserver", &format!("127.0.0.1:{}", self.dns)]);
        pebble.env("PEBBLE_VA_NOSLEEP", "1").stdout(Stdio::null()).stderr(Stdio::null());
        self.pebble = Some(Process(pebble.spawn().unwrap()));
        until_it_listens(self.port);
    }

    fn go(&mut self) {
        self.pebble = None;
    }

    /// A configuration that asks it for a certificate.
    fn config(&self, more: &str) -> String {
        format!(
            "state_dir = \"state\"\n[relay]\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\nself_certified = true\n\
             [acme]\naccept_terms = true\ncontact = \"ops@example.com\"\ndirectory = \"https://127.0.0.1:{}/dir\"\n\
             ca_path = {:?}\nhttp_addr = \"127.0.0.1\"\n{more}",
            self.port,
            self.folder.path().join("ca.pem"),
        )
    }
}

fn serve(config: &str) -> Relay {
    serve_in(config, tempfile::tempdir().unwrap())
}

fn serve_in(config: &str, folder: TempDir) -> Relay {
    let path = folder.path().join("relay.toml");
    fs::write(&path, config).unwrap();
    Relay::start(&["serve", "--config", path.to_str().unwrap()], folder)
}

/// Waits for a certificate of the authority's; answers with how many there are in the chain.
fn certified(relay: &mut Relay) -> usize {
    let words = "new connections are shown another certificate";
    let said = relay.process.line_with(words);
    assert!(said.contains("acme"), "{said}");
    let chain = fs::read_to_string(relay.folder.path().join("state/acme-cert.pem")).unwrap();
    chain.matches("BEGIN CERTIFICATE").count()
}

fn metric(relay: &Relay, name: &str) -> i64 {
    let (_, metrics) = relay.get("/metrics");
    let found = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
}

const EXPIRY: &str = "zrc_relay_certificate_expiry_timestamp_seconds";
const RENEWED: &str = "zrc_relay_certificate_renewals_total{outcome=\"ok\"}";
const FAILED: &str = "zrc_relay_certificate_renewals_total{outcome=\"failed\"}";

fn described(relay: &Relay) -> serde_json::Value {
    serde_json::from_slice(&fs::read(relay.descriptor()).unwrap()).unwrap()
}

fn unix() -> i64 {
    i64::try_from(zrc_relay::clock::Clock::start().unix_secs()).unwrap()
}

/// An authority that shows its directory, never answers anything else, and tells of each time that it is asked that. Its
/// root is put into the folder as `ca.pem`.
fn silent(folder: &Path) -> (u16, mpsc::Receiver<()>) {
    let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    fs::write(folder.join("ca.pem"), certified.cert.pem()).unwrap();
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls =
        rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_no_client_auth().with_single_cert(vec![certified.cert.der().clone()], key.into());
    let tls = Arc::new(tls.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let url = format!("https://127.0.0.1:{port}/new");
    let directory = serde_json::json!({ "newNonce": url, "newAccount": url, "newOrder": url }).to_string();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{directory}",
        directory.len()
    );
    let (sender, asked) = mpsc::channel();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept() {
            let tls = rustls::ServerConnection::new(tls.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(tls, stream);
            let mut head = [0; 4];
            // Who is killed meanwhile asks nothing.
            if stream.read_exact(&mut head).is_err() {
                continue;
            }
            if &head == b"GET " {
                let mut rest = [0; 4096];
                let _ = stream.read(&mut rest);
                let _ = stream.write_all(answer.as_bytes());
                stream.conn.send_close_notify();
                let _ = stream.flush();
                continue;
            }
            held.push(stream);
            if sender.send(()).is_err() {
                break;
            }
        }
    });
    (port, asked)
}

#[test]
fn an_authority_that_cannot_be_reached_is_asked_at_once_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    // Its root, and nobody who listens.
    silent(folder.path());
    let [nobody] = free_ports();
    let mut relay = serve_in(&asking(nobody, "a.test", "dir"), folder);
    relay.process.line_somewhere_with("no certificate could be obtained");
    let file = relay.folder.path().join("state/acme-attempts.json");
    assert!(!file.exists(), "{}", fs::read_to_string(&file).unwrap_or_default());
}

/// A configuration that asks the authority on this port, with its root in `ca.pem`.
fn asking(port: u16, domain: &str, page: &str) -> String {
    format!(
        "state_dir = \"state\"\n[relay]\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\nself_certified = true\n\
         [acme]\naccept_terms = true\ndirectory = \"https://127.0.0.1:{port}/{page}\"\nhttp_port = 0\n\
         ca_path = \"ca.pem\"\ndomains = [{domain:?}]\n[ops]\nlisten_port = 0\n"
    )
}

#[test]
fn a_relay_that_crashes_again_and_again_does_not_ask_the_authority_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let (port, asked) = silent(folder.path());
    let patience = Duration::from_secs(60);
    let config = |domain: &str, page: &str| asking(port, domain, page);
    let first = config("a.test", "dir");
    // It is killed while it asks.
    let Relay { process, folder, .. } = serve_in(&first, folder);
    asked.recv_timeout(patience).unwrap();
    drop(process);
    let file = folder.path().join("state/acme-attempts.json");
    let mut kept: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(kept["failures"], 1);
    // As after some more of that; the waiting is then of hours, however slow this machine is.
    kept["failures"] = 6.into();
    fs::write(&file, kept.to_string()).unwrap();
    while asked.try_recv().is_ok() {}
    let mut relay = serve_in(&first, folder);
    let said = relay.process.line_somewhere_with("the authority is not asked yet");
    assert!(said.contains("WARN") && said.contains("failures=6"), "{said}");
    let retry: u64 = said.split("retry_secs=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((10_000..=21_600).contains(&retry), "{said}");
    assert_eq!(relay.get("/ready").0, 200);
    assert!(asked.try_recv().is_err(), "it was asked all the same");

    // What is asked for has changed, or nobody can say what was.
    let mut folder = relay.folder;
    drop(relay.process);
    for (config, damaged) in [
        (config("b.test", "dir"), None),
        (config("b.test", "other"), None),
        (config("b.test", "other"), Some("{\"failures\": 6")),
    ] {
        if let Some(damaged) = damaged {
            fs::write(&file, damaged).unwrap();
        }
        let relay = serve_in(&config, folder);
        asked.recv_timeout(patience).expect("it is asked at once");
        assert!(relay.process.seen.iter().all(|line| !line.contains("not asked yet")));
        drop(relay.process);
        while asked.try_recv().is_ok() {}
        let kept: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(kept["failures"], 1);
        folder = relay.folder;
    }
}

#[test]
#[ignore = "needs Debian's pebble: tests/run.sh acme"]
fn a_certificate_is_obtained_over_http_renewed_and_found_again() {
    let mut authority = Authority::start(30);
    let config = authority.config(&format!(
        "domains = [\"relay.test\", \"b.relay.test\"]\nhttp_port = {}\n[ops]\nlisten_port = 0\n",
        authority.http
    ));
    let mut relay = serve(&config);
    // It has not waited: clients are served with the relay's own certificate.
    let before = described(&relay);
    assert_eq!((&before["server_name"], relay.get("/ready").0), (&"relay.test".into(), 200));
    assert_eq!(certified(&mut relay), 2);
    let first = metric(&relay, EXPIRY);
    assert!((1..=31).contains(&(first - unix())), "{first}");
    // The same key has the same pin.
    assert_eq!(described(&relay), before);
    let state = relay.folder.path().join("state");
    let mode = |name: &str| fs::metadata(state.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("acme-account.json"), mode("acme-cert.pem")), (0o600, 0o644));
    let account = fs::read(state.join("acme-account.json")).unwrap();

    // Renewed with the same account, before the end.
    certified(&mut relay);
    assert!(metric(&relay, EXPIRY) > first);
    assert_eq!((metric(&relay, RENEWED), metric(&relay, FAILED)), (2, 0));
    assert_eq!(fs::read(state.join("acme-account.json")).unwrap(), account);

    // Without the authority a relay that starts anew has its certificate still.
    authority.go();
    relay.process.signal("TERM");
    assert!(relay.process.end().success());
    let Relay { folder, .. } = relay;
    let mut relay = serve_in(&config, folder);
    assert!(metric(&relay, EXPIRY) > first, "the authority's certificate is shown at once");
    let said = relay.process.line_somewhere_with("no certificate could be obtained");
    assert!(said.contains("WARN") && said.contains("retry_secs"), "{said}");
    assert_eq!((metric(&relay, FAILED), relay.get("/ready").0), (1, 200));
    assert!(!state.join("acme-attempts.json").exists(), "a restart does not wait");
    // One that has forgotten the account is asked for another.
    authority.come();
    certified(&mut relay);
    assert_ne!(fs::read(state.join("acme-account.json")).unwrap(), account);
    assert!(!state.join("acme-attempts.json").exists(), "what has succeeded is forgotten");
}

#[test]
#[ignore = "needs Debian's pebble: tests/run.sh acme"]
fn a_certificate_is_obtained_by_a_hook_that_writes_into_the_dns() {
    let authority = Authority::start(3600);
    let hook = authority.folder.path().join("hook");
    let script = format!(
        "#!/usr/bin/env python3\n\
         import json, sys, urllib.request\n\
         what, name, record, value = sys.argv[1:]\n\
         open({:?}, 'a').write(what + ' ' + name + '\\n')\n\
         path = 'set-txt' if what == 'present' else 'clear-txt'\n\
         body = json.dumps({{'host': record + '.', 'value': value}}).encode()\n\
         urllib.request.urlopen('http://127.0.0.1:{}/' + path, body)\n",
        authority.folder.path().join("said"),
        authority.dns_management,
    );
    fs::write(&hook, script).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o700)).unwrap();
    let config = authority.config(&format!(
        "domains = [\"relay.test\", \"*.other.test\"]\nchallenge = \"dns-01\"\ndns_hook = {hook:?}\ndns_wait = \"0s\"\n\
         [ops]\nlisten_port = 0\n"
    ));
    let mut relay = serve(&config);
    assert_eq!(certified(&mut relay), 2);
    let said = fs::read_to_string(authority.folder.path().join("said")).unwrap();
    let mut lines: Vec<_> = said.lines().collect();
    assert!(lines[..2].iter().all(|line| line.starts_with("present ")), "{said}");
    lines.sort_unstable();
    assert_eq!(
        lines,
        ["cleanup *.other.test", "cleanup relay.test", "present *.other.test", "present relay.test"]
    );
}

#[test]
#[ignore = "needs Debian's pebble: tests/run.sh acme"]
fn challenges_are_answered_on_the_ops_port_too() {
    let authority = Authority::start(3600);
    let config = authority.config(&format!(
        "domains = [\"relay.test\"]\nhttp_port = 0\n[ops]\nlisten_port = {}\n",
        authority.http
    ));
    let mut relay = serve(&config);
    certified(&mut relay);
    // Nothing is answered once it is over, and never what nobody asked for.
    assert_eq!(relay.get("/.well-known/acme-challenge/nonsense").0, 404);
}

#[test]
#[ignore = "needs Debian's pebble: tests/run.sh acme"]
fn an_authority_that_is_not_convinced_says_why() {
    let authority = Authority::start(3600);
    // Nobody answers where it asks.
    let [elsewhere] = free_ports();
    let config = authority
        .config(&format!("domains = [\"relay.test\"]\nhttp_port = {elsewhere}\n[ops]\nlisten_port = 0\n"));
    let mut relay = serve(&config);
    let said = relay.process.line_somewhere_with("no certificate could be obtained");
    assert!(said.contains("relay.test"), "{said}");
    assert_eq!(metric(&relay, FAILED), 1);
    // The port is let go of when nobody asks any more.
    assert!(TcpStream::connect(("127.0.0.1", elsewhere)).is_err());
    assert!(!Path::new(&relay.folder.path().join("state/acme-cert.pem")).exists());
}
