//! The section `[acme]`: certificates from a public authority, or from one of the operator's own.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::Url;
use rustls::pki_types::{CertificateDer, ServerName};
use toml::{Table, Value};

use super::{
    DAY, Fault, Relay,
    certificate::certificates,
    read::{self, Reason, Section},
};

/// Where Let's Encrypt is asked.
const DEFAULT_DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Authorities take no more in one certificate.
const MAX_DOMAINS: usize = 100;
const DEFAULT_DNS_WAIT: Duration = Duration::from_secs(15);

/// The section `[acme]`.
#[derive(Debug, Clone)]
pub struct Acme {
    /// What the certificate is to be for; none: no certificate is asked for.
    pub domains: Vec<String>,
    /// The URL of the authority's directory.
    pub directory: String,
    /// Whom the authority may write to, as a URI.
    pub contact: Option<String>,
    /// What to trust beside what the system trusts, when talking to the authority.
    pub roots: Vec<CertificateDer<'static>>,
    /// How to show that the domains are ours.
    pub challenge: Challenge,
}

/// How to show that a domain is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// The authority asks over HTTP.
    Http {
        /// Where to answer while it does; `None` for the ops port.
        listen: Option<SocketAddr>,
    },
    /// The authority asks the DNS.
    Dns {
        /// Writes into it.
        hook: PathBuf,
        /// From the last record until the authority is told to look.
        wait: Duration,
    },
}

impl Default for Acme {
    fn default() -> Self {
        Self {
            domains: Vec::new(),
            directory: DEFAULT_DIRECTORY.into(),
            contact: None,
            roots: Vec::new(),
            challenge: Challenge::Http { listen: Some(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 80)) },
        }
    }
}

