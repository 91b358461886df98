//! Tiers: what a kind of customer gets when its token asks for nothing, and at most when it asks for more.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use toml::{Table, Value};

use super::{Fault, SECOND, read, read::Section};
use crate::table::{Limits, Tier};

/// The tier that the keys `default_*` make.
pub const DEFAULT_TIER: &str = "default";
const MAX_WEIGHT: u32 = 1000;

/// Tiers by name: the one of the `default_*` keys, `free`, `paid`, `unlimited`, and what else is configured.
pub type Tiers = BTreeMap<Arc<str>, Tier>;

/// The tiers that are there without being configured, beside the default one.
fn built_in() -> [(&'static str, Tier); 3] {
    let free = Tier {
        limits: Limits {
            rate_bytes_per_sec: Some(125_000),
            rate_packets_per_sec: Some(2_000),
            quota_bytes: Some(100_000_000),
            weight: 1,
        },
        allocations_per_device: Some(4),
        max_token_lifetime: None,
    };
    let paid = Tier {
        limits: Limits {
            rate_bytes_per_sec: Some(12_500_000),
            rate_packets_per_sec: Some(100_000),
            quota_bytes: Some(100_000_000_000),
            weight: 4,
        },
        allocations_per_device: Some(64),
        max_token_lifetime: None,
    };
    let unlimited = Tier { limits: Limits { weight: 4, ..Limits::default() }, ..Tier::default() };
    [("free", free), ("paid", paid), ("unlimited", unlimited)]
}

/// Reads the sections `[[relay.tier]]`. A section of a built-in tier's name changes that tier; a new tier takes what
/// its section leaves out from the default one. Answers with the paths of all keys too.
pub(super) fn read_tiers(
    tables: Vec<Table>,
    default: Tier,
    max_token_lifetime: Duration,
    faults: &mut Vec<Fault>,
) -> (Tiers, Vec<String>) {
    let mut tiers: Tiers = built_in().into_iter().map(|(name, tier)| (name.into(), tier)).collect();
    tiers.insert(DEFAULT_TIER.into(), default);
    let keys = read_tier(
        Section::new("relay.tier", Table::new(), &mut Vec::new()),
        &tiers,
        default,
        max_token_lifetime,
    )
    .1;
    let mut seen: Vec<String> = Vec::new();
    for (n, table) in tables.into_iter().enumerate() {
        let path = format!("relay.tier[{n}]");
        let tier = Section::new(path.clone(), table, faults);
        let Some((name, tier)) = read_tier(tier, &tiers, default, max_token_lifetime).0 else { continue };
        if seen.contains(&name) {
            faults.push(Fault {
                key: format!("{path}.name"),
                value: Some(format!("{name:?}")),
                reason: "this tier is already configured above".into(),
                ..Fault::default()
            });
        }
        tiers.insert(name.as_str().into(), tier);
        seen.push(name);
    }
    (tiers, keys)
}

fn read_tier(
    mut section: Section<'_>,
    tiers: &Tiers,
    default: Tier,
    relays_lifetime: Duration,
) -> (Option<(String, Tier)>, Vec<String>) {
    let name = section.read("name", r#""gold""#, |value| {
        let name = tier_name(value)?;
        if name == DEFAULT_TIER {
            return Err("the keys default_... of [relay] make this tier");
        }
        Ok(name)
    });
    if !section.was_given("name") {
        let reason = "a tier has a name, by which devices and issuers are given it".into();
        section.fault("name", None, reason, r#"name = "gold""#.into());
    }
    let base = name.as_deref().and_then(|name| tiers.get(name)).copied().unwrap_or(default);
    let mut limit = |key, example, base| section.read(key, example, read::limit).unwrap_or(base);
    let rate_bytes_per_sec = limit("bandwidth_limit", "12_500_000", base.limits.rate_bytes_per_sec);
    let rate_packets_per_sec = limit("packet_rate", "100_000", base.limits.rate_packets_per_sec);
    let quota_bytes = limit("quota", "100_000_000_000", base.limits.quota_bytes);
    let allocations_per_device =
        match section.read("max_allocations_per_device", "32", allocations_per_device) {
            Some(most) => most,
            None => base.allocations_per_device,
        };
    let max_token_lifetime = section
        .read("max_token_lifetime", r#""1h""#, read::duration(SECOND..=relays_lifetime))
        .or(base.max_token_lifetime);
    let weight = section.read("weight", "4", read::number(1..=MAX_WEIGHT)).unwrap_or(base.limits.weight);
    let tier = Tier {
        limits: Limits { rate_bytes_per_sec, rate_packets_per_sec, quota_bytes, weight },
        allocations_per_device,
        max_token_lifetime,
    };
    (name.map(|name| (name, tier)), section.finish())
}

/// 0 is no limit.
pub(super) fn allocations_per_device(value: &Value) -> Result<Option<u32>, String> {
    let most = read::number(0..=u32::MAX)(value).map_err(|reason| format!("{reason} (0: no limit)"))?;
    Ok((most != 0).then_some(most))
}

/// Names go into tokens and logs: short and plain.
fn tier_name(value: &Value) -> Result<String, &'static str> {
    let name = read::text(value)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.len() > 64 || !name.chars().all(plain) {
        return Err("a tier's name is at most 64 letters, digits, dashes, underscores and dots");
    }
    Ok(name)
}

/// Reads the name of a tier that there is.
pub(super) fn known_tier(tiers: &Tiers) -> impl Fn(&Value) -> Result<(Arc<str>, Tier), String> + '_ {
    |value| {
        let name = tier_name(value)?;
        tiers.get_key_value(name.as_str()).map(|(name, tier)| (name.clone(), *tier)).ok_or_else(|| {
            let names: Vec<&str> = tiers.keys().map(AsRef::as_ref).collect();
            format!("there is no such tier; there are {}", names.join(", "))
        })
    }
}
