//! Traces of a process: spans go into a bounded queue, and from there in batches to an OpenTelemetry collector, over OTLP.
//!
//! Whoever ends a span never waits: a span that the queue has no room for is dropped and counted. The protocol is
//! HTTP with protobuf, unencrypted: the collector is a neighbour, which passes on to wherever traces are kept.

mod exporter;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::Uri;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span, SpanData, SpanProcessor};
use prometheus::IntCounter;
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::config::{Validate, duration};
use crate::metrics::{Error, Name};
use crate::{Metrics, Shutdown};
pub use exporter::Exporter;

/// The section `[telemetry]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where traces go.
    pub otlp: Otlp,
}

/// `[telemetry.otlp]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Otlp {
    /// The collector, `http://host:4318`; spans are posted to `/v1/traces` there, or to the path that is given. Without
    /// it nothing is traced.
    pub endpoint: Option<String>,
    /// Of the requests that come without a decision of their own, this part is traced: 0 to 1.
    pub sampling_ratio: f64,
    /// Whether a client's `traceparent` decides whether its request is traced, as the field's convention is. If not, the
    /// ratio decides for all; the client's trace goes on either way.
    pub follow_clients: bool,
    /// Spans that wait for the collector at most; more are dropped and counted.
    pub queue: usize,
    /// Spans that are sent together at most.
    pub batch: usize,
    /// A span waits at most so long for others to be sent with.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// The collector has so long to answer; so does the last batch at a stop.
    #[serde(with = "duration")]
    pub timeout: Duration,
}

impl Default for Otlp {
    fn default() -> Self {
        Self {
            endpoint: None,
            sampling_ratio: 1.0,
            follow_clients: true,
            queue: 8192,
            batch: 512,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(5),
        }
    }
}

impl Otlp {
    /// Where spans are posted to; none without an endpoint, or with one that cannot be.
    fn target(&self) -> Option<Uri> {
        let uri: Uri = self.endpoint.as_deref()?.parse().ok()?;
        // Whoever writes a password there would find it in the log.
        let bare = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
        if uri.scheme_str() != Some("http") || !bare {
            return None;
        }
        if uri.path() != "/" {
            return Some(uri);
        }
        Uri::builder().scheme("http").authority(uri.authority()?.clone()).path_and_query("/v1/traces").build().ok()
    }
}

impl Validate for Settings {
    fn validate(&self) -> Vec<String> {
        let (otlp, mut wrong) = (&self.otlp, Vec::new());
        let mut check = |good: bool, said: &str| {
            if !good {
                wrong.push(format!("otlp.{said}"));
            }
        };
        check(
            otlp.endpoint.is_none() || otlp.target().is_some(),
            "endpoint must be http://host:port of an OpenTelemetry collector, without a name and password: for TLS, run a collector beside this process and let it pass on",
        );
        check((0.0..=1.0).contains(&otlp.sampling_ratio), "sampling_ratio must be 0 to 1");
        check((1..=1 << 20).contains(&otlp.queue), "queue must be 1 to 1048576 spans");
        check((1..=1 << 14).contains(&otlp.batch), "batch must be 1 to 16384 spans");
        let range = Duration::from_millis(1)..=Duration::from_secs(60);
        check(range.contains(&otlp.interval), "interval must be 1ms to 1min");
        check(range.contains(&otlp.timeout), "timeout must be 1ms to 1min");
        wrong
    }
}

/// Makes spans. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Traces {
    tracer: SdkTracer,
    stop: Shutdown,
}

impl Traces {
    /// What makes spans and what exports them; nothing without an endpoint. `role` and `instance` name the process.
    ///
    /// # Errors
    /// When the metrics have those of traces already.
    pub fn new(otlp: &Otlp, role: &str, instance: &str, metrics: &Metrics) -> Result<Option<(Self, Exporter)>, Error> {
        let Some(target) = otlp.target() else { return Ok(None) };
        let outcomes = metrics.counters(Name::TracesSpans, &["outcome"])?;
        let (sender, receiver) = mpsc::channel(otlp.queue);
        let (full, stop) = (Arc::new(AtomicBool::new(false)), Shutdown::new());
        let dropped = outcomes.with_label_values(&["dropped"]);
        let queue = Queue { spans: sender, dropped, full: Arc::clone(&full) };
        let by_ratio = Sampler::TraceIdRatioBased(otlp.sampling_ratio);
        let sampler = if otlp.follow_clients { Sampler::ParentBased(Box::new(by_ratio)) } else { by_ratio };
        let resource = Resource::builder_empty()
            .with_service_name(format!("tollgate-{role}"))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_sampler(sampler)
            .with_span_processor(queue)
            .build();
        let tracer = provider.tracer_with_scope(InstrumentationScope::builder("tollgate").build());
        let exporter = Exporter::new(target, otlp, receiver, &resource, &outcomes, full, stop.clone());
        Ok(Some((Self { tracer, stop }, exporter)))
    }

    /// Makes spans.
    pub fn tracer(&self) -> &SdkTracer {
        &self.tracer
    }

    /// No span comes after this: what waits is sent, and the exporter ends.
    pub fn finish(&self) {
        self.stop.trigger();
    }
}

/// Where spans go that have ended.
#[derive(Debug)]
struct Queue {
    spans: mpsc::Sender<SpanData>,
    dropped: IntCounter,
    /// Whether it was said that there is no room.
    full: Arc<AtomicBool>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _parent: &Context) {}

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() || self.spans.try_send(span).is_ok() {
            return;
        }
        self.dropped.inc();
        if !self.full.swap(true, Ordering::Relaxed) {
            tracing::warn!("spans are dropped: the collector takes them more slowly than they come, or not at all");
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(endpoint: &str) -> Option<String> {
        let otlp = Otlp { endpoint: Some(endpoint.into()), ..Otlp::default() };
        let sound = Settings { otlp: otlp.clone() }.validate().is_empty();
        let target = otlp.target().map(|uri| uri.to_string());
        assert_eq!(sound, target.is_some(), "{endpoint}");
        target
    }

    #[test]
    fn an_endpoint_is_a_collector_that_can_be_reached() {
        assert_eq!(target("http://127.0.0.1:4318").as_deref(), Some("http://127.0.0.1:4318/v1/traces"));
        assert_eq!(target("http://otel:4318/").as_deref(), Some("http://otel:4318/v1/traces"));
        assert_eq!(target("http://otel:4318/x/traces").as_deref(), Some("http://otel:4318/x/traces"));
        for bad in ["https://otel:4318", "otel:4318", "http://name:word@otel:4318", "", "/v1/traces"] {
            assert_eq!(target(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_defaults_trace_nothing_and_are_sound() {
        assert_eq!(Settings::default().validate(), Vec::<String>::new());
        assert!(Traces::new(&Otlp::default(), "x", "y", &Metrics::new()).unwrap().is_none());
        let wrong = Otlp { sampling_ratio: 1.5, queue: 0, batch: 0, ..Otlp::default() };
        assert_eq!(Settings { otlp: wrong }.validate().len(), 3);
    }
}
