//! `serve` as its operators run it: what it says, what it writes, how it leaves.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::ExitStatusExt as _,
    },
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    time::Duration,
};

use tempfile::TempDir;

use crate::cli::{command, run};

/// Longer than anything here takes on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that does not outlive its test.
pub(crate) struct Running {
    pub(crate) child: Child,
    lines: mpsc::Receiver<String>,
    pub(crate) seen: Vec<String>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// Starts a command whose stderr is read line by line, and whose stdout is left to `stdout`.
    pub(crate) fn start(command: &mut Command, stdout: Stdio) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, seen: Vec::new() }
    }

    /// Waits for a line with this in it.
    pub(crate) fn line_with(&mut self, wanted: &str) -> String {
        loop {
            let line = match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => line,
                Err(error) => panic!("no {wanted:?}: {error}; said: {:#?}", self.seen),
            };
            self.seen.push(line.clone());
            if line.contains(wanted) {
                return line;
            }
        }
    }

    /// The line with this in it that was said already, or else the next one: the log has a thread of its own, and its
    /// lines come before or after what else is said.
    pub(crate) fn line_somewhere_with(&mut self, wanted: &str) -> String {
        let seen = self.seen.iter().find(|line| line.contains(wanted)).cloned();
        seen.unwrap_or_else(|| self.line_with(wanted))
    }

    pub(crate) fn signal(&self, name: &str) {
        // The shell's own: not every system has the program.
        let kill = format!("kill -s {name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for the end of it.
    pub(crate) fn end(&mut self) -> ExitStatus {
        // The last line comes when the process closes its stderr.
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => self.seen.push(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => return self.child.wait().unwrap(),
                Err(error) => panic!("still running: {error}; said: {:#?}", self.seen),
            }
        }
    }
}

/// A relay for development in a folder of its own.
pub(crate) struct Relay {
    pub(crate) process: Running,
    pub(crate) folder: TempDir,
    /// `IP:PORT` of its HTTP server.
    pub(crate) ops: String,
}

impl Relay {
    pub(crate) fn dev() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        Self::start(&["serve", "--dev", "--state-dir", state.to_str().unwrap()], folder)
    }

    pub(crate) fn start(args: &[&str], folder: TempDir) -> Self {
        Self::start_command(&mut command(args), folder)
    }

    pub(crate) fn start_command(command: &mut Command, folder: TempDir) -> Self {
        let mut process = Running::start(command, Stdio::null());
        let line = process.line_with("http://");
        // As any program would find it: from there to the blank.
        let ops = line.split("http://").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        Self { process, folder, ops }
    }

    pub(crate) fn descriptor(&self) -> String {
        self.folder.path().join("state/relay.json").to_str().unwrap().to_owned()
    }

    /// Status and body that answer a GET.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        self.try_get(path).unwrap()
    }

    /// The same, from a relay that may be gone.
    pub(crate) fn try_get(&self, path: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(&self.ops)?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.ops)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
        Ok((head[9..12].parse().unwrap(), body.to_owned()))
    }
}

#[test]
fn a_relay_for_development_answers_and_leaves() {
    for signal in ["TERM", "INT"] {
        let mut relay = Relay::dev();
        let (status, body) = relay.get("/health");
        let health: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &health["status"]), (200, &"ok".into()));
        assert!(health["version"].as_str().unwrap().contains("commit"));
        assert!(health["uptime_secs"].is_u64());
        assert_eq!(relay.get("/ready"), (200, r#"{"ready":true}"#.into()));
        let (status, metrics) = relay.get("/metrics");
        assert_eq!(status, 200);
        assert!(metrics.contains("\n# TYPE ") && metrics.contains("zrc_relay_build_info{"), "{metrics}");

        let (status, served) = relay.get("/.well-known/zrc-relay");
        let written = fs::read_to_string(relay.descriptor()).unwrap();
        let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!((status, parse(&served)), (200, parse(&written)));
        let described = parse(&written);
        let keys: Vec<_> = described.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["addr", "port", "region", "relay_id", "server_name", "spki"]);
        assert_eq!(described["addr"], "127.0.0.1");
        let said = relay.process.seen.join("\n");
        for key in ["relay_id", "spki"] {
            assert!(said.contains(described[key].as_str().unwrap()), "{key}: {said}");
        }
        assert!(said.contains(&format!("127.0.0.1:{}", described["port"])));

        relay.process.signal(signal);
        assert_eq!(relay.process.end().code(), Some(0), "{:#?}", relay.process.seen);
    }
}

