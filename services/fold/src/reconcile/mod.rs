//! The trial balance: figures that must be the same, collected at points where they can be compared, and compared.
//!
//! Nothing that is merely under way is a difference. The position is read before the log's bounds; a chunk is one part, and is
//! seen whole or not at all; sums of an hour are compared once the hour is over in the log, or when nothing was written between
//! both readings; a balance is compared up to the offset that it names; and a request that one topic has is missed in the other
//! only when its source has vouched there for a later time; what a replica counted itself lies between what it must and may be. What cannot be compared yet is said.

mod compare;
mod log;
mod replicas;
mod report;
mod sealed;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ledger::control::{ControlState, Document, Kind};
use ledger::ids::SourceId;
use ledger::invoice::{self, SlotUsage};
use ledger::time::{Micros, Period, Slot};
use runtime::{Clock, Shutdown, SystemClock};
use schemas::event::BalanceUpdated;
use sql::{
    ChunkSpan, ClickHouse, ClickHouseSettings, LogHour, LogHours, Proof, QueryError, RatingLine, Scope, SourceState,
    Table,
};
use stream::balances::{BalancesReader, BalancesView};
use stream::consume::{self, Bounds, ConsumeError};
use stream::control::{ControlReader, ControlView};
use stream::kafka::KafkaSettings;
use thiserror::Error;

use compare::Corrections;
pub use report::{Check, Difference, Pending, Place, Report, Side};
pub(crate) use watch::{Watch, WatchMeters};

/// How long balances that run ahead of the rows are waited for.
const AHEAD: Duration = Duration::from_secs(3);
/// How often it is looked whether the rows have reached them.
const LOOK: Duration = Duration::from_millis(200);
/// How many bills are reckoned in one run, from the balances that were published last on.
const BILLS: usize = 200;
/// How many chunks of a line that differ are read again in the log, to name the requests.
const NAMED: usize = 20;
/// How long control and balances may take to be read whole.
const LOAD: Duration = Duration::from_secs(60);

/// Why figures could not be collected. None of it is a difference.
#[derive(Debug, Error)]
pub enum ReconcileError {
    /// ClickHouse.
    #[error("ClickHouse: {0}")]
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
}

/// A line, and how far it is.
struct Line {
    table: Table,
    partition: i32,
    position: i64,
    /// What became of its offsets, by its chunks: as many.
    outcomes: i64,
    next: i64,
    /// The hour of the log that is not over; none when nothing is folded.
    open: Option<LogHour>,
    sources: BTreeMap<SourceId, SourceState>,
    /// The chunks of the hours that are looked at.
    span: ChunkSpan,
    /// Why it is no whole folding.
    damaged: Option<String>,
    /// What occurred until then may have no row of its own any more.
    sealed: Micros,
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
        Self { kafka: kafka.clone(), clickhouse: ClickHouse::new(clickhouse), control, balances, clock }
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

    /// Compares everything of some hours of the log, and the balances and bills of the periods that are not over.
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
        let mut lines = Vec::new();
        for partition in 0..self.kafka.partitions {
            for table in Table::ALL {
                lines.push(self.line(&mut report, table, partition, hours).await?);
            }
        }
        for line in &lines {
            self.chunks(&mut report, line).await?;
        }
        self.aggregates(&mut report, &lines, hours).await?;
        self.requests(&mut report, &lines, hours).await?;
        self.balances(&mut report, &lines, &balances).await?;
        self.bills(&mut report, &balances).await?;
        self.replicas(&mut report, &lines, hours).await?;
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

    /// How far a line is: its position before the log's bounds, so that the log is never behind.
    async fn line(
        &self,
        report: &mut Report,
        table: Table,
        partition: i32,
        hours: LogHours,
    ) -> Result<Line, ReconcileError> {
        let (now_ms, groups) = self.clickhouse.groups(table, partition).await?;
        let Bounds { first, next } = self.bounds(table, partition).await?;
        let span = self.clickhouse.chunk_span(table, partition, hours).await?;
        let mut line = Line {
            table,
            partition,
            position: 0,
            outcomes: 0,
            next,
            open: None,
            sources: BTreeMap::new(),
            span,
            damaged: Proof::of(table, partition, now_ms, groups.iter().cloned()).err().map(|error| error.to_string()),
            sealed: sealed::until(&self.clickhouse, table, partition, hours, now_ms).await?,
        };
        for group in groups {
            match group.kind {
                sql::Kind::Chunk => {
                    line.position = group.end;
                    line.outcomes = group.counts.total().unwrap_or(i64::MAX);
                    line.open = Some(LogHour::of_ms(group.log_time_ms));
                }
                // How far a source is, was said when all before it was there: also where rows were lost since.
                sql::Kind::Source => {
                    line.sources.insert(group.source, group.state);
                }
                sql::Kind::Data | sql::Kind::Dead => {}
            }
        }
        compare::log(report, table, partition, line.position, Bounds { first, next });
        Ok(line)
    }

