//! A limit per minute: a bucket that fills steadily, holds one minute's worth, and may be in debt after a request used more
//! than it reserved.

use thiserror::Error;

use crate::time::Micros;

/// Micros of a minute: the bucket counts in units of 1 / `MINUTE`, so that refilling is exact.
const MINUTE: i128 = 60_000_000;

/// Why a request may not run now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RateLimited {
    /// The bucket has no room yet.
    #[error("the limit of {limit} per minute has room for {asked} in {} ms", wait_micros / 1000)]
    Wait {
        /// Per minute.
        limit: u64,
        /// What was asked for.
        asked: u64,
        /// Until it fits, if nobody else takes it; rounded up.
        wait_micros: u64,
    },
    /// More than the bucket ever holds.
    #[error("{asked} at once never fit a limit of {limit} per minute")]
    TooLarge {
        /// Per minute.
        limit: u64,
        /// What was asked for.
        asked: u64,
    },
}

/// One limit of one tenant. Full at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinuteLimit {
    limit: u64,
    level: i128,
    at: Micros,
}

impl MinuteLimit {
    /// A full bucket of `limit` per minute.
    pub fn new(limit: u64, now: Micros) -> Self {
        Self { limit, level: i128::from(limit) * MINUTE, at: now }
    }

    /// Takes `amount`, or says how long to wait.
    pub fn take(&mut self, amount: u64, now: Micros) -> Result<(), RateLimited> {
        if amount > self.limit {
            return Err(RateLimited::TooLarge { limit: self.limit, asked: amount });
        }
        self.refill(now);
        let missing = i128::from(amount) * MINUTE - self.level;
        if missing > 0 {
            let wait = div_up(missing, i128::from(self.limit));
            let wait_micros = u64::try_from(wait).unwrap_or(u64::MAX);
            return Err(RateLimited::Wait { limit: self.limit, asked: amount, wait_micros });
        }
        self.level -= i128::from(amount) * MINUTE;
        Ok(())
    }

    /// Replaces what was taken for a request by what it really used. Using more than was taken leaves a debt.
    pub fn correct(&mut self, taken: u64, used: u64, now: Micros) {
        self.refill(now);
        self.level += (i128::from(taken) - i128::from(used)) * MINUTE;
        self.level = self.level.min(self.full());
    }

    /// Goes on with another limit; what was used of the old one stays used.
    pub fn set_limit(&mut self, limit: u64, now: Micros) {
        self.refill(now);
        self.level += (i128::from(limit) - i128::from(self.limit)) * MINUTE;
        self.limit = limit;
    }

    /// Per minute.
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// What could be taken now.
    pub fn remaining(&mut self, now: Micros) -> u64 {
        self.refill(now);
        u64::try_from(self.level / MINUTE).unwrap_or(0)
    }

    /// Micros until it is full again.
    pub fn full_in(&mut self, now: Micros) -> u64 {
        self.refill(now);
        match i128::from(self.limit) {
            0 => 0,
            limit => u64::try_from(div_up(self.full() - self.level, limit)).unwrap_or(u64::MAX),
        }
    }

    fn full(&self) -> i128 {
        i128::from(self.limit) * MINUTE
    }

    /// A clock that goes back gives nothing and takes nothing.
    fn refill(&mut self, now: Micros) {
        let passed = i128::from(now.0) - i128::from(self.at.0);
        if passed > 0 {
            self.level = (self.level + passed * i128::from(self.limit)).min(self.full());
            self.at = now;
        }
    }
}

const fn div_up(a: i128, b: i128) -> i128 {
    if b <= 0 { i128::MAX } else { (a + b - 1) / b }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: i64 = 1_000_000;

    #[test]
    fn a_refusal_says_when_it_fits() {
        let mut limit = MinuteLimit::new(60, Micros(0));
        limit.take(60, Micros(0)).unwrap();
        let refused = limit.take(3, Micros(SECOND / 2));
        assert_eq!(refused, Err(RateLimited::Wait { limit: 60, asked: 3, wait_micros: 2_500_000 }));
        limit.take(3, Micros(3 * SECOND)).unwrap();
        assert_eq!(limit.remaining(Micros(3 * SECOND)), 0);
        assert_eq!(limit.full_in(Micros(3 * SECOND)), 60_000_000);
        assert_eq!(limit.take(61, Micros(0)), Err(RateLimited::TooLarge { limit: 60, asked: 61 }));
    }

    #[test]
    fn what_was_not_used_comes_back_and_what_was_used_more_is_a_debt() {
        let mut limit = MinuteLimit::new(100, Micros(0));
        limit.take(100, Micros(0)).unwrap();
        limit.correct(100, 40, Micros(0));
        assert_eq!(limit.remaining(Micros(0)), 60);
        limit.correct(0, 160, Micros(0));
        assert_eq!(limit.remaining(Micros(0)), 0);
        assert!(matches!(limit.take(1, Micros(59 * SECOND)), Err(RateLimited::Wait { .. })));
        assert!(limit.take(1, Micros(61 * SECOND)).is_ok());
    }

    #[test]
    fn a_new_limit_forgets_no_use_and_a_clock_that_goes_back_gives_nothing() {
        let mut limit = MinuteLimit::new(10, Micros(0));
        limit.take(10, Micros(0)).unwrap();
        limit.set_limit(30, Micros(0));
        assert_eq!(limit.remaining(Micros(0)), 20);
        assert_eq!(limit.remaining(Micros(-3600 * SECOND)), 20);
        let mut none = MinuteLimit::new(0, Micros(0));
        assert!(none.take(1, Micros(SECOND)).is_err());
        assert_eq!(none.full_in(Micros(SECOND)), 0);
    }

    proptest! {
        /// What is taken by any moment is at most a full bucket and what has flowed in since.
        #[test]
        fn no_more_than_the_limit_passes(limit in 1u64..1000, steps in prop::collection::vec((0u64..1200, 0i64..10_000_000), 1..80)) {
            let mut bucket = MinuteLimit::new(limit, Micros(0));
            let (mut now, mut taken) = (0i64, 0u128);
            for (amount, pause) in steps {
                now += pause;
                match bucket.take(amount, Micros(now)) {
                    Ok(()) => taken += u128::from(amount),
                    Err(RateLimited::Wait { wait_micros, .. }) => {
                        let mut later = bucket;
                        let fits = later.take(amount, Micros(now + wait_micros as i64));
                        prop_assert!(fits.is_ok(), "it said {wait_micros}");
                    }
                    Err(RateLimited::TooLarge { .. }) => prop_assert!(amount > limit),
                }
                prop_assert!(taken * 60_000_000 <= u128::from(limit) * (60_000_000 + now as u128));
            }
        }
    }
}
