//! The section `[log]`: what is logged, and how it looks.

use std::str::FromStr;

use reqwest::Url;
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
    /// Where spans are sent; `None` in every program that is built without the feature `otel`.
    pub otlp_url: Option<Url>,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: Filter::INFO, format: LogFormat::Text, otlp_url: None }
    }
}

impl Log {
    pub(super) fn read(table: Table, faults: &mut Vec<Fault>) -> (Self, Vec<String>) {
        let default = Self::default();
        let mut section = Section::new("log", table, faults);
        let level = section.read("level", r#""info,zrc_relay::guard=debug""#, level).unwrap_or(default.level);
        let format = section.read("format", r#""json""#, format).unwrap_or(default.format);
        let otlp_url = section.read_secret("otlp_url", r#""http://127.0.0.1:4318/v1/traces""#, otlp_url);
        (Self { level, format, otlp_url }, section.finish())
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

fn otlp_url(value: &Value) -> Result<Url, &'static str> {
    const FORM: &str = "this must be a URL that begins with https:// or http:// and names a host";
    if cfg!(not(feature = "otel")) {
        return Err("this program sends no spans: it is built without the feature otel; take the key out");
    }
    let url = Url::parse(&read::text(value)?).map_err(|_| FORM)?;
    if matches!(url.scheme(), "http" | "https") && url.has_host() { Ok(url) } else { Err(FORM) }
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
            ("otlp_url = \"ftp://a/\"", "log.otlp_url"),
            ("otlp_url = true", "log.otlp_url"),
        ] {
            let faults = read(text).unwrap_err();
            assert_eq!((faults.0.len(), faults.0[0].key.as_str()), (1, key), "{faults}");
        }
    }

    /// Where nothing would be sent, nobody is left to believe that it is.
    #[test]
    fn spans_are_for_programs_that_have_them() {
        let read = read("otlp_url = \"https://u:hunter2@collector.example/v1/traces\"");
        if cfg!(feature = "otel") {
            assert_eq!(read.unwrap().otlp_url.unwrap().host_str(), Some("collector.example"));
        } else {
            let said = read.unwrap_err().to_string();
            assert!(said.contains("feature otel") && !said.contains("hunter2"), "{said}");
        }
    }
}
