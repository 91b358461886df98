//! The section `[relay]`: where it listens, who may use it, and for how much and how long.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroU8,
    path::{Path, PathBuf},
    time::Duration,
};

use rustls::pki_types::ServerName;
use toml::{Table, Value};

use super::{
    Certificate, DAY, DEFAULT_RELAY_PORT, Device, Fault, Issuer, PublicAddr, SECOND, Tiers, certificate,
    devices, issuers,
    read::{self, Section},
    show_duration, tiers,
};
use crate::{
    table::{Limits, Rules, Tier},
    wire::RelayId,
};

/// The most threads that move packets.
pub const MAX_SHARDS: u8 = 64;
pub(super) const DEFAULT_MAX_UNAUTHENTICATED: usize = 2048;
pub(super) const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(15);
pub(super) const DEFAULT_RULES: Rules = Rules {
    max_allocations: 1000,
    max_ledger: 100_000,
    connections_per_role: 4,
    allocation_timeout: Duration::from_secs(8 * 3600),
    idle_timeout: Duration::from_secs(30),
    pair_timeout: Duration::from_secs(120),
};

const CERTIFICATE: certificate::Keys = certificate::Keys {
    chain: "quic_cert_path",
    key: "quic_key_path",
    chain_example: r#""/etc/zrc-relay/fullchain.pem""#,
    key_example: r#""/etc/zrc-relay/privkey.pem""#,
};

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

pub(super) fn read_relay(table: Table, folder: &Path, faults: &mut Vec<Fault>) -> (Relay, Vec<String>) {
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
    let (certificate, mut key_files) = certificate::read(&mut relay, &CERTIFICATE, folder);
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
