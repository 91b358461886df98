//! File, environment and command line, laid over each other in rising order, and where each value comes from.
//!
//! A variable is `ZRC_RELAY_`, the section, two underscores, and the key: `ZRC_RELAY_RELAY__LISTEN_PORT` is
//! `relay.listen_port`. What stands in it is a text where the key wants one, and TOML otherwise. A value takes the place
//! of the one below as a whole, lists included.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};

use super::{
    Fault, Place,
    example::{self, Key},
    read,
};

/// What all variables begin with.
pub const VARIABLE_PREFIX: &str = "ZRC_RELAY_";
/// The one that names the file, and is no key in it.
pub const FILE_VARIABLE: &str = "ZRC_RELAY_CONFIG";

/// A secret in a file of its own is no longer than that, in bytes.
const MAX_SECRET_FILE_BYTES: u64 = 4096;

/// Places by the path of what stands there.
pub(super) type Places = BTreeMap<String, Place>;

/// What comes above the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Variables that begin with [`VARIABLE_PREFIX`], and their texts.
    pub environment: BTreeMap<String, OsString>,
    /// `KEY=VALUE`, as given to `--set`; the last one of a key counts.
    pub set: Vec<String>,
    /// What `--state-dir` says.
    pub state_dir: Option<PathBuf>,
}

impl Overrides {
    /// What the process was started with.
    pub fn environment() -> BTreeMap<String, OsString> {
        env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with(VARIABLE_PREFIX) && name != FILE_VARIABLE)
            .collect()
    }

    /// The files that variables name for what is in them.
    pub fn secret_files(&self) -> Vec<PathBuf> {
        let names_one = |name: &str| path_of(name).strip_suffix("_file").is_some_and(read::is_secret);
        self.environment.iter().filter(|(name, _)| names_one(name)).map(|(_, path)| path.into()).collect()
    }
}

/// The values of all layers.
#[derive(Debug, Clone, Default)]
pub(super) struct Layers {
    pub values: Table,
    pub places: Places,
}

impl Layers {
    /// A text with the places of what it says. What is no TOML is left to the caller.
    pub(super) fn of(text: &str, table: Table, file: Option<&Path>) -> Self {
        Self { values: table, places: lines(text, file) }
    }

    /// Lays the environment and the command line over it.
    pub(super) fn put_over(&mut self, over: &Overrides, faults: &mut Vec<Fault>) {
        let keys = example::keys();
        let mut from_environment = Places::new();
        for (name, value) in &over.environment {
            if is_a_service_link(name, value) {
                continue;
            }
            match variable(&keys, name, value) {
                Ok((path, value)) => {
                    let place = Place::Variable(name.clone());
                    if let Some(other) = from_environment.insert(path.clone(), place.clone()) {
                        let reason = format!("{other} says the same; keep one of the two");
                        let value = Some(read::NOT_SHOWN.to_owned());
                        faults.push(Fault { key: name.clone(), value, reason, ..Fault::default() });
                        continue;
                    }
                    self.put(&path, value, place);
                }
                Err(fault) => faults.push(*fault),
            }
        }
        for said in &over.set {
            match set(&keys, said) {
                Ok((path, value)) => self.put(path, value, Place::Flag("--set")),
                Err(fault) => faults.push(*fault),
            }
        }
        if let Some(folder) = &over.state_dir {
            let text = folder.to_string_lossy().into_owned();
            self.put("state_dir", from_here("state_dir", Value::String(text)), Place::Flag("--state-dir"));
        }
    }

    fn put(&mut self, path: &str, value: Value, place: Place) {
        let (section, key) = path.rsplit_once('.').unwrap_or(("", path));
        let mut table = &mut self.values;
        for part in section.split('.').filter(|part| !part.is_empty()) {
            let inner = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = inner else {
                // It is a fault of its own that the file has no section there.
                return;
            };
            table = inner;
        }
        // A secret said here, or in a file named here, takes the place of both below.
        let other = match path.strip_suffix("_file") {
            Some(base) => base.to_owned(),
            None => format!("{path}_file"),
        };
        if read::is_secret(path) || read::is_secret(&other) {
            table.remove(other.rsplit('.').next().unwrap_or_default());
            self.places.remove(&other);
        }
        table.insert(key.to_owned(), value);
        let below = [format!("{path}."), format!("{path}[")];
        self.places.retain(|path, _| !below.iter().any(|below| path.starts_with(below.as_str())));
        self.places.insert(path.to_owned(), place);
    }

