//! The admin API: what those who run the relay see of it and do to it, over HTTP.
//!
//! | file | what it is for |
//! |---|---|
//! | `auth.rs` | who asks, by which right, and how often wrongly |
//! | `allocations.rs` | the list, one of them, its end |
//! | `blocks.rs` | networks that are kept out |
//! | `drain.rs` | nobody new, and an end for those who are there |
//! | `events.rs` | what happens, as it happens |
//! | `stats.rs` | totals, log level, audit log, this API's description |
//! | `input.rs` | what callers send, checked |
//!
//! Every path below `/admin` wants a token, or comes by the Unix socket; the shapes are in `openapi.json`. What changes
//! something is written to the audit log before it is answered.

mod allocations;
mod auth;
mod blocks;
mod drain;
mod events;
#[cfg(test)]
mod hostile_tests;
mod input;
mod stats;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::{
    Extension, Router,
    http::StatusCode,
    middleware,
    response::Response,
    routing::{get, put},
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::broadcast,
};

use self::{auth::Caller, drain::Drain, events::Streams};
use super::{
    BlockFile, Readiness, audit,
    host::Hosts,
    page,
    problem::{Refused, no_such_method, problem},
    server::{Listener, Server, Tls},
    tokens::Tokens,
};
use crate::{
    clock::Clock,
    guard::{Guard, SecurityEvent, Subject},
    metrics::Metrics,
    table::{ConnId, Lifecycle, Summary},
    wire::{Descriptor, Handle, Role},
};

/// What the API describes itself with.
pub const OPENAPI: &str = include_str!("openapi.json");

/// The relay, as its administrators reach it.
pub trait Control: Send + Sync + 'static {
    /// What is live, in order of handles. Takes time in proportion to their number.
    fn allocations(&self) -> Vec<Summary>;
    /// One live allocation.
    fn allocation(&self, handle: Handle) -> Option<Summary>;
    /// Its connections, the oldest first.
    fn connections(&self, handle: Handle) -> Vec<Connection>;
    /// Ends an allocation for good; whether there was one. Both sides read the reason.
    fn kill(&self, handle: Handle, reason: &str) -> bool;
    /// Whether whoever comes is refused.
    fn set_draining(&self, draining: bool);
    /// Ends all allocations with DRAINING.
    fn end_all(&self, message: &str);
    /// Hears of allocations that come and go.
    fn lifecycle(&self) -> broadcast::Receiver<Lifecycle>;
    /// What is logged.
    fn log_filter(&self) -> String;
    /// Changes what is logged.
    ///
    /// # Errors
    /// Why not, for people.
    fn set_log_filter(&self, filter: &str) -> Result<(), String>;
    /// The certificate in use.
    fn certificate(&self) -> Certificate;
}

/// A connection of an allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// For the log.
    pub id: ConnId,
    /// Its side.
    pub role: Role,
    /// Where it comes from now.
    pub remote: SocketAddr,
    /// The round trip.
    pub rtt: Duration,
    /// Whether it has a raw channel.
    pub raw_channel: bool,
    /// The largest UDP payload that its path carries, in bytes.
    pub path_mtu_bytes: usize,
}

/// What is to be said of the certificate in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Certificate {
    /// When it expires, unix seconds, where that is known.
    pub expires_at_unix: Option<u64>,
    /// Where it comes from: `self-signed`, `files`, `acme`.
    pub origin: &'static str,
}

/// What the API shows and acts on.
#[derive(Clone)]
pub struct Handles {
    /// When the process started.
    pub clock: Clock,
    /// Version and commit of this program.
    pub version: &'static str,
    /// Whether new work is welcome.
    pub readiness: Readiness,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who decides who may come.
    pub guard: Arc<Guard>,
    /// What is blocked by administrators goes through this.
    pub blocks: Arc<BlockFile>,
    /// The relay.
    pub control: Arc<dyn Control>,
    /// How the relay introduces itself, now.
    pub descriptor: Arc<ArcSwap<Descriptor>>,
    /// What administrators do is written here.
    pub audit: Arc<audit::Audit>,
    /// Who may ask.
    pub tokens: Arc<Tokens>,
    /// The names it answers to.
    pub hosts: Hosts,
}

/// What handlers share.
#[derive(Clone)]
struct App {
    handles: Handles,
    failures: Arc<auth::Failures>,
    drain: Arc<Drain>,
    streams: Arc<Streams>,
}

/// Listens for administrators; it stops when dropped, and its socket's file goes.
pub struct AdminServer {
    app: App,
    tcp: Option<(SocketAddr, Option<Tls>, Server)>,
    unix: Option<(SocketFile, Server)>,
}

impl AdminServer {
    /// Nothing is listened on yet. Call it inside a tokio runtime.
    pub fn new(handles: Handles) -> Self {
        let drain = Arc::new(Drain::new(handles.control.clone(), handles.readiness.clone(), handles.clock));
        let app = App { handles, failures: Arc::default(), drain, streams: Arc::default() };
        Self { app, tcp: None, unix: None }
    }

    /// The same, with another patience for those who listen to events and do not read. Before it listens.
    #[cfg(test)]
    fn with_patience(mut self, patience: Duration) -> Self {
        self.app.streams = Arc::new(Streams::with_patience(patience));
        self
    }

