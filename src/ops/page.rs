//! The status page of `admin/`, embedded in the program, and the policy that it is served under.
//!
//! The page may load and ask this server alone: the policy allows nothing inline and nothing from elsewhere.

use axum::{
    Router,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use sha2::{Digest, Sha256};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file of the page.
struct File {
    path: &'static str,
    content_type: &'static str,
    text: &'static str,
}

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

const FILES: [File; 7] = [
    File {
        path: "/",
        content_type: "text/html; charset=utf-8",
        text: include_str!("../../admin/index.html"),
    },
    File {
        path: "/assets/page.css",
        content_type: "text/css; charset=utf-8",
        text: include_str!("../../admin/page.css"),
    },
    File {
        path: "/assets/icon.svg",
        content_type: "image/svg+xml",
        text: include_str!("../../admin/icon.svg"),
    },
    File { path: "/assets/page.js", content_type: JAVASCRIPT, text: include_str!("../../admin/page.js") },
    File { path: "/assets/plot.js", content_type: JAVASCRIPT, text: include_str!("../../admin/plot.js") },
    File {
        path: "/assets/metrics.js",
        content_type: JAVASCRIPT,
        text: include_str!("../../admin/metrics.js"),
    },
    File { path: "/assets/units.js", content_type: JAVASCRIPT, text: include_str!("../../admin/units.js") },
];

/// The page's routes, one for each of its files.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.iter().fold(Router::new(), |router, file| {
        let tag = format!("\"{}\"", hex::encode(Sha256::digest(file.text)));
        router.route(file.path, get(async move |headers: HeaderMap| answer(file, &tag, &headers)))
    })
}

/// A browser keeps the file and asks each time whether it is still the same, so that a new program is never
/// shown by parts of an old page.
fn answer(file: &'static File, tag: &str, asked: &HeaderMap) -> Response {
    let known = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let is_known = known.flat_map(|tags| tags.split(',')).any(|known| {
        let known = known.trim();
        known.strip_prefix("W/").unwrap_or(known) == tag
    });
    let headers = [
        (header::CONTENT_TYPE, file.content_type),
        (header::CACHE_CONTROL, "no-cache"),
        (header::ETAG, tag),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    if is_known {
        (StatusCode::NOT_MODIFIED, headers).into_response()
    } else {
        (headers, file.text).into_response()
    }
}
