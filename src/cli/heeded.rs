//! What of a configuration a running relay heeds, told as those who are to heed it want it.

use crate::{
    config::{self, Standing},
    guard::{EventSettings, GuardSettings, PerMinute},
    relay::{Admission, Issuer, LiveLimits, Pinned},
};

/// Who may have what, as the relay wants it told.
pub(super) fn admission(wanted: &config::Relay) -> Admission {
    let mut admission = Admission {
        self_certified: wanted.self_certified,
        max_token_lifetime: wanted.max_token_lifetime,
        ..Admission::default()
    };
    for device in &wanted.devices {
        if let Some(name) = &device.name {
            admission.names.insert(device.id, name.as_str().into());
        }
        match device.standing {
            Standing::Pinned { key, tier } => {
                admission.pinned.insert(device.id, Pinned { key, tier });
            }
            Standing::Revoked => {
                admission.revoked.insert(device.id);
            }
        }
    }
    for config::Issuer { kid, key, tier, tiers } in &wanted.issuers {
        let tiers = tiers.iter().map(|(name, tier)| (name.clone(), *tier)).collect();
        admission.issuers.insert(kid.as_str().into(), Issuer { key: *key, tier: *tier, tiers });
    }
    admission
}

/// How much there is, as the relay wants it told.
pub(super) fn live_limits(wanted: &config::Relay) -> LiveLimits {
    LiveLimits {
        rules: wanted.rules,
        global_bytes_per_sec: wanted.global_bytes_per_sec,
        max_unauthenticated: wanted.max_unauthenticated,
    }
}

/// How security events are logged.
pub(super) fn event_settings(wanted: &config::Security) -> EventSettings {
    EventSettings { log_addresses: wanted.log_addresses, log_lines_per_sec: wanted.log_lines_per_sec }
}

