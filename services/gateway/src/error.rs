//! What a client is told when there is no answer for it: OpenAI's error shape, with codes that stay.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::Body;
use crate::admit::auth::Invalid;
use crate::endpoint::ErrorShape;

/// A refusal. Its words are for the client: they name no replica, no address and no other tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub status: StatusCode,
    pub code: &'static str,
    kind: &'static str,
    message: Cow<'static, str>,
    pub param: Option<&'static str>,
    /// Milliseconds.
    retry_after: Option<NonZeroU32>,
    allow: Option<&'static str>,
    limited_by: Option<&'static str>,
    shape: ErrorShape,
}

/// Which limit of which level has no room: `key.requests_per_minute`.
const LIMITED_BY: HeaderName = HeaderName::from_static("x-tollgate-limited-by");

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl Refusal {
    fn new(status: StatusCode, code: &'static str, kind: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        let (message, shape) = (message.into(), ErrorShape::default());
        let (param, retry_after, allow, limited_by) = (None, None, None, None);
        Self { status, code, kind, message, param, retry_after, allow, limited_by, shape }
    }

    fn again(self, after: Duration) -> Self {
        Self { retry_after: millis(after), ..self }
    }

    pub(crate) fn invalid_api_key() -> Self {
        let words = "The API key is missing, unknown, expired or revoked. Send it as `Authorization: Bearer tg_...` or `X-API-Key`.";
        Self::new(StatusCode::UNAUTHORIZED, "invalid_api_key", INVALID, words)
    }

    pub(crate) fn invalid_token(why: &Invalid) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_token", INVALID, format!("The token is refused: {why}."))
    }

    pub(crate) fn token_keys_unavailable() -> Self {
        let words = "The keys of the token's issuer cannot be read at the moment. Try again soon.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "token_keys_unavailable", SERVER, words)
            .again(Duration::from_secs(2))
    }

    pub(crate) fn insufficient_scope(scope: ledger::control::Scope) -> Self {
        let words = format!("This needs the scope `{}`, which your key does not have.", scope.as_str());
        Self::new(StatusCode::FORBIDDEN, "insufficient_scope", INVALID, words)
    }

    pub(crate) fn unknown_url(method: &http::Method, path: &str) -> Self {
        let path = shown(path);
        Self::new(StatusCode::NOT_FOUND, "unknown_url", INVALID, format!("Invalid URL ({method} {path})."))
    }

    pub(crate) fn method_not_allowed(method: &http::Method, path: &str, allow: &'static str) -> Self {
        let words = format!("Not allowed to {method} on {}: use {allow}.", shown(path));
        let refusal = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", INVALID, words);
        Self { allow: Some(allow), ..refusal }
    }

    pub(crate) fn invalid_json(error: &dyn std::fmt::Display) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid_json",
            INVALID,
            format!("The body cannot be read as a JSON object: {error}."),
        )
    }

    pub(crate) fn invalid(param: &'static str, words: impl std::fmt::Display) -> Self {
        let refusal = Self::new(StatusCode::BAD_REQUEST, "invalid_value", INVALID, format!("`{param}` {words}."));
        Self { param: Some(param), ..refusal }
    }

    pub(crate) fn body_too_large(limit: u64) -> Self {
        let words = format!("The body is larger than {limit} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", INVALID, words)
    }

    pub(crate) fn body_timeout() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", INVALID, "The body did not arrive in time.")
    }

    pub(crate) fn body_broken() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "body_incomplete", INVALID, "The body did not arrive whole.")
    }

    pub(crate) fn model_not_found(model: &str) -> Self {
        let words = format!("The model `{}` does not exist.", shown(model));
        let refusal = Self::new(StatusCode::NOT_FOUND, "model_not_found", INVALID, words);
        Self { param: Some("model"), ..refusal }
    }

    pub(crate) fn endpoint_not_supported() -> Self {
        let words =
            "The model does not answer this endpoint: a model of chats gives no embeddings, and the other way round.";
        let refusal = Self::new(StatusCode::NOT_FOUND, "endpoint_not_supported", INVALID, words);
        Self { param: Some("model"), ..refusal }
    }

    pub(crate) fn model_not_allowed(model: &str) -> Self {
        let words = format!("Your plan does not allow the model `{model}`.");
        let refusal = Self::new(StatusCode::FORBIDDEN, "model_not_allowed", INVALID, words);
        Self { param: Some("model"), ..refusal }
    }

    pub(crate) fn rate_limited(what: &'static str, words: String, after: Option<Duration>) -> Self {
        let refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", what, words);
        after.into_iter().fold(refusal, Self::again)
    }

    pub(crate) fn concurrent_requests(words: String, after: Option<Duration>) -> Self {
        let refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, "concurrent_requests", "requests", words);
        after.into_iter().fold(refusal, Self::again)
    }

    /// Says which limit it was, for programs.
    pub(crate) fn limited_by(self, limit: &'static str) -> Self {
        Self { limited_by: Some(limit), ..self }
    }

    /// Which limit it was, if it was one.
    pub(crate) const fn limit(&self) -> Option<&'static str> {
        self.limited_by
    }

    pub(crate) fn insufficient_quota(words: String) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "insufficient_quota", "insufficient_quota", words)
    }

    pub(crate) fn no_replica() -> Self {
        let words = "No server can answer for this model at the moment. Try again soon.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_healthy_replica", SERVER, words).again(Duration::from_secs(2))
    }

    pub(crate) fn spool_full() -> Self {
        let words = "Usage cannot be recorded at the moment, so nothing is served. Try again soon.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "spool_full", SERVER, words).again(Duration::from_secs(10))
    }

    pub(crate) fn overloaded() -> Self {
        let words = "Too many requests are open at the moment. Try again soon.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", SERVER, words).again(Duration::from_secs(1))
    }

    /// `own`: it is the tenant that sends too much at once, not all of them together.
    pub(crate) fn too_many_bytes(own: bool) -> Self {
        if own {
            let words = "Your requests that are open hold too many bytes at once. Wait for some of them to end.";
            return Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", "requests", words)
                .again(Duration::from_secs(1));
        }
        Self::overloaded()
    }

    /// `own`: as above.
    pub(crate) fn queue_full(own: bool) -> Self {
        let (status, kind, words) = if own {
            (
                StatusCode::TOO_MANY_REQUESTS,
                "requests",
                "Too many of your requests wait already. Wait for some of them to end.",
            )
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, SERVER, "Too many requests wait at the moment. Try again soon.")
        };
        Self::new(status, "queue_full", kind, words).again(Duration::from_secs(2))
    }

    pub(crate) fn queue_timeout() -> Self {
        let words = "The request waited too long for a server that has room. Try again soon.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "queue_timeout", SERVER, words).again(Duration::from_secs(5))
    }

    pub(crate) fn starting() -> Self {
        let words = "The server is starting. Try again soon.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "starting", SERVER, words).again(Duration::from_secs(2))
    }

    pub(crate) fn draining() -> Self {
        let words = "The server is about to restart. Try again now.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "draining", SERVER, words).again(Duration::from_secs(1))
    }

    pub(crate) fn upstream() -> Self {
        let words = "The server that was to answer failed. Try again.";
        Self::new(StatusCode::BAD_GATEWAY, "upstream_error", SERVER, words)
    }

    pub(crate) fn deadline() -> Self {
        let words = "The answer took too long and was given up.";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", SERVER, words)
    }

    /// The error as clients of this shape read it.
    pub(crate) fn shaped(self, shape: ErrorShape) -> Self {
        Self { shape, ..self }
    }

    /// The error as JSON.
    pub(crate) fn json(&self) -> String {
        let body = match self.shape {
            ErrorShape::OpenAi | ErrorShape::Responses => serde_json::json!({
                "error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
            }),
            ErrorShape::Anthropic => serde_json::json!({
                "type": "error", "error": {"type": anthropic(self.status), "message": self.message, "code": self.code}
            }),
        };
        body.to_string()
    }

    /// The error inside a stream that has begun, as engines send one: an event, and where there is a mark of it, the end.
    pub(crate) fn event(&self, shape: ErrorShape) -> String {
        match shape {
            ErrorShape::OpenAi => format!("data: {}\n\ndata: [DONE]\n\n", self.json()),
            ErrorShape::Anthropic => format!("event: error\ndata: {}\n\n", self.clone().shaped(shape).json()),
            // With `error`, by which the official clients know one.
            ErrorShape::Responses => {
                let error =
                    serde_json::json!({"message": self.message, "type": self.kind, "param": null, "code": self.code});
                let event = serde_json::json!({
                    "type": "error", "code": self.code, "message": self.message, "param": null, "error": error
                });
                format!("event: error\ndata: {event}\n\n")
            }
        }
    }

    /// The error as an answer.
    pub(crate) fn response(&self) -> Response<Body> {
        let mut response = json(self.status, self.json());
        self.headers(response.headers_mut());
        response
    }

    fn headers(&self, headers: &mut HeaderMap) {
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.get().div_ceil(1000)));
            // OpenAI's and Anthropic's clients look here first.
            headers.insert("retry-after-ms", HeaderValue::from(after.get()));
        }
        if let Some(limit) = self.limited_by {
            headers.insert(LIMITED_BY, HeaderValue::from_static(limit));
        }
        let hopeless = self.status == StatusCode::TOO_MANY_REQUESTS && self.retry_after.is_none();
        if hopeless || self.status == StatusCode::GATEWAY_TIMEOUT {
            // What no waiting mends, or what would take as long again from those that are busy: OpenAI's clients would else
            // try again at once.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
    }
}

