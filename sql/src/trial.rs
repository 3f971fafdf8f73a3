//! What a reconciliation asks of the tables: chunks beside their rows, counts beside running counts, counts beside ends, and
//! what balances must say.

use clickhouse::Row;
use clickhouse::query::Query;
use ledger::ids::{EventId, ModelId, RequestId, SourceId, TenantId};
use ledger::time::{Micros, Period};
use ledger::tokens::TokenCounts;
use serde::Deserialize;
use uuid::Uuid;

use crate::calendar::{LogHour, LogHours};
use crate::client::{ClickHouse, fetch};
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
const BALANCE_SUMS: &str = include_str!("../queries/balance_sums.sql");
/// Tenants in one statement: ClickHouse takes values of parameters up to 128 KiB.
const TENANTS: usize = 500;

/// The chunks of some hours of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Row, Deserialize)]
pub struct ChunkSpan {
    /// How many; all else is 0 if there are none.
    pub chunks: u64,
    /// The first offset.
    pub first: i64,
    /// The next offset after them.
    pub end: i64,
    /// The first month in which parts of them lie, as `yyyymm`.
    pub month_from: u32,
    /// The last one.
    pub month_to: u32,
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

/// What a tenant used of a model in a period, up to an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the key that it names")]
pub struct BalanceSum {
    pub tenant: TenantId,
    pub model: ModelId,
    pub tokens: TokenCounts,
    pub requests: u64,
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
    /// The chunks of a line whose ends lie in some hours of the log.
    ///
    /// # Errors
    /// No answer. So for all that follow.
    pub async fn chunk_span(&self, table: Table, partition: i32, hours: LogHours) -> Result<ChunkSpan, QueryError> {
        let rows = fetch::<ChunkSpan>(within(self.line(CHUNK_SPAN, table, partition), hours)).await?;
        rows.into_iter().next().ok_or_else(|| QueryError::Mismatch("no row where one must be".to_owned()))
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
        let query = months(self.line(CHUNK_FAULTS, table, partition), span);
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
        let suspects = self.uneven(partition, span, hours, Vec::new()).await?;
        if suspects.is_empty() {
            return Ok(suspects);
        }
        // Some began in an hour before: of those, all rows are asked for.
        let names = suspects.iter().map(|suspect| suspect.request_id.0).collect();
        let all = ChunkSpan { month_from: 0, month_to: u32::MAX, ..span };
        self.uneven(partition, all, LogHours { from: LogHour(i64::MIN), ..hours }, names).await
    }

    async fn uneven(
        &self,
        partition: i32,
        span: ChunkSpan,
        hours: LogHours,
        names: Vec<Uuid>,
    ) -> Result<Vec<Uneven>, QueryError> {
        let query = within(self.rows(UNEVEN).param("partition", partition), hours);
        let rows = fetch::<WireUneven>(months(query, span).param("request_ids", names)).await?;
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
    /// reached yet is among them.
    ///
    /// # Errors
    /// See [`ClickHouse::chunk_span`].
    pub async fn unmatched(&self, there: Table, partition: i32, hours: LogHours) -> Result<Vec<Unmatched>, QueryError> {
        let sql = match there {
            Table::Tokens => COUNTS_WITHOUT_END,
            Table::Requests => ENDS_WITHOUT_COUNT,
        };
        let rows = fetch::<WireUnmatched>(within(self.rows(sql).param("partition", partition), hours)).await?;
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

    /// What the balances of one partition and period must say, each of them up to the offset that it is of.
    ///
    /// # Errors
    /// See [`ClickHouse::chunk_span`].
    pub async fn balance_sums(
        &self,
        partition: i32,
        period: Period,
        as_of: &[(TenantId, i64)],
    ) -> Result<Vec<BalanceSum>, QueryError> {
        let mut sums = Vec::new();
        for some in as_of.chunks(TENANTS) {
            let query = self
                .rows(BALANCE_SUMS)
                .param("partition", partition)
                .param("from", period.from.0)
                .param("to", period.to.0)
                .param("tenants", some.iter().map(|(tenant, _)| tenant.as_str()).collect::<Vec<_>>())
                .param("offsets", some.iter().map(|(_, offset)| *offset).collect::<Vec<_>>());
            for row in fetch::<WireSum>(query).await? {
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

fn months(query: Query, span: ChunkSpan) -> Query {
    query.param("month_from", span.month_from).param("month_to", span.month_to)
}
