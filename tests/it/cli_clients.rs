//! The commands that are clients: `probe` and `quickstart`, against real relays.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{
    cli::{Keys, command, run},
    cli_serve::{Relay, Running},
};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn steps(report: &Value) -> Vec<(&str, bool)> {
    let steps = report["steps"].as_array().unwrap();
    steps.iter().map(|step| (step["step"].as_str().unwrap(), step["ok"].as_bool().unwrap())).collect()
}

const ALL_STEPS: [&str; 8] =
    ["find", "resolve", "handshake", "join", "meet", "datagram", "stream", "release"];

#[test]
fn a_probe_goes_all_the_way() {
    let relay = Relay::dev();
    let described = json(&fs::read_to_string(relay.descriptor()).unwrap());
    let by_hand = format!("127.0.0.1:{}", described["port"]);
    let url = format!("http://{}", relay.ops);
    let well_known = format!("{url}/.well-known/zrc-relay");
    for args in [
        &["--relay", &relay.descriptor()][..],
        &["--relay", &url],
        &["--relay", &well_known],
        &[
            "--relay",
            &by_hand,
            "--relay-id",
            described["relay_id"].as_str().unwrap(),
            "--pin",
            described["spki"].as_str().unwrap(),
        ],
    ] {
        let ran = run(&[&["probe", "--json"], args].concat());
        assert_eq!(ran.exit, 0, "{ran:?}");
        let report = json(&ran.stdout);
        assert_eq!(report["ok"], true);
        assert_eq!(steps(&report), ALL_STEPS.map(|step| (step, true)));
        assert!(report["steps"][2]["ms"].as_f64().unwrap() > 0.0);
        assert!(report["steps"][5]["detail"].as_str().unwrap().contains(" ms, raw"), "{report}");
    }
    let readable = run(&["probe", "--relay", &relay.descriptor()]);
    assert_eq!(readable.exit, 0);
    for (line, step) in readable.stdout.lines().zip(ALL_STEPS) {
        assert!(line.starts_with("ok ") && line.contains(step), "{readable:?}");
    }
    assert!(relay.get("/metrics").1.contains("\nzrc_relay_allocations 0\n"), "all were released");
}

#[test]
fn a_probe_says_where_it_ends_and_why() {
    let relay = Relay::dev();
    let descriptor = relay.descriptor();
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let nobody = nobody.local_addr().unwrap().to_string();
    let other_id = "00".repeat(16);
    let other_pin = format!("sha256/{}=", "A".repeat(43));
    for (args, exit, step, reason) in [
        (&["--relay", &descriptor, "--relay-id", &other_id][..], 1, "join", "TOKEN_INVALID"),
        (&["--relay", &descriptor, "--pin", &other_pin], 1, "handshake", "untrusted"),
        (&["--relay", &nobody, "--relay-id", &other_id, "--timeout", "1s"], 69, "handshake", "timeout"),
        (
            &["--relay", "no.such.host.invalid:1", "--relay-id", &other_id, "--timeout", "1s"],
            69,
            "resolve",
            "resolve",
        ),
        (&["--relay", "http://127.0.0.1:1"], 69, "find", "transport"),
    ] {
        let ran = run(&[&["probe", "--json"], args].concat());
        assert_eq!(ran.exit, exit, "{ran:?}");
        let report = json(&ran.stdout);
        let last = report["steps"].as_array().unwrap().last().unwrap();
        assert_eq!((&report["ok"], &last["ok"]), (&false.into(), &false.into()));
        assert_eq!((&last["step"], &last["reason"]), (&step.into(), &reason.into()), "{ran:?}");
    }
    let usage = run(&["probe", "--relay", "127.0.0.1:1"]);
    assert_eq!((usage.exit, usage.stdout.as_str()), (2, ""));
}

/// A relay that knows its devices: the pinned one is served under its own name, another one is not.
#[test]
fn a_relay_that_pins_serves_who_is_pinned() {
    let keys = Keys::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    let device_id = "ab".repeat(32);
    let text = format!(
        "state_dir = \"state\"\n[relay]\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\n\
         default_bandwidth_limit = 500_000\ndefault_quota = 3_000_000\n\
         [[relay.device]]\nid = {device_id:?}\nkey = {:?}\n[ops]\nlisten_port = 0\n",
        keys.device
    );
    fs::write(&path, text).unwrap();
    let relay = Relay::start(&["serve", "--config", path.to_str().unwrap()], folder);
    let probe = |args: &[&str]| run(&[&["probe", "--relay", &relay.descriptor()], args].concat());
    let key = keys.path("device.pem");
    let pinned = probe(&["--device-key", &key, "--device-id", &device_id]);
    assert_eq!(pinned.exit, 0, "{pinned:?}");
    assert!(pinned.stdout.contains("rate limit 500000 bytes/s, quota 3000000 bytes"), "{pinned:?}");
    for args in [
        &[][..],
        &["--device-key", &key],
        &["--device-key", &keys.path("peer.pem"), "--device-id", &device_id],
    ] {
        let refused = probe(args);
        assert_eq!(refused.exit, 1, "{args:?}: {refused:?}");
        assert!(refused.stdout.contains("TOKEN_INVALID"), "{refused:?}");
    }
}

