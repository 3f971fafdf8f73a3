//! Costs as charged: usage per slot, by the prices that were in force in it. Usage without a price is named, never zero.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use ledger::ids::{ModelId, ProjectId, TenantId};
use ledger::money::{Currency, Money};
use ledger::price::PriceBook;
use ledger::time::Slot;
use ledger::tokens::{TokenClass, TokenCounts};
use serde::Serialize;
use sql::{RatingLine, Scope};
use utoipa::ToSchema;

use super::groups::{Groups, Spans};
use super::usage::{FiguresQuery, ROWS_MAX, RowKeys};
use super::{add, exact, range, start};
use crate::app::{App, tenant};
use crate::auth::Caller;
use crate::problem::Problem;

/// What one choice of keys costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct CostRow {
    #[serde(flatten)]
    pub(crate) keys: RowKeys,
    /// Tokens with a price.
    pub(crate) tokens: u64,
    /// What they are charged, exactly: a decimal as text.
    pub(crate) charged: String,
    /// Tokens without a price: charged nothing, and not free either.
    pub(crate) unrated_tokens: u64,
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
    pub(crate) tokens: u64,
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
    /// Sorted by span, then by the keys.
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
    let scope = Scope::new(Some(id.clone()), period.from, period.to);
    let lines = app.ask("rating", app.clickhouse.rating(&scope, false)).await?;
    let mut sums =
        Sums { groups: &groups, spans, book: &book, currency, rows: BTreeMap::new(), unrated: BTreeMap::new() };
    let mut charged = Money::zero(currency);
    for line in &lines {
        let more = sums.take(line)?;
        charged = charged.checked_add(more).map_err(|error| Problem::internal(&error))?;
    }
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
    tokens: u64,
    charged: Money,
    unrated: u64,
}

struct Sums<'a> {
    groups: &'a Groups,
    spans: Option<Spans>,
    book: &'a PriceBook,
    currency: Currency,
    rows: BTreeMap<RowKeys, Sum>,
    /// Tokens, first and last slot.
    unrated: BTreeMap<(ProjectId, ModelId, TokenClass), (u64, Slot, Slot)>,
}

impl Sums<'_> {
    /// Rates a line and adds it where it belongs; gives its charge.
    fn take(&mut self, line: &RatingLine) -> Result<Money, Problem> {
        let keys = self.keys(line)?;
        let mut sum = Money::zero(self.currency);
        for class in TokenClass::ALL.into_iter().filter(|class| line.tokens.of(*class) > 0) {
            let tokens = line.tokens.of(class);
            let counts = TokenCounts::only(class, tokens);
            let rated = self.book.rate(&line.model, self.currency, line.slot, counts);
            let rated = rated.map_err(|error| Problem::internal(&error))?;
            let unrated = rated.unrated.of(class);
            if unrated > 0 {
                self.without_price(line, class, unrated)?;
            }
            let keys = RowKeys { class: self.groups.class.then_some(class), ..keys.clone() };
            let new = Sum { tokens: 0, charged: Money::zero(self.currency), unrated: 0 };
            let row = self.rows.entry(keys).or_insert(new);
            row.tokens = add(row.tokens, tokens - unrated)?;
            row.unrated = add(row.unrated, unrated)?;
            row.charged = row.charged.checked_add(rated.charge).map_err(|error| Problem::internal(&error))?;
            sum = sum.checked_add(rated.charge).map_err(|error| Problem::internal(&error))?;
        }
        Ok(sum)
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
            class: None,
        })
    }

    fn without_price(&mut self, line: &RatingLine, class: TokenClass, tokens: u64) -> Result<(), Problem> {
        let key = (line.project.clone(), line.model.clone(), class);
        let (sum, first, last) = self.unrated.entry(key).or_insert((0, line.slot, line.slot));
        *sum = add(*sum, tokens)?;
        (*first, *last) = ((*first).min(line.slot), (*last).max(line.slot));
        Ok(())
    }

    fn finish(self) -> Result<(Vec<CostRow>, Vec<UnratedLine>), Problem> {
        if self.rows.len() > ROWS_MAX {
            return Err(Problem::too_many_rows(ROWS_MAX));
        }
        let row = |(keys, sum): (RowKeys, Sum)| CostRow {
            keys,
            tokens: sum.tokens,
            charged: exact(sum.charged),
            unrated_tokens: sum.unrated,
        };
        let unrated = |((project, model, class), (tokens, first, last)): (
            (ProjectId, ModelId, TokenClass),
            (u64, Slot, Slot),
        )| {
            let (from, to) = (start(first)?, start(Slot(last.0.saturating_add(1)))?);
            Ok(UnratedLine { project, model, class, tokens, from, to })
        };
        let unrated = self.unrated.into_iter().map(unrated).collect::<Result<_, Problem>>()?;
        Ok((self.rows.into_iter().map(row).collect(), unrated))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ledger::price::PriceKey;
    use ledger::time::Period;

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
        let mut sums =
            Sums { groups: &groups, spans, book: &book, currency, rows: BTreeMap::new(), unrated: BTreeMap::new() };
        let lines = [line("llama", 9, 7, 0), line("llama", 10, 7, 3), line("llama", 100, 1, 2), line("other", 3, 5, 0)];
        let charged: Vec<String> = lines.iter().map(|line| exact(sums.take(line).unwrap())).collect();
        assert_eq!(charged, ["0.000007", "0.000014", "0.000002", "0"]);
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