    /// Where this stands, or what it would stand in.
    pub(super) fn place_of(&self, path: &str) -> Option<&Place> {
        let mut path = path;
        loop {
            if let Some(place) = self.places.get(path) {
                return Some(place);
            }
            path = path.rsplit_once('.')?.0;
        }
    }
}

/// The place of each key of a text, of each table, and of each entry of a list.
pub(super) fn lines(text: &str, file: Option<&Path>) -> Places {
    let Ok(table) = DeTable::parse(text) else { return Places::new() };
    let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
    let place = |at: usize| {
        let line = ends.partition_point(|end| *end < at);
        let begin = line.checked_sub(1).and_then(|before| ends.get(before)).map_or(0, |end| end + 1);
        let before = text.get(begin..at).unwrap_or_default().trim_start_matches('\u{feff}');
        // A header begins with its bracket.
        let before = if before.trim_start_matches('[').is_empty() { "" } else { before };
        Place::Line { file: file.map(Path::to_owned), line: line + 1, column: before.chars().count() + 1 }
    };
    let mut places = Places::new();
    walk_table("", table.get_ref(), &place, &mut places);
    places
}

fn walk_table(prefix: &str, table: &DeTable<'_>, place: &impl Fn(usize) -> Place, places: &mut Places) {
    for (key, value) in table {
        let path = format!("{prefix}{}", key.get_ref());
        places.insert(path.clone(), place(key.span().start));
        walk(&path, value.get_ref(), place, places);
    }
}

fn walk(path: &str, value: &DeValue<'_>, place: &impl Fn(usize) -> Place, places: &mut Places) {
    match value {
        DeValue::Table(table) => walk_table(&format!("{path}."), table, place, places),
        DeValue::Array(list) => {
            for (n, entry) in list.iter().enumerate() {
                let path = format!("{path}[{n}]");
                places.insert(path.clone(), place(entry.span().start));
                walk(&path, entry.get_ref(), place, places);
            }
        }
        _ => {}
    }
}

/// The key that a variable of this name would be for.
fn path_of(name: &str) -> String {
    name.strip_prefix(VARIABLE_PREFIX).unwrap_or(name).replace("__", ".").to_lowercase()
}

/// The key that a variable is for, and the value that it gives it.
fn variable(keys: &[Key], name: &str, value: &OsString) -> Result<(String, Value), Box<Fault>> {
    let path = path_of(name);
    let value_shown = Some(read::NOT_SHOWN.to_owned());
    let fault = |reason: String| {
        Box::new(Fault { key: name.to_owned(), value: value_shown.clone(), reason, ..Fault::default() })
    };
    let text = value.to_str().ok_or_else(|| fault("the variable holds no text (UTF-8)".into()))?;
    if let Some(key) = known(keys, &path) {
        return Ok((path, from_here(&key.path, typed(&key.value, text))));
    }
    if let Some((secret, key)) = path
        .strip_suffix("_file")
        .filter(|path| read::is_secret(path))
        .and_then(|path| Some((path, known(keys, path)?)))
    {
        let said = read::text_file(Path::new(text), MAX_SECRET_FILE_BYTES)
            .map_err(|reason| Box::new(reason.fault(name, Some(text))))?;
        return Ok((secret.to_owned(), typed(&key.value, said.trim())));
    }
    let nearest = keys
        .iter()
        .map(|key| format!("{VARIABLE_PREFIX}{}", key.path.replace('.', "__").to_uppercase()))
        .map(|known| (read::distance(&known, name), known))
        .min();
    // Its value is not shown: it may be a secret under a wrong name.
    Err(fault(match nearest {
        Some((distance, known)) if distance <= 4 => format!("there is no such variable; is {known} meant?"),
        _ => format!(
            "there is no such variable; {VARIABLE_PREFIX}SECTION__KEY sets a key, as {VARIABLE_PREFIX}RELAY__LISTEN_PORT"
        ),
    }))
}

