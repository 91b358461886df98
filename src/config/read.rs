//! Reads the keys of a TOML table one by one and collects what is wrong instead of stopping at it.

use std::{fmt::Display, io, net::IpAddr, ops::RangeInclusive, path::Path, time::Duration};

use toml::{Table, Value};
use zeroize::Zeroizing;

use super::{
    Fault, files,
    units::{parse_duration, show_duration},
};

/// What stands in the place of a secret.
pub(super) const NOT_SHOWN: &str = "(not shown)";

/// How much of a wrong value is repeated in a fault, in characters.
const SHOWN_CHARS: usize = 100;

/// Why a value is refused.
#[derive(Debug)]
pub(super) struct Reason {
    text: String,
    /// See [`Fault::on_disk`].
    on_disk: bool,
    /// See [`Fault::can_wait`].
    can_wait: bool,
}

impl From<String> for Reason {
    fn from(text: String) -> Self {
        Self { text, on_disk: false, can_wait: false }
    }
}

impl From<&'static str> for Reason {
    fn from(text: &'static str) -> Self {
        text.to_owned().into()
    }
}

impl Reason {
    /// The fault of a value that is read before the sections are.
    pub(super) fn fault(self, key: &str, value: Option<&str>) -> Fault {
        let Self { text, on_disk, can_wait } = self;
        Fault {
            key: key.to_owned(),
            value: value.map(|value| format!("{value:?}")),
            reason: text,
            on_disk,
            can_wait,
            ..Fault::default()
        }
    }

    /// The same, of what a relay that runs can do without: see [`Fault::can_wait`].
    pub(super) fn that_can_wait(self) -> Self {
        Self { can_wait: true, ..self }
    }
}

/// One table of the file. What has not been asked for when it is finished is an unknown key.
pub(super) struct Section<'a> {
    path: String,
    table: Table,
    known: Vec<&'static str>,
    given: Vec<&'static str>,
    /// Keys whose values are not repeated in faults.
    secret: Vec<&'static str>,
    faults: &'a mut Vec<Fault>,
}

impl<'a> Section<'a> {
    pub(super) fn new(path: impl Into<String>, table: Table, faults: &'a mut Vec<Fault>) -> Self {
        Self { path: path.into(), table, known: Vec::new(), given: Vec::new(), secret: Vec::new(), faults }
    }

    /// The key's checked value; `None` when it is not there, or is wrong and has become a fault.
    pub(super) fn read<T, E: Into<Reason>>(
        &mut self,
        key: &'static str,
        example: &str,
        parse: impl FnOnce(&Value) -> Result<T, E>,
    ) -> Option<T> {
        self.known.push(key);
        let value = self.table.remove(key)?;
        self.given.push(key);
        match parse(&value) {
            Ok(parsed) => Some(parsed),
            Err(reason) => {
                let Reason { text, on_disk, can_wait } = reason.into();
                self.fault(key, Some(&value), text, format!("{key} = {example}"));
                if let Some(fault) = self.faults.last_mut() {
                    fault.can_wait = can_wait;
                }
                if let Some(fault) = self.faults.last_mut().filter(|_| on_disk) {
                    fault.on_disk = true;
                    // Another file that is not there would be no better.
                    fault.example = String::new();
                }
                None
            }
        }
    }

    /// The same, of a value that no fault repeats.
    pub(super) fn read_secret<T, E: Into<Reason>>(
        &mut self,
        key: &'static str,
        example: &str,
        parse: impl FnOnce(&Value) -> Result<T, E>,
    ) -> Option<T> {
        debug_assert!(is_secret(&self.path_of(key)), "{key} is not among SECRETS");
        self.secret.push(key);
        self.read(key, example, parse)
    }

    /// Whether the key was there, right or wrong, when it was read.
    pub(super) fn was_given(&self, key: &str) -> bool {
        self.given.contains(&key)
    }

    /// A table inside this one, empty when it is not there.
    pub(super) fn table(&mut self, key: &'static str) -> Table {
        self.read(key, "", |value| {
            value.as_table().cloned().ok_or("this is a section: write [section] and its keys below")
        })
        .unwrap_or_default()
    }

    /// An array of tables inside this one, empty when it is not there, `None` when it is something else.
    pub(super) fn tables(&mut self, key: &'static str) -> Option<Vec<Table>> {
        let tables = |value: &Value| {
            value
                .as_array()
                .and_then(|all| all.iter().map(|one| one.as_table().cloned()).collect::<Option<_>>())
        };
        let path = self.path_of(key);
        let reason = format!("write [[{path}]] once for each, and its keys below");
        let tables = self.read(key, "", |value| tables(value).ok_or(reason));
        if self.was_given(key) { tables } else { Some(Vec::new()) }
    }

    pub(super) fn fault(&mut self, key: &str, value: Option<&Value>, reason: String, example: String) {
        let is_secret = self.secret.contains(&key);
        let value = value.map(|value| match is_secret {
            true => NOT_SHOWN.to_owned(),
            false => cut(&without_secrets(&value.to_string())),
        });
        let example = if example.ends_with("= ") { String::new() } else { example };
        self.faults.push(Fault { key: self.path_of(key), value, reason, example, ..Fault::default() });
    }

    /// Makes a fault of everything that was not asked for. Answers with the keys that were.
    pub(super) fn finish(mut self) -> Vec<String> {
        for (key, value) in std::mem::take(&mut self.table) {
            let nearest = self.known.iter().map(|known| (distance(known, &key), *known)).min();
            let reason = match nearest {
                Some((distance, known)) if distance <= 3 => {
                    format!("there is no such key; is {known} meant?")
                }
                _ => format!("there is no such key here; the keys are {}", self.known.join(", ")),
            };
            // A slip in the name of a secret must not show it.
            let is_secret =
                nearest.is_some_and(|(distance, known)| distance <= 3 && self.secret.contains(&known));
            let shown = if is_secret { &Value::String(NOT_SHOWN.into()) } else { &value };
            self.fault(&key, Some(shown), reason, String::new());
        }
        self.known.iter().map(|key| self.path_of(key)).collect()
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }
}

