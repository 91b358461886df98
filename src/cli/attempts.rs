//! What is remembered of attempts at a certificate, so that a relay that is started again and again asks its authority no
//! more often than one that runs: authorities allow a handful of failures in an hour.
//!
//! An attempt counts as failed from the authority's first answer until it has succeeded, so one in which the relay crashes
//! counts too. What fails before, as without a DNS or a route, is not kept: it costs nobody anything, and a relay that is
//! started again when that has been mended asks at once. Whoever asks for something else begins anew.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;

use super::{Exit, Failure, OrFail as _, files, renewal::retry};
use crate::config::Acme;

/// The file's name in the state directory; it is there while the last attempt has not succeeded.
pub(super) const FILE_NAME: &str = "acme-attempts.json";

/// The attempts at one certificate.
#[derive(Debug)]
pub(super) struct Attempts {
    path: PathBuf,
    kept: Kept,
    /// One after the other, since the authority was last asked: those in which it did not answer at all.
    unanswered: u32,
    /// Whether the authority has been asked, and nobody knows yet what has come of it.
    is_asked: bool,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// What was asked for, and of whom: SHA-256.
    asked: String,
    /// One after the other.
    failures: u32,
    /// When the last one failed, or began.
    last_unix: u64,
}

impl Attempts {
    /// Those that were made for the same. A file that is damaged, or says what cannot be, counts as none, and the log says
    /// so.
    pub(super) fn open(state_folder: &Path, wanted: &Acme) -> Self {
        let path = state_folder.join(FILE_NAME);
        let none = Kept { asked: fingerprint(wanted), failures: 0, last_unix: 0 };
        let kept = match read(&path) {
            Ok(Some(kept)) if kept.asked == none.asked => kept,
            Ok(_) => none,
            Err(Failure { error, .. }) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "nobody knows of earlier attempts at a certificate");
                none
            }
        };
        Self { path, kept, unanswered: 0, is_asked: false }
    }

    /// How long the authority is not to be asked again yet; `random` of 0 to 255 shortens it by up to a half. Never longer
    /// than the longest wait while it runs, whatever clocks say.
    pub(super) fn left(&self, now_unix_secs: u64, random: u8) -> Option<Duration> {
        let before = self.kept.failures.checked_sub(1)?;
        let gone = Duration::from_secs(now_unix_secs.saturating_sub(self.kept.last_unix));
        retry(before, random).checked_sub(gone).filter(|left| !left.is_zero())
    }

    /// The file, for people.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How many have failed that the authority was asked in, one after the other.
    pub(super) fn failures(&self) -> u32 {
        self.kept.failures
    }

    /// The authority answers, and is about to be asked for what it counts.
    pub(super) async fn begin(&mut self, now_unix_secs: u64) {
        self.is_asked = true;
        self.unanswered = 0;
        self.kept.failures = self.kept.failures.saturating_add(1);
        self.kept.last_unix = now_unix_secs;
        self.keep().await;
    }

    /// It has come to nothing. Answers with how many had failed before, whyever.
    pub(super) async fn failed(&mut self, now_unix_secs: u64) -> u32 {
        if std::mem::take(&mut self.is_asked) {
            self.kept.last_unix = now_unix_secs;
            self.keep().await;
        } else {
            self.unanswered = self.unanswered.saturating_add(1);
        }
        self.kept.failures.saturating_add(self.unanswered).saturating_sub(1)
    }

    /// There is a certificate.
    pub(super) async fn succeeded(&mut self) {
        self.is_asked = false;
        self.unanswered = 0;
        self.kept.failures = 0;
        self.on_disk(|path, _| match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "cannot forget failed attempts at a certificate");
            }
            _ => {}
        })
        .await;
    }

    /// A state directory that cannot be written is no reason to do without a certificate.
    async fn keep(&self) {
        self.on_disk(|path, kept| {
            let json = serde_json::to_vec(kept).map_err(io::Error::from);
            if let Err(error) = json.and_then(|json| files::replace(path, &json, files::SECRET)) {
                tracing::warn!(path = %path.display(), %error, "a restart will not know of this attempt at a certificate");
            }
        })
        .await;
    }

    /// Does that where it may take a while: the caller's thread answers health checks, too. Dropped, it is done all the
    /// same.
    async fn on_disk(&self, done: impl FnOnce(&Path, &Kept) + Send + 'static) {
        let (path, kept) = (self.path.clone(), self.kept.clone());
        // It does not panic; and when the relay ends, nobody needs to know what has come of it.
        let _ = spawn_blocking(move || done(&path, &kept)).await;
    }
}

