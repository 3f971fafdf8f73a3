//! Sealing a month: the raw rows of its part are replaced by rows that stand for many, with the same sums to the last digit.
//!
//! A sealed month is one chunk in the tables: its data rows are the sums over all keys of the projections, each the first of those that it
//! stands for, `folded` says how many more, and `chunk_end` (0 in a raw row) where the month ends; the chunk's own row says in `seq` how many
//! it stands for.

use std::time::Duration;

use clickhouse::Row;
use clickhouse::query::Query;
use serde::Deserialize;
use uuid::Uuid;

use crate::calendar::{LogHour, month_end_ms};
use crate::client::{ClickHouse, fetch, within_deadline};
use crate::error::QueryError;
use crate::rows::OutcomeCounts;
use crate::table::Table;

const MONTHS: &str = include_str!("../queries/months.sql");
const SIZE: &str = include_str!("../queries/month_size.sql");
const FIGURES_TOKENS: &str = include_str!("../queries/month_figures_tokens.sql");
const FIGURES_REQUESTS: &str = include_str!("../queries/month_figures_requests.sql");
const OTHERS: &str = include_str!("../queries/month_others.sql");
const ROWS: &str = include_str!("../queries/sealing_rows.sql");
const ROWS_TOKENS: &str = include_str!("../queries/sealing_tokens.sql");
const ROWS_REQUESTS: &str = include_str!("../queries/sealing_requests.sql");
const ROWS_OTHERS: &str = include_str!("../queries/sealing_others.sql");
const SEAL_TOKENS: &str = include_str!("../queries/seal_tokens.sql");
const SEAL_REQUESTS: &str = include_str!("../queries/seal_requests.sql");
const WORK: &str = include_str!("../queries/sealing_work.sql");
const FORGOTTEN: &str = include_str!("../queries/sealing_forgotten.sql");
/// How long ClickHouse may sum up a month, in seconds.
const LONG: &str = "7200";
/// It is asked so often whether it has finished.
const LOOK: Duration = Duration::from_millis(200);
/// So often a part is merged with what came beside it.
const MERGES: u32 = 5;

/// A month of a line's log, and what its part holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Month {
    /// As `yyyymm`.
    pub month: u32,
    /// Whether it is sealed.
    pub sealed: bool,
    /// Chunks that it was cut into.
    pub chunks: u64,
    /// Its first offset.
    pub first: i64,
    /// The next offset after it.
    pub end: i64,
    /// Offsets that its chunks hold: from first to end, or something is missing or there twice.
    pub lengths: i64,
    /// What became of them.
    pub counts: OutcomeCounts,
    /// The running maximum of log time at its end.
    pub log_time_ms: i64,
    /// The chain there.
    pub chain: [u8; 32],
}

impl Month {
    /// When it was over by the calendar, milliseconds since 1970.
    pub fn over_ms(&self) -> Option<i64> {
        month_end_ms(self.month)
    }
}

/// What a month's part takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Row, Deserialize)]
pub struct MonthSize {
    /// Parts.
    pub parts: u64,
    /// Rows.
    #[serde(rename = "row_count")]
    pub rows: u64,
    /// Bytes on disk, with the projections.
    pub bytes: u64,
}

/// All figures of a month's part, as numbers that are the same before and after it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MonthFigures {
    /// Folded records.
    pub folded: u64,
    /// Dead letters.
    pub dead: u64,
    digests: [u64; 3],
}

#[derive(Row, Deserialize)]
struct MonthRow {
    month: u32,
    chunk_rows: u64,
    sealed_rows: u64,
    chunks: u64,
    first: i64,
    end: i64,
    lengths: i64,
    folded_sum: i64,
    duplicates_sum: i64,
    dead_sum: i64,
    marks_sum: i64,
    log_time_ms: i64,
    last_chain: [u8; 32],
}

#[derive(Row, Deserialize)]
struct FiguresRow {
    stands_for: u64,
    groups: u64,
    digest: u64,
}

#[derive(Row, Deserialize)]
struct OthersRow {
    dead_rows: u64,
    digest: u64,
}

