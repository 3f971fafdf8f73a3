//! The proof in numbers, in virtual time: what a tenant with a hundred times the load of each of the others does to them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::floors::BANDS;
use super::properties::{Desk, tenant};
use super::schedule::Arrival;

/// Requests that the engine works on at once.
const SLOTS: usize = 4;
/// The time that the longest request holds a slot: one service quantum. A token takes a tick.
const QUANTUM: u64 = 500;
/// Each victim sends one request in so many ticks on average, ...
const EVERY: u64 = 6_000;
/// ... and the aggressor a hundred.
const TIMES: u64 = 100;
const VICTIMS: usize = 30;
const END: u64 = 1_500_000;

/// Deterministic chance (an LCG with Knuth's constants).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

#[derive(Debug, Clone, Copy)]
struct Request {
    tenant: usize,
    at: u64,
    tokens: u64,
    /// What it holds beforehand: some ask for much more than they use, and some clients go away.
    held: u64,
}

/// All that is sent, in order: the same victims with the aggressor and without.
fn load(aggressor: bool) -> Vec<Request> {
    let mut all = Vec::new();
    for sender in 0..=VICTIMS {
        let every = if sender == 0 { EVERY / TIMES } else { EVERY };
        let mut dice = Dice(sender as u64 + 1);
        let mut at = 0;
        while at < END && (aggressor || sender > 0) {
            at += 1 + dice.below(2 * every);
            let tokens = 1 + dice.below(QUANTUM);
            all.push(Request { tenant: sender, at, tokens, held: tokens / 2 + dice.below(QUANTUM) });
        }
    }
    all.sort_by_key(|request| (request.at, request.tenant));
    all
}

/// How long each of the victims' requests waited, the shortest first. `queues`: who shares a queue with whom.
fn waits(aggressor: bool, queues: impl Fn(usize) -> usize) -> Vec<u64> {
    let mut desk: Desk<Request> = Desk::new([0; BANDS], 0);
    // When a slot is free again, and which.
    let mut ends: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    let mut slots: [_; SLOTS] = std::array::from_fn(|_| None);
    let mut waited = Vec::new();
    let mut arrivals = load(aggressor).into_iter().peekable();
    loop {
        let arrives = arrivals.peek().map(|request| request.at);
        let ends_at = ends.peek().map(|Reverse((at, _))| *at);
        let now = match (arrives, ends_at) {
            (Some(arrives), Some(ends)) => arrives.min(ends),
            (Some(now), None) | (None, Some(now)) => now,
            (None, None) => break,
        };
        while let Some(Reverse((_, slot))) = ends.peek().filter(|Reverse((at, _))| *at == now).copied() {
            ends.pop();
            slots[slot] = None;
        }
        while let Some(request) = arrivals.next_if(|request| request.at == now) {
            let (tokens, tenant) = (request.held, tenant(queues(request.tenant)));
            desk.push(Arrival { band: 1, tenant, weight: 1, lane: 0, tokens, item: request });
        }
        for (slot, open) in slots.iter_mut().enumerate().filter(|(_, open)| open.is_none()) {
            let Some((_, request, mut charge)) = desk.pop(&[]) else { break };
            if request.tenant > 0 {
                waited.push(now - request.at);
            }
            ends.push(Reverse((now + request.tokens, slot)));
            // As with an engine: a first count at once, the rest when it ends.
            charge.used(request.tokens / 2);
            *open = Some(Ended { charge, tokens: request.tokens });
        }
    }
    waited.sort_unstable();
    waited
}

/// Tells its last count as it ends.
struct Ended {
    charge: super::Charge,
    tokens: u64,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.charge.used(self.tokens);
    }
}

fn p99(waited: &[u64]) -> u64 {
    waited[waited.len() * 99 / 100]
}

#[test]
fn a_tenant_with_a_hundred_times_the_load_moves_the_others_by_at_most_one_quantum() {
    let work: u64 = load(true).iter().map(|request| request.tokens).sum();
    assert!(work > END * SLOTS as u64 * 11 / 10, "together they ask for more than the engine can do: {work}");
    let (without, with) = (waits(false, |tenant| tenant), waits(true, |tenant| tenant));
    assert_eq!(without.len(), with.len());
    assert!(without.len() > 7_000, "{}", without.len());
    let moved = p99(&with).saturating_sub(p99(&without));
    assert!(moved <= QUANTUM, "p99 {} without, {} with, the quantum is {QUANTUM}", p99(&without), p99(&with));
    // The same load in one queue: it is the order that makes the difference.
    let one_queue = waits(true, |_| 0);
    assert!(p99(&one_queue) > 20 * QUANTUM, "{}", p99(&one_queue));
}
