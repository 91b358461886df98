//! From which countries clients come, where the operator has a database that knows.

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use arc_swap::ArcSwapOption;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::geoip::{Country, Database};

/// Connections whose token was accepted, by country. Nothing is counted while there is no database.
pub struct CountryMetrics {
    database: ArcSwapOption<Database>,
    built_at: IntGauge,
    connections: IntCounterVec,
    live: IntGaugeVec,
    /// By [`Country::index`]: of those that somebody came from.
    series: Box<[OnceLock<Series>]>,
}

struct Series {
    connections: IntCounter,
    live: IntGauge,
}

/// A connection that counts as being there until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct FromCountry(IntGauge);

impl Drop for FromCountry {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl CountryMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let connections = IntCounterVec::new(
            Opts::new(
                "zrc_relay_country_connections_opened_total",
                "Connections whose token was accepted, by the country of their first address; with a GeoIP database alone.",
            ),
            &["country"],
        )?;
        let live = IntGaugeVec::new(
            Opts::new(
                "zrc_relay_country_connections",
                "Connections with an accepted token now, by the country of their first address; with a GeoIP database alone.",
            ),
            &["country"],
        )?;
        let built_at = IntGauge::new(
            "zrc_relay_geoip_build_timestamp_seconds",
            "When the GeoIP database in use was made, in Unix seconds; 0 without one.",
        )?;
        registry.register(Box::new(connections.clone()))?;
        registry.register(Box::new(live.clone()))?;
        registry.register(Box::new(built_at.clone()))?;
        let series = (0..Country::COUNT).map(|_| OnceLock::new()).collect();
        Ok(Self { database: ArcSwapOption::empty(), built_at, connections, live, series })
    }

    /// Looks in this database from now on. Connections that are there stay where they were found.
    /// Answers with the one before.
    pub fn configure(&self, database: Option<Arc<Database>>) -> Option<Arc<Database>> {
        let built_at = database.as_ref().map_or(0, |database| database.built_at_unix());
        self.built_at.set(i64::try_from(built_at).unwrap_or(i64::MAX));
        if database.is_some() {
            // So that there is something to show before the first client.
            self.series_of(Country::UNKNOWN);
        }
        self.database.swap(database)
    }

    /// A connection from this address counts until the answer is dropped; `None` without a database.
    pub fn arrived(&self, ip: IpAddr) -> Option<FromCountry> {
        let country = self.database.load().as_ref()?.country(ip);
        let Series { connections, live } = self.series_of(country)?;
        connections.inc();
        live.inc();
        Some(FromCountry(live.clone()))
    }

    fn series_of(&self, country: Country) -> Option<&Series> {
        let series = self.series.get(country.index())?;
        Some(series.get_or_init(|| {
            let country = country.to_string();
            Series {
                connections: self.connections.with_label_values(&[&country]),
                live: self.live.with_label_values(&[&country]),
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn r7_2_who_is_there_balances_whatever_becomes_of_the_database() {
        let metrics = Metrics::new().unwrap();
        let countries = &metrics.countries;
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(countries.arrived(ip("127.0.0.1")).is_none());
        assert!(!metrics.encode().unwrap().contains("zrc_relay_country"));

        let bytes = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/countries.mmdb")).unwrap();
        let database = Arc::new(Database::new(bytes).unwrap());
        countries.configure(Some(database.clone()));
        let built = format!("zrc_relay_geoip_build_timestamp_seconds {}\n", database.built_at_unix());
        assert!(metrics.encode().unwrap().contains(&built));
        let here: Vec<_> = ["127.0.0.1", "::ffff:127.0.0.2", "::1", "8.8.8.8"]
            .into_iter()
            .map(|text| countries.arrived(ip(text)).unwrap())
            .collect();
        let shown = |live: [i64; 3]| {
            let text = metrics.encode().unwrap();
            for ((country, all), live) in [("AQ", 2), ("BV", 1), ("unknown", 1)].into_iter().zip(live) {
                for line in [
                    format!("zrc_relay_country_connections_opened_total{{country=\"{country}\"}} {all}\n"),
                    format!("zrc_relay_country_connections{{country=\"{country}\"}} {live}\n"),
                ] {
                    assert!(text.contains(&line), "{line} not in {text}");
                }
            }
        };
        shown([2, 1, 1]);
        countries.configure(None);
        drop(here);
        shown([0, 0, 0]);
        assert!(metrics.encode().unwrap().contains("zrc_relay_geoip_build_timestamp_seconds 0\n"));
    }
}
