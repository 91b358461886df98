//! Spans for a collector, over OTLP by HTTP: one for each connection, with what was logged while it lived.
//!
//! A thread of OpenTelemetry's own gathers them and sends them, by a client that blocks that thread and nothing else.
//! Its queue is bounded: while a collector is slow or gone, spans are lost. The log says so once, and once when they are
//! sent again.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use opentelemetry::{KeyValue, trace::TracerProvider as _};
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

use crate::https::{self, Trusted};

/// For one batch, from name look-up to status.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

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
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(url.as_str())
            .build()?;
        let resource = Resource::builder()
            .with_service_name("zrc-relay")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let exporter = SaysOnce { exporter, lost: AtomicU64::new(0) };
        Ok(Self(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
    }

    /// What turns the spans of `tracing` into those that are sent.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> OpenTelemetryLayer<S, Tracer> {
        tracing_opentelemetry::layer().with_tracer(self.0.tracer("zrc-relay"))
    }
}

/// Sends spans. OpenTelemetry would have a line in the log for each batch that is not taken, one every five seconds.
#[derive(Debug)]
struct SaysOnce {
    exporter: SpanExporter,
    /// Spans since the last that were taken.
    lost: AtomicU64,
}

impl opentelemetry_sdk::trace::SpanExporter for SaysOnce {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        match self.exporter.export(batch).await {
            Ok(()) => {
                let lost = self.lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    tracing::info!(lost, "the collector takes spans again");
                }
            }
            Err(error) => {
                if self.lost.fetch_add(spans, Ordering::Relaxed) == 0 {
                    tracing::warn!(%error, "the collector takes no spans; they are lost until it does");
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