#[test]
fn a_relay_keeps_its_pin_and_id() {
    let mut relay = Relay::dev();
    let first = fs::read_to_string(relay.descriptor()).unwrap();
    relay.process.child.kill().unwrap();
    assert_eq!(relay.process.end().signal(), Some(9));
    let folder = std::mem::replace(&mut relay.folder, tempfile::tempdir().unwrap());
    let state = folder.path().join("state");
    let again = Relay::start(&["serve", "--dev", "--state-dir", state.to_str().unwrap()], folder);
    let second = fs::read_to_string(again.descriptor()).unwrap();
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    for key in ["spki", "relay_id", "server_name"] {
        assert_eq!(parse(&first)[key], parse(&second)[key], "{key}");
    }
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(state.join("key.pem")).unwrap().permissions().mode() & 0o777, 0o600);
}

/// Where no state directory is named: below the user's home, and where there is none, in a folder of the user's own
/// among the temporary ones.
#[test]
fn a_relay_for_development_finds_a_place_for_its_state() {
    for (home, state) in
        [("HOME", ".local/state/zrc-relay/dev"), ("XDG_STATE_HOME", "zrc-relay/dev"), ("TMPDIR", "*/dev")]
    {
        let folder = tempfile::tempdir().unwrap();
        let mut serve = command(&["serve", "--dev"]);
        serve.env_remove("HOME").env_remove("XDG_STATE_HOME").env("TMPDIR", "/none").env(home, folder.path());
        let mut process = Running::start(&mut serve, Stdio::null());
        let line = process.line_with("--relay ");
        let state = match state.strip_prefix('*') {
            None => folder.path().join(state),
            Some(rest) => {
                let made: Vec<_> =
                    fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
                assert_eq!(made.len(), 1);
                assert_eq!(fs::metadata(&made[0]).unwrap().permissions().mode() & 0o777, 0o700);
                made[0].join(rest.trim_start_matches('/'))
            }
        };
        assert!(line.ends_with(state.join("relay.json").to_str().unwrap()), "{line} {state:?}");
    }
}

/// Somebody else's folder, or one that others enter, is no place for keys.
#[test]
fn a_temporary_folder_that_others_enter_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let uid = fs::metadata("/proc/self").unwrap().uid();
    let trap = folder.path().join(format!("zrc-relay-{uid}"));
    fs::create_dir(&trap).unwrap();
    fs::set_permissions(&trap, fs::Permissions::from_mode(0o777)).unwrap();
    let mut serve = command(&["serve", "--dev"]);
    serve.env_remove("HOME").env_remove("XDG_STATE_HOME").env("TMPDIR", folder.path());
    let output = serve.output().unwrap();
    assert_eq!(output.status.code(), Some(73), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("--state-dir"));
}

#[test]
fn a_wrong_configuration_is_refused_with_all_its_faults() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    fs::write(&path, "[relay]\nlisten_prot = 1\nmax_allocations = 0\nidle_timeout = \"soon\"\n").unwrap();
    let args = ["serve", "--config", path.to_str().unwrap()];
    let output = command(&args).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    assert!(output.stdout.is_empty());
    for part in [
        "4 faults",
        "relay.listen_prot = 1",
        "is listen_port meant?",
        "relay.max_allocations = 0",
        "for example: max_allocations = 1000",
        "relay.idle_timeout = \"soon\"",
        "relay.self_certified is not set",
        "self_certified = true",
    ] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
    for (args, exit) in [
        (&["serve"][..], 78),
        (&["serve", "--config", "/none"], 78),
        (&["serve", "--dev", "--config", "x"], 2),
    ] {
        assert_eq!(command(args).output().unwrap().status.code(), Some(exit), "{args:?}");
    }
}

