//! Serves connections until shutdown, then lets what is open come to its end within the drain's time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use runtime::{Metrics, Readiness, Shutdown, Workers};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::Body;
use crate::error::Refusal;
use crate::gateway::Gateway;
use crate::patience::{Patience, Patient};

/// A connection that sends no head of a request for so long is closed.
const HEAD: Duration = Duration::from_secs(75);
/// No more of an answer, or of a request's head, is held for a connection. What goes beyond it waits at the replica.
const BUFFER: usize = 128 << 10;
/// After an accept that failed (no file handles left, for one) it is tried again so much later.
const AGAIN: Duration = Duration::from_millis(20);

/// What answers the requests of a connection.
#[derive(Clone)]
struct Site {
    /// Health, readiness and metrics.
    own: Router,
    /// None while it is being prepared: every other request is told to come again.
    gateway: Option<Gateway>,
    /// With clients that take nothing of their answers.
    patience: Patience,
}

impl Site {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        // The one router's work that every request would pay for is done by this line.
        if matches!(request.uri().path(), "/healthz" | "/readyz" | "/metrics") {
            return TowerToHyperService::new(self.own).call(request).await;
        }
        Ok(match self.gateway {
            Some(gateway) => gateway.handle(request).await,
            None => Refusal::starting().response(),
        })
    }
}

/// Serves health, readiness and metrics while the gateway starts; every other request is told to come again. Never
/// returns: dropped, its connections end.
pub(crate) async fn starting(listener: &TcpListener, metrics: Metrics, readiness: Readiness) {
    let patience = Patience { most: HEAD, stalled: None };
    let site = Site { own: runtime::http::routes(metrics, readiness), gateway: None, patience };
    let (closing, never) = (Shutdown::new(), Shutdown::new());
    let start = |connections: &mut JoinSet<()>, socket, client| {
        connections.spawn(connection(socket, client, site.clone(), closing.clone()));
    };
    accept(listener, start, &never, &mut JoinSet::new()).await;
}

impl Gateway {
    /// Serves on `listener` until shutdown and then drains: readiness goes first, then the listener, then open requests
    /// come to their end within `drain_seconds`; what is still open then is ended as `drained`. When this returns, every
    /// request has its end in the spool.
    ///
    /// # Errors
    /// When the host has no threads left for it.
    pub async fn serve(
        self,
        listener: TcpListener,
        metrics: Metrics,
        readiness: Readiness,
        shutdown: Shutdown,
    ) -> std::io::Result<()> {
        let serving = readiness.condition("serving", "starting");
        let _stop = StopQueue(&self);
        let workers = Workers::start(self.settings().threads)?;
        let own = runtime::http::routes(metrics, readiness);
        let stalled = Some(self.recorder().metrics.stalled.clone());
        let patience = Patience { most: self.settings().manners.client_stall, stalled };
        let site = |_| Site { own: own.clone(), gateway: Some(self.at_worker()), patience: patience.clone() };
        let sites: Vec<Site> = (0..workers.count()).map(site).collect();
        serving.ready();
        let mut connections = JoinSet::new();
        let closing = Shutdown::new();
        let start = |connections: &mut JoinSet<()>, socket, client| {
            start_at(&workers, &sites, connections, socket, client, &closing);
        };
        accept(&listener, start, &shutdown, &mut connections).await;
        serving.not_ready("stopping");
        let notice = self.settings().drain_notice;
        if !notice.is_zero() {
            // Still serving, so that balancers can learn of it first.
            let noticed = Shutdown::new();
            let wait = async {
                tokio::time::sleep(notice).await;
                noticed.trigger();
            };
            tokio::join!(wait, accept(&listener, start, &noticed, &mut connections));
        }
        drop(listener);
        closing.trigger();
        self.queue().close();
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(self.settings().drain(), all).await.is_err() {
            tracing::warn!(open = connections.len(), "ending the requests that are still open");
            self.recorder().cut.trigger();
            connections.shutdown().await;
        }
        if let Some(traces) = &self.recorder().traces {
            traces.finish();
        }
        Ok(())
    }
}

/// Nobody waits for a turn once nothing is served, however that came about.
struct StopQueue<'a>(&'a Gateway);

impl Drop for StopQueue<'_> {
    fn drop(&mut self) {
        self.0.queue().stop();
    }
}

async fn accept(
    listener: &TcpListener,
    mut start: impl FnMut(&mut JoinSet<()>, TcpStream, SocketAddr),
    until: &Shutdown,
    connections: &mut JoinSet<()>,
) {
    loop {
        tokio::select! {
            biased;
            () = until.cancelled() => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, client)) => start(connections, socket, client),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    until.sleep(AGAIN).await;
                }
            },
        }
    }
}

/// Hands a connection to the worker that has the fewest. The socket leaves the runtime that accepted it: it would be woken
/// by that one's thread.
fn start_at(
    workers: &Workers,
    sites: &[Site],
    connections: &mut JoinSet<()>,
    socket: TcpStream,
    client: SocketAddr,
    closing: &Shutdown,
) {
    let Some((worker, open)) = workers.least_busy() else { return };
    let Some(site) = sites.get(worker.number()).cloned() else { return };
    let (socket, closing) = (socket.into_std(), closing.clone());
    let serving = async move {
        let _open = open;
        match socket.and_then(TcpStream::from_std) {
            Ok(socket) => connection(socket, client, site, closing).await,
            Err(error) => tracing::warn!(%error, "a connection could not be taken up"),
        }
    };
    connections.spawn_on(serving, worker.handle());
}

async fn connection(socket: TcpStream, client: SocketAddr, site: Site, closing: Shutdown) {
    let patience = site.patience.clone();
    // Without it one streamed frame in ten waits 40 ms for the client's delayed acknowledgement.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let service = service_fn(move |request| site.clone().answer(request));
    // A client that closes its side has gone: what runs for it is dropped at once, upstream too.
    let connection = http1::Builder::new()
        .half_close(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(Patient::new(socket, patience)), service);
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
