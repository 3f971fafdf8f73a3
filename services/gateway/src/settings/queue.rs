//! `[gateway.queue]`: how requests wait when all replicas of a model have enough to do, and who goes next.

use std::time::Duration;

use runtime::config::{byte_size, duration};
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueSettings {
    /// Requests that may wait at once. One more is refused with 503, `queue_full`.
    pub max_waiting: u64,
    /// Of one tenant. One more is refused with 429, `queue_full`.
    pub max_waiting_per_tenant: u64,
    /// Bytes of the bodies of all requests that wait.
    #[serde(with = "byte_size")]
    pub max_bytes: u64,
    /// Of one tenant.
    #[serde(with = "byte_size")]
    pub max_bytes_per_tenant: u64,
    /// A request that has waited so long is refused with 503, `queue_timeout`.
    #[serde(with = "duration")]
    pub max_wait: Duration,
    /// A request whose model has no replica that could answer waits so long for one to come, and is then refused with 503,
    /// `no_healthy_replica`. Where models are started on demand: the time that a start takes.
    #[serde(with = "duration")]
    pub no_replica_wait: Duration,
    /// Tokens of output that a request is expected to use, if it does not ask for less, by a key and model that were never
    /// seen: what its tenant is charged when it goes, until it is known.
    pub expected_output_tokens: u64,
    /// What the bands below the highest are sure of.
    pub floor_percent: FloorPercent,
}

/// `[gateway.queue.floor_percent]`: of 100 tokens that are sent to replicas while a band waits, so many at least are its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FloorPercent {
    /// Plans of the tier `default`.
    pub default: u8,
    /// Plans of the tier `flex`.
    pub flex: u8,
}

impl Default for FloorPercent {
    fn default() -> Self {
        Self { default: 20, flex: 5 }
    }
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            max_waiting: 10_000,
            max_waiting_per_tenant: 1_000,
            max_bytes: 256 << 20,
            max_bytes_per_tenant: 64 << 20,
            max_wait: Duration::from_secs(60),
            no_replica_wait: Duration::from_secs(5),
            expected_output_tokens: 256,
            floor_percent: FloorPercent::default(),
        }
    }
}

impl QueueSettings {
    /// What is wrong with the settings, each beginning with its name. `max_body`: the longest body of a request.
    pub(super) fn validate(&self, max_body: u64) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |good: bool, said: &str| {
            if !good {
                wrong.push(format!("queue.{said}"));
            }
        };
        check((1..=1 << 20).contains(&self.max_waiting), "max_waiting must be 1 to 1048576");
        check(
            (1..=self.max_waiting).contains(&self.max_waiting_per_tenant),
            "max_waiting_per_tenant must be 1 to max_waiting",
        );
        check(
            self.max_bytes_per_tenant >= max_body,
            "max_bytes_per_tenant must be at least max_body_bytes: a request could else never wait",
        );
        check(self.max_bytes >= self.max_bytes_per_tenant, "max_bytes must be at least max_bytes_per_tenant");
        let day = Duration::from_secs(86_400);
        check((Duration::from_millis(1)..=day).contains(&self.max_wait), "max_wait must be 1ms to 1d");
        check(self.no_replica_wait <= day, "no_replica_wait must be at most 1d");
        check((1..=1 << 20).contains(&self.expected_output_tokens), "expected_output_tokens must be 1 to 1048576");
        let FloorPercent { default, flex } = self.floor_percent;
        check(
            u16::from(default) + u16::from(flex) <= 90,
            "floor_percent: the floors together must be at most 90: the highest band would else not be the first",
        );
        wrong
    }
}
