//! The certificate that clients are shown: how another one takes its place while the relay runs, what is then told, and
//! how long it is good for.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;

use super::{Failure, state};
use crate::{
    clock::{Clock, rfc3339},
    config::Certificate,
    metrics::Metrics,
    relay::{RelayServer, TlsIdentity},
    wire::{Descriptor, SpkiPin},
};

const DAY_SECS: i64 = 86_400;
/// How many days before its end a certificate is warned of.
const WARN_DAYS: [i64; 3] = [30, 7, 1];

/// What that means.
const EXPIRED: &str = "has expired: clients that do not pin its key refuse it";

/// Time is looked at again after so long, for clocks are set and machines sleep.
const MAX_SLEEP: Duration = Duration::from_secs(3600);
/// Until another certificate is tried to be signed where the last one could not be written.
const RETRY: Duration = Duration::from_secs(600);

/// Where a certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The operator's files.
    Files,
    /// The state directory: signed by itself.
    SelfSigned,
    /// An authority that speaks ACME.
    Acme,
}

impl Origin {
    /// As people and programs are told.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::SelfSigned => "self-signed",
            Self::Acme => "acme",
        }
    }
}

/// The certificate in force, and all that has to change with it.
pub(super) struct Shown {
    clock: Clock,
    metrics: Arc<Metrics>,
    state_folder: PathBuf,
    descriptor: Arc<ArcSwap<Descriptor>>,
    in_force: Mutex<InForce>,
}

struct InForce {
    origin: Origin,
    chain: Vec<CertificateDer<'static>>,
    expiry: Expiry,
    /// The days before its end that were last warned of.
    warned_days: AtomicI64,
}

/// From when until when it is valid, in Unix seconds; `None` when that cannot be read.
#[derive(Debug, Clone, Copy)]
struct Expiry(Option<(i64, i64)>);

impl Shown {
    /// `descriptor` describes the relay with this certificate.
    pub(super) fn new(
        clock: Clock,
        metrics: Arc<Metrics>,
        state_folder: PathBuf,
        descriptor: Descriptor,
        (origin, certificate): (Origin, &Certificate),
    ) -> Self {
        let shown = Self {
            clock,
            metrics,
            state_folder,
            descriptor: Arc::new(ArcSwap::from_pointee(descriptor)),
            in_force: Mutex::new(InForce::new(origin, certificate)),
        };
        shown.tell();
        shown
    }

    /// How clients find the relay, now.
    pub(super) fn descriptor(&self) -> &Arc<ArcSwap<Descriptor>> {
        &self.descriptor
    }

    /// Puts in force what the configuration says now: a certificate from files, or none; then one that an authority has
    /// signed for `domains`, if there are any, comes before the relay's own. What cannot be used changes nothing, and the
    /// log says so.
    pub(super) fn apply(
        &self,
        relay: &RelayServer,
        configured: Option<Certificate>,
        (domains, server_name): (&[String], &str),
    ) {
        let origin = self.origin();
        let put = match configured {
            Some(certificate) => self.put(relay, Origin::Files, certificate, server_name),
            // There were files, and now there are none.
            None if origin == Origin::Files => self.put_kept(relay, domains, server_name),
            None if self.descriptor.load().server_name == server_name => return,
            // Its own is made anew for another name.
            None if origin == Origin::SelfSigned => self.put_own(relay, server_name),
            None => {
                self.describe(None, server_name);
                return;
            }
        };
        if let Err(failure) = put {
            told(&failure);
        }
    }

