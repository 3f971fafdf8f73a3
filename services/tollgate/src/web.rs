//! A small HTTP client for what doctor, dev and the schema registration ask; plain http, one answer within a time limit.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

/// Answers beyond this are of no use to anybody here.
const LARGEST_ANSWER: usize = 8 << 20;

/// An answer: the status and the body as text.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// What to ask.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    pub(crate) method: Method,
    pub(crate) url: &'a str,
    pub(crate) headers: &'a [(&'static str, &'a str)],
    /// A body with its content type.
    pub(crate) body: Option<(&'a str, String)>,
    pub(crate) limit: Duration,
}

/// GET, with three seconds for the answer.
pub(crate) async fn get(url: &str) -> Result<Answer, String> {
    let limit = Duration::from_secs(3);
    ask(Question { method: Method::GET, url, headers: &[], body: None, limit }).await
}

/// Whether a GET is answered with success; if not, a short reason.
pub(crate) async fn answers(url: &str) -> Result<(), String> {
    match get(url).await? {
        answer if answer.is_success() => Ok(()),
        answer => Err(format!("{} {}", answer.status, answer.text.trim())),
    }
}

/// Whether a role says on `/readyz` that it is ready; if not, its reasons.
pub(crate) async fn ready(url: &str) -> Result<(), Unready> {
    #[derive(serde::Deserialize)]
    struct Answer {
        conditions: Vec<Condition>,
    }
    #[derive(serde::Deserialize)]
    struct Condition {
        name: String,
        reason: Option<String>,
    }
    let answer = get(url).await.map_err(Unready::Absent)?;
    if answer.is_success() {
        return Ok(());
    }
    let reasons = serde_json::from_str::<Answer>(&answer.text).map(|answer| {
        let unmet = answer.conditions.into_iter().filter_map(|condition| Some((condition.name, condition.reason?)));
        unmet.map(|(name, reason)| format!("{name}: {reason}")).collect::<Vec<_>>().join("; ")
    });
    Err(Unready::Waits(reasons.unwrap_or_else(|_| format!("{} {}", answer.status, answer.text.trim()))))
}

/// Why a role is not ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unready {
    /// Nobody answers there.
    #[error("{0}")]
    Absent(String),
    /// It says what it waits for.
    #[error("{0}")]
    Waits(String),
}

/// Asks once. The error is a short reason for people.
pub(crate) async fn ask(question: Question<'_>) -> Result<Answer, String> {
    let Question { method, url, headers, body, limit } = question;
    if !url.starts_with("http://") {
        return Err(format!("{url} is not an http:// address"));
    }
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (kind, bytes) = body.map_or((None, Bytes::new()), |(kind, text)| (Some(kind), Bytes::from(text)));
    if let Some(kind) = kind {
        request = request.header(CONTENT_TYPE, kind);
    }
    let request = request.body(Full::new(bytes)).map_err(|error| error.to_string())?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let answering = async {
        let answer = client.request(request).await.map_err(|error| reason(&error))?;
        let status = answer.status().as_u16();
        let body =
            Limited::new(answer.into_body(), LARGEST_ANSWER).collect().await.map_err(|error| error.to_string())?;
        Ok(Answer { status, text: String::from_utf8_lossy(&body.to_bytes()).into_owned() })
    };
    match tokio::time::timeout(limit, answering).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
    }
}

/// The innermost reason: "connection refused" says more than "client error".
fn reason(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
