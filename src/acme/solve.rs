//! How challenges are answered: over HTTP (HTTP-01), or in the DNS by a command of the operator's (DNS-01).

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use instant_acme::KeyAuthorization;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
    time::{sleep, timeout},
};

use super::AcmeError;

/// For one run of the hook, which may wait until its record is seen.
const HOOK_TIMEOUT: Duration = Duration::from_secs(300);
/// For what it said before it ended, which is there already.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What is repeated of what a failed hook said, in bytes.
const SAID_BYTES: usize = 300;

/// Answers that are up now, by their tokens. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Answers(Arc<Mutex<HashMap<String, String>>>);

impl Answers {
    /// What to answer whoever asks for this token.
    pub fn get(&self, token: &str) -> Option<String> {
        self.lock().get(token).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A command that writes into the DNS: `HOOK present NAME RECORD VALUE` and `HOOK cleanup NAME RECORD VALUE`, NAME being
/// what the certificate is for, RECORD the name of the TXT record, `_acme-challenge.` and the name, and VALUE its text.
#[derive(Debug, Clone)]
pub struct Hook {
    /// The program.
    pub command: PathBuf,
    /// How long to wait after the last record until the authority is told to look.
    pub wait: Duration,
}

/// How a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It cannot be run.
    #[error("it cannot be run: {0}")]
    Run(#[from] io::Error),
    /// It did not end.
    #[error("it did not end within {} s", HOOK_TIMEOUT.as_secs())]
    Timeout,
    /// It ended with another status than 0.
    #[error("it ended with {status}: {said}")]
    Status {
        /// As the system words it.
        status: String,
        /// The end of what it said on stderr.
        said: String,
    },
}

/// How challenges are answered.
#[derive(Debug, Clone)]
pub enum Solver {
    /// By whoever serves HTTP here.
    Http(Answers),
    /// In the DNS.
    Dns(Hook),
}

/// What was put up for one challenge.
pub(super) struct Answer {
    name: String,
    token: String,
    value: String,
}

impl Solver {
    /// As the authority calls it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Http(_) => "http-01",
            Self::Dns(_) => "dns-01",
        }
    }

    /// Nothing of an attempt that was dropped halfway is answered any more.
    pub(super) fn begin(&self) {
        if let Self::Http(answers) = self {
            answers.lock().clear();
        }
    }

    /// Adds to `answers` what is to be withdrawn, before it is put up: a hook that fails may have done a part.
    pub(super) async fn put_up(
        &self,
        name: &str,
        token: &str,
        authorization: &KeyAuthorization,
        answers: &mut Vec<Answer>,
    ) -> Result<(), AcmeError> {
        let value = match self {
            Self::Http(_) => authorization.as_str().to_owned(),
            Self::Dns(_) => authorization.dns_value(),
        };
        answers.push(Answer { name: name.to_owned(), token: token.to_owned(), value: value.clone() });
        match self {
            Self::Http(up) => {
                up.lock().insert(token.to_owned(), value);
                Ok(())
            }
            Self::Dns(hook) => {
                let done = hook.run("present", name, &value).await;
                done.map_err(|source| AcmeError::Hook { name: name.to_owned(), source })
            }
        }
    }

    /// For all that is not the authority's part, at most.
    pub fn most_time(&self, names: usize) -> Duration {
        match self {
            Self::Http(_) => Duration::ZERO,
            Self::Dns(hook) => {
                let runs = u32::try_from(2 * names).unwrap_or(u32::MAX);
                hook.wait.saturating_add(HOOK_TIMEOUT.saturating_mul(runs))
            }
        }
    }

    /// Waits until everybody can see what was put up.
    pub(super) async fn settle(&self) {
        if let Self::Dns(hook) = self {
            sleep(hook.wait).await;
        }
    }

    pub(super) async fn withdraw(&self, answer: Answer) {
        match self {
            Self::Http(answers) => {
                answers.lock().remove(&answer.token);
            }
            Self::Dns(hook) => {
                if let Err(error) = hook.run("cleanup", &answer.name, &answer.value).await {
                    tracing::warn!(name = answer.name, %error, "the DNS hook did not clean up");
                }
            }
        }
    }
}

impl Hook {
    async fn run(&self, what: &str, name: &str, value: &str) -> Result<(), HookError> {
        self.run_within(HOOK_TIMEOUT, what, name, value).await
    }