    /// While the relay shows the certificate that it has signed itself, signs another one when a third of its life is left.
    /// Never ends. Cancel safe.
    pub(super) async fn renew_own(&self, relay: &RelayServer) {
        loop {
            let (origin, life) = {
                let in_force = self.lock();
                (in_force.origin, in_force.expiry.0)
            };
            let Some(life) = life.filter(|_| origin == Origin::SelfSigned) else {
                return std::future::pending().await;
            };
            let left = Duration::from_secs(state::own_left_secs(life, self.now())).min(MAX_SLEEP);
            tokio::time::sleep(left).await;
            if state::own_left_secs(life, self.now()) > 0 {
                continue;
            }
            let server_name = self.descriptor.load().server_name.clone();
            if let Err(failure) = self.put_own(relay, &server_name) {
                told(&failure);
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// The authority's that was obtained last, be it while there were files; its own, where there is none that is good.
    fn put_kept(&self, relay: &RelayServer, domains: &[String], server_name: &str) -> Result<(), Failure> {
        let kept = Some(domains).filter(|domains| !domains.is_empty());
        match kept.and_then(|domains| state::acme_certificate(&self.state_folder, domains, self.now())) {
            Some(certificate) => self.put(relay, Origin::Acme, certificate, server_name),
            None => self.put_own(relay, server_name),
        }
    }

    fn put_own(&self, relay: &RelayServer, server_name: &str) -> Result<(), Failure> {
        let certificate = state::own_certificate(&self.state_folder, server_name, self.now())?;
        self.put(relay, Origin::SelfSigned, certificate, server_name)
    }

    /// Shows it to whoever connects from now on, and tells clients its pin in `relay.json`.
    pub(super) fn put(
        &self,
        relay: &RelayServer,
        origin: Origin,
        certificate: Certificate,
        server_name: &str,
    ) -> Result<(), Failure> {
        if self.lock().chain == certificate.chain {
            if self.descriptor.load().server_name != server_name {
                self.describe(None, server_name);
            }
            return Ok(());
        }
        let in_force = InForce::new(origin, &certificate);
        let identity = TlsIdentity { chain: certificate.chain, key: certificate.key };
        let pin = relay.set_identity(&identity).map_err(state::unusable)?;
        *self.lock() = in_force;
        self.describe(Some(pin), server_name);
        tracing::info!(
            origin = origin.name(),
            %pin,
            server_name,
            expires = self.expires().map(show_unix),
            "new connections are shown another certificate"
        );
        self.tell();
        Ok(())
    }

    /// Tells clients this name and, where it is another one now, this pin. It is in force even where that cannot be
    /// written.
    fn describe(&self, pin: Option<SpkiPin>, server_name: &str) {
        let before = self.descriptor.load_full();
        let spki = pin.or(before.spki);
        let descriptor = Descriptor { spki, server_name: server_name.to_owned(), ..before.as_ref().clone() };
        self.descriptor.store(Arc::new(descriptor.clone()));
        let written = state::write_descriptor(&self.state_folder, &descriptor);
        if before.server_name != server_name {
            tracing::info!(server_name, before = before.server_name, "clients are told another server_name");
        }
        if let Err(Failure { error, .. }) = written {
            let error = format!("{error:#}");
            tracing::error!(
                error,
                "relay.json still tells of the last certificate: mend that, and start the relay anew"
            );
        }
    }

    /// Where it comes from.
    pub(super) fn origin(&self) -> Origin {
        self.lock().origin
    }

    /// In a line, for people.
    pub(super) fn detail(&self) -> String {
        let in_force = self.lock();
        let origin = in_force.origin.name();
        match in_force.expiry.0 {
            Some((_, until)) if until <= self.now() => {
                format!("{origin}, {EXPIRED}, on {}", show_unix(until))
            }
            Some((_, until)) => format!("{origin}, expires {}", show_unix(until)),
            None => format!("{origin}, expires nobody knows when"),
        }
    }

    /// From when until when it is valid, where an authority has signed it.
    pub(super) fn acme_validity(&self) -> Option<(i64, i64)> {
        let in_force = self.lock();
        in_force.expiry.0.filter(|_| in_force.origin == Origin::Acme)
    }

    /// When it ceases to be valid, in Unix seconds.
    pub(super) fn expires(&self) -> Option<i64> {
        self.lock().expiry.0.map(|(_, until)| until)
    }

    /// Warns of its end when that has come near, once for each of [`WARN_DAYS`]. To be called some times a day.
    pub(super) fn look(&self) {
        let in_force = self.lock();
        let Some(days) = in_force.expiry.near(self.now()) else { return };
        // Those that are renewed by themselves reach their last third as a matter of course.
        if in_force.origin == Origin::Acme && days > 7 {
            return;
        }
        if in_force.warned_days.swap(days, Ordering::Relaxed) == days && days > 0 {
            return;
        }
        let expires = in_force.expiry.0.map(|(_, until)| show_unix(until));
        let origin = in_force.origin.name();
        if days == 0 {
            tracing::error!(expires, origin, "the certificate {EXPIRED}");
        } else {
            tracing::warn!(expires, origin, "the certificate expires within {days} d");
        }
    }

    fn now(&self) -> i64 {
        i64::try_from(self.clock.unix_secs()).unwrap_or(i64::MAX)
    }

    fn tell(&self) {
        self.metrics.certificate_expiry.set(self.expires().unwrap_or(0));
        self.look();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, InForce> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InForce {
    fn new(origin: Origin, certificate: &Certificate) -> Self {
        Self {
            origin,
            chain: certificate.chain.clone(),
            expiry: Expiry(certificate.validity()),
            warned_days: AtomicI64::new(i64::MAX),
        }
    }
}

impl Expiry {
    /// Within how many days it ends, of those to warn of; 0 when it has ended. Days that are more than a third of its
    /// whole life are its usual state, and not warned of.
    fn near(self, now_unix_secs: i64) -> Option<i64> {
        let (from, until) = self.0?;
        let left = until.saturating_sub(now_unix_secs);
        if left <= 0 {
            return Some(0);
        }
        let life = until.saturating_sub(from);
        WARN_DAYS.into_iter().rev().find(|days| left <= days * DAY_SECS && life >= 3 * days * DAY_SECS)
    }
}

fn told(Failure { error, .. }: &Failure) {
    tracing::error!(error = format!("{error:#}"), "the certificate cannot be changed; the last one stays");
}

fn show_unix(unix_secs: i64) -> String {
    rfc3339(u64::try_from(unix_secs).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r7_2_the_end_of_a_certificate_is_warned_of_in_time_and_not_all_its_life() {
        let year = Expiry(Some((0, 365 * DAY_SECS)));
        for (left_secs, expected) in [
            (365 * DAY_SECS, None),
            (30 * DAY_SECS + 1, None),
            (30 * DAY_SECS, Some(30)),
            (7 * DAY_SECS + 1, Some(30)),
            (7 * DAY_SECS, Some(7)),
            (DAY_SECS, Some(1)),
            (1, Some(1)),
            (0, Some(0)),
            (-1, Some(0)),
        ] {
            assert_eq!(year.near(365 * DAY_SECS - left_secs), expected, "{left_secs}");
        }
        // One for six days is at its end when one is left.
        let short = Expiry(Some((0, 6 * DAY_SECS)));
        assert_eq!((short.near(0), short.near(5 * DAY_SECS)), (None, Some(1)));
        assert_eq!(Expiry(None).near(0), None);
    }
}
