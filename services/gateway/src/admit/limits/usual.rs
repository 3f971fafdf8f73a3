//! What a key and a model usually use: an estimate of a request's tokens, learnt at settlement, for limits that bend.
//!
//! A client that names a `max_tokens` of 100,000 and uses 200 would hold a minute's worth of its limit for nothing. So what a
//! limit per minute is asked for is what such requests used before: their mean and four times their mean deviation, as
//! TCP expects its round trips (RFC 6298), which a high quantile of anything but a wild distribution lies below.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashMap};
use ledger::ids::{ApiKeyId, ModelId};

/// Of one tenant so many pairs of key and model are remembered, those seen last.
const REMEMBERED: usize = 256;
/// Fractions of the averages, in bits.
const FRACTION: u32 = 8;
/// What is learnt is bounded, so that sums of it are far from 64 bits.
const MOST: u64 = 1 << 40;
/// Input is learnt as a part of its bound, in parts of so many.
const WHOLE: u64 = 1024;

/// A key and a model, for one request: where it looks, and where it learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Habit(u64);

/// A mean and a mean deviation. An observation's weight halves with every five or so that follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Average {
    mean: u64,
    deviation: u64,
}

impl Average {
    fn first(value: u64) -> Self {
        let value = value.min(MOST) << FRACTION;
        Self { mean: value, deviation: value / 2 }
    }

    /// A quarter of the way in the deviation, an eighth in the mean, rounded so that neither rests below what it nears.
    fn learn(&mut self, value: u64) {
        let value = value.min(MOST) << FRACTION;
        let toward = |from: u64, to: u64, part: u64| {
            if to >= from { from + (to - from).div_ceil(part) } else { from - (from - to) / part }
        };
        self.deviation = toward(self.deviation, self.mean.abs_diff(value), 4);
        self.mean = toward(self.mean, value, 8);
    }

    fn mean(self) -> u64 {
        self.mean >> FRACTION
    }

    fn high(self) -> u64 {
        (self.mean + 4 * self.deviation) >> FRACTION
    }
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    input: Average,
    output: Average,
    /// When it was last asked for, in requests of the tenant.
    at: u64,
}

/// What a request is of, for its estimate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// The bound of its input, in tokens: bytes of its prompts, for the most part.
    pub input_bound: u64,
    /// Answers that it asks for: choices, over all prompts; 0 where nothing is generated.
    pub answers: u64,
}

/// What requests of a key and a model use, in tokens of input and of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expected {
    /// On average: what the queue charges beforehand.
    pub mean: (u64, u64),
    /// Usually at most: what limits per minute are asked for.
    pub most: (u64, u64),
}

/// See the module. Of one tenant.
#[derive(Debug, Default)]
pub(crate) struct Usual {
    seen: HashMap<Habit, Seen>,
    hasher: DefaultHashBuilder,
    requests: u64,
}

impl Usual {
    /// The place of this key and model.
    pub(crate) fn habit(&self, key: ApiKeyId, model: &ModelId) -> Habit {
        Habit(self.hasher.hash_one((key, model)))
    }

    /// What a request of this size is expected to use; none before the first was seen.
    pub(crate) fn expected(&mut self, habit: Habit, size: Size) -> Option<Expected> {
        self.requests += 1;
        let seen = self.seen.get_mut(&habit)?;
        seen.at = self.requests;
        let of = |input: u64, output: u64| {
            (input.saturating_mul(size.input_bound).div_ceil(WHOLE), output.saturating_mul(size.answers))
        };
        Some(Expected {
            mean: of(seen.input.mean(), seen.output.mean()),
            most: of(seen.input.high(), seen.output.high()),
        })
    }

