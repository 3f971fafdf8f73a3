//! Whether the process can do its work now, as named conditions with reasons.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A set of named conditions; ready when all are. Cheap to clone, clones share the set.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<String, Option<String>>>>);

impl Readiness {
    /// No conditions yet: ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition that does not hold yet, for `reason`. Asking for a name again returns the same condition,
    /// unchanged.
    pub fn condition(&self, name: impl Into<String>, reason: impl Into<String>) -> Condition {
        let name = name.into();
        self.lock().entry(name.clone()).or_insert_with(|| Some(reason.into()));
        Condition { name, all: self.clone() }
    }

    /// Every condition with the reason why it does not hold (`None`: it holds), by name.
    pub fn conditions(&self) -> BTreeMap<String, Option<String>> {
        self.lock().clone()
    }

    /// True when every condition holds.
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(Option::is_none)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Option<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One condition, for the part of the process that knows whether it holds.
#[derive(Debug, Clone)]
pub struct Condition {
    name: String,
    all: Readiness,
}

impl Condition {
    /// It holds.
    pub fn ready(&self) {
        self.set(None);
    }

    /// It does not hold; `reason` says why and what would help.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    /// Takes the condition off the list, when what it speaks of is gone.
    pub fn remove(&self) {
        self.all.lock().remove(&self.name);
    }

    fn set(&self, reason: Option<String>) {
        let before = self.all.lock().insert(self.name.clone(), reason.clone()).flatten();
        // Said once per change of mind, not on every check.
        match (before, reason) {
            (Some(_), None) => tracing::info!(condition = %self.name, "ready"),
            (None, Some(reason)) => tracing::warn!(condition = %self.name, reason, "not ready"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_that_every_condition_holds() {
        let all = Readiness::new();
        assert!(all.is_ready());
        let (kafka, control) = (all.condition("kafka", "no answer yet"), all.condition("control", "not read yet"));
        kafka.ready();
        assert!(!all.is_ready());
        control.ready();
        assert!(all.is_ready());
        kafka.not_ready("gone");
        assert_eq!(all.conditions().get("kafka"), Some(&Some("gone".to_owned())));
        kafka.remove();
        assert!(all.is_ready());
    }
}
