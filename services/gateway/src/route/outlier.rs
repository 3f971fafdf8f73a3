//! What requests say of a replica: one whose requests fail is left alone for a time that grows, and comes back slowly.
//!
//! Health checks do not see an engine that answers 200 and fails in the stream, or whose health is answered by another
//! process than its requests. Success costs two plain atomic operations.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::settings::Ejection;

/// So many doublings at most.
const TIMES: u32 = 20;
/// The smallest share that a replica gets back: else nobody would learn that it serves again.
const LEAST_SHARE: f64 = 0.05;

/// Times are milliseconds since some moment of the process, never 0.
#[derive(Debug, Default)]
pub(super) struct Outlier {
    /// Failures since the last success.
    in_a_row: AtomicU32,
    /// Requests that ended in this window.
    ended: AtomicU32,
    failed: AtomicU32,
    window_began: AtomicU64,
    /// 0: it never was ejected.
    until: AtomicU64,
    /// Ejections that are not forgiven yet.
    times: AtomicU32,
}

/// What a failure came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Stays,
    /// It gets nothing for so long.
    Ejected(Duration),
    /// It would be ejected, but so many others are already.
    Spared,
}

impl Outlier {
    /// A request was answered.
    pub(super) fn served(&self) {
        if self.in_a_row.load(Ordering::Relaxed) != 0 {
            self.in_a_row.store(0, Ordering::Relaxed);
        }
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// A request failed, and it is the replica's fault. `may` says whether another one may be ejected now.
    pub(super) fn failed(&self, settings: &Ejection, now: u64, may: impl FnOnce() -> bool) -> Verdict {
        let until = self.until.load(Ordering::Relaxed);
        if now < until {
            // It was sent before it was ejected.
            return Verdict::Stays;
        }
        let in_a_row = self.in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        self.turn_window(settings, now);
        let ended = self.ended.fetch_add(1, Ordering::Relaxed) + 1;
        let failed = self.failed.fetch_add(1, Ordering::Relaxed) + 1;
        let too_many = ended >= settings.min_requests
            && u64::from(failed) * 100 >= u64::from(ended) * u64::from(settings.failure_percent);
        if in_a_row < settings.consecutive_failures && !too_many {
            return Verdict::Stays;
        }
        if !may() {
            return Verdict::Spared;
        }
        let time = self.next_time(settings, now.saturating_sub(until));
        let ends = now.saturating_add(millis(time));
        if self.until.compare_exchange(until, ends, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            // Another request that failed at the same moment did it.
            return Verdict::Stays;
        }
        for count in [&self.in_a_row, &self.ended, &self.failed] {
            count.store(0, Ordering::Relaxed);
        }
        Verdict::Ejected(time)
    }

    /// Doubles with each ejection; a time as long as the longest without one forgives one.
    fn next_time(&self, settings: &Ejection, since: u64) -> Duration {
        let forgiven = u32::try_from(since / millis(settings.max_time).max(1)).unwrap_or(u32::MAX);
        let times = self.times.load(Ordering::Relaxed).saturating_sub(forgiven).min(TIMES);
        self.times.store(times + 1, Ordering::Relaxed);
        settings.time.saturating_mul(1 << times).min(settings.max_time)
    }

    fn turn_window(&self, settings: &Ejection, now: u64) {
        let began = self.window_began.load(Ordering::Relaxed);
        if now.saturating_sub(began) >= millis(settings.window)
            && self.window_began.compare_exchange(began, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.ended.store(0, Ordering::Relaxed);
            self.failed.store(0, Ordering::Relaxed);
        }
    }

    /// The share of its requests that it may get now: 0 while it is ejected, 1 when all is well.
    pub(super) fn share(&self, settings: &Ejection, now: u64) -> f64 {
        let until = self.until.load(Ordering::Relaxed);
        if until == 0 {
            return 1.0;
        }
        if now < until {
            return 0.0;
        }
        let (back, whole) = (now - until, millis(settings.return_time));
        if back >= whole { 1.0 } else { LEAST_SHARE.max(back as f64 / whole as f64) }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1000;

    fn settings() -> Ejection {
        Ejection::default()
    }

    fn fail(outlier: &Outlier, times: u32, now: u64) -> Verdict {
        (0..times).map(|_| outlier.failed(&settings(), now, || true)).last().unwrap()
    }

    #[test]
    fn failures_in_a_row_eject_for_a_time_that_grows_and_is_forgiven() {
        let (outlier, mut now) = (Outlier::default(), 1);
        fail(&outlier, 4, now);
        outlier.served();
        assert_eq!(fail(&outlier, 4, now), Verdict::Stays, "a success between them");
        outlier.served();
        for seconds in [10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(fail(&outlier, 5, now), Verdict::Ejected(Duration::from_secs(seconds)), "{seconds}");
            assert_eq!(outlier.share(&settings(), now), 0.0);
            assert_eq!(fail(&outlier, 9, now), Verdict::Stays, "it is out already");
            now += seconds * SECOND;
        }
        now += 299 * SECOND;
        assert_eq!(fail(&outlier, 5, now), Verdict::Ejected(Duration::from_secs(300)));
        now += 300 * SECOND + 20 * 300 * SECOND;
        assert_eq!(fail(&outlier, 5, now), Verdict::Ejected(Duration::from_secs(10)), "long ago is forgiven");
    }

    #[test]
    fn it_comes_back_slowly() {
        let outlier = Outlier::default();
        assert_eq!(outlier.share(&settings(), 1), 1.0);
        fail(&outlier, 5, 1);
        let share = |seconds: u64| outlier.share(&settings(), 1 + seconds * SECOND);
        assert_eq!([share(9), share(10), share(25), share(39), share(40)], [0.0, 0.05, 0.5, 29.0 / 30.0, 1.0]);
    }

    #[test]
    fn a_share_of_failures_ejects_if_they_are_enough_and_of_now() {
        let of = |served: u32, later: u64| {
            let outlier = Outlier::default();
            let mut verdict = Verdict::Stays;
            for n in 0..20 {
                (0..served).for_each(|_| outlier.served());
                verdict = outlier.failed(&settings(), 20 * SECOND + n * later, || true);
                if verdict != Verdict::Stays {
                    break;
                }
            }
            verdict
        };
        assert_eq!(of(1, 0), Verdict::Ejected(Duration::from_secs(10)), "every second one");
        assert_eq!(of(2, 0), Verdict::Stays, "every third one");
        assert_eq!(of(1, 2 * SECOND), Verdict::Stays, "five in a window are too few to tell");
    }

    #[test]
    fn none_is_ejected_when_too_many_are_and_it_is_when_they_are_back() {
        let outlier = Outlier::default();
        let failed = |may| (0..5).map(|_| outlier.failed(&settings(), 1, || may)).last().unwrap();
        assert_eq!(failed(false), Verdict::Spared);
        assert_eq!(outlier.share(&settings(), 1), 1.0);
        assert_eq!(outlier.failed(&settings(), 1, || true), Verdict::Ejected(Duration::from_secs(10)));
    }

    proptest! {
        /// Whatever happens, it comes back: no ejection is longer than the longest, and its share is never nothing after it.
        #[test]
        fn it_always_comes_back(steps in prop::collection::vec((any::<bool>(), 0u64..100_000), 0..200)) {
            let (outlier, mut now) = (Outlier::default(), 1);
            for (failed, later) in steps {
                now += later;
                if !failed {
                    outlier.served();
                } else if let Verdict::Ejected(time) = outlier.failed(&settings(), now, || true) {
                    prop_assert!(time >= settings().time && time <= settings().max_time);
                }
                prop_assert!(outlier.share(&settings(), now + millis(settings().max_time)) > 0.0);
            }
        }
    }
}
