//! The metrics of routing, made once. The only labels are the replica and the reason.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use runtime::Metrics;
use runtime::metrics::{Error, Name};

/// See the module.
#[derive(Debug)]
pub(crate) struct RouteMetrics {
    replicas: [IntGaugeVec; 5],
    pub(super) sticky: IntCounter,
    pub(super) least: IntCounter,
    pub(super) spilled: IntCounter,
    pub(crate) retries_refused: IntCounter,
}

/// Those of one replica.
#[derive(Debug)]
pub(super) struct Gauges {
    pub active: IntGauge,
    pub up: IntGauge,
    pub ejected: IntGauge,
    pub waiting: IntGauge,
    /// Seconds since it last told its metrics.
    pub age: IntGauge,
}

impl RouteMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Result<Self, Error> {
        let names = [
            Name::GatewayReplicaActive,
            Name::GatewayReplicaUp,
            Name::GatewayReplicaEjected,
            Name::GatewayReplicaWaiting,
            Name::GatewayReplicaMetricsAge,
        ];
        let [active, up, ejected, waiting, age] = names.map(|name| metrics.gauges(name, &["replica"]));
        let picks: IntCounterVec = metrics.counters(Name::GatewayPicks, &["reason"])?;
        Ok(Self {
            replicas: [active?, up?, ejected?, waiting?, age?],
            sticky: picks.with_label_values(&["sticky"]),
            least: picks.with_label_values(&["least_loaded"]),
            spilled: picks.with_label_values(&["spill_over"]),
            retries_refused: metrics.counter(Name::GatewayRetriesRefused)?,
        })
    }

    /// Those of one replica.
    pub(super) fn of(&self, replica: &str) -> Gauges {
        let [active, up, ejected, waiting, age] =
            self.replicas.each_ref().map(|gauges| gauges.with_label_values(&[replica]));
        Gauges { active, up, ejected, waiting, age }
    }

    /// What is still open there goes on with its own handles, which nobody reads any more.
    pub(super) fn forget(&self, replica: &str) {
        for gauges in &self.replicas {
            let _ = gauges.remove_label_values(&[replica]);
        }
    }
}
