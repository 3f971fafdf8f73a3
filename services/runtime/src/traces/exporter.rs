//! Sends spans to the collector, many at a time. What it does not take is counted, and said once.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;
use prometheus::{IntCounter, IntCounterVec};
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Otlp;
use crate::Shutdown;

/// How often a batch is tried before its spans count as lost, and how long it waits in between.
const TRIES: u32 = 3;
const AGAIN: Duration = Duration::from_secs(1);
/// A collector's answer is read so far.
const ANSWER: usize = 1 << 16;

/// See the module. [`Exporter::run`] it as a task.
#[derive(Debug)]
pub struct Exporter {
    target: Uri,
    client: Client<HttpConnector, Full<Bytes>>,
    spans: mpsc::Receiver<SpanData>,
    resource: ResourceAttributesWithSchema,
    batch: usize,
    interval: Duration,
    timeout: Duration,
    exported: IntCounter,
    failed: IntCounter,
    /// Whether it was said that the queue is full.
    full: Arc<AtomicBool>,
    /// Whether it was said that the collector does not take them.
    troubled: bool,
    stop: Shutdown,
}

/// Why the collector did not take a batch.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the collector cannot be reached: {0}")]
    Away(String),
    #[error("the collector did not answer in time")]
    Late,
    #[error("the collector answered {0}")]
    Status(StatusCode),
}

impl Refused {
    /// Whether the same batch may be taken later.
    fn is_transient(&self) -> bool {
        match self {
            Self::Away(_) | Self::Late => true,
            Self::Status(status) => matches!(status.as_u16(), 429 | 502 | 503 | 504),
        }
    }
}

impl Exporter {
    pub(super) fn new(
        target: Uri,
        otlp: &Otlp,
        spans: mpsc::Receiver<SpanData>,
        resource: &Resource,
        outcomes: &IntCounterVec,
        full: Arc<AtomicBool>,
        stop: Shutdown,
    ) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(otlp.timeout));
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector);
        Self {
            target,
            client,
            spans,
            resource: resource.into(),
            batch: otlp.batch,
            interval: otlp.interval,
            timeout: otlp.timeout,
            exported: outcomes.with_label_values(&["exported"]),
            failed: outcomes.with_label_values(&["failed"]),
            full,
            troubled: false,
            stop,
        }
    }

    /// How long it may take to end after [`super::Traces::finish`].
    pub fn drain(&self) -> Duration {
        self.timeout + AGAIN
    }

    /// Exports until it is told that nothing more comes, and then what waits.
    ///
    /// # Errors
    /// Never; the type is that of a task.
    pub async fn run(mut self) -> Result<(), Infallible> {
        while let Some(batch) = self.gather().await {
            self.deliver(batch).await;
        }
        let until = Instant::now() + self.timeout;
        while let Some(batch) = self.rest() {
            let count = batch.len();
            if tokio::time::timeout_at(until, self.deliver(batch)).await.is_err() {
                self.lost(count, &Refused::Late);
            }
        }
        Ok(())
    }

    /// The next batch: as many as are sent together, or what came within the interval. None when the last ones are due.
    async fn gather(&mut self) -> Option<Vec<SpanData>> {
        let mut batch = Vec::new();
        let mut until = None;
        while batch.len() < self.batch {
            let due = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                span = self.spans.recv() => match span {
                    Some(span) => batch.push(span),
                    None => return Some(batch).filter(|batch| !batch.is_empty()),
                },
                () = due => break,
                () = self.stop.cancelled() => return Some(batch).filter(|batch| !batch.is_empty()),
            }
            until = until.or_else(|| Some(Instant::now() + self.interval));
        }
        Some(batch)
    }

    /// What still waits at the end.
    fn rest(&mut self) -> Option<Vec<SpanData>> {
        let batch: Vec<_> = std::iter::from_fn(|| self.spans.try_recv().ok()).take(self.batch).collect();
        Some(batch).filter(|batch| !batch.is_empty())
    }

    async fn deliver(&mut self, batch: Vec<SpanData>) {
        let count = batch.len();
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let body = Bytes::from(ExportTraceServiceRequest { resource_spans }.encode_to_vec());
        for left in (0..TRIES).rev() {
            match self.send(body.clone()).await {
                Ok(rejected) => return self.taken(count, rejected),
                Err(refused) if left == 0 || !refused.is_transient() => return self.lost(count, &refused),
                Err(refused) => self.trouble(&refused),
            }
            if !self.stop.sleep(AGAIN).await {
                // Once more at a stop, at once.
                match self.send(body).await {
                    Ok(rejected) => self.taken(count, rejected),
                    Err(refused) => self.lost(count, &refused),
                }
                return;
            }
        }
    }

    /// Posts a batch; the number of spans that the collector did not want.
    async fn send(&self, body: Bytes) -> Result<usize, Refused> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.clone();
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| Refused::Away(error.to_string()))?;
            let status = response.status();
            // Read to its end, so that the connection can be used again.
            let body = Limited::new(response.into_body(), ANSWER).collect().await;
            if !status.is_success() {
                return Err(Refused::Status(status));
            }
            let said = body.ok().and_then(|body| ExportTraceServiceResponse::decode(body.to_bytes()).ok());
            let rejected = said.and_then(|said| said.partial_success).map_or(0, |partial| partial.rejected_spans);
            Ok(usize::try_from(rejected).unwrap_or(0))
        };
        tokio::time::timeout(self.timeout, exchange).await.unwrap_or(Err(Refused::Late))
    }

    fn taken(&mut self, count: usize, rejected: usize) {
        let rejected = rejected.min(count);
        self.exported.inc_by((count - rejected) as u64);
        self.failed.inc_by(rejected as u64);
        if std::mem::take(&mut self.troubled) {
            tracing::info!("the collector takes spans again");
        }
        self.full.store(false, Ordering::Relaxed);
    }

    fn lost(&mut self, count: usize, refused: &Refused) {
        self.failed.inc_by(count as u64);
        self.trouble(refused);
    }

    fn trouble(&mut self, refused: &Refused) {
        if !std::mem::replace(&mut self.troubled, true) {
            tracing::warn!(endpoint = %self.target, error = %refused, "spans cannot be exported: they are counted, and this is said once");
        }
    }
}
