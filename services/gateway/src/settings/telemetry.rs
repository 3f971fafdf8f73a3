//! `[gateway.telemetry]`: what is said of each request, and how finely it is measured.

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// The level of the line that the log gets of each request that has ended.
    pub access_log: AccessLog,
    /// Metrics tell so many models apart, and so many plans; those that come later are counted together as `other`.
    pub max_label_values: usize,
}

/// At which level the access log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLog {
    /// Every request.
    Info,
    /// Requests that a replica, a deadline or a stop kept from their end at `info`, all others at `debug`.
    Debug,
    /// None.
    Off,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { access_log: AccessLog::Debug, max_label_values: 50 }
    }
}

impl Telemetry {
    /// What is wrong, each with the name of its setting within the section.
    pub(super) fn validate(&self) -> Vec<String> {
        if (1..=1000).contains(&self.max_label_values) {
            return Vec::new();
        }
        vec![
            "max_label_values must be 1 to 1000: each pair of a model and a plan is some hundred lines of metrics"
                .into(),
        ]
    }
}
