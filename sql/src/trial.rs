//! What a reconciliation asks of the tables: chunks beside their rows, counts beside running counts, counts beside ends, and
//! what balances must say.

use std::collections::BTreeSet;

use clickhouse::Row;
use clickhouse::query::Query;
use ledger::ids::{EventId, ModelId, RequestId, SourceId, TenantId};
use ledger::time::{Micros, Period};
use ledger::tokens::TokenCounts;
use serde::Deserialize;
use uuid::Uuid;

use crate::calendar::{LogHour, LogHours};
use crate::client::{ClickHouse, fetch, fetch_row};
use crate::error::QueryError;
use crate::table::Table;
use crate::usage::id;
use crate::wire::{WireUuid, counts};

const CHUNK_SPAN: &str = include_str!("../queries/chunk_span.sql");
const CHUNK_FAULTS: &str = include_str!("../queries/chunk_faults.sql");
const CHUNK_BREAKS: &str = include_str!("../queries/chunk_breaks.sql");
const CHUNK_ROWS: &str = include_str!("../queries/chunk_rows.sql");
const UNEVEN: &str = include_str!("../queries/uneven_requests.sql");
const COUNTS_WITHOUT_END: &str = include_str!("../queries/counts_without_end.sql");
const ENDS_WITHOUT_COUNT: &str = include_str!("../queries/ends_without_count.sql");
const BEGAN_BEFORE: &str = include_str!("../queries/began_before.sql");
const HOUR_BEGINS: &str = include_str!("../queries/hour_begins.sql");
const BALANCE_SUMS: &str = include_str!("../queries/balance_sums.sql");
const BALANCE_ROWS: &str = include_str!("../queries/balance_rows.sql");
/// Tenants in one statement: ClickHouse takes values of parameters up to 128 KiB.
const TENANTS: usize = 500;

/// So many hours before those that are asked for, requests are looked for that began before them.
const WIDE: i64 = 3;

/// The chunks of some hours of a line, and where the rows of those hours lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSpan {
    /// How many; `first` and `end` are 0 if there are none.
    pub chunks: u64,
    /// The first offset.
    pub first: i64,
    /// The next offset after them.
    pub end: i64,
    /// No row of those hours lies before this offset.
    pub rows_from: i64,
    /// Nor one of the three hours before them before this one: the first of a chunk, if any chunk ends as late.
    pub wide_from: i64,
}

impl ChunkSpan {
    /// All that there is, however it lies.
    pub const ALL: Self = Self { chunks: 0, first: i64::MIN, end: i64::MAX, rows_from: 0, wide_from: 0 };

    /// The hour from which on rows are not before `wide_from`.
    pub const fn wide(hours: LogHours) -> LogHour {
        LogHour(hours.from.0.saturating_sub(WIDE))
    }
}

/// The first chunk that ends in an hour of the log: rows of hours before lie before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Row, Deserialize)]
pub struct HourBegin {
    /// Hours since 1970.
    pub hour: i64,
    /// Its first offset: no row of that hour or a later one lies before it.
    pub first: i64,
    /// The next offset after it.
    pub end: i64,
}

/// A chunk that says other numbers of rows than there are.
#[derive(Debug, Clone, PartialEq, Eq, Row, Deserialize)]
pub struct ChunkFault {
    /// Where it begins.
    pub chunk_first: i64,
    /// The next offset after it; 0 if it has no row of its own.
    pub end: i64,
    /// The log hour of its end.
    pub hour: i64,
    /// Rows of the chunk itself: one.
    pub chunks: u64,
    /// How many records it says that it folded.
    pub folded_said: i64,
    /// How many dead letters it says it has.
    pub dead_said: i64,
    /// Folded records that are there.
    pub data_rows: u64,
    /// Dead letters that are there.
    pub dead_rows: u64,
    /// 1 if it is a sealed month, whose rows are of no request.
    pub sealed: u64,
}

/// Where a chunk does not begin where the one before ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Row, Deserialize)]
pub struct ChunkBreak {
    /// The end of all chunks before it.
    pub expected: i64,
    /// Where it begins.
    pub chunk_first: i64,
    /// The log hour of its end.
    pub hour: i64,
}

