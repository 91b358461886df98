//! Tiers, devices and issuers: what the file says of them, and each fault there can be.

use std::{fs, path::Path};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{SigningKey, pkcs8::EncodePublicKey as _};
use tempfile::TempDir;

use super::{Config, DEFAULT_TIER, Relay, Standing, parse_duration};
use crate::{table::Tier, wire::PublicKey};

const OPEN: &str = "[relay]\nself_certified = true\n";
/// RFC 8032, test 1.
const KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

fn parse_in(folder: &Path, lines: &str) -> Result<Relay, Vec<(String, String)>> {
    let faults =
        |faults: super::Faults| faults.0.into_iter().map(|fault| (fault.key, fault.reason)).collect();
    Config::parse(&format!("{OPEN}{lines}"), folder).map(|config| config.relay).map_err(faults)
}

fn parse(lines: &str) -> Relay {
    parse_in(Path::new("/etc/zrc"), lines).unwrap_or_else(|faults| panic!("{lines}: {faults:?}"))
}

fn faults(lines: &str) -> Vec<String> {
    match parse_in(Path::new("/etc/zrc"), lines) {
        Ok(_) => panic!("no fault in {lines}"),
        Err(faults) => faults.into_iter().map(|(key, _)| key).collect(),
    }
}

#[test]
fn r4_5_there_are_tiers_without_configuration() {
    let tiers = parse("").tiers;
    assert_eq!(tiers.keys().map(AsRef::as_ref).collect::<Vec<_>>(), ["default", "free", "paid", "unlimited"]);
    let rate = |name: &str| tiers[name].limits.rate_bytes_per_sec;
    assert_eq!(rate("default"), Some(1_250_000));
    assert!(rate("free") < rate("default") && rate("default") < rate("paid"));
    assert_eq!(tiers["unlimited"].limits.quota_bytes, None);
    assert_eq!((tiers["free"].limits.weight, tiers["paid"].limits.weight), (1, 4));
}

#[test]
fn the_default_keys_make_the_default_tier() {
    let relay = parse(
        "default_bandwidth_limit = 1\ndefault_packet_rate = 2\ndefault_quota = 3\nmax_allocations_per_device = 4\n",
    );
    let tier = relay.tiers[DEFAULT_TIER];
    assert_eq!(tier.limits.rate_bytes_per_sec, Some(1));
    assert_eq!(tier.limits.rate_packets_per_sec, Some(2));
    assert_eq!(tier.limits.quota_bytes, Some(3));
    assert_eq!(tier.allocations_per_device, Some(4));
    assert_eq!(relay.self_certified, Some(tier));
    assert_eq!(faults("[[relay.tier]]\nname = \"default\"\n"), ["relay.tier[0].name"]);
}

#[test]
fn a_tier_changes_one_that_there_is_or_adds_to_the_default() {
    let relay = parse(
        "default_quota = 77\n[[relay.tier]]\nname = \"free\"\nquota = 5\n\
         [[relay.tier]]\nname = \"gold\"\nweight = 9\nmax_token_lifetime = \"1h\"\nbandwidth_limit = 0\n\
         max_allocations_per_device = 0\npacket_rate = 6\n",
    );
    let free = Tier {
        limits: crate::table::Limits { quota_bytes: Some(5), ..parse("").tiers["free"].limits },
        ..parse("").tiers["free"]
    };
    assert_eq!(relay.tiers["free"], free);
    let gold = relay.tiers["gold"];
    assert_eq!((gold.limits.quota_bytes, gold.limits.weight), (Some(77), 9));
    assert_eq!((gold.limits.rate_bytes_per_sec, gold.limits.rate_packets_per_sec), (None, Some(6)));
    assert_eq!((gold.allocations_per_device, gold.max_token_lifetime), (None, parse_duration("1h").ok()));
}

