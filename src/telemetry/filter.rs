//! What is to be logged, checked before it is put in force.

use std::{borrow::Cow, fmt, str::FromStr};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// A longer text is no filter that a person wrote.
pub const MAX_BYTES: usize = 1024;

/// A filter that can be put in force: a level, or levels by module, as `info,zrc_relay::guard=debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Cow<'static, str>);

/// Why a text is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this must be a level (error, warn, info, debug, trace, off), or levels by module, as info,zrc_relay::guard=debug{0}"
)]
pub struct FilterError(String);

impl Filter {
    /// What a service logs.
    pub const INFO: Self = Self(Cow::Borrowed("info"));
    /// What a command logs that people wait for.
    pub const WARN: Self = Self(Cow::Borrowed("warn"));

    /// Reads a text as programs in Rust do, where a word alone may be the name of a module. `RUST_LOG` in somebody's
    /// environment may be meant for another program.
    ///
    /// # Errors
    /// Where it is no filter even so.
    pub fn as_rust_log(text: &str) -> Result<Self, FilterError> {
        match EnvFilter::try_new(text) {
            Ok(_) => Ok(Self(text.to_owned().into())),
            Err(error) => Err(FilterError(format!("; {error}"))),
        }
    }

    /// The form that `tracing_subscriber` works with.
    pub fn to_env_filter(&self) -> EnvFilter {
        // It was checked when it was made.
        EnvFilter::new(&self.0)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    /// Stricter than `RUST_LOG` is elsewhere: a word alone must be a level. There it is the name of a module, of which
    /// all is logged, so that a slip in a level silences the rest.
    fn from_str(text: &str) -> Result<Self, FilterError> {
        let text = text.trim();
        if text.is_empty() || text.len() > MAX_BYTES {
            return Err(FilterError(format!("; of 1 to {MAX_BYTES} bytes")));
        }
        if text.contains(char::is_control) {
            return Err(FilterError("; without control characters".into()));
        }
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        for part in &parts {
            let is_level = !part.is_empty() && part.parse::<LevelFilter>().is_ok();
            if !is_level && !part.contains(['=', '[', ']', '{', '}']) {
                return Err(FilterError(format!("; {part:?} is neither")));
            }
        }
        Self::as_rust_log(&parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_modules_are_filters() {
        for text in [
            "info",
            "TRACE",
            "off",
            " warn ",
            "info,quinn=warn",
            "zrc_relay::guard=debug, security=info",
            "warn,[{allocation=7}]=trace",
        ] {
            let filter: Filter = text.parse().unwrap();
            assert_eq!(filter.to_string(), text.replace(' ', ""));
        }
    }

    #[test]
    fn slips_are_refused() {
        let long = "a=info,".repeat(200);
        for text in
            ["", " ", "inof", "quinn", "info,", "info,quinn", "quinn=loud", "info,a\nb=warn", "a=[", &long]
        {
            let error = text.parse::<Filter>().unwrap_err().to_string();
            assert!(error.contains("error, warn, info, debug, trace"), "{text:?}: {error}");
            assert!(error.len() < 400, "{error}");
        }
    }
}
