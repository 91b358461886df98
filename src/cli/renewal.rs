//! Certificates by ACME: obtained in the background, kept in the state directory, renewed in time.
//!
//! Nobody waits for it: until there is a certificate, the relay shows the one that it signed itself, and afterwards the
//! last good one. All of them have the relay's own key, so its pin stays the same.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{Exit, Failure, OrFail as _, attempts::Attempts, files, state};
use crate::{
    acme::{AcmeError, Answers, Authority, Hook, Registered, Solver},
    clock::{Clock, rfc3339},
    config::{Acme, Certificate, Challenge},
    metrics::Metrics,
    ops::ChallengeServer,
};

/// For the authority's part of one certificate, from the first request to the last.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// After a failure; four times as long after each further one. Authorities allow a handful in an hour.
const FIRST_RETRY: Duration = Duration::from_secs(30);
const MAX_RETRY: Duration = Duration::from_secs(6 * 3600);
/// Time is looked at again after so long, for clocks are set and machines sleep.
const MAX_SLEEP: Duration = Duration::from_secs(3600);

/// Obtains certificates for as long as it is here.
pub(super) struct Renewal {
    certificates: mpsc::Receiver<Certificate>,
    task: JoinHandle<()>,
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Renewal {
    /// `validity` is that of the certificate that the authority signed before, if it is still good.
    pub(super) fn start(
        wanted: Acme,
        state_folder: PathBuf,
        answers: Answers,
        (clock, metrics): (Clock, Arc<Metrics>),
        validity: Option<(i64, i64)>,
    ) -> Self {
        // One: the task waits until it has been put in force.
        let (sender, certificates) = mpsc::channel(1);
        let worker = Worker { wanted, state_folder, answers, clock, metrics };
        Self { certificates, task: tokio::spawn(worker.run(validity, sender)) }
    }
}

/// The next certificate, to be put in force; never, where none is asked for. Cancel safe.
pub(super) async fn next(renewal: &mut Option<Renewal>) -> Certificate {
    let Some(renewal) = renewal else { return std::future::pending().await };
    match renewal.certificates.recv().await {
        Some(certificate) => certificate,
        None => std::future::pending().await,
    }
}

struct Worker {
    wanted: Acme,
    state_folder: PathBuf,
    answers: Answers,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Worker {
    async fn run(self, mut validity: Option<(i64, i64)>, certificates: mpsc::Sender<Certificate>) {
        let mut attempts = Attempts::open(&self.state_folder, &self.wanted);
        if let Some(left) = attempts.left(self.clock.unix_secs(), random_byte()) {
            tracing::warn!(
                failures = attempts.failures(),
                retry_secs = left.as_secs(),
                file = %attempts.path().display(),
                "attempts at a certificate have failed before this start: the authority is not asked yet; to have it asked \
                 at once, remove the file and start anew"
            );
            sleep(left).await;
        }
        loop {
            if let Some((from, until)) = validity {
                let due = due(from, until, random_byte());
                tracing::info!(
                    due = rfc3339(u64::try_from(due).unwrap_or(0)),
                    domains = self.wanted.domains.join(", "),
                    "the certificate will be renewed"
                );
                self.wait_until(due).await;
            }
            let limit = ATTEMPT_TIMEOUT.saturating_add(self.solver().most_time(self.wanted.domains.len()));
            let attempt = timeout(limit, self.obtain(&mut attempts));
            let obtained = attempt.await.unwrap_or_else(|_| {
                Err(Failure::new(Exit::Unavailable, "the authority has not finished in time"))
            });
            self.metrics.certificate_renewals(obtained.is_ok()).inc();
            match obtained {
                Ok(certificate) => {
                    attempts.succeeded().await;
                    validity = certificate.validity();
                    if certificates.send(certificate).await.is_err() {
                        return;
                    }
                }
                Err(Failure { error, .. }) => {
                    let before = attempts.failed(self.clock.unix_secs()).await;
                    let wait = retry(before, random_byte());
                    tracing::warn!(
                        error = format!("{error:#}"),
                        retry_secs = wait.as_secs(),
                        "no certificate could be obtained; the one in force stays"
                    );
                    sleep(wait).await;
                    // At once, rather than when a renewal is due: that it has been.
                    validity = None;
                }
            }
        }
    }

    async fn wait_until(&self, due_unix_secs: i64) {
        loop {
            let now = i64::try_from(self.clock.unix_secs()).unwrap_or(i64::MAX);
            let Some(left) = u64::try_from(due_unix_secs.saturating_sub(now)).ok().filter(|left| *left > 0)
            else {
                return;
            };
            sleep(Duration::from_secs(left).min(MAX_SLEEP)).await;
        }
    }

    async fn obtain(&self, attempts: &mut Attempts) -> Result<Certificate, Failure> {
        let Acme { domains, directory, contact, roots, challenge } = &self.wanted;
        let key_pem = files::read_small(&self.state_folder.join("key.pem"), "TLS key")?;
        let request = signing_request(&key_pem, domains)?;
        let authority =
            Authority { directory: directory.clone(), contact: contact.clone(), roots: roots.clone() };
        let solver = self.solver();
        let server = match challenge {
            Challenge::Http { listen: Some(listen) } => Some(self.listen(*listen).await?),
            Challenge::Http { listen: None } | Challenge::Dns { .. } => None,
        };
        // Not before it answers: what this machine lacks costs the authority nothing.
        let answered = async { attempts.begin(self.clock.unix_secs()).await };
        let account = self.account(&authority, answered).await?;
        let mut chain = account.obtain(domains, &solver, &request).await;
        if matches!(chain, Err(AcmeError::NoSuchAccount)) {
            tracing::info!(directory, "the authority has forgotten the account: another one is made");
            let path = self.account_path();
            fs::remove_file(&path).or_fail(Exit::CantCreate, format!("cannot remove {}", path.display()))?;
            chain = self.account(&authority, async {}).await?.obtain(domains, &solver, &request).await;
        }
        if let Some(server) = server {
            server.stop().await;
        }
        let chain = chain.or_fail(Exit::Unavailable, format!("no certificate from {directory}"))?;
        let certificate = self.check(&chain, &key_pem)?;
        let path = self.state_folder.join(state::ACME_CERTIFICATE);
        files::replace(&path, chain.as_bytes(), files::PUBLIC)
            .or_fail(Exit::CantCreate, format!("cannot write {}", path.display()))?;
        Ok(certificate)
    }

    /// How challenges are answered.
    fn solver(&self) -> Solver {
        match &self.wanted.challenge {
            Challenge::Dns { hook, wait } => Solver::Dns(Hook { command: hook.clone(), wait: *wait }),
            Challenge::Http { .. } => Solver::Http(self.answers.clone()),
        }
    }

    async fn account(
        &self,
        authority: &Authority,
        answered: impl Future<Output = ()> + Send,
    ) -> Result<Registered, Failure> {
        let path = self.account_path();
        let kept = files::read_small_if_there(&path, "ACME account")?;
        let kept = kept.as_ref().map(|kept| kept.as_slice());
        let (account, new) = Registered::open(authority, kept, answered)
            .await
            .or_fail(Exit::Unavailable, format!("no account with {}", authority.directory))?;
        if let Some(new) = new {
            files::replace(&path, &new, files::SECRET)
                .or_fail(Exit::CantCreate, format!("cannot write {}", path.display()))?;
        }
        Ok(account)
    }

    fn account_path(&self) -> PathBuf {
        self.state_folder.join("acme-account.json")
    }

    async fn listen(&self, listen: std::net::SocketAddr) -> Result<ChallengeServer, Failure> {
        let answers = self.answers.clone();
        ChallengeServer::start(listen, Arc::new(move |token| answers.get(token)))
            .await
            .or_fail(Exit::Unavailable, format!("cannot answer challenges on TCP {listen} (acme.http_port)"))
    }

    /// What the authority has signed is what was asked for, or it is not used.
    fn check(&self, chain_pem: &str, key_pem: &[u8]) -> Result<Certificate, Failure> {
        let cannot = "what the authority has signed cannot be used";
        let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .collect::<Result<_, _>>()
            .or_fail(Exit::Data, cannot)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem).or_fail(Exit::Data, cannot)?;
        let certificate = Certificate { chain, key };
        certificate.check().or_fail(Exit::Data, cannot)?;
        let now = i64::try_from(self.clock.unix_secs()).unwrap_or(i64::MAX);
        if !state::is_good(&certificate, &self.wanted.domains, now) {
            return Err(Failure::new(Exit::Data, format!("{cannot}: it is for other names, or not for now")));
        }
        Ok(certificate)
    }
}

/// What the authority is to sign: these names, and the relay's own key.
fn signing_request(key_pem: &[u8], domains: &[String]) -> Result<Vec<u8>, Failure> {
    let cannot = "the relay's TLS key cannot be used";
    let text = std::str::from_utf8(key_pem).or_fail(Exit::Data, cannot)?;
    let key = rcgen::KeyPair::from_pem(text).or_fail(Exit::Data, cannot)?;
    let mut params = rcgen::CertificateParams::new(domains.to_vec())
        .or_fail(Exit::Config, "acme.domains cannot be used")?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params.serialize_request(&key).or_fail(Exit::Software, "cannot ask for a certificate")?;
    Ok(request.der().to_vec())
}

/// When to renew: when a third of its life is left, and up to a tenth of that third earlier, so that not all relays come
/// at once.
fn due(from: i64, until: i64, random: u8) -> i64 {
    let third = until.saturating_sub(from) / 3;
    until.saturating_sub(third).saturating_sub(third / 10 * i64::from(random) / 255)
}

/// How long to wait after so many failures before: between half and all of it is left to chance.
pub(super) fn retry(failures: u32, random: u8) -> Duration {
    let wait = FIRST_RETRY.saturating_mul(4_u32.saturating_pow(failures)).min(MAX_RETRY);
    wait / 2 + wait / 2 * u32::from(random) / 255
}

fn random_byte() -> u8 {
    let mut random = [0; 1];
    // Without randomness all come as early as can be.
    let _ = getrandom::fill(&mut random);
    let [random] = random;
    random
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_when_a_third_is_left_and_not_by_all_at_once() {
        const DAY: i64 = 86_400;
        assert_eq!(due(0, 90 * DAY, 0), 60 * DAY);
        assert_eq!(due(0, 90 * DAY, 255), 57 * DAY);
        assert_eq!(due(0, 6 * DAY, 0), 4 * DAY);
        assert_eq!(due(10, 10, 255), 10);
    }

    #[test]
    fn failures_are_retried_ever_more_rarely() {
        let secs = |failures| retry(failures, 255).as_secs();
        assert_eq!([secs(0), secs(1), secs(2)], [30, 120, 480]);
        assert_eq!((secs(40), retry(40, 0).as_secs()), (6 * 3600, 3 * 3600));
    }
}
