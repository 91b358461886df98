//! Asks a relay's admin API, by its Unix socket or by its URL with a token.

use std::{
    env,
    fmt::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{Method, Response, StatusCode, Url, header, redirect};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;
use zeroize::Zeroizing;

use super::{
    super::{Exit, Failure, OrFail as _, files},
    place::configured_socket,
};
use crate::https::{self, Trusted};

/// Where packages have the socket, and `relay.example.toml` suggests it.
const DEFAULT_SOCKET: &str = "/run/zrc-relay/admin.sock";
/// For all but streams of events.
const TIMEOUT: Duration = Duration::from_secs(15);
/// A stream of events says something every 15 s; after three times that its relay is gone.
const SILENCE: Duration = Duration::from_secs(45);
/// Of an answer that is read as a whole: a list of a thousand.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Which relay, and by which right.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Which relay")]
pub(in crate::cli) struct Reach {
    /// The relay's admin socket [default: ZRC_ADMIN_SOCKET; or that of the configuration in ZRC_RELAY_CONFIG; or
    /// /run/zrc-relay/admin.sock]
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "url")]
    socket: Option<PathBuf>,
    /// The URL of its admin API, as http://127.0.0.1:9434; needs a token [default: ZRC_ADMIN_URL]
    #[arg(long, global = true, value_name = "URL")]
    url: Option<Url>,
    /// With --url: a file that holds the token; without it, the variable ZRC_ADMIN_TOKEN
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// With an https URL: the certificate to trust (PEM) in place of those of this system
    #[arg(long, global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// A way to one relay.
pub(in crate::cli) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<Zeroizing<String>>,
    /// For people.
    shown: String,
}

impl Reach {
    /// # Errors
    /// [`Exit::Usage`], or [`Exit::NoInput`] and [`Exit::Data`] for the files.
    pub(in crate::cli) fn client(&self) -> Result<Client, Failure> {
        let builder = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .connect_timeout(TIMEOUT)
            .read_timeout(SILENCE);
        let builder = builder.tls_backend_preconfigured(tls(self.ca.as_deref())?);
        let (socket, url) = self.chosen()?;
        let Some(url) = &url else {
            let path = socket.or_else(configured_socket).unwrap_or_else(|| DEFAULT_SOCKET.into());
            let shown = format!("the admin socket {} (--socket, --url)", path.display());
            let http = builder.unix_socket(path).build().or_fail(Exit::Software, "cannot speak HTTP")?;
            let base = Url::parse("http://localhost/").or_fail(Exit::Software, "a URL")?;
            return Ok(Client { http, base, token: None, shown });
        };
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(Failure::new(Exit::Usage, "--url begins with http:// or https:// and names a host"));
        }
        let token = match &self.token_file {
            Some(path) => {
                let bytes = files::read_small(path, "token file")?;
                let text = str::from_utf8(&bytes).or_fail(Exit::Data, "the token file holds no text")?;
                Zeroizing::new(text.trim().to_owned())
            }
            None => Zeroizing::new(std::env::var("ZRC_ADMIN_TOKEN").map_err(|_| {
                Failure::new(Exit::Usage, "--url needs a token: --token-file FILE, or ZRC_ADMIN_TOKEN")
            })?),
        };
        let http = builder.build().or_fail(Exit::Software, "cannot speak HTTP")?;
        Ok(Client { http, base: url.clone(), token: Some(token), shown: url.to_string() })
    }
}

impl Reach {
    /// What is said here comes before what the environment says.
    fn chosen(&self) -> Result<(Option<PathBuf>, Option<Url>), Failure> {
        if self.socket.is_some() || self.url.is_some() {
            return Ok((self.socket.clone(), self.url.clone()));
        }
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
        match (variable("ZRC_ADMIN_SOCKET"), variable("ZRC_ADMIN_URL")) {
            (Some(_), Some(_)) => {
                let reason =
                    "ZRC_ADMIN_SOCKET and ZRC_ADMIN_URL are both set: which is meant? --socket or --url";
                Err(Failure::new(Exit::Usage, reason))
            }
            (Some(socket), None) => Ok((Some(socket.into()), None)),
            (None, Some(url)) => {
                let url =
                    Url::parse(&url.to_string_lossy()).or_fail(Exit::Usage, "ZRC_ADMIN_URL is no URL")?;
                Ok((None, Some(url)))
            }
            (None, None) => Ok((None, None)),
        }
    }
}

fn tls(ca: Option<&Path>) -> Result<rustls::ClientConfig, Failure> {
    let Some(path) = ca else {
        return https::client(Trusted::System).or_fail(Exit::Software, "cannot speak TLS");
    };
    let pem = files::read_small(path, "certificate")?;
    let cannot = "--ca holds no certificate (PEM)";
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().or_fail(Exit::Data, cannot)?;
    if found.is_empty() {
        return Err(Failure::new(Exit::Data, cannot));
    }
    https::client(Trusted::Only(&found)).or_fail(Exit::Data, "--ca cannot be trusted")
}

impl Client {
    /// # Errors
    /// As [`Client::ask`].
    pub(in crate::cli) async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value, Failure> {
        self.ask(Method::GET, path, query, None).await
    }

    /// What answers; null where there is no body.
    ///
    /// # Errors
    /// [`Exit::Unavailable`] when nobody answers, [`Exit::Refused`] with what the relay says.
    pub(in crate::cli) async fn ask(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<Value>,
    ) -> Result<Value, Failure> {
        let whole = async {
            let mut response = self.send(method, path, query, body, Some(TIMEOUT)).await?;
            let mut text = Vec::new();
            while let Some(part) =
                response.chunk().await.or_fail(Exit::Unavailable, "the answer broke off")?
            {
                if text.len() + part.len() > MAX_ANSWER_BYTES {
                    return Err(Failure::new(Exit::Data, "the answer is too long"));
                }
                text.extend_from_slice(&part);
            }
            Ok((response.status(), text))
        };
        let (status, text) = whole.await?;
        if text.is_empty() && status.is_success() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&text).or_fail(Exit::Data, "the answer is no JSON: is this an admin API?")
    }

    /// The answer as it begins, if it is no refusal.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub(in crate::cli) async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<Value>,
        timeout: Option<Duration>,
    ) -> Result<Response, Failure> {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url);
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.as_str());
        }
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body.to_string());
        }
        let response = request.send().await.map_err(reqwest::Error::without_url).or_fail(
            Exit::Unavailable,
            format!("cannot reach {}; is the relay running, with this in [admin]?", self.shown),
        )?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        Err(Failure::new(Exit::Refused, refusal(status, response).await))
    }
}

/// What the relay says of it.
async fn refusal(status: StatusCode, mut response: Response) -> String {
    let mut text = Vec::new();
    while let Ok(Some(part)) = response.chunk().await {
        text.extend_from_slice(&part);
        if text.len() > 16 << 10 {
            break;
        }
    }
    let problem: Option<Value> = serde_json::from_slice(&text).ok();
    match problem.as_ref().and_then(|problem| problem["detail"].as_str()) {
        Some(detail) => format!("{} ({})", plain(detail), status.as_u16()),
        None => format!("the answer is {status}"),
    }
}

/// A text from elsewhere as a terminal may have it: what could steer one is shown as numbers.
pub(in crate::cli) fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        let steers = c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if steers {
            let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    shown
}
