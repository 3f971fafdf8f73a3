//! What every request has at hand: control, balances, ClickHouse, the clock and the metrics.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ledger::control::{ControlState, Document, Kind, Tenant, Write};
use ledger::ids::TenantId;
use ledger::time::Micros;
use runtime::{Clock, Metrics};
use sql::{ClickHouse, QueryError};
use stream::balances::BalancesView;
use stream::control::{ControlSnapshot, ControlView, ControlWriter, WriteError, Written};
use stream::kafka::KafkaSettings;

use crate::auth::KeyIndex;
use crate::metrics::BillingMetrics;
use crate::problem::Problem;

/// How long people wait for figures: ClickHouse answers in a fraction of a second, or something is wrong with it.
pub(crate) const ANSWERS_WITHIN: Duration = Duration::from_secs(30);

/// A future that borrows what it works on.
pub(crate) type Pending<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The log of control, for reading and writing.
pub(crate) trait ControlLog: Send + Sync {
    /// What it adds up to.
    fn view(&self) -> &ControlView;

    /// Writes; answered when the effect is in the view.
    fn write<'a>(&'a self, write: Write, actor: &'a str) -> Pending<'a, Result<Written, WriteError>>;
}

/// The control log in Kafka.
pub(crate) struct KafkaControl {
    pub(crate) view: ControlView,
    pub(crate) writer: ControlWriter,
}

impl ControlLog for KafkaControl {
    fn view(&self) -> &ControlView {
        &self.view
    }

    fn write<'a>(&'a self, write: Write, actor: &'a str) -> Pending<'a, Result<Written, WriteError>> {
        Box::pin(self.writer.write(write, actor))
    }
}

/// What billing is made of.
pub(crate) struct Parts {
    pub(crate) control: Box<dyn ControlLog>,
    pub(crate) balances: BalancesView,
    pub(crate) clickhouse: ClickHouse,
    /// For what only the log says: who replayed a dead letter.
    pub(crate) kafka: KafkaSettings,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
    /// SHA-256 of the admin's key, in hex.
    pub(crate) admin_key_sha256: Option<String>,
    pub(crate) secure_cookie: bool,
}

/// Shared by all requests.
pub(crate) struct App {
    pub(crate) control: Box<dyn ControlLog>,
    pub(crate) keys: KeyIndex,
    pub(crate) balances: BalancesView,
    pub(crate) clickhouse: ClickHouse,
    pub(crate) kafka: KafkaSettings,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: BillingMetrics,
    pub(crate) secure_cookie: bool,
}

/// A handle on it.
pub(crate) type Shared = Arc<App>;

impl App {
    pub(crate) fn new(parts: Parts) -> Result<Shared, runtime::metrics::Error> {
        Ok(Arc::new(Self {
            control: parts.control,
            keys: KeyIndex::new(parts.admin_key_sha256),
            balances: parts.balances,
            clickhouse: parts.clickhouse,
            kafka: parts.kafka,
            clock: parts.clock,
            metrics: BillingMetrics::new(&parts.metrics)?,
            secure_cookie: parts.secure_cookie,
        }))
    }

    pub(crate) fn now(&self) -> Micros {
        Micros(self.clock.now())
    }

    /// The state of control, if there is one to work from.
    pub(crate) fn control(&self) -> Result<Arc<ControlSnapshot>, Problem> {
        let view = self.control.view();
        if view.is_loaded() { Ok(view.load()) } else { Err(Problem::control_unavailable()) }
    }

    /// Asks ClickHouse, and measures how long it took. One that is silent has not answered after half a minute.
    pub(crate) async fn ask<T>(
        &self,
        query: &'static str,
        asked: impl Future<Output = Result<T, QueryError>>,
    ) -> Result<T, Problem> {
        let began = Instant::now();
        let answer = within(ANSWERS_WITHIN, asked).await;
        self.metrics.queries.with_label_values(&[query]).observe(began.elapsed().as_secs_f64());
        Ok(answer?)
    }
}

/// An answer in time, or none.
async fn within<T>(limit: Duration, asked: impl Future<Output = Result<T, QueryError>>) -> Result<T, QueryError> {
    let late = |_| QueryError::Unreachable(format!("no answer within {} s", limit.as_secs()));
    tokio::time::timeout(limit, asked).await.map_err(late)?
}

/// A tenant's document.
pub(crate) fn tenant<'a>(state: &'a ControlState, id: &TenantId) -> Result<&'a Tenant, Problem> {
    match state.get(Kind::Tenant, id.as_str()) {
        Some(Document::Tenant(tenant)) => Ok(tenant),
        _ => Err(Problem::not_found("tenant", id.as_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clickhouse_that_is_silent_is_one_that_is_away() {
        let silent = within::<()>(Duration::ZERO, std::future::pending()).await.unwrap_err();
        assert!(serde_json::to_string(&Problem::from(silent)).unwrap().contains("clickhouse_unavailable"));
        assert_eq!(within(Duration::ZERO, std::future::ready(Ok(7))).await.unwrap(), 7);
    }
}
