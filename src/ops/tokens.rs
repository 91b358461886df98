//! The admin API's tokens: a file of their hashes, read again when it changes.
//!
//! A token is 32 random bytes, made by `zrc-relay admin token new` and shown once. The file has a line for each:
//! name, role, `sha256:` and the hash in hex, and when it was made; empty lines and those that begin with `#` are
//! skipped. SHA-256 without salt or stretching suffices, because what is hashed cannot be guessed.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// What a token begins with, so that it is known for what it is wherever it turns up.
pub const PREFIX: &str = "zrc_admin_";
/// A file that is larger holds something else, and none of its tokens is good.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// Changes that are kept for whoever asks for them; of more, the first.
const MAX_CHANGES: usize = 16;
/// Of a token's name, in characters.
const MAX_NAME_CHARS: usize = 64;

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// See everything, change nothing.
    Read,
    /// See and change.
    Full,
}

impl Role {
    /// Its name in files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "read" => Ok(Self::Read),
            "full" => Ok(Self::Full),
            _ => Err("a role is read or full"),
        }
    }
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whose it is, for the audit log.
    pub name: Arc<str>,
    /// What it is good for.
    pub role: Role,
    /// SHA-256 of the token's text.
    pub hash: [u8; 32],
    /// When it was made, RFC 3339.
    pub created: String,
}

/// Whether a token may be called so: it stands in lines.
pub fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
    !name.is_empty() && name.len() <= MAX_NAME_CHARS && name.chars().all(plain)
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} sha256:{} {}", self.name, self.role, hex::encode(self.hash), self.created)
    }
}

impl FromStr for Entry {
    type Err = &'static str;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "a line is: name, role, sha256:hash, and when it was made";
        let mut words = line.split_ascii_whitespace();
        let mut word = || words.next().ok_or(FORM);
        let (name, role, hash, created) = (word()?, word()?, word()?, word()?);
        if words.next().is_some() || !is_name(name) {
            return Err(FORM);
        }
        let mut bytes = [0; 32];
        let digits = hash.strip_prefix("sha256:").ok_or(FORM)?;
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| FORM)?;
        Ok(Self { name: name.into(), role: role.parse()?, hash: bytes, created: created.into() })
    }
}

/// Reads all lines.
///
/// # Errors
/// The number of the line that is none, and why.
pub fn parse(text: &str) -> Result<Vec<Entry>, (usize, &'static str)> {
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(number, line)| line.parse().map_err(|reason| (number, reason))).collect()
}

/// Why a file of tokens has none.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// The system says so.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is a folder, a pipe or a device.
    #[error("it is no plain file")]
    NoFile,
    /// It holds something else.
    #[error("it has more than {MAX_FILE_BYTES} bytes")]
    TooLarge,
    /// What it holds is no text.
    #[error("it is no text")]
    NoText,
    /// A line is none.
    #[error("line {line}: {reason}")]
    Line {
        /// From 1.
        line: usize,
        /// What one looks like, or what is wrong with this one.
        reason: &'static str,
    },
}

/// Reads a file; one that is not there has no tokens. Waits for no pipe, and reads no more than [`MAX_FILE_BYTES`].
///
/// # Errors
/// [`TokensError`].
pub fn read(path: &Path) -> Result<Vec<Entry>, TokensError> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    if !file.metadata()?.is_file() {
        return Err(TokensError::NoFile);
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(TokensError::TooLarge);
    }
    let text = str::from_utf8(&bytes).map_err(|_| TokensError::NoText)?;
    parse(text).map_err(|(line, reason)| TokensError::Line { line, reason })
}

/// A new token and its hash.
///
/// # Errors
/// When the operating system has no randomness to give.
pub fn mint() -> Result<(Zeroizing<String>, [u8; 32]), getrandom::Error> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut())?;
    let token = Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes.as_ref())));
    let hash = Sha256::digest(token.as_bytes()).into();
    Ok((token, hash))
}

