//! All routes together, with what holds for each of them: measured, not cached, and never a bare error.

use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use runtime::{Metrics, Readiness};

use crate::app::Shared;
use crate::problem::Problem;
use crate::{api, console};

/// The API, the console, and the routes that every role has.
pub(crate) fn router(app: Shared, metrics: Metrics, readiness: Readiness) -> Router {
    routes()
        .fallback(async || Problem::no_route())
        .method_not_allowed_fallback(async || Problem::method())
        .layer(from_fn_with_state(app.clone(), observed))
        .with_state(app)
        .merge(runtime::http::routes(metrics, readiness))
}

/// What is billing's own.
pub(crate) fn routes() -> Router<Shared> {
    api::router().merge(console::router())
}

/// Measures a request, and says of its answer that it is nobody else's and not to be kept.
async fn observed(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let began = Instant::now();
    let mut response = next.run(request).await;
    app.metrics.duration.with_label_values(&[&route]).observe(began.elapsed().as_secs_f64());
    app.metrics.requests.with_label_values(&[route.as_str(), response.status().as_str()]).inc();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