    async fn bounds(&self, table: Table, partition: i32) -> Result<Bounds, ReconcileError> {
        Ok(consume::bounds(&self.kafka, table.topic(), partition).await?)
    }

    async fn chunks(&self, report: &mut Report, line: &Line) -> Result<(), ReconcileError> {
        let Line { table, partition, .. } = *line;
        // What is damaged may be of any hour.
        let span = match line.damaged {
            Some(_) => self.clickhouse.chunk_span(table, partition, LogHours::default()).await?,
            None => line.span,
        };
        report.compared(Check::Chunks, 1);
        report.compared(Check::Rows, usize::try_from(span.chunks).unwrap_or(usize::MAX));
        let faults = self.clickhouse.chunk_faults(table, partition, span).await?;
        if let Some(damaged) = &line.damaged {
            let breaks = self.clickhouse.chunk_breaks(table, partition).await?;
            compare::breaks(report, table, partition, &breaks);
            if breaks.is_empty() && faults.is_empty() {
                compare::damaged(report, table, partition, (line.position, line.outcomes), damaged);
            }
        }
        for (at, fault) in faults.iter().enumerate() {
            // The rows of a sealed month are of no request.
            let named = match at < NAMED && fault.sealed == 0 {
                true => log::name(&self.clickhouse, &self.kafka, table, partition, fault).await?,
                false => None,
            };
            compare::rows(report, table, partition, fault, named.as_ref());
        }
        Ok(())
    }

    async fn aggregates(&self, report: &mut Report, lines: &[Line], hours: LogHours) -> Result<(), ReconcileError> {
        let balance = self.clickhouse.trial_balance(hours).await?;
        let mut open = BTreeMap::new();
        for line in lines.iter().filter(|line| line.table == Table::Tokens) {
            let after = self.clickhouse.position(Table::Tokens, line.partition).await?.position;
            // Where nothing was written meanwhile, every hour can be compared.
            if after != line.position {
                open.insert(line.partition, line.open.unwrap_or(LogHour(i64::MIN)));
            }
        }
        compare::aggregates(report, &balance, &open);
        Ok(())
    }

    async fn requests(&self, report: &mut Report, lines: &[Line], hours: LogHours) -> Result<(), ReconcileError> {
        for line in lines {
            let (partition, span) = (line.partition, line.span);
            if line.table == Table::Tokens {
                let mut uneven = self.clickhouse.uneven_requests(partition, span, hours).await?;
                sealed::leave_out(&self.clickhouse, partition, line.sealed, &mut uneven).await?;
                report.compared(Check::Counts, usize::try_from(span.chunks).unwrap_or(usize::MAX));
                compare::counts(report, partition, &uneven);
            }
            let Some(other) = lines.iter().find(|other| other.partition == partition && other.table != line.table)
            else {
                continue;
            };
            let mut unmatched = self.clickhouse.unmatched(line.table, partition, hours).await?;
            unmatched.retain(|one| one.at > other.sealed);
            report.compared(Check::Ends, usize::try_from(span.chunks).unwrap_or(usize::MAX));
            compare::ends(report, line.table, partition, &unmatched, &other.sources);
        }
        Ok(())
    }

