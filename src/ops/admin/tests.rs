//! The admin API over real sockets, with a relay that only remembers what it was told.

use std::{collections::BTreeSet, sync::Mutex};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::*;
use crate::{
    guard::{EventSettings, GuardSettings, Heard, SecurityEvents},
    metrics::SecurityKind,
    ops::tokens::{self, Entry},
    table::{Counts, Ended, Limits, Now, Stage},
    telemetry::{Filter, LogFormat},
    wire::{AllocationId, CloseCode, DeviceId, PeerId, RelayId},
};

pub(super) const PATIENCE: Duration = Duration::from_secs(60);

struct Fake {
    live: Mutex<Vec<Summary>>,
    told: Mutex<Vec<String>>,
    lifecycle: broadcast::Sender<Lifecycle>,
}

impl Fake {
    fn tell(&self, what: String) {
        self.told.lock().unwrap().push(what);
    }
}

impl Control for Fake {
    fn allocations(&self) -> Vec<Summary> {
        self.live.lock().unwrap().clone()
    }
    fn allocation(&self, handle: Handle) -> Option<Summary> {
        self.allocations().into_iter().find(|it| it.handle == handle)
    }
    fn connections(&self, _: Handle) -> Vec<Connection> {
        vec![Connection {
            id: ConnId(7),
            role: Role::Peer,
            remote: "192.0.2.7:99".parse().unwrap(),
            rtt: Duration::from_millis(3),
            raw_channel: true,
            path_mtu_bytes: 1452,
        }]
    }
    fn kill(&self, handle: Handle, reason: &str) -> bool {
        let mut live = self.live.lock().unwrap();
        let before = live.len();
        live.retain(|it| it.handle != handle);
        self.tell(format!("kill {reason}"));
        live.len() < before
    }
    fn set_draining(&self, draining: bool) {
        self.tell(format!("draining {draining}"));
    }
    fn end_all(&self, _: &str) {
        self.tell("end_all".into());
    }
    fn lifecycle(&self) -> broadcast::Receiver<Lifecycle> {
        self.lifecycle.subscribe()
    }
    fn log_filter(&self) -> String {
        "info".into()
    }
    fn set_log_filter(&self, filter: &str) -> Result<(), String> {
        self.tell(format!("log {filter}"));
        Ok(())
    }
    fn certificate(&self) -> Certificate {
        Certificate { expires_at_unix: Some(5), origin: "files" }
    }
}

fn allocation(n: u8) -> Summary {
    Summary {
        handle: Handle([n; 16]),
        allocation_id: AllocationId([1; 16]),
        device_id: DeviceId([n / 2; 32]),
        peer_id: PeerId([3; 32]),
        tier: None,
        stage: if n.is_multiple_of(2) { Stage::Paired } else { Stage::Waiting },
        connections: [1, 0],
        counts: [Counts { bytes: 5, packets: 1 }, Counts { bytes: 0, packets: 0 }],
        bytes_used: 100 - u64::from(n / 2),
        last_activity_nanos: 0,
        created: Now { mono: Duration::ZERO, unix: Duration::from_secs(1_700_000_000) },
        expires_at_unix: 2_000_000_000,
        limits: Limits { quota_bytes: Some(10), ..Limits::default() },
    }
}

