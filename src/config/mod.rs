//! The configuration: TOML in, checked types out. Nothing here binds, writes or waits.
//!
//! [`Sources`] says where it stands: a file, environment variables above it, and the command line above both. Every
//! fault is reported at once, with its place. What comes of it can be run as it is: numbers are within their bounds,
//! keys are usable, certificates fit their keys. `relay.example.toml` in the top folder documents every key; tests
//! hold it to the defaults here, and to which keys a running relay heeds.

mod acme;
mod address;
mod admin;
mod certificate;
mod devices;
mod example;
mod fault;
mod files;
mod guard;
mod issuers;
mod layers;
mod log;
mod ops;
mod read;
mod relay;
mod security;
mod sources;
mod tiers;
mod units;
mod validity;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use toml::Table;

pub use acme::{Acme, Challenge, covers};
pub use address::PublicAddr;
pub use admin::{Admin, DEFAULT_ADMIN_PORT, MAX_SOCKET_BYTES};
pub use certificate::Certificate;
pub use devices::{Device, Standing};
pub use example::EXAMPLE;
#[cfg(test)]
pub(crate) use example::keys as example_keys;
pub use fault::{Fault, Faults, Place};
pub use guard::Guard;
pub use issuers::Issuer;
use layers::Layers;
pub use layers::{FILE_VARIABLE, Overrides, VARIABLE_PREFIX};
pub use log::Log;
pub use ops::Ops;
use read::Section;
use relay::{DEFAULT_KEEPALIVE, DEFAULT_MAX_UNAUTHENTICATED, DEFAULT_RULES};
pub use relay::{MAX_SHARDS, Relay};
pub use security::{Security, Webhook};
pub use sources::{Changed, ConfigError, Reading, Reloaded, Setting, Settings, Sources};
pub use tiers::{DEFAULT_TIER, Tiers};
pub use units::{DurationError, parse_duration, show_duration};

use crate::table::{Rules, Tier};

/// The relay's UDP port: no privilege needed, not STUN's or TURN's, and what QUIC's own examples use.
pub const DEFAULT_RELAY_PORT: u16 = 4433;
/// The TCP port of health, metrics and descriptor: the relay's in the range where metrics are looked for.
pub const DEFAULT_OPS_PORT: u16 = 9433;
/// Where `serve` keeps its certificate, its relay id and `relay.json`.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/zrc-relay";
/// The name in the certificate that the relay makes for itself.
pub const DEFAULT_SERVER_NAME: &str = "zrc-relay";

/// A file larger than this is no configuration.
const MAX_FILE_BYTES: u64 = 1 << 20;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// All that `serve` is told.
#[derive(Debug)]
pub struct Config {
    /// Where certificate, keys, relay id and `relay.json` are kept.
    pub state_dir: PathBuf,
    /// The relay itself.
    pub relay: Relay,
    /// Who may come, how often, and what floods bring.
    pub guard: Guard,
    /// Health, metrics and descriptor over HTTP.
    pub ops: Ops,
    /// Security events.
    pub security: Security,
    /// What is logged, and how it looks.
    pub log: Log,
    /// Certificates from an authority.
    pub acme: Acme,
    /// Those who look after it.
    pub admin: Admin,
}

impl Config {
    /// For one machine alone: free ports of the loopback address, every device that proves its own key, no limits
    /// of rate, packets, quota or allocations per device.
    pub fn development(state_dir: PathBuf) -> Self {
        let loopback = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        Self {
            state_dir,
            acme: Acme::default(),
            relay: Relay {
                listen: loopback,
                public: None,
                server_name: "localhost".into(),
                region: None,
                relay_id: None,
                certificate: None,
                rules: Rules { max_allocations: 10_000, max_ledger: 1_000_000, ..DEFAULT_RULES },
                tiers: Tiers::from([(DEFAULT_TIER.into(), Tier::default())]),
                max_token_lifetime: DAY,
                global_bytes_per_sec: None,
                max_unauthenticated: DEFAULT_MAX_UNAUTHENTICATED,
                keepalive: DEFAULT_KEEPALIVE,
                shards: None,
                raw_channel: true,
                self_certified: Some(Tier::default()),
                devices: Vec::new(),
                issuers: Vec::new(),
                device_file: None,
                key_files: Vec::new(),
            },
            guard: Guard::without_limits(),
            ops: Ops { listen: loopback, countries: None, geoip_file: None, allowed_hosts: Vec::new() },
            security: Security::default(),
            log: Log::default(),
            admin: Admin::default(),
        }
    }

