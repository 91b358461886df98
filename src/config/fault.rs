//! What is wrong with a configuration: all of it at once, each with what to write instead.

use std::fmt;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where: `relay.listen_port`, `relay.device[2].key`; empty when the file as a whole cannot be read.
    pub key: String,
    /// What stands there, as TOML; `None` when nothing does.
    pub value: Option<String>,
    /// Why that cannot be.
    pub reason: String,
    /// What could stand there instead, as a line of TOML; empty when there is nothing to suggest.
    pub example: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.value, self.key.is_empty()) {
            (_, true) => {}
            (Some(value), _) => writeln!(f, "{} = {value}", self.key)?,
            (None, _) => writeln!(f, "{} is not set", self.key)?,
        }
        write!(f, "    {}", self.reason)?;
        if !self.example.is_empty() {
            write!(f, "\n    for example: {}", self.example)?;
        }
        Ok(())
    }
}

/// Everything that is wrong with one file, in the order of the file's sections; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, fault) in self.0.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            write!(f, "  {fault}")?;
        }
        Ok(())
    }
}
