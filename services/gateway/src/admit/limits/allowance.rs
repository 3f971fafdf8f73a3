//! One level of limits: its two limits per minute, and how many requests are open.

use std::sync::Arc;

use ledger::control::Limits;
use ledger::rate_limit::{MinuteLimit, RateLimited};
use ledger::time::Micros;

use super::levels::{Level, Limited};

/// Who keeps the limits of a tenant.
#[derive(Debug, Clone)]
pub(crate) enum Keeper {
    /// This gateway, as one of so many that do not know of each other: each keeps to its share.
    Alone(u32),
    /// All gateways together. What is kept here is then what was last heard.
    Together(Arc<Member>),
}

/// A gateway among those that keep limits together, from one joining to the next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Unlike all others, ever.
    pub id: String,
    /// So many there were when it joined, with itself.
    pub gateways: u32,
    /// Whether what was kept together before is lost: every gateway then tells what it knows of it.
    pub forgotten: bool,
}

/// What a request took of one level.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Taken {
    requests: bool,
    tokens: bool,
}

/// What is to be told to those that keep a level together: what is given back (less than 0: what was taken), and how
/// many more requests are open here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub requests: i64,
    pub tokens: i64,
    pub open: i64,
}

/// How a level stands with those that keep it together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    /// In thousandths of a minute's worth of one.
    pub requests: i64,
    pub tokens: i64,
    /// Open requests at all gateways.
    pub open: u64,
}

/// What a level knows beside its buckets, by who keeps it.
#[derive(Debug, Clone, Copy)]
enum Kept {
    /// Taken here since it is kept alone, less what was given back.
    Alone { shares: u32, requests: i64, tokens: i64 },
    /// Of the requests that are open here, so many are counted together.
    Together { counted: u64 },
}

/// See the module. Its buckets outlive their limits: what was taken is given back where it was taken from, whatever
/// control said in between.
#[derive(Debug)]
pub(super) struct Allowance {
    limits: Limits,
    requests: Option<MinuteLimit>,
    tokens: Option<MinuteLimit>,
    open: u64,
    kept: Kept,
}

impl Allowance {
    pub(super) fn new(keeper: &Keeper) -> Self {
        let kept = match keeper {
            Keeper::Alone(shares) => Kept::Alone { shares: *shares, requests: 0, tokens: 0 },
            Keeper::Together(_) => Kept::Together { counted: 0 },
        };
        Self { limits: Limits::default(), requests: None, tokens: None, open: 0, kept }
    }

    /// Takes the limits as they are now.
    pub(super) fn follow(&mut self, limits: Limits, now: Micros) -> Change {
        if self.limits == limits {
            return Change::default();
        }
        let shares = self.shares();
        let follow = |bucket: &mut Option<MinuteLimit>, limit: Option<u64>| match (bucket.as_mut(), limit) {
            (_, None) => {}
            (Some(bucket), Some(limit)) => bucket.set_limit(limit, now),
            (None, Some(limit)) => bucket.insert(MinuteLimit::new(limit, now)).share(shares),
        };
        follow(&mut self.requests, limits.requests_per_minute);
        follow(&mut self.tokens, limits.tokens_per_minute);
        self.limits = limits;
        self.count()
    }

    fn shares(&self) -> u32 {
        match self.kept {
            Kept::Alone { shares, .. } => shares,
            Kept::Together { .. } => 1,
        }
    }

    /// The bucket, while there is such a limit.
    pub(super) fn requests(&mut self) -> Option<&mut MinuteLimit> {
        self.requests.as_mut().filter(|_| self.limits.requests_per_minute.is_some())
    }

    pub(super) fn tokens(&mut self) -> Option<&mut MinuteLimit> {
        self.tokens.as_mut().filter(|_| self.limits.tokens_per_minute.is_some())
    }

    pub(super) const fn open(&self) -> u64 {
        self.open
    }

    pub(super) const fn limits(&self) -> Limits {
        self.limits
    }

    /// What stands in the way for longest.
    pub(super) fn check(&mut self, level: Level, tokens: u64, now: Micros) -> Option<Limited> {
        let share = |limit: u64| if limit == 0 { 0 } else { (limit / u64::from(self.shares())).max(1) };
        let full = self.limits.concurrent_requests.map(share).filter(|limit| self.open >= *limit);
        let requests = self.requests().and_then(|bucket| bucket.check(1, now).err());
        let spent = self.tokens().and_then(|bucket| bucket.check(tokens, now).err());
        longest(level, requests, spent, full)
    }

    /// Takes without a look at what is there: [`Self::check`] looked.
    pub(super) fn take(&mut self, tokens: u64, now: Micros) -> (Taken, Change) {
        self.open += 1;
        let requests = self.requests().map(|bucket| bucket.correct(0, 1, now)).is_some();
        let spent = self.tokens().map(|bucket| bucket.correct(0, tokens, now)).is_some();
        let taken = Taken { requests, tokens: spent };
        let told = self.told(i64::from(requests), if spent { signed(tokens) } else { 0 });
        (taken, told)
    }

    /// What was taken together, under these limits, and left this state.
    pub(super) fn granted(&mut self, limits: Limits, state: State, now: Micros) -> (Taken, Change) {
        self.heard(limits, state, now);
        self.open += 1;
        if let Kept::Together { counted } = &mut self.kept {
            *counted += u64::from(limits.concurrent_requests.is_some());
        }
        let taken =
            Taken { requests: limits.requests_per_minute.is_some(), tokens: limits.tokens_per_minute.is_some() };
        (taken, self.count())
    }

