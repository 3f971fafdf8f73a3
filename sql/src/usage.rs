//! Usage: sums of tokens and requests by choice of keys and spans, for rating, and for the balances of a partition.

use clickhouse::Row;
use clickhouse::query::Query;
use ledger::ids::{ApiKeyId, ModelId, ModelVersion, ProjectId, TenantId};
use ledger::time::Slot;
use ledger::tokens::TokenCounts;
use serde::Deserialize;

use crate::calendar::{LogHour, LogHours, Span};
use crate::client::{ClickHouse, fetch};
use crate::error::QueryError;
use crate::table::Table;
use crate::wire::{WireUuid, counts};

const USAGE: &str = include_str!("../queries/usage.sql");
const RATING: &str = include_str!("../queries/rating.sql");
const PARTITION_TOTALS: &str = include_str!("../queries/partition_totals.sql");
const LAST_USED: &str = include_str!("../queries/last_used.sql");
/// How often the totals of a partition are read while another process folds it.
const TRIES: u32 = 5;

/// Whose usage, of which time, of which log hours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// One tenant, or all of them.
    pub tenant: Option<TenantId>,
    /// The first slot.
    pub from: Slot,
    /// The first slot after it.
    pub to: Slot,
    /// Which log hours count: all by default.
    pub log_hours: LogHours,
}

impl Scope {
    /// All of a tenant's usage in a time, or of all tenants.
    pub fn new(tenant: Option<TenantId>, from: Slot, to: Slot) -> Self {
        Self { tenant, from, to, log_hours: LogHours::default() }
    }

    fn of(&self, query: Query) -> Query {
        query
            .param("tenant", self.tenant.as_ref().map_or("", TenantId::as_str))
            .param("from", self.from.0)
            .param("to", self.to.0)
            .param("log_from", self.log_hours.from.0)
            .param("log_before", self.log_hours.before.0)
    }
}

/// By what usage is told apart. None of it: one line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the key that it names")]
pub struct Keys {
    pub tenant: bool,
    pub project: bool,
    pub api_key: bool,
    pub model: bool,
    pub version: bool,
    pub endpoint: bool,
}

/// A question for usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageQuery {
    /// Of what.
    pub scope: Scope,
    /// By what.
    pub keys: Keys,
    /// In which spans of time; as one if none.
    pub span: Option<Span>,
    /// What came late apart: the first slots of the periods that the time is cut into, each with its first late log hour. Late and
    /// in time together if none.
    pub late: Vec<(Slot, LogHour)>,
}

/// Usage of one choice of keys in one span. A key that was not asked for is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the key that it names")]
pub struct UsageLine {
    pub tenant: Option<TenantId>,
    pub project: Option<ProjectId>,
    pub api_key: Option<ApiKeyId>,
    pub model: Option<ModelId>,
    pub version: Option<ModelVersion>,
    pub endpoint: Option<String>,
    /// The first slot of the span.
    pub span: Option<Slot>,
    /// Whether it came late, when that was asked for.
    pub late: Option<bool>,
    pub tokens: TokenCounts,
    pub requests: u64,
}

/// Usage with all that a price or an invoice's line may depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the key that it names")]
pub struct RatingLine {
    pub tenant: TenantId,
    pub project: ProjectId,
    pub api_key: ApiKeyId,
    pub model: ModelId,
    pub version: ModelVersion,
    pub endpoint: String,
    pub slot: Slot,
    /// When it was asked for.
    pub log_hour: Option<LogHour>,
    pub tokens: TokenCounts,
    pub requests: u64,
}

/// What a tenant used of a model in a slot, in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the key that it names")]
pub struct PartitionTotal {
    pub tenant: TenantId,
    pub model: ModelId,
    pub slot: Slot,
    pub tokens: TokenCounts,
    pub requests: u64,
}

