//! The status page and the dashboard of `admin/`, embedded in the program, and the policy that they are served under.
//!
//! Their files hold no secrets: the dashboard asks for a token, and the admin API wants it. They may load from and ask
//! this server alone: the policy allows nothing inline, nothing from elsewhere, and no markup made of text.

use axum::{
    Router,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use sha2::{Digest, Sha256};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

/// A file of `admin/`.
struct File {
    path: &'static str,
    content_type: &'static str,
    text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";

macro_rules! file {
    ($path:literal, $content_type:expr, $name:literal) => {
        File { path: $path, content_type: $content_type, text: include_str!(concat!("../../admin/", $name)) }
    };
}

const STATUS: File = file!("/", HTML, "index.html");
const DASHBOARD: File = file!("/", HTML, "dashboard.html");

/// What both pages are made of, and the dashboard under a name that it has on both ports: on that without the admin
/// API it says how to turn it on.
const FILES: &[File] = &[
    file!("/dashboard", HTML, "dashboard.html"),
    file!("/assets/activity.js", JAVASCRIPT, "activity.js"),
    file!("/assets/allocations.js", JAVASCRIPT, "allocations.js"),
    file!("/assets/api.js", JAVASCRIPT, "api.js"),
    file!("/assets/dashboard.css", CSS, "dashboard.css"),
    file!("/assets/dashboard.js", JAVASCRIPT, "dashboard.js"),
    file!("/assets/dialog.js", JAVASCRIPT, "dialog.js"),
    file!("/assets/dom.js", JAVASCRIPT, "dom.js"),
    file!("/assets/guard.js", JAVASCRIPT, "guard.js"),
    file!("/assets/icon.svg", SVG, "icon.svg"),
    file!("/assets/log.js", JAVASCRIPT, "log.js"),
    file!("/assets/metrics.js", JAVASCRIPT, "metrics.js"),
    file!("/assets/overview.js", JAVASCRIPT, "overview.js"),
    file!("/assets/page.css", CSS, "page.css"),
    file!("/assets/page.js", JAVASCRIPT, "page.js"),
    file!("/assets/plot.js", JAVASCRIPT, "plot.js"),
    file!("/assets/stream.js", JAVASCRIPT, "stream.js"),
    file!("/assets/uPlot.LICENSE", TEXT, "uPlot.LICENSE"),
    file!("/assets/uPlot.esm.js", JAVASCRIPT, "uPlot.esm.js"),
    file!("/assets/uPlot.min.css", CSS, "uPlot.min.css"),
    file!("/assets/units.js", JAVASCRIPT, "units.js"),
];

/// The status page, for the ops port.
pub(super) fn status<S: Clone + Send + Sync + 'static>() -> Router<S> {
    routes(&STATUS)
}

/// The dashboard, for the port of the admin API.
pub(super) fn dashboard<S: Clone + Send + Sync + 'static>() -> Router<S> {
    routes(&DASHBOARD)
}

fn routes<S: Clone + Send + Sync + 'static>(first: &'static File) -> Router<S> {
    FILES.iter().chain([first]).fold(Router::new(), |router, file| {
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
