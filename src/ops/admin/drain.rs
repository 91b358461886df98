//! Nobody new, and an end for those who are there: before a machine is taken away, and back.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Extension, Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::AbortHandle;

use super::{
    App, By, Control,
    input::{Told, bad, whole},
};
use crate::{
    clock::Clock,
    ops::{Readiness, problem::Refused},
};

const DEFAULT_SECS: u64 = 30;
const MAX_SECS: u64 = 86_400;
const MESSAGE: &str = "this relay is being emptied by its operator; connect again, here or to another one";

/// Whether the relay is being emptied, and until when.
pub(super) struct Drain {
    control: Arc<dyn Control>,
    readiness: Readiness,
    clock: Clock,
    current: Mutex<Option<Current>>,
}

struct Current {
    /// Monotonic.
    deadline: Duration,
    end: AbortHandle,
}

impl Drain {
    pub(super) fn new(control: Arc<dyn Control>, readiness: Readiness, clock: Clock) -> Self {
        Self { control, readiness, clock, current: Mutex::default() }
    }

    /// From now on whoever comes is refused; after `deadline`, whoever is there is told to go. Again: with another
    /// deadline.
    fn begin(&self, deadline: Duration) {
        let mut current = self.current();
        if let Some(before) = current.take() {
            before.end.abort();
        }
        self.readiness.set_draining(true);
        self.control.set_draining(true);
        let control = self.control.clone();
        let end = tokio::spawn(async move {
            tokio::time::sleep(deadline).await;
            control.end_all(MESSAGE);
        });
        *current = Some(Current { deadline: self.clock.mono() + deadline, end: end.abort_handle() });
    }

    /// Takes it back: whoever is still there stays. Answers whether there was anything to take back.
    fn undo(&self) -> bool {
        let mut current = self.current();
        let Some(before) = current.take() else { return false };
        before.end.abort();
        self.control.set_draining(false);
        self.readiness.set_draining(false);
        true
    }

    /// For people and programs: whether, and until when.
    pub(super) fn show(&self) -> Value {
        let now = self.clock.now();
        let deadline = self.current().as_ref().map(|current| current.deadline);
        let left = deadline.map(|deadline| deadline.saturating_sub(now.mono));
        let unix_ms = |left: Duration| u64::try_from((now.unix + left).as_millis()).unwrap_or(u64::MAX);
        json!({ "draining": left.is_some(), "deadline_unix_ms": left.map(unix_ms) })
    }

    fn current(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        if let Some(current) = self.current().take() {
            current.end.abort();
        }
    }
}

pub(super) async fn show(State(app): State<App>) -> Json<Value> {
    Json(app.drain.show())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct How {
    #[serde(default, deserialize_with = "whole")]
    deadline_secs: Option<u64>,
}

pub(super) async fn begin(
    State(app): State<App>,
    Extension(caller): By,
    Told(how): Told<How>,
) -> Result<Response, Refused> {
    let secs = how.deadline_secs.unwrap_or(DEFAULT_SECS);
    if secs > MAX_SECS {
        return Err(bad(format!("deadline_secs is a number from 0 to {MAX_SECS}")));
    }
    app.drain.begin(Duration::from_secs(secs));
    app.record(&caller, "drain", format!("within {secs} s"), "done").await?;
    Ok((StatusCode::ACCEPTED, Json(app.drain.show())).into_response())
}

pub(super) async fn end(State(app): State<App>, Extension(caller): By) -> Result<Response, Refused> {
    let done = app.drain.undo();
    app.record(&caller, "undrain", String::new(), if done { "done" } else { "not_found" }).await?;
    if done {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Err(Refused::new(StatusCode::NOT_FOUND, "the relay is not being drained"))
}
