//! The section `[admin]`: where administrators reach the relay, and how they show who they are.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{
    Certificate, Fault, certificate,
    read::{self, Section},
};

/// The TCP port of the admin API, beside that of health and metrics.
pub const DEFAULT_ADMIN_PORT: u16 = 9434;
/// What a socket's path comes to at most (`sun_path`).
pub const MAX_SOCKET_BYTES: usize = 100;

const CERTIFICATE: certificate::Keys = certificate::Keys {
    chain: "cert_path",
    key: "key_path",
    chain_example: r#""/etc/zrc-relay/admin.pem""#,
    key_example: r#""/etc/zrc-relay/admin.key""#,
};

/// The section `[admin]`. Without any of its keys nobody can administer anything.
#[derive(Default)]
pub struct Admin {
    /// A Unix socket that only its owner can connect to.
    pub socket: Option<PathBuf>,
    /// Where to listen, TCP.
    pub listen: Option<SocketAddr>,
    /// What HTTPS shows; `None` for plain HTTP.
    pub certificate: Option<Certificate>,
    /// The files that it was read from.
    pub key_files: Vec<PathBuf>,
    /// The tokens' hashes; `None` for the file in the state directory.
    pub token_file: Option<PathBuf>,
}

/// Says nothing of the key.
impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { socket, listen, certificate, key_files, token_file } = self;
        f.debug_struct("Admin")
            .field("socket", socket)
            .field("listen", listen)
            .field("certificate", certificate)
            .field("key_files", key_files)
            .field("token_file", token_file)
            .finish()
    }
}

