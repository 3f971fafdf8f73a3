//! The trace of one request: a span for all of it, one for its wait, one for each attempt. By the conventions of
//! OpenTelemetry for generative AI, as far as they fit a gateway; none of them holds a prompt, an answer or a key.

use http::{HeaderMap, HeaderName, HeaderValue};
use ledger::ids::ReplicaId;
use ledger::tokens::TokenCounts;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{
    Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, Tracer as _,
};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, Span};
use runtime::traces::Traces;
use schemas::event::EndReason;
use stream::spool::Admission;

use crate::admit::policy::Tenant;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// Longer states are not passed on; the W3C asks for no more.
const STATE_BYTES: usize = 512;

/// See the module.
#[derive(Debug, Default)]
pub(crate) enum Trace {
    /// Nobody asked for one.
    #[default]
    None,
    /// Nothing is traced here.
    Passed(Box<Passed>),
    /// Its spans, whether they will be exported or not.
    Kept(Box<Spans>),
}

/// What the client sent: it goes on to the replica as it is.
#[derive(Debug)]
pub(crate) struct Passed {
    context: SpanContext,
    parent: HeaderValue,
    state: Option<HeaderValue>,
}

/// The spans of a request.
#[derive(Debug)]
pub(crate) struct Spans {
    tracer: SdkTracer,
    root: Context,
    /// Until the first replica is asked.
    wait: Option<Span>,
    attempt: Option<Span>,
    /// The model, as the replica that is being asked knows it.
    served: Option<String>,
}

/// A request's end, as its trace tells it.
#[derive(Debug)]
pub(crate) struct Ended<'a> {
    pub status: u16,
    pub reason: EndReason,
    pub code: Option<&'a str>,
    pub tokens: TokenCounts,
    pub attempts: u32,
}

impl Trace {
    /// The trace of a request whose head has just come. Free without a client's trace and without an exporter.
    pub(crate) fn begin(traces: Option<&Traces>, headers: &HeaderMap) -> Self {
        let client = client_of(headers);
        let Some(traces) = traces else {
            let passed = |context: SpanContext| {
                let parent = headers.get(TRACEPARENT)?.clone();
                let state = headers.get(TRACESTATE).filter(|state| state.len() <= STATE_BYTES).cloned();
                Some(Self::Passed(Box::new(Passed { context, parent, state })))
            };
            return client.and_then(passed).unwrap_or_default();
        };
        let parent = client.map_or_else(Context::new, |client| Context::new().with_remote_span_context(client));
        let tracer = traces.tracer().clone();
        let span = tracer.build_with_context(tracer.span_builder("request").with_kind(SpanKind::Server), &parent);
        let root = Context::new().with_span(span);
        Self::Kept(Box::new(Spans { tracer, root, wait: None, attempt: None, served: None }))
    }

    /// The trace's id, for the log.
    pub(crate) fn id(&self) -> Option<TraceId> {
        match self {
            Self::None => None,
            Self::Passed(passed) => Some(passed.context.trace_id()),
            Self::Kept(spans) => Some(spans.root.span().span_context().trace_id()),
        }
    }

    /// The spans, if any are kept of this request.
    fn recording(&mut self) -> Option<&mut Spans> {
        match self {
            Self::Kept(spans) if spans.root.span().is_recording() => Some(spans),
            _ => None,
        }
    }

    /// It was let in, and waits for a replica.
    pub(crate) fn admitted(&mut self, admission: &Admission, tenant: &Tenant) {
        let Some(spans) = self.recording() else { return };
        let operation = operation(&admission.endpoint);
        let root = spans.root.span();
        root.update_name(format!("{operation} {}", admission.model));
        root.set_attributes([
            KeyValue::new("gen_ai.operation.name", operation),
            KeyValue::new("gen_ai.request.model", admission.model.as_str().to_owned()),
            KeyValue::new("gen_ai.request.stream", admission.stream),
            KeyValue::new("url.path", admission.endpoint.clone()),
            KeyValue::new("tollgate.request_id", admission.request_id.to_string()),
            KeyValue::new("tollgate.tenant", admission.tenant.as_str().to_owned()),
            KeyValue::new("tollgate.project", admission.project.as_str().to_owned()),
            KeyValue::new("tollgate.plan", tenant.plan_id.as_str().to_owned()),
            KeyValue::new("tollgate.model_version", admission.version.as_str().to_owned()),
        ]);
        spans.wait = Some(spans.child("wait", SpanKind::Internal));
    }

