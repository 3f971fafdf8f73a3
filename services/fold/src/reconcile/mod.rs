//! The trial balance: figures that must be the same, collected at points where they can be compared, and compared.
//!
//! Nothing that is merely under way is a difference. The position is read before the log's bounds; a chunk is one part, and is
//! seen whole or not at all; sums of an hour are compared once the hour is over in the log, or when nothing was written between
//! both readings; a balance is compared up to the offset that it names; and a request that one topic has is missed in the other
//! only when its source has vouched there for a later time; what a replica counted itself lies between what it must and may be. What cannot be compared yet is said.

mod compare;
mod engines;
mod lines;
mod log;
mod memory;
mod money;
mod replicas;
mod report;
mod sealed;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::stream::balances::{BalancesReader, BalancesView};
use ::stream::consume::ConsumeError;
use ::stream::control::{ControlReader, ControlView};
use ::stream::kafka::KafkaSettings;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use ledger::time::Micros;
use runtime::{Clock, Shutdown, SystemClock};
use schemas::event::BalanceUpdated;
use sql::{ClickHouse, ClickHouseSettings, LogHours, QueryError, Table};
use thiserror::Error;

use memory::Memory;
pub use report::{Check, Difference, Pending, Place, Report, Side};
pub(crate) use watch::{Watch, WatchMeters};

/// How long balances that run ahead of the rows are waited for.
const AHEAD: Duration = Duration::from_secs(3);
/// How often it is looked whether the rows have reached them.
const LOOK: Duration = Duration::from_millis(200);
/// How many questions of a kind are asked at once: lines, balances and bills do not wait for each other.
const AT_ONCE: usize = 4;
/// How long control and balances may take to be read whole.
const LOAD: Duration = Duration::from_secs(60);

/// Why figures could not be collected. None of it is a difference.
#[derive(Debug, Error)]
pub enum ReconcileError {
    /// ClickHouse.
    #[error(transparent)]
    ClickHouse(#[from] QueryError),
    /// Kafka.
    #[error("Kafka: {0}")]
    Kafka(#[from] ConsumeError),
    /// Control or balances.
    #[error("{0}")]
    Load(String),
}

/// Collects and compares.
#[derive(Debug)]
pub struct Reconciler {
    kafka: KafkaSettings,
    clickhouse: ClickHouse,
    control: ControlView,
    balances: BalancesView,
    clock: Arc<dyn Clock>,
    memory: Mutex<Memory>,
}

/// Reads control and balances once, and compares everything of some hours of the log. For a command.
///
/// # Errors
/// See [`ReconcileError`].
pub async fn reconcile(
    kafka: &KafkaSettings,
    clickhouse: &ClickHouseSettings,
    hours: LogHours,
) -> Result<Report, ReconcileError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let load = |error: &dyn std::fmt::Display| ReconcileError::Load(error.to_string());
    let (reader, control) = ControlReader::open(kafka, None, clock.clone()).map_err(|error| load(&error))?;
    let (published, balances) = BalancesReader::open(kafka, None, Box::new(|_| {})).map_err(|error| load(&error))?;
    let stop = Shutdown::new();
    let reading = async {
        let (control, balances) = tokio::join!(reader.run(stop.clone()), published.run(stop.clone()));
        control.map_err(|error| load(&error))?;
        balances.map_err(|error| load(&error))
    };
    let comparing = async {
        let _stop = stop.clone().drop_guard();
        let loaded = async { tokio::join!(control.wait_caught_up(), balances.wait_caught_up()) };
        if tokio::time::timeout(LOAD, loaded).await.is_err() {
            return Err(ReconcileError::Load(format!(
                "control and balances were not read within {} s: Kafka at {} does not answer",
                LOAD.as_secs(),
                kafka.brokers
            )));
        }
        Reconciler::new(kafka, clickhouse, control.clone(), balances.clone(), clock).run(hours).await
    };
    let (read, report) = tokio::join!(reading, comparing);
    read?;
    report
}

impl Reconciler {
    /// One that asks these.
    pub fn new(
        kafka: &KafkaSettings,
        clickhouse: &ClickHouseSettings,
        control: ControlView,
        balances: BalancesView,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let clickhouse = ClickHouse::new(clickhouse);
        Self { kafka: kafka.clone(), clickhouse, control, balances, clock, memory: Mutex::default() }
    }

