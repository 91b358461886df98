//! The blocks that were pushed, kept over restarts: a file in the state directory, one JSON object a line.
//!
//! A line is appended, and on disk, before a change is answered: `{"network":"203.0.113.0/24","until_unix":null,
//! "reason":"scans"}` for a block, `{"network":"203.0.113.0/24","ended":true}` for its end. A later line of the same
//! network counts instead of the earlier ones. When most lines count no more, the file is written anew, as a whole: so it
//! has at most twice as many lines as there are blocks, and a thousand.
//!
//! At the start what has expired is left out. A last line that a crash cut off was never answered, and is dropped. A file
//! with other faults is set aside under another name, the log says so, and what can be read of it counts. It keeps its own
//! name, too, until a whole file takes its place. As long as it cannot be set aside it stays as it is: changes are in
//! force, and whoever makes them is told that they are not kept.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::audit::is_at;
use crate::{
    clock::Clock,
    guard::{Block, Guard, MAX_PUSHED, TooManyBlocks, folded},
};

/// The file's name in the state directory.
pub const BLOCKS_NAME: &str = "blocks.jsonl";
/// The longest that a block may be told to last: a year.
pub const MAX_BLOCK_SECS: u64 = 366 * 86_400;

/// A line is a network and a reason, and comes nowhere near this.
const MAX_LINE_BYTES: u64 = 8 * 1024;
/// No file of ours has more lines.
const MAX_LINES: usize = 4 * MAX_PUSHED;
/// Files with faults that were set aside within one second.
const MAX_SAME_SECOND: u32 = 100;
/// Lines that count no more are borne up to so many.
const SPARE_LINES: usize = 1000;

/// Why a block is not what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum NotBlocked {
    /// It is not in force.
    #[error(transparent)]
    Full(#[from] TooManyBlocks),
    /// It is in force, and will not be after a restart.
    #[error("the block is in force, and could not be written down: a restart forgets it")]
    NotKept(#[source] io::Error),
}

#[derive(Debug, Serialize, Deserialize)]
struct Line<'a> {
    #[serde(serialize_with = "write_network", deserialize_with = "read_network")]
    network: IpNet,
    #[serde(default)]
    until_unix: Option<u64>,
    #[serde(default, borrow)]
    reason: std::borrow::Cow<'a, str>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    ended: bool,
}

fn write_network<S: Serializer>(network: &IpNet, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(network)
}

fn read_network<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    text.parse::<IpNet>().map(folded).map_err(D::Error::custom)
}

/// What pushed blocks pass through on their way into the guard. Its methods write to disk: call them where that may take
/// a while.
pub struct BlockFile {
    path: PathBuf,
    guard: Arc<Guard>,
    clock: Clock,
    journal: Mutex<Journal>,
    keep_as: KeepAs,
}

/// Gives a file another name, as [`keep_as`]; tests have one that cannot.
type KeepAs = fn(&Path, &Path) -> io::Result<()>;

/// The file as it is. Whoever holds it is the only one to change blocks, so that the lines are in the order of the
/// changes.
#[derive(Default)]
struct Journal {
    /// `None` until there is something to write, and after a failure.
    file: Option<File>,
    lines: usize,
    /// With so many lines it is written anew.
    due: usize,
    /// Whether a file with faults still stands where ours is to be.
    is_in_the_way: bool,
}

impl BlockFile {
    /// Puts the blocks of this folder's file in force, those that have not expired. Whatever the file is like, this goes
    /// on, and the log says what was wrong with it.
    pub fn open(folder: &Path, guard: Arc<Guard>, clock: Clock) -> Self {
        Self::open_with(folder, guard, clock, keep_as)
    }

