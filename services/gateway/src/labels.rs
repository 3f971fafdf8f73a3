//! Values of labels: so many models and plans have a name of their own in metrics, all that come after them are one.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use ledger::ids::{ModelId, PlanId};

/// What comes after the most values of a label.
pub(crate) const OTHER: &str = "other";

/// See the module. Shared, so that every metric names the same ones.
#[derive(Debug)]
pub(crate) struct Labels {
    models: Mutex<HashSet<ModelId>>,
    plans: Mutex<HashSet<PlanId>>,
    most: usize,
}

impl Labels {
    /// None has a name yet; so many models, and so many plans, will.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { models: Mutex::default(), plans: Mutex::default(), most })
    }

    /// The label of a model.
    pub(crate) fn model<'a>(&self, model: &'a ModelId) -> &'a str {
        if self.names(&self.models, model) { model.as_str() } else { OTHER }
    }

    /// The label of a plan.
    pub(crate) fn plan<'a>(&self, plan: &'a PlanId) -> &'a str {
        if self.names(&self.plans, plan) { plan.as_str() } else { OTHER }
    }

    fn names<T: Clone + Eq + Hash>(&self, known: &Mutex<HashSet<T>>, value: &T) -> bool {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let room = known.len() < self.most;
        known.contains(value) || room && known.insert(value.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_come_first_have_a_name_and_keep_it() {
        let labels = Labels::new(2);
        let ids: [ModelId; 3] = ["a", "b", "c"].map(|id| id.parse().unwrap());
        let told = [0, 1, 2, 0, 1].map(|at: usize| labels.model(&ids[at]));
        assert_eq!(told, ["a", "b", OTHER, "a", "b"]);
        assert_eq!(labels.plan(&"c".parse().unwrap()), "c", "plans are counted for themselves");
    }
}
