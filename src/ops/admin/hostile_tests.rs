//! The admin API as somebody meets it who wishes it ill: without a token, with the wrong one, and with requests that are
//! shaped to be misunderstood.

use std::{fs, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{
    OPENAPI,
    tests::{Answer, Api, PATIENCE, ask},
};
use crate::{
    guard::Heard,
    ops::{audit, tokens},
};

/// Every path and method of the description: a route that is added is in it, and so in this.
fn operations() -> Vec<(String, String, Value)> {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let paths = document["paths"].as_object().unwrap().iter();
    let all: Vec<_> = paths
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters");
            methods.map(|(method, about)| {
                let path = path.replace("{id}", &"05".repeat(16));
                (method.to_uppercase(), path, about["responses"].clone())
            })
        })
        .collect();
    assert!(all.len() >= 16 && all.iter().any(|(method, ..)| method == "PUT"), "{all:?}");
    all
}

/// The status alone: a stream of events has no end.
async fn status(api: &Api, method: &str, path: &str, token: Option<&str>) -> u16 {
    let mut stream = api.tcp().await;
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{token}content-length: 2\r\n\
         content-type: application/json\r\nconnection: close\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    timeout(PATIENCE, stream.read_exact(&mut first)).await.unwrap().unwrap();
    str::from_utf8(&first[9..]).unwrap().parse().unwrap()
}

#[tokio::test]
async fn r10_every_operation_wants_a_token_and_those_that_change_something_the_full_one() {
    let api = Api::start().await;
    let wrong = format!("{}{}", tokens::PREFIX, "A".repeat(43));
    for (method, path, responses) in operations() {
        assert_eq!(status(&api, &method, &path, None).await, 401, "{method} {path}");
        let refused = status(&api, &method, &path, Some(&wrong)).await;
        assert!(matches!(refused, 401 | 429), "{method} {path}: {refused}");
        let changes = method != "GET";
        let looked = status(&api, &method, &path, Some(&api.read)).await;
        assert_eq!(looked, if changes { 403 } else { 200 }, "{method} {path}");
        for (code, is_described) in [("401", true), ("403", changes), ("504", true)] {
            assert_eq!(responses.get(code).is_some(), is_described, "{method} {path}: {code}");
        }
    }
    assert!(api.told().is_empty(), "nothing has come of it");
    assert_eq!(api.ask("GET", "/admin/audit").await.json()["entries"], json!([]));
    // What is not described is no way round it either.
    for method in ["PATCH", "OPTIONS", "TRACE", "get", "DELETE "] {
        let answer = status(&api, method, "/admin/drain", None).await;
        assert!(matches!(answer, 400 | 401), "{method}: {answer}");
    }
    for path in
        ["/admin", "/admin/", "/admin/none", "//admin/drain", "/admin/../admin/drain", "/%61dmin/drain"]
    {
        assert_eq!(status(&api, "GET", path, None).await, 401, "{path}");
        assert_eq!(status(&api, "GET", path, Some(&api.full)).await, 404, "{path}");
    }
    let overridden = format!("authorization: Bearer {}\r\nx-http-method-override: DELETE\r\n", api.read);
    assert_eq!(api.with_headers("GET", "/admin/drain", &overridden).await.status, 200);
    assert!(api.told().is_empty());
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let api = Api::start().await;
    let asked = async |headers: &str| {
        let request = format!(
            "POST /admin/drain HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n{headers}\r\n",
            api.full
        );
        raw(api.tcp().await, request.as_bytes()).await
    };
    let (one, other) =
        tokio::join!(asked("content-length: 100\r\n"), asked("transfer-encoding: chunked\r\n"));
    for answer in [one, other] {
        assert!(
            answer.starts_with("HTTP/1.1 408 ") && answer.contains("application/problem+json"),
            "{answer}"
        );
    }
    assert!(api.told().is_empty());
}

