//! From which countries clients come, with a database that the operator replaces while the relay runs.

use std::{fs, path::Path};

use ed25519_dalek::SigningKey;
use serde_json::Value;
use zrc_relay::{
    client::{Relay as Target, Session, Ticket},
    clock::Clock,
    wire::{AllocationId, DeviceId, PeerId, PublicKey, RelayId, Role, TokenFields},
};

use crate::{
    cli::{Ran, run},
    cli_serve::Relay,
};

const COUNTRIES: &[u8] = include_bytes!("../vectors/countries.mmdb");

/// The same, with another country for 127.0.0.0/8.
fn moved() -> Vec<u8> {
    let mut bytes = COUNTRIES.to_vec();
    // A text of two letters, as the format has it.
    let at = bytes.windows(3).position(|text| text == b"\x42AQ").unwrap();
    bytes[at + 1..at + 3].copy_from_slice(b"GS");
    // Made a little later: the last byte of a number of eight bytes or less.
    let epoch = bytes.windows(11).position(|text| text == b"build_epoch").unwrap() + 11;
    let len = usize::from(bytes[epoch] & 0x1f);
    bytes[epoch + 1 + len] ^= 1;
    bytes
}

fn config(geoip: &str) -> String {
    format!(
        "state_dir = \"state\"\n[relay]\nlisten_addr = \"::\"\nlisten_port = 0\nself_certified = true\n\
         [ops]\nlisten_port = 0\n{geoip}"
    )
}

const GEOIP: &str = "geoip_path = \"countries.mmdb\"\n";

fn replace(folder: &Path, name: &str, bytes: &[u8]) {
    let beside = folder.join("new");
    fs::write(&beside, bytes).unwrap();
    fs::rename(beside, folder.join(name)).unwrap();
}

/// Connects to this address of the relay.
async fn connect(relay: &Relay, addr: &str) -> Session {
    let mut descriptor: Value = serde_json::from_slice(&fs::read(relay.descriptor()).unwrap()).unwrap();
    let relay_id: RelayId = descriptor["relay_id"].as_str().unwrap().parse().unwrap();
    descriptor["addr"] = addr.into();
    let key = SigningKey::from_bytes(&[1; 32]);
    let id = *PublicKey::from(&key).as_bytes();
    let token = TokenFields {
        relay_id,
        allocation_id: AllocationId::random().unwrap(),
        device_id: DeviceId(id),
        peer_id: PeerId(id),
        expires_at_unix: Clock::start().unix_secs() + 3600,
        bandwidth_bytes_per_sec: 0,
        quota_bytes: 0,
    };
    let ticket = Ticket::new(token.sign(&key), Role::Device, key).unwrap();
    Target::from_json(descriptor.to_string()).unwrap().connect(ticket).await.unwrap()
}

/// The series of the countries that are known, in the order of their names.
fn counted(relay: &Relay) -> Vec<String> {
    let (_, metrics) = relay.get("/metrics");
    metrics
        .lines()
        .filter_map(|line| line.strip_prefix("zrc_relay_country_connections"))
        .filter(|line| !line.contains("unknown"))
        .map(|line| line.replace("country=", "").replace('"', ""))
        .collect()
}

fn said(relay: &mut Relay, wanted: &str) -> String {
    tokio::task::block_in_place(|| relay.process.line_with(wanted))
}

