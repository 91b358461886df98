//! `init`: a folder with all that a relay needs to start.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustls::pki_types::ServerName;

use super::{
    Exit, Failure, OrFail as _, files, keygen, out,
    running::ADMIN_SOCKET,
    state::{Given, State},
};
use crate::{
    clock::Clock,
    config::{EXAMPLE, MAX_SOCKET_BYTES, PublicAddr, Sources},
};

/// Make a folder with a configuration, keys and a certificate, ready for serve
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Writes into the folder, which it makes:

  relay.toml     the configuration, 0600: every key, explained
  devices.toml   who may use the relay, 0600: one device
  device.key     that device's key, 0600
  peer.key       a peer's key, 0600, to try with
  state/         0700: the relay's TLS key, certificate and relay id

Nothing that is there is overwritten: if one of them exists, nothing is written.

Examples:
  zrc-relay init relay --name relay.example.com
  zrc-relay init first --name localhost --open --admin       for trying
  zrc-relay check-config relay/relay.toml
  zrc-relay serve --config relay/relay.toml")]
pub struct Init {
    /// The folder
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
    /// The host name or address that clients connect to, which also stands in the certificate
    #[arg(long, value_name = "HOST")]
    name: Option<String>,
    /// Serve every device that proves its own key, in place of those in devices.toml
    #[arg(long)]
    open: bool,
    /// Turn on the admin API and the dashboard, on 127.0.0.1 and on a Unix socket in state/
    #[arg(long)]
    admin: bool,
}

impl Init {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let name = self.name.as_deref();
        if let Some(name) = name
            && (name.parse::<PublicAddr>().is_err() || ServerName::try_from(name).is_err())
        {
            let reason = format!("--name {name}: this must be a host name or an IP address, without a port");
            return Err(Failure::new(Exit::Usage, reason));
        }
        let socket = self.folder.join("state").join(ADMIN_SOCKET);
        if self.admin && socket.as_os_str().len() > MAX_SOCKET_BYTES {
            let reason =
                format!("--admin: {} is too long for a socket; choose a shorter DIR", socket.display());
            return Err(Failure::new(Exit::Usage, reason));
        }
        let cannot_make = format!("cannot make the folder {}", self.folder.display());
        files::private_folder(&self.folder).or_fail(Exit::CantCreate, cannot_make)?;
        let file = |name: &str| self.folder.join(name);
        let wanted = ["relay.toml", "devices.toml", "device.key", "peer.key", "state"];
        let there: Vec<_> = wanted.iter().filter(|name| fs::symlink_metadata(file(name)).is_ok()).collect();
        if let Some(first) = there.first() {
            let reason = format!("{} is there already; nothing was written", file(first).display());
            return Err(Failure::new(Exit::CantCreate, reason));
        }
        let keys = [keygen::random_key()?, keygen::random_key()?];
        let [device_id, peer_id] = keys.each_ref().map(|key| hex::encode(key.verifying_key()));
        let devices = format!(
            "# Who may use the relay: a section for each device. The relay reads this file again when it changes.\n\
             [[device]]\nid = \"{device_id}\"\nkey = \"{device_id}\"\nname = \"device.key\"\n"
        );
        write(&file("devices.toml"), devices.as_bytes())?;
        for (key, name) in keys.iter().zip(["device.key", "peer.key"]) {
            write(&file(name), keygen::to_pem(key)?.as_bytes())?;
        }
        let configuration = file("relay.toml");
        write(&configuration, configuration_text(name, self.open, self.admin).as_bytes())?;
        // What is written is what serve takes, or it is a fault of this program.
        let (config, _) = Sources { file: Some(configuration.clone()), ..Sources::default() }.load()?;
        let now = i64::try_from(Clock::start().unix_secs()).unwrap_or(i64::MAX);
        let state = State::open(config.state_dir, &config.relay.server_name, now, Given::default())?;

        out::data(configuration.display())?;
        let shown = out::quoted(&configuration);
        out::say(format_args!("relay id {}, pin {}", state.relay_id, state.pin));
        out::say(format_args!("device id {device_id}\npeer id {peer_id}"));
        let [device, relay] = ["device.key", "state/relay.json"].map(|name| out::quoted(&file(name)));
        out::say(format_args!("next:"));
        if self.admin {
            out::say(format_args!("  zrc-relay admin token new --name me --role full --config {shown}"));
        }
        out::say(format_args!("  zrc-relay serve --config {shown}"));
        out::say(format_args!(
            "  zrc-relay token mint --device-key {device} --peer-id {peer_id} --relay {relay} --ttl 1h"
        ));
        Ok(Exit::Ok)
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    files::create_new(path, bytes, files::SECRET).map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::AlreadyExists => {
                format!("{} is there already and is left as it is", path.display())
            }
            _ => format!("cannot make {}", path.display()),
        };
        Failure { exit: Exit::CantCreate, error: anyhow::Error::new(error).context(advice) }
    })
}

/// The example, with what is made here in place of what it shows.
fn configuration_text(name: Option<&str>, open: bool, admin: bool) -> String {
    let mut text = String::new();
    for line in EXAMPLE.lines() {
        let key = line.trim_start_matches('#').split(" = ").next().unwrap_or_default();
        let line = match (key, name) {
            ("state_dir", _) => "state_dir = \"state\"".to_owned(),
            ("device_file", _) if !open => "device_file = \"devices.toml\"".to_owned(),
            ("self_certified", _) if open => "self_certified = true".to_owned(),
            ("socket", _) if admin => format!("socket = \"state/{ADMIN_SOCKET}\""),
            // Those of other sections have a default, and stand without the sign.
            ("listen_addr", _) if admin && line.starts_with('#') => "listen_addr = \"127.0.0.1\"".to_owned(),
            ("server_name", Some(name)) => format!("server_name = {name:?}"),
            ("public_addr", Some(name)) => format!("public_addr = {name:?}"),
            _ => line.to_owned(),
        };
        text += &line;
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    #[test]
    fn the_example_becomes_what_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let text = configuration_text(Some("relay.example.com"), true, false);
        let config = Config::parse(&text, folder.path()).unwrap();
        assert!(config.relay.self_certified.is_some() && config.relay.device_file.is_none());
        assert_eq!(config.relay.server_name, "relay.example.com");
        assert_eq!(config.relay.public.unwrap().host, "relay.example.com");
        assert_eq!(config.state_dir, folder.path().join("state"));
        assert_eq!(text.lines().count(), EXAMPLE.lines().count());
        assert!(config.admin.listen.is_none() && config.admin.socket.is_none());
        let administered = configuration_text(None, true, true);
        let config = Config::parse(&administered, folder.path()).unwrap();
        assert_eq!(config.admin.listen, Some("127.0.0.1:9434".parse().unwrap()));
        assert_eq!(config.admin.socket, Some(folder.path().join("state/admin.sock")));
        assert!(config.relay.listen.ip().is_unspecified() && config.ops.listen.ip().is_loopback());
        let pinned = configuration_text(None, false, false);
        // Its file of devices is not there.
        let faults = Config::parse(&pinned, Path::new("/none")).unwrap_err().0;
        assert_eq!((faults.len(), faults[0].key.as_str()), (1, "relay.device_file"));
    }
}
