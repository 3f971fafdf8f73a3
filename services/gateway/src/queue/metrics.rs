//! What is measured of the queue. Labels are few: tiers, plans, models, outcomes.

use std::sync::Arc;

use prometheus::{GaugeVec, IntCounterVec, IntGauge, IntGaugeVec};
use runtime::Metrics;
use runtime::metrics::{Error, HistogramVec, Name, SECONDS};

use crate::labels::Labels;

/// See the module.
#[derive(Debug)]
pub(crate) struct QueueMetrics {
    /// By plan.
    pub seconds: HistogramVec,
    /// By tier and plan.
    pub length: IntGaugeVec,
    /// By outcome: of those that had to wait.
    pub left: IntCounterVec,
    /// By model and tier.
    pub fairness: GaugeVec,
    pub body_bytes: IntGauge,
    pub labels: Arc<Labels>,
}

impl QueueMetrics {
    pub(crate) fn new(metrics: &Metrics, labels: Arc<Labels>) -> Result<Self, Error> {
        Ok(Self {
            seconds: metrics.histograms(Name::GatewayQueueTime, &["plan"], SECONDS)?,
            length: metrics.gauges(Name::GatewayQueueLength, &["tier", "plan"])?,
            left: metrics.counters(Name::GatewayQueueLeft, &["outcome"])?,
            fairness: metrics.ratios(Name::GatewayQueueFairness, &["model", "tier"])?,
            body_bytes: metrics.gauge(Name::GatewayBodyBytes)?,
            labels,
        })
    }
}
