//! The audit log: what administrators did, one JSON object a line, each bound to the one before it by a hash.
//!
//! The last member of a line is `hash`: SHA-256 over the line as it would be without it. The one before is `prev`, the
//! hash of the line before; numbers rise by one. Whoever changes, removes or inserts a line has to write all that
//! follow anew, and `audit.head` beside the log, which names the last one. [`verify`] finds what does not fit.
//!
//! A line is on disk before [`Audit::record`] returns. The file may be renamed or emptied while the relay runs: the next
//! line goes into a new one, and the chain goes on. A line that a crash cut off is ended, and the next one says so.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::clock::{Clock, rfc3339};

/// The log's name in the state directory.
pub const FILE_NAME: &str = "audit.jsonl";
/// The name of what says how far it goes.
pub const HEAD_NAME: &str = "audit.head";
/// What the first line is bound to.
const NOTHING: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// A detail is cut after so many characters; a line then has at most some 10 KiB.
const MAX_DETAIL_CHARS: usize = 1000;
/// Of the end of the log, what is read at once.
const TAIL_BYTES: u64 = 1 << 20;
/// What follows the body of a line: `,"hash":"` and 64 digits and `"}`.
const HASH_BYTES: usize = 9 + 64 + 2;

/// The action that ends a line that a crash cut off.
const TORN: &str = "torn_line";

/// Who did something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The token's name, or the user's number.
    pub name: String,
    /// `read` or `full`.
    pub role: &'static str,
    /// The address, or `unix`.
    pub source: String,
}

impl Actor {
    /// The relay itself.
    pub fn relay() -> Self {
        Self { name: "zrc-relay".into(), role: "", source: String::new() }
    }
}

/// A line, without its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    seq: u64,
    at: String,
    at_unix_ms: u64,
    actor: String,
    role: String,
    source: String,
    action: String,
    detail: String,
    outcome: String,
    prev: String,
}

/// Where a chain ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    seq: u64,
    hash: String,
}

/// A log that is open. Its methods write to disk: call them where that may take a while.
#[derive(Debug)]
pub struct Audit {
    folder: PathBuf,
    clock: Clock,
    writer: Mutex<Writer>,
}

#[derive(Debug)]
struct Writer {
    file: File,
    head: End,
}

