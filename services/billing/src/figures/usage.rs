//! Usage: tokens and requests by choice of keys and spans of time, as ClickHouse has them this moment.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use ledger::control::{Deltas, Document, Kind};
use ledger::ids::{ApiKeyId, ModelId, ModelVersion, ProjectId, TenantId};
use ledger::tokens::{TokenClass, TokenCounts};
use serde::{Deserialize, Serialize};
use sql::{Scope, UsageLine, UsageQuery};
use utoipa::{IntoParams, ToSchema};

use super::adjustments::{self, AdjustmentRef};
use super::groups::{Groups, Spans};
use super::late::Late;
use super::{range, signed, start};
use crate::app::App;
use crate::auth::Caller;
use crate::problem::Problem;

/// The most rows of one answer.
pub(crate) const ROWS_MAX: usize = 50_000;

/// Whose figures of which time, and by what they are told apart.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct FiguresQuery {
    /// Whose. A tenant's own by default; an admin's question for usage is for all tenants without it.
    #[param(value_type = Option<String>)]
    pub(crate) tenant: Option<TenantId>,
    /// The first moment, RFC 3339, on a whole quarter of an hour. By default the current period's.
    pub(crate) from: Option<String>,
    /// The first moment after it, likewise.
    pub(crate) to: Option<String>,
    /// With commas: tenant, project, key, model, version, endpoint, class, late (whether Kafka took it after its month could have
    /// been closed), and one of hour, day, month (in the tenant's time zone). One sum without it.
    pub(crate) group_by: Option<String>,
}

/// The keys of a row; each is there if it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
pub(crate) struct RowKeys {
    /// The first moment of the span of time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<DateTime<Utc>>,
    /// The first moment after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) tenant: Option<TenantId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) project: Option<ProjectId>,
    /// The id of the API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) key: Option<ApiKeyId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) model: Option<ModelId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) version: Option<ModelVersion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint: Option<String>,
    /// Whether it came, or was corrected, after its month could have been closed: by its log hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) late: Option<bool>,
    /// The token class.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) class: Option<TokenClass>,
}

/// Counts by class. The classes are disjoint: `tokens` is their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Counts {
    /// Prompt tokens that were computed.
    pub(crate) input: u64,
    /// Prompt tokens from the prefix cache.
    pub(crate) cached_input: u64,
    /// Generated tokens without reasoning.
    pub(crate) output: u64,
    /// Generated tokens of reasoning.
    pub(crate) reasoning: u64,
    /// Requests that used something. One that got nothing of an answer bills nothing and is not among them.
    pub(crate) requests: u64,
}

impl Counts {
    pub(crate) const fn of(tokens: &TokenCounts, requests: u64) -> Self {
        let TokenCounts { input, cached_input, output, reasoning } = *tokens;
        Self { input, cached_input, output, reasoning, requests }
    }
}

/// Counts by class, below zero where a correction takes away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct SignedCounts {
    /// Prompt tokens that were computed.
    pub(crate) input: i64,
    /// Prompt tokens from the prefix cache.
    pub(crate) cached_input: i64,
    /// Generated tokens without reasoning.
    pub(crate) output: i64,
    /// Generated tokens of reasoning.
    pub(crate) reasoning: i64,
    /// Requests that used something. One that got nothing of an answer bills nothing and is not among them.
    pub(crate) requests: i64,
}

impl SignedCounts {
    /// What was metered.
    fn of(tokens: &TokenCounts, requests: u64) -> Result<Self, Problem> {
        Ok(Self {
            input: signed(tokens.input)?,
            cached_input: signed(tokens.cached_input)?,
            output: signed(tokens.output)?,
            reasoning: signed(tokens.reasoning)?,
            requests: signed(requests)?,
        })
    }

    /// What a correction changes.
    pub(crate) const fn changed(deltas: &Deltas) -> Self {
        let Deltas { input, cached_input, output, reasoning, requests } = *deltas;
        Self { input, cached_input, output, reasoning, requests }
    }
}

/// What was used of one choice of keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct UsageRow {
    #[serde(flatten)]
    pub(crate) keys: RowKeys,
    /// Tokens: of the class if rows are by class, of all classes if not. Below zero only where a correction takes away.
    pub(crate) tokens: i64,
    /// By class; absent where rows are by class.
    #[serde(flatten)]
    pub(crate) counts: Option<SignedCounts>,
    /// The correction that the row is; absent where it was metered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) adjustment: Option<AdjustmentRef>,
}