/// All totals of a partition as of one position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionTotals {
    /// The next offset: everything before it is in the totals, nothing from it on.
    pub position: i64,
    /// Sorted by tenant, model and slot.
    pub totals: Vec<PartitionTotal>,
}

#[derive(Row, Deserialize)]
struct UsageRow {
    tenant: String,
    project: String,
    api_key: WireUuid,
    model_name: String,
    model_version: String,
    path: String,
    span: i64,
    late: bool,
    input_tokens: u64,
    cached_input_tokens: u64,
    output_tokens: u64,
    reasoning_tokens: u64,
    request_count: u64,
}

#[derive(Row, Deserialize)]
struct RatingRow {
    tenant_id: String,
    project_id: String,
    api_key_id: WireUuid,
    model: String,
    version: String,
    endpoint: String,
    slot: i64,
    hour: i64,
    input_tokens: u64,
    cached_input_tokens: u64,
    output_tokens: u64,
    reasoning_tokens: u64,
    request_count: u64,
}

#[derive(Row, Deserialize)]
struct TotalRow {
    tenant_id: String,
    model: String,
    slot: i64,
    input_tokens: u64,
    cached_input_tokens: u64,
    output_tokens: u64,
    reasoning_tokens: u64,
    request_count: u64,
}

#[derive(Row, Deserialize)]
struct LastUsedRow {
    api_key_id: WireUuid,
    last_slot: i64,
}

/// Reads an id that a table holds.
pub(crate) fn id<T>(what: &str, text: &str) -> Result<T, QueryError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.parse().map_err(|error| QueryError::not_an_id(what, error))
}

impl ClickHouse {
    /// Usage in a time, by choice of keys and spans; sorted by span, then by the keys.
    ///
    /// # Errors
    /// No answer, or more spans than can be answered.
    pub async fn usage(&self, asked: &UsageQuery) -> Result<Vec<UsageLine>, QueryError> {
        let Keys { tenant, project, api_key, model, version, endpoint } = asked.keys;
        let starts = asked.span.map(|span| span.starts(asked.scope.from, asked.scope.to)).transpose()?;
        if asked.scope.to <= asked.scope.from {
            return Ok(Vec::new());
        }
        // Parameters must not be empty.
        let none = [(Slot(0), LogHour(0))];
        let late = if asked.late.is_empty() { none.as_slice() } else { asked.late.as_slice() };
        let query = self
            .sums(USAGE)
            .param("by_tenant", tenant)
            .param("by_project", project)
            .param("by_key", api_key)
            .param("by_model", model)
            .param("by_version", version)
            .param("by_endpoint", endpoint)
            .param("by_span", starts.is_some())
            .param("spans", slots(starts.as_deref()))
            .param("by_late", !asked.late.is_empty())
            .param("periods", late.iter().map(|(slot, _)| slot.0).collect::<Vec<i64>>())
            .param("late_from", late.iter().map(|(_, hour)| hour.0).collect::<Vec<i64>>());
        let rows = fetch::<UsageRow>(asked.scope.of(query)).await?;
        let line = |row: UsageRow| {
            Ok(UsageLine {
                tenant: tenant.then(|| id("tenant", &row.tenant)).transpose()?,
                project: project.then(|| id("project", &row.project)).transpose()?,
                api_key: api_key.then_some(ApiKeyId(row.api_key.0)),
                model: model.then(|| id("model", &row.model_name)).transpose()?,
                version: version.then(|| id("version", &row.model_version)).transpose()?,
                endpoint: endpoint.then_some(row.path),
                span: starts.as_ref().map(|_| Slot(row.span)),
                late: (!asked.late.is_empty()).then_some(row.late),
                tokens: counts([row.input_tokens, row.cached_input_tokens, row.output_tokens, row.reasoning_tokens]),
                requests: row.request_count,
            })
        };
        rows.into_iter().map(line).collect()
    }

