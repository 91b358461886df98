//! Answers HTTP/1.1 over TCP, TLS or a Unix socket, bounded in connections and in time.
//!
//! When there are as many connections as may be, the oldest makes room for the newest. A probe is answered within
//! milliseconds of its coming, so a thousand callers that are slow or silent push each other out, and not the probe.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::{Router, body::Body};
use hyper::{Request, body::Incoming, server::conn::http1, service::Service as _, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Notify, watch},
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

/// Connections at once. Probes, scrapers and people at a dashboard are few.
pub const MAX_CONNECTIONS: usize = 128;
/// For a TLS handshake, and for the request line and all headers; also how long an idle connection is kept.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection's whole life. A scraper connects anew; one that never reads its answer has to go.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(120);
/// For answers under way when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// Accepting fails for want of file descriptors, say: wait this long instead of spinning.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// What the kernel keeps for a caller that does not read; Linux takes twice as much. By itself it would take megabytes
/// for each, and it would be long until anybody sees that nothing is read.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// All headers of a request.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// What HTTPS shows: another one from now on, when it is replaced.
pub(super) type Tls = Arc<ArcSwap<rustls::ServerConfig>>;

/// Where a server listens.
pub(super) enum Listener {
    /// Plain.
    Tcp(TcpListener),
    /// HTTPS, by what is in force when somebody connects.
    Tls(TcpListener, Tls),
    /// For those whom the file's mode lets.
    Unix(UnixListener),
}

/// Who has connected: what handlers find among a request's extensions.
#[derive(Clone)]
pub(super) struct Peer {
    /// How it came.
    pub(super) way: Way,
    /// Set for a connection that is meant to stay: it makes no room for others and outlives its time.
    pub(super) held: Arc<AtomicBool>,
    /// Told when nothing more is to be sent, not even what waits: the connection is closed at once.
    pub(super) cut: Arc<Notify>,
    /// Becomes true when the server stops.
    pub(super) stopped: watch::Receiver<bool>,
}

/// How somebody has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From this address.
    Tcp(SocketAddr),
    /// By the Unix socket, as this user.
    Unix {
        /// The user's number, where the system tells.
        uid: Option<u32>,
    },
}

/// Accepts and answers until it is stopped or dropped.
#[derive(Debug)]
pub(super) struct Server {
    stop: watch::Sender<bool>,
    accepting: JoinSet<()>,
}

impl Server {
    /// Begins to answer. Call it inside a tokio runtime.
    pub(super) fn start(listener: Listener, router: Router) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, router, stopped));
        Self { stop, accepting }
    }

    /// Takes no more connections, lets answers under way finish for a second, and ends.
    pub(super) async fn stop(mut self) {
        self.stop.send_replace(true);
        let _ = timeout(2 * STOP_TIMEOUT, self.accepting.join_next()).await;
    }
}

/// The connections of one listener, in order of their coming.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    in_order: VecDeque<(AbortHandle, Arc<AtomicBool>)>,
}

impl Connections {
    /// Makes room for one more. Answers whether there is some.
    fn make_room(&mut self) -> bool {
        if self.in_order.len() < MAX_CONNECTIONS {
            return true;
        }
        self.in_order.retain(|(task, _)| !task.is_finished());
        if self.in_order.len() < MAX_CONNECTIONS {
            return true;
        }
        let oldest = self.in_order.iter().position(|(_, held)| !held.load(Ordering::Relaxed));
        match oldest.and_then(|oldest| self.in_order.remove(oldest)) {
            Some((task, _)) => {
                task.abort();
                true
            }
            None => false,
        }
    }

    fn add(&mut self, held: Arc<AtomicBool>, connection: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(connection);
        self.in_order.push_back((task, held));
    }
}

async fn accept(listener: Listener, router: Router, mut stopped: watch::Receiver<bool>) {
    let mut connections = Connections::default();
    loop {
        let accepted = tokio::select! {
            () = until(&mut stopped) => break,
            Some(_) = connections.tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, way)) => {
                if !connections.make_room() {
                    continue;
                }
                let held = Arc::new(AtomicBool::new(false));
                let peer = Peer { way, held: held.clone(), cut: Arc::default(), stopped: stopped.clone() };
                connections.add(held, stream.serve(peer, router.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listener);
    let mut tasks = connections.tasks;
    let _ = timeout(STOP_TIMEOUT, async { while tasks.join_next().await.is_some() {} }).await;
}

async fn until(stopped: &mut watch::Receiver<bool>) {
    // The sender's end means the same.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// A connection that has been accepted.
enum Accepted {
    Tcp(tokio::net::TcpStream),
    Tls(tokio::net::TcpStream, TlsAcceptor),
    Unix(tokio::net::UnixStream),
}

impl Listener {
    /// Cancel-safe.
    async fn accept(&self) -> io::Result<(Accepted, Way)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                Ok((Accepted::Tcp(stream), Way::Tcp(from)))
            }
            Self::Tls(listener, tls) => {
                let (stream, from) = listener.accept().await?;
                Ok((Accepted::Tls(stream, TlsAcceptor::from(tls.load_full())), Way::Tcp(from)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred().ok().map(|of| of.uid());
                Ok((Accepted::Unix(stream), Way::Unix { uid }))
            }
        }
    }
}

impl Accepted {
    async fn serve(self, peer: Peer, router: Router) {
        match self {
            Self::Tcp(stream) => {
                prepare(&stream);
                serve(stream, peer, router).await;
            }
            Self::Tls(stream, acceptor) => {
                prepare(&stream);
                match timeout(HEADER_TIMEOUT, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => serve(stream, peer, router).await,
                    Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                    Err(_) => tracing::debug!("a TLS handshake took too long"),
                }
            }
            Self::Unix(stream) => serve(stream, peer, router).await,
        }
    }
}

/// A connection that this cannot be said of works as well, only less so.
fn prepare(stream: &tokio::net::TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_send_buffer_size(SEND_BUFFER_BYTES);
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, peer: Peer, router: Router) {
    let mut stopped = peer.stopped.clone();
    let (held, cut) = (peer.held.clone(), peer.cut.clone());
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    loop {
        tokio::select! {
            ended = connection.as_mut() => return log_end(ended),
            () = cut.notified() => return,
            () = until(&mut stopped) => break,
            () = tokio::time::sleep(CONNECTION_LIFETIME) => {
                if !held.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
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
