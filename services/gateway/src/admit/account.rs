//! What one tenant may still use here: its limits per minute, its period's quota, and what open requests hold of both.

use ledger::quota::{QuotaAccount, QuotaError};
use ledger::rate_limit::{MinuteLimit, RateLimited};
use ledger::time::{Micros, Period, Slot};

use super::policy::Tenant;

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    Quota(QuotaError),
    Requests(RateLimited),
    Tokens(RateLimited),
}

/// Where a tenant stands, for the headers of its answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub requests: Option<MinuteStanding>,
    pub tokens: Option<MinuteStanding>,
}

/// Where it stands in one limit per minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MinuteStanding {
    pub limit: u64,
    pub remaining: u64,
    /// Until all of it is there again.
    pub reset_micros: u64,
}

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
#[derive(Debug, Default)]
pub(crate) struct Account {
    quota: QuotaAccount,
    requests: Option<MinuteLimit>,
    tokens: Option<MinuteLimit>,
    balances: Vec<Balance>,
    period: Option<(Period, chrono_tz::Tz)>,
}

impl Account {
    /// The tenant's period at this moment. None when its dates are outside of the calendar.
    pub(crate) fn period(&mut self, tenant: &Tenant, now: Micros) -> Option<Period> {
        if let Some((period, zone)) = self.period
            && zone == tenant.time_zone
            && period.contains(now)
        {
            return Some(period);
        }
        let period = Period::month_of(now, tenant.time_zone).ok()?;
        self.period = Some((period, tenant.time_zone));
        Some(period)
    }

    /// Takes the plan's limits; what was used of other ones before stays used.
    pub(crate) fn follow(&mut self, tenant: &Tenant, now: Micros) {
        let follow = |bucket: &mut Option<MinuteLimit>, limit: Option<u64>| match (bucket.as_mut(), limit) {
            (_, None) => *bucket = None,
            (Some(bucket), Some(limit)) if bucket.limit() == limit => {}
            (Some(bucket), Some(limit)) => bucket.set_limit(limit, now),
            (None, Some(limit)) => *bucket = Some(MinuteLimit::new(limit, now)),
        };
        follow(&mut self.requests, tenant.plan.requests_per_minute);
        follow(&mut self.tokens, tenant.plan.tokens_per_minute);
    }