pub(super) struct Api {
    pub(super) server: AdminServer,
    fake: Arc<Fake>,
    pub(super) security: SecurityEvents,
    guard: Arc<Guard>,
    readiness: Readiness,
    pub(super) folder: TempDir,
    pub(super) full: String,
    pub(super) read: String,
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Api {
    pub(super) async fn start() -> Self {
        Self::with(0..10).await
    }

    pub(super) async fn with(live: impl IntoIterator<Item = u8>) -> Self {
        Self::with_patience(live, PATIENCE).await
    }

    /// `patience`: with listeners to events that do not read.
    async fn with_patience(live: impl IntoIterator<Item = u8>, patience: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("tokens");
        let mut lines = String::new();
        let mut mint = |role| {
            let (token, hash) = tokens::mint().unwrap();
            lines += &format!("{}\n", Entry { name: "ann".into(), role, hash, created: "now".into() });
            token.to_string()
        };
        let (full, read) = (mint(tokens::Role::Full), mint(tokens::Role::Read));
        fs::write(&token_file, lines).unwrap();
        let clock = Clock::start();
        let metrics = Arc::new(Metrics::new().unwrap());
        let security = SecurityEvents::new(clock, metrics.clone(), EventSettings::default());
        let fake = Arc::new(Fake {
            live: Mutex::new(live.into_iter().map(allocation).collect()),
            told: Mutex::default(),
            lifecycle: broadcast::Sender::new(16),
        });
        let readiness = Readiness::default();
        readiness.set_ready();
        let guard = Arc::new(Guard::new(&GuardSettings::default(), metrics.clone(), security.clone()));
        let mut server = AdminServer::new(Handles {
            clock,
            version: "1.2.3",
            readiness: readiness.clone(),
            metrics,
            blocks: Arc::new(BlockFile::open(folder.path(), guard.clone(), clock)),
            guard: guard.clone(),
            control: fake.clone(),
            descriptor: Arc::new(ArcSwap::from_pointee(Descriptor {
                addr: "192.0.2.1".into(),
                port: 4433,
                server_name: "relay".into(),
                spki: None,
                relay_id: RelayId([1; 16]),
                region: None,
            })),
            audit: Arc::new(audit::Audit::open(folder.path(), clock).unwrap()),
            tokens: Arc::new(Tokens::new(token_file)),
            hosts: Hosts::default(),
        })
        .with_patience(patience);
        server.listen_tcp("127.0.0.1:0".parse().unwrap(), None).await.unwrap();
        server.listen_unix(&folder.path().join("admin.sock")).unwrap();
        Self { server, fake, security, guard, readiness, folder, full, read }
    }

    pub(super) async fn tcp(&self) -> TcpStream {
        let url = self.server.url().unwrap();
        TcpStream::connect(url.strip_prefix("http://").unwrap()).await.unwrap()
    }

    async fn unix(&self) -> UnixStream {
        UnixStream::connect(self.server.socket().unwrap()).await.unwrap()
    }

    /// Over TCP with the token that may do everything.
    pub(super) async fn ask(&self, method: &str, path: &str) -> Answer {
        self.tell(method, path, "").await
    }

    pub(super) async fn tell(&self, method: &str, path: &str, body: &str) -> Answer {
        ask(self.tcp().await, method, path, &format!("authorization: Bearer {}\r\n", self.full), body).await
    }

    pub(super) async fn with_headers(&self, method: &str, path: &str, headers: &str) -> Answer {
        ask(self.tcp().await, method, path, headers, "").await
    }

    pub(super) fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.fake.told.lock().unwrap())
    }
}

pub(super) async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Answer {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}connection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Answer { status: head[9..12].parse().unwrap(), head: head.to_lowercase(), body: body.to_owned() }
}

#[tokio::test]
async fn r10_who_may_do_what() {
    let api = Api::start().await;
    let id = Handle([3; 16]);
    let kill = format!("/admin/allocations/{id}");
    for (headers, method, path, expected) in [
        (String::new(), "GET", "/admin/stats", 401),
        (String::new(), "GET", "/admin/none", 401),
        (String::new(), "GET", "/admin/openapi.json", 401),
        ("authorization: Basic YTpi\r\n".into(), "GET", "/admin/stats", 401),
        (format!("authorization: Bearer {}x\r\n", api.full), "GET", "/admin/stats", 401),
        (format!("authorization: Bearer {}\r\n", api.read), "GET", "/admin/stats", 200),
        (format!("authorization: bearer  {}\r\n", api.read), "GET", "/admin/stats", 200),
        (format!("authorization: Bearer {}\r\n", api.read), "DELETE", &kill, 403),
        (format!("authorization: Bearer {}\r\n", api.read), "POST", "/admin/drain", 403),
        (format!("authorization: Bearer {}\r\n", api.read), "PUT", "/admin/log", 403),
        (
            format!("authorization: Bearer {0}\r\nauthorization: Bearer {0}\r\n", api.full),
            "GET",
            "/admin/stats",
            401,
        ),
        (format!("authorization: Bearer {}\r\n", api.full), "GET", "/admin/none", 404),
        (format!("authorization: Bearer {}\r\n", api.full), "PATCH", "/admin/stats", 405),
        (format!("authorization: Bearer {}\r\n", api.full), "DELETE", &kill, 204),
    ] {
        let answer = api.with_headers(method, path, &headers).await;
        assert_eq!(answer.status, expected, "{headers}{method} {path}: {answer:?}");
        if expected >= 400 {
            assert!(answer.head.contains("content-type: application/problem+json"), "{answer:?}");
        }
        assert_eq!(answer.head.contains("www-authenticate: bearer"), expected == 401);
    }
    assert_eq!(api.told(), ["kill "]);
    // Whoever can open the file may do everything.
    let answer =
        ask(api.unix().await, "DELETE", &format!("/admin/allocations/{}", Handle([4; 16])), "", "").await;
    assert_eq!(answer.status, 204);
    let socket = api.server.socket().unwrap().to_owned();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    // Another name than this server's.
    let request = format!(
        "GET /admin/stats HTTP/1.1\r\nhost: evil.example\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
        api.full
    );
    let mut stream = api.tcp().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
    api.server.stop().await;
    assert!(!socket.exists(), "the socket's file goes");
}