#[derive(Row, Deserialize)]
struct WorkRow {
    sealing: String,
    id: String,
    parts: i64,
    fault: String,
}

impl ClickHouse {
    /// The months of a line, in their order.
    ///
    /// # Errors
    /// No answer. So for all that follow.
    pub async fn months(&self, table: Table, partition: i32) -> Result<Vec<Month>, QueryError> {
        let query = self.rows(MONTHS).param("table", table.name()).param("partition", partition);
        let month = |row: MonthRow| Month {
            month: row.month,
            sealed: (row.chunk_rows, row.sealed_rows) == (1, 1),
            chunks: row.chunks,
            first: row.first,
            end: row.end,
            lengths: row.lengths,
            counts: OutcomeCounts {
                folded: row.folded_sum,
                duplicates: row.duplicates_sum,
                dead: row.dead_sum,
                marks: row.marks_sum,
            },
            log_time_ms: row.log_time_ms,
            chain: row.last_chain,
        };
        Ok(fetch::<MonthRow>(query).await?.into_iter().map(month).collect())
    }

    /// The log time up to which rows of a line are sealed, milliseconds since 1970; none where nothing is.
    ///
    /// # Errors
    /// See [`ClickHouse::months`].
    pub async fn sealed_until(&self, table: Table, partition: i32) -> Result<Option<i64>, QueryError> {
        let months = self.months(table, partition).await?;
        Ok(months.iter().filter(|month| month.sealed).map(|month| month.log_time_ms).max())
    }

    /// What a month's part takes.
    ///
    /// # Errors
    /// See [`ClickHouse::months`].
    pub async fn month_size(&self, table: Table, partition: i32, month: u32) -> Result<MonthSize, QueryError> {
        let query = self.rows(SIZE).param("table", table.name()).param("partition", format!("({partition},{month})"));
        one(query).await
    }

    /// All figures of a month's part.
    ///
    /// # Errors
    /// See [`ClickHouse::months`].
    pub async fn month_figures(&self, table: Table, partition: i32, month: u32) -> Result<MonthFigures, QueryError> {
        let sql = match table {
            Table::Tokens => FIGURES_TOKENS,
            Table::Requests => FIGURES_REQUESTS,
        };
        let figures: FiguresRow = one(self.of_month(sql, partition, month)).await?;
        let others = self.of_month(OTHERS, partition, month).param("table", table.name());
        let others: OthersRow = one(others).await?;
        Ok(MonthFigures {
            folded: figures.stands_for,
            dead: others.dead_rows,
            digests: [figures.groups, figures.digest, others.digest],
        })
    }

    /// Seals a month, which must be over: nothing may be written into it any more. Whoever asks has seen that its rows are as the log
    /// says, and compares its figures before and after. Killed at any moment, or done twice, it is whole: sealed or not.
    ///
    /// # Errors
    /// See [`ClickHouse::months`]; or ClickHouse could not rewrite the part, which then is as it was.
    pub async fn seal(&self, table: Table, partition: i32, month: &Month) -> Result<(), QueryError> {
        self.as_one_part(table, partition, month.month).await?;
        let database: String = one(self.rows("SELECT currentDatabase()")).await?;
        let name = format!("sealing_{}", Uuid::new_v4().simple());
        within_deadline(self.rows(ROWS).param("sealing", &name).execute()).await?;
        let sealed = self.rewrite(table, partition, month, &database, &name).await;
        let dropped = self.rows("DROP TABLE IF EXISTS {table:Identifier} SYNC").param("table", &name);
        // What cannot be removed now is removed by a later run; what is not finished still needs it.
        if sealed.is_ok() {
            let _ = within_deadline(dropped.execute()).await;
        }
        sealed
    }

    /// Waits for what a killed run has begun of a table, and removes what one left.
    ///
    /// # Errors
    /// See [`ClickHouse::months`]; or what was begun cannot go on, and is given up.
    pub async fn finish_sealing(&self, table: Table) -> Result<(), QueryError> {
        let forgotten = within_deadline(self.rows(FORGOTTEN).fetch_all::<String>()).await?;
        for name in forgotten {
            let drop = self.rows("DROP TABLE IF EXISTS {table:Identifier} SYNC").param("table", &name);
            within_deadline(drop.execute()).await?;
        }
        self.wait_for(table, None).await
    }

