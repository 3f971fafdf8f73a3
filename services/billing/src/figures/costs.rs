//! Costs as charged: usage per slot, by the prices that were in force in it. Usage without a price is named, never zero.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use ledger::control::UsageAdjustment;
use ledger::ids::{ModelId, ProjectId, TenantId};
use ledger::money::{Currency, Money};
use ledger::price::{PriceBook, PriceKey, charge_signed};
use ledger::time::Slot;
use ledger::tokens::TokenClass;
use serde::Serialize;
use sql::{RatingLine, Scope};
use utoipa::ToSchema;

use super::adjustments::{self, AdjustmentRef};
use super::groups::{Groups, Spans};
use super::late::Late;
use super::usage::{FiguresQuery, ROWS_MAX, RowKeys};
use super::{add_signed, exact, range, signed, start};
use crate::app::{App, tenant};
use crate::auth::Caller;
use crate::problem::Problem;

/// What one choice of keys costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct CostRow {
    #[serde(flatten)]
    pub(crate) keys: RowKeys,
    /// Tokens with a price. Below zero only where a correction takes away.
    pub(crate) tokens: i64,
    /// What they are charged, exactly: a decimal as text.
    pub(crate) charged: String,
    /// Tokens without a price: charged nothing, and not free either.
    pub(crate) unrated_tokens: i64,
    /// The correction that the row is; absent where it was metered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) adjustment: Option<AdjustmentRef>,
}

/// Usage that has no price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct UnratedLine {
    #[schema(value_type = String)]
    pub(crate) project: ProjectId,
    #[schema(value_type = String)]
    pub(crate) model: ModelId,
    #[schema(value_type = String)]
    pub(crate) class: TokenClass,
    pub(crate) tokens: i64,
    /// From the first quarter of an hour with such usage on.
    pub(crate) from: DateTime<Utc>,
    /// Until the end of the last one.
    pub(crate) to: DateTime<Utc>,
}

/// What a time costs.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Costs {
    #[schema(value_type = String)]
    pub(crate) tenant: TenantId,
    #[schema(value_type = String)]
    pub(crate) currency: Currency,
    pub(crate) from: DateTime<Utc>,
    pub(crate) to: DateTime<Utc>,
    /// Whose hours, days and months these are.
    #[schema(value_type = String)]
    pub(crate) time_zone: Tz,
    pub(crate) group_by: Vec<String>,
    /// The exact sum of all rows: a decimal as text, not rounded.
    pub(crate) charged: String,
    /// Sorted by span, then by the keys; corrections have a row each.
    pub(crate) data: Vec<CostRow>,
    /// Usage that has no price. An alarm: set the missing prices, also for the past.
    pub(crate) unrated: Vec<UnratedLine>,
}

/// Answers a question for costs.
pub(crate) async fn costs(app: &App, caller: &Caller, asked: &FiguresQuery) -> Result<Costs, Problem> {
    let id = caller.one(asked.tenant.clone())?;
    let groups = Groups::parse(asked.group_by.as_deref())?;
    let control = app.control()?;
    let tenant = tenant(&control.state, &id)?;
    let (currency, time_zone) = (tenant.currency, tenant.time_zone);
    let period = range::between(asked.from.as_deref(), asked.to.as_deref(), app.now(), time_zone)?;
    let spans = groups.spans(period, time_zone)?;
    let book = control.state.price_book().map_err(|error| Problem::internal(&error))?;
    let late = groups.late.then(|| Late::of(period, time_zone)).transpose()?;
    let scope = Scope::new(Some(id.clone()), period.from, period.to);
    let lines = app.ask("rating", app.clickhouse.rating(&scope, late.is_some())).await?;
    let mut sums = Sums::new(&groups, spans, late, &book, currency);
    for line in &lines {
        sums.take(line)?;
    }
    for (id, made) in adjustments::within(&control.state, Some(&id), period) {
        sums.correct(id, made)?;
    }
    let charged = sums.charged;
    let (data, unrated) = sums.finish()?;
    app.metrics.unrated.inc_by(unrated.len() as u64);
    Ok(Costs {
        tenant: id,
        currency,
        from: start(period.from)?,
        to: start(period.to)?,
        time_zone,
        group_by: groups.names.clone(),
        charged: exact(charged),
        data,
        unrated,
    })
}

