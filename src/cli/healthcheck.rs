//! `healthcheck`: asks a relay's ops address how it is, for containers and scripts that have no HTTP client.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use super::{Exit, Failure, OrFail as _, http::Url, out};
use crate::config::{DEFAULT_OPS_PORT, Sources};

/// Ask a running relay whether it is well
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Asks /health: whether the relay is alive; with --ready it asks /ready: whether it takes
new clients. Where nothing says otherwise it asks 127.0.0.1:9433.

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
    /// The relay's configuration, which says where its ops address is
    #[arg(long, value_name = "FILE", conflicts_with = "ops")]
    config: Option<PathBuf>,
}

impl Healthcheck {
    pub(super) async fn run(self) -> Result<Exit, Failure> {
        let base = match (&self.ops, &self.config) {
            (Some(url), _) => url.trim_end_matches('/').to_owned(),
            (None, Some(path)) => {
                let sources = Sources { file: Some(path.clone()), ..Sources::default() };
                let listen = sources.load()?.0.ops.listen;
                format!("http://{}", SocketAddr::new(loopback_of(listen), listen.port()))
            }
            (None, None) => format!("http://127.0.0.1:{DEFAULT_OPS_PORT}"),
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

/// Where one who listens on every address is found on this machine.
fn loopback_of(listen: SocketAddr) -> IpAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}
