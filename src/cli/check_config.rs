//! `check-config`: whether a configuration can be run, and what it comes to.

use std::{fmt::Write as _, path::PathBuf};

use serde::Serialize;

use super::{Exit, Failure, out, overrides::Set};
use crate::config::{self, Fault, Faults, Reading, Setting, Sources};

/// How far right the origins stand, in characters.
const ORIGIN_COLUMN: usize = 56;

/// Check a configuration, and show what it comes to
#[derive(Debug, clap::Args)]
#[command(after_help = "\
File, then environment, then command line: each comes before the one to its left. A variable
is ZRC_RELAY_, the section, two underscores and the key, in capitals, and holds a text or TOML:

  ZRC_RELAY_RELAY__LISTEN_PORT=4434
  ZRC_RELAY_GUARD__BLOCK='[\"192.0.2.0/24\"]'
  ZRC_RELAY_SECURITY__WEBHOOK_SECRET_FILE=/run/secrets/webhook

All faults are reported at once, each with its place, its reason and an example; exit code 78.
A file that the configuration names and that is not on this machine is no fault here: serve
would need it, and that is said.

--show prints every key with what holds and where it comes from, without secrets, as TOML that
serve would take; --json the same for programs, and the faults.

Examples:
  zrc-relay check-config /etc/zrc-relay/relay.toml
  zrc-relay check-config relay.toml --show --set relay.listen_port=4434")]
pub struct CheckConfig {
    /// The configuration; without it, what the environment and the command line say
    #[arg(value_name = "FILE", env = config::FILE_VARIABLE)]
    file: Option<PathBuf>,
    #[command(flatten)]
    set: Set,
    /// Print every key, what holds, and where it comes from
    #[arg(long)]
    show: bool,
    /// Print one JSON object with settings, faults and files that are needed
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    faults: Vec<Wrong<'a>>,
    /// What `serve` would need on the machine it runs on, and is not here.
    needs: Vec<Wrong<'a>>,
    settings: Vec<Setting>,
}

#[derive(Serialize)]
struct Wrong<'a> {
    key: &'a str,
    value: Option<&'a str>,
    reason: &'a str,
    example: Option<&'a str>,
    place: Option<String>,
}

impl<'a> Wrong<'a> {
    fn of(fault: &'a Fault) -> Self {
        Self {
            key: &fault.key,
            value: fault.value.as_deref(),
            reason: &fault.reason,
            example: Some(fault.example.as_str()).filter(|example| !example.is_empty()),
            place: fault.place.as_ref().map(ToString::to_string),
        }
    }
}

impl CheckConfig {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let sources = Sources { file: self.file.clone(), over: self.set.over(), ..Sources::default() };
        let Reading { settings, checked } = match sources.read() {
            Ok(reading) => reading,
            Err(error) if self.json => {
                let unread = Fault { reason: format!("{:#}", anyhow::Error::new(error)), ..Fault::default() };
                let faults = vec![Wrong::of(&unread)];
                out::json(&Report { ok: false, faults, needs: Vec::new(), settings: Vec::new() })?;
                return Ok(Exit::Config);
            }
            Err(error) => return Err(error.into()),
        };
        let faults = checked.err().map(|faults| faults.0).unwrap_or_default();
        let (needs, faults): (Vec<_>, Vec<_>) = faults.into_iter().partition(|fault| fault.on_disk);
        if self.json {
            out::json(&Report {
                ok: faults.is_empty(),
                faults: faults.iter().map(Wrong::of).collect(),
                needs: needs.iter().map(Wrong::of).collect(),
                settings: settings.all(),
            })?;
            return Ok(if faults.is_empty() { Exit::Ok } else { Exit::Config });
        }
        if !faults.is_empty() {
            return Err(config::ConfigError::Faults { path: self.file, faults: Faults(faults) }.into());
        }
        if self.show {
            out::data(as_toml(&settings.all()).trim_end())?;
        }
        for need in &needs {
            let place = need.place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default();
            out::say(format_args!("serve would need what {}{place} names: {}", need.key, need.reason));
        }
        let name = self.file.map_or_else(|| "the configuration".into(), |file| file.display().to_string());
        out::say(format_args!("{name} has no faults"));
        Ok(Exit::Ok)
    }
}

/// A file that says the same, with the origin of each value behind it.
fn as_toml(settings: &[Setting]) -> String {
    let mut text = String::new();
    let mut section = String::new();
    for Setting { key, value, is_secret, origin, .. } in settings {
        let (path, name) = key.rsplit_once('.').unwrap_or(("", key));
        if path != section {
            // Of a list, `relay.device[0]`, each entry has a header.
            let header = match path.split_once('[') {
                Some((list, _)) => format!("[[{list}]]"),
                None => format!("[{path}]"),
            };
            let _ = write!(text, "\n{header}\n");
            section = path.to_owned();
        }
        let line = match value {
            Some(value) => format!("{name} = {value}"),
            None if *is_secret => format!("#{name} = (not shown)"),
            None => format!("#{name}"),
        };
        let _ = writeln!(text, "{line:ORIGIN_COLUMN$} # {origin}");
    }
    text
}

#[cfg(test)]
mod tests {
    use toml::Value;

    use super::*;

    #[test]
    fn r8_what_is_shown_is_a_configuration_with_origins() {
        let setting = |key: &str, value: Option<Value>, origin: &str| Setting {
            key: key.into(),
            value,
            is_secret: key.contains("secret"),
            origin: origin.into(),
            is_live: true,
        };
        let text = as_toml(&[
            setting("state_dir", Some("/a\n\"b\"".into()), "default"),
            setting("relay.listen_port", Some(7.into()), "ZRC_RELAY_RELAY__LISTEN_PORT"),
            setting("relay.region", None, "not set"),
            setting("relay.device[0].id", Some("x".into()), "relay.toml, line 3"),
            setting("relay.device[1].id", Some("y".into()), "relay.toml, line 5"),
            setting("security.webhook_secret", None, "relay.toml, line 9"),
        ]);
        let read: toml::Table = text.parse().unwrap();
        assert_eq!(read["state_dir"].as_str(), Some("/a\n\"b\""));
        assert_eq!(read["relay"]["listen_port"].as_integer(), Some(7));
        assert_eq!(read["relay"]["device"].as_array().unwrap().len(), 2);
        for line in ["# ZRC_RELAY_RELAY__LISTEN_PORT", "#region", "#webhook_secret = (not shown)"] {
            assert!(text.contains(line), "{text}");
        }
    }
}
