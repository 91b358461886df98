//! The address that clients are told.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use rustls::pki_types::ServerName;

/// An address as clients are told it: an IP address or a host name, perhaps with a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicAddr {
    /// An IP address without brackets, or a host name.
    pub host: String,
    /// `None` for the port that is listened on.
    pub port: Option<u16>,
}

impl FromStr for PublicAddr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "this must be an IP address or a host name, with or without :port";
        let ip = |text: &str| text.parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified());
        if let Ok(addr) = text.parse::<SocketAddr>() {
            let host =
                ip(&addr.ip().to_string()).ok_or("clients cannot connect to an unspecified address")?;
            let port =
                Some(addr.port()).filter(|port| *port != 0).ok_or("clients cannot connect to port 0")?;
            return Ok(Self { host: host.to_string(), port: Some(port) });
        }
        if text.parse::<IpAddr>().is_ok() {
            let host = ip(text).ok_or("clients cannot connect to an unspecified address")?;
            return Ok(Self { host: host.to_string(), port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok().filter(|port| *port != 0).ok_or(FORM)?)),
            None => (text, None),
        };
        match ServerName::try_from(host) {
            Ok(ServerName::DnsName(_)) => Ok(Self { host: host.to_owned(), port }),
            _ => Err(FORM),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses() {
        for (text, host, port) in [
            ("203.0.113.7", "203.0.113.7", None),
            ("203.0.113.7:443", "203.0.113.7", Some(443)),
            ("2001:db8::1", "2001:db8::1", None),
            ("[2001:db8::1]:443", "2001:db8::1", Some(443)),
            ("relay.example.com", "relay.example.com", None),
            ("relay.example.com:443", "relay.example.com", Some(443)),
        ] {
            assert_eq!(text.parse(), Ok(PublicAddr { host: host.into(), port }), "{text}");
        }
        for text in ["", "0.0.0.0", "[::]:443", "1.2.3.4:0", "a:0", "a:b", ":443", "http://a", "a b"] {
            assert!(text.parse::<PublicAddr>().is_err(), "{text}");
        }
    }
}
