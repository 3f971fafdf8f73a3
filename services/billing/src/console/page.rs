//! What the page shows, put together from the same figures that the API gives.

use askama::Template;
use ledger::control::{Document, Kind};
use ledger::ids::TenantId;
use sql::Grain;

use super::chart::{self, Day};
use super::filters;
use crate::app::App;
use crate::auth::Caller;
use crate::figures::balance::{self, Balance};
use crate::figures::costs::{self, Costs};
use crate::figures::groups::Groups;
use crate::figures::preview::{self, Bill, PreviewQuery};
use crate::figures::range;
use crate::figures::reconciliation::{self, DifferenceShown, Reconciliation};
use crate::figures::requests::{self, Requests, RequestsQuery};
use crate::figures::usage::{self, FiguresQuery, SignedCounts, Usage};
use crate::problem::Problem;

/// How many requests the page shows.
const REQUESTS: u64 = 20;

/// Signing in.
#[derive(Template)]
#[template(path = "sign_in.html")]
pub(super) struct SignIn<'a> {
    pub(super) said: Option<&'a str>,
}

/// Nothing can be shown.
#[derive(Template)]
#[template(path = "failed.html")]
pub(super) struct Failed<'a> {
    pub(super) title: &'a str,
    pub(super) detail: &'a str,
}

/// A tenant that the admin can choose.
pub(super) struct Choice {
    pub(super) id: TenantId,
    pub(super) name: String,
    /// Its currency is one that can be paid in: a canary's is XTS, ISO's for tests.
    is_billed: bool,
}

/// The page of one tenant.
#[derive(Template)]
#[template(path = "console.html")]
pub(super) struct Dashboard {
    pub(super) admin: bool,
    pub(super) choices: Vec<Choice>,
    /// Absent while there is no tenant at all.
    pub(super) shown: Option<Shown>,
    /// For the admin: it is of all tenants.
    pub(super) reconciliation: Option<Result<Reconciliation, Problem>>,
}

/// A tenant's figures. What could not be read says why.
pub(super) struct Shown {
    pub(super) id: TenantId,
    pub(super) name: String,
    pub(super) balance: Balance,
    pub(super) per_day: Result<PerDay, Problem>,
    pub(super) costs: Result<Costs, Problem>,
    pub(super) bill: Result<Bill, Problem>,
    pub(super) requests: Result<Requests, Problem>,
}

/// Usage of the period.
pub(super) struct PerDay {
    /// By class over all days.
    pub(super) total: SignedCounts,
    pub(super) tokens: i64,
    /// Drawn; it holds no text of people.
    pub(super) svg: String,
}

impl Dashboard {
    pub(super) async fn of(app: &App, caller: &Caller, asked: Option<TenantId>) -> Result<Self, Problem> {
        let control = app.control()?;
        let choice = |(id, document): (&str, &Document)| match document {
            Document::Tenant(tenant) => {
                let is_billed = tenant.currency.code() != "XTS";
                Some(Choice { id: id.parse().ok()?, name: tenant.name.clone(), is_billed })
            }
            _ => None,
        };
        let admin = *caller == Caller::Admin;
        let choices: Vec<Choice> = if admin { control.state.iter().filter_map(choice).collect() } else { Vec::new() };
        let id = caller.scope(asked)?.or_else(|| busiest(app, caller, &choices));
        let shown = match id {
            Some(id) => Some(Shown::of(app, caller, id).await?),
            None => None,
        };
        let reconciliation = match admin {
            true => Some(reconciliation::reconciliation(app, caller).await),
            false => None,
        };
        Ok(Self { admin, choices, shown, reconciliation })
    }

    fn is_shown(&self, id: &TenantId) -> bool {
        self.shown.as_ref().is_some_and(|shown| shown.id == *id)
    }
}

