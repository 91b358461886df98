//! `healthcheck`: asks a relay's ops address how it is, for containers and scripts that have no HTTP client.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use super::{Exit, Failure, OrFail as _, http::Url, out};
use crate::config::{DEFAULT_OPS_PORT, FILE_VARIABLE, Overrides, Sources};

/// Ask a running relay whether it is well
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Asks /health: whether the relay is alive; with --ready it asks /ready: whether it takes
new clients. Where it asks is said by the configuration and the environment, as for serve;
where they do not say, it is 127.0.0.1:9433. Faults in them are for check-config: a relay
that runs goes on with what it read before.

Exit 0: it is. Exit 1: it is not, or does not answer within 5 seconds.

Examples:
  zrc-relay healthcheck
  zrc-relay healthcheck --ready --config /etc/zrc-relay/relay.toml
  HEALTHCHECK CMD [\"/zrc-relay\", \"healthcheck\"]      in a container file")]
pub struct Healthcheck {
    /// Ask whether it takes new clients, rather than whether it is alive
    #[arg(long)]
    ready: bool,
    /// The ops address, as http://HOST:PORT
    #[arg(long, value_name = "URL")]
    ops: Option<String>,
    /// The relay's configuration, which says where its ops address is [default: ZRC_RELAY_CONFIG]
    #[arg(long, value_name = "FILE", conflicts_with = "ops")]
    config: Option<PathBuf>,
}

impl Healthcheck {
    pub(super) async fn run(self) -> Result<Exit, Failure> {
        let base = match &self.ops {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => {
                let said = std::env::var_os(FILE_VARIABLE).filter(|file| !file.is_empty());
                let listen = listening(self.config.or_else(|| said.map(PathBuf::from)))?;
                format!("http://{}", SocketAddr::new(loopback_of(listen), listen.port()))
            }
        };
        let path = if self.ready { "/ready" } else { "/health" };
        let url = Url::parse(&format!("{base}{path}")).or_fail(Exit::Usage, format!("--ops {base}"))?;
        match url.get().await {
            Ok(_) => Ok(Exit::Ok),
            Err(error) => {
                out::say(format_args!("{base}{path}: {error:#}"));
                Ok(Exit::Refused)
            }
        }
    }
}

/// Where a relay with this configuration and environment has its ops address, whatever else is wrong with them.
fn listening(file: Option<PathBuf>) -> Result<SocketAddr, Failure> {
    let over = Overrides { environment: Overrides::environment(), ..Overrides::default() };
    let settings = Sources { file, over, ..Sources::default() }.read()?.settings.all();
    let value = |key| settings.iter().find(|setting| setting.key == key)?.value.as_ref();
    let ip = value("ops.listen_addr").and_then(|ip| ip.as_str()?.parse().ok());
    let port = value("ops.listen_port").and_then(|port| u16::try_from(port.as_integer()?).ok());
    Ok(SocketAddr::new(ip.unwrap_or(Ipv4Addr::LOCALHOST.into()), port.unwrap_or(DEFAULT_OPS_PORT)))
}

/// Where one who listens on every address is found on this machine.
fn loopback_of(listen: SocketAddr) -> IpAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}
