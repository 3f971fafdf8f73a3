//! The lines of the log: how far each is, its chunks with their rows, and the counts and ends of its requests.

use std::collections::BTreeMap;

use ledger::ids::SourceId;
use ledger::time::Micros;
use sql::{ChunkSpan, LogHour, LogHours, Proof, SourceState, Table};
use stream::consume::{self, Bounds};

use super::report::{Check, Report};
use super::{ReconcileError, Reconciler, at_once, compare, log, sealed};

/// How many chunks of a line that differ are read again in the log, to name the requests.
const NAMED: usize = 20;

/// A line, and how far it is.
pub(crate) struct Line {
    pub(crate) table: Table,
    pub(crate) partition: i32,
    pub(crate) position: i64,
    /// What became of its offsets, by its chunks: as many.
    outcomes: i64,
    pub(crate) log: Bounds,
    /// The hour of the log that is not over; none when nothing is folded.
    open: Option<LogHour>,
    pub(crate) sources: BTreeMap<SourceId, SourceState>,
    /// The chunks of the hours that are looked at.
    pub(crate) span: ChunkSpan,
    /// Why it is no whole folding.
    pub(crate) damaged: Option<String>,
    /// What occurred until then may have no row of its own any more.
    pub(crate) sealed: Micros,
}

impl Reconciler {
    /// How far all lines are.
    pub(super) async fn lines(&self, report: &mut Report, hours: LogHours) -> Result<Vec<Line>, ReconcileError> {
        let places = (0..self.kafka.partitions).flat_map(|partition| Table::ALL.map(|table| (table, partition)));
        let lines = at_once(places.map(|(table, partition)| self.line(table, partition, hours)).collect()).await?;
        for line in &lines {
            compare::log(report, line.table, line.partition, line.position, line.log);
        }
        Ok(lines)
    }

    /// How far a line is: its position before the log's bounds, so that the log is never behind.
    async fn line(&self, table: Table, partition: i32, hours: LogHours) -> Result<Line, ReconcileError> {
        let (now_ms, groups) = self.clickhouse.groups(table, partition).await?;
        let log = consume::bounds(&self.kafka, table.topic(), partition).await?;
        let damaged = Proof::of(table, partition, now_ms, groups.iter().cloned()).err().map(|error| error.to_string());
        let mut span = self.span(table, partition, hours).await?;
        if damaged.is_some() {
            // Its chunks do not tell where rows lie.
            (span.rows_from, span.wide_from) = (ChunkSpan::ALL.rows_from, ChunkSpan::ALL.wide_from);
        }
        let sealed = sealed::until(&self.clickhouse, table, partition, hours, now_ms).await?;
        let (position, outcomes, open, sources) = (0, 0, None, BTreeMap::new());
        let mut line = Line { table, partition, position, outcomes, log, open, sources, span, damaged, sealed };
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
        Ok(line)
    }

    /// Where the chunks and rows of some hours lie, by what was known of it before.
    async fn span(&self, table: Table, partition: i32, hours: LogHours) -> Result<ChunkSpan, ReconcileError> {
        let since = self.memory().begin_of(table, partition, ChunkSpan::wide(hours));
        let span = self.clickhouse.chunk_span(table, partition, hours, since).await?;
        self.memory().keep_begin(table, partition, ChunkSpan::wide(hours), span.wide_from);
        Ok(span)
    }

    pub(super) async fn chunks(&self, report: &mut Report, lines: &[Line]) -> Result<(), ReconcileError> {
        let parts = lines.iter().map(|line| self.chunks_of(report.part(), line)).collect();
        at_once(parts).await?.into_iter().for_each(|part| report.add(part));
        Ok(())
    }

    async fn chunks_of(&self, mut report: Report, line: &Line) -> Result<Report, ReconcileError> {
        let Line { table, partition, .. } = *line;
        // What is damaged may be of any hour.
        let span = if line.damaged.is_some() { ChunkSpan::ALL } else { line.span };
        report.compared(Check::Chunks, 1);
        report.compared(Check::Rows, usize::try_from(line.span.chunks).unwrap_or(usize::MAX));
        let faults = self.clickhouse.chunk_faults(table, partition, span).await?;
        if let Some(damaged) = &line.damaged {
            let breaks = self.clickhouse.chunk_breaks(table, partition).await?;
            compare::breaks(&mut report, table, partition, &breaks);
            if breaks.is_empty() && faults.is_empty() {
                compare::damaged(&mut report, table, partition, (line.position, line.outcomes), damaged);
            }
        }
        for (at, fault) in faults.iter().enumerate() {
            // The rows of a sealed month are of no request.
            let named = match at < NAMED && fault.sealed == 0 {
                true => log::name(&self.clickhouse, &self.kafka, table, partition, fault).await?,
                false => None,
            };
            compare::rows(&mut report, table, partition, fault, named.as_ref());
        }
        Ok(report)
    }

    pub(super) async fn aggregates(
        &self,
        report: &mut Report,
        lines: &[Line],
        hours: LogHours,
    ) -> Result<(), ReconcileError> {
        let lines: Vec<_> = lines.iter().filter(|line| line.table == Table::Tokens).collect();
        let rows = |line: &&Line| {
            let asked = self.clickhouse.hour_sums_of_rows(line.partition, line.span, hours);
            async { Ok(asked.await?) }
        };
        let raw = at_once(lines.iter().map(rows).collect()).await?.concat();
        let aggregate = self.clickhouse.hour_sums(hours).await?;
        let position = |line: &&Line| {
            let asked = self.clickhouse.position(Table::Tokens, line.partition);
            async { Ok(asked.await?.position) }
        };
        let after = at_once(lines.iter().map(position).collect()).await?;
        // Where nothing was written meanwhile, every hour can be compared.
        let written = lines.iter().zip(after).filter(|(line, after)| *after != line.position);
        let open = written.map(|(line, _)| (line.partition, line.open.unwrap_or(LogHour(i64::MIN)))).collect();
        compare::aggregates(report, &sql::TrialBalance { raw, aggregate }, &open);
        Ok(())
    }

    pub(super) async fn requests(
        &self,
        report: &mut Report,
        lines: &[Line],
        hours: LogHours,
    ) -> Result<(), ReconcileError> {
        let parts = lines.iter().map(|line| self.requests_of(report.part(), line, lines, hours)).collect();
        at_once(parts).await?.into_iter().for_each(|part| report.add(part));
        Ok(())
    }

    async fn requests_of(
        &self,
        mut report: Report,
        line: &Line,
        lines: &[Line],
        hours: LogHours,
    ) -> Result<Report, ReconcileError> {
        let (table, partition, span) = (line.table, line.partition, line.span);
        if table == Table::Tokens {
            let mut uneven = self.clickhouse.uneven_requests(partition, span, hours).await?;
            sealed::leave_out(&self.clickhouse, partition, line.sealed, &mut uneven).await?;
            report.compared(Check::Counts, usize::try_from(span.chunks).unwrap_or(usize::MAX));
            compare::counts(&mut report, partition, &uneven);
        }
        let other = lines.iter().find(|other| other.partition == partition && other.table != table);
        if let Some(other) = other {
            let mut unmatched = self.clickhouse.unmatched(table, partition, hours, span, other.span).await?;
            unmatched.retain(|one| one.at > other.sealed);
            report.compared(Check::Ends, usize::try_from(span.chunks).unwrap_or(usize::MAX));
            compare::ends(&mut report, table, partition, &unmatched, &other.sources);
        }
        Ok(report)
    }
}
