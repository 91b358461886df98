//! Totals, what is logged, what was audited, and the API's description of itself.

use axum::{
    Extension, Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    App, By, OPENAPI,
    input::{Asked, Told, bad, limit},
};
use crate::{
    ops::{self, problem::Refused},
    table::Stage,
};

/// Directives of one filter.
const MAX_DIRECTIVES: usize = 16;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

pub(super) async fn stats(State(app): State<App>, Extension(caller): By) -> Json<Value> {
    let handles = &app.handles;
    let now = handles.clock.now();
    let live = handles.control.allocations();
    let of = |stage| live.iter().filter(|it| it.stage == stage).count();
    let descriptor = handles.descriptor.load();
    let certificate = handles.control.certificate();
    let totals = handles.metrics.totals();
    Json(json!({
        "version": handles.version,
        "at_unix_ms": u64::try_from(now.unix.as_millis()).unwrap_or(u64::MAX),
        "uptime_secs": now.mono.as_secs(),
        "caller": { "name": caller.actor.name, "role": caller.actor.role },
        "relay": {
            "relay_id": descriptor.relay_id.to_string(),
            "addr": descriptor.addr,
            "port": descriptor.port,
            "server_name": descriptor.server_name,
            "region": descriptor.region,
            "pin": descriptor.spki.map(|pin| pin.to_string()),
        },
        "ready": handles.readiness.get().is_ok(),
        "checks": handles.readiness.checks(),
        "drain": app.drain.show(),
        "certificate": {
            "origin": certificate.origin,
            "expires_at_unix": certificate.expires_at_unix,
        },
        "allocations": {
            "now": live.len(),
            "max": handles.metrics.max_allocations.get(),
            "waiting": of(Stage::Waiting),
            "paired": of(Stage::Paired),
            "interrupted": of(Stage::Interrupted),
            "deserted": of(Stage::Deserted),
            "created": totals.allocations_created,
            "ended": totals.allocations_ended,
        },
        "connections": {
            "now": totals.connections,
            "opened": totals.connections_opened,
            "closed": totals.connections_closed,
        },
        "forwarded": { "device": totals.forwarded.device, "peer": totals.forwarded.peer },
        "dropped": totals.dropped,
        "refused": totals.refused,
        "security_events": totals.security_events,
        "guard": {
            "level": handles.guard.level().name(),
            "blocks": handles.guard.count(now.mono),
        },
    }))
}

/// The same as on the ops port, for those who can reach this one.
pub(super) async fn metrics(State(app): State<App>) -> Response {
    ops::shown_metrics(app.handles.metrics.encode().ok())
}

pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Last {
    tail: Option<u32>,
}

pub(super) async fn audit(State(app): State<App>, Asked(last): Asked<Last>) -> Result<Response, Refused> {
    let lines = limit(last.tail).map_err(|_| bad("tail is a number from 1 to 1000"))?;
    let audit = app.handles.audit.clone();
    match tokio::task::spawn_blocking(move || audit.tail(lines)).await {
        Ok(Ok((entries, total))) => Ok(Json(json!({ "entries": entries, "total": total })).into_response()),
        failed => {
            tracing::error!(?failed, "cannot read the audit log");
            Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "the audit log cannot be read"))
        }
    }
}

pub(super) async fn log(State(app): State<App>) -> Json<Value> {
    Json(json!({ "filter": app.handles.control.log_filter() }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    filter: String,
}

pub(super) async fn set_log(
    State(app): State<App>,
    Extension(caller): By,
    Told(log): Told<Log>,
) -> Result<Response, Refused> {
    if !is_filter(&log.filter) {
        let detail = "filter is off, error, warn, info, debug or trace, or the same for modules, \
                      as info,zrc_relay::relay=debug";
        return Err(bad(detail));
    }
    app.handles.control.set_log_filter(&log.filter).map_err(bad)?;
    app.record(&caller, "log", log.filter.clone(), "done").await?;
    Ok(Json(json!({ "filter": log.filter })).into_response())
}

/// Levels, or modules with levels, and nothing else that the filter's grammar has: spans and fields can make each line
/// costly.
fn is_filter(text: &str) -> bool {
    let is_module = |text: &str| {
        text.len() <= 100
            && text.split("::").all(|part| {
                !part.is_empty()
                    && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            })
    };
    let is_directive = |text: &str| match text.split_once('=') {
        Some((module, level)) => is_module(module) && LEVELS.contains(&level),
        None => LEVELS.contains(&text),
    };
    text.len() <= 1000 && text.split(',').count() <= MAX_DIRECTIVES && text.split(',').all(is_directive)
}

#[cfg(test)]
mod tests {
    use super::is_filter;

    #[test]
    fn filters_are_levels_for_modules() {
        for good in ["info", "off", "info,quinn=warn", "zrc_relay::relay::hub=trace,security=debug"] {
            assert!(is_filter(good), "{good}");
        }
        for bad in ["", "loud", "info,", "a=b", "=info", "a::=info", "info[span]=debug", "INFO", "a b=info"] {
            assert!(!is_filter(bad), "{bad}");
        }
        assert!(!is_filter(&["info"; 17].join(",")));
    }
}
