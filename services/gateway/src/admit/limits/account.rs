//! What one tenant may still use here: its period's quota, its limits by level, and what open requests hold of all.

use ledger::control::{Plan, WhenPeriodUsed};
use ledger::ids::TenantId;
use ledger::quota::{QuotaAccount, QuotaError};
use ledger::time::{Micros, Period, Slot};

use super::allowance::Keeper;
use super::levels::Levels;
use super::usual::Usual;

/// A balance as the topic told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Balance {
    pub period: Period,
    /// The next offset that is not in it.
    pub as_of: i64,
    pub tokens: u64,
}

/// Balances of so many periods are kept: the current one, and those around it while clocks and zones disagree.
const PERIODS: usize = 4;

/// See the module. Pure: told the time, and what was spent here.
#[derive(Debug)]
pub(crate) struct Account {
    pub tenant: TenantId,
    quota: QuotaAccount,
    pub levels: Levels,
    pub usual: Usual,
    balances: Vec<Balance>,
    period: Option<(Period, chrono_tz::Tz)>,
}

/// A plan's tokens per period, if more than these are refused.
pub(crate) fn hard_quota(plan: &Plan) -> Option<u64> {
    plan.tokens_per_period.filter(|_| plan.when_period_used == WhenPeriodUsed::Refuse)
}

impl Account {
    /// Nothing is known yet.
    pub(crate) fn new(tenant: TenantId, keeper: Keeper) -> Self {
        let (quota, usual) = (QuotaAccount::default(), Usual::default());
        Self { tenant, quota, levels: Levels::new(keeper), usual, balances: Vec::new(), period: None }
    }

    /// The tenant's period at this moment. None when its dates are outside of the calendar.
    pub(crate) fn period(&mut self, zone: chrono_tz::Tz, now: Micros) -> Option<Period> {
        if let Some((period, of)) = self.period
            && zone == of
            && period.contains(now)
        {
            return Some(period);
        }
        let period = Period::month_of(now, zone).ok()?;
        self.period = Some((period, zone));
        Some(period)
    }

    /// Keeps a balance, unless what is known of its period is newer. Of two at one offset the later told holds: a correction
    /// changes a balance and no offset. True if it was kept.
    pub(crate) fn balance(&mut self, balance: Balance) -> bool {
        if let Some(known) = self.balances.iter_mut().find(|known| known.period == balance.period) {
            let newer = balance.as_of >= known.as_of;
            if newer {
                *known = balance;
            }
            return newer;
        }
        self.balances.push(balance);
        self.balances.sort_by_key(|known| std::cmp::Reverse(known.period.from));
        self.balances.truncate(PERIODS);
        true
    }

    fn balance_of(&self, from: Slot) -> u64 {
        self.balances.iter().find(|balance| balance.period.from == from).map_or(0, |balance| balance.tokens)
    }

    /// What is left of a hard quota. `own`: tokens spent here that no balance shows.
    pub(crate) fn left(&self, plan: &Plan, period: Option<Period>, own: u64) -> u64 {
        hard_quota(plan).map_or(u64::MAX, |limit| {
            let balance = period.map_or(0, |period| self.balance_of(period.from));
            limit.saturating_sub(balance).saturating_sub(own).saturating_sub(self.quota.reserved())
        })
    }

    /// Holds `tokens` of the period, if a hard quota has room for them. Says whether a soft one is used up.
    pub(crate) fn hold(
        &mut self,
        plan: &Plan,
        period: Option<Period>,
        own: u64,
        tokens: u64,
    ) -> Result<bool, QuotaError> {
        // The spool keeps own spend, over restarts too; the account only what is held. So both are told anew each time.
        let balance = period.map_or(0, |period| self.balance_of(period.from));
        let spent = balance.checked_add(own).ok_or(QuotaError::Overflow)?;
        self.quota.balance_seen(spent, 0)?;
        self.quota.reserve(tokens, hard_quota(plan))?;
        Ok(plan.tokens_per_period.is_some_and(|limit| spent >= limit))
    }

