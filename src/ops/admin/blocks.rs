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
    input::{Asked, Told, bad, limit, not_a_cursor, reason, whole},
};
use crate::{
    guard::{Block, folded},
    ops::{
        blockfile::{MAX_BLOCK_SECS, NotBlocked},
        problem::Refused,
    },
    table::Now,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Where a page begins: after this one in the list's order, which has the configured ones first. Blocks that come and
/// go meanwhile move nobody from one page to another.
type Place = (Pushed, IpNet);

/// Whether it is pushed; the configured ones come first.
type Pushed = bool;

const CONFIGURED: &str = "configured";
const PUSHED: &str = "pushed";

fn place(block: &Block) -> Place {
    (!block.configured, block.network)
}

fn write_cursor((pushed, network): Place) -> String {
    let list = if pushed { PUSHED } else { CONFIGURED };
    let address = match network.addr() {
        IpAddr::V4(v4) => hex::encode(v4.octets()),
        IpAddr::V6(v6) => hex::encode(v6.octets()),
    };
    format!("{list}.{address}.{}", network.prefix_len())
}

fn read_cursor(text: &str) -> Option<Place> {
    let (list, network) = text.split_once('.')?;
    let (address, prefix) = network.split_once('.')?;
    let pushed = match list {
        CONFIGURED => false,
        PUSHED => true,
        _ => return None,
    };
    let address = hex::decode(address).ok()?;
    let address = match <[u8; 4]>::try_from(address.as_slice()) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
    };
    let place = (pushed, IpNet::new(address, prefix.parse().ok()?).ok()?);
    // A number can be written in more ways than one.
    write_cursor(place).eq_ignore_ascii_case(text).then_some(place)
}

pub(super) async fn list(State(app): State<App>, Asked(page): Asked<Page>) -> Result<Response, Refused> {
    let limit = limit(page.limit)?;
    let after = page.cursor.as_deref().map(|text| read_cursor(text).ok_or_else(not_a_cursor)).transpose()?;
    let now = app.handles.clock.now();
    let mut blocks = app.handles.guard.list(now.mono);
    let total = blocks.len();
    blocks.retain(|block| after.is_none_or(|after| place(block) > after));
    blocks.sort_unstable_by_key(place);
    let more = blocks.len() > limit;
    blocks.truncate(limit);
    let next = blocks.last().filter(|_| more).map(|last| write_cursor(place(last)));
    let shown: Vec<Value> = blocks.iter().map(|block| show(block, now)).collect();
    Ok(Json(json!({ "blocks": shown, "total": total, "next": next })).into_response())
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
    if new.expires_in_secs.is_some_and(|secs| !(1..=MAX_BLOCK_SECS).contains(&secs)) {
        return Err(bad(format!("expires_in_secs is a number from 1 to {MAX_BLOCK_SECS}")));
    }
    let lasting = new.expires_in_secs.map(Duration::from_secs);
    let shown = new.expires_in_secs.map_or("until it is ended".into(), |secs| format!("for {secs} s"));
    let detail = format!("{network} {shown}: {reason}");
    let blocks = app.handles.blocks.clone();
    let done = on_disk(move || blocks.block(network, lasting, &reason)).await?;
    let outcome = match &done {
        Ok(_) => "done",
        Err(NotBlocked::Full(_)) => "refused",
        Err(NotBlocked::NotKept(_)) => "not_kept",
    };
    app.record(&caller, "block", detail, outcome).await?;
    match done {
        Ok(block) => {
            let now = app.handles.clock.now();
            Ok((StatusCode::CREATED, Json(show(&block, now))).into_response())
        }
        Err(full @ NotBlocked::Full(_)) => {
            Err(Refused::new(StatusCode::INSUFFICIENT_STORAGE, full.to_string()))
        }
        Err(NotBlocked::NotKept(error)) => {
            tracing::error!(%error, %network, "a block cannot be written down");
            let detail = "this network is blocked, and that could not be written down: a restart forgets it";
            Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, detail))
        }
    }
}

/// What waits for a disk, where that disturbs nobody.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refused> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "blocks cannot be changed");
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "blocks cannot be changed")
    })
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
    let blocks = app.handles.blocks.clone();
    let done = on_disk(move || blocks.unblock(network)).await?;
    let outcome = match &done {
        Ok(true) => "done",
        Ok(false) => "not_found",
        Err(_) => "not_kept",
    };
    app.record(&caller, "unblock", network.to_string(), outcome).await?;
    match done {
        Ok(true) => return Ok(StatusCode::NO_CONTENT.into_response()),
        Ok(false) => {}
        Err(error) => {
            tracing::error!(%error, %network, "the end of a block cannot be written down");
            let detail =
                "this network is let in, and that could not be written down: a restart blocks it again";
            return Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, detail));
        }
    }
    let detail =
        "no block of exactly this network was pushed; those of the configuration end by a change of it";
    Err(Refused::new(StatusCode::NOT_FOUND, detail))
}

/// A network, or an address that is one by itself. Host bits are cleared, IPv4-mapped ones are IPv4.
fn network(text: &str) -> Result<IpNet, Refused> {
    let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    match text.parse::<IpNet>().ok().or_else(address) {
        Some(network) => Ok(folded(network)),
        None if text.parse::<SocketAddr>().is_ok() => Err(bad("network is an address without a port")),
        None => Err(bad("network is an address or a network, as 203.0.113.7 or 2001:db8::/32")),
    }
}
