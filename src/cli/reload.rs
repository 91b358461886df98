//! The configuration and the files of keys that it names, read again while the relay runs: when one of them has
//! changed, and on SIGHUP. A file with a fault changes nothing.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};
use sha2::{Digest, Sha256};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::spawn_blocking,
    time::sleep,
};

use super::{Exit, Failure, OrFail as _, service};
use crate::config::{Changed, Config, ConfigError, Settings, Sources, Standing};

/// How long nothing more may happen before the files are read: several are often changed together.
const SETTLE: Duration = Duration::from_millis(100);
/// They are read after so many times of that at the latest.
const MAX_SETTLES: u32 = 5;

/// Waits for changes.
pub(super) struct Reload {
    hangup: Signal,
    source: Option<Source>,
}

/// What is read again.
struct Source {
    sources: Sources,
    /// The file among them.
    config: PathBuf,
    /// What the relay was started with, as far as it reads it only then, and what was last read of the rest.
    settings: Settings,
    watched: Watched,
    /// The files that the configuration in force was read from, besides the configuration itself.
    key_files: Vec<PathBuf>,
    /// Of all files as they were last read, right or wrong.
    seen: [u8; 32],
}

impl Reload {
    /// `config` and `settings` were read from `sources`. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the system does not allow to take over SIGHUP.
    pub(super) fn new(sources: Sources, settings: Settings, config: &Config) -> Result<Self, Failure> {
        let hangup = signal(SignalKind::hangup()).or_fail(Exit::Software, "cannot take over signals")?;
        let source = sources.file.clone().map(|path| Source {
            watched: Watched::new(&path, &config.relay.key_files),
            key_files: config.relay.key_files.clone(),
            seen: fingerprint(&path, &config.relay.key_files),
            config: path,
            sources,
            settings,
        });
        Ok(Self { hangup, source })
    }

    /// The next good configuration, to be put in force. When dropped, a change may be missed.
    pub(super) async fn next(&mut self) -> Config {
        loop {
            let Some(source) = &mut self.source else {
                self.hangup.recv().await;
                service::reloading();
                tracing::info!("SIGHUP: there is no configuration file to read again");
                service::reloaded();
                continue;
            };
            let asked = tokio::select! {
                _ = self.hangup.recv() => true,
                () = source.watched.changed() => false,
            };
            if asked {
                service::reloading();
            }
            if let Some(config) = source.read(asked).await {
                return config;
            }
            if asked {
                service::reloaded();
            }
        }
    }
}

impl Source {
    /// Reads the files, if they have changed or somebody has asked for it.
    async fn read(&mut self, asked: bool) -> Option<Config> {
        let (path, key_files, sources) = (self.config.clone(), self.key_files.clone(), self.sources.clone());
        let before = self.seen;
        let read = spawn_blocking(move || {
            // First: what changes in between is read once more.
            let seen = fingerprint(&path, &key_files);
            (seen, (asked || seen != before).then(|| sources.load()))
        });
        let (seen, loaded) = read.await.ok()?;
        self.seen = seen;
        match loaded? {
            Ok((config, settings)) => {
                if self.key_files != config.relay.key_files {
                    self.key_files.clone_from(&config.relay.key_files);
                    self.watched = Watched::new(&self.config, &self.key_files);
                    self.seen = fingerprint(&self.config, &self.key_files);
                }
                let relay = &config.relay;
                let revoked = relay.devices.iter().filter(|it| it.standing == Standing::Revoked).count();
                tracing::info!(
                    tiers = relay.tiers.len(),
                    devices = relay.devices.len() - revoked,
                    revoked,
                    issuers = relay.issuers.len(),
                    blocked_networks = config.guard.block.len(),
                    "configuration read again"
                );
                let Changed { restart, .. } = settings.changed_since(&self.settings);
                if !restart.is_empty() {
                    tracing::warn!(
                        keys = restart.join(", "),
                        "keys have changed that are read at the next start"
                    );
                }
                Some(config)
            }
            Err(error) => {
                tracing::error!("the configuration cannot be read again; what is in force stays");
                match error {
                    ConfigError::Faults { faults, .. } => {
                        for fault in faults.0 {
                            tracing::error!(
                                key = fault.key,
                                place = fault.place.map(|place| place.to_string()),
                                reason = fault.reason,
                                "fault in the configuration"
                            );
                        }
                    }
                    ConfigError::Read { path, source } => {
                        tracing::error!(path = %path.display(), error = %source, "cannot read the configuration");
                    }
                }
                None
            }
        }
    }
}