    /// A request of this size used so much.
    pub(crate) fn learn(&mut self, habit: Habit, size: Size, input: u64, output: u64) {
        let input = input.min(MOST).saturating_mul(WHOLE).div_ceil(size.input_bound.max(1));
        let output = output.div_ceil(size.answers.max(1));
        if let Some(seen) = self.seen.get_mut(&habit) {
            seen.input.learn(input);
            seen.output.learn(output);
            return;
        }
        if self.seen.len() >= REMEMBERED
            && let Some(oldest) = self.seen.iter().min_by_key(|(_, seen)| seen.at).map(|(habit, _)| *habit)
        {
            self.seen.remove(&oldest);
        }
        let (input, output) = (Average::first(input), Average::first(output));
        self.seen.insert(habit, Seen { input, output, at: self.requests });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    const ONE: Size = Size { input_bound: 4096, answers: 1 };

    fn habit(usual: &Usual, key: u128) -> Habit {
        usual.habit(ApiKeyId(Uuid::from_u128(key)), &"llama".parse().unwrap())
    }

    fn most(usual: &mut Usual, habit: Habit, size: Size) -> Option<(u64, u64)> {
        usual.expected(habit, size).map(|expected| expected.most)
    }

    #[test]
    fn steady_use_is_expected_exactly_and_one_outlier_is_soon_forgotten() {
        let mut usual = Usual::default();
        let of = habit(&usual, 1);
        assert_eq!(most(&mut usual, of, ONE), None);
        usual.learn(of, ONE, 1000, 200);
        let mean = (1000, 200);
        assert_eq!(usual.expected(of, ONE), Some(Expected { mean, most: (3000, 600) }), "one is not much to go by");
        for _ in 0..60 {
            usual.learn(of, ONE, 1000, 200);
        }
        assert_eq!(most(&mut usual, of, ONE), Some((1000, 200)));
        assert_eq!(most(&mut usual, of, Size { input_bound: 8192, answers: 3 }), Some((2000, 600)));
        usual.learn(of, ONE, 1000, 100_000);
        assert!(most(&mut usual, of, ONE).unwrap().1 > 100_000);
        for _ in 0..60 {
            usual.learn(of, ONE, 1000, 200);
        }
        assert!(most(&mut usual, of, ONE).unwrap().1 < 250);
    }

    #[test]
    fn those_seen_last_are_remembered_and_no_more() {
        let mut usual = Usual::default();
        let first = habit(&usual, 0);
        usual.learn(first, ONE, 5, 5);
        for key in 1..=2 * REMEMBERED as u128 {
            assert!(most(&mut usual, first, ONE).is_some());
            let of = habit(&usual, key);
            usual.learn(of, ONE, 5, 5);
        }
        assert_eq!(usual.seen.len(), REMEMBERED);
        let (old, new) = (habit(&usual, 1), habit(&usual, 2 * REMEMBERED as u128));
        assert_eq!((most(&mut usual, old, ONE), most(&mut usual, new, ONE).is_some()), (None, true));
    }

    proptest! {
        /// Of requests that use anything between two bounds, the estimate ends between the lower one and five times
        /// the upper, whatever was before; and it covers nearly all of them when they come in no order.
        #[test]
        fn the_estimate_is_of_the_size_of_what_is_used(before in prop::collection::vec(any::<u64>(), 0..5), low in 1u64..5000, span in 0u64..5000, used in prop::collection::vec(0u64..=1000, 300)) {
            let mut usual = Usual::default();
            let of = habit(&usual, 1);
            for any in before {
                usual.learn(of, ONE, any, any);
            }
            let (mut covered, mut tried) = (0, 0);
            for (at, part) in used.iter().enumerate() {
                let output = low + span * part / 1000;
                if at >= 260 {
                    tried += 1;
                    covered += u32::from(most(&mut usual, of, ONE).unwrap().1 >= output);
                }
                usual.learn(of, ONE, 10, output);
            }
            let (_, estimate) = most(&mut usual, of, ONE).unwrap();
            prop_assert!(low <= estimate && estimate <= 5 * (low + span) + 8, "{estimate}");
            prop_assert!(covered * 10 >= tried * 9, "{covered} of {tried}");
        }

        #[test]
        fn nothing_overflows(values in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()), 1..20)) {
            let mut usual = Usual::default();
            let of = habit(&usual, 1);
            for (input_bound, answers, input, output) in values {
                let size = Size { input_bound, answers };
                usual.learn(of, size, input, output);
                most(&mut usual, of, size).unwrap();
            }
        }
    }
}
