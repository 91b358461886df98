//! The state directory: what a relay has to find again when it starts anew.
//!
//! | file | mode | what |
//! |---|---|---|
//! | `key.pem` | 0600 | the relay's TLS key (ECDSA P-256), made at the first start; the pin is its hash |
//! | `cert.pem` | 0644 | a certificate for it, signed by itself, for a year; signed anew when a third of that is left |
//! | `acme-cert.pem` | 0644 | the last certificate for that key that an authority has signed, with its chain |
//! | `acme-account.json` | 0600 | the account with that authority, and its key |
//! | `acme-attempts.json` | 0600 | attempts at one that have failed, while the last one has not succeeded |
//! | `relay_id` | 0644 | the audience of tokens, random |
//! | `relay.json` | 0644 | how clients find the relay; written at each start, and with each new certificate or name |
//! | `audit.jsonl` | 0600 | what administrators did, and `audit.head`, how far it goes |
//! | `blocks.jsonl` | 0600 | the networks that administrators block, until when, and why |
//! | `admin.tokens` | 0600 | the hashes of their tokens, unless the configuration has another file; `admin.tokens.lock` is held while they change |
//!
//! Files appear whole or not at all, so that two starts at once agree on one key and one id. A relay that runs holds the
//! folder ([`hold`]), because of the files that it goes on writing.

use std::{
    env,
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::ParsedCertificate,
};

use super::{Exit, Failure, OrFail as _, files};
use crate::{
    config::Certificate,
    wire::{Descriptor, RelayId, SpkiPin},
};

/// How long a certificate is good for that the relay signs itself. Whoever pins the key does not look at it.
const OWN_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// How long before now that begins: clocks differ.
const OWN_BACKDATED_SECS: u64 = 86_400;
/// The year 9000, which can be written; a clock that says more is wrong.
const LAST_UNIX_SECS: u64 = 221_845_392_000;

/// A state directory with everything in it.
#[derive(Debug)]
pub(super) struct State {
    /// Where it is.
    pub(super) folder: PathBuf,
    /// What TLS shows.
    pub(super) certificate: Certificate,
    /// What clients may pin.
    pub(super) pin: SpkiPin,
    /// The audience of tokens.
    pub(super) relay_id: RelayId,
}

/// What the configuration has, and the state directory therefore need not provide.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) certificate: Option<Certificate>,
    pub(super) relay_id: Option<RelayId>,
}

impl State {
    /// Finds, or makes, what is missing. `server_name` is the name in a certificate made here, which is good from
    /// `now_unix_secs` on.
    ///
    /// # Errors
    /// [`Exit::CantCreate`] when the folder cannot be written, [`Exit::Data`] when a file in it is damaged.
    pub(super) fn open(
        folder: PathBuf,
        server_name: &str,
        now_unix_secs: i64,
        given: Given,
    ) -> Result<Self, Failure> {
        files::private_folder(&folder).or_fail(
            Exit::CantCreate,
            format!("cannot make the state directory {}; choose another with --state-dir", folder.display()),
        )?;
        let certificate = match given.certificate {
            Some(certificate) => certificate,
            None => own_certificate(&folder, server_name, now_unix_secs)?,
        };
        let relay_id = match given.relay_id {
            Some(relay_id) => relay_id,
            None => own_relay_id(&folder)?,
        };
        let pin = pin_of(&certificate)?;
        Ok(Self { folder, certificate, pin, relay_id })
    }
}

