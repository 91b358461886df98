//! The section `[log]`, and the level that changes while `serve` runs.

use std::{fs, io::Write as _, net::TcpStream};

use crate::cli_serve::Relay;

fn config(level: &str) -> String {
    format!(
        "state_dir = \"state\"\n[relay]\nself_certified = true\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\n\
         [ops]\nlisten_port = 0\n[log]\nformat = \"json\"\nlevel = \"{level}\"\n"
    )
}

fn start(level: &str, more: &[&str]) -> Relay {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    fs::write(&path, config(level)).unwrap();
    let mut args = vec!["serve", "--config", path.to_str().unwrap()];
    args.extend(more);
    Relay::start(&args, folder)
}

impl Relay {
    fn say(&mut self, level: &str) -> String {
        fs::write(self.folder.path().join("relay.toml"), config(level)).unwrap();
        self.process.line_with("configuration read again")
    }

    /// Brings about an event that is logged at debug.
    fn detail(&self) {
        TcpStream::connect(&self.ops).unwrap().write_all(b"no HTTP\r\n\r\n").unwrap();
    }
}

#[test]
fn the_configuration_says_how_the_log_looks_and_changes_its_level() {
    let mut relay = start("info", &[]);
    relay.detail();
    let line = relay.say("info,zrc_relay=debug");
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["level"], &line["message"]), (&"INFO".into(), &"configuration read again".into()));
    assert!(!relay.process.seen.iter().any(|line| line.contains("DEBUG")), "{:#?}", relay.process.seen);
    relay.detail();
    let line = relay.process.line_with("ended early");
    assert!(line.contains("\"level\":\"DEBUG\""), "{line}");
    // A slip changes nothing.
    fs::write(relay.folder.path().join("relay.toml"), config("inof")).unwrap();
    relay.process.line_with("log.level");
    relay.detail();
    relay.process.line_with("ended early");
}

#[test]
fn the_command_line_comes_first() {
    let mut relay = start("info", &["--log", "error,zrc_relay::cli=info", "--log-format", "text"]);
    let line = relay.say("debug");
    assert!(line.contains(" INFO zrc_relay::cli::reload: configuration read again"), "{line}");
    relay.process.line_with("the level of the command line stays");
    relay.detail();
    relay.say("trace");
    assert!(!relay.process.seen.iter().any(|line| line.contains("ended early")));
}