/// All that the files hold. One that cannot be read counts as empty.
fn fingerprint(config: &Path, key_files: &[PathBuf]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for path in [config].into_iter().chain(key_files.iter().map(PathBuf::as_path)) {
        let bytes = fs::read(path).unwrap_or_default();
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    hash.finalize().into()
}

/// The folders of the files: a file that another one takes the place of is watched on.
struct Watched {
    changes: mpsc::Receiver<()>,
    /// `None` where the system has no way to watch; held for its end.
    watcher: Option<RecommendedWatcher>,
}

impl Watched {
    fn new(config: &Path, key_files: &[PathBuf]) -> Self {
        let (sender, changes) = mpsc::channel(1);
        let told = move |event: notify::Result<Event>| {
            if event.is_ok_and(|event| is_of_interest(&event)) {
                // Full: somebody is to look anyway.
                let _ = sender.try_send(());
            }
        };
        let watch = || {
            let mut watcher = notify::recommended_watcher(told)?;
            for folder in folders([config].into_iter().chain(key_files.iter().map(PathBuf::as_path))) {
                watcher.watch(&folder, RecursiveMode::NonRecursive)?;
            }
            Ok::<_, notify::Error>(watcher)
        };
        let watcher = watch().inspect_err(|error| {
            tracing::warn!(%error, "changes of the configuration are not noticed: send SIGHUP after each");
        });
        Self { changes, watcher: watcher.ok() }
    }

    /// Something has changed, and nothing more since. Without a watcher it waits for ever.
    async fn changed(&mut self) {
        if self.watcher.is_none() || self.changes.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        for _ in 0..MAX_SETTLES {
            sleep(SETTLE).await;
            if self.changes.try_recv().is_err() {
                break;
            }
        }
    }
}

/// Where the files lie, and where they really lie.
fn folders<'a>(files: impl Iterator<Item = &'a Path>) -> BTreeSet<PathBuf> {
    let parent = |path: &Path| match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Some(PathBuf::from(".")),
        folder => folder.map(Path::to_owned),
    };
    files
        .flat_map(|file| [parent(file), fs::canonicalize(file).ok().as_deref().and_then(parent)])
        .flatten()
        .collect()
}

/// Whether a file may be another one now. A file that is being written is none yet, where the system tells its end.
fn is_of_interest(event: &Event) -> bool {
    if event.need_rescan() {
        return true;
    }
    match event.kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_) => true,
        _ => !cfg!(target_os = "linux"),
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, DataChange, Flag, RemoveKind, RenameMode};

    use super::*;

    #[test]
    fn a_file_is_read_when_it_is_whole() {
        for (kind, wanted) in [
            (EventKind::Access(AccessKind::Close(AccessMode::Write)), true),
            (EventKind::Modify(ModifyKind::Name(RenameMode::To)), true),
            (EventKind::Remove(RemoveKind::File), true),
            // Reading it ourselves is no change.
            (EventKind::Access(AccessKind::Open(AccessMode::Any)), false),
            (EventKind::Access(AccessKind::Close(AccessMode::Read)), false),
        ] {
            assert_eq!(is_of_interest(&Event::new(kind)), wanted, "{kind:?}");
        }
        for kind in
            [EventKind::Create(CreateKind::File), EventKind::Modify(ModifyKind::Data(DataChange::Any))]
        {
            assert_eq!(is_of_interest(&Event::new(kind)), !cfg!(target_os = "linux"), "{kind:?}");
        }
        assert!(is_of_interest(&Event::new(EventKind::Other).set_flag(Flag::Rescan)), "events were lost");
    }

    #[test]
    fn folders_are_those_of_the_link_and_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::create_dir(&real).unwrap();
        fs::create_dir(&link).unwrap();
        fs::write(real.join("file"), "").unwrap();
        std::os::unix::fs::symlink(real.join("file"), link.join("file")).unwrap();
        let real = fs::canonicalize(real).unwrap();
        let found = folders([link.join("file").as_path(), Path::new("relay.toml")].into_iter());
        assert!(
            found.contains(&link) && found.contains(&real) && found.contains(Path::new(".")),
            "{found:?}"
        );
    }
}
