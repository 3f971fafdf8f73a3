//! HTTP with the canary's key: to the gateway and to billing, as its tenant.

use std::time::Duration;

use hyper::Method;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue, InvalidHeaderValue};
use runtime::config::Secret;
use runtime::http::client::{Answer, AskError, Question, ask};
use runtime::tls::TlsClient;

/// How long an answer may take: the gateway may let a request wait for its turn.
const PATIENCE: Duration = Duration::from_secs(60);

/// Holds the key, and shows it to nobody.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    tls: TlsClient,
    headers: [(HeaderName, HeaderValue); 1],
}

impl Client {
    pub(crate) fn new(tls: TlsClient, key: &Secret) -> Result<Self, InvalidHeaderValue> {
        let mut key = HeaderValue::try_from(format!("Bearer {}", key.expose()))?;
        key.set_sensitive(true);
        Ok(Self { tls, headers: [(AUTHORIZATION, key)] })
    }

    pub(crate) async fn get(&self, url: &str) -> Result<Answer, AskError> {
        self.ask(Method::GET, url, None).await
    }

    /// POST of JSON.
    pub(crate) async fn post(&self, url: &str, json: String) -> Result<Answer, AskError> {
        self.ask(Method::POST, url, Some(("application/json", json))).await
    }

    async fn ask(&self, method: Method, url: &str, body: Option<(&'static str, String)>) -> Result<Answer, AskError> {
        ask(Question { tls: Some(&self.tls), method, url, headers: &self.headers, body, limit: PATIENCE }).await
    }
}
