//! A relay with everything around it, as `serve` and `quickstart` run it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use super::{
    Exit, Failure, OrFail as _, VERSION,
    certificate::{Origin, Shown},
    control::Controlled,
    heeded::{admission, event_settings, guard_settings, live_limits},
    out,
    renewal::Renewal,
    state::{self, Given, Held, State},
    webhooks::Webhooks,
};
use crate::{
    acme::Answers,
    clock::Clock,
    config::{self, Certificate, Config},
    geoip::Database,
    guard::SecurityEvents,
    metrics::Metrics,
    ops::{
        BlockFile, Check, Handles, Hosts, Liveness, NotReady, OpsServer, Readiness,
        admin::{self, AdminServer},
        audit::Audit,
        tokens::Tokens,
    },
    relay::{self, DATAGRAM_RECEIVE_BUFFER_BYTES, RelayConfig, RelayServer, StartError, TlsIdentity},
    telemetry::LevelHandle,
    wire::Descriptor,
};

const _: () = assert!(config::MAX_SHARDS == relay::MAX_SHARDS);

/// A relay that serves.
pub(super) struct Running {
    relay: RelayServer,
    ops: OpsServer,
    /// For its end.
    admin: AdminServer,
    /// What an authority is asked to certify; none: it is not asked.
    domains: Vec<String>,
    readiness: Readiness,
    security: SecurityEvents,
    webhooks: Webhooks,
    metrics: Arc<Metrics>,
    certificate: Arc<Shown>,
    renewal: Option<Renewal>,
    /// Where it is written how clients find it.
    pub(super) descriptor_path: PathBuf,
    /// The state directory, held to the end.
    _held: Held,
}

