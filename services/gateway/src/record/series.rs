//! The metrics of one endpoint, model and plan: found once per request, and touched without a look-up after that.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use ledger::ids::{ModelId, PlanId};
use ledger::tokens::TokenClass;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec};
use runtime::Metrics;
use runtime::metrics::{ANSWER_SECONDS, Error, FIRST_TOKEN_SECONDS, Name, TOKEN_SECONDS};
use schemas::event::EndReason;

use crate::labels::Labels;

/// The metrics of one endpoint, model and plan.
#[derive(Debug)]
pub(crate) struct Series {
    requests: Vec<IntCounter>,
    tokens: Vec<IntCounter>,
    /// From a request's head to the end of its answer.
    pub duration: Histogram,
    /// From a request's head to the first token of a stream.
    pub first_token: Histogram,
    /// From one token of a stream to the next.
    pub between_tokens: Histogram,
    /// Requests without a price.
    pub unpriced: IntCounter,
}

impl Series {
    /// Requests that ended so.
    pub(crate) fn requests(&self, reason: EndReason) -> Option<&IntCounter> {
        self.requests.get(EndReason::ALL.iter().position(|one| *one == reason)?)
    }

    /// Tokens of a class.
    pub(crate) fn tokens(&self, class: TokenClass) -> Option<&IntCounter> {
        self.tokens.get(TokenClass::ALL.iter().position(|one| *one == class)?)
    }
}

type ByEndpoint = Vec<(String, Arc<Series>)>;
type Known = HashMap<ModelId, HashMap<PlanId, ByEndpoint>>;

/// All of them. Reading takes no lock.
#[derive(Debug)]
pub(crate) struct AllSeries {
    requests: IntCounterVec,
    tokens: IntCounterVec,
    duration: HistogramVec,
    first_token: HistogramVec,
    between_tokens: HistogramVec,
    unpriced: IntCounterVec,
    known: ArcSwap<Known>,
    labels: Arc<Labels>,
    making: Mutex<()>,
}

impl AllSeries {
    /// None yet.
    pub(crate) fn new(metrics: &Metrics, labels: Arc<Labels>) -> Result<Self, Error> {
        let by = &["model", "plan"];
        Ok(Self {
            requests: metrics.counters(Name::GatewayRequests, &["endpoint", "model", "plan", "end_reason"])?,
            tokens: metrics.counters(Name::GatewayTokens, &["model", "plan", "class"])?,
            duration: metrics.histograms(Name::GatewayDuration, by, ANSWER_SECONDS)?,
            first_token: metrics.histograms(Name::GatewayTimeToFirstToken, by, FIRST_TOKEN_SECONDS)?,
            between_tokens: metrics.histograms(Name::GatewayInterToken, by, TOKEN_SECONDS)?,
            unpriced: metrics.counters(Name::GatewayUnpriced, &["model"])?,
            known: ArcSwap::default(),
            labels,
            making: Mutex::default(),
        })
    }

    /// Those of this endpoint, model and plan. Model and plan are such as control names: a client cannot make a label.
    pub(crate) fn of(&self, endpoint: &str, model: &ModelId, plan: &PlanId) -> Arc<Series> {
        let find = |known: &Known| {
            let endpoints = known.get(model)?.get(plan)?;
            endpoints.iter().find(|(path, _)| path == endpoint).map(|(_, series)| Arc::clone(series))
        };
        if let Some(found) = find(&self.known.load()) {
            return found;
        }
        // Held until what is made is known, so that nobody makes it twice.
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = find(&self.known.load()) {
            return found;
        }
        let series = Arc::new(self.make(endpoint, model, plan));
        let mut known = Known::clone(&self.known.load());
        let endpoints = known.entry(model.clone()).or_default().entry(plan.clone()).or_default();
        endpoints.push((endpoint.to_owned(), Arc::clone(&series)));
        self.known.store(Arc::new(known));
        series
    }

    fn make(&self, endpoint: &str, model: &ModelId, plan: &PlanId) -> Series {
        let (model, plan) = (self.labels.model(model), self.labels.plan(plan));
        let ended = |reason: &EndReason| self.requests.with_label_values(&[endpoint, model, plan, reason.as_str()]);
        let counted = |class: &TokenClass| self.tokens.with_label_values(&[model, plan, class.as_str()]);
        Series {
            requests: EndReason::ALL.iter().map(ended).collect(),
            tokens: TokenClass::ALL.iter().map(counted).collect(),
            duration: self.duration.with_label_values(&[model, plan]),
            first_token: self.first_token.with_label_values(&[model, plan]),
            between_tokens: self.between_tokens.with_label_values(&[model, plan]),
            unpriced: self.unpriced.with_label_values(&[model]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_labels_are_the_same_series_and_too_many_are_other() {
        let metrics = Metrics::new();
        let all = AllSeries::new(&metrics, Labels::new(2)).unwrap();
        let of = |model: &str, plan: &str| all.of("/v1/x", &model.parse().unwrap(), &plan.parse().unwrap());
        let complete = |series: &Series| series.requests(EndReason::Complete).unwrap().clone();
        assert!(Arc::ptr_eq(&of("a", "p"), &of("a", "p")));
        for model in ["a", "b", "c", "d", "a"] {
            complete(&of(model, "p")).inc();
        }
        let text = metrics.text();
        let counted = |model: &str| {
            let line = format!(
                "tollgate_gateway_requests_total{{end_reason=\"complete\",endpoint=\"/v1/x\",model=\"{model}\",plan=\"p\"}} "
            );
            text.lines().find_map(|found| found.strip_prefix(&line)).map(str::to_owned)
        };
        assert_eq!(["a", "b", "c", "other"].map(counted), [Some("2".into()), Some("1".into()), None, Some("2".into())]);
    }
}
