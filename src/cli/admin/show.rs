//! What the API answers, as people read it.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

use super::{super::show_unix, plain};
use crate::config::show_duration;

/// Digits of an id that are shown in lists: commands take them.
const SHORT_ID: usize = 12;

/// Bytes, with three digits at least.
pub(in crate::cli) fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = number as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let unit = UNITS.get(unit).copied().unwrap_or_default();
    if number < 1000 { format!("{number} {unit}") } else { format!("{value:.2} {unit}") }
}

/// Seconds, in the two largest units.
pub(in crate::cli) fn duration(secs: u64) -> String {
    let rounded = match secs {
        0..3600 => secs,
        3600..86_400 => secs - secs % 60,
        _ => secs - secs % 3600,
    };
    show_duration(std::time::Duration::from_secs(rounded))
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => plain(text),
        other => other.to_string(),
    }
}

fn short(value: &Value) -> String {
    text(value).chars().take(SHORT_ID).collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn table(header: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

fn list<'a>(answer: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    answer[key].as_array().into_iter().flatten()
}

/// A token that names none has its signer's own.
fn tier(value: &Value) -> String {
    if value.is_null() { "default".into() } else { text(value) }
}

pub(super) fn allocations(answer: &Value) -> String {
    let rows = list(answer, "allocations").map(|it| {
        vec![
            short(&it["id"]),
            text(&it["state"]),
            short(&it["device_id"]),
            format!("{}/{}", it["connections"]["device"], it["connections"]["peer"]),
            bytes(number(&it["sent"]["device"]["bytes"])),
            bytes(number(&it["sent"]["peer"]["bytes"])),
            it["limits"]["quota_bytes"].as_u64().map_or("-".into(), bytes),
            duration(number(&it["age_secs"])),
            tier(&it["tier"]),
        ]
    });
    let header = ["ID", "STATE", "DEVICE", "CONNS", "FROM DEVICE", "FROM PEER", "QUOTA", "AGE", "TIER"];
    let shown = list(answer, "allocations").count() as u64;
    let total = number(&answer["total"]);
    let more =
        if shown < total { format!("\n{shown} of {total}; --limit shows more") } else { String::new() };
    table(&header, &[4, 5, 6, 7], rows) + &more
}

pub(super) fn allocation(it: &Value) -> String {
    let limit = |key: &str, unit: &str| match it["limits"][key].as_u64() {
        Some(limit) => format!("{}{unit}", bytes(limit)),
        None => "none".into(),
    };
    let sent = |side: &str| {
        let sent = &it["sent"][side];
        format!("{}, {} datagrams", bytes(number(&sent["bytes"])), sent["packets"])
    };
    let unix_ms = |key: &str| it[key].as_u64().map_or("never".into(), |at| show_unix(at / 1000));
    let mut lines = vec![
        ("id", text(&it["id"])),
        ("allocation id", text(&it["allocation_id"])),
        ("device", text(&it["device_id"])),
        ("peer", text(&it["peer_id"])),
        ("tier", tier(&it["tier"])),
        ("state", text(&it["state"])),
        ("from device", sent("device")),
        ("from peer", sent("peer")),
        ("used", format!("{} of {}", bytes(number(&it["bytes_used"])), limit("quota_bytes", ""))),
        ("rate limit", limit("bytes_per_sec", "/s")),
        ("created", format!("{} ({} ago)", unix_ms("created_unix_ms"), duration(number(&it["age_secs"])))),
        ("last activity", unix_ms("last_activity_unix_ms")),
        ("expires", show_unix(number(&it["expires_at_unix"]))),
    ];
    for leg in list(it, "legs") {
        let raw = if leg["raw_channel"] == true { ", raw channel" } else { "" };
        let rtt_ms = number(&leg["rtt_us"]) as f64 / 1000.0;
        let line = format!(
            "{} from {}, rtt {rtt_ms:.1} ms, MTU {}{raw}, number {} in the log",
            text(&leg["role"]),
            text(&leg["remote"]),
            leg["path_mtu_bytes"],
            leg["connection"]
        );
        lines.push(("connection", line));
    }
    named(lines)
}

fn named(lines: Vec<(&str, String)>) -> String {
    lines.into_iter().map(|(name, value)| format!("{name:<16}{value}")).collect::<Vec<_>>().join("\n")
}

pub(super) fn stats(it: &Value) -> String {
    let counts = |value: &Value| {
        let all = value.as_object().into_iter().flatten();
        let shown: Vec<String> = all.map(|(name, count)| format!("{} {count}", plain(name))).collect();
        if shown.is_empty() { "none".into() } else { shown.join(", ") }
    };
    let passed = |side: &str| {
        let passed = &it["forwarded"][side];
        format!(
            "{} in {} datagrams, {} in streams",
            bytes(number(&passed["datagram_bytes"])),
            passed["datagrams"],
            bytes(number(&passed["stream_bytes"]))
        )
    };
    let faults: Vec<String> = list(it, "checks")
        .filter(|check| check["ok"] != true)
        .map(|check| format!("{}: {}", text(&check["name"]), text(&check["detail"])))
        .collect();
    let allocations = &it["allocations"];
    named(vec![
        ("version", text(&it["version"])),
        ("up", duration(number(&it["uptime_secs"]))),
        ("ready", if faults.is_empty() { "yes".into() } else { format!("no ({})", faults.join("; ")) }),
        ("draining", drain(&it["drain"])),
        (
            "allocations",
            format!(
                "{} of {} ({} paired, {} waiting, {} interrupted, {} deserted)",
                allocations["now"],
                allocations["max"],
                allocations["paired"],
                allocations["waiting"],
                allocations["interrupted"],
                allocations["deserted"]
            ),
        ),
        ("  created", text(&allocations["created"])),
        ("  ended", counts(&allocations["ended"])),
        ("connections", text(&it["connections"]["now"])),
        ("  opened", text(&it["connections"]["opened"])),
        ("  closed", counts(&it["connections"]["closed"])),
        ("from devices", passed("device")),
        ("from peers", passed("peer")),
        ("dropped", counts(&it["dropped"])),
        ("refused", counts(&it["refused"])),
        ("security", counts(&it["security_events"])),
        ("guard", format!("{}, {} blocks", text(&it["guard"]["level"]), it["guard"]["blocks"])),
    ])
}

pub(super) fn blocks(answer: &Value) -> String {
    let rows = list(answer, "blocks").map(|it| {
        let until = match it["expires_at_unix"].as_u64() {
            Some(at) => show_unix(at),
            None if it["configured"] == true => "as long as it is configured".into(),
            None => "until it is ended".into(),
        };
        vec![text(&it["network"]), until, text(&it["reason"])]
    });
    table(&["NETWORK", "UNTIL", "REASON"], &[], rows)
}

pub(super) fn drain(answer: &Value) -> String {
    match (answer["draining"] == true, answer["deadline_unix_ms"].as_u64()) {
        (true, Some(at)) => format!("draining, until {}", show_unix(at / 1000)),
        (true, None) => "draining".into(),
        _ => "no".into(),
    }
}

pub(super) fn log(answer: &Value) -> String {
    text(&answer["filter"])
}

pub(super) fn audit(answer: &Value) -> String {
    let rows = list(answer, "entries").map(|it| {
        ["seq", "at", "actor", "source", "action", "outcome", "detail"].map(|key| text(&it[key])).to_vec()
    });
    table(&["SEQ", "AT", "WHO", "FROM", "ACTION", "OUTCOME", "DETAIL"], &[0], rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_short() {
        for (number, shown) in
            [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1_234_567, "1.23 MB"), (u64::MAX, "18446.74 PB")]
        {
            assert_eq!(bytes(number), shown);
        }
        for (secs, shown) in [(59, "59s"), (3661, "1h1m"), (90_061, "25h"), (200_000, "2d7h")] {
            assert_eq!(duration(secs), shown);
        }
    }

    #[test]
    fn what_comes_from_elsewhere_steers_no_terminal() {
        let answer =
            json!({ "blocks": [{ "network": "::/0", "reason": "a\u{1b}[2J\u{202e}\nb" }], "total": 1 });
        let shown = blocks(&answer);
        assert!(!shown.contains(['\u{1b}', '\u{202e}']) && shown.lines().count() == 2, "{shown:?}");
        assert!(shown.contains("a\\u{1b}[2J"), "{shown}");
    }

    #[test]
    fn an_allocation_whose_token_names_no_tier_has_the_default_one() {
        for (tier, shown) in [(json!(null), "default"), (json!("gold"), "gold")] {
            let one = json!({ "id": "00ff", "tier": tier });
            assert!(allocations(&json!({ "allocations": [one] })).ends_with(shown));
            assert!(allocation(&one).contains(&format!("tier            {shown}\n")));
        }
    }

    #[test]
    fn what_is_missing_is_no_fault() {
        let nothing = json!({});
        for show in [allocations, allocation, stats, blocks, drain, log, audit] {
            show(&nothing);
        }
    }
}