#[tokio::test]
async fn r10_wrong_tokens_are_throttled_and_right_ones_are_not() {
    let api = Api::start().await;
    let mut security = api.security.subscribe();
    let mut statuses = Vec::new();
    for n in 0..12 {
        let headers = format!("authorization: Bearer {}{n}\r\n", tokens::PREFIX);
        let answer = api.with_headers("GET", "/admin/stats", &headers).await;
        assert_eq!(answer.head.contains("retry-after: "), answer.status == 429);
        statuses.push(answer.status);
    }
    assert_eq!(statuses, [[401; 10].as_slice(), &[429, 429]].concat());
    assert_eq!(api.ask("GET", "/admin/stats").await.status, 200);
    let Heard::Event(record) = timeout(PATIENCE, security.next()).await.unwrap() else { panic!("missed") };
    assert_eq!((record.event.kind(), record.event.reason()), (SecurityKind::AdminAction, "token_refused"));
    assert!(record.subject.source.is_some());
}

#[tokio::test]
async fn r10_the_dashboard_needs_no_token_and_learns_what_a_token_is_good_for() {
    let api = Api::start().await;
    for path in ["/", "/dashboard", "/assets/dashboard.js"] {
        let answer = api.with_headers("GET", path, "").await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.head.contains("content-security-policy: default-src 'none'; script-src 'self'"));
    }
    assert!(api.with_headers("GET", "/", "").await.body.contains("assets/dashboard.js"));
    for (token, role) in [(&api.full, "full"), (&api.read, "read")] {
        let answer =
            api.with_headers("GET", "/admin/stats", &format!("authorization: Bearer {token}\r\n")).await;
        assert_eq!(answer.json()["caller"], json!({ "name": "ann", "role": role }));
    }
}