impl Running {
    /// Starts everything; when it returns, the relay is ready and `relay.json` written. Call it inside a tokio
    /// runtime. `log` is what administrators may change.
    ///
    /// # Errors
    /// What could not be had; nothing is left running.
    pub(super) async fn start(config: Config, log: Option<LevelHandle>) -> Result<Self, Failure> {
        let Config {
            state_dir,
            relay: wanted,
            guard,
            ops,
            security: reporting,
            acme,
            admin: administered,
            log: _,
        } = config;
        let admission = admission(&wanted);
        let clock = Clock::start();
        let mut origin = if wanted.certificate.is_some() { Origin::Files } else { Origin::SelfSigned };
        let given = Given { certificate: wanted.certificate, relay_id: wanted.relay_id };
        let now = i64::try_from(clock.unix_secs()).unwrap_or(i64::MAX);
        let mut state = State::open(state_dir, &wanted.server_name, now, given)?;
        let held = state::hold(&state.folder)?;
        if !acme.domains.is_empty()
            && let Some(certificate) = state::acme_certificate(&state.folder, &acme.domains, now)
        {
            (state.certificate, origin) = (certificate, Origin::Acme);
        }
        let metrics = Arc::new(Metrics::new().or_fail(Exit::Software, "cannot declare the metrics")?);
        metrics.show_start(clock.unix_secs());
        show_countries(&metrics, ops.countries);
        if let Some(region) = &wanted.region {
            metrics.set_region(region);
        }
        let security = SecurityEvents::new(clock, metrics.clone(), event_settings(&reporting));
        let webhooks = Webhooks::new(security.clone(), state.relay_id, clock, metrics.clone());
        webhooks.send_to(reporting.webhook).or_fail(Exit::Software, "cannot send security events")?;

        let public_ip = wanted.public.as_ref().and_then(|public| public.host.parse::<IpAddr>().ok());
        let public_port =
            wanted.public.as_ref().and_then(|public| public.port).unwrap_or(wanted.listen.port());
        let relay = RelayServer::start(
            RelayConfig {
                listen: wanted.listen,
                relay_id: state.relay_id,
                public_addr: public_ip
                    .filter(|_| public_port != 0)
                    .map(|ip| SocketAddr::new(ip, public_port)),
                tls: TlsIdentity {
                    chain: state.certificate.chain.clone(),
                    key: state.certificate.key.clone_key(),
                },
                admission,
                rules: wanted.rules,
                guard: guard_settings(guard),
                global_bytes_per_sec: wanted.global_bytes_per_sec,
                max_unauthenticated: wanted.max_unauthenticated,
                datagram_receive_buffer_bytes: DATAGRAM_RECEIVE_BUFFER_BYTES,
                keepalive: Some(wanted.keepalive),
                shards: wanted.shards,
                raw_channel: wanted.raw_channel,
            },
            clock,
            metrics.clone(),
            security.clone(),
        )
        .map_err(|error| {
            let exit = match error {
                StartError::Bind { .. } | StartError::Io(_) => Exit::Unavailable,
                _ => Exit::Config,
            };
            let hint = match error {
                StartError::Bind { addr, .. } if addr.is_ipv6() => {
                    "the relay does not start; where IPv6 is switched off, listen_addr = \"0.0.0.0\" is needed"
                }
                _ => "the relay does not start",
            };
            Failure { exit, error: anyhow::Error::new(error).context(hint) }
        })?;

        // Whoever is quicker than this has to go when it is in force.
        let blocks = BlockFile::open(&state.folder, relay.guard().clone(), clock);
        let listening = relay.local_addr();
        let descriptor = Descriptor {
            addr: match wanted.public.as_ref() {
                Some(public) => public.host.clone(),
                None => reachable_ip(listening.ip()).to_string(),
            },
            port: wanted.public.as_ref().and_then(|public| public.port).unwrap_or(listening.port()),
            server_name: wanted.server_name,
            spki: Some(state.pin),
            relay_id: state.relay_id,
            region: wanted.region,
        };
        let folder = state.folder.clone();
        let shown = (origin, &state.certificate);
        let certificate =
            Arc::new(Shown::new(clock, metrics.clone(), state.folder, descriptor.clone(), shown));
        let readiness = Readiness::default();
        let handle = relay.handle();
        let (max_allocations, live) = (metrics.max_allocations.clone(), metrics.allocations.clone());
        readiness.watch(move || {
            let (live, max_allocations) = (live.get(), max_allocations.get());
            let detail = format!("{live} of {max_allocations} allocations");
            vec![Check::new("allocations", live < max_allocations, detail, NotReady::Full)]
        });
        let shards = relay.shards();
        let pulse = relay.pulse();
        let liveness = Liveness::new(move || pulse.silent_for());
        let watched = liveness.clone();
        readiness.watch(move || {
            let (is_well, detail) = match watched.get() {
                Ok(()) => (true, format!("{shards} of {shards} run")),
                Err(silent_for) => {
                    (false, format!("one of {shards} has not come round for {} s", silent_for.as_secs()))
                }
            };
            vec![Check::new("shards", is_well, detail, NotReady::Stuck)]
        });
        let watched = certificate.clone();
        readiness.watch(move || vec![Check::new("certificate", true, watched.detail(), NotReady::Starting)]);
        let named = wanted.public.as_ref().map(|public| public.host.clone());
        let hosts =
            Hosts::new(ops.allowed_hosts.into_iter().chain(named)).and_of(certificate.descriptor().clone());
        let shown = metrics.clone();
        let answers = Answers::default();
        let open = answers.clone();
        let handles = Handles {
            clock,
            version: VERSION,
            liveness,
            readiness: readiness.clone(),
            metrics: Arc::new(move || {
                shown.encode().inspect_err(|error| tracing::error!(%error, "cannot show the metrics")).ok()
            }),
            descriptor: certificate.descriptor().clone(),
            hosts: hosts.clone(),
            challenges: Arc::new(move |token| open.get(token)),
        };
        let ops = OpsServer::start(ops.listen, handles)
            .await
            .or_fail(Exit::Unavailable, format!("cannot listen on TCP {} ([ops])", ops.listen))?;
        let audit = Audit::open(&folder, clock)
            .or_fail(Exit::CantCreate, format!("cannot open the audit log in {}", folder.display()))?;
        let token_file = administered.token_file.clone().unwrap_or_else(|| folder.join(TOKEN_FILE));
        let measured = (clock, metrics.clone());
        let mut admin = AdminServer::new(admin::Handles {
            clock,
            version: VERSION,
            readiness: readiness.clone(),
            metrics: metrics.clone(),
            guard: relay.guard().clone(),
            blocks: Arc::new(blocks),
            control: Arc::new(Controlled { relay: handle, log, certificate: certificate.clone() }),
            descriptor: certificate.descriptor().clone(),
            audit: Arc::new(audit),
            tokens: Arc::new(Tokens::new(token_file)),
            hosts,
        });
        listen_for_administrators(&mut admin, administered).await?;
        let descriptor_path = state::write_descriptor(&folder, &descriptor)?;
        let domains = acme.domains.clone();
        let renewal = (!acme.domains.is_empty())
            .then(|| Renewal::start(acme, folder, answers, measured, certificate.acme_validity()));
        readiness.set_ready();
        Ok(Self {
            relay,
            ops,
            admin,
            domains,
            readiness,
            metrics,
            security,
            webhooks,
            certificate,
            renewal,
            descriptor_path,
            _held: held,
        })
    }

