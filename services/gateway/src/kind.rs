//! The kinds of replicas: one table says of each what usage it tells, where its health is, and what its metrics are called.

use ledger::control::ReplicaKind;

/// What is known of an engine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// `stream_options` that are forced on streamed chats and completions, as members of the object.
    pub stream_options: &'static str,
    /// What answers 2xx as long as it serves.
    pub health: &'static str,
    /// Its metrics in Prometheus' text form; none if they are unknown.
    pub metrics: Option<EngineMetrics>,
}

/// Where an engine says how busy it is. Each name is a gauge's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EngineMetrics {
    pub path: &'static str,
    /// Requests that it works on.
    pub running: &'static str,
    /// Requests that wait inside of it.
    pub waiting: &'static str,
    /// The share of its KV cache that is in use, 0 to 1.
    pub kv_cache: Option<&'static str>,
}

/// With both front ends, usage in each chunk and at the end.
static VLLM: Kind = Kind {
    stream_options: "\"include_usage\":true,\"continuous_usage_stats\":true",
    health: "/health",
    metrics: Some(EngineMetrics {
        path: "/metrics",
        running: "vllm:num_requests_running",
        waiting: "vllm:num_requests_waiting",
        kv_cache: Some("vllm:kv_cache_usage_perc"),
    }),
};

/// As vLLM. Its metrics are there with `--enable-metrics` only.
static SGLANG: Kind = Kind {
    stream_options: "\"include_usage\":true,\"continuous_usage_stats\":true",
    health: "/health",
    metrics: Some(EngineMetrics {
        path: "/metrics",
        running: "sglang:num_running_reqs",
        waiting: "sglang:num_queue_reqs",
        kv_cache: Some("sglang:token_usage"),
    }),
};

/// Usage in the last chunk only: a stream that is cut is counted by its pieces.
static TGI: Kind = Kind {
    stream_options: "\"include_usage\":true",
    health: "/health",
    metrics: Some(EngineMetrics {
        path: "/metrics",
        running: "tgi_batch_current_size",
        waiting: "tgi_queue_size",
        kv_cache: None,
    }),
};

/// OpenAI's own options and no other, as an unknown server may refuse what it does not know; there is no path for health
/// that all have, but all list their models.
static OPENAI_COMPATIBLE: Kind = Kind { stream_options: "\"include_usage\":true", health: "/v1/models", metrics: None };

/// What is known of this kind.
pub(crate) fn of(kind: ReplicaKind) -> &'static Kind {
    match kind {
        ReplicaKind::Vllm => &VLLM,
        ReplicaKind::Sglang => &SGLANG,
        ReplicaKind::Tgi => &TGI,
        ReplicaKind::OpenaiCompatible => &OPENAI_COMPATIBLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engines_gauges_have_these_names() {
        for (kind, text) in [
            (ReplicaKind::Vllm, include_str!("../tests/data/vllm/metrics.txt")),
            (ReplicaKind::Sglang, include_str!("../tests/data/sglang/metrics.txt")),
            (ReplicaKind::Tgi, include_str!("../tests/data/tgi/metrics.txt")),
        ] {
            let metrics = of(kind).metrics.unwrap();
            for name in [Some(metrics.running), Some(metrics.waiting), metrics.kv_cache].into_iter().flatten() {
                assert!(text.contains(&format!("# TYPE {name} gauge\n{name}")), "{name}");
            }
        }
        assert_eq!(of(ReplicaKind::OpenaiCompatible).metrics, None);
    }

    #[test]
    fn what_is_forced_on_a_stream_is_an_object() {
        for kind in ReplicaKind::ALL {
            let options = format!("{{{}}}", of(kind).stream_options);
            let options: serde_json::Value = serde_json::from_str(&options).unwrap();
            assert_eq!(options["include_usage"], true);
            assert!(of(kind).health.starts_with('/'));
        }
    }
}
