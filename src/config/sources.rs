//! Reads a configuration from where it stands, and tells what each value is and where it comes from.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::Serialize;
use sha2::{Digest, Sha256};
use toml::{Table, Value};

use super::{
    Checked, Config, Fault, Faults, MAX_FILE_BYTES, Place,
    example::{self, Key},
    files,
    layers::{Layers, Overrides, Places},
    read,
};

/// What holds for one machine alone, unless something above says otherwise: free ports of the loopback address, every
/// device that proves its own key, no limits of rate, packets, quota or allocations per device.
const DEVELOPMENT: &str = r#"
[relay]
listen_addr = "127.0.0.1"
listen_port = 0
server_name = "localhost"
self_certified = true
max_allocations = 10_000
max_ledger = 1_000_000
max_allocations_per_device = 0
default_bandwidth_limit = 0
default_packet_rate = 0
default_quota = 0

[guard]
connections_per_minute = 0
allocation_requests_per_minute = 0

[ops]
listen_port = 0
"#;

/// Why no configuration came of what there is.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read at all.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It says what cannot be.
    #[error("{} has {} fault{}\n{faults}", named(path.as_deref()), faults.0.len(), if faults.0.len() == 1 { "" } else { "s" })]
    Faults {
        /// Which file; `None` where there is only the environment and the command line.
        path: Option<PathBuf>,
        /// All that is wrong.
        faults: Faults,
    },
}

fn named(path: Option<&Path>) -> String {
    path.map_or_else(|| "the configuration".into(), |path| path.display().to_string())
}

/// Where a configuration is read from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Paths in it are relative to the folder it lies in.
    pub file: Option<PathBuf>,
    /// Whether what suits one machine alone holds in place of a file.
    pub development: bool,
    /// What comes above.
    pub over: Overrides,
}

/// What was read.
#[derive(Debug)]
pub struct Reading {
    /// What each value is and where it comes from, right or wrong.
    pub settings: Settings,
    /// What can be run.
    pub checked: Result<Config, Faults>,
}

/// What a relay that runs is to heed.
#[derive(Debug)]
pub struct Reloaded {
    /// Without what the faults are about.
    pub config: Config,
    /// What each value is and where it comes from.
    pub settings: Settings,
    /// What is wrong and can wait.
    pub waiting: Vec<Fault>,
}

impl Sources {
    /// Reads all layers, lays them over each other and checks the result.
    ///
    /// # Errors
    /// [`ConfigError::Read`] alone: faults are part of what was read.
    pub fn read(&self) -> Result<Reading, ConfigError> {
        let (settings, checked) = self.check()?;
        Ok(Reading { settings, checked: checked.and_then(Checked::result) })
    }

    fn check(&self) -> Result<(Settings, Result<Checked, Faults>), ConfigError> {
        let text = match &self.file {
            Some(path) => files::read_text(path, MAX_FILE_BYTES)
                .map(|text| text.to_string())
                .map_err(|source| ConfigError::Read { path: path.into(), source })?,
            None if self.development => DEVELOPMENT.into(),
            None => String::new(),
        };
        let folder = self.file.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
        let mut faults = Vec::new();
        let layers = match text.parse::<Table>() {
            Ok(table) => {
                let mut layers = Layers::of(&text, table, self.file.as_deref());
                if self.file.is_none() {
                    layers.places.values_mut().for_each(|place| *place = Place::Flag("--dev"));
                }
                layers.put_over(&self.over, &mut faults);
                layers
            }
            Err(error) => {
                faults.push(not_toml(&error));
                Layers::default().put_over(&self.over, &mut faults);
                // Whatever is missing may stand there: nothing else is judged.
                return Ok((Settings::default(), Err(Faults(faults))));
            }
        };
        let settings = Settings::new(&layers);
        Ok((settings, Ok(super::check(layers, folder, faults))))
    }

    /// The same, for those who want a good configuration or none.
    ///
    /// # Errors
    /// [`ConfigError`]: the file cannot be read, or what is wrong.
    pub fn load(&self) -> Result<(Config, Settings), ConfigError> {
        let Reading { settings, checked } = self.read()?;
        match checked {
            Ok(config) => Ok((config, settings)),
            Err(faults) => Err(self.faulty(faults)),
        }
    }

    /// The same, for a relay that runs: what [can wait](Fault::can_wait) does not keep it from heeding the rest.
    ///
    /// # Errors
    /// [`ConfigError`], with all faults if one of them cannot wait.
    pub fn reload(&self) -> Result<Reloaded, ConfigError> {
        let (settings, checked) = self.check()?;
        match checked {
            Ok(Checked { config, faults, .. }) if faults.iter().all(|fault| fault.can_wait) => {
                Ok(Reloaded { config, settings, waiting: faults })
            }
            Ok(Checked { faults, .. }) | Err(Faults(faults)) => Err(self.faulty(Faults(faults))),
        }
    }

