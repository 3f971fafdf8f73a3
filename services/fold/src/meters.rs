//! What a fold counts.

use runtime::Metrics;
use runtime::metrics::{Error, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Name, SECONDS};
use sql::{ChunkRows, Table};

/// The metrics of all lines.
#[derive(Debug, Clone)]
pub(crate) struct Meters {
    offsets: IntCounterVec,
    position: IntGaugeVec,
    lag: IntGaugeVec,
    chunks: IntCounterVec,
    pub(crate) insert: Histogram,
    pub(crate) proofs: IntCounter,
    stopped: IntGaugeVec,
    dead: IntCounterVec,
    pub(crate) delay: Histogram,
    pub(crate) balances: IntCounter,
    errors: IntCounterVec,
    pub(crate) unknown_tenants: IntCounter,
}

impl Meters {
    pub(crate) fn new(metrics: &Metrics) -> Result<Self, Error> {
        Ok(Self {
            offsets: metrics.counters(Name::FoldOffsets, &["topic", "outcome"])?,
            position: metrics.gauges(Name::FoldPosition, &["topic", "partition"])?,
            lag: metrics.gauges(Name::FoldLag, &["topic", "partition"])?,
            chunks: metrics.counters(Name::FoldChunks, &["topic", "became"])?,
            insert: metrics.histogram(Name::FoldInsert, SECONDS)?,
            proofs: metrics.counter(Name::FoldProofs)?,
            stopped: metrics.gauges(Name::FoldStopped, &["topic", "partition"])?,
            dead: metrics.counters(Name::FoldDead, &["topic", "reason"])?,
            delay: metrics.histogram(Name::FoldDelay, SECONDS)?,
            balances: metrics.counter(Name::FoldBalances)?,
            errors: metrics.counters(Name::FoldErrors, &["kind"])?,
            unknown_tenants: metrics.counter(Name::FoldUnknownTenants)?,
        })
    }

    /// The lines of a partition are another process's now.
    pub(crate) fn forget(&self, partition: i32) {
        for topic in [Table::Tokens.topic(), Table::Requests.topic()] {
            for gauges in [&self.position, &self.lag, &self.stopped] {
                // None was set: there is nothing to forget.
                let _ = gauges.remove_label_values(&[topic, &partition.to_string()]);
            }
        }
    }

    /// Those of one line.
    pub(crate) fn line(&self, topic: &'static str, partition: i32) -> LineMeters {
        let of = |gauges: &IntGaugeVec| gauges.with_label_values(&[topic, &partition.to_string()]);
        LineMeters {
            topic,
            position: of(&self.position),
            lag: of(&self.lag),
            stopped: of(&self.stopped),
            all: self.clone(),
        }
    }
}

/// The metrics of one line.
#[derive(Debug)]
pub(crate) struct LineMeters {
    pub(crate) topic: &'static str,
    pub(crate) position: IntGauge,
    pub(crate) lag: IntGauge,
    pub(crate) stopped: IntGauge,
    pub(crate) all: Meters,
}

impl LineMeters {
    /// A chunk is in ClickHouse: its offsets have their outcomes.
    pub(crate) fn written<D>(&self, rows: &ChunkRows<D>) {
        let counts = rows.counts;
        for (outcome, n) in
            [("folded", counts.folded), ("duplicate", counts.duplicates), ("dead", counts.dead), ("mark", counts.marks)]
        {
            self.all.offsets.with_label_values(&[self.topic, outcome]).inc_by(u64::try_from(n).unwrap_or(0));
        }
        for dead in &rows.dead {
            self.all.dead.with_label_values(&[self.topic, dead.reason.as_str()]).inc();
        }
        self.chunk("written");
        self.position.set(rows.end);
    }

    pub(crate) fn chunk(&self, became: &str) {
        self.all.chunks.with_label_values(&[self.topic, became]).inc();
    }

    pub(crate) fn error(&self, kind: &str) {
        self.all.errors.with_label_values(&[kind]).inc();
    }
}