struct Sum {
    tokens: i64,
    charged: Money,
    unrated: i64,
}

struct Sums<'a> {
    groups: &'a Groups,
    spans: Option<Spans>,
    late: Option<Late>,
    book: &'a PriceBook,
    currency: Currency,
    rows: BTreeMap<(Option<AdjustmentRef>, RowKeys), Sum>,
    /// Tokens, first and last slot.
    unrated: BTreeMap<(ProjectId, ModelId, TokenClass), (i64, Slot, Slot)>,
    /// All of it.
    charged: Money,
}

/// Tokens of one class in one slot.
#[derive(Clone, Copy)]
struct Quantity<'a> {
    project: &'a ProjectId,
    model: &'a ModelId,
    slot: Slot,
    class: TokenClass,
    tokens: i64,
}

impl<'a> Sums<'a> {
    fn new(
        groups: &'a Groups,
        spans: Option<Spans>,
        late: Option<Late>,
        book: &'a PriceBook,
        currency: Currency,
    ) -> Self {
        let (rows, unrated, charged) = (BTreeMap::new(), BTreeMap::new(), Money::zero(currency));
        Self { groups, spans, late, book, currency, rows, unrated, charged }
    }

    /// Rates a line and adds it where it belongs.
    fn take(&mut self, line: &RatingLine) -> Result<(), Problem> {
        let keys = self.keys(line)?;
        for class in TokenClass::ALL.into_iter().filter(|class| line.tokens.of(*class) > 0) {
            let tokens = signed(line.tokens.of(class))?;
            let (project, model, slot) = (&line.project, &line.model, line.slot);
            self.add(&keys, None, Quantity { project, model, slot, class, tokens })?;
        }
        Ok(())
    }

    /// Rates a correction, which has rows of its own.
    fn correct(&mut self, id: &str, made: &UsageAdjustment) -> Result<(), Problem> {
        let keys = adjustments::keys(made, self.groups, self.spans.as_ref(), self.late.as_ref())?;
        let row = AdjustmentRef::of(id, made);
        for class in TokenClass::ALL.into_iter().filter(|class| made.deltas.of(*class) != 0) {
            let (project, model, slot, tokens) = (&made.project, &made.model, made.slot(), made.deltas.of(class));
            self.add(&keys, Some(&row), Quantity { project, model, slot, class, tokens })?;
        }
        Ok(())
    }

    fn add(&mut self, keys: &RowKeys, of: Option<&AdjustmentRef>, what: Quantity<'_>) -> Result<(), Problem> {
        let Quantity { project, model, slot, class, tokens } = what;
        let key = PriceKey { model: model.clone(), class, currency: self.currency };
        let price = self.book.price(&key, slot);
        let keys = RowKeys { class: self.groups.class.then_some(class), ..keys.clone() };
        let new = Sum { tokens: 0, charged: Money::zero(self.currency), unrated: 0 };
        let row = self.rows.entry((of.cloned(), keys)).or_insert(new);
        let Some(price) = price else {
            row.unrated = add_signed(row.unrated, tokens)?;
            let (sum, first, last) =
                self.unrated.entry((project.clone(), model.clone(), class)).or_insert((0, slot, slot));
            *sum = add_signed(*sum, tokens)?;
            (*first, *last) = ((*first).min(slot), (*last).max(slot));
            return Ok(());
        };
        let failed = |error| Problem::internal(&error);
        let charge = charge_signed(tokens, price, self.currency).map_err(failed)?;
        row.tokens = add_signed(row.tokens, tokens)?;
        row.charged = row.charged.checked_add(charge).map_err(failed)?;
        self.charged = self.charged.checked_add(charge).map_err(failed)?;
        Ok(())
    }

