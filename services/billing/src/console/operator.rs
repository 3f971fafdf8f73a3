//! The operator's pages: dead letters, one of them whole, and the trail of corrections.

use askama::Template;
use ledger::control::UsageAdjustment;
use ledger::ids::TenantId;
use serde::Deserialize;

use super::filters;
use crate::api::adjustments::{AdjustmentShown, shown};
use crate::api::resource::Known;
use crate::app::App;
use crate::auth::Caller;
use crate::dead_letters::{DeadLetterShown, DeadLetterWhole, ReplayShown};
use crate::figures::dead_letters::{self, DeadLetters, DeadLettersQuery, ReasonCount};
use crate::problem::Problem;

/// How many corrections a page shows.
const ADJUSTMENTS: usize = 100;
/// How much of a value a page shows, in hex digits.
const HEX_MAX: usize = 4_096;

/// What could not count.
#[derive(Template)]
#[template(path = "dead_letters.html")]
pub(super) struct DeadLettersPage {
    pub(super) asked: DeadLettersQuery,
    pub(super) found: DeadLetters,
}

impl DeadLettersPage {
    pub(super) async fn of(app: &App, caller: &Caller, asked: DeadLettersQuery) -> Result<Self, Problem> {
        let found = dead_letters::list(app, caller, &asked).await?;
        Ok(Self { asked, found })
    }

    /// Whether only these are listed.
    fn is_asked(&self, count: &ReasonCount) -> bool {
        self.asked.topic.as_deref() == Some(count.topic) && self.asked.reason.as_ref() == Some(&count.reason)
    }
}

/// Where the letters with a reason are, or the next page of them.
fn link(topic: Option<&str>, reason: Option<&str>, cursor: Option<&str>) -> String {
    let pairs = [("topic", topic), ("reason", reason), ("cursor", cursor)];
    address("/console/dead-letters", &pairs)
}

/// A path with those parameters that there are.
fn address(path: &str, pairs: &[(&str, Option<&str>)]) -> String {
    let said: Vec<_> = pairs.iter().filter_map(|(name, value)| value.map(|value| (name, value))).collect();
    // Pairs of texts can always be written.
    format!("{path}?{}", serde_urlencoded::to_string(said).unwrap_or_default())
}

/// What became of a replay, in a word.
fn replay(letter: &DeadLetterShown) -> &'static str {
    match letter.replay {
        ReplayShown::None => "not replayed",
        ReplayShown::Folded { .. } => "replayed, counts",
        ReplayShown::Dead { .. } => "replayed, dead again",
    }
}

/// One that could not count.
#[derive(Template)]
#[template(path = "dead_letter.html")]
pub(super) struct DeadLetterPage {
    pub(super) found: DeadLetterWhole,
}

impl DeadLetterPage {
    pub(super) async fn of(app: &App, caller: &Caller, place: &str) -> Result<Self, Problem> {
        Ok(Self { found: dead_letters::one(app, caller, place).await? })
    }

    fn record(&self) -> Option<String> {
        self.found.record.as_ref().and_then(|record| serde_json::to_string_pretty(record).ok())
    }

    fn value(&self) -> Option<&str> {
        let value = self.found.value.as_deref()?;
        Some(value.get(..HEX_MAX).unwrap_or(value))
    }

    fn is_cut(&self) -> bool {
        self.found.value.as_ref().is_some_and(|value| value.len() > HEX_MAX)
    }
}

/// Whose corrections, and which part of them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AdjustmentsAsked {
    pub(super) tenant: Option<TenantId>,
    /// The last one of the page before.
    cursor: Option<String>,
}

/// Who corrected what, and why.
#[derive(Template)]
#[template(path = "adjustments.html")]
pub(super) struct AdjustmentsPage {
    pub(super) asked: AdjustmentsAsked,
    pub(super) made: Vec<Known<AdjustmentShown>>,
    pub(super) next: Option<String>,
}

impl AdjustmentsPage {
    pub(super) fn of(app: &App, caller: &Caller, asked: AdjustmentsAsked) -> Result<Self, Problem> {
        caller.admin()?;
        let control = app.control()?;
        let is_asked = |made: &UsageAdjustment| asked.tenant.as_ref().is_none_or(|tenant| made.tenant == *tenant);
        let mut all: Vec<_> = control.state.adjustments().filter(|(_, made)| is_asked(made)).collect();
        // The latest first; of one moment, by id.
        all.sort_by(|(a, one), (b, other)| other.made_at.cmp(&one.made_at).then(a.cmp(b)));
        let before = asked.cursor.as_deref().and_then(|last| all.iter().position(|(id, _)| *id == last));
        let rest = all.into_iter().skip(before.map_or(0, |at| at + 1));
        let mut made = rest.take(ADJUSTMENTS + 1).map(|(id, made)| shown(id, made)).collect::<Result<Vec<_>, _>>()?;
        let more = made.len() > ADJUSTMENTS;
        made.truncate(ADJUSTMENTS);
        let next = made.last().filter(|_| more).map(|last| last.id.clone());
        Ok(Self { asked, made, next })
    }

    /// The page after this one.
    fn older(&self, cursor: &str) -> String {
        let tenant = self.asked.tenant.as_ref().map(TenantId::as_str);
        address("/console/adjustments", &[("tenant", tenant), ("cursor", Some(cursor))])
    }
}

/// The corrections of a tenant.
fn of_tenant(tenant: &TenantId) -> String {
    address("/console/adjustments", &[("tenant", Some(tenant.as_str()))])
}

/// What a correction changes.
fn changes(made: &AdjustmentShown) -> Vec<(&'static str, i64)> {
    let deltas = made.deltas;
    let all = [
        ("input", deltas.input),
        ("cached input", deltas.cached_input),
        ("output", deltas.output),
        ("reasoning", deltas.reasoning),
        ("requests", deltas.requests),
    ];
    all.into_iter().filter(|(_, by)| *by != 0).collect()
}

#[cfg(test)]
#[path = "operator_tests.rs"]
mod tests;
