//! Spans for a collector, over OTLP by HTTP: one for each connection, with what was logged while it lived.
//!
//! A thread of OpenTelemetry's own gathers them and sends them, by a client that blocks that thread and nothing else.
//! Its queue is bounded: while a collector is slow or gone, spans are lost. The log says so once, again when the reason
//! is another one, and once when they are sent again.
//!
//! The collector's URL is a secret: it may hold a password or a key. OpenTelemetry, whose log names the URL, is given
//! another one.

use std::{
    fmt,
    io::Read as _,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SdkTracerProvider, SpanData, Tracer},
};
use reqwest::{Url, blocking::Client, redirect};
use tracing::Subscriber;
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::registry::LookupSpan;

use crate::{
    clock::Clock,
    https::{self, Trusted},
};

/// For one batch, from name look-up to status.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Of the collector's answer, what is read: how many spans it has refused, and why.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;
/// After a reason for losses was told, another one is told no sooner.
const TOLD_AGAIN: Duration = Duration::from_secs(600);

/// Why no spans are sent.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// The TLS configuration is refused.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The HTTP client cannot be made.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(String),
    /// OpenTelemetry refuses what it is given.
    #[error("the exporter cannot be set up: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Sends spans until it is dropped; then it sends those that wait, within five seconds.
pub struct Spans(SdkTracerProvider);

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spans").finish_non_exhaustive()
    }
}

impl Spans {
    /// Begins to send to `url`, the collector's `/v1/traces`. Whether it is there is not asked.
    /// `OTEL_EXPORTER_OTLP_HEADERS` and `OTEL_RESOURCE_ATTRIBUTES` are heeded, as OpenTelemetry says.
    ///
    /// # Errors
    /// [`OtlpError`].
    pub fn start(url: &Url) -> Result<Self, OtlpError> {
        let tls = https::client(Trusted::System)?;
        // A blocking client is a runtime of its own, which must not be made on a thread that has one.
        let client = std::thread::spawn(move || {
            Client::builder()
                .tls_backend_preconfigured(tls)
                .redirect(redirect::Policy::none())
                .no_proxy()
                .timeout(SEND_TIMEOUT)
                .user_agent(concat!("zrc-relay/", env!("CARGO_PKG_VERSION")))
                .build()
        });
        let client = match client.join() {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(OtlpError::Client(error.without_url().to_string())),
            Err(_) => return Err(OtlpError::Client("no thread for it".into())),
        };
        let why = Arc::default();
        let collector = Collector { client, url: url.clone(), why: Arc::clone(&why) };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(collector)
            .with_endpoint(url.origin().ascii_serialization())
            .build()?;
        let resource = Resource::builder()
            .with_service_name("zrc-relay")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let exporter = SaysOnce { exporter, why, losses: Mutex::default(), clock: Clock::start() };
        Ok(Self(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
    }

    /// What turns the spans of `tracing` into those that are sent.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> OpenTelemetryLayer<S, Tracer> {
        tracing_opentelemetry::layer().with_tracer(self.0.tracer("zrc-relay"))
    }
}

/// Sends what OpenTelemetry has put together to the collector's true URL.
struct Collector {
    client: Client,
    url: Url,
    /// Why nothing was answered, if so. OpenTelemetry says no more than that.
    why: Arc<Mutex<Option<String>>>,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").finish_non_exhaustive()
    }
}

impl HttpClient for Collector {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            // A user and a password in the URL become a header here.
            let sent = self.client.post(self.url.clone()).headers(parts.headers).body(body).send();
            let mut answer = sent.map_err(|error| {
                let error = error.without_url();
                let why = format!("{:#}", anyhow::Error::new(error));
                *self.why.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.clone());
                why
            })?;
            let mut response = Response::builder().status(answer.status()).body(Bytes::new())?;
            *response.headers_mut() = std::mem::take(answer.headers_mut());
            let mut bytes = Vec::new();
            answer.take(MAX_ANSWER_BYTES).read_to_end(&mut bytes)?;
            *response.body_mut() = bytes.into();
            Ok(response)
        })
    }
}

/// Sends spans. OpenTelemetry would have a line in the log for each batch that is not taken, one every five seconds.
#[derive(Debug)]
struct SaysOnce {
    exporter: SpanExporter,
    why: Arc<Mutex<Option<String>>>,
    losses: Mutex<Losses>,
    clock: Clock,
}

/// What has been lost since spans were last taken, and what was told of it.
#[derive(Debug, Default)]
struct Losses {
    spans: u64,
    /// The reason, and when, monotonic.
    told: Option<(String, Duration)>,
}

impl Losses {
    /// So many more; whether to tell it. A batch without spans is not sent.
    fn lose(&mut self, spans: usize, why: &str, now: Duration) -> bool {
        self.spans = self.spans.saturating_add(u64::try_from(spans).unwrap_or(u64::MAX));
        let tells = match &self.told {
            None => true,
            Some((told, at)) => told != why && now.saturating_sub(*at) >= TOLD_AGAIN,
        };
        if tells {
            self.told = Some((why.to_owned(), now));
        }
        tells
    }
}

impl opentelemetry_sdk::trace::SpanExporter for SaysOnce {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let sent = self.exporter.export(batch).await;
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut losses = self.losses.lock().unwrap_or_else(PoisonError::into_inner);
        match sent {
            Ok(()) => {
                let lost = std::mem::take(&mut *losses).spans;
                if lost > 0 {
                    tracing::info!(lost, "the collector takes spans again");
                }
            }
            Err(error) => {
                let error = why.unwrap_or_else(|| error.to_string());
                if losses.lose(spans, &error, self.clock.mono()) {
                    tracing::warn!(error, "the collector takes no spans; they are lost until it does");
                }
            }
        }
        // It has been said.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl Drop for Spans {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "the last spans could not be sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_reason_is_told_and_not_too_often() {
        let mut losses = Losses::default();
        let mut told = |secs, why| losses.lose(2, why, Duration::from_secs(secs));
        assert!(told(0, "no such name"));
        assert!(!told(5, "no such name") && !told(10, "401"));
        assert!(told(600, "401"), "what is wrong now is not what was");
        assert!(!told(605, "no such name") && !told(9000, "401"));
        assert!(told(9005, "no such name"));
        assert_eq!(losses.spans, 14);
    }
}