    /// Whatever it has started goes with it when it takes longer, or when this is dropped.
    async fn run_within(
        &self,
        limit: Duration,
        what: &str,
        name: &str,
        value: &str,
    ) -> Result<(), HookError> {
        // A wildcard is shown where its domain is.
        let domain = name.strip_prefix("*.").unwrap_or(name);
        let mut child = Command::new(&self.command)
            .args([what, name, &format!("_acme-challenge.{domain}"), value])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let mut group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        let mut said = Vec::new();
        let stderr = child.stderr.take();
        let ended = async {
            let read = async {
                if let Some(stderr) = stderr {
                    keep_end(stderr, &mut said).await;
                }
            };
            tokio::pin!(read);
            tokio::select! {
                status = child.wait() => {
                    // What it has left running may hold the other end open for ever.
                    let _ = timeout(LAST_WORDS, read).await;
                    status
                }
                () = &mut read => child.wait().await,
            }
        };
        let status = timeout(limit, ended).await.map_err(|_| HookError::Timeout)??;
        group.0 = None;
        if status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        Err(HookError::Status { status: status.to_string(), said })
    }
}

/// A hook and what it has started, killed when dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Reads to the end and keeps the last [`SAID_BYTES`]: a hook may say as much as it likes.
async fn keep_end(mut from: impl AsyncRead + Unpin, end: &mut Vec<u8>) {
    let mut piece = [0; 1024];
    while let Ok(len @ 1..) = from.read(&mut piece).await {
        end.extend(piece.iter().take(len));
        end.drain(..end.len().saturating_sub(SAID_BYTES));
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn hook(folder: &std::path::Path, script: &str) -> Hook {
        let (command, text) = (folder.join("hook"), folder.join("text"));
        fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
        // A file that this process writes cannot be run while another thread of it forks.
        let copied = std::process::Command::new("cp").args([&text, &command]).status().unwrap();
        assert!(copied.success());
        fs::set_permissions(&command, fs::Permissions::from_mode(0o700)).unwrap();
        Hook { command, wait: Duration::ZERO }
    }

    #[tokio::test]
    async fn a_hook_is_told_what_to_write_and_its_failure_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let said = folder.path().join("said");
        let good = hook(folder.path(), &format!("echo \"$@\" >>{}", said.display()));
        good.run("present", "*.relay.test", "value").await.unwrap();
        good.run("cleanup", "relay.test", "va;lue $HOME").await.unwrap();
        assert_eq!(
            fs::read_to_string(&said).unwrap(),
            "present *.relay.test _acme-challenge.relay.test value\n\
             cleanup relay.test _acme-challenge.relay.test va;lue $HOME\n"
        );
        let bad = hook(folder.path(), "echo no such zone >&2; exit 3");
        let error = bad.run("present", "a", "v").await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no such zone"), "{error}");
        let endless =
            hook(folder.path(), "yes no such zone | head -c 3000000 >&2; echo it was that >&2; exit 4");
        let error = endless.run("present", "a", "v").await.unwrap_err().to_string();
        assert!(error.ends_with("it was that") && error.len() < 400, "{error}");
        let none = Hook { command: folder.path().join("none"), wait: Duration::ZERO };
        assert!(matches!(none.run("present", "a", "v").await, Err(HookError::Run(_))));
    }

    #[tokio::test]
    async fn what_a_hook_has_started_goes_with_it_and_does_not_hold_it_up() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let started = || fs::read_to_string(&pid).unwrap().trim().to_owned();
        let runs = |pid: &str| {
            // Whoever adopts it may not have seen that it is dead.
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            !status.is_empty() && !status.contains("State:\tZ")
        };
        // It leaves something behind that keeps stderr open: it has done its work all the same.
        let leaves = hook(folder.path(), &format!("sleep 600 & echo $! >{}", pid.display()));
        let limit = Duration::from_secs(300);
        timeout(Duration::from_secs(60), leaves.run_within(limit, "present", "a", "v"))
            .await
            .unwrap()
            .unwrap();
        assert!(runs(&started()), "that is the hook's own business");
        kill_process_group(Pid::from_raw(group_of(&started())).unwrap(), Signal::KILL).unwrap();

        // One that takes too long is killed, and so is what it waits for.
        let script = format!("sleep 600 & echo $! >{}.new; mv {0}.new {0}; wait", pid.display());
        fs::remove_file(&pid).unwrap();
        let slow = hook(folder.path(), &script);
        let ran = slow.run_within(Duration::from_secs(2), "present", "a", "v").await;
        assert!(matches!(ran, Err(HookError::Timeout)), "{ran:?}");
        let left = started();
        timeout(Duration::from_secs(60), async {
            while runs(&left) {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap();
    }

    /// The group of a process.
    fn group_of(pid: &str) -> i32 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().split_whitespace().nth(2).unwrap().parse().unwrap()
    }
}