    fn faulty(&self, faults: Faults) -> ConfigError {
        ConfigError::Faults { path: self.file.clone(), faults }
    }
}

pub(super) fn not_toml(error: &toml::de::Error) -> Fault {
    let reason = format!("this is not TOML: {}", error.to_string().trim_end().replace('\n', "\n    "));
    // The error shows the line.
    Fault { reason: read::without_secrets(&reason), ..Fault::default() }
}

/// What each key is set to, and where. Of secrets it knows no more than whether they are the same.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    values: Table,
    places: Places,
}

/// One key of a configuration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// `relay.listen_port`, `relay.device[0].id`.
    pub key: String,
    /// What holds; `None` where nothing is set and nothing holds by default, or it is a secret.
    pub value: Option<Value>,
    /// Whether it is a secret, which is not shown.
    pub is_secret: bool,
    /// Where it comes from: a place, `default`, or `not set`.
    pub origin: String,
    /// Whether a running relay heeds a change.
    pub is_live: bool,
}

/// What differs between two configurations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// The keys that a running relay heeds.
    pub live: Vec<String>,
    /// Those that it reads at its start.
    pub restart: Vec<String>,
}

impl Settings {
    fn new(layers: &Layers) -> Self {
        let mut values = layers.values.clone();
        for path in read::SECRETS {
            if let Some(secret) = get_mut(&mut values, path) {
                let hash = Sha256::digest(secret.to_string().as_bytes());
                *secret = Value::String(hex::encode(hash));
            }
        }
        Self { values, places: layers.places.clone() }
    }

    /// Whether anything but a default sets this key.
    pub fn is_set(&self, path: &str) -> bool {
        get(&self.values, path).is_some()
    }

    /// The text that a key which is no secret is set to.
    pub fn text(&self, path: &str) -> Option<&str> {
        get(&self.values, path).filter(|_| !read::is_secret(path)).and_then(Value::as_str)
    }

    /// Every key there is, in the order of the example, and each entry of each list.
    pub fn all(&self) -> Vec<Setting> {
        let mut shown = Vec::new();
        let mut lists = Vec::new();
        for key in example::keys() {
            if !key.is_in_list {
                shown.push(self.setting(&key.path, &key));
                continue;
            }
            let Some((list, _)) = key.path.rsplit_once('.') else { continue };
            if lists.iter().any(|seen| seen == list) {
                continue;
            }
            lists.push(list.to_owned());
            let entries =
                get(&self.values, list).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            for (n, entry) in entries.iter().enumerate() {
                for name in entry.as_table().into_iter().flat_map(Table::keys) {
                    let mut setting = self.setting(&format!("{list}[{n}].{name}"), &key);
                    setting.value = entry.get(name).cloned();
                    shown.push(setting);
                }
            }
        }
        shown
    }

    fn setting(&self, path: &str, key: &Key) -> Setting {
        let is_secret = read::is_secret(path);
        let said = get(&self.values, path);
        let held = said.or(Some(&key.value).filter(|_| key.is_default && !key.is_in_list));
        let place = self.places.get(path).or_else(|| self.places.get(path.split('[').next().unwrap_or(path)));
        let origin = match (place, held) {
            (Some(place), _) => place.to_string(),
            (None, Some(_)) => "default".into(),
            (None, None) => "not set".into(),
        };
        let value = held.filter(|_| !is_secret).cloned();
        Setting {
            key: path.to_owned(),
            value,
            is_secret: is_secret && said.is_some(),
            origin,
            is_live: key.is_live,
        }
    }

    /// Which keys have other values than before; a list counts as one. Of the certificate for administrators, one that has
    /// come or gone is not heeded before a restart.
    pub fn changed_since(&self, before: &Self) -> Changed {
        let mut changed = Changed::default();
        for key in example::keys() {
            let path = match key.path.rsplit_once('.') {
                Some((list, _)) if key.is_in_list => list,
                _ => key.path.as_str(),
            };
            let default = Some(&key.value).filter(|_| key.is_default && !key.is_in_list);
            let value = |settings: &Self| get(&settings.values, path).or(default).map(Value::to_string);
            let comes_or_goes = REPLACED.contains(&path) && self.is_set(path) != before.is_set(path);
            let is_live = key.is_live && !comes_or_goes;
            let list = if is_live { &mut changed.live } else { &mut changed.restart };
            if value(self) != value(before) && !list.iter().any(|seen| seen == path) {
                list.push(path.to_owned());
            }
        }
        changed
    }
}

/// Keys that a running relay heeds where they are set before and after: HTTP does not become HTTPS while it is served.
const REPLACED: [&str; 2] = ["admin.cert_path", "admin.key_path"];

