//! `[gateway.manners]`: how the gateway behaves towards clients when answers are slow, or clients are.

use std::time::Duration;

use runtime::config::duration;
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Manners {
    /// While a stream is silent, its client gets a sign of life this often, so that no proxy takes it for dead; 0 for none.
    /// Until the first of them the head is held back: an engine that fails until then fails with its own status.
    #[serde(with = "duration")]
    pub keepalive_interval: Duration,
    /// The deadline of the first token (`deadlines.first_byte`) is so much later for each 1,000 tokens that the prompt has at
    /// most: a long one takes its time.
    #[serde(with = "duration")]
    pub first_byte_per_1000_tokens: Duration,
    /// A client that takes nothing of its answer for so long is cut off; the engine does not stop for it.
    #[serde(with = "duration")]
    pub client_stall: Duration,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            keepalive_interval: Duration::from_secs(15),
            first_byte_per_1000_tokens: Duration::from_secs(1),
            client_stall: Duration::from_secs(60),
        }
    }
}

impl Manners {
    /// How often a silent client hears something, if it does.
    pub(crate) fn keepalive(&self) -> Option<Duration> {
        Some(self.keepalive_interval).filter(|interval| !interval.is_zero())
    }

    /// How long the first token of a stream may take, for a prompt of at most so many tokens.
    pub(crate) fn first_token(&self, base: Duration, prompt_bound: u64) -> Duration {
        let thousands = u32::try_from(prompt_bound / 1000).unwrap_or(u32::MAX);
        base.saturating_add(self.first_byte_per_1000_tokens.saturating_mul(thousands))
    }

    /// What is wrong, each with the name of its setting within the section.
    pub(super) fn validate(&self) -> Vec<String> {
        let (mut wrong, day) = (Vec::new(), Duration::from_secs(86_400));
        if self.keepalive_interval > day || self.first_byte_per_1000_tokens > day {
            wrong.push("keepalive_interval and first_byte_per_1000_tokens must be at most 1d".to_owned());
        }
        if !(Duration::from_millis(1)..=day).contains(&self.client_stall) {
            wrong.push("client_stall must be 1ms to 1d".to_owned());
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_prompt_may_take_longer() {
        let (manners, base) = (Manners::default(), Duration::from_secs(120));
        let of = |tokens| manners.first_token(base, tokens).as_secs();
        assert_eq!((of(0), of(999), of(8_500)), (120, 120, 128));
        assert!(of(u64::MAX) > 1_000_000_000, "nothing wraps");
    }
}