    fn keys(&self, line: &RatingLine) -> Result<RowKeys, Problem> {
        let keys = self.groups.keys;
        let span = self.spans.as_ref().and_then(|spans| Some((spans.holding(line.slot)?, spans)));
        Ok(RowKeys {
            from: span.map(|(first, _)| start(first)).transpose()?,
            to: span.map(|(first, spans)| start(spans.end(first))).transpose()?,
            tenant: keys.tenant.then(|| line.tenant.clone()),
            project: keys.project.then(|| line.project.clone()),
            key: keys.api_key.then_some(line.api_key),
            model: keys.model.then(|| line.model.clone()),
            version: keys.version.then(|| line.version.clone()),
            endpoint: keys.endpoint.then(|| line.endpoint.clone()),
            late: self.late.as_ref().zip(line.log_hour).map(|(late, hour)| late.is(line.slot, hour)),
            class: None,
        })
    }

    fn finish(self) -> Result<(Vec<CostRow>, Vec<UnratedLine>), Problem> {
        if self.rows.len() > ROWS_MAX {
            return Err(Problem::too_many_rows(ROWS_MAX));
        }
        let row = |((adjustment, keys), sum): ((Option<AdjustmentRef>, RowKeys), Sum)| CostRow {
            keys,
            tokens: sum.tokens,
            charged: exact(sum.charged),
            unrated_tokens: sum.unrated,
            adjustment,
        };
        let unrated = |((project, model, class), (tokens, first, last)): (
            (ProjectId, ModelId, TokenClass),
            (i64, Slot, Slot),
        )| {
            let (from, to) = (start(first)?, start(Slot(last.0.saturating_add(1)))?);
            Ok(UnratedLine { project, model, class, tokens, from, to })
        };
        let unrated = self.unrated.into_iter().map(unrated).collect::<Result<_, Problem>>()?;
        let mut rows: Vec<_> = self.rows.into_iter().map(row).collect();
        rows.sort_by_key(|row| row.keys.from);
        Ok((rows, unrated))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ledger::time::Period;
    use ledger::tokens::TokenCounts;

    fn line(model: &str, slot: i64, input: u64, output: u64) -> RatingLine {
        RatingLine {
            tenant: "acme".parse().unwrap(),
            project: "search".parse().unwrap(),
            api_key: ledger::ids::ApiKeyId(uuid::Uuid::nil()),
            model: model.parse().unwrap(),
            version: "v1".parse().unwrap(),
            endpoint: "chat".into(),
            slot: Slot(slot),
            log_hour: None,
            tokens: TokenCounts { input, output, ..Default::default() },
            requests: 1,
        }
    }

    #[test]
    fn each_slot_has_the_price_of_its_time_and_what_has_none_is_named() {
        let currency = "USD".parse().unwrap();
        let mut book = PriceBook::default();
        for (from, price) in [(0, "1"), (10, "2")] {
            let key = PriceKey { model: "llama".parse().unwrap(), class: TokenClass::Input, currency };
            book.set(key, Slot(from), price.parse().unwrap()).unwrap();
        }
        let groups = Groups::parse(Some("model,class,day")).unwrap();
        let spans = groups.spans(Period { from: Slot(0), to: Slot(192) }, Tz::UTC).unwrap();
        let mut sums = Sums::new(&groups, spans, None, &book, currency);
        let lines = [line("llama", 9, 7, 0), line("llama", 10, 7, 3), line("llama", 100, 1, 2), line("other", 3, 5, 0)];
        let charged: Vec<String> = lines
            .iter()
            .map(|line| {
                sums.take(line).unwrap();
                exact(sums.charged)
            })
            .collect();
        assert_eq!(charged, ["0.000007", "0.000021", "0.000023", "0.000023"]);
        let (rows, unrated) = sums.finish().unwrap();
        let shown: Vec<_> = rows
            .iter()
            .map(|row| (row.keys.class.unwrap().as_str(), row.tokens, row.charged.as_str(), row.unrated_tokens))
            .collect();
        assert_eq!(
            shown,
            [
                ("input", 14, "0.000021", 0),
                ("output", 0, "0", 3),
                ("input", 0, "0", 5),
                ("input", 1, "0.000002", 0),
                ("output", 0, "0", 2)
            ]
        );
        let unrated: Vec<_> =
            unrated.iter().map(|line| (line.model.as_str(), line.tokens, line.from.timestamp())).collect();
        assert_eq!(unrated, [("llama", 5, 10 * 900), ("other", 5, 3 * 900)]);
    }
}