/// The key of `KEY=VALUE`, and its value.
fn set<'a>(keys: &[Key], said: &'a str) -> Result<(&'a str, Value), Box<Fault>> {
    let place = Some(Place::Flag("--set"));
    let example = "--set relay.listen_port=4434".to_owned();
    let Some((path, text)) = said.split_once('=').map(|(path, text)| (path.trim(), text.trim())) else {
        let reason = "this must be KEY=VALUE".into();
        return Err(Box::new(Fault { key: said.into(), reason, example, place, ..Fault::default() }));
    };
    if let Some(key) = known(keys, path) {
        return Ok((path, from_here(&key.path, typed(&key.value, text))));
    }
    let nearest = keys.iter().map(|key| (read::distance(&key.path, path), &key.path)).min();
    let reason = match nearest {
        Some((distance, known)) if distance <= 4 => format!("there is no such key; is {known} meant?"),
        _ => "there is no such key; relay.example.toml has all of them".into(),
    };
    Err(Box::new(Fault { key: path.into(), reason, example, place, ..Fault::default() }))
}

/// A key that can be set as a whole: a list is one.
fn known<'a>(keys: &'a [Key], path: &str) -> Option<&'a Key> {
    let of_list =
        |key: &Key| key.is_in_list && key.path.rsplit_once('.').is_some_and(|(list, _)| list == path);
    keys.iter().find(|key| (key.path == path && !key.is_in_list) || of_list(key))
}

/// A text where the key wants one; otherwise TOML, and if it is none, the text for the reader to refuse.
fn typed(example: &Value, text: &str) -> Value {
    let toml = || {
        let mut table = format!("it = {text}").parse::<Table>().ok().filter(|table| table.len() == 1)?;
        table.remove("it")
    };
    let as_text = || Value::String(text.to_owned());
    match example {
        Value::String(_) if !text.starts_with(['"', '\'', '[']) => as_text(),
        // Of a list of tables, `example` is one of their values: what comes is a list all the same.
        Value::String(_) => toml().filter(|value| value.is_str() || value.is_array()).unwrap_or_else(as_text),
        _ => toml().unwrap_or_else(as_text),
    }
}

/// A path that is not the file's is relative to where the program was started.
fn from_here(path: &str, value: Value) -> Value {
    let names_a_file = ["_path", "_file", "_dir"].iter().any(|ending| path.ends_with(ending));
    match &value {
        Value::String(text) if names_a_file && !text.is_empty() => match env::current_dir() {
            Ok(here) => Value::String(here.join(text).to_string_lossy().into_owned()),
            Err(_) => value,
        },
        _ => value,
    }
}