#[tokio::test]
async fn r10_who_hangs_up_is_audited_all_the_same() {
    const REQUESTS: u8 = 50;
    let api = Api::start().await;
    for n in 0..REQUESTS {
        let body = format!("{{\"network\":\"203.0.113.{n}\"}}");
        let request = format!(
            "POST /admin/blocks HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{body}",
            api.full,
            body.len()
        );
        let mut stream = api.tcp().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        drop(stream);
    }
    // Whoever asks last has waited for those before: then as many are written down as are in force.
    let counts = async || {
        let blocks = api.ask("GET", "/admin/blocks").await.json()["total"].as_u64().unwrap();
        (blocks, api.ask("GET", "/admin/audit").await.json()["total"].as_u64().unwrap())
    };
    let settled = timeout(PATIENCE, async {
        let mut last = (0, 0);
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = counts().await;
            // A line comes after its block, and a disk takes its time over it.
            if now == last && now.0 > 0 && now.0 == now.1 {
                return;
            }
            last = now;
        }
    });
    settled.await.expect("blocks that are in force are not written down, or written down and not in force");
}

#[tokio::test]
async fn r10_who_may_come_and_what_was_refused_is_written_down() {
    let api = Api::start().await;
    let mut security = api.security.subscribe();
    assert_eq!(status(&api, "DELETE", "/admin/drain", Some(&api.read)).await, 403);
    let Heard::Event(record) = timeout(PATIENCE, security.next()).await.unwrap() else { panic!("missed") };
    assert_eq!(record.event.reason(), "forbidden");
    assert_eq!(record.to_json()["detail"], "DELETE /admin/drain by ann");
    // Somebody else's token, while it runs.
    let (token, hash) = tokens::mint().unwrap();
    let entry = tokens::Entry { name: "bob".into(), role: tokens::Role::Full, hash, created: "now".into() };
    let file = api.folder.path().join("tokens");
    fs::write(&file, fs::read_to_string(&file).unwrap() + &format!("{entry}\n")).unwrap();
    assert_eq!(status(&api, "GET", "/admin/drain", Some(&token)).await, 200);
    fs::write(&file, format!("{entry}\n")).unwrap();
    assert_eq!(status(&api, "GET", "/admin/drain", Some(&api.full)).await, 401);
    let lines = fs::read_to_string(api.folder.path().join(audit::FILE_NAME)).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|it| it["action"] == "tokens" && it["actor"] == "zrc-relay"), "{lines:?}");
    assert_eq!(lines[0]["detail"], "bob (full) is new");
    assert_eq!(lines[1]["detail"], "ann (full) is over, ann (read) is over");
}

async fn from(api: &Api, source: &str, token: &str) -> Answer {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    let url = api.server.url().unwrap();
    let stream = socket.connect(url.strip_prefix("http://").unwrap().parse().unwrap()).await.unwrap();
    ask(stream, "GET", "/admin/drain", &format!("authorization: Bearer {token}\r\n"), "").await
}

#[tokio::test]
async fn r10_who_floods_with_wrong_tokens_shuts_out_nobody() {
    let api = Api::start().await;
    let mut refused = 0;
    for n in 0..100 {
        refused += u32::from(from(&api, "127.0.0.2", &format!("{}{n}", tokens::PREFIX)).await.status == 429);
    }
    assert!(refused >= 85, "{refused}");
    assert_eq!(from(&api, "127.0.0.2", &api.full).await.status, 200, "behind the same address");
    assert_eq!(from(&api, "127.0.0.3", &api.full).await.status, 200);
    assert_eq!(from(&api, "127.0.0.3", "wrong").await.status, 401, "a budget of its own");
}

/// All that is answered to these bytes until the server hangs up.
async fn raw(mut stream: TcpStream, bytes: &[u8]) -> String {
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_request_that_two_servers_would_read_differently_is_answered_once() {
    let api = Api::start().await;
    let second = "GET /admin/stats HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    for (headers, body, expected) in [
        ("content-length: 6\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n", "202"),
        ("content-length: 0\r\ncontent-length: 5\r\n", "", "400"),
        ("content-length: -1\r\n", "", "400"),
        ("content-length: +0\r\n", "", "400"),
        ("transfer-encoding: identity\r\n", "", "400"),
        ("transfer-encoding: xchunked\r\n", "", "400"),
        ("transfer-encoding: chunked, identity\r\n", "0\r\n\r\n", "400"),
        ("content-length : 0\r\n", "", "400"),
        ("a: b\r\n c\r\n", "", "400"),
        ("a: b\0c\r\n", "", "400"),
        ("transfer-encoding: chunked\r\n", "FFFFFFFFFFFFFFFFF\r\n", "400"),
    ] {
        let request = format!(
            "POST /admin/drain HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n{headers}\r\n{body}{second}",
            api.full
        );
        let answer = raw(api.tcp().await, request.as_bytes()).await;
        assert_eq!(&answer[9..12], expected, "{headers:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{headers:?}: {answer}");
        api.ask("DELETE", "/admin/drain").await;
    }
}

