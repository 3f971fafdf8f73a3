//! What a request says, taken apart: each way of getting it wrong is a problem in our own shape.

use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::problem::Problem;

/// The largest body of a document, in bytes.
pub(crate) const BODY_MAX: usize = 64 << 10;
/// How long one may take to arrive: nobody holds a connection by sending a byte now and then.
const BODY_TIME: Duration = Duration::from_secs(10);

/// The query string. A parameter that is not known is refused.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(params)) => Ok(Self(params)),
            Err(error) => Err(Problem::query(error.body_text())),
        }
    }
}

/// The variable parts of the path.
pub(crate) struct Segments<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segments<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(error) => Err(Problem::id(error.body_text())),
        }
    }
}

/// A body of JSON.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let media_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let is_json = media_type.is_some_and(|text| {
            let essence = text.split(';').next().unwrap_or_default().trim();
            essence.eq_ignore_ascii_case("application/json")
        });
        if !is_json {
            return Err(Problem::media_type());
        }
        let bytes = bytes(request.into_body()).await?;
        json(&bytes).map(Self).map_err(Problem::body)
    }
}

/// A value of JSON; else where it is wrong, and how.
fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = error.path().to_string();
        // The name of a type means nothing to a client.
        let said =
            error.into_inner().to_string().replace("expected u64", "expected a whole number that is not negative");
        if matches!(field.as_str(), "." | "?") { said } else { format!("`{field}`: {said}") }
    })?;
    json.end().map_err(|error| error.to_string())?;
    Ok(value)
}

/// A whole body, if it is not too large.
pub(crate) async fn bytes(body: Body) -> Result<Bytes, Problem> {
    bytes_within(body, BODY_TIME).await
}

async fn bytes_within(body: Body, time: Duration) -> Result<Bytes, Problem> {
    // That it broke off cannot be answered to anybody; that it is too large can.
    match tokio::time::timeout(time, to_bytes(body, BODY_MAX)).await {
        Ok(bytes) => bytes.map_err(|_| Problem::too_large(BODY_MAX)),
        Err(_) => Err(Problem::slow(time)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    /// A body of which nothing ever comes.
    struct Silent;

    impl http_body::Body for Silent {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_arrive_is_given_up() {
        let given_up = bytes_within(Body::new(Silent), Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(given_up.status().as_u16(), 408);
        assert_eq!(bytes_within(Body::from("{}"), Duration::from_secs(60)).await.unwrap(), "{}");
    }
}
