//! Networks that are kept out, pushed while the relay runs: by people, or by what guards a network.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::{
    Extension, Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    App, By,
    input::{Asked, Told, bad, limit, reason, whole},
};
use crate::{guard::Block, ops::problem::Refused, table::Now};

/// The longest that a block may be told to last: a year.
const MAX_SECS: u64 = 366 * 86_400;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    limit: Option<u32>,
    cursor: Option<u32>,
}

pub(super) async fn list(State(app): State<App>, Asked(page): Asked<Page>) -> Result<Response, Refused> {
    let (limit, from) = (limit(page.limit)?, page.cursor.unwrap_or(0) as usize);
    let now = app.handles.clock.now();
    let blocks = app.handles.guard.list(now.mono);
    let shown: Vec<Value> = blocks.iter().skip(from).take(limit).map(|block| show(block, now)).collect();
    let next = from + shown.len();
    let next = (!shown.is_empty() && next < blocks.len()).then_some(next);
    Ok(Json(json!({ "blocks": shown, "total": blocks.len(), "next": next })).into_response())
}

fn show(block: &Block, now: Now) -> Value {
    let left = block.until.map(|until| until.saturating_sub(now.mono));
    json!({
        "network": block.network.to_string(),
        "reason": &*block.reason,
        "expires_at_unix": left.map(|left| (now.unix + left).as_secs()),
        "configured": block.configured,
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct New {
    network: String,
    /// Absent or null: until somebody ends it.
    #[serde(default, deserialize_with = "whole")]
    expires_in_secs: Option<u64>,
    #[serde(default)]
    reason: String,
}

pub(super) async fn add(
    State(app): State<App>,
    Extension(caller): By,
    Told(new): Told<New>,
) -> Result<Response, Refused> {
    let network = network(&new.network)?;
    let reason = reason(&new.reason)?;
    if new.expires_in_secs.is_some_and(|secs| !(1..=MAX_SECS).contains(&secs)) {
        return Err(bad(format!("expires_in_secs is a number from 1 to {MAX_SECS}")));
    }
    let now = app.handles.clock.now();
    let until = new.expires_in_secs.map(|secs| now.mono + Duration::from_secs(secs));
    let done = app.handles.guard.block(network, until, &reason, now.mono);
    let lasting = new.expires_in_secs.map_or("until it is ended".into(), |secs| format!("for {secs} s"));
    let detail = format!("{network} {lasting}: {reason}");
    app.record(&caller, "block", detail, if done.is_ok() { "done" } else { "refused" }).await?;
    match done {
        Ok(()) => {
            let block = Block { network, until, reason: reason.into(), configured: false };
            Ok((StatusCode::CREATED, Json(show(&block, now))).into_response())
        }
        Err(full) => Err(Refused::new(StatusCode::INSUFFICIENT_STORAGE, full.to_string())),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    network: String,
}

pub(super) async fn remove(
    State(app): State<App>,
    Extension(caller): By,
    Asked(which): Asked<Which>,
) -> Result<Response, Refused> {
    let network = network(&which.network)?;
    let done = app.handles.guard.unblock(network, app.handles.clock.mono());
    let outcome = if done { "done" } else { "not_found" };
    app.record(&caller, "unblock", network.to_string(), outcome).await?;
    if done {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let detail =
        "no block of exactly this network was pushed; those of the configuration end by a change of it";
    Err(Refused::new(StatusCode::NOT_FOUND, detail))
}

/// A network, or an address that is one by itself. Host bits are cleared.
fn network(text: &str) -> Result<IpNet, Refused> {
    let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    match text.parse::<IpNet>().ok().or_else(address) {
        Some(network) => Ok(network.trunc()),
        None if text.parse::<SocketAddr>().is_ok() => Err(bad("network is an address without a port")),
        None => Err(bad("network is an address or a network, as 203.0.113.7 or 2001:db8::/32")),
    }
}