    /// Puts in force what can change while it runs: who may come, who may have what, how much there is, what is
    /// reported, and the certificate. Call it inside a tokio runtime.
    pub(super) fn apply(&self, config: Config) {
        self.relay.set_admission(admission(&config.relay));
        show_countries(&self.metrics, config.ops.countries);
        if let Err(error) = self.relay.set_limits(live_limits(&config.relay)) {
            tracing::error!(%error, "the limits cannot be changed; the last ones stay");
        }
        let current = self.descriptor();
        // Another name may be that of other domains, which are asked for from the next start on.
        let is_coming = config.relay.certificate.is_none()
            && !self.domains.is_empty()
            && !config::covers(&self.domains, &config.relay.server_name);
        let server_name = if is_coming { &current.server_name } else { &config.relay.server_name };
        self.certificate.apply(&self.relay, config.relay.certificate, (&self.domains, server_name));
        self.security.configure(event_settings(&config.security));
        if let Err(error) = self.webhooks.send_to(config.security.webhook) {
            tracing::error!(%error, "security events cannot be sent");
        }
        self.relay.guard().configure(&guard_settings(config.guard));
        self.show_to_administrators(config.admin.certificate);
    }

    /// Whether it is HTTPS or HTTP that is spoken was decided when the address was listened on: where that is to change,
    /// whoever read the configuration has told that it takes a restart.
    fn show_to_administrators(&self, certificate: Option<Certificate>) {
        match certificate.map(admin_tls).transpose() {
            Ok(Some(tls)) => {
                self.admin.set_tls(tls);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%error, "the admin certificate cannot be changed; the last one stays");
            }
        }
    }

    /// How clients find it, now.
    pub(super) fn descriptor(&self) -> Arc<Descriptor> {
        self.certificate.descriptor().load_full()
    }

    /// Who obtains certificates, where one is to be; for one caller, which hands them to [`Self::show`].
    pub(super) fn renewal(&mut self) -> Option<Renewal> {
        self.renewal.take()
    }

    /// Shows a certificate of an authority's from now on.
    pub(super) fn show(&self, certificate: Certificate) {
        if self.certificate.origin() == Origin::Files {
            // It is kept, and found where the files go.
            tracing::info!("the authority's certificate is not shown: the configuration names files by now");
            return;
        }
        let name = self.descriptor().server_name.clone();
        if let Err(Failure { error, .. }) =
            self.certificate.put(&self.relay, Origin::Acme, certificate, &name)
        {
            tracing::error!(
                error = format!("{error:#}"),
                "the certificate cannot be changed; the last one stays"
            );
        }
    }

    /// Signs the relay's own certificate anew before it expires, for as long as it is polled. Cancel safe.
    pub(super) async fn renew_own_certificate(&self) {
        self.certificate.renew_own(&self.relay).await;
    }

    /// What is to be done once an hour.
    pub(super) fn look_after(&self) {
        self.certificate.look();
    }

    /// Tells people where everything is.
    pub(super) fn announce(&self) {
        let descriptor = self.descriptor();
        let Descriptor { relay_id, spki, .. } = descriptor.as_ref();
        let pin = spki.map(|pin| pin.to_string()).unwrap_or_default();
        out::say(format_args!("zrc-relay {VERSION}"));
        out::say(format_args!("relay on {} (UDP), id {relay_id}, pin {pin}", self.relay.local_addr()));
        out::say(format_args!(
            "ops on {} (status page) /health /ready /metrics /.well-known/zrc-relay",
            self.ops_url()
        ));
        if let Some(url) = self.admin.url() {
            out::say(format_args!("admin API and dashboard on {url}, for those with a token"));
        }
        if let Some(socket) = self.admin.socket() {
            out::say(format_args!("admin socket {}", socket.display()));
        }
        out::say(format_args!("clients: --relay {}", self.descriptor_path.display()));
    }

    /// Where it listens, in one line.
    pub(super) fn status(&self) -> String {
        format!("relay on {} (UDP), ops on {}", self.relay.local_addr(), self.ops_url())
    }

    /// How long ago the slowest thread that moves packets last came round.
    pub(super) fn silent_for(&self) -> Duration {
        self.relay.pulse().silent_for()
    }

    /// Waits until a part of the relay has failed that nothing but a new start brings back.
    pub(super) async fn lost(&self) {
        self.relay.lost().await;
    }

    /// Where health and metrics are.
    pub(super) fn ops_url(&self) -> String {
        format!("http://{}", self.ops.local_addr())
    }

    /// From now on `/ready` says that new work is not welcome.
    pub(super) fn begin_leaving(&self) {
        self.readiness.set_leaving();
    }

    /// Unready first, then goodbye to every client, then the end, within `deadline`.
    pub(super) async fn stop(self, deadline: Duration) {
        self.begin_leaving();
        self.relay.shutdown(deadline).await;
        tokio::join!(self.ops.stop(), self.admin.stop());
    }
}

