//! HTTP for those who run the relay: health, readiness, metrics, the relay's description of itself, and a page
//! that shows them.
//!
//! Knows the relay only by the handles in [`Handles`]. Plain HTTP/1.1, meant for loopback or a private network.
//! Whoever can connect can read everything here; nothing here changes anything. Connections are bounded in
//! number ([`MAX_CONNECTIONS`]) and in time, so that a slow or silent caller cannot keep others out for long.

mod page;
mod readiness;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::Serialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::timeout,
};
use tower_http::timeout::TimeoutLayer;

pub use readiness::{NotReady, Readiness};

use crate::{clock::Clock, wire::Descriptor};

/// Connections at once. Probes and scrapers are few; one more waits in the kernel's queue until one ends,
/// which the times below promise.
pub const MAX_CONNECTIONS: usize = 64;
/// For the request line and all headers; also how long an idle connection is kept.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// For the answer to one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection's whole life. A scraper connects anew; one that never reads its answer has to go.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(120);
/// For answers under way when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// Nothing here takes a body.
const MAX_BODY_BYTES: usize = 16 * 1024;
/// Accepting fails for want of file descriptors, say: wait this long instead of spinning.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What the server shows, and whom it asks.
#[derive(Clone)]
pub struct Handles {
    /// When the process started.
    pub clock: Clock,
    /// Version and commit of this program.
    pub version: &'static str,
    /// Whether new work is welcome.
    pub readiness: Readiness,
    /// The metrics in Prometheus' text format; `None` when they cannot be shown.
    pub metrics: Arc<dyn Fn() -> Option<String> + Send + Sync>,
    /// How the relay introduces itself.
    pub descriptor: Arc<Descriptor>,
}

/// A server that has its port; it stops when dropped.
#[derive(Debug)]
pub struct OpsServer {
    local_addr: SocketAddr,
    stop: watch::Sender<bool>,
    accepting: JoinSet<()>,
}

impl OpsServer {
    /// Binds and begins to answer. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(listen: SocketAddr, handles: Handles) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let local_addr = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, router(handles), stopped));
        Ok(Self { local_addr, stop, accepting })
    }

    /// Where it listens: with the port that was taken, when any would do.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Takes no more connections, lets answers under way finish for a second, and ends.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let _ = timeout(2 * STOP_TIMEOUT, self.accepting.join_next()).await;
    }
}

async fn accept(listener: TcpListener, router: Router, mut stopped: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            // The semaphore is never closed.
            let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
            Some((slot, listener.accept().await))
        };
        tokio::select! {
            () = until(&mut stopped) => break,
            Some(_) = connections.join_next() => {}
            accepted = next => match accepted {
                Some((slot, Ok((stream, _)))) => {
                    connections.spawn(serve(stream, slot, router.clone(), stopped.clone()));
                }
                Some((_, Err(error))) => {
                    tracing::warn!(%error, "cannot accept an HTTP connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
                None => break,
            },
        }
    }
    drop(listener);
    let _ = timeout(STOP_TIMEOUT, async { while connections.join_next().await.is_some() {} }).await;
}

async fn until(stopped: &mut watch::Receiver<bool>) {
    // The sender's end means the same.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

async fn serve(
    stream: TcpStream,
    _slot: OwnedSemaphorePermit,
    router: Router,
    mut stopped: watch::Receiver<bool>,
) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return log_end(ended),
        () = until(&mut stopped) => {}
        () = tokio::time::sleep(CONNECTION_LIFETIME) => {}
    }
    connection.as_mut().graceful_shutdown();
    if let Ok(ended) = timeout(STOP_TIMEOUT, connection).await {
        log_end(ended);
    }
}

fn log_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

fn router(handles: Handles) -> Router {
    page::routes()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/.well-known/zrc-relay", get(descriptor))
        .fallback(no_such_page)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, REQUEST_TIMEOUT))
        .layer(middleware::from_fn(headers))
        .with_state(handles)
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    uptime_secs: u64,
    version: &'static str,
}