/// The keys whose values are shown nowhere. In the environment, each can also be given as a file, with `_FILE`.
pub(super) const SECRETS: [&str; 3] = ["security.webhook_secret", "security.webhook_url", "log.otlp_url"];

/// Whether this is one of [`SECRETS`].
pub(super) fn is_secret(path: &str) -> bool {
    SECRETS.contains(&path)
}

/// What is in a file that a key names; refused when it is larger than `most_bytes`.
pub(super) fn file(path: &Path, most_bytes: u64) -> Result<Zeroizing<Vec<u8>>, Reason> {
    files::read(path, most_bytes).map_err(|error| not_read(path, &error))
}

/// What is wrong with its content is no matter of the machine.
fn not_read(path: &Path, error: &io::Error) -> Reason {
    let of_content = matches!(error.kind(), io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidData);
    let text = format!("cannot read the file {}: {error}", path.display());
    Reason { text, on_disk: !of_content, can_wait: false }
}

/// The same, of a text.
pub(super) fn text_file(path: &Path, most_bytes: u64) -> Result<Zeroizing<String>, Reason> {
    files::read_text(path, most_bytes).map_err(|error| not_read(path, &error))
}

/// The text with what follows each `whsec_` left out.
pub(super) fn without_secrets(text: &str) -> String {
    const PREFIX: &str = "whsec_";
    let mut parts = text.split(PREFIX);
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let secret =
            part.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '+' | '/' | '=' | '-' | '_'));
        let (_, rest) = part.split_at(secret.unwrap_or(part.len()));
        shown += PREFIX;
        shown += "...";
        shown += rest;
    }
    shown
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", text.split_at(end).0),
        None => text.into(),
    }
}

/// How many letters must be changed, added or dropped to make one of the other.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(&b) {
            let best = (diagonal + usize::from(a != *b)).min(left + 1).min(*cell + 1);
            diagonal = std::mem::replace(cell, best);
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

pub(super) fn text(value: &Value) -> Result<String, &'static str> {
    match value.as_str() {
        Some("") => Err("the text is empty; leave the key out instead"),
        Some(text) => Ok(text.to_owned()),
        None => Err("this must be a text in quotes"),
    }
}

pub(super) fn switch(value: &Value) -> Result<bool, &'static str> {
    value.as_bool().ok_or("this must be true or false, without quotes")
}

pub(super) fn ip(value: &Value) -> Result<IpAddr, String> {
    text(value)?.parse().map_err(|_| "this must be an IPv4 or IPv6 address, without a port".into())
}

/// A whole number in a range.
pub(super) fn number<T: TryFrom<u64> + TryInto<u64> + Copy + Display>(
    range: RangeInclusive<T>,
) -> impl FnOnce(&Value) -> Result<T, String> {
    move |value| {
        let reason = || format!("this must be a whole number from {} to {}", range.start(), range.end());
        let number = value.as_integer().and_then(|number| u64::try_from(number).ok()).ok_or_else(reason)?;
        let least: u64 = (*range.start()).try_into().map_err(|_| reason())?;
        let most: u64 = (*range.end()).try_into().map_err(|_| reason())?;
        if !(least..=most).contains(&number) {
            return Err(reason());
        }
        T::try_from(number).map_err(|_| reason())
    }
}

/// A limit, of which 0 is none.
pub(super) fn limit(value: &Value) -> Result<Option<u64>, String> {
    let number =
        number(0..=i64::MAX.unsigned_abs())(value).map_err(|reason| format!("{reason} (0: no limit)"))?;
    Ok((number != 0).then_some(number))
}

/// A limit of the whole relay in bytes per second, of which 0 is none: no smaller than what a single allocation may
/// send at once.
pub(super) fn global_limit(value: &Value) -> Result<Option<u64>, String> {
    const LEAST: u64 = 65_536;
    match limit(value)? {
        Some(limit) if limit < LEAST => Err(format!(
            "this is for all allocations together, in bytes per second: at least {LEAST} (0: no limit)"
        )),
        limit => Ok(limit),
    }
}

/// A duration in a range: a text with units, or a whole number of seconds.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl FnOnce(&Value) -> Result<Duration, String> {
    move |value| {
        let duration = match value {
            Value::Integer(secs) => u64::try_from(*secs)
                .map(Duration::from_secs)
                .map_err(|_| "a duration is not negative".to_owned())?,
            Value::String(text) => parse_duration(text).map_err(|error| error.to_string())?,
            _ => return Err("this must be a duration in quotes, as \"30s\" or \"8h\"".into()),
        };
        if range.contains(&duration) {
            return Ok(duration);
        }
        Err(format!("this must be from {} to {}", show_duration(*range.start()), show_duration(*range.end())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_letters() {
        for (a, b, letters) in
            [("", "", 0), ("a", "", 1), ("", "ab", 2), ("listen_prot", "listen_port", 2), ("abc", "abd", 1)]
        {
            assert_eq!(distance(a, b), letters, "{a} {b}");
        }
    }

    #[test]
    fn long_values_are_cut() {
        assert_eq!(cut(&"ä".repeat(101)), format!("{}...", "ä".repeat(100)));
        assert_eq!(cut(&"ä".repeat(100)), "ä".repeat(100));
    }
}