    /// Keeps a balance, if it is newer than what is known of its period. True if it was.
    pub(crate) fn balance(&mut self, balance: Balance) -> bool {
        if let Some(known) = self.balances.iter_mut().find(|known| known.period == balance.period) {
            let newer = balance.as_of > known.as_of;
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

    /// The most that a request without a bound of its own may still take: what the limits per minute can ever give, and
    /// what is left of the period's. `own`: tokens spent here that no balance shows.
    pub(crate) fn left(&mut self, tenant: &Tenant, period: Option<Period>, own: u64) -> u64 {
        let minute = tenant.plan.tokens_per_minute.unwrap_or(u64::MAX);
        let quota = tenant.plan.tokens_per_period.map_or(u64::MAX, |limit| {
            let balance = period.map_or(0, |period| self.balance_of(period.from));
            limit.saturating_sub(balance).saturating_sub(own).saturating_sub(self.quota.reserved())
        });
        minute.min(quota)
    }

    /// Holds `bound` tokens and one request, or nothing at all.
    pub(crate) fn reserve(
        &mut self,
        tenant: &Tenant,
        period: Option<Period>,
        own: u64,
        bound: u64,
        now: Micros,
    ) -> Result<(), NoRoom> {
        // The spool keeps own spend, over restarts too; the account only what is held. So both are told anew each time.
        let balance = period.map_or(0, |period| self.balance_of(period.from));
        let spent = balance.checked_add(own).ok_or(NoRoom::Quota(QuotaError::Overflow))?;
        self.quota.balance_seen(spent, 0).map_err(NoRoom::Quota)?;
        self.quota.reserve(bound, tenant.plan.tokens_per_period).map_err(NoRoom::Quota)?;
        let taken = self.take_minutes(bound, now);
        if taken.is_err() {
            self.release(bound);
        }
        taken
    }

    fn take_minutes(&mut self, bound: u64, now: Micros) -> Result<(), NoRoom> {
        if let Some(requests) = &mut self.requests {
            requests.take(1, now).map_err(NoRoom::Requests)?;
        }
        if let Some(tokens) = &mut self.tokens
            && let Err(limited) = tokens.take(bound, now)
        {
            if let Some(requests) = &mut self.requests {
                requests.correct(1, 0, now);
            }
            return Err(NoRoom::Tokens(limited));
        }
        Ok(())
    }

    /// Gives back `held` tokens of the quota: they were spent and the spool counts them, or they are not needed.
    pub(crate) fn release(&mut self, held: u64) {
        if let Err(error) = self.quota.settle(held, 0) {
            tracing::error!(%error, held, "more was given back than was held");
        }
    }

    /// A request that took `bound` tokens of the minute really used `used`.
    pub(crate) fn used(&mut self, bound: u64, used: u64, now: Micros) {
        if let Some(tokens) = &mut self.tokens {
            tokens.correct(bound, used, now);
        }
    }

    /// Takes back a request that was never sent anywhere.
    pub(crate) fn undo(&mut self, bound: u64, now: Micros) {
        self.used(bound, 0, now);
        if let Some(requests) = &mut self.requests {
            requests.correct(1, 0, now);
        }
    }

    /// Where the tenant stands.
    pub(crate) fn standing(&mut self, now: Micros) -> Standing {
        let of = |bucket: &mut Option<MinuteLimit>| {
            bucket.as_mut().map(|bucket| MinuteStanding {
                limit: bucket.limit(),
                remaining: bucket.remaining(now),
                reset_micros: bucket.full_in(now),
            })
        };
        Standing { requests: of(&mut self.requests), tokens: of(&mut self.tokens) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ledger::control::Plan;
    use proptest::prelude::*;

    fn tenant(requests: Option<u64>, tokens: Option<u64>, period: Option<u64>) -> Tenant {
        Tenant {
            id: "acme".parse().unwrap(),
            plan_id: "free".parse().unwrap(),
            plan: Plan {
                name: "Free".into(),
                requests_per_minute: requests,
                tokens_per_minute: tokens,
                tokens_per_period: period,
                ..Plan::default()
            },
            currency: "USD".parse().unwrap(),
            time_zone: chrono_tz::UTC,
            projects: std::collections::BTreeMap::new(),
        }
    }

    const MARCH: Micros = Micros(1_772_323_200_000_000);

    #[test]
    fn what_is_refused_by_one_limit_takes_nothing_of_another() {
        let tenant = tenant(Some(2), Some(100), Some(1000));
        let mut account = Account::default();
        let period = account.period(&tenant, MARCH);
        account.follow(&tenant, MARCH);
        account.reserve(&tenant, period, 0, 80, MARCH).unwrap();
        assert!(matches!(account.reserve(&tenant, period, 0, 80, MARCH), Err(NoRoom::Tokens(_))));
        assert_eq!(account.standing(MARCH).requests.unwrap().remaining, 1);
        assert!(matches!(account.reserve(&tenant, period, 950, 10, MARCH), Err(NoRoom::Quota(_))));
        assert_eq!(account.standing(MARCH).tokens.unwrap().remaining, 20);
        account.reserve(&tenant, period, 0, 20, MARCH).unwrap();
        assert!(matches!(account.reserve(&tenant, period, 0, 0, MARCH), Err(NoRoom::Requests(_))));
        assert_eq!(account.quota.reserved(), 100);
        account.undo(20, MARCH);
        assert_eq!(account.standing(MARCH).requests.unwrap().remaining, 1);
    }

    #[test]
    fn the_newest_balance_of_the_tenants_own_period_counts() {
        let mut tenant = tenant(None, None, Some(100));
        tenant.time_zone = chrono_tz::Asia::Kathmandu;
        let mut account = Account::default();
        let period = account.period(&tenant, MARCH).unwrap();
        assert_ne!(Some(period), Period::month_of(MARCH, chrono_tz::UTC).ok());
        assert!(account.balance(Balance { period, as_of: 5, tokens: 90 }));
        assert!(!account.balance(Balance { period, as_of: 4, tokens: 10 }));
        let before = Period { from: Slot(period.from.0 - 2976), to: period.from };
        assert!(account.balance(Balance { period: before, as_of: 9, tokens: 1_000 }));
        assert!(account.reserve(&tenant, Some(period), 0, 11, MARCH).is_err());
        assert_eq!(account.left(&tenant, Some(period), 3), 7);
        account.reserve(&tenant, Some(period), 3, 7, MARCH).unwrap();
        assert!(account.balance(Balance { period, as_of: 6, tokens: 93 }), "the 3 are in it now");
        account.release(7);
        account.reserve(&tenant, Some(period), 0, 7, MARCH).unwrap();
    }

    proptest! {
        /// Whatever the order of requests, checkpoints, ends and balances: nothing passes the limit.
        #[test]
        fn the_limit_of_the_period_holds(limit in 1u64..2000, steps in prop::collection::vec((0usize..4, 1u64..300, 0u64..100), 0..80)) {
            let tenant = tenant(None, None, Some(limit));
            let mut account = Account::default();
            let period = account.period(&tenant, MARCH).unwrap();
            // (held, still to be used of it)
            let mut open: Vec<(u64, u64)> = Vec::new();
            let (mut own, mut balance, mut as_of) = (0u64, 0u64, 0i64);
            for (kind, bound, share) in steps {
                match kind {
                    0 => if account.reserve(&tenant, Some(period), own, bound, MARCH).is_ok() {
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
