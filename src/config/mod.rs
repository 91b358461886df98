//! The configuration: TOML in, checked types out. Nothing here binds, writes or waits.
//!
//! [`Sources`] says where it stands: a file, environment variables above it, and the command line above both. Every
//! fault is reported at once, with its place. What comes of it can be run as it is: numbers are within their bounds,
//! keys are usable, certificates fit their keys. `relay.example.toml` in the top folder documents every key; tests
//! hold it to the defaults here, and to which keys a running relay heeds.

mod acme;
mod admin;
mod certificate;
mod devices;
mod example;
mod fault;
mod guard;
mod issuers;
mod layers;
mod log;
mod read;
mod security;
mod sources;
mod tiers;
mod units;
mod validity;

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU8,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use rustls::pki_types::ServerName;
use toml::{Table, Value};

pub use acme::{Acme, Challenge};
pub use admin::{Admin, DEFAULT_ADMIN_PORT, MAX_SOCKET_BYTES};
pub use certificate::Certificate;
use certificate::MAX_PEM_BYTES;
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
use read::Section;
pub use security::{Security, Webhook};
pub use sources::{Changed, ConfigError, Reading, Setting, Settings, Sources};
pub use tiers::{DEFAULT_TIER, Tiers};
pub use units::{DurationError, parse_duration, show_duration};

use crate::{
    table::{Limits, Rules, Tier},
    wire::RelayId,
};

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

const DEFAULT_MAX_UNAUTHENTICATED: usize = 2048;
/// The most threads that move packets.
pub const MAX_SHARDS: u8 = 64;
const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(15);
const DEFAULT_RULES: Rules = Rules {
    max_allocations: 1000,
    max_ledger: 100_000,
    connections_per_role: 4,
    allocation_timeout: Duration::from_secs(8 * 3600),
    idle_timeout: Duration::from_secs(30),
    pair_timeout: Duration::from_secs(120),
};

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

/// The section `[relay]`.
#[derive(Debug)]
pub struct Relay {
    /// Where to listen, UDP.
    pub listen: SocketAddr,
    /// What clients are told, when it is not the address listened on.
    pub public: Option<PublicAddr>,
    /// The name in the certificate, sent by clients as SNI.
    pub server_name: String,
    /// Where the relay stands, as its operator calls it.
    pub region: Option<String>,
    /// The audience of tokens; `None` uses the one in the state directory.
    pub relay_id: Option<RelayId>,
    /// The operator's own certificate; `None` uses the one in the state directory.
    pub certificate: Option<Certificate>,
    /// Counts and times of allocations.
    pub rules: Rules,
    /// What there is to give to devices and issuers.
    pub tiers: Tiers,
    /// How far ahead a token may expire.
    pub max_token_lifetime: Duration,
    /// Payload bytes per second of all allocations together; `None` for no such limit.
    pub global_bytes_per_sec: Option<u64>,
    /// Connections at once that have shown no valid token yet.
    pub max_unauthenticated: usize,
    /// QUIC keep-alive; holds the NAT bindings of quiet clients.
    pub keepalive: Duration,
    /// Threads that move packets; `None` for one a core.
    pub shards: Option<NonZeroU8>,
    /// Whether clients are offered a raw channel.
    pub raw_channel: bool,
    /// The tier of devices that use their id as their key; `None` where only pinned ones are welcome.
    pub self_certified: Option<Tier>,
    /// Devices that are known, here or in the file for them.
    pub devices: Vec<Device>,
    /// Back ends that may grant allocations.
    pub issuers: Vec<Issuer>,
    /// The file that lists devices.
    pub device_file: Option<PathBuf>,
    /// The files that the certificate and the keys of relay, devices and issuers were read from.
    pub key_files: Vec<PathBuf>,
}

/// The section `[ops]`.
#[derive(Debug)]
pub struct Ops {
    /// Where to listen, TCP.
    pub listen: SocketAddr,
    /// Names that HTTP is asked by here and on the admin port, besides addresses and private ones.
    pub allowed_hosts: Vec<String>,
}

/// An address as clients are told it: an IP address or a host name, perhaps with a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicAddr {
    /// An IP address without brackets, or a host name.
    pub host: String,
    /// `None` for the port that is listened on.
    pub port: Option<u16>,
}

