//! A small HTTP client for what one process asks of another now and then: plain http, one answer within a time limit.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

/// Answers beyond this are of no use to anybody here.
const LARGEST_ANSWER: usize = 8 << 20;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body as text.
    pub text: String,
}

impl Answer {
    /// 200 to 299.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// What to ask.
#[derive(Debug)]
pub struct Question<'a> {
    /// How.
    pub method: Method,
    /// Whom: an `http://` address.
    pub url: &'a str,
    /// More headers.
    pub headers: &'a [(&'static str, &'a str)],
    /// A body with its content type.
    pub body: Option<(&'a str, String)>,
    /// How long the whole may take.
    pub limit: Duration,
}

/// GET, with three seconds for the answer.
///
/// # Errors
/// A short reason for people.
pub async fn get(url: &str) -> Result<Answer, String> {
    let limit = Duration::from_secs(3);
    ask(Question { method: Method::GET, url, headers: &[], body: None, limit }).await
}

/// Asks once.
///
/// # Errors
/// A short reason for people.
pub async fn ask(question: Question<'_>) -> Result<Answer, String> {
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
