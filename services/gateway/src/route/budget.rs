//! The budget of retries: a share of the requests, so that an outage is not multiplied.

use std::sync::atomic::{AtomicI64, Ordering};

/// Retries that may be made at once before any request has paid for them, and that are saved up at most.
const SAVED: i64 = 20;
/// A retry costs so much; a request pays in as many as the settings give for each hundred.
const RETRY: i64 = 100;

/// See the module.
#[derive(Debug)]
pub(crate) struct Budget {
    percent: i64,
    left: AtomicI64,
}

impl Budget {
    /// One that allows so many retries for each 100 requests.
    pub(crate) fn new(percent: u8) -> Self {
        let saved = if percent == 0 { 0 } else { SAVED * RETRY };
        Self { percent: i64::from(percent), left: AtomicI64::new(saved) }
    }

    /// A request begins.
    pub(crate) fn request(&self) {
        // What concurrent requests pay in beyond the bound is little.
        if self.left.load(Ordering::Relaxed) < SAVED * RETRY {
            self.left.fetch_add(self.percent, Ordering::Relaxed);
        }
    }

    /// Whether a retry may be made. It is then paid for.
    pub(crate) fn retry(&self) -> bool {
        let paid = |left: i64| (left >= RETRY).then_some(left - RETRY);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, paid).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_not_multiplied() {
        let budget = Budget::new(20);
        let retries = |requests: usize| {
            let one = |_: &usize| {
                budget.request();
                budget.retry()
            };
            (0..requests).filter(one).count()
        };
        assert_eq!(retries(1000), 20 + 199, "what was saved up, and a fifth of those after the first");
        assert_eq!(retries(1000), 200);
        (0..1_000_000).for_each(|_| budget.request());
        assert_eq!((0..1000).filter(|_| budget.retry()).count(), 20);
        assert!(!Budget::new(0).retry());
    }
}