/// An event that a row holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields of the event")]
pub struct EventRow {
    pub offset: i64,
    pub event_id: EventId,
    pub request_id: RequestId,
    pub tenant: TenantId,
}

/// A request whose counts do not add up to its last running count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uneven {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub request_id: RequestId,
    /// The log hour of its last row.
    pub hour: LogHour,
    /// The sum of its counts.
    pub counted: TokenCounts,
    /// Its last running count.
    pub running: TokenCounts,
}

/// A request that is in one table and not in the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmatched {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub request_id: RequestId,
    /// The log hour of the row that is there.
    pub hour: LogHour,
    /// Who wrote it.
    pub source: SourceId,
    /// When it ended.
    pub at: Micros,
}

/// What a tenant used of a model in a period, up to an offset. There may be several of the same, which add up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the key that it names")]
pub struct BalanceSum {
    pub tenant: TenantId,
    pub model: ModelId,
    pub tokens: TokenCounts,
    pub requests: u64,
}

#[derive(Row, Deserialize)]
struct WireSpan {
    chunks: u64,
    first: i64,
    end: i64,
    rows_from: i64,
    wide_from: i64,
    chunks_from: u64,
    chunks_wide: u64,
    known: u64,
}

#[derive(Row, Deserialize)]
struct WireEvent {
    kafka_offset: i64,
    event_id: WireUuid,
    request_id: WireUuid,
    tenant: String,
}

#[derive(Row, Deserialize)]
struct BeganRow {
    request_id: WireUuid,
}

#[derive(Row, Deserialize)]
struct WireUneven {
    tenant: String,
    request_id: WireUuid,
    hour: i64,
    input_tokens: u64,
    cached_input_tokens: u64,
    output_tokens: u64,
    reasoning_tokens: u64,
    input_last: u64,
    cached_input_last: u64,
    output_last: u64,
    reasoning_last: u64,
}

#[derive(Row, Deserialize)]
struct WireUnmatched {
    tenant: String,
    request_id: WireUuid,
    hour: i64,
    source: WireUuid,
    at: i64,
}

#[derive(Row, Deserialize)]
struct WireSum {
    tenant: String,
    model: String,
    input_tokens: u64,
    cached_input_tokens: u64,
    output_tokens: u64,
    reasoning_tokens: u64,
    request_count: u64,
}

impl ClickHouse {
    /// The chunks of a line whose ends lie in some hours of the log. `since` is a `wide_from` that was answered for the same hours or
    /// earlier ones, or 0: while a chunk begins there, nothing before it is looked at.
    ///
    /// # Errors
    /// No answer. So for all that follow.
    pub async fn chunk_span(
        &self,
        table: Table,
        partition: i32,
        hours: LogHours,
        since: i64,
    ) -> Result<ChunkSpan, QueryError> {
        let ask = async |since: i64| {
            let query = within(self.line(CHUNK_SPAN, table, partition), hours).param("since", since);
            fetch_row::<WireSpan>(query.param("log_wide", ChunkSpan::wide(hours).0)).await
        };
        let span = match ask(since).await? {
            span if since == 0 || span.known > 0 => span,
            _ => ask(0).await?,
        };
        let WireSpan { chunks, first, end, .. } = span;
        let rows_from = if span.chunks_from == 0 { i64::MAX } else { span.rows_from };
        let wide_from = if span.chunks_wide == 0 { i64::MAX } else { span.wide_from };
        Ok(ChunkSpan { chunks, first, end, rows_from, wide_from })
    }

    /// Where the hours of the log begin in a line of the tokens table, by ascending hour, as far as chunks from `since` on tell.
    ///
    /// # Errors
    /// See [`ClickHouse::chunk_span`].
    pub async fn hour_begins(&self, partition: i32, since: i64) -> Result<Vec<HourBegin>, QueryError> {
        fetch(self.rows(HOUR_BEGINS).param("partition", partition).param("since", since)).await
    }