#[test]
fn every_fault_of_a_tier_is_found() {
    for (line, key) in [
        ("bandwidth_limit = -1", "bandwidth_limit"),
        ("packet_rate = 1.5", "packet_rate"),
        ("quota = \"1GB\"", "quota"),
        ("max_allocations_per_device = -1", "max_allocations_per_device"),
        ("max_token_lifetime = \"0s\"", "max_token_lifetime"),
        // Longer than the relay's own, it would do nothing.
        ("max_token_lifetime = \"25h\"", "max_token_lifetime"),
        ("weight = 0", "weight"),
        ("weight = 1001", "weight"),
        ("color = 1", "color"),
    ] {
        let found = faults(&format!("[[relay.tier]]\nname = \"gold\"\n{line}\n"));
        assert_eq!(found, [format!("relay.tier[0].{key}")], "{line}");
    }
    for name in ["", "a b", &"x".repeat(65), "gold\\n"] {
        assert_eq!(faults(&format!("[[relay.tier]]\nname = \"{name}\"\n")), ["relay.tier[0].name"]);
    }
    assert_eq!(faults("[[relay.tier]]\nquota = 1\n"), ["relay.tier[0].name"]);
    let twice = "[[relay.tier]]\nname = \"a\"\n[[relay.tier]]\nname = \"a\"\n";
    assert_eq!(faults(twice), ["relay.tier[1].name"]);
    assert_eq!(faults("[relay.tier]\nname = \"a\"\n"), ["relay.tier"]);
}

#[test]
fn tiers_are_given_by_name_to_whom_there_is() {
    let relay = parse(&format!(
        "self_certified_tier = \"free\"\n[[relay.device]]\nid = \"{KEY}\"\nkey = \"{KEY}\"\ntier = \"paid\"\n"
    ));
    assert_eq!(relay.self_certified, Some(relay.tiers["free"]));
    let Standing::Pinned { tier, .. } = relay.devices[0].standing else { panic!("pinned") };
    assert_eq!(tier, relay.tiers["paid"]);
    for (lines, key) in [
        ("self_certified_tier = \"gold\"\n".to_owned(), "relay.self_certified_tier"),
        (
            format!("[[relay.device]]\nid = \"{KEY}\"\nkey = \"{KEY}\"\ntier = \"gold\"\n"),
            "relay.device[0].tier",
        ),
        (
            format!("[[relay.issuer]]\nkid = \"k\"\nkey = \"{KEY}\"\ntier = \"gold\"\n"),
            "relay.issuer[0].tier",
        ),
        (
            format!("[[relay.issuer]]\nkid = \"k\"\nkey = \"{KEY}\"\ntiers = [\"gold\"]\n"),
            "relay.issuer[0].tiers",
        ),
    ] {
        let found = parse_in(Path::new(""), &lines).unwrap_err();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, key);
        assert!(found[0].1.contains("there are default, free, paid, unlimited"), "{found:?}");
    }
}

#[test]
fn a_revoked_device_needs_no_key() {
    let relay = parse(&format!("[[relay.device]]\nid = \"{KEY}\"\nrevoked = true\n"));
    assert_eq!(relay.devices[0].standing, Standing::Revoked);
    assert_eq!(
        faults(&format!("[[relay.device]]\nid = \"{KEY}\"\nrevoked = false\n")),
        ["relay.device[0].key"]
    );
    assert_eq!(
        faults(&format!("[[relay.device]]\nid = \"{KEY}\"\nrevoked = \"yes\"\nkey = \"{KEY}\"\n")),
        ["relay.device[0].revoked"]
    );
}

#[test]
fn a_device_file_adds_devices_and_its_faults_say_where_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("devices.toml");
    let read = |text: &str| {
        fs::write(&path, text).unwrap();
        let inline = format!(
            "device_file = \"devices.toml\"\n[[relay.device]]\nid = \"{}\"\nrevoked = true\n",
            "0".repeat(64)
        );
        parse_in(folder.path(), &inline)
    };
    let device =
        |id: &str| format!("[[device]]\nid = \"{id}\"\nkey = \"{KEY}\"\nname = \"a\"\ntier = \"free\"\n");
    let relay = read(&(device(KEY) + &device(&"ab".repeat(32)))).unwrap();
    assert_eq!(relay.devices.len(), 3);
    assert_eq!(relay.key_files.len(), 1);
    // A file may be empty: devices are added while the relay runs, and it need not be open to everybody.
    assert_eq!(read("").unwrap().devices.len(), 1);
    let closed = Config::parse("[relay]\ndevice_file = \"devices.toml\"\n", folder.path()).unwrap();
    assert_eq!(closed.relay.self_certified, None);

    for text in ["x = 1\n", "[device]\nid = 1\n", "[[device]\n", "[relay]\n"] {
        let found = read(text).unwrap_err();
        assert_eq!((found.len(), found[0].0.as_str()), (1, "relay.device_file"), "{text}: {found:?}");
    }
    let at = format!("{}: device", path.display());
    let found = read(&(device(KEY) + &device(KEY))).unwrap_err();
    assert_eq!(found[0].0, format!("{at}[1].id"));
    let found = read(&device(&"0".repeat(64))).unwrap_err();
    assert_eq!(found[0].0, format!("{at}[0].id"), "already in the configuration");
    let found = read(&format!("[[device]]\nid = \"{KEY}\"\nkey = \"00\"\ntear = 1\n")).unwrap_err();
    assert_eq!(
        found.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(),
        [format!("{at}[0].key"), format!("{at}[0].tear")]
    );
    fs::remove_file(&path).unwrap();
    assert_eq!(
        parse_in(folder.path(), "device_file = \"devices.toml\"\n").unwrap_err()[0].0,
        "relay.device_file"
    );
}

