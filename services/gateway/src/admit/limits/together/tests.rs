//! Gateways that keep limits together, against a Redis that goes by the book, in any order of asking, answering, giving up,
//! ending, changed limits, and losing each other.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ledger::control::Limits;
use ledger::ids::{ApiKeyId, ProjectId};
use ledger::time::Micros;
use proptest::prelude::*;
use uuid::Uuid;

use super::super::allowance::{Change, Keeper, Member, State};
use super::super::levels::{Caps, Claim, Hold, Levels, Place, Told};

const NOW: Micros = Micros(1_772_323_200_000_000);
const KEYS: usize = 2;

/// What Redis holds: of each level the requests and tokens that were taken, and the open requests by member.
#[derive(Debug, Default)]
struct Book {
    taken: HashMap<Place, (i64, i64)>,
    open: HashMap<(Place, String), i64>,
}

impl Book {
    fn state(&self, place: &Place, limits: &Limits) -> State {
        let (requests, tokens) = self.taken.get(place).copied().unwrap_or_default();
        let level = |limit: Option<u64>, taken: i64| limit.map_or(0, |limit| (limit as i64 - taken) * 60_000);
        let open: i64 = self.open.iter().filter(|((at, _), _)| at == place).map(|(_, open)| open).sum();
        State {
            requests: level(limits.requests_per_minute, requests),
            tokens: level(limits.tokens_per_minute, tokens),
            open: open.max(0) as u64,
        }
    }

    fn take(&mut self, claim: &Claim) -> (bool, [State; 3]) {
        let fits = claim.levels.iter().flatten().all(|(place, limits)| {
            let state = self.state(place, limits);
            limits.requests_per_minute.is_none_or(|_| state.requests >= 60_000)
                && limits.tokens_per_minute.is_none_or(|_| state.tokens >= claim.tokens as i64 * 60_000)
                && limits.concurrent_requests.is_none_or(|limit| state.open < limit)
        });
        for (place, limits) in claim.levels.iter().flatten().filter(|_| fits) {
            let taken = self.taken.entry(place.clone()).or_default();
            taken.0 += i64::from(limits.requests_per_minute.is_some());
            taken.1 += if limits.tokens_per_minute.is_some() { claim.tokens as i64 } else { 0 };
            if limits.concurrent_requests.is_some() {
                *self.open.entry((place.clone(), claim.member.id.clone())).or_default() += 1;
            }
        }
        let none = State { requests: 0, tokens: 0, open: 0 };
        (
            fits,
            claim
                .levels
                .each_ref()
                .map(|level| level.as_ref().map_or(none, |(place, limits)| self.state(place, limits))),
        )
    }

    fn give(&mut self, (member, told): &(Arc<Member>, Vec<Told>)) {
        for Told { place, change: Change { requests, tokens, open }, .. } in told {
            let taken = self.taken.entry(place.clone()).or_default();
            *taken = ((taken.0 - requests).max(0), (taken.1 - tokens).max(0));
            *self.open.entry((place.clone(), member.id.clone())).or_default() += open;
        }
    }
}

/// A request that is open, and what it took of which levels together.
struct Open {
    hold: Hold,
    tokens: u64,
    of: Vec<(Place, Limits)>,
}

/// A key, what it asks for, and what Redis answered.
type Asked = (usize, Claim, Option<(bool, [State; 3])>);

struct Gateway {
    levels: Levels,
    asked: VecDeque<Asked>,
    told: VecDeque<(Arc<Member>, Vec<Told>)>,
    open: Vec<Open>,
}

#[derive(Debug, Clone)]
enum Step {
    Ask {
        key: usize,
        tokens: u64,
    },
    /// Redis answers the first that waits.
    Serve,
    /// The first answer is heard; or nobody waits for it any more.
    Hear {
        gone: bool,
    },
    /// Redis hears the first that was told.
    Tell,
    Correct {
        which: usize,
        tokens: u64,
    },
    Close {
        which: usize,
        counts: bool,
    },
    Control {
        level: usize,
        limits: Limits,
    },
    Lose,
    Join,
}

fn steps(loses: u32) -> impl Strategy<Value = Vec<(usize, Step)>> {
    let limit = |most| prop::option::weighted(0.7, 0..most);
    let limits = (limit(12u64), limit(500), limit(6)).prop_map(|(requests, tokens, concurrent)| Limits {
        requests_per_minute: requests,
        tokens_per_minute: tokens,
        concurrent_requests: concurrent,
    });
    let step = prop_oneof![
        6 => (0..KEYS, 0u64..60).prop_map(|(key, tokens)| Step::Ask { key, tokens }),
        6 => Just(Step::Serve),
        6 => any::<bool>().prop_map(|gone| Step::Hear { gone }),
        4 => Just(Step::Tell),
        3 => (any::<usize>(), 0u64..100).prop_map(|(which, tokens)| Step::Correct { which, tokens }),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(which, counts)| Step::Close { which, counts }),
        2 => (0..2 + KEYS, limits).prop_map(|(level, limits)| Step::Control { level, limits }),
        loses => Just(Step::Lose),
        2 * loses => Just(Step::Join),
    ];
    prop::collection::vec((0usize..2, step), 0..200)
}

