//! The running bill of a period: the very function that an invoice is made by, on the usage of this moment.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use ledger::control::ControlState;
use ledger::ids::{ModelId, ProjectId, TenantId};
use ledger::invoice::{self, Correction, SlotUsage};
use ledger::money::Currency;
use ledger::price::PriceBook;
use ledger::time::{Micros, Period};
use ledger::tokens::TokenClass;
use serde::{Deserialize, Serialize};
use sql::{LogHour, LogHours, RatingLine, Scope};
use utoipa::{IntoParams, ToSchema};

use super::adjustments;
use super::balance::PeriodShown;
use super::{exact, instant, minor, range, start};
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
    /// Whether Kafka took it at `late_from` or after.
    pub(crate) late: bool,
}

/// What a correction changes of one class: priced as usage of its slot is, and below zero where it takes away.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct BillAdjustment {
    /// The correction's id: `/api/v1/adjustments/{id}`.
    pub(crate) id: String,
    /// Why it was made.
    pub(crate) reason: String,
    #[schema(value_type = String)]
    pub(crate) project: ProjectId,
    #[schema(value_type = String)]
    pub(crate) model: ModelId,
    #[schema(value_type = String)]
    pub(crate) class: TokenClass,
    /// The quarter of an hour that it corrects.
    pub(crate) slot: DateTime<Utc>,
    /// The quantity.
    pub(crate) tokens: i64,
    /// The price of a million of them; absent where there is none, and then nothing is charged: an alarm.
    pub(crate) per_million: Option<String>,
    /// Quantity × price, exactly.
    pub(crate) exact: String,
    /// The same in the currency's minor unit.
    pub(crate) amount: String,
    /// Whether it was made at `late_from` or after.
    pub(crate) late: bool,
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
    /// Whether Kafka took it at `late_from` or after.
    pub(crate) late: bool,
}

/// What is charged for a period. The amounts of the lines and adjustments, and `rounding`, add up to `total`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Charges {
    pub(crate) period: PeriodShown,
    /// What Kafka takes from this moment on is late for that period: it cannot be closed before it.
    pub(crate) late_from: DateTime<Utc>,
    /// What was metered; what came late apart.
    pub(crate) lines: Vec<BillLine>,
    /// Corrections, each apart.
    pub(crate) adjustments: Vec<BillAdjustment>,
    /// Usage that has no price.
    pub(crate) unrated: Vec<UnratedQuantity>,
    /// The sum of the exact amounts of lines and adjustments.
    pub(crate) exact: String,
    /// What rounding each of them left over.
    pub(crate) rounding: String,
    /// `exact`, rounded half-even to the currency's minor unit.
    pub(crate) total: String,
}

/// What a period costs so far.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Bill {
    #[schema(value_type = String)]
    pub(crate) tenant: TenantId,
    /// When it was reckoned. What was folded by then is in it.
    pub(crate) as_of: DateTime<Utc>,
    #[schema(value_type = String)]
    pub(crate) currency: Currency,
    #[serde(flatten)]
    pub(crate) charges: Charges,
    /// What came late for the period before; absent when nothing did. It is in the bill of that period and not in this total: once
    /// that period is closed, it is left to this one.
    pub(crate) late_of_period_before: Option<Charges>,
}