    fn open_with(folder: &Path, guard: Arc<Guard>, clock: Clock, keep_as: KeepAs) -> Self {
        let file = Self { path: folder.join(BLOCKS_NAME), guard, clock, journal: Mutex::default(), keep_as };
        match File::open(&file.path) {
            Ok(found) => file.restore(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => file.set_aside(&error.to_string()),
        }
        file
    }

    /// Blocks a network for that long, or until it is unblocked, in place of a block of the same network.
    ///
    /// # Errors
    /// [`NotBlocked`], which says whether it is in force all the same.
    pub fn block(
        &self,
        network: IpNet,
        lasting: Option<Duration>,
        reason: &str,
    ) -> Result<Block, NotBlocked> {
        let network = folded(network);
        let mut journal = self.journal();
        let now = self.clock.now();
        let until = lasting.map(|lasting| now.mono + lasting);
        self.guard.block(network, until, reason, now.mono)?;
        let line = Line {
            network,
            until_unix: lasting.map(|lasting| (now.unix + lasting).as_secs()),
            reason: reason.into(),
            ended: false,
        };
        self.write(&mut journal, &line).map_err(NotBlocked::NotKept)?;
        Ok(Block { network, until, reason: reason.into(), configured: false })
    }

    /// Ends a block that was pushed; whether there was one of exactly this network.
    ///
    /// # Errors
    /// When that cannot be written: it is over now, and a restart brings it back.
    pub fn unblock(&self, network: IpNet) -> io::Result<bool> {
        let network = folded(network);
        let mut journal = self.journal();
        let ended = self.guard.unblock(network, self.clock.mono());
        if ended {
            let line = Line { network, until_unix: None, reason: "".into(), ended: true };
            self.write(&mut journal, &line)?;
        }
        Ok(ended)
    }

    fn restore(&self, file: File) {
        let Found { blocks, lines, mut faults } = read(file);
        let now = self.clock.now();
        let in_force: Vec<Block> = blocks
            .into_iter()
            .filter_map(|(network, (until_unix, reason))| {
                let left = match until_unix {
                    // A clock that was set back makes nothing last for longer than anybody may ask for.
                    Some(at) => {
                        Some(at.checked_sub(now.unix.as_secs()).filter(|left| *left > 0)?.min(MAX_BLOCK_SECS))
                    }
                    None => None,
                };
                let until = left.map(|left| now.mono + Duration::from_secs(left));
                Some(Block { network, until, reason: reason.into(), configured: false })
            })
            .collect();
        let live = in_force.len();
        let left_out = self.guard.restore(in_force, now.mono);
        if left_out > 0 {
            faults.push(format!("{left_out} blocks are more than there may be"));
        }
        tracing::info!(blocks = live - left_out, "blocks that were pushed before are in force again");
        if !faults.is_empty() {
            return self.set_aside(&faults.join("; "));
        }
        let mut journal = self.journal();
        if lines != live
            && let Err(error) = self.write_anew(&mut journal)
        {
            tracing::error!(path = %self.path.display(), %error, "the blocks cannot be written anew");
        }
    }

    /// Keeps a file with faults under another name, and writes one with what counts.
    fn set_aside(&self, fault: &str) {
        let mut journal = self.journal();
        let kept = self.keep_aside();
        tracing::error!(
            path = %self.path.display(),
            fault,
            kept_as = kept.as_ref().ok().map(|name| name.display().to_string()),
            "the file of blocks has faults; what can be read of it is in force"
        );
        if let Err(error) = kept {
            tracing::error!(%error, "it cannot be set aside: until it can, no change of a block is kept");
            journal.is_in_the_way = true;
            return;
        }
        if let Err(error) = self.write_anew(&mut journal) {
            tracing::error!(path = %self.path.display(), %error, "the blocks cannot be written anew");
        }
    }

    /// Gives the file another name, that nothing has.
    fn keep_aside(&self) -> io::Result<PathBuf> {
        let secs = self.clock.unix_secs();
        let name = |n: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".bad-{secs}"));
            if n > 0 {
                name.push(format!("-{n}"));
            }
            PathBuf::from(name)
        };
        let free = (0..MAX_SAME_SECOND).map(name).find(|name| fs::symlink_metadata(name).is_err());
        let free = free.ok_or(io::ErrorKind::AlreadyExists)?;
        (self.keep_as)(&self.path, &free)?;
        Ok(free)
    }

    fn write(&self, journal: &mut Journal, line: &Line<'_>) -> io::Result<()> {
        if journal.is_in_the_way && fs::symlink_metadata(&self.path).is_ok() {
            let kept_as = self.keep_aside().map_err(|error| {
                let reason =
                    format!("a file with faults stands in its place and cannot be set aside: {error}");
                io::Error::new(error.kind(), reason)
            })?;
            tracing::info!(kept_as = %kept_as.display(), "the file of blocks with faults is set aside");
            // Whatever comes of this change: it is kept once.
            journal.is_in_the_way = false;
        }
        let is_open = journal.file.as_ref().is_some_and(|file| is_at(file, &self.path));
        if !is_open || journal.lines >= journal.due {
            // What is in force has this change in it.
            return self.write_anew(journal);
        }
        let Some(file) = &mut journal.file else { return Ok(()) };
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let before = file.metadata()?.len();
        let written = file.write_all(&text).and_then(|()| file.sync_data());
        match written {
            Ok(()) => journal.lines += 1,
            // A part of it may be there: the next line must not stand behind it.
            Err(_) if file.set_len(before).is_ok() => {}
            Err(_) => journal.file = None,
        }
        written
    }

    /// Puts a file with all blocks that are in force in the place of the one there is.
    fn write_anew(&self, journal: &mut Journal) -> io::Result<()> {
        journal.file = None;
        let now = self.clock.now();
        let new = self.path.with_extension("jsonl.new");
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let mut writer = BufWriter::new(file);
        let mut lines = 0;
        for Block { network, until, reason, configured } in self.guard.list(now.mono) {
            if configured {
                continue;
            }
            let left = until.map(|until| until.saturating_sub(now.mono));
            let until_unix = left.map(|left| (now.unix + left).as_secs());
            let line = Line { network, until_unix, reason: (&*reason).into(), ended: false };
            serde_json::to_writer(&mut writer, &line)?;
            writer.write_all(b"\n")?;
            lines += 1;
        }
        writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&new, &self.path)?;
        if let Some(folder) = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            File::open(folder)?.sync_all()?;
        }
        let file = OpenOptions::new().append(true).open(&self.path)?;
        *journal = Journal { file: Some(file), lines, due: 2 * lines + SPARE_LINES, is_in_the_way: false };
        Ok(())
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives a file another name beside its own. What can have but one, as a folder, and any file on some file systems, has
/// the other one then.
fn keep_as(path: &Path, other: &Path) -> io::Result<()> {
    fs::hard_link(path, other).or_else(|_| fs::rename(path, other))
}

