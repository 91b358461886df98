//! Certificates from an authority that speaks ACME (RFC 8555): an account, an order, and the challenges that show that a
//! name is ours.
//!
//! Knows neither files nor the relay: whoever asks keeps the account and the certificate, and decides when.

mod http;
mod solve;

use std::{net::IpAddr, time::Duration};

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder, Order,
    OrderStatus, RetryPolicy,
};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use http::Http;
pub use solve::{Answers, Hook, HookError, Solver};

/// How long an authority may take to look at the answers, and then to sign.
const POLLING: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(500)).timeout(Duration::from_secs(180));
const NO_SUCH_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// Whom to ask.
#[derive(Debug, Clone)]
pub struct Authority {
    /// The URL of its directory, https.
    pub directory: String,
    /// Whom it may write to, `mailto:ops@example.com`.
    pub contact: Option<String>,
    /// What to trust beside the authorities that the system trusts.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// TLS towards the authority cannot be set up.
    #[error("TLS towards the authority cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The HTTP client cannot be made.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(reqwest::Error),
    /// The authority cannot be reached, or refuses.
    #[error("the authority refuses or does not answer")]
    Authority(#[source] instant_acme::Error),
    /// It has forgotten the account: another one has to be made.
    #[error("the authority does not know the account")]
    NoSuchAccount,
    /// What was kept is no account.
    #[error("the account cannot be used")]
    Account(#[from] serde_json::Error),
    /// It does not want to see what was configured.
    #[error("the authority offers no {kind} challenge for {name}")]
    NoSuchChallenge {
        /// For which name.
        name: String,
        /// What was configured.
        kind: &'static str,
    },
    /// The hook did not do its work.
    #[error("the DNS hook failed for {name}")]
    Hook {
        /// For which name.
        name: String,
        /// How.
        source: HookError,
    },
    /// It has looked, and did not find the answer.
    #[error("the authority does not believe that the names are ours: {0}")]
    Invalid(String),
}

impl From<instant_acme::Error> for AcmeError {
    fn from(error: instant_acme::Error) -> Self {
        match &error {
            instant_acme::Error::Api(problem) if problem.r#type.as_deref() == Some(NO_SUCH_ACCOUNT) => {
                Self::NoSuchAccount
            }
            _ => Self::Authority(error),
        }
    }
}

/// An account as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    directory: String,
    credentials: AccountCredentials,
}

/// An account with an authority.
pub struct Registered(Account);

impl Registered {
    /// Uses the account that was kept, or makes one: where none was, or with another authority. Answers with what is to be
    /// kept if it is new: a secret. `answered` is awaited once, when the authority has answered anything at all, and before
    /// it is asked for what it counts.
    ///
    /// # Errors
    /// [`AcmeError`].
    pub async fn open(
        authority: &Authority,
        kept: Option<&[u8]>,
        answered: impl Future<Output = ()> + Send,
    ) -> Result<(Self, Option<Vec<u8>>), AcmeError> {
        let http = || Http::new(&authority.roots).map(Box::new);
        let kept: Option<Kept> = kept.map(serde_json::from_slice).transpose()?;
        http()?.reach(&authority.directory).await?;
        answered.await;
        if let Some(kept) = kept.filter(|kept| kept.directory == authority.directory) {
            let account = Account::builder_with_http(http()?).from_credentials(kept.credentials).await?;
            return Ok((Self(account), None));
        }
        let contact: Vec<&str> = authority.contact.iter().map(String::as_str).collect();
        let new =
            NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let directory = authority.directory.clone();
        let (account, credentials) =
            Account::builder_with_http(http()?).create(&new, directory.clone(), None).await?;
        let kept = serde_json::to_vec_pretty(&Kept { directory, credentials })?;
        Ok((Self(account), Some(kept)))
    }

    /// Has a request for these names signed, and answers with the chain in PEM, leaf first. Dropped halfway, it leaves an
    /// unfinished order behind, and perhaps a record in the DNS.
    ///
    /// # Errors
    /// [`AcmeError`]; what solving needed is taken away again, as far as the hook does it.
    pub async fn obtain(
        &self,
        names: &[String],
        solver: &Solver,
        csr_der: &[u8],
    ) -> Result<String, AcmeError> {
        let identifiers: Vec<_> = names
            .iter()
            .map(|name| match name.parse::<IpAddr>() {
                Ok(ip) => Identifier::Ip(ip),
                Err(_) => Identifier::Dns(name.clone()),
            })
            .collect();
        let mut order = self.0.new_order(&NewOrder::new(&identifiers)).await?;
        solver.begin();
        let mut answers = Vec::new();
        let solved = solve(&mut order, solver, &mut answers).await;
        for answer in answers {
            solver.withdraw(answer).await;
        }
        solved?;
        order.finalize_csr(csr_der).await?;
        Ok(order.poll_certificate(&POLLING).await?)
    }
}

/// Answers all challenges; what was put up is added to `answers`, whatever comes of it.
async fn solve(
    order: &mut Order,
    solver: &Solver,
    answers: &mut Vec<solve::Answer>,
) -> Result<(), AcmeError> {
    let kind = match solver {
        Solver::Http(_) => ChallengeType::Http01,
        Solver::Dns(_) => ChallengeType::Dns01,
    };
    // All answers stand before the first is looked at: of several in the DNS, one wait is enough.
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let name = authorization.identifier().to_string();
        let Some(challenge) = authorization.challenge(kind.clone()) else {
            return Err(AcmeError::NoSuchChallenge { name, kind: solver.kind() });
        };
        solver.put_up(&name, &challenge.token, &challenge.key_authorization(), answers).await?;
    }
    if !answers.is_empty() {
        solver.settle().await;
    }
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status != AuthorizationStatus::Pending {
            continue;
        }
        if let Some(mut challenge) = authorization.challenge(kind.clone()) {
            challenge.set_ready().await?;
        }
    }
    match order.poll_ready(&POLLING).await? {
        OrderStatus::Invalid => Err(AcmeError::Invalid(reasons(order).await)),
        _ => Ok(()),
    }
}

/// What the authority says it found.
async fn reasons(order: &mut Order) -> String {
    let mut reasons = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(authorization)) = authorizations.next().await {
        let name = authorization.identifier().to_string();
        let errors = authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        reasons.extend(errors.map(|error| format!("{name}: {error}")));
    }
    if reasons.is_empty() { "it does not say why".into() } else { reasons.join("; ") }
}
