//! What administration keeps in files: blocks over restarts, the audit log where commands find it, the certificate for
//! administrators.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{
    admin_api::Administered,
    cli::{Ran, command, run},
    cli_serve::Relay,
};

fn networks(relay: &Administered) -> Vec<String> {
    let answer = relay.json(&["block"]);
    let mut networks: Vec<String> = answer["blocks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["network"].as_str().unwrap().to_owned())
        .collect();
    networks.sort();
    networks
}

#[test]
fn r6_5_blocks_outlive_kill_9_and_a_bad_file_does_not_stop_the_relay() {
    let mut relay = Administered::start();
    for args in [
        &["block", "203.0.113.0/24", "--for", "1h", "--reason", "scans"][..],
        &["block", "2001:db8::/32"],
        &["block", "192.0.2.1"],
        &["block", "192.0.2.2", "--for", "1h"],
        &["unblock", "192.0.2.1"],
    ] {
        assert_eq!(relay.admin(args).0, 0, "{args:?}");
    }
    let before = relay.json(&["block"]);
    let file = Path::new(&relay.state()).join("blocks.jsonl");
    let text = fs::read_to_string(&file).unwrap();
    relay.restart(|| {
        // One of them ends meanwhile.
        let line = text.lines().find(|line| line.contains("192.0.2.2/")).unwrap();
        let mut ended: Value = serde_json::from_str(line).unwrap();
        ended["until_unix"] = 1_700_000_000.into();
        fs::write(&file, text.replace(line, &ended.to_string())).unwrap();
    });
    assert_eq!(networks(&relay), ["2001:db8::/32", "203.0.113.0/24"]);
    let find = |answer: &Value| {
        let all = answer["blocks"].as_array().unwrap();
        all.iter().find(|it| it["network"] == "203.0.113.0/24").unwrap().clone()
    };
    let (then, now) = (find(&before), find(&relay.json(&["block"])));
    assert_eq!(now["reason"], "scans");
    let moved = then["expires_at_unix"].as_u64().unwrap().abs_diff(now["expires_at_unix"].as_u64().unwrap());
    assert!(moved <= 1, "it ends when it was to end: {then} {now}");
    assert!(relay.relay.get("/metrics").1.contains("\nzrc_relay_guard_blocks 2\n"));

    relay.restart(|| fs::write(&file, fs::read_to_string(&file).unwrap() + "rubbish\n").unwrap());
    relay.relay.process.line_somewhere_with("the file of blocks has faults");
    assert_eq!(networks(&relay), ["2001:db8::/32", "203.0.113.0/24"]);
    let aside = fs::read_dir(relay.state()).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
        name.starts_with("blocks.jsonl.bad-")
    });
    assert_eq!(aside.count(), 1);
    assert_eq!(relay.admin(&["block", "192.0.2.3"]).0, 0);
    relay.restart(|| ());
    assert_eq!(networks(&relay).len(), 3);
}

/// `admin audit verify` with these arguments and variables.
fn verify(args: &[&str], variables: &[(&str, &str)]) -> Ran {
    let all = [&["admin", "audit", "verify"], args].concat();
    let mut command = command(&all);
    command.envs(variables.iter().copied()).output().unwrap().into()
}

