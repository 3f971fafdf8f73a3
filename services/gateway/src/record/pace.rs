//! The pace of a stream: when its last tokens came, and how long each of the next ones took.

use ledger::time::Micros;
use prometheus::Histogram;

/// See the module.
#[derive(Debug)]
pub(crate) struct Pace {
    last: Option<(Micros, u64)>,
    seen: Histogram,
}

impl Pace {
    /// No token yet; distances go to this metric.
    pub(crate) fn new(metric: &Histogram) -> Self {
        Self { last: None, seen: metric.clone() }
    }

    /// So many tokens in all have come by now. Those that came together share the time since those before them.
    pub(crate) fn tokens(&mut self, now: Micros, total: u64) {
        let Some((at, before)) = self.last else {
            if total > 0 {
                self.last = Some((now, total));
            }
            return;
        };
        let Some(more) = total.checked_sub(before).filter(|more| *more > 0) else { return };
        #[expect(clippy::cast_precision_loss, reason = "a distribution of durations: the last bits do not matter")]
        let each = now.0.saturating_sub(at.0).max(0) as f64 / 1e6 / more as f64;
        self.seen.observe(each);
        self.last = Some((now, total));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_come_together_share_the_time_since_those_before() {
        let metric =
            Histogram::with_opts(prometheus::HistogramOpts::new("x", "x").buckets(vec![0.05, 0.2, 1.0])).unwrap();
        let mut pace = Pace::new(&metric);
        for (at, total) in [(0, 0), (5_000_000, 1), (5_100_000, 2), (5_100_000, 2), (5_500_000, 6), (5_400_000, 7)] {
            pace.tokens(Micros(at), total);
        }
        assert_eq!(
            metric.get_sample_count(),
            3,
            "the first token has no distance, and an event without tokens is none"
        );
        assert!((metric.get_sample_sum() - 0.2).abs() < 1e-9, "{}", metric.get_sample_sum());
    }
}
