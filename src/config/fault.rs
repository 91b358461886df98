//! What is wrong with a configuration: all of it at once, each with where it stands and what to write instead.

use std::{fmt, path::PathBuf};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A line of a file.
    Line {
        /// `None` for a text that lies in no file.
        file: Option<PathBuf>,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
    },
    /// An environment variable.
    Variable(String),
    /// An option of the command line, as `--set`.
    Flag(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line, column } => {
                if let Some(file) = file {
                    write!(f, "{}, ", file.display())?;
                }
                write!(f, "line {line}")?;
                // Most keys begin their line.
                if *column > 1 { write!(f, ", column {column}") } else { Ok(()) }
            }
            Self::Variable(name) => f.write_str(name),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fault {
    /// What: `relay.listen_port`, `relay.device[2].key`; empty when the file as a whole cannot be read.
    pub key: String,
    /// What stands there, as TOML; `None` when nothing does.
    pub value: Option<String>,
    /// Why that cannot be.
    pub reason: String,
    /// What could stand there instead, as a line of TOML; empty when there is nothing to suggest.
    pub example: String,
    /// Where that stands; of what is missing, where its section does.
    pub place: Option<Place>,
    /// Whether nothing is wrong with what stands there, but for a file that it names and that cannot be read on this
    /// machine.
    pub on_disk: bool,
    /// Whether a relay that runs goes on with what it has of this, and heeds all the rest: nobody's rights and nobody's
    /// certificate wait for it.
    pub can_wait: bool,
}

impl Fault {
    /// Says where it is, and words the example as it would be written there.
    pub(super) fn put(&mut self, place: Place) {
        if let Some((_, value)) = self.example.split_once(" = ") {
            match &place {
                Place::Line { .. } => {}
                Place::Variable(name) => self.example = format!("{name}={}", for_a_shell(value)),
                Place::Flag("--set") => {
                    self.example = format!("--set {}={}", self.key, for_a_shell(value));
                }
                Place::Flag("--dev") => {}
                Place::Flag(flag) => self.example = format!("{flag} {}", for_a_shell(value)),
            }
        }
        self.place = Some(place);
    }
}

/// A TOML value as a shell takes it: a plain text needs no quotes.
fn for_a_shell(value: &str) -> String {
    let plain = |text: &str| {
        text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '/' | '-' | '_'))
    };
    let bare = value.trim_matches('"');
    if plain(bare) { bare.to_owned() } else { format!("'{value}'") }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = match (&self.value, self.key.is_empty()) {
            (_, true) => String::new(),
            (Some(value), _) => format!("{} = {value}", self.key),
            (None, _) => format!("{} is not set", self.key),
        };
        let place = self.place.as_ref().map(Place::to_string).filter(|place| *place != self.key);
        match (said.is_empty(), place) {
            (true, None) => {}
            (false, None) => writeln!(f, "{said}")?,
            (true, Some(place)) => writeln!(f, "{place}")?,
            (false, Some(place)) => writeln!(f, "{said} ({place})")?,
        }
        write!(f, "    {}", self.reason)?;
        if !self.example.is_empty() {
            write!(f, "\n    for example: {}", self.example)?;
        }
        Ok(())
    }
}

/// Everything that is wrong with one configuration, in the order of its sections; never empty.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r8_an_example_is_worded_for_its_place() {
        let fault = |example: &str, place| {
            let mut fault = Fault { key: "relay.region".into(), example: example.into(), ..Fault::default() };
            fault.put(place);
            fault.example
        };
        let variable = || Place::Variable("ZRC_RELAY_RELAY__REGION".into());
        for (example, place, wanted) in [
            ("region = \"eu\"", Place::Line { file: None, line: 3, column: 1 }, "region = \"eu\""),
            ("region = \"eu\"", variable(), "ZRC_RELAY_RELAY__REGION=eu"),
            ("region = [\"a\", \"b\"]", variable(), "ZRC_RELAY_RELAY__REGION='[\"a\", \"b\"]'"),
            ("region = 7", Place::Flag("--set"), "--set relay.region=7"),
            ("state_dir = \"/a b\"", Place::Flag("--state-dir"), "--state-dir '\"/a b\"'"),
            ("", variable(), ""),
        ] {
            assert_eq!(fault(example, place), wanted);
        }
    }
}
