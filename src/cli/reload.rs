//! The configuration and the files of keys and certificates that it names, read again while the relay runs: when one of them has
//! changed, and on SIGHUP. A file with a fault changes nothing; a faulty GeoIP database changes nothing of the countries,
//! and certificates, devices and limits do not wait for it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _},
    mem,
    path::{Path, PathBuf},
    sync::Arc,
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
use crate::{
    config::{Changed, Config, ConfigError, Fault, Reloaded, Settings, Sources, Standing},
    geoip::Database,
};

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
    /// What the relay was started with, as far as it reads it only then, and what was last read of the rest.
    settings: Settings,
    watched: Watched,
    /// What knows countries, in use. The one thing that can be wrong while the rest is heeded.
    countries: Option<Arc<Database>>,
    /// The files that the configuration in force was read from.
    files: Vec<PathBuf>,
    /// Of all files as they were last read, right or wrong.
    seen: [u8; 32],
    /// Whether a SIGHUP is still to be answered.
    asked: bool,
}

impl Reload {
    /// `config` and `settings` were read from `sources`. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the system does not allow to take over SIGHUP.
    pub(super) fn new(sources: Sources, settings: Settings, config: &Config) -> Result<Self, Failure> {
        let hangup = signal(SignalKind::hangup()).or_fail(Exit::Software, "cannot take over signals")?;
        let files = files_of(&sources, config);
        let source = (!files.is_empty()).then(|| Source {
            watched: Watched::new(&files),
            seen: fingerprint(&files),
            countries: config.ops.countries.clone(),
            files,
            sources,
            settings,
            asked: false,
        });
        Ok(Self { hangup, source })
    }