    /// The chunks of a span that say other numbers of rows than there are: at most 1,000, from the first on. Chunks are whole
    /// in every answer, whatever is written meanwhile.
    ///
    /// # Errors
    /// See [`ClickHouse::chunk_span`].
    pub async fn chunk_faults(
        &self,
        table: Table,
        partition: i32,
        span: ChunkSpan,
    ) -> Result<Vec<ChunkFault>, QueryError> {
        let query = self.line(CHUNK_FAULTS, table, partition);
        fetch(query.param("first", span.first).param("end", span.end)).await
    }

    /// Where the chunks of a line do not follow each other, over its whole length: at most 100.
    ///
    /// # Errors
    /// See [`ClickHouse::chunk_span`].
    pub async fn chunk_breaks(&self, table: Table, partition: i32) -> Result<Vec<ChunkBreak>, QueryError> {
        fetch(self.line(CHUNK_BREAKS, table, partition)).await
    }

    /// The events of the rows of one chunk, by ascending offset.
    ///
    /// # Errors
    /// See [`ClickHouse::chunk_span`].
    pub async fn chunk_rows(&self, table: Table, partition: i32, first: i64) -> Result<Vec<EventRow>, QueryError> {
        let rows = fetch::<WireEvent>(self.line(CHUNK_ROWS, table, partition).param("first", first)).await?;
        let event = |row: WireEvent| {
            Ok(EventRow {
                offset: row.kafka_offset,
                event_id: EventId(row.event_id.0),
                request_id: RequestId(row.request_id.0),
                tenant: id("tenant", &row.tenant)?,
            })
        };
        rows.into_iter().map(event).collect()
    }

    /// Requests of some hours whose counts do not add up to their last running count: at most 1,000.
    ///
    /// # Errors
    /// See [`ClickHouse::chunk_span`].
    pub async fn uneven_requests(
        &self,
        partition: i32,
        span: ChunkSpan,
        hours: LogHours,
    ) -> Result<Vec<Uneven>, QueryError> {
        let mut suspects = self.uneven(partition, span.rows_from, hours, &[]).await?;
        // Some began in an hour before, few of them long before: of those, these rows too are asked for.
        for (from, since) in [(ChunkSpan::wide(hours), span.wide_from), (LogHour(i64::MIN), 0)] {
            if !suspects.is_empty() {
                suspects = self.uneven(partition, since, LogHours { from, ..hours }, &suspects).await?;
            }
        }
        Ok(suspects)
    }

    async fn uneven(
        &self,
        partition: i32,
        since: i64,
        hours: LogHours,
        among: &[Uneven],
    ) -> Result<Vec<Uneven>, QueryError> {
        let query = within(self.rows(UNEVEN).param("partition", partition), hours).param("since", since);
        let query = named(query, among.iter().map(|one| (&one.tenant, one.request_id)));
        let rows = fetch::<WireUneven>(query).await?;
        let uneven = |row: WireUneven| {
            Ok(Uneven {
                tenant: id("tenant", &row.tenant)?,
                request_id: RequestId(row.request_id.0),
                hour: LogHour(row.hour),
                counted: counts([row.input_tokens, row.cached_input_tokens, row.output_tokens, row.reasoning_tokens]),
                running: counts([row.input_last, row.cached_input_last, row.output_last, row.reasoning_last]),
            })
        };
        rows.into_iter().map(uneven).collect()
    }

    /// Which of some requests of a partition had begun before an instant.
    ///
    /// # Errors
    /// See [`ClickHouse::chunk_span`].
    pub async fn began_before(
        &self,
        partition: i32,
        requests: &[RequestId],
        before: Micros,
    ) -> Result<Vec<RequestId>, QueryError> {
        let ids: Vec<Uuid> = requests.iter().map(|id| id.0).collect();
        let query = self.rows(BEGAN_BEFORE).param("partition", partition).param("request_ids", ids);
        let found = fetch::<BeganRow>(query.param("before", before.0)).await?;
        Ok(found.into_iter().map(|row| RequestId(row.request_id.0)).collect())
    }