/// A relay that knows an issuer: whatever the issuer grants is served, in the tier that it names.
#[test]
fn r1_2_a_relay_with_an_issuer_serves_whom_it_vouches_for() {
    let keys = Keys::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    // The key of the issuer is any that keygen makes.
    let text = format!(
        "state_dir = \"state\"\n[relay]\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\n\
         [[relay.issuer]]\nkid = \"backend-2026\"\nkey = {:?}\ntiers = [\"free\"]\n[ops]\nlisten_port = 0\n",
        keys.device
    );
    fs::write(&path, text).unwrap();
    let relay = Relay::start(&["serve", "--config", path.to_str().unwrap()], folder);
    let issuer = keys.path("device.pem");
    let granted = ["--issuer-key", &issuer, "--kid", "backend-2026"];
    let probe = |args: &[&str]| run(&[&["probe", "--relay", &relay.descriptor()], args].concat());
    let own = probe(&granted);
    assert_eq!(own.exit, 0, "{own:?}");
    assert!(own.stdout.contains("rate limit 1250000 bytes/s, quota 1000000000 bytes"), "{own:?}");
    let free = probe(&[&granted[..], &["--tier", "free"]].concat());
    assert!(free.stdout.contains("rate limit 125000 bytes/s, quota 100000000 bytes"), "{free:?}");
    let descriptor = relay.descriptor();
    let bench = ["bench", "--relay", &descriptor, "--rate", "100", "--secs", "1"];
    let bench = run(&[&bench[..], &granted].concat());
    assert_eq!(bench.exit, 0, "{bench:?}");
    for args in [
        &[][..],
        &[&granted[..], &["--tier", "paid"]].concat(),
        &["--issuer-key", &issuer, "--kid", "backend-2027"],
        &["--issuer-key", &keys.path("peer.pem"), "--kid", "backend-2026"],
    ] {
        let refused = probe(args);
        assert_eq!(refused.exit, 1, "{args:?}: {refused:?}");
        assert!(refused.stdout.contains("TOKEN_INVALID"), "{refused:?}");
    }
}

#[test]
fn quickstart_holds() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state").to_str().unwrap().to_owned();
    let ran = run(&["quickstart", "--once", "--json", "--state-dir", &state]);
    assert_eq!(ran.exit, 0, "{ran:?}");
    let report = json(&ran.stdout);
    let keys = |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(
        keys(&report),
        ["datagrams", "forged_token_refused", "handshake_ms", "ok", "resumed", "streams"]
    );
    assert_eq!(keys(&report["datagrams"]), ["received", "rtt_p50_us", "rtt_p99_us", "sent"]);
    assert_eq!(keys(&report["streams"]), ["bytes", "mbytes_per_sec", "sha256_equal"]);
    assert_eq!(
        (&report["ok"], &report["resumed"], &report["forged_token_refused"]),
        (&true.into(), &true.into(), &true.into())
    );
    assert_eq!(report["datagrams"]["sent"], 10_000);
    assert!(report["datagrams"]["received"].as_u64().unwrap() >= 9_900);
    assert_eq!(
        (&report["streams"]["bytes"], &report["streams"]["sha256_equal"]),
        (&(64 << 20).into(), &true.into())
    );
    for number in
        [&report["handshake_ms"], &report["datagrams"]["rtt_p50_us"], &report["streams"]["mbytes_per_sec"]]
    {
        assert!(number.as_f64().unwrap() > 0.0, "{report}");
    }
    assert!(ran.stderr.contains("http://127.0.0.1:"));
}

/// What it prints for people can be pasted into another terminal.
#[test]
fn quickstart_stays_and_its_next_steps_work() {
    let folder = tempfile::tempdir().unwrap();
    // A name that a shell would take apart.
    let state = folder.path().join("it's here").to_str().unwrap().to_owned();
    let mut quickstart = Running::start(&mut command(&["quickstart", "--state-dir", &state]), Stdio::piped());
    let mut stdout = BufReader::new(quickstart.child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(stdout.by_ref().any(|line| line.contains("All of it held")), "{:#?}", quickstart.seen);
    let mut script = vec!["set -eu".to_owned()];
    for line in stdout.by_ref() {
        let last = line.contains(" bench ");
        if let Some(step) = line.strip_prefix("  ") {
            script.push(step.replace("--pairs 10", "--pairs 2").replace("--secs 5", "--secs 1"));
        }
        if last {
            break;
        }
    }
    let has_curl = Command::new("curl").arg("--version").output().is_ok();
    script.retain(|step| has_curl || !step.starts_with("curl "));
    let script = script.join("\n");
    let pasted = Command::new("sh").args(["-c", &script]).env_remove("RUST_LOG").output().unwrap();
    let (out, err) = (String::from_utf8(pasted.stdout).unwrap(), String::from_utf8(pasted.stderr).unwrap());
    assert!(pasted.status.success(), "{script}\n{out}\n{err}");
    for part in ["\"status\":\"ok\"", "zrc_relay_allocations ", "ok   release", "allocation_id ", "\nvalid\n"]
    {
        assert!(out.contains(part), "{part}: {out}\n{err}");
    }
    assert!(
        !has_curl || out.contains("\"status\":\"ok\"") && out.contains("zrc_relay_allocations "),
        "{out}"
    );
    quickstart.signal("INT");
    assert_eq!(quickstart.end().code(), Some(0), "{:#?}", quickstart.seen);
}