impl Audit {
    /// Opens the log in this folder, or begins it.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn open(folder: &Path, clock: Clock) -> io::Result<Self> {
        let path = folder.join(FILE_NAME);
        let known = read_head(folder)?;
        let lost_head = known.fault();
        let known = known.end();
        let mut file = open(&path)?;
        let (last, torn) = end_of(&mut file)?;
        let mut lost = None;
        let head = match (last, known) {
            // The log was cut: what is missing shall be missed.
            (Some(last), Some(known)) if known.seq > last.seq => {
                lost = Some((last.seq + 1, known.seq));
                known
            }
            (Some(last), _) => last,
            (None, Some(known)) => known,
            (None, None) => End { seq: 0, hash: NOTHING.into() },
        };
        if torn.is_some() {
            file.write_all(b"\n")?;
        }
        let audit = Self { folder: folder.into(), clock, writer: Mutex::new(Writer { file, head }) };
        if let Some(torn) = torn {
            let detail = format!("{} bytes, sha256 {}", torn.len(), hex::encode(Sha256::digest(&torn)));
            tracing::warn!(bytes = torn.len(), "the audit log's last line was cut off by a crash");
            audit.record(&Actor::relay(), TORN, &detail, "noted")?;
        }
        if let Some(how) = lost_head.filter(|how| how.is_loss(audit.last())) {
            let detail =
                format!("{HEAD_NAME} {how}: nobody can tell whether lines are missing before this one");
            tracing::error!(%how, "what says where the audit log ends is lost");
            audit.record(&Actor::relay(), "head_lost", &detail, "noted")?;
        }
        if let Some((first, last)) = lost {
            tracing::error!(first, last, "lines are missing at the end of the audit log");
            audit.record(&Actor::relay(), "lines_missing", &format!("{first} to {last}"), "noted")?;
        }
        Ok(audit)
    }

    /// Writes a line, and waits until it is on disk. Answers with its number.
    ///
    /// # Errors
    /// When it cannot be written; the next one is then bound to the last that was.
    pub fn record(&self, actor: &Actor, action: &str, detail: &str, outcome: &str) -> io::Result<u64> {
        let mut writer = self.writer();
        let now = self.clock.now().unix;
        let line = Line {
            seq: writer.head.seq + 1,
            at: rfc3339(now.as_secs()),
            at_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            actor: actor.name.clone(),
            role: actor.role.into(),
            source: actor.source.clone(),
            action: action.into(),
            detail: detail.chars().take(MAX_DETAIL_CHARS).collect(),
            outcome: outcome.into(),
            prev: writer.head.hash.clone(),
        };
        let body = serde_json::to_string(&line)?;
        let hash = hex::encode(Sha256::digest(&body));
        let text = format!("{},\"hash\":\"{hash}\"}}\n", body.strip_suffix('}').unwrap_or(&body));
        let path = self.folder.join(FILE_NAME);
        if !is_at(&writer.file, &path) {
            writer.file = open(&path)?;
        }
        let before = writer.file.metadata()?.len();
        if let Err(error) = writer.file.write_all(text.as_bytes()).and_then(|()| writer.file.sync_data()) {
            // A part of it may be there: the next line must not stand behind it.
            let _ = writer.file.set_len(before);
            return Err(error);
        }
        writer.head = End { seq: line.seq, hash };
        write_head(&self.folder, &writer.head)?;
        Ok(line.seq)
    }

    /// The last lines, the oldest first, as they are, and how many there are in all. Of what was rotated away, none.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn tail(&self, lines: usize) -> io::Result<(Vec<Value>, u64)> {
        let total = self.last();
        let mut file = match File::open(self.folder.join(FILE_NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), total)),
            file => file?,
        };
        let text = tail_of(&mut file)?;
        let mut last: Vec<Value> = text
            .split(|byte| *byte == b'\n')
            .rev()
            .filter(|line| split(line).is_some())
            .take(lines)
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect();
        last.reverse();
        Ok((last, total))
    }

    /// The number of the last line.
    fn last(&self) -> u64 {
        self.writer().head.seq
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    // Its name, too, shall be there after a crash.
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        File::open(folder)?.sync_all()?;
    }
    Ok(file)
}

/// Whether this is the file of that name, and not one that was renamed or removed.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let id = |file: io::Result<fs::Metadata>| file.ok().map(|file| (file.dev(), file.ino()));
    let open = id(file.metadata());
    open.is_some() && open == id(fs::metadata(path))
}

fn read_head(folder: &Path) -> io::Result<Head> {
    match fs::read(folder.join(HEAD_NAME)) {
        Ok(bytes) => Ok(match serde_json::from_slice(&bytes) {
            Ok(End { seq, hash }) => Head::At(seq, hash),
            Err(_) => Head::Unreadable,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Head::Missing),
        Err(error) => Err(error),
    }
}

/// The old one or the new one is there, never a part.
fn write_head(folder: &Path, head: &End) -> io::Result<()> {
    let (path, new) = (folder.join(HEAD_NAME), folder.join("audit.head.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(head)?)?;
    file.sync_data()?;
    fs::rename(new, path)
}

/// The end of a file, from the beginning of a line on if there is one.
fn tail_of(file: &mut File) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))?;
    let mut text = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut text)?;
    if len > TAIL_BYTES
        && let Some(end) = text.iter().position(|byte| *byte == b'\n')
    {
        text.drain(..=end);
    }
    Ok(text)
}

