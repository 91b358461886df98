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
pub struct ChallengeServer(Server);

impl ChallengeServer {
    /// Binds and begins to answer. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(listen: SocketAddr, challenges: Challenges) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        // By whatever name: it is asked by each that a certificate is to be for.
        Ok(Self(Server::start(Listener::Tcp(listener), dressed(routes(challenges), None))))
    }

    /// Takes no more connections, lets answers under way finish for a second, and ends.
    pub async fn stop(self) {
        self.0.stop().await;
    }
}