#[test]
fn r10_commands_find_the_files_of_the_relay_that_is_meant() {
    let relay = Administered::start();
    assert_eq!(relay.admin(&["block", "203.0.113.7"]).0, 0);
    let (config, state) = (relay.config(), relay.state());
    let empty = tempfile::tempdir().unwrap();
    let other = empty.path().join("none.toml").to_str().unwrap().to_owned();
    for (args, variables) in [
        (vec!["--config", &config], vec![]),
        (vec!["--state-dir", &state], vec![]),
        (vec![], vec![("ZRC_RELAY_CONFIG", config.as_str())]),
        (vec![], vec![("ZRC_RELAY_STATE_DIR", state.as_str())]),
        // What is said comes before what the environment says.
        (vec!["--state-dir", &state], vec![("ZRC_RELAY_CONFIG", other.as_str())]),
        (vec!["--config", &config], vec![("ZRC_RELAY_CONFIG", other.as_str())]),
    ] {
        let ran = verify(&args, &variables);
        assert!(ran.exit == 0 && ran.stdout.contains("1 line in 1 file: nothing"), "{args:?}: {ran:?}");
    }
    // A fault elsewhere in the configuration does not matter here.
    let text = fs::read_to_string(&config).unwrap().replace("self_certified = true", "self_certified = 7");
    let faulty = relay.relay.folder.path().join("faulty.toml");
    fs::write(&faulty, text).unwrap();
    assert_eq!(verify(&["--config", faulty.to_str().unwrap()], &[]).exit, 0);

    for folder in [empty.path().to_owned(), empty.path().join("none")] {
        let ran = verify(&["--state-dir", folder.to_str().unwrap()], &[]);
        assert!(ran.exit == 66 && ran.stderr.contains("--config or --state-dir say where"), "{ran:?}");
    }
    // A line noted elsewhere is held against the log.
    let whole = verify(&["--config", &config], &[]);
    let noted = whole.stdout.lines().find_map(|line| line.strip_prefix("ends with line ")).unwrap();
    assert_eq!(verify(&["--config", &config, "--expect", noted], &[]).exit, 0);
    let other = format!("1:{}", "0".repeat(64));
    assert_eq!(verify(&["--config", &config, "--expect", &other], &[]).exit, 1);

    // The other commands of administration, too.
    let list = |variables: &[(&str, &str)]| {
        let mut command = command(&["admin", "token", "list", "--json"]);
        Ran::from(command.envs(variables.iter().copied()).output().unwrap())
    };
    let made = run(&["admin", "token", "new", "--name", "ann", "--config", &config]);
    assert_eq!(made.exit, 0, "{made:?}");
    for variables in [[("ZRC_RELAY_CONFIG", config.as_str())], [("ZRC_RELAY_STATE_DIR", state.as_str())]] {
        assert!(list(&variables).stdout.contains("\"ann\""));
    }
    let mut log = command(&["admin", "log"]);
    let by_configuration: Ran = log.env("ZRC_RELAY_CONFIG", &config).output().unwrap().into();
    assert_eq!((by_configuration.exit, by_configuration.stdout.trim()), (0, "info"), "{by_configuration:?}");
    let mut log = command(&["admin", "log", "--socket", "/nonexistent"]);
    let by_argument: Ran = log.env("ZRC_ADMIN_URL", "http://127.0.0.1:1").output().unwrap().into();
    assert!(by_argument.exit == 69 && by_argument.stderr.contains("/nonexistent"), "{by_argument:?}");
}

#[test]
fn r10_tokens_that_are_made_and_revoked_at_once_are_all_heeded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("admin.tokens").to_str().unwrap().to_owned();
    let token = |args: &[&str]| command(&[&["admin", "token"], args, &["--file", &file]].concat());
    let all = |mut commands: Vec<std::process::Command>| {
        let running: Vec<_> = commands
            .iter_mut()
            .map(|it| {
                it.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for it in running {
            let ran = Ran::from(it.wait_with_output().unwrap());
            assert_eq!(ran.exit, 0, "{ran:?}");
        }
    };
    let names = || {
        let ran = Ran::from(token(&["list", "--json"]).output().unwrap());
        let listed: Value = serde_json::from_str(&ran.stdout).unwrap();
        let tokens = listed["tokens"].as_array().unwrap();
        let mut names: Vec<_> = tokens.iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect();
        names.sort_unstable();
        names
    };
    let wanted = |range: std::ops::Range<u32>| range.map(|n| format!("t{n}")).collect::<Vec<_>>();
    all(wanted(10..34).iter().map(|name| token(&["new", "--name", name])).collect());
    assert_eq!(names(), wanted(10..34));
    let revoked = wanted(10..22);
    let made = wanted(34..46);
    let changes = revoked.iter().map(|name| token(&["revoke", name]));
    all(changes.chain(made.iter().map(|name| token(&["new", "--name", name]))).collect());
    assert_eq!(names(), wanted(22..46));
    // A file that cannot be read is not one without that token; not even root can open this one.
    let ring = folder.path().join("ring");
    std::os::unix::fs::symlink(&ring, &ring).unwrap();
    let ran = run(&["admin", "token", "revoke", "t22", "--file", ring.to_str().unwrap()]);
    assert!(
        ran.exit == 66 && ran.stderr.contains("cannot read") && !ran.stderr.contains("no token"),
        "{ran:?}"
    );
    fs::remove_file(&ring).unwrap();
    let mut left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort_unstable();
    assert_eq!(left, ["admin.tokens", "admin.tokens.lock"]);
}

#[test]
fn r10_a_file_of_tokens_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let token = |args: &[&str]| run(&[&["admin", "token"], args].concat());
    let line = |n: usize| format!("t{n:05} read sha256:{} {}\n", "0".repeat(64), "x".repeat(100));
    let most = 1 << 20;
    let full: String = (0..most / line(0).len()).map(line).collect();
    fs::write(at("full"), &full).unwrap();
    // What would be too large for the relay is not written: all tokens would be over.
    let ran = token(&["new", "--name", &"n".repeat(64), "--file", &at("full")]);
    assert!(ran.exit == 73 && ran.stderr.contains("too large"), "{ran:?}");
    assert_eq!(fs::read_to_string(at("full")).unwrap(), full);
    fs::write(at("larger"), full + &"#".repeat(most)).unwrap();
    for file in [at("larger").as_str(), "/dev/zero"] {
        let ran = token(&["list", "--file", file]);
        assert!(ran.exit == 65 && ran.stderr.contains("is no file of tokens"), "{ran:?}");
    }
}

