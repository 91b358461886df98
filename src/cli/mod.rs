//! The command line: one file per command, and what they share.
//!
//! Data goes to stdout and nothing else does; messages for people and the log go to stderr. How a command
//! ended is its exit code:
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done, and all of it held |
//! | 1 | the answer is no: a refused token, a failed check, a relay that refused |
//! | 2 | the command line is wrong |
//! | 65 | a file does not hold what it should |
//! | 66 | a file cannot be read |
//! | 69 | the relay cannot be reached, or lacks what was asked for |
//! | 70 | a fault of zrc-relay itself |
//! | 73 | a file cannot be made, or is there already |
//! | 74 | reading or writing failed halfway |
//! | 78 | the configuration is wrong |
//! | 128 + n | ended at once by a second signal n (130 SIGINT, 143 SIGTERM) |

mod admin;
mod attempts;
mod bench;
mod certificate;
mod check_config;
mod control;
mod exit;
mod files;
mod healthcheck;
mod heeded;
mod http;
mod init;
mod keygen;
mod logging;
mod manual;
pub mod out;
mod overrides;
mod pair;
mod probe;
mod proc_stat;
mod quickstart;
mod relay_arg;
mod reload;
mod renewal;
mod running;
mod serve;
mod service;
mod signals;
mod state;
mod token;
mod top;
mod webhooks;

use std::{future::Future, num::NonZeroUsize, process::ExitCode};

use clap::Parser;

pub use exit::{Exit, Failure, OrFail};

use crate::{clock::rfc3339, config, telemetry::Filter};

/// Version, commit and protocol: what a report of a fault should say.
const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("ZRC_COMMIT"), ", protocol zrc-relay/1)");

const TOP_HELP: &str = "\
Exit codes:
  0   done, and all of it held
  1   the answer is no: a refused token, a failed check, a relay that refused
  2   the command line is wrong
  65  a file does not hold what it should
  66  a file cannot be read
  69  the relay cannot be reached, or lacks what was asked for
  70  a fault of zrc-relay itself
  73  a file cannot be made, or is there already
  74  reading or writing failed halfway
  78  the configuration is wrong
  130, 143  ended at once by a second SIGINT or SIGTERM

Data goes to stdout, messages and the log go to stderr.";

/// A QUIC relay: two machines that cannot reach each other meet here
#[derive(Debug, Parser)]
#[command(name = "zrc-relay", version = VERSION, after_help = TOP_HELP, propagate_version = true)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    log: logging::LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Quickstart(quickstart::Quickstart),
    Keygen(keygen::Keygen),
    #[command(subcommand)]
    Token(Box<token::Token>),
    Init(init::Init),
    Serve(serve::Serve),
    CheckConfig(check_config::CheckConfig),
    Probe(Box<probe::Probe>),
    Bench(Box<bench::Bench>),
    Admin(Box<admin::Admin>),
    Top(top::Top),
    Healthcheck(healthcheck::Healthcheck),
    Man(manual::Man),
    Completions(manual::Completions),
}

/// The command line's definition: what man pages and completions are made of.
pub fn definition() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Reads the command line, does what it says, and answers with the exit code.
pub fn main() -> ExitCode {
    let Cli { log, command } = Cli::parse();
    match run(&log, command) {
        Ok(exit) => exit.into(),
        Err(Failure { exit, error }) => {
            out::say(format_args!("zrc-relay: {error:#}"));
            exit.into()
        }
    }
}

fn run(log: &logging::LogArgs, command: Command) -> Result<Exit, Failure> {
    let _log = match &command {
        // Its configuration says how it logs.
        Command::Serve(_) => None,
        _ => Some(log.start(&config::Log { level: Filter::WARN, ..config::Log::default() })?),
    };
    match command {
        Command::Keygen(keygen) => keygen.run(),
        Command::Init(init) => init.run(),
        Command::CheckConfig(check) => check.run(),
        Command::Token(token) => block_on(1, token.run()),
        Command::Serve(serve) => block_on(1, serve.run(log)),
        Command::Quickstart(quickstart) => block_on(2, quickstart.run()),
        Command::Bench(bench) => block_on(bench_threads(), bench.run()),
        Command::Probe(probe) => block_on(1, probe.run()),
        Command::Admin(admin) => block_on(1, admin.run()),
        Command::Top(top) => block_on(1, top.run()),
        Command::Healthcheck(healthcheck) => block_on(1, healthcheck.run()),
        Command::Man(man) => man.run(),
        Command::Completions(completions) => completions.run(),
    }
}

/// As many threads as there are cores to run on (`taskset` counts), and no more than one load needs.
fn bench_threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(4)
}

/// The first randomness that the TLS library draws costs a process tens of milliseconds. It is drawn here, so that
/// no client waits for it and no measurement includes it.
fn warm_up_tls() {
    // Should it fail, the first handshake says so.
    let _ = rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut [0; 32]);
}

/// Runs a command's future on a runtime of its own.
fn block_on(threads: usize, work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let mut builder = match threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder
        .worker_threads(threads.max(1))
        .enable_all()
        .build()
        .or_fail(Exit::Software, "cannot start the runtime")?;
    let outcome = runtime.block_on(work);
    // What is left, a slow name look-up say, is not waited for.
    runtime.shutdown_background();
    outcome
}

/// Unix seconds as people read them: `2026-11-20 06:30:00 UTC`.
fn show_unix(unix_secs: u64) -> String {
    // Past the year 9999 a date says less than the number.
    if unix_secs >= 253_402_300_800 {
        return format!("{unix_secs} s after 1970");
    }
    rfc3339(unix_secs).replace('T', " ").replace('Z', " UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        definition().debug_assert();
    }

    #[test]
    fn every_exit_code_is_in_the_help() {
        use Exit::*;
        for exit in [Ok, Refused, Usage, Data, NoInput, Unavailable, Software, CantCreate, Io, Config] {
            let line = format!("\n  {:<3} ", exit as u8);
            assert!(TOP_HELP.contains(&line), "{exit:?}");
        }
    }

    #[test]
    fn times_are_dates() {
        for (unix_secs, shown) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_767_225_599, "2025-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (253_402_300_799, "9999-12-31 23:59:59 UTC"),
            (253_402_300_800, "253402300800 s after 1970"),
            (u64::MAX, "18446744073709551615 s after 1970"),
        ] {
            assert_eq!(show_unix(unix_secs), shown);
        }
    }
}
