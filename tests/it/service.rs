//! What `serve` tells the service manager that started it, over a real socket as systemd has it.

use std::{fs, os::unix::net::UnixDatagram, process::Stdio, time::Duration};

use tempfile::TempDir;

use crate::{cli::command, cli_serve::Running};

/// Longer than anything here takes on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the manager of these tests allows between two signs of life.
const WATCHDOG: Duration = Duration::from_secs(2);

/// A service manager and the relay that it started.
struct Managed {
    socket: UnixDatagram,
    process: Running,
    folder: TempDir,
}

impl Managed {
    fn start(watchdog: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("relay.toml"), config("free")).unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let config = folder.path().join("relay.toml");
        let mut serve = command(&["serve", "--config", config.to_str().unwrap()]);
        serve.env("NOTIFY_SOCKET", &path).env_remove("WATCHDOG_PID").env_remove("WATCHDOG_USEC");
        if watchdog {
            serve.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        }
        let process = Running::start(&mut serve, Stdio::null());
        Self { socket, process, folder }
    }

    /// The next message.
    fn next(&self) -> String {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("the service manager is told nothing");
        String::from_utf8(message[..length].to_vec()).unwrap()
    }

    /// The next one that is no sign of life.
    fn news(&self) -> String {
        std::iter::repeat_with(|| self.next()).find(|message| message.trim() != "WATCHDOG=1").unwrap()
    }
}

fn config(tier: &str) -> String {
    format!(
        "state_dir = \"state\"\n[relay]\nself_certified = true\nself_certified_tier = \"{tier}\"\n\
         listen_addr = \"127.0.0.1\"\nlisten_port = 0\n[ops]\nlisten_port = 0\n"
    )
}

#[test]
fn the_service_manager_hears_of_start_reload_and_end() {
    let mut managed = Managed::start(false);
    let ready = managed.news();
    let lines: Vec<_> = ready.lines().collect();
    assert_eq!(lines[0], "READY=1");
    assert!(lines[1].starts_with("STATUS=relay on 127.0.0.1:"), "{ready}");

    for (tier, outcome) in [("paid", "configuration read again"), ("none", "cannot be read again")] {
        fs::write(managed.folder.path().join("relay.toml"), config(tier)).unwrap();
        managed.process.signal("HUP");
        // The change itself may have been noticed first.
        let reloading =
            std::iter::repeat_with(|| managed.news()).find(|news| news.trim() != "READY=1").unwrap();
        let lines: Vec<_> = reloading.lines().collect();
        assert_eq!(lines[0], "RELOADING=1");
        let since_boot: u64 = lines[1].strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!(since_boot > 0);
        // A configuration that is refused ends the reload as well: systemd would wait for ever.
        assert_eq!(managed.news().trim(), "READY=1");
        managed.process.line_with(outcome);
    }

    managed.process.signal("TERM");
    // The file was written as well, which may have been read once more.
    let stopping = loop {
        let news = managed.news();
        if news.trim() != "READY=1" {
            break news;
        }
    };
    assert!(stopping.starts_with("STOPPING=1\n"), "{stopping}");
    assert_eq!(managed.process.end().code(), Some(0));
}

#[test]
fn the_watchdog_is_fed_in_time() {
    let managed = Managed::start(true);
    assert!(managed.news().starts_with("READY=1"));
    managed.socket.set_read_timeout(Some(WATCHDOG)).unwrap();
    for _ in 0..6 {
        assert_eq!(managed.next().trim(), "WATCHDOG=1");
    }
    // Stopped, as a process is that hangs: nothing comes, and the manager's patience runs out.
    managed.process.signal("STOP");
    let mut message = [0; 64];
    // One may be on its way.
    let silent = (0..3).any(|_| managed.socket.recv(&mut message).is_err());
    assert!(silent, "fed by a process that does not run");
}