    pub(crate) fn clickhouse(&self) -> &ClickHouse {
        &self.clickhouse
    }

    pub(crate) fn now(&self) -> Micros {
        Micros(self.clock.now())
    }

    pub(crate) async fn ready(&self) {
        tokio::join!(self.control.wait_caught_up(), self.balances.wait_caught_up());
    }

    /// Compares everything of some hours of the log, and the balances and bills of the periods that are not over. Rows are read of
    /// these hours alone; what was logged before is summed by projections, which were compared with rows when their hours were.
    ///
    /// # Errors
    /// See [`ReconcileError`].
    pub async fn run(&self, hours: LogHours) -> Result<Report, ReconcileError> {
        let now = Micros(self.clock.now());
        let mut report = Report::begin(now, hours);
        // Before the positions, so that the rows have a chance to be as far.
        let balances = self.current_balances(now);
        self.wait_for_rows(&balances).await?;
        self.wait_for_control(&balances).await;
        let lines = self.lines(&mut report, hours).await?;
        self.chunks(&mut report, &lines).await?;
        self.aggregates(&mut report, &lines, hours).await?;
        self.requests(&mut report, &lines, hours).await?;
        self.balances(&mut report, &lines, &balances).await?;
        self.bills(&mut report, &lines, &balances, hours).await?;
        self.engines(&mut report, &lines, hours).await?;
        Ok(report)
    }

    /// Asks the replicas for their counters, and keeps them for comparisons.
    pub(crate) async fn take_counters(&self) -> Result<(), ReconcileError> {
        let samples = replicas::sample(&self.control.load().state, self.now()).await;
        Ok(self.clickhouse.keep_replica_counters(&samples).await?)
    }

    /// Those of periods that are not over, the last published first.
    fn current_balances(&self, now: Micros) -> Vec<Arc<BalanceUpdated>> {
        let mut balances = self.balances.all();
        balances.retain(|balance| {
            (balance.period_from..balance.period_to).contains(&now)
                && (0..self.kafka.partitions).contains(&balance.partition)
        });
        balances.sort_unstable_by_key(|balance| std::cmp::Reverse((balance.published_at, balance.tenant_id.clone())));
        balances
    }

    /// Balances run ahead of the rows by a chunk: waits a little for it.
    async fn wait_for_rows(&self, balances: &[Arc<BalanceUpdated>]) -> Result<(), ReconcileError> {
        let mut wanted = BTreeMap::<i32, i64>::new();
        for balance in balances {
            let offset = wanted.entry(balance.partition).or_default();
            *offset = (*offset).max(balance.as_of);
        }
        let reached = async {
            for (partition, offset) in wanted {
                while self.clickhouse.position(Table::Tokens, partition).await?.position < offset {
                    tokio::time::sleep(LOOK).await;
                }
            }
            Ok(())
        };
        // What they do not reach is said to be under way.
        tokio::time::timeout(AHEAD, reached).await.unwrap_or(Ok(()))
    }

    /// The control that the balances were published with is read here too, sooner or later: waits a little for it.
    async fn wait_for_control(&self, balances: &[Arc<BalanceUpdated>]) {
        let wanted = balances.iter().map(|balance| balance.control_offset).max().unwrap_or(0);
        // Without it their tenants' corrections cannot be compared, which is then said.
        let _ = tokio::time::timeout(AHEAD, self.control.wait_for(wanted)).await;
    }
}

/// Some at a time, and the answers in the order of the questions.
async fn at_once<T>(questions: Vec<impl Future<Output = Result<T, ReconcileError>>>) -> Result<Vec<T>, ReconcileError> {
    stream::iter(questions).buffered(AT_ONCE).try_collect().await
}