fn certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn r8_the_certificate_for_administrators_changes_while_it_runs_and_the_last_good_one_stays() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (first, second, third) = (certificate(), certificate(), certificate());
    for (name, (chain, key)) in [("first", &first), ("second", &second), ("third", &third)] {
        fs::write(at(&format!("{name}.ca")), chain).unwrap();
        fs::write(at(&format!("{name}.key")), key).unwrap();
    }
    // In one step, as a careful operator does.
    let put = |to: &str, text: &str| {
        fs::write(at("new"), text).unwrap();
        fs::rename(at("new"), at(to)).unwrap();
    };
    put("chain.pem", &first.0);
    put("key.pem", &first.1);
    fs::write(
        at("relay.toml"),
        "state_dir = \"state\"\n[relay]\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\nself_certified = true\n\
         [ops]\nlisten_port = 0\n[admin]\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\n\
         cert_path = \"chain.pem\"\nkey_path = \"key.pem\"\n",
    )
    .unwrap();
    let config = at("relay.toml").to_str().unwrap().to_owned();
    let made = run(&["admin", "token", "new", "--name", "ann", "--config", &config]);
    fs::write(at("token"), &made.stdout).unwrap();
    let mut relay = Relay::start(&["serve", "--config", &config], tempfile::tempdir().unwrap());
    let line = relay.process.line_with("admin API and dashboard on https://127.0.0.1:");
    let port = line.split("127.0.0.1:").nth(1).unwrap().split(',').next().unwrap();
    let url = format!("https://localhost:{port}");
    let trusts = |name: &str| {
        let (ca, token) = (at(&format!("{name}.ca")), at("token"));
        let (ca, token) = (ca.to_str().unwrap(), token.to_str().unwrap());
        run(&["admin", "drain", "--status", "--url", &url, "--ca", ca, "--token-file", token]).exit == 0
    };
    assert!(trusts("first") && !trusts("second"));

    // A chain without its key is no certificate.
    put("chain.pem", &second.0);
    let fault = relay.process.line_with("fault in the configuration");
    assert!(fault.contains("admin.cert_path"), "{fault}");
    assert!(trusts("first") && !trusts("second"));
    put("key.pem", &second.1);
    relay.process.line_with("configuration read again");
    assert!(trusts("second") && !trusts("first"));
    // SIGHUP does the same, and nothing when nothing has changed.
    relay.process.signal("HUP");
    relay.process.line_with("configuration read again");
    assert!(trusts("second"));
    put("key.pem", "rubbish");
    let fault = relay.process.line_with("fault in the configuration");
    assert!(fault.contains("admin.key_path"), "{fault}");
    put("chain.pem", &third.0);
    relay.process.line_with("what is in force stays");
    put("key.pem", &third.1);
    relay.process.line_with("configuration read again");
    assert!(trusts("third") && !trusts("second"));

    // HTTPS does not become HTTP while it runs: it goes on, and the log names the keys that wait for a restart.
    let text = fs::read_to_string(&config).unwrap();
    let without = text.replace("cert_path = \"chain.pem\"\nkey_path = \"key.pem\"\n", "");
    assert_ne!(without, text);
    put("relay.toml", &without);
    let told = relay.process.line_with("keys have changed that are read at the next start");
    assert!(told.contains("admin.cert_path, admin.key_path"), "{told}");
    assert!(trusts("third"));
}
