//! One level of limits: its two limits per minute, and how many requests are open.

use ledger::control::Limits;
use ledger::rate_limit::MinuteLimit;
use ledger::time::Micros;

use super::levels::{Level, Limited};

/// What a request took of one level.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Taken {
    requests: bool,
    tokens: bool,
}

/// See the module. Its buckets outlive their limits: what was taken is given back where it was taken from, whatever
/// control said in between.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    limits: Limits,
    requests: Option<MinuteLimit>,
    tokens: Option<MinuteLimit>,
    open: u64,
}

impl Allowance {
    pub(super) fn follow(&mut self, limits: Limits, now: Micros) {
        if self.limits == limits {
            return;
        }
        let follow = |bucket: &mut Option<MinuteLimit>, limit: Option<u64>| match (bucket.as_mut(), limit) {
            (_, None) => {}
            (Some(bucket), Some(limit)) => bucket.set_limit(limit, now),
            (None, Some(limit)) => *bucket = Some(MinuteLimit::new(limit, now)),
        };
        follow(&mut self.requests, limits.requests_per_minute);
        follow(&mut self.tokens, limits.tokens_per_minute);
        self.limits = limits;
    }

    /// The bucket, while there is such a limit.
    pub(super) fn requests(&mut self) -> Option<&mut MinuteLimit> {
        self.requests.as_mut().filter(|_| self.limits.requests_per_minute.is_some())
    }

    pub(super) fn tokens(&mut self) -> Option<&mut MinuteLimit> {
        self.tokens.as_mut().filter(|_| self.limits.tokens_per_minute.is_some())
    }

    /// What stands in the way for longest.
    pub(super) fn check(&mut self, level: Level, tokens: u64, now: Micros) -> Option<Limited> {
        let requests = self.requests().and_then(|bucket| bucket.check(1, now).err());
        let spent = self.tokens().and_then(|bucket| bucket.check(tokens, now).err());
        let full = self.limits.concurrent_requests.filter(|limit| self.open >= *limit);
        let found = [
            requests.map(|limited| Limited::Requests(level, limited)),
            spent.map(|limited| Limited::Tokens(level, limited)),
            full.map(|limit| Limited::Concurrent(level, limit)),
        ];
        found.into_iter().flatten().max_by_key(Limited::weight)
    }

    /// Takes without a look at what is there: [`Self::check`] looked.
    pub(super) fn take(&mut self, tokens: u64, now: Micros) -> Taken {
        self.open += 1;
        let requests = self.requests().map(|bucket| bucket.correct(0, 1, now)).is_some();
        let tokens = self.tokens().map(|bucket| bucket.correct(0, tokens, now)).is_some();
        Taken { requests, tokens }
    }

    pub(super) fn correct(&mut self, taken: Taken, from: u64, to: u64, now: Micros) {
        if let Some(bucket) = self.tokens.as_mut().filter(|_| taken.tokens) {
            bucket.correct(from, to, now);
        }
    }

    pub(super) fn close(&mut self, taken: Taken, counts: bool, now: Micros) {
        if let Some(bucket) = self.requests.as_mut().filter(|_| taken.requests && !counts) {
            bucket.correct(1, 0, now);
        }
        debug_assert!(self.open > 0, "a request is closed once");
        self.open = self.open.saturating_sub(1);
    }

    /// Whether it says no more than a new one would.
    pub(super) fn is_idle(&mut self, now: Micros) -> bool {
        let full = |bucket: &mut Option<MinuteLimit>| bucket.as_mut().is_none_or(|bucket| bucket.missing(now) == 0);
        self.open == 0 && full(&mut self.requests) && full(&mut self.tokens)
    }
}

#[cfg(test)]
impl Allowance {
    /// Open requests, and both buckets.
    pub(super) fn shown(&self) -> (u64, Option<MinuteLimit>, Option<MinuteLimit>) {
        (self.open, self.requests, self.tokens)
    }
}
