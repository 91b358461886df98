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
    println!("cargo:rerun-if-env-changed=ZRC_COMMIT");
    for watched in ["HEAD", "logs/HEAD"] {
        // Wherever git keeps them: a worktree has its own.
        if let Some(path) = git(&["rev-parse", "--git-path", watched])
            && Path::new(&path).exists()
        {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let commit = env::var("ZRC_COMMIT").ok().or_else(|| git(&["rev-parse", "--short=12", "HEAD"]));
    let commit = commit.unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=ZRC_COMMIT={commit}");
    Ok(())
}

/// What git answers, if there is a git and this is a checkout.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned()).filter(|answer| !answer.is_empty())
}
