//! `bench` against real relays: what it counts is what was sent, and what the relay ends is said by code.

use std::{fs, io::Read as _, process::Stdio, time::Duration};

use serde_json::Value;
use zrc_relay::clock::Clock;

use crate::{
    cli::{command, run},
    cli_serve::{Relay, Running},
};

fn bench(relay: &Relay, args: &[&str]) -> Value {
    let ran = run(&[&["bench", "--json", "--relay", &relay.descriptor()], args].concat());
    assert_eq!(ran.exit, 0, "{ran:?}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let keys: Vec<_> = report.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "closed",
            "delivered",
            "delivered_bytes",
            "loss",
            "pps",
            "raw_share",
            "relay_cpu_ms_per_setup",
            "relay_cpu_us_per_delivered",
            "relay_rss_kib_per_pair",
            "rtt_p50_us",
            "rtt_p99_us",
            "secs",
            "sent",
        ]
    );
    report
}

fn number(report: &Value, key: &str) -> f64 {
    report[key].as_f64().unwrap_or_else(|| panic!("{key}: {report}"))
}

/// A metric's value now.
fn metric(relay: &Relay, name: &str) -> u64 {
    let (_, text) = relay.get("/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap_or("0");
    line.parse().unwrap()
}

#[test]
fn every_mode_measures_and_leaves_nothing() {
    let relay = Relay::dev();
    let pid = relay.process.child.id().to_string();
    let forwarded = |mode: &str| {
        let name = match mode {
            "raw" => "zrc_relay_forwarded_raw_datagrams_total{from=\"device\"}".into(),
            other => format!("zrc_relay_forwarded_bytes_total{{from=\"device\",kind=\"{other}\"}}"),
        };
        metric(&relay, &name)
    };
    for mode in ["datagram", "stream", "raw"] {
        let args = [
            "--pairs",
            "4",
            "--size",
            "300",
            "--rate",
            "400",
            "--secs",
            "2",
            "--mode",
            mode,
            "--relay-pid",
            &pid,
        ];
        let report = bench(&relay, &args);
        let (sent, delivered) = (number(&report, "sent"), number(&report, "delivered"));
        // A machine that is busy may hold the sender up, never drive it on.
        assert!((400.0..=801.0).contains(&sent), "{report}");
        assert!(delivered <= sent && delivered >= 0.9 * sent, "{report}");
        assert_eq!(number(&report, "delivered_bytes"), 300.0 * delivered);
        assert!((number(&report, "loss") - (1.0 - delivered / sent)).abs() < 1e-5, "{report}");
        assert!(
            (number(&report, "pps") * number(&report, "secs") / delivered - 1.0).abs() < 0.01,
            "{report}"
        );
        assert!(number(&report, "rtt_p50_us") > 0.0);
        assert!(number(&report, "rtt_p99_us") >= number(&report, "rtt_p50_us"));
        assert!(number(&report, "relay_cpu_us_per_delivered") > 0.0);
        assert!(number(&report, "relay_cpu_ms_per_setup") > 0.0);
        number(&report, "relay_rss_kib_per_pair");
        assert_eq!(report["closed"], serde_json::json!({}));
        if mode == "raw" {
            assert!(number(&report, "raw_share") > 0.9, "{report}");
        } else {
            assert_eq!(report["raw_share"], Value::Null);
        }
        // Each as what it says that it measures.
        assert!(forwarded(mode) > 0, "{mode}");
        if mode != "raw" {
            assert_eq!(forwarded("raw"), 0, "{mode}");
        }
    }
    assert_eq!(metric(&relay, "zrc_relay_allocations"), 0);
    assert_eq!(metric(&relay, "zrc_relay_allocations_ended_total{code=\"RELEASED\"}"), 12);
}

#[test]
fn holding_measures_what_can_be_measured() {
    let relay = Relay::dev();
    let report = bench(&relay, &["--pairs", "3", "--rate", "0", "--secs", "1"]);
    assert_eq!((&report["sent"], &report["delivered_bytes"]), (&0.into(), &0.into()));
    assert!(number(&report, "secs") >= 1.0);
    for key in [
        "pps",
        "loss",
        "rtt_p50_us",
        "rtt_p99_us",
        "relay_cpu_us_per_delivered",
        "relay_cpu_ms_per_setup",
        "relay_rss_kib_per_pair",
    ] {
        assert_eq!(report[key], Value::Null, "{key}");
    }
    let pid = relay.process.child.id().to_string();
    let report = bench(&relay, &["--pairs", "3", "--rate", "0", "--secs", "1", "--relay-pid", &pid]);
    assert!(number(&report, "relay_cpu_ms_per_setup") > 0.0);
    number(&report, "relay_rss_kib_per_pair");
    assert_eq!(report["relay_cpu_us_per_delivered"], Value::Null);
    assert_eq!(metric(&relay, "zrc_relay_allocations"), 0);
}

#[test]
fn a_quota_ends_its_pairs_and_is_counted() {
    let relay = Relay::dev();
    for mode in ["datagram", "stream", "raw"] {
        let quota = 100_000;
        let report = bench(
            &relay,
            &[
                "--pairs", "2", "--size", "1000", "--rate", "2000", "--secs", "20", "--mode", mode,
                "--quota", "100000",
            ],
        );
        assert_eq!(report["closed"], serde_json::json!({"QUOTA_EXCEEDED": 2}), "{report}");
        let bytes = number(&report, "delivered_bytes");
        assert!(bytes <= f64::from(2 * quota) && bytes >= 1.5 * f64::from(quota), "{mode}: {report}");
        // Nobody is left to send to: it does not wait for the end.
        assert!(number(&report, "secs") < 15.0, "{report}");
    }
}

/// A token of 1 Mbit/s passes just that, however much is offered, by datagrams and by streams.
#[test]
fn r4_1_a_token_of_one_megabit_carries_one_megabit() {
    const BYTES_PER_SEC: f64 = 125_000.0;
    for mode in ["datagram", "raw", "stream"] {
        let relay = Relay::dev();
        let report = bench(
            &relay,
            &[
                "--pairs",
                "1",
                "--size",
                "1000",
                "--rate",
                "400",
                "--secs",
                "4",
                "--mode",
                mode,
                "--bandwidth",
                "125000",
            ],
        );
        assert_eq!(report["closed"], serde_json::json!({}), "{report}");
        let (bytes, secs) = (number(&report, "delivered_bytes"), number(&report, "secs"));
        // 1.6 MB were offered. What streams still hold goes on for at most 3 s after the last was sent.
        let most_secs = secs + if mode == "stream" { 3.5 } else { 0.5 };
        assert!(bytes <= BYTES_PER_SEC * most_secs + 16384.0, "{mode}: {report}");
        assert!(bytes >= BYTES_PER_SEC * 4.0 * 0.8, "{mode}: {report}");
        let dropped = metric(&relay, "zrc_relay_dropped_datagrams_total{reason=\"byte_rate\"}");
        assert_eq!(dropped > 0, mode != "stream", "{mode}: {dropped} dropped");
    }
}

/// A token of 10 MB passes 10 MB and not a byte more.
#[test]
fn r4_1_a_token_of_ten_megabytes_carries_ten_megabytes() {
    for mode in ["datagram", "raw", "stream"] {
        let relay = Relay::dev();
        let report = bench(
            &relay,
            &[
                "--pairs", "1", "--size", "1000", "--rate", "4000", "--secs", "20", "--mode", mode,
                "--quota", "10000000",
            ],
        );
        assert_eq!(report["closed"], serde_json::json!({"QUOTA_EXCEEDED": 1}), "{report}");
        let used: u64 = ["device", "peer"]
            .into_iter()
            .flat_map(|from| ["datagram", "stream"].map(|kind| (from, kind)))
            .map(|(from, kind)| {
                metric(&relay, &format!("zrc_relay_forwarded_bytes_total{{from=\"{from}\",kind=\"{kind}\"}}"))
            })
            .sum();
        // A datagram that does not fit into the rest ends it; a stream uses that up.
        assert!(used <= 10_000_000 && used > 9_998_000, "{mode}: {used}");
        assert!(mode != "stream" || used == 10_000_000, "{used}");
        assert!(number(&report, "delivered_bytes") > 8_000_000.0, "{report}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let relay = Relay::dev();
    let descriptor = relay.descriptor();
    for (args, exit, word) in [
        (&["--relay-pid", "4294967295"][..], 2, "no such process"),
        (&["--mode", "raw", "--size", "1500", "--pairs", "2"], 69, "1500 bytes has come through"),
        (&["--relay-pid", "0"], 2, "relay-pid"),
        (&["--pairs", "0"], 2, "pairs"),
        (&["--size", "0"], 2, "size"),
        (&["--size", "65537"], 2, "size"),
        (&["--secs", "0"], 2, "secs"),
        (&["--relay-id", "00000000000000000000000000000000"], 1, "TOKEN_INVALID"),
    ] {
        let ran = run(&[&["bench", "--json", "--relay", &descriptor], args].concat());
        assert_eq!((ran.exit, ran.stdout.as_str()), (exit, ""), "{args:?}: {ran:?}");
        assert!(ran.stderr.contains(word), "{word}: {ran:?}");
    }
}

#[test]
fn a_relay_without_a_raw_channel_is_said_to_have_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    fs::write(
        &path,
        "state_dir = \"state\"\n[relay]\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\nself_certified = true\n\
         raw_channel = false\n[ops]\nlisten_port = 0\n",
    )
    .unwrap();
    let relay = Relay::start(&["serve", "--config", path.to_str().unwrap()], folder);
    let ran = run(&["bench", "--json", "--relay", &relay.descriptor(), "--mode", "raw"]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (69, ""), "{ran:?}");
    assert!(ran.stderr.contains("the relay offers no raw channel"), "{ran:?}");
    assert_eq!(metric(&relay, "zrc_relay_allocations"), 0);
}

/// What is due to one pair at once goes as a train, and none of it is lost or counted twice.
#[test]
fn a_dense_raw_flow_goes_in_trains() {
    let relay = Relay::dev();
    let args = ["--pairs", "1", "--size", "600", "--rate", "20000", "--secs", "2", "--mode", "raw"];
    let report = bench(&relay, &args);
    let (sent, delivered) = (number(&report, "sent"), number(&report, "delivered"));
    assert!((15_000.0..=40_001.0).contains(&sent), "{report}");
    assert!(delivered <= sent && delivered >= 0.8 * sent, "{report}");
    assert_eq!(number(&report, "delivered_bytes"), 600.0 * delivered);
    assert!(number(&report, "raw_share") > 0.9 && number(&report, "rtt_p50_us") > 0.0, "{report}");
}

/// The tokens ask for the most that a token can: the tier caps it.
#[test]
fn the_tier_caps_what_the_tokens_ask_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    fs::write(
        &path,
        "state_dir = \"state\"\n[relay]\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\nself_certified = true\n\
         default_quota = 1000\n[ops]\nlisten_port = 0\n",
    )
    .unwrap();
    let relay = Relay::start(&["serve", "--config", path.to_str().unwrap()], folder);
    let report = bench(&relay, &["--pairs", "1", "--size", "400", "--rate", "100", "--secs", "20"]);
    assert_eq!(report["closed"], serde_json::json!({"QUOTA_EXCEEDED": 1}), "{report}");
    assert_eq!(number(&report, "delivered_bytes"), 800.0);
}

#[test]
fn an_interrupted_run_reports_and_releases() {
    let relay = Relay::dev();
    let args =
        ["bench", "--json", "--relay", &relay.descriptor(), "--pairs", "2", "--rate", "100", "--secs", "600"];
    let mut running = Running::start(&mut command(&args), Stdio::piped());
    wait_until(|| metric(&relay, "zrc_relay_forwarded_datagrams_total{from=\"device\"}") > 10);
    running.signal("INT");
    let status = running.end();
    assert_eq!(status.code(), Some(0), "{:#?}", running.seen);
    let mut stdout = String::new();
    running.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert!(number(&report, "delivered") > 10.0 && number(&report, "secs") < 500.0);
    assert_eq!(metric(&relay, "zrc_relay_allocations"), 0);
}

/// Looks again and again; what is looked at is in another process and tells nobody.
fn wait_until(mut holds: impl FnMut() -> bool) {
    let clock = Clock::start();
    while !holds() {
        assert!(clock.mono() < Duration::from_secs(60), "it does not come to pass");
        std::thread::yield_now();
    }
}

/// Clients that are stopped acknowledge nothing. The relay leaves all the same, within its deadline, and is not ready
/// while it does.
#[test]
fn a_relay_leaves_within_its_deadline_whatever_its_clients_do() {
    let mut relay = Relay::dev();
    let frozen = freeze_clients(&relay);
    let clock = Clock::start();
    relay.process.signal("TERM");
    relay.process.line_with("leaving");
    // It waits for the clients for a second; a test that comes later finds nobody, and never a relay that is ready.
    if let Ok(answer) = relay.try_get("/ready") {
        assert_eq!(answer, (503, r#"{"ready":false,"reason":"draining"}"#.into()));
    }
    assert_eq!(relay.process.end().code(), Some(0), "{:#?}", relay.process.seen);
    assert!(clock.mono() < Duration::from_secs(30));
    drop(frozen);
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut relay = Relay::dev();
    let frozen = freeze_clients(&relay);
    relay.process.signal("TERM");
    relay.process.line_with("leaving");
    relay.process.signal("INT");
    assert_eq!(relay.process.end().code(), Some(130), "{:#?}", relay.process.seen);
    drop(frozen);
}

/// Clients with an allocation each, which then are stopped by SIGSTOP.
fn freeze_clients(relay: &Relay) -> Running {
    let args = ["bench", "--relay", &relay.descriptor(), "--pairs", "3", "--rate", "0", "--secs", "600"];
    let frozen = Running::start(&mut command(&args), Stdio::null());
    wait_until(|| metric(relay, "zrc_relay_allocations") == 3 && metric(relay, "zrc_relay_connections") == 6);
    frozen.signal("STOP");
    frozen
}

/// Clients hear why: DRAINING, by its name.
#[test]
fn clients_are_told_that_the_relay_leaves() {
    let mut relay = Relay::dev();
    let args =
        ["bench", "--json", "--relay", &relay.descriptor(), "--pairs", "3", "--rate", "30", "--secs", "600"];
    let mut clients = Running::start(&mut command(&args), Stdio::piped());
    wait_until(|| metric(&relay, "zrc_relay_forwarded_datagrams_total{from=\"device\"}") > 3);
    relay.process.signal("TERM");
    assert_eq!(relay.process.end().code(), Some(0), "{:#?}", relay.process.seen);
    assert_eq!(clients.end().code(), Some(0), "{:#?}", clients.seen);
    let mut stdout = String::new();
    clients.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["closed"], serde_json::json!({"DRAINING": 3}), "{report}");
}