/// Two gateways, a Redis, and what should have been taken.
struct Fleet {
    gateways: [Gateway; 2],
    book: Book,
    truth: HashMap<Place, (i64, i64)>,
    control: [Limits; 2 + KEYS],
    project: ProjectId,
    members: usize,
}

fn key_of(at: usize) -> ApiKeyId {
    ApiKeyId(Uuid::from_u128(at as u128))
}

impl Fleet {
    fn new() -> Self {
        let gateway = || Gateway {
            levels: Levels::new(Keeper::Alone(2)),
            asked: VecDeque::new(),
            told: VecDeque::new(),
            open: Vec::new(),
        };
        let mut fleet = Self {
            gateways: [gateway(), gateway()],
            book: Book::default(),
            truth: HashMap::new(),
            control: [Limits::default(); 2 + KEYS],
            project: "search".parse().unwrap(),
            members: 0,
        };
        (0..2).for_each(|at| fleet.join(at));
        fleet
    }

    fn join(&mut self, at: usize) {
        self.members += 1;
        let member = Arc::new(Member { id: self.members.to_string(), gateways: 2, forgotten: false });
        self.gateways[at].levels.enter(&Keeper::Together(member), NOW);
    }

    /// What a gateway held in Redis under its name is gone; what it asked has no answer.
    fn lose(&mut self, at: usize) {
        let gateway = &mut self.gateways[at];
        gateway.levels.enter(&Keeper::Alone(2), NOW);
        gateway.told.clear();
        for (key, claim, _) in std::mem::take(&mut gateway.asked) {
            self.book.open.retain(|(_, member), _| *member != claim.member.id);
            self.alone(at, key, claim.tokens);
        }
    }

