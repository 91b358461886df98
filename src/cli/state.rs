//! The state directory: what a relay has to find again when it starts anew.
//!
//! | file | mode | what |
//! |---|---|---|
//! | `key.pem` | 0600 | the relay's TLS key (ECDSA P-256), made at the first start; the pin is its hash |
//! | `cert.pem` | 0644 | a certificate for it, signed by itself |
//! | `acme-cert.pem` | 0644 | the last certificate for that key that an authority has signed, with its chain |
//! | `acme-account.json` | 0600 | the account with that authority, and its key |
//! | `relay_id` | 0644 | the audience of tokens, random |
//! | `relay.json` | 0644 | how clients find the relay; written at each start, and with each new certificate |
//! | `audit.jsonl` | 0600 | what administrators did, and `audit.head`, how far it goes |
//! | `admin.tokens` | 0600 | the hashes of their tokens, unless the configuration has another file |
//!
//! Files appear whole or not at all, so that two starts at once agree on one key and one id.

use std::{
    env, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
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
    /// Finds, or makes, what is missing. `server_name` is the name in a certificate made here.
    ///
    /// # Errors
    /// [`Exit::CantCreate`] when the folder cannot be written, [`Exit::Data`] when a file in it is damaged.
    pub(super) fn open(folder: PathBuf, server_name: &str, given: Given) -> Result<Self, Failure> {
        files::private_folder(&folder).or_fail(
            Exit::CantCreate,
            format!("cannot make the state directory {}; choose another with --state-dir", folder.display()),
        )?;
        let certificate = match given.certificate {
            Some(certificate) => certificate,
            None => own_certificate(&folder, server_name)?,
        };
        let relay_id = match given.relay_id {
            Some(relay_id) => relay_id,
            None => own_relay_id(&folder)?,
        };
        let pin = pin_of(&certificate)?;
        Ok(Self { folder, certificate, pin, relay_id })
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

/// The relay's own certificate, which it signs itself: found, or made for this name.
///
/// # Errors
/// [`Exit::CantCreate`] and [`Exit::Data`], as [`State::open`].
pub(super) fn own_certificate(folder: &Path, server_name: &str) -> Result<Certificate, Failure> {
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
        if certificate.check().is_ok() && certificate.is_for(server_name) {
            return Ok(certificate);
        }
    }
    // None yet, or one for another name or another key. The key is what clients know the relay by.
    let text = std::str::from_utf8(&pem).or_fail(Exit::Data, &damaged)?;
    let pair = rcgen::KeyPair::from_pem(text).or_fail(Exit::Data, &damaged)?;
    let leaf = rcgen::CertificateParams::new([server_name.to_owned()])
        .and_then(|mut params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(rcgen::DnType::CommonName, "zrc-relay");
            params.self_signed(&pair)
        })
        .or_fail(Exit::Software, "cannot make a certificate")?;
    files::replace(&cert_path, leaf.pem().as_bytes(), files::PUBLIC)
        .or_fail(Exit::CantCreate, format!("cannot write {}", cert_path.display()))?;
    let certificate = Certificate { chain: vec![leaf.der().clone()], key };
    certificate.check().or_fail(Exit::Data, &damaged)?;
    Ok(certificate)
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

    fn open(folder: &Path, name: &str) -> Result<State, Failure> {
        State::open(folder.join("state"), name, Given::default())
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
        let state = State::open(folder.path().join("state"), "localhost", given).unwrap();
        assert_eq!((state.pin, state.relay_id), (other.pin, RelayId([7; 16])));
        assert_eq!(fs::read_dir(&state.folder).unwrap().count(), 0);
    }
}
