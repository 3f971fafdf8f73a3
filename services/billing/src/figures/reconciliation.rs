//! What the running reconciler found: its last run whole, and those before it by their numbers.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use ledger::ids::{ModelId, RequestId, TenantId};
use ledger::time::Micros;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::instant;
use crate::app::App;
use crate::auth::Caller;
use crate::problem::Problem;

/// How many runs are told.
const RUNS: u64 = 100;

/// One side of a comparison.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct SideShown {
    /// Whose figure it is.
    pub(crate) of: String,
    pub(crate) is: i64,
}

/// Where, as far as it can be told.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct PlaceShown {
    pub(crate) topic: Option<String>,
    pub(crate) partition: Option<i32>,
    /// The hour of the log.
    pub(crate) hour: Option<String>,
    #[schema(value_type = Option<String>)]
    pub(crate) tenant: Option<TenantId>,
    #[schema(value_type = Option<String>)]
    pub(crate) model: Option<ModelId>,
    /// The replicas that an engine is, by name.
    pub(crate) replica: Option<String>,
}

/// Two figures that must be the same, and are not.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct DifferenceShown {
    /// `log`, `chunks`, `rows`, `aggregates`, `counts`, `ends`, `balances`, `invoices` or `replicas`.
    pub(crate) check: String,
    #[serde(flatten)]
    pub(crate) place: PlaceShown,
    /// What is counted: a token class, `requests`, `rows`, `offsets` and the like.
    pub(crate) figure: String,
    pub(crate) one: SideShown,
    pub(crate) other: SideShown,
    /// `other` − `one`.
    pub(crate) by: i64,
    /// In words, where the figures do not say it all.
    pub(crate) said: Option<String>,
    /// The requests that it touches, as far as they can be named; at most 100.
    #[schema(value_type = Vec<String>)]
    pub(crate) request_ids: Vec<RequestId>,
}

/// What cannot be compared yet, as it is under way.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct PendingShown {
    pub(crate) check: String,
    #[serde(flatten)]
    pub(crate) place: PlaceShown,
    /// Why not.
    pub(crate) said: String,
}

/// The report as it is kept. More may be in it, of a newer fold.
#[derive(Deserialize)]
struct Kept {
    compared: BTreeMap<String, u64>,
    differences: Vec<DifferenceShown>,
    pending: Vec<PendingShown>,
}

/// A run, by its numbers.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Run {
    /// When it began.
    pub(crate) at: DateTime<Utc>,
    /// The first hour of the log that was looked at.
    pub(crate) from: DateTime<Utc>,
    /// The first one after those.
    pub(crate) to: DateTime<Utc>,
    pub(crate) duration_ms: u64,
    /// How much differed.
    pub(crate) differences: u64,
    /// How much could not be compared yet.
    pub(crate) pending: u64,
}

/// The last run.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct LastRun {
    #[serde(flatten)]
    pub(crate) run: Run,
    /// Whether nothing differed.
    pub(crate) ok: bool,
    /// How many figures were compared, by check.
    pub(crate) compared: BTreeMap<String, u64>,
    /// What differs; at most 1,000.
    pub(crate) found: Vec<DifferenceShown>,
    /// What was under way; at most 1,000.
    pub(crate) waiting: Vec<PendingShown>,
}

/// What the reconciler found.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Reconciliation {
    /// Absent while there was no run in the last 30 days.
    pub(crate) last: Option<LastRun>,
    /// The last 100 runs, the latest first.
    pub(crate) runs: Vec<Run>,
}

/// Answers what was found last. For the admin: it is of all tenants.
pub(crate) async fn reconciliation(app: &App, caller: &Caller) -> Result<Reconciliation, Problem> {
    caller.admin()?;
    let kept = app.ask("reconciliations", app.clickhouse.reconciliations(RUNS)).await?;
    let last = kept.first().map(last).transpose()?;
    Ok(Reconciliation { last, runs: kept.iter().map(run).collect::<Result<_, _>>()? })
}

fn run(kept: &sql::Reconciliation) -> Result<Run, Problem> {
    Ok(Run {
        at: instant(Micros(kept.at_ms.saturating_mul(1_000)))?,
        from: instant(kept.hours.from.start())?,
        to: instant(kept.hours.before.start())?,
        duration_ms: kept.duration_ms,
        differences: kept.differences,
        pending: kept.pending,
    })
}

fn last(kept: &sql::Reconciliation) -> Result<LastRun, Problem> {
    let Kept { compared, differences, pending } =
        serde_json::from_str(&kept.report).map_err(|error| Problem::internal(&error))?;
    Ok(LastRun { run: run(kept)?, ok: kept.differences == 0, compared, found: differences, waiting: pending })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sql::{LogHour, LogHours};

    #[test]
    fn a_report_is_read_as_the_fold_writes_it() {
        let report = r#"{"at": "x", "from": "x", "before": "x", "compared": {"log": 8, "rows": 3},
            "differences": [{"check": "rows", "topic": "tollgate.tokens.v1", "partition": 1, "hour": "1970-01-01T05:00:00Z",
                "figure": "rows", "one": {"of": "the chunk says", "is": 3}, "other": {"of": "rows are there", "is": 2},
                "by": -1, "said": "offset 7 of acme is missing", "request_ids": ["00000000-0000-0000-0000-000000000008"]}],
            "pending": [{"check": "log", "topic": "tollgate.tokens.v1", "partition": 0, "said": "5 offsets"}]}"#;
        let hours = LogHours { from: LogHour(4), before: LogHour(6) };
        let kept = sql::Reconciliation {
            at_ms: 1_000,
            hours,
            duration_ms: 5,
            differences: 1,
            pending: 1,
            report: report.to_owned(),
        };
        let shown = serde_json::json!(last(&kept).unwrap());
        assert_eq!(
            (&shown["ok"], &shown["differences"], &shown["compared"]["log"]),
            (&false.into(), &1.into(), &8.into())
        );
        assert_eq!((&shown["from"], &shown["to"]), (&"1970-01-01T04:00:00Z".into(), &"1970-01-01T06:00:00Z".into()));
        let found = &shown["found"][0];
        assert_eq!((&found["by"], &found["one"]["is"], &found["partition"]), (&(-1).into(), &3.into(), &1.into()));
        assert_eq!(found["request_ids"][0], "00000000-0000-0000-0000-000000000008");
        assert_eq!(shown["waiting"][0]["said"], "5 offsets");
        let broken = sql::Reconciliation { report: "{".to_owned(), ..kept };
        assert!(last(&broken).is_err(), "nothing is made up");
    }
}
