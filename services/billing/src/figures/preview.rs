//! The running bill of a period: the very function that an invoice is made by, on the usage of this moment.

use chrono::{DateTime, Utc};
use ledger::ids::{ModelId, ProjectId, TenantId};
use ledger::invoice::{self, SlotUsage};
use ledger::money::Currency;
use ledger::tokens::TokenClass;
use serde::{Deserialize, Serialize};
use sql::{RatingLine, Scope};
use utoipa::{IntoParams, ToSchema};

use super::balance::PeriodShown;
use super::{exact, instant, minor, range};
use crate::app::{App, tenant};
use crate::auth::Caller;
use crate::problem::Problem;

/// Whose bill of which period.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PreviewQuery {
    /// Whose. A tenant's own by default.
    #[param(value_type = Option<String>)]
    pub(crate) tenant: Option<TenantId>,
    /// A month, as `YYYY-MM`. By default the current one.
    pub(crate) period: Option<String>,
}

/// A quantity at one price: `tokens` × `per_million` ÷ 1,000,000 = `exact`, and `amount` is that, rounded half-even.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct BillLine {
    #[schema(value_type = String)]
    pub(crate) project: ProjectId,
    #[schema(value_type = String)]
    pub(crate) model: ModelId,
    #[schema(value_type = String)]
    pub(crate) class: TokenClass,
    /// The quantity.
    pub(crate) tokens: u64,
    /// The price of a million of them.
    pub(crate) per_million: String,
    /// Quantity × price, exactly.
    pub(crate) exact: String,
    /// The same in the currency's minor unit.
    pub(crate) amount: String,
}

/// A quantity without a price. An alarm; never zero money.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct UnratedQuantity {
    #[schema(value_type = String)]
    pub(crate) project: ProjectId,
    #[schema(value_type = String)]
    pub(crate) model: ModelId,
    #[schema(value_type = String)]
    pub(crate) class: TokenClass,
    pub(crate) tokens: u64,
}

/// What a period costs so far. The amounts of the lines and `rounding` add up to `total`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Bill {
    #[schema(value_type = String)]
    pub(crate) tenant: TenantId,
    pub(crate) period: PeriodShown,
    /// When it was reckoned. What was folded by then is in it.
    pub(crate) as_of: DateTime<Utc>,
    #[schema(value_type = String)]
    pub(crate) currency: Currency,
    pub(crate) lines: Vec<BillLine>,
    /// Usage that has no price.
    pub(crate) unrated: Vec<UnratedQuantity>,
    /// The sum of the lines' exact amounts.
    pub(crate) exact: String,
    /// What rounding each line left over.
    pub(crate) rounding: String,
    /// `exact`, rounded half-even to the currency's minor unit.
    pub(crate) total: String,
}

/// Answers a question for the running bill.
pub(crate) async fn preview(app: &App, caller: &Caller, asked: &PreviewQuery) -> Result<Bill, Problem> {
    let id = caller.one(asked.tenant.clone())?;
    let control = app.control()?;
    let tenant = tenant(&control.state, &id)?;
    let now = app.now();
    let period = range::period(asked.period.as_deref(), now, tenant.time_zone)?;
    let book = control.state.price_book().map_err(|error| Problem::internal(&error))?;
    let scope = Scope::new(Some(id.clone()), period.from, period.to);
    let lines = app.ask("rating", app.clickhouse.rating(&scope, false)).await?;
    let used =
        |line: RatingLine| SlotUsage { project: line.project, model: line.model, slot: line.slot, counts: line.tokens };
    let bill = invoice::preview(lines.into_iter().map(used), tenant.currency, &book, &period);
    let bill = bill.map_err(|error| Problem::internal(&error))?;
    app.metrics.unrated.inc_by(bill.unrated.len() as u64);
    let period = PeriodShown::of(period, tenant.time_zone)?;
    Ok(shown(id, period, instant(now)?, bill))
}

fn shown(tenant: TenantId, period: PeriodShown, as_of: DateTime<Utc>, bill: invoice::Preview) -> Bill {
    let line = |line: invoice::Line| BillLine {
        project: line.project,
        model: line.model,
        class: line.class,
        tokens: line.tokens,
        per_million: line.per_million.normalize().to_string(),
        exact: exact(line.exact),
        amount: minor(line.amount),
    };
    let unrated = |line: invoice::Unrated| UnratedQuantity {
        project: line.project,
        model: line.model,
        class: line.class,
        tokens: line.tokens,
    };
    Bill {
        tenant,
        period,
        as_of,
        currency: bill.currency,
        lines: bill.lines.into_iter().map(line).collect(),
        unrated: bill.unrated.into_iter().map(unrated).collect(),
        exact: exact(bill.exact),
        rounding: minor(bill.rounding),
        total: minor(bill.total),
    }
}
