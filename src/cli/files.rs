//! Files that must be whole, and files that must be secret.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
    time::Duration,
};

use ed25519_dalek::{SigningKey, pkcs8::DecodePrivateKey as _};
use rustix::{
    fs::{FlockOperation, OFlags, flock},
    io::Errno,
};
use zeroize::Zeroizing;

use super::{Exit, Failure, OrFail as _, out};

/// Only the owner reads and writes.
pub const SECRET: u32 = 0o600;
/// Everybody reads.
pub const PUBLIC: u32 = 0o644;

/// No key file and no descriptor comes near this.
const MAX_INPUT_BYTES: u64 = 64 * 1024;

/// How long others may hold a lock that takes each of them milliseconds, many of them on a slow machine: a minute.
const LOCK_TRIES: u32 = 1200;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Makes a file that must not exist yet, with everything in it, on disk.
///
/// # Errors
/// Of kind `AlreadyExists` when something is there; it is left as it is.
pub fn create_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    made_new(path, bytes, mode).map(|_| ())
}

/// The same, and the file itself.
fn made_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written.map(|()| file)
}

/// Puts a file in the place of an older one, if there is one. A reader sees the old or the new, never a part.
///
/// # Errors
/// When it cannot be written; the old one then still stands.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = beside(path)?;
    create_new(&temporary, bytes, mode)?;
    finish(fs::rename(&temporary, path), &temporary, path)
}

/// As [`replace`], for a file that another user reads: root gives it to the owner of the one that was there, or of its
/// folder. Answers with that owner, where it cannot be given to them.
///
/// # Errors
/// As [`replace`].
pub fn replace_for_owner(path: &Path, bytes: &[u8], mode: u32) -> io::Result<Option<u32>> {
    let wanted = fs::metadata(path).or_else(|_| fs::metadata(folder_of(path)))?;
    let temporary = beside(path)?;
    // What has been made is given away, and not whatever bears its name by now.
    let made = made_new(&temporary, bytes, mode)?;
    let given = match made.metadata() {
        Ok(ours) if ours.uid() == wanted.uid() => Ok(()),
        _ => fchown(&made, Some(wanted.uid()), Some(wanted.gid())),
    };
    finish(fs::rename(&temporary, path), &temporary, path)?;
    Ok(given.is_err().then(|| wanted.uid()))
}

/// A file that nobody else changes who asks for the same, until this is dropped.
#[derive(Debug)]
pub struct Locked(#[expect(dead_code, reason = "its lock is what counts")] File);

/// Waits until nobody else changes this file: for those who read it, change what they read, and put it in its place. What is
/// locked is `NAME.lock` beside it, which stays: the file itself is another one after each change. Root makes that, and
/// gives it to nobody: whoever else comes has only to read it. No link is followed to it.
///
/// # Errors
/// Of kind `TimedOut` when somebody holds it for too long; whatever the system says when there can be no such file.
pub fn lock(path: &Path) -> io::Result<Locked> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".lock");
    let path = path.with_file_name(name);
    // Made anew it is no link, and where it is there already nothing is made.
    let made = OpenOptions::new().write(true).create_new(true).mode(PUBLIC).open(&path);
    if let Err(error) = made
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&path)?;
    for _ in 0..LOCK_TRIES {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Locked(file)),
            Err(Errno::WOULDBLOCK | Errno::INTR) => pause(),
            // As on some network file systems: no reason to do without.
            Err(Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS) => return Ok(Locked(file)),
            Err(error) => return Err(error.into()),
        }
    }
    let reason = format!("another process holds {}", path.display());
    Err(io::Error::new(io::ErrorKind::TimedOut, reason))
}

#[allow(
    clippy::disallowed_methods,
    reason = "a command with nothing else to do; the system has no lock with a time limit"
)]
fn pause() {
    std::thread::sleep(LOCK_PAUSE);
}

/// Where a file lies.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a file with everything in it, unless another process is faster: then that one's stays.
///
/// # Errors
/// When it cannot be written.
pub fn create_unless_there(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = beside(path)?;
    create_new(&temporary, bytes, mode)?;
    let linked = match fs::hard_link(&temporary, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    };
    fs::remove_file(&temporary)?;
    finish(linked, &temporary, path)
}

fn finish(done: io::Result<()>, temporary: &Path, path: &Path) -> io::Result<()> {
    if let Err(error) = done {
        let _ = fs::remove_file(temporary);
        return Err(error);
    }
    File::open(folder_of(path))?.sync_all()
}

/// A name in the same folder that no other process chooses.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let mut unique = [0; 8];
    getrandom::fill(&mut unique).map_err(io::Error::other)?;
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}", hex::encode(unique)));
    Ok(path.with_file_name(name))
}

