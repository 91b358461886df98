//! The admin API of a relay that runs, with clients that are connected, and the commands that use it.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use ed25519_dalek::SigningKey;
use serde_json::Value;
use tokio::{join, time::timeout};
use zrc_relay::{
    client::{Relay as ClientRelay, Session, Ticket},
    clock::Clock,
    wire::{AllocationId, CloseCode, Descriptor, DeviceId, PeerId, Role, TokenFields},
};

use crate::{
    cli::{command, run},
    cli_serve::{Relay, Running},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A relay with the socket and TCP, and somebody's token.
pub(crate) struct Administered {
    pub(crate) relay: Relay,
    url: String,
    token_file: PathBuf,
}

impl Administered {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let config = folder.path().join("relay.toml");
        fs::write(
            &config,
            format!(
                "state_dir = {state:?}\n[relay]\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\n\
                 self_certified = true\n[ops]\nlisten_port = 0\n[admin]\nsocket = \"admin.sock\"\n\
                 listen_addr = \"127.0.0.1\"\nlisten_port = 0\n"
            ),
        )
        .unwrap();
        let mut relay = Relay::start(&["serve", "--config", config.to_str().unwrap()], folder);
        let line = relay.process.line_with("admin API and dashboard on http://");
        let url = format!("http://{}", line.split("http://").nth(1).unwrap().split(',').next().unwrap());
        let token_file = relay.folder.path().join("ann.token");
        Self { relay, url, token_file }
    }

    fn socket(&self) -> PathBuf {
        self.relay.folder.path().join("admin.sock")
    }

    pub(crate) fn state(&self) -> String {
        self.relay.folder.path().join("state").to_str().unwrap().to_owned()
    }

    pub(crate) fn config(&self) -> String {
        self.relay.folder.path().join("relay.toml").to_str().unwrap().to_owned()
    }

    /// Ends it as a crash does, and starts another one in its place.
    pub(crate) fn restart(&mut self, meanwhile: impl FnOnce()) {
        self.relay.process.signal("KILL");
        self.relay.process.end();
        meanwhile();
        let mut process = Running::start(&mut command(&["serve", "--config", &self.config()]), Stdio::null());
        let line = process.line_with("ops on http://");
        self.relay.ops = line.split("http://").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        process.line_with("clients:");
        self.relay.process = process;
    }

    /// `admin ARGS` by the socket: exit code, stdout, stderr.
    pub(crate) fn admin(&self, args: &[&str]) -> (i32, String, String) {
        let socket = self.socket();
        let all = [&["admin", "--socket", socket.to_str().unwrap()], args].concat();
        let ran = command(&all).output().unwrap();
        (
            ran.status.code().unwrap(),
            String::from_utf8(ran.stdout).unwrap(),
            String::from_utf8(ran.stderr).unwrap(),
        )
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let (code, out, err) = self.admin(&[args, &["--json"]].concat());
        assert_eq!(code, 0, "{args:?}: {err}");
        serde_json::from_str(&out).unwrap()
    }

    /// Kills an allocation, sees both ends told why, and answers how long that took.
    async fn kill(&self, id: &str, device: Session, peer: Session) -> Duration {
        let mut admin = UnixStream::connect(self.socket()).unwrap();
        let clock = Clock::start();
        write!(
            admin,
            "DELETE /admin/allocations/{id}?reason=too%20loud HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        // Not when the connections have been closed in order: when those who use them hear of it.
        let ends = timeout(PATIENCE, async { join!(device.recv_datagram(), peer.recv_datagram()) });
        let ends = ends.await.unwrap();
        let took = clock.mono();
        let mut answer = String::new();
        admin.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
        for end in [ends.0.unwrap_err(), ends.1.unwrap_err()] {
            assert_eq!(end.code(), Some(CloseCode::Killed), "{end:?}");
            assert!(end.to_string().contains("too loud"), "{end}");
        }
        took
    }

    async fn pair(&self) -> (Session, Session) {
        let descriptor: Descriptor =
            serde_json::from_slice(&fs::read(self.relay.descriptor()).unwrap()).unwrap();
        let key = || {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).unwrap();
            SigningKey::from_bytes(&seed)
        };
        let (device, peer) = (key(), key());
        let fields = TokenFields {
            relay_id: descriptor.relay_id,
            allocation_id: AllocationId::random().unwrap(),
            device_id: DeviceId(device.verifying_key().to_bytes()),
            peer_id: PeerId(peer.verifying_key().to_bytes()),
            expires_at_unix: Clock::start().unix_secs() + 3600,
            bandwidth_bytes_per_sec: 0,
            quota_bytes: 0,
        };
        let token = fields.sign(&device);
        let relay = ClientRelay::new(descriptor);
        let (one, other) = join!(
            relay.connect(Ticket::new(token.clone(), Role::Device, device).unwrap()),
            relay.connect(Ticket::new(token, Role::Peer, peer).unwrap())
        );
        let (one, other) = (one.unwrap(), other.unwrap());
        one.peer_arrived().await.unwrap();
        other.peer_arrived().await.unwrap();
        (one, other)
    }
}

