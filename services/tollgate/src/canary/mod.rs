//! `tollgate canary`: a tenant that is nobody's sends tiny requests, and holds the usage API to what their answers told.

mod billing;
mod client;
mod counts;
mod gateway;
mod once;
mod round;
pub(crate) mod settings;
mod tally;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::InvalidHeaderValue;
use runtime::http::HttpError;
use runtime::tls::{TlsClient, TlsError};
use runtime::{Condition, Metrics, Readiness, Shutdown, SystemClock, TaskError, Tasks, metrics};

use self::client::Client;
pub(crate) use self::once::{NO_ANSWER, once};
use self::round::{Canary, Outcome, Report};
use self::settings::CanarySettings;

/// How long a question for health may take to end when the process stops.
const DRAIN: Duration = Duration::from_secs(1);
/// After a round that did not end well the next one begins so soon: to see when it is over.
const AGAIN: Duration = Duration::from_secs(10);

/// Why the canary stopped. That gateway or billing are away is none of these: it is what it is there to say.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("the metrics of the canary: {0}")]
    Metrics(#[from] metrics::Error),
    #[error("[canary] ca_file: {0}")]
    Tls(#[from] TlsError),
    #[error("[canary] key cannot be sent in a header")]
    Key(#[from] InvalidHeaderValue),
    #[error(transparent)]
    Task(#[from] TaskError),
}

/// Makes rounds until shutdown.
pub(crate) async fn run(settings: CanarySettings, shutdown: Shutdown) -> Result<(), Error> {
    let (metrics, readiness) = (Metrics::new(), Readiness::new());
    let (listen, interval) = (settings.listen, settings.interval());
    let canary = canary(settings, &metrics)?;
    let listener = runtime::http::bind(listen).await?;
    // Before anybody can ask: where there is no condition yet, all would be ready.
    let billed = readiness.condition("billed", "no round has ended yet");
    let tasks = Tasks::new(shutdown.clone());
    let routes = runtime::http::routes(metrics, readiness);
    tasks.spawn("health", DRAIN, runtime::http::serve(listener, routes, shutdown.clone(), DRAIN));
    tasks.spawn("rounds", DRAIN, rounds(canary, interval, billed, shutdown));
    tasks.run().await?;
    Ok(())
}

fn canary(settings: CanarySettings, metrics: &Metrics) -> Result<Canary, Error> {
    let client = Client::new(TlsClient::open(settings.ca_file.as_deref())?, &settings.key)?;
    Ok(Canary::new(settings, client, Arc::new(SystemClock), metrics)?)
}

/// Streamed and not, in turn. A round that is under way at shutdown says nothing.
async fn rounds(
    mut canary: Canary,
    interval: Duration,
    billed: Condition,
    shutdown: Shutdown,
) -> Result<(), Infallible> {
    let mut stream = false;
    loop {
        let begun = Instant::now();
        let streams = [stream];
        let report = tokio::select! {
            report = canary.round(&streams) => report,
            () = shutdown.cancelled() => return Ok(()),
        };
        tell(&report, &billed);
        stream = !stream;
        let pause = if report.outcome == Outcome::Billed { interval } else { interval.min(AGAIN) };
        if !shutdown.sleep(pause.saturating_sub(begun.elapsed())).await {
            return Ok(());
        }
    }
}

fn tell(report: &Report, billed: &Condition) {
    let Report { outcome, said, sent, billed_after } = report;
    let requests = sent.iter().map(|answered| answered.id.to_string()).collect::<Vec<_>>().join(" ");
    match billed_after {
        Some(after) => {
            tracing::info!(requests, after_ms = after.as_millis(), "billed as answered");
            billed.ready();
        }
        None => {
            tracing::error!(outcome = outcome.as_str(), requests, said, "a round did not end well");
            billed.not_ready(format!("{}: {said}", outcome.as_str()));
        }
    }
}
