//! Errors as RFC 9457 writes them.

use axum::{
    Json,
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

/// The body: what kind of error, and what this one is about. Says nothing that only the operator may know.
#[derive(Serialize)]
struct Problem {
    title: &'static str,
    status: u16,
    detail: String,
}

/// An answer that is an error, of type `application/problem+json`.
pub(super) fn problem(status: StatusCode, detail: impl Into<String>) -> Response {
    let title = status.canonical_reason().unwrap_or("Error");
    let body = Json(Problem { title, status: status.as_u16(), detail: detail.into() });
    let mut response = (status, body).into_response();
    let problem_json = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(header::CONTENT_TYPE, problem_json);
    response
}

/// A refusal on its way to being an answer.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    detail: String,
}

impl Refused {
    /// With this status, for this reason.
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        problem(self.status, self.detail)
    }
}

/// What answers a method that a path does not know. `Allow` is set by the router.
pub(super) async fn no_such_method(method: Method) -> Response {
    // An unknown method is the caller's text: it is not repeated.
    let detail = match method {
        Method::GET | Method::POST | Method::PUT | Method::DELETE | Method::PATCH | Method::OPTIONS => {
            format!("{method} is not for this path; the header Allow names what is")
        }
        _ => "this is not for this path; the header Allow names what is".into(),
    };
    problem(StatusCode::METHOD_NOT_ALLOWED, detail)
}
