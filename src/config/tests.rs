//! What the configuration as a whole takes and refuses, and that the example says so.

use super::*;
use crate::wire::RelayId;

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
    let mut keys = check(Layers::default(), Path::new(""), Vec::new()).keys;
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
            ![
                "quic_",
                "webhook_",
                "device_file",
                "key_path",
                "cert_path",
                "ca_path",
                "geoip_path",
                "otlp_url",
            ]
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
    let pinned = parse(&format!("[[relay.device]]\nid = {KEY:?}\nkey = {KEY:?}\nname = \"a\"\n")).unwrap();
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
        ("max_token_lifetime", &["\"1s\"", "\"366d\"", "86400"], &["\"0s\"", "\"367d\"", "0", "-5", "true"]),
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
