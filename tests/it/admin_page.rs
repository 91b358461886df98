//! The status page and the dashboard: what is served, under which policy, and that their scripts know the relay's
//! metrics and their own elements by name. What they do in a browser: tests/browser.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    time::Duration,
};

use sha2::{Digest as _, Sha256};

use crate::cli_serve::Relay;

const PATIENCE: Duration = Duration::from_secs(60);

/// Where each file of `admin/` is served, and as what.
const FILES: &[(&str, &str, &str)] = &[
    ("index.html", "/", "text/html; charset=utf-8"),
    ("dashboard.html", "/dashboard", "text/html; charset=utf-8"),
    ("activity.js", "/assets/activity.js", JAVASCRIPT),
    ("allocations.js", "/assets/allocations.js", JAVASCRIPT),
    ("api.js", "/assets/api.js", JAVASCRIPT),
    ("dashboard.css", "/assets/dashboard.css", "text/css; charset=utf-8"),
    ("dashboard.js", "/assets/dashboard.js", JAVASCRIPT),
    ("dialog.js", "/assets/dialog.js", JAVASCRIPT),
    ("dom.js", "/assets/dom.js", JAVASCRIPT),
    ("guard.js", "/assets/guard.js", JAVASCRIPT),
    ("icon.svg", "/assets/icon.svg", "image/svg+xml"),
    ("log.js", "/assets/log.js", JAVASCRIPT),
    ("metrics.js", "/assets/metrics.js", JAVASCRIPT),
    ("overview.js", "/assets/overview.js", JAVASCRIPT),
    ("page.css", "/assets/page.css", "text/css; charset=utf-8"),
    ("page.js", "/assets/page.js", JAVASCRIPT),
    ("plot.js", "/assets/plot.js", JAVASCRIPT),
    ("stream.js", "/assets/stream.js", JAVASCRIPT),
    ("uPlot.LICENSE", "/assets/uPlot.LICENSE", "text/plain; charset=utf-8"),
    ("uPlot.esm.js", "/assets/uPlot.esm.js", JAVASCRIPT),
    ("uPlot.min.css", "/assets/uPlot.min.css", "text/css; charset=utf-8"),
    ("units.js", "/assets/units.js", JAVASCRIPT),
];
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// What is vendored, byte for byte as uplot 1.6.32 on npm has it.
const VENDORED: &[(&str, &str)] = &[
    ("uPlot.LICENSE", "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd"),
    ("uPlot.esm.js", "5dd9b3281aa64b461b42d9945f6adb2649d346502b12281a9ae0d46599a80eba"),
    ("uPlot.min.css", "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04"),
];

/// Each page, its own script, and the scripts that use its elements.
const PAGES: &[(&str, &[&str])] = &[
    ("index.html", &["page.js"]),
    (
        "dashboard.html",
        &["dashboard.js", "activity.js", "allocations.js", "dialog.js", "guard.js", "log.js", "overview.js"],
    ),
];

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

fn get(relay: &Relay, path: &str, headers: &str) -> Answer {
    let mut stream = TcpStream::connect(&relay.ops).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {}\r\n{headers}connection: close\r\n\r\n", relay.ops)
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Answer { status: head[9..12].parse().unwrap(), head: head.into(), body: body.into() }
}

fn admin_file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("admin").join(name)).unwrap()
}

/// Names and texts of all files of `admin/`, in alphabetical order.
fn admin_files() -> Vec<(String, String)> {
    let folder = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("admin")).unwrap();
    let mut names: Vec<_> = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names.into_iter().map(|name| (name.clone(), admin_file(&name))).collect()
}