#[test]
fn an_issuer_has_one_key_in_one_of_three_forms() {
    let folder = TempDir::new().unwrap();
    let signing = SigningKey::from_bytes(&[7; 32]);
    let public = PublicKey::from(&signing);
    let x = URL_SAFE_NO_PAD.encode(public.as_bytes());
    let jwk = format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}","kid":"other"}}"#);
    let file = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    file("pem", &signing.verifying_key().to_public_key_pem(Default::default()).unwrap());
    file("jwk", &jwk);
    let issuer = |lines: &str| parse_in(folder.path(), &format!("[[relay.issuer]]\nkid = \"k\"\n{lines}\n"));
    for lines in [
        format!("key = \"{}\"", hex::encode(public.as_bytes())),
        "key_path = \"pem\"".into(),
        "key_path = \"jwk\"".into(),
    ] {
        let relay = issuer(&lines).unwrap();
        assert_eq!(relay.issuers[0].key, public, "{lines}");
        assert_eq!(relay.key_files.len(), usize::from(lines.contains("path")));
    }
    file("private", &jwk.replace("{", r#"{"d":"x","#));
    file("curve", &jwk.replace("Ed25519", "Ed448"));
    file("short", &jwk.replace(&x, &x[1..]));
    file("weak", &jwk.replace(&x, &URL_SAFE_NO_PAD.encode([0; 32])));
    file("certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    file("empty", "");
    file("long", &" ".repeat(70_000));
    for name in ["private", "curve", "short", "weak", "certificate", "empty", "long", "none"] {
        let found = issuer(&format!("key_path = \"{name}\"")).unwrap_err();
        assert_eq!(found[0].0, "relay.issuer[0].key_path", "{name}: {found:?}");
    }
    let both = issuer(&format!("key = \"{KEY}\"\nkey_path = \"pem\"")).unwrap_err();
    assert_eq!(both[0].0, "relay.issuer[0].key");
    assert_eq!(issuer("").unwrap_err()[0].0, "relay.issuer[0].key");
    assert_eq!(issuer("key = \"00\"").unwrap_err()[0].0, "relay.issuer[0].key");
}

#[test]
fn issuers_have_kids_of_their_own_and_tiers_to_name() {
    let issuer =
        |kid: &str, more: &str| format!("[[relay.issuer]]\nkid = \"{kid}\"\nkey = \"{KEY}\"\n{more}\n");
    let relay = parse(&(issuer("a", "") + &issuer("b", "tier = \"paid\"\ntiers = [\"free\"]")));
    let names = |n: usize| relay.issuers[n].tiers.keys().map(AsRef::as_ref).collect::<Vec<_>>();
    assert_eq!((names(0), names(1)), (vec!["default"], vec!["free", "paid"]));
    assert_eq!(relay.issuers[1].tier, relay.tiers["paid"]);
    assert_eq!(faults(&(issuer("a", "") + &issuer("a", ""))), ["relay.issuer[1].kid"]);
    for kid in ["", "a b", "ä", &"k".repeat(129)] {
        assert_eq!(faults(&issuer(kid, "")), ["relay.issuer[0].kid"], "{kid}");
    }
    assert_eq!(faults(&format!("[[relay.issuer]]\nkey = \"{KEY}\"\n")), ["relay.issuer[0].kid"]);
    // A relay with an issuer serves somebody: it starts.
    let closed = Config::parse(&format!("[relay]\n{}", issuer("a", "")), Path::new("")).unwrap();
    assert_eq!(closed.relay.self_certified, None);
}
