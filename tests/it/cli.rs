//! The binary as its users run it: what it prints where, and how it exits.

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt as _, net::UnixDatagram},
    },
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_zrc-relay");
const RELAY_ID: &str = "000102030405060708090a0b0c0d0e0f";
const RELAY: [&str; 4] = ["--relay", "127.0.0.1:4433", "--relay-id", RELAY_ID];

/// What a command did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) exit: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            exit: output.status.code().expect("an exit code"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A command that inherits nothing that changes what it does.
pub(crate) fn command<S: AsRef<str>>(args: &[S]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(args.iter().map(AsRef::as_ref)).env_remove("RUST_LOG");
    command
}

pub(crate) fn run<S: AsRef<str>>(args: &[S]) -> Ran {
    command(args).output().unwrap().into()
}

/// Two keys in a folder, and their ids.
pub(crate) struct Keys {
    folder: TempDir,
    pub(crate) device: String,
    peer: String,
}

impl Keys {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keygen = |name: &str| {
            let ran = run(&["keygen", "--out", folder.path().join(name).to_str().unwrap()]);
            assert_eq!(ran.exit, 0, "{ran:?}");
            ran.stdout.trim_end().to_owned()
        };
        let (device, peer) = (keygen("device.pem"), keygen("peer.pem"));
        Self { folder, device, peer }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn mint(&self, extra: &[&str]) -> Ran {
        let key = self.path("device.pem");
        run(&[&["token", "mint", "--device-key", &key, "--peer-id", &self.peer], &RELAY[..], extra].concat())
    }
}

/// Where a program's output comes in one message for each of its writes.
fn messages(socket: &UnixDatagram) -> Vec<String> {
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 4096];
    std::iter::from_fn(|| {
        let length = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
    })
    .collect()
}

#[test]
fn a_line_is_written_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key.pem");
    let ran = |expected| {
        let (stdout, program_stdout) = UnixDatagram::pair().unwrap();
        let (stderr, program_stderr) = UnixDatagram::pair().unwrap();
        let status = command(&["keygen", "--out", key.to_str().unwrap()])
            .stdout(OwnedFd::from(program_stdout))
            .stderr(OwnedFd::from(program_stderr))
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(expected));
        (messages(&stdout), messages(&stderr))
    };
    for (stdout, stderr) in [ran(0), ran(73)] {
        let lines: Vec<_> = [stdout, stderr].concat();
        assert!(!lines.is_empty());
        assert!(lines.iter().all(|line| line.ends_with('\n')), "{lines:?}");
    }
}

