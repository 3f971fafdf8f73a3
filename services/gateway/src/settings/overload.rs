//! `[gateway.overload]`: what is shed before memory grows.

use runtime::config::byte_size;
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overload {
    /// Bytes of request bodies held in memory at once, over all tenants: those that arrive, that wait, and that are sent and
    /// not answered yet. A request beyond it is refused with 503, `overloaded`, before its body is read.
    #[serde(with = "byte_size")]
    pub max_body_bytes_in_flight: u64,
    /// One tenant may hold so much of it, in percent. Beyond it its requests are refused with 429, `overloaded`.
    pub tenant_percent: u8,
}

impl Default for Overload {
    fn default() -> Self {
        Self { max_body_bytes_in_flight: 512 << 20, tenant_percent: 50 }
    }
}

impl Overload {
    /// Bytes that one tenant may hold.
    pub(crate) fn tenant_bytes(&self) -> u64 {
        self.max_body_bytes_in_flight / 100 * u64::from(self.tenant_percent)
    }

    /// What is wrong with the settings, each beginning with its name. `max_body`: the longest body of a request.
    pub(super) fn validate(&self, max_body: u64) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |good: bool, said: &str| {
            if !good {
                wrong.push(format!("overload.{said}"));
            }
        };
        check(self.max_body_bytes_in_flight <= 1 << 40, "max_body_bytes_in_flight must be at most 1TiB");
        check((1..=100).contains(&self.tenant_percent), "tenant_percent must be 1 to 100");
        check(
            self.tenant_bytes() >= max_body,
            "max_body_bytes_in_flight × tenant_percent must be at least max_body_bytes: a body could else never come in",
        );
        wrong
    }
}
