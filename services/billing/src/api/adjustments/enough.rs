//! Whether what a correction takes away is there: used, and not taken away by an earlier one.

use ledger::control::{ControlState, UsageAdjustment};
use ledger::ids::{ApiKeyId, ModelVersion};
use ledger::time::Slot;
use ledger::tokens::{TokenClass, TokenCounts};
use sql::{RatingLine, Scope};

use crate::app::App;
use crate::problem::Problem;

/// The usage of a project and model in a slot, or a part of it.
#[derive(Debug, Clone, Copy)]
struct Part<'a> {
    version: Option<&'a ModelVersion>,
    endpoint: Option<&'a str>,
    api_key: Option<ApiKeyId>,
}

impl<'a> Part<'a> {
    /// What a correction names, and all that this is a part of.
    fn around(made: &'a UsageAdjustment) -> impl Iterator<Item = Self> {
        // A bit for each name that is left out.
        (0..8u8).map(|without| Self {
            version: made.version.as_ref().filter(|_| without & 1 == 0),
            endpoint: made.endpoint.as_deref().filter(|_| without & 2 == 0),
            api_key: made.api_key.filter(|_| without & 4 == 0),
        })
    }

    /// Whether it is about what has these names.
    fn holds(&self, version: Option<&ModelVersion>, endpoint: Option<&str>, api_key: Option<ApiKeyId>) -> bool {
        (self.version.is_none() || self.version == version)
            && (self.endpoint.is_none() || self.endpoint == endpoint)
            && (self.api_key.is_none() || self.api_key == api_key)
    }
}

/// What was used in the slot that a correction is about.
pub(super) async fn used(app: &App, made: &UsageAdjustment) -> Result<Vec<RatingLine>, Problem> {
    let slot = made.slot();
    let scope = Scope::new(Some(made.tenant.clone()), slot, Slot(slot.0.saturating_add(1)));
    let mut lines = app.ask("rating", app.clickhouse.rating(&scope, false)).await?;
    lines.retain(|line| line.project == made.project && line.model == made.model);
    Ok(lines)
}

/// What is taken away must be there, in what the correction names and in all that this is a part of. Gives beside how many other
/// corrections that was found, so that the log can tell whether it still holds; none where nothing is taken away.
pub(super) fn check(made: &UsageAdjustment, used: &[RatingLine], state: &ControlState) -> Result<Option<u64>, Problem> {
    if !made.deltas.take_away() {
        return Ok(None);
    }
    let before: Vec<_> = state.corrections_of(&made.corrected()).collect();
    for part in Part::around(made) {
        let lines =
            used.iter().filter(|line| part.holds(Some(&line.version), Some(&line.endpoint), Some(line.api_key)));
        let lines: Vec<_> = lines.collect();
        let others =
            before.iter().filter(|other| part.holds(other.version.as_ref(), other.endpoint.as_deref(), other.api_key));
        let others: Vec<_> = others.map(|other| &other.deltas).collect();
        for class in TokenClass::ALL {
            let used: i128 = lines.iter().map(|line| i128::from(TokenCounts::of(&line.tokens, class))).sum();
            let corrected: i128 = others.iter().map(|deltas| i128::from(deltas.of(class))).sum();
            enough(class.as_str(), used + corrected, made.deltas.of(class))?;
        }
        let used: i128 = lines.iter().map(|line| i128::from(line.requests)).sum();
        let corrected: i128 = others.iter().map(|deltas| i128::from(deltas.requests)).sum();
        enough("requests", used + corrected, made.deltas.requests)?;
    }
    Ok(Some(before.len() as u64))
}

fn enough(what: &str, there: i128, delta: i64) -> Result<(), Problem> {
    if delta >= 0 || there + i128::from(delta) >= 0 {
        return Ok(());
    }
    Err(Problem::more_than_used(format!(
        "in this quarter of an hour {} of {what} are there after earlier corrections, and {} would be taken away: a correction \
         takes no more than was used; look at `usage` by hour",
        there.max(0),
        delta.unsigned_abs()
    )))
}
