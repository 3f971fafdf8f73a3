//! The names of every metric in the product, in one list, and the registry of a process.

use prometheus::{Encoder as _, HistogramOpts, Opts, Registry, TextEncoder};
pub use prometheus::{Error, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

macro_rules! names {
    ($($(#[$section:meta])* $variant:ident = $name:literal, $help:literal;)+) => {
        /// A metric's name. A new metric begins here: one list, so that no two parts name the same thing twice.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Name {
            $(#[doc = $help] $variant,)+
        }

        impl Name {
            /// Every name.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name that Prometheus sees.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it counts, in one sentence.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)+ }
            }
        }
    };
}

names! {
    // gateway
    GatewayRequests = "tollgate_gateway_requests_total", "Requests that were let in, by endpoint, model, plan and end reason.";
    GatewayResponses = "tollgate_gateway_responses_total", "Answers to clients by status, refusals included.";
    GatewayRefused = "tollgate_gateway_refused_total", "Requests that were refused before dispatch, by code.";
    GatewayInFlight = "tollgate_gateway_requests_in_flight", "Requests between admission and their end.";
    GatewayTokens = "tollgate_gateway_tokens_total", "Tokens handed to clients, by model, plan and token class.";
    GatewayAttempts = "tollgate_gateway_attempts_total", "Tries at a replica, by replica and outcome.";
    GatewayDuration = "tollgate_gateway_request_duration_seconds", "Time from a request's head to the end of its answer, by model and plan.";
    GatewayTimeToFirstToken = "tollgate_gateway_time_to_first_token_seconds", "Time from a request's head to the first token of its stream, by model and plan.";
    GatewayInterToken = "tollgate_gateway_inter_token_latency_seconds", "Time from one token of a stream to the next, by model and plan.";
    GatewayOverhead = "tollgate_gateway_overhead_seconds", "Time the gateway itself adds before dispatch.";
    GatewayReplicaUp = "tollgate_gateway_replica_up", "1 when the replica's health check answers, by replica.";
    GatewayReplicaActive = "tollgate_gateway_replica_active_requests", "Open requests at a replica.";
    GatewayReplicaEjected = "tollgate_gateway_replica_ejected", "1 while a replica gets no requests because those before failed, by replica.";
    GatewayReplicaWaiting = "tollgate_gateway_replica_waiting_requests", "Requests that wait inside a replica, as it says, by replica.";
    GatewayReplicaMetricsAge = "tollgate_gateway_replica_metrics_age_seconds", "Time since a replica last told its metrics, by replica.";
    GatewayPicks = "tollgate_gateway_picks_total", "Replicas picked, by reason: sticky, least_loaded, spill_over.";
    GatewayRetriesRefused = "tollgate_gateway_retries_refused_total", "Retries that were not made because the budget of retries was used up.";
    GatewayEstimated = "tollgate_gateway_estimated_total", "Requests whose counts the engine did not give to the end, by reason.";
    GatewayUnpriced = "tollgate_gateway_unpriced_total", "Requests for a model without a price, by model. An alarm: they are billed as unrated lines.";
    GatewayUnmetered = "tollgate_gateway_unmetered_total", "Requests served while the spool was full, as the tenant's plan chose. An alarm: their usage is lost.";
    GatewayQueueTime = "tollgate_gateway_queue_seconds", "Time that a request waited for its turn at a replica, by plan; 0 for those that went at once.";
    GatewayQueueLength = "tollgate_gateway_queue_length", "Requests that wait for a replica, by tier and plan.";
    GatewayQueueLeft = "tollgate_gateway_queue_left_total", "Requests that had to wait, by what became of it: served, full, timeout, no_replica, deadline, draining, cancelled.";
    GatewayQueueFairness = "tollgate_gateway_queue_fairness", "Jain's index of what tenants that wait were served by their weight within a minute, by model and tier: 1 when all were served alike.";
    GatewayBodyBytes = "tollgate_gateway_body_bytes", "Bytes of request bodies in memory.";
    GatewayClientsStalled = "tollgate_gateway_clients_stalled_total", "Connections that were cut off as their client took nothing of its answer.";
    GatewayKeepalives = "tollgate_gateway_keepalives_total", "Signs of life that were sent to clients of silent streams.";
    GatewayReservedTokens = "tollgate_gateway_reserved_tokens", "Tokens held by open reservations.";
    GatewayLimited = "tollgate_gateway_limited_total", "Requests that a limit refused, by the limit and its level.";
    GatewayLimitsTogether = "tollgate_gateway_limits_together", "1 while limits are kept together with other gateways, in Redis; 0 while this gateway keeps to its share.";
    GatewayLimitsApart = "tollgate_gateway_limits_apart_total", "Requests that this gateway's share of their limits decided, since Redis gave no answer.";
    GatewayRedisTake = "tollgate_gateway_redis_take_seconds", "Time in which Redis answered whether limits have room for a request.";
    GatewayRedisFailures = "tollgate_gateway_redis_failures_total", "Times that keeping limits together ended, by reason.";
    GatewayOverQuota = "tollgate_gateway_over_quota_total", "Requests served although the tokens of the tenant's period are used up.";
    GatewayTokenKeysErrors = "tollgate_gateway_token_keys_errors_total", "Keys of an issuer of tokens that could not be read, by issuer. Those known before are used on.";
    // control state, in every role that reads it
    ControlOffset = "tollgate_control_offset", "The next offset of the control log that this process will apply.";
    ControlRefused = "tollgate_control_refused_total", "Records of the control log that were not applied, by reason.";
    ControlStale = "tollgate_control_snapshot_age_seconds", "How old the state is that this process works from.";
    ControlSnapshotErrors = "tollgate_control_snapshot_errors_total", "Durable snapshots of the control log that could not be stored. An alarm.";
    BalancesSnapshotErrors = "tollgate_balances_snapshot_errors_total", "Durable snapshots of the balances that could not be stored. An alarm.";
    BalancesRead = "tollgate_balances_read_total", "Records of the balances topic by what became of them: taken, older, undecodable.";
    // spool and shipper
    SpoolRecords = "tollgate_spool_records_total", "Records appended to the spool, by topic.";
    SpoolBytes = "tollgate_spool_bytes", "Bytes of the spool's segments on disk.";
    SpoolCapacity = "tollgate_spool_capacity_bytes", "Bytes that the spool may use.";
    SpoolSegments = "tollgate_spool_segments", "Segments of the spool on disk.";
    SpoolFsync = "tollgate_spool_fsync_seconds", "Duration of a group fsync.";
    SpoolErrors = "tollgate_spool_errors_total", "Failed writes and fsyncs, by kind.";
    SpoolFull = "tollgate_spool_full", "1 while the spool has no room for a new request.";
    SpoolLost = "tollgate_spool_lost_total", "Records that could not be kept, by reason. An alarm: usage is lost.";
    SpoolRecovered = "tollgate_spool_recovered_total", "Requests of an earlier start that were finished as gateway_lost.";
    ShipAcked = "tollgate_ship_acked_total", "Records that Kafka acknowledged, by topic.";
    ShipPending = "tollgate_ship_pending", "Records in the spool that Kafka has not acknowledged.";
    ShipErrors = "tollgate_ship_errors_total", "Delivery errors, each followed by a new producer from the cursor.";
    ShipOldest = "tollgate_ship_oldest_pending_seconds", "Age of the oldest record that Kafka has not acknowledged.";
    ShipHeartbeats = "tollgate_ship_heartbeats_total", "Heartbeats sent, one per partition each second.";
    // fold
    FoldOffsets = "tollgate_fold_offsets_total", "Offsets by topic and outcome: folded, duplicate, dead, mark. They add up to the offsets read.";
    FoldPartitions = "tollgate_fold_partitions", "Partitions that this process folds.";
    FoldPosition = "tollgate_fold_position", "The next offset to fold, by topic and partition, as ClickHouse says.";
    FoldLag = "tollgate_fold_lag", "Offsets in the log that are not folded yet, by topic and partition.";
    FoldChunks = "tollgate_fold_chunks_total", "Chunks by topic and what became of them: written, foreign, torn, refused.";
    FoldInsert = "tollgate_fold_insert_seconds", "Duration of one chunk's insert and read-back.";
    FoldProofs = "tollgate_fold_proofs_total", "Full proofs of the position, at assignment and after any doubt.";
    FoldStopped = "tollgate_fold_stopped", "1 while a line stands still because records are missing, by topic and partition. An alarm.";
    FoldDead = "tollgate_fold_dead_letters_total", "Records that became dead letters, by topic and reason.";
    FoldDelay = "tollgate_fold_delay_seconds", "Time from a record's log time to its row being read back.";
    FoldBalances = "tollgate_fold_balances_total", "Balances published.";
    FoldErrors = "tollgate_fold_errors_total", "Errors that led to a new proof, by kind.";
    FoldUnknownTenants = "tollgate_fold_unknown_tenants_total", "Tenants with usage that the control log does not know. An alarm: their periods are UTC months.";
    // reconciliation, in the fold that has partition 0
    ReconciliationDifferences = "tollgate_reconciliation_differences", "Figures that must be the same and are not, by check, as the last run found. An alarm.";
    ReconciliationPending = "tollgate_reconciliation_pending", "Figures that the last run could not compare yet, by check.";
    ReconciliationLast = "tollgate_reconciliation_last_success_timestamp_seconds", "When the last run was done and kept, in seconds since the Unix epoch; 0 where another fold reconciles.";
    ReconciliationDuration = "tollgate_reconciliation_duration_seconds", "Duration of a run of the reconciler.";
    ReconciliationErrors = "tollgate_reconciliation_errors_total", "Runs that could not look at everything, as Kafka or ClickHouse gave no answer.";
    // billing
    BillingRequests = "tollgate_billing_requests_total", "Requests to the billing API, by route and status.";
    BillingDuration = "tollgate_billing_request_duration_seconds", "Duration of requests to the billing API, by route.";
    BillingQueries = "tollgate_billing_query_seconds", "Duration of a ClickHouse query, by name.";
    BillingUnrated = "tollgate_billing_unrated_total", "Usage lines without a price in an answer. An alarm.";
    BillingControlWrites = "tollgate_billing_control_writes_total", "Writes to the control log, by kind and outcome.";
    // canary
    CanaryRounds = "tollgate_canary_rounds_total", "Rounds of the canary by outcome: billed, late, excess, refused, unread.";
    CanaryBilledAfter = "tollgate_canary_billed_after_seconds", "Time from the end of an answer to its request being in the usage API; late ones too, once they are.";
    CanaryLast = "tollgate_canary_last_success_timestamp_seconds", "When a round last was billed exactly and in time, in seconds since the Unix epoch; 0 before the first.";
    // traces
    TracesSpans = "tollgate_traces_spans_total", "Spans by what became of them: exported; dropped, as the queue was full; failed, as the collector did not take them.";
    // every process
    ProcessStarted = "tollgate_process_start_time_seconds", "When the process started, in seconds since the Unix epoch.";
    BuildInfo = "tollgate_build_info", "Always 1; the labels say which version runs in which role.";
}

/// The metrics of one process. Cheap to clone, clones share the registry. Make each metric once, keep it, and touch only
/// the kept one on hot paths.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Registry);

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// The registry itself, for collectors of other kinds.
    pub fn registry(&self) -> &Registry {
        &self.0
    }

    /// A counter.
    ///
    /// # Errors
    /// When the name is taken in this registry. So for all that follow; label names must be valid too.
    pub fn counter(&self, name: Name) -> Result<IntCounter, Error> {
        self.keep(IntCounter::with_opts(opts(name))?)
    }

    /// A counter per combination of labels. Keep the values of labels few: no request, key or user ids.
    ///
    /// # Errors
    /// See [`Metrics::counter`].
    pub fn counters(&self, name: Name, labels: &[&str]) -> Result<IntCounterVec, Error> {
        self.keep(IntCounterVec::new(opts(name), labels)?)
    }

    /// A figure that goes up and down.
    ///
    /// # Errors
    /// See [`Metrics::counter`].
    pub fn gauge(&self, name: Name) -> Result<IntGauge, Error> {
        self.keep(IntGauge::with_opts(opts(name))?)
    }

    /// A gauge per combination of labels.
    ///
    /// # Errors
    /// See [`Metrics::counter`].
    pub fn gauges(&self, name: Name, labels: &[&str]) -> Result<IntGaugeVec, Error> {
        self.keep(IntGaugeVec::new(opts(name), labels)?)
    }

    /// A figure with a fraction, per combination of labels.
    ///
    /// # Errors
    /// See [`Metrics::counter`].
    pub fn ratios(&self, name: Name, labels: &[&str]) -> Result<GaugeVec, Error> {
        self.keep(GaugeVec::new(opts(name), labels)?)
    }

    /// A distribution, with the upper bounds of its buckets (for durations: [`SECONDS`]).
    ///
    /// # Errors
    /// See [`Metrics::counter`]; and when the bounds do not rise.
    pub fn histogram(&self, name: Name, buckets: &[f64]) -> Result<Histogram, Error> {
        self.keep(Histogram::with_opts(histogram_opts(name, buckets))?)
    }

    /// A distribution per combination of labels.
    ///
    /// # Errors
    /// See [`Metrics::histogram`].
    pub fn histograms(&self, name: Name, labels: &[&str], buckets: &[f64]) -> Result<HistogramVec, Error> {
        self.keep(HistogramVec::new(histogram_opts(name, buckets), labels)?)
    }

    /// All metrics in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut bytes = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.0.gather(), &mut bytes) {
            tracing::error!(%error, "the metrics could not be written");
        }
        String::from_utf8(bytes).unwrap_or_default()
    }

    fn keep<C: prometheus::core::Collector + Clone + 'static>(&self, collector: C) -> Result<C, Error> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }
}

