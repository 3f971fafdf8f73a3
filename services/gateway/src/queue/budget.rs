//! A bound on what all tenants hold of something, and on what each of them holds.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

use hashbrown::HashMap;
use ledger::ids::TenantId;

/// See the module. Taking is a few atomic steps, and no lock but to find the tenant.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    limit_each: u64,
    all: AtomicU64,
    each: RwLock<HashMap<TenantId, Arc<AtomicU64>>>,
}

/// Whose bound a request would pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// Its tenant's own.
    Own,
    /// That of all.
    All,
}

/// What a request holds; given back when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Arc<Budget>,
    own: Arc<AtomicU64>,
    amount: u64,
}

impl Budget {
    /// Nobody holds anything.
    pub(crate) fn new(limit: u64, limit_each: u64) -> Arc<Self> {
        Arc::new(Self { limit, limit_each, all: AtomicU64::new(0), each: RwLock::default() })
    }

    /// What all hold.
    pub(crate) fn held(&self) -> u64 {
        self.all.load(Relaxed)
    }

    /// Takes so much for a tenant, or nothing at all.
    ///
    /// # Errors
    /// Whose bound it would pass.
    pub(crate) fn take(self: &Arc<Self>, tenant: &TenantId, amount: u64) -> Result<Held, Over> {
        let mut held = Held { budget: Arc::clone(self), own: self.own(tenant), amount: 0 };
        held.more(amount)?;
        Ok(held)
    }

    fn own(&self, tenant: &TenantId) -> Arc<AtomicU64> {
        let known = self.each.read().unwrap_or_else(PoisonError::into_inner).get(tenant).cloned();
        known.unwrap_or_else(|| {
            let mut each = self.each.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(each.entry(tenant.clone()).or_default())
        })
    }
}

impl Held {
    /// Takes so much more, or nothing.
    ///
    /// # Errors
    /// Whose bound it would pass.
    pub(crate) fn more(&mut self, amount: u64) -> Result<(), Over> {
        add(&self.own, amount, self.budget.limit_each).ok_or(Over::Own)?;
        if add(&self.budget.all, amount, self.budget.limit).is_none() {
            self.own.fetch_sub(amount, Relaxed);
            return Err(Over::All);
        }
        self.amount += amount;
        Ok(())
    }

    /// What it holds.
    pub(crate) fn amount(&self) -> u64 {
        self.amount
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.own.fetch_sub(self.amount, Relaxed);
        self.budget.all.fetch_sub(self.amount, Relaxed);
    }
}

/// Adds, if the sum is not above `limit`.
fn add(to: &AtomicU64, amount: u64, limit: u64) -> Option<u64> {
    to.fetch_update(Relaxed, Relaxed, |held| held.checked_add(amount).filter(|sum| *sum <= limit)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_bound_and_all_have_theirs() {
        let budget = Budget::new(10, 6);
        let [a, b]: [TenantId; 2] = ["a", "b"].map(|id| id.parse().unwrap());
        let mut first = budget.take(&a, 4).unwrap();
        first.more(2).unwrap();
        assert_eq!(first.more(1), Err(Over::Own));
        assert_eq!(budget.take(&a, 1).err(), Some(Over::Own));
        let second = budget.take(&b, 4).unwrap();
        assert_eq!(budget.take(&b, 1).err(), Some(Over::All));
        assert_eq!(budget.take(&b, u64::MAX).err(), Some(Over::Own));
        assert_eq!((first.amount(), budget.held()), (6, 10));
        drop(first);
        let again = budget.take(&a, 6).unwrap();
        drop((second, again));
        assert_eq!(budget.held(), 0);
    }
}