    /// The next good configuration, to be put in force. Cancel safe.
    pub(super) async fn next(&mut self) -> Config {
        loop {
            let Some(source) = &mut self.source else {
                self.hangup.recv().await;
                service::reloading();
                tracing::info!("SIGHUP: there is no configuration file to read again");
                service::reloaded();
                continue;
            };
            if !source.asked {
                source.asked = tokio::select! {
                    _ = self.hangup.recv() => true,
                    () = source.watched.changed() => false,
                };
                if source.asked {
                    service::reloading();
                }
            }
            let config = source.read().await;
            source.watched.noticed = false;
            let asked = mem::take(&mut source.asked);
            if let Some(config) = config {
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
    async fn read(&mut self) -> Option<Config> {
        let (files, sources) = (self.files.clone(), self.sources.clone());
        let (before, asked) = (self.seen, self.asked);
        let read = spawn_blocking(move || {
            // First: what changes in between is read once more.
            let seen = fingerprint(&files);
            (seen, (asked || seen != before).then(|| sources.reload()))
        });
        let (seen, loaded) = read.await.ok()?;
        self.seen = seen;
        match loaded? {
            Ok(Reloaded { mut config, settings, waiting }) => {
                if waiting.is_empty() {
                    self.countries.clone_from(&config.ops.countries);
                } else {
                    config.ops.countries.clone_from(&self.countries);
                }
                for fault in waiting {
                    tell(
                        fault,
                        "fault in the configuration; what is in use of this stays, and the rest is heeded",
                    );
                }
                let files = files_of(&self.sources, &config);
                if self.files != files {
                    self.watched = Watched::new(&files);
                    self.seen = fingerprint(&files);
                    self.files = files;
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
                            tell(fault, "fault in the configuration");
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

fn tell(fault: Fault, what: &str) {
    tracing::error!(
        key = fault.key,
        place = fault.place.map(|place| place.to_string()),
        reason = fault.reason,
        "{what}"
    );
}

/// The configuration file, if there is one, and all that it names.
fn files_of(sources: &Sources, config: &Config) -> Vec<PathBuf> {
    let relay = config.relay.key_files.iter().chain(&config.ops.geoip_file);
    let others = config.admin.key_files.iter().chain(&config.security.secret_file);
    sources.file.iter().chain(relay).chain(others).cloned().chain(sources.over.secret_files()).collect()
}

/// All that the files hold. One that cannot be read counts as empty.
fn fingerprint(files: &[PathBuf]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for path in files {
        hash.update(of_one(path).unwrap_or_default());
    }
    hash.finalize().into()
}

/// Of what is a plain file: another one would be empty afterwards, or never end.
fn of_one(path: &Path) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    if fs::metadata(path)?.is_file() {
        let mut file = File::open(path)?;
        // Databases are large.
        let mut part = vec![0; 64 * 1024];
        loop {
            match file.read(&mut part)? {
                0 => break,
                len => hash.update(part.get(..len).unwrap_or_default()),
            }
        }
    }
    Ok(hash.finalize().into())
}

/// The folders of the files: a file that another one takes the place of is watched on.
struct Watched {
    changes: mpsc::Receiver<()>,
    /// Whether something has changed that has not been looked at.
    noticed: bool,
    /// `None` where the system has no way to watch; held for its end.
    watcher: Option<RecommendedWatcher>,
}

impl Watched {
    fn new(files: &[PathBuf]) -> Self {
        let (sender, changes) = mpsc::channel(1);
        let told = move |event: notify::Result<Event>| {
            if event.is_ok_and(|event| is_of_interest(&event)) {
                // Full: somebody is to look anyway.
                let _ = sender.try_send(());
            }
        };
        let watch = || {
            let mut watcher = notify::recommended_watcher(told)?;
            for folder in folders(files.iter().map(PathBuf::as_path)) {
                watcher.watch(&folder, RecursiveMode::NonRecursive)?;
            }
            Ok::<_, notify::Error>(watcher)
        };
        let watcher = watch().inspect_err(|error| {
            tracing::warn!(%error, "changes of the configuration are not noticed: send SIGHUP after each");
        });
        Self { changes, noticed: false, watcher: watcher.ok() }
    }

    /// Something has changed, and nothing more since. Without a watcher it waits for ever. Cancel safe: it is at once
    /// ready again until somebody has looked.
    async fn changed(&mut self) {
        if !self.noticed && (self.watcher.is_none() || self.changes.recv().await.is_none()) {
            std::future::pending::<()>().await;
        }
        self.noticed = true;
        for _ in 0..MAX_SETTLES {
            sleep(SETTLE).await;
            if self.changes.try_recv().is_err() {
                break;
            }
        }
    }
}

/// Where the files lie, where they really lie, and where the links on the way to them lie.
fn folders<'a>(files: impl Iterator<Item = &'a Path>) -> BTreeSet<PathBuf> {
    let parent = |path: &Path| match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Some(PathBuf::from(".")),
        folder => folder.map(Path::to_owned),
    };
    files
        .flat_map(|file| {
            let links = file.ancestors().skip(1).filter(|above| above.is_symlink()).filter_map(parent);
            [parent(file), fs::canonicalize(file).ok().as_deref().and_then(parent)]
                .into_iter()
                .flatten()
                .chain(links.collect::<Vec<_>>())
        })
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
        // A link is whole when it is made: this is how certbot puts a new certificate in place.
        EventKind::Create(_) if event.paths.iter().any(|path| path.is_symlink()) => true,
        _ => !cfg!(target_os = "linux"),
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, DataChange, Flag, RemoveKind, RenameMode};

    use super::*;
    use crate::config::Overrides;

    #[test]
    fn r8_all_that_is_read_is_watched() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        fs::write(file("secret"), secret).unwrap();
        fs::write(file("url"), "https://siem.example.com/").unwrap();
        fs::write(file("devices.toml"), "").unwrap();
        let geoip = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/countries.mmdb");
        let text = format!(
            "[relay]\nself_certified = true\ndevice_file = \"devices.toml\"\n[ops]\ngeoip_path = {geoip:?}\n\
             [security]\nwebhook_secret_file = \"secret\"\n"
        );
        fs::write(file("relay.toml"), text).unwrap();
        let variable = "ZRC_RELAY_SECURITY__WEBHOOK_URL_FILE".to_owned();
        let over = Overrides { environment: [(variable, file("url").into())].into(), ..Overrides::default() };
        let sources = Sources { file: Some(file("relay.toml")), over, ..Sources::default() };
        let (config, _) = sources.load().unwrap();
        let watched: BTreeSet<_> = files_of(&sources, &config).into_iter().collect();
        let names = ["relay.toml", "devices.toml", "secret", "url"].map(file);
        assert_eq!(watched, names.into_iter().chain([geoip.into()]).collect());
        // A change of any of them is seen.
        let files: Vec<_> = watched.into_iter().filter(|path| path.starts_with(folder.path())).collect();
        for path in &files {
            let before = fingerprint(&files);
            fs::write(path, "another").unwrap();
            assert_ne!(fingerprint(&files), before, "{}", path.display());
        }
    }

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