fn read(path: &Path) -> Result<Option<Kept>, Failure> {
    let Some(bytes) = files::read_small_if_there(path, "file of attempts")? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).or_fail(Exit::Data, format!("{} is damaged", path.display()))
}

/// Of whom what is asked, and how it is shown that the names are ours: with another of these it may well succeed.
fn fingerprint(wanted: &Acme) -> String {
    let Acme { domains, directory, contact, roots, challenge } = wanted;
    let roots: Vec<String> = roots.iter().map(|root| hex::encode(Sha256::digest(root))).collect();
    let asked = json!([domains, directory, contact, roots, format!("{challenge:?}")]);
    hex::encode(Sha256::digest(asked.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Challenge;

    const NOW: u64 = 1_795_178_980;

    fn wanted() -> Acme {
        Acme { domains: vec!["a.example".into(), "b.example".into()], ..Acme::default() }
    }

    #[tokio::test]
    async fn failures_are_remembered_over_a_restart_until_one_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Attempts::open(folder.path(), &wanted());
        let file = folder.path().join(FILE_NAME);
        let mut attempts = open();
        assert_eq!((attempts.failures(), attempts.left(NOW, 255)), (0, None));
        // What the authority was not asked for counts while it runs, and is not kept: not even when it is asked later.
        assert_eq!(
            [attempts.failed(NOW).await, attempts.failed(NOW).await, attempts.failed(NOW).await],
            [0, 1, 2]
        );
        assert!(!file.exists() && attempts.failures() == 0);
        attempts.begin(NOW).await;
        assert_eq!((open().failures(), open().left(NOW, 255)), (1, Some(Duration::from_secs(30))));
        // It has answered: what was before is over.
        assert_eq!(attempts.failed(NOW).await, 0);
        // Those in which it does not answer come on top, and move nothing on disk.
        assert_eq!([attempts.failed(NOW + 9).await, attempts.failed(NOW + 9).await], [1, 2]);
        assert_eq!((open().failures(), open().left(NOW, 255)), (1, Some(Duration::from_secs(30))));
        attempts.succeeded().await;
        assert_eq!(attempts.failed(NOW).await, 0);
        assert!(!file.exists());

        // One in which it crashes counts as one that fails.
        let mut attempts = open();
        attempts.begin(NOW).await;
        assert_eq!((open().failures(), open().left(NOW, 255)), (1, Some(Duration::from_secs(30))));
        assert_eq!(attempts.failed(NOW + 20).await, 0);
        assert_eq!(open().left(NOW + 20, 255), Some(Duration::from_secs(30)));
        assert_eq!(open().left(NOW + 20, 0), Some(Duration::from_secs(15)));
        assert_eq!(open().left(NOW + 49, 255), Some(Duration::from_secs(1)));
        assert_eq!(open().left(NOW + 50, 255), None);
        // They add up, over restarts too.
        let mut attempts = open();
        attempts.begin(NOW + 100).await;
        assert_eq!(attempts.failed(NOW + 100).await, 1);
        assert_eq!(open().left(NOW + 100, 255), Some(Duration::from_secs(120)));
        let mut attempts = open();
        attempts.begin(NOW + 300).await;
        attempts.succeeded().await;
        assert!(!file.exists() && attempts.left(NOW + 300, 255).is_none());
        assert_eq!(open().failures(), 0);
        // Once more is no fault.
        attempts.succeeded().await;
    }

    #[tokio::test]
    async fn whoever_asks_for_something_else_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        Attempts::open(folder.path(), &wanted()).begin(NOW).await;
        let changes: [fn(&mut Acme); 6] = [
            |acme| acme.domains.truncate(1),
            |acme| acme.domains.push("c.example".into()),
            |acme| acme.directory = "https://other.example/dir".into(),
            |acme| acme.contact = Some("mailto:a@b".into()),
            |acme| acme.roots.push(vec![1].into()),
            |acme| acme.challenge = Challenge::Http { listen: None },
        ];
        for change in changes {
            let mut other = wanted();
            change(&mut other);
            assert_eq!(Attempts::open(folder.path(), &other).failures(), 0, "{other:?}");
        }
        assert_eq!(Attempts::open(folder.path(), &wanted()).failures(), 1);
    }

    #[tokio::test]
    async fn a_file_that_says_what_cannot_be_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE_NAME);
        let asked = fingerprint(&wanted());
        let left = |now| Attempts::open(folder.path(), &wanted()).left(now, 255);
        let kept = |failures: u64, last_unix: u64| {
            json!({ "asked": asked, "failures": failures, "last_unix": last_unix }).to_string()
        };
        for text in [
            String::new(),
            "null".into(),
            "{".into(),
            "[1]".into(),
            "x".repeat(1 << 20),
            kept(u64::MAX, NOW),
            kept(0, NOW),
            json!({ "asked": asked, "failures": 1 }).to_string(),
        ] {
            fs::write(&file, &text).unwrap();
            assert_eq!(left(NOW), None, "{}", text.chars().take(80).collect::<String>());
        }
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert_eq!(left(NOW), None);
        // Not even what cannot be kept is a reason to stop.
        Attempts::open(folder.path(), &wanted()).begin(NOW).await;
        fs::remove_dir(&file).unwrap();
        // A clock that was set back, and more failures than anybody counts: six hours and no more.
        let most = Duration::from_secs(6 * 3600);
        for (failures, last_unix) in [(u32::MAX.into(), NOW), (40, u64::MAX), (40, NOW + 1_000_000)] {
            fs::write(&file, kept(failures, last_unix)).unwrap();
            assert_eq!(left(NOW), Some(most), "{failures} {last_unix}");
            assert_eq!(left(0), Some(most));
        }
    }

    async fn is_pending(future: std::pin::Pin<&mut impl Future<Output = ()>>) -> bool {
        tokio::select! {
            biased;
            () = future => false,
            () = async {} => true,
        }
    }

    #[test]
    fn a_slow_disk_holds_up_nobody_else() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.max_blocking_threads(1).build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE_NAME);
        let mut attempts = Attempts::open(folder.path(), &wanted());
        // As if every access to the disk waited for this one.
        let hold_up = || {
            let (sender, is_over) = std::sync::mpsc::channel::<()>();
            runtime.spawn_blocking(move || is_over.recv());
            sender
        };
        runtime.block_on(async {
            let slow = hold_up();
            {
                let mut begun = std::pin::pin!(attempts.begin(NOW));
                assert!(is_pending(begun.as_mut()).await && !file.exists());
                drop(slow);
                begun.await;
            }
            assert!(file.exists());
            let slow = hold_up();
            let mut over = std::pin::pin!(attempts.succeeded());
            assert!(is_pending(over.as_mut()).await && file.exists());
            drop(slow);
            over.await;
            assert!(!file.exists());
        });
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_taken_for_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        assert_eq!(read(&path).ok(), Some(None));
        // Nobody can open it, not even root.
        std::os::unix::fs::symlink(&path, &path).unwrap();
        let Failure { error, .. } = read(&path).err().unwrap();
        assert!(format!("{error:#}").contains("symbolic links"), "{error:#}");
    }
}
