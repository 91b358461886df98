//! Compiles `relay.proto` (no protoc needed) and records which commit this is.

use std::{env, path::Path, process::Command};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=src/wire/relay.proto");
    println!("cargo:rerun-if-changed=src/wire/build.rs");
    let files = protox::compile(["src/wire/relay.proto"], ["src/wire"])?;
    // What a reader of a log must not learn has a Debug of its own, in control.rs.
    let secretive = ["Hello", "Prove", "Refresh", "Channel"].map(|name| format!(".zrc_relay.v1.{name}"));
    prost_build::Config::new().bytes(["."]).skip_debug(secretive).compile_fds(files)?;

    // A package built outside a checkout can name its commit in the environment.
    println!("cargo:rerun-if-env-changed=ZRC_RELAY_COMMIT");
    for watched in [".git/HEAD", ".git/logs/HEAD"] {
        if Path::new(watched).exists() {
            println!("cargo:rerun-if-changed={watched}");
        }
    }
    let commit = env::var("ZRC_RELAY_COMMIT").ok().or_else(git_commit).unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=ZRC_RELAY_COMMIT={commit}");
    Ok(())
}

fn git_commit() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned()).filter(|commit| !commit.is_empty())
}
