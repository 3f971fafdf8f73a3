//! HTTP with the canary's key: to the gateway and to billing, as its tenant.

use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, InvalidHeaderValue};
use hyper::{Method, Request};
use runtime::config::Secret;
use runtime::http::single::send;
use runtime::tls::TlsClient;

/// The longest answer that is read.
const LARGEST: usize = 8 << 20;
/// How long an answer may take: the gateway may let a request wait for its turn.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// What the gateway calls the request.
    pub(crate) request_id: Option<String>,
    pub(crate) text: String,
}

/// Holds the key, and shows it to nobody.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    tls: TlsClient,
    key: HeaderValue,
}

impl Client {
    pub(crate) fn new(tls: TlsClient, key: &Secret) -> Result<Self, InvalidHeaderValue> {
        let mut key = HeaderValue::try_from(format!("Bearer {}", key.expose()))?;
        key.set_sensitive(true);
        Ok(Self { tls, key })
    }

    pub(crate) async fn get(&self, url: &str) -> Result<Answer, String> {
        self.ask(Method::GET, url, String::new()).await
    }

    /// POST of JSON.
    pub(crate) async fn post(&self, url: &str, json: String) -> Result<Answer, String> {
        self.ask(Method::POST, url, json).await
    }

    async fn ask(&self, method: Method, url: &str, body: String) -> Result<Answer, String> {
        let request = Request::builder().method(method).uri(url).header(AUTHORIZATION, self.key.clone());
        let request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| error.to_string())?;
        let answer = tokio::time::timeout(PATIENCE, send(&self.tls, request, LARGEST)).await;
        let answer = answer.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?;
        let (head, body) = answer.map_err(|error| error.to_string())?.into_parts();
        let request_id = head.headers.get("x-request-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
        Ok(Answer { status: head.status.as_u16(), request_id, text: String::from_utf8_lossy(&body).into_owned() })
    }
}
