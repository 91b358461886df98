//! Reads files that may be anything: large, endless, a folder, a pipe that nobody writes to.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
};
use zeroize::Zeroizing;

/// How long a pipe from another program may say nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// All that is in the file.
///
/// # Errors
/// Whatever the system says; [`io::ErrorKind::FileTooLarge`] when there are more than `most_bytes`, and
/// [`io::ErrorKind::TimedOut`] when there is nothing to be read for too long.
pub(super) fn read(path: &Path, most_bytes: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut file = open(path)?;
    let mut bytes = Zeroizing::new(Vec::new());
    let mut part = Zeroizing::new([0; 64 * 1024]);
    loop {
        wait(&file)?;
        match file.read(&mut part[..]) {
            Ok(0) => return Ok(bytes),
            Ok(len) => bytes.extend_from_slice(part.get(..len).unwrap_or_default()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        if bytes.len() as u64 > most_bytes {
            let reason = format!("it has more than {most_bytes} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
        }
    }
}

/// Opening a pipe would wait for somebody to write to it.
fn open(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Waits until there is something to be read, or the end. Of plain files there always is.
fn wait(file: &File) -> io::Result<()> {
    let patience = Timespec { tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&patience)) {
            Ok(0) => {
                let reason = format!("nothing came out of it within {} s", PATIENCE.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
            }
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The same as a text.
///
/// # Errors
/// Also when it is none: says where.
pub(super) fn read_text(path: &Path, most_bytes: u64) -> io::Result<Zeroizing<String>> {
    let bytes = read(path, most_bytes)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(error) => {
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            let reason = format!("it is no text: what stands in line {line} is not UTF-8");
            Err(io::Error::new(io::ErrorKind::InvalidData, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use super::*;

    fn pipe(folder: &tempfile::TempDir) -> std::path::PathBuf {
        let path = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        path
    }

    #[test]
    fn r8_what_is_endless_large_or_no_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let kind = |path: &Path| read_text(path, 100).unwrap_err().kind();
        assert_eq!(kind(Path::new("/dev/zero")), io::ErrorKind::FileTooLarge);
        assert_eq!(kind(folder.path()), io::ErrorKind::IsADirectory);
        assert_eq!(kind(&folder.path().join("missing")), io::ErrorKind::NotFound);
        let file = folder.path().join("file");
        for (len, is_read) in [(0, true), (100, true), (101, false)] {
            fs::write(&file, "x".repeat(len)).unwrap();
            assert_eq!(read(&file, 100).is_ok_and(|bytes| bytes.len() == len), is_read, "{len}");
        }
        fs::write(&file, b"a\nb\n\xff\n").unwrap();
        assert!(read_text(&file, 100).unwrap_err().to_string().contains("line 3"));
    }

    #[test]
    fn r8_a_pipe_is_read_to_its_end_and_one_that_nobody_writes_to_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = pipe(&folder);
        let writer = path.clone();
        let writing = thread::spawn(move || fs::write(writer, "x".repeat(200_000)));
        assert_eq!(read(&path, 1 << 20).unwrap().len(), 200_000);
        writing.join().unwrap().unwrap();
        assert_eq!(read(&path, 1 << 20).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
