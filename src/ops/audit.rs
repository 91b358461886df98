//! The audit log: what administrators did, one JSON object a line, each bound to the one before it by a hash.
//!
//! The last member of a line is `hash`: SHA-256 over the line as it would be without it. The one before is `prev`, the
//! hash of the line before; numbers rise by one. Whoever changes, removes or inserts a line has to write all that
//! follow anew, and `audit.head` beside the log, which names the last one. [`verify`] finds what does not fit.
//!
//! A line is on disk before [`Audit::record`] returns. The file may be renamed or emptied while the relay runs: the next
//! line goes into a new one, and the chain goes on. A line that a crash cut off is ended, and the next one says so.

use std::{
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
struct Head {
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
    head: Head,
}

impl Audit {
    /// Opens the log in this folder, or begins it.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn open(folder: &Path, clock: Clock) -> io::Result<Self> {
        let path = folder.join(FILE_NAME);
        let known = read_head(folder)?;
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
            (None, None) => Head { seq: 0, hash: NOTHING.into() },
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
        writer.head = Head { seq: line.seq, hash };
        write_head(&self.folder, &writer.head)?;
        Ok(line.seq)
    }

    /// The last lines, the oldest first, as they are, and how many there are in all. Of what was rotated away, none.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn tail(&self, lines: usize) -> io::Result<(Vec<Value>, u64)> {
        let total = self.writer().head.seq;
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
fn is_at(file: &File, path: &Path) -> bool {
    let id = |file: io::Result<fs::Metadata>| file.ok().map(|file| (file.dev(), file.ino()));
    let open = id(file.metadata());
    open.is_some() && open == id(fs::metadata(path))
}

fn read_head(folder: &Path) -> io::Result<Option<Head>> {
    match fs::read(folder.join(HEAD_NAME)) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The old one or the new one is there, never a part.
fn write_head(folder: &Path, head: &Head) -> io::Result<()> {
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
fn end_of(file: &mut File) -> io::Result<(Option<Head>, Option<Vec<u8>>)> {
    let text = tail_of(file)?;
    let (whole, torn) = match text.iter().rposition(|byte| *byte == b'\n') {
        Some(end) => text.split_at(end + 1),
        None => (&[][..], &text[..]),
    };
    let head = |line: &[u8]| {
        let (body, hash) = split(line)?;
        let line: Line = serde_json::from_slice(&body).ok()?;
        Some(Head { seq: line.seq, hash })
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

/// What [`verify`] found.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Lines that are whole and fit.
    pub lines: u64,
    /// The number of the first; more than 1 where older files were not given.
    pub first: u64,
    /// The number of the last.
    pub last: u64,
    /// Lines that a crash cut off, and that the next line tells of, or the very last one.
    pub torn: u64,
    /// What does not fit, in order; empty for a log that nobody has changed.
    pub faults: Vec<String>,
}

/// Checks a log of several files, the oldest first. `head` is where it should end, as [`read`] has it.
///
/// # Errors
/// When a file cannot be read.
pub fn verify(files: &[PathBuf], head: Option<(u64, String)>) -> io::Result<Report> {
    let mut report = Report::default();
    // What the next line must name.
    let mut prev: Option<Head> = None;
    // What was no line, until the next one says that it knows.
    let mut cut: Option<(String, String)> = None;
    let mut head_seen = head.is_none();
    for path in files {
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
            if let Some((seq, head)) = &head
                && *seq == line.seq
            {
                head_seen = true;
                if *head != hash {
                    report.faults.push(format!("{at}: line {seq} is not the one that was written"));
                }
            }
            report.lines += 1;
            report.last = line.seq;
            prev = Some(Head { seq: line.seq, hash });
        }
    }
    // Nobody can say of the very last one.
    report.torn += u64::from(cut.is_some());
    if !head_seen && let Some((seq, _)) = head {
        report.faults.push(format!("the log ends with line {}: there were {seq}", report.last));
    }
    Ok(report)
}

/// The files of the log in a folder, the oldest first, and where it should end. Rotated ones are those whose names
/// begin with the log's.
///
/// # Errors
/// When the folder cannot be read.
#[allow(clippy::type_complexity, reason = "it is what verify takes")]
pub fn read(folder: &Path) -> io::Result<(Vec<PathBuf>, Option<(u64, String)>)> {
    // First: what is written meanwhile is beyond it.
    let head = read_head(folder)?.map(|head| (head.seq, head.hash));
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
    Ok((files.into_iter().map(|(_, path)| path).collect(), head))
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
        let (files, head) = read(folder).unwrap();
        verify(&files, head).unwrap()
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
        assert_eq!(report, Report { lines: 4, first: 1, last: 4, torn: 0, faults: vec![] });
        let (tail, total) = audit.tail(10).unwrap();
        assert_eq!((tail.len(), total, &tail[0]["seq"]), (1, 4, &4.into()));
        assert_eq!(tail[0]["detail"].as_str().unwrap().len(), MAX_DETAIL_CHARS);
        // Without the older ones it begins later, and that is said.
        let report = verify(&[path], None).unwrap();
        assert_eq!((report.first, report.faults), (4, vec![]));
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
        // All but the first may have been rotated away; the first not.
        fs::write(&path, without(0)).unwrap();
        assert_eq!(check(folder).first, 2);
        // A log that was cut is not gone on with in silence.
        fs::write(&path, lines[..3].concat()).unwrap();
        drop(audit);
        log(folder).record(&ann(), "kill", "", "done").unwrap();
        assert!(check(folder).faults[0].contains("line 6 follows line 3"), "{:?}", check(folder));
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
            write_head(folder, &Head { seq: 2, hash }).unwrap();
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
        assert_eq!(check(folder), Report { lines: 4, first: 1, last: 4, torn: 0, faults: vec![] });
        fs::write(&path, &whole).unwrap();
        fs::write(folder.join(HEAD_NAME), &head).unwrap();
        assert_eq!(log(folder).record(&ann(), "kill", "", "done").unwrap(), 4);
        assert_eq!(check(folder).faults, Vec::<String>::new());
    }
}
