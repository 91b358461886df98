//! Certificates, the relay's and that for administrators: read from files, matched with their keys, and the relay's with the
//! name that clients check.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use rustls::{
    client::verify_server_name,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use toml::Value;

use super::{
    DEFAULT_SERVER_NAME,
    read::{self, Reason, Section},
    validity,
};

/// No chain of certificates comes near this.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// A certificate chain, leaf first, and the leaf's key.
pub struct Certificate {
    /// DER, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
}

/// Says nothing of the key.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}

/// Under which keys a section names the two files, and what could stand there.
pub(super) struct Keys {
    pub(super) chain: &'static str,
    pub(super) key: &'static str,
    pub(super) chain_example: &'static str,
    pub(super) key_example: &'static str,
}

/// Both files or neither; they are read here, so that what cannot be used is known before anything starts. Also answers
/// with their paths, good or bad.
pub(super) fn read(
    section: &mut Section<'_>,
    keys: &Keys,
    folder: &Path,
) -> (Option<Certificate>, Vec<PathBuf>) {
    let mut paths = Vec::new();
    let mut path = |value: &Value| {
        let path = folder.join(read::text(value)?);
        paths.push(path.clone());
        Ok::<_, Reason>(path)
    };
    let mut said = None;
    let chain = section.read(keys.chain, keys.chain_example, |value| {
        said = Some(value.clone());
        certificates(&path(value)?)
    });
    let key = section.read(keys.key, keys.key_example, |value| {
        let pem = read::file(&path(value)?, MAX_PEM_BYTES)?;
        PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|error| Reason::from(format!("the file holds no private key (PEM): {error}")))
    });
    for (one, other, example, reason) in [
        (keys.chain, keys.key, keys.key_example, "a certificate needs its private key"),
        (keys.key, keys.chain, keys.chain_example, "a private key needs its certificate"),
    ] {
        if section.was_given(one) && !section.was_given(other) {
            section.fault(other, None, reason.into(), format!("{other} = {example}"));
        }
    }
    let mut certificate = chain.zip(key).map(|(chain, key)| Certificate { chain, key });
    if let Some(Err(error)) = certificate.as_ref().map(Certificate::check) {
        let reason = format!("the certificate and the key in {} cannot be used together: {error}", keys.key);
        section.fault(keys.chain, said.as_ref(), reason, String::new());
        certificate = None;
    }
    (certificate, paths)
}

/// What a PEM file has of certificates: one at least.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Reason> {
    let pem = read::file(path, MAX_PEM_BYTES)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("the file holds no certificate (PEM): {error}"))?;
    if found.is_empty() { Err("the file holds no certificate (PEM)".into()) } else { Ok(found) }
}

/// The name that clients check: the configured one, else the certificate's first, else the default. A certificate
/// without any name can only be trusted by its pin, and the name then does not matter.
pub(super) fn server_name(
    relay: &mut Section<'_>,
    configured: Option<String>,
    certificate: Option<&Certificate>,
) -> String {
    let names = certificate.map(Certificate::dns_names).unwrap_or_default();
    match configured {
        Some(name) => {
            if !names.is_empty() && !certificate.is_some_and(|certificate| certificate.is_for(&name)) {
                relay.fault(
                    "server_name",
                    Some(&Value::String(name.clone())),
                    format!("the certificate in quic_cert_path is for {}", names.join(", ")),
                    names.first().map(|name| format!("server_name = {name:?}")).unwrap_or_default(),
                );
            }
            name
        }
        // A wildcard stands for names that nobody but the operator knows.
        None => names
            .into_iter()
            .find(|name| !name.starts_with('*'))
            .unwrap_or_else(|| DEFAULT_SERVER_NAME.into()),
    }
}

impl Certificate {
    /// The host names that the leaf is for, wildcards included; none when it is for addresses, or cannot be read.
    pub fn dns_names(&self) -> Vec<String> {
        let leaf = self.chain.first().and_then(|leaf| webpki::EndEntityCert::try_from(leaf).ok());
        leaf.map(|leaf| leaf.valid_dns_names().map(str::to_owned).collect()).unwrap_or_default()
    }

    /// Whether the leaf is for this host name or address.
    pub fn is_for(&self, name: &str) -> bool {
        let leaf = self.chain.first().map(rustls::server::ParsedCertificate::try_from);
        let name = ServerName::try_from(name);
        matches!((leaf, name), (Some(Ok(leaf)), Ok(name)) if verify_server_name(&leaf, &name).is_ok())
    }

    /// From when until when the leaf is valid, in Unix seconds; `None` when it cannot be read.
    pub fn validity(&self) -> Option<(i64, i64)> {
        validity::of(self.chain.first()?)
    }

    /// Whether TLS can use the key, and whether it is the leaf's.
    ///
    /// # Errors
    /// What TLS says to them.
    pub fn check(&self) -> Result<(), rustls::Error> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        rustls::sign::CertifiedKey::from_der(self.chain.clone(), self.key.clone_key(), &provider).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::config::Config;

    const OPEN: &str = "[relay]\nself_certified = true\n";

    #[test]
    fn certificates_are_read_and_matched() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            let cert = rcgen::CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap();
            fs::write(folder.path().join(format!("{name}.crt")), cert.pem()).unwrap();
            fs::write(folder.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        };
        make("a");
        make("b");
        fs::write(folder.path().join("empty"), "").unwrap();
        let with = |cert: &str, key: &str| {
            let line = |name: &str, path: &str| {
                if path.is_empty() { String::new() } else { format!("{name} = {path:?}\n") }
            };
            let text = format!("{OPEN}{}{}", line("quic_cert_path", cert), line("quic_key_path", key));
            Config::parse(&text, folder.path())
        };
        let good = with("a.crt", "a.key").unwrap();
        assert_eq!(good.relay.certificate.as_ref().unwrap().chain.len(), 1);
        assert_eq!(good.relay.server_name, "a", "the certificate's own name is the default");
        let named = |name: &str| {
            let text = format!(
                "{OPEN}server_name = {name:?}\nquic_cert_path = \"a.crt\"\nquic_key_path = \"a.key\"\n"
            );
            Config::parse(&text, folder.path())
        };
        assert_eq!(named("a").unwrap().relay.server_name, "a");
        let other = named("b").unwrap_err();
        assert_eq!((other.0.len(), other.0[0].key.as_str()), (1, "relay.server_name"));
        assert!(other.0[0].reason.contains("is for a"), "{other}");
        for (cert, key, blamed) in [
            ("a.crt", "", &["quic_key_path"][..]),
            ("", "a.key", &["quic_cert_path"]),
            ("a.crt", "b.key", &["quic_cert_path"]),
            ("none", "a.key", &["quic_cert_path"]),
            ("empty", "none", &["quic_cert_path", "quic_key_path"]),
            ("a.key", "a.crt", &["quic_cert_path", "quic_key_path"]),
        ] {
            let faults = with(cert, key).unwrap_err();
            let keys: Vec<_> = faults.0.iter().map(|fault| fault.key.trim_start_matches("relay.")).collect();
            assert_eq!(keys, blamed, "{cert} {key}");
        }
    }
}