/// Bounds for durations in seconds, from 100 µs to two minutes.
pub const SECONDS: &[f64] =
    &[0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// Bounds for the time of a whole answer, which a model takes as long as it speaks: from 10 ms to an hour.
pub const ANSWER_SECONDS: &[f64] =
    &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 600.0, 1800.0, 3600.0];

/// Bounds for the time to a first token: a prompt may be read for long, and a request may wait in a queue before.
pub const FIRST_TOKEN_SECONDS: &[f64] =
    &[0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 120.0];

/// Bounds for the time until usage is seen: what is late by an outage is late by minutes or hours.
pub const BILLED_SECONDS: &[f64] =
    &[0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];

/// Bounds for the time between two tokens.
pub const TOKEN_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0];

fn opts(name: Name) -> Opts {
    Opts::new(name.as_str(), name.help())
}

fn histogram_opts(name: Name, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts::new(name.as_str(), name.help()).buckets(buckets.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_follow_the_conventions() {
        let mut seen = std::collections::BTreeSet::new();
        for name in Name::ALL {
            let text = name.as_str();
            assert!(seen.insert(text), "{text} twice");
            assert!(text.starts_with("tollgate_"), "{text}");
            assert!(text.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{text}");
            assert!(name.help().ends_with('.'), "{text}");
        }
    }

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::new();
        metrics.counters(Name::FoldOffsets, &["topic", "outcome"]).unwrap().with_label_values(&["t", "folded"]).inc();
        metrics.histogram(Name::FoldInsert, SECONDS).unwrap().observe(0.2);
        let text = metrics.text();
        assert!(text.contains(r#"tollgate_fold_offsets_total{outcome="folded",topic="t"} 1"#), "{text}");
        assert!(text.contains("tollgate_fold_insert_seconds_count 1"), "{text}");
        assert!(metrics.counter(Name::FoldOffsets).is_err(), "a name is taken once");
    }
}
