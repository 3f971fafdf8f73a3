//! Errors as clients see them: RFC 9457 problem details with a stable code. What is internal goes to the log only.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ledger::control::Rejected;
use serde::Serialize;
use sql::QueryError;
use stream::control::WriteError;
use utoipa::ToSchema;

/// What went wrong, as RFC 9457 has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// A name of the sort of problem: `urn:tollgate:problem:` and the code.
    #[serde(rename = "type")]
    kind: String,
    /// The sort of problem, for people.
    title: &'static str,
    /// The HTTP status.
    #[serde(serialize_with = "status_number")]
    #[schema(value_type = u16)]
    status: StatusCode,
    /// Which sort of problem it is. Stable: programs may rely on it.
    code: &'static str,
    /// What was wrong here, and what to do.
    detail: String,
}

fn status_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { kind: format!("urn:tollgate:problem:{code}"), title, status, code, detail: detail.into() }
    }

    /// 400: the query string, the path or a header cannot be used.
    pub(crate) fn query(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_query", "The request cannot be understood", detail)
    }

    /// 400: an id that is none.
    pub(crate) fn id(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_id", "The id is not valid", detail)
    }

    /// 400: the body is not the JSON that it should be.
    pub(crate) fn body(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_body", "The body cannot be understood", detail)
    }

    /// 422: understood, and not allowed to be so.
    pub(crate) fn value(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_value", "A value is not allowed", detail)
    }

    /// 422: more would be taken away than was used.
    pub(crate) fn more_than_used(detail: impl Into<String>) -> Self {
        let title = "More would be taken away than was used";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "more_than_used", title, detail)
    }

    /// 400: a time that cannot be answered for.
    pub(crate) fn range(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_range", "The span of time cannot be used", detail)
    }

    /// 401: no key, or one that is not known, expired or revoked: which one is not said.
    pub(crate) fn unauthorized() -> Self {
        let detail = "send `Authorization: Bearer` with an admin's key or a valid key of a tenant";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "A valid key is needed", detail)
    }

    /// 403: known, and not allowed. Says nothing of what is there.
    pub(crate) fn forbidden() -> Self {
        let detail = "a tenant's key reads the tenant's own data, and writes nothing";
        Self::new(StatusCode::FORBIDDEN, "forbidden", "This key does not allow it", detail)
    }

    /// 403: a valid key, for other things.
    pub(crate) fn insufficient_scope() -> Self {
        let detail = "this needs the scope `usage`, which the key does not have";
        Self::new(StatusCode::FORBIDDEN, "insufficient_scope", "This key does not allow it", detail)
    }

    /// 404.
    pub(crate) fn not_found(what: &str, id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "It is not there", format!("there is no {what} {id:?}"))
    }

    /// 404: no such path.
    pub(crate) fn no_route() -> Self {
        let detail = "no resource has this path; /api/v1/openapi.json lists them all";
        Self::new(StatusCode::NOT_FOUND, "unknown_path", "It is not there", detail)
    }

    /// 405.
    pub(crate) fn method() -> Self {
        let detail = "this resource does not know the method; /api/v1/openapi.json lists what it knows";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "The method is not allowed here", detail)
    }

    /// 412: the document is not at the revision that was said.
    pub(crate) fn precondition(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, "precondition_failed", "It has changed meanwhile", detail)
    }

    /// 408.
    pub(crate) fn slow(limit: std::time::Duration) -> Self {
        let detail = format!("the body did not arrive within {} seconds", limit.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "The body is too slow", detail)
    }

    /// 413.
    pub(crate) fn too_large(limit: usize) -> Self {
        let detail = format!("a body has at most {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The body is too large", detail)
    }

    /// 415.
    pub(crate) fn media_type() -> Self {
        let detail = "send the body as JSON, with `Content-Type: application/json`";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "The body is not JSON", detail)
    }

    /// 422: more than one answer holds.
    pub(crate) fn too_many_rows(most: usize) -> Self {
        let detail = format!("the answer would have more than {most} rows: ask for a shorter time or fewer groups");
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "too_many_rows", "The answer is too large", detail)
    }

    /// 503: control is not read yet.
    pub(crate) fn control_unavailable() -> Self {
        let detail = "tenants and keys are not read yet, as Kafka does not answer: try again in a moment";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "kafka_unavailable", "Kafka does not answer", detail)
    }

    /// 500; the reason is in the log.
    pub(crate) fn internal(error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%error, "a request could not be answered");
        let detail = "this is a fault of the server; its log says more";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The server could not answer", detail)
    }

    pub(crate) const fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    pub(crate) const fn title(&self) -> &'static str {
        self.title
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Calendar(error) => Self::range(error.to_string()),
            QueryError::Mismatch(_) => Self::internal(&error),
            QueryError::Engine { .. } | QueryError::Unreachable(_) | QueryError::Moving { .. } => {
                tracing::warn!(%error, "usage cannot be read now");
                let detail = "usage cannot be read now: try again in a moment";
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "clickhouse_unavailable",
                    "ClickHouse does not answer",
                    detail,
                )
            }
        }
    }
}

impl From<WriteError> for Problem {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Rejected(rejected) => rejected.into(),
            WriteError::Encode(_) => Self::internal(&error),
            WriteError::Unavailable(_) => {
                tracing::warn!(%error, "a write was not answered");
                let detail = "the write may or may not take effect: read the document before trying again";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "kafka_unavailable", "Kafka does not answer", detail)
            }
        }
    }
}

impl From<Rejected> for Problem {
    fn from(rejected: Rejected) -> Self {
        let detail = rejected.to_string();
        let conflict = |code, title| Self::new(StatusCode::CONFLICT, code, title, detail.clone());
        match rejected {
            Rejected::Conflict { .. } | Rejected::Overtaken { .. } => conflict("conflict", "Another write came first"),
            Rejected::InUse(..) => conflict("in_use", "Something else names it"),
            Rejected::Final => conflict("final", "It stays as it was made"),
            Rejected::Taken(..) => conflict("already_there", "Another document says the same"),
            Rejected::Missing(..) => {
                let title = "It names something that is not there";
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "missing_reference", title, detail)
            }
            Rejected::Id(_) | Rejected::NoUuid(_) => Self::id(detail),
            Rejected::OtherKind(_)
            | Rejected::Canaries(_)
            | Rejected::Base(_)
            | Rejected::Weight
            | Rejected::Adjustment(_)
            | Rejected::Price(_)
            | Rejected::Time(_) => Self::value(detail),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status;
        let mut response = (status, axum::Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_the_fields_of_the_standard_and_a_code() {
        let shown = serde_json::to_value(Problem::not_found("plan", "free")).unwrap();
        assert_eq!(
            shown,
            serde_json::json!({
                "type": "urn:tollgate:problem:not_found", "title": "It is not there", "status": 404,
                "code": "not_found", "detail": "there is no plan \"free\"",
            })
        );
    }

    #[test]
    fn internal_words_stay_in_the_log() {
        let engine = QueryError::Engine { code: 60, message: "Table tollgate.tokens at 10.0.0.7".into() };
        let write = WriteError::Unavailable("broker 10.0.0.7:9092 down".into());
        for (problem, code) in [
            (Problem::from(engine), "clickhouse_unavailable"),
            (Problem::from(write), "kafka_unavailable"),
            (Problem::from(QueryError::Mismatch("10.0.0.7".into())), "internal"),
        ] {
            let text = serde_json::to_string(&problem).unwrap();
            assert!(text.contains(code) && !text.contains("10.0.0.7"), "{text}");
        }
    }
}
