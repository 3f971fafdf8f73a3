//! The limits that a request must have room in at once: its plan's, its project's, its key's. Each level has requests and
//! tokens per minute and requests at once; a request takes from all of them or from none. Pure: told the time.

use std::hash::Hash;
use std::sync::Arc;

use hashbrown::HashMap;
use ledger::control::Limits;
use ledger::ids::{ApiKeyId, ProjectId};
use ledger::rate_limit::{MinuteLimit, RateLimited};
use ledger::time::Micros;

use super::allowance::{Allowance, Change, Keeper, Member, State, Taken, refused};

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

    /// The same caller with these limits, where there are any.
    fn with(self, [plan, project, key]: [Option<Limits>; 3]) -> Self {
        Self {
            plan: plan.unwrap_or(self.plan),
            project: (self.project.0, project.unwrap_or(self.project.1)),
            key: (self.key.0, key.unwrap_or(self.key.1)),
        }
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

/// A level, among those of its tenant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    Plan,
    Project(ProjectId),
    Key(ApiKeyId),
}

impl Place {
    fn of(level: Level, caps: &Caps<'_>) -> Self {
        match level {
            Level::Plan => Self::Plan,
            Level::Project => Self::Project(caps.project.0.clone()),
            Level::Key => Self::Key(caps.key.0),
        }
    }
}

/// What a request holds of all levels. Given back to [`Levels::close`], once.
#[derive(Debug)]
pub(crate) struct Hold {
    /// Tokens, of each level that limits them.
    tokens: u64,
    of: [Option<(Place, Taken)>; 3],
}

impl Hold {
    /// Tokens that it has taken.
    pub(crate) const fn tokens(&self) -> u64 {
        self.tokens
    }
}

/// What a request asks of all gateways together.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    /// Who asks.
    pub member: Arc<Member>,
    pub tokens: u64,
    /// The levels that limit it, in the order of [`Level::ALL`].
    pub levels: [Option<(Place, Limits)>; 3],
}

impl Claim {
    /// Why it was refused.
    pub(crate) fn refused(&self, states: &[State; 3], now: Micros) -> Limited {
        let all = Level::ALL.into_iter().zip(&self.levels).zip(states);
        let found =
            all.filter_map(|((level, asked), state)| refused(level, asked.as_ref()?.1, *state, self.tokens, now));
        // Both sides reckon alike; if they ever should not, the client comes again.
        let soon = RateLimited::Wait { limit: 0, asked: 1, wait_micros: 1_000_000 };
        found.max_by_key(Limited::weight).unwrap_or(Limited::Requests(Level::Plan, soon))
    }
}

/// What is to be told of a level to those that keep it together.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub place: Place,
    pub limits: Limits,
    pub change: Change,
}

/// All levels of one tenant.
#[derive(Debug)]
pub(crate) struct Levels {
    all: All,
    keeper: Keeper,
    told: Vec<Told>,
}

impl Levels {
    pub(crate) fn new(keeper: Keeper) -> Self {
        let all = All { plan: Allowance::new(&keeper), projects: Few::default(), keys: Few::default() };
        Self { all, keeper, told: Vec::new() }
    }

    /// Takes a request and `tokens` from every level that limits the caller, or from none; then says why not.
    pub(crate) fn take(&mut self, caps: &Caps<'_>, tokens: u64, now: Micros) -> Result<Hold, Limited> {
        let mut levels = self.all.of(caps, &self.keeper, &mut self.told, now);
        let all = Level::ALL.into_iter().zip(&mut levels);
        let found = all.filter_map(|(level, allowance)| allowance.as_mut()?.check(level, tokens, now));
        if let Some(limited) = found.max_by_key(Limited::weight) {
            return Err(limited);
        }
        let mut hold = Hold { tokens, of: [None, None, None] };
        for ((level, allowance), held) in Level::ALL.into_iter().zip(levels).zip(&mut hold.of) {
            let Some(allowance) = allowance else { continue };
            let (taken, change) = allowance.take(tokens, now);
            let place = Place::of(level, caps);
            tell(&mut self.told, &place, allowance, change);
            *held = Some((place, taken));
        }
        Ok(hold)
    }