/// Kubernetes tells each container of the services beside it by variables of their names: a service `zrc-relay`, or
/// `zrc-relay-ops`, makes variables that begin as ours do, and are none.
fn is_a_service_link(name: &str, value: &OsString) -> bool {
    let name = name.strip_prefix(VARIABLE_PREFIX).unwrap_or(name);
    let is_url = value
        .to_str()
        .is_some_and(|value| ["tcp://", "udp://", "sctp://"].iter().any(|it| value.starts_with(it)));
    let name = format!("_{name}");
    let of_a_port = name.split("_PORT_").nth(1).is_some_and(|port| {
        let mut parts = port.split('_');
        parts.next().is_some_and(|number| number.parse::<u16>().is_ok())
            && parts.next().is_some_and(|protocol| matches!(protocol, "TCP" | "UDP" | "SCTP"))
            && parts.next().is_none_or(|what| matches!(what, "ADDR" | "PORT" | "PROTO"))
    });
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && is_url)
        || of_a_port
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::{Config, Sources};

    fn environment(variables: &[(&str, &str)]) -> BTreeMap<String, OsString> {
        variables.iter().map(|(name, value)| (format!("ZRC_RELAY_{name}"), value.into())).collect()
    }

    fn read(text: &str, variables: &[(&str, &str)], set: &[&str]) -> Result<Config, Vec<Fault>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("relay.toml");
        fs::write(&file, text).unwrap();
        let over = Overrides {
            environment: environment(variables),
            set: set.iter().map(|said| (*said).to_owned()).collect(),
            state_dir: None,
        };
        let reading = Sources { file: Some(file), over, ..Sources::default() }.read().unwrap();
        reading.checked.map_err(|faults| faults.0)
    }

    const OPEN: &str = "[relay]\nself_certified = true\nlisten_port = 1\nregion = \"file\"\n";

    #[test]
    fn r8_file_environment_and_command_line_in_rising_order() {
        let port = |variables: &[(&str, &str)], set: &[&str]| {
            let config = read(OPEN, variables, set).unwrap();
            (config.relay.listen.port(), config.relay.region.unwrap())
        };
        let variable = [("RELAY__LISTEN_PORT", "2"), ("RELAY__REGION", "environment")];
        assert_eq!(port(&[], &[]), (1, "file".into()));
        assert_eq!(port(&variable, &[]), (2, "environment".into()));
        assert_eq!(port(&variable, &["relay.listen_port=3"]), (3, "environment".into()));
        assert_eq!(port(&[], &["relay.listen_port=3", "relay.listen_port = 4"]), (4, "file".into()));
    }

    #[test]
    fn r8_the_environment_alone_configures_a_relay() {
        let over = Overrides {
            environment: environment(&[
                ("RELAY__SELF_CERTIFIED", "true"),
                ("RELAY__REGION", "17"),
                ("RELAY__IDLE_TIMEOUT", "1m"),
                ("RELAY__TIER", "[{name = \"gold\", quota = 7}]"),
                ("GUARD__BLOCK", "[\"192.0.2.0/24\"]"),
                ("STATE_DIR", "/somewhere"),
            ]),
            ..Overrides::default()
        };
        let config = Sources { over, ..Sources::default() }.read().unwrap().checked.unwrap();
        assert_eq!(config.relay.region.as_deref(), Some("17"), "a text where a text is wanted");
        assert_eq!(config.relay.rules.idle_timeout.as_secs(), 60);
        assert_eq!(config.relay.tiers["gold"].limits.quota_bytes, Some(7));
        assert_eq!(config.guard.block.len(), 1);
        assert_eq!(config.state_dir, Path::new("/somewhere"));
    }

    #[test]
    fn r8_all_faults_of_all_layers_come_at_once_with_their_places() {
        let faults = read(
            "[relay]\nself_certified = true\nlisten_port = 99999\n[[relay.device]]\nid = 7\n[ops]\nport = 1\n",
            &[("RELAY__LISTEN_PROT", "1"), ("RELAY__MAX_ALLOCATIONS", "none"), ("HOME", "/"), ("OPS", "{}")],
            &["relay.idle_timeout=soon", "relay.idel_timeout=1s", "nonsense"],
        )
        .unwrap_err();
        let found: Vec<_> = faults
            .iter()
            .map(|fault| {
                let place = fault.place.as_ref().map(|place| match place {
                    Place::Line { line, .. } => line.to_string(),
                    other => other.to_string(),
                });
                (fault.key.as_str(), place.unwrap_or_default())
            })
            .collect();
        let expected = [
            ("ZRC_RELAY_HOME", ""),
            ("ZRC_RELAY_OPS", ""),
            ("ZRC_RELAY_RELAY__LISTEN_PROT", ""),
            ("relay.idel_timeout", "--set"),
            ("nonsense", "--set"),
            ("relay.listen_port", "3"),
            ("relay.max_allocations", "ZRC_RELAY_RELAY__MAX_ALLOCATIONS"),
            ("relay.idle_timeout", "--set"),
            ("relay.device[0].id", "5"),
            // What is missing is where its section stands.
            ("relay.device[0].key", "4"),
            ("ops.port", "7"),
        ];
        assert_eq!(found, expected.map(|(key, place)| (key, place.to_owned())));
        assert!(faults[2].reason.contains("is ZRC_RELAY_RELAY__LISTEN_PORT meant"), "{}", faults[2].reason);
        assert!(faults[3].reason.contains("is relay.idle_timeout meant"), "{}", faults[3].reason);
        assert_eq!(faults[6].example, "ZRC_RELAY_RELAY__MAX_ALLOCATIONS=1000");
        assert_eq!(faults[7].example, "--set relay.idle_timeout=30s");
    }

    #[test]
    fn r8_a_secret_comes_from_a_file_and_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let name = path.to_str().unwrap();
        fs::write(&path, "https://u:hunter2@siem.example.com/\n").unwrap();
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let variables = [("SECURITY__WEBHOOK_URL_FILE", name), ("SECURITY__WEBHOOK_SECRET", secret)];
        let over = Overrides { environment: environment(&variables), ..Overrides::default() };
        assert_eq!(over.secret_files(), std::slice::from_ref(&path));
        let webhook = read(OPEN, &variables, &[]).unwrap().security.webhook.unwrap();
        assert_eq!(webhook.url.host_str(), Some("siem.example.com"));
        let both = [variables[0], variables[1], ("SECURITY__WEBHOOK_URL", "http://a")];
        let faults = read(OPEN, &both, &[]).unwrap_err();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].reason.contains("keep one"), "{faults:?}");
        // A misspelt one does not give it away, nor does a wrong one.
        fs::write(&path, "hunter2").unwrap();
        let wrong =
            [("SECURITY__WEBHOOK_SECRET", "hunter2"), ("SECURITY__WEBHOK_SECRET", "hunter2"), variables[0]];
        let faults = read(OPEN, &wrong, &[]).unwrap_err();
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(!format!("{faults:?}").contains("hunter2"), "{faults:?}");
        // One layer's secret takes the place of the other kind below.
        let text = format!("{OPEN}[security]\nwebhook_url = \"http://a\"\nwebhook_secret = {secret:?}\n");
        fs::write(&path, secret).unwrap();
        read(&text, &[("SECURITY__WEBHOOK_SECRET_FILE", name)], &[]).unwrap();
        fs::remove_file(&path).unwrap();
        let faults = read(OPEN, &variables, &[]).unwrap_err();
        assert!(faults[0].on_disk, "{faults:?}");
    }

    #[test]
    fn a_service_of_our_name_beside_us_is_no_fault() {
        let links = [
            ("SERVICE_HOST", "10.0.0.1"),
            ("SERVICE_PORT", "4433"),
            ("SERVICE_PORT_QUIC", "4433"),
            ("PORT", "udp://10.0.0.1:4433"),
            ("PORT_4433_UDP", "udp://10.0.0.1:4433"),
            ("PORT_4433_UDP_ADDR", "10.0.0.1"),
            ("OPS_SERVICE_HOST", "10.0.0.2"),
            ("OPS_PORT_9433_TCP_PROTO", "tcp"),
        ];
        read(OPEN, &links, &[]).unwrap();
        for name in ["PORT", "PORT_4433", "PORT_X_UDP", "SERVICE"] {
            assert_eq!(read(OPEN, &[(name, "4433")], &[]).unwrap_err().len(), 1, "{name}");
        }
    }

    #[test]
    fn lines_are_those_of_an_editor() {
        let places =
            lines("a = 1\n\n[b]\r\nc = [\n  1,\n  2]\n[[d]]\ne = { \"ä\" = 1, f = 1 }\n[[d]]\n", None);
        let found: Vec<_> = places.iter().map(|(path, place)| format!("{path} {place}")).collect();
        assert_eq!(
            found,
            [
                "a line 1",
                "b line 3",
                "b.c line 4",
                "b.c[0] line 5, column 3",
                "b.c[1] line 6, column 3",
                "d line 7",
                "d[0] line 7",
                "d[0].e line 8",
                "d[0].e.f line 8, column 16",
                "d[0].e.ä line 8, column 7",
                "d[1] line 9"
            ]
        );
    }
}
