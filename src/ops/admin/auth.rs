//! Who asks, by which right, and how often wrongly.
//!
//! Over TCP by a bearer token; by the Unix socket whoever its file's mode lets. A source that names wrong tokens is
//! answered 429 when it does so more often than [`FAILURES_PER_MINUTE`]. A right token is always good: it cannot be
//! guessed, and so nobody can lock others out who share an address with them.

use axum::{
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use super::App;
use crate::{
    guard::{Budget, PerMinute, SecurityEvent, Source, SourceTable, Subject, ValidatedSource},
    ops::{
        audit::Actor,
        problem::problem,
        server::{Peer, Way},
        tokens::Role,
    },
};

/// Wrong tokens of one source in a minute.
const FAILURES_PER_MINUTE: u32 = 10;
/// Sources whose failures are counted: 64 KiB.
const SOURCES: usize = 4096;

/// Of a path, what an event names.
const MAX_PATH_CHARS: usize = 100;

/// Somebody who may ask.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) actor: Actor,
}

/// Failures by source.
pub(super) struct Failures(SourceTable);

impl Default for Failures {
    fn default() -> Self {
        Self(SourceTable::new(SOURCES))
    }
}

/// Lets those through who may.
pub(super) async fn check(State(app): State<App>, mut request: Request, next: Next) -> Response {
    // The server puts it there for every request.
    let Some(peer) = request.extensions().get::<Peer>() else {
        return problem(StatusCode::INTERNAL_SERVER_ERROR, "who asks is not known");
    };
    let (actor, role) = match peer.way {
        Way::Unix { uid } => {
            let name = uid.map_or_else(|| "uid:?".into(), |uid| format!("uid:{uid}"));
            (Actor { name, role: Role::Full.name(), source: "unix".into() }, Role::Full)
        }
        Way::Tcp(from) => {
            let ip = from.ip().to_canonical();
            let token = bearer(&request);
            let entry = token.and_then(|token| app.handles.tokens.find(token));
            let was_given = token.is_some();
            if let Some(changes) = app.handles.tokens.take_changes() {
                let relay = Caller { actor: Actor::relay() };
                if let Err(refused) = app.record(&relay, "tokens", changes.clone(), "noted").await {
                    app.handles.tokens.put_back(changes);
                    return refused.into_response();
                }
            }
            let Some(entry) = entry else {
                return refuse(&app, ValidatedSource::vouched(ip), was_given);
            };
            let name = entry.name.to_string();
            (Actor { name, role: entry.role.name(), source: ip.to_string() }, entry.role)
        }
    };
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    if role < Role::Full && changes {
        let subject = match peer.way {
            Way::Tcp(from) => Subject::source(ValidatedSource::vouched(from.ip().to_canonical())),
            Way::Unix { .. } => Subject::NOBODY,
        };
        let asked: String = request.uri().path().chars().take(MAX_PATH_CHARS).collect();
        let detail = format!("{} {asked} by {}", request.method(), actor.name).into();
        let event = SecurityEvent::AdminAction { action: "forbidden", detail };
        app.handles.guard.security().emit(event, subject);
        let detail = "this token may look and not touch; a token with the role full is needed";
        return problem(StatusCode::FORBIDDEN, detail);
    }
    request.extensions_mut().insert(Caller { actor });
    if !changes {
        return next.run(request).await;
    }
    // To its end, audit log included, whoever hangs up meanwhile: else it could be done and not be written down.
    match tokio::spawn(next.run(request)).await {
        Ok(response) => response,
        Err(error) => {
            tracing::error!(%error, "a request to the admin API has failed");
            problem(StatusCode::INTERNAL_SERVER_ERROR, "this has failed, and the log says why")
        }
    }
}

/// What follows `Bearer` in the one header there is.
fn bearer(request: &Request) -> Option<&str> {
    let mut headers = request.headers().get_all(header::AUTHORIZATION).iter();
    let (scheme, token) = headers.next()?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (headers.next().is_none() && scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn refuse(app: &App, source: ValidatedSource, was_given: bool) -> Response {
    let challenge = HeaderValue::from_static("Bearer realm=\"zrc-relay admin\"");
    if !was_given {
        let mut response =
            problem(StatusCode::UNAUTHORIZED, "a token is needed: Authorization: Bearer zrc_admin_...");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        return response;
    }
    let now = app.handles.clock.mono();
    let budget = PerMinute::new(FAILURES_PER_MINUTE);
    let charged =
        budget.map(|limit| app.failures.0.charge(Source::of(source.ip()), Budget::Connections, limit, now));
    let (mut response, action) = match charged {
        Some(Err(wait)) => {
            let mut response =
                problem(StatusCode::TOO_MANY_REQUESTS, "too many wrong tokens came from this address");
            let secs = HeaderValue::from(wait.as_secs() + 1);
            response.headers_mut().insert(header::RETRY_AFTER, secs);
            (response, "token_throttled")
        }
        _ => (problem(StatusCode::UNAUTHORIZED, "the token is not good"), "token_refused"),
    };
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    let event = SecurityEvent::AdminAction { action, detail: "by the admin API".into() };
    app.handles.guard.security().emit(event, Subject::source(source));
    response
}