#[test]
fn a_configuration_decides_what_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    let relay_id = "0123456789abcdef0123456789abcdef";
    let text = format!(
        "state_dir = \"state\"\n\
         [relay]\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\nrelay_id = {relay_id:?}\nregion = \"lab\"\n\
         public_addr = \"relay.example.com:443\"\nserver_name = \"relay.example.com\"\nself_certified = true\n\
         [ops]\nlisten_port = 0\n"
    );
    fs::write(&path, text).unwrap();
    let relay = Relay::start(&["serve", "--config", path.to_str().unwrap()], folder);
    let described: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(relay.descriptor()).unwrap()).unwrap();
    for (key, value) in [
        ("addr", "relay.example.com"),
        ("server_name", "relay.example.com"),
        ("relay_id", relay_id),
        ("region", "lab"),
    ] {
        assert_eq!(described[key], value);
    }
    assert_eq!(described["port"], 443);
}

#[test]
fn a_port_that_is_taken_is_said() {
    let relay = Relay::dev();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    let ops_port = relay.ops.rsplit_once(':').unwrap().1;
    let text = format!(
        "state_dir = \"state\"\n[relay]\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\nself_certified = true\n[ops]\nlisten_port = {ops_port}\n"
    );
    fs::write(&path, text).unwrap();
    let output = command(&["serve", "--config", path.to_str().unwrap()]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(69), "{stderr}");
    assert!(stderr.contains(ops_port), "{stderr}");
}

#[test]
fn a_state_directory_is_one_relays() {
    let mut relay = Relay::dev();
    let folder = relay.folder.path().join("state");
    let files = || {
        let mut names: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = (files(), fs::read(relay.descriptor()).unwrap());
    let mut serve = command(&["serve", "--dev", "--state-dir"]);
    let output = serve.arg(&folder).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(73), "{stderr}");
    assert!(stderr.contains("another relay runs") && stderr.contains("--state-dir"), "{stderr}");
    assert_eq!((files(), fs::read(relay.descriptor()).unwrap()), before);
    assert_eq!(relay.get("/ready").0, 200);
    // Whatever ends it: what holds the folder is the process.
    relay.process.signal("KILL");
    relay.process.end();
    let other =
        Relay::start(&["serve", "--dev", "--state-dir", folder.to_str().unwrap()], TempDir::new().unwrap());
    assert_eq!(other.get("/ready").0, 200);
}

/// Nobody reads what the relay logs: the pipe fills up, and the relay goes on.
#[test]
fn a_log_that_is_not_read_does_not_stop_the_relay() {
    let folder = TempDir::new().unwrap();
    let mut serve = command(&["--log", "trace", "serve", "--dev", "--state-dir"]);
    let mut child = serve
        .arg(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Held, not read any further.
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("clients:") {
        line.clear();
        assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "it ended");
    }
    let relay = folder.path().join("relay.json");
    let load = ["bench", "--pairs", "20", "--rate", "2000", "--secs", "1", "--json", "--relay"];
    let output = command(&load).arg(relay).output().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    // The pipe was full (its pages never quite are), or this shows nothing.
    let mut rest = Vec::new();
    stderr.read_to_end(&mut rest).unwrap();
    assert!(rest.len() >= 40_000, "only {} bytes were logged", rest.len());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["delivered"].as_u64().unwrap() > 1000, "{report}");
}

#[test]
fn development_needs_no_file_whatever_the_environment_says() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state").to_str().unwrap().to_owned();
    let ran = run(&["serve", "--dev", "--config", "relay.toml"]);
    assert!(ran.exit == 2 && ran.stderr.contains("leave out --config"), "{ran:?}");
    let mut serve = command(&["serve", "--dev", "--state-dir", &state]);
    let relay = Relay::start_command(serve.env("ZRC_RELAY_CONFIG", "/nowhere/relay.toml"), folder);
    assert_eq!(relay.get("/ready").0, 200);
}