    /// What is rated, in a fixed order: usage per slot with all that a price or a line may depend on, and per log hour
    /// if asked for.
    ///
    /// # Errors
    /// No answer.
    pub async fn rating(&self, scope: &Scope, by_log_hour: bool) -> Result<Vec<RatingLine>, QueryError> {
        self.rated(self.sums(RATING).param("since", 0), scope, by_log_hour).await
    }

    /// The same out of the rows alone, for a check of the sums. None of what is asked for lies before the offset `since`.
    ///
    /// # Errors
    /// No answer.
    pub async fn rating_of_rows(&self, scope: &Scope, since: i64) -> Result<Vec<RatingLine>, QueryError> {
        let rows = self.rows(RATING).with_setting("optimize_use_projections", "0");
        self.rated(rows.param("since", since), scope, false).await
    }

    async fn rated(&self, query: Query, scope: &Scope, by_log_hour: bool) -> Result<Vec<RatingLine>, QueryError> {
        let rows = fetch::<RatingRow>(scope.of(query.param("by_log_hour", by_log_hour))).await?;
        let line = |row: RatingRow| {
            Ok(RatingLine {
                tenant: id("tenant", &row.tenant_id)?,
                project: id("project", &row.project_id)?,
                api_key: ApiKeyId(row.api_key_id.0),
                model: id("model", &row.model)?,
                version: id("version", &row.version)?,
                endpoint: row.endpoint,
                slot: Slot(row.slot),
                log_hour: by_log_hour.then_some(LogHour(row.hour)),
                tokens: counts([row.input_tokens, row.cached_input_tokens, row.output_tokens, row.reasoning_tokens]),
                requests: row.request_count,
            })
        };
        rows.into_iter().map(line).collect()
    }

    /// The last slot in which each of a tenant's keys was used. A key that never was is not there.
    ///
    /// # Errors
    /// No answer.
    pub async fn last_used(&self, tenant: &TenantId) -> Result<Vec<(ApiKeyId, Slot)>, QueryError> {
        let rows = fetch::<LastUsedRow>(self.sums(LAST_USED).param("tenant", tenant.as_str())).await?;
        Ok(rows.into_iter().map(|row| (ApiKeyId(row.api_key_id.0), Slot(row.last_slot))).collect())
    }

    /// What the balances of a partition of the tokens topic begin with: usage per tenant, model and slot from a slot on,
    /// and the position that it is of.
    ///
    /// # Errors
    /// No answer, or the partition moved on during every reading.
    pub async fn partition_totals(&self, partition: i32, from: Slot) -> Result<PartitionTotals, QueryError> {
        let table = Table::Tokens;
        let mut before = self.position(table, partition).await?.position;
        for _ in 0..TRIES {
            let query = self.sums(PARTITION_TOTALS).param("partition", partition).param("from", from.0);
            let rows = if before == 0 { Vec::new() } else { fetch::<TotalRow>(query).await? };
            let after = self.position(table, partition).await?.position;
            if before == after {
                let totals = rows.into_iter().map(total).collect::<Result<_, _>>()?;
                return Ok(PartitionTotals { position: after, totals });
            }
            before = after;
        }
        Err(QueryError::Moving { table, partition, tries: TRIES })
    }
}

fn total(row: TotalRow) -> Result<PartitionTotal, QueryError> {
    Ok(PartitionTotal {
        tenant: id("tenant", &row.tenant_id)?,
        model: id("model", &row.model)?,
        slot: Slot(row.slot),
        tokens: counts([row.input_tokens, row.cached_input_tokens, row.output_tokens, row.reasoning_tokens]),
        requests: row.request_count,
    })
}

/// The first slots of spans as a parameter, which must not be empty.
pub(crate) fn slots(starts: Option<&[Slot]>) -> Vec<i64> {
    match starts {
        Some(starts) if !starts.is_empty() => starts.iter().map(|slot| slot.0).collect(),
        _ => vec![0],
    }
}