    async fn balances(
        &self,
        report: &mut Report,
        lines: &[Line],
        balances: &[Arc<BalanceUpdated>],
    ) -> Result<(), ReconcileError> {
        let mut asked = BTreeMap::<(i32, Period), Vec<&BalanceUpdated>>::new();
        for balance in balances {
            let line = lines.iter().find(|line| line.table == Table::Tokens && line.partition == balance.partition);
            if line.is_some_and(|line| compare::is_comparable(report, balance, line.position, line.next)) {
                asked.entry((balance.partition, period(balance))).or_default().push(balance);
            }
        }
        let control = self.control.load();
        for ((partition, period), balances) in asked {
            let as_of: Vec<_> = balances.iter().map(|one| (one.tenant_id.clone(), one.as_of)).collect();
            let sums = self.clickhouse.balance_sums(partition, period, &as_of).await?;
            let mut by_tenant = BTreeMap::<_, Vec<_>>::new();
            for sum in &sums {
                by_tenant.entry(&sum.tenant).or_default().push(sum);
            }
            for balance in balances {
                let rows = by_tenant.get(&balance.tenant_id).map_or(&[][..], Vec::as_slice);
                let made = control.state.adjustments().map(|(_, made)| made);
                let made = made.filter(|made| made.tenant == balance.tenant_id && period.contains(made.slot)).collect();
                compare::balance(report, balance, rows, &Corrections { made, as_of: control.offset });
            }
        }
        Ok(())
    }

    /// The bills of tenants whose balances were published last: as billing reckons them, and out of the rows alone.
    async fn bills(&self, report: &mut Report, balances: &[Arc<BalanceUpdated>]) -> Result<(), ReconcileError> {
        let state = &self.control.load().state;
        for balance in balances.iter().take(BILLS) {
            let place = Place::line(Table::Tokens.topic(), balance.partition).of(&balance.tenant_id);
            let scope = Scope::new(Some(balance.tenant_id.clone()), period(balance).from, period(balance).to);
            let before = self.clickhouse.position(Table::Tokens, balance.partition).await?.position;
            let shown = self.clickhouse.rating(&scope, false).await?;
            let rows = self.clickhouse.rating_of_rows(&scope).await?;
            if self.clickhouse.position(Table::Tokens, balance.partition).await?.position != before {
                report.pending(Check::Invoices, place, "rows were written meanwhile".to_owned());
                continue;
            }
            match (bill(state, balance, rows), bill(state, balance, shown)) {
                (Some(rows), Some(shown)) => compare::bill(report, &place, &rows, &shown),
                _ => report.pending(Check::Invoices, place, "there is no such tenant in control".to_owned()),
            }
        }
        Ok(())
    }

    /// The counters of replicas that were kept in some hours, and what their requests are counted as.
    async fn replicas(&self, report: &mut Report, lines: &[Line], hours: LogHours) -> Result<(), ReconcileError> {
        let open = lines.iter().flat_map(|line| line.sources.values()).filter(|source| source.end.is_none());
        let vouched = open.map(|source| source.watermark).min().unwrap_or(self.now());
        let mut samples = self.clickhouse.replica_counters(hours).await?;
        let sealed = lines.iter().map(|line| line.sealed).max().unwrap_or(Micros(i64::MIN));
        sealed::leave_out_samples(&mut samples, sealed);
        for samples in samples.chunk_by(|one, next| one.url == next.url) {
            let lives = replicas::lives(samples, vouched, self.now());
            if lives.is_empty() {
                replicas::pending(report, &samples[0].replicas);
            }
            for life in lives {
                let (from, to) = replicas::span(life);
                let usage = self.clickhouse.replica_usage(&life.1.replicas, from, to, replicas::SKEW).await?;
                replicas::compare(report, life, &usage);
            }
        }
        Ok(())
    }
}

fn period(balance: &BalanceUpdated) -> Period {
    Period { from: Slot::of(balance.period_from), to: Slot::of(balance.period_to) }
}

/// The bill that these lines make; none for a tenant that control does not know, or with prices that cannot be used.
fn bill(state: &ControlState, balance: &BalanceUpdated, lines: Vec<RatingLine>) -> Option<invoice::Preview> {
    let Some(Document::Tenant(tenant)) = state.get(Kind::Tenant, balance.tenant_id.as_str()) else { return None };
    let used = |line: RatingLine| {
        let RatingLine { project, model, slot, tokens, .. } = line;
        SlotUsage { project, model, slot, counts: tokens, late: false }
    };
    let book = state.price_book().ok()?;
    // Corrections are the same documents on both sides, and what came late is part of both.
    invoice::preview(lines.into_iter().map(used), [], tenant.currency, &book, &period(balance)).ok()
}
