//! What the schedule promises, over arbitrary tenants, requests, ends and cancellations.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ledger::ids::TenantId;
use proptest::prelude::*;

use super::counter::{Charge, Counter, Level};
use super::floors::{BANDS, Floors};
use super::schedule::{Arrival, Place, Schedule};

/// A schedule with its counters, as a group of replicas has them.
pub(super) struct Desk<T> {
    pub(super) schedule: Schedule<u8, T>,
    levels: [Arc<Level>; BANDS],
    counters: BTreeMap<(usize, TenantId), Arc<Counter>>,
}

impl<T> Desk<T> {
    pub(super) fn new(floors: [u64; BANDS], mark: u64) -> Self {
        let levels = std::array::from_fn(|_| Arc::new(Level::at(mark)));
        Self { schedule: Schedule::new(levels.clone(), Floors::new(floors)), levels, counters: BTreeMap::new() }
    }

    pub(super) fn counter(&mut self, band: usize, tenant: &TenantId) -> Arc<Counter> {
        let level = &self.levels[band];
        let new = || Arc::new(Counter::new(Arc::clone(level)));
        Arc::clone(self.counters.entry((band, tenant.clone())).or_insert_with(new))
    }

    pub(super) fn push(&mut self, arrival: Arrival<u8, T>) -> Place<u8> {
        let counter = self.counter(arrival.band, &arrival.tenant);
        self.schedule.push(arrival, &counter)
    }

    pub(super) fn pop(&mut self, full: &[u8]) -> Option<(Place<u8>, T, Charge)> {
        let (place, _) = self.schedule.next(full)?;
        let gone = self.schedule.take(&place, full).expect("what is next is there");
        Some((place, gone.item, gone.charge))
    }
}

pub(super) fn tenant(at: usize) -> TenantId {
    format!("t{at:03}").parse().unwrap()
}

fn arrival<T>(band: usize, at: usize, weight: u32, lane: u8, tokens: u64, item: T) -> Arrival<u8, T> {
    Arrival { band, tenant: tenant(at), weight, lane, tokens, item }
}

#[test]
fn a_tenant_that_was_away_comes_without_credit_and_without_debt() {
    let mut desk = Desk::new([0; BANDS], u64::MAX - 1_000);
    // Alone, it may use what it likes.
    for _ in 0..50 {
        desk.push(arrival(1, 0, 1, 0, 100, ()));
        desk.pop(&[]).unwrap().2.used(100);
    }
    let mut went = [0_u64; 2];
    for _ in 0..20 {
        desk.push(arrival(1, 0, 1, 0, 100, ()));
        desk.push(arrival(1, 1, 1, 0, 100, ()));
    }
    for turn in 0..40 {
        let (place, (), mut charge) = desk.pop(&[]).unwrap();
        charge.used(100);
        went[usize::from(place.tenant == tenant(1))] += 1;
        assert!(went[0].abs_diff(went[1]) <= 1, "turn {turn}: {went:?}");
    }
    // One goes on, the other one comes back: not ahead by all it did not use.
    for _ in 0..30 {
        desk.push(arrival(1, 0, 1, 0, 100, ()));
    }
    for _ in 0..10 {
        desk.pop(&[]).unwrap().2.used(100);
    }
    for _ in 0..20 {
        desk.push(arrival(1, 1, 1, 0, 100, ()));
    }
    let mut back = 0;
    for _ in 0..20 {
        let (place, (), mut charge) = desk.pop(&[]).unwrap();
        charge.used(100);
        back += u64::from(place.tenant == tenant(1));
    }
    assert_eq!(back, 10);
}

