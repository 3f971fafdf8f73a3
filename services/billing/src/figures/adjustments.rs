//! Corrections as lines of figures: each is told apart from what was metered, with its id and its reason.

use ledger::control::{ControlState, UsageAdjustment};
use ledger::ids::TenantId;
use ledger::time::Period;
use ledger::tokens::TokenClass;
use serde::Serialize;
use utoipa::ToSchema;

use super::groups::{Groups, Spans};
use super::late::Late;
use super::start;
use super::usage::{RowKeys, SignedCounts};
use crate::problem::Problem;

/// What a line that was not metered comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
pub(crate) struct AdjustmentRef {
    /// Its id.
    pub(crate) id: String,
    /// Why it was made.
    pub(crate) reason: String,
}

impl AdjustmentRef {
    pub(crate) fn of(id: &str, made: &UsageAdjustment) -> Self {
        Self { id: id.to_owned(), reason: made.reason.clone() }
    }
}

/// The corrections of a tenant, or of all, in a time.
pub(crate) fn within<'a>(
    state: &'a ControlState,
    tenant: Option<&'a TenantId>,
    time: Period,
) -> impl Iterator<Item = (&'a str, &'a UsageAdjustment)> {
    state
        .adjustments()
        .filter(move |(_, made)| tenant.is_none_or(|tenant| made.tenant == *tenant) && time.contains(made.slot))
}

/// The keys of a correction's row: those that were asked for, as far as it names them.
pub(crate) fn keys(
    made: &UsageAdjustment,
    groups: &Groups,
    spans: Option<&Spans>,
    late: Option<&Late>,
) -> Result<RowKeys, Problem> {
    let by = groups.keys;
    let span = spans.and_then(|spans| Some((spans.holding(made.slot())?, spans)));
    Ok(RowKeys {
        from: span.map(|(first, _)| start(first)).transpose()?,
        to: span.map(|(first, spans)| start(spans.end(first))).transpose()?,
        tenant: by.tenant.then(|| made.tenant.clone()),
        project: by.project.then(|| made.project.clone()),
        key: made.api_key.filter(|_| by.api_key),
        model: by.model.then(|| made.model.clone()),
        version: made.version.clone().filter(|_| by.version),
        endpoint: made.endpoint.clone().filter(|_| by.endpoint),
        late: late.map(|late| late.is_made(made)),
        class: None,
    })
}

/// A row's figures: the class if rows are by class, its tokens, and the counts by class if they are not.
pub(crate) type Changed = (Option<TokenClass>, i64, Option<SignedCounts>);

/// What it changes, by class where that was asked for.
pub(crate) fn counts(made: &UsageAdjustment, by_class: bool) -> Result<Vec<Changed>, Problem> {
    let deltas = made.deltas;
    if !by_class {
        let tokens = deltas.tokens().ok_or_else(|| Problem::internal(&"a sum of tokens overflowed"))?;
        return Ok(vec![(None, tokens, Some(SignedCounts::changed(&deltas)))]);
    }
    let changed = TokenClass::ALL.into_iter().filter(|class| deltas.of(*class) != 0);
    Ok(changed.map(|class| (Some(class), deltas.of(class), None)).collect())
}