    /// Listens on TCP, with TLS where it is given. Whoever comes needs a token.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn listen_tcp(
        &mut self,
        listen: SocketAddr,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> io::Result<()> {
        let listener = TcpListener::bind(listen).await?;
        let addr = listener.local_addr()?;
        let tls = tls.map(|tls| Arc::new(ArcSwap::new(tls)));
        let listener = match &tls {
            Some(tls) => Listener::Tls(listener, tls.clone()),
            None => Listener::Tcp(listener),
        };
        let router = router(self.app.clone(), Some(self.app.handles.hosts.clone()));
        self.tcp = Some((addr, tls, Server::start(listener, router)));
        Ok(())
    }

    /// Shows another certificate to whoever connects from now on, where HTTPS is spoken; answers whether it is.
    pub fn set_tls(&self, tls: Arc<rustls::ServerConfig>) -> bool {
        let Some((_, Some(shown), _)) = &self.tcp else { return false };
        shown.store(tls);
        true
    }

    /// Listens on a Unix socket that only its owner can connect to, and that needs no token. A socket that nobody
    /// listens on any more is replaced.
    ///
    /// # Errors
    /// When there is something else, somebody listens there, or it cannot be made.
    pub fn listen_unix(&mut self, path: &Path) -> io::Result<()> {
        let listener = bind_unix(path)?;
        let file = SocketFile(path.to_owned());
        self.unix = Some((file, Server::start(Listener::Unix(listener), router(self.app.clone(), None))));
        Ok(())
    }

    /// Where people reach it over TCP.
    pub fn url(&self) -> Option<String> {
        let (addr, tls, _) = self.tcp.as_ref()?;
        Some(format!("http{}://{addr}", if tls.is_some() { "s" } else { "" }))
    }

    /// Where the Unix socket is.
    pub fn socket(&self) -> Option<&Path> {
        self.unix.as_ref().map(|(file, _)| file.0.as_path())
    }

    /// Takes no more connections, lets answers under way finish for a second, and ends.
    pub async fn stop(self) {
        let tcp = async {
            if let Some((_, _, server)) = self.tcp {
                server.stop().await;
            }
        };
        let unix = async {
            if let Some((_, server)) = self.unix {
                server.stop().await;
            }
        };
        tokio::join!(tcp, unix);
    }
}

/// A socket's file, removed when dropped.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Nobody else may connect at any time: the socket gets its mode under a name that nobody knows.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file, and it is no socket"));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
        }
        _ => {}
    }
    let mut unique = [0; 4];
    getrandom::fill(&mut unique).map_err(io::Error::other)?;
    let new = path.with_file_name(format!(".{}", hex::encode(unique)));
    let listener = UnixListener::bind(&new)?;
    let placed =
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).and_then(|()| fs::rename(&new, path));
    if placed.is_err() {
        let _ = fs::remove_file(&new);
    }
    placed.map(|()| listener)
}

fn router(app: App, hosts: Option<Hosts>) -> Router {
    let api = Router::new()
        .route("/admin/allocations", get(allocations::list))
        .route("/admin/allocations/{id}", get(allocations::one).delete(allocations::kill))
        .route("/admin/stats", get(stats::stats))
        .route("/admin/metrics", get(stats::metrics))
        .route("/admin/blocks", get(blocks::list).post(blocks::add).delete(blocks::remove))
        .route("/admin/drain", get(drain::show).post(drain::begin).delete(drain::end))
        .route("/admin/events", get(events::events))
        .route("/admin/audit", get(stats::audit))
        .route("/admin/log", put(stats::set_log).get(stats::log))
        .route("/admin/openapi.json", get(stats::openapi))
        .fallback(no_such_path)
        // Here, so that this too is for those who may ask.
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(app.clone(), auth::check));
    // The page for browsers holds no secrets: it asks for the token and sends it with what it asks.
    let routes = Router::new().merge(api).merge(page::dashboard()).with_state(app);
    super::dressed(routes, hosts)
}

async fn no_such_path() -> Response {
    problem(StatusCode::NOT_FOUND, "there is no such path; /admin/openapi.json lists those there are")
}

impl App {
    /// Writes what an administrator did to the audit log and to the stream of security events. Answers when it is on
    /// disk.
    ///
    /// # Errors
    /// The answer, when it could not be written: it has happened all the same.
    async fn record(
        &self,
        caller: &Caller,
        action: &'static str,
        detail: String,
        outcome: &'static str,
    ) -> Result<(), Refused> {
        let event = SecurityEvent::AdminAction {
            action,
            detail: format!("{} by {}: {outcome}", detail, caller.actor.name).into(),
        };
        self.handles.guard.security().emit(event, Subject::NOBODY);
        let (audit, actor) = (self.handles.audit.clone(), caller.actor.clone());
        let written =
            tokio::task::spawn_blocking(move || audit.record(&actor, action, &detail, outcome)).await;
        match written {
            Ok(Ok(_)) => Ok(()),
            failed => {
                tracing::error!(?failed, action, "an admin action cannot be written to the audit log");
                let detail = "this was done, and could not be written to the audit log";
                Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, detail))
            }
        }
    }
}

/// Who asks, where a handler wants to know.
type By = Extension<Caller>;
