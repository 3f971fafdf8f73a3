//! The gateway's metrics, made once.

use prometheus::{IntCounter, IntCounterVec, IntGauge};
use runtime::Metrics;
use runtime::metrics::{Error, Histogram, HistogramVec, Name, SECONDS};

/// See the module. Labels are few: no tenant, no key, no request.
#[derive(Debug)]
pub(crate) struct GatewayMetrics {
    pub requests: IntCounterVec,
    pub refused: IntCounterVec,
    pub in_flight: IntGauge,
    pub tokens: IntCounterVec,
    pub attempts: IntCounterVec,
    pub duration: HistogramVec,
    pub first_byte: Histogram,
    pub overhead: Histogram,
    pub estimated: IntCounterVec,
    pub unpriced: IntCounterVec,
    pub unmetered: IntCounter,
}

impl GatewayMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Result<Self, Error> {
        Ok(Self {
            requests: metrics.counters(Name::GatewayRequests, &["endpoint", "model", "end_reason"])?,
            refused: metrics.counters(Name::GatewayRefused, &["code"])?,
            in_flight: metrics.gauge(Name::GatewayInFlight)?,
            tokens: metrics.counters(Name::GatewayTokens, &["model", "class"])?,
            attempts: metrics.counters(Name::GatewayAttempts, &["replica", "outcome"])?,
            duration: metrics.histograms(Name::GatewayDuration, &["endpoint"], SECONDS)?,
            first_byte: metrics.histogram(Name::GatewayTimeToFirstByte, SECONDS)?,
            overhead: metrics.histogram(Name::GatewayOverhead, SECONDS)?,
            estimated: metrics.counters(Name::GatewayEstimated, &["reason"])?,
            unpriced: metrics.counters(Name::GatewayUnpriced, &["model"])?,
            unmetered: metrics.counter(Name::GatewayUnmetered)?,
        })
    }
}