#[test]
fn of_one_tenant_the_first_goes_first_and_a_full_lane_holds_up_no_other() {
    let mut desk = Desk::new([0; BANDS], 0);
    for (lane, item) in [(0, "a"), (1, "b"), (0, "c"), (1, "d")] {
        desk.push(arrival(1, 0, 1, lane, 1, item));
    }
    desk.push(arrival(0, 1, 1, 0, 1, "higher, and its lane is full"));
    assert_eq!(desk.pop(&[0]).unwrap().1, "b");
    assert_eq!(desk.pop(&[0]).unwrap().1, "d");
    assert!(desk.pop(&[0]).is_none());
    assert_eq!(desk.pop(&[]).unwrap().1, "higher, and its lane is full");
    assert_eq!([desk.pop(&[]).unwrap().1, desk.pop(&[]).unwrap().1], ["a", "c"]);
    assert!(desk.schedule.is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Push { band: usize, tenant: usize, weight: u32, lane: u8, tokens: u64 },
    Pop { full: Option<u8>, used: u64 },
    End(usize),
    Cancel(usize),
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..BANDS, 0usize..4, 1u32..5, 0u8..3, 0u64..1_000)
            .prop_map(|(band, tenant, weight, lane, tokens)| Step::Push { band, tenant, weight, lane, tokens }),
        6 => (prop::option::of(0u8..3), 0u64..2_000).prop_map(|(full, used)| Step::Pop { full, used }),
        3 => any::<usize>().prop_map(Step::End),
        3 => any::<usize>().prop_map(Step::Cancel),
        1 => Just(Step::Clear),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// What is pushed goes, is cancelled or is cleared: exactly once. In the end nothing is charged but what was used.
    #[test]
    fn every_request_ends_once(steps in prop::collection::vec(step(), 0..200)) {
        let mut desk = Desk::new([0, 20, 5], 7);
        let (mut waiting, mut open, mut ended) = (Vec::<(Place<u8>, usize)>::new(), Vec::new(), BTreeSet::new());
        let mut pushed = 0;
        for step in steps {
            match step {
                Step::Push { band, tenant, weight, lane, tokens } => {
                    waiting.push((desk.push(arrival(band, tenant, weight, lane, tokens, pushed)), pushed));
                    pushed += 1;
                }
                Step::Pop { full, used } => {
                    let full: Vec<u8> = full.into_iter().collect();
                    let Some((place, item, mut charge)) = desk.pop(&full) else {
                        prop_assert!(waiting.iter().all(|(place, _)| full.contains(&place.lane)));
                        continue;
                    };
                    prop_assert!(!full.contains(&place.lane));
                    let earlier = waiting.iter().filter(|(other, _)| {
                        (other.band, &other.tenant, other.lane) == (place.band, &place.tenant, place.lane)
                    });
                    prop_assert_eq!(earlier.map(|(_, item)| *item).min(), Some(item), "of a tenant the first goes first");
                    prop_assert!(desk.schedule.cancel(&place).is_none(), "it is not there any more");
                    charge.used(used);
                    waiting.retain(|(_, other)| *other != item);
                    open.push(charge);
                    prop_assert!(ended.insert(item));
                }
                Step::End(at) if !open.is_empty() => drop(open.swap_remove(at % open.len())),
                Step::Cancel(at) if !waiting.is_empty() => {
                    let (place, item) = waiting.remove(at % waiting.len());
                    prop_assert_eq!(desk.schedule.cancel(&place), Some(item));
                    prop_assert_eq!(desk.schedule.cancel(&place), None);
                    prop_assert!(ended.insert(item));
                }
                Step::Clear => {
                    let mut all = desk.schedule.clear();
                    all.sort_unstable();
                    prop_assert_eq!(&all, &waiting.drain(..).map(|(_, item)| item).collect::<Vec<_>>());
                    ended.extend(all);
                }
                Step::End(_) | Step::Cancel(_) => {}
            }
            prop_assert_eq!(desk.schedule.is_empty(), waiting.is_empty());
            let told: usize = desk.levels.iter().map(|level| level.waiting.load(std::sync::atomic::Ordering::Relaxed)).sum();
            prop_assert_eq!(told, waiting.len());
        }
        prop_assert_eq!(ended.len() + waiting.len(), pushed);
        drop(open);
        prop_assert!(desk.counters.values().all(|counter| counter.charged() == counter.served()));
    }

    /// Two tenants that always have something waiting are served alike, by their weights: at no moment do they differ by
    /// more than the largest request and what is open at once, from whenever on they are watched.
    #[test]
    fn who_waits_is_served_alike_by_weight(
        weights in (1u32..8, 1u32..8),
        // What each request is charged beforehand, and what it really uses.
        requests in prop::collection::vec((1u64..1_000, 0u64..1_000), 50..400),
        slots in 1usize..6, others in 0usize..3, mark in prop_oneof![Just(0u64), Just(u64::MAX - 100_000)]
    ) {
        const SCALE: i128 = 1_000_000;
        let mut desk = Desk::new([0; BANDS], mark);
        let weight = |at: usize| match at { 0 => weights.0, 1 => weights.1, _ => 1 };
        for at in 0..2 + others {
            for (tokens, used) in &requests {
                desk.push(arrival(1, at, weight(at), 0, *tokens, *used));
            }
        }
        let counters = [desk.counter(1, &tenant(0)), desk.counter(1, &tenant(1))];
        let mut open: Vec<(Charge, u64)> = Vec::new();
        let (mut least, mut most) = (i128::MAX, i128::MIN);
        let bound = |weight: u32| 1_000 * SCALE * (1 + slots as i128) / i128::from(weight);
        for _ in 0..requests.len() {
            if open.len() == slots {
                let (mut charge, used) = open.remove(0);
                // Half of it comes as a frame before the end.
                charge.used(used / 2);
                charge.used(used);
            }
            let (_, used, charge) = desk.pop(&[]).unwrap();
            open.push((charge, used));
            let apart = i128::from(counters[0].service()) - i128::from(counters[1].service());
            (least, most) = (least.min(apart), most.max(apart));
            prop_assert!(most - least <= 2 * (bound(weights.0) + bound(weights.1)), "{least} to {most}");
        }
    }

    /// Nobody waits for ever: with floors, every band that waits goes on, whatever the bands above it ask for.
    #[test]
    fn no_band_starves(floors in (1u64..=50, 1u64..=40), tokens in prop::array::uniform3(1u64..1_000)) {
        let mut desk = Desk::new([0, floors.0, floors.1], 0);
        let mut went = [0u64; BANDS];
        for (band, tokens) in tokens.into_iter().enumerate().chain(tokens.into_iter().enumerate()) {
            desk.push(arrival(band, band, 1, 0, tokens, ()));
        }
        for _ in 0..1_000 {
            let (place, (), mut charge) = desk.pop(&[]).unwrap();
            charge.used(tokens[place.band]);
            went[place.band] += tokens[place.band];
            desk.push(arrival(place.band, place.band, 1, 0, tokens[place.band], ()));
        }
        let all: u64 = went.iter().sum();
        for (band, floor) in [(1, floors.0), (2, floors.1)] {
            prop_assert!(100 * (went[band] + 2_000) >= floor * all, "band {band}: {went:?}");
        }
    }
}