/// Rounded up.
fn millis(after: Duration) -> Option<NonZeroU32> {
    let millis = u32::try_from(after.as_micros().div_ceil(1000)).unwrap_or(u32::MAX);
    NonZeroU32::new(millis.max(1))
}

/// Anthropic's name for errors of a status, by which its clients know them.
fn anthropic(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        504 => "timeout_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}

/// What the client said, as far as it is worth repeating.
fn shown(said: &str) -> String {
    said.chars().take(100).collect()
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_said_is_not_repeated_at_length() {
        let (get, long) = (http::Method::GET, "a".repeat(5_000));
        let refusals = [
            Refusal::unknown_url(&get, &long),
            Refusal::method_not_allowed(&get, &long, "POST"),
            Refusal::model_not_found(&long),
        ];
        assert!(refusals.iter().all(|refusal| refusal.json().len() < 500));
    }

    #[test]
    fn clients_are_told_when_trying_again_is_of_no_use() {
        let tells = |refusal: Refusal| refusal.response().headers().get("x-should-retry").is_some();
        assert!(tells(Refusal::insufficient_quota("Used up.".into())));
        assert!(tells(Refusal::rate_limited("tokens", "Too large.".into(), None)));
        assert!(!tells(Refusal::rate_limited("tokens", "Wait.".into(), Some(Duration::from_secs(1)))));
        assert!(tells(Refusal::deadline()));
        assert!(!tells(Refusal::no_replica()));
    }

    #[test]
    fn errors_have_the_shape_that_clients_know() {
        let error: serde_json::Value = serde_json::from_str(&Refusal::model_not_found("a\"b").json()).unwrap();
        assert_eq!(error["error"]["code"], "model_not_found");
        assert_eq!(error["error"]["param"], "model");
        assert_eq!(error["error"]["type"], "invalid_request_error");
        let limited = Refusal::rate_limited("tokens", "Wait.".into(), Some(Duration::from_millis(1200))).response();
        assert_eq!((limited.status().as_u16(), limited.headers()[header::RETRY_AFTER].to_str().unwrap()), (429, "2"));
        assert_eq!(limited.headers()["retry-after-ms"].to_str().unwrap(), "1200");
        let error = Refusal::insufficient_quota("Used up.".into()).shaped(ErrorShape::Anthropic).json();
        let error: serde_json::Value = serde_json::from_str(&error).unwrap();
        assert_eq!((&error["type"], &error["error"]["type"]), (&"error".into(), &"rate_limit_error".into()));
        assert_eq!(error["error"]["message"], "Used up.");
    }

    #[test]
    fn a_stream_that_breaks_says_so_in_its_own_way() {
        let of = |shape| Refusal::upstream().event(shape);
        assert!(of(ErrorShape::OpenAi).ends_with("}\n\ndata: [DONE]\n\n"));
        let (anthropic, responses) = (of(ErrorShape::Anthropic), of(ErrorShape::Responses));
        assert!(anthropic.starts_with("event: error\ndata: {") && anthropic.contains("\"type\":\"api_error\""));
        assert!(responses.starts_with("event: error\ndata: {") && responses.contains("\"type\":\"error\""));
    }
}