/// Has connections counted by this database's countries.
fn show_countries(metrics: &Metrics, database: Option<Arc<Database>>) {
    let before = metrics.countries.configure(database.clone());
    match (before, database) {
        (Some(before), Some(now)) if before == now => {}
        (_, Some(now)) => {
            tracing::info!(
                database = now.kind(),
                built_at_unix = now.built_at_unix(),
                "GeoIP database in use"
            );
            if now.is_doubtful() {
                tracing::warn!(
                    database = now.kind(),
                    "of some thousand addresses the GeoIP database knows no country: is it one of countries?"
                );
            }
        }
        (Some(_), None) => tracing::info!("GeoIP database no longer in use"),
        (None, None) => {}
    }
}

/// Where tokens are kept unless the configuration says otherwise, below the state directory.
pub(super) const TOKEN_FILE: &str = "admin.tokens";
/// Where the Unix socket is unless the configuration says otherwise, for development.
pub(super) const ADMIN_SOCKET: &str = "admin.sock";

async fn listen_for_administrators(admin: &mut AdminServer, wanted: config::Admin) -> Result<(), Failure> {
    if let Some(path) = wanted.socket {
        admin.listen_unix(&path).or_fail(
            Exit::Unavailable,
            format!("cannot listen on the Unix socket {} (admin.socket)", path.display()),
        )?;
    }
    if let Some(listen) = wanted.listen {
        let tls = wanted.certificate.map(admin_tls).transpose();
        let tls = tls.or_fail(Exit::Config, "admin.cert_path cannot be used")?;
        admin
            .listen_tcp(listen, tls)
            .await
            .or_fail(Exit::Unavailable, format!("cannot listen on TCP {listen} ([admin])"))?;
    }
    Ok(())
}

/// HTTPS for administrators.
fn admin_tls(certificate: Certificate) -> Result<Arc<rustls::ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificate.chain, certificate.key)?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