    /// Requests of a partition that `there` has and the other table has not: at most 1,000. What the other line has not
    /// reached yet is among them. `span` is of `there`, `other` of the other table's line.
    ///
    /// # Errors
    /// See [`ClickHouse::chunk_span`].
    pub async fn unmatched(
        &self,
        there: Table,
        partition: i32,
        hours: LogHours,
        span: ChunkSpan,
        other: ChunkSpan,
    ) -> Result<Vec<Unmatched>, QueryError> {
        let suspects = self.unmatched_since(there, partition, hours, [span.rows_from, other.wide_from], &[]).await?;
        match suspects.is_empty() {
            true => Ok(suspects),
            // The other line may have had them long before.
            false => self.unmatched_since(there, partition, hours, [span.rows_from, 0], &suspects).await,
        }
    }

    async fn unmatched_since(
        &self,
        there: Table,
        partition: i32,
        hours: LogHours,
        since: [i64; 2],
        among: &[Unmatched],
    ) -> Result<Vec<Unmatched>, QueryError> {
        let sql = match there {
            Table::Tokens => COUNTS_WITHOUT_END,
            Table::Requests => ENDS_WITHOUT_COUNT,
        };
        let query = within(self.rows(sql).param("partition", partition), hours);
        let query = query.param("since", since[0]).param("other_since", since[1]);
        let query = named(query, among.iter().map(|one| (&one.tenant, one.request_id)));
        let rows = fetch::<WireUnmatched>(query).await?;
        let unmatched = |row: WireUnmatched| {
            Ok(Unmatched {
                tenant: id("tenant", &row.tenant)?,
                request_id: RequestId(row.request_id.0),
                hour: LogHour(row.hour),
                source: SourceId(row.source.0),
                at: Micros(row.at),
            })
        };
        rows.into_iter().map(unmatched).collect()
    }

    /// What the balances of one partition and period must say, each of them up to the offset that it is of. What was logged in the
    /// hours before `begin` is summed by a projection; no balance is of an offset before its end. None: all is summed out of rows.
    ///
    /// # Errors
    /// See [`ClickHouse::chunk_span`].
    pub async fn balance_sums(
        &self,
        partition: i32,
        period: Period,
        begin: Option<HourBegin>,
        as_of: &[(TenantId, i64)],
    ) -> Result<Vec<BalanceSum>, QueryError> {
        let (hour, since) = begin.map_or((i64::MIN, 0), |begin| (begin.hour, begin.first));
        let mut sums = Vec::new();
        for some in as_of.chunks(TENANTS) {
            let asked = |query: Query| {
                query
                    .param("partition", partition)
                    .param("from", period.from.0)
                    .param("to", period.to.0)
                    .param("tenants", some.iter().map(|(tenant, _)| tenant.as_str()).collect::<Vec<_>>())
                    .param("hour", hour)
            };
            let rows = asked(self.rows(BALANCE_ROWS))
                .param("offsets", some.iter().map(|(_, offset)| *offset).collect::<Vec<_>>())
                .param("since", since)
                .param("until", some.iter().map(|(_, offset)| *offset).max().unwrap_or(0));
            let mut found = fetch::<WireSum>(rows).await?;
            if begin.is_some() {
                found.extend(fetch::<WireSum>(asked(self.sums(BALANCE_SUMS))).await?);
            }
            for row in found {
                sums.push(BalanceSum {
                    tenant: id("tenant", &row.tenant)?,
                    model: id("model", &row.model)?,
                    tokens: counts([
                        row.input_tokens,
                        row.cached_input_tokens,
                        row.output_tokens,
                        row.reasoning_tokens,
                    ]),
                    requests: row.request_count,
                });
            }
        }
        Ok(sums)
    }

    fn line(&self, sql: &str, table: Table, partition: i32) -> Query {
        self.rows(sql).param("table", table.name()).param("partition", partition)
    }
}

fn within(query: Query, hours: LogHours) -> Query {
    query.param("log_from", hours.from.0).param("log_before", hours.before.0)
}

/// Of these requests alone; of all without any.
fn named<'a>(query: Query, among: impl Iterator<Item = (&'a TenantId, RequestId)>) -> Query {
    let (tenants, ids): (BTreeSet<&str>, Vec<Uuid>) = among.map(|(tenant, id)| (tenant.as_str(), id.0)).unzip();
    query.param("tenants", tenants.into_iter().collect::<Vec<_>>()).param("request_ids", ids)
}