impl Acme {
    /// Also answers with the paths of all keys there are. `relay` is told its name where nothing else names it;
    /// `named` is whether something does.
    pub(super) fn read(
        table: Table,
        folder: &Path,
        relay: &mut Relay,
        named: bool,
        faults: &mut Vec<Fault>,
    ) -> (Self, Vec<String>) {
        let mut acme = Section::new("acme", table, faults);
        let domains = acme.read("domains", r#"["relay.example.com"]"#, domains).unwrap_or_default();
        let accepted = acme.read("accept_terms", "true", read::switch);
        let contact = acme.read("contact", r#""ops@example.com""#, contact);
        let directory = acme
            .read("directory", &format!("{DEFAULT_DIRECTORY:?}"), directory)
            .unwrap_or_else(|| DEFAULT_DIRECTORY.into());
        let roots = acme.read("ca_path", r#""/etc/zrc-relay/ca.pem""#, |value| roots(value, folder));
        let by_dns = acme
            .read("challenge", r#""http-01""#, |value| match value.as_str() {
                Some("http-01") => Ok(false),
                Some("dns-01") => Ok(true),
                _ => Err("this must be \"http-01\" or \"dns-01\""),
            })
            .unwrap_or(false);
        let addr =
            acme.read("http_addr", r#""0.0.0.0""#, read::ip).unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        let port = acme
            .read("http_port", "80", |value| {
                read::number(0..=u16::MAX)(value).map_err(|reason| format!("{reason} (0: the ops port)"))
            })
            .unwrap_or(80);
        let hook = acme.read("dns_hook", r#""/etc/zrc-relay/dns-hook""#, |value| {
            read::text(value).map(|path| folder.join(path))
        });
        let wait = acme
            .read("dns_wait", r#""15s""#, read::duration(Duration::ZERO..=DAY))
            .unwrap_or(DEFAULT_DNS_WAIT);
        let challenge = match (by_dns, hook) {
            (true, Some(hook)) => Challenge::Dns { hook, wait },
            (true, None) => {
                if !acme.was_given("dns_hook") {
                    let reason = "dns-01 needs a command that writes into the DNS".into();
                    acme.fault("dns_hook", None, reason, r#"dns_hook = "/etc/zrc-relay/dns-hook""#.into());
                }
                Challenge::Http { listen: None }
            }
            (false, _) => Challenge::Http { listen: (port != 0).then(|| SocketAddr::new(addr, port)) },
        };
        if !domains.is_empty() {
            if accepted != Some(true) {
                let reason = "the authority has terms of service, which its directory names; they have to be agreed to";
                acme.fault(
                    "accept_terms",
                    accepted.map(Value::Boolean).as_ref(),
                    reason.into(),
                    "accept_terms = true".into(),
                );
            }
            if relay.certificate.is_some() {
                let reason = "there is a certificate in quic_cert_path; keep one of the two";
                acme.fault("domains", None, reason.into(), String::new());
            }
            if !by_dns && domains.iter().any(|domain| domain.starts_with("*.")) {
                let reason = "authorities give wildcards for dns-01 alone";
                acme.fault("challenge", None, reason.into(), r#"challenge = "dns-01""#.into());
            }
            let first = domains.iter().find(|domain| !domain.starts_with("*."));
            match (named, first) {
                (false, Some(first)) => relay.server_name.clone_from(first),
                _ if covers(&domains, &relay.server_name) => {}
                _ => {
                    let reason = format!(
                        "none of them is for server_name, {:?}, which clients check",
                        relay.server_name
                    );
                    acme.fault("domains", None, reason, format!("domains = [{:?}]", relay.server_name));
                }
            }
        }
        let checked = Self { domains, directory, contact, roots: roots.unwrap_or_default(), challenge };
        (checked, acme.finish())
    }
}

/// Whether a certificate for these domains is for that name.
pub fn covers(domains: &[String], name: &str) -> bool {
    let parent = name.split_once('.').map(|(_, parent)| parent);
    domains.iter().any(|domain| {
        domain.eq_ignore_ascii_case(name)
            || domain
                .strip_prefix("*.")
                .zip(parent)
                .is_some_and(|(zone, parent)| zone.eq_ignore_ascii_case(parent))
    })
}

fn domains(value: &Value) -> Result<Vec<String>, String> {
    let list = value.as_array().ok_or("this must be a list of host names in quotes")?;
    if list.len() > MAX_DOMAINS {
        return Err(format!("a certificate is for at most {MAX_DOMAINS} names"));
    }
    list.iter()
        .map(|value| {
            let name = read::text(value)?;
            let bare = name.strip_prefix("*.").unwrap_or(&name);
            match ServerName::try_from(bare) {
                Ok(ServerName::DnsName(_)) => Ok(name.to_ascii_lowercase()),
                _ => Err(format!("{name:?} is no host name")),
            }
        })
        .collect()
}

/// An address of mail.
fn contact(value: &Value) -> Result<String, &'static str> {
    let text = read::text(value)?;
    let address = text.strip_prefix("mailto:").unwrap_or(&text);
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, ',' | '?' | ':');
    match address.split_once('@') {
        Some((user, host)) if !user.is_empty() && !host.is_empty() && address.chars().all(plain) => {
            Ok(format!("mailto:{address}"))
        }
        _ => Err("this must be one address of mail"),
    }
}

fn directory(value: &Value) -> Result<String, &'static str> {
    let text = read::text(value)?;
    match Url::parse(&text) {
        Ok(url) if url.scheme() == "https" && url.has_host() => Ok(text),
        _ => Err("this must be a URL that begins with https://"),
    }
}

fn roots(value: &Value, folder: &Path) -> Result<Vec<CertificateDer<'static>>, Reason> {
    certificates(&folder.join(read::text(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Faults};

    fn read(relay: &str, section: &str) -> Result<Config, Faults> {
        let text = format!("[relay]\nself_certified = true\n{relay}[acme]\n{section}");
        Config::parse(&text, Path::new("/etc/zrc"))
    }

    #[test]
    fn r8_the_whole_section_is_read() {
        let config = read("", "").unwrap();
        assert_eq!(format!("{:?}", config.acme), format!("{:?}", Acme::default()));
        assert_eq!(config.relay.server_name, "zrc-relay");
        let wanted = "domains = [\"Relay.example.com\", \"b.example.com\"]\naccept_terms = true\n\
                      contact = \"ops@example.com\"\ndirectory = \"https://127.0.0.1:14000/dir\"\n";
        let config = read("", &format!("{wanted}http_addr = \"127.0.0.1\"\nhttp_port = 5002\n")).unwrap();
        assert_eq!(config.acme.domains, ["relay.example.com", "b.example.com"]);
        assert_eq!(config.relay.server_name, "relay.example.com");
        assert_eq!(config.acme.contact.as_deref(), Some("mailto:ops@example.com"));
        assert_eq!(
            config.acme.challenge,
            Challenge::Http { listen: Some("127.0.0.1:5002".parse().unwrap()) }
        );
        let ops = read("", &format!("{wanted}http_port = 0\n")).unwrap();
        assert_eq!(ops.acme.challenge, Challenge::Http { listen: None });
        let dns = "challenge = \"dns-01\"\ndns_hook = \"hook\"\ndns_wait = \"0s\"\n";
        let config = read("server_name = \"b.example.com\"\n", &format!("{wanted}{dns}")).unwrap();
        assert_eq!(config.relay.server_name, "b.example.com");
        let hook = PathBuf::from("/etc/zrc/hook");
        assert_eq!(config.acme.challenge, Challenge::Dns { hook, wait: Duration::ZERO });
        let wild = "domains = [\"*.example.com\"]\naccept_terms = true\n";
        read("server_name = \"a.example.com\"\n", &format!("{wild}{dns}")).unwrap();
    }

    #[test]
    fn r8_what_cannot_be_is_said() {
        let on = "domains = [\"a.example\"]\naccept_terms = true\n";
        for (relay, section, key, words) in [
            ("", "domains = \"a\"", "domains", "list"),
            ("", "domains = [\"192.0.2.1\"]", "domains", "no host name"),
            ("", "domains = [\"a.example\"]", "accept_terms", "agreed"),
            ("", "domains = [\"a.example\"]\naccept_terms = false", "accept_terms", "agreed"),
            ("", "domains = [\"*.a.example\", \"a.example\"]\naccept_terms = true", "challenge", "dns-01"),
            ("server_name = \"b.example\"\n", on, "domains", "server_name"),
            ("", "contact = \"nobody\"", "contact", "mail"),
            ("", "contact = \"a@b,c@d\"", "contact", "mail"),
            ("", "directory = \"http://a\"", "directory", "https"),
            ("", "challenge = \"tls-alpn-01\"", "challenge", "http-01"),
            ("", "challenge = \"dns-01\"", "dns_hook", "command"),
            ("", "http_port = 65536", "http_port", "0: the ops port"),
            ("", "dns_wait = \"25h\"", "dns_wait", "24h"),
            ("", "ca_path = \"none\"", "ca_path", "cannot read"),
        ] {
            let faults = read(relay, section).unwrap_err().0;
            assert_eq!(faults.len(), 1, "{section}: {faults:?}");
            assert_eq!(faults[0].key, format!("acme.{key}"), "{section}");
            assert!(faults[0].reason.contains(words), "{section}: {}", faults[0].reason);
        }
    }
}
