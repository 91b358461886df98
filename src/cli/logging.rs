//! The log: to stderr, in colour for people and as JSON for machines.
//!
//! A thread of its own writes it. Sessions log on the thread that forwards packets: were they to write, a reader
//! of stderr that has stopped reading would stop the relay. Lines that find no room in the queue are lost.

use std::io::{self, IsTerminal as _};

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use super::{Exit, Failure, OrFail as _};

/// Lines that wait to be written, some 200 bytes each: a burst of a few seconds at the busiest.
const LINES_WAITING: usize = 16 * 1024;

/// How the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

/// What is logged, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct LogArgs {
    /// What to log: error, warn, info, debug, trace, or by module, as zrc_relay=debug,quinn=warn
    #[arg(long, global = true, value_name = "FILTER", env = "RUST_LOG", help_heading = "Log")]
    log: Option<String>,
    /// How the log looks: text, or json with one object a line
    #[arg(
        hide_possible_values = true,
        long,
        global = true,
        value_name = "FORMAT",
        value_enum,
        default_value = "text",
        help_heading = "Log"
    )]
    log_format: LogFormat,
}

impl LogArgs {
    /// Starts the log; `default` is what is logged when nothing else was said. Dropping the guard writes what
    /// still waits, for as long as somebody reads it.
    ///
    /// # Errors
    /// [`Exit::Usage`] when the filter cannot be understood.
    pub(super) fn start(&self, default: &str) -> Result<WorkerGuard, Failure> {
        let said = self.log.as_deref().filter(|filter| !filter.trim().is_empty()).unwrap_or(default);
        let filter = EnvFilter::try_new(said).or_fail(Exit::Usage, format!("--log {said}"))?;
        let (writer, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(LINES_WAITING)
            .finish(io::stderr());
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
        let started = match self.log_format {
            LogFormat::Json => builder.json().flatten_event(true).try_init(),
            LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        };
        started.map_err(|error| Failure::new(Exit::Software, format!("cannot start the log: {error}")))?;
        Ok(guard)
    }
}
