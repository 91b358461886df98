//! The section `[ops]`: health, metrics and descriptor.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::pki_types::ServerName;
use toml::{Table, Value};

use super::{
    DEFAULT_OPS_PORT, Fault,
    read::{self, Reason, Section},
};
use crate::geoip::Database;

/// Databases of cities have some 130 MB, those of countries a tenth of that.
const MAX_GEOIP_BYTES: u64 = 512 * 1024 * 1024;
const GEOIP_EXAMPLE: &str = r#""/usr/share/GeoIP/GeoLite2-Country.mmdb""#;

/// The section `[ops]`.
#[derive(Debug)]
pub struct Ops {
    /// Where to listen, TCP.
    pub listen: SocketAddr,
    /// Knows which countries clients come from.
    pub countries: Option<Arc<Database>>,
    /// The file that it was read from, or cannot be.
    pub geoip_file: Option<PathBuf>,
    /// Names that HTTP is asked by here and on the admin port, besides addresses and private ones.
    pub allowed_hosts: Vec<String>,
}

pub(super) fn read_ops(table: Table, folder: &Path, faults: &mut Vec<Fault>) -> (Ops, Vec<String>) {
    let mut ops = Section::new("ops", table, faults);
    let listen_addr =
        ops.read("listen_addr", r#""127.0.0.1""#, read::ip).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let listen_port = ops.read("listen_port", "9433", read::number(0..=u16::MAX)).unwrap_or(DEFAULT_OPS_PORT);
    let allowed_hosts = ops.read("allowed_hosts", r#"["relay.example.com"]"#, hosts).unwrap_or_default();
    let mut geoip_file = None;
    let countries = ops.read("geoip_path", GEOIP_EXAMPLE, |value| {
        let path = geoip_file.insert(folder.join(read::text(value)?));
        countries(path).map_err(Reason::that_can_wait)
    });
    let listen = SocketAddr::new(listen_addr, listen_port);
    (Ops { listen, countries, geoip_file, allowed_hosts }, ops.finish())
}

fn countries(path: &Path) -> Result<Arc<Database>, Reason> {
    let mut bytes = read::file(path, MAX_GEOIP_BYTES)?;
    let database = Database::new(std::mem::take(&mut bytes));
    Ok(Arc::new(database.map_err(|error| format!("the file {} {error}", path.display()))?))
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
