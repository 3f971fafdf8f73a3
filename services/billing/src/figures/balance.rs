//! What a tenant has used in its current period, and what is left of its limit: out of memory, as the fold publishes it.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use ledger::control::{Document, Kind};
use ledger::ids::{ModelId, PlanId, TenantId};
use ledger::tokens::TokenCounts;
use schemas::event::BalanceUpdated;
use serde::Serialize;
use utoipa::ToSchema;

use super::usage::Counts;
use super::{add, instant, range, start};
use crate::app::{App, tenant};
use crate::auth::Caller;
use crate::problem::Problem;

/// A month of the tenant's.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct PeriodShown {
    /// `YYYY-MM`.
    pub(crate) name: String,
    pub(crate) from: DateTime<Utc>,
    /// The first moment after it.
    pub(crate) to: DateTime<Utc>,
    #[schema(value_type = String)]
    pub(crate) time_zone: Tz,
}

impl PeriodShown {
    pub(crate) fn of(period: ledger::time::Period, time_zone: Tz) -> Result<Self, Problem> {
        let name = range::name(period, time_zone)?;
        Ok(Self { name, from: start(period.from)?, to: start(period.to)?, time_zone })
    }
}

/// What was used of a model.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ModelBalance {
    #[schema(value_type = String)]
    pub(crate) model: ModelId,
    /// Of all classes.
    pub(crate) tokens: u64,
    #[serde(flatten)]
    pub(crate) counts: Counts,
}

/// Up to where a balance reaches.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct AsOf {
    /// When it was published.
    pub(crate) at: DateTime<Utc>,
    /// The partition of the tokens topic that the tenant's usage is in.
    pub(crate) partition: i32,
    /// The first offset of it that is not counted.
    pub(crate) offset: i64,
    /// The first offset of the control log that was not known then.
    pub(crate) control_offset: i64,
}

/// A tenant's balance.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Balance {
    #[schema(value_type = String)]
    pub(crate) tenant: TenantId,
    #[schema(value_type = String)]
    pub(crate) plan: PlanId,
    pub(crate) period: PeriodShown,
    /// Tokens of all models and classes.
    pub(crate) tokens: u64,
    /// Requests of all models.
    pub(crate) requests: u64,
    /// By model, sorted.
    pub(crate) models: Vec<ModelBalance>,
    /// The plan's tokens per period; absent without a limit.
    pub(crate) limit: Option<u64>,
    /// What is left of the limit; 0 when more was used.
    pub(crate) left: Option<u64>,
    /// Absent while nothing of this period was published.
    pub(crate) as_of: Option<AsOf>,
}

/// Answers a question for a balance.
pub(crate) fn balance(app: &App, caller: &Caller, id: &TenantId) -> Result<Balance, Problem> {
    caller.sees(id)?;
    let control = app.control()?;
    let tenant = tenant(&control.state, id)?;
    let period = range::period(None, app.now(), tenant.time_zone)?;
    let published = app.balances.get(id, period);
    let models = published.as_deref().map_or_else(|| Ok(Vec::new()), models)?;
    let sum = |of: fn(&ModelBalance) -> u64| models.iter().map(of).try_fold(0, add);
    let (tokens, requests) = (sum(|model| model.tokens)?, sum(|model| model.counts.requests)?);
    let limit = match control.state.get(Kind::Plan, tenant.plan.as_str()) {
        Some(Document::Plan(plan)) => plan.tokens_per_period,
        _ => None,
    };
    Ok(Balance {
        tenant: id.clone(),
        plan: tenant.plan.clone(),
        period: PeriodShown::of(period, tenant.time_zone)?,
        tokens,
        requests,
        models,
        limit,
        left: limit.map(|limit| limit.saturating_sub(tokens)),
        as_of: published.as_deref().map(as_of).transpose()?,
    })
}

fn models(balance: &BalanceUpdated) -> Result<Vec<ModelBalance>, Problem> {
    let model = |usage: &schemas::event::ModelUsage| {
        let tokens: TokenCounts = usage.counts().map_err(|error| Problem::internal(&error))?;
        let requests = u64::try_from(usage.requests).map_err(|error| Problem::internal(&error))?;
        Ok(ModelBalance {
            model: usage.model.clone(),
            tokens: tokens.total().map_err(|error| Problem::internal(&error))?,
            counts: Counts::of(&tokens, requests),
        })
    };
    balance.usage.iter().map(model).collect()
}

fn as_of(balance: &BalanceUpdated) -> Result<AsOf, Problem> {
    Ok(AsOf {
        at: instant(balance.published_at)?,
        partition: balance.partition,
        offset: balance.as_of,
        control_offset: balance.control_offset,
    })
}
