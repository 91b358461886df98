//! Answers to an ACME authority's HTTP-01 challenges (RFC 8555, section 8.3): on the ops port, and on a port of their own
//! for as long as the authority asks.

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::Path,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use tokio::net::TcpListener;

use super::{
    dressed,
    problem::problem,
    server::{Listener, Server},
};

/// Finds the answer for a token, if there is one now.
pub type Challenges = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// The one page that authorities ask for.
pub(super) fn routes(challenges: Challenges) -> Router {
    let answer = move |Path(token): Path<String>| {
        let found = challenges(&token);
        async move { answer(found) }
    };
    Router::new().route("/.well-known/acme-challenge/{token}", get(answer))
}

fn answer(found: Option<String>) -> Response {
    match found {
        Some(text) => ([(header::CONTENT_TYPE, "application/octet-stream")], text).into_response(),
        None => problem(StatusCode::NOT_FOUND, "no such challenge is open"),
    }
}

/// Answers challenges, and nothing else; it stops when dropped.
#[derive(Debug)]
pub struct ChallengeServer {
    local_addr: SocketAddr,
    server: Server,
}

impl ChallengeServer {
    /// Binds and begins to answer. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(listen: SocketAddr, challenges: Challenges) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let local_addr = listener.local_addr()?;
        // By whatever name: it is asked by each that a certificate is to be for.
        let server = Server::start(Listener::Tcp(listener), dressed(routes(challenges), None));
        Ok(Self { local_addr, server })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Takes no more connections, lets answers under way finish for a second, and ends.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        time::Duration,
    };

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        time::timeout,
    };

    use super::*;

    async fn ask(addr: SocketAddr, method: &str, path: &str, host: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(Duration::from_secs(60), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), head.to_lowercase(), body.to_owned())
    }

    #[tokio::test]
    async fn an_authority_is_answered_by_any_name_as_long_as_the_challenge_is_open() {
        const PAGE: &str = "/.well-known/acme-challenge/token";
        let open = Arc::new(AtomicBool::new(true));
        let is_open = open.clone();
        let find = move |token: &str| {
            (token == "token" && is_open.load(Ordering::Relaxed)).then(|| "token.thumbprint".to_owned())
        };
        let server = ChallengeServer::start("127.0.0.1:0".parse().unwrap(), Arc::new(find)).await.unwrap();
        let addr = server.local_addr();
        for host in ["relay.example.com", "b.example.com", "192.0.2.7:80"] {
            let (status, head, body) = ask(addr, "GET", PAGE, host).await;
            assert_eq!((status, body.as_str()), (200, "token.thumbprint"), "{host}");
            assert!(head.contains("content-type: application/octet-stream"), "{head}");
        }
        let other = "/.well-known/acme-challenge/";
        for (method, path, status) in [
            ("GET", "/.well-known/acme-challenge/other", 404),
            ("GET", "/.well-known/acme-challenge/..%2f..%2fetc%2fpasswd", 404),
            ("GET", other, 404),
            ("GET", "/health", 404),
            ("GET", "/metrics", 404),
            ("GET", "/", 404),
            ("POST", PAGE, 405),
        ] {
            assert_eq!(ask(addr, method, path, "relay.example.com").await.0, status, "{method} {path}");
        }
        open.store(false, Ordering::Relaxed);
        assert_eq!(ask(addr, "GET", PAGE, "relay.example.com").await.0, 404);
        // The port is one's own, and is let go of.
        let nothing: Challenges = Arc::new(|_| None);
        assert!(ChallengeServer::start(addr, nothing.clone()).await.is_err());
        server.stop().await;
        assert!(TcpStream::connect(addr).await.is_err());
        let dropped = ChallengeServer::start(addr, nothing).await.unwrap();
        drop(dropped);
    }
}
