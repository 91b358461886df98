//! How a command ends: its exit code, and what is said to people when it fails.

use std::{fmt::Display, process::ExitCode};

/// What the exit code means. The numbers above 2 are those of `sysexits.h`; [`cli`](super) has the table that
/// people see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, and all of it held.
    Ok = 0,
    /// The answer is no: a refused token, a failed check, a relay that refused.
    Refused = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A file does not hold what it should.
    Data = 65,
    /// A file cannot be read.
    NoInput = 66,
    /// The relay cannot be reached, or lacks what was asked for.
    Unavailable = 69,
    /// A fault of zrc-relay itself.
    Software = 70,
    /// A file cannot be made, or is there already.
    CantCreate = 73,
    /// Reading or writing failed halfway.
    Io = 74,
    /// The configuration is wrong.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command could not do its work.
#[derive(Debug)]
pub struct Failure {
    /// For programs.
    pub exit: Exit,
    /// For people.
    pub error: anyhow::Error,
}

impl Failure {
    /// A failure that has no deeper cause.
    pub fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, error: anyhow::Error::msg(message.to_string()) }
    }
}

/// Turns errors into failures where they are known to matter.
pub trait OrFail<T> {
    /// Ends the command with `exit` when this is an error, which `context` explains to people.
    ///
    /// # Errors
    /// The failure, when this is an error.
    fn or_fail(self, exit: Exit, context: impl Display) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrFail<T> for Result<T, E> {
    fn or_fail(self, exit: Exit, context: impl Display) -> Result<T, Failure> {
        self.map_err(|error| Failure { exit, error: error.into().context(context.to_string()) })
    }
}