/// The last line that is one, and what follows the last newline.
fn end_of(file: &mut File) -> io::Result<(Option<End>, Option<Vec<u8>>)> {
    let text = tail_of(file)?;
    let (whole, torn) = match text.iter().rposition(|byte| *byte == b'\n') {
        Some(end) => text.split_at(end + 1),
        None => (&[][..], &text[..]),
    };
    let head = |line: &[u8]| {
        let (body, hash) = split(line)?;
        let line: Line = serde_json::from_slice(&body).ok()?;
        Some(End { seq: line.seq, hash })
    };
    // All of it but the newline is all of it.
    if let Some(last) = head(torn) {
        file.write_all(b"\n")?;
        return Ok((Some(last), None));
    }
    let last = whole.split(|byte| *byte == b'\n').rev().find_map(head);
    Ok((last, (!torn.is_empty()).then(|| torn.to_vec())))
}

/// A line's body, as it was hashed, and the hash that it names.
fn split(line: &[u8]) -> Option<(Vec<u8>, String)> {
    let (body, end) = line.split_at_checked(line.len().checked_sub(HASH_BYTES)?)?;
    let end = str::from_utf8(end).ok()?;
    let hash = end.strip_prefix(",\"hash\":\"")?.strip_suffix("\"}")?;
    hash.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| ([body, b"}"].concat(), hash.to_owned()))
}

/// What is said of where a log ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// Nothing: its end is whatever was given.
    NotAsked,
    /// There is no [`HEAD_NAME`].
    Missing,
    /// There is one that says nothing.
    Unreadable,
    /// The number and the hash of the last line.
    At(u64, String),
}

/// What is wrong with [`HEAD_NAME`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HeadFault {
    Missing,
    Unreadable,
}

impl HeadFault {
    /// Whether something was lost, in a log that ends with this line: between the very first one and its head there may
    /// have been a crash.
    const fn is_loss(self, last: u64) -> bool {
        match self {
            Self::Missing => last > 1,
            Self::Unreadable => true,
        }
    }
}

impl fmt::Display for HeadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "is missing",
            Self::Unreadable => "cannot be read",
        })
    }
}

impl Head {
    const fn fault(&self) -> Option<HeadFault> {
        match self {
            Self::Missing => Some(HeadFault::Missing),
            Self::Unreadable => Some(HeadFault::Unreadable),
            Self::NotAsked | Self::At(..) => None,
        }
    }

    fn end(self) -> Option<End> {
        match self {
            Self::At(seq, hash) => Some(End { seq, hash }),
            Self::NotAsked | Self::Missing | Self::Unreadable => None,
        }
    }
}

/// The files of a log, the oldest first, and where it should end.
#[derive(Debug, Clone)]
pub struct Log {
    /// Rotated ones are those whose names begin with the log's.
    pub files: Vec<PathBuf>,
    /// What is said of its end.
    pub head: Head,
}

impl Log {
    /// Whether anything is said of its end.
    pub fn has_head(&self) -> bool {
        matches!(self.head, Head::At(..) | Head::Unreadable)
    }
}

/// What [`verify`] found.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Lines that are whole and fit.
    pub lines: u64,
    /// The number of the first; more than 1 where older files were not given.
    pub first: u64,
    /// The number of the last.
    pub last: u64,
    /// Its hash, in hex; empty where there is no line.
    pub last_hash: String,
    /// Lines that a crash cut off, and that the next line tells of, or the very last one.
    pub torn: u64,
    /// What does not fit, in order; empty for a log that nobody has changed.
    pub faults: Vec<String>,
}

