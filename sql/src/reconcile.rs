//! Figures that must agree: outcomes beside rows, sums beside the rows they are of, tokens beside the replicas' own.

use std::collections::BTreeMap;

use clickhouse::Row;
use clickhouse::query::Query;
use ledger::ids::ModelId;
use ledger::tokens::TokenCounts;
use serde::Deserialize;

use crate::calendar::{LogHour, LogHours};
use crate::client::{ClickHouse, fetch};
use crate::error::QueryError;
use crate::rows::OutcomeCounts;
use crate::table::{Kind, Table};
use crate::trial::ChunkSpan;
use crate::usage::id;
use crate::wire::counts;

const OUTCOMES: &str = include_str!("../queries/outcomes.sql");
const TRIAL_BALANCE: &str = include_str!("../queries/trial_balance.sql");
const REPLICA_TOTALS: &str = include_str!("../queries/replica_totals.sql");

/// Every partition.
const ALL: i32 = -1;

/// What became of the offsets of one line, beside the rows that are there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LineOutcomes {
    /// The next offset.
    pub position: i64,
    /// What its chunks say.
    pub counts: OutcomeCounts,
    /// Chunks.
    pub chunks: u64,
    /// Rows of folded records; of a sealed month, as many as its rows stand for.
    pub data_rows: u64,
    /// Rows of dead letters.
    pub dead_rows: u64,
}

impl LineOutcomes {
    /// Whether the outcomes add up to the offsets and to the rows.
    pub fn balances(&self) -> bool {
        self.counts.total() == Some(self.position)
            && u64::try_from(self.counts.folded) == Ok(self.data_rows)
            && u64::try_from(self.counts.dead) == Ok(self.dead_rows)
    }
}

/// Sums of one partition and log hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrialBalanceLine {
    /// Which partition.
    pub partition: i32,
    /// Which hour.
    pub log_hour: LogHour,
    /// Folded records.
    pub rows: u64,
    /// Their tokens.
    pub tokens: TokenCounts,
    /// Their requests.
    pub requests: u64,
}

/// The same sums twice, sorted by partition and hour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrialBalance {
    /// From the rows.
    pub raw: Vec<TrialBalanceLine>,
    /// From the projection.
    pub aggregate: Vec<TrialBalanceLine>,
}

impl TrialBalance {
    /// Whether both are the same.
    pub fn balances(&self) -> bool {
        self.raw == self.aggregate
    }
}

/// Tokens that one replica handed out in one hour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaTotal {
    /// Who; empty for requests that reached nobody.
    pub replica: String,
    /// Which model.
    pub model: ModelId,
    /// Hours since 1970 of when they occurred.
    pub hour: i64,
    /// The tokens.
    pub tokens: TokenCounts,
    /// Requests that ended there.
    pub requests: u64,
}

#[derive(Row, Deserialize)]
struct OutcomeRow {
    kafka_partition: i32,
    kind: i8,
    row_count: u64,
    position: i64,
    folded_sum: i64,
    duplicates_sum: i64,
    dead_sum: i64,
    marks_sum: i64,
}

#[derive(Row, Deserialize)]
struct TrialRow {
    kafka_partition: i32,
    log_hour: i64,
    row_count: u64,
    input_tokens: u64,
    cached_input_tokens: u64,
    output_tokens: u64,
    reasoning_tokens: u64,
    request_count: u64,
}

#[derive(Row, Deserialize)]
struct ReplicaRow {
    replica: String,
    model: String,
    hour: i64,
    input_tokens: u64,
    cached_input_tokens: u64,
    output_tokens: u64,
    reasoning_tokens: u64,
    request_count: u64,
}