    /// A replica is asked.
    pub(crate) fn attempt(&mut self, number: u32, replica: &ReplicaId, served: &str) {
        let Self::Kept(spans) = self else { return };
        spans.wait = None;
        let mut span = spans.child("attempt", SpanKind::Client);
        span.set_attribute(KeyValue::new("tollgate.attempt", i64::from(number)));
        span.set_attribute(KeyValue::new("tollgate.replica", replica.as_str().to_owned()));
        spans.attempt = Some(span);
        spans.served = Some(served.to_owned());
    }

    /// The replica that is being asked learns of the trace.
    pub(crate) fn pass_on(&self, headers: &mut HeaderMap) {
        match self {
            Self::None => {}
            Self::Passed(passed) => {
                headers.insert(TRACEPARENT, passed.parent.clone());
                headers.extend(passed.state.clone().map(|state| (HeaderName::from_static(TRACESTATE), state)));
            }
            Self::Kept(spans) => {
                let context = match &spans.attempt {
                    Some(attempt) => attempt.span_context().clone(),
                    None => spans.root.span().span_context().clone(),
                };
                insert(headers, &context);
            }
        }
    }

    /// The attempt came to this.
    pub(crate) fn attempt_ended(&mut self, outcome: &'static str) {
        let Self::Kept(spans) = self else { return };
        let Some(mut attempt) = spans.attempt.take() else { return };
        if outcome != EndReason::Complete.as_str() {
            attempt.set_attribute(KeyValue::new("error.type", outcome));
            attempt.set_status(Status::error(outcome));
        }
        attempt.end();
    }

    /// The first token of an answer is about to be handed on.
    pub(crate) fn first_token(&mut self) {
        if let Some(spans) = self.recording() {
            spans.root.span().add_event("first token", Vec::new());
        }
    }

    /// The choices of the answer ended so.
    pub(crate) fn finished_by(&mut self, reasons: impl IntoIterator<Item = &'static str>) {
        let Some(spans) = self.recording() else { return };
        let reasons: Vec<StringValue> = reasons.into_iter().map(StringValue::from).collect();
        if !reasons.is_empty() {
            let reasons = Value::Array(Array::String(reasons));
            spans.root.span().set_attribute(KeyValue::new("gen_ai.response.finish_reasons", reasons));
        }
    }

    /// It has its end.
    pub(crate) fn ended(&mut self, ended: &Ended<'_>) {
        self.attempt_ended(ended.reason.as_str());
        let Some(spans) = self.recording() else { return };
        spans.wait = None;
        let root = spans.root.span();
        // An engine answers in the name that it was asked by.
        if let Some(served) = spans.served.take().filter(|_| ended.status == 200) {
            root.set_attribute(KeyValue::new("gen_ai.response.model", served));
        }
        let TokenCounts { input, cached_input, output, reasoning } = ended.tokens;
        root.set_attributes([
            KeyValue::new("gen_ai.usage.input_tokens", count(input.saturating_add(cached_input))),
            KeyValue::new("gen_ai.usage.cache_read.input_tokens", count(cached_input)),
            KeyValue::new("gen_ai.usage.output_tokens", count(output.saturating_add(reasoning))),
            KeyValue::new("tollgate.usage.reasoning_tokens", count(reasoning)),
            KeyValue::new("tollgate.end_reason", ended.reason.as_str()),
            KeyValue::new("tollgate.attempts", i64::from(ended.attempts)),
        ]);
        spans.close(ended.status, ended.code.or((ended.reason != EndReason::Complete).then(|| ended.reason.as_str())));
    }

