//! A collector of traces, and a replica that notes the headers it gets: what a test needs to see of both ends of a trace.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::{get, post};
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::task::JoinSet;

async fn serve(router: Router) -> (SocketAddr, JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let (addr, mut running) = (listener.local_addr().unwrap(), JoinSet::new());
    running.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (addr, running)
}

/// Takes spans over OTLP, HTTP with protobuf.
pub(crate) struct Collector {
    addr: SocketAddr,
    taken: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    _running: JoinSet<()>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let taken: Arc<Mutex<Vec<_>>> = Arc::default();
        let keep = Arc::clone(&taken);
        let take = move |headers: HeaderMap, body: Bytes| {
            assert_eq!(headers[header::CONTENT_TYPE], "application/x-protobuf");
            keep.lock().unwrap().push(ExportTraceServiceRequest::decode(body).unwrap());
            async { StatusCode::OK }
        };
        let (addr, running) = serve(Router::new().route("/v1/traces", post(take))).await;
        Self { addr, taken, _running: running }
    }

    /// As settings name it.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// All spans that came.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let taken = self.taken.lock().unwrap();
        let resources = taken.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }
}

/// What a span says under this name.
pub(crate) fn said(span: &Span, name: &str) -> Option<String> {
    attribute(&span.attributes, name)
}

fn attribute(attributes: &[KeyValue], name: &str) -> Option<String> {
    attributes.iter().find(|one| one.key == name).and_then(|one| one.value.as_ref()).map(text_of)
}

fn text_of(value: &AnyValue) -> String {
    match value.value.clone().unwrap() {
        any_value::Value::StringValue(text) => text,
        any_value::Value::IntValue(number) => number.to_string(),
        any_value::Value::BoolValue(is) => is.to_string(),
        any_value::Value::ArrayValue(list) => {
            format!("[{}]", list.values.iter().map(text_of).collect::<Vec<_>>().join(", "))
        }
        other => format!("{other:?}"),
    }
}

/// Lower-case hex, as headers have it.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A replica that answers each chat with a stream of two tokens, and notes the headers that it was asked with.
pub(crate) struct Noting {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<HeaderMap>>>,
    _running: JoinSet<()>,
}

impl Noting {
    pub(crate) async fn start() -> Self {
        let seen: Arc<Mutex<Vec<_>>> = Arc::default();
        let keep = Arc::clone(&seen);
        let chat = move |headers: HeaderMap| {
            keep.lock().unwrap().push(headers);
            let piece = |tokens: u64, reason: &str| {
                format!(
                    r#"data: {{"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":[{{"index":0,"delta":{{"content":"a"}},"finish_reason":{reason}}}],"usage":{{"prompt_tokens":7,"completion_tokens":{tokens},"total_tokens":{}}}}}"#,
                    7 + tokens
                )
            };
            let sum = r#"data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,"prompt_tokens_details":{"cached_tokens":4}}}"#;
            let body = [&piece(1, "null"), &piece(2, "\"stop\""), sum, "data: [DONE]", ""].join("\n\n");
            async { ([(header::CONTENT_TYPE, "text/event-stream")], body) }
        };
        let router = Router::new().route("/health", get(async || "")).route("/v1/chat/completions", post(chat));
        let (addr, running) = serve(router).await;
        Self { addr, seen, _running: running }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The headers of all requests.
    pub(crate) fn seen(&self) -> Vec<HeaderMap> {
        self.seen.lock().unwrap().clone()
    }
}
