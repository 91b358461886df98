//! `admin token`: makes, lists and revokes tokens, in the file of their hashes. A running relay heeds it at once.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{
    super::{Exit, Failure, OrFail as _, files, out},
    place::Place,
};
use crate::{
    clock::{Clock, rfc3339},
    ops::tokens::{self, Entry, MAX_FILE_BYTES, Role, TokensError, is_name},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Token {
    /// Make a token, and print it: it cannot be shown again
    New {
        /// Whose it is, for the audit log: letters, digits, - _ . @
        #[arg(long, value_name = "NAME")]
        name: String,
        /// What it is good for: read, to look; full, for everything
        #[arg(long, value_name = "ROLE", default_value = "read")]
        role: Role,
        #[command(flatten)]
        at: At,
    },
    /// List tokens, without their secrets
    List {
        #[command(flatten)]
        at: At,
    },
    /// Revoke a token: from now on it is not good
    Revoke {
        /// As it was named
        name: String,
        #[command(flatten)]
        at: At,
    },
}

/// Where the hashes are.
#[derive(Debug, clap::Args)]
pub(super) struct At {
    /// The file [default: what the configuration says, else admin.tokens in the state directory]
    #[arg(long, value_name = "FILE", conflicts_with = "state_dir")]
    file: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

impl At {
    fn path(&self) -> Result<PathBuf, Failure> {
        match &self.file {
            Some(file) => Ok(file.clone()),
            None => self.place.token_file(),
        }
    }
}

impl Token {
    pub(super) fn run(self, as_json: bool) -> Result<Exit, Failure> {
        match self {
            Self::New { name, role, at } => {
                if !is_name(&name) {
                    let reason = "--name: at most 64 letters, digits, dashes, underscores, dots and @";
                    return Err(Failure::new(Exit::Usage, reason));
                }
                let path = at.path()?;
                let (token, hash) =
                    tokens::mint().or_fail(Exit::Software, "the system has no randomness to give")?;
                let created = rfc3339(Clock::start().unix_secs());
                change(&path, |entries| {
                    if entries.iter().any(|entry| *entry.name == *name) {
                        let reason =
                            format!("{} has a token named {name} already: revoke it first", path.display());
                        return Err(Failure::new(Exit::CantCreate, reason));
                    }
                    entries.push(Entry { name: name.as_str().into(), role, hash, created });
                    Ok(())
                })?;
                out::say(format_args!("{name} may {} now; {} has the hash", what(role), path.display()));
                if as_json {
                    out::json(&json!({ "name": name, "role": role.name(), "token": token.as_str() }))?;
                } else {
                    out::data(token.as_str())?;
                }
            }
            Self::List { at } => {
                let entries = read(&at.path()?)?;
                if as_json {
                    let tokens: Vec<_> = entries
                        .iter()
                        .map(|it| json!({ "name": &*it.name, "role": it.role.name(), "created": it.created }))
                        .collect();
                    out::json(&json!({ "tokens": tokens }))?;
                } else {
                    for entry in entries {
                        out::data(format_args!("{:<24} {:<5} {}", entry.name, entry.role, entry.created))?;
                    }
                }
            }
            Self::Revoke { name, at } => {
                let path = at.path()?;
                let missing =
                    || Failure::new(Exit::Refused, format!("{} has no token of that name", path.display()));
                // Nothing is made beside a file that is not there.
                if read(&path)?.iter().all(|entry| *entry.name != *name) {
                    return Err(missing());
                }
                change(&path, |entries| {
                    let before = entries.len();
                    entries.retain(|entry| *entry.name != *name);
                    if entries.len() == before { Err(missing()) } else { Ok(()) }
                })?;
                if as_json {
                    out::json(&json!({ "revoked": name }))?;
                } else {
                    out::data(format_args!("revoked {name}"))?;
                }
            }
        }
        Ok(Exit::Ok)
    }
}

const fn what(role: Role) -> &'static str {
    match role {
        Role::Read => "look",
        Role::Full => "look and change",
    }
}

/// Changes the file, which nobody else does meanwhile: those who come at once wait for each other.
fn change<T>(path: &Path, change: impl FnOnce(&mut Vec<Entry>) -> Result<T, Failure>) -> Result<T, Failure> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        files::private_folder(folder)
            .or_fail(Exit::CantCreate, format!("cannot make {}", folder.display()))?;
    }
    let _locked =
        files::lock(path).or_fail(Exit::CantCreate, format!("cannot have {} alone", path.display()))?;
    let mut entries = read(path)?;
    let done = change(&mut entries)?;
    write(path, &entries)?;
    Ok(done)
}

fn read(path: &Path) -> Result<Vec<Entry>, Failure> {
    let shown = path.display();
    tokens::read(path).map_err(|error| match error {
        TokensError::Line { line, reason } => Failure::new(Exit::Data, format!("{shown}:{line}: {reason}")),
        TokensError::Io(error) => Failure {
            exit: Exit::NoInput,
            error: anyhow::Error::new(error).context(format!("cannot read {shown}")),
        },
        error => Failure::new(Exit::Data, format!("{shown} is no file of tokens: {error}")),
    })
}

fn write(path: &Path, entries: &[Entry]) -> Result<(), Failure> {
    let head =
        "# Tokens of the admin API: name, role, SHA-256, when it was made. See zrc-relay admin token.\n";
    let text = entries.iter().fold(head.to_owned(), |text, entry| text + &format!("{entry}\n"));
    if text.len() as u64 > MAX_FILE_BYTES {
        let reason =
            format!("{} would be too large, and none of its tokens good: revoke some first", path.display());
        return Err(Failure::new(Exit::CantCreate, reason));
    }
    let owner = files::replace_for_owner(path, text.as_bytes(), files::SECRET)
        .or_fail(Exit::CantCreate, format!("cannot write {}", path.display()))?;
    if let Some(owner) = owner {
        let shown = path.display();
        out::say(format_args!(
            "warning: {shown} is not the file of user {owner}, whose relay cannot read it then"
        ));
    }
    Ok(())
}
