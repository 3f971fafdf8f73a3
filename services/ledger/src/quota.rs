//! Quota arithmetic: what a gateway knows of a tenant's period, what a request may reserve, and how it settles.

use thiserror::Error;

/// Why a request may not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum QuotaError {
    /// The hard limit would not hold the request's upper bound.
    #[error(
        "the limit of {limit} tokens has no room for {asked} more: {spent} are spent and {reserved} reserved by open requests"
    )]
    Exceeded {
        /// The limit.
        limit: u64,
        /// Balance and own spend together.
        spent: u64,
        /// Held by requests that are open.
        reserved: u64,
        /// The request's upper bound.
        asked: u64,
    },
    /// A sum above what 64 bits hold.
    #[error("a sum of tokens overflowed")]
    Overflow,
}

/// What one gateway knows of one tenant in one period, in tokens. Its view of what is spent is the balance from the
/// topic, and its own spend that is not in that balance yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuotaAccount {
    balance: u64,
    own: u64,
    reserved: u64,
}

impl QuotaAccount {
    /// Balance and own spend together.
    pub fn spent(&self) -> Result<u64, QuotaError> {
        self.balance.checked_add(self.own).ok_or(QuotaError::Overflow)
    }

    /// Held by requests that are open.
    pub const fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Holds `bound` tokens for a request (its upper bound: input and the `max_tokens` that is sent upstream), if a hard
    /// limit has room for it beside all that is spent and held. Without a limit it is held all the same.
    pub fn reserve(&mut self, bound: u64, limit: Option<u64>) -> Result<(), QuotaError> {
        let spent = self.spent()?;
        let held = self.reserved.checked_add(bound).ok_or(QuotaError::Overflow)?;
        let needed = spent.checked_add(held).ok_or(QuotaError::Overflow)?;
        match limit {
            Some(limit) if needed > limit => {
                Err(QuotaError::Exceeded { limit, spent, reserved: self.reserved, asked: bound })
            }
            _ => {
                self.reserved = held;
                Ok(())
            }
        }
    }

    /// Ends a request: what it held is released and what it really used is spent, in one step. Using more than was held
    /// is an overshoot, and is spent in full.
    pub fn settle(&mut self, bound: u64, used: u64) -> Result<(), QuotaError> {
        let own = self.own.checked_add(used).ok_or(QuotaError::Overflow)?;
        let reserved = self.reserved.checked_sub(bound).ok_or(QuotaError::Overflow)?;
        (self.own, self.reserved) = (own, reserved);
        Ok(())
    }

    /// Takes a newer balance, of which `included` tokens are this gateway's own spend.
    pub fn balance_seen(&mut self, balance: u64, included: u64) -> Result<(), QuotaError> {
        self.own = self.own.checked_sub(included).ok_or(QuotaError::Overflow)?;
        self.balance = balance;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_refusal_says_what_is_missing_and_holds_nothing() {
        let mut account = QuotaAccount::default();
        account.reserve(60, Some(100)).unwrap();
        let refused = account.reserve(41, Some(100));
        assert_eq!(refused, Err(QuotaError::Exceeded { limit: 100, spent: 0, reserved: 60, asked: 41 }));
        account.reserve(40, Some(100)).unwrap();
        account.settle(60, 10).unwrap();
        assert_eq!((account.spent().unwrap(), account.reserved()), (10, 40));
        assert!(account.reserve(50, Some(100)).is_ok(), "what was not used can be used by others");
        assert!(account.reserve(1, None).is_ok(), "without a limit nothing is refused");
    }

    #[test]
    fn nothing_wraps() {
        let mut account = QuotaAccount::default();
        account.reserve(u64::MAX, None).unwrap();
        let before = account;
        assert_eq!(account.reserve(1, None), Err(QuotaError::Overflow));
        assert_eq!(account.settle(0, 1).and_then(|()| account.balance_seen(0, 2)), Err(QuotaError::Overflow));
        assert_eq!(account.reserved(), before.reserved());
    }

    proptest! {
        /// With one gateway, whatever the order of requests, ends and balances: what is spent passes the limit by no more
        /// than what requests used above their own bound, and in the end nothing is held.
        #[test]
        fn a_hard_limit_holds(limit in 0u64..2000, steps in prop::collection::vec((0u64..300, 0u64..400, 0usize..3), 0..80)) {
            let mut account = QuotaAccount::default();
            let (mut open, mut total, mut above, mut published) = (Vec::new(), 0u64, 0u64, 0u64);
            for (bound, used, kind) in steps {
                match kind {
                    0 if account.reserve(bound, Some(limit)).is_ok() => open.push((bound, used)),
                    1 if !open.is_empty() => {
                        let (bound, used) = open.remove(0);
                        account.settle(bound, used).unwrap();
                        total += used;
                        above += used.saturating_sub(bound);
                    }
                    2 => {
                        account.balance_seen(total, total - published).unwrap();
                        published = total;
                    }
                    _ => {}
                }
                prop_assert_eq!(account.spent().unwrap(), total);
                prop_assert!(total <= limit + above);
            }
            for (bound, used) in open {
                account.settle(bound, used).unwrap();
                total += used;
                above += used.saturating_sub(bound);
            }
            prop_assert!(total <= limit + above);
            prop_assert_eq!(account.reserved(), 0);
        }
    }
}
