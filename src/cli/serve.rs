//! `serve`: runs the relay until a signal ends it.

use std::{path::PathBuf, time::Duration};

use super::{
    Exit, Failure,
    logging::LogArgs,
    out,
    overrides::Set,
    reload::Reload,
    renewal,
    running::{ADMIN_SOCKET, Running},
    service,
    signals::Signals,
    state,
};
use crate::config::{self, MAX_SOCKET_BYTES, Sources};

/// From the signal to the end. Clients acknowledge within a second where they can; the rest is for those that
/// are slow. Below what service managers grant.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(10);

const HOUR: Duration = Duration::from_secs(3600);

/// Run the relay
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The addresses, the relay's id and its pin are said on stderr at start. relay.json in the
state directory tells clients the same, and so does /.well-known/zrc-relay on the ops
address: give them either as --relay.

Unless the configuration says otherwise: UDP port 4433 on every address, ops on
127.0.0.1:9433, state in /var/lib/zrc-relay. relay.example.toml documents every key.
Variables come before the file, ZRC_RELAY_RELAY__LISTEN_PORT=4434, and --set before both.
All faults of a configuration are reported at once, exit code 78; check-config shows them
without starting anything.

--dev listens on free ports of 127.0.0.1, serves every device that proves its own key,
without limits, and keeps its state in ~/.local/state/zrc-relay/dev.

SIGHUP, or a change of the configuration or of a file that it names: certificate, tiers,
devices, issuers, [guard] and the log's level are read again, and apply to what runs. A
file with a fault changes nothing, and the log says so. It names the keys that have
changed and are only read at the start.

SIGTERM and SIGINT: not ready first, then every client is told DRAINING, then the end,
within 10 seconds. A second signal ends at once.

Examples:
  zrc-relay serve --config /etc/zrc-relay/relay.toml
  zrc-relay serve --dev --state-dir /tmp/relay
  zrc-relay probe --relay /tmp/relay/relay.json")]
pub struct Serve {
    /// The configuration; without it, what the environment and the command line say
    #[arg(long, value_name = "FILE", env = config::FILE_VARIABLE)]
    config: Option<PathBuf>,
    /// For trying and developing: loopback only, free ports, every device welcome, no limits, no file
    #[arg(long)]
    dev: bool,
    /// Where certificate, relay id and relay.json are kept, whatever the configuration says
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    set: Set,
}

impl Serve {
    pub(super) async fn run(self, log: &LogArgs) -> Result<Exit, Failure> {
        let mut over = self.set.over();
        over.state_dir = self.state_dir;
        let said = std::env::var_os(config::FILE_VARIABLE).map(PathBuf::from);
        if self.dev && self.config.is_some() && self.config != said {
            return Err(Failure::new(
                Exit::Usage,
                "--dev is for want of a configuration: leave out --config",
            ));
        }
        // A variable that is there for other commands stands in nobody's way.
        let file = self.config.filter(|_| !self.dev);
        let mut sources = Sources { file, development: self.dev, over };
        let (mut config, mut settings) = sources.load()?;
        if self.dev && !settings.is_set("state_dir") {
            sources.over.state_dir = Some(state::user_folder("dev")?);
            (config, settings) = sources.load()?;
        }
        if self.dev && config.admin.socket.is_none() {
            config.admin.socket = Some(config.state_dir.join(ADMIN_SOCKET))
                .filter(|path| path.as_os_str().len() <= MAX_SOCKET_BYTES);
        }
        let mut said = config.log.clone();
        let log = log.start(&said)?;
        let mut reload = Reload::new(sources, settings, &config)?;
        let mut signals = Signals::new()?;
        let mut running = Running::start(config, Some(log.level())).await?;
        running.announce();
        service::ready(&running.status());
        let mut renewal = running.renewal();
        // The start has looked already.
        let mut hourly = tokio::time::interval_at(tokio::time::Instant::now() + HOUR, HOUR);
        let lost = {
            let alive = service::feed_watchdog(
                sd_notify::watchdog_enabled(),
                || running.silent_for(),
                service::alive,
            );
            tokio::pin!(alive);
            loop {
                tokio::select! {
                    _ = signals.next() => break false,
                    () = running.lost() => break true,
                    () = &mut alive => {}
                    _ = hourly.tick() => running.look_after(),
                    () = running.renew_own_certificate() => {}
                    certificate = renewal::next(&mut renewal) => running.show(certificate),
                    config = reload.next() => {
                        // A level that was set by other means stays until the file says another one.
                        if config.log.level != said.level {
                            log.follow(&config.log);
                            said = config.log.clone();
                        }
                        running.apply(config);
                        service::reloaded();
                    }
                }
            }
        };
        service::stopping();
        running.begin_leaving();
        out::say(format_args!(
            "leaving: telling the clients, for at most {} s (a second signal ends at once)",
            STOP_TIMEOUT.as_secs()
        ));
        signals.last(running.stop(STOP_TIMEOUT)).await;
        if lost {
            return Err(Failure::new(
                Exit::Software,
                "a part of the relay has failed: the log says why; start it anew",
            ));
        }
        Ok(Exit::Ok)
    }
}
