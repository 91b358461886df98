//! What the program says of itself while it runs: the subscriber that turns events into lines, and the handle that
//! changes what is logged without a restart.

mod escape;
mod filter;
#[cfg(feature = "otel")]
mod otlp;

use std::{fmt, sync::Arc};

use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::MakeWriter,
    layer::{Layered, SubscriberExt as _},
    registry::LookupSpan,
    reload,
};

#[cfg(feature = "otel")]
use tracing::Level;
#[cfg(feature = "otel")]
use tracing_subscriber::filter::filter_fn;

pub use filter::{Filter, FilterError};
#[cfg(feature = "otel")]
pub use otlp::{OtlpError, Spans};

use escape::{EscapedFields, EscapedJson};

/// How the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

type Reloadable = reload::Layer<EnvFilter, Registry>;

/// Registry and filter: what the layers that write stand on.
pub type Filtered = Layered<Reloadable, Registry>;

/// Reads and changes what is logged, from now on and for all threads. Cheap to clone.
#[derive(Clone)]
pub struct LevelHandle(Arc<dyn Swap>);

impl LevelHandle {
    /// What is in force, in the form in which it was said: `info`, or `info,quinn=warn`.
    ///
    /// # Errors
    /// [`LevelError::Gone`].
    pub fn get(&self) -> Result<String, LevelError> {
        self.0.get().ok_or(LevelError::Gone)
    }

    /// Puts another filter in force, until the next one: it is not kept over a restart. The text may come from a
    /// caller of the admin API: it is bounded, and what cannot be understood changes nothing.
    ///
    /// # Errors
    /// [`LevelError`]; the filter in force stays.
    pub fn set(&self, filter: &str) -> Result<(), LevelError> {
        let filter: Filter = filter.parse()?;
        self.put(&filter)
    }

    /// The same, of a filter that has been checked already.
    ///
    /// # Errors
    /// [`LevelError::Gone`].
    pub fn put(&self, filter: &Filter) -> Result<(), LevelError> {
        if self.0.set(filter.to_env_filter()) { Ok(()) } else { Err(LevelError::Gone) }
    }
}

impl fmt::Debug for LevelHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LevelHandle").field(&self.0.get()).finish()
    }
}

/// Why the level is neither shown nor changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// What was asked for is no filter.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// Nothing is logged any more, or a thread has panicked while it changed the filter.
    #[error("the log has ended")]
    Gone,
}

/// What a handle needs of `tracing_subscriber`, whose own handle names every layer in its type.
trait Swap: Send + Sync {
    fn get(&self) -> Option<String>;
    fn set(&self, filter: EnvFilter) -> bool;
}

impl Swap for reload::Handle<EnvFilter, Registry> {
    fn get(&self) -> Option<String> {
        self.with_current(EnvFilter::to_string).ok()
    }

    fn set(&self, filter: EnvFilter) -> bool {
        self.reload(filter).is_ok()
    }
}

/// Writes what passes `filter` as lines, one each, whatever is in them; `ansi` gives text colours.
pub fn subscriber<W>(
    format: LogFormat,
    filter: &Filter,
    ansi: bool,
    writer: W,
) -> (impl Subscriber + Send + Sync + for<'a> LookupSpan<'a>, LevelHandle)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter.to_env_filter());
    let subscriber = tracing_subscriber::registry().with(filter).with(lines(format, ansi, writer));
    (subscriber, LevelHandle(Arc::new(handle)))
}

/// The same, and what `spans` turns into spans for a collector. Those of this program stay out of the lines, which are
/// what they are without; what OpenTelemetry says of itself comes into them from a warning on, whatever `filter` lets
/// through.
#[cfg(feature = "otel")]
pub fn subscriber_with_spans<W>(
    format: LogFormat,
    filter: &Filter,
    ansi: bool,
    writer: W,
    spans: &Spans,
) -> (impl Subscriber + Send + Sync + for<'a> LookupSpan<'a>, LevelHandle)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter.to_env_filter());
    let shown = filter_fn(|metadata| {
        let target = metadata.target();
        // What it says below a warning holds the collector's answers, which may repeat what it was sent as a secret.
        let tells_too_much = *metadata.level() > Level::WARN && target.starts_with("opentelemetry");
        let is_own_span = metadata.is_span() && target.starts_with("zrc_relay");
        !tells_too_much && !is_own_span
    });
    let lines = lines(format, ansi, writer).with_filter(shown);
    let subscriber = tracing_subscriber::registry().with(filter).with(lines).with(spans.layer());
    (subscriber, LevelHandle(Arc::new(handle)))
}

fn lines<W>(format: LogFormat, ansi: bool, writer: W) -> Box<dyn Layer<Filtered> + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer();
    match format {
        LogFormat::Json => layer.json().flatten_event(true).with_writer(EscapedJson(writer)).boxed(),
        LogFormat::Text => {
            layer.with_ansi(ansi).fmt_fields(EscapedFields::default()).with_writer(writer).boxed()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Mutex};

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
        let filter = "trace".parse().unwrap();
        let (subscriber, _) = subscriber(format, &filter, ansi, move || writer.clone());
        tracing::subscriber::with_default(subscriber, log);
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

    #[test]
    fn r9_the_level_changes_while_it_runs() {
        let lines = Lines::default();
        let writer = lines.clone();
        let (subscriber, level) =
            subscriber(LogFormat::Text, &"info".parse().unwrap(), false, move || writer.clone());
        let said = || String::from_utf8(std::mem::take(&mut *lines.0.lock().unwrap())).unwrap();
        // One place in the code, as a daemon has it: what was decided for it once must not stay.
        let log = || tracing::debug!("a detail");
        tracing::subscriber::with_default(subscriber, || {
            assert_eq!(level.get().unwrap(), "info");
            log();
            assert_eq!(said(), "");
            level.set("warn,zrc_relay=debug").unwrap();
            log();
            assert!(said().contains("a detail"));
            // What cannot be understood changes nothing.
            assert!(matches!(level.set("inof"), Err(LevelError::Filter(_))));
            log();
            assert!(said().contains("a detail"));
            level.set("off").unwrap();
            log();
            tracing::error!("nobody hears");
            assert_eq!((said().as_str(), level.get().unwrap().as_str()), ("", "off"));
        });
        assert_eq!(level.get(), Err(LevelError::Gone));
        assert_eq!(level.set("info"), Err(LevelError::Gone));
    }
}
