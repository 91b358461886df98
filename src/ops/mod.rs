//! HTTP for those who run the relay: health, readiness, metrics, the relay's description of itself, a page that
//! shows them, and the admin API.
//!
//! Knows the relay only by the handles in [`Handles`] and [`admin::Handles`]. The ops port is plain HTTP/1.1, meant for
//! loopback or a private network: whoever can connect can read everything there, and nothing there changes anything.
//! What changes something is the admin API, which has sockets of its own. Connections are bounded in number
//! ([`MAX_CONNECTIONS`]) and in time, so that slow or silent callers do not keep others out.

pub mod admin;
pub mod audit;
mod blockfile;
mod challenges;
mod host;
mod liveness;
mod page;
mod problem;
mod readiness;
mod server;
pub mod tokens;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Query, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tower_http::timeout::TimeoutLayer;

pub use blockfile::{BLOCKS_NAME, BlockFile, NotBlocked};
pub use challenges::{ChallengeServer, Challenges};
pub use host::Hosts;
pub use liveness::Liveness;
use problem::{no_such_method, problem};
pub use readiness::{Check, NotReady, Readiness};
pub use server::MAX_CONNECTIONS;
use server::{Listener, Server};

use crate::{clock::Clock, wire::Descriptor};

/// For the answer to one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// What the largest body comes to that anything here takes.
const MAX_BODY_BYTES: usize = 16 * 1024;

/// What the server shows, and whom it asks.
#[derive(Clone)]
pub struct Handles {
    /// When the process started.
    pub clock: Clock,
    /// Version and commit of this program.
    pub version: &'static str,
    /// Whether what it does goes on.
    pub liveness: Liveness,
    /// Whether new work is welcome.
    pub readiness: Readiness,
    /// The metrics in Prometheus' text format; `None` when they cannot be shown.
    pub metrics: Arc<dyn Fn() -> Option<String> + Send + Sync>,
    /// How the relay introduces itself, now.
    pub descriptor: Arc<ArcSwap<Descriptor>>,
    /// The names it answers to.
    pub hosts: Hosts,
    /// What an ACME authority asks for, by whatever name.
    pub challenges: Challenges,
}

/// A server that has its port; it stops when dropped.
#[derive(Debug)]
pub struct OpsServer {
    local_addr: SocketAddr,
    server: Server,
}

impl OpsServer {
    /// Binds and begins to answer. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(listen: SocketAddr, handles: Handles) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let local_addr = listener.local_addr()?;
        let server = Server::start(Listener::Tcp(listener), router(handles));
        Ok(Self { local_addr, server })
    }

    /// Where it listens: with the port that was taken, when any would do.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Takes no more connections, lets answers under way finish for a second, and ends.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}

fn router(handles: Handles) -> Router {
    let hosts = handles.hosts.clone();
    let challenges = dressed(challenges::routes(handles.challenges.clone()), None);
    let routes = page::status()
        .merge(probes())
        .route("/metrics", get(metrics))
        .route("/.well-known/zrc-relay", get(descriptor))
        .fallback(no_such_page)
        .with_state(handles);
    dressed(routes, Some(hosts)).merge(challenges)
}

/// What probes of orchestrators ask.
fn probes() -> Router<Handles> {
    let (health, ready) = (get(health), get(ready));
    Router::new()
        .route("/health", health.clone())
        .route("/livez", health)
        .route("/ready", ready.clone())
        .route("/readyz", ready)
}

/// What all answers have in common. Without `hosts`, whatever name they were asked by.
fn dressed(routes: Router, hosts: Option<Hosts>) -> Router {
    let routes = routes
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, REQUEST_TIMEOUT));
    let routes = match hosts {
        Some(hosts) => routes.layer(middleware::from_fn_with_state(hosts, host::check)),
        None => routes,
    };
    routes.layer(middleware::from_fn(headers))
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    uptime_secs: u64,
    version: &'static str,
}

async fn health(State(handles): State<Handles>) -> (StatusCode, Json<Health>) {
    let (code, status, reason) = match handles.liveness.get() {
        Ok(()) => (StatusCode::OK, "ok", None),
        Err(silent_for) => {
            let reason =
                format!("a thread that moves packets has not come round for {} s", silent_for.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, "stuck", Some(reason))
        }
    };
    let uptime_secs = handles.clock.mono().as_secs();
    (code, Json(Health { status, reason, uptime_secs, version: handles.version }))
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<NotReady>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checks: Option<Vec<Check>>,
}

#[derive(Deserialize)]
struct HowMuch {
    /// Whatever its value, as Kubernetes has it.
    verbose: Option<String>,
}

async fn ready(State(handles): State<Handles>, Query(wanted): Query<HowMuch>) -> (StatusCode, Json<Ready>) {
    let checks = wanted.verbose.map(|_| handles.readiness.checks());
    match handles.readiness.get() {
        Ok(()) => (StatusCode::OK, Json(Ready { ready: true, reason: None, checks })),
        Err(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(Ready { ready: false, reason: Some(reason), checks }))
        }
    }
}