    /// What is to be asked of all gateways together; nothing where they do not keep it, or where nothing is limited.
    pub(crate) fn claim(&mut self, caps: &Caps<'_>, tokens: u64) -> Option<Claim> {
        let Keeper::Together(member) = &self.keeper else { return None };
        let limits = caps.limits();
        if limits.iter().all(|limits| *limits == Limits::default()) {
            return None;
        }
        let levels = Level::ALL.map(|level| {
            let limits = limits[level as usize];
            (limits != Limits::default()).then(|| (Place::of(level, caps), limits))
        });
        Some(Claim { member: Arc::clone(member), tokens, levels })
    }

    /// Holds what was granted together. None if this gateway is no longer who it was when it asked: then it is not held.
    pub(crate) fn granted(&mut self, caps: &Caps<'_>, claim: &Claim, states: &[State; 3], now: Micros) -> Option<Hold> {
        if !self.is(&claim.member) {
            return None;
        }
        // What it was granted of is there, even if control has taken the limit away meanwhile.
        let asked = claim.levels.each_ref().map(|level| level.as_ref().map(|(_, limits)| *limits));
        self.all.of(&caps.with(asked), &self.keeper, &mut self.told, now);
        let levels = self.all.of(caps, &self.keeper, &mut self.told, now);
        let mut hold = Hold { tokens: claim.tokens, of: [None, None, None] };
        for ((level, allowance), held) in Level::ALL.into_iter().zip(levels).zip(&mut hold.of) {
            let Some(allowance) = allowance else { continue };
            let (taken, change) = match &claim.levels[level as usize] {
                Some((_, limits)) => allowance.granted(*limits, states[level as usize], now),
                None => allowance.take(claim.tokens, now),
            };
            let place = Place::of(level, caps);
            tell(&mut self.told, &place, allowance, change);
            *held = Some((place, taken));
        }
        Some(hold)
    }

    /// Notes how the levels of a claim that was refused stand.
    pub(crate) fn heard(&mut self, claim: &Claim, states: &[State; 3], now: Micros) {
        if !self.is(&claim.member) {
            return;
        }
        for ((place, limits), state) in
            claim.levels.iter().zip(states).filter_map(|(asked, state)| Some((asked.as_ref()?, state)))
        {
            if let Some(allowance) = self.all.at(place) {
                allowance.heard(*limits, *state, now);
            }
        }
    }

    /// From now on the request holds `tokens`: what it used so far, or what it used in all.
    pub(crate) fn correct(&mut self, hold: &mut Hold, tokens: u64, now: Micros) {
        let from = std::mem::replace(&mut hold.tokens, tokens);
        for (place, taken) in hold.of.iter().flatten() {
            let Some(allowance) = self.all.at(place) else { continue };
            let change = allowance.correct(*taken, from, tokens, now);
            tell(&mut self.told, place, allowance, change);
        }
    }

    /// The request is over. Its tokens stay taken, [`Self::correct`] has made them what they were; if it does not count as
    /// a request, that is given back.
    pub(crate) fn close(&mut self, hold: Hold, counts: bool, now: Micros) {
        for (place, taken) in hold.of.iter().flatten() {
            let Some(allowance) = self.all.at(place) else { continue };
            let change = allowance.close(*taken, counts, now);
            tell(&mut self.told, place, allowance, change);
        }
    }

