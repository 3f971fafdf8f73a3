//! Running totals of an answer over its choices and prompts.

use std::collections::BTreeMap;

use super::chunk::{Choice, Usage};

/// Totals so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// The prompts, cached or not.
    pub input: u64,
    /// Generated and no reasoning.
    pub output: u64,
    /// Generated reasoning.
    pub reasoning: u64,
}

impl Totals {
    /// All of them.
    pub(crate) fn sum(self) -> u64 {
        self.input.saturating_add(self.output).saturating_add(self.reasoning)
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Told {
    usage: bool,
    output: u64,
    reasoning: u64,
}

/// See the module. Counts never go back.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    /// Choices per prompt: in a completion with several prompts, choice `i` answers prompt `i / choices`.
    choices: u64,
    told: BTreeMap<u64, Told>,
    prompts: BTreeMap<u64, u64>,
    totals: Totals,
    estimated: bool,
}

impl Counts {
    /// Nothing so far, of an answer with so many choices per prompt.
    pub(crate) fn new(choices: u64) -> Self {
        Self {
            choices: choices.max(1),
            told: BTreeMap::new(),
            prompts: BTreeMap::new(),
            totals: Totals::default(),
            estimated: false,
        }
    }

    /// The usage that came with one choice's tokens: totals of this choice, and the tokens of its prompt.
    pub(crate) fn usage(&mut self, choice: &Choice, usage: Usage) {
        let prompt = self.prompts.entry(choice.index / self.choices).or_default();
        let more = usage.prompt_tokens.saturating_sub(*prompt);
        *prompt += more;
        self.totals.input = self.totals.input.saturating_add(more);
        let reasoning = usage.reasoning_tokens.min(usage.completion_tokens);
        let output = usage.completion_tokens - reasoning;
        let told = self.told.entry(choice.index).or_default();
        // The engine's word takes the place of an estimate, and of an older word.
        if !told.usage || output.saturating_add(reasoning) >= told.output.saturating_add(told.reasoning) {
            let of = |total: u64, before: u64, now: u64| total.saturating_sub(before).saturating_add(now);
            self.totals.output = of(self.totals.output, told.output, output);
            self.totals.reasoning = of(self.totals.reasoning, told.reasoning, reasoning);
            *told = Told { usage: true, output, reasoning };
        }
    }

    /// A piece of a choice came without usage: it is at least one token.
    pub(crate) fn piece(&mut self, choice: &Choice) {
        let told = self.told.entry(choice.index).or_default();
        if choice.has_content && !told.usage {
            told.output += 1;
            self.totals.output = self.totals.output.saturating_add(1);
            self.estimated = true;
        }
    }

    /// Totals so far.
    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// Whether pieces were counted in the place of tokens.
    pub(crate) fn is_estimated(&self) -> bool {
        self.estimated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(index: u64) -> Choice {
        Choice { index, has_content: true, aborted: false }
    }

    fn usage(prompt_tokens: u64, completion_tokens: u64, reasoning_tokens: u64) -> Usage {
        Usage { prompt_tokens, completion_tokens, cached_tokens: 0, reasoning_tokens }
    }

    #[test]
    fn choices_add_up_and_each_prompt_counts_once() {
        let mut counts = Counts::new(2);
        for index in 0..4 {
            counts.usage(&choice(index), usage(10 + index / 2, 0, 0));
        }
        assert_eq!(counts.totals(), Totals { input: 21, output: 0, reasoning: 0 });
        counts.usage(&choice(0), usage(10, 5, 2));
        counts.usage(&choice(3), usage(11, 4, 0));
        counts.usage(&choice(0), usage(10, 4, 0));
        counts.usage(&choice(0), usage(10, 7, 2));
        assert_eq!(counts.totals(), Totals { input: 21, output: 9, reasoning: 2 });
        assert!(!counts.is_estimated());
    }

    #[test]
    fn pieces_count_until_the_engine_counts() {
        let mut counts = Counts::new(1);
        counts.piece(&choice(0));
        counts.piece(&choice(0));
        counts.piece(&Choice { index: 0, has_content: false, aborted: false });
        assert_eq!((counts.totals().output, counts.is_estimated()), (2, true));
        counts.usage(&choice(0), usage(3, 5, 0));
        counts.piece(&choice(0));
        assert_eq!(counts.totals(), Totals { input: 3, output: 5, reasoning: 0 });
    }
}
