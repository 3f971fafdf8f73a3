//! The limits that a request must have room in at once: its plan's, its project's, its key's. Each level has requests and
//! tokens per minute and requests at once; a request takes from all of them or from none. Pure: told the time.

use std::collections::HashMap;
use std::hash::Hash;

use ledger::control::Limits;
use ledger::ids::{ApiKeyId, ProjectId};
use ledger::rate_limit::{MinuteLimit, RateLimited};
use ledger::time::Micros;

use super::allowance::{Allowance, Taken};

/// Whose limit it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Plan,
    Project,
    Key,
}

impl Level {
    /// All of them, as [`Caps`] and [`Hold`] have them.
    pub(crate) const ALL: [Self; 3] = [Self::Plan, Self::Project, Self::Key];
}

/// Which limit has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limited {
    Requests(Level, RateLimited),
    Tokens(Level, RateLimited),
    /// So many are open already, and no more may be.
    Concurrent(Level, u64),
}

impl Limited {
    /// For how long, as far as can be told: what is refused by several limits comes back when the last of them has room.
    pub(super) const fn weight(&self) -> (u8, u64) {
        match self {
            Self::Requests(_, RateLimited::TooLarge { .. }) | Self::Tokens(_, RateLimited::TooLarge { .. }) => (2, 0),
            Self::Requests(_, RateLimited::Wait { wait_micros, .. })
            | Self::Tokens(_, RateLimited::Wait { wait_micros, .. }) => (1, *wait_micros),
            Self::Concurrent(..) => (0, 0),
        }
    }
}

/// Limits of a caller, by level.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caps<'a> {
    pub plan: Limits,
    pub project: (&'a ProjectId, Limits),
    pub key: (ApiKeyId, Limits),
}

impl Caps<'_> {
    pub(crate) const fn limits(&self) -> [Limits; 3] {
        [self.plan, self.project.1, self.key.1]
    }

    /// The lowest limit of tokens per minute.
    pub(crate) fn tokens_per_minute(&self) -> Option<u64> {
        self.limits().iter().filter_map(|limits| limits.tokens_per_minute).min()
    }
}

/// Where a caller stands in one limit per minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MinuteStanding {
    pub limit: u64,
    pub remaining: u64,
    /// Until all of it is there again.
    pub reset_micros: u64,
}

impl MinuteStanding {
    fn of(bucket: &mut MinuteLimit, now: Micros) -> Self {
        Self { limit: bucket.limit(), remaining: bucket.remaining(now), reset_micros: bucket.full_in(now) }
    }

    /// The one that has less room; of two alike the one that is longer without it.
    fn tighter(self, other: Self) -> Self {
        let key = |standing: &Self| (standing.remaining, std::cmp::Reverse(standing.reset_micros));
        if key(&other) < key(&self) { other } else { self }
    }
}

/// Where a caller stands, for the headers of its answers: of each kind of limit, in the tightest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub requests: Option<MinuteStanding>,
    pub tokens: Option<MinuteStanding>,
    /// Whether the tokens of the period are used up, and more are served all the same.
    pub over_quota: bool,
}

/// What a request holds of all levels. Given back to [`Levels::close`], once.
#[derive(Debug)]
pub(crate) struct Hold {
    /// Tokens, of each level that limits them.
    tokens: u64,
    plan: Taken,
    project: Option<(ProjectId, Taken)>,
    key: Option<(ApiKeyId, Taken)>,
}

impl Hold {
    /// Tokens that it has taken.
    pub(crate) const fn tokens(&self) -> u64 {
        self.tokens
    }
}

/// All levels of one tenant.
#[derive(Debug, Default)]
pub(crate) struct Levels {
    plan: Allowance,
    projects: Few<ProjectId>,
    keys: Few<ApiKeyId>,
}