impl Admin {
    pub(super) fn read(table: Table, folder: &Path, faults: &mut Vec<Fault>) -> (Self, Vec<String>) {
        let mut admin = Section::new("admin", table, faults);
        let path = |value: &Value| read::text(value).map(|path| folder.join(path));
        let socket = admin.read("socket", r#""/run/zrc-relay/admin.sock""#, |value| {
            let path = path(value)?;
            if path.as_os_str().len() > MAX_SOCKET_BYTES {
                return Err("the path of a Unix socket has at most 100 bytes");
            }
            Ok(path)
        });
        let addr = admin.read("listen_addr", r#""127.0.0.1""#, read::ip);
        let port =
            admin.read("listen_port", "9434", read::number(0..=u16::MAX)).unwrap_or(DEFAULT_ADMIN_PORT);
        let token_file = admin.read("token_file", r#""/etc/zrc-relay/admin.tokens""#, path);
        let (certificate, key_files) = certificate::read(&mut admin, &CERTIFICATE, folder);
        let cleartext = admin.read("allow_cleartext", "true", read::switch).unwrap_or(false);
        let has_tls = admin.was_given("cert_path") || admin.was_given("key_path");
        if let Some(addr) = addr.filter(|addr| !is_loopback(*addr) && !has_tls && !cleartext) {
            admin.fault(
                "listen_addr",
                Some(&Value::String(addr.to_string())),
                "tokens would cross the network in the clear: set cert_path and key_path; or listen on \
                 127.0.0.1, behind a proxy\n    that speaks TLS or an SSH tunnel; or say that it is meant, \
                 where the network itself is encrypted"
                    .into(),
                "allow_cleartext = true".into(),
            );
        }
        if addr.is_none() && has_tls {
            let reason = "there is a certificate, and no address to listen on with it";
            admin.fault("listen_addr", None, reason.into(), r#"listen_addr = "::""#.into());
        }
        let listen = addr.map(|addr| SocketAddr::new(addr, port));
        (Self { socket, listen, certificate, key_files, token_file }, admin.finish())
    }
}

fn is_loopback(addr: IpAddr) -> bool {
    addr.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::super::{Config, tests::OPEN};
    use super::*;

    fn parse(lines: &str) -> Result<Admin, Vec<(String, String)>> {
        let parsed = Config::parse(&format!("{OPEN}[admin]\n{lines}"), Path::new("/etc/zrc"));
        parsed
            .map(|config| config.admin)
            .map_err(|faults| faults.0.into_iter().map(|fault| (fault.key, fault.reason)).collect())
    }

    #[test]
    fn r10_off_unless_it_is_asked_for() {
        let off = parse("").unwrap();
        assert!(off.socket.is_none() && off.listen.is_none() && off.certificate.is_none());
        assert!(parse("listen_port = 1\n").unwrap().listen.is_none());
        let on = parse("socket = \"admin.sock\"\nlisten_addr = \"127.0.0.1\"\n").unwrap();
        assert_eq!(on.socket.unwrap(), Path::new("/etc/zrc/admin.sock"));
        assert_eq!(on.listen.unwrap().to_string(), "127.0.0.1:9434");
        let on = parse("listen_addr = \"::1\"\nlisten_port = 0\ntoken_file = \"t\"\n").unwrap();
        assert_eq!(on.listen.unwrap().to_string(), "[::1]:0");
        assert_eq!(on.token_file.unwrap(), Path::new("/etc/zrc/t"));
        let long = parse(&format!("socket = {:?}\n", "x".repeat(101))).unwrap_err();
        assert_eq!(long[0].0, "admin.socket");
    }

    #[test]
    fn r10_no_token_crosses_a_network_in_the_clear_unless_it_is_meant() {
        for addr in ["0.0.0.0", "::", "192.0.2.7", "10.0.0.1", "2001:db8::1"] {
            let line = format!("listen_addr = {addr:?}\n");
            let faults = parse(&line).unwrap_err();
            assert_eq!((faults.len(), faults[0].0.as_str()), (1, "admin.listen_addr"), "{faults:?}");
            assert!(faults[0].1.contains("in the clear"));
            assert!(parse(&(line.clone() + "allow_cleartext = true\n")).is_ok());
            assert!(parse(&(line + "allow_cleartext = false\n")).is_err());
        }
        for addr in ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"] {
            assert!(parse(&format!("listen_addr = {addr:?}\n")).is_ok(), "{addr}");
        }
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(["a".to_owned()]).unwrap().self_signed(&key).unwrap();
        let (cert_path, key_path) = (folder.path().join("c"), folder.path().join("k"));
        std::fs::write(&cert_path, cert.pem()).unwrap();
        std::fs::write(&key_path, key.serialize_pem()).unwrap();
        let tls = format!("cert_path = {cert_path:?}\nkey_path = {key_path:?}\n");
        let with_tls = parse(&format!("listen_addr = \"::\"\n{tls}")).unwrap();
        assert!(with_tls.certificate.is_some());
        assert_eq!(with_tls.key_files, [cert_path.clone(), key_path.clone()]);
        assert_eq!(parse(&tls).unwrap_err()[0].0, "admin.listen_addr");
        let half = parse(&format!("listen_addr = \"::\"\ncert_path = {cert_path:?}\n")).unwrap_err();
        assert_eq!((half.len(), half[0].0.as_str()), (1, "admin.key_path"));
        // Another one's key, and a file with nothing in it.
        let other = folder.path().join("o");
        std::fs::write(&other, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let unfit = format!("listen_addr = \"::1\"\ncert_path = {cert_path:?}\nkey_path = {other:?}\n");
        let faults = parse(&unfit).unwrap_err();
        assert_eq!((faults.len(), faults[0].0.as_str()), (1, "admin.cert_path"));
        assert!(faults[0].1.contains("the key in key_path cannot be used together"), "{faults:?}");
        std::fs::write(&other, "").unwrap();
        let empty = format!("listen_addr = \"::1\"\ncert_path = {other:?}\nkey_path = {key_path:?}\n");
        assert_eq!(parse(&empty).unwrap_err()[0].0, "admin.cert_path");
        let exchanged =
            format!("listen_addr = \"::1\"\ncert_path = {key_path:?}\nkey_path = {cert_path:?}\n");
        let keys: Vec<_> = parse(&exchanged).unwrap_err().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["admin.cert_path", "admin.key_path"]);
    }
}
