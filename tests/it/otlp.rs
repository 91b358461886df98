//! Spans for a collector, which here is a socket that keeps what it is sent.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    sync::mpsc,
    time::Duration,
};

use crate::{
    cli::{command, run},
    cli_serve::Relay,
};

/// Longer than anything takes on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes requests, request line and body. It answers so many with 403, which is not tried again, and then each with 200.
fn collector(refused: usize) -> (u16, mpsc::Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, requests) = mpsc::channel();
    std::thread::spawn(move || {
        let mut left = refused;
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(&stream);
            let (mut head, mut length) = (Vec::new(), 0);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
                    break;
                }
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                head.push(line);
            }
            let mut body = vec![0; length];
            if head.is_empty() || reader.read_exact(&mut body).is_err() {
                continue;
            }
            let status = if left > 0 { "403 Forbidden" } else { "200 OK" };
            left = left.saturating_sub(1);
            // Some repeat what they were sent.
            let head_text = head.concat();
            let length = head_text.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{head_text}"
            );
            let _ = (&stream).write_all(answer.as_bytes());
            if sender.send((head_text, body)).is_err() {
                break;
            }
        }
    });
    (port, requests)
}

/// A relay that sends its spans there, so often.
fn relay(port: u16, every: Duration) -> Relay {
    relay_with(&format!("http://127.0.0.1:{port}/v1/traces"), "info", every)
}

/// A relay that sends its spans to this URL, and logs at this level.
fn relay_with(url: &str, level: &str, every: Duration) -> Relay {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    let config = format!(
        "state_dir = \"state\"\n[relay]\nself_certified = true\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\n\
         [ops]\nlisten_port = 0\n[log]\nlevel = \"{level}\"\notlp_url = \"{url}\"\n"
    );
    fs::write(&path, config).unwrap();
    let mut command = command(&["serve", "--config", path.to_str().unwrap()]);
    Relay::start_command(command.env("OTEL_BSP_SCHEDULE_DELAY", every.as_millis().to_string()), folder)
}

/// How many lines of the log have this.
fn lines_with(relay: &Relay, text: &str) -> usize {
    relay.process.seen.iter().filter(|line| line.contains(text)).count()
}

#[test]
fn connections_are_spans_at_a_collector() {
    let (port, requests) = collector(0);
    // Later than anything below, but for the end.
    let mut relay = relay(port, Duration::from_secs(3600));
    assert_eq!(run(&["probe", "--relay", &relay.descriptor()]).exit, 0);
    // What waits is sent before the end.
    relay.process.signal("TERM");
    assert_eq!(relay.process.end().code(), Some(0));
    let mut sent = Vec::new();
    let contains = |sent: &[u8], wanted: &str| sent.windows(wanted.len()).any(|at| at == wanted.as_bytes());
    while !["zrc-relay", "session", "allocation created", "connection ended"]
        .iter()
        .all(|it| contains(&sent, it))
    {
        let (head, body) = requests.recv_timeout(PATIENCE).expect("no more spans");
        assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
        assert!(head.to_lowercase().contains("content-type: application/x-protobuf"), "{head}");
        sent.extend(body);
    }
    assert!(!contains(&sent, "127.0.0.1"), "an address was sent");
    // The log is what it was without.
    assert!(!relay.process.seen.iter().any(|line| line.contains("session{")), "{:#?}", relay.process.seen);
}

const SOON: Duration = Duration::from_millis(100);
const LOST: &str = "the collector takes no spans";

/// A collector that is not there costs spans and a line in the log, and nothing else.
#[test]
fn a_relay_without_its_collector_serves() {
    // A port that is taken, so that nobody else listens there, and on which nobody listens.
    let taken = tokio::net::TcpSocket::new_v4().unwrap();
    taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut relay = relay(taken.local_addr().unwrap().port(), SOON);
    assert_eq!(run(&["probe", "--relay", &relay.descriptor()]).exit, 0);
    let line = relay.process.line_with(LOST);
    assert!(line.contains("WARN") && line.contains("refused"), "{line}");
    assert_eq!(run(&["probe", "--relay", &relay.descriptor()]).exit, 0);
    relay.process.signal("TERM");
    assert_eq!(relay.process.end().code(), Some(0));
    assert_eq!(lines_with(&relay, LOST), 1, "{:#?}", relay.process.seen);
}

#[test]
fn a_collector_that_refuses_is_told_of_once_and_once_when_it_takes_spans_again() {
    let (port, requests) = collector(3);
    let mut relay = relay(port, SOON);
    // Each is a batch, or more.
    for _ in 0..4 {
        assert_eq!(run(&["probe", "--relay", &relay.descriptor()]).exit, 0);
        requests.recv_timeout(PATIENCE).expect("no spans came");
    }
    let line = relay.process.line_with("the collector takes spans again");
    assert!(line.contains("lost=") && !line.contains("lost=0"), "{line}");
    assert_eq!(lines_with(&relay, LOST), 1, "{:#?}", relay.process.seen);
    relay.process.signal("TERM");
    assert_eq!(relay.process.end().code(), Some(0));
    assert!(!relay.process.seen.iter().any(|line| line.contains("ExportError")), "{:#?}", relay.process.seen);
}

#[test]
fn a_collectors_secrets_are_sent_to_it_and_not_logged_at_any_level() {
    let (port, requests) = collector(1);
    let url = format!("http://ann:hunter%202@127.0.0.1:{port}/v1/traces?key=hunter3");
    let mut relay = relay_with(&url, "trace,opentelemetry=trace,opentelemetry-otlp=trace", SOON);
    for _ in 0..2 {
        assert_eq!(run(&["probe", "--relay", &relay.descriptor()]).exit, 0);
        let (head, _) = requests.recv_timeout(PATIENCE).expect("no spans came");
        assert!(head.starts_with("POST /v1/traces?key=hunter3 HTTP/1.1\r\n"), "{head}");
        // ann:hunter 2
        assert!(head.contains("Basic YW5uOmh1bnRlciAy\r\n"), "{head}");
    }
    relay.process.signal("TERM");
    assert_eq!(relay.process.end().code(), Some(0));
    assert!(lines_with(&relay, "TRACE") > 0, "{:#?}", relay.process.seen);
    assert!(lines_with(&relay, "403") > 0, "{:#?}", relay.process.seen);
    for secret in ["hunter", "YW5uOmh1bnRlciAy"] {
        assert_eq!(lines_with(&relay, secret), 0, "{:#?}", relay.process.seen);
    }
}
