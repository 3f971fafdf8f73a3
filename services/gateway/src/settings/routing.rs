//! `[gateway.routing]`: which replica gets a request, and which gets none for a while.

use std::time::Duration;

use runtime::config::duration;
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Routing {
    /// What is weighed between replicas that have room.
    pub policy: RoutingPolicy,
    /// Requests that a replica works on at once, where its document says nothing. More wait at the gateway.
    pub max_concurrent_requests: u32,
    /// A replica counts as warm for a prompt when it has read so much of it before.
    pub warm_percent: u8,
    /// A warm replica is left for a cold one that is expected to give its first token so much earlier.
    #[serde(with = "duration")]
    pub leave_warm_after: Duration,
    /// How fast a replica reads prompts, until it is known.
    pub prefill_tokens_per_second: u32,
    /// Beginnings of prompts that are remembered, of all tenants and models together: about 100 bytes each.
    pub remembered_prefixes: u32,
    /// Retries that may be made at other replicas for each 100 requests, so that an outage is not multiplied. A replica that
    /// could not even be connected to does not count.
    pub retry_percent: u8,
    /// `priority` is sent to vLLM: 0 for the tiers `priority` and `default`, 1 for `flex`. For servers that run with
    /// `--scheduling-policy priority`; all others refuse it.
    pub send_priority: bool,
    /// What replicas say of themselves.
    pub guard: Guard,
    /// What requests say of replicas.
    pub ejection: Ejection,
}

/// What is weighed between replicas that have room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoutingPolicy {
    /// One that has read the beginning of the prompt before, until it is busy; else as `least_prefill`.
    #[default]
    PrefixSticky,
    /// The one with the least prompt still to read.
    LeastPrefill,
    /// The one with the fewest open requests for its size: for long answers to short prompts.
    LeastActive,
}

/// `[gateway.routing.guard]`: a replica whose own metrics show that it has enough to do gets no more, for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guard {
    /// Metrics are asked for this often.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// And must come within this.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Older ones say nothing.
    #[serde(with = "duration")]
    pub stale_after: Duration,
    /// More requests that wait inside the replica are enough.
    pub max_waiting: u32,
    /// A fuller KV cache is enough.
    pub max_kv_cache_percent: u8,
    /// So many requests of this gateway a replica gets whatever its metrics say: wrong ones cannot stop all traffic.
    pub floor: u32,
}

/// `[gateway.routing.ejection]`: a replica whose requests fail gets none for a time that grows, then few, then more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ejection {
    /// Failures in a row.
    pub consecutive_failures: u32,
    /// Or such a share of the requests that ended within `window`, if they were at least `min_requests`.
    pub failure_percent: u8,
    /// See `failure_percent`.
    pub min_requests: u32,
    /// See `failure_percent`.
    #[serde(with = "duration")]
    pub window: Duration,
    /// The first time. It doubles with each that follows soon.
    #[serde(with = "duration")]
    pub time: Duration,
    /// At most so long.
    #[serde(with = "duration")]
    pub max_time: Duration,
    /// At most such a share of a model's replicas: one that is bad is better than none.
    pub max_percent: u8,
    /// Back again, its share of the requests grows to the full one within this.
    #[serde(with = "duration")]
    pub return_time: Duration,
}

impl Default for Routing {
    fn default() -> Self {
        Self {
            policy: RoutingPolicy::default(),
            max_concurrent_requests: 256,
            warm_percent: 80,
            leave_warm_after: Duration::from_millis(500),
            prefill_tokens_per_second: 8_000,
            remembered_prefixes: 100_000,
            retry_percent: 20,
            send_priority: false,
            guard: Guard::default(),
            ejection: Ejection::default(),
        }
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            stale_after: Duration::from_secs(5),
            max_waiting: 3,
            max_kv_cache_percent: 95,
            floor: 2,
        }
    }
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            failure_percent: 50,
            min_requests: 20,
            window: Duration::from_secs(10),
            time: Duration::from_secs(10),
            max_time: Duration::from_secs(300),
            max_percent: 50,
            return_time: Duration::from_secs(30),
        }
    }
}

impl Routing {
    /// What is wrong with the settings, each beginning with its name.
    pub(super) fn validate(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |good: bool, said: &str| {
            if !good {
                wrong.push(format!("routing.{said}"));
            }
        };
        let (guard, ejection) = (&self.guard, &self.ejection);
        check(self.max_concurrent_requests > 0, "max_concurrent_requests must be at least 1: nothing would be served");
        check(self.prefill_tokens_per_second > 0, "prefill_tokens_per_second must be at least 1");
        check((16..=1 << 24).contains(&self.remembered_prefixes), "remembered_prefixes must be 16 to 16777216");
        check(guard.floor > 0, "guard.floor must be at least 1: wrong metrics would stop all traffic");
        check(ejection.consecutive_failures > 0, "ejection.consecutive_failures must be at least 1");
        check(ejection.min_requests > 0, "ejection.min_requests must be at least 1");
        check(ejection.time <= ejection.max_time, "ejection.time must be at most ejection.max_time");
        for (name, percent) in [
            ("warm_percent", self.warm_percent),
            ("retry_percent", self.retry_percent),
            ("guard.max_kv_cache_percent", guard.max_kv_cache_percent),
            ("ejection.failure_percent", ejection.failure_percent),
            ("ejection.max_percent", ejection.max_percent),
        ] {
            check(percent <= 100, &format!("{name} must be at most 100"));
        }
        for (name, time) in [
            ("guard.interval", guard.interval),
            ("guard.timeout", guard.timeout),
            ("guard.stale_after", guard.stale_after),
            ("ejection.window", ejection.window),
            ("ejection.time", ejection.time),
        ] {
            let day = Duration::from_secs(86_400);
            check((Duration::from_millis(1)..=day).contains(&time), &format!("{name} must be 1ms to 1d"));
        }
        wrong
    }
}
