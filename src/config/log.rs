//! The section `[log]`: what is logged, and how it looks.

use std::str::FromStr;

use toml::{Table, Value};

use super::{
    Fault,
    read::{self, Section},
};
use crate::telemetry::{Filter, FilterError, LogFormat};

/// The section `[log]`. The command line's `--log` and `--log-format` come first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// What is logged.
    pub level: Filter,
    /// How it looks.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: Filter::INFO, format: LogFormat::Text }
    }
}

impl Log {
    pub(super) fn read(table: Table, faults: &mut Vec<Fault>) -> (Self, Vec<String>) {
        let default = Self::default();
        let mut section = Section::new("log", table, faults);
        let level = section.read("level", r#""info,zrc_relay::guard=debug""#, level).unwrap_or(default.level);
        let format = section.read("format", r#""json""#, format).unwrap_or(default.format);
        (Self { level, format }, section.finish())
    }
}

fn level(value: &Value) -> Result<Filter, String> {
    Filter::from_str(&read::text(value)?).map_err(|error: FilterError| error.to_string())
}

fn format(value: &Value) -> Result<LogFormat, &'static str> {
    match value.as_str() {
        Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        _ => Err("this must be \"text\", lines for people, or \"json\", one object a line"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Faults};

    fn read(section: &str) -> Result<Log, Faults> {
        let text = format!("[relay]\nself_certified = true\n[log]\n{section}");
        Config::parse(&text, Path::new("")).map(|config| config.log)
    }

    #[test]
    fn the_whole_section_is_read() {
        assert_eq!(read("").unwrap(), Log::default());
        let log = read("level = \"warn,zrc_relay=debug\"\nformat = \"json\"").unwrap();
        assert_eq!((log.level.to_string().as_str(), log.format), ("warn,zrc_relay=debug", LogFormat::Json));
    }

    #[test]
    fn what_cannot_be_is_said() {
        for (text, key) in [
            ("level = \"inof\"", "log.level"),
            ("level = 3", "log.level"),
            ("format = \"xml\"", "log.format"),
            ("format = true", "log.format"),
            ("colour = true", "log.colour"),
        ] {
            let faults = read(text).unwrap_err();
            assert_eq!((faults.0.len(), faults.0[0].key.as_str()), (1, key), "{faults}");
        }
    }
}