/// Who may come and how often, as the relay wants it told.
pub(super) fn guard_settings(wanted: config::Guard) -> GuardSettings {
    GuardSettings {
        connections: PerMinute::new(wanted.connections_per_minute),
        allocation_requests: PerMinute::new(wanted.allocation_requests_per_minute),
        exempt_loopback: wanted.exempt_loopback,
        exempt: wanted.exempt,
        allow: wanted.allow,
        block: wanted.block,
        retry_above: wanted.retry_above,
        silence_above: wanted.silence_above,
        max_sources: wanted.max_sources,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, example_keys};

    /// Another value for each key, in a configuration that is open and has one entry of each list.
    const OTHERS: &[(&str, &str)] = &[
        ("state_dir", "\"/other\""),
        ("relay.listen_addr", "\"127.0.0.1\""),
        ("relay.listen_port", "7"),
        ("relay.public_addr", "\"192.0.2.1\""),
        ("relay.server_name", "\"other\""),
        ("relay.region", "\"other\""),
        ("relay.relay_id", "\"0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e\""),
        ("relay.self_certified", "false"),
        ("relay.self_certified_tier", "\"free\""),
        ("relay.max_allocations", "7"),
        ("relay.max_allocations_per_device", "7"),
        ("relay.max_ledger", "7000"),
        ("relay.connections_per_role", "7"),
        ("relay.max_unauthenticated", "7"),
        ("relay.default_bandwidth_limit", "7"),
        ("relay.default_packet_rate", "7"),
        ("relay.global_bandwidth_limit", "70_000"),
        ("relay.default_quota", "7"),
        ("relay.max_token_lifetime", "\"7m\""),
        ("relay.allocation_timeout", "\"7m\""),
        ("relay.idle_timeout", "\"7m\""),
        ("relay.pair_timeout", "\"7m\""),
        ("relay.keepalive_interval", "\"7s\""),
        ("relay.shards", "7"),
        ("relay.raw_channel", "false"),
        ("relay.tier.name", "\"other\""),
        ("relay.tier.bandwidth_limit", "7"),
        ("relay.tier.packet_rate", "7"),
        ("relay.tier.quota", "7"),
        ("relay.tier.max_allocations_per_device", "7"),
        ("relay.tier.max_token_lifetime", "\"7m\""),
        ("relay.tier.weight", "7"),
        ("relay.device.id", "\"0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e\""),
        ("relay.device.key", "\"3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c\""),
        ("relay.device.name", "\"other\""),
        ("relay.device.tier", "\"free\""),
        ("relay.device.revoked", "true"),
        ("relay.issuer.kid", "\"other\""),
        ("relay.issuer.key", "\"3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c\""),
        ("relay.issuer.tier", "\"free\""),
        ("relay.issuer.tiers", "[\"free\"]"),
        ("guard.connections_per_minute", "7"),
        ("guard.allocation_requests_per_minute", "7"),
        ("guard.exempt_loopback", "false"),
        ("guard.exempt", "[\"192.0.2.1\"]"),
        ("guard.allow", "[\"192.0.2.1\"]"),
        ("guard.block", "[\"192.0.2.1\"]"),
        ("guard.retry_above", "7"),
        ("guard.silence_above", "7"),
        ("guard.max_sources", "7000"),
        ("ops.listen_addr", "\"::1\""),
        ("ops.listen_port", "7"),
        ("acme.contact", "\"a@b\""),
        ("acme.directory", "\"https://other\""),
        ("acme.http_addr", "\"127.0.0.1\""),
        ("acme.http_port", "7"),
        ("ops.allowed_hosts", "[\"other.example\"]"),
        ("admin.socket", "\"/other\""),
        ("admin.listen_addr", "\"127.0.0.1\""),
        ("admin.token_file", "\"/other\""),
        ("security.log_addresses", "true"),
        ("security.log_lines_per_sec", "7"),
        ("log.level", "\"debug\""),
        ("log.format", "\"json\""),
    ];
    /// What has no other value without a file, a second key or a feature, and is shown where it is read.
    const ELSEWHERE: &[&str] = &[
        "relay.quic_cert_path",
        "relay.quic_key_path",
        "relay.device_file",
        "ops.geoip_path",
        "relay.issuer.key_path",
        "acme.domains",
        "acme.accept_terms",
        "acme.ca_path",
        "acme.challenge",
        "acme.dns_hook",
        "acme.dns_wait",
        "admin.listen_port",
        "admin.cert_path",
        "admin.key_path",
        "admin.allow_cleartext",
        "security.webhook_url",
        "security.webhook_secret",
        "security.webhook_secret_file",
        "log.otlp_url",
    ];

    /// With another value for one key, if any.
    fn configured(other: Option<(&str, &str)>) -> Config {
        const KEY: &str = "\"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a\"";
        let mut values = vec![
            ("relay.self_certified", "true"),
            ("relay.max_allocations", "100"),
            ("relay.tier.name", "\"gold\""),
            ("relay.device.id", KEY),
            ("relay.device.key", KEY),
            ("relay.issuer.kid", "\"k\""),
            ("relay.issuer.key", KEY),
            ("relay.issuer.tiers", "[\"free\", \"paid\", \"gold\"]"),
        ];
        let Some((key, value)) = other else {
            return Config::parse(&text_of(&values), Path::new("")).unwrap();
        };
        values.retain(|(path, _)| *path != key);
        if key == "relay.tier.name" {
            values.retain(|(path, _)| *path != "relay.issuer.tiers");
        }
        values.push((key, value));
        Config::parse(&text_of(&values), Path::new("")).unwrap_or_else(|faults| panic!("{key}: {faults}"))
    }

    fn text_of(values: &[(&str, &str)]) -> String {
        let sections = [
            "",
            "relay",
            "guard",
            "acme",
            "ops",
            "admin",
            "security",
            "log",
            "relay.tier",
            "relay.device",
            "relay.issuer",
        ];
        let mut text = String::new();
        for section in sections {
            match section {
                "" => {}
                "relay.tier" | "relay.device" | "relay.issuer" => text += &format!("[[{section}]]\n"),
                _ => text += &format!("[{section}]\n"),
            }
            for (path, value) in values {
                let (of, key) = path.rsplit_once('.').unwrap_or(("", path));
                if of == section {
                    text += &format!("{key} = {value}\n");
                }
            }
        }
        text
    }

    /// What [`Running::apply`] and the log put in force.
    fn live(config: &Config) -> String {
        // The number of sources is one of the guard's settings, and it is not heeded.
        let guard = config::Guard { max_sources: 5000, ..config.guard.clone() };
        let Admission { self_certified, max_token_lifetime, .. } = admission(&config.relay);
        format!(
            "{self_certified:?} {max_token_lifetime:?} {:?} {:?} {:?} {guard:?} {:?} {:?} {:?}",
            config.relay.server_name,
            config.relay.devices,
            config.relay.issuers,
            config.log.level,
            live_limits(&config.relay),
            event_settings(&config.security),
        )
    }

    #[test]
    fn r8_every_key_is_shown_to_be_heeded_or_not_in_one_place() {
        let mut shown: Vec<&str> = OTHERS.iter().map(|(path, _)| *path).collect();
        shown.extend(ELSEWHERE);
        shown.sort_unstable();
        let mut keys: Vec<String> = example_keys().into_iter().map(|key| key.path).collect();
        keys.sort_unstable();
        assert_eq!(shown, keys);
    }

    #[test]
    fn r8_what_the_example_calls_live_is_put_in_force_and_nothing_else_is() {
        let before = configured(None);
        for key in example_keys() {
            if ELSEWHERE.contains(&key.path.as_str()) {
                continue;
            }
            let other = OTHERS.iter().find(|(path, _)| *path == key.path);
            let other = other.unwrap_or_else(|| panic!("no other value for {}", key.path));
            let after = configured(Some(*other));
            assert_ne!(format!("{after:?}"), format!("{before:?}"), "{} changes nothing", key.path);
            assert_eq!(live(&after) != live(&before), key.is_live, "{}", key.path);
        }
    }
}
