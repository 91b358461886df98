//! Holds the map: which module may name which, what stays free of I/O, and what stands at the top of the tree.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Each module of the library and the modules it may name. A module that is missing here fails the test, so
/// whoever adds one says where it stands.
const MAY_USE: &[(&str, &[&str])] = &[
    // Logic without I/O.
    ("wire", &[]),
    ("table", &["wire"]),
    // The one reader of clocks, and what everything above may count and log with.
    ("clock", &["table"]),
    ("geoip", &[]),
    ("metrics", &["geoip", "table", "wire"]),
    // Whom others are believed by.
    ("https", &[]),
    ("telemetry", &["clock", "https"]),
    // What both ends of a connection do to their transport.
    ("quic", &[]),
    // What the services stand on.
    ("guard", &["clock", "https", "metrics", "table", "wire"]),
    ("cluster", &["clock", "metrics", "table", "wire"]),
    ("store", &["clock", "metrics"]),
    // Asks an authority for certificates; what becomes of them is up to `cli`.
    ("acme", &["https"]),
    // The services. They never name each other; what two of them share is handed to both by `cli`.
    ("relay", &["clock", "cluster", "guard", "metrics", "quic", "table", "wire"]),
    ("ops", &["clock", "cluster", "guard", "metrics", "store", "table", "telemetry", "wire"]),
    ("rendezvous", &["clock", "guard", "metrics", "store"]),
    ("queue", &["clock", "guard", "metrics", "store"]),
    ("events", &["clock", "guard", "metrics", "store"]),
    // A program that embeds the client gets none of the relay.
    ("client", &["clock", "quic", "wire"]),
    // Read by `cli`, which hands each service its own settings.
    ("config", &["geoip", "table", "telemetry", "wire"]),
    (
        "cli",
        &[
            "acme",
            "client",
            "clock",
            "cluster",
            "config",
            "events",
            "geoip",
            "guard",
            "https",
            "metrics",
            "ops",
            "queue",
            "relay",
            "rendezvous",
            "store",
            "table",
            "telemetry",
            "wire",
        ],
    ),
    ("main", &["cli"]),
];

/// What `wire` and `table` never name: no runtime, no transport, no clock, no I/O.
const NO_IO: &[&str] = &[
    "tokio",
    "quinn",
    "rustls",
    "socket2",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::net::UdpSocket",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::fs",
    "std::io",
    "std::thread",
    "std::process",
];

/// Their tests read vectors and saved cases from files.
const IN_TESTS: &[&str] = &["std::fs", "std::io"];

/// All that may stand at the top of the tree, beside dot-files.
const TOP_LEVEL: &[&str] = &[
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "admin",
    "benches",
    "certs",
    "deploy",
    "relay.example.toml",
    "src",
    "tests",
];

/// Made by tools and ignored by git.
fn is_generated(name: &str) -> bool {
    name == "target" || name.starts_with("mutants.out")
}

#[test]
fn modules_name_only_what_lies_below_them() {
    let files = source_files();
    let tests: BTreeSet<_> = files.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
    let mut faults = Vec::new();
    let mut edges = BTreeSet::new();
    for (path, text) in &files {
        let check = check(path, text, &tests);
        faults.extend(check.faults);
        edges.extend(check.edges);
    }
    assert!(faults.is_empty(), "src/ breaks the map of tests/it/architecture.rs:\n{}", faults.join("\n"));
    // The search itself works: these are sure to be there.
    for sure in [("table", "wire"), ("clock", "table")] {
        assert!(edges.contains(&(sure.0.into(), sure.1.into())), "{sure:?} not found among {edges:?}");
    }
}

#[test]
fn the_map_has_no_way_round_in_a_circle() {
    for (module, below) in MAY_USE {
        for lower in *below {
            let back =
                MAY_USE.iter().find(|(name, _)| name == lower).unwrap_or_else(|| panic!("{lower} unknown")).1;
            assert!(!back.contains(module), "{module} and {lower} may name each other");
        }
    }
}

