//! Which band goes next: the highest, but for what the floors of the others owe them.

use ledger::control::ServiceTier;

/// Bands, the first served first.
pub(crate) const BANDS: usize = ServiceTier::ALL.len();

/// The place of a band among all.
pub(crate) const fn band_of(tier: ServiceTier) -> usize {
    match tier {
        ServiceTier::Priority => 0,
        ServiceTier::Default => 1,
        ServiceTier::Flex => 2,
    }
}

/// See the module. Pure: it is told which bands could go and what went.
///
/// For every 100 tokens that are dispatched while a band waits, it is owed its floor, and for every token of its own it owes
/// 100 hundredths. A band that is owed anything goes first. So over any time in which it waits without a break, its share of the
/// tokens is its floor at least, but for about one request.
#[derive(Debug)]
pub(crate) struct Floors {
    percent: [u64; BANDS],
    /// In hundredths of tokens.
    owed: [i128; BANDS],
    largest: u64,
}

impl Floors {
    /// Nobody is owed anything.
    pub(crate) fn new(percent: [u64; BANDS]) -> Self {
        Self { percent, owed: [0; BANDS], largest: 0 }
    }

    /// The band to go among those that could.
    pub(crate) fn next(&self, could: [bool; BANDS]) -> Option<usize> {
        let waits = || (0..BANDS).filter(|band| could[*band]);
        let owed = waits().filter(|band| self.owed[*band] > 0).max_by_key(|band| self.owed[*band]);
        owed.or_else(|| waits().next())
    }

    /// So many tokens of `band` went, while these could have.
    pub(crate) fn went(&mut self, band: usize, tokens: u64, could: [bool; BANDS]) {
        self.largest = self.largest.max(tokens);
        let (tokens, most) = (i128::from(tokens), i128::from(self.largest) * 100);
        for at in (0..BANDS).filter(|at| could[*at]) {
            let percent = i128::from(self.percent[at]);
            let owed = &mut self.owed[at];
            *owed += percent * tokens;
            if at == band {
                // It owes one request at most: what it got while nobody else wanted it is no debt.
                *owed = (*owed - 100 * tokens).max((percent - 100) * tokens);
            }
            *owed = (*owed).min(most);
        }
    }

    /// Nothing of this band waits any more: it is owed nothing.
    pub(crate) fn empty(&mut self, band: usize) {
        self.owed[band] = self.owed[band].min(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn higher_bands_go_first_and_floors_hold() {
        let mut floors = Floors::new([0, 20, 5]);
        let all = [true; BANDS];
        let mut went = [0; BANDS];
        for _ in 0..2_000 {
            let band = floors.next(all).unwrap();
            floors.went(band, 10, all);
            went[band] += 1;
        }
        assert_eq!(went, [1_500, 400, 100]);
        assert_eq!(floors.next([false, false, true]), Some(2));
        assert_eq!(floors.next([false; BANDS]), None);
    }

    #[test]
    fn what_a_band_got_while_nobody_else_wanted_it_is_no_debt() {
        let mut floors = Floors::new([0, 0, 50]);
        for _ in 0..1_000 {
            floors.went(2, 1_000_000, [false, false, true]);
        }
        let both = [true, false, true];
        let mut went = 0;
        for _ in 0..8 {
            let band = floors.next(both).unwrap();
            floors.went(band, 1_000_000, both);
            went += usize::from(band == 2);
        }
        assert_eq!(went, 3, "it owes for one request, not for a thousand");
    }

    proptest! {
        /// In any stretch in which a band could always go, it gets its floor, but for two of the largest requests.
        #[test]
        fn a_band_that_waits_gets_its_floor(
            floor in (0u64..=50, 0u64..=40),
            before in prop::collection::vec((prop::array::uniform3(any::<bool>()), prop::array::uniform3(1u64..1_000)), 0..60),
            stretch in prop::collection::vec((prop::array::uniform3(any::<bool>()), prop::array::uniform3(1u64..1_000)), 1..200),
            watched in 1usize..BANDS
        ) {
            let percent = [0, floor.0, floor.1];
            let mut floors = Floors::new(percent);
            let mut step = |could: [bool; BANDS], costs: [u64; BANDS]| {
                let band = floors.next(could)?;
                floors.went(band, costs[band], could);
                Some((band, costs[band]))
            };
            for (could, costs) in before {
                step(could, costs);
            }
            let (mut all, mut own) = (0, 0);
            for (mut could, costs) in stretch {
                could[watched] = true;
                let (band, cost) = step(could, costs).unwrap();
                all += cost;
                own += if band == watched { cost } else { 0 };
                prop_assert!(100 * (own + 2_000) >= percent[watched] * all, "{own} of {all}");
            }
        }
    }
}