/// Checks a log. `expected` is a line that must be there, by its number and its hash in lower case.
///
/// # Errors
/// When a file cannot be read.
pub fn verify(log: &Log, expected: Option<&(u64, String)>) -> io::Result<Report> {
    let mut report = Report::default();
    // What the next line must name.
    let mut prev: Option<End> = None;
    // What was no line, until the next one says that it knows.
    let mut cut: Option<(String, String)> = None;
    let mut head_seen = false;
    let mut expected_seen = expected.is_none();
    for path in &log.files {
        let mut reader = BufReader::new(File::open(path)?);
        let mut number = 0_u64;
        loop {
            let mut text = Vec::new();
            if reader.read_until(b'\n', &mut text)? == 0 {
                break;
            }
            number += 1;
            let at = format!("{}:{number}", path.display());
            text.pop_if(|last| *last == b'\n');
            let read = split(&text)
                .and_then(|(body, hash)| Some((serde_json::from_slice::<Line>(&body).ok()?, body, hash)));
            let Some((line, body, hash)) = read else {
                let told = format!("{} bytes, sha256 {}", text.len(), hex::encode(Sha256::digest(&text)));
                if let Some((at, _)) = cut.replace((at, told)) {
                    report.faults.push(format!("{at}: this is no line of an audit log"));
                }
                continue;
            };
            if let Some((at, told)) = cut.take() {
                if line.action == TORN && line.detail == told {
                    report.torn += 1;
                } else {
                    report.faults.push(format!("{at}: this is no line of an audit log"));
                }
            }
            if hex::encode(Sha256::digest(&body)) != hash {
                report.faults.push(format!("{at}: line {} was changed: its hash is another one", line.seq));
            }
            match &prev {
                None if line.seq == 1 && line.prev != NOTHING => {
                    report.faults.push(format!("{at}: the first line follows another one"));
                }
                None => report.first = line.seq,
                Some(prev) if line.seq != prev.seq + 1 => {
                    report.faults.push(format!("{at}: line {} follows line {}", line.seq, prev.seq));
                }
                Some(prev) if line.prev != prev.hash => {
                    let fault = format!("{at}: line {} does not follow the line before it", line.seq);
                    report.faults.push(fault);
                }
                Some(_) => {}
            }
            if report.first == 0 {
                report.first = line.seq;
            }
            if let Some((seq, expected)) = expected
                && *seq == line.seq
            {
                expected_seen = true;
                if *expected != hash {
                    report.faults.push(format!("{at}: line {seq} is not the one that is expected"));
                }
            }
            if let Head::At(seq, head) = &log.head
                && *seq == line.seq
            {
                head_seen = true;
                if *head != hash {
                    report.faults.push(format!("{at}: line {seq} is not the one that was written"));
                }
            }
            report.lines += 1;
            report.last = line.seq;
            prev = Some(End { seq: line.seq, hash });
        }
    }
    // Nobody can say of the very last one.
    report.torn += u64::from(cut.is_some());
    report.last_hash = prev.map(|last| last.hash).unwrap_or_default();
    let unseen = "nobody can tell whether lines are missing at the end";
    match &log.head {
        Head::At(seq, _) if !head_seen => {
            report.faults.push(format!("the log ends with line {}: there were {seq}", report.last));
        }
        head => {
            let lost = head.fault().filter(|how| how.is_loss(report.last));
            report.faults.extend(lost.map(|how| format!("{HEAD_NAME} {how}: {unseen}")));
        }
    }
    if !expected_seen && let Some((seq, _)) = expected {
        report.faults.push(format!("line {seq}, which is expected, is not there"));
    }
    Ok(report)
}