    /// Gives back `held` tokens of the quota: they were spent and the spool counts them, or they are not needed.
    pub(crate) fn release(&mut self, held: u64) {
        if let Err(error) = self.quota.settle(held, 0) {
            tracing::error!(%error, held, "more was given back than was held");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MARCH: Micros = Micros(1_772_323_200_000_000);

    fn account() -> Account {
        Account::new("acme".parse().unwrap(), Keeper::Alone(1))
    }

    fn plan(tokens_per_period: Option<u64>) -> Plan {
        Plan { name: "Free".into(), tokens_per_period, ..Plan::default() }
    }

    #[test]
    fn the_newest_balance_of_the_tenants_own_period_counts() {
        let plan = plan(Some(100));
        let mut account = account();
        let period = account.period(chrono_tz::Asia::Kathmandu, MARCH).unwrap();
        assert_ne!(Some(period), Period::month_of(MARCH, chrono_tz::UTC).ok());
        assert!(account.balance(Balance { period, as_of: 5, tokens: 90 }));
        assert!(!account.balance(Balance { period, as_of: 4, tokens: 10 }));
        assert!(account.balance(Balance { period, as_of: 5, tokens: 95 }), "corrected upwards");
        assert!(account.balance(Balance { period, as_of: 5, tokens: 90 }), "and back");
        let before = Period { from: Slot(period.from.0 - 2976), to: period.from };
        assert!(account.balance(Balance { period: before, as_of: 9, tokens: 1_000 }));
        assert!(account.hold(&plan, Some(period), 0, 11).is_err());
        assert_eq!(account.left(&plan, Some(period), 3), 7);
        assert_eq!(account.hold(&plan, Some(period), 3, 7), Ok(false));
        assert!(account.balance(Balance { period, as_of: 6, tokens: 93 }), "the 3 are in it now");
        account.release(7);
        account.hold(&plan, Some(period), 0, 7).unwrap();
    }

    #[test]
    fn a_soft_quota_refuses_nothing_and_says_when_it_is_used_up() {
        let plan = Plan { when_period_used: WhenPeriodUsed::Serve, ..plan(Some(100)) };
        let mut account = account();
        assert_eq!(account.hold(&plan, None, 99, 5_000), Ok(false));
        assert_eq!(account.left(&plan, None, 99), u64::MAX);
        assert_eq!(account.hold(&plan, None, 100, 5_000), Ok(true));
    }

    proptest! {
        /// Whatever the order of requests, checkpoints, ends and balances: nothing passes the limit.
        #[test]
        fn the_limit_of_the_period_holds(limit in 1u64..2000, steps in prop::collection::vec((0usize..4, 1u64..300, 0u64..100), 0..80)) {
            let plan = plan(Some(limit));
            let mut account = account();
            let period = Period::month_of(MARCH, chrono_tz::UTC).unwrap();
            // (held, still to be used of it)
            let mut open: Vec<(u64, u64)> = Vec::new();
            let (mut own, mut balance, mut as_of) = (0u64, 0u64, 0i64);
            for (kind, bound, share) in steps {
                match kind {
                    0 => if account.hold(&plan, Some(period), own, bound).is_ok() {
                        open.push((bound, bound * share / 100));
                    },
                    1 if !open.is_empty() => {
                        let (held, used) = open.remove(0);
                        own += used;
                        account.release(held);
                    }
                    2 => if let Some((held, used)) = open.first_mut() {
                        let part = *used * share / 100;
                        own += part;
                        (*held, *used) = (*held - part, *used - part);
                        account.release(part);
                    },
                    _ => {
                        balance += own;
                        own = 0;
                        as_of += 1;
                        account.balance(Balance { period, as_of, tokens: balance });
                    }
                }
                let held: u64 = open.iter().map(|(held, _)| held).sum();
                prop_assert_eq!(account.quota.reserved(), held);
                prop_assert!(balance + own + held <= limit);
            }
        }
    }
}