#[test]
fn the_top_of_the_tree_holds_only_what_belongs_there() {
    let strangers: Vec<String> = fs::read_dir(env!("CARGO_MANIFEST_DIR"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.') && !is_generated(name) && !TOP_LEVEL.contains(&name.as_str()))
        .collect();
    assert!(strangers.is_empty(), "at the top of the tree: {strangers:?}; only {TOP_LEVEL:?} belong there");
}

/// What a system trusts is looked up where HTTPS servers are asked, and where relays are.
#[test]
fn one_module_says_whom_https_trusts() {
    let found = source_files().into_iter().filter(|(_, text)| text.contains("rustls_native_certs"));
    let found: BTreeSet<_> = found.map(|(path, _)| path).collect();
    assert_eq!(found, ["client/trust.rs", "https.rs"].map(PathBuf::from).into_iter().collect());
}

#[test]
fn every_source_file_says_first_what_it_is_for() {
    for (path, text) in source_files() {
        assert!(text.starts_with("//! "), "src/{} opens without a //! line", path.display());
    }
}

/// Path below `src/` and text of each source file; the build script is a program of its own.
fn source_files() -> Vec<(PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") && !path.ends_with("wire/build.rs") {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(&src).unwrap().to_owned(), text));
            }
        }
    }
    files
}

/// What one file names, and what of it the map forbids.
#[derive(Default)]
struct Check {
    edges: Vec<(String, String)>,
    faults: Vec<String>,
}

/// Checks one file; `tests` are the modules that are compiled for tests alone.
fn check(path: &Path, text: &str, tests: &BTreeSet<Vec<String>>) -> Check {
    let mut check = Check::default();
    let module = module_of(path);
    let test_file = tests.contains(&module);
    let Some(top) = module.first().cloned().filter(|top| top != "lib") else { return check };
    let Some((_, may_use)) = MAY_USE.iter().find(|(name, _)| *name == top) else {
        check.faults.push(format!("{}: '{top}' is not on the map; say where it stands", path.display()));
        return check;
    };
    for Named { line, path: named, in_test } in paths_in(text, &module) {
        let at = format!("src/{}:{line}", path.display());
        if let Some(below) = named.strip_prefix("crate::") {
            let target = below.split("::").next().unwrap_or_default();
            if target == top || !MAY_USE.iter().any(|(name, _)| *name == target) {
                continue;
            }
            check.edges.push((top.clone(), target.to_owned()));
            if !may_use.contains(&target) {
                check.faults.push(format!("{at}: {top} may not name {target} ({named})"));
            }
        } else if matches!(top.as_str(), "wire" | "table") {
            let is = |no: &&&str| named == **no || named.starts_with(&format!("{no}::"));
            let allowed = (in_test || test_file) && IN_TESTS.iter().any(|path| is(&path));
            if let Some(forbidden) = NO_IO.iter().find(is).filter(|_| !allowed) {
                check
                    .faults
                    .push(format!("{at}: {top} does no I/O and reads no clock, but names {forbidden}"));
            }
        }
    }
    check
}