#[test]
fn keygen_makes_a_secret_file_and_prints_the_id() {
    let keys = Keys::new();
    assert!(keys.device.len() == 64 && keys.device.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')));
    assert_ne!(keys.device, keys.peer);
    let path = keys.path("device.pem");
    let pem = fs::read_to_string(&path).unwrap();
    assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----\n") && pem.ends_with("-----END PRIVATE KEY-----\n"));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let again = run(&["keygen", "--out", &path]);
    assert_eq!((again.exit, again.stdout.as_str()), (73, ""), "{again:?}");
    assert!(again.stderr.contains("is there already"), "{again:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), pem);

    let nowhere = run(&["keygen", "--out", &keys.path("none/device.pem")]);
    assert_eq!(nowhere.exit, 73, "{nowhere:?}");
}

#[test]
fn a_minted_token_is_what_was_asked_for_and_valid() {
    let keys = Keys::new();
    let allocation = "ff".repeat(16);
    let asked = ["--allocation-id", &allocation, "--ttl", "1h", "--bandwidth", "1000000", "--quota", "5000"];
    let minted = keys.mint(&asked);
    assert_eq!(minted.exit, 0, "{minted:?}");
    let token = minted.stdout.trim_end();
    assert_eq!(token.len(), 240);

    let inspected = run(&["token", "inspect", "--json", token]);
    assert_eq!(inspected.exit, 0, "{inspected:?}");
    let fields: serde_json::Value = serde_json::from_str(&inspected.stdout).unwrap();
    for (name, value) in [
        ("relay_id", RELAY_ID),
        ("allocation_id", &allocation),
        ("device_id", &keys.device),
        ("peer_id", &keys.peer),
    ] {
        assert_eq!(fields[name], value, "{name}");
    }
    assert_eq!((&fields["bandwidth_limit"], &fields["quota_bytes"]), (&1_000_000.into(), &5000.into()));
    let expires_at = fields["expires_at"].as_u64().unwrap();

    let readable = run(&["token", "inspect", token]);
    assert!(readable.exit == 0 && readable.stdout.contains(&format!("peer_id          {}\n", keys.peer)));
    assert!(readable.stdout.contains("1000000 bytes/s") && readable.stdout.contains("5000 bytes"));

    let verify = |change: &dyn Fn(&mut Vec<String>)| {
        let mut args = ["token", "verify", token, "--device-key-hex", &keys.device, "--relay-id", RELAY_ID]
            .map(String::from)
            .to_vec();
        args.extend(["--allocation-id".into(), allocation.clone()]);
        change(&mut args);
        run(&args)
    };
    let valid = verify(&|_| {});
    assert_eq!((valid.exit, valid.stdout.as_str()), (0, "valid\n"), "{valid:?}");

    let flipped = |at: usize| {
        let mut text = token.to_owned().into_bytes();
        text[at] = if text[at] == b'A' { b'B' } else { b'A' };
        String::from_utf8(text).unwrap()
    };
    let weak = format!("01{}", "00".repeat(31));
    let off_curve = format!("02{}", "00".repeat(31));
    let no_field_element = "ff".repeat(32);
    type Change<'a> = &'a dyn Fn(&mut Vec<String>);
    let later =
        |by: u64| move |args: &mut Vec<String>| args.extend(["--now".into(), (expires_at + by).to_string()]);
    let cases: [(&str, Change<'_>); 17] = [
        ("text", &|args| args[2].truncate(239)),
        ("text", &|args| args[2].push('A')),
        ("text", &|args| args[2].replace_range(0..1, "+")),
        ("text", &|args| args[2].clear()),
        ("signature", &|args| args[2] = flipped(0)),
        ("signature", &|args| args[2] = flipped(139)),
        ("signature", &|args| args[2] = flipped(200)),
        ("signature", &|args| args[4].clone_from(&keys.peer)),
        ("device_key", &|args| args[4].clone_from(&weak)),
        ("device_key", &|args| args[4].clone_from(&off_curve)),
        ("device_key", &|args| args[4].clone_from(&no_field_element)),
        ("device_key", &|args| args[4].truncate(62)),
        ("device_key", &|args| args[4] = "no key".into()),
        ("wrong_relay", &|args| args[6] = "00".repeat(16)),
        ("wrong_allocation", &|args| args[8] = "00".repeat(16)),
        ("expired", &later(0)),
        ("lifetime_too_long", &|args| args.extend(["--max-lifetime".into(), "3000".into()])),
    ];
    for (n, (reason, change)) in cases.into_iter().enumerate() {
        let ran = verify(change);
        assert_eq!((ran.exit, ran.stdout.trim_end()), (1, reason), "case {n}: {ran:?}");
        assert!(ran.stderr.starts_with("refused: "), "{ran:?}");
    }
    let last_second = verify(&|args| args.extend(["--now".into(), (expires_at - 1).to_string()]));
    assert_eq!(last_second.exit, 0, "{last_second:?}");
    let capped = verify(&|args| args.extend(["--max-lifetime".into(), "3600".into()]));
    assert_eq!(capped.exit, 0, "{capped:?}");
    for bad in [&["--now", "soon"][..], &["--max-lifetime", "-1"]] {
        assert_eq!(verify(&|args| args.extend(bad.iter().map(|&arg| arg.into()))).exit, 2);
    }
    assert_eq!(verify(&|args| args[6] = "00".into()).exit, 2);
}

/// One token in 64 begins with a dash, and what follows may look like any flag.
#[test]
fn a_token_may_begin_with_a_dash() {
    let keys = Keys::new();
    let text = |start: &str| format!("{start}{}", "A".repeat(240 - start.len()));
    for start in ["-", "--", "-h", "-V", "--help", "--json", "-hV", "--relay-id", "--now"] {
        let text = text(start);
        let inspected = run(&["token", "inspect", &text]);
        assert_eq!(inspected.exit, 0, "{start}: {inspected:?}");
        let flags = ["--device-key-hex", &keys.device, "--relay-id", RELAY_ID, "--allocation-id", RELAY_ID];
        for args in [
            [&["token", "verify", &text], &flags[..]].concat(),
            [&["token", "verify"], &flags[..], &[&text]].concat(),
            [&["token", "verify"], &flags[..], &["--", &text]].concat(),
        ] {
            let verified = run(&args);
            assert_eq!(
                (verified.exit, verified.stdout.as_str()),
                (1, "signature\n"),
                "{start}: {verified:?}"
            );
        }
    }
}

#[test]
fn an_issuers_token_is_minted_inspected_and_verified() {
    let keys = Keys::new();
    let (issuer, device) = (keys.path("device.pem"), keys.peer.clone());
    let mint = |extra: &[&str]| {
        let args = ["token", "mint", "--issuer-key", &issuer, "--kid", "k-1", "--peer-id", &keys.peer];
        run(&[&args[..], &RELAY[..], extra].concat())
    };
    let minted =
        mint(&["--device-id", &device, "--tier", "gold", "--bandwidth", "5000000000", "--quota", "7"]);
    assert_eq!(minted.exit, 0, "{minted:?}");
    let token = minted.stdout.trim_end();
    assert_eq!(token.matches('.').count(), 2, "{token}");
    let inspected = run(&["token", "inspect", "--json", token]);
    let shown: serde_json::Value = serde_json::from_str(&inspected.stdout).unwrap();
    assert_eq!(shown["kid"], "k-1");
    assert_eq!(shown["tier"], "gold");
    assert_eq!(shown["device_id"], device.as_str());
    assert_eq!(shown["bandwidth_limit"], 5_000_000_000_u64);
    assert_eq!(shown["quota_bytes"], 7);
    let readable = run(&["token", "inspect", token]);
    assert!(readable.stdout.contains("tier             gold"), "{readable:?}");

    let allocation = shown["allocation_id"].as_str().unwrap();
    let verify = |extra: &[&str]| {
        let args = ["token", "verify", token, "--relay-id", RELAY_ID, "--allocation-id", allocation];
        run(&[&args[..], extra].concat())
    };
    let valid = verify(&["--issuer-key-hex", &keys.device]);
    assert_eq!((valid.exit, valid.stdout.trim_end()), (0, "valid"), "{valid:?}");
    let weak = "00".repeat(32);
    for (args, reason) in [
        (&["--issuer-key-hex", keys.peer.as_str()][..], "signature"),
        (&["--device-key-hex", &keys.device], "unknown_issuer"),
        (&["--issuer-key-hex", "00"], "unknown_issuer"),
        (&["--issuer-key-hex", &keys.device, "--now", "99999999999"], "expired"),
        (&["--issuer-key-hex", &keys.device, "--max-lifetime", "5"], "lifetime_too_long"),
        (&["--issuer-key-hex", &keys.device, "--device-key-hex", &weak], "device_key"),
    ] {
        let refused = verify(args);
        assert_eq!((refused.exit, refused.stdout.trim_end()), (1, reason), "{args:?} {refused:?}");
    }
    assert_eq!(verify(&[]).exit, 2);
    let broken = run(&["token", "inspect", &token.replace('.', ",")]);
    assert_eq!((broken.exit, broken.stdout.trim_end()), (1, "text"), "{broken:?}");
    // What cannot be meant.
    assert_eq!(mint(&[]).exit, 2, "--device-id is missing");
    assert_eq!(mint(&["--device-id", &device, "--device-key", &issuer]).exit, 2);
    assert_eq!(mint(&["--device-id", &device, "--tier", &"t".repeat(3000)]).exit, 2);
    let keyless = ["token", "mint", "--issuer-key", &issuer, "--peer-id", &keys.peer, "--device-id", &device];
    assert_eq!(run(&[&keyless[..], &RELAY[..]].concat()).exit, 2, "--kid is missing");
    assert_eq!(keys.mint(&["--bandwidth", "4294967296"]).exit, 2, "more than a device's token can say");
    assert_eq!(keys.mint(&["--tier", "gold"]).exit, 2, "a device names no tier");
}

#[test]
fn minting_says_what_it_lacks() {
    let keys = Keys::new();
    let key = keys.path("device.pem");
    let peer = keys.peer.as_str();
    fs::write(keys.path("empty"), "").unwrap();
    fs::write(keys.path("bad.json"), "{}").unwrap();
    let (empty, none, bad_json) = (keys.path("empty"), keys.path("none"), keys.path("bad.json"));
    let weak = format!("01{}", "00".repeat(31));
    for (device_key, peer, relay, exit, word) in [
        (none.as_str(), peer, &RELAY[..], 66, "none"),
        (&empty, peer, &RELAY[..], 65, "keygen"),
        (&key, "00", &RELAY[..], 2, "hex"),
        (&key, &weak, &RELAY[..], 2, "small order"),
        (&key, peer, &["--relay", "127.0.0.1:4433"], 2, "--relay-id"),
        (&key, peer, &["--relay", "nowhere"], 66, "nowhere"),
        (&key, peer, &["--relay", &bad_json], 65, "bad.json"),
        (&key, peer, &["--relay", "http://127.0.0.1:1"], 69, "cannot connect"),
        (&key, peer, &["--relay", "https://127.0.0.1"], 2, "https"),
        (&key, peer, &[&RELAY[..], &["--ttl", "0"]].concat(), 2, "--ttl"),
        (&key, peer, &[&RELAY[..], &["--ttl", "1 hour"]].concat(), 2, "1h30m"),
        (&key, peer, &[&RELAY[..], &["--bandwidth", "4294967296"]].concat(), 2, "4294967296"),
    ] {
        let args = [&["token", "mint", "--device-key", device_key, "--peer-id", peer], relay].concat();
        let ran = run(&args);
        assert_eq!((ran.exit, ran.stdout.as_str()), (exit, ""), "{args:?}: {ran:?}");
        assert!(ran.stderr.contains(word), "{word}: {ran:?}");
    }
}

#[test]
fn a_token_is_for_a_new_allocation_each_time() {
    let keys = Keys::new();
    let token = || keys.mint(&[]).stdout;
    let fields = |token: &str| -> serde_json::Value {
        serde_json::from_str(&run(&["token", "inspect", "--json", token.trim_end()]).stdout).unwrap()
    };
    let (one, other) = (fields(&token()), fields(&token()));
    assert_ne!(one["allocation_id"], other["allocation_id"]);
    assert_eq!((&one["bandwidth_limit"], &one["quota_bytes"]), (&().into(), &().into()));
}

#[test]
fn a_relay_is_known_by_its_file_too() {
    let keys = Keys::new();
    let json = format!(
        r#"{{"addr":"192.0.2.1","port":4433,"server_name":"relay","relay_id":"{}","region":null,"new_key":1}}"#,
        "aa".repeat(16)
    );
    let path = keys.path("relay.json");
    fs::write(&path, json).unwrap();
    for relay in [path.as_str(), Path::new(&path).parent().unwrap().to_str().unwrap()] {
        let key = keys.path("device.pem");
        let args = ["token", "mint", "--device-key", &key, "--peer-id", &keys.peer, "--relay", relay];
        let minted = run(&args);
        assert_eq!(minted.exit, 0, "{minted:?}");
        let inspected = run(&["token", "inspect", minted.stdout.trim_end()]);
        assert!(inspected.stdout.contains(&"aa".repeat(16)), "{inspected:?}");
    }
}

#[test]
fn help_teaches_and_version_tells() {
    let version = run(&["--version"]);
    assert_eq!(version.exit, 0);
    assert!(version.stdout.starts_with("zrc-relay ") && version.stdout.contains("commit "));
    assert!(version.stdout.contains("protocol zrc-relay/1"));
    let help = run(&["--help"]);
    assert!(help.exit == 0 && help.stderr.is_empty() && help.stdout.contains("Exit codes:"));
    for args in [&["keygen", "--help"][..], &["token", "mint", "--help"], &["token", "verify", "--help"]] {
        let help = run(args);
        assert!(help.exit == 0 && help.stdout.contains("Example"), "{help:?}");
    }
    for args in [&["--no-such-flag"][..], &["no-such-command"], &["token"], &[]] {
        let wrong = run(args);
        assert_eq!((wrong.exit, wrong.stdout.as_str()), (2, ""), "{wrong:?}");
    }
}