    /// How the level stands.
    pub(super) fn heard(&mut self, limits: Limits, state: State, now: Micros) {
        let set = |bucket: &mut Option<MinuteLimit>, limit: Option<u64>, level: i64| {
            if let (Some(bucket), Some(_)) = (bucket, limit) {
                bucket.set_level_millis(level, now);
            }
        };
        set(&mut self.requests, limits.requests_per_minute, state.requests);
        set(&mut self.tokens, limits.tokens_per_minute, state.tokens);
    }

    pub(super) fn correct(&mut self, taken: Taken, from: u64, to: u64, now: Micros) -> Change {
        let Some(bucket) = self.tokens.as_mut().filter(|_| taken.tokens && from != to) else {
            return Change::default();
        };
        bucket.correct(from, to, now);
        self.told(0, signed(to).saturating_sub(signed(from)))
    }

    pub(super) fn close(&mut self, taken: Taken, counts: bool, now: Micros) -> Change {
        debug_assert!(self.open > 0, "a request is closed once");
        self.open = self.open.saturating_sub(1);
        match self.requests.as_mut().filter(|_| taken.requests && !counts) {
            Some(bucket) => {
                bucket.correct(1, 0, now);
                self.told(-1, 0)
            }
            None => self.count(),
        }
    }

    /// So much was taken here: noted, or told.
    fn told(&mut self, requests_taken: i64, tokens_taken: i64) -> Change {
        if let Kept::Alone { requests, tokens, .. } = &mut self.kept {
            *requests = requests.saturating_add(requests_taken);
            *tokens = tokens.saturating_add(tokens_taken);
            return Change::default();
        }
        Change { requests: -requests_taken, tokens: -tokens_taken, ..self.count() }
    }

    /// What is open here is counted together while its number is limited.
    fn count(&mut self) -> Change {
        let Kept::Together { counted } = &mut self.kept else { return Change::default() };
        let open = if self.limits.concurrent_requests.is_some() { self.open } else { 0 };
        let change = signed(open) - signed(std::mem::replace(counted, open));
        Change { open: change, ..Change::default() }
    }

    /// From now on this gateway keeps to its share, of what was there when all were last heard of.
    pub(super) fn part(&mut self, shares: u32) {
        self.kept = Kept::Alone { shares, requests: 0, tokens: 0 };
        for bucket in [&mut self.requests, &mut self.tokens].into_iter().flatten() {
            bucket.share(shares);
        }
    }

    /// From now on all keep it together. What was taken here meanwhile is told, and what is open.
    pub(super) fn join(&mut self, forgotten: bool, now: Micros) -> Change {
        let Kept::Alone { requests, tokens, .. } = self.kept else { return Change::default() };
        // What flowed in elsewhere while this gateway was alone flowed into its share too, so no more is owed than the
        // share misses. If all else is forgotten, that is just what is owed.
        let owed = |bucket: Option<&mut MinuteLimit>, taken: i64| {
            let missing = signed(bucket.map_or(0, |bucket| bucket.missing(now)));
            if forgotten { missing } else { taken.min(missing) }
        };
        let (requests, tokens) = (owed(self.requests(), requests), owed(self.tokens(), tokens));
        for bucket in [&mut self.requests, &mut self.tokens].into_iter().flatten() {
            bucket.share(1);
        }
        self.kept = Kept::Together { counted: 0 };
        Change { requests: -requests, tokens: -tokens, ..self.count() }
    }

    /// Whether it says no more than a new one would.
    pub(super) fn is_idle(&mut self, now: Micros) -> bool {
        let full = |bucket: &mut Option<MinuteLimit>| bucket.as_mut().is_none_or(|bucket| bucket.missing(now) == 0);
        self.open == 0 && full(&mut self.requests) && full(&mut self.tokens)
    }
}

/// Why a level in this state has no room; for what it was refused for, whatever has come since.
pub(super) fn refused(level: Level, limits: Limits, state: State, tokens: u64, now: Micros) -> Option<Limited> {
    let check = |limit: Option<u64>, held: i64, asked: u64| -> Option<RateLimited> {
        let mut bucket = MinuteLimit::new(limit?, now);
        bucket.set_level_millis(held, now);
        bucket.check(asked, now).err()
    };
    let requests = check(limits.requests_per_minute, state.requests, 1);
    let spent = check(limits.tokens_per_minute, state.tokens, tokens);
    longest(level, requests, spent, limits.concurrent_requests.filter(|limit| state.open >= *limit))
}

fn longest(
    level: Level,
    requests: Option<RateLimited>,
    tokens: Option<RateLimited>,
    full: Option<u64>,
) -> Option<Limited> {
    let found = [
        requests.map(|limited| Limited::Requests(level, limited)),
        tokens.map(|limited| Limited::Tokens(level, limited)),
        full.map(|limit| Limited::Concurrent(level, limit)),
    ];
    found.into_iter().flatten().max_by_key(Limited::weight)
}

fn signed(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

#[cfg(test)]
impl Allowance {
    /// Open requests, and both buckets.
    pub(super) fn shown(&self) -> (u64, Option<MinuteLimit>, Option<MinuteLimit>) {
        (self.open, self.requests, self.tokens)
    }
}
