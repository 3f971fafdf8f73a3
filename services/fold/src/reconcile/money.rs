//! What people pay by: published balances beside sums and rows, and bills as billing reckons them.

use std::collections::BTreeMap;
use std::sync::Arc;

use ledger::control::{ControlState, Document, Kind};
use ledger::invoice::{self, SlotUsage};
use ledger::time::{Period, Slot};
use schemas::event::BalanceUpdated;
use sql::{HourBegin, LogHours, RatingLine, Scope, Table};

use super::compare::{self, Corrections};
use super::lines::Line;
use super::report::{Check, Place, Report};
use super::{ReconcileError, Reconciler, at_once};

/// How many bills are reckoned in one run, from the balances that were published last on.
const BILLS: usize = 200;

/// Balances that one question answers: of one partition, one period, and one hour up to which the log is summed by a projection.
type Alike = (i32, Period, Option<HourBegin>);

impl Reconciler {
    pub(super) async fn balances(
        &self,
        report: &mut Report,
        lines: &[Line],
        balances: &[Arc<BalanceUpdated>],
    ) -> Result<(), ReconcileError> {
        let line = |partition| lines.iter().find(|line| line.table == Table::Tokens && line.partition == partition);
        let comparable = balances.iter().filter_map(|balance| Some((balance, line(balance.partition)?)));
        let mut of_lines = BTreeMap::<i32, (&Line, Vec<&BalanceUpdated>)>::new();
        for (balance, line) in comparable {
            if compare::is_comparable(report, balance, line.position, line.log.next) {
                of_lines.entry(line.partition).or_insert((line, Vec::new())).1.push(balance);
            }
        }
        let hours = of_lines.values().map(|(line, _)| self.hour_begins(line)).collect();
        let mut asked = BTreeMap::<Alike, Vec<&BalanceUpdated>>::new();
        for (begins, (_, balances)) in at_once(hours).await?.into_iter().zip(of_lines.values()) {
            for balance in balances {
                let begin = begins.iter().rev().find(|begin| begin.end <= balance.as_of).copied();
                asked.entry((balance.partition, period(balance), begin)).or_default().push(balance);
            }
        }
        let parts = asked.iter().map(|(alike, balances)| self.balances_of(report.part(), *alike, balances)).collect();
        at_once(parts).await?.into_iter().for_each(|part| report.add(part));
        Ok(())
    }

    /// Where the last hours of a line begin; none where its chunks cannot tell.
    async fn hour_begins(&self, line: &Line) -> Result<Vec<HourBegin>, ReconcileError> {
        if line.damaged.is_some() {
            return Ok(Vec::new());
        }
        let since = if line.span.wide_from == i64::MAX { 0 } else { line.span.wide_from };
        Ok(self.clickhouse.hour_begins(line.partition, since).await?)
    }

    async fn balances_of(
        &self,
        mut report: Report,
        (partition, period, begin): Alike,
        balances: &[&BalanceUpdated],
    ) -> Result<Report, ReconcileError> {
        let as_of: Vec<_> = balances.iter().map(|one| (one.tenant_id.clone(), one.as_of)).collect();
        let sums = self.clickhouse.balance_sums(partition, period, begin, &as_of).await?;
        let mut by_tenant = BTreeMap::<_, Vec<_>>::new();
        for sum in &sums {
            by_tenant.entry(&sum.tenant).or_default().push(sum);
        }
        let control = self.control.load();
        for balance in balances {
            let rows = by_tenant.get(&balance.tenant_id).map_or(&[][..], Vec::as_slice);
            let made = control.state.adjustments().map(|(_, made)| made);
            let made = made.filter(|made| made.tenant == balance.tenant_id && period.contains(made.slot)).collect();
            compare::balance(&mut report, balance, rows, &Corrections { made, as_of: control.offset });
        }
        Ok(report)
    }

    /// The bills of tenants whose balances were published last: as billing reckons them, and with the rows of the hours that are
    /// looked at.
    pub(super) async fn bills(
        &self,
        report: &mut Report,
        lines: &[Line],
        balances: &[Arc<BalanceUpdated>],
        hours: LogHours,
    ) -> Result<(), ReconcileError> {
        let since = |partition| {
            let line = lines.iter().find(|line| line.table == Table::Tokens && line.partition == partition);
            line.map_or(0, |line| line.span.rows_from)
        };
        let balances = balances.iter().take(BILLS);
        let parts =
            balances.map(|balance| self.bill(report.part(), balance, hours, since(balance.partition))).collect();
        at_once(parts).await?.into_iter().for_each(|part| report.add(part));
        Ok(())
    }

    /// No row of the hours that are looked at lies before the offset `since`.
    async fn bill(
        &self,
        mut report: Report,
        balance: &BalanceUpdated,
        hours: LogHours,
        since: i64,
    ) -> Result<Report, ReconcileError> {
        let place = Place::line(Table::Tokens.topic(), balance.partition).of(&balance.tenant_id);
        let scope = Scope::new(Some(balance.tenant_id.clone()), period(balance).from, period(balance).to);
        let before = self.clickhouse.position(Table::Tokens, balance.partition).await?.position;
        let shown = self.clickhouse.rating(&scope, false).await?;
        let looked_at = Scope { log_hours: LogHours::since(hours.from), ..scope.clone() };
        let mut rows = self.clickhouse.rating_of_rows(&looked_at, since).await?;
        if hours.from > LogHours::default().from {
            let earlier = Scope { log_hours: LogHours::before(hours.from), ..scope };
            rows.extend(self.clickhouse.rating(&earlier, false).await?);
        }
        if self.clickhouse.position(Table::Tokens, balance.partition).await?.position != before {
            report.pending(Check::Invoices, place, "rows were written meanwhile".to_owned());
            return Ok(report);
        }
        let state = &self.control.load().state;
        match (bill(state, balance, rows), bill(state, balance, shown)) {
            (Some(rows), Some(shown)) => compare::bill(&mut report, &place, &rows, &shown),
            _ => report.pending(Check::Invoices, place, "there is no such tenant in control".to_owned()),
        }
        Ok(report)
    }
}

fn period(balance: &BalanceUpdated) -> Period {
    Period { from: Slot::of(balance.period_from), to: Slot::of(balance.period_to) }
}

/// The bill that these lines make; none for a tenant that control does not know, or with prices that cannot be used.
fn bill(state: &ControlState, balance: &BalanceUpdated, lines: Vec<RatingLine>) -> Option<invoice::Preview> {
    let Some(Document::Tenant(tenant)) = state.get(Kind::Tenant, balance.tenant_id.as_str()) else { return None };
    let used = |line: RatingLine| {
        let RatingLine { project, model, slot, tokens, .. } = line;
        SlotUsage { project, model, slot, counts: tokens, late: false }
    };
    let book = state.price_book().ok()?;
    // Corrections are the same documents on both sides, and what came late is part of both.
    invoice::preview(lines.into_iter().map(used), [], tenant.currency, &book, &period(balance)).ok()
}
