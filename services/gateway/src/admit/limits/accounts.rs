//! The accounts of all tenants, each behind a lock of its own, and who keeps their limits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use ledger::ids::TenantId;
use ledger::time::Micros;
use stream::spool::Spool;

use super::account::Account;
use super::allowance::Keeper;
use super::together::{Give, Link};

/// See the module.
#[derive(Debug)]
pub(crate) struct Accounts {
    all: Mutex<HashMap<TenantId, Arc<Mutex<Account>>>>,
    pub(super) spool: Spool,
    /// Where limits are kept together with other gateways, if they are.
    pub(super) link: Option<Link>,
}

/// No lock here guards anything that a panic elsewhere could leave half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Accounts {
    /// None yet.
    pub(super) fn new(spool: Spool, link: Option<Link>) -> Self {
        Self { all: Mutex::default(), spool, link }
    }

    /// The account of a tenant; a new one if it has none.
    pub(super) fn of(&self, tenant: &TenantId) -> Arc<Mutex<Account>> {
        let mut all = lock(&self.all);
        if let Some(account) = all.get(tenant) {
            return Arc::clone(account);
        }
        let keeper = self.link.as_ref().map_or(Keeper::Alone(1), |link| link.keeper());
        let account = Account::new(tenant.clone(), keeper);
        Arc::clone(all.entry(tenant.clone()).or_insert_with(|| Arc::new(Mutex::new(account))))
    }

    /// An account, as the one that keeps limits now has it.
    pub(super) fn lock<'a>(&self, account: &'a Mutex<Account>) -> MutexGuard<'a, Account> {
        let mut account = lock(account);
        if let Some(link) = &self.link {
            // Asked under the lock: so an account never goes back to one that kept limits before.
            account.levels.enter(&link.keeper(), self.now());
        }
        account
    }

    /// Does `change` to an account, and tells the other gateways of it.
    pub(super) fn with<T>(&self, account: &Mutex<Account>, change: impl FnOnce(&mut Account, Micros) -> T) -> T {
        let mut account = self.lock(account);
        let result = change(&mut account, self.now());
        if let Some(link) = &self.link
            && let Some((member, told)) = account.levels.told()
        {
            link.tell(Give { member, tenant: account.tenant.clone(), told });
        }
        result
    }

    pub(super) fn now(&self) -> Micros {
        self.spool.now()
    }

    fn each(&self, mut see: impl FnMut(&Mutex<Account>)) {
        let all: Vec<_> = lock(&self.all).values().cloned().collect();
        all.iter().for_each(|account| see(account));
    }

    /// Every account follows the one that keeps limits now, and tells what it is to know.
    pub(super) fn follow_keeper(&self) {
        self.each(|account| self.with(account, |_, _| ()));
    }

    /// Requests that are open.
    pub(super) fn open(&self) -> u64 {
        let mut open = 0_u64;
        self.each(|account| open = open.saturating_add(lock(account).levels.open()));
        open
    }
}