/// Makes a folder, and those above it, that only the owner enters.
///
/// # Errors
/// When it cannot be made, or is no folder.
pub fn private_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Reads a small file.
///
/// # Errors
/// [`Exit::NoInput`] when it cannot be read, [`Exit::Data`] when it is too large to be what is meant.
pub fn read_small(path: &Path, what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let shown = path.display();
    let file = File::open(path).or_fail(Exit::NoInput, format!("cannot open the {what} {shown}"))?;
    read_whole(file, path, what)
}

/// As [`read_small`]; `None` when there is no such file. One that may not be opened is there.
///
/// # Errors
/// As [`read_small`].
pub fn read_small_if_there(path: &Path, what: &str) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.or_fail(Exit::NoInput, format!("cannot open the {what} {}", path.display()))?,
    };
    read_whole(file, path, what).map(Some)
}

fn read_whole(file: File, path: &Path, what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let shown = path.display();
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_INPUT_BYTES + 1)
        .read_to_end(&mut bytes)
        .or_fail(Exit::NoInput, format!("cannot read the {what} {shown}"))?;
    if bytes.len() as u64 > MAX_INPUT_BYTES {
        return Err(Failure::new(Exit::Data, format!("{shown} is larger than any {what}")));
    }
    Ok(bytes)
}

/// Reads an Ed25519 key as `keygen` writes it: PKCS#8 in PEM, with or without the public half.
///
/// # Errors
/// [`Exit::NoInput`] when the file cannot be read, [`Exit::Data`] when it holds something else.
pub fn read_signing_key(path: &Path) -> Result<SigningKey, Failure> {
    let bytes = read_small(path, "key file")?;
    let shown = path.display();
    let hint =
        format!("{shown} is no Ed25519 private key (PKCS#8 PEM); make one with: zrc-relay keygen --out FILE");
    let text = std::str::from_utf8(&bytes).or_fail(Exit::Data, &hint)?;
    let key = SigningKey::from_pkcs8_pem(text).or_fail(Exit::Data, &hint)?;
    let others = fs::metadata(path).map(|metadata| metadata.permissions().mode() & 0o077).unwrap_or(0);
    if others != 0 {
        out::say(format_args!("warning: others on this machine can use {shown}; chmod 600 {shown}"));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn replacing_leaves_one_whole_file_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        replace(&path, b"one", PUBLIC).unwrap();
        replace(&path, b"two", SECRET).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, SECRET);
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn what_root_writes_is_the_owners() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        // Only root can give a folder away.
        let other = chown(folder.path(), Some(12_345), Some(12_345)).is_ok();
        assert_eq!(replace_for_owner(&path, b"one", SECRET).unwrap(), None);
        let made = fs::metadata(&path).unwrap();
        assert_eq!(made.uid(), fs::metadata(folder.path()).unwrap().uid());
        assert!(!other || made.uid() == 12_345 && made.gid() == 12_345);
        assert_eq!(made.permissions().mode() & 0o777, SECRET);
        if other {
            chown(&path, Some(54_321), None).unwrap();
            assert_eq!(replace_for_owner(&path, b"two", SECRET).unwrap(), None);
            assert_eq!(fs::metadata(&path).unwrap().uid(), 54_321, "that of the file, where there is one");
        }
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn a_lock_is_no_way_to_somebody_elses_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, others) = (folder.path().join("a"), folder.path().join("others"));
        for target in [Path::new("others"), Path::new("none"), Path::new("/etc/passwd")] {
            fs::write(&others, "theirs").unwrap();
            std::os::unix::fs::symlink(target, folder.path().join("a.lock")).unwrap();
            lock(&path).unwrap_err();
            assert_eq!(names(folder.path()), ["a.lock", "others"]);
            fs::remove_file(folder.path().join("a.lock")).unwrap();
        }
    }

    #[test]
    fn one_at_a_time_has_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let (sender, had) = std::sync::mpsc::channel();
        let (comes, come) = std::sync::mpsc::channel();
        let held = lock(&path).unwrap();
        let other = std::thread::spawn({
            let path = path.clone();
            move || {
                comes.send(()).unwrap();
                let locked = lock(&path).unwrap();
                sender.send(()).unwrap();
                drop(locked);
            }
        });
        come.recv().unwrap();
        assert!(had.recv_timeout(3 * LOCK_PAUSE).is_err(), "two have it");
        // Another file takes the place of the one that is locked, and that changes nothing.
        replace(&path, b"new", SECRET).unwrap();
        assert!(had.recv_timeout(3 * LOCK_PAUSE).is_err(), "two have it");
        drop(held);
        had.recv().unwrap();
        other.join().unwrap();
        assert_eq!(names(folder.path()), ["a", "a.lock"]);
    }

    #[test]
    fn the_first_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        create_unless_there(&path, b"one", SECRET).unwrap();
        create_unless_there(&path, b"two", SECRET).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn nothing_is_left_of_a_failed_replacement() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::create_dir(&path).unwrap();
        replace(&path, b"one", PUBLIC).unwrap_err();
        assert_eq!(names(folder.path()), ["a"]);
    }
}