fn get<'a>(table: &'a Table, path: &str) -> Option<&'a Value> {
    match path.split_once('.') {
        Some((section, rest)) => get(table.get(section)?.as_table()?, rest),
        None => table.get(path),
    }
}

fn get_mut<'a>(table: &'a mut Table, path: &str) -> Option<&'a mut Value> {
    match path.split_once('.') {
        Some((section, rest)) => get_mut(table.get_mut(section)?.as_table_mut()?, rest),
        None => table.get_mut(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str, set: &[&str]) -> Settings {
        let over =
            Overrides { set: set.iter().map(|said| (*said).to_owned()).collect(), ..Overrides::default() };
        let mut layers = Layers::of(text, text.parse().unwrap(), Some(Path::new("relay.toml")));
        let mut faults = Vec::new();
        layers.put_over(&over, &mut faults);
        assert_eq!(faults, []);
        Settings::new(&layers)
    }

    #[test]
    fn r8_every_value_has_its_origin_and_secrets_are_hidden() {
        let text = "[relay]\nself_certified = true\n[[relay.tier]]\nname = \"gold\"\nquota = 7\n\
                    [security]\nwebhook_secret = \"hunter2\"\n";
        let all = settings(text, &["relay.listen_port=1", "relay.issuer=[{kid = \"a\"}]"]).all();
        let of = |key: &str| {
            let setting = all.iter().find(|setting| setting.key == key).unwrap_or_else(|| panic!("{key}"));
            (setting.value.as_ref().map(Value::to_string).unwrap_or_default(), setting.origin.as_str())
        };
        assert_eq!(of("relay.self_certified"), ("true".into(), "relay.toml, line 2"));
        assert_eq!(of("relay.tier[0].quota"), ("7".into(), "relay.toml, line 5"));
        assert_eq!(of("relay.listen_port"), ("1".into(), "--set"));
        assert_eq!(of("relay.issuer[0].kid"), ("\"a\"".into(), "--set"));
        assert_eq!(of("relay.idle_timeout"), ("\"30s\"".into(), "default"));
        assert_eq!(of("relay.region"), (String::new(), "not set"));
        assert_eq!(of("security.webhook_secret"), (String::new(), "relay.toml, line 7"));
        assert!(!format!("{all:?}{:?}", settings(text, &[])).contains("hunter2"));
    }

    #[test]
    fn r8_what_changed_is_live_or_needs_a_restart() {
        let text = "[relay]\nself_certified = true\n[[relay.tier]]\nname = \"gold\"\nquota = 7\n";
        let before = settings(text, &[]);
        let changed = |text: &str, set: &[&str]| settings(text, set).changed_since(&before);
        // What is said and what holds by default are the same.
        assert_eq!(changed(text, &["relay.listen_port=4433"]), Changed::default());
        let other = changed(&text.replace('7', "8"), &["relay.listen_port=1", "guard.retry_above=1"]);
        assert_eq!(other.live, ["relay.tier", "guard.retry_above"]);
        assert_eq!(other.restart, ["relay.listen_port"]);
    }

    #[test]
    fn r8_a_certificate_for_administrators_is_replaced_live_and_comes_and_goes_by_a_restart() {
        let with = "[admin]\nlisten_addr = \"::1\"\ncert_path = \"a\"\nkey_path = \"b\"\n";
        let without = "[admin]\nlisten_addr = \"::1\"\n";
        let changed = |before: &str, after: &str| settings(after, &[]).changed_since(&settings(before, &[]));
        let other = changed(with, &with.replace("\"a\"", "\"c\""));
        assert_eq!((other.live.len(), other.restart.len()), (1, 0), "{other:?}");
        for (before, after) in [(with, without), (without, with)] {
            let changed = changed(before, after);
            assert_eq!(changed.restart, ["admin.cert_path", "admin.key_path"]);
            assert_eq!(changed.live, [""; 0]);
        }
    }

    #[test]
    fn for_development_there_is_a_layer_that_others_lie_over() {
        let over = Overrides { set: vec!["relay.listen_port=7".into()], ..Overrides::default() };
        let sources = Sources { development: true, over, ..Sources::default() };
        let (config, settings) = sources.load().unwrap();
        assert_eq!(config.relay.listen, "127.0.0.1:7".parse().unwrap());
        assert!(!settings.is_set("state_dir") && settings.is_set("relay.self_certified"));
        let origin = settings.all().into_iter().find(|it| it.key == "relay.self_certified").unwrap().origin;
        assert_eq!(origin, "--dev");
        // It is what is served where nothing is read at all.
        let (mut read, _) = Sources { development: true, ..Sources::default() }.load().unwrap();
        let made = Config::development(read.state_dir.clone());
        read.relay.tiers.retain(|name, _| made.relay.tiers.contains_key(name));
        assert_eq!(format!("{read:?}"), format!("{made:?}"));
    }
}
