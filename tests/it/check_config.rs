//! `check-config` and what lies over a configuration file: environment and command line, as operators use them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::{
    cli::{Ran, command, run},
    cli_serve::Relay,
};

const OPEN: &str = "[relay]\nself_certified = true\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\n";

fn file(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    fs::write(&path, text).unwrap();
    (folder, path)
}

fn check(text: &str, args: &[&str], variables: &[(&str, &str)]) -> Ran {
    let (_folder, path) = file(text);
    let mut check = command(&["check-config", path.to_str().unwrap()]);
    check.args(args).envs(variables.iter().copied()).output().unwrap().into()
}

#[test]
fn r8_a_good_configuration_is_said_to_be_good_and_nothing_is_started_or_written() {
    let (folder, path) = file(&format!("state_dir = \"state\"\n{OPEN}"));
    let ran = run(&["check-config", path.to_str().unwrap()]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (0, ""), "{ran:?}");
    assert!(ran.stderr.contains("has no faults"), "{ran:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the file itself");
    // The same file by the variable that names it.
    let named = command(&["check-config"]).env("ZRC_RELAY_CONFIG", &path).output().unwrap();
    assert_eq!(Ran::from(named), ran);
}

#[test]
fn r8_faults_of_file_variable_and_flag_come_at_once_with_78() {
    let text = format!("{OPEN}max_allocations = 0\n[relya]\n");
    let variables = [("ZRC_RELAY_RELAY__IDLE_TIMEOUT", "soon"), ("ZRC_RELAY_REALY__REGION", "hunter2")];
    let args = ["--set", "guard.retry_above=many"];
    let ran = check(&text, &args, &variables);
    assert_eq!((ran.exit, ran.stdout.as_str()), (78, ""), "{ran:?}");
    for part in [
        "relay.toml has 5 faults",
        "relay.max_allocations = 0 (",
        "relay.toml, line 5)",
        "is relay meant",
        "relay.toml, line 6)",
        "relay.idle_timeout = \"soon\" (ZRC_RELAY_RELAY__IDLE_TIMEOUT)",
        "for example: ZRC_RELAY_RELAY__IDLE_TIMEOUT=30s",
        "is ZRC_RELAY_RELAY__REGION meant",
        "guard.retry_above = \"many\" (--set)",
        "for example: --set guard.retry_above=256",
    ] {
        assert!(ran.stderr.contains(part), "no {part:?} in\n{}", ran.stderr);
    }
    assert!(!ran.stderr.contains("hunter2"), "what may be a secret is not repeated: {ran:?}");
    let ran = check(&text, &["--json", "--set", "guard.retry_above=many"], &variables);
    assert_eq!((ran.exit, ran.stderr.as_str()), (78, ""));
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&report["ok"], report["faults"].as_array().unwrap().len()), (&false.into(), 5));
    let of = |key: &str| report["faults"].as_array().unwrap().iter().find(|it| it["key"] == key).unwrap();
    assert_eq!(of("relay.idle_timeout")["place"], "ZRC_RELAY_RELAY__IDLE_TIMEOUT");
    // serve says the same, in the same way.
    let (_folder, path) = file(&text);
    let mut serve = command(&["serve", "--config", path.to_str().unwrap()]);
    let ran = Ran::from(serve.envs(variables).output().unwrap());
    assert_eq!(ran.exit, 78);
    assert!(ran.stderr.contains("has 4 faults") && ran.stderr.contains("line 5"), "{ran:?}");
}

