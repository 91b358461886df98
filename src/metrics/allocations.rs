//! What is known of an allocation when it is over, and how long datagrams stay in the relay: distributions.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, HistogramVec, Registry};

use super::Metrics;

/// From a second to a day.
const DURATIONS: [f64; 11] =
    [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 10_800.0, 28_800.0, 57_600.0, 86_400.0];
/// From a kilobyte to a terabyte.
const BYTES: [f64; 10] = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12];
/// From a hundredth to all of it.
const RATIOS: [f64; 8] = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0];
/// Seconds: from five microseconds to a tenth of a second.
const LATENCIES: [f64; 13] = [5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.1];

/// Distributions, their handles cached.
pub(super) struct Distributions {
    duration: Histogram,
    bytes: Histogram,
    rate: Histogram,
    quota_used: Histogram,
    latency: [Histogram; 2],
}

impl Distributions {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let histogram = Histogram::with_opts(opts)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        let latency = HistogramVec::new(
            HistogramOpts::new(
                "zrc_relay_forward_latency_seconds",
                "How long datagrams stay in the relay, from the read of its socket to the hand-over, for one in some 256.",
            )
            .buckets(LATENCIES.to_vec()),
            &["kind"],
        )?;
        registry.register(Box::new(latency.clone()))?;
        Ok(Self {
            duration: histogram(
                "zrc_relay_allocation_duration_seconds",
                "How long allocations lived that are over.",
                &DURATIONS,
            )?,
            bytes: histogram(
                "zrc_relay_allocation_bytes",
                "Payload bytes that allocations were charged for over their whole life, both directions.",
                &BYTES,
            )?,
            rate: histogram(
                "zrc_relay_allocation_bytes_per_second",
                "The same by second of their life.",
                &BYTES,
            )?,
            quota_used: histogram(
                "zrc_relay_allocation_quota_used_ratio",
                "What part of their quota allocations had used when they ended, of those that had one.",
                &RATIOS,
            )?,
            latency: ["datagram", "raw"].map(|kind| latency.with_label_values(&[kind])),
        })
    }
}

impl Metrics {
    /// An allocation is over: how long it lived, what it used, and of how much.
    pub fn allocation_used(&self, lifetime: Duration, bytes_used: u64, quota_bytes: Option<u64>) {
        let all = &self.distributions;
        let (secs, bytes) = (lifetime.as_secs_f64(), bytes_used as f64);
        all.duration.observe(secs);
        all.bytes.observe(bytes);
        all.rate.observe(bytes / secs.max(0.001));
        if let Some(quota) = quota_bytes {
            all.quota_used.observe(bytes / (quota as f64).max(1.0));
        }
    }

    /// How long datagrams stay in the relay: those that leave raw, or the others.
    pub fn forward_latency(&self, is_raw: bool) -> &Histogram {
        let [datagram, raw] = &self.distributions.latency;
        if is_raw { raw } else { datagram }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r7_2_what_an_allocation_used_is_in_the_distributions() {
        let metrics = Metrics::new().unwrap();
        metrics.allocation_used(Duration::from_secs(10), 5000, Some(10_000));
        metrics.allocation_used(Duration::from_secs(3), 0, None);
        metrics.forward_latency(true).observe(3e-6);
        let text = metrics.encode().unwrap();
        for line in [
            "zrc_relay_allocation_duration_seconds_sum 13\n",
            "zrc_relay_allocation_duration_seconds_bucket{le=\"15\"} 2\n",
            "zrc_relay_allocation_bytes_bucket{le=\"10000\"} 2\n",
            "zrc_relay_allocation_bytes_per_second_sum 500\n",
            "zrc_relay_allocation_quota_used_ratio_sum 0.5\n",
            "zrc_relay_allocation_quota_used_ratio_count 1\n",
            "zrc_relay_forward_latency_seconds_bucket{kind=\"raw\",le=\"0.000005\"} 1\n",
            "zrc_relay_forward_latency_seconds_count{kind=\"datagram\"} 0\n",
        ] {
            assert!(text.contains(line), "{line} not in {text}");
        }
    }
}
