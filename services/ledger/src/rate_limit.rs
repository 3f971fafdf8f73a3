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

/// One limit of one tenant, project or key. Full at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinuteLimit {
    limit: u64,
    /// So many buckets share the limit without knowing of each other: in each, everything costs so many times as much.
    shares: u32,
    level: i128,
    at: Micros,
}

impl MinuteLimit {
    /// A full bucket of `limit` per minute.
    pub fn new(limit: u64, now: Micros) -> Self {
        Self { limit, shares: 1, level: i128::from(limit) * MINUTE, at: now }
    }

    /// Takes `amount`, or says how long to wait.
    pub fn take(&mut self, amount: u64, now: Micros) -> Result<(), RateLimited> {
        self.check(amount, now)?;
        self.level -= self.cost(amount);
        Ok(())
    }

    /// Whether `amount` could be taken now, and if not, how long to wait.
    pub fn check(&mut self, amount: u64, now: Micros) -> Result<(), RateLimited> {
        if amount > self.limit {
            return Err(RateLimited::TooLarge { limit: self.limit, asked: amount });
        }
        self.refill(now);
        // What fits the limit but not a share of it passes when the share is full, and leaves a debt.
        let missing = self.cost(amount).min(self.full()) - self.level;
        if missing > 0 {
            let wait = div_up(missing, i128::from(self.limit));
            let wait_micros = u64::try_from(wait).unwrap_or(u64::MAX);
            return Err(RateLimited::Wait { limit: self.limit, asked: amount, wait_micros });
        }
        Ok(())
    }

    /// Replaces what was taken for a request by what it really used. Using more than was taken leaves a debt.
    pub fn correct(&mut self, taken: u64, used: u64, now: Micros) {
        self.refill(now);
        self.level += self.cost(taken) - self.cost(used);
        self.level = self.level.min(self.full());
    }

    /// From now on this bucket is one of so many that share the limit; 1 to have it alone. Its level stays the level that
    /// all of them have together.
    pub fn share(&mut self, among: u32) {
        self.shares = among.max(1);
    }

    /// What is missing of this bucket's share until it is full, rounded up.
    pub fn missing(&mut self, now: Micros) -> u64 {
        self.refill(now);
        u64::try_from(div_up(self.full() - self.level, MINUTE * i128::from(self.shares))).unwrap_or(u64::MAX)
    }

    /// The level as another keeper of this limit knows it now: in thousandths of a minute's worth of one. `level` may be
    /// a debt.
    pub fn set_level_millis(&mut self, level: i64, now: Micros) {
        self.at = self.at.max(now);
        self.level = (i128::from(level) * (MINUTE / 60_000)).min(self.full());
    }

    fn cost(&self, amount: u64) -> i128 {
        i128::from(amount) * MINUTE * i128::from(self.shares)
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
        u64::try_from(self.level / MINUTE / i128::from(self.shares)).unwrap_or(0)
    }

    /// Micros until it is full again; of a limit of nothing, 0.
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

    #[test]
    fn a_share_of_a_limit_lets_large_requests_pass_when_it_is_full() {
        let mut share = MinuteLimit::new(90, Micros(0));
        share.take(30, Micros(0)).unwrap();
        share.share(3);
        assert_eq!((share.remaining(Micros(0)), share.missing(Micros(0))), (20, 10));
        let refused = share.take(40, Micros(0));
        assert_eq!(refused, Err(RateLimited::Wait { limit: 90, asked: 40, wait_micros: 20_000_000 }));
        share.take(40, Micros(20 * SECOND)).unwrap();
        assert!(share.take(1, Micros(39 * SECOND)).is_err(), "it is in debt");
        share.correct(40, 30, Micros(39 * SECOND));
        assert!(share.take(28, Micros(79 * SECOND)).is_ok());
        share.share(1);
        share.set_level_millis(-60_000, Micros(79 * SECOND));
        assert_eq!(
            share.take(1, Micros(79 * SECOND)),
            Err(RateLimited::Wait { limit: 90, asked: 1, wait_micros: 1_333_334 })
        );
        let mut one = MinuteLimit::new(1, Micros(0));
        one.share(3);
        one.take(1, Micros(0)).unwrap();
        assert!(one.take(1, Micros(179 * SECOND)).is_err() && one.take(1, Micros(180 * SECOND)).is_ok());
    }

    proptest! {
        /// Buckets that share a limit let pass no more than the limit together.
        #[test]
        fn shares_add_up_to_the_limit(limit in 1u64..1000, shares in 1u32..5, steps in prop::collection::vec((0u64..1200, 0i64..10_000_000, 0usize..5), 1..80)) {
            let mut buckets = vec![MinuteLimit::new(limit, Micros(0)); shares as usize];
            for bucket in &mut buckets {
                bucket.share(shares);
            }
            let (mut now, mut taken, mut above) = (0i64, 0u128, 0u64);
            for (amount, pause, at) in steps {
                now += pause;
                let bucket = &mut buckets[at % shares as usize];
                if bucket.take(amount, Micros(now)).is_ok() {
                    taken += u128::from(amount);
                    above = above.max((amount * u64::from(shares)).saturating_sub(limit));
                }
                let debts = u128::from(above) * 60_000_000;
                prop_assert!(taken * 60_000_000 <= u128::from(limit) * (60_000_000 + now as u128) + debts);
            }
        }

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