#[test]
fn the_page_is_served_under_a_strict_policy() {
    let relay = Relay::dev();
    let mut served: Vec<_> = FILES.iter().map(|(name, ..)| (*name).to_owned()).collect();
    served.sort();
    assert_eq!(served, admin_files().into_iter().map(|(name, _)| name).collect::<Vec<_>>());
    for (name, path, content_type) in FILES {
        let answer = get(&relay, path, "");
        assert_eq!((answer.status, answer.body.as_str()), (200, admin_file(name).as_str()), "{path}");
        for (header, expected) in [
            ("content-type", *content_type),
            ("content-security-policy", POLICY),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-cache"),
        ] {
            assert_eq!(answer.header(header), Some(expected), "{path} {header}");
        }

        let tag = answer.header("etag").unwrap();
        for known in [tag.to_owned(), format!("\"x\", W/{tag}")] {
            let again = get(&relay, path, &format!("if-none-match: {known}\r\n"));
            assert_eq!((again.status, again.body.as_str()), (304, ""), "{path}");
            assert_eq!(again.header("etag"), Some(tag));
        }
        assert_eq!(get(&relay, path, "if-none-match: \"x\"\r\n").status, 200);
    }
    for path in ["/assets", "/assets/", "/assets/nothing.js", "/index.html", "/assets/../Cargo.toml"] {
        let answer = get(&relay, path, "");
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        let problem: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(problem["status"], 404);
    }
}

fn script_of(page: &str) -> &'static str {
    PAGES.iter().find(|(name, _)| *name == page).unwrap().1[0]
}

/// What would load from, lead to, or tell another server; what the policy would block; and paths from the root,
/// so that the page works below a proxy's prefix.
fn faults(name: &str, text: &str) -> Vec<&'static str> {
    const NEVER: &[&str] = &[
        "http:",
        "https:",
        "ws:",
        "wss:",
        "//cdn",
        "@import",
        "url(",
        "javascript:",
        "data:",
        "eval(",
        "new Function",
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "localStorage",
        "document.cookie",
    ];
    const NEVER_IN_HTML: &[&str] =
        &["style=", "<style", "<iframe", "<base", "action=", " name=\"t", "href=\"/", "src=\"/"];
    // The name of a namespace; nobody asks for it.
    let text = match name {
        "icon.svg" => text.replace("xmlns=\"http://www.w3.org/2000/svg\"", ""),
        _ => text.to_owned(),
    };
    let mut found: Vec<_> = NEVER.iter().filter(|part| text.contains(**part)).copied().collect();
    if name.ends_with(".html") {
        found.extend(NEVER_IN_HTML.iter().filter(|part| text.contains(**part)));
        let is_handler = |rest: &str| {
            rest.trim_start_matches(|c: char| c.is_ascii_alphabetic()).trim_start().starts_with('=')
        };
        if text.split(" on").skip(1).any(is_handler) {
            found.push("on…=");
        }
        // The one script is a file.
        let script = format!(" src=\"assets/{}\"></script>", script_of(name));
        if text.matches("<script").count() != 1 || text.matches(&script).count() != 1 {
            found.push("<script");
        }
    }
    found
}

#[test]
fn the_page_needs_nothing_from_elsewhere_and_nothing_inline() {
    for (name, text) in admin_files() {
        if let Some((_, hash)) = VENDORED.iter().find(|(vendored, _)| *vendored == name) {
            assert_eq!(
                hex::encode(Sha256::digest(&text)),
                *hash,
                "admin/{name} is not as its authors made it"
            );
            continue;
        }
        assert_eq!(faults(&name, &text), Vec::<&str>::new(), "admin/{name}");
    }
    // The search itself works.
    let html = admin_file("index.html");
    for (name, text) in [
        ("page.js", "import \"https://cdn.example/x.js\";".to_owned()),
        ("page.css", "a { background: url(//example/x.png) }".to_owned()),
        ("icon.svg", "<svg xmlns=\"http://www.w3.org/2000/svg\"><image href=\"http://x\"/></svg>".to_owned()),
        ("index.html", html.replace("<body>", "<body><script>alert(1)</script>")),
        ("index.html", html.replace("<body>", "<body onload=\"x()\">")),
        ("index.html", html.replace("<body>", "<body style=\"color: red\">")),
        ("index.html", html.replace("assets/page.css", "//cdn.example/page.css")),
        ("dashboard.html", html.clone()),
        ("dashboard.js", "localStorage.token = token;".to_owned()),
    ] {
        assert_ne!(faults(name, &text), Vec::<&str>::new(), "{text}");
    }
}

