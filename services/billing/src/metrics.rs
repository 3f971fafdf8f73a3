//! What billing counts of itself.

use runtime::Metrics;
use runtime::metrics::{Error, HistogramVec, IntCounter, IntCounterVec, Name, SECONDS};

/// Made once, kept, and touched by each request.
#[derive(Debug)]
pub(crate) struct BillingMetrics {
    pub(crate) requests: IntCounterVec,
    pub(crate) duration: HistogramVec,
    pub(crate) queries: HistogramVec,
    pub(crate) unrated: IntCounter,
    pub(crate) writes: IntCounterVec,
}

impl BillingMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Result<Self, Error> {
        Ok(Self {
            requests: metrics.counters(Name::BillingRequests, &["route", "status"])?,
            duration: metrics.histograms(Name::BillingDuration, &["route"], SECONDS)?,
            queries: metrics.histograms(Name::BillingQueries, &["query"], SECONDS)?,
            unrated: metrics.counter(Name::BillingUnrated)?,
            writes: metrics.counters(Name::BillingControlWrites, &["kind", "outcome"])?,
        })
    }
}
