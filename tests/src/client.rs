//! A client as a tenant would write one: whole answers, streams read frame by frame, and hanging up at any frame.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// The longest that the head of an answer, or a whole one, may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug)]
pub struct Broken {
    /// True if nobody listened, so that nothing was sent.
    pub refused: bool,
    /// What the connection said.
    pub why: String,
}

impl Broken {
    fn new(error: &dyn std::fmt::Debug) -> Self {
        Self { refused: false, why: format!("{error:?}") }
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: hyper::HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The body, if the status is a success; else it fails with both.
    pub fn ok(&self) -> Value {
        assert!(self.status.is_success(), "{} {}", self.status, String::from_utf8_lossy(&self.body));
        if self.body.is_empty() { Value::Null } else { self.json() }
    }

    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// HTTP over kept-alive connections.
#[derive(Debug, Clone)]
pub struct Client {
    pool: Pool<HttpConnector, Full<Bytes>>,
}

impl Default for Client {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self { pool: Pool::builder(TokioExecutor::new()).build(connector) }
    }
}

impl Client {
    /// Sends a request and gives the head of the answer, its body unread.
    ///
    /// The limit is for the pool as well: a request that is handed to a connection in the moment in which that one breaks may
    /// wait for ever, with no socket left to wait for.
    pub async fn open(
        &self,
        method: Method,
        url: &str,
        key: Option<&str>,
        body: Option<Bytes>,
    ) -> Result<Response<Incoming>, Broken> {
        let mut request = Request::builder().method(method).uri(url);
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(Full::new(body.unwrap_or_default())).expect("a request");
        tokio::time::timeout(PATIENCE, self.pool.request(request))
            .await
            .map_err(|error| Broken::new(&error))?
            .map_err(|error| Broken { refused: error.is_connect(), why: format!("{error:?}") })
    }

    /// Sends a request and reads the whole answer.
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Answer, Broken> {
        let body = body.map(|json| Bytes::from(json.to_string()));
        self.send_bytes(method, url, key, body).await
    }

    /// The same with a body that need not be JSON.
    pub async fn send_bytes(
        &self,
        method: Method,
        url: &str,
        key: Option<&str>,
        body: Option<Bytes>,
    ) -> Result<Answer, Broken> {
        let read = async {
            let (head, body) = self.open(method, url, key, body).await?.into_parts();
            let body = body.collect().await.map_err(|error| Broken::new(&error))?.to_bytes();
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        tokio::time::timeout(PATIENCE, read).await.map_err(|error| Broken::new(&error))?
    }

    /// GET.
    pub async fn get(&self, url: &str, key: Option<&str>) -> Result<Answer, Broken> {
        self.send(Method::GET, url, key, None).await
    }

    /// POST of JSON.
    pub async fn post(&self, url: &str, key: Option<&str>, body: &Value) -> Result<Answer, Broken> {
        self.send(Method::POST, url, key, Some(body)).await
    }

    /// PUT of JSON.
    pub async fn put(&self, url: &str, key: Option<&str>, body: &Value) -> Result<Answer, Broken> {
        self.send(Method::PUT, url, key, Some(body)).await
    }
}

/// The `data:` payloads of a stream, however the bytes are cut.
#[derive(Debug, Default)]
pub struct Events {
    buffer: Vec<u8>,
}

impl Events {
    /// Takes bytes and gives the payloads that are whole now.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.buffer.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let text = String::from_utf8_lossy(&event);
            let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim).collect();
            if !data.is_empty() {
                events.push(data.join("\n"));
            }
        }
        events
    }
}
