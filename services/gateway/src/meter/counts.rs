//! Running totals of an answer over its choices and prompts.

use std::collections::BTreeMap;

use super::said::{Choice, Part, Usage};

/// Where engines put several tokens into one piece, a piece is not one token; a token is rarely longer than this.
pub(super) const LONG_TOKEN: u64 = 8;

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
    pieces: u64,
    bytes: u64,
}

/// See the module. Counts never go back, but where the engine's word takes the place of an estimate.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    /// Choices per prompt: in a completion with several prompts, choice `i` answers prompt `i / choices`.
    choices: u64,
    told: BTreeMap<u64, Told>,
    prompts: BTreeMap<u64, u64>,
    totals: Totals,
    /// The input, as long as the engine says nothing of it.
    guess: u64,
    /// Choices that are counted by their pieces.
    by_pieces: u64,
}

impl Counts {
    /// Nothing so far, of an answer with so many choices per prompt, to prompts of about `guess` tokens.
    pub(crate) fn new(choices: u64, guess: u64) -> Self {
        let (told, prompts, totals) = (BTreeMap::new(), BTreeMap::new(), Totals::default());
        Self { choices: choices.max(1), told, prompts, totals, guess, by_pieces: 0 }
    }

    /// The usage that came with one choice's tokens: totals of this choice, and the tokens of its prompt.
    pub(crate) fn usage(&mut self, choice: &Choice, usage: Usage, part: Part) {
        if part != Part::Output {
            let prompt = self.prompts.entry(choice.index / self.choices).or_default();
            let more = usage.prompt_tokens.saturating_sub(*prompt);
            *prompt += more;
            self.totals.input = self.totals.input.saturating_add(more);
        }
        if part == Part::Input {
            return;
        }
        let reasoning = usage.reasoning_tokens.min(usage.completion_tokens);
        let output = usage.completion_tokens - reasoning;
        let told = self.told.entry(choice.index).or_default();
        // The engine's word takes the place of an estimate, and of an older word.
        if !told.usage || output.saturating_add(reasoning) >= told.output.saturating_add(told.reasoning) {
            let of = |total: u64, before: u64, now: u64| total.saturating_sub(before).saturating_add(now);
            self.totals.output = of(self.totals.output, told.output, output);
            self.totals.reasoning = of(self.totals.reasoning, told.reasoning, reasoning);
            self.by_pieces -= u64::from(!told.usage && told.pieces > 0);
            *told = Told { usage: true, output, reasoning, ..*told };
        }
    }

    /// A piece of a choice came without usage: it is at least one token.
    pub(crate) fn piece(&mut self, choice: &Choice) {
        let told = self.told.entry(choice.index).or_default();
        if choice.has_content && !told.usage {
            self.by_pieces += u64::from(told.pieces == 0);
            told.pieces += 1;
            told.bytes = told.bytes.saturating_add(choice.bytes);
            let output = told.pieces.max(told.bytes / LONG_TOKEN);
            self.totals.output = self.totals.output.saturating_add(output - told.output);
            told.output = output;
        }
    }

    /// Totals so far.
    pub(crate) fn totals(&self) -> Totals {
        let input = if self.prompts.is_empty() { self.guess } else { self.totals.input };
        Totals { input, ..self.totals }
    }

    /// Whether any of it is an estimate, and not the engine's word.
    pub(crate) fn is_estimated(&self) -> bool {
        self.by_pieces > 0 || self.prompts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(index: u64) -> Choice {
        Choice { index, has_content: true, ..Choice::default() }
    }

    fn usage(prompt_tokens: u64, completion_tokens: u64, reasoning_tokens: u64) -> Usage {
        Usage { prompt_tokens, completion_tokens, cached_tokens: 0, reasoning_tokens }
    }

    #[test]
    fn choices_add_up_and_each_prompt_counts_once() {
        let mut counts = Counts::new(2, 99);
        let mut told = |index, told| counts.usage(&choice(index), told, Part::Both);
        for index in 0..4 {
            told(index, usage(10 + index / 2, 0, 0));
        }
        told(0, usage(10, 5, 2));
        told(3, usage(11, 4, 0));
        told(0, usage(10, 4, 0));
        told(0, usage(10, 7, 2));
        assert_eq!(counts.totals(), Totals { input: 21, output: 9, reasoning: 2 });
        assert!(!counts.is_estimated());
    }

    #[test]
    fn pieces_count_until_the_engine_counts() {
        let mut counts = Counts::new(1, 99);
        counts.piece(&choice(0));
        counts.piece(&Choice { bytes: 15, ..choice(0) });
        counts.piece(&Choice::default());
        assert_eq!((counts.totals(), counts.is_estimated()), (Totals { input: 99, output: 2, reasoning: 0 }, true));
        counts.piece(&Choice { bytes: 17, ..choice(0) });
        assert_eq!(counts.totals().output, 4, "32 bytes are hardly three tokens");
        counts.usage(&choice(0), usage(3, 1, 0), Part::Input);
        assert_eq!((counts.totals(), counts.is_estimated()), (Totals { input: 3, output: 4, reasoning: 0 }, true));
        counts.usage(&choice(0), usage(0, 5, 0), Part::Output);
        counts.piece(&choice(0));
        assert_eq!((counts.totals(), counts.is_estimated()), (Totals { input: 3, output: 5, reasoning: 0 }, false));
    }
}