/// Each metric that a script names in quotes, and the label that it asks for by, if any: what follows the name
/// as `, "label"`.
fn metrics_read(script: &str) -> Vec<(String, Option<String>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let quoted = |text: &str| {
        let (name, rest) = text.split_once('"')?;
        name.chars().all(is_name).then(|| (name.to_owned(), rest.to_owned()))
    };
    let mut read = Vec::new();
    for (start, _) in script.match_indices("zrc_relay_") {
        assert_eq!(
            script[..start].chars().last(),
            Some('"'),
            "a metric's name stands in double quotes, whole"
        );
        let (name, rest) = quoted(&script[start..]).unwrap();
        let label = rest.strip_prefix(", \"").and_then(|rest| Some(quoted(rest)?.0));
        read.push((name, label));
    }
    read
}

#[test]
fn every_metric_that_the_page_reads_is_one_of_the_relays() {
    let relay = Relay::dev();
    let (status, scrape) = relay.get("/metrics");
    assert_eq!(status, 200);
    let has = |name: &str, label: Option<&str>| {
        scrape.lines().any(|line| match (label, line.strip_prefix(name)) {
            (None, Some(rest)) => rest.starts_with([' ', '{']),
            (Some(label), Some(rest)) => {
                rest.starts_with(&format!("{{{label}=\""))
                    || rest.starts_with('{') && rest.contains(&format!(",{label}=\""))
            }
            (_, None) => false,
        })
    };
    let read: Vec<_> = admin_files()
        .into_iter()
        .filter(|(name, _)| name.ends_with(".js"))
        .flat_map(|(_, script)| metrics_read(&script))
        .collect();
    for (name, label) in &read {
        assert!(has(name, label.as_deref()), "the page reads {name} {label:?}; not in {scrape}");
    }
    // What the page is for, by way of proof that the search finds names and labels.
    for (name, label) in [
        ("zrc_relay_connections", None),
        ("zrc_relay_allocations", None),
        ("zrc_relay_session_panics_total", None),
        ("zrc_relay_forwarded_datagrams_total", Some("from")),
        ("zrc_relay_forwarded_bytes_total", Some("from")),
        ("zrc_relay_dropped_datagrams_total", Some("reason")),
        ("zrc_relay_refused_total", Some("code")),
        ("zrc_relay_allocations_ended_total", Some("code")),
        ("zrc_relay_connections_closed_total", Some("code")),
    ] {
        assert!(read.contains(&(name.into(), label.map(Into::into))), "{name} {label:?} among {read:?}");
    }
    assert!(!has("zrc_relay_connection", None) && !has("zrc_relay_refused_total", Some("cod")));
    assert!(!has("zrc_relay_refused", Some("code")) && has("zrc_relay_forwarded_bytes_total", Some("kind")));
}

/// The pages find their elements by id: each that they ask for is there, once.
#[test]
fn every_element_that_a_page_asks_for_is_there() {
    for (page, scripts) in PAGES {
        let html = admin_file(page);
        let texts: Vec<_> = scripts.iter().map(|name| admin_file(name)).collect();
        let ids = |before: &str| -> Vec<String> {
            let rests = texts.iter().flat_map(|text| text.split(before).skip(1));
            rests.map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
        };
        let asked = [ids("at(\""), ids("writeNumber(\""), ids("tile(\"")].concat();
        assert!(asked.len() > 15, "{asked:?}");
        for id in asked {
            assert_eq!(html.matches(&format!(" id=\"{id}\"")).count(), 1, "{page}: {id}");
        }
    }
}