    /// Where the caller stands.
    pub(crate) fn standing(&mut self, caps: &Caps<'_>, now: Micros) -> Standing {
        let mut standing = Standing::default();
        for allowance in self.all.of(caps, &self.keeper, &mut self.told, now).into_iter().flatten() {
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

    /// From now on `keeper` keeps the limits.
    pub(crate) fn enter(&mut self, keeper: &Keeper, now: Micros) {
        match (&self.keeper, keeper) {
            (Keeper::Alone(before), Keeper::Alone(shares)) if before == shares => return,
            (Keeper::Together(before), Keeper::Together(member)) if Arc::ptr_eq(before, member) => return,
            (Keeper::Together(_), Keeper::Together(member)) => self.all.each(|_, one| one.part(member.gateways)),
            _ => {}
        }
        self.keeper = keeper.clone();
        self.told.clear();
        match keeper {
            Keeper::Alone(shares) => self.all.each(|_, allowance| allowance.part(*shares)),
            Keeper::Together(member) => {
                let told = &mut self.told;
                self.all.each(|place, allowance| {
                    let change = allowance.join(member.forgotten, now);
                    tell(told, &place, allowance, change);
                });
            }
        }
    }

    fn is(&self, member: &Arc<Member>) -> bool {
        matches!(&self.keeper, Keeper::Together(now) if Arc::ptr_eq(now, member))
    }

    /// What is to be told to those that keep the limits together, and by whom.
    pub(crate) fn told(&mut self) -> Option<(Arc<Member>, Vec<Told>)> {
        let Keeper::Together(member) = &self.keeper else { return None };
        (!self.told.is_empty()).then(|| (Arc::clone(member), std::mem::take(&mut self.told)))
    }

    /// Requests that are open at a level.
    #[cfg(test)]
    pub(crate) fn open_at(&mut self, place: &Place) -> u64 {
        self.all.at(place).map_or(0, |allowance| allowance.open())
    }

    /// Requests that are open.
    pub(crate) fn open(&self) -> u64 {
        self.all.plan.open()
    }
}

fn tell(told: &mut Vec<Told>, place: &Place, allowance: &Allowance, change: Change) {
    if change == Change::default() {
        return;
    }
    match told.iter_mut().find(|told| told.place == *place) {
        Some(Told { change: known, .. }) => {
            known.requests = known.requests.saturating_add(change.requests);
            known.tokens = known.tokens.saturating_add(change.tokens);
            known.open += change.open;
        }
        None => told.push(Told { place: place.clone(), limits: allowance.limits(), change }),
    }
}

/// The allowances of one tenant.
#[derive(Debug)]
struct All {
    plan: Allowance,
    projects: Few<ProjectId>,
    keys: Few<ApiKeyId>,
}

impl All {
    /// The levels of this caller, with its limits as they are now. A project or key without limits has none.
    fn of(
        &mut self,
        caps: &Caps<'_>,
        keeper: &Keeper,
        told: &mut Vec<Told>,
        now: Micros,
    ) -> [Option<&mut Allowance>; 3] {
        let (project, project_limits) = caps.project;
        let (key, key_limits) = caps.key;
        let mut levels = [
            Some((&mut self.plan, caps.plan)),
            self.projects.of(project, project_limits, keeper, now).map(|allowance| (allowance, project_limits)),
            self.keys.of(&key, key_limits, keeper, now).map(|allowance| (allowance, key_limits)),
        ];
        for (level, one) in Level::ALL.into_iter().zip(&mut levels) {
            let Some((allowance, limits)) = one else { continue };
            let change = allowance.follow(*limits, now);
            if change != Change::default() {
                tell(told, &Place::of(level, caps), allowance, change);
            }
        }
        levels.map(|one| one.map(|(allowance, _)| allowance))
    }

    fn at(&mut self, place: &Place) -> Option<&mut Allowance> {
        match place {
            Place::Plan => Some(&mut self.plan),
            Place::Project(project) => self.projects.0.get_mut(project),
            Place::Key(key) => self.keys.0.get_mut(key),
        }
    }

    fn each(&mut self, mut change: impl FnMut(Place, &mut Allowance)) {
        change(Place::Plan, &mut self.plan);
        for (project, allowance) in &mut self.projects.0 {
            change(Place::Project(project.clone()), allowance);
        }
        for (key, allowance) in &mut self.keys.0 {
            change(Place::Key(*key), allowance);
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
    fn of(&mut self, id: &K, limits: Limits, keeper: &Keeper, now: Micros) -> Option<&mut Allowance> {
        if !self.0.contains_key(id) {
            if limits == Limits::default() {
                return None;
            }
            if self.0.len() == self.0.capacity() {
                self.0.retain(|_, allowance| !allowance.is_idle(now));
            }
            self.0.insert(id.clone(), Allowance::new(keeper));
        }
        self.0.get_mut(id)
    }
}

#[cfg(test)]
#[path = "levels_tests.rs"]
mod tests;
