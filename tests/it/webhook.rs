//! R6.5: security events reach outside systems, signed, and an endpoint that fails costs events, never packets.

use std::{collections::HashMap, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};
use zrc_relay::{
    clock::Clock,
    guard::{
        EventSettings, RING_EVENTS, SecurityEvent, SecurityEvents, SigningKeys, Subject, Timing, Webhook,
        WebhookSettings,
    },
    metrics::Metrics,
    wire::RelayId,
};

const PATIENCE: Duration = Duration::from_secs(60);
const KEY: [u8; 32] = [0x5a; 32];
const QUICK: Timing = Timing {
    gather: Duration::from_millis(20),
    attempt: Duration::from_secs(10),
    retry: Duration::from_millis(20),
};

async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, event).await.expect("it did not happen in time")
}

/// A request that waits for its answer.
pub(crate) struct Request {
    head: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
    stream: TcpStream,
}

impl Request {
    pub(crate) async fn read(listener: &TcpListener) -> Self {
        let mut stream = BufReader::new(soon(listener.accept()).await.unwrap().0);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            soon(stream.read_line(&mut line)).await.unwrap();
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let headers: HashMap<_, _> = lines[1..]
            .iter()
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let mut body = vec![0; headers["content-length"].parse().unwrap()];
        soon(stream.read_exact(&mut body)).await.unwrap();
        Self { head: lines[0].clone(), headers, body, stream: stream.into_inner() }
    }

    pub(crate) async fn answer(mut self, status: u16, headers: &str) {
        let answer =
            format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: 0\r\n{headers}\r\n");
        self.stream.write_all(answer.as_bytes()).await.unwrap();
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The reasons of its events.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let events = self.json()["data"]["events"].as_array().unwrap().clone();
        events.iter().map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
    }
}

struct Bench {
    listener: TcpListener,
    events: SecurityEvents,
    metrics: Arc<Metrics>,
    clock: Clock,
    webhook: Webhook,
}

impl Bench {
    async fn start(timing: Timing) -> Self {
        Self::with_path("/hook", timing).await
    }