/// A folder that no other relay may hold until this is dropped, or the process ends.
#[derive(Debug)]
pub(super) struct Held(#[expect(dead_code, reason = "its lock is what counts")] File);

/// Keeps other relays out of a state directory: two would write one audit log and one list of blocks.
///
/// # Errors
/// [`Exit::CantCreate`] when another relay holds it, or it cannot be opened.
pub(super) fn hold(folder: &Path) -> Result<Held, Failure> {
    let shown = folder.display();
    let file =
        File::open(folder).or_fail(Exit::CantCreate, format!("cannot open the state directory {shown}"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(Failure::new(
            Exit::CantCreate,
            format!(
                "another relay runs with the state directory {shown}; give this one its own, with --state-dir DIR or state_dir"
            ),
        )),
        Err(error) => {
            // As on some network file systems: no reason to do without a relay.
            tracing::warn!(folder = %shown, %error, "cannot lock the state directory: let no other relay use it");
            Ok(Held(file))
        }
        Ok(()) => Ok(Held(file)),
    }
}

/// Writes `relay.json` and answers with its path.
///
/// # Errors
/// [`Exit::CantCreate`].
pub(super) fn write_descriptor(folder: &Path, descriptor: &Descriptor) -> Result<PathBuf, Failure> {
    let path = folder.join("relay.json");
    let mut json = serde_json::to_vec_pretty(descriptor).or_fail(Exit::Software, "cannot write JSON")?;
    json.push(b'\n');
    files::replace(&path, &json, files::PUBLIC)
        .or_fail(Exit::CantCreate, format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// A folder for what needs no configuration: one for each user and purpose.
///
/// # Errors
/// [`Exit::CantCreate`] when there is no home and no safe temporary folder.
pub(super) fn user_folder(purpose: &str) -> Result<PathBuf, Failure> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state_home = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    let home = state_home.map(|home| home.join("zrc-relay").join(purpose));
    if let Some(home) = home.filter(|home| files::private_folder(home).is_ok()) {
        return Ok(home);
    }
    // No home, or one that cannot be written, as in many containers.
    let cannot = "there is no home to keep keys in; choose a place with --state-dir DIR";
    let uid = fs::metadata("/proc/self").or_fail(Exit::CantCreate, cannot)?.uid();
    let folder = env::temp_dir().join(format!("zrc-relay-{uid}"));
    files::private_folder(&folder).or_fail(Exit::CantCreate, cannot)?;
    // Somebody else may have been faster in a folder that everybody writes.
    let made = fs::symlink_metadata(&folder).or_fail(Exit::CantCreate, cannot)?;
    if !made.is_dir() || made.uid() != uid || made.mode() & 0o077 != 0 {
        return Err(Failure::new(
            Exit::CantCreate,
            format!("{} is not ours alone; {cannot}", folder.display()),
        ));
    }
    Ok(folder.join(purpose))
}

fn own_relay_id(folder: &Path) -> Result<RelayId, Failure> {
    let path = folder.join("relay_id");
    let shown = path.display();
    if !path.exists() {
        let id =
            RelayId::random().or_fail(Exit::Software, "the operating system has no randomness to give")?;
        files::create_unless_there(&path, format!("{id}\n").as_bytes(), files::PUBLIC)
            .or_fail(Exit::CantCreate, format!("cannot write {shown}"))?;
    }
    let text = fs::read_to_string(&path).or_fail(Exit::NoInput, format!("cannot read {shown}"))?;
    text.trim().parse().or_fail(
        Exit::Data,
        format!(
            "{shown} is damaged; put it back, or remove it (tokens for the old relay id are then refused)"
        ),
    )
}

/// The relay's own certificate, which it signs itself: found, or made for this name. One that is due ([`own_left_secs`]) is made anew.
///
/// # Errors
/// [`Exit::CantCreate`] and [`Exit::Data`], as [`State::open`].
pub(super) fn own_certificate(
    folder: &Path,
    server_name: &str,
    now_unix_secs: i64,
) -> Result<Certificate, Failure> {
    let key_path = folder.join("key.pem");
    let key_shown = key_path.display();
    if !key_path.exists() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .or_fail(Exit::Software, "cannot make a TLS key")?;
        files::create_unless_there(&key_path, key.serialize_pem().as_bytes(), files::SECRET)
            .or_fail(Exit::CantCreate, format!("cannot write {key_shown}"))?;
    }
    let pem = files::read_small(&key_path, "TLS key")?;
    let damaged =
        format!("{key_shown} is damaged; put it back, or remove it (clients then need the new pin)");
    let key = PrivateKeyDer::from_pem_slice(&pem).or_fail(Exit::Data, &damaged)?;

    let cert_path = folder.join("cert.pem");
    if let Ok(leaf) = CertificateDer::from_pem_file(&cert_path) {
        let certificate = Certificate { chain: vec![leaf], key: key.clone_key() };
        let is_fresh = certificate.validity().is_some_and(|life| own_left_secs(life, now_unix_secs) > 0);
        if certificate.check().is_ok() && certificate.is_for(server_name) && is_fresh {
            return Ok(certificate);
        }
    }
    // None yet, or one for another name or another key, or an old one. The key is what clients know the relay by.
    let text = std::str::from_utf8(&pem).or_fail(Exit::Data, &damaged)?;
    let pair = rcgen::KeyPair::from_pem(text).or_fail(Exit::Data, &damaged)?;
    let now = u64::try_from(now_unix_secs).unwrap_or(0).min(LAST_UNIX_SECS);
    let from_unix_secs = now.saturating_sub(OWN_BACKDATED_SECS);
    let leaf = rcgen::CertificateParams::new([server_name.to_owned()])
        .and_then(|mut params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(rcgen::DnType::CommonName, "zrc-relay");
            params.not_before = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(from_unix_secs);
            params.not_after = params.not_before + OWN_LIFE;
            params.self_signed(&pair)
        })
        .or_fail(Exit::Software, "cannot make a certificate")?;
    files::replace(&cert_path, leaf.pem().as_bytes(), files::PUBLIC)
        .or_fail(Exit::CantCreate, format!("cannot write {}", cert_path.display()))?;
    let certificate = Certificate { chain: vec![leaf.der().clone()], key };
    certificate.check().or_fail(Exit::Data, &damaged)?;
    Ok(certificate)
}

/// How long a certificate that the relay has signed itself need not be signed anew, in seconds: until a third of its life is
/// left. One that is not good yet is overdue, too: its signer had another clock.
pub(super) fn own_left_secs((from, until): (i64, i64), now_unix_secs: i64) -> u64 {
    let due = until.saturating_sub(until.saturating_sub(from) / 3);
    if now_unix_secs < from { 0 } else { u64::try_from(due.saturating_sub(now_unix_secs)).unwrap_or(0) }
}

fn pin_of(certificate: &Certificate) -> Result<SpkiPin, Failure> {
    let leaf = certificate.chain.first().ok_or(rustls::Error::NoCertificatesPresented);
    let spki = leaf.and_then(|leaf| Ok(ParsedCertificate::try_from(leaf)?.subject_public_key_info()));
    Ok(SpkiPin::of(&spki.map_err(unusable)?))
}

/// The last certificate that an authority has signed for the relay's own key, if it is good for these names now.
pub(super) fn acme_certificate(folder: &Path, domains: &[String], now_unix_secs: i64) -> Option<Certificate> {
    let chain = CertificateDer::pem_file_iter(folder.join(ACME_CERTIFICATE)).ok()?;
    let chain = chain.collect::<Result<Vec<_>, _>>().ok()?;
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).ok()?;
    let certificate = Certificate { chain, key };
    (certificate.check().is_ok() && is_good(&certificate, domains, now_unix_secs)).then_some(certificate)
}

