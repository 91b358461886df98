//! The configuration and the files of keys and certificates that it names, read again while the relay runs: when one of them has
//! changed, and on SIGHUP. A file with a fault changes nothing; a faulty GeoIP database changes nothing of the countries,
//! and certificates, devices and limits do not wait for it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _},
    mem,
    path::{Component, Path, PathBuf, absolute},
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
/// So often they are read at once where each time they name other files than the last time.
const MAX_LOADS: u32 = 3;
/// As many links on the way to a file as Linux follows.
const MAX_LINKS: u32 = 40;

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
    /// Of all files as they were last read, right or wrong; `None` when they are to be read again in any case.
    seen: Option<[u8; 32]>,
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
            watched: Watched::new(folders(&files)),
            seen: Some(fingerprint(&files)),
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
        let before = self.seen.filter(|_| !self.asked);
        // Databases are large, and this thread answers health checks, too.
        let looked = spawn_blocking(move || {
            look(files, before, || {
                let loaded = sources.reload();
                let named = loaded.as_ref().ok().map(|loaded| files_of(&sources, &loaded.config));
                (loaded, named)
            })
        });
        let looked = looked.await;
        self.watched.noticed = false;
        let Looked { files, seen, folders, loaded } = looked.ok()?;
        (self.files, self.seen) = (files, seen);
        if self.watched.folders != folders {
            self.watched = Watched::new(folders);
            // What has changed before it was watched.
            self.watched.noticed = true;
        }
        self.watched.noticed |= self.seen.is_none();
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

/// What there is to see of the files.
struct Looked<T> {
    /// Those that the configuration names now.
    files: Vec<PathBuf>,
    seen: Option<[u8; 32]>,
    folders: BTreeSet<PathBuf>,
    /// What was loaded; `None`: they are as they were.
    loaded: Option<T>,
}

/// Looks at the files, and loads what they say if they are not as they were `before`. `load` tells which files it has read,
/// where it knows.
fn look<T>(
    mut files: Vec<PathBuf>,
    before: Option<[u8; 32]>,
    mut load: impl FnMut() -> (T, Option<Vec<PathBuf>>),
) -> Looked<T> {
    // Always before they are loaded: what changes in between is read once more.
    let mut seen = Some(fingerprint(&files));
    let mut loaded = None;
    if seen != before {
        for _ in 0..MAX_LOADS {
            let (found, named) = load();
            loaded = Some(found);
            let Some(named) = named.filter(|named| *named != files) else {
                return Looked { folders: folders(&files), files, seen, loaded };
            };
            files = named;
            seen = Some(fingerprint(&files));
        }
        seen = None;
    }
    Looked { folders: folders(&files), files, seen, loaded }
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
    folders: BTreeSet<PathBuf>,
    /// Whether something has changed that has not been looked at.
    noticed: bool,
    /// `None` where the system has no way to watch; held for its end.
    watcher: Option<RecommendedWatcher>,
}

impl Watched {
    fn new(folders: BTreeSet<PathBuf>) -> Self {
        let (sender, changes) = mpsc::channel(1);
        let told = move |event: notify::Result<Event>| {
            if event.is_ok_and(|event| is_of_interest(&event)) {
                // Full: somebody is to look anyway.
                let _ = sender.try_send(());
            }
        };
        let mut watcher = notify::recommended_watcher(told).inspect_err(|error| {
            tracing::warn!(%error, "changes of the configuration are not noticed: send SIGHUP after each");
        });
        if let Ok(watcher) = &mut watcher {
            for folder in &folders {
                if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                    let folder = folder.display();
                    tracing::warn!(%folder, %error, "changes in this folder are not noticed: send SIGHUP after each");
                }
            }
        }
        Self { changes, folders, noticed: false, watcher: watcher.ok() }
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

/// Where the files lie, and where each link on the way to them lies: with any of them it is another file.
fn folders(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    files.iter().flat_map(|file| way_to(file)).filter(|folder| folder.is_dir()).collect()
}

/// Follows the links on the way to a file, be it there or not, as the system does.
fn way_to(file: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut at = PathBuf::new();
    let mut left = absolute(file).unwrap_or_else(|_| file.to_owned());
    let mut links = 0;
    loop {
        let mut parts = left.components();
        let Some(part) = parts.next() else { break };
        let after = parts.as_path().to_owned();
        left = match part {
            Component::Normal(name) => match fs::read_link(at.join(name)) {
                Ok(target) if links < MAX_LINKS => {
                    links += 1;
                    folders.push(at.clone());
                    target.join(after)
                }
                _ => {
                    at.push(name);
                    after
                }
            },
            // There are no links before it any more.
            Component::ParentDir => {
                at.pop();
                after
            }
            Component::CurDir => after,
            Component::RootDir | Component::Prefix(_) => {
                at.push(part);
                after
            }
        };
    }
    folders.extend(at.parent().map(Path::to_owned));
    folders
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

    fn link(to: impl AsRef<Path>, at: PathBuf) {
        let beside = at.with_extension("new");
        std::os::unix::fs::symlink(to, &beside).unwrap();
        fs::rename(beside, at).unwrap();
    }

    #[test]
    fn folders_are_those_of_the_file_and_of_all_links_on_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(folder.path()).unwrap();
        let at = |name: &str| folder.join(name);
        let found = |names: &[&str]| folders(&names.iter().map(|name| at(name)).collect::<Vec<_>>());
        let wanted = |names: &[&str]| names.iter().map(|name| at(name)).collect::<BTreeSet<_>>();
        for name in ["etc", "srv/tls/1", "real"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("srv/tls/1/chain.pem"), "").unwrap();
        link("1", at("srv/tls/current"));
        link(at("srv/tls/current/chain.pem"), at("etc/chain.pem"));
        link("../srv/./tls/../tls/current/chain.pem", at("etc/relative.pem"));
        link("etc", at("all"));
        let chain = ["etc", "srv/tls", "srv/tls/1"];
        assert_eq!(found(&["etc/chain.pem"]), wanted(&chain));
        assert_eq!(found(&["etc/relative.pem"]), wanted(&chain));
        assert_eq!(found(&["all/chain.pem", "etc/none"]), wanted(&["", "etc", "srv/tls", "srv/tls/1"]));
        // What is not there is awaited where it would be, and no link leads round for ever.
        link(at("real/later"), at("etc/dangling"));
        assert_eq!(found(&["etc/dangling", "none/at/all"]), wanted(&["etc", "real"]));
        link("ring", at("etc/ring"));
        assert_eq!(found(&["etc/ring"]), wanted(&["etc"]));
        let here = folders(&["relay.toml".into()]);
        assert_eq!(here, [std::env::current_dir().unwrap()].into());
    }