/// The tokens of a file.
pub struct Tokens {
    path: PathBuf,
    read: Mutex<Read>,
}

/// What was read of the file, and how the file looked then.
#[derive(Default)]
struct Read {
    look: Option<(u64, u64, i64, i64)>,
    entries: Arc<[Entry]>,
    /// What has changed since somebody asked, for people.
    changes: Vec<String>,
    /// Those beyond [`MAX_CHANGES`].
    more_changes: usize,
}

impl Tokens {
    /// The file need not be there yet: then there are no tokens.
    pub fn new(path: PathBuf) -> Self {
        let tokens = Self { path, read: Mutex::default() };
        tokens.entries();
        tokens.take_changes();
        tokens
    }

    /// How the tokens have changed since the last call or the start, as `ann (full) is new`; `None` when they have not.
    pub fn take_changes(&self) -> Option<String> {
        let mut read = self.lock();
        let changes = std::mem::take(&mut read.changes);
        let more = match std::mem::take(&mut read.more_changes) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        (!changes.is_empty()).then(|| changes.join(", ") + &more)
    }

    /// What was taken could not be written down: whoever asks next is told again.
    pub fn put_back(&self, changes: String) {
        self.lock().changes.insert(0, changes);
    }

    /// Whose token this is, if anybody's. Takes as long for a wrong one as for a right one.
    pub fn find(&self, token: &str) -> Option<Entry> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let mut found = None;
        for entry in self.entries().iter() {
            if verify_slices_are_equal(&entry.hash, &hash).is_ok() {
                found = Some(entry.clone());
            }
        }
        found
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.entries().len()
    }

    /// The file, read again if it is another one than before. A file with a fault has no tokens: to go on with those
    /// of before could be to go on with one that was just revoked.
    fn entries(&self) -> Arc<[Entry]> {
        let mut read = self.lock();
        let look = match fs::metadata(&self.path) {
            Ok(file) => Some((file.ino(), file.len(), file.mtime(), file.mtime_nsec())),
            Err(_) => None,
        };
        if look != read.look {
            read.look = look;
            let entries: Arc<[Entry]> = match self::read(&self.path) {
                Ok(entries) => entries.into(),
                Err(error) => {
                    tracing::error!(path = %self.path.display(), %error, "no admin token is good: cannot read the file");
                    Arc::default()
                }
            };
            let mut changes = changes(&read.entries, &entries);
            let room = MAX_CHANGES.saturating_sub(read.changes.len());
            read.more_changes += changes.len().saturating_sub(room);
            changes.truncate(room);
            read.changes.extend(changes);
            read.entries = entries;
        }
        read.entries.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Read> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which tokens are good now that were not, and the other way round.
fn changes(before: &[Entry], now: &[Entry]) -> Vec<String> {
    let missing = |all: &[Entry], entry: &Entry| {
        !all.iter().any(|it| (&it.name, it.role, it.hash) == (&entry.name, entry.role, entry.hash))
    };
    let over = before.iter().filter(|entry| missing(now, entry));
    let over = over.map(|entry| format!("{} ({}) is over", entry.name, entry.role));
    let new = now.iter().filter(|entry| missing(before, entry));
    over.chain(new.map(|entry| format!("{} ({}) is new", entry.name, entry.role))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r10_a_token_is_known_by_its_hash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.tokens");
        let tokens = Tokens::new(path.clone());
        let (token, hash) = mint().unwrap();
        assert!(token.len() >= PREFIX.len() + 43 && token.starts_with(PREFIX));
        assert!(tokens.find(&token).is_none() && tokens.count() == 0, "no file, no token");
        let created = "2026-11-20T06:30:00Z".to_owned();
        let entry = Entry { name: "ann".into(), role: Role::Read, hash, created };
        assert_eq!(entry.to_string().parse(), Ok(entry.clone()));
        fs::write(&path, format!("# people\n\n{entry}\n")).unwrap();
        assert_eq!(tokens.find(&token), Some(entry.clone()));
        assert!(!fs::read_to_string(&path).unwrap().contains(token.as_str()));
        for wrong in ["", "zrc_admin_", &token[..token.len() - 1], &token.to_lowercase()] {
            assert_eq!(tokens.find(wrong), None, "{wrong}");
        }
        let other = Entry { name: "bob".into(), role: Role::Full, hash: mint().unwrap().1, ..entry };
        fs::write(&path, format!("{other}\n")).unwrap();
        assert!(tokens.find(&token).is_none() && tokens.count() == 1, "revoked");
        let told = "ann (read) is new, ann (read) is over, bob (full) is new";
        assert_eq!((tokens.take_changes().as_deref(), tokens.take_changes()), (Some(told), None));
        assert_eq!(Tokens::new(path.clone()).take_changes(), None, "those of the start are no change");
        fs::write(&path, format!("{other}\nbob full sha256:00 now\n")).unwrap();
        assert_eq!(tokens.count(), 0, "nobody comes by a file with a fault");
    }

    #[test]
    fn r10_changes_that_are_many_or_could_not_be_written_down_are_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.tokens");
        let tokens = Tokens::new(path.clone());
        let line = |n: usize| format!("t{n} full sha256:{} now\n", hex::encode([n as u8; 32]));
        fs::write(&path, (0..MAX_CHANGES + 3).map(line).collect::<String>()).unwrap();
        tokens.find("");
        let told = tokens.take_changes().unwrap();
        assert!(
            told.starts_with("t0 (full) is new, ") && told.ends_with("t15 (full) is new and 3 more"),
            "{told}"
        );
        tokens.put_back(told.clone());
        fs::write(&path, line(0)).unwrap();
        tokens.find("");
        let again = tokens.take_changes().unwrap();
        assert!(again.starts_with(&told) && again.contains("t1 (full) is over"), "{again}");
        assert_eq!(tokens.take_changes(), None);
    }

    #[test]
    fn r10_what_is_no_file_of_tokens_is_said_and_waited_for_by_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let line = format!("a read sha256:{} x\n", "00".repeat(32));
        assert!(read(&at("none")).unwrap().is_empty());
        assert!(matches!(read(folder.path()), Err(TokensError::NoFile)));
        assert!(matches!(read(Path::new("/dev/zero")), Err(TokensError::NoFile)));
        assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        assert!(matches!(read(&at("pipe")), Err(TokensError::NoFile)));
        let most = usize::try_from(MAX_FILE_BYTES).unwrap();
        fs::write(at("full"), line.clone() + &"#".repeat(most - line.len())).unwrap();
        assert_eq!(read(&at("full")).unwrap().len(), 1);
        fs::write(at("more"), line.clone() + &"#".repeat(most - line.len() + 1)).unwrap();
        assert!(matches!(read(&at("more")), Err(TokensError::TooLarge)));
        assert_eq!(Tokens::new(at("more")).count(), 0);
        fs::write(at("bytes"), b"\xff").unwrap();
        assert!(matches!(read(&at("bytes")), Err(TokensError::NoText)));
        fs::write(at("line"), line + "b").unwrap();
        assert!(matches!(read(&at("line")), Err(TokensError::Line { line: 2, .. })));
    }

    #[test]
    fn lines_are_what_they_should_be() {
        let hash = "00".repeat(32);
        assert!(parse(&format!("a.b-c@d read sha256:{hash} x")).is_ok());
        for line in [
            format!("a root sha256:{hash} x"),
            format!("a read {hash} x"),
            format!("a read sha256:{hash}"),
            format!("a read sha256:{hash} x y"),
            format!("ä read sha256:{hash} x"),
            "a read sha256:0 x".into(),
        ] {
            assert_eq!(parse(&format!("\n{line}")).unwrap_err().0, 2, "{line}");
        }
    }
}
