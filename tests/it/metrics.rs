//! R7.2, R7.3: every metric that is declared is moved, by a busy relay or by a test that is named here, and while
//! sessions run.

use std::{collections::BTreeSet, fs, path::Path, process::Stdio, sync::Arc, time::Duration};

use zrc_relay::{
    clock::Clock,
    guard::{EventSettings, Guard, GuardSettings, PerMinute, SecurityEvents},
    metrics::Metrics,
};

use crate::{
    cli::{command, run},
    cli_serve::{Relay, Running},
};

/// What needs more than a few busy seconds: the metric, the file and the test that moves it, and how it is called there.
const ELSEWHERE: &[(&str, &str, &str, &str)] = &[
    (
        "zrc_relay_certificate_renewals_total",
        "tests/it/acme.rs",
        "a_certificate_is_obtained_over_http_renewed_and_found_again",
        "metric(&relay, RENEWED)",
    ),
    (
        "zrc_relay_dropped_datagrams_total",
        "src/metrics.rs",
        "every_drop_reason_moves_its_own_series",
        "zrc_relay_dropped_datagrams_total",
    ),
    (
        "zrc_relay_guard_blocks",
        "src/relay/tests/guard.rs",
        "r6_2_who_is_blocked_while_connected_is_told_so_and_may_come_back_when_it_ends",
        "zrc_relay_guard_blocks",
    ),
    (
        "zrc_relay_guard_ignored_total",
        "src/relay/tests/guard.rs",
        "r6_2_packets_from_blocked_networks_get_no_answer",
        "ignored(\"blocked\")",
    ),
    (
        "zrc_relay_guard_level",
        "src/relay/tests/guard.rs",
        "r6_3_unfinished_handshakes_raise_the_guard_and_it_falls_back_by_itself",
        "zrc_relay_guard_level",
    ),
    (
        "zrc_relay_guard_raised_total",
        "src/relay/tests/guard.rs",
        "r6_3_unfinished_handshakes_raise_the_guard_and_it_falls_back_by_itself",
        "zrc_relay_guard_raised_total",
    ),
    (
        "zrc_relay_guard_refused_total",
        "src/relay/tests/guard.rs",
        "r6_1_connections_over_a_sources_limit_are_refused_before_a_handshake",
        "refused(\"connection_rate\")",
    ),
    (
        "zrc_relay_guard_sources_forgotten_total",
        "tests/it/metrics.rs",
        "r6_1_sources_that_are_forgotten_are_counted",
        "zrc_relay_guard_sources_forgotten_total",
    ),
    (
        "zrc_relay_guard_withheld_datagrams_total",
        "src/relay/tests/spoofing.rs",
        "r6_3_addresses_that_a_connection_claims_get_few_datagrams_however_fast_it_changes_them",
        "zrc_relay_guard_withheld_datagrams_total",
    ),
    (
        "zrc_relay_handshakes_failed_total",
        "src/relay/tests/hostile.rs",
        "other_protocols_are_refused_in_the_handshake",
        "zrc_relay_handshakes_failed_total",
    ),
    (
        "zrc_relay_handshakes_refused_total",
        "src/relay/tests/hostile.rs",
        "too_many_without_a_token_are_refused_before_a_handshake",
        "zrc_relay_handshakes_refused_total",
    ),
    (
        "zrc_relay_handshakes_retried_total",
        "src/relay/tests/guard.rs",
        "r6_1_forged_packets_lock_nobody_out",
        "zrc_relay_handshakes_retried_total",
    ),
    (
        "zrc_relay_migrations_total",
        "src/relay/tests/life.rs",
        "r5_1_migration_keeps_the_session_and_is_counted",
        "zrc_relay_migrations_total",
    ),
    (
        "zrc_relay_security_log_suppressed_total",
        "src/guard/events.rs",
        "what_has_no_line_is_counted",
        "zrc_relay_security_log_suppressed_total",
    ),
    (
        "zrc_relay_security_webhook_events_total",
        "tests/it/webhook.rs",
        "r6_5_events_arrive_together_and_signed",
        "events_total{outcome=",
    ),
    (
        "zrc_relay_session_panics_total",
        "src/relay/tests/life.rs",
        "r5_2_a_panic_ends_one_session_and_is_counted",
        "zrc_relay_session_panics_total",
    ),
    (
        "zrc_relay_shard_handoffs_total",
        "src/relay/tests/shards.rs",
        "a_change_of_address_stays_on_its_shard",
        "zrc_relay_shard_handoffs_total",
    ),
    (
        "zrc_relay_socket_panics_total",
        "src/relay/tests/shards.rs",
        "a_panic_over_a_packet_costs_what_arrived_with_it_and_nothing_else",
        "zrc_relay_socket_panics_total",
    ),
];

fn source(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The names that the declarations have.
fn declared() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/metrics");
    let files = fs::read_dir(folder).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    let names = files.chain([source("src/metrics.rs")]).flat_map(|text| {
        let declarations = text.split("#[cfg(test)]").next().unwrap().to_owned();
        let quoted: Vec<_> = declarations.split('"').skip(1).step_by(2).map(str::to_owned).collect();
        quoted.into_iter().filter(|text| text.starts_with("zrc_relay_"))
    });
    names.collect()
}

/// Of what a scrape shows, the metrics that are not 0.
fn moved(scrape: &str) -> impl Iterator<Item = String> + '_ {
    scrape.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0")).map(|line| {
        let name = line.split(['{', ' ']).next().unwrap();
        ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
    })
}

