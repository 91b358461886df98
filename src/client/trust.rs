//! Why a client believes that a relay is the one it means: a pinned key, a given CA, or the WebPKI.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use rustls::{
    CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    server::ParsedCertificate,
};

use crate::wire::{ALPN, SpkiPin};

/// Why a relay is not trusted, or why there is nothing to trust one by. Trying again does not help.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// The relay showed another key than the pinned one: it is another relay, or its key has changed.
    #[error("the relay's key is {got}, the pin says {expected}")]
    PinMismatch {
        /// The pin in force.
        expected: SpkiPin,
        /// What the relay showed. Chosen by whoever answered.
        got: SpkiPin,
    },
    /// The certificate or the handshake's signature does not pass.
    #[error("the relay's certificate is not acceptable: {0}")]
    Certificate(rustls::Error),
    /// The CA given to [`Relay::with_ca`](super::Relay::with_ca) holds no usable certificate.
    #[error("the CA file holds no usable certificate")]
    Ca,
    /// The operating system names no certificate authority.
    #[error("this machine has no certificate authorities to trust; give a CA or a pin")]
    NoRoots,
    /// The cryptographic provider lacks what QUIC needs.
    #[error("TLS cannot be set up: {0}")]
    Provider(rustls::Error),
}

/// What vouches for a relay.
#[derive(Clone)]
pub(super) enum Trust {
    /// This key and no other; its name and its dates do not matter.
    Pin(SpkiPin),
    /// Certificates under these authorities, with the right name, in date.
    Roots(Arc<RootCertStore>),
    /// Certificates under the operating system's authorities.
    System,
}

/// The same authority, not merely an equal one.
impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pin(left), Self::Pin(right)) => left == right,
            (Self::Roots(left), Self::Roots(right)) => Arc::ptr_eq(left, right),
            (Self::System, Self::System) => true,
            _ => false,
        }
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pin(pin) => write!(f, "Pin({pin})"),
            Self::Roots(roots) => write!(f, "Roots({})", roots.len()),
            Self::System => f.write_str("System"),
        }
    }
}

impl Trust {
    /// The same, with what must be read from files read.
    pub(super) async fn loaded(&self) -> Result<Self, TrustError> {
        match self {
            Self::System => {
                let roots =
                    tokio::task::spawn_blocking(system_roots).await.map_err(|_| TrustError::NoRoots)??;
                Ok(Self::Roots(roots))
            }
            other => Ok(other.clone()),
        }
    }
}

/// Reads a PEM file's certificates as the authorities to trust.
pub(super) fn roots_from_pem(pem: &[u8]) -> Result<Arc<RootCertStore>, TrustError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(|_| TrustError::Ca)?).map_err(|_| TrustError::Ca)?;
    }
    if roots.is_empty() { Err(TrustError::Ca) } else { Ok(Arc::new(roots)) }
}

/// The operating system's authorities, read once in the life of the process. Blocks.
fn system_roots() -> Result<Arc<RootCertStore>, TrustError> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::debug!(%error, "some of this machine's certificate authorities cannot be read");
        }
        let mut roots = RootCertStore::empty();
        let (added, ignored) = roots.add_parsable_certificates(found.certs);
        tracing::debug!(added, ignored, "read this machine's certificate authorities");
        Arc::new(roots)
    });
    if roots.is_empty() { Err(TrustError::NoRoots) } else { Ok(roots.clone()) }
}

/// One connection's TLS settings, and where its verdict on the relay is found afterwards.
pub(super) struct Tls {
    pub(super) config: Arc<rustls::ClientConfig>,
    pub(super) verdict: Verdict,
}

/// Why the certificate was refused, if it was: quinn passes on no more than the alert's number.
#[derive(Clone, Default)]
pub(super) struct Verdict(Arc<OnceLock<TrustError>>);

impl Verdict {
    pub(super) fn refused(&self) -> Option<TrustError> {
        self.0.get().cloned()
    }
}

/// Makes the TLS settings for one connection. Blocks unless `trust` is [loaded](Trust::loaded).
pub(super) fn tls(trust: &Trust) -> Result<Tls, TrustError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let inner = match trust {
        Trust::Pin(pin) => Judge::Pin(*pin),
        Trust::Roots(roots) => Judge::WebPki(web_pki(roots.clone(), provider.clone())?),
        Trust::System => Judge::WebPki(web_pki(system_roots()?, provider.clone())?),
    };
    let verdict = Verdict::default();
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TrustError::Provider)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { inner, algorithms, verdict: verdict.clone() }))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_early_data = false;
    // A resumed session shows no certificate: each connection is to be judged afresh.
    config.resumption = Resumption::disabled();
    Ok(Tls { config: Arc::new(config), verdict })
}

fn web_pki(
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TrustError> {
    WebPkiServerVerifier::builder_with_provider(roots, provider).build().map_err(|_| TrustError::NoRoots)
}

#[derive(Debug)]
enum Judge {
    Pin(SpkiPin),
    WebPki(Arc<WebPkiServerVerifier>),
}

struct Verifier {
    inner: Judge,
    algorithms: WebPkiSupportedAlgorithms,
    verdict: Verdict,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Verifier {
    /// Remembers why, so that the caller learns more than an alert.
    fn refuse(&self, why: TrustError, alert: rustls::Error) -> rustls::Error {
        let _ = self.verdict.0.set(why);
        alert
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.inner {
            Judge::WebPki(judge) => judge
                .verify_server_cert(leaf, intermediates, server_name, ocsp_response, now)
                .map_err(|error| self.refuse(TrustError::Certificate(error.clone()), error)),
            Judge::Pin(expected) => {
                let got = spki_pin(leaf)
                    .map_err(|error| self.refuse(TrustError::Certificate(error.clone()), error))?;
                if !same(&got, expected) {
                    let alert = CertificateError::ApplicationVerificationFailure.into();
                    return Err(self.refuse(TrustError::PinMismatch { expected: *expected, got }, alert));
                }
                Ok(ServerCertVerified::assertion())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // QUIC has no TLS 1.2.
        Err(rustls::PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
            .map_err(|error| self.refuse(TrustError::Certificate(error.clone()), error))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The pin of a certificate's key.
pub(super) fn spki_pin(certificate: &CertificateDer<'_>) -> Result<SpkiPin, rustls::Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    Ok(SpkiPin::of(&parsed.subject_public_key_info()))
}

/// Compares in time that does not depend on where the two differ.
fn same(left: &SpkiPin, right: &SpkiPin) -> bool {
    left.0.iter().zip(&right.0).fold(0, |differ, (left, right)| differ | (left ^ right)) == 0
}
