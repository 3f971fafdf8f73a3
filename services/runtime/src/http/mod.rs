//! Serving HTTP: listening, a drain within a budget, and the routes that every role has.

pub mod client;
mod server;
pub mod single;

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::{Metrics, Readiness, Shutdown};
pub use server::{Accepted, Connections, Listener, Moved, Opened, Serves, Socket};

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}; choose another address or port in the configuration, or stop what holds it"
    )]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Listens on `address`; port 0 takes a free one (see [`TcpListener::local_addr`]).
///
/// # Errors
/// [`HttpError::Bind`], with the address.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, HttpError> {
    TcpListener::bind(address).await.map_err(|source| HttpError::Bind { address, source })
}

/// Serves until shutdown, then lets open requests finish for at most `budget` and drops the rest.
///
/// # Errors
/// Never; the type is that of a task.
pub async fn serve(
    listener: impl Into<Listener>,
    router: Router,
    shutdown: Shutdown,
    budget: Duration,
) -> Result<(), HttpError> {
    let (listener, mut connections) = (listener.into(), Connections::new());
    let service = TowerToHyperService::new(router);
    let start = |tasks: &mut JoinSet<()>, accepted: Accepted| drop(tasks.spawn(accepted.serve(service.clone())));
    listener.accept(&mut connections, &shutdown, start).await;
    drop(listener);
    let open = connections.drain(budget).await;
    if open > 0 {
        tracing::warn!(open, ?budget, "dropping the connections that are still open");
    }
    Ok(())
}

/// `/healthz` (the process answers), `/readyz` (it can do its work; else 503 with the reasons) and `/metrics`
/// (Prometheus text). A role merges them into its own router, or serves them alone.
pub fn routes(metrics: Metrics, readiness: Readiness) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz).with_state(readiness))
        .route("/metrics", get(exposition).with_state(metrics))
}

#[derive(Serialize)]
struct Answer {
    ready: bool,
    conditions: Vec<ConditionAnswer>,
}

#[derive(Serialize)]
struct ConditionAnswer {
    name: String,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

async fn readyz(State(readiness): State<Readiness>) -> Response {
    let conditions: Vec<_> = readiness
        .conditions()
        .into_iter()
        .map(|(name, reason)| ConditionAnswer { name, ready: reason.is_none(), reason })
        .collect();
    let ready = conditions.iter().all(|c| c.ready);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Answer { ready, conditions })).into_response()
}

async fn exposition(State(metrics): State<Metrics>) -> Response {
    ([(header::CONTENT_TYPE, crate::metrics::CONTENT_TYPE)], metrics.text()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Name;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn health_readiness_and_metrics_are_served_until_shutdown() {
        let (metrics, readiness, shutdown) = (Metrics::new(), Readiness::new(), Shutdown::new());
        metrics.counter(Name::FoldProofs).unwrap().inc_by(7);
        let kafka = readiness.condition("kafka", "no broker answers");
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = routes(metrics, readiness);
        let server = serve(listener, router, shutdown.clone(), Duration::from_secs(5));
        let client = async {
            assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
            let not_ready = get(address, "/readyz").await;
            assert!(not_ready.starts_with("HTTP/1.1 503"), "{not_ready}");
            assert!(not_ready.contains(r#"{"name":"kafka","ready":false,"reason":"no broker answers"}"#));
            kafka.ready();
            assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
            assert!(get(address, "/metrics").await.contains("\ntollgate_fold_proofs_total 7\n"));
            shutdown.trigger();
        };
        let (served, ()) = tokio::join!(server, client);
        served.unwrap();
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let first = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = first.local_addr().unwrap();
        let said = bind(address).await.unwrap_err().to_string();
        assert!(said.contains(&address.to_string()) && said.contains("choose another"), "{said}");
    }
}
