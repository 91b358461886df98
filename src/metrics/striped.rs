//! Counters that threads do not take from each other: each thread counts on cache lines of its own, and a scrape
//! adds them up.
//!
//! With one atomic for all, every packet would first have to fetch the counter's cache line from whichever shard
//! counted last.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use prometheus::{
    core::{Collector, Desc},
    proto,
};

/// As many as there can be shards. Should more threads count, some share theirs, which costs time and no count.
const STRIPES: usize = 64;
/// Counters of one stripe.
const SLOTS: usize = 32;

/// Two cache lines: processors fetch them in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Stripe([AtomicU64; SLOTS]);

type Stripes = Arc<[Stripe]>;

thread_local! {
    static STRIPE: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Relaxed) % STRIPES
    };
}

/// One series. Live and exact: what was counted before a scrape began is in it.
#[derive(Debug, Clone)]
pub struct Counter {
    stripes: Stripes,
    slot: usize,
}

impl Counter {
    /// Counts one.
    pub fn inc(&self) {
        self.inc_by(1);
    }

    /// Counts several.
    pub fn inc_by(&self, amount: u64) {
        let stripe = STRIPE.with(|stripe| *stripe);
        if let Some(count) = self.stripes.get(stripe).and_then(|stripe| stripe.0.get(self.slot)) {
            count.fetch_add(amount, Relaxed);
        }
    }

    /// What all threads have counted.
    pub fn get(&self) -> u64 {
        // None is ever taken away, so the sum of what is read one after the other never falls.
        self.stripes
            .iter()
            .filter_map(|stripe| stripe.0.get(self.slot))
            .map(|count| count.load(Relaxed))
            .sum()
    }
}

/// Makes counters that lie beside each other.
pub(super) struct Counters {
    stripes: Stripes,
    used: usize,
}

impl Counters {
    pub(super) fn new() -> Self {
        let stripe = || Stripe(std::array::from_fn(|_| AtomicU64::new(0)));
        Self { stripes: (0..STRIPES).map(|_| stripe()).collect(), used: 0 }
    }

    /// Another one.
    ///
    /// # Errors
    /// When there are [`SLOTS`] already.
    pub(super) fn counter(&mut self) -> Result<Counter, prometheus::Error> {
        if self.used == SLOTS {
            return Err(prometheus::Error::Msg("no slot is left for a striped counter".to_owned()));
        }
        self.used += 1;
        Ok(Counter { stripes: self.stripes.clone(), slot: self.used - 1 })
    }
}

/// The series of one name, for a registry.
pub(super) struct Family {
    desc: Desc,
    labels: &'static [&'static str],
    series: Vec<(Vec<String>, Counter)>,
}

impl Family {
    /// # Errors
    /// When the name or a label is not one.
    pub(super) fn new(
        name: &str,
        help: &str,
        labels: &'static [&'static str],
    ) -> Result<Self, prometheus::Error> {
        let names = labels.iter().map(|&label| label.to_owned()).collect();
        let desc = Desc::new(name.to_owned(), help.to_owned(), names, Default::default())?;
        Ok(Self { desc, labels, series: Vec::new() })
    }

    /// Shows this counter under these values of the labels, in their order.
    pub(super) fn add(&mut self, values: &[&str], counter: &Counter) {
        let values = values.iter().map(|&value| value.to_owned()).collect();
        self.series.push((values, counter.clone()));
    }

    fn metric(&self, values: &[String], counter: &Counter) -> proto::Metric {
        let labels = self.labels.iter().zip(values).map(|(name, value)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value.clone());
            pair
        });
        let mut metric = proto::Metric::from_label(labels.collect());
        let mut value = proto::Counter::default();
        value.set_value(counter.get() as f64);
        metric.set_counter(value);
        metric
    }
}

impl Collector for Family {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let mut family = proto::MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(proto::MetricType::COUNTER);
        family.set_metric(self.series.iter().map(|(values, counter)| self.metric(values, counter)).collect());
        vec![family]
    }
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Family").field("name", &self.desc.fq_name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_many_threads_count_at_once_adds_up_and_never_falls() {
        let mut counters = Counters::new();
        let (packets, bytes) = (counters.counter().unwrap(), counters.counter().unwrap());
        // More threads than stripes: some share.
        let (threads, rounds) = (STRIPES + 8, 2000);
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    for _ in 0..rounds {
                        packets.inc();
                        bytes.inc_by(1200);
                    }
                });
            }
            let mut last = 0;
            while last < (threads * rounds) as u64 {
                let now = packets.get();
                assert!(now >= last, "{now} after {last}");
                last = now;
                thread::yield_now();
            }
        });
        assert_eq!(packets.get(), (threads * rounds) as u64);
        assert_eq!(bytes.get(), (threads * rounds * 1200) as u64);
    }

    #[test]
    fn threads_count_on_cache_lines_of_their_own() {
        let mut counters = Counters::new();
        let counter = counters.counter().unwrap();
        counter.inc();
        let mine = STRIPE.with(|stripe| *stripe);
        let count_beside_me = || STRIPE.with(|theirs| (*theirs != mine).then(|| counter.inc_by(5)));
        // Numbers are given in turn, but others take some too.
        while thread::scope(|scope| scope.spawn(count_beside_me).join()).unwrap().is_none() {}
        let touched: Vec<_> = counter
            .stripes
            .iter()
            .filter(|stripe| stripe.0[counter.slot].load(Relaxed) > 0)
            .map(|stripe| std::ptr::from_ref(stripe) as usize / 128)
            .collect();
        assert_eq!(touched.len(), 2);
        assert_ne!(touched[0], touched[1]);
        assert_eq!(size_of::<Stripe>() % 128, 0);
    }

    #[test]
    fn there_are_so_many_slots() {
        let mut counters = Counters::new();
        for slot in 0..SLOTS {
            assert_eq!(counters.counter().unwrap().slot, slot);
        }
        assert!(counters.counter().is_err());
    }
}
