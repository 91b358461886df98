//! Allocations: the list, one of them, its end.

use axum::{
    Extension, Json,
    extract::{FromRequestParts, Path, State},
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    App, By, Connection,
    input::{Asked, hex_prefix, limit, not_a_cursor, reason},
};
use crate::{
    clock::Clock,
    ops::problem::Refused,
    table::{Counts, Stage, Summary},
    wire::Handle,
};

/// What is wanted of the list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    state: Option<State_>,
    device: Option<String>,
    id: Option<String>,
    sort: Option<Sort>,
    order: Option<Order>,
    limit: Option<u32>,
    cursor: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State_ {
    Waiting,
    Paired,
    Interrupted,
    Deserted,
}

impl From<Stage> for State_ {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Waiting => Self::Waiting,
            Stage::Paired => Self::Paired,
            Stage::Interrupted => Self::Interrupted,
            Stage::Deserted => Self::Deserted,
        }
    }
}

/// By what the list is ordered; by id where that is equal.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Sort {
    #[default]
    Id,
    Bytes,
    Created,
    Expires,
    Activity,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    #[default]
    Asc,
    Desc,
}

impl Sort {
    fn key(self, summary: &Summary) -> u64 {
        match self {
            Self::Id => 0,
            Self::Bytes => summary.bytes_used,
            Self::Created => u64::try_from(summary.created.mono.as_nanos()).unwrap_or(u64::MAX),
            Self::Expires => summary.expires_at_unix,
            Self::Activity => summary.last_activity_nanos,
        }
    }
}

/// Where a page begins: after this one in the list's order.
type Place = (u64, Handle);

fn write_cursor((key, handle): Place) -> String {
    format!("{key:016x}.{handle}")
}

fn read_cursor(text: &str) -> Option<Place> {
    let (key, handle) = text.split_once('.')?;
    let mut bytes = [0; 8];
    hex::decode_to_slice(key, &mut bytes).ok()?;
    Some((u64::from_be_bytes(bytes), handle.parse().ok()?))
}

pub(super) async fn list(State(app): State<App>, Asked(wanted): Asked<Wanted>) -> Result<Response, Refused> {
    let limit = limit(wanted.limit)?;
    let device = wanted.device.map(|text| hex_prefix("device", &text, 64)).transpose()?;
    let id = wanted.id.map(|text| hex_prefix("id", &text, 32)).transpose()?;
    let after =
        wanted.cursor.as_deref().map(|text| read_cursor(text).ok_or_else(not_a_cursor)).transpose()?;
    let (sort, order) = (wanted.sort.unwrap_or_default(), wanted.order.unwrap_or_default());
    let mut found = app.handles.control.allocations();
    found.retain(|it| {
        wanted.state.is_none_or(|state| State_::from(it.stage) == state)
            && device.as_ref().is_none_or(|begin| it.device_id.to_string().starts_with(begin))
            && id.as_ref().is_none_or(|begin| it.handle.to_string().starts_with(begin))
    });
    let total = found.len();
    let place = |it: &Summary| (sort.key(it), it.handle);
    match order {
        Order::Asc => {
            found.sort_unstable_by_key(place);
            found.retain(|it| after.is_none_or(|after| place(it) > after));
        }
        Order::Desc => {
            found.sort_unstable_by_key(|it| std::cmp::Reverse(place(it)));
            found.retain(|it| after.is_none_or(|after| place(it) < after));
        }
    }
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|last| write_cursor(place(last)));
    let clock = app.handles.clock;
    let shown: Vec<Value> = found.iter().map(|it| show(it, clock)).collect();
    Ok(Json(json!({ "allocations": shown, "total": total, "next": next })).into_response())
}

pub(super) async fn one(State(app): State<App>, Id(handle): Id) -> Result<Response, Refused> {
    let summary = app.handles.control.allocation(handle).ok_or_else(none_such)?;
    let mut shown = show(&summary, app.handles.clock);
    let legs: Vec<Value> = app.handles.control.connections(handle).iter().map(show_connection).collect();
    if let Some(fields) = shown.as_object_mut() {
        fields.insert("legs".into(), legs.into());
    }
    Ok(Json(shown).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Why {
    reason: Option<String>,
}

pub(super) async fn kill(
    State(app): State<App>,
    Extension(caller): By,
    Id(handle): Id,
    Asked(why): Asked<Why>,
) -> Result<Response, Refused> {
    let reason = reason(&why.reason.unwrap_or_default())?;
    let killed = app.handles.control.kill(handle, &reason);
    let detail = format!("{handle}: {reason}");
    app.record(&caller, "kill", detail, if killed { "done" } else { "not_found" }).await?;
    if killed { Ok(StatusCode::NO_CONTENT.into_response()) } else { Err(none_such()) }
}

/// The one that the path names.
pub(super) struct Id(Handle);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        // What is no id, or not even text, is the id of nothing.
        let Path(id) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| none_such())?;
        id.parse().map(Self).map_err(|_| none_such())
    }
}

fn none_such() -> Refused {
    Refused::new(StatusCode::NOT_FOUND, "there is no live allocation of that id; ids are 32 hex digits")
}

/// As the list shows it. Times are of the wall clock as it is now, so they move with it when it is set.
fn show(summary: &Summary, clock: Clock) -> Value {
    let Summary { stage, connections: [device, peer], counts, limits, .. } = summary;
    let [from_device, from_peer] = counts;
    let now = clock.now();
    let unix_ms = |nanos: u64| {
        let ago = now.mono.saturating_sub(std::time::Duration::from_nanos(nanos));
        u64::try_from(now.unix.saturating_sub(ago).as_millis()).unwrap_or(u64::MAX)
    };
    let sent = |counts: &Counts| json!({ "bytes": counts.bytes, "packets": counts.packets });
    json!({
        "id": summary.handle.to_string(),
        "allocation_id": summary.allocation_id.to_string(),
        "device_id": summary.device_id.to_string(),
        "peer_id": summary.peer_id.to_string(),
        "tier": summary.tier.as_deref(),
        "state": State_::from(*stage),
        "connections": { "device": device, "peer": peer },
        "sent": { "device": sent(from_device), "peer": sent(from_peer) },
        "bytes_used": summary.bytes_used,
        "last_activity_unix_ms": (summary.last_activity_nanos > 0).then(|| unix_ms(summary.last_activity_nanos)),
        "created_unix_ms": u64::try_from(summary.created.unix.as_millis()).unwrap_or(u64::MAX),
        "age_secs": now.mono.saturating_sub(summary.created.mono).as_secs(),
        "expires_at_unix": summary.expires_at_unix,
        "limits": {
            "bytes_per_sec": limits.rate_bytes_per_sec,
            "packets_per_sec": limits.rate_packets_per_sec,
            "quota_bytes": limits.quota_bytes,
            "weight": limits.weight,
        },
    })
}

fn show_connection(connection: &Connection) -> Value {
    json!({
        "connection": connection.id.0,
        "role": connection.role.to_string(),
        "remote": connection.remote.to_string(),
        "rtt_us": u64::try_from(connection.rtt.as_micros()).unwrap_or(u64::MAX),
        "raw_channel": connection.raw_channel,
        "path_mtu_bytes": connection.path_mtu_bytes,
    })
}