    /// A part is replaced whole or not at all, and several are not: a month is merged into one before.
    async fn as_one_part(&self, table: Table, partition: i32, month: u32) -> Result<(), QueryError> {
        for _ in 0..MERGES {
            if self.month_size(table, partition, month).await?.parts <= 1 {
                return Ok(());
            }
            let sql = "OPTIMIZE TABLE {table:Identifier} PARTITION ({partition:Int32}, {month:UInt32}) FINAL";
            let merge = self.of_month(sql, partition, month).param("table", table.name());
            merge.with_setting("optimize_throw_if_noop", "1").execute().await?;
        }
        match self.month_size(table, partition, month).await?.parts {
            0 | 1 => Ok(()),
            parts => Err(QueryError::Mismatch(format!(
                "{table}/{partition} has {parts} parts of month {month} however often they are merged: something writes into it"
            ))),
        }
    }

    async fn rewrite(
        &self,
        table: Table,
        partition: i32,
        month: &Month,
        database: &str,
        name: &str,
    ) -> Result<(), QueryError> {
        let (rows, seal) = match table {
            Table::Tokens => (ROWS_TOKENS, SEAL_TOKENS),
            Table::Requests => (ROWS_REQUESTS, SEAL_REQUESTS),
        };
        self.of_month(rows, partition, month.month).param("sealing", name).execute().await?;
        let others = self.of_month(ROWS_OTHERS, partition, month.month).param("table", table.name());
        others.param("sealing", name).execute().await?;
        let chain: String = month.chain.iter().map(|byte| format!("{byte:02x}")).collect();
        let seal = self
            .of_month(seal, partition, month.month)
            .param("sealing", format!("{database}.{name}"))
            .param("first", month.first)
            .param("end", month.end)
            .param("chunks", month.chunks)
            .param("folded", month.counts.folded)
            .param("duplicates", month.counts.duplicates)
            .param("dead", month.counts.dead)
            .param("marks", month.counts.marks)
            .param("log_time_ms", month.log_time_ms)
            .param("log_hour", LogHour::of_ms(month.log_time_ms).0)
            .param("chain", chain)
            .with_setting("mutations_sync", "0");
        within_deadline(seal.execute()).await?;
        self.wait_for(table, Some(name)).await
    }

    /// Waits for one rewriting of a table, or for all that seal. One that cannot go on is given up: the part is as it was.
    async fn wait_for(&self, table: Table, name: Option<&str>) -> Result<(), QueryError> {
        loop {
            let work = fetch::<WorkRow>(self.rows(WORK).param("table", table.name())).await?;
            let mut work = work.iter().filter(|work| name.is_none_or(|name| work.sealing == name)).peekable();
            if work.peek().is_none() {
                return Ok(());
            }
            if let Some(failed) = work.find(|work| !work.fault.is_empty()) {
                let kill = "KILL MUTATION WHERE database = currentDatabase() AND table = {table:String} AND mutation_id = {id:String}";
                let kill = self.rows(kill).param("table", table.name()).param("id", &failed.id);
                within_deadline(kill.execute()).await?;
                let WorkRow { parts, fault, .. } = failed;
                return Err(QueryError::Engine {
                    code: 341,
                    message: format!("{parts} parts of {table} could not be rewritten: {fault}"),
                });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn of_month(&self, sql: &str, partition: i32, month: u32) -> Query {
        let query = self.rows(sql).param("partition", partition).param("month", month);
        query.with_setting("max_execution_time", LONG).with_setting("optimize_use_projections", "0")
    }
}

/// The one row of an answer that may take long.
async fn one<T: clickhouse::RowOwned + clickhouse::RowRead>(query: Query) -> Result<T, QueryError> {
    Ok(query.fetch_one::<T>().await?)
}
