//! A correction of usage: who, why, what. Never changed and never deleted: another one reverses it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{ApiKeyId, ModelId, ModelVersion, ProjectId, RequestId, TenantId};
use crate::time::{Micros, Slot, TimeError};
use crate::tokens::{TOKENS_MAX, TokenClass};

/// The longest reason, in bytes.
pub const REASON_MAX: usize = 1_000;

/// Why an adjustment is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AdjustmentError {
    /// It changes nothing.
    #[error("it changes nothing: give at least one count other than 0")]
    Nothing,
    /// A count that no correction needs.
    #[error("a count of {0} is out of bounds: use -2^40 to 2^40")]
    OutOfBounds(i64),
    /// Nobody could tell why.
    #[error("say why, in 1 to {REASON_MAX} bytes")]
    Reason,
    /// Within a slot.
    #[error(transparent)]
    Time(#[from] TimeError),
}

/// Signed counts per class, and requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "each is the class that it names")]
pub struct Deltas {
    pub input: i64,
    pub cached_input: i64,
    pub output: i64,
    pub reasoning: i64,
    pub requests: i64,
}

impl Deltas {
    /// Of one class.
    pub const fn of(&self, class: TokenClass) -> i64 {
        match class {
            TokenClass::Input => self.input,
            TokenClass::CachedInput => self.cached_input,
            TokenClass::Output => self.output,
            TokenClass::Reasoning => self.reasoning,
        }
    }

    /// Of all classes; none if it overflows.
    pub fn tokens(&self) -> Option<i64> {
        TokenClass::ALL.into_iter().try_fold(0i64, |sum, class| sum.checked_add(self.of(class)))
    }

    /// Whether any of them is below zero.
    pub fn take_away(&self) -> bool {
        self.all().into_iter().any(|count| count < 0)
    }

    const fn all(&self) -> [i64; 5] {
        [self.input, self.cached_input, self.output, self.reasoning, self.requests]
    }
}

/// A correction of what was used of one model, in one slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageAdjustment {
    /// Whose usage.
    pub tenant: TenantId,
    /// The part of the tenant.
    pub project: ProjectId,
    /// Of which model.
    pub model: ModelId,
    /// Of which version of it; absent for none in particular.
    pub version: Option<ModelVersion>,
    /// At which endpoint; absent for none in particular.
    pub endpoint: Option<String>,
    /// Of which key; absent for none in particular.
    pub api_key: Option<ApiKeyId>,
    /// The first moment of the slot that it corrects: its prices hold, and it is in its period.
    pub slot: Micros,
    /// What is added, or taken away.
    pub deltas: Deltas,
    /// Why.
    pub reason: String,
    /// Who, as authenticated.
    pub by: String,
    /// When it was made, by the clock of who wrote it.
    pub made_at: Micros,
    /// The request that it is about.
    pub request: Option<RequestId>,
    /// The dead letter that it is about: `topic/partition/offset`.
    pub dead_letter: Option<String>,
    /// Beside how many others of the same [`Corrected`] it was found to take away no more than there is: it holds only if no
    /// other one has come since. Absent in one that takes nothing away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

/// What is corrected: of corrections of the same, one may take away what another one has taken already.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the key that it names")]
pub struct Corrected {
    pub tenant: TenantId,
    pub project: ProjectId,
    pub model: ModelId,
    pub slot: Slot,
}

impl UsageAdjustment {
    /// One of no version, endpoint or key in particular, that nobody has made yet.
    pub fn new(of: Corrected, deltas: Deltas, reason: &str) -> Self {
        let Corrected { tenant, project, model, slot } = of;
        Self {
            tenant,
            project,
            model,
            version: None,
            endpoint: None,
            api_key: None,
            slot: slot.start(),
            deltas,
            reason: reason.to_owned(),
            by: String::new(),
            made_at: slot.start(),
            request: None,
            dead_letter: None,
            after: None,
        }
    }

    /// The slot that it corrects.
    pub const fn slot(&self) -> Slot {
        Slot::of(self.slot)
    }

    /// What it corrects.
    pub fn corrected(&self) -> Corrected {
        let (tenant, project, model) = (self.tenant.clone(), self.project.clone(), self.model.clone());
        Corrected { tenant, project, model, slot: self.slot() }
    }

    /// Whether it says the same as another, whoever made them when, beside whatever others.
    pub fn says_the_same(&self, other: &Self) -> bool {
        *self == Self { by: self.by.clone(), made_at: self.made_at, after: self.after, ..other.clone() }
    }

    /// Whether it can be kept.
    ///
    /// # Errors
    /// Counts, reason or slot out of bounds.
    pub fn check(&self) -> Result<(), AdjustmentError> {
        Slot::starting_at(self.slot)?;
        let counts = self.deltas.all();
        if let Some(&count) = counts.iter().find(|count| count.unsigned_abs() > TOKENS_MAX) {
            return Err(AdjustmentError::OutOfBounds(count));
        }
        if counts == [0; 5] {
            return Err(AdjustmentError::Nothing);
        }
        let reason = self.reason.trim();
        if reason.is_empty() || reason.len() > REASON_MAX { Err(AdjustmentError::Reason) } else { Ok(()) }
    }
}