#[test]
fn r8_what_is_shown_has_origins_and_no_secrets_and_is_a_configuration() {
    let text = format!(
        "{OPEN}[[relay.tier]]\nname = \"gold\"\n[security]\nwebhook_url = \"https://u:hunter2@a.example/\"\n"
    );
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let variables = [("ZRC_RELAY_SECURITY__WEBHOOK_SECRET", secret), ("ZRC_RELAY_RELAY__REGION", "eu")];
    for format in ["--show", "--json"] {
        let ran = check(&text, &[format, "--set", "relay.shards=3"], &variables);
        assert_eq!(ran.exit, 0, "{ran:?}");
        assert!(!ran.stdout.contains("hunter2") && !ran.stdout.contains("MfKQ"), "{}", ran.stdout);
        for part in [
            "ZRC_RELAY_SECURITY__WEBHOOK_SECRET",
            "ZRC_RELAY_RELAY__REGION",
            "--set",
            "relay.toml, line 6",
            "default",
        ] {
            assert!(ran.stdout.contains(part), "no {part:?} in\n{}", ran.stdout);
        }
    }
    let shown = check(&text, &["--show", "--set", "relay.shards=3"], &variables[1..]);
    // Without the secret, which is a fault where there is a URL.
    assert_eq!(shown.exit, 78, "{shown:?}");
    let shown = check(OPEN, &["--show", "--set", "relay.shards=3"], &variables[1..]);
    let again = check(&shown.stdout, &["--json"], &[]);
    let report: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    let of = |key: &str| {
        let settings = report["settings"].as_array().unwrap();
        settings.iter().find(|it| it["key"] == key).unwrap()["value"].clone()
    };
    assert_eq!(
        (of("relay.shards"), of("relay.region"), of("relay.self_certified")),
        (3.into(), "eu".into(), true.into())
    );
}

#[test]
fn r8_a_file_that_is_missing_is_a_fault_of_serve_alone() {
    let text = format!(
        "{OPEN}quic_cert_path = \"/none/chain.pem\"\nquic_key_path = \"/none/key.pem\"\ndevice_file = \"none.toml\"\n"
    );
    let ran = check(&text, &[], &[]);
    assert_eq!(ran.exit, 0, "{ran:?}");
    for part in ["relay.quic_cert_path", "/none/key.pem", "none.toml", "line 7", "No such file"] {
        assert!(ran.stderr.contains(part), "no {part:?} in\n{}", ran.stderr);
    }
    let (folder, path) = file(&text);
    let ran = run(&["serve", "--config", path.to_str().unwrap()]);
    assert_eq!(ran.exit, 78, "{ran:?}");
    assert!(ran.stderr.contains("has 3 faults"), "{ran:?}");
    // What is there and wrong is a fault of both.
    fs::write(folder.path().join("none.toml"), "devices = 3").unwrap();
    assert_eq!(run(&["check-config", path.to_str().unwrap()]).exit, 78);
}

#[test]
fn r8_serve_takes_environment_and_flags_without_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let mut serve = command(&["serve", "--set", "ops.listen_port=0", "--state-dir", state.to_str().unwrap()]);
    serve.envs([
        ("ZRC_RELAY_RELAY__SELF_CERTIFIED", "true"),
        ("ZRC_RELAY_RELAY__LISTEN_ADDR", "127.0.0.1"),
        ("ZRC_RELAY_RELAY__LISTEN_PORT", "0"),
        ("ZRC_RELAY_RELAY__REGION", "environment"),
        ("ZRC_RELAY_RELAY__PUBLIC_ADDR", "relay.example.com"),
    ]);
    let relay = Relay::start_command(&mut serve, folder);
    let described: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(relay.descriptor()).unwrap()).unwrap();
    assert_eq!(
        (&described["region"], &described["addr"]),
        (&"environment".into(), &"relay.example.com".into())
    );
    // And --dev is a layer below them.
    let folder = tempfile::tempdir().unwrap();
    let mut serve = command(&["serve", "--dev", "--set", "relay.region=dev"]);
    serve.env("ZRC_RELAY_STATE_DIR", folder.path().join("state"));
    let relay = Relay::start_command(&mut serve, folder);
    assert!(fs::read_to_string(relay.descriptor()).unwrap().contains("\"dev\""));
    // Nothing at all is a relay for nobody.
    let ran = run(&["serve"]);
    assert_eq!(ran.exit, 78, "{ran:?}");
    assert!(ran.stderr.contains("serve nobody"), "{ran:?}");
}

