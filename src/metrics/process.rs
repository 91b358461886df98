//! What every program shows of itself, under the names that all of them use: CPU, memory, file descriptors, threads. Linux.

use prometheus::{
    core::{Collector, Desc},
    process_collector::ProcessCollector,
    proto::MetricFamily,
};

/// Declared elsewhere: it takes more of `/proc` than a service is let see (systemd's `ProcSubset=pid`), and would be 0.
const START_TIME: &str = "process_start_time_seconds";

/// This process.
pub(super) struct Process(ProcessCollector);

impl Process {
    pub(super) fn new() -> Self {
        Self(ProcessCollector::for_self())
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc().into_iter().filter(|desc| desc.fq_name != START_TIME).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.0.collect();
        families.retain(|family| family.name() != START_TIME);
        families
    }
}
