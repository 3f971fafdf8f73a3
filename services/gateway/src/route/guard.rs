//! What a replica said of itself last, and whether that is enough to do for it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::settings::Guard;

/// A replica's own words, from its metrics. What it did not say, or what is absurd, is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Told {
    /// Requests that it works on, everybody's.
    pub running: Option<f64>,
    /// Requests that wait inside of it.
    pub waiting: Option<f64>,
    /// The share of its KV cache in use, 0 to 1.
    pub kv_cache: Option<f64>,
}

/// The latest of them. Times are milliseconds since some moment of the process, never 0.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// 0: it never said anything.
    at: AtomicU64,
    waiting: AtomicU32,
    /// Requests there that are not this gateway's.
    others: AtomicU32,
    kv_percent: AtomicU32,
}

impl Said {
    /// Takes what it says now, while so many requests of this gateway are open there.
    pub(super) fn take(&self, told: Told, active: u32, now: u64) {
        let count = |value: Option<f64>| value.filter(|value| *value >= 0.0).map_or(0, |value| value as u32);
        self.waiting.store(count(told.waiting), Ordering::Relaxed);
        let all = count(told.running).saturating_add(count(told.waiting));
        self.others.store(all.saturating_sub(active), Ordering::Relaxed);
        let kv = told.kv_cache.filter(|share| (0.0..=1.0).contains(share));
        self.kv_percent.store(count(kv.map(|share| share * 100.0)), Ordering::Relaxed);
        self.at.store(now, Ordering::Relaxed);
    }

    /// It refused a request because it is too busy: that holds until it says otherwise, or until it is stale.
    pub(super) fn overloaded(&self, now: u64) {
        self.waiting.store(u32::MAX, Ordering::Relaxed);
        self.at.store(now, Ordering::Relaxed);
    }

    /// Milliseconds since it last said anything.
    pub(super) fn age(&self, now: u64) -> u64 {
        now.saturating_sub(self.at.load(Ordering::Relaxed))
    }

    fn is_fresh(&self, guard: &Guard, now: u64) -> bool {
        self.at.load(Ordering::Relaxed) != 0 && u128::from(self.age(now)) <= guard.stale_after.as_millis()
    }

    /// Requests there that are not this gateway's, as far as is known.
    pub(super) fn others(&self, guard: &Guard, now: u64) -> u32 {
        if self.is_fresh(guard, now) { self.others.load(Ordering::Relaxed) } else { 0 }
    }

    /// Whether a replica has enough to do that works on so many requests of this gateway, and on `limit` well.
    pub(super) fn is_enough(&self, guard: &Guard, active: u32, limit: u32, now: u64) -> bool {
        if active >= limit {
            return true;
        }
        // Below the floor its words do not count: wrong ones cannot stop all traffic.
        active >= guard.floor
            && self.is_fresh(guard, now)
            && (self.waiting.load(Ordering::Relaxed) > guard.max_waiting
                || self.kv_percent.load(Ordering::Relaxed) > u32::from(guard.max_kv_cache_percent)
                || active.saturating_add(self.others.load(Ordering::Relaxed)) >= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 100_000;

    fn told(running: f64, waiting: f64, kv_cache: f64) -> Told {
        Told { running: Some(running), waiting: Some(waiting), kv_cache: Some(kv_cache) }
    }

    fn enough(told: Told, active: u32, later: u64) -> bool {
        let said = Said::default();
        said.take(told, active, NOW);
        said.is_enough(&Guard::default(), active, 10, NOW + later)
    }

    #[test]
    fn a_busy_replica_gets_no_more_until_it_says_otherwise_or_nothing() {
        assert!(!enough(told(5.0, 3.0, 0.95), 5, 0));
        assert!(enough(told(5.0, 4.0, 0.1), 5, 0), "it lets requests wait");
        assert!(enough(told(5.0, 0.0, 0.96), 5, 0), "its cache is full");
        assert!(enough(told(10.0, 0.0, 0.1), 5, 0), "others use it too");
        assert!(!enough(told(9.0, 0.0, 0.1), 5, 0));
        assert!(enough(told(0.0, 0.0, 0.0), 10, 0), "its limit holds whatever it says");
        for busy in [told(0.0, 9.0, 0.0), told(0.0, 0.0, 1.0), told(20.0, 0.0, 0.0)] {
            assert!(enough(busy, 2, 5_000) && !enough(busy, 2, 5_001), "old words say nothing");
            assert!(!enough(busy, 1, 0), "a few requests it gets in any case");
        }
        let said = Said::default();
        assert!(!said.is_enough(&Guard::default(), 5, 10, 1), "it never said anything");
        said.overloaded(NOW);
        assert!(said.is_enough(&Guard::default(), 2, 10, NOW + 1));
        said.take(told(2.0, 0.0, 0.0), 2, NOW + 2);
        assert!(!said.is_enough(&Guard::default(), 2, 10, NOW + 3));
    }

    proptest! {
        /// Whatever a replica says, it gets the floor; and what cannot be says nothing.
        #[test]
        fn no_words_stop_all_traffic(running in any::<f64>(), waiting in any::<f64>(), kv in any::<f64>(), active in 0u32..2) {
            prop_assert!(!enough(told(running, waiting, kv), active, 0));
        }
    }

    #[test]
    fn what_cannot_be_says_nothing() {
        assert!(!enough(told(-5.0, -1.0, 97.0), 5, 0));
        assert!(!enough(told(f64::NAN, f64::NAN, f64::NAN), 5, 0));
        assert!(!enough(Told::default(), 5, 0));
    }
}
