//! Errors in the very words of vLLM's Python front end.

use http::StatusCode;
use serde_json::{Map, Value};

use super::render::quote;

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) body: String,
    /// Type and message; absent where what answers is not the endpoint but the framework around it.
    said: Option<(String, String)>,
    /// 405 names the method that would do.
    pub(super) allow: Option<&'static str>,
}

pub(super) const ENGINE_DEAD: &str = "EngineCore encountered an issue. See stack trace (above) for the root cause.";

impl ApiError {
    fn shaped(status: StatusCode, kind: &str, message: &str, param: Option<&str>) -> Self {
        let said = Some((kind.to_owned(), message.to_owned()));
        let param = param.map_or_else(|| "null".to_owned(), quote);
        let (message, kind, code) = (quote(message), quote(kind), status.as_u16());
        Self {
            status,
            body: format!(r#"{{"error":{{"message":{message},"type":{kind},"param":{param},"code":{code}}}}}"#),
            said,
            allow: None,
        }
    }

    /// The same in Anthropic's shape, for messages.
    pub(super) fn for_messages(mut self) -> Self {
        if let Some((kind, message)) = &self.said {
            let (kind, message) = (quote(kind), quote(message));
            self.body = format!(r#"{{"type":"error","error":{{"type":{kind},"message":{message}}}}}"#);
        }
        self
    }

    /// 400 by vLLM's own checks.
    pub(super) fn bad(message: &str, param: Option<&str>) -> Self {
        Self::shaped(StatusCode::BAD_REQUEST, "BadRequestError", message, param)
    }

    /// 400 by vLLM's own checks, which name the parameter and its value at the end of the message.
    pub(super) fn parameter(message: &str, param: &str, value: Option<&str>) -> Self {
        let value = value.map_or_else(String::new, |value| format!(", value={value}"));
        Self::bad(&format!("{message} (parameter={param}{value})"), Some(param))
    }

    /// 400 by FastAPI's validation. `detail` is the Python dict of the first error.
    pub(super) fn validation(detail: &str, location: Option<&str>) -> Self {
        let message = format!("1 validation error:\n  {detail}");
        Self { said: None, ..Self::shaped(StatusCode::BAD_REQUEST, "Bad Request", &message, location) }
    }

    /// A field of the body that does not parse.
    pub(super) fn field(kind: &str, location: &str, message: &str, input: &str) -> Self {
        Self::validation(
            &format!("{{'type': '{kind}', 'loc': '{location}', 'msg': '{message}', 'input': '{input}'}}"),
            Some(location),
        )
    }

    /// A field that the body must have.
    pub(super) fn missing(name: &str, fields: &Map<String, Value>) -> Self {
        let input = shown(&Value::Object(fields.clone()));
        Self::field("missing", &format!("body.{name}"), "Field required", &input)
    }

    pub(super) fn model(name: &str, served: &[String]) -> Self {
        let message = format!("The model `{name}` does not exist. Valid aliases: {}.", served.join(", "));
        Self::shaped(StatusCode::NOT_FOUND, "NotFoundError", &message, Some("model"))
    }

    /// The pooling endpoints' words for a model that is not there.
    pub(super) fn pooling_model(name: &str) -> Self {
        let message = format!("The model `{name}` does not exist.");
        Self::shaped(StatusCode::NOT_FOUND, "NotFoundError", &message, None)
    }

    /// No response is stored, so none is found.
    pub(super) fn no_response(id: &str) -> Self {
        let message = format!("Response with id '{id}' not found.");
        Self::shaped(StatusCode::NOT_FOUND, "invalid_request_error", &message, Some("response_id"))
    }

    /// Without a store there is no background.
    pub(super) fn no_background() -> Self {
        let message = "This vLLM engine does not support `store=True` and therefore does not support the background mode. To enable these \
                       features, set the environment variable `VLLM_ENABLE_RESPONSES_API_STORE=1` when launching the vLLM server.";
        Self::shaped(StatusCode::BAD_REQUEST, "invalid_request_error", message, Some("background"))
    }

    pub(super) fn busy() -> Self {
        let message = "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.";
        Self::shaped(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable", message, None)
    }

    pub(super) fn engine_dead() -> Self {
        Self::shaped(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", ENGINE_DEAD, None)
    }

    /// Any other status, by a fault.
    pub(super) fn status(code: u16) -> Self {
        match StatusCode::from_u16(code) {
            Ok(StatusCode::SERVICE_UNAVAILABLE) => Self::busy(),
            Ok(status) if status != StatusCode::INTERNAL_SERVER_ERROR => {
                let words = status.canonical_reason().unwrap_or("Error");
                Self::shaped(status, words, words, None)
            }
            _ => Self::engine_dead(),
        }
    }

    pub(super) fn detail(status: StatusCode, detail: &str) -> Self {
        Self { status, body: format!(r#"{{"detail":{}}}"#, quote(detail)), said: None, allow: None }
    }

    pub(super) fn unauthorized() -> Self {
        let body = r#"{"error":"Unauthorized"}"#.to_owned();
        Self { status: StatusCode::UNAUTHORIZED, body, said: None, allow: None }
    }

    pub(super) fn method(allow: &'static str) -> Self {
        Self { allow: Some(allow), ..Self::detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed") }
    }

    /// A body that is no JSON, in the words of Python's decoder.
    pub(super) fn json(body: &str, error: &serde_json::Error) -> Self {
        let said = error.to_string();
        let words = if said.contains("EOF while parsing a string") {
            "Unterminated string starting at"
        } else if said.contains("expected `,`") || said.contains("EOF while parsing an object") {
            "Expecting ',' delimiter"
        } else if said.contains("expected `:`") {
            "Expecting ':' delimiter"
        } else if said.contains("key must be a string") || said.contains("trailing comma") {
            "Expecting property name enclosed in double quotes"
        } else if said.contains("trailing characters") {
            "Extra data"
        } else if said.contains("control character") {
            "Invalid control character at"
        } else {
            "Expecting value"
        };
        let at = position(body, error);
        let location = format!("body.{at}");
        let detail = format!(
            "{{'type': 'json_invalid', 'loc': '{location}', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {{'error': '{}'}}}}",
            words.replace('\'', "\\'")
        );
        Self::validation(&detail, Some(&location))
    }
}

/// Characters before the error.
fn position(body: &str, error: &serde_json::Error) -> usize {
    let before: usize =
        body.split_inclusive('\n').take(error.line().saturating_sub(1)).map(|line| line.chars().count()).sum();
    let column = if error.is_eof() { error.column() } else { error.column().saturating_sub(1) };
    before + column
}

/// A value the way the front end shows an offending input.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("<list of {} items>", list.len()),
        Value::Object(fields) => format!("<dict of {} items>", fields.len()),
    }
}