/// Whether a certificate is for all of these names, now.
pub(super) fn is_good(certificate: &Certificate, domains: &[String], now_unix_secs: i64) -> bool {
    let names = certificate.dns_names();
    let is_for = |domain: &String| names.iter().any(|name| name.eq_ignore_ascii_case(domain));
    // Clocks differ by some minutes.
    let is_now = certificate
        .validity()
        .is_some_and(|(from, until)| from <= now_unix_secs + 3600 && now_unix_secs < until);
    is_now && domains.iter().all(is_for)
}

/// Where a certificate of an authority's is kept.
pub(super) const ACME_CERTIFICATE: &str = "acme-cert.pem";

/// A certificate, or its key, that TLS does not take.
pub(super) fn unusable(error: rustls::Error) -> Failure {
    Failure { exit: Exit::Config, error: anyhow::Error::new(error).context("the certificate cannot be used") }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const DAY: i64 = 86_400;
    const NOW: i64 = 1_795_178_980;

    fn open(folder: &Path, name: &str) -> Result<State, Failure> {
        open_at(folder, name, NOW)
    }

    fn open_at(folder: &Path, name: &str, now_unix_secs: i64) -> Result<State, Failure> {
        State::open(folder.join("state"), name, now_unix_secs, Given::default())
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn pin_and_id_are_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path(), "localhost").unwrap();
        let again = open(folder.path(), "localhost").unwrap();
        assert_eq!((again.pin, again.relay_id), (first.pin, first.relay_id));
        assert_eq!(again.certificate.chain, first.certificate.chain);
        assert_eq!(mode(&first.folder), 0o700);
        assert_eq!(mode(&first.folder.join("key.pem")), 0o600);
    }

    #[test]
    fn another_name_keeps_the_pin() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path(), "localhost").unwrap();
        let renamed = open(folder.path(), "relay.example.com").unwrap();
        assert_eq!(renamed.pin, first.pin);
        assert_ne!(renamed.certificate.chain, first.certificate.chain);
        assert!(renamed.certificate.is_for("relay.example.com"));
    }

    #[test]
    fn r7_2_its_own_certificate_is_signed_anew_before_it_expires_and_the_pin_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = |now| open_at(folder.path(), "localhost", now).unwrap();
        let first = at(NOW);
        assert_eq!(first.certificate.validity(), Some((NOW - DAY, NOW + 364 * DAY)));
        // Until a third of its life is left it is what it was, and then it is another one for the same key.
        let due = NOW + 364 * DAY - 365 * DAY / 3;
        assert_eq!(at(due - 1).certificate.chain, first.certificate.chain);
        let second = at(due);
        assert_eq!(
            (second.pin, second.certificate.validity()),
            (first.pin, Some((due - DAY, due + 364 * DAY)))
        );
        assert_eq!(at(due).certificate.chain, second.certificate.chain);
        // So it is long after its end, and where the clock was ahead when it was made, or began anew.
        for now in [due + 1000 * DAY, NOW, 0, i64::MAX] {
            let later = at(now);
            let (from, until) = later.certificate.validity().unwrap();
            assert_eq!((later.pin, until - from), (first.pin, 365 * DAY), "{now}");
            assert!(from <= now && (now < until || now == i64::MAX), "{from} {until} {now}");
        }
    }

    #[test]
    fn starts_at_once_agree() {
        let folder = tempfile::tempdir().unwrap();
        let opened: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| open(folder.path(), "localhost").unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for state in &opened {
            assert_eq!((state.pin, state.relay_id), (opened[0].pin, opened[0].relay_id));
        }
    }

    #[test]
    fn damage_is_said_and_not_mended() {
        let folder = tempfile::tempdir().unwrap();
        let state = open(folder.path(), "localhost").unwrap();
        for name in ["relay_id", "key.pem"] {
            let path = state.folder.join(name);
            let whole = fs::read(&path).unwrap();
            fs::write(&path, &whole[..whole.len() / 2]).unwrap();
            let failure = open(folder.path(), "localhost").unwrap_err();
            assert_eq!(failure.exit, Exit::Data, "{name}");
            assert!(failure.error.to_string().contains(name), "{failure:?}");
            fs::write(&path, whole).unwrap();
        }
        open(folder.path(), "localhost").unwrap();
    }

    #[test]
    fn what_the_configuration_has_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let other = open(&folder.path().join("other"), "localhost").unwrap();
        let given = Given { certificate: Some(other.certificate), relay_id: Some(RelayId([7; 16])) };
        let state = State::open(folder.path().join("state"), "localhost", NOW, given).unwrap();
        assert_eq!((state.pin, state.relay_id), (other.pin, RelayId([7; 16])));
        assert_eq!(fs::read_dir(&state.folder).unwrap().count(), 0);
    }
}
