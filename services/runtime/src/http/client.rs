//! What one process asks of another now and then, in text: one answer within a time limit.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request};

use super::single::{SingleError, send};
use crate::tls::{TlsClient, TlsError};

/// Answers beyond this are of no use to anybody here.
const LARGEST_ANSWER: usize = 8 << 20;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
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
    /// Whom an `https://` address is trusted by. None: by the certificates of the system.
    pub tls: Option<&'a TlsClient>,
    /// How.
    pub method: Method,
    /// Whom: an `http://` or `https://` address.
    pub url: &'a str,
    /// More headers.
    pub headers: &'a [(HeaderName, HeaderValue)],
    /// A body with its content type.
    pub body: Option<(&'static str, String)>,
    /// How long the whole may take.
    pub limit: Duration,
}

/// Why there is no answer. Says nothing of what was asked: who asks names it.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody can be there.
    #[error("its address must begin with http:// or https:// and name a host")]
    Address,
    /// There are no certificates to trust anybody by.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// See [`SingleError`].
    #[error(transparent)]
    Single(#[from] SingleError),
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs())]
    Slow(Duration),
}

/// GET, with three seconds for the answer.
///
/// # Errors
/// See [`AskError`].
pub async fn get(url: &str) -> Result<Answer, AskError> {
    let limit = Duration::from_secs(3);
    ask(Question { tls: None, method: Method::GET, url, headers: &[], body: None, limit }).await
}

/// Asks once.
///
/// # Errors
/// See [`AskError`].
pub async fn ask(question: Question<'_>) -> Result<Answer, AskError> {
    let Question { tls, method, url, headers, body, limit } = question;
    let is_secure = url.starts_with("https://");
    let (kind, body) = body.map_or((None, Bytes::new()), |(kind, text)| (Some(kind), Bytes::from(text)));
    let request = Request::builder().method(method).uri(url).body(Full::new(body));
    let is_asked = is_secure || url.starts_with("http://");
    let Some(mut request) = request.ok().filter(|_| is_asked) else { return Err(AskError::Address) };
    request.headers_mut().extend(headers.iter().cloned());
    if let Some(kind) = kind {
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    let tls = match tls {
        None if is_secure => Some(TlsClient::open(None)?),
        given => given.cloned(),
    };
    let answer = tokio::time::timeout(limit, send(tls.as_ref(), request, LARGEST_ANSWER)).await;
    let (head, body) = answer.map_err(|_| AskError::Slow(limit))??.into_parts();
    let text = String::from_utf8_lossy(&body).into_owned();
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{bind, routes, serve};
    use crate::{Metrics, Readiness, Shutdown};
    use std::net::SocketAddr;

    fn question(url: &str) -> Question<'_> {
        Question { tls: None, method: Method::GET, url, headers: &[], body: None, limit: Duration::from_millis(200) }
    }

    #[tokio::test]
    async fn an_answer_is_read_with_its_status_whatever_that_is() {
        let (readiness, stop) = (Readiness::new(), Shutdown::new());
        let waiting = readiness.condition("kafka", "no broker answers");
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let at = listener.local_addr().unwrap();
        let serving = serve(listener, routes(Metrics::new(), readiness), stop.clone(), Duration::from_secs(5));
        let asking = async {
            let answer = get(&format!("http://{at}/readyz")).await.unwrap();
            assert_eq!((answer.status, answer.is_success()), (503, false));
            assert!(answer.text.contains("no broker answers") && answer.headers.contains_key(CONTENT_TYPE));
            waiting.ready();
            assert!(get(&format!("http://{at}/readyz")).await.unwrap().is_success());
            stop.trigger();
        };
        tokio::join!(serving, asking).0.unwrap();
    }

    #[tokio::test]
    async fn why_there_is_no_answer_is_said_without_what_was_asked() {
        let silent = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let silent = format!("http://{}/secret", silent.local_addr().unwrap());
        let gone: SocketAddr = bind(([127, 0, 0, 1], 0).into()).await.unwrap().local_addr().unwrap();
        for (url, said) in [
            ("ftp://secret", "http:// or https://"),
            ("http://", "http:// or https://"),
            ("secret", "http:// or https://"),
            (&format!("http://{gone}/secret"), "cannot be reached: Connection refused"),
            (&format!("https://{gone}/secret"), "cannot be reached: Connection refused"),
            (&silent, "no answer within 0 s"),
        ] {
            let error = ask(question(url)).await.unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("secret"), "{url}: {error}");
        }
    }
}