/// What a file says.
#[derive(Default)]
struct Found {
    /// Until when, and why.
    blocks: HashMap<IpNet, (Option<u64>, String)>,
    lines: usize,
    /// For people.
    faults: Vec<String>,
}

fn read(file: File) -> Found {
    let mut found = Found::default();
    let mut reader = BufReader::new(file);
    let mut bad = Vec::new();
    loop {
        let mut text = Vec::new();
        match reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut text) {
            Ok(0) => break,
            Ok(_) => found.lines += 1,
            Err(error) => {
                found.faults.push(error.to_string());
                break;
            }
        }
        if found.lines > MAX_LINES {
            found.faults.push(format!("there are more than {MAX_LINES} lines"));
            break;
        }
        let is_whole = text.ends_with(b"\n");
        match serde_json::from_slice::<Line<'_>>(&text) {
            Ok(line) if line.ended => {
                found.blocks.remove(&line.network);
            }
            Ok(line) => {
                found.blocks.insert(line.network, (line.until_unix, line.reason.into_owned()));
            }
            Err(_) if !is_whole && (text.len() as u64) < MAX_LINE_BYTES => {
                tracing::warn!(bytes = text.len(), "the last change of blocks was cut off by a crash");
            }
            Err(_) => bad.push(found.lines),
        }
    }
    if let Some(first) = bad.first() {
        found.faults.push(format!("{} lines cannot be read, line {first} is the first", bad.len()));
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::{
        guard::{EventSettings, GuardSettings, SecurityEvents},
        metrics::Metrics,
    };

    struct Kept {
        guard: Arc<Guard>,
        file: BlockFile,
    }

    fn open(folder: &Path) -> Kept {
        open_with(folder, keep_as)
    }

    fn open_with(folder: &Path, keep_as: KeepAs) -> Kept {
        let clock = Clock::start();
        let metrics = Arc::new(Metrics::new().unwrap());
        let security = SecurityEvents::new(clock, metrics.clone(), EventSettings::default());
        let guard = Arc::new(Guard::new(&GuardSettings::default(), metrics, security));
        Kept { guard: guard.clone(), file: BlockFile::open_with(folder, guard, clock, keep_as) }
    }

    impl Kept {
        fn networks(&self) -> Vec<String> {
            let mut all: Vec<_> =
                self.guard.list(Duration::ZERO).iter().map(|it| it.network.to_string()).collect();
            all.sort();
            all
        }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn lines(folder: &Path) -> usize {
        fs::read_to_string(folder.join(BLOCKS_NAME)).unwrap().lines().count()
    }

    fn aside(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("blocks.jsonl.")).collect()
    }

    #[test]
    fn r6_5_blocks_outlive_the_process_with_their_ends_and_reasons() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let hour = Some(Duration::from_secs(3600));
        {
            let kept = open(folder);
            assert!(!folder.join(BLOCKS_NAME).exists(), "nothing to keep");
            kept.file.block(net("203.0.113.0/24"), hour, "\"scans\"\u{e4}").unwrap();
            kept.file.block(net("2001:db8::/32"), None, "").unwrap();
            kept.file.block(net("198.51.100.7/32"), None, "").unwrap();
            kept.file.block(net("198.51.100.8/32"), None, "long").unwrap();
            kept.file.block(net("198.51.100.8/32"), hour, "short").unwrap();
            // The same network, written otherwise.
            assert!(kept.file.unblock(net("::ffff:198.51.100.7/128")).unwrap());
            assert!(!kept.file.unblock(net("198.51.100.7/32")).unwrap());
        }
        assert_eq!(fs::metadata(folder.join(BLOCKS_NAME)).unwrap().permissions().mode() & 0o777, 0o600);
        let kept = open(folder);
        assert_eq!(kept.networks(), ["198.51.100.8/32", "2001:db8::/32", "203.0.113.0/24"]);
        let blocks = kept.guard.list(Duration::ZERO);
        let find = |network: &str| blocks.iter().find(|it| it.network == net(network)).unwrap();
        assert_eq!((&*find("203.0.113.0/24").reason, find("2001:db8::/32").until), ("\"scans\"\u{e4}", None));
        let left = find("198.51.100.8/32").until.unwrap();
        assert!((3590..=3601).contains(&left.as_secs()), "{left:?}");
        assert!(kept.guard.check("203.0.113.7".parse().unwrap(), Duration::ZERO).is_err());
        assert_eq!((lines(folder), aside(folder)), (3, vec![]), "written anew without what counts no more");
    }

    #[test]
    fn r6_5_what_has_expired_meanwhile_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let now = Clock::start().unix_secs();
        let line = |network: &str, until: u64| {
            format!("{{\"network\":\"{network}\",\"until_unix\":{until},\"reason\":\"\"}}\n")
        };
        let text = line("192.0.2.1/32", now - 1)
            + &line("192.0.2.2/32", now)
            + &line("192.0.2.3/32", now + 60)
            // By a clock that was wrong.
            + &line("192.0.2.4/32", u64::MAX);
        fs::write(folder.path().join(BLOCKS_NAME), text).unwrap();
        let kept = open(folder.path());
        assert_eq!(kept.networks(), ["192.0.2.3/32", "192.0.2.4/32"]);
        let longest = kept.guard.list(Duration::ZERO).iter().filter_map(|it| it.until).max().unwrap();
        assert!(longest.as_secs() <= MAX_BLOCK_SECS + 1, "{longest:?}");
        assert_eq!(lines(folder.path()), 2);
    }

    #[test]
    fn r6_5_a_change_that_a_crash_cut_off_is_dropped_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let kept = open(folder);
        kept.file.block(net("192.0.2.1/32"), None, "a").unwrap();
        kept.file.block(net("192.0.2.2/32"), None, "b").unwrap();
        let whole = fs::read(folder.join(BLOCKS_NAME)).unwrap();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for cut in first + 1..whole.len() - 1 {
            fs::write(folder.join(BLOCKS_NAME), &whole[..cut]).unwrap();
            let kept = open(folder);
            assert_eq!(kept.networks(), ["192.0.2.1/32"], "{cut}");
            kept.file.block(net("192.0.2.3/32"), None, "").unwrap();
            assert_eq!(open(folder).networks(), ["192.0.2.1/32", "192.0.2.3/32"], "{cut}");
        }
        // All but the newline is all of it.
        fs::write(folder.join(BLOCKS_NAME), &whole[..whole.len() - 1]).unwrap();
        assert_eq!(open(folder).networks().len(), 2);
        open(folder).file.block(net("192.0.2.3/32"), None, "").unwrap();
        assert_eq!((open(folder).networks().len(), aside(folder)), (3, vec![]));
    }

    #[test]
    fn r6_5_a_bad_file_is_set_aside_and_stops_nothing() {
        let good = "{\"network\":\"192.0.2.1/32\",\"until_unix\":null,\"reason\":\"a\"}\n";
        for (bad, left) in [
            (format!("{good}garbage\n{}", good.replace(".1/", ".2/")), 2),
            (format!("{good}{{\"network\":\"nonsense\"}}\n"), 1),
            (format!("{good}\0\0\0\0\n"), 1),
            (good.to_owned() + &"x".repeat(20_000), 1),
            ("[]\n".to_owned(), 0),
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(BLOCKS_NAME), &bad).unwrap();
            let kept = open(folder.path());
            assert_eq!(kept.networks().len(), left, "{bad}");
            let aside = aside(folder.path());
            assert_eq!(aside.len(), 1, "{aside:?}");
            assert_eq!(fs::read_to_string(folder.path().join(&aside[0])).unwrap(), bad);
            kept.file.block(net("192.0.2.9/32"), None, "").unwrap();
            assert_eq!(open(folder.path()).networks().len(), left + 1);
        }
        // What is no file at all.
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(BLOCKS_NAME)).unwrap();
        let kept = open(folder.path());
        kept.file.block(net("192.0.2.9/32"), None, "").unwrap();
        assert_eq!((open(folder.path()).networks().len(), aside(folder.path()).len()), (1, 1));
    }

    #[test]
    fn r6_5_a_bad_file_that_cannot_be_set_aside_is_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let good = "{\"network\":\"192.0.2.1/32\",\"until_unix\":null,\"reason\":\"a\"}\n";
        let bad = format!("{good}garbage\n");
        fs::write(folder.join(BLOCKS_NAME), &bad).unwrap();
        // Nothing can have another name while there is a file of this name.
        fs::write(folder.join("stuck"), "").unwrap();
        let unless_stuck: KeepAs = |from, to| match from.with_file_name("stuck").exists() {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => keep_as(from, to),
        };
        let kept = open_with(folder, unless_stuck);
        let text = || fs::read_to_string(folder.join(BLOCKS_NAME)).unwrap();
        // In force, and said not to be kept; the file is what it was.
        for _ in 0..2 {
            let error = kept.file.block(net("192.0.2.9/32"), None, "").unwrap_err();
            assert!(matches!(&error, NotBlocked::NotKept(why) if why.to_string().contains("set aside")));
            assert_eq!((text(), aside(folder)), (bad.clone(), vec![]));
        }
        kept.file.unblock(net("192.0.2.1/32")).unwrap_err();
        assert_eq!((kept.networks(), text()), (vec!["192.0.2.9/32".to_owned()], bad.clone()));
        // It is set aside once, even while no other can be written in its place.
        fs::remove_file(folder.join("stuck")).unwrap();
        fs::create_dir(folder.join("blocks.jsonl.new")).unwrap();
        for _ in 0..3 {
            kept.file.block(net("192.0.2.9/32"), None, "").unwrap_err();
        }
        assert_eq!((text(), aside(folder).len()), (bad.clone(), 2));
        fs::remove_dir(folder.join("blocks.jsonl.new")).unwrap();
        // As soon as one can be, all that is in force is kept.
        kept.file.block(net("192.0.2.8/32"), None, "").unwrap();
        let names = aside(folder);
        assert_eq!(names.len(), 1, "{names:?}");
        assert_eq!(fs::read_to_string(folder.join(&names[0])).unwrap(), bad);
        assert_eq!(open(folder).networks(), ["192.0.2.8/32", "192.0.2.9/32"]);
        assert_eq!(aside(folder).len(), 1);
        // Of two within a second, neither takes the other's place.
        for _ in 0..3 {
            fs::write(folder.join(BLOCKS_NAME), &bad).unwrap();
            open(folder);
        }
        assert_eq!(aside(folder).len(), 4);
    }

    #[test]
    fn r6_5_a_bad_file_stays_until_a_whole_one_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let bad = "{\"network\":\"192.0.2.1/32\",\"until_unix\":null,\"reason\":\"a\"}\ngarbage\n";
        fs::write(folder.join(BLOCKS_NAME), bad).unwrap();
        // As on a disk that is full.
        fs::create_dir(folder.join("blocks.jsonl.new")).unwrap();
        for _ in 0..2 {
            assert_eq!(open(folder).networks(), ["192.0.2.1/32"]);
            assert_eq!(fs::read_to_string(folder.join(BLOCKS_NAME)).unwrap(), bad);
        }
        fs::remove_dir(folder.join("blocks.jsonl.new")).unwrap();
        let kept = open(folder);
        assert_eq!((kept.networks(), lines(folder)), (vec!["192.0.2.1/32".to_owned()], 1));
        for name in aside(folder) {
            assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), bad);
        }
    }

    #[test]
    fn r6_5_the_file_is_bounded_and_comes_back_when_it_was_removed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let kept = open(folder);
        kept.file.block(net("192.0.2.1/32"), None, "").unwrap();
        for _ in 0..SPARE_LINES {
            kept.file.block(net("192.0.2.2/32"), Some(Duration::from_secs(60)), "").unwrap();
            kept.file.unblock(net("192.0.2.2/32")).unwrap();
        }
        assert!(lines(folder) <= SPARE_LINES + 2, "{}", lines(folder));
        fs::remove_file(folder.join(BLOCKS_NAME)).unwrap();
        kept.file.block(net("192.0.2.3/32"), None, "").unwrap();
        assert_eq!(open(folder).networks(), ["192.0.2.1/32", "192.0.2.3/32"]);
        // What cannot be kept is in force, and said.
        fs::remove_file(folder.join(BLOCKS_NAME)).unwrap();
        fs::create_dir(folder.join(BLOCKS_NAME)).unwrap();
        let error = kept.file.block(net("192.0.2.4/32"), None, "").unwrap_err();
        assert!(matches!(error, NotBlocked::NotKept(_)), "{error}");
        assert_eq!(kept.networks().len(), 3);
        assert!(kept.file.unblock(net("192.0.2.4/32")).is_err());
        assert_eq!(kept.networks().len(), 2);
    }
}