fn leaves(relay: &mut Relay, session: Session) {
    session.close();
    said(relay, "connection ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn r7_2_clients_are_counted_by_country_and_the_database_can_be_replaced() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("countries.mmdb"), COUNTRIES).unwrap();
    let path = folder.path().join("relay.toml");
    fs::write(&path, config(GEOIP)).unwrap();
    let mut relay = Relay::start(&["serve", "--config", path.to_str().unwrap()], folder);
    let folder = relay.folder.path().to_owned();
    assert!(relay.get("/metrics").1.contains("zrc_relay_country_connections{country=\"unknown\"} 0\n"));
    assert_eq!(counted(&relay), [""; 0]);
    let v4 = connect(&relay, "127.0.0.1").await;
    let v6 = connect(&relay, "::1").await;
    assert_eq!(counted(&relay), ["{AQ} 1", "{BV} 1", "_opened_total{AQ} 1", "_opened_total{BV} 1"]);

    // What is no database changes nothing, and the log says so.
    replace(&folder, "countries.mmdb", &COUNTRIES[..COUNTRIES.len() / 2]);
    let fault = said(&mut relay, "fault in the configuration");
    assert!(fault.contains("ops.geoip_path") && fault.contains("no database"), "{fault}");
    assert!(fault.contains("the rest is heeded"), "{fault}");
    // Nor does anything else wait for it: neither by its being bad nor by its not being there.
    fs::remove_file(folder.join("countries.mmdb")).unwrap();
    let fault = said(&mut relay, "cannot read the file");
    assert!(fault.contains("ops.geoip_path") && fault.contains("the rest is heeded"), "{fault}");
    let limited = config(GEOIP).replace("[ops]", "max_allocations = 77\n[ops]");
    replace(&folder, "relay.toml", limited.as_bytes());
    said(&mut relay, "the rest is heeded");
    // The next reload begins when this one is in force.
    relay.process.signal("HUP");
    said(&mut relay, "the rest is heeded");
    assert!(relay.get("/metrics").1.contains("\nzrc_relay_max_allocations 77\n"));
    // What cannot wait is told with it, and then nothing is heeded.
    replace(&folder, "relay.toml", limited.replace("= 77", "= 0").as_bytes());
    said(&mut relay, "what is in force stays");
    said(&mut relay, "relay.max_allocations");
    let fault = said(&mut relay, "ops.geoip_path");
    assert!(!fault.contains("the rest is heeded"), "{fault}");
    assert!(relay.get("/metrics").1.contains("\nzrc_relay_max_allocations 77\n"));
    replace(&folder, "relay.toml", limited.as_bytes());
    said(&mut relay, "the rest is heeded");
    let second = connect(&relay, "127.0.0.1").await;
    assert_eq!(counted(&relay)[0], "{AQ} 2");
    leaves(&mut relay, second);
    assert_eq!(counted(&relay)[0], "{AQ} 1");

    // Another one holds for those who come; who is there stays where it was found.
    replace(&folder, "countries.mmdb", &moved());
    said(&mut relay, "configuration read again");
    said(&mut relay, "GeoIP database in use");
    let third = connect(&relay, "127.0.0.1").await;
    assert_eq!(
        counted(&relay),
        ["{AQ} 1", "{BV} 1", "{GS} 1", "_opened_total{AQ} 2", "_opened_total{BV} 1", "_opened_total{GS} 1"]
    );
    leaves(&mut relay, v4);
    assert_eq!(counted(&relay)[0], "{AQ} 0");

    // Without one nothing more is counted, and what was is still balanced.
    replace(&folder, "relay.toml", config("").as_bytes());
    said(&mut relay, "GeoIP database no longer in use");
    let last = connect(&relay, "127.0.0.1").await;
    assert_eq!(counted(&relay)[3..], ["_opened_total{AQ} 2", "_opened_total{BV} 1", "_opened_total{GS} 1"]);
    for session in [v6, third, last] {
        leaves(&mut relay, session);
    }
    assert_eq!(counted(&relay)[..3], ["{AQ} 0", "{BV} 0", "{GS} 0"]);
    for line in
        relay.process.seen.iter().filter(|line| line.contains("GeoIP") || line.contains("connection "))
    {
        assert!(!line.contains("127.0.0.1") && !line.contains("::1"), "{line}");
    }
}

#[test]
fn r7_2_serve_needs_a_database_that_is_one_and_check_config_needs_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    fs::write(&path, config(GEOIP)).unwrap();
    let path = path.to_str().unwrap();
    let refused = || run(&["serve", "--config", path]);
    let Ran { exit: code, stderr: said, .. } = refused();
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("ops.geoip_path") && said.contains("cannot read the file"), "{said}");
    let Ran { exit: code, stderr: said, .. } = run(&["check-config", path]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("serve would need what ops.geoip_path"), "{said}");
    for bytes in [&b""[..], b"# not a database\n", &COUNTRIES[..200]] {
        fs::write(folder.path().join("countries.mmdb"), bytes).unwrap();
        let Ran { exit: code, stderr: said, .. } = refused();
        assert_eq!(code, 78, "{said}");
        assert!(said.contains("is no database in MaxMind's format"), "{said}");
        assert!(said.contains("for example: geoip_path = "), "{said}");
    }
    // One of something else is a fault wherever it is read.
    let mut others = COUNTRIES.to_vec();
    for at in 0..others.len() {
        if others[at..].starts_with(b"country") {
            others[at] = b'k';
        }
    }
    fs::write(folder.path().join("countries.mmdb"), others).unwrap();
    for ran in [refused(), run(&["check-config", path])] {
        assert_eq!(ran.exit, 78, "{ran:?}");
        assert!(ran.stderr.contains("is a database without countries, zrc-relay-test"), "{ran:?}");
        assert!(ran.stderr.contains("for example: geoip_path = "), "{ran:?}");
    }
}