    fn caps<'a>(control: &[Limits; 2 + KEYS], project: &'a ProjectId, at: usize) -> Caps<'a> {
        Caps { plan: control[0], project: (project, control[1]), key: (key_of(at), control[2 + at]) }
    }

    fn alone(&mut self, at: usize, key: usize, tokens: u64) {
        let caps = Self::caps(&self.control, &self.project, key);
        let gateway = &mut self.gateways[at];
        if let Ok(hold) = gateway.levels.take(&caps, tokens, NOW) {
            gateway.open.push(Open { hold, tokens, of: Vec::new() });
        }
    }

    fn note(truth: &mut HashMap<Place, (i64, i64)>, of: &[(Place, Limits)], requests: i64, tokens: i64) {
        for (place, limits) in of {
            let noted = truth.entry(place.clone()).or_default();
            noted.0 += if limits.requests_per_minute.is_some() { requests } else { 0 };
            noted.1 += if limits.tokens_per_minute.is_some() { tokens } else { 0 };
        }
    }

    fn hear(&mut self, at: usize, gone: bool) {
        let gateway = &mut self.gateways[at];
        let Some((key, claim, answer)) = gateway.asked.pop_front() else { return };
        let Some((granted, states)) = answer else { return gateway.asked.push_front((key, claim, answer)) };
        let caps = Self::caps(&self.control, &self.project, key);
        if !granted {
            gateway.levels.heard(&claim, &states, NOW);
            claim.refused(&states, NOW);
            return;
        }
        let hold = if gone { None } else { gateway.levels.granted(&caps, &claim, &states, NOW) };
        let mut of: Vec<_> = claim.levels.iter().flatten().cloned().collect();
        if let Some(hold) = hold {
            // A limit that came while the answer was under way is held too.
            let places = [Place::Plan, Place::Project(self.project.clone()), Place::Key(key_of(key))];
            let all = places.into_iter().zip(caps.limits());
            of.extend(all.zip(&claim.levels).filter(|(_, asked)| asked.is_none()).map(|(now, _)| now));
            Self::note(&mut self.truth, &of, 1, claim.tokens as i64);
            gateway.open.push(Open { hold, tokens: claim.tokens, of });
        } else {
            let change = |limits: &Limits| Change {
                requests: i64::from(limits.requests_per_minute.is_some()),
                tokens: if limits.tokens_per_minute.is_some() { claim.tokens as i64 } else { 0 },
                open: -i64::from(limits.concurrent_requests.is_some()),
            };
            let told =
                of.iter().map(|(place, limits)| Told { place: place.clone(), limits: *limits, change: change(limits) });
            gateway.told.push_back((Arc::clone(&claim.member), told.collect()));
        }
    }

    fn step(&mut self, at: usize, step: Step) {
        let gateway = &mut self.gateways[at];
        match step {
            Step::Ask { key, tokens } => {
                let caps = Self::caps(&self.control, &self.project, key);
                match gateway.levels.claim(&caps, tokens) {
                    Some(claim) => gateway.asked.push_back((key, claim, None)),
                    None => self.alone(at, key, tokens),
                }
            }
            Step::Serve => {
                if let Some((_, claim, answer)) = gateway.asked.iter_mut().find(|(_, _, answer)| answer.is_none()) {
                    *answer = Some(self.book.take(claim));
                }
            }
            Step::Hear { gone } => self.hear(at, gone),
            Step::Tell => {
                if let Some(told) = gateway.told.pop_front() {
                    self.book.give(&told);
                }
            }
            Step::Correct { which, tokens } if !gateway.open.is_empty() => {
                let count = gateway.open.len();
                let one = &mut gateway.open[which % count];
                gateway.levels.correct(&mut one.hold, tokens, NOW);
                Self::note(&mut self.truth, &one.of, 0, tokens as i64 - one.tokens as i64);
                one.tokens = tokens;
            }
            Step::Close { which, counts } if !gateway.open.is_empty() => {
                let one = gateway.open.swap_remove(which % gateway.open.len());
                gateway.levels.close(one.hold, counts, NOW);
                Self::note(&mut self.truth, &one.of, -i64::from(!counts), 0);
            }
            Step::Control { level, limits } => self.control[level] = limits,
            Step::Lose => self.lose(at),
            Step::Join => {
                self.lose(at);
                self.join(at);
            }
            _ => {}
        }
        let gateway = &mut self.gateways[at];
        gateway.told.extend(gateway.levels.told());
    }

    /// Everything that is under way arrives, and both gateways have seen the limits as they are.
    fn settle(&mut self) {
        for at in 0..2 {
            while !self.gateways[at].asked.is_empty() {
                self.step(at, Step::Serve);
                self.step(at, Step::Hear { gone: false });
            }
            for key in 0..KEYS {
                let caps = Self::caps(&self.control, &self.project, key);
                self.gateways[at].levels.standing(&caps, NOW);
            }
            self.gateways[at].told.extend(self.gateways[at].levels.told());
            while let Some(told) = self.gateways[at].told.pop_front() {
                self.book.give(&told);
            }
        }
    }

    /// Of each level with a limit of open requests: what Redis counts, and what is open.
    fn counted(&mut self) -> Vec<(i64, i64)> {
        let places = [Place::Plan, Place::Project(self.project.clone()), Place::Key(key_of(0)), Place::Key(key_of(1))];
        let limited = places.into_iter().zip(self.control).filter(|(_, limits)| limits.concurrent_requests.is_some());
        let counts = limited.map(|(place, _)| {
            let counted = self.book.open.iter().filter(|((at, _), _)| *at == place).map(|(_, open)| open).sum();
            let open = self.gateways.iter_mut().map(|gateway| gateway.levels.open_at(&place) as i64).sum();
            (counted, open)
        });
        counts.collect()
    }
}

proptest! {
    /// While nobody is lost: once all has arrived, Redis holds just what open requests and those that ended have used, to
    /// the last token, and counts each open request once.
    #[test]
    fn nothing_leaks_and_nothing_is_taken_twice(steps in steps(0)) {
        let mut fleet = Fleet::new();
        for (at, step) in steps {
            fleet.step(at, step);
        }
        fleet.settle();
        for (place, taken) in &fleet.book.taken {
            prop_assert_eq!(*taken, fleet.truth.get(place).copied().unwrap_or_default(), "{:?}", place);
        }
        for (counted, open) in fleet.counted() {
            prop_assert_eq!(counted, open);
        }
    }

    /// However often gateways lose Redis and come back: once they are back, each open request is counted once, so nobody
    /// is refused for ever; and when all have ended, none is.
    #[test]
    fn who_comes_back_counts_what_is_open(steps in steps(1)) {
        let mut fleet = Fleet::new();
        for (at, step) in steps {
            fleet.step(at, step);
        }
        for at in 0..2 {
            fleet.step(at, Step::Join);
        }
        fleet.book.open.retain(|(_, member), _| (member.parse::<usize>().unwrap()) > fleet.members - 2);
        fleet.settle();
        for (counted, open) in fleet.counted() {
            prop_assert_eq!(counted, open);
        }
        for at in 0..2 {
            while !fleet.gateways[at].open.is_empty() {
                fleet.step(at, Step::Close { which: 0, counts: true });
            }
        }
        fleet.settle();
        prop_assert!(fleet.counted().into_iter().all(|counts| counts == (0, 0)));
    }
}