#[test]
fn r8_what_is_no_configuration_is_said_to_be_none_and_nobody_waits_for_ever() {
    let (folder, path) = file("");
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let broken = folder.path().join("broken.toml");
    fs::write(&broken, b"[relay]\nregion = \"\xff\"\n").unwrap();
    let large = folder.path().join("large.toml");
    fs::write(&large, "#".repeat(2 << 20)).unwrap();
    for (path, reason) in [
        (folder.path(), "directory"),
        (Path::new("/dev/zero"), "it has more than 1048576 bytes"),
        (&large, "it has more than 1048576 bytes"),
        (&broken, "what stands in line 2 is not UTF-8"),
        (&pipe, "nothing came out of it within 5 s"),
        (&folder.path().join("missing"), "No such file"),
        (&path, "this relay would serve nobody"),
    ] {
        for command in [&["check-config"][..], &["serve", "--config"]] {
            let ran = run(&[command, &[path.to_str().unwrap()]].concat());
            assert_eq!((ran.exit, ran.stdout.as_str()), (78, ""), "{ran:?}");
            assert!(ran.stderr.contains(reason), "{reason}: {ran:?}");
        }
    }
    let ran = run(&["check-config", "--json", folder.path().to_str().unwrap()]);
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.exit, &report["ok"]), (78, &false.into()), "{ran:?}");
    assert!(report["faults"][0]["reason"].as_str().unwrap().contains("directory"), "{report}");
    // What is named there may be anything too.
    let name = |path: &Path| format!("{OPEN}device_file = {path:?}\n");
    for (text, exit, reason) in [
        (name(Path::new("/dev/zero")), 78, "more than 33554432 bytes"),
        (name(&broken), 78, "line 2 is not UTF-8"),
        (name(&pipe), 0, "serve would need what relay.device_file"),
        (name(folder.path()), 0, "serve would need what relay.device_file"),
    ] {
        let ran = check(&text, &[], &[]);
        assert_eq!(ran.exit, exit, "{ran:?}");
        assert!(ran.stderr.contains(reason), "{reason}: {ran:?}");
    }
}

#[test]
fn r8_other_systems_texts_and_pipes_are_taken() {
    let text = format!("\u{feff}{}", OPEN.replace('\n', "\r\n"));
    assert_eq!(check(&text, &[], &[]).exit, 0);
    let faulty = check(&format!("{text}max_allocations = 0\r\n"), &[], &[]);
    assert!(faulty.stderr.contains("relay.toml, line 5)"), "{faulty:?}");
    // As a shell's <(...) gives it.
    let binary = env!("CARGO_BIN_EXE_zrc-relay");
    let piped = format!("printf '[relay]\nself_certified = true\n' | {binary} check-config /dev/stdin");
    let ran: Ran = Command::new("sh").args(["-c", &piped]).output().unwrap().into();
    assert_eq!(ran.exit, 0, "{ran:?}");
}

#[test]
fn r8_a_dozen_faults_come_at_once() {
    let text = "stat_dir = \"/tmp\"\n[relay]\nself_certified = \"yes\"\nlisten_prot = 1\nlisten_addr = \"localhost\"\n\
                listen_port = 65536\nmax_allocations = 0\nidle_timeout = \"soon\"\nregion = \"a b\"\n[[relay.device]]\nid = \"00\"\n\
                [guard]\nblock = [\"192.0.2.0/33\"]\n[ops]\nallowed_hosts = \"*\"\n[log]\nformat = \"xml\"\n\
                [security]\nwebhook_url = \"ftp://hunter2@a\"\n[ogs]\n";
    let ran = check(text, &["--json"], &[]);
    assert_eq!(ran.exit, 78, "{ran:?}");
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let faults = report["faults"].as_array().unwrap();
    assert!(faults.len() >= 12, "{faults:#?}");
    for fault in faults {
        let place = fault["place"].as_str().unwrap_or_default();
        assert!(place.contains("relay.toml, line "), "{fault}");
        assert!(!fault["reason"].as_str().unwrap().is_empty(), "{fault}");
    }
    assert!(!ran.stdout.contains("hunter2"), "{ran:?}");
    let shown = check(text, &[], &[]);
    assert_eq!(shown.exit, 78);
    for key in
        ["is state_dir meant", "is listen_port meant", "is ops meant", "for example: max_allocations = 1000"]
    {
        assert!(shown.stderr.contains(key), "no {key:?} in {}", shown.stderr);
    }
}
