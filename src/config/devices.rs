//! Devices whose key the operator vouches for, in the configuration and in a file of their own.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{
    Fault, read,
    read::{Reason, Section},
    tiers,
    tiers::Tiers,
};
use crate::{
    table::Tier,
    wire::{DeviceId, PublicKey},
};

/// Some hundred thousand devices.
pub(super) const MAX_FILE_BYTES: u64 = 32 << 20;

/// A device that the operator knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// What tokens call it.
    pub id: DeviceId,
    /// What people call it.
    pub name: Option<String>,
    /// What the relay makes of it.
    pub standing: Standing,
}

/// What the relay makes of a known device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "nearly all are pinned")]
pub enum Standing {
    /// It may have allocations.
    Pinned {
        /// What must have signed its tokens.
        key: PublicKey,
        /// What it gets.
        tier: Tier,
    },
    /// It is refused, whoever vouches for it.
    Revoked,
}

/// Reads sections of devices, `path` being what they are called in faults. Answers with the paths of all keys too.
pub(super) fn read_devices(
    path: &str,
    tables: Vec<Table>,
    tiers: &Tiers,
    seen: &mut HashSet<DeviceId>,
    faults: &mut Vec<Fault>,
) -> (Vec<Device>, Vec<String>) {
    // Read even when there is no device: it tells which keys there are.
    let keys = Device::read(Section::new(path, Table::new(), &mut Vec::new()), tiers).1;
    let mut devices = Vec::new();
    for (n, table) in tables.into_iter().enumerate() {
        let path = format!("{path}[{n}]");
        let Some(device) = Device::read(Section::new(path.clone(), table, faults), tiers).0 else { continue };
        if !seen.insert(device.id) {
            faults.push(Fault {
                key: format!("{path}.id"),
                value: Some(format!("\"{}\"", device.id)),
                reason: "this device is already pinned above; a device has one key".into(),
                ..Fault::default()
            });
        }
        devices.push(device);
    }
    (devices, keys)
}

/// Reads the key `device_file` and the file it names: sections `[[device]]`. Answers with the path too.
pub(super) fn read_device_file(
    relay: &mut Section<'_>,
    folder: &Path,
) -> Option<(PathBuf, Option<Vec<Table>>)> {
    let mut path = None;
    let tables = relay.read("device_file", r#""devices.toml""#, |value| {
        let path = path.insert(folder.join(read::text(value)?));
        device_sections(path)
    });
    path.map(|path| (path, tables))
}

fn device_sections(path: &Path) -> Result<Vec<Table>, Reason> {
    let text = read::text_file(path, MAX_FILE_BYTES)?;
    let not_toml = |error: toml::de::Error| {
        Reason::from(format!(
            "the file is not TOML: {}",
            error.to_string().trim_end().replace('\n', "\n    ")
        ))
    };
    let mut table = text.parse::<Table>().map_err(not_toml)?;
    let devices = match table.remove("device") {
        None => Some(Vec::new()),
        Some(Value::Array(all)) => all.iter().map(|one| one.as_table().cloned()).collect(),
        Some(_) => None,
    };
    match (devices, table.keys().next()) {
        (Some(devices), None) => Ok(devices),
        _ => Err("the file holds sections [[device]], one for each device, and nothing else".into()),
    }
}

impl Device {
    fn read(mut device: Section<'_>, tiers: &Tiers) -> (Option<Self>, Vec<String>) {
        let example = format!("{:?}", "a1".repeat(32));
        let id = device.read("id", &example, |value| {
            read::text(value)?.parse::<DeviceId>().map_err(|error| error.to_string())
        });
        let key = device.read("key", &example, public_key);
        let name = device.read("name", r#""laptop""#, read::text);
        let tier = device.read("tier", r#""paid""#, tiers::known_tier(tiers));
        let revoked = device.read("revoked", "true", read::switch).unwrap_or(false);
        let no_id = !device.was_given("id");
        // Whoever is shut out needs no key, but may still have one.
        let no_key = !device.was_given("key") && !revoked;
        for (key, missing) in [("id", no_id), ("key", no_key)] {
            if missing {
                let reason = "a pinned device has an id and an Ed25519 public key, 64 hex digits each".into();
                device.fault(key, None, reason, format!("{key} = {example}"));
            }
        }
        let tier = tier.map(|(_, tier)| tier).or_else(|| tiers.get(tiers::DEFAULT_TIER).copied());
        let standing = match (revoked, key, tier) {
            (true, ..) => Some(Standing::Revoked),
            (false, Some(key), Some(tier)) => Some(Standing::Pinned { key, tier }),
            (false, ..) => None,
        };
        let checked = id.zip(standing).map(|(id, standing)| Self { id, name, standing });
        (checked, device.finish())
    }
}

/// 64 hex digits that are an Ed25519 public key to rely on.
pub(super) fn public_key(value: &Value) -> Result<PublicKey, String> {
    let bytes = read::text(value)?.parse::<DeviceId>().map_err(|error| error.to_string())?.0;
    PublicKey::from_bytes(&bytes).map_err(|error| format!("the key cannot be used: {error}"))
}
