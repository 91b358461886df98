//! TLS towards HTTPS servers: what the relay and its commands trust when they ask others, whoever those are.

use std::sync::Arc;

use rustls::{ClientConfig, Error, RootCertStore, pki_types::CertificateDer};

/// Whose certificates are believed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trusted<'a> {
    /// Those of the authorities that this system trusts. With none, https fails and says why; http needs none.
    System,
    /// Of these, too. One that cannot be read counts for nothing, as among the system's.
    SystemAnd(&'a [CertificateDer<'static>]),
    /// Of these, and of nobody else.
    Only(&'a [CertificateDer<'static>]),
}

/// Without a certificate of our own. Reads files: not for threads that move packets.
///
/// # Errors
/// One of [`Trusted::Only`] is no certificate that others could be signed with, or TLS cannot be set up at all.
pub(crate) fn client(trusted: Trusted<'_>) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(trusted)?)
        .with_no_client_auth())
}

fn roots(trusted: Trusted<'_>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    let (system, more) = match trusted {
        Trusted::System => (true, &[][..]),
        Trusted::SystemAnd(more) => (true, more),
        Trusted::Only(these) => {
            these.iter().try_for_each(|one| roots.add(one.clone()))?;
            (false, &[][..])
        }
    };
    if system {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    roots.add_parsable_certificates(more.iter().cloned());
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use rustls::{ClientConnection, ServerConfig, ServerConnection, pki_types::PrivateKeyDer};

    use super::*;

    /// A server that signed its own certificate, and that certificate.
    fn server() -> (Arc<ServerConfig>, CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        (Arc::new(config), made.cert.der().clone())
    }

    /// What the client makes of the server, over no network.
    fn meet(client: ClientConfig, server: &Arc<ServerConfig>) -> Result<(), Error> {
        let name = "a.example".try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(server.clone()).unwrap();
        let mut wire = Vec::new();
        while client.is_handshaking() {
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            wire.clear();
            server.process_new_packets()?;
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            wire.clear();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn whoever_is_named_is_trusted_and_nobody_else() {
        let ((server, its), (_, others)) = (server(), server());
        let met = |trusted: Trusted<'_>| meet(client(trusted).unwrap(), &server);
        met(Trusted::Only(std::slice::from_ref(&its))).unwrap();
        met(Trusted::SystemAnd(&[others.clone(), its.clone()])).unwrap();
        for trusted in [
            Trusted::System,
            Trusted::Only(&[]),
            Trusted::Only(std::slice::from_ref(&others)),
            Trusted::SystemAnd(std::slice::from_ref(&others)),
        ] {
            let error = met(trusted).unwrap_err();
            assert!(matches!(error, Error::InvalidCertificate(_)), "{trusted:?}: {error}");
        }
        // Those of the system are there where they are meant, and nowhere else.
        let count = |trusted: Trusted<'_>| roots(trusted).unwrap().len();
        let system = count(Trusted::System);
        assert_eq!(count(Trusted::SystemAnd(std::slice::from_ref(&its))), system + 1);
        assert_eq!(count(Trusted::Only(std::slice::from_ref(&its))), 1);
    }

    #[test]
    fn what_is_no_certificate_is_refused_where_nothing_else_is_trusted() {
        let none = [CertificateDer::from(vec![0; 8])];
        assert!(client(Trusted::Only(&none)).is_err());
        assert!(client(Trusted::SystemAnd(&none)).is_ok());
    }
}
