//! `--relay`: which relay a client command talks to, in any of the ways people have it at hand.

use std::{fs, net::IpAddr, path::Path};

use crate::wire::{Descriptor, RelayId, SpkiPin};

use super::{Exit, Failure, OrFail as _, files, http::Url};

/// Where a relay describes itself.
const WELL_KNOWN: &str = "/.well-known/zrc-relay";

/// Said below the help of every command that takes `--relay`.
pub(super) const RELAY_HELP: &str = "\
--relay takes
  a file           relay.json, which the relay writes into its state directory, or that one
  a URL            http://IP:PORT of the relay's ops address
  host:port        of its UDP port, with --relay-id, and with --pin unless its certificate is
                   one that this machine trusts";

/// Which relay.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct RelayArgs {
    /// The relay: its relay.json, the URL of its ops address, or host:port
    #[arg(long, value_name = "RELAY")]
    relay: String,
    /// With --relay host:port: the relay's id, 32 hex digits
    #[arg(long, value_name = "HEX")]
    relay_id: Option<RelayId>,
    /// With --relay host:port: the pin of the relay's key, sha256/BASE64
    #[arg(long, value_name = "PIN")]
    pin: Option<SpkiPin>,
    /// With --relay host:port: the name in the relay's certificate [default: the host]
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
}

impl RelayArgs {
    /// Finds out all that a client needs.
    ///
    /// # Errors
    /// [`Exit::Usage`], [`Exit::NoInput`], [`Exit::Data`], or [`Exit::Unavailable`] when the URL does not answer.
    pub(super) async fn resolve(&self) -> Result<Descriptor, Failure> {
        let mut descriptor = if self.relay.contains("://") {
            self.fetch().await?
        } else if let Some(file) = self.as_file() {
            parse(&files::read_small(&file, "relay descriptor")?, &file.display().to_string())?
        } else {
            self.as_host_and_port()?
        };
        if let Some(relay_id) = self.relay_id {
            descriptor.relay_id = relay_id;
        }
        if let Some(pin) = self.pin {
            descriptor.spki = Some(pin);
        }
        if let Some(name) = &self.server_name {
            descriptor.server_name.clone_from(name);
        }
        Ok(descriptor)
    }

    async fn fetch(&self) -> Result<Descriptor, Failure> {
        let mut url = Url::parse(&self.relay).or_fail(Exit::Usage, format!("--relay {}", self.relay))?;
        if url.path == "/" {
            url.path = WELL_KNOWN.into();
        }
        let body = url.get().await.or_fail(Exit::Unavailable, format!("cannot ask {}", self.relay))?;
        parse(&body, &self.relay)
    }

    fn as_file(&self) -> Option<std::path::PathBuf> {
        let path = Path::new(&self.relay);
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Some(path.join("relay.json")),
            Ok(_) => Some(path.into()),
            Err(_) => None,
        }
    }

    fn as_host_and_port(&self) -> Result<Descriptor, Failure> {
        let usage = |why: &str| Failure::new(Exit::Usage, format!("--relay {}: {why}", self.relay));
        let parts = self.relay.rsplit_once(':').and_then(|(host, port)| {
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            let is_host = host.parse::<IpAddr>().is_ok() || !host.is_empty() && !host.contains(['/', ':']);
            Some((host, port.parse().ok().filter(|port: &u16| *port != 0)?)).filter(|_| is_host)
        });
        let Some((host, port)) = parts else {
            let message =
                format!("--relay {}: there is no such file, and it is no URL and no host:port", self.relay);
            return Err(Failure::new(Exit::NoInput, message));
        };
        Ok(Descriptor {
            addr: host.into(),
            port,
            server_name: host.into(),
            spki: None,
            relay_id: self.relay_id.ok_or_else(|| usage("host:port needs --relay-id HEX"))?,
            region: None,
        })
    }
}

fn parse(bytes: &[u8], from: &str) -> Result<Descriptor, Failure> {
    serde_json::from_slice(bytes).or_fail(Exit::Data, format!("{from} does not describe a relay"))
}