/// Usage in a time.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Whose; absent for all tenants.
    #[schema(value_type = Option<String>)]
    pub(crate) tenant: Option<TenantId>,
    pub(crate) from: DateTime<Utc>,
    pub(crate) to: DateTime<Utc>,
    /// Whose hours, days and months these are.
    #[schema(value_type = String)]
    pub(crate) time_zone: Tz,
    pub(crate) group_by: Vec<String>,
    /// Sorted by span, then by the keys, then corrections, a row each. What used nothing has no row. All of it together is what is
    /// billed.
    pub(crate) data: Vec<UsageRow>,
}

/// Answers a question for usage.
pub(crate) async fn usage(app: &App, caller: &Caller, asked: &FiguresQuery) -> Result<Usage, Problem> {
    let tenant = caller.scope(asked.tenant.clone())?;
    let groups = Groups::parse(asked.group_by.as_deref())?;
    let time_zone = tenant.as_ref().map_or(Ok(Tz::UTC), |tenant| zone(app, tenant))?;
    let period = range::between(asked.from.as_deref(), asked.to.as_deref(), app.now(), time_zone)?;
    let spans = groups.spans(period, time_zone)?;
    let scope = Scope::new(tenant.clone(), period.from, period.to);
    let late = groups.late.then(|| Late::of(period, time_zone)).transpose()?;
    let periods = late.as_ref().map(Late::periods).unwrap_or_default();
    let span = spans.as_ref().map(|spans| spans.span);
    let query = UsageQuery { scope, keys: groups.keys, span, late: periods };
    let lines = app.ask("usage", app.clickhouse.usage(&query)).await?;
    let mut data = Vec::new();
    for line in lines {
        rows(line, groups.class, spans.as_ref(), &mut data)?;
        if data.len() > ROWS_MAX {
            return Err(Problem::too_many_rows(ROWS_MAX));
        }
    }
    let control = app.control()?;
    for (id, made) in adjustments::within(&control.state, tenant.as_ref(), period) {
        let keys = adjustments::keys(made, &groups, spans.as_ref(), late.as_ref())?;
        for (class, tokens, counts) in adjustments::counts(made, groups.class)? {
            let (keys, adjustment) = (RowKeys { class, ..keys.clone() }, Some(AdjustmentRef::of(id, made)));
            data.push(UsageRow { keys, tokens, counts, adjustment });
        }
    }
    if data.len() > ROWS_MAX {
        return Err(Problem::too_many_rows(ROWS_MAX));
    }
    if spans.is_some() {
        // A stable sort: what was metered stays as it came, before the corrections of its span.
        data.sort_by(|a, b| (a.keys.from, &a.adjustment).cmp(&(b.keys.from, &b.adjustment)));
    }
    Ok(Usage { tenant, from: start(period.from)?, to: start(period.to)?, time_zone, group_by: groups.names, data })
}

/// The time zone of a tenant; a problem if there never was one. One that was deleted still has its usage, which is then shown by UTC.
pub(crate) fn zone(app: &App, id: &TenantId) -> Result<Tz, Problem> {
    let control = app.control()?;
    match control.state.get(Kind::Tenant, id.as_str()) {
        Some(Document::Tenant(tenant)) => Ok(tenant.time_zone),
        _ if control.state.revision(Kind::Tenant, id.as_str()) > 0 => Ok(Tz::UTC),
        _ => Err(Problem::not_found("tenant", id.as_str())),
    }
}

fn rows(line: UsageLine, by_class: bool, spans: Option<&Spans>, data: &mut Vec<UsageRow>) -> Result<(), Problem> {
    let span = line.span.zip(spans);
    let keys = RowKeys {
        from: span.map(|(first, _)| start(first)).transpose()?,
        to: span.map(|(first, spans)| start(spans.end(first))).transpose()?,
        tenant: line.tenant,
        project: line.project,
        key: line.api_key,
        model: line.model,
        version: line.version,
        endpoint: line.endpoint,
        late: line.late,
        class: None,
    };
    if !by_class {
        let tokens = signed(line.tokens.total().map_err(|error| Problem::internal(&error))?)?;
        let counts = Some(SignedCounts::of(&line.tokens, line.requests)?);
        data.push(UsageRow { keys, tokens, counts, adjustment: None });
        return Ok(());
    }
    for class in TokenClass::ALL.into_iter().filter(|class| line.tokens.of(*class) > 0) {
        let keys = RowKeys { class: Some(class), ..keys.clone() };
        let tokens = signed(line.tokens.of(class))?;
        data.push(UsageRow { keys, tokens, counts: None, adjustment: None });
    }
    Ok(())
}