#[tokio::test]
async fn r10_the_list_is_filtered_sorted_and_comes_in_pages() {
    let api = Api::start().await;
    let all = api.ask("GET", "/admin/allocations").await.json();
    assert_eq!((all["total"].as_u64(), &all["next"]), (Some(10), &Value::Null));
    let first = &all["allocations"][0];
    assert_eq!(first["id"], "00".repeat(16));
    assert_eq!(first["allocation_id"], "01".repeat(16));
    assert_eq!((&first["state"], &first["limits"]["quota_bytes"]), (&json!("paired"), &json!(10)));
    assert_eq!(first["last_activity_unix_ms"], Value::Null);
    for (query, found) in [
        ("state=waiting", 5),
        ("device=04", 2),
        ("device=0404", 2),
        ("device=ff", 0),
        ("id=03", 1),
        ("state=paired&device=04&id=08", 1),
    ] {
        let answer = api.ask("GET", &format!("/admin/allocations?{query}")).await.json();
        assert_eq!(answer["total"], found, "{query}");
        assert_eq!(answer["allocations"].as_array().unwrap().len(), found, "{query}");
    }
    for order in ["asc", "desc"] {
        let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let path = format!("/admin/allocations?sort=bytes&order={order}&limit=3{cursor}");
            let page = api.ask("GET", &path).await.json();
            assert_eq!(page["total"], 10);
            let ids = page["allocations"].as_array().unwrap().iter();
            seen.extend(ids.map(|it| u8::from_str_radix(&it["id"].as_str().unwrap()[..2], 16).unwrap()));
            pages += 1;
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        // Two have the same number of bytes; the id decides.
        let mut expected = vec![8, 9, 6, 7, 4, 5, 2, 3, 0, 1];
        if order == "desc" {
            expected.reverse();
        }
        assert_eq!((seen, pages), (expected, 4));
    }
    for bad in [
        "state=x",
        "device=g",
        "device=",
        "limit=0",
        "limit=1001",
        "cursor=x",
        "stat=paired",
        "limit=1&limit=2",
    ] {
        let answer = api.ask("GET", &format!("/admin/allocations?{bad}")).await;
        assert_eq!(answer.status, 400, "{bad}: {answer:?}");
    }
    let one = api.ask("GET", &format!("/admin/allocations/{}", "05".repeat(16))).await.json();
    assert_eq!((&one["id"], &one["legs"][0]["rtt_us"]), (&json!("05".repeat(16)), &json!(3000)));
    for none in ["ff".repeat(16), "x".into(), "%ff".into()] {
        assert_eq!(api.ask("GET", &format!("/admin/allocations/{none}")).await.status, 404, "{none}");
    }
}

#[tokio::test]
async fn r10_killing_tells_the_reason_and_is_audited() {
    let api = Api::start().await;
    let path = format!("/admin/allocations/{}", "05".repeat(16));
    assert_eq!(api.ask("DELETE", &format!("{path}?reason={}", "x".repeat(201))).await.status, 400);
    assert_eq!(api.ask("DELETE", &format!("{path}?because=x")).await.status, 400);
    assert!(api.told().is_empty());
    assert_eq!(api.ask("DELETE", &format!("{path}?reason=too%20loud%0a%1b")).await.status, 204);
    assert_eq!(api.told(), ["kill too loud  "]);
    assert_eq!(api.ask("DELETE", &path).await.status, 404);
    let audit = api.ask("GET", "/admin/audit?tail=2").await.json();
    assert_eq!(audit["total"], 2);
    let [killed, missed] = [0, 1].map(|n| &audit["entries"][n]);
    assert_eq!(
        (&killed["actor"], &killed["role"], &killed["source"]),
        (&json!("ann"), &json!("full"), &json!("127.0.0.1"))
    );
    assert_eq!((&killed["action"], &killed["outcome"]), (&json!("kill"), &json!("done")));
    assert!(killed["detail"].as_str().unwrap().contains("too loud"));
    assert_eq!((&missed["outcome"], &missed["prev"]), (&json!("not_found"), &killed["hash"]));
    assert_eq!(api.ask("GET", "/admin/audit?tail=0").await.status, 400);
    let log = audit::read(api.folder.path()).unwrap();
    assert!(audit::verify(&log, None).unwrap().faults.is_empty());
    // What cannot be written down is said.
    fs::remove_file(api.folder.path().join(audit::FILE_NAME)).unwrap();
    fs::create_dir(api.folder.path().join(audit::FILE_NAME)).unwrap();
    let answer = api.ask("DELETE", &format!("/admin/allocations/{}", "06".repeat(16))).await;
    assert_eq!((answer.status, api.told().len()), (500, 2), "{answer:?}");
}