impl ClickHouse {
    /// What became of the offsets of every line of a table, by partition.
    ///
    /// # Errors
    /// No answer.
    pub async fn outcomes(&self, table: Table) -> Result<BTreeMap<i32, LineOutcomes>, QueryError> {
        let rows = fetch::<OutcomeRow>(self.sums(OUTCOMES).param("table", table.name())).await?;
        let mut lines = BTreeMap::<i32, LineOutcomes>::new();
        for row in rows {
            let line = lines.entry(row.kafka_partition).or_default();
            match Kind::of(row.kind) {
                // A row of a sealed month says how many more it stands for.
                Some(Kind::Data) => line.data_rows = row.row_count.saturating_add_signed(row.folded_sum),
                Some(Kind::Dead) => line.dead_rows = row.row_count,
                Some(Kind::Chunk) => {
                    line.chunks = row.row_count;
                    line.position = row.position;
                    line.counts = OutcomeCounts {
                        folded: row.folded_sum,
                        duplicates: row.duplicates_sum,
                        dead: row.dead_sum,
                        marks: row.marks_sum,
                    };
                }
                Some(Kind::Source) | None => {}
            }
        }
        Ok(lines)
    }

    /// The sums of the tokens table per partition and log hour, from the rows and from the projection. While the fold
    /// writes, only hours that are over can be compared.
    ///
    /// # Errors
    /// No answer.
    pub async fn trial_balance(&self, hours: LogHours) -> Result<TrialBalance, QueryError> {
        let raw = self.trial_lines(self.trial_rows(), hours, ALL, 0).await?;
        Ok(TrialBalance { raw, aggregate: self.hour_sums(hours).await? })
    }

    /// One side of it: from the projection.
    ///
    /// # Errors
    /// No answer.
    pub async fn hour_sums(&self, hours: LogHours) -> Result<Vec<TrialBalanceLine>, QueryError> {
        self.trial_lines(self.sums(TRIAL_BALANCE), hours, ALL, 0).await
    }

    /// The other side, of one partition. `span` is of these hours.
    ///
    /// # Errors
    /// No answer.
    pub async fn hour_sums_of_rows(
        &self,
        partition: i32,
        span: ChunkSpan,
        hours: LogHours,
    ) -> Result<Vec<TrialBalanceLine>, QueryError> {
        self.trial_lines(self.trial_rows(), hours, partition, span.rows_from).await
    }

    fn trial_rows(&self) -> Query {
        self.rows(TRIAL_BALANCE).with_setting("optimize_use_projections", "0")
    }

    async fn trial_lines(
        &self,
        query: Query,
        hours: LogHours,
        partition: i32,
        since: i64,
    ) -> Result<Vec<TrialBalanceLine>, QueryError> {
        let query = query.param("log_from", hours.from.0).param("log_before", hours.before.0);
        let rows = fetch::<TrialRow>(query.param("partition", partition).param("since", since)).await?;
        Ok(rows.into_iter().map(trial_line).collect())
    }

    /// Tokens per replica, model and hour of occurrence, from hour `from` to `to` (not in it), counted from 1970: what the
    /// replicas' own counters must say.
    ///
    /// # Errors
    /// No answer.
    pub async fn replica_totals(&self, from: i64, to: i64) -> Result<Vec<ReplicaTotal>, QueryError> {
        let rows = fetch::<ReplicaRow>(self.sums(REPLICA_TOTALS).param("from", from).param("to", to)).await?;
        let total = |row: ReplicaRow| {
            Ok(ReplicaTotal {
                replica: row.replica,
                model: id("model", &row.model)?,
                hour: row.hour,
                tokens: counts([row.input_tokens, row.cached_input_tokens, row.output_tokens, row.reasoning_tokens]),
                requests: row.request_count,
            })
        };
        rows.into_iter().map(total).collect()
    }
}

fn trial_line(row: TrialRow) -> TrialBalanceLine {
    TrialBalanceLine {
        partition: row.kafka_partition,
        log_hour: LogHour(row.log_hour),
        rows: row.row_count,
        tokens: counts([row.input_tokens, row.cached_input_tokens, row.output_tokens, row.reasoning_tokens]),
        requests: row.request_count,
    }
}
