//! Serves connections until shutdown, then lets what is open come to its end within the drain's time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use runtime::{Metrics, Readiness, Shutdown};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::error::Refusal;
use crate::gateway::Gateway;

/// A connection that sends no head of a request for so long is closed.
const HEAD: Duration = Duration::from_secs(75);
/// After an accept that failed (no file handles left, for one) it is tried again so much later.
const AGAIN: Duration = Duration::from_millis(20);

/// Serves health, readiness and metrics while the gateway starts; every other request is told to come again. Never
/// returns: dropped, its connections end.
pub(crate) async fn starting(listener: &TcpListener, metrics: Metrics, readiness: Readiness) {
    let router = runtime::http::routes(metrics, readiness).fallback(async || Refusal::starting().response());
    let (closing, never) = (Shutdown::new(), Shutdown::new());
    accept(listener, &router, &closing, &never, &mut JoinSet::new()).await;
}

impl Gateway {
    /// Serves on `listener` until shutdown and then drains: readiness goes first, then the listener, then open requests
    /// come to their end within `drain_seconds`; what is still open then is ended as `drained`. When this returns, every
    /// request has its end in the spool.
    ///
    /// # Errors
    /// Never; the type is that of a task.
    pub async fn serve(
        self,
        listener: TcpListener,
        metrics: Metrics,
        readiness: Readiness,
        shutdown: Shutdown,
    ) -> Result<(), Infallible> {
        let serving = readiness.condition("serving", "starting");
        let gateway = self.clone();
        let router = runtime::http::routes(metrics, readiness).fallback(move |request: Request| {
            let gateway = gateway.clone();
            gateway.handle(request)
        });
        serving.ready();
        let mut connections = JoinSet::new();
        let closing = Shutdown::new();
        accept(&listener, &router, &closing, &shutdown, &mut connections).await;
        serving.not_ready("stopping");
        let notice = self.settings().drain_notice;
        if !notice.is_zero() {
            // Still serving, so that balancers can learn of it first.
            let noticed = Shutdown::new();
            let wait = async {
                tokio::time::sleep(notice).await;
                noticed.trigger();
            };
            tokio::join!(wait, accept(&listener, &router, &closing, &noticed, &mut connections));
        }
        drop(listener);
        closing.trigger();
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(self.settings().drain(), all).await.is_err() {
            tracing::warn!(open = connections.len(), "ending the requests that are still open");
            self.recorder().cut.trigger();
            connections.shutdown().await;
        }
        Ok(())
    }
}

async fn accept(
    listener: &TcpListener,
    router: &Router,
    closing: &Shutdown,
    until: &Shutdown,
    connections: &mut JoinSet<()>,
) {
    loop {
        tokio::select! {
            biased;
            () = until.cancelled() => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, client)) => {
                    connections.spawn(connection(socket, client, router.clone(), closing.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    until.sleep(AGAIN).await;
                }
            },
        }
    }
}

async fn connection(socket: TcpStream, client: SocketAddr, router: Router, closing: Shutdown) {
    // Without it one streamed frame in ten waits 40 ms for the client's delayed acknowledgement.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let service = TowerToHyperService::new(router);
    // A client that closes its side has gone: what runs for it is dropped at once, upstream too.
    let connection = http1::Builder::new()
        .half_close(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(socket), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%client, %error, "a connection ended early");
    }
}
