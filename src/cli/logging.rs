//! The log: to stderr, in colour for people and as JSON for machines.
//!
//! A thread of its own writes it. Sessions log on the thread that forwards packets: were they to write, a reader
//! of stderr that has stopped reading would stop the relay. Lines that find no room in the queue are lost.

use std::io::{self, IsTerminal as _};

use tracing::Subscriber;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter, util::SubscriberInitExt as _};

use super::{
    Exit, Failure, OrFail as _,
    log_escape::{EscapedFields, EscapedJson},
};

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
        subscriber(self.log_format, filter, io::stderr().is_terminal(), writer)
            .try_init()
            .map_err(|error| Failure::new(Exit::Software, format!("cannot start the log: {error}")))?;
        Ok(guard)
    }
}

/// Writes events as lines, one each, whatever is in them.
fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    ansi: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    match format {
        LogFormat::Json => {
            Box::new(builder.with_writer(EscapedJson(writer)).json().flatten_event(true).finish())
        }
        LogFormat::Text => Box::new(
            builder.with_writer(writer).with_ansi(ansi).fmt_fields(EscapedFields::default()).finish(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What a client could send to write a line of its own, or to have a terminal obey it.
    const HOSTILE: &str = "a\r\n2026 WARN security: forged\u{1b}[31m\0\u{7}\u{8}\u{7f}\u{85}\u{9b}2J\u{2028}\u{202e}\u{2066}z ü";

    fn logged(format: LogFormat, ansi: bool, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let filter = EnvFilter::new("trace");
        tracing::subscriber::with_default(subscriber(format, filter, ansi, move || writer.clone()), log);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn log_what_is_hostile() {
        let span = tracing::info_span!("session", agent = HOSTILE);
        let _entered = span.enter();
        tracing::info!(plain = HOSTILE, shown = %HOSTILE, debugged = ?HOSTILE, "{HOSTILE}");
    }

    #[test]
    fn r5_3_whatever_is_logged_is_one_line_that_no_terminal_obeys() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let line = logged(format, false, log_what_is_hostile);
            let body = line.strip_suffix('\n').unwrap();
            assert!(!body.contains(char::is_control), "{body:?}");
            for c in ['\u{2028}', '\u{202e}', '\u{2066}'] {
                assert!(!body.contains(c), "{body:?}");
            }
            // Message, span and three fields, none of it lost, and letters are left alone. JSON shows the span twice.
            let shown = if format == LogFormat::Json { 6 } else { 5 };
            assert_eq!(body.matches("z ü").count(), shown, "{body}");
            if format == LogFormat::Json {
                let line: serde_json::Value = serde_json::from_str(body).unwrap();
                assert_eq!(line["shown"], HOSTILE);
                assert_eq!(line["message"], HOSTILE);
            }
        }
    }

    #[test]
    fn at_a_terminal_the_log_has_colours_and_clients_have_none() {
        let colours = |text: &str| text.matches('\u{1b}').count();
        let tame = logged(LogFormat::Text, true, || {
            let _entered = tracing::info_span!("session", agent = "tame").entered();
            tracing::info!(plain = "tame", shown = "tame", debugged = "tame", "tame");
        });
        let hostile = logged(LogFormat::Text, true, log_what_is_hostile);
        assert!(colours(&tame) > 0);
        assert_eq!(colours(&hostile), colours(&tame), "{hostile:?}");
        assert_eq!(hostile.matches('\n').count(), 1, "{hostile:?}");
    }
}