/// Answers a question for the running bill.
pub(crate) async fn preview(app: &App, caller: &Caller, asked: &PreviewQuery) -> Result<Bill, Problem> {
    let id = caller.one(asked.tenant.clone())?;
    let control = app.control()?;
    let tenant = tenant(&control.state, &id)?;
    let (now, zone) = (app.now(), tenant.time_zone);
    let period = range::period(asked.period.as_deref(), now, zone)?;
    let book = control.state.price_book().map_err(|error| Problem::internal(&error))?;
    let bills = Bills { app, state: &control.state, id: &id, currency: tenant.currency, book: &book };
    let bill = bills.of(period, true).await?;
    let before = Micros(period.from.start().0.saturating_sub(1));
    let before = Period::month_of(before, zone).map_err(|error| Problem::range(error.to_string()))?;
    let late = bills.of(before, false).await?;
    let unpriced = bill.adjustments.iter().filter(|line| line.per_million.is_none()).count();
    app.metrics.unrated.inc_by((bill.unrated.len() + unpriced) as u64);
    let late = match late.lines.is_empty() && late.adjustments.is_empty() && late.unrated.is_empty() {
        true => None,
        false => Some(Charges::of(late, before, zone)?),
    };
    Ok(Bill {
        tenant: id,
        as_of: instant(now)?,
        currency: bill.currency,
        charges: Charges::of(bill, period, zone)?,
        late_of_period_before: late,
    })
}

impl Charges {
    fn of(bill: invoice::Preview, period: Period, zone: Tz) -> Result<Self, Problem> {
        Ok(Self {
            late_from: instant(LogHour(period.late_from_hour()).start())?,
            period: PeriodShown::of(period, zone)?,
            exact: exact(bill.exact),
            rounding: minor(bill.rounding),
            total: minor(bill.total),
            lines: bill.lines.into_iter().map(line).collect(),
            adjustments: bill.adjustments.into_iter().map(adjustment).collect::<Result<_, _>>()?,
            unrated: bill.unrated.into_iter().map(unrated).collect(),
        })
    }
}

/// The bills of one tenant, by one state of control.
struct Bills<'a> {
    app: &'a App,
    state: &'a ControlState,
    id: &'a TenantId,
    currency: Currency,
    book: &'a PriceBook,
}

impl Bills<'_> {
    /// What a period costs: all of it, or only what came late.
    async fn of(&self, period: Period, in_time_too: bool) -> Result<invoice::Preview, Problem> {
        let cut_off = LogHour(period.late_from_hour());
        let mut usage = self.used(period, LogHours::since(cut_off), true).await?;
        if in_time_too {
            usage.extend(self.used(period, LogHours::before(cut_off), false).await?);
        }
        let corrections = adjustments::within(self.state, Some(self.id), period).map(|(id, made)| {
            let late = made.made_at >= cut_off.start();
            Correction { id, made, late }
        });
        let corrections = corrections.filter(|correction| in_time_too || correction.late);
        let bill = invoice::preview(usage, corrections, self.currency, self.book, &period);
        bill.map_err(|error| Problem::internal(&error))
    }

    async fn used(&self, period: Period, log_hours: LogHours, late: bool) -> Result<Vec<SlotUsage>, Problem> {
        let scope = Scope { log_hours, ..Scope::new(Some(self.id.clone()), period.from, period.to) };
        let lines = self.app.ask("rating", self.app.clickhouse.rating(&scope, false)).await?;
        let used = |line: RatingLine| SlotUsage {
            project: line.project,
            model: line.model,
            slot: line.slot,
            counts: line.tokens,
            late,
        };
        Ok(lines.into_iter().map(used).collect())
    }
}

fn line(line: invoice::Line) -> BillLine {
    BillLine {
        project: line.project,
        model: line.model,
        class: line.class,
        tokens: line.tokens,
        per_million: line.per_million.normalize().to_string(),
        exact: exact(line.exact),
        amount: minor(line.amount),
        late: line.late,
    }
}

fn adjustment(line: invoice::AdjustmentLine) -> Result<BillAdjustment, Problem> {
    Ok(BillAdjustment {
        id: line.id,
        reason: line.reason,
        project: line.project,
        model: line.model,
        class: line.class,
        slot: start(line.slot)?,
        tokens: line.tokens,
        per_million: line.per_million.map(|price| price.normalize().to_string()),
        exact: exact(line.exact),
        amount: minor(line.amount),
        late: line.late,
    })
}

fn unrated(line: invoice::Unrated) -> UnratedQuantity {
    UnratedQuantity {
        project: line.project,
        model: line.model,
        class: line.class,
        tokens: line.tokens,
        late: line.late,
    }
}
