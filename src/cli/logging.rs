//! The log's place on the command line.
//!
//! A thread of its own writes it. Sessions log on the thread that forwards packets: were they to write, a reader
//! of stderr that has stopped reading would stop the relay. Lines that find no room in the queue are lost.

use std::io::{self, IsTerminal as _};

use tracing::Subscriber;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::util::SubscriberInitExt as _;

use super::{Exit, Failure, OrFail as _};
use crate::{
    config,
    telemetry::{self, Filter, LevelHandle, LogFormat},
};

/// Lines that wait to be written, some 200 bytes each: a burst of a few seconds at the busiest.
const LINES_WAITING: usize = 16 * 1024;

/// What is logged, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct LogArgs {
    /// What to log: error, warn, info, debug, trace, or by module, as info,zrc_relay=debug,quinn=warn
    #[arg(long, global = true, value_name = "FILTER", env = "RUST_LOG", help_heading = "Log")]
    log: Option<String>,
    /// How the log looks: text, or json with one object a line
    #[arg(
        hide_possible_values = true,
        long,
        global = true,
        value_name = "FORMAT",
        value_enum,
        help_heading = "Log"
    )]
    log_format: Option<Format>,
}

/// How the log looks, as it is said on the command line.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

/// A log that is being written.
pub(super) struct Log {
    /// Changes what is logged.
    pub(super) level: LevelHandle,
    /// Whether the command line said what is logged: then the configuration does not.
    is_fixed: bool,
    /// When dropped it sends the spans that still wait, before the last lines are written.
    #[cfg(feature = "otel")]
    _sends_the_rest: Option<telemetry::Spans>,
    /// When dropped it writes what still waits, for as long as somebody reads it.
    _writes_the_rest: WorkerGuard,
}

impl LogArgs {
    /// Starts the log as the command line says, and where that says nothing as `otherwise` does.
    ///
    /// # Errors
    /// [`Exit::Usage`] when the filter cannot be understood.
    pub(super) fn start(&self, otherwise: &config::Log) -> Result<Log, Failure> {
        let said = self.log.as_deref().filter(|filter| !filter.trim().is_empty());
        let filter = match said {
            Some(said) => Filter::as_rust_log(said).or_fail(Exit::Usage, format!("--log {said}"))?,
            None => otherwise.level.clone(),
        };
        let format = match self.log_format {
            Some(Format::Text) => LogFormat::Text,
            Some(Format::Json) => LogFormat::Json,
            None => otherwise.format,
        };
        let (writer, writes_the_rest) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(LINES_WAITING)
            .finish(io::stderr());
        let ansi = io::stderr().is_terminal();
        let begin = |subscriber: Box<dyn Subscriber + Send + Sync>| {
            subscriber
                .try_init()
                .map_err(|error| Failure::new(Exit::Software, format!("cannot start the log: {error}")))
        };
        #[cfg(feature = "otel")]
        if let Some(url) = &otherwise.otlp_url {
            let spans = telemetry::Spans::start(url).or_fail(Exit::Software, "cannot send spans")?;
            let (subscriber, level) = telemetry::subscriber_with_spans(format, &filter, ansi, writer, &spans);
            begin(Box::new(subscriber))?;
            return Ok(Log {
                level,
                is_fixed: said.is_some(),
                _sends_the_rest: Some(spans),
                _writes_the_rest: writes_the_rest,
            });
        }
        let (subscriber, level) = telemetry::subscriber(format, &filter, ansi, writer);
        begin(Box::new(subscriber))?;
        Ok(Log {
            level,
            is_fixed: said.is_some(),
            #[cfg(feature = "otel")]
            _sends_the_rest: None,
            _writes_the_rest: writes_the_rest,
        })
    }
}

impl Log {
    /// Changes what is logged.
    pub(super) fn level(&self) -> LevelHandle {
        self.level.clone()
    }

    /// Puts a configuration's level in force that has changed while the program runs, unless the command line said
    /// another one.
    pub(super) fn follow(&self, changed: &config::Log) {
        if self.is_fixed {
            tracing::info!("the level of the command line stays");
        } else if let Err(error) = self.level.put(&changed.level) {
            tracing::error!(%error, "the level cannot be changed");
        }
    }
}
