//! Where words go: data to stdout, messages for people to stderr.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

use serde::Serialize;

use super::{Exit, Failure, OrFail as _};

/// Writes one piece of data and a newline.
///
/// # Errors
/// When stdout cannot be written. A reader that has gone away is no failure: it has what it wanted.
pub fn data(text: impl Display) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
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
    let _ = writeln!(io::stderr().lock(), "{text}");
}