    /// It was answered without a replica, or not at all.
    pub(crate) fn answered(
        &mut self,
        endpoint: Option<&'static str>,
        tenant: Option<&Tenant>,
        status: u16,
        code: Option<&str>,
    ) {
        let Some(spans) = self.recording() else { return };
        let root = spans.root.span();
        if let Some(endpoint) = endpoint {
            root.update_name(format!("{} refused", operation(endpoint)));
            root.set_attribute(KeyValue::new("url.path", endpoint));
        }
        if let Some(tenant) = tenant {
            root.set_attribute(KeyValue::new("tollgate.tenant", tenant.id.as_str().to_owned()));
            root.set_attribute(KeyValue::new("tollgate.plan", tenant.plan_id.as_str().to_owned()));
        }
        spans.close(status, code);
    }
}

impl Spans {
    fn child(&self, name: &'static str, kind: SpanKind) -> Span {
        self.tracer.build_with_context(self.tracer.span_builder(name).with_kind(kind), &self.root)
    }

    fn close(&self, status: u16, error: Option<&str>) {
        let root = self.root.span();
        if status > 0 {
            root.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        }
        if let Some(error) = error {
            root.set_attribute(KeyValue::new("error.type", error.to_owned()));
            // A client's own fault is no failure of the server's span.
            if status == 0 || status >= 500 || status == 200 {
                root.set_status(Status::error(error.to_owned()));
            }
        }
        root.end();
    }
}

/// The convention's word for what an endpoint does.
fn operation(endpoint: &str) -> &'static str {
    match endpoint {
        "/v1/completions" => "text_completion",
        "/v1/embeddings" => "embeddings",
        "/v1/chat/completions" | "/v1/responses" | "/v1/messages" => "chat",
        "/v1/models" => "models",
        path if path.ends_with("rerank") => "rerank",
        path if path.ends_with("score") => "score",
        path if path.ends_with("tokenize") || path.ends_with("count_tokens") => "tokenize",
        _ => "request",
    }
}

fn count(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

/// The trace that the client's headers carry, if it can be one.
fn client_of(headers: &HeaderMap) -> Option<SpanContext> {
    headers.get(TRACEPARENT)?;
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
    let span = context.span().span_context().clone();
    span.is_valid().then_some(span)
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok().filter(|value| key != TRACESTATE || value.len() <= STATE_BYTES)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

fn insert(headers: &mut HeaderMap, context: &SpanContext) {
    let flags = context.trace_flags() & TraceFlags::SAMPLED;
    let parent = format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), flags);
    if let Ok(parent) = HeaderValue::try_from(parent) {
        headers.insert(TRACEPARENT, parent);
    }
    let state = context.trace_state().header();
    if let Some(state) =
        Some(state).filter(|state| !state.is_empty()).and_then(|state| HeaderValue::try_from(state).ok())
    {
        headers.insert(TRACESTATE, state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(parent: &str, state: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, parent.parse().unwrap());
        headers.insert(TRACESTATE, state.parse().unwrap());
        headers
    }

    #[test]
    fn without_an_exporter_a_clients_trace_goes_on_as_it_is() {
        let given = headers(PARENT, "vendor=1,other=2");
        let (trace, mut passed) = (Trace::begin(None, &given), HeaderMap::new());
        trace.pass_on(&mut passed);
        assert_eq!(passed, given);
        assert_eq!(trace.id().unwrap().to_string(), "0af7651916cd43dd8448eb211c80319c");
    }

    #[test]
    fn what_is_no_trace_is_not_passed_on() {
        for bad in [
            "",
            "00-0-0-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "junk",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            let (trace, mut passed) = (Trace::begin(None, &headers(bad, "a=1")), HeaderMap::new());
            trace.pass_on(&mut passed);
            assert_eq!((passed.len(), trace.id()), (0, None), "{bad}");
        }
        let (trace, mut passed) = (Trace::begin(None, &headers(PARENT, &"a".repeat(600))), HeaderMap::new());
        trace.pass_on(&mut passed);
        assert_eq!(passed.len(), 1, "a state that is too long is left out");
    }
}
