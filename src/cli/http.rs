//! One small HTTP request: how client commands read what a relay says of itself.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    header::{ACCEPT, HOST},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

/// From connecting to the last byte.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// What is read by this is a few hundred bytes.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// An `http://` URL, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Url {
    /// `host:port`, as it stands in the URL.
    authority: String,
    /// Where to connect: as `authority`, with the port filled in.
    connect: String,
    /// Begins with a slash.
    pub(super) path: String,
}

impl Url {
    /// # Errors
    /// What is wrong with it, for people.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        if text.starts_with("https://") {
            bail!("https is not spoken here; save the descriptor with another tool and give its file");
        }
        let rest = text.strip_prefix("http://").context("a URL begins with http://")?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        ensure!(!authority.is_empty() && !authority.contains('@'), "the URL names no host");
        let uri: hyper::Uri = text.parse().context("this is no URL")?;
        let host = uri.host().context("the URL names no host")?;
        let port = uri.port_u16().unwrap_or(80);
        let path = if path.is_empty() { "/" } else { path };
        Ok(Self { authority: authority.into(), connect: format!("{host}:{port}"), path: path.into() })
    }

    /// The body that answers a GET, when the status is 200.
    pub(super) async fn get(&self) -> anyhow::Result<Bytes> {
        timeout(REQUEST_TIMEOUT, self.get_unbounded())
            .await
            .with_context(|| format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()))?
    }

    async fn get_unbounded(&self) -> anyhow::Result<Bytes> {
        let stream = TcpStream::connect(&self.connect).await.context("cannot connect")?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::get(&self.path)
            .header(HOST, &self.authority)
            .header(ACCEPT, "application/json")
            .body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
        connection.abort();
        let body = body.map_err(anyhow::Error::from_boxed).context("cannot read the answer");
        if status != StatusCode::OK {
            match body.ok().and_then(|body| reason(&body.to_bytes())) {
                Some(reason) => bail!("the answer is {status}: {reason}"),
                None => bail!("the answer is {status}"),
            }
        }
        Ok(body?.to_bytes())
    }
}

/// What an answer gives as its reason, if it is one of ours.
fn reason(body: &[u8]) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let reason = ["reason", "detail"].iter().find_map(|key| answer.get(key)?.as_str())?;
    Some(reason.escape_debug().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (text, authority, connect, path) in [
            ("http://127.0.0.1:9433", "127.0.0.1:9433", "127.0.0.1:9433", "/"),
            ("http://127.0.0.1:9433/a/b?c", "127.0.0.1:9433", "127.0.0.1:9433", "/a/b?c"),
            ("http://relay.example/", "relay.example", "relay.example:80", "/"),
            ("http://[::1]:9433/x", "[::1]:9433", "[::1]:9433", "/x"),
        ] {
            let url = Url { authority: authority.into(), connect: connect.into(), path: path.into() };
            assert_eq!(Url::parse(text).unwrap(), url);
        }
        for text in ["https://a/", "ftp://a/", "http://", "http:///x", "http://a b/", "http://u@h/", "a"] {
            assert!(Url::parse(text).is_err(), "{text}");
        }
    }
}
