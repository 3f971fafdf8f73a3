//! The four disjoint token classes, their counts, and the one place where an engine's usage is split into them.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a token is billed as. Disjoint: a token is in exactly one class, and their sum is the total.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenClass {
    /// Prompt tokens that the engine had to compute.
    Input,
    /// Prompt tokens that the engine found in its prefix cache.
    CachedInput,
    /// Generated tokens that are no reasoning.
    Output,
    /// Generated tokens of the model's reasoning.
    Reasoning,
}

impl TokenClass {
    /// All classes, in the order in which they are written.
    pub const ALL: [Self; 4] = [Self::Input, Self::CachedInput, Self::Output, Self::Reasoning];

    /// The name in events, tables and interfaces.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::CachedInput => "cached_input",
            Self::Output => "output",
            Self::Reasoning => "reasoning",
        }
    }
}

/// The most tokens of one class in one event: far above any request, far below where a sum of them could wrap.
pub const TOKENS_MAX: u64 = 1 << 40;

/// Why counts are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TokenError {
    /// A part is larger than the whole that should hold it.
    #[error("the engine reports {part} {what} tokens inside of {whole}: a part cannot be larger than its whole")]
    PartAboveWhole {
        /// `cached` or `reasoning`.
        what: &'static str,
        /// The part.
        part: u64,
        /// What should hold it.
        whole: u64,
    },
    /// A count above [`TOKENS_MAX`].
    #[error("{0} tokens in one event are out of bounds (at most 2^40)")]
    OutOfBounds(u64),
    /// A sum above what 64 bits hold.
    #[error("a sum of tokens overflowed")]
    Overflow,
    /// A running count that went back.
    #[error("the running count of {class} tokens went back from {before} to {after}", class = .class.as_str())]
    WentBack {
        /// The class.
        class: TokenClass,
        /// What was counted before.
        before: u64,
        /// What is said now.
        after: u64,
    },
}

/// Counts per class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TokenCounts {
    /// See [`TokenClass::Input`].
    pub input: u64,
    /// See [`TokenClass::CachedInput`].
    pub cached_input: u64,
    /// See [`TokenClass::Output`].
    pub output: u64,
    /// See [`TokenClass::Reasoning`].
    pub reasoning: u64,
}

impl TokenCounts {
    /// Splits usage in OpenAI's form, where `cached` lies inside `prompt` and `reasoning` inside `completion`.
    pub fn from_usage(prompt: u64, cached: u64, completion: u64, reasoning: u64) -> Result<Self, TokenError> {
        let rest = |what, part: u64, whole: u64| {
            whole.checked_sub(part).ok_or(TokenError::PartAboveWhole { what, part, whole })
        };
        let input = rest("cached", cached, prompt)?;
        let output = rest("reasoning", reasoning, completion)?;
        Self { input, cached_input: cached, output, reasoning }.bounded()
    }

    /// These counts, if each is at most [`TOKENS_MAX`].
    pub fn bounded(self) -> Result<Self, TokenError> {
        match TokenClass::ALL.into_iter().map(|class| self.of(class)).find(|&count| count > TOKENS_MAX) {
            Some(count) => Err(TokenError::OutOfBounds(count)),
            None => Ok(self),
        }
    }

    /// The count of one class.
    pub const fn of(&self, class: TokenClass) -> u64 {
        match class {
            TokenClass::Input => self.input,
            TokenClass::CachedInput => self.cached_input,
            TokenClass::Output => self.output,
            TokenClass::Reasoning => self.reasoning,
        }
    }

    /// Counts of one class alone.
    pub fn only(class: TokenClass, count: u64) -> Self {
        let of = |other| if class == other { count } else { 0 };
        Self {
            input: of(TokenClass::Input),
            cached_input: of(TokenClass::CachedInput),
            output: of(TokenClass::Output),
            reasoning: of(TokenClass::Reasoning),
        }
    }

    /// The sum over all classes.
    pub fn total(&self) -> Result<u64, TokenError> {
        TokenClass::ALL
            .into_iter()
            .try_fold(0u64, |sum, class| sum.checked_add(self.of(class)))
            .ok_or(TokenError::Overflow)
    }

    fn zip(self, other: Self, f: impl Fn(TokenClass, u64, u64) -> Result<u64, TokenError>) -> Result<Self, TokenError> {
        let class = |c: TokenClass| f(c, self.of(c), other.of(c));
        Ok(Self {
            input: class(TokenClass::Input)?,
            cached_input: class(TokenClass::CachedInput)?,
            output: class(TokenClass::Output)?,
            reasoning: class(TokenClass::Reasoning)?,
        })
    }

    /// Both together.
    pub fn checked_add(self, other: Self) -> Result<Self, TokenError> {
        self.zip(other, |_, a, b| a.checked_add(b).ok_or(TokenError::Overflow))
    }

    /// What came since `before`: the delta of two running counts, never negative.
    pub fn since(self, before: Self) -> Result<Self, TokenError> {
        self.zip(before, |class, after, before| {
            after.checked_sub(before).ok_or(TokenError::WentBack { class, before, after })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_part_above_its_whole_is_refused() {
        assert_eq!(
            TokenCounts::from_usage(10, 11, 0, 0),
            Err(TokenError::PartAboveWhole { what: "cached", part: 11, whole: 10 })
        );
        assert_eq!(TokenCounts::from_usage(TOKENS_MAX + 1, 0, 0, 0), Err(TokenError::OutOfBounds(TOKENS_MAX + 1)));
    }

    proptest! {
        #[test]
        fn a_split_keeps_the_total(prompt in 0..=TOKENS_MAX, completion in 0..=TOKENS_MAX, c in 0..=TOKENS_MAX, r in 0..=TOKENS_MAX) {
            let (cached, reasoning) = (c.min(prompt), r.min(completion));
            let counts = TokenCounts::from_usage(prompt, cached, completion, reasoning).unwrap();
            prop_assert_eq!(counts.total().unwrap(), prompt + completion);
            prop_assert_eq!(counts.input + counts.cached_input, prompt);
        }

        #[test]
        fn deltas_add_up_to_the_running_count(steps in prop::collection::vec((0..1000u64, 0..1000u64), 0..20)) {
            let mut running = TokenCounts::default();
            let mut sum = TokenCounts::default();
            for (output, reasoning) in steps {
                let next = running.checked_add(TokenCounts { output, reasoning, ..Default::default() }).unwrap();
                sum = sum.checked_add(next.since(running).unwrap()).unwrap();
                prop_assert!(output == 0 || running.since(next).is_err());
                running = next;
            }
            prop_assert_eq!(sum, running);
        }
    }
}
