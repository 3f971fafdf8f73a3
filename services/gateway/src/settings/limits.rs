//! `[gateway.limits]` of the configuration: what limits that bend are asked for.

use serde::{Deserialize, Serialize};

/// See the module. Each setting has a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// What a key and a model usually use is taken so many times, in percent, from limits per minute before it is known
    /// what a request uses.
    pub estimate_margin_percent: u64,
    /// Tokens of output that are taken for each answer of a key and model that are seen for the first time.
    pub first_estimate_tokens: u64,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self { estimate_margin_percent: 125, first_estimate_tokens: 512 }
    }
}

impl LimitSettings {
    /// An estimate with its margin, in tokens of input and of output.
    pub(crate) fn with_margin(&self, input: u64, output: u64) -> (u64, u64) {
        let more = |tokens: u64| tokens.saturating_mul(self.estimate_margin_percent).div_ceil(100);
        (more(input), more(output))
    }

    /// What is wrong with the settings.
    pub(crate) fn validate(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if !(100..=1000).contains(&self.estimate_margin_percent) {
            wrong.push("limits.estimate_margin_percent must be 100 to 1000".to_owned());
        }
        if !(1..=1 << 20).contains(&self.first_estimate_tokens) {
            wrong.push("limits.first_estimate_tokens must be 1 to 1048576".to_owned());
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_at_once() {
        let bad = LimitSettings { estimate_margin_percent: 99, first_estimate_tokens: 0 };
        assert_eq!((bad.validate().len(), LimitSettings::default().validate().len()), (2, 0));
        assert_eq!(LimitSettings::default().with_margin(100, u64::MAX).0, 125);
    }
}