/// The text of a test.
fn test_of(path: &str, name: &str) -> String {
    let text = source(path);
    let at = text.find(&format!("fn {name}(")).unwrap_or_else(|| panic!("no {name} in {path}"));
    let indent = at - text[..at].rfind('\n').unwrap() - 1;
    let indent = text[at - indent..].chars().take_while(|c| *c == ' ').collect::<String>();
    let end = text[at..].find(&format!("\n{indent}}}\n")).unwrap();
    text[at..at + end].to_owned()
}

#[test]
fn r7_2_every_metric_is_moved_by_a_busy_relay_or_by_a_test_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let mut serve = command(&["serve", "--dev", "--state-dir", state.to_str().unwrap()]);
    serve
        .env("ZRC_RELAY_RELAY__REGION", "here")
        .env("ZRC_RELAY_RELAY__GLOBAL_BANDWIDTH_LIMIT", "100000000")
        .env(
            "ZRC_RELAY_OPS__GEOIP_PATH",
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/countries.mmdb"),
        )
        // Nobody listens there.
        .env("ZRC_RELAY_SECURITY__WEBHOOK_URL", "http://127.0.0.1:1/")
        .env("ZRC_RELAY_SECURITY__WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    let relay = Relay::start_command(&mut serve, folder);
    let ops = format!("http://{}", relay.ops);
    // A token of a device that nobody knows.
    let key = relay.folder.path().join("key.pem");
    let key = key.to_str().unwrap();
    assert_eq!(run(&["keygen", "--out", key]).exit, 0);
    let stranger = "ab".repeat(32);
    let refused = run(&["probe", "--relay", &ops, "--device-key", key, "--device-id", &stranger]);
    assert_ne!(refused.exit, 0);
    let mut seen = BTreeSet::new();
    for (mode, rate) in [("datagram", "4000"), ("raw", "4000"), ("stream", "500")] {
        let descriptor = relay.descriptor();
        let args = ["bench", "--json", "--relay", &descriptor, "--mode", mode, "--rate", rate, "--secs", "2"];
        let args = [&args[..], &["--pairs", "2", "--quota", "100000000"]].concat();
        let mut bench = Running::start(&mut command(&args), Stdio::null());
        // A scrape sees what is going on, not only what is over.
        let live = format!(
            "zrc_relay_forwarded_bytes_total{{from=\"device\",kind=\"{}\"}}",
            match mode {
                "stream" => "stream",
                _ => "datagram",
            }
        );
        let mut values = BTreeSet::new();
        while bench.child.try_wait().unwrap().is_none() {
            let (_, scrape) = relay.get("/metrics");
            seen.extend(moved(&scrape));
            let value = scrape.lines().find_map(|line| line.strip_prefix(live.as_str())).unwrap();
            values.insert(value.trim().parse::<u64>().unwrap());
        }
        assert!(bench.end().success(), "{:?}", bench.seen);
        assert!(values.len() > 5, "{live} stood still: {values:?}");
    }
    seen.extend(moved(&relay.get("/metrics").1));
    // Those that every program has.
    let (process, mut seen): (BTreeSet<_>, BTreeSet<_>) =
        seen.into_iter().partition(|name| name.starts_with("process_"));
    if cfg!(target_os = "linux") {
        for metric in ["resident_memory_bytes", "virtual_memory_bytes", "open_fds", "max_fds", "threads"] {
            assert!(process.contains(&format!("process_{metric}")), "{process:?}");
        }
        let (_, scrape) = relay.get("/metrics");
        let started = scrape.lines().find_map(|line| line.strip_prefix("process_start_time_seconds "));
        let age = Clock::start().unix_secs().checked_sub(started.unwrap().parse().unwrap()).unwrap();
        assert!((1..600).contains(&age), "{started:?} is {age} s ago");
        assert!(scrape.contains("\nprocess_cpu_seconds_total "), "{scrape}");
    }
    let declared = declared();
    assert!(declared.len() > 40 && seen.is_subset(&declared), "{seen:?}");
    for (metric, path, test, words) in ELSEWHERE {
        assert!(declared.contains(*metric), "there is no {metric}");
        assert!(test_of(path, test).contains(words), "{test} says nothing of {metric}");
        seen.insert((*metric).to_owned());
    }
    let still: Vec<_> = declared.difference(&seen).collect();
    assert!(still.is_empty(), "nothing moves {still:?}");
}

#[test]
fn r6_1_sources_that_are_forgotten_are_counted() {
    let (clock, metrics) = (Clock::start(), Arc::new(Metrics::new().unwrap()));
    let security = SecurityEvents::new(clock, metrics.clone(), EventSettings::default());
    let settings =
        GuardSettings { max_sources: 1024, connections: PerMinute::new(30), ..GuardSettings::default() };
    let guard = Guard::new(&settings, metrics.clone(), security);
    for source in 0..100_000_u32 {
        let source = std::net::Ipv4Addr::from(0x0b00_0000 + source);
        let _ = guard.finished(source.into(), false, Duration::from_secs(1));
    }
    guard.tick(Duration::from_secs(1));
    let text = metrics.encode().unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix("zrc_relay_guard_sources_forgotten_total "));
    assert!(value.unwrap().parse::<u64>().unwrap() > 50_000, "{value:?}");
}