#[tokio::test]
async fn r6_5_blocks_come_and_go() {
    let api = Api::start().await;
    let post = async |body: &str| api.tell("POST", "/admin/blocks", body).await;
    let made = post(r#"{"network":"203.0.113.7","expires_in_secs":60.0,"reason":"scans"}"#).await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(made.json()["network"], "203.0.113.7/32");
    assert!(made.json()["expires_at_unix"].as_u64().is_some());
    assert_eq!(post(r#"{"network":"2001:db8:1::5/32"}"#).await.json()["network"], "2001:db8::/32");
    for bad in [
        "",
        "{",
        "[]",
        r#"{"network":"x"}"#,
        r#"{"network":"203.0.113.7:80"}"#,
        r#"{"network":"203.0.113.7","expires_in_secs":0}"#,
        r#"{"network":"203.0.113.7","expires_in_secs":1.5}"#,
        r#"{"network":"203.0.113.7","expires_in_secs":-1}"#,
        r#"{"network":"203.0.113.7","expires_in_secs":1e40}"#,
        r#"{"network":"203.0.113.7","expires_in_secs":"5"}"#,
        r#"{"network":"203.0.113.7","expires":5}"#,
        r#"{"network":7}"#,
    ] {
        let answer = post(bad).await;
        assert_eq!(answer.status, 400, "{bad}: {answer:?}");
    }
    assert_eq!(post(&format!("{{\"network\":\"::\",\"reason\":{:?}}}", "x".repeat(201))).await.status, 400);
    let large = format!("{{\"network\":{:?}}}", "x".repeat(20_000));
    assert_eq!(post(&large).await.status, 413);
    // The same network, written otherwise, and shown as it is compared.
    let mapped = post(r#"{"network":"::ffff:198.51.100.9/120","reason":"a\u202eb\u2028c"}"#).await;
    assert_eq!(
        (&mapped.json()["network"], &mapped.json()["reason"]),
        (&json!("198.51.100.0/24"), &json!("a b c"))
    );
    assert_eq!(api.ask("DELETE", "/admin/blocks?network=::ffff:198.51.100.9/120").await.status, 204);
    let listed = api.ask("GET", "/admin/blocks?limit=1").await.json();
    assert_eq!((&listed["total"], &listed["next"]), (&json!(2), &json!("pushed.cb007107.32")));
    assert_eq!(listed["blocks"][0]["reason"], "scans");
    let rest = api.ask("GET", "/admin/blocks?cursor=pushed.cb007107.32").await.json();
    assert_eq!((&rest["blocks"][0]["expires_at_unix"], &rest["next"]), (&Value::Null, &Value::Null));
    for (network, status) in [
        ("2001:db8::/32", 204),
        ("2001:db8::/32", 404),
        ("203.0.113.0/24", 404),
        ("203.0.113.7", 204),
        ("x", 400),
    ] {
        let answer = api.ask("DELETE", &format!("/admin/blocks?network={network}")).await;
        assert_eq!(answer.status, status, "{network}: {answer:?}");
    }
    assert_eq!(api.ask("DELETE", "/admin/blocks").await.status, 400);
    // What cannot be written down is in force, and said.
    let kept = api.folder.path().join(crate::ops::BLOCKS_NAME);
    fs::remove_file(&kept).unwrap();
    fs::create_dir(&kept).unwrap();
    let answer = post(r#"{"network":"192.0.2.1"}"#).await;
    assert!(answer.status == 500 && answer.body.contains("a restart forgets it"), "{answer:?}");
    let answer = api.ask("DELETE", "/admin/blocks?network=192.0.2.1").await;
    assert!(answer.status == 500 && answer.body.contains("a restart blocks it again"), "{answer:?}");
    let audit = api.ask("GET", "/admin/audit?tail=2").await.json();
    assert_eq!([0, 1].map(|n| &audit["entries"][n]["outcome"]), ["not_kept"; 2]);
    assert_eq!(api.ask("GET", "/admin/blocks").await.json()["total"], 0);
}

#[tokio::test]
async fn r6_5_what_comes_and_goes_between_pages_moves_no_block_to_another() {
    let api = Api::start().await;
    let configured = ["192.0.2.0/24", "198.51.100.0/24"].map(|network| network.parse().unwrap());
    api.guard.configure(&GuardSettings { block: configured.into(), ..GuardSettings::default() });
    for n in [9, 3, 1, 7, 5] {
        let body = format!("{{\"network\":\"203.0.113.{n}\"}}");
        assert_eq!(api.tell("POST", "/admin/blocks", &body).await.status, 201);
    }
    // One may be blocked by both.
    api.tell("POST", "/admin/blocks", r#"{"network":"198.51.100.0/24"}"#).await;
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.ask("GET", &format!("/admin/blocks?limit=3{cursor}")).await.json();
        let networks = page["blocks"].as_array().unwrap().iter();
        seen.extend(networks.map(|it| it["network"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
        // What was shown goes, so that all after it move up; and something comes before.
        let shown = seen.last().unwrap();
        api.ask("DELETE", &format!("/admin/blocks?network={shown}")).await;
        api.tell("POST", "/admin/blocks", r#"{"network":"10.0.0.1"}"#).await;
    }
    let pushed = [1, 3, 5, 7, 9].map(|n| format!("203.0.113.{n}/32"));
    let wanted = ["192.0.2.0/24", "198.51.100.0/24", "198.51.100.0/24"].map(str::to_owned);
    assert_eq!(seen, [&wanted[..], &pushed[..]].concat());
    for bad in ["1", "pushed", "pushed.0a000000", "pushed.0a000000.33", "other.0a000000.8", "pushed.0a0000.8"]
    {
        let answer = api.ask("GET", &format!("/admin/blocks?cursor={bad}")).await;
        assert_eq!(answer.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn r10_draining_ends_at_its_deadline_and_can_be_taken_back() {
    let api = Api::start().await;
    assert_eq!(api.ask("DELETE", "/admin/drain").await.status, 404);
    let answer = api.ask("POST", "/admin/drain").await;
    assert_eq!((answer.status, &answer.json()["draining"]), (202, &json!(true)));
    assert!(answer.json()["deadline_unix_ms"].as_u64().is_some());
    assert!(api.readiness.get().is_err());
    assert_eq!(api.ask("DELETE", "/admin/drain").await.status, 204);
    assert!(api.readiness.get().is_ok());
    assert_eq!(api.ask("GET", "/admin/drain").await.json()["draining"], false);
    assert_eq!(api.told(), ["draining true", "draining false"]);
    assert_eq!(api.tell("POST", "/admin/drain", r#"{"deadline_secs":86401}"#).await.status, 400);
    // A list is no object, even where serde takes one for it.
    for (method, path, body) in [
        ("POST", "/admin/drain", "[]"),
        ("POST", "/admin/drain", " [0]"),
        ("POST", "/admin/drain", "null"),
        ("POST", "/admin/blocks", r#"["203.0.113.7",60,"scans"]"#),
        ("PUT", "/admin/log", r#"["info"]"#),
    ] {
        let answer = api.tell(method, path, body).await;
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        assert!(answer.body.contains("a JSON object is expected"), "{answer:?}");
    }
    assert!(api.told().is_empty() && api.ask("GET", "/admin/blocks").await.json()["total"] == 0);
    // A second one replaces the first: only its deadline comes.
    assert_eq!(api.tell("POST", "/admin/drain", r#"{"deadline_secs":3600}"#).await.status, 202);
    assert_eq!(api.tell("POST", "/admin/drain", r#"{"deadline_secs":0}"#).await.status, 202);
    timeout(PATIENCE, async {
        while !api.fake.told.lock().unwrap().contains(&"end_all".into()) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(api.ask("GET", "/admin/drain").await.json()["draining"], true, "until somebody takes it back");
}

/// What comes after the head of an event stream.
async fn listen(api: &Api) -> TcpStream {
    let mut stream = api.tcp().await;
    let request = format!(
        "GET /admin/events HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\r\n",
        api.read
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Reads until this has come.
async fn until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut seen = String::new();
    let mut bytes = [0; 4096];
    while !seen.contains(wanted) {
        let read =
            timeout(PATIENCE, stream.read(&mut bytes)).await.unwrap_or_else(|_| panic!("{seen}")).unwrap();
        assert_ne!(read, 0, "{seen}");
        seen.push_str(str::from_utf8(&bytes[..read]).unwrap());
    }
    seen
}

#[tokio::test]
async fn r10_events_come_as_they_happen() {
    let api = Api::start().await;
    let mut stream = listen(&api).await;
    let seen = until(&mut stream, "event: hello").await;
    assert!(seen.to_lowercase().contains("content-type: text/event-stream"), "{seen}");
    let created = Lifecycle::Created {
        at: Duration::from_secs(5),
        handle: Handle([9; 16]),
        allocation_id: AllocationId([1; 16]),
        device_id: DeviceId([2; 32]),
        by: Role::Device,
    };
    api.fake.lifecycle.send(created).unwrap();
    let seen = until(&mut stream, "\n\n").await;
    assert!(seen.contains("event: allocation_created\ndata: {"), "{seen}");
    let ended = Ended {
        handle: Handle([9; 16]),
        code: CloseCode::Killed,
        lifetime: Duration::from_millis(1500),
        bytes_used: 3,
        quota_bytes: None,
    };
    api.fake.lifecycle.send(Lifecycle::Ended { at: Duration::from_secs(6), ended }).unwrap();
    let seen = until(&mut stream, "\n\n").await;
    assert!(seen.contains("event: allocation_ended") && seen.contains("\"code\":\"KILLED\""), "{seen}");
    assert!(seen.contains("\"lifetime_ms\":1500"), "{seen}");
    api.security.emit(SecurityEvent::BadToken { reason: "signature" }, Subject::NOBODY);
    assert!(until(&mut stream, "\n\n").await.contains("event: security\n"));
    api.ask("DELETE", &format!("/admin/allocations/{}?reason=why", Handle([5; 16]))).await;
    let seen = until(&mut stream, "\n\n").await;
    assert!(seen.contains("event: admin\n") && seen.contains("\"reason\":\"kill\""), "{seen}");
    // The end of the server is the end of the stream: it is ended in order, and not cut off when the time is over.
    timeout(PATIENCE, api.server.stop()).await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest.ends_with(b"\r\n0\r\n\r\n") || rest == b"0\r\n\r\n", "{}", String::from_utf8_lossy(&rest));
}

#[tokio::test]
async fn r10_a_slow_listener_is_told_how_much_it_missed() {
    let api = Api::start().await;
    let mut stream = listen(&api).await;
    until(&mut stream, "event: hello").await;
    // More than channel and ring hold, in one go: the task that passes them on has no turn.
    let events = 5000;
    for _ in 0..events {
        api.security.emit(SecurityEvent::BadToken { reason: "signature" }, Subject::NOBODY);
    }
    let seen = until(&mut stream, "event: missed").await + &until(&mut stream, "}\n\n").await;
    let data = seen.split("event: missed\ndata: ").nth(1).unwrap().lines().next().unwrap();
    let missed: Value = serde_json::from_str(data).unwrap();
    assert_eq!(missed["stream"], "security");
    assert_eq!(missed["missed"], events - crate::guard::RING_EVENTS as u64);
    drop(stream);
}

/// Lines of a log.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn r10_listeners_that_never_read_are_cut_off_and_others_are_not() {
    // All of it is on this thread.
    let lines = Lines::default();
    let writer = lines.clone();
    let (subscriber, _) =
        crate::telemetry::subscriber(LogFormat::Text, &Filter::INFO, false, move || writer.clone());
    let _logged = tracing::subscriber::set_default(subscriber);
    let api = Api::with_patience(0..0, Duration::from_secs(1)).await;
    let addr = api.server.url().unwrap().strip_prefix("http://").unwrap().parse().unwrap();
    let request =
        format!("GET /admin/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n", api.read);
    // Every place but one is taken by somebody who does not read.
    let mut silent = Vec::new();
    for _ in 0..31 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(2048).unwrap();
        let mut stream = socket.connect(addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        // The place is taken; this is all that is ever read of it.
        timeout(PATIENCE, stream.readable()).await.unwrap().unwrap();
        silent.push(stream);
    }
    let mut reads = listen(&api).await;
    until(&mut reads, "event: hello").await;
    let mut taken = listen(&api).await;
    until(&mut taken, "HTTP/1.1 503").await;
    // While events flow, somebody else comes to listen.
    let beside = async {
        let mut bytes = vec![0; 64 << 10];
        loop {
            for _ in 0..16 {
                api.security.emit(SecurityEvent::BadToken { reason: "signature" }, Subject::NOBODY);
            }
            assert_ne!(timeout(PATIENCE, reads.read(&mut bytes)).await.unwrap().unwrap(), 0);
        }
    };
    tokio::select! {
        () = beside => {}
        came = timeout(3 * PATIENCE, place(&api)) => came.expect("places stay taken by those who do not read"),
    }
    // It is no more than kept places: the connections themselves have ended, not only their streams. What is there to
    // be read is read to an end, or to a reset.
    let ends = async {
        for stream in &mut silent {
            let mut bytes = [0; 4096];
            while !matches!(stream.read(&mut bytes).await, Ok(0) | Err(_)) {}
        }
    };
    timeout(PATIENCE, ends).await.expect("a connection of which nothing is read stays open");
    let logged = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let told = |line: &&str| line.contains("INFO") && line.contains("is cut off by=ann");
    assert_eq!(logged.lines().filter(told).count(), silent.len(), "{logged}");
}

/// Waits for a place among those who listen.
async fn place(api: &Api) {
    loop {
        let mut stream = listen(api).await;
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        if &first == b"HTTP/1.1 200" {
            return;
        }
    }
}

#[tokio::test]
async fn r10_listeners_are_bounded() {
    let api = Api::start().await;
    let mut streams = Vec::new();
    for _ in 0..32 {
        let mut stream = listen(&api).await;
        until(&mut stream, "event: hello").await;
        streams.push(stream);
    }
    let headers = format!("authorization: Bearer {}\r\n", api.read);
    assert_eq!(api.with_headers("GET", "/admin/events", &headers).await.status, 503);
    // They make no room for others, and need not.
    let _silent: Vec<_> = {
        let mut silent = Vec::new();
        for _ in 0..2 * crate::ops::MAX_CONNECTIONS {
            silent.push(api.tcp().await);
        }
        silent
    };
    assert_eq!(api.ask("GET", "/admin/stats").await.status, 200);
    api.security.emit(SecurityEvent::BadToken { reason: "signature" }, Subject::NOBODY);
    for stream in &mut streams {
        until(stream, "event: security").await;
    }
    streams.pop();
    timeout(PATIENCE, async {
        while api.with_headers("GET", "/admin/drain", &headers).await.status != 200 {}
        place(&api).await;
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_is_logged_changes_while_it_runs() {
    let api = Api::start().await;
    assert_eq!(api.ask("GET", "/admin/log").await.json()["filter"], "info");
    let answer = api.tell("PUT", "/admin/log", r#"{"filter":"info,quinn=debug"}"#).await;
    assert_eq!((answer.status, api.told()), (200, vec!["log info,quinn=debug".to_owned()]));
    assert_eq!(api.tell("PUT", "/admin/log", r#"{"filter":"loud"}"#).await.status, 400);
    assert!(api.told().is_empty());
}

#[tokio::test]
async fn r10_the_description_has_every_path_and_every_field() {
    let api = Api::start().await;
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    assert_eq!(api.ask("GET", "/admin/openapi.json").await.json(), document);
    let source = include_str!("mod.rs");
    let in_source: BTreeSet<&str> =
        source.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    let described: BTreeSet<&str> =
        document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(in_source, described);
    for (path, schema) in [
        ("/admin/stats", "Stats"),
        ("/admin/allocations", "Allocations"),
        ("/admin/blocks", "Blocks"),
        ("/admin/drain", "Drain"),
        ("/admin/audit", "Audit"),
        ("/admin/log", "Log"),
    ] {
        let answer = api.ask("GET", path).await.json();
        let keys =
            |value: &Value| -> BTreeSet<String> { value.as_object().unwrap().keys().cloned().collect() };
        assert_eq!(keys(&answer), keys(&document["components"]["schemas"][schema]["properties"]), "{path}");
    }
    assert!(api.ask("GET", "/admin/metrics").await.body.contains("zrc_relay_build_info"));
}

#[tokio::test]
async fn r10_the_socket_replaces_nothing_that_is_in_use() {
    let api = Api::start().await;
    let path = api.server.socket().unwrap();
    assert_eq!(bind_unix(path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    let file = api.folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    assert_eq!(bind_unix(&file).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    // One that a killed process left.
    let left = api.folder.path().join("left.sock");
    drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
    assert!(bind_unix(&left).is_ok());
}