    /// Checks a text; `folder` is what relative paths in it start from.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Faults> {
        match text.parse::<Table>() {
            Ok(table) => check(Layers::of(text, table, None), folder, Vec::new()).result(),
            Err(error) => Err(Faults(vec![sources::not_toml(&error)])),
        }
    }
}

/// What came of a check.
struct Checked {
    /// With the default in the place of what is wrong: not to be used where there are faults that cannot wait.
    config: Config,
    faults: Vec<Fault>,
    /// The paths of all keys there are, for the test of the example.
    #[cfg_attr(not(test), allow(dead_code, reason = "for a test"))]
    keys: Vec<String>,
}

impl Checked {
    fn result(self) -> Result<Config, Faults> {
        if self.faults.is_empty() { Ok(self.config) } else { Err(Faults(self.faults)) }
    }
}

/// Checks the values of all layers; `faults` are those that came of laying them over each other.
fn check(layers: Layers, folder: &Path, mut faults: Vec<Fault>) -> Checked {
    let mut top = Section::new("", layers.values.clone(), &mut faults);
    let state_dir = top
        .read("state_dir", &format!("{DEFAULT_STATE_DIR:?}"), |value| {
            read::text(value).map(|dir| folder.join(dir))
        })
        .unwrap_or_else(|| DEFAULT_STATE_DIR.into());
    let relay = top.table("relay");
    let guard = top.table("guard");
    let ops = top.table("ops");
    let security = top.table("security");
    let log = top.table("log");
    let admin = top.table("admin");
    let acme = top.table("acme");
    let mut keys = top.finish();
    let is_named = relay.contains_key("server_name");
    let (mut relay, relay_keys) = relay::read_relay(relay, folder, &mut faults);
    let (guard, guard_keys) = Guard::read(guard, &mut faults);
    let (ops, ops_keys) = ops::read_ops(ops, folder, &mut faults);
    let (security, security_keys) = Security::read(security, folder, &mut faults);
    let (log, log_keys) = Log::read(log, &mut faults);
    let (admin, admin_keys) = Admin::read(admin, folder, &mut faults);
    keys.retain(|key| {
        !matches!(key.as_str(), "acme" | "relay" | "guard" | "ops" | "security" | "log" | "admin")
    });
    let (acme, acme_keys) = Acme::read(acme, folder, &mut relay, is_named, &mut faults);
    keys.extend(relay_keys);
    keys.extend(acme_keys);
    keys.extend(guard_keys);
    keys.extend(ops_keys);
    keys.extend(security_keys);
    keys.extend(log_keys);
    keys.extend(admin_keys);
    put_in_place(&mut faults, &layers, relay.device_file.as_deref());
    Checked { config: Config { state_dir, acme, relay, guard, ops, security, log, admin }, faults, keys }
}

/// Says of each fault where it is.
fn put_in_place(faults: &mut [Fault], layers: &Layers, device_file: Option<&Path>) {
    let mut in_device_file = None;
    for fault in faults.iter_mut().filter(|fault| fault.place.is_none()) {
        if let Some(place) = layers.place_of(&fault.key) {
            fault.put(place.clone());
            continue;
        }
        let Some(file) = device_file else { continue };
        let prefix = format!("{}: ", file.display());
        let Some(path) = fault.key.strip_prefix(&prefix) else { continue };
        // Read anew: nobody needs the lines of a good one.
        let places = in_device_file.get_or_insert_with(|| {
            let text = read::text_file(file, devices::MAX_FILE_BYTES);
            text.map(|text| layers::lines(&text, Some(file))).unwrap_or_default()
        });
        let section = path.rsplit_once('.').map_or(path, |(section, _)| section);
        if let Some(place) = places.get(path).or_else(|| places.get(section)) {
            fault.put(place.clone());
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tier_tests;