#[tokio::test]
async fn r10_a_killed_allocation_is_over_within_100_ms_and_both_ends_read_why() {
    let relay = Administered::start();
    let (device, peer) = timeout(PATIENCE, relay.pair()).await.unwrap();
    device.send_datagram(vec![1; 100].into()).unwrap();
    timeout(PATIENCE, peer.recv_datagram()).await.unwrap().unwrap();
    let listed = relay.json(&["list"]);
    assert_eq!(listed["total"], 1);
    let id = listed["allocations"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(listed["allocations"][0]["sent"]["device"]["bytes"], 100);
    let shown = relay.json(&["show", &id[..6]]);
    assert_eq!((&shown["state"], shown["legs"].as_array().unwrap().len()), (&"paired".into(), 2));
    let (_, people, _) = relay.admin(&["list"]);
    assert!(people.contains(&id[..12]) && people.contains("paired"), "{people}");

    // Others use this machine too: that is not what is measured.
    let mut fastest = relay.kill(&id, device, peer).await;
    for _ in 0..10 {
        if fastest < Duration::from_millis(100) {
            break;
        }
        let (device, peer) = timeout(PATIENCE, relay.pair()).await.unwrap();
        let id = relay.json(&["list"])["allocations"][0]["id"].as_str().unwrap().to_owned();
        fastest = fastest.min(relay.kill(&id, device, peer).await);
    }
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
    let (code, _, err) = relay.admin(&["kill", &id]);
    assert_eq!(code, 1, "{err}");
    assert_eq!(relay.json(&["list"])["total"], 0);
    let audit = relay.json(&["audit", "show"]);
    let entries = audit["entries"].as_array().unwrap();
    assert_eq!(entries[0]["outcome"], "done");
    assert_eq!(entries.last().unwrap()["outcome"], "not_found");
}

#[tokio::test]
async fn r10_drain_refuses_ends_and_is_taken_back() {
    let relay = Administered::start();
    let (device, _peer) = timeout(PATIENCE, relay.pair()).await.unwrap();
    assert_eq!(relay.admin(&["drain", "--deadline", "1h"]).0, 0);
    assert_eq!(relay.relay.get("/ready").0, 503);
    assert!(timeout(Duration::from_secs(2), relay.pair()).await.is_err(), "it keeps trying elsewhere");
    assert_eq!(relay.admin(&["drain", "--undo"]).0, 0);
    assert_eq!(relay.admin(&["drain", "--undo"]).0, 1);
    assert_eq!(relay.relay.get("/ready").0, 200);
    timeout(PATIENCE, relay.pair()).await.unwrap();
    assert!(timeout(Duration::from_millis(10), device.closed()).await.is_err(), "who was there stays");
    assert_eq!(relay.json(&["drain", "--deadline", "0s"])["draining"], true);
    let refused = |relay: &Administered| {
        let stats = relay.json(&["stats"]);
        stats["allocations"]["ended"]["DRAINING"].as_u64()
    };
    timeout(PATIENCE, async {
        while refused(&relay) != Some(2) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    let (_, people, _) = relay.admin(&["stats"]);
    assert!(people.contains("ready           no (draining: an administrator wants nobody new)"), "{people}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r10_a_drain_is_waited_for_until_nobody_is_left() {
    let relay = Administered::start();
    let (device, _peer) = timeout(PATIENCE, relay.pair()).await.unwrap();
    let (other, _its_peer) = timeout(PATIENCE, relay.pair()).await.unwrap();
    let socket = relay.socket();
    let wait = |deadline: &str| {
        let args = ["admin", "--socket", socket.to_str().unwrap(), "drain", "--wait", "--deadline", deadline];
        let mut child = command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        tokio::task::spawn_blocking(move || child.wait().unwrap())
    };
    let waiting = wait("1h");
    let unready = async {
        while relay.relay.get("/ready").0 == 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, unready).await.unwrap();
    device.release().await.unwrap();
    other.send_datagram("who is there has all the time until then".into()).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished() && other.is_connected());
    other.release().await.unwrap();
    assert!(timeout(PATIENCE, waiting).await.unwrap().unwrap().success());
    // It is emptied, and stays so; with a deadline nobody is waited for any longer.
    assert_eq!(relay.relay.get("/ready").0, 503);
    assert_eq!(relay.admin(&["drain", "--undo"]).0, 0);
    let (_device, _peer) = timeout(PATIENCE, relay.pair()).await.unwrap();
    let waiting = wait("1s");
    assert!(timeout(PATIENCE, waiting).await.unwrap().unwrap().success());
    assert_eq!(relay.json(&["stats"])["allocations"]["ended"]["DRAINING"], 1);
    // A script that takes the machine away afterwards must not, when somebody has thought better of it.
    assert_eq!(relay.admin(&["drain", "--undo"]).0, 0);
    let (_device, _peer) = timeout(PATIENCE, relay.pair()).await.unwrap();
    let waiting = wait("1h");
    timeout(PATIENCE, async {
        while relay.relay.get("/ready").0 == 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(relay.admin(&["drain", "--undo"]).0, 0);
    assert_eq!(timeout(PATIENCE, waiting).await.unwrap().unwrap().code(), Some(1));
}

#[test]
fn r10_tokens_are_made_heeded_and_revoked_while_it_runs() {
    let relay = Administered::start();
    let state = relay.state();
    let new = |name: &str, role: &str| {
        run(&["admin", "token", "new", "--name", name, "--role", role, "--state-dir", &state])
    };
    let made = new("ann", "read");
    assert_eq!(made.exit, 0, "{}", made.stderr);
    let token = made.stdout.trim().to_owned();
    fs::write(&relay.token_file, &token).unwrap();
    let file = relay.relay.folder.path().join("state/admin.tokens");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!fs::read_to_string(&file).unwrap().contains(&token));
    assert_eq!(new("ann", "full").exit, 73, "one of each name");
    assert_eq!(new("a b", "full").exit, 2);
    let file = relay.token_file.to_str().unwrap();
    let by_url = |args: &[&str]| run(&[&["admin", "--url", &relay.url, "--token-file", file], args].concat());
    assert_eq!(by_url(&["stats"]).exit, 0);
    let refused = by_url(&["block", "203.0.113.7"]);
    assert_eq!(refused.exit, 1);
    assert!(refused.stderr.contains("role full"), "{}", refused.stderr);
    let listed = run(&["admin", "token", "list", "--state-dir", &state]);
    assert!(listed.stdout.starts_with("ann ") && listed.stdout.contains(" read "), "{}", listed.stdout);
    assert_eq!(run(&["admin", "token", "revoke", "ann", "--state-dir", &state]).exit, 0);
    let refused = by_url(&["stats"]);
    assert!(refused.exit == 1 && refused.stderr.contains("401"), "{}", refused.stderr);
    assert_eq!(run(&["admin", "token", "revoke", "ann", "--state-dir", &state]).exit, 1);
}

#[test]
fn r6_5_blocks_level_and_events_by_the_command_line() {
    let relay = Administered::start();
    let socket = relay.socket();
    let args = ["admin", "watch", "--json", "--socket", socket.to_str().unwrap()];
    let mut watch = Running::start(command(&args).env("ZRC_UNUSED", ""), Stdio::piped());
    let mut seen = std::io::BufReader::new(watch.child.stdout.take().unwrap());
    let mut line = String::new();
    let mut next = |wanted: &str| {
        use std::io::BufRead as _;
        loop {
            line.clear();
            assert_ne!(seen.read_line(&mut line).unwrap(), 0);
            if line.contains(wanted) {
                return line.clone();
            }
        }
    };
    next("\"hello\"");
    assert_eq!(relay.admin(&["block", "203.0.113.9/24", "--for", "1h", "--reason", "scans"]).0, 0);
    assert!(next("\"admin\"").contains("203.0.113.0/24"));
    let blocks = relay.json(&["block"]);
    assert_eq!((&blocks["total"], &blocks["blocks"][0]["reason"]), (&1.into(), &"scans".into()));
    let (_, people, _) = relay.admin(&["block"]);
    assert!(people.contains("203.0.113.0/24") && people.contains("scans"), "{people}");
    assert_eq!(relay.admin(&["unblock", "203.0.113.0/24"]).0, 0);
    assert_eq!(relay.admin(&["unblock", "203.0.113.0/24"]).0, 1);
    assert_eq!(relay.admin(&["log"]).1.trim(), "info");
    assert_eq!(relay.admin(&["log", "debug"]).0, 0);
    assert_eq!(relay.admin(&["log"]).1.trim(), "debug");
    assert_eq!(relay.admin(&["log", "loud"]).0, 1);
    let nobody = run(&["admin", "stats", "--socket", "/nonexistent/admin.sock"]);
    assert_eq!(nobody.exit, 69, "{}", nobody.stderr);
}

#[test]
fn r10_the_audit_log_outlives_kill_9_and_shows_what_was_changed() {
    let mut relay = Administered::start();
    for n in 0..3 {
        assert_eq!(relay.admin(&["block", &format!("203.0.113.{n}")]).0, 0);
    }
    let state = relay.state();
    let verify = || run(&["admin", "audit", "verify", "--state-dir", &state]);
    let whole = verify();
    assert!(
        whole.exit == 0 && whole.stdout.ends_with("3 lines in 1 file: nothing was changed\n"),
        "{whole:?}"
    );
    let path = relay.relay.folder.path().join("state/audit.jsonl");
    // A new start goes on behind it. The socket of the killed one does not stand in its way.
    relay.restart(|| {
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}{{\"seq\":4,\"at")).unwrap();
        let torn = verify();
        assert!(torn.exit == 0 && torn.stdout.contains("1 line cut off by a crash"), "{}", torn.stdout);
    });
    assert_eq!(relay.admin(&["block", "203.0.113.9"]).0, 0);
    let torn = verify();
    assert!(torn.exit == 0 && torn.stdout.contains("5 lines in 1 file: nothing"), "{}", torn.stdout);
    fs::write(&path, fs::read_to_string(&path).unwrap().replacen("203.0.113.1/", "203.0.113.8/", 1)).unwrap();
    let changed = verify();
    assert!(changed.exit == 1 && changed.stdout.contains("line 2 was changed"), "{}", changed.stdout);
}