async fn health(State(handles): State<Handles>) -> Json<Health> {
    let uptime_secs = handles.clock.mono().as_secs();
    Json(Health { status: "ok", uptime_secs, version: handles.version })
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<NotReady>,
}

async fn ready(State(handles): State<Handles>) -> (StatusCode, Json<Ready>) {
    match handles.readiness.get() {
        Ok(()) => (StatusCode::OK, Json(Ready { ready: true, reason: None })),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, Json(Ready { ready: false, reason: Some(reason) })),
    }
}

async fn metrics(State(handles): State<Handles>) -> Response {
    match (handles.metrics)() {
        Some(text) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
        }
        None => problem(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be shown".into()),
    }
}

async fn descriptor(State(handles): State<Handles>) -> Json<Descriptor> {
    Json(handles.descriptor.as_ref().clone())
}

/// An error as RFC 9457 writes it.
#[derive(Serialize)]
struct Problem {
    title: &'static str,
    status: u16,
    detail: String,
}

fn problem(status: StatusCode, detail: String) -> Response {
    let title = status.canonical_reason().unwrap_or("Error");
    let mut response = (status, Json(Problem { title, status: status.as_u16(), detail })).into_response();
    let problem_json = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(header::CONTENT_TYPE, problem_json);
    response
}

async fn no_such_page() -> Response {
    let pages = "/, /health, /ready, /metrics and /.well-known/zrc-relay";
    problem(StatusCode::NOT_FOUND, format!("there is no such page; there are {pages}"))
}

async fn no_such_method(method: Method) -> Response {
    // An unknown method is the caller's text: it is not repeated.
    let detail = match method {
        Method::POST | Method::PUT | Method::DELETE | Method::PATCH | Method::OPTIONS => {
            format!("{method} changes nothing here; use GET")
        }
        _ => "use GET".into(),
    };
    problem(StatusCode::METHOD_NOT_ALLOWED, detail)
}

/// Answers are about this moment unless they say otherwise, and are what they say they are.
async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if response.status() == StatusCode::GATEWAY_TIMEOUT {
        response = problem(StatusCode::GATEWAY_TIMEOUT, "the answer took too long".into());
    }
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::wire::RelayId;

    fn handles() -> Handles {
        Handles {
            clock: Clock::start(),
            version: "1.2.3 (commit abc)",
            readiness: Readiness::default(),
            metrics: Arc::new(|| Some("# EOF\n".into())),
            descriptor: Arc::new(Descriptor {
                addr: "192.0.2.1".into(),
                port: 4433,
                server_name: "relay".into(),
                spki: None,
                relay_id: RelayId([1; 16]),
                region: Some("eu".into()),
            }),
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
        timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap().unwrap();
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
        handles.readiness.set_draining();
        let (status, _, body) = ask(&server, "GET", "/ready").await;
        assert_eq!((status, body.as_str()), (503, r#"{"ready":false,"reason":"draining"}"#));

        let (status, head, body) = ask(&server, "GET", "/metrics").await;
        assert_eq!((status, body.as_str()), (200, "# EOF\n"));
        assert!(head.contains("content-type: text/plain; version=0.0.4"));
    }

    #[tokio::test]
    async fn describes_the_relay() {
        let handles = handles();
        let server = start(handles.clone()).await;
        let (status, _, body) = ask(&server, "GET", "/.well-known/zrc-relay").await;
        assert_eq!(status, 200);
        let descriptor: Descriptor = serde_json::from_str(&body).unwrap();
        assert_eq!(descriptor, *handles.descriptor);
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

    /// Silent callers hold all the connections there are; their time runs out and the next one is served.
    #[tokio::test]
    async fn silent_callers_do_not_keep_others_out() {
        let server = start(handles()).await;
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(server.local_addr()).await.unwrap());
        }
        let mut waiting = TcpStream::connect(server.local_addr()).await.unwrap();
        waiting.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        timeout(HEADER_TIMEOUT + Duration::from_secs(10), waiting.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
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