/// What clients can connect to when the relay listens on `listening`: for an unspecified address the one that
/// this machine reaches others from.
fn reachable_ip(listening: IpAddr) -> IpAddr {
    if !listening.is_unspecified() {
        return listening;
    }
    // Connecting a UDP socket sends nothing; it asks for a route. The addresses are for documentation (RFC 5737,
    // RFC 3849).
    let from = |local: IpAddr, to: IpAddr| {
        let socket = UdpSocket::bind((local, 0)).ok()?;
        socket.connect((to, 9)).ok()?;
        socket.local_addr().ok().map(|addr| addr.ip()).filter(|ip| !ip.is_unspecified())
    };
    let v4 = || from(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into());
    let v6 = || from(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    // A socket for `::` takes IPv4 too, which more clients have.
    v4().or_else(|| if listening.is_ipv6() { v6() } else { None }).unwrap_or(Ipv4Addr::LOCALHOST.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What orchestrators and `healthcheck` ask, of a relay one of whose shards is held up.
    #[test]
    fn r7_1_a_shard_that_does_not_come_round_fails_health_and_readiness() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "state_dir = {:?}\n[relay]\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\nself_certified = true\n\
             [ops]\nlisten_port = 0\n",
            folder.path().join("state")
        );
        let config = Config::parse(&text, folder.path()).unwrap();
        let running = runtime.block_on(Running::start(config, None)).ok().unwrap();
        let get = |path: &str| {
            let url = crate::cli::http::Url::parse(&format!("{}{path}", running.ops_url())).unwrap();
            runtime.block_on(url.get()).map(drop).map_err(|error| format!("{error:#}"))
        };
        let wait = |done: &dyn Fn() -> bool| {
            let clock = Clock::start();
            while !done() {
                assert!(clock.mono() < Duration::from_secs(60));
                runtime.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
            }
        };
        for path in ["/health", "/livez", "/ready"] {
            get(path).unwrap();
        }
        let held = running.relay.hold_up();
        wait(&|| get("/health").is_err());
        for path in ["/health", "/livez"] {
            let why = get(path).unwrap_err();
            assert!(why.contains("503") && why.contains("has not come round for"), "{why}");
        }
        assert!(get("/ready").unwrap_err().contains("503 Service Unavailable: stuck"));
        drop(held);
        wait(&|| get("/livez").is_ok() && get("/ready").is_ok());
        runtime.block_on(running.stop(Duration::from_secs(5)));
    }

    #[test]
    fn r7_2_where_files_go_the_authoritys_certificate_comes_back() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        // Signed for the key that a first start makes; by whom, nobody here looks.
        state::own_certificate(&at(""), "relay.test", 1_795_178_980).ok().unwrap();
        let key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(at("key.pem")).unwrap()).unwrap();
        let signed =
            rcgen::CertificateParams::new(["relay.test".to_owned()]).unwrap().self_signed(&key).unwrap();
        let by_authority = at(state::ACME_CERTIFICATE);
        std::fs::write(&by_authority, signed.pem()).unwrap();
        let files = rcgen::generate_simple_self_signed(["relay.test".to_owned()]).unwrap();
        std::fs::write(at("chain.pem"), files.cert.pem()).unwrap();
        std::fs::write(at("files.pem"), files.signing_key.serialize_pem()).unwrap();
        // An authority that nobody reaches.
        let config = |files: &str| {
            let text = format!(
                "state_dir = {:?}\n[relay]\nlisten_addr = \"127.0.0.1\"\nlisten_port = 0\nself_certified = true\n\
                 {files}[acme]\ndomains = [\"relay.test\"]\naccept_terms = true\n\
                 directory = \"https://127.0.0.1:1/dir\"\nhttp_port = 0\n[ops]\nlisten_port = 0\n",
                folder.path()
            );
            let text = if files.is_empty() { text } else { text.replace("domains = [\"relay.test\"]\n", "") };
            Config::parse(&text, folder.path()).unwrap()
        };
        let with_files = || config("quic_cert_path = \"chain.pem\"\nquic_key_path = \"files.pem\"\n");
        let running = runtime.block_on(Running::start(config(""), None)).ok().unwrap();
        let apply = |config: Config| runtime.block_on(async { running.apply(config) });
        let origin = || running.certificate.origin();
        assert_eq!(origin(), Origin::Acme);
        apply(with_files());
        assert_eq!(origin(), Origin::Files);
        apply(config(""));
        assert_eq!(origin(), Origin::Acme);
        // One that is not good any more does not come back.
        apply(with_files());
        std::fs::remove_file(&by_authority).unwrap();
        apply(config(""));
        assert_eq!(origin(), Origin::SelfSigned);
        runtime.block_on(running.stop(Duration::from_secs(5)));
    }

    #[test]
    fn what_is_told_can_be_connected_to() {
        for listening in ["0.0.0.0", "::"] {
            let ip = reachable_ip(listening.parse().unwrap());
            assert!(!ip.is_unspecified());
            assert!(UdpSocket::bind((ip, 0)).is_ok(), "{ip}");
        }
        for listening in ["127.0.0.1", "::1", "192.0.2.7"] {
            let listening: IpAddr = listening.parse().unwrap();
            assert_eq!(reachable_ip(listening), listening);
        }
    }
}
