//! The gateway's metrics, made once.

use std::sync::{Arc, OnceLock};

use prometheus::{IntCounter, IntCounterVec, IntGauge};
use runtime::Metrics;
use runtime::metrics::{Error, Histogram, Name, SECONDS};

use super::series::AllSeries;
use crate::labels::Labels;

/// The statuses that have a count of their own.
const STATUSES: std::ops::Range<u16> = 200..600;

/// See the module. Labels are few: no tenant, no key, no request.
#[derive(Debug)]
pub(crate) struct GatewayMetrics {
    /// By endpoint, model and plan.
    pub series: AllSeries,
    responses: IntCounterVec,
    by_status: Vec<OnceLock<IntCounter>>,
    pub refused: IntCounterVec,
    pub in_flight: IntGauge,
    pub overhead: Histogram,
    pub estimated: IntCounterVec,
    pub unmetered: IntCounter,
    pub stalled: IntCounter,
    pub keepalives: IntCounter,
}

impl GatewayMetrics {
    /// Made once per registry.
    pub(crate) fn new(metrics: &Metrics, labels: Arc<Labels>) -> Result<Self, Error> {
        Ok(Self {
            series: AllSeries::new(metrics, labels)?,
            responses: metrics.counters(Name::GatewayResponses, &["status"])?,
            by_status: STATUSES.map(|_| OnceLock::new()).collect(),
            refused: metrics.counters(Name::GatewayRefused, &["code"])?,
            in_flight: metrics.gauge(Name::GatewayInFlight)?,
            overhead: metrics.histogram(Name::GatewayOverhead, SECONDS)?,
            estimated: metrics.counters(Name::GatewayEstimated, &["reason"])?,
            unmetered: metrics.counter(Name::GatewayUnmetered)?,
            stalled: metrics.counter(Name::GatewayClientsStalled)?,
            keepalives: metrics.counter(Name::GatewayKeepalives)?,
        })
    }

    /// A client gets an answer with this status.
    pub(crate) fn answered(&self, status: u16) {
        let cell = status.checked_sub(STATUSES.start).and_then(|at| self.by_status.get(usize::from(at)));
        match cell {
            Some(cell) => cell.get_or_init(|| self.responses.with_label_values(&[&status.to_string()])).inc(),
            None => self.responses.with_label_values(&["other"]).inc(),
        }
    }
}
