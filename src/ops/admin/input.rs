//! What callers send, checked: queries, bodies, and what they name. What does not fit is answered 400, and says why.

use std::time::Duration;

use axum::{
    extract::{FromRequest, FromRequestParts, Query, Request},
    http::{StatusCode, header, request::Parts},
};
use serde::{
    Deserialize as _, Deserializer,
    de::{DeserializeOwned, Error as _},
};

use crate::ops::problem::Refused;

/// For all of a body, which is a few hundred bytes.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a reason, in characters.
pub(super) const MAX_REASON_CHARS: usize = 200;

/// A query of known keys, each at most once.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(bad(format!("the query is not understood: {}", rejection.body_text()))),
        }
    }
}

/// A JSON object of known keys. No body at all is an object without keys, where `T` can be had of that.
pub(super) struct Told<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Told<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        let is_json = request.headers().get(header::CONTENT_TYPE).is_none_or(|said| {
            let said = said.to_str().unwrap_or_default();
            let kind = said.split(';').next().unwrap_or_default().trim();
            kind.eq_ignore_ascii_case("application/json")
        });
        let read = axum::body::Bytes::from_request(request, state);
        let bytes = match tokio::time::timeout(BODY_TIMEOUT, read).await {
            Err(_) => {
                return Err(Refused::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"));
            }
            Ok(Ok(bytes)) => bytes,
            Ok(Err(rejection)) => return Err(Refused::new(rejection.status(), rejection.body_text())),
        };
        if !is_json && !bytes.is_empty() {
            return Err(Refused::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body must be application/json",
            ));
        }
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        // serde would read the fields of a list in their order.
        if text.trim_ascii_start().first() != Some(&b'{') {
            return Err(bad("the body is not understood: a JSON object is expected"));
        }
        serde_json::from_slice(text)
            .map(Self)
            .map_err(|error| bad(format!("the body is not understood: {error}")))
    }
}

/// A whole number, or null. `5.0` is one too: JSON does not tell them apart.
pub(super) fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    // Beyond, not every whole number is there.
    const MOST: f64 = 9_007_199_254_740_992.0;
    let Some(number) = Option::<serde_json::Number>::deserialize(deserializer)? else { return Ok(None) };
    let same = |number: &f64| number.fract() == 0.0 && (0.0..=MOST).contains(number);
    match number.as_u64().or_else(|| number.as_f64().filter(same).map(|number| number as u64)) {
        Some(whole) => Ok(Some(whole)),
        None => Err(D::Error::custom("a whole number is expected")),
    }
}

/// Something in the request cannot be.
pub(super) fn bad(detail: impl Into<String>) -> Refused {
    Refused::new(StatusCode::BAD_REQUEST, detail)
}

/// A reason for people to read: in one line, and not too long.
pub(super) fn reason(text: &str) -> Result<String, Refused> {
    if text.chars().count() > MAX_REASON_CHARS {
        return Err(bad(format!("a reason has at most {MAX_REASON_CHARS} characters")));
    }
    Ok(text.chars().map(|c| if steers(c) { ' ' } else { c }).collect())
}

/// What breaks lines, or changes how the text around it is shown.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The beginning of an identifier, in hex digits.
pub(super) fn hex_prefix(key: &str, text: &str, most: usize) -> Result<String, Refused> {
    if text.is_empty() || text.len() > most || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(bad(format!("{key} is the beginning of it: 1 to {most} hex digits")));
    }
    Ok(text.to_ascii_lowercase())
}

/// How many are wanted at once.
pub(super) fn limit(wanted: Option<u32>) -> Result<usize, Refused> {
    match wanted.unwrap_or(100) {
        wanted @ 1..=1000 => Ok(wanted as usize),
        _ => Err(bad("limit is a number from 1 to 1000")),
    }
}

/// What was given as a list's cursor is none of its.
pub(super) fn not_a_cursor() -> Refused {
    bad("cursor is what next was in another answer")
}