/// The log in a folder.
///
/// # Errors
/// When the folder cannot be read.
pub fn read(folder: &Path) -> io::Result<Log> {
    // First: what is written meanwhile is beyond it.
    let head = read_head(folder)?;
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(FILE_NAME) && path.is_file() {
            let mut first = String::new();
            let readable = BufReader::new(File::open(&path)?).take(TAIL_BYTES).read_line(&mut first).is_ok();
            let begins = serde_json::from_str::<Line>(first.trim_end()).ok().filter(|_| readable);
            files.push((begins.map_or(u64::MAX, |line| line.seq), path.clone()));
        }
    }
    files.sort();
    Ok(Log { files: files.into_iter().map(|(_, path)| path).collect(), head })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ann() -> Actor {
        Actor { name: "ann".into(), role: "full", source: "192.0.2.7".into() }
    }

    fn log(folder: &Path) -> Audit {
        Audit::open(folder, Clock::start()).unwrap()
    }

    fn check(folder: &Path) -> Report {
        verify(&read(folder).unwrap(), None).unwrap()
    }

    #[test]
    fn r10_a_chain_holds_over_restarts_and_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, path) = (folder.path(), folder.path().join(FILE_NAME));
        assert_eq!(log(folder).record(&ann(), "kill", "00ff: \"nasty\"\n\u{1b}", "done").unwrap(), 1);
        let audit = log(folder);
        assert_eq!(audit.record(&ann(), "block", "", "done").unwrap(), 2);
        fs::rename(&path, folder.join("audit.jsonl.1")).unwrap();
        assert_eq!(audit.record(&ann(), "block", "", "done").unwrap(), 3);
        fs::rename(&path, folder.join("audit.jsonl.2")).unwrap();
        // Restarted while there is none.
        let audit = log(folder);
        assert_eq!(audit.record(&ann(), "unblock", &"x".repeat(5000), "done").unwrap(), 4);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let report = check(folder);
        assert_eq!((report.lines, report.first, report.last, report.torn), (4, 1, 4, 0));
        assert_eq!(report.faults, Vec::<String>::new());
        let (tail, total) = audit.tail(10).unwrap();
        assert_eq!((tail.len(), total, &tail[0]["seq"]), (1, 4, &4.into()));
        assert_eq!(tail[0]["detail"].as_str().unwrap().len(), MAX_DETAIL_CHARS);
        // Without the older ones it begins later, and that is said.
        let report = verify(&Log { files: vec![path], head: Head::NotAsked }, None).unwrap();
        assert_eq!((report.first, report.faults), (4, vec![]));
    }

    /// With a head that says that this many lines are all.
    fn read_with(folder: &Path, lines: usize) -> Log {
        let text = fs::read_to_string(folder.join(FILE_NAME)).unwrap();
        let (_, hash) = split(text.lines().nth(lines - 1).unwrap().as_bytes()).unwrap();
        Log { head: Head::At(lines as u64, hash), ..read(folder).unwrap() }
    }

    #[test]
    fn r10_a_head_that_was_lost_is_written_down() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for _ in 0..2 {
            log(folder).record(&ann(), "kill", "", "done").unwrap();
        }
        for (lose, how) in [(None, "is missing"), (Some("x"), "cannot be read")] {
            match lose {
                Some(text) => fs::write(folder.join(HEAD_NAME), text).unwrap(),
                None => fs::remove_file(folder.join(HEAD_NAME)).unwrap(),
            }
            let (tail, _) = log(folder).tail(1).unwrap();
            assert_eq!(tail[0]["action"], "head_lost");
            assert!(tail[0]["detail"].as_str().unwrap().contains(how), "{tail:?}");
            assert_eq!(check(folder).faults, Vec::<String>::new());
        }
        // A first line whose head a crash prevented.
        let other = tempfile::tempdir().unwrap();
        log(other.path()).record(&ann(), "kill", "", "done").unwrap();
        fs::remove_file(other.path().join(HEAD_NAME)).unwrap();
        assert_eq!(check(other.path()).faults, Vec::<String>::new());
        assert_eq!(log(other.path()).record(&ann(), "kill", "", "done").unwrap(), 2);
    }

    #[test]
    fn r10_whatever_is_changed_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, path) = (folder.path(), folder.path().join(FILE_NAME));
        let audit = log(folder);
        for n in 0..5 {
            audit.record(&ann(), "kill", &n.to_string(), "done").unwrap();
        }
        assert_eq!(check(folder).faults, Vec::<String>::new());
        let whole = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = whole.split_inclusive('\n').collect();
        let without = |gone: usize| {
            let rest = lines.iter().enumerate().filter(|(n, _)| *n != gone).map(|(_, line)| *line);
            rest.collect::<String>()
        };
        for (changed, why) in [
            (whole.replace("\"detail\":\"2\"", "\"detail\":\"9\""), "a detail"),
            (without(2), "one removed"),
            (without(4), "the last removed"),
            (lines[..2].concat() + lines[3] + lines[2] + lines[4], "two exchanged"),
            (whole.clone() + lines[4], "one twice"),
            (lines[..2].concat() + "\n" + &lines[2..].concat(), "an empty line"),
            (lines[..2].concat() + "torn" + "\n" + &lines[2..].concat(), "a line that is none"),
            (String::new(), "all removed"),
        ] {
            fs::write(&path, &changed).unwrap();
            assert_ne!(check(folder).faults, Vec::<String>::new(), "{why}");
        }
        // Cut, and what says so is gone with it.
        let head = fs::read(folder.join(HEAD_NAME)).unwrap();
        fs::write(&path, lines[..3].concat()).unwrap();
        fs::remove_file(folder.join(HEAD_NAME)).unwrap();
        assert!(check(folder).faults[0].contains("audit.head is missing"), "{:?}", check(folder));
        fs::write(folder.join(HEAD_NAME), "{").unwrap();
        assert!(check(folder).faults[0].contains("audit.head cannot be read"), "{:?}", check(folder));
        // Cut, and all that is there written to fit: what was noted elsewhere does not.
        let noted = (4, split(lines[3].trim_end().as_bytes()).unwrap().1);
        assert_eq!(verify(&read_with(folder, 3), Some(&noted)).unwrap().faults.len(), 1);
        fs::write(&path, &whole).unwrap();
        fs::write(folder.join(HEAD_NAME), &head).unwrap();
        assert_eq!(verify(&read(folder).unwrap(), Some(&noted)).unwrap().faults, Vec::<String>::new());
        let other = (4, "0".repeat(64));
        assert!(verify(&read(folder).unwrap(), Some(&other)).unwrap().faults[0].contains("not the one"));
        // All but the first may have been rotated away; the first not.
        fs::write(&path, without(0)).unwrap();
        assert_eq!(check(folder).first, 2);
        // A log that was cut is not gone on with in silence.
        fs::write(&path, lines[..3].concat()).unwrap();
        drop(audit);
        log(folder).record(&ann(), "kill", "", "done").unwrap();
        assert!(check(folder).faults[0].contains("line 6 follows line 3"), "{:?}", check(folder));
    }

    /// A line's text, hashed as it is now.
    fn hashed_anew(line: &str) -> String {
        let (body, _) = split(line.trim_end().as_bytes()).unwrap();
        let body = String::from_utf8(body).unwrap();
        let hash = hex::encode(Sha256::digest(&body));
        format!("{},\"hash\":\"{hash}\"}}\n", body.strip_suffix('}').unwrap())
    }

    #[test]
    fn r10_a_line_written_anew_breaks_the_chain_where_the_next_one_begins() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, path) = (folder.path(), folder.path().join(FILE_NAME));
        let audit = log(folder);
        for n in 0..4 {
            audit.record(&ann(), "kill", &n.to_string(), "done").unwrap();
        }
        let whole = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = whole.split_inclusive('\n').collect();
        assert_eq!(lines.iter().map(|line| hashed_anew(line)).collect::<String>(), whole);
        let forged = hashed_anew(&lines[1].replace("\"detail\":\"1\"", "\"detail\":\"9\""));
        fs::write(&path, lines[0].to_owned() + &forged + &lines[2..].concat()).unwrap();
        let report = check(folder);
        assert_eq!(report.faults.len(), 1, "{report:?}");
        assert!(report.faults[0].ends_with(":3: line 3 does not follow the line before it"), "{report:?}");
        assert_eq!((report.lines, report.first, report.last), (4, 1, 4));
        // The first one says that it follows another.
        let forged = hashed_anew(&lines[0].replace(NOTHING, &"1".repeat(64)));
        fs::write(&path, forged + &lines[1..].concat()).unwrap();
        let faults = check(folder).faults;
        assert!(faults[0].ends_with(":1: the first line follows another one"), "{faults:?}");
        // Two faults with one that is none between them, each told of.
        fs::write(&path, format!("{}no line\n{}no line\n{}", lines[0], lines[1], lines[2..].concat()))
            .unwrap();
        assert_eq!((check(folder).faults.len(), check(folder).torn), (2, 0), "{:?}", check(folder));
    }

    #[test]
    fn the_end_of_a_long_log_is_read_from_the_beginning_of_a_line_on() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, path) = (folder.path(), folder.path().join(FILE_NAME));
        let audit = log(folder);
        for n in 1..=3 {
            audit.record(&ann(), "kill", &n.to_string(), "done").unwrap();
        }
        let lines = fs::read_to_string(&path).unwrap();
        let bytes = u64::try_from(lines.len()).unwrap();
        let filler = |bytes: u64| "x".repeat(usize::try_from(bytes - 1).unwrap()) + "\n";
        // All of it fits; the first line begins where the reading does, or in its middle.
        for (more, seen) in [(0, 3), (1, 3), (2, 3)] {
            let filler = if more == 0 { String::new() } else { filler(TAIL_BYTES - bytes + more - 1) };
            fs::write(&path, filler + &lines).unwrap();
            assert_eq!(audit.tail(10).unwrap().0.len(), seen, "{more}");
        }
        fs::write(&path, lines.clone() + &filler(TAIL_BYTES - bytes)).unwrap();
        assert_eq!(audit.tail(10).unwrap().0.len(), 3);
        fs::write(&path, lines.clone() + &filler(TAIL_BYTES - bytes + 1)).unwrap();
        assert_eq!(audit.tail(10).unwrap().0.len(), 2, "the first is not whole");
        fs::remove_file(&path).unwrap();
        assert_eq!(audit.tail(10).unwrap(), (vec![], 3));
        fs::create_dir(&path).unwrap();
        assert!(audit.tail(10).is_err(), "what cannot be read is not empty");
    }

    #[test]
    fn r10_what_was_lost_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, path) = (folder.path(), folder.path().join(FILE_NAME));
        let audit = log(folder);
        for _ in 0..5 {
            audit.record(&ann(), "kill", "", "done").unwrap();
        }
        drop(audit);
        let whole = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = whole.split_inclusive('\n').collect();
        fs::write(&path, lines[..2].concat()).unwrap();
        let (tail, _) = log(folder).tail(1).unwrap();
        assert_eq!((&tail[0]["action"], &tail[0]["detail"]), (&"lines_missing".into(), &"3 to 5".into()));
    }

    #[test]
    fn r10_a_line_that_a_crash_cut_off_is_known_for_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, path) = (folder.path(), folder.path().join(FILE_NAME));
        let audit = log(folder);
        for _ in 0..3 {
            audit.record(&ann(), "kill", "", "done").unwrap();
        }
        drop(audit);
        let whole = fs::read(&path).unwrap();
        let head = fs::read(folder.join(HEAD_NAME)).unwrap();
        let second_ends = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(1).unwrap().0 + 1;
        for cut in (second_ends + 1..whole.len() - 1).step_by(29) {
            // As it is when the process ends in the middle of the third line: the head is the second's.
            fs::write(&path, &whole[..cut]).unwrap();
            let (_, hash) =
                split(whole[..second_ends - 1].rsplit(|byte| *byte == b'\n').next().unwrap()).unwrap();
            write_head(folder, &End { seq: 2, hash }).unwrap();
            let report = check(folder);
            assert_eq!((report.lines, report.torn, report.faults.len()), (2, 1, 0), "{cut}");
            log(folder).record(&ann(), "block", "", "done").unwrap();
            let report = check(folder);
            assert_eq!((report.last, report.torn, &report.faults), (4, 1, &vec![]), "{cut}");
        }
        // All but the newline; and between the line and its head.
        fs::write(folder.join(HEAD_NAME), &head).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(log(folder).record(&ann(), "kill", "", "done").unwrap(), 4);
        let report = check(folder);
        assert_eq!((report.lines, report.last, report.torn, report.faults), (4, 4, 0, vec![]));
        fs::write(&path, &whole).unwrap();
        fs::write(folder.join(HEAD_NAME), &head).unwrap();
        assert_eq!(log(folder).record(&ann(), "kill", "", "done").unwrap(), 4);
        assert_eq!(check(folder).faults, Vec::<String>::new());
    }
}
