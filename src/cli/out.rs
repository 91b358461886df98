//! Where words go: data to stdout, messages for people to stderr.

use std::{
    fmt::Display,
    io::{self, Write as _},
    path::Path,
};

use serde::Serialize;

use super::{Exit, Failure, OrFail as _};

/// Writes one piece of data and a newline.
///
/// # Errors
/// When stdout cannot be written. A reader that has gone away is no failure: it has what it wanted.
pub fn data(text: impl Display) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(line(text).as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).or_fail(Exit::Io, "cannot write to standard output")
        }
        _ => Ok(()),
    }
}

/// Writes one JSON object and a newline.
///
/// # Errors
/// As [`data`].
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    data(serde_json::to_string(value).or_fail(Exit::Software, "cannot write JSON")?)
}

/// Tells people something. Nobody listening is no failure.
pub fn say(text: impl Display) {
    let _ = io::stderr().lock().write_all(line(text).as_bytes());
}

/// What is handed over at once: where the log or another program writes to the same place, nothing comes into a line.
fn line(text: impl Display) -> String {
    format!("{text}\n")
}

/// A path as a shell reads it back.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_where_they_must() {
        for (path, shown) in [("/a/b-c_d.pem", "/a/b-c_d.pem"), ("/a b", "'/a b'"), ("/it's", r"'/it'\''s'")]
        {
            assert_eq!(quoted(Path::new(path)), shown);
        }
    }
}