impl Levels {
    /// Takes a request and `tokens` from every level that limits the caller, or from none; then says why not.
    pub(crate) fn take(&mut self, caps: &Caps<'_>, tokens: u64, now: Micros) -> Result<Hold, Limited> {
        let mut levels = self.of(caps, now);
        let all = Level::ALL.into_iter().zip(&mut levels);
        let found = all.filter_map(|(level, allowance)| allowance.as_mut()?.check(level, tokens, now));
        if let Some(limited) = found.max_by_key(Limited::weight) {
            return Err(limited);
        }
        let [plan, project, key] = levels.map(|allowance| allowance.map(|allowance| allowance.take(tokens, now)));
        Ok(Hold {
            tokens,
            plan: plan.unwrap_or_default(),
            project: project.map(|taken| (caps.project.0.clone(), taken)),
            key: key.map(|taken| (caps.key.0, taken)),
        })
    }

    /// From now on the request holds `tokens`: what it used so far, or what it used in all.
    pub(crate) fn correct(&mut self, hold: &mut Hold, tokens: u64, now: Micros) {
        let from = std::mem::replace(&mut hold.tokens, tokens);
        self.each(hold, |allowance, taken| allowance.correct(taken, from, tokens, now));
    }

    /// The request is over. Its tokens stay taken, [`Self::correct`] has made them what they were; if it does not count as
    /// a request, that is given back.
    pub(crate) fn close(&mut self, hold: Hold, counts: bool, now: Micros) {
        self.each(&hold, |allowance, taken| allowance.close(taken, counts, now));
    }

    /// Where the caller stands.
    pub(crate) fn standing(&mut self, caps: &Caps<'_>, now: Micros) -> Standing {
        let mut standing = Standing::default();
        for allowance in self.of(caps, now).into_iter().flatten() {
            let tighten = |known: &mut Option<MinuteStanding>, bucket: Option<&mut MinuteLimit>| {
                let Some(bucket) = bucket else { return };
                let this = MinuteStanding::of(bucket, now);
                *known = Some(known.map_or(this, |known| known.tighter(this)));
            };
            tighten(&mut standing.requests, allowance.requests());
            tighten(&mut standing.tokens, allowance.tokens());
        }
        standing
    }

    /// The levels of this caller, with its limits as they are now. A project or key without limits has none.
    fn of(&mut self, caps: &Caps<'_>, now: Micros) -> [Option<&mut Allowance>; 3] {
        self.plan.follow(caps.plan, now);
        let (project, limits) = caps.project;
        let project = self.projects.of(project, limits, now);
        let (key, limits) = caps.key;
        [Some(&mut self.plan), project, self.keys.of(&key, limits, now)]
    }

    fn each(&mut self, hold: &Hold, mut change: impl FnMut(&mut Allowance, Taken)) {
        change(&mut self.plan, hold.plan);
        if let Some((project, taken)) = &hold.project
            && let Some(allowance) = self.projects.0.get_mut(project)
        {
            change(allowance, *taken);
        }
        if let Some((key, taken)) = &hold.key
            && let Some(allowance) = self.keys.0.get_mut(key)
        {
            change(allowance, *taken);
        }
    }
}

/// The allowances of those of a kind that have limits, and of those that had, until nothing of it is left to know.
#[derive(Debug)]
struct Few<K>(HashMap<K, Allowance>);

impl<K> Default for Few<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Hash + Eq + Clone> Few<K> {
    fn of(&mut self, id: &K, limits: Limits, now: Micros) -> Option<&mut Allowance> {
        if !self.0.contains_key(id) {
            if limits == Limits::default() {
                return None;
            }
            if self.0.len() == self.0.capacity() {
                self.0.retain(|_, allowance| !allowance.is_idle(now));
            }
            self.0.insert(id.clone(), Allowance::default());
        }
        let allowance = self.0.get_mut(id)?;
        allowance.follow(limits, now);
        Some(allowance)
    }
}

#[cfg(test)]
#[path = "levels_tests.rs"]
mod tests;
