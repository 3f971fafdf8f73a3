//! The metrics of routing, made once. The only labels are the replica and the reason.

use std::sync::Arc;

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use runtime::Metrics;
use runtime::metrics::{Error, Name};
use schemas::event::EndReason;

/// What a try comes to before there is an answer. One that answers comes to what its request does.
const UNANSWERED: [&str; 6] = ["deadline", "broken", "refused", "failed", "not_served", "foreign"];

/// See the module.
#[derive(Debug)]
pub(crate) struct RouteMetrics {
    replicas: [IntGaugeVec; 5],
    attempts: IntCounterVec,
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
    pub attempts: Arc<Attempts>,
}

/// Tries at one replica, by what they came to.
#[derive(Debug)]
pub(crate) struct Attempts(Vec<(&'static str, IntCounter)>);

impl Attempts {
    /// One more came to this.
    pub(crate) fn came_to(&self, outcome: &str) {
        let found = self.0.iter().find(|(known, _)| *known == outcome);
        debug_assert!(found.is_some(), "{outcome} is no outcome of a try");
        if let Some((_, count)) = found {
            count.inc();
        }
    }
}

fn outcomes() -> impl Iterator<Item = &'static str> {
    let ends = EndReason::ALL.iter().map(|reason| reason.as_str());
    UNANSWERED.into_iter().chain(ends.filter(|end| !UNANSWERED.contains(end)))
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
            attempts: metrics.counters(Name::GatewayAttempts, &["replica", "outcome"])?,
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
        let count = |outcome| (outcome, self.attempts.with_label_values(&[replica, outcome]));
        let attempts = Arc::new(Attempts(outcomes().map(count).collect()));
        Gauges { active, up, ejected, waiting, age, attempts }
    }

    /// What is still open there goes on with its own handles, which nobody reads any more.
    pub(super) fn forget(&self, replica: &str) {
        for gauges in &self.replicas {
            let _ = gauges.remove_label_values(&[replica]);
        }
        for outcome in outcomes() {
            let _ = self.attempts.remove_label_values(&[replica, outcome]);
        }
    }
}
