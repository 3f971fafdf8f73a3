//! Tokens by class and requests, as an answer tells them and as billing shows them.

use serde::{Deserialize, Serialize};

/// Counts, or differences of counts. The classes are disjoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    #[serde(default)]
    pub(crate) input: i64,
    #[serde(default)]
    pub(crate) cached_input: i64,
    #[serde(default)]
    pub(crate) output: i64,
    #[serde(default)]
    pub(crate) reasoning: i64,
    /// Requests that used something.
    #[serde(default)]
    pub(crate) requests: i64,
}

/// Names of the figures, in the order of [`Counts::all`].
const NAMES: [&str; 5] = ["input", "cached input", "output", "reasoning", "requests"];

impl Counts {
    const fn all(self) -> [i64; 5] {
        [self.input, self.cached_input, self.output, self.reasoning, self.requests]
    }

    fn with(self, other: Self, of: impl Fn(i64, i64) -> i64) -> Self {
        let [input, cached_input, output, reasoning, requests] =
            std::array::from_fn(|at| of(self.all()[at], other.all()[at]));
        Self { input, cached_input, output, reasoning, requests }
    }

    /// The sum. What is beyond all bounds is no usage, and stays there.
    pub(crate) fn plus(self, other: Self) -> Self {
        self.with(other, i64::saturating_add)
    }

    /// The difference.
    pub(crate) fn minus(self, other: Self) -> Self {
        self.with(other, i64::saturating_sub)
    }

    /// Whether any figure is above zero.
    pub(crate) fn any_above_zero(self) -> bool {
        self.all().into_iter().any(|figure| figure > 0)
    }
}

/// What is not zero: `input 12, output 4`.
impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = NAMES.into_iter().zip(self.all()).filter(|(_, figure)| *figure != 0);
        let shown: Vec<_> = shown.map(|(name, figure)| format!("{name} {figure}")).collect();
        f.write_str(if shown.is_empty() { "nothing" } else { "" })?;
        f.write_str(&shown.join(", "))
    }
}
