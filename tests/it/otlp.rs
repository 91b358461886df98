//! Spans for a collector, which here is a socket that keeps what it is sent.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    sync::mpsc,
    time::Duration,
};

use crate::{cli::run, cli_serve::Relay};

/// Longer than anything takes on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes requests and answers each with 200: request line and body.
fn collector() -> (u16, mpsc::Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, requests) = mpsc::channel();
    std::thread::spawn(move || {
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
            let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            if sender.send((head.concat(), body)).is_err() {
                break;
            }
        }
    });
    (port, requests)
}

#[test]
fn connections_are_spans_at_a_collector() {
    let (port, requests) = collector();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    let config = format!(
        "state_dir = \"state\"\n[relay]\nself_certified = true\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\n\
         [ops]\nlisten_port = 0\n[log]\notlp_url = \"http://127.0.0.1:{port}/v1/traces\"\n"
    );
    fs::write(&path, config).unwrap();
    let mut relay = Relay::start(&["serve", "--config", path.to_str().unwrap()], folder);
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

/// A collector that is not there costs spans and nothing else.
#[test]
fn a_relay_without_its_collector_serves() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    let config = format!(
        "state_dir = \"state\"\n[relay]\nself_certified = true\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\n\
         [ops]\nlisten_port = 0\n[log]\notlp_url = \"http://127.0.0.1:{port}/v1/traces\"\n"
    );
    fs::write(&path, config).unwrap();
    let mut relay = Relay::start(&["serve", "--config", path.to_str().unwrap()], folder);
    assert_eq!(run(&["probe", "--relay", &relay.descriptor()]).exit, 0);
    relay.process.signal("TERM");
    assert_eq!(relay.process.end().code(), Some(0));
}