/// The tenant whose balance is the largest in its current period, the first of several; a canary only where there is no other.
fn busiest(app: &App, caller: &Caller, choices: &[Choice]) -> Option<TenantId> {
    let used = |choice: &&Choice| {
        (choice.is_billed, balance::balance(app, caller, &choice.id).map_or(0, |balance| balance.tokens))
    };
    choices.iter().rev().max_by_key(used).map(|choice| choice.id.clone())
}

impl Shown {
    async fn of(app: &App, caller: &Caller, id: TenantId) -> Result<Self, Problem> {
        let control = app.control()?;
        let name = match control.state.get(Kind::Tenant, id.as_str()) {
            Some(Document::Tenant(tenant)) => tenant.name.clone(),
            _ => return Err(Problem::not_found("tenant", id.as_str())),
        };
        let tenant = Some(id.clone());
        let by_day = FiguresQuery { tenant: tenant.clone(), group_by: Some("day".into()), ..Default::default() };
        let whole = FiguresQuery { tenant: tenant.clone(), ..Default::default() };
        let month = PreviewQuery { tenant: tenant.clone(), period: None };
        let last = RequestsQuery { tenant, cursor: None, limit: Some(REQUESTS) };
        let (usage, costs, bill, requests) = tokio::join!(
            usage::usage(app, caller, &by_day),
            costs::costs(app, caller, &whole),
            preview::preview(app, caller, &month),
            requests::requests(app, caller, &last),
        );
        Ok(Self {
            balance: balance::balance(app, caller, &id)?,
            per_day: usage.and_then(|usage| per_day(app, &usage)),
            costs,
            bill,
            requests,
            id,
            name,
        })
    }

    /// How much of the limit is used, as a share of 1000 at most.
    fn used_of_limit(&self) -> Option<u64> {
        let limit = self.balance.limit?;
        if limit == 0 {
            return Some(1000);
        }
        u64::try_from((u128::from(self.balance.tokens) * 1000 / u128::from(limit)).min(1000)).ok()
    }
}

/// Where a difference lies, for people.
fn place(found: &DifferenceShown) -> String {
    let line =
        found.place.topic.as_ref().zip(found.place.partition).map(|(topic, partition)| format!("{topic}/{partition}"));
    let tenant = found.place.tenant.as_ref().map(ToString::to_string);
    let model = found.place.model.as_ref().map(ToString::to_string);
    [line, found.place.hour.clone(), tenant, model, found.place.replica.clone()]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", ")
}

fn per_day(app: &App, usage: &Usage) -> Result<PerDay, Problem> {
    let period = range::period(None, app.now(), usage.time_zone)?;
    let days = Groups { grain: Some(Grain::Day), ..Groups::default() }.spans(period, usage.time_zone)?;
    let mut total = SignedCounts::default();
    let mut tokens = 0i64;
    let mut drawn = Vec::new();
    for start in days.iter().flat_map(|days| &days.starts) {
        let start = crate::figures::start(*start)?;
        let mut classes = [0i64; 4];
        for row in usage.data.iter().filter(|row| row.keys.from == Some(start)) {
            let Some(counts) = row.counts else { continue };
            let of = [counts.input, counts.cached_input, counts.output, counts.reasoning];
            let sums = [&mut total.input, &mut total.cached_input, &mut total.output, &mut total.reasoning];
            for ((day, sum), count) in classes.iter_mut().zip(sums).zip(of) {
                *day = crate::figures::add_signed(*day, count)?;
                *sum = crate::figures::add_signed(*sum, count)?;
            }
            total.requests = crate::figures::add_signed(total.requests, counts.requests)?;
            tokens = crate::figures::add_signed(tokens, row.tokens)?;
        }
        let label = start.with_timezone(&usage.time_zone).format("%-d").to_string();
        // A day from which more was taken away than it has is drawn as nothing; its figures say it.
        drawn.push(Day { label, tokens: classes.map(|tokens| u64::try_from(tokens).unwrap_or_default()) });
    }
    let svg = chart::svg(&drawn).map_err(|error| Problem::internal(&error))?;
    Ok(PerDay { total, tokens, svg })
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
