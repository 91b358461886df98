//! The section `[ops]`: health, metrics and descriptor.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rustls::pki_types::ServerName;
use toml::{Table, Value};

use super::{
    DEFAULT_OPS_PORT, Fault,
    read::{self, Section},
};

/// The section `[ops]`.
#[derive(Debug)]
pub struct Ops {
    /// Where to listen, TCP.
    pub listen: SocketAddr,
    /// Names that HTTP is asked by here and on the admin port, besides addresses and private ones.
    pub allowed_hosts: Vec<String>,
}

pub(super) fn read_ops(table: Table, faults: &mut Vec<Fault>) -> (Ops, Vec<String>) {
    let mut ops = Section::new("ops", table, faults);
    let listen_addr =
        ops.read("listen_addr", r#""127.0.0.1""#, read::ip).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let listen_port = ops.read("listen_port", "9433", read::number(0..=u16::MAX)).unwrap_or(DEFAULT_OPS_PORT);
    let allowed_hosts = ops.read("allowed_hosts", r#"["relay.example.com"]"#, hosts).unwrap_or_default();
    (Ops { listen: SocketAddr::new(listen_addr, listen_port), allowed_hosts }, ops.finish())
}

/// Names without ports; `*` for all there are.
fn hosts(value: &Value) -> Result<Vec<String>, &'static str> {
    const FORM: &str =
        "this must be a list of host names without ports, as [\"relay.example.com\"], or [\"*\"]";
    let is_name =
        |name: &&str| *name == "*" || matches!(ServerName::try_from(*name), Ok(ServerName::DnsName(_)));
    let names = value.as_array().ok_or(FORM)?.iter();
    names.map(|name| name.as_str().filter(is_name).map(str::to_owned).ok_or(FORM)).collect()
}