/// `relay/session.rs` is the module `relay::session`; `relay/mod.rs` and `relay.rs` are `relay`.
fn module_of(path: &Path) -> Vec<String> {
    let mut module: Vec<String> =
        path.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

/// The modules that this file declares for tests alone and that lie in files of their own.
fn test_modules(path: &Path, text: &str) -> Vec<Vec<String>> {
    let tokens: Vec<String> = tokens(text).into_iter().map(|(_, token)| token).collect();
    let declared = tokens.windows(CFG_TEST.len() + 3).filter(|w| {
        w[..CFG_TEST.len()] == *CFG_TEST && w[CFG_TEST.len()] == "mod" && w[CFG_TEST.len() + 2] == ";"
    });
    let parent = module_of(path);
    declared.map(|w| parent.iter().cloned().chain([w[CFG_TEST.len() + 1].clone()]).collect()).collect()
}

const CFG_TEST: &[&str] = &["#", "[", "cfg", "(", "test", ")", "]"];

/// A path as the code names it.
struct Named {
    line: usize,
    path: String,
    in_test: bool,
}

/// Every path of two or more segments in the code, `use` groups spelled out. Paths into this crate begin with
/// `crate::`, however they were written.
fn paths_in(text: &str, module: &[String]) -> Vec<Named> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    let mut depth = 0usize;
    // Inline modules and the brace depth at which each ends: they are one more `super` away from the root.
    let mut inline: Vec<(String, usize)> = Vec::new();
    // How many of the inline modules begin with the outermost one that is for tests alone.
    let mut tests_from: Option<usize> = None;
    let mut at = 0;
    while let Some((line, token)) = tokens.get(at) {
        let next = |n: usize| tokens.get(at + n).map(|(_, token)| token.as_str());
        match token.as_str() {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                if inline.last().is_some_and(|(_, end)| *end == depth) {
                    inline.pop();
                    tests_from = tests_from.filter(|from| *from < inline.len());
                }
            }
            "mod" if next(2) == Some("{") => {
                let attribute = at.checked_sub(CFG_TEST.len()).and_then(|from| tokens.get(from..at));
                if attribute.is_some_and(|a| a.iter().map(|(_, token)| token).eq(CFG_TEST.iter())) {
                    tests_from.get_or_insert(inline.len());
                }
                inline.push((next(1).unwrap_or_default().to_owned(), depth));
            }
            "use" => {
                at = use_tree(&tokens, at + 1, "", &mut |line, path| {
                    let path = rooted(path, module, &inline);
                    found.push(Named { line, path, in_test: tests_from.is_some() });
                });
                continue;
            }
            name if is_name(name) && next(1) == Some("::") => {
                let mut path = name.to_owned();
                let mut end = at + 1;
                while let (Some((_, sep)), Some((_, part))) = (tokens.get(end), tokens.get(end + 1)) {
                    if sep != "::" || !is_name(part) {
                        break;
                    }
                    path = format!("{path}::{part}");
                    end += 2;
                }
                let path = rooted(&path, module, &inline);
                found.push(Named { line: *line, path, in_test: tests_from.is_some() });
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Reads one branch of a `use` tree from `at`, gives each leaf its whole path, and returns where it stopped.
fn use_tree(
    tokens: &[(usize, String)],
    mut at: usize,
    prefix: &str,
    found: &mut impl FnMut(usize, &str),
) -> usize {
    let mut path = prefix.to_owned();
    while let Some((line, token)) = tokens.get(at) {
        match token.as_str() {
            "::" => at += 1,
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|(_, token)| token != "}") {
                    at = use_tree(tokens, at, &path, found);
                    if tokens.get(at).is_some_and(|(_, token)| token == ",") {
                        at += 1;
                    }
                }
                return at + 1;
            }
            "as" => at += 2,
            name if is_name(name) || name == "*" => {
                path = if path.is_empty() { name.to_owned() } else { format!("{path}::{name}") };
                at += 1;
                if tokens.get(at).is_none_or(|(_, token)| token != "::") {
                    found(*line, &path);
                }
            }
            _ => return at,
        }
    }
    at
}

/// Writes a path that begins with `self`, `super` or this package's name as one that begins with `crate`.
fn rooted(path: &str, module: &[String], inline: &[(String, usize)]) -> String {
    let mut here: Vec<&str> = module.iter().map(String::as_str).collect();
    here.extend(inline.iter().map(|(name, _)| name.as_str()));
    let mut parts: Vec<&str> = path.split("::").collect();
    match parts.first() {
        Some(&"zrc_relay") => parts[0] = "crate",
        Some(&("self" | "super")) => {
            while let Some(&first @ ("self" | "super")) = parts.first() {
                if first == "super" {
                    here.pop();
                }
                parts.remove(0);
            }
            parts.splice(0..0, here);
            parts.insert(0, "crate");
        }
        _ => {}
    }
    parts.join("::")
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Names, `::` and punctuation with their lines. Comments, texts and characters are left out.
fn tokens(text: &str) -> Vec<(usize, String)> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while let Some(&c) = chars.get(at) {
        let next = chars.get(at + 1).copied().unwrap_or_default();
        let start = at;
        match c {
            '/' if next == '/' => {
                at += chars[at..].iter().position(|c| *c == '\n').unwrap_or(chars.len() - at)
            }
            '/' if next == '*' => {
                let mut open = 0usize;
                loop {
                    match (chars.get(at), chars.get(at + 1)) {
                        (Some('/'), Some('*')) => (open, at) = (open + 1, at + 2),
                        (Some('*'), Some('/')) => (open, at) = (open - 1, at + 2),
                        (None, _) => break,
                        _ => at += 1,
                    }
                    if open == 0 {
                        break;
                    }
                }
            }
            'r' if raw_text_hashes(&chars[at + 1..]).is_some() => {
                let hashes = raw_text_hashes(&chars[at + 1..]).unwrap_or(0);
                let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
                at += hashes + 2;
                at += chars[at..].windows(close.len()).position(|w| w == close).unwrap_or(0) + close.len();
            }
            '"' => {
                at += 1;
                while chars.get(at).is_some_and(|c| *c != '"') {
                    at += if chars[at] == '\\' { 2 } else { 1 };
                }
                at += 1;
            }
            // A character or a lifetime: a character closes after one or after an escape.
            '\'' if next == '\\' => at += 3 + chars[at + 3..].iter().position(|c| *c == '\'').unwrap_or(0),
            '\'' if chars.get(at + 2) == Some(&'\'') => at += 3,
            ':' if next == ':' => {
                tokens.push((line, "::".to_owned()));
                at += 2;
            }
            c if c.is_alphanumeric() || c == '_' => {
                while chars.get(at).is_some_and(|c| c.is_alphanumeric() || *c == '_') {
                    at += 1;
                }
                tokens.push((line, chars[start..at].iter().collect()));
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push((line, c.to_string()));
                }
                at += 1;
            }
        }
        line += chars[start..at.min(chars.len())].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

/// How many `#` a raw text's opening has, if `rest` (what follows an `r`) is one.
fn raw_text_hashes(rest: &[char]) -> Option<usize> {
    let hashes = rest.iter().take_while(|c| **c == '#').count();
    (rest.get(hashes) == Some(&'"')).then_some(hashes)
}

#[test]
fn the_checker_sees_every_way_to_write_a_forbidden_name() {
    for (file, line) in [
        ("ops/http.rs", "use crate::relay::Shard;"),
        ("relay/session.rs", "use crate::{clock::Clock, ops};"),
        ("relay/session.rs", "use crate::{\n    wire::{self, CloseCode},\n    ops::{Health, metrics},\n};"),
        ("relay/session.rs", "fn f() { crate::ops::ready(); }"),
        ("relay/mod.rs", "use super::ops::Health;"),
        ("relay/session.rs", "use super::super::ops::Health;"),
        ("relay/session.rs", "mod tests { use super::super::super::ops; }"),
        ("client/mod.rs", "use crate::table::Table;"),
        ("client/mod.rs", "let x: crate::relay::Relay = y;"),
        ("wire/mod.rs", "pub use crate::table::Now;"),
        ("wire/token.rs", "use crate::{config as c};"),
        ("wire/token.rs", "use std::{fmt, time::{Duration, Instant}};"),
        ("wire/token.rs", "fn f(at: std::time::SystemTime) {}"),
        ("table/mod.rs", "use tokio::time::sleep;"),
        ("table/mod.rs", "quinn::Endpoint::client(a)"),
        ("table/mod.rs", "use std::fs;"),
        ("guard/mod.rs", "use crate::relay;"),
        ("relay/mod.rs", "use crate::cli::serve;"),
        ("relay/mod.rs", "use crate::config::Config;"),
        ("main.rs", "use zrc_relay::relay::Relay;"),
        ("main.rs", "fn main() { let quote = '\"'; zrc_relay::client::connect(); }"),
        ("wire/mod.rs", "#[cfg(test)] mod tests { use std::fs; } use std::fs;"),
        ("wire/mod.rs", "#[cfg(test)] mod tests { use tokio::time; }"),
        ("wire/mod.rs", "#[cfg(unix)] mod tests { use std::fs; }"),
        ("novelty/mod.rs", "fn f() {}"),
    ] {
        assert!(!check(Path::new(file), line, &BTreeSet::new()).faults.is_empty(), "in {file}: {line}");
    }
}

#[test]
fn the_checker_lets_the_permitted_pass() {
    let tests =
        test_modules(Path::new("wire/mod.rs"), "mod ids; #[cfg(test)]\nmod vectors;").into_iter().collect();
    for (file, text) in [
        ("relay/session.rs", "use crate::{table::{Now, Table}, wire::CloseCode};"),
        ("relay/session.rs", "use super::{Shard, forward::Forward};"),
        (
            "relay/session.rs",
            "//! As crate::ops does.\n/* crate::ops::x */ const T: &str = \"crate::ops::x\";",
        ),
        ("relay/session.rs", "const T: &str = r#\"a \" crate::ops::x\"#; fn f<'a>(c: char) { c == '\\'' }"),
        ("ops/http.rs", "use std::time::Instant; use tokio::net::TcpListener;"),
        ("wire/token.rs", "use std::time::Duration; mod tests { use super::*; use super::super::Claims; }"),
        ("wire/token.rs", "#[cfg(test)] mod tests { mod deeper {} use std::fs; }"),
        ("wire/vectors.rs", "use std::fs;"),
        ("main.rs", "fn main() -> std::process::ExitCode { zrc_relay::cli::main() }"),
        ("lib.rs", "pub mod relay; pub use crate::relay::Relay;"),
    ] {
        assert_eq!(check(Path::new(file), text, &tests).faults, [""; 0], "in {file}: {text}");
    }
}
