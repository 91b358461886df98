//! The status page: what is served, under which policy, and that its script knows the relay's metrics by name.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    time::Duration,
};

use crate::cli_serve::Relay;

const PATIENCE: Duration = Duration::from_secs(60);

/// Where each file of `admin/` is served, and as what.
const PAGE: &[(&str, &str, &str)] = &[
    ("index.html", "/", "text/html; charset=utf-8"),
    ("page.css", "/assets/page.css", "text/css; charset=utf-8"),
    ("icon.svg", "/assets/icon.svg", "image/svg+xml"),
    ("page.js", "/assets/page.js", "text/javascript; charset=utf-8"),
    ("plot.js", "/assets/plot.js", "text/javascript; charset=utf-8"),
    ("metrics.js", "/assets/metrics.js", "text/javascript; charset=utf-8"),
    ("units.js", "/assets/units.js", "text/javascript; charset=utf-8"),
];

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

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
    let mut served: Vec<_> = PAGE.iter().map(|(name, ..)| (*name).to_owned()).collect();
    served.sort();
    assert_eq!(served, admin_files().into_iter().map(|(name, _)| name).collect::<Vec<_>>());
    for (name, path, content_type) in PAGE {
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
        "innerHTML",
    ];
    const NEVER_IN_HTML: &[&str] = &["style=", "<style", "<iframe", "<base", "<form", "=\"/"];
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
        // Every script is a file.
        let scripts = text.matches("<script").count();
        if scripts != text.matches("\"></script>").count()
            || scripts != text.matches(" src=\"assets/page.js\"").count()
        {
            found.push("<script");
        }
    }
    found
}

#[test]
fn the_page_needs_nothing_from_elsewhere_and_nothing_inline() {
    for (name, text) in admin_files() {
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

/// The page finds its elements by id: each that it asks for is there, once.
#[test]
fn every_element_that_the_page_asks_for_is_there() {
    let html = admin_file("index.html");
    let script = admin_file("page.js");
    let ids = |before: &str| -> Vec<String> {
        script.split(before).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
    };
    let asked = [ids("at(\""), ids("writeNumber(\"")].concat();
    assert!(asked.len() > 15, "{asked:?}");
    for id in asked {
        assert_eq!(html.matches(&format!(" id=\"{id}\"")).count(), 1, "{id}");
    }
}
