//! Serves clients until shutdown, then lets what is open come to its end within the drain's time.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::service::TowerToHyperService;
use runtime::http::{Accepted, Connections, Listener, Moved};
use runtime::{Condition, Metrics, Readiness, Shutdown, Workers};
use tokio::task::JoinSet;

use crate::Body;
use crate::error::Refusal;
use crate::gateway::Gateway;
use crate::patience::{Patience, Patient};

/// So long a client may take nothing of an answer while there is no gateway yet.
const START: Duration = Duration::from_secs(75);
/// No more of an answer, or of a request's head, is held for a connection. What goes beyond it waits at the replica.
const BUFFER: usize = 128 << 10;

/// What answers the requests of a connection.
#[derive(Clone)]
struct Site {
    /// Health, readiness and metrics, if they are served here.
    own: Option<Router>,
    /// None while it is being prepared: every other request is told to come again.
    gateway: Option<Gateway>,
    /// With clients that take nothing of their answers.
    patience: Patience,
}

impl Site {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        // The one router's work that every request would pay for is done by this line.
        if let Some(own) = self.own
            && matches!(request.uri().path(), "/healthz" | "/readyz" | "/metrics")
        {
            return TowerToHyperService::new(own).call(request).await;
        }
        Ok(match self.gateway {
            // Boxed: a connection has room for it all the time, and most are silent most of the time.
            Some(gateway) => Box::pin(gateway.handle(request)).await,
            None => Refusal::starting().response(),
        })
    }
}

/// Serves what is its own (health, readiness and metrics) while the gateway starts; every other request is told to come
/// again. Never returns: dropped, its connections end.
pub(crate) async fn starting(listener: &Listener, own: Option<Router>) {
    let site = Site { own, gateway: None, patience: Patience { most: START, stalled: None } };
    let start = |tasks: &mut JoinSet<()>, accepted| drop(tasks.spawn(connection(accepted, site.clone())));
    listener.accept(&mut Connections::new(), &Shutdown::new(), start).await;
}

/// Whether requests are served.
pub(crate) fn serving(readiness: &Readiness) -> Condition {
    readiness.condition("serving", "starting")
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
        listener: impl Into<Listener>,
        metrics: Metrics,
        readiness: Readiness,
        shutdown: Shutdown,
    ) -> std::io::Result<()> {
        let (listener, serving) = (listener.into(), serving(&readiness));
        let _stop = StopQueue(&self);
        let workers = Workers::start(self.settings().threads)?;
        let own = self.settings().admin_listen.is_none().then(|| runtime::http::routes(metrics, readiness));
        let stalled = Some(self.recorder().metrics.stalled.clone());
        let patience = Patience { most: self.settings().manners.client_stall, stalled };
        let site = |_| Site { own: own.clone(), gateway: Some(self.at_worker()), patience: patience.clone() };
        let sites: Vec<Site> = (0..workers.count()).map(site).collect();
        serving.ready();
        let mut connections = Connections::new();
        let start = |tasks: &mut JoinSet<()>, accepted| start_at(&workers, &sites, tasks, accepted);
        listener.accept(&mut connections, &shutdown, start).await;
        serving.not_ready("stopping");
        let notice = self.settings().drain_notice;
        if !notice.is_zero() {
            // Still serving, so that balancers can learn of it first.
            let noticed = Shutdown::new();
            let wait = async {
                tokio::time::sleep(notice).await;
                noticed.trigger();
            };
            tokio::join!(wait, listener.accept(&mut connections, &noticed, start));
        }
        drop(listener);
        self.queue().close();
        let open = connections.drain(self.settings().drain()).await;
        if open > 0 {
            tracing::warn!(open, "ending the requests that are still open");
            self.recorder().cut.trigger();
            connections.cut().await;
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

/// Hands a connection to the worker that has the fewest.
fn start_at(workers: &Workers, sites: &[Site], tasks: &mut JoinSet<()>, accepted: Accepted) {
    let Some((worker, open)) = workers.least_busy() else { return };
    let Some(site) = sites.get(worker.number()).cloned() else { return };
    let moved = accepted.moved();
    let serving = async move {
        let _open = open;
        match moved.and_then(Moved::arrived) {
            Ok(accepted) => connection(accepted, site).await,
            Err(error) => tracing::warn!(%error, "a connection could not be taken up"),
        }
    };
    tasks.spawn_on(serving, worker.handle());
}

async fn connection(accepted: Accepted, site: Site) {
    let Some(opened) = accepted.open().await else { return };
    let patience = site.patience.clone();
    let opened = opened.around(|socket| Patient::new(socket, patience)).with_buffer(BUFFER);
    opened.serve(service_fn(move |request| site.clone().answer(request))).await;
}
