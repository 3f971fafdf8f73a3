//! What the running reconciler found, run by run: written by it, read for people.

use clickhouse::Row;
use serde::{Deserialize, Serialize};

use crate::calendar::{LogHour, LogHours};
use crate::client::{ClickHouse, fetch, within_deadline};
use crate::error::QueryError;

const RECONCILIATIONS: &str = include_str!("../queries/reconciliations.sql");

/// One run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reconciliation {
    /// When it began, milliseconds since 1970.
    pub at_ms: i64,
    /// What was looked at.
    pub hours: LogHours,
    /// How long it took.
    pub duration_ms: u64,
    /// How much differed.
    pub differences: u64,
    /// How much could not be compared yet.
    pub pending: u64,
    /// The whole, as JSON; empty for all but the latest run that is read.
    pub report: String,
}

#[derive(Row, Serialize)]
struct Written<'a> {
    at: i64,
    from_hour: i64,
    before_hour: i64,
    duration_ms: u64,
    differences: u64,
    pending: u64,
    report: &'a str,
}

#[derive(Row, Deserialize)]
struct Read {
    at_ms: i64,
    from_hour: i64,
    before_hour: i64,
    duration_ms: u64,
    differences: u64,
    pending: u64,
    latest: String,
}

impl ClickHouse {
    /// Keeps a run.
    ///
    /// # Errors
    /// No answer.
    pub async fn keep_reconciliation(&self, run: &Reconciliation) -> Result<(), QueryError> {
        let row = Written {
            at: run.at_ms,
            from_hour: run.hours.from.0,
            before_hour: run.hours.before.0,
            duration_ms: run.duration_ms,
            differences: run.differences,
            pending: run.pending,
            report: &run.report,
        };
        let writing = async {
            let mut insert = self.client().insert::<Written<'_>>("reconciliations").await?;
            insert.write(&row).await?;
            insert.end().await
        };
        within_deadline(writing).await
    }

    /// The last runs, the latest first.
    ///
    /// # Errors
    /// No answer.
    pub async fn reconciliations(&self, limit: u64) -> Result<Vec<Reconciliation>, QueryError> {
        let rows = fetch::<Read>(self.rows(RECONCILIATIONS).param("limit", limit)).await?;
        let run = |row: Read| Reconciliation {
            at_ms: row.at_ms,
            hours: LogHours { from: LogHour(row.from_hour), before: LogHour(row.before_hour) },
            duration_ms: row.duration_ms,
            differences: row.differences,
            pending: row.pending,
            report: row.latest,
        };
        Ok(rows.into_iter().map(run).collect())
    }
}