impl FromStr for PublicAddr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "this must be an IP address or a host name, with or without :port";
        let ip = |text: &str| text.parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified());
        if let Ok(addr) = text.parse::<SocketAddr>() {
            let host =
                ip(&addr.ip().to_string()).ok_or("clients cannot connect to an unspecified address")?;
            let port =
                Some(addr.port()).filter(|port| *port != 0).ok_or("clients cannot connect to port 0")?;
            return Ok(Self { host: host.to_string(), port: Some(port) });
        }
        if text.parse::<IpAddr>().is_ok() {
            let host = ip(text).ok_or("clients cannot connect to an unspecified address")?;
            return Ok(Self { host: host.to_string(), port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok().filter(|port| *port != 0).ok_or(FORM)?)),
            None => (text, None),
        };
        match ServerName::try_from(host) {
            Ok(ServerName::DnsName(_)) => Ok(Self { host: host.to_owned(), port }),
            _ => Err(FORM),
        }
    }
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
            ops: Ops { listen: loopback, allowed_hosts: Vec::new() },
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
            Ok(table) => check(Layers::of(text, table, None), folder, Vec::new()).0,
            Err(error) => Err(Faults(vec![sources::not_toml(&error)])),
        }
    }
}

/// Checks the values of all layers; `faults` are those that came of laying them over each other. Also answers with the
/// paths of all keys there are, for the test of the example.
fn check(layers: Layers, folder: &Path, mut faults: Vec<Fault>) -> (Result<Config, Faults>, Vec<String>) {
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
    let (mut relay, relay_keys) = read_relay(relay, folder, &mut faults);
    let (guard, guard_keys) = Guard::read(guard, &mut faults);
    let (ops, ops_keys) = read_ops(ops, &mut faults);
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
    let config = if faults.is_empty() {
        Ok(Config { state_dir, acme, relay, guard, ops, security, log, admin })
    } else {
        Err(Faults(faults))
    };
    (config, keys)
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

fn read_relay(table: Table, folder: &Path, faults: &mut Vec<Fault>) -> (Relay, Vec<String>) {
    let self_certified_said = table.get("self_certified").cloned();
    let mut relay = Section::new("relay", table, faults);
    let listen_addr =
        relay.read("listen_addr", r#""0.0.0.0""#, read::ip).unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    let listen_port =
        relay.read("listen_port", "4433", read::number(0..=u16::MAX)).unwrap_or(DEFAULT_RELAY_PORT);
    let public =
        relay.read("public_addr", r#""203.0.113.7""#, |value| read::text(value)?.parse::<PublicAddr>());
    let server_name = relay.read("server_name", r#""relay.example.com""#, |value| {
        let name = read::text(value)?;
        ServerName::try_from(name.as_str())
            .map(|_| name.clone())
            .map_err(|_| "this must be a host name or an IP address, as in the certificate")
    });
    let region = relay.read("region", r#""eu-west""#, region);
    let relay_id = relay.read("relay_id", &format!("{:?}", "0f".repeat(16)), |value| {
        read::text(value)?.parse::<RelayId>().map_err(|error| error.to_string())
    });
    let (certificate, mut key_files) = certificate::read(&mut relay, folder);
    let server_name = certificate::server_name(&mut relay, server_name, certificate.as_ref());

    let limit = |relay: &mut Section<'_>, key, example, default| {
        relay.read(key, example, read::limit).unwrap_or(Some(default))
    };
    let max_allocations: usize = relay
        .read("max_allocations", "1000", read::number(1..=1_000_000))
        .unwrap_or(DEFAULT_RULES.max_allocations);
    let allocations_per_device =
        relay.read("max_allocations_per_device", "32", tiers::allocations_per_device).unwrap_or(Some(32));
    let rate_bytes_per_sec = limit(&mut relay, "default_bandwidth_limit", "1_250_000", 1_250_000);
    let rate_packets_per_sec = limit(&mut relay, "default_packet_rate", "20_000", 20_000);
    let quota_bytes = limit(&mut relay, "default_quota", "1_000_000_000", 1_000_000_000);
    let global_bytes_per_sec =
        relay.read("global_bandwidth_limit", "125_000_000", read::global_limit).unwrap_or(None);

    let mut time = |key, default: Duration, most| {
        let example = format!("{:?}", show_duration(default));
        relay.read(key, &example, read::duration(SECOND..=most)).unwrap_or(default)
    };
    let max_token_lifetime = time("max_token_lifetime", DAY, 366 * DAY);
    let allocation_timeout = time("allocation_timeout", DEFAULT_RULES.allocation_timeout, 366 * DAY);
    let idle_timeout = time("idle_timeout", DEFAULT_RULES.idle_timeout, DAY);
    let pair_timeout = time("pair_timeout", DEFAULT_RULES.pair_timeout, DAY);
    let keepalive = time("keepalive_interval", DEFAULT_KEEPALIVE, DAY);
    if keepalive >= idle_timeout {
        relay.fault(
            "keepalive_interval",
            Some(&Value::String(show_duration(keepalive))),
            format!(
                "this must be shorter than idle_timeout, {}: quiet clients would be taken for gone",
                show_duration(idle_timeout)
            ),
            format!("keepalive_interval = {:?}", show_duration(idle_timeout / 2)),
        );
    }
    let connections_per_role = relay
        .read("connections_per_role", "4", read::number(1..=64))
        .unwrap_or(DEFAULT_RULES.connections_per_role);
    let max_unauthenticated = relay
        .read("max_unauthenticated", "2048", read::number(1..=1_000_000))
        .unwrap_or(DEFAULT_MAX_UNAUTHENTICATED);
    let max_ledger = relay
        .read("max_ledger", "100_000", read::number(1..=100_000_000))
        .unwrap_or(DEFAULT_RULES.max_ledger);
    if max_ledger < max_allocations {
        relay.fault(
            "max_ledger",
            Some(&Value::Integer(i64::try_from(max_ledger).unwrap_or(i64::MAX))),
            format!("the ledger holds every allocation: it cannot be smaller than max_allocations, {max_allocations}"),
            format!("max_ledger = {}", max_allocations.saturating_mul(10)),
        );
    }

    let shards = relay
        .read("shards", "4", |value| {
            read::number(0..=MAX_SHARDS)(value).map_err(|reason| format!("{reason} (0: one a core)"))
        })
        .and_then(NonZeroU8::new);
    let raw_channel = relay.read("raw_channel", "false", read::switch).unwrap_or(true);

    let self_certified = relay.read("self_certified", "true", read::switch);
    let device_file = devices::read_device_file(&mut relay, folder);
    let [tier_tables, device_tables, issuer_tables] =
        ["tier", "device", "issuer"].map(|key| relay.tables(key));
    let is_open =
        self_certified == Some(true) || (relay.was_given("self_certified") && self_certified.is_none());
    // What is there and wrong is a fault of its own.
    let none = |tables: &Option<Vec<Table>>| tables.as_ref().is_some_and(Vec::is_empty);
    if !is_open && none(&device_tables) && none(&issuer_tables) && !relay.was_given("device_file") {
        relay.fault(
            "self_certified",
            self_certified_said.as_ref(),
            "this relay would serve nobody: pin the devices that may use it, each with a section\n    \
             [[relay.device]] or in a device_file, name a back end that grants allocations with a section\n    \
             [[relay.issuer]], or open it to every device that shows its own key"
                .into(),
            "self_certified = true".into(),
        );
    }
    let default_tier = Tier {
        limits: Limits { rate_bytes_per_sec, rate_packets_per_sec, quota_bytes, ..Limits::default() },
        allocations_per_device,
        max_token_lifetime: None,
    };
    let mut tier_faults = Vec::new();
    let (tiers, tier_keys) = tiers::read_tiers(
        tier_tables.unwrap_or_default(),
        default_tier,
        max_token_lifetime,
        &mut tier_faults,
    );
    let self_certified_tier = relay
        .read("self_certified_tier", r#""free""#, tiers::known_tier(&tiers))
        .map_or(default_tier, |(_, tier)| tier);
    let mut keys = relay.finish();
    faults.append(&mut tier_faults);
    let mut seen = HashSet::new();
    let (mut devices, device_keys) =
        devices::read_devices("relay.device", device_tables.unwrap_or_default(), &tiers, &mut seen, faults);
    let device_path = device_file.as_ref().map(|(path, _)| path.clone());
    if let Some((path, tables)) = device_file {
        let name = format!("{}: device", path.display());
        devices.extend(devices::read_devices(&name, tables.unwrap_or_default(), &tiers, &mut seen, faults).0);
        key_files.push(path);
    }
    let (issuers, issuer_keys) =
        issuers::read_issuers(issuer_tables.unwrap_or_default(), &tiers, folder, &mut key_files, faults);
    keys.retain(|key| !matches!(key.as_str(), "relay.tier" | "relay.device" | "relay.issuer"));
    keys.extend(tier_keys.into_iter().chain(device_keys).chain(issuer_keys));
    let checked = Relay {
        listen: SocketAddr::new(listen_addr, listen_port),
        public,
        server_name,
        region,
        relay_id,
        certificate,
        rules: Rules {
            max_allocations,
            max_ledger,
            connections_per_role,
            allocation_timeout,
            idle_timeout,
            pair_timeout,
        },
        tiers,
        max_token_lifetime,
        global_bytes_per_sec,
        max_unauthenticated,
        keepalive,
        shards,
        raw_channel,
        self_certified: (self_certified == Some(true)).then_some(self_certified_tier),
        devices,
        issuers,
        device_file: device_path,
        key_files,
    };
    (checked, keys)
}

/// The name goes into labels of metrics and into lists for clients: short and plain.
fn region(value: &Value) -> Result<String, &'static str> {
    let region = read::text(value)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if region.len() > 64 || !region.chars().all(plain) {
        return Err("a region is at most 64 letters, digits, dashes, underscores and dots");
    }
    Ok(region)
}

/// Names without ports; `*` for all there are.
fn hosts(value: &Value) -> Result<Vec<String>, &'static str> {
    const FORM: &str =
        "this must be a list of host names without ports, as [\"relay.example.com\"], or [\"*\"]";
    let is_name =
        |name: &&str| *name == "*" || matches!(ServerName::try_from(*name), Ok(ServerName::DnsName(_)));
    let names = value.as_array().ok_or(FORM)?.iter();
    names.map(|name| name.as_str().filter(is_name).map(str::to_owned).ok_or(FORM)).collect()
}

fn read_ops(table: Table, faults: &mut Vec<Fault>) -> (Ops, Vec<String>) {
    let mut ops = Section::new("ops", table, faults);
    let listen_addr =
        ops.read("listen_addr", r#""127.0.0.1""#, read::ip).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let listen_port = ops.read("listen_port", "9433", read::number(0..=u16::MAX)).unwrap_or(DEFAULT_OPS_PORT);
    let allowed_hosts = ops.read("allowed_hosts", r#"["relay.example.com"]"#, hosts).unwrap_or_default();
    (Ops { listen: SocketAddr::new(listen_addr, listen_port), allowed_hosts }, ops.finish())
}

#[cfg(test)]
mod tier_tests;
#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const OPEN: &str = "[relay]\nself_certified = true\n";
    /// RFC 8032, test 1.
    const KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    fn parse(text: &str) -> Result<Config, Faults> {
        Config::parse(text, Path::new("/etc/zrc"))
    }

    fn faults(text: &str) -> Vec<(String, String)> {
        let faults = parse(text).expect_err(text).0;
        faults.into_iter().map(|fault| (fault.key, fault.reason)).collect()
    }

    /// The keys of a fault-ridden `[relay]` that is open otherwise.
    fn relay_faults(lines: &str) -> Vec<String> {
        faults(&format!("{OPEN}{lines}")).into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn the_example_shows_the_defaults() {
        let example = parse(&EXAMPLE.replace("self_certified = false", "self_certified = true")).unwrap();
        assert_eq!(format!("{example:#?}"), format!("{:#?}", parse(OPEN).unwrap()));
    }

    #[test]
    fn the_example_says_what_to_decide() {
        let faults = faults(EXAMPLE);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!(faults[0].0, "relay.self_certified");
    }

    #[test]
    fn the_example_has_every_key_and_explains_it() {
        let mut shown = Vec::new();
        let mut section = String::new();
        let mut explained = false;
        for line in EXAMPLE.lines() {
            let bare = line.strip_prefix('#').unwrap_or(line);
            if let Some(name) = bare.strip_prefix('[') {
                section = format!("{}.", name.trim_matches(['[', ']']));
            } else if let Some((key, _)) = bare.split_once(" = ").filter(|_| !bare.starts_with(' ')) {
                assert!(explained, "{key} is not explained");
                shown.push(format!("{section}{key}"));
            } else {
                explained = line.starts_with("# ");
            }
        }
        let mut keys = check(Layers::default(), Path::new(""), Vec::new()).1;
        keys.sort();
        shown.sort();
        assert_eq!(shown, keys);
    }

    /// What a number or a duration of 0 does is said, and true.
    #[test]
    fn r8_the_example_says_what_0_does() {
        let mut refused = 0;
        for key in example::keys() {
            let is_duration = key.value.as_str().is_some_and(|text| parse_duration(text).is_ok());
            if !key.value.is_integer() && !is_duration {
                continue;
            }
            let (section, name) = key.path.rsplit_once('.').unwrap();
            let header = match (section, key.is_in_list) {
                ("relay", _) => String::new(),
                (_, true) => format!("[[{section}]]\nname = \"gold\"\n"),
                (_, false) => format!("[{section}]\n"),
            };
            let text = format!("{OPEN}{header}{name} = 0\n");
            // A floor of 0 is as good as a word for it.
            let said = key.about.contains("0: ") || key.about.contains(" 0 to ");
            assert_eq!(parse(&text).is_ok(), said, "{}: {}", key.path, key.about);
            refused += u32::from(!said);
            if !said {
                let bounds = [" to ", " or more", " up to "].iter().any(|words| key.about.contains(words));
                assert!(bounds, "{} does not say its bounds: {}", key.path, key.about);
            }
        }
        assert!(refused > 5, "{refused}");
    }

    #[test]
    fn the_examples_comments_can_be_used() {
        let text: String = EXAMPLE
            .lines()
            // These name files.
            .filter(|line| {
                !["quic_", "webhook_", "device_file", "key_path", "cert_path", "ca_path", "otlp_url"]
                    .iter()
                    .any(|key| line.contains(key))
            })
            .map(|line| if line.starts_with("#") && !line.starts_with("# ") { &line[1..] } else { line })
            .flat_map(|line| [line, "\n"])
            .collect();
        let config = parse(&text.replace("self_certified = false", "self_certified = true")).unwrap();
        assert_eq!(config.relay.region.as_deref(), Some("eu-west"));
        assert_eq!(config.relay.relay_id, Some(RelayId([0x0f; 16])));
        let public = PublicAddr { host: "relay.example.com".into(), port: None };
        assert_eq!(config.relay.public, Some(public));
        let relay = &config.relay;
        assert_eq!((relay.devices.len(), relay.issuers.len()), (1, 1));
        assert_eq!(relay.self_certified, Some(relay.tiers["free"]));
        assert_eq!(relay.tiers.len(), 5, "{:?}", relay.tiers.keys());
        assert!(relay.issuers[0].tiers.contains_key("gold"));
    }

    #[test]
    fn a_relay_for_nobody_or_everybody_must_be_meant() {
        for text in ["", "[relay]\n", "[relay]\nself_certified = false\n", "[relay]\ndevice = []\n"] {
            let faults = faults(text);
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert_eq!(faults[0].0, "relay.self_certified");
            assert!(faults[0].1.contains("[[relay.device]]"));
        }
        assert_eq!(
            parse(OPEN).unwrap().relay.self_certified,
            Some(parse(OPEN).unwrap().relay.tiers[DEFAULT_TIER])
        );
        let pinned =
            parse(&format!("[[relay.device]]\nid = {KEY:?}\nkey = {KEY:?}\nname = \"a\"\n")).unwrap();
        assert_eq!(pinned.relay.self_certified, None);
        assert_eq!(pinned.relay.devices.len(), 1);
        assert_eq!(pinned.relay.devices[0].name.as_deref(), Some("a"));
    }

    #[test]
    fn all_faults_come_at_once() {
        let text = r#"
            stat_dir = "/tmp"
            [relay]
            listen_prot = 4433
            listen_addr = "localhost"
            max_allocations = 0
            default_quota = -1
            idle_timeout = "soon"
            pair_timeout = "0s"
            keepalive_interval = "30s"
            region = "a b"
            self_certified = "yes"
            [[relay.device]]
            id = "00"
            [ops]
            listen_port = 65536
        "#;
        let keys: Vec<_> = faults(text).into_iter().map(|(key, _)| key).collect();
        assert_eq!(
            keys,
            [
                "stat_dir",
                "relay.listen_addr",
                "relay.region",
                "relay.max_allocations",
                "relay.default_quota",
                "relay.idle_timeout",
                "relay.pair_timeout",
                "relay.keepalive_interval",
                "relay.self_certified",
                "relay.listen_prot",
                "relay.device[0].id",
                "relay.device[0].key",
                "ops.listen_port",
            ]
        );
    }

    #[test]
    fn a_fault_says_key_value_reason_and_example() {
        let shown = parse(&format!("{OPEN}listen_port = 99999\n")).unwrap_err().to_string();
        assert_eq!(
            shown,
            "  relay.listen_port = 99999 (line 3)\n    this must be a whole number from 0 to 65535\n    for example: listen_port = 4433"
        );
        let shown = parse(&format!("{OPEN}idle_timout = \"3s\"\n")).unwrap_err().to_string();
        assert_eq!(
            shown,
            "  relay.idle_timout = \"3s\" (line 3)\n    there is no such key; is idle_timeout meant?"
        );
        let shown = parse("[relay\n").unwrap_err().to_string();
        assert!(shown.contains("this is not TOML") && shown.contains("line 1"), "{shown}");
    }

    #[test]
    fn bounds_are_what_the_example_says() {
        for (key, good, bad) in [
            ("max_allocations", &["1", "1000000"][..], &["0", "-1", "1000001", "\"1\"", "1.5"][..]),
            ("max_allocations_per_device", &["0", "4294967295"], &["-1", "4294967296"]),
            ("connections_per_role", &["1", "64"], &["0", "65"]),
            ("max_unauthenticated", &["1", "1000000"], &["0", "1000001"]),
            ("shards", &["0", "1", "64"], &["-1", "65", "\"all\""]),
            ("raw_channel", &["true", "false"], &["1", "\"on\""]),
            ("default_bandwidth_limit", &["0", "1", "9223372036854775807"], &["-1", "\"10M\""]),
            ("global_bandwidth_limit", &["0", "65536", "9223372036854775807"], &["-1", "65535", "\"1G\""]),
            (
                "max_token_lifetime",
                &["\"1s\"", "\"366d\"", "86400"],
                &["\"0s\"", "\"367d\"", "0", "-5", "true"],
            ),
            ("idle_timeout", &["\"16s\"", "\"24h\""], &["\"500ms\"", "\"25h\"", "\"15s\""]),
            ("server_name", &["\"a.example\"", "\"192.0.2.1\""], &["\"\"", "\"a b\"", "1"]),
            ("relay_id", &["\"000102030405060708090a0b0c0d0e0f\""], &["\"00\"", "\"x\""]),
            ("listen_addr", &["\"::1\"", "\"0.0.0.0\""], &["\"127.0.0.1:1\"", "\"localhost\""]),
        ] {
            for good in good {
                let extra = if key == "max_allocations" { "max_ledger = 100000000\n" } else { "" };
                let text = format!("{OPEN}{extra}{key} = {good}\n");
                assert!(parse(&text).is_ok(), "{text}: {}", parse(&text).unwrap_err());
            }
            for bad in bad {
                let found = relay_faults(&format!("{key} = {bad}\n"));
                let blamed = if *bad == "\"15s\"" { "keepalive_interval" } else { key };
                assert_eq!(found, [format!("relay.{blamed}")], "{key} = {bad}");
            }
        }
        assert_eq!(relay_faults("max_ledger = 999\n"), ["relay.max_ledger"]);
    }

    #[test]
    fn zero_is_no_limit() {
        let text = format!(
            "{OPEN}default_bandwidth_limit = 0\ndefault_packet_rate = 0\ndefault_quota = 0\nmax_allocations_per_device = 0\n"
        );
        assert_eq!(parse(&text).unwrap().relay.tiers[DEFAULT_TIER], Tier::default());
    }

    #[test]
    fn public_addresses() {
        for (text, host, port) in [
            ("203.0.113.7", "203.0.113.7", None),
            ("203.0.113.7:443", "203.0.113.7", Some(443)),
            ("2001:db8::1", "2001:db8::1", None),
            ("[2001:db8::1]:443", "2001:db8::1", Some(443)),
            ("relay.example.com", "relay.example.com", None),
            ("relay.example.com:443", "relay.example.com", Some(443)),
        ] {
            assert_eq!(text.parse(), Ok(PublicAddr { host: host.into(), port }), "{text}");
        }
        for text in ["", "0.0.0.0", "[::]:443", "1.2.3.4:0", "a:0", "a:b", ":443", "http://a", "a b"] {
            assert!(text.parse::<PublicAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn pinned_devices_have_usable_keys_and_one_each() {
        let device = |id: &str, key: &str| format!("[[relay.device]]\nid = {id:?}\nkey = {key:?}\n");
        let other = "ab".repeat(32);
        parse(&(device(KEY, KEY) + &device(&other, KEY))).unwrap();
        let twice = faults(&(device(KEY, KEY) + &device(KEY, KEY)));
        assert_eq!(twice[0].0, "relay.device[1].id");
        // The identity point: of small order.
        let weak = faults(&device(KEY, &format!("01{}", "00".repeat(31))));
        assert_eq!(weak[0].0, "relay.device[0].key");
        assert!(weak[0].1.contains("small order"), "{weak:?}");
    }
}