    #[test]
    fn what_changes_while_it_is_read_is_read_once_more() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["a", "b"].map(|name| folder.path().join(name));
        files.iter().for_each(|path| fs::write(path, "old").unwrap());
        let [first, second] = files.clone();
        let before = Some(fingerprint(std::slice::from_ref(&first)));
        let unchanged = look(vec![first.clone()], before, || -> ((), _) { panic!("as it was") });
        assert!(unchanged.loaded.is_none() && unchanged.seen == before);
        // A file that it names from now on, and that changes right after it was read.
        let mut loads = 0;
        let looked = look(vec![first.clone()], None, || {
            loads += 1;
            let read = fs::read_to_string(&second).unwrap();
            fs::write(&second, format!("new {loads}")).unwrap();
            (read, Some(files.to_vec()))
        });
        assert_eq!((looked.loaded.as_deref(), &looked.files[..]), (Some("new 1"), &files[..]));
        assert_ne!(looked.seen, Some(fingerprint(&files)), "it is not what was loaded");
        // Whoever names others each time is not read for ever, and read again next time.
        let mut loads = 0;
        let looked = look(vec![first], None, || {
            loads += 1;
            (loads, Some(vec![folder.path().join(loads.to_string())]))
        });
        assert_eq!((looked.loaded, looked.seen), (Some(MAX_LOADS), None));
    }

    #[tokio::test]
    async fn r8_a_link_inside_the_target_of_a_link_is_watched() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        let at = |name: &str| root.join(name);
        let text = |most: u32| {
            format!("state_dir = \"state\"\n[relay]\nself_certified = true\nmax_allocations = {most}\n")
        };
        for (version, most) in [(1, 11), (2, 22), (3, 22)] {
            fs::create_dir_all(at(&format!("srv/{version}"))).unwrap();
            fs::write(at(&format!("srv/{version}/relay.toml")), text(most)).unwrap();
        }
        fs::create_dir(at("etc")).unwrap();
        link("1", at("srv/current"));
        link("../srv/current/relay.toml", at("etc/relay.toml"));
        let sources = Sources { file: Some(at("etc/relay.toml")), ..Sources::default() };
        let (config, settings) = sources.load().unwrap();
        let mut reload = Reload::new(sources, settings, &config).ok().unwrap();
        let patience = Duration::from_secs(60);
        link("2", at("srv/current"));
        let config = tokio::time::timeout(patience, reload.next()).await.expect("the link is watched");
        assert_eq!(config.relay.rules.max_allocations, 22);
        // The same once more, which nobody needs to hear of; what lies there now is watched all the same.
        link("3", at("srv/current"));
        let source = reload.source.as_mut().unwrap();
        while !source.watched.folders.contains(&at("srv/3")) {
            tokio::time::timeout(patience, source.watched.changed()).await.expect("the link is watched");
            assert!(source.read().await.is_none(), "nothing has changed");
        }
        fs::write(at("new"), text(33)).unwrap();
        fs::rename(at("new"), at("srv/3/relay.toml")).unwrap();
        let config = tokio::time::timeout(patience, reload.next()).await.expect("the file is watched");
        assert_eq!(config.relay.rules.max_allocations, 33);
    }
}