    async fn with_path(path: &str, timing: Timing) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}{path}", listener.local_addr().unwrap());
        Self::with_url(listener, &url, timing)
    }

    fn with_url(listener: TcpListener, url: &str, timing: Timing) -> Self {
        let (clock, metrics) = (Clock::start(), Arc::new(Metrics::new().unwrap()));
        let events = SecurityEvents::new(clock, metrics.clone(), EventSettings::default());
        let settings = WebhookSettings {
            url: url.parse().unwrap(),
            keys: SigningKeys::new(&[KEY]),
            relay_id: RelayId([0x0f; 16]),
            timing,
        };
        let webhook = Webhook::start(settings, &events, clock, metrics.clone()).unwrap();
        Self { listener, events, metrics, clock, webhook }
    }

    fn emit(&self, reason: &'static str) {
        self.events.emit(SecurityEvent::BadToken { reason }, Subject::NOBODY);
    }

    async fn becomes(&self, series: &str, value: u64) {
        let line = format!("zrc_relay_security_webhook_{series} {value}\n");
        soon(async {
            while !self.metrics.encode().unwrap().contains(&line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn r6_5_events_arrive_together_and_signed() {
    // Time enough for both to be of one batch.
    let bench = Bench::start(Timing { gather: Duration::from_secs(1), ..QUICK }).await;
    bench.emit("expired");
    bench.emit("signature");
    let request = Request::read(&bench.listener).await;
    assert_eq!(request.head, "POST /hook HTTP/1.1");
    assert_eq!(request.headers["content-type"], "application/json");
    let (id, timestamp) = (&request.headers["webhook-id"], &request.headers["webhook-timestamp"]);
    assert!(id.starts_with("msg_") && id.len() == 36, "{id}");
    let timestamp: u64 = timestamp.parse().unwrap();
    assert!(bench.clock.unix_secs().abs_diff(timestamp) < 60);
    assert_eq!(
        request.headers["webhook-signature"],
        SigningKeys::new(&[KEY]).sign(id, timestamp, &request.body)
    );
    let body = request.json();
    assert_eq!(body["type"], "security.events");
    assert_eq!(body["data"]["relay_id"], "0f".repeat(16));
    assert_eq!(body["data"]["missed"], 0);
    assert_eq!(body["data"]["events"][0]["event"], "bad_token");
    assert_eq!(request.reasons(), ["expired", "signature"]);
    let sent_at = body["timestamp"].as_str().unwrap();
    assert!(sent_at.len() == 20 && sent_at.ends_with('Z'), "{sent_at}");
    request.answer(204, "").await;
    bench.becomes("events_total{outcome=\"delivered\"}", 2).await;
}

#[tokio::test]
async fn what_is_not_taken_is_sent_again_under_the_same_name() {
    let bench = Bench::start(QUICK).await;
    bench.emit("text");
    let mut names = Vec::new();
    for status in [500, 401, 200] {
        let request = Request::read(&bench.listener).await;
        names.push(request.headers["webhook-id"].clone());
        assert_eq!(request.reasons(), ["text"]);
        request.answer(status, "").await;
    }
    assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
    bench.becomes("events_total{outcome=\"delivered\"}", 1).await;
    bench.becomes("attempts_failed_total", 2).await;
    // Another message has another name, and one that nobody takes is let go of.
    bench.emit("length");
    for _ in 0..5 {
        let request = Request::read(&bench.listener).await;
        assert_ne!(request.headers["webhook-id"], names[0]);
        request.answer(503, "").await;
    }
    bench.becomes("events_total{outcome=\"failed\"}", 1).await;
    bench.emit("device_key");
    assert_eq!(Request::read(&bench.listener).await.reasons(), ["device_key"]);
}

#[tokio::test]
async fn r8_another_endpoint_and_another_key_hold_for_what_waits_too() {
    let bench = Bench::start(QUICK).await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    bench.emit("text");
    let refused = Request::read(&bench.listener).await;
    let url = format!("http://{}/other", elsewhere.local_addr().unwrap());
    bench.webhook.retarget(url.parse().unwrap(), SigningKeys::new(&[[7; 32]]));
    refused.answer(500, "").await;
    let request = Request::read(&elsewhere).await;
    assert_eq!(request.head, "POST /other HTTP/1.1");
    assert_eq!(request.reasons(), ["text"]);
    let (id, timestamp) =
        (&request.headers["webhook-id"], request.headers["webhook-timestamp"].parse().unwrap());
    assert_eq!(
        request.headers["webhook-signature"],
        SigningKeys::new(&[[7; 32]]).sign(id, timestamp, &request.body)
    );
    request.answer(200, "").await;
    bench.becomes("events_total{outcome=\"delivered\"}", 1).await;
}

#[tokio::test]
async fn an_endpoint_may_ask_for_time() {
    let bench = Bench::start(QUICK).await;
    bench.emit("text");
    let first = Request::read(&bench.listener).await;
    let asked = bench.clock.mono();
    first.answer(429, "retry-after: 1\r\n").await;
    Request::read(&bench.listener).await.answer(200, "").await;
    let waited = bench.clock.mono() - asked;
    assert!(waited >= Duration::from_millis(900), "{waited:?}");
    bench.becomes("events_total{outcome=\"delivered\"}", 1).await;
}

#[tokio::test]
async fn r6_5_redirects_are_not_followed() {
    let bench = Bench::start(QUICK).await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = format!("location: http://{}/\r\n", elsewhere.local_addr().unwrap());
    for (n, status) in [301, 302, 303, 307, 308].into_iter().enumerate() {
        bench.emit("text");
        Request::read(&bench.listener).await.answer(status, &location).await;
        // Nor asked again: it would say the same.
        bench.becomes("events_total{outcome=\"failed\"}", n as u64 + 1).await;
        bench.becomes("attempts_failed_total", n as u64 + 1).await;
    }
    let visited = tokio::time::timeout(Duration::from_millis(100), elsewhere.accept()).await;
    assert!(visited.is_err(), "a redirect was followed");
}

#[tokio::test]
async fn r6_5_what_waits_for_a_slow_endpoint_is_bounded_and_what_is_dropped_is_counted() {
    let bench = Bench::start(Timing { gather: Duration::ZERO, ..QUICK }).await;
    bench.emit("text");
    let held = Request::read(&bench.listener).await;
    assert_eq!(held.reasons(), ["text"]);
    for _ in 0..RING_EVENTS + 77 {
        bench.emit("length");
    }
    held.answer(200, "").await;
    bench.becomes("events_total{outcome=\"delivered\"}", 1).await;
    let mut received = 0;
    let mut missed = 0;
    while received < RING_EVENTS as u64 {
        let request = Request::read(&bench.listener).await;
        let batch = request.reasons().len();
        assert!(batch <= 100, "{batch} in one batch");
        received += batch as u64;
        missed += request.json()["data"]["missed"].as_u64().unwrap();
        request.answer(200, "").await;
    }
    assert_eq!((received, missed), (RING_EVENTS as u64, 77));
    bench.becomes("events_total{outcome=\"dropped\"}", 77).await;
    bench.becomes("events_total{outcome=\"delivered\"}", 1 + RING_EVENTS as u64).await;
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_given_up() {
    let bench = Bench::start(Timing { attempt: Duration::from_millis(50), ..QUICK }).await;
    bench.emit("text");
    // A busy machine may not get as far as the request in an attempt's time.
    let silent = async {
        let mut held = Vec::new();
        loop {
            held.push(bench.listener.accept().await.unwrap());
        }
    };
    tokio::select! {
        () = silent => {}
        () = bench.becomes("events_total{outcome=\"failed\"}", 1) => {}
    }
    bench.becomes("attempts_failed_total", 5).await;
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    drop(listener);
    let bench = Bench::with_url(unused, &url, QUICK);
    bench.emit("text");
    bench.becomes("events_total{outcome=\"failed\"}", 1).await;
}

#[tokio::test]
async fn user_and_password_become_authorization() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://relay:hunter2@{}/a?b=c", listener.local_addr().unwrap());
    let bench = Bench::with_url(listener, &url, QUICK);
    bench.emit("text");
    let request = Request::read(&bench.listener).await;
    assert_eq!(request.head, "POST /a?b=c HTTP/1.1");
    assert!(!request.headers["host"].contains("hunter2"));
    let expected = format!("Basic {}", STANDARD.encode("relay:hunter2"));
    assert_eq!(request.headers["authorization"], expected);
}
