//! The pool of connections to replicas.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client as Pooled, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::Call;
use crate::route::Replica;

/// An unused connection is closed before the replica's own (uvicorn: 5 s) runs out: none is used while it closes.
const IDLE: Duration = Duration::from_secs(4);

/// Connections to all replicas, kept and used again. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Client(Pooled<HttpConnector, Full<Bytes>>);

impl Client {
    /// No connections yet.
    pub(crate) fn new(connect: Duration) -> Self {
        let mut connector = HttpConnector::new();
        // Without it a small frame may wait for the other side's delayed acknowledgement.
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(connect));
        let pooled = Pooled::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(256)
            .build(connector);
        Self(pooled)
    }

    /// Sends a call; the answer's head.
    pub(crate) async fn send(&self, replica: &Replica, call: &Call<'_>) -> Result<Response<Incoming>, Error> {
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = replica.uri(call.path);
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("x-request-id", call.request_id.clone());
        self.0.request(request).await
    }

    /// What the replica says of its health.
    pub(crate) async fn health(&self, replica: &Replica) -> Result<StatusCode, Error> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = replica.uri("/health");
        let response = self.0.request(request).await?;
        let status = response.status();
        // Read to its end, so that the connection can be used again.
        let _ = response.into_body().collect().await;
        Ok(status)
    }
}
