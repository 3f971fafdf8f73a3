//! What a tenant was served, by its weight: the Virtual Token Counter, and what open requests are charged of it.

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// A token at weight 1 is so much on a counter, at weight 2 half of it.
const SCALE: u64 = 1_000_000;
/// No request holds more tokens than this beforehand, whatever it asks for.
const MOST_HELD: u64 = 1 << 24;
/// No request is taken to have used more than this, whatever an engine says.
const MOST_USED: u64 = 1 << 36;

/// Where a counter stands. Counters wrap around, so that none ever overflows: two of them are compared by their distance,
/// which is far below half of what a `u64` holds, as who is idle is forgotten or lifted.
pub(crate) type Mark = u64;

/// Which of two marks is behind.
pub(crate) fn compare(one: Mark, other: Mark) -> Ordering {
    one.wrapping_sub(other).cast_signed().cmp(&0)
}

fn scaled(tokens: u64, weight: u32) -> u64 {
    let share = u128::from(tokens) * u128::from(SCALE) / u128::from(weight.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// The mark that tenants of one band have come to while none of them waited: whoever begins to wait is lifted to it.
#[derive(Debug, Default)]
pub(crate) struct Level {
    mark: AtomicU64,
    /// Requests of the band that wait.
    pub waiting: AtomicUsize,
}

impl Level {
    /// One that begins at `mark`.
    #[cfg(test)]
    pub(crate) fn at(mark: Mark) -> Self {
        Self { mark: AtomicU64::new(mark), waiting: AtomicUsize::new(0) }
    }

    /// Where it stands.
    pub(crate) fn mark(&self) -> Mark {
        self.mark.load(Relaxed)
    }

    /// Never goes back.
    pub(crate) fn raise(&self, to: Mark) {
        let mut seen = self.mark();
        while compare(seen, to).is_lt() {
            match self.mark.compare_exchange_weak(seen, to, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }
}

/// See the module. Touched without a lock: by each frame of an answer.
#[derive(Debug)]
pub(crate) struct Counter {
    /// What was really served.
    served: AtomicU64,
    /// The same, and what open requests hold beyond what they have used: by it tenants are ordered.
    charged: AtomicU64,
    /// How much of it was a gift: see [`Counter::lift`].
    lifted: AtomicU64,
    level: Arc<Level>,
}

impl Counter {
    /// A tenant that is new comes without credit.
    pub(crate) fn new(level: Arc<Level>) -> Self {
        let at = level.mark();
        Self { served: AtomicU64::new(at), charged: AtomicU64::new(at), lifted: AtomicU64::new(at), level }
    }

    /// What orders tenants that wait: the smallest is next.
    pub(crate) fn charged(&self) -> Mark {
        self.charged.load(Relaxed)
    }

    /// What it was served.
    pub(crate) fn served(&self) -> Mark {
        self.served.load(Relaxed)
    }

    /// Tokens by weight that were really served since the counter began, times a constant.
    pub(crate) fn service(&self) -> u64 {
        self.served().wrapping_sub(self.lifted.load(Relaxed))
    }

    /// Time in which a tenant wanted nothing is no credit: who comes back begins where the others are.
    pub(crate) fn lift(&self, to: Mark) {
        let served = self.served();
        if compare(served, to).is_lt() {
            let gift = to.wrapping_sub(served);
            for mark in [&self.served, &self.charged, &self.lifted] {
                mark.fetch_add(gift, Relaxed);
            }
        }
    }

    /// Whether forgetting it changes nothing: its tenant would be lifted further than it stands.
    pub(crate) fn is_idle(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 && compare(self.served(), self.level.mark()).is_le()
    }

    /// Charges what a request is expected to use, as it is dispatched.
    pub(crate) fn charge(self: &Arc<Self>, tokens: u64, weight: u32) -> Charge {
        let held = scaled(tokens.min(MOST_HELD), weight);
        self.charged.fetch_add(held, Relaxed);
        if self.level.waiting.load(Relaxed) == 0 {
            self.level.raise(self.served());
        }
        Charge { counter: Arc::clone(self), weight, held, used: 0 }
    }
}

/// What one request is charged. Dropped, what it held and did not use is given back.
#[derive(Debug)]
pub(crate) struct Charge {
    counter: Arc<Counter>,
    weight: u32,
    /// Charged and not used yet.
    held: u64,
    used: u64,
}

impl Charge {
    /// The request has used so many tokens until now. An engine's last word may be less than the one before.
    pub(crate) fn used(&mut self, tokens: u64) {
        let used = scaled(tokens.min(MOST_USED), self.weight);
        let more = used.wrapping_sub(self.used);
        if more == 0 {
            return;
        }
        self.counter.served.fetch_add(more, Relaxed);
        // What was held pays first; tokens that nobody expected are charged as they come, and taken back if they were none.
        let paid = if more.cast_signed() > 0 { more.min(self.held) } else { 0 };
        if more != paid {
            self.counter.charged.fetch_add(more.wrapping_sub(paid), Relaxed);
        }
        self.held -= paid;
        self.used = used;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.counter.charged.fetch_sub(self.held, Relaxed);
        let level = &self.counter.level;
        if level.waiting.load(Relaxed) == 0 {
            // Nobody waited for what this tenant got: it is not held against it.
            level.raise(self.counter.served());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counter(at: Mark) -> Arc<Counter> {
        Arc::new(Counter::new(Arc::new(Level::at(at))))
    }

    #[test]
    fn what_was_held_pays_first_and_what_is_not_used_comes_back() {
        let counter = counter(0);
        let mut charge = counter.charge(100, 2);
        assert_eq!((counter.charged(), counter.served()), (50 * SCALE, 0));
        charge.used(40);
        assert_eq!((counter.charged(), counter.served()), (50 * SCALE, 20 * SCALE));
        charge.used(120);
        assert_eq!((counter.charged(), counter.served()), (60 * SCALE, 60 * SCALE));
        charge.used(110);
        assert_eq!((counter.charged(), counter.served()), (55 * SCALE, 55 * SCALE));
        drop(charge);
        let aborted = counter.charge(100, 1);
        assert_eq!(counter.charged(), 155 * SCALE);
        drop(aborted);
        assert_eq!((counter.charged(), counter.service()), (55 * SCALE, 55 * SCALE));
    }

    #[test]
    fn what_nobody_waited_for_is_held_against_nobody() {
        let level = Arc::new(Level::default());
        let (busy, idle) = (Arc::new(Counter::new(level.clone())), Arc::new(Counter::new(level.clone())));
        busy.charge(10, 1).used(1_000);
        assert_eq!(level.mark(), 1_000 * SCALE);
        idle.lift(level.mark());
        assert_eq!((compare(idle.served(), busy.served()), idle.service()), (Ordering::Equal, 0));
        level.waiting.store(1, Relaxed);
        busy.charge(10, 1).used(500);
        assert_eq!(level.mark(), 1_000 * SCALE, "somebody waited");
        assert!(idle.is_idle() && !busy.is_idle());
    }

    proptest! {
        /// However a request goes, in the end its tenant was charged what it used; near the end of what a counter holds too.
        #[test]
        fn in_the_end_what_is_charged_is_what_was_served(
            start in prop_oneof![Just(0u64), Just(u64::MAX - 5), any::<u64>()],
            requests in prop::collection::vec((any::<u64>(), any::<u32>(), prop::collection::vec(0u64..1 << 36, 0..6)), 1..8)
        ) {
            let counter = counter(start);
            let mut wanted = start;
            let mut open = Vec::new();
            for (cost, weight, frames) in requests {
                let mut charge = counter.charge(cost, weight);
                for used in &frames {
                    charge.used(*used);
                }
                wanted = wanted.wrapping_add(scaled(frames.last().copied().unwrap_or(0), weight));
                open.push(charge);
                prop_assert_eq!(counter.served(), wanted);
                prop_assert!(compare(counter.served(), counter.charged()).is_le());
            }
            drop(open);
            prop_assert_eq!(counter.charged(), wanted);
        }
    }
}