async fn metrics(State(handles): State<Handles>) -> Response {
    shown_metrics((handles.metrics)())
}

fn shown_metrics(text: Option<String>) -> Response {
    match text {
        Some(text) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
        }
        None => problem(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be shown"),
    }
}

async fn descriptor(State(handles): State<Handles>) -> Json<Descriptor> {
    Json(handles.descriptor.load().as_ref().clone())
}

async fn no_such_page() -> Response {
    let pages = "/, /health, /livez, /ready, /readyz, /metrics and /.well-known/zrc-relay";
    problem(StatusCode::NOT_FOUND, format!("there is no such page; there are {pages}"))
}

/// Answers are about this moment unless they say otherwise, and are what they say they are.
async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if response.status() == StatusCode::GATEWAY_TIMEOUT {
        response = problem(StatusCode::GATEWAY_TIMEOUT, "the answer took too long");
    }
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        time::timeout,
    };

    use super::{server::HEADER_TIMEOUT, *};
    use crate::wire::RelayId;

    fn handles() -> Handles {
        Handles {
            clock: Clock::start(),
            version: "1.2.3 (commit abc)",
            liveness: Liveness::new(|| Duration::from_millis(250)),
            readiness: Readiness::default(),
            metrics: Arc::new(|| Some("# EOF\n".into())),
            descriptor: Arc::new(ArcSwap::from_pointee(Descriptor {
                addr: "192.0.2.1".into(),
                port: 4433,
                server_name: "relay".into(),
                spki: None,
                relay_id: RelayId([1; 16]),
                region: Some("eu".into()),
            })),
            hosts: Hosts::default(),
            challenges: Arc::new(|token| (token == "open").then(|| "answer".into())),
        }
    }

    async fn start(handles: Handles) -> OpsServer {
        OpsServer::start("127.0.0.1:0".parse().unwrap(), handles).await.unwrap()
    }

    /// Sends a request as it is, and answers with all that comes until the server hangs up.
    async fn raw(server: &OpsServer, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn ask(server: &OpsServer, method: &str, path: &str) -> (u16, String, String) {
        let answer = raw(
            server,
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes(),
        )
        .await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), head.to_lowercase(), body.to_owned())
    }

    #[tokio::test]
    async fn says_how_it_is() {
        let handles = handles();
        let server = start(handles.clone()).await;
        let (status, head, body) = ask(&server, "GET", "/health").await;
        assert_eq!(status, 200);
        assert!(head.contains("content-type: application/json") && head.contains("cache-control: no-store"));
        assert_eq!(body, r#"{"status":"ok","uptime_secs":0,"version":"1.2.3 (commit abc)"}"#);

        let (status, _, body) = ask(&server, "GET", "/ready").await;
        assert_eq!((status, body.as_str()), (503, r#"{"ready":false,"reason":"starting"}"#));
        handles.readiness.set_ready();
        let (status, _, body) = ask(&server, "GET", "/ready").await;
        assert_eq!((status, body.as_str()), (200, r#"{"ready":true}"#));
        handles.readiness.set_leaving();
        let (status, _, body) = ask(&server, "GET", "/ready").await;
        assert_eq!((status, body.as_str()), (503, r#"{"ready":false,"reason":"draining"}"#));

        let (status, head, body) = ask(&server, "GET", "/metrics").await;
        assert_eq!((status, body.as_str()), (200, "# EOF\n"));
        assert!(head.contains("content-type: text/plain; version=0.0.4"));
    }

    #[tokio::test]
    async fn r7_1_readyz_says_what_it_looked_at() {
        let handles = handles();
        let full = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let shown = full.clone();
        handles.readiness.watch(move || {
            let is_full = shown.load(std::sync::atomic::Ordering::Relaxed);
            vec![Check::new("allocations", !is_full, "of 10, there are some", NotReady::Full)]
        });
        let server = start(handles.clone()).await;
        handles.readiness.set_ready();
        let (status, _, body) = ask(&server, "GET", "/readyz?verbose").await;
        assert_eq!(status, 200);
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let names: Vec<_> = body["checks"].as_array().unwrap().iter().map(|it| it["name"].clone()).collect();
        assert_eq!(names, ["started", "draining", "allocations"]);
        full.store(true, std::sync::atomic::Ordering::Relaxed);
        for path in ["/ready", "/readyz"] {
            let (status, _, body) = ask(&server, "GET", path).await;
            assert_eq!((status, body.as_str()), (503, r#"{"ready":false,"reason":"full"}"#));
        }
        let (_, _, body) = ask(&server, "GET", "/readyz?verbose=1").await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["checks"][2]["ok"], false);
        assert_eq!(ask(&server, "GET", "/livez").await.0, 200);
    }

    #[tokio::test]
    async fn r7_1_a_relay_that_is_stuck_is_not_alive() {
        let silent_secs = Arc::new(std::sync::atomic::AtomicU64::new(61));
        let shown = silent_secs.clone();
        let silent_for = move || Duration::from_secs(shown.load(std::sync::atomic::Ordering::Relaxed));
        let server = start(Handles { liveness: Liveness::new(silent_for), ..handles() }).await;
        for path in ["/health", "/livez"] {
            let (status, head, body) = ask(&server, "GET", path).await;
            assert!(status == 503 && head.contains("content-type: application/json"), "{head}");
            let body: serde_json::Value = serde_json::from_str(&body).unwrap();
            let reason = "a thread that moves packets has not come round for 61 s";
            assert_eq!((&body["status"], &body["reason"]), (&"stuck".into(), &reason.into()));
        }
        // It may come round again.
        silent_secs.store(0, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(ask(&server, "GET", "/livez").await.0, 200);
    }

    #[tokio::test]
    async fn a_page_elsewhere_does_not_read_it_under_a_name_of_its_own() {
        let server = start(handles()).await;
        for (line, host, expected) in [
            ("/health", "evil.example:9433", "421"),
            ("http://evil.example/health", "127.0.0.1", "421"),
            ("/health", "relay:9433", "200"),
        ] {
            let request = format!("GET {line} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            let answer = raw(&server, request.as_bytes()).await;
            assert_eq!(&answer[9..12], expected, "{line} {host}: {answer}");
        }
        assert!(
            raw(&server, b"GET /health HTTP/1.0\r\n\r\n").await.contains(" 200 "),
            "a probe without Host"
        );
    }

    #[tokio::test]
    async fn challenges_are_answered_by_whatever_name_and_nothing_else_is() {
        let server = start(handles()).await;
        let asked =
            |path: &str| format!("GET {path} HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n");
        for (path, status, body) in [
            ("/.well-known/acme-challenge/open", "200", "answer"),
            ("/.well-known/acme-challenge/other", "404", "no such challenge"),
            ("/health", "421", ""),
        ] {
            let answer = raw(&server, asked(path).as_bytes()).await;
            assert!(answer[9..].starts_with(status) && answer.contains(body), "{answer}");
        }
        let alone =
            ChallengeServer::start("127.0.0.1:0".parse().unwrap(), handles().challenges).await.unwrap();
        alone.stop().await;
    }

    #[tokio::test]
    async fn describes_the_relay() {
        let handles = handles();
        let server = start(handles.clone()).await;
        let (status, _, body) = ask(&server, "GET", "/.well-known/zrc-relay").await;
        assert_eq!(status, 200);
        let descriptor: Descriptor = serde_json::from_str(&body).unwrap();
        assert_eq!(descriptor, **handles.descriptor.load());
    }

    #[tokio::test]
    async fn refuses_in_json() {
        let server = start(handles()).await;
        for (method, path, expected) in
            [("GET", "/assets/", 404), ("GET", "/healthz", 404), ("POST", "/health", 405), ("POST", "/", 405)]
        {
            let (status, head, body) = ask(&server, method, path).await;
            assert_eq!(status, expected);
            assert!(head.contains("content-type: application/problem+json"), "{head}");
            assert_eq!(head.contains("\r\nallow: "), expected == 405, "{head}");
            let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(problem["status"], expected);
        }
        let (status, _, body) = ask(&server, "HEAD", "/health").await;
        assert_eq!((status, body.as_str()), (200, ""));
    }

    #[tokio::test]
    async fn what_is_not_http_ends() {
        let server = start(handles()).await;
        assert!(raw(&server, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").await.contains("400"));
        let long = [b"GET / HTTP/1.1\r\nx: ", "y".repeat(64 * 1024).as_bytes(), b"\r\n\r\n"].concat();
        assert!(raw(&server, &long).await.contains("431"));
    }

    /// Silent callers hold all the connections there are; the oldest makes room, and the next one is served at once.
    #[tokio::test]
    async fn silent_callers_do_not_keep_others_out() {
        let server = start(handles()).await;
        let mut silent = Vec::new();
        for _ in 0..2 * MAX_CONNECTIONS {
            silent.push(TcpStream::connect(server.local_addr()).await.unwrap());
        }
        let mut waiting = TcpStream::connect(server.local_addr()).await.unwrap();
        waiting.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        let before = tokio::time::Instant::now();
        timeout(HEADER_TIMEOUT, waiting.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(before.elapsed() < HEADER_TIMEOUT / 2, "it waited for the silent ones");
        // The oldest was let go, the newest is still there.
        let mut end = Vec::new();
        timeout(HEADER_TIMEOUT / 2, silent[0].read_to_end(&mut end)).await.unwrap().unwrap();
        let newest = silent.last_mut().unwrap();
        newest.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        newest.read_to_end(&mut end).await.unwrap();
        assert!(end.starts_with(b"HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn stops_and_frees_its_port() {
        let server = start(handles()).await;
        let address = server.local_addr();
        let _idle = TcpStream::connect(address).await.unwrap();
        timeout(Duration::from_secs(10), server.stop()).await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