#[tokio::test]
async fn no_page_elsewhere_may_ask() {
    let api = Api::start().await;
    let origin = "origin: http://evil.example\r\nsec-fetch-site: cross-site\r\n";
    let preflight = format!("{origin}access-control-request-method: DELETE\r\n");
    let signed = format!("{origin}authorization: Bearer {}\r\n", api.full);
    for (method, headers) in [("OPTIONS", &preflight), ("GET", &signed), ("OPTIONS", &signed)] {
        let answer = api.with_headers(method, "/admin/drain", headers).await;
        assert!(!answer.head.contains("access-control-"), "{answer:?}");
    }
}

#[tokio::test]
async fn r10_whatever_an_id_or_a_reason_is_like_the_audit_log_has_one_line_of_it() {
    let api = Api::with([0xab]).await;
    let upper = "AB".repeat(16);
    assert_eq!(api.ask("GET", &format!("/admin/allocations/{upper}")).await.json()["id"], "ab".repeat(16));
    let ids = ["a".repeat(31), "a".repeat(33), "%00".repeat(32), "%ef%bc%90".repeat(32), "..%2fstats".into()];
    for id in &ids {
        for method in ["GET", "DELETE"] {
            let answer = api.ask(method, &format!("/admin/allocations/{id}")).await;
            assert_eq!(answer.status, 404, "{method} {id}: {answer:?}");
        }
    }
    assert!(api.told().is_empty(), "what is no id reaches nobody");
    let reason = "a%0d%0a%7b%22seq%22:9,%e2%80%a8%e2%80%ae%00%1b%5b2J%ff%22%7d%0a";
    let answer = api.ask("DELETE", &format!("/admin/allocations/{upper}?reason={reason}")).await;
    assert_eq!(answer.status, 204, "{answer:?}");
    let told = api.told();
    let is_plain = |text: &str| !text.chars().any(|c| c.is_control() || "\u{2028}\u{202e}".contains(c));
    assert!(is_plain(&told[0]) && told[0].starts_with("kill a  {\"seq\":9,"), "{told:?}");
    for long in [201, 5000] {
        let path = format!("/admin/allocations/{upper}?reason={}", "x".repeat(long));
        assert_eq!(api.ask("DELETE", &path).await.status, 400);
    }
    let path = format!("/admin/allocations/{upper}?reason={}", "x".repeat(100_000));
    let answer = raw(api.tcp().await, format!("DELETE {path} HTTP/1.1\r\nhost: x\r\n").as_bytes()).await;
    assert_eq!(&answer[9..12], "431", "{answer}");
    let text = fs::read_to_string(api.folder.path().join(audit::FILE_NAME)).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let log = audit::read(api.folder.path()).unwrap();
    assert_eq!(audit::verify(&log, None).unwrap().faults, Vec::<String>::new());
}

#[tokio::test]
async fn a_forged_cursor_shows_nothing_that_a_good_one_would_not() {
    let api = Api::start().await;
    let zeros = "0".repeat(32);
    for (cursor, expected) in [
        (format!("0000000000000000.{zeros}"), Some(9)),
        (format!("ffffffffffffffff.{}", "F".repeat(32)), Some(0)),
        (format!("000000000000000.{zeros}"), None),
        (format!("0000000000000000.{zeros}.x"), None),
        (zeros.clone(), None),
        ("%00".into(), None),
        ("%ff.%ff".into(), None),
    ] {
        let answer = api.ask("GET", &format!("/admin/allocations?cursor={cursor}")).await;
        match expected {
            Some(shown) => {
                assert_eq!(answer.json()["allocations"].as_array().unwrap().len(), shown, "{cursor}")
            }
            None => assert_eq!(answer.status, 400, "{cursor}"),
        }
    }
    let last = format!("pushed.{}.128", "F".repeat(32));
    let answer = api.ask("GET", &format!("/admin/blocks?cursor={last}")).await;
    assert_eq!(answer.json()["blocks"], json!([]));
    for other in ["4294967295", "pushed.ffffffff.032", "pushed.ffffffff.%2B8", "Pushed.ffffffff.32", "%ff"] {
        assert_eq!(api.ask("GET", &format!("/admin/blocks?cursor={other}")).await.status, 400, "{other}");
    }
}
