//! Wishes in the prompt: `[[tokens:37]]`, `[[reasoning:5]]`, `[[fault:die_mid_stream:3]]`. They reach the simulator through any gateway.

use super::faults::Fault;

/// What the prompt asks of the simulator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Markers {
    /// The model ends by itself after so many tokens.
    pub(super) tokens: Option<u32>,
    /// The first so many output tokens are reasoning.
    pub(super) reasoning: Option<u32>,
    pub(super) fault: Option<Fault>,
}

impl Markers {
    /// Reads the markers of all prompts of a request; the last of a kind wins, what cannot be read is plain text.
    pub(super) fn find<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        let mut found = Self::default();
        for text in texts {
            for marker in text.split("[[").skip(1).filter_map(|rest| rest.split_once("]]")).map(|(marker, _)| marker) {
                match marker.split_once(':') {
                    Some(("tokens", count)) => found.tokens = count.parse().ok().or(found.tokens),
                    Some(("reasoning", count)) => found.reasoning = count.parse().ok().or(found.reasoning),
                    Some(("fault", fault)) => found.fault = fault.parse().ok().or(found.fault),
                    _ => {}
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_anywhere_and_nonsense_is_text() {
        let found = Markers::find(
            ["tell [[tokens:37]] me [[fault:stall:2:50]]", "a [[[reasoning:4]] b [[tokens:x]] [[open"].into_iter(),
        );
        assert_eq!((found.tokens, found.fault), (Some(37), Some(Fault::Stall { after: 2, ms: 50 })));
        assert_eq!(Markers::find(["[[reasoning:4]]"].into_iter()).reasoning, Some(4));
        assert_eq!(Markers::find(["plain"].into_iter()), Markers::default());
    }
}
