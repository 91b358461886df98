//! HTTP towards the authority, with the TLS of everything else here.

use std::{pin::Pin, time::Duration};

use axum::http::{Request, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use reqwest::redirect;
use rustls::pki_types::CertificateDer;

use super::AcmeError;
use crate::https::{self, Trusted};

/// For one request, from name look-up to the end of the answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest answer is a chain of certificates.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Asks over https alone, and follows nobody elsewhere.
pub(super) struct Http(reqwest::Client);

impl Http {
    /// Trusts these beside what the system trusts.
    pub(super) fn new(roots: &[CertificateDer<'static>]) -> Result<Self, AcmeError> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(https::client(Trusted::SystemAnd(roots))?)
            .https_only(true)
            .http1_only()
            .redirect(redirect::Policy::none())
            .referer(false)
            .timeout(REQUEST_TIMEOUT)
            .user_agent(concat!("zrc-relay/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| AcmeError::Client(error.without_url()))?;
        Ok(Self(client))
    }

    /// Whether anything answers there, whatever it says.
    pub(super) async fn reach(&self, url: &str) -> Result<(), Error> {
        self.0.get(url).send().await.map(drop).map_err(|error| other(error.without_url()))
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Other(Box::new(error))
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map_err(other)?.to_bytes();
            let request = reqwest::Request::try_from(Request::from_parts(parts, body)).map_err(other)?;
            let mut response = client.execute(request).await.map_err(other)?;
            let mut answer = Response::builder().status(response.status());
            for (name, value) in response.headers() {
                answer = answer.header(name, value);
            }
            let mut body = BytesMut::new();
            while let Some(chunk) = response.chunk().await.map_err(other)? {
                if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                    return Err(Error::Str("an answer of at most 1 MiB"));
                }
                body.extend_from_slice(&chunk);
            }
            Ok(BytesResponse::from(answer.body(Full::new(body.freeze()))?))
        })
    }
}
