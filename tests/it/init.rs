//! `init`: what it writes is what `check-config` and `serve` take.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use crate::{
    cli::{BINARY, run},
    cli_serve::Relay,
};

fn modes(folder: &Path) -> Vec<(String, u32)> {
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|it| {
            (it.file_name().into_string().unwrap(), it.metadata().unwrap().permissions().mode() & 0o777)
        })
        .collect();
    found.sort();
    found
}

#[test]
fn r8_init_writes_what_serve_needs_and_overwrites_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("a/it's a relay");
    let path = dir.to_str().unwrap();
    let ran = run(&["init", path, "--name", "localhost"]);
    assert_eq!(ran.exit, 0, "{ran:?}");
    let config = ran.stdout.trim_end().to_owned();
    assert_eq!(Path::new(&config), dir.join("relay.toml"));
    assert!(ran.stderr.contains("device id") && ran.stderr.contains("token mint"), "{ran:?}");
    let expected = [
        ("device.key", 0o600),
        ("devices.toml", 0o600),
        ("peer.key", 0o600),
        ("relay.toml", 0o600),
        ("state", 0o700),
    ];
    assert_eq!(modes(&dir), expected.map(|(name, mode)| (name.to_owned(), mode)));
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(modes(&dir.join("state"))[1], ("key.pem".to_owned(), 0o600));

    let checked = run(&["check-config", &config]);
    assert_eq!((checked.exit, checked.stderr.lines().count()), (0, 1), "{checked:?}");

    // Nothing is overwritten, and nothing is half written.
    let whole = fs::read(&config).unwrap();
    let again = run(&["init", path]);
    assert_eq!((again.exit, again.stdout.as_str()), (73, ""), "{again:?}");
    assert!(again.stderr.contains("is there already"), "{again:?}");
    assert_eq!(fs::read(&config).unwrap(), whole);
    fs::create_dir(folder.path().join("b")).unwrap();
    fs::write(folder.path().join("b/peer.key"), "mine").unwrap();
    let again = run(&["init", folder.path().join("b").to_str().unwrap()]);
    assert_eq!(again.exit, 73, "{again:?}");
    assert_eq!(modes(&folder.path().join("b")).len(), 1);

    // A path that no socket can have is refused before anything is written.
    let deep = folder.path().join("c".repeat(90));
    let refused = run(&["init", deep.to_str().unwrap(), "--admin"]);
    assert!(refused.exit == 2 && refused.stderr.contains("too long for a socket"), "{refused:?}");
    assert!(!deep.exists());

    // The commands that it says come next work.
    let moved = tempfile::tempdir().unwrap();
    let said = run(&["init", moved.path().join("it's r").to_str().unwrap()]);
    let config = said.stdout.trim_end().to_owned();
    let relay = Relay::start(
        &["serve", "--config", &config, "--set", "relay.listen_port=0", "--set", "ops.listen_port=0"],
        moved,
    );
    let mint = said.stderr.lines().find(|line| line.contains("token mint")).unwrap();
    // As a shell reads it.
    let programs = Path::new(BINARY).parent().unwrap();
    let token = Command::new("/bin/sh").args(["-c", mint.trim()]).env("PATH", programs).output().unwrap();
    assert_eq!((token.status.code(), token.stdout.trim_ascii_end().len()), (Some(0), 240), "{token:?}");
    drop(relay);
}

#[test]
fn init_refuses_names_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a b", "relay.example.com:443", ""] {
        let ran = run(&["init", folder.path().join("x").to_str().unwrap(), "--name", name]);
        assert_eq!(ran.exit, 2, "{ran:?}");
    }
    assert!(!folder.path().join("x").exists());
    let open = run(&["init", folder.path().to_str().unwrap(), "--open", "--name", "192.0.2.1"]);
    assert_eq!(open.exit, 0, "{open:?}");
    let config = fs::read_to_string(folder.path().join("relay.toml")).unwrap();
    assert!(config.contains("\nself_certified = true\n") && config.contains("server_name = \"192.0.2.1\""));
}
