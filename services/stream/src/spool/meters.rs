//! What a spool tells Prometheus about itself.

use std::time::Duration;

use runtime::metrics::{Error, Histogram, IntCounter, IntCounterVec, IntGauge, Metrics, Name, SECONDS};

use super::segment::TopicSpec;

/// The figures of one spool. Each is made once and then only touched.
#[derive(Debug)]
pub(crate) struct Meters {
    /// Per topic.
    records: Vec<IntCounter>,
    fsync: Histogram,
    errors: IntCounterVec,
    lost: IntCounterVec,
    bytes: IntGauge,
    segments: IntGauge,
    full: IntGauge,
}

impl Meters {
    pub(crate) fn new(
        metrics: &Metrics,
        topics: &[TopicSpec],
        max_bytes: u64,
        recovered: usize,
    ) -> Result<Self, Error> {
        let records = metrics.counters(Name::SpoolRecords, &["topic"])?;
        metrics.gauge(Name::SpoolCapacity)?.set(max_bytes as i64);
        metrics.counter(Name::SpoolRecovered)?.inc_by(recovered as u64);
        Ok(Self {
            records: topics.iter().map(|topic| records.with_label_values(&[&topic.name])).collect(),
            fsync: metrics.histogram(Name::SpoolFsync, SECONDS)?,
            errors: metrics.counters(Name::SpoolErrors, &["kind"])?,
            lost: metrics.counters(Name::SpoolLost, &["reason"])?,
            bytes: metrics.gauge(Name::SpoolBytes)?,
            segments: metrics.gauge(Name::SpoolSegments)?,
            full: metrics.gauge(Name::SpoolFull)?,
        })
    }

    pub(crate) fn record(&self, topic: u8) {
        if let Some(counter) = self.records.get(topic as usize) {
            counter.inc();
        }
    }

    pub(crate) fn synced(&self, took: Duration) {
        self.fsync.observe(took.as_secs_f64());
    }

    pub(crate) fn error(&self, kind: &str) {
        self.errors.with_label_values(&[kind]).inc();
    }

    pub(crate) fn lost(&self, reason: &str) {
        self.lost.with_label_values(&[reason]).inc();
    }

    pub(crate) fn stand(&self, bytes: u64, segments: u64, full: bool) {
        self.bytes.set(bytes as i64);
        self.segments.set(segments as i64);
        self.full.set(i64::from(full));
    }
}
