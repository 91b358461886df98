//! Whether a request is meant for this server: what keeps a web page elsewhere from reading it (DNS rebinding).
//!
//! A page can point a name of its own at this machine's addresses, and the browser then takes this server for the
//! page's. It still sends the page's name as `Host`, and that is refused. Names that no stranger can own are welcome:
//! addresses, names without a dot, and those below domains that do not exist in public.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use axum::{
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::Response,
};

use super::problem::problem;
use crate::wire::Descriptor;

/// Domains that the public DNS never has (RFC 6761, RFC 6762, RFC 8375, and ICANN's for private use).
const PRIVATE_DOMAINS: [&str; 4] = [".localhost", ".local", ".internal", ".home.arpa"];

/// The names that this server answers to.
#[derive(Debug, Clone, Default)]
pub struct Hosts(Arc<Names>);

#[derive(Debug, Default)]
struct Names {
    any: bool,
    /// In lower case.
    known: HashSet<String>,
    /// Whose name is one more, as it is now.
    described: Option<Arc<ArcSwap<Descriptor>>>,
}

impl Hosts {
    /// These names besides those that nobody else can have; `*` for all names there are.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        let known: HashSet<String> = names.into_iter().map(|name| name.to_ascii_lowercase()).collect();
        Self(Arc::new(Names { any: known.contains("*"), known, described: None }))
    }

    /// The same, and the name of the relay that is described there, whatever it is when somebody asks.
    pub fn and_of(self, described: Arc<ArcSwap<Descriptor>>) -> Self {
        let Names { any, known, .. } = self.0.as_ref();
        Self(Arc::new(Names { any: *any, known: known.clone(), described: Some(described) }))
    }

    /// Whether a request to this host, with or without a port, is meant for this server.
    fn has(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        self.0.any
            || !name.contains('.') && !name.contains(':')
            || name.parse::<IpAddr>().is_ok()
            || PRIVATE_DOMAINS.iter().any(|domain| name.ends_with(domain))
            || self.0.known.contains(&name)
            || self.0.described.as_ref().is_some_and(|it| it.load().server_name.eq_ignore_ascii_case(&name))
    }
}

/// Refuses what is meant for another server.
pub(super) async fn check(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    let named = request.headers().get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or(".."));
    let all = named.chain(request.uri().authority().map(|authority| authority.as_str()));
    // Without any, as in HTTP/1.0, it is no browser that asks.
    if all.into_iter().all(|host| hosts.has(host)) {
        return next.run(request).await;
    }
    let detail = "the header Host does not name this server; ops.allowed_hosts lists the names it answers to";
    problem(StatusCode::MISDIRECTED_REQUEST, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::RelayId;

    #[test]
    fn names_that_a_stranger_could_own_are_refused() {
        let hosts = Hosts::new(["Relay.Example.com".to_owned()]);
        for host in [
            "127.0.0.1",
            "127.0.0.1:9433",
            "[::1]:9433",
            "[::1]",
            "192.0.2.7:80",
            "localhost:9433",
            "relay",
            "relay:9433",
            "relay.monitoring.svc.cluster.local:9433",
            "relay.localhost",
            "relay.internal",
            "relay.example.com",
            "RELAY.example.com.:443",
            "",
        ] {
            assert!(hosts.has(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9433",
            "127.0.0.1.evil.example",
            "relay.example.com.evil.example",
            "localhost.evil.example",
            "a.b",
            "a.b.",
            "1.2.3.4.5",
            "..",
        ] {
            assert!(!hosts.has(host), "{host}");
        }
        assert!(Hosts::new(["*".to_owned()]).has("evil.example"));
    }

    #[test]
    fn r8_the_relays_own_name_is_the_one_that_clients_are_told_now() {
        let described = |name: &str| Descriptor {
            addr: "192.0.2.1".into(),
            port: 4433,
            server_name: name.into(),
            spki: None,
            relay_id: RelayId([1; 16]),
            region: None,
        };
        let shown = Arc::new(ArcSwap::from_pointee(described("a.example")));
        let hosts = Hosts::new(["c.example".to_owned()]).and_of(shown.clone());
        let has = |name: &str| hosts.has(name);
        assert!(has("A.example:9433") && !has("b.example") && has("c.example"));
        shown.store(Arc::new(described("b.example")));
        assert!(!has("a.example") && has("b.example") && has("c.example"));
    }
}
