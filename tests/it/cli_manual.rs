//! `man`, `completions` and `healthcheck`.

use std::{collections::BTreeSet, fs, process::Command};

use crate::{
    cli::{command, run},
    cli_serve::Relay,
};

/// Every command there is, as a path of names: `token`, `token mint`.
fn commands(command: &clap::Command, path: &[String]) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        let path: Vec<String> = path.iter().cloned().chain([below.get_name().to_owned()]).collect();
        all.extend(commands(below, &path));
        all.push(path);
    }
    all
}

fn all_commands() -> Vec<Vec<String>> {
    let all = commands(&zrc_relay::cli::definition(), &[]);
    assert!(all.len() > 10 && all.contains(&vec!["token".into(), "mint".into()]), "{all:?}");
    all
}

/// The long options of a command that help shows.
fn options(path: &[String]) -> Vec<String> {
    let mut definition = zrc_relay::cli::definition();
    definition.build();
    let command = path.iter().fold(&definition, |command, name| command.find_subcommand(name).unwrap());
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    shown.filter_map(|arg| Some(arg.get_long()?.to_owned())).collect()
}

#[test]
fn every_command_has_a_man_page() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    let ran = run(&["man", pages.to_str().unwrap()]);
    assert_eq!((ran.exit, ran.stdout.as_str(), ran.stderr.as_str()), (0, "", ""));
    let mut expected: BTreeSet<String> =
        all_commands().iter().map(|path| format!("zrc-relay-{}.1", path.join("-"))).collect();
    expected.insert("zrc-relay.1".into());
    let written: BTreeSet<String> = fs::read_dir(&pages)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(written, expected);
    for page in &written {
        let text = fs::read_to_string(pages.join(page)).unwrap();
        for part in [".TH zrc-relay", ".SH NAME", ".SH SYNOPSIS", ".SH OPTIONS"] {
            assert!(text.contains(part), "{page}: no {part}");
        }
    }
    for path in all_commands() {
        let page = format!("zrc-relay-{}.1", path.join("-"));
        let text = fs::read_to_string(pages.join(&page)).unwrap().replace("\\-", "-");
        for option in options(&path) {
            assert!(text.contains(&format!("--{option}\\fR")), "{page}: no --{option}");
        }
    }
    let serve = fs::read_to_string(pages.join("zrc-relay-serve.1")).unwrap();
    assert!(serve.contains("SIGHUP") && serve.contains("state\\-dir"), "{serve}");
    // Where a folder cannot be made.
    fs::write(folder.path().join("file"), "").unwrap();
    let ran = run(&["man", folder.path().join("file/below").to_str().unwrap()]);
    assert_eq!(ran.exit, 73, "{}", ran.stderr);
}

#[test]
fn every_command_is_completed_in_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = run(&["completions", shell]);
        assert_eq!((ran.exit, ran.stderr.as_str()), (0, ""), "{shell}");
        for path in all_commands() {
            let name = path.last().unwrap();
            assert!(ran.stdout.contains(name), "{shell}: no {path:?}");
        }
        assert!(ran.stdout.contains("state-dir"), "{shell}");
    }
    assert_eq!(run(&["completions", "dos"]).exit, 2);
}

/// What bash itself makes of a line that somebody has begun.
#[test]
fn bash_completes_a_line() {
    let script = run(&["completions", "bash"]).stdout;
    let completed = |words: &[&str]| {
        let line: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
        let last = words.len() - 1;
        let ask = format!(
            "{script}\nCOMP_WORDS=({})\nCOMP_CWORD={last}\nf=$(complete -p zrc-relay | sed 's/.* -F //; s/ .*//')\n\"$f\" zrc-relay {} {}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
            line.join(" "),
            line[last],
            line[last - 1],
        );
        let output = Command::new("bash").args(["-c", &ask]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(completed(&["zrc-relay", "ser"]), ["serve"]);
    assert_eq!(completed(&["zrc-relay", "token", "mi"]), ["mint"]);
    let mut asked = 0;
    for path in all_commands() {
        let words: Vec<&str> =
            ["zrc-relay"].into_iter().chain(path.iter().map(String::as_str)).chain(["--"]).collect();
        let offered = completed(&words);
        for option in options(&path) {
            assert!(offered.contains(&format!("--{option}")), "{path:?}: no --{option} among {offered:?}");
            asked += 1;
        }
    }
    assert!(asked > 100, "{asked}");
}

#[test]
fn a_healthcheck_answers_with_its_exit_code() {
    let mut relay = Relay::dev();
    let url = format!("http://{}", relay.ops);
    for more in [&[][..], &["--ready"]] {
        let ran = run(&[&["healthcheck", "--ops", &url], more].concat());
        assert_eq!((ran.exit, ran.stdout.as_str(), ran.stderr.as_str()), (0, "", ""));
    }
    relay.process.signal("TERM");
    assert_eq!(relay.process.end().code(), Some(0));
    let ran = run(&["healthcheck", "--ops", &url]);
    assert_eq!(ran.exit, 1);
    assert!(ran.stderr.contains("/health: cannot connect"), "{}", ran.stderr);
    assert_eq!(run(&["healthcheck", "--ops", "relay"]).exit, 2);
    assert_eq!(run(&["healthcheck", "--ops", &url, "--config", "relay.toml"]).exit, 2);
}

#[test]
fn a_healthcheck_finds_the_address_in_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    // A port that is free now, on every address, which is asked for by the loopback one.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "state_dir = \"state\"\n[relay]\nself_certified = true\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\n\
         [ops]\nlisten_addr = \"0.0.0.0\"\nlisten_port = {free}\n"
    );
    fs::write(&path, config).unwrap();
    let path = path.to_str().unwrap().to_owned();
    let ask = || command(&["healthcheck", "--ready", "--config", &path]).output().unwrap().status.code();
    assert_eq!(ask(), Some(1));
    let _relay = Relay::start(&["serve", "--config", &path], folder);
    assert_eq!(ask(), Some(0));
    // As for serve, variables say where the file is, and come before it.
    let with =
        |name: &str, value: &str| command(&["healthcheck"]).env(name, value).output().unwrap().status.code();
    assert_eq!(with("ZRC_RELAY_CONFIG", &path), Some(0));
    assert_eq!(with("ZRC_RELAY_OPS__LISTEN_PORT", &free.to_string()), Some(0));
    // A fault does not make a relay ill that goes on without it.
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{whole}no_such_key = 1\n")).unwrap();
    assert_eq!(ask(), Some(0));
    assert_eq!(run(&["healthcheck", "--config", "/nowhere/relay.toml"]).exit, 78);
}

/// A relay that is alive but takes no new clients: what an orchestrator tells apart.
#[test]
fn a_healthcheck_tells_alive_from_ready() {
    use std::io::{BufRead as _, BufReader, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answering = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            let status = if request.contains("/ready") { "503 Service Unavailable" } else { "200 OK" };
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok").unwrap();
        }
    });
    assert_eq!(run(&["healthcheck", "--ops", &url]).exit, 0);
    let ran = run(&["healthcheck", "--ready", "--ops", &url]);
    assert_eq!(ran.exit, 1);
    assert!(ran.stderr.contains("503"), "{}", ran.stderr);
    answering.join().unwrap();
}
