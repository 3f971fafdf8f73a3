//! How fairly tenants that wait are served: Jain's index over a sliding window. Pure: told once a tick who waits.

use std::collections::{BTreeMap, VecDeque};

use ledger::ids::TenantId;

/// Ticks of the window.
const TICKS: usize = 60;

/// See the module.
///
/// Who wants little gets little and is served fairly all the same. So what counts is how much a tenant got, by its weight, in
/// the ticks at whose begin and end it had requests waiting: `(Σx)² / (n·Σx²)` over the means of these, 1 when all are
/// served alike, `1/n` when one gets it all. Alone, a tenant is served fairly.
#[derive(Debug, Default)]
pub(crate) struct Fairness {
    before: BTreeMap<TenantId, u64>,
    window: VecDeque<Vec<(TenantId, u64)>>,
}

impl Fairness {
    /// A tick: the tenants that wait now, and what each was served by its weight, ever.
    pub(crate) fn tick(&mut self, waiting: impl Iterator<Item = (TenantId, u64)>) {
        let now: BTreeMap<TenantId, u64> = waiting.collect();
        let served = now.iter().filter_map(|(tenant, service)| {
            let before = self.before.get(tenant)?;
            Some((tenant.clone(), service.wrapping_sub(*before)))
        });
        self.window.push_back(served.collect());
        if self.window.len() > TICKS {
            self.window.pop_front();
        }
        self.before = now;
    }

    /// The index, from 0 to 1.
    pub(crate) fn index(&self) -> f64 {
        let mut sums: BTreeMap<&TenantId, (f64, f64)> = BTreeMap::new();
        for (tenant, service) in self.window.iter().flatten() {
            let (sum, ticks) = sums.entry(tenant).or_default();
            // Tokens that come back after a tick was counted are a small negative number here.
            *sum += service.cast_signed() as f64;
            *ticks += 1.0;
        }
        let means: Vec<f64> = sums.values().map(|(sum, ticks)| (sum / ticks).max(0.0)).collect();
        let (sum, squares) = means.iter().fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
        if squares == 0.0 { 1.0 } else { sum * sum / (means.len() as f64 * squares) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tenants: &[(&str, u64)]) -> Vec<(TenantId, u64)> {
        tenants.iter().map(|(id, service)| (id.parse().unwrap(), *service)).collect()
    }

    #[test]
    fn only_those_that_wait_are_compared() {
        let mut fairness = Fairness::default();
        assert_eq!(fairness.index(), 1.0);
        fairness.tick(of(&[("a", 100), ("b", 900)]).into_iter());
        assert_eq!(fairness.index(), 1.0, "nothing was served yet that anybody waited for");
        fairness.tick(of(&[("a", 150), ("b", 950), ("c", 0)]).into_iter());
        assert_eq!(fairness.index(), 1.0, "the newcomer did not wait long enough");
        fairness.tick(of(&[("a", 150), ("b", 950), ("c", 50)]).into_iter());
        let index = fairness.index();
        assert!((0.88..0.90).contains(&index), "means 25, 25, 50: {index}");
        for tick in 0..=TICKS as u64 {
            fairness.tick(of(&[("a", 150 + 100 * tick), ("b", 950)]).into_iter());
        }
        let index = fairness.index();
        assert!((0.49..0.51).contains(&index), "one gets it all: {index}");
    }
}
