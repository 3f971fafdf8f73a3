//! The role: reads control and balances, serves the API and the console, until shutdown.

use std::sync::Arc;
use std::time::Duration;

use ledger::time::Micros;
use rdkafka::error::KafkaError;
use runtime::http::HttpError;
use runtime::{Clock, Condition, Metrics, Readiness, Shutdown, SystemClock, TaskError, Tasks, metrics};
use sql::{ClickHouse, ClickHouseSettings};
use stream::balances::{BalancesError, BalancesReader};
use stream::control::{ControlError, ControlReader, ControlView, ControlWriter};
use stream::kafka::KafkaSettings;
use stream::topics;
use thiserror::Error as ThisError;

use crate::app::{ANSWERS_WITHIN, App, KafkaControl, Parts};
use crate::server;
use crate::settings::Settings;

/// How long requests and readers may take to end when the process stops.
const DRAIN: Duration = Duration::from_secs(8);
/// How long to wait before Kafka is tried again at the start.
const AGAIN: Duration = Duration::from_millis(500);
/// How often ClickHouse is asked whether it answers.
const LOOK: Duration = Duration::from_secs(2);
/// How long Kafka may take to answer before it is said that it does not.
const CATCH_UP: Duration = Duration::from_secs(5);
const MICROS: i64 = 1_000_000;

/// The sections that the role uses.
#[derive(Debug, Clone, Default)]
pub struct RunSettings {
    /// `[billing]`
    pub billing: Settings,
    /// `[kafka]`
    pub kafka: KafkaSettings,
    /// `[clickhouse]`
    pub clickhouse: ClickHouseSettings,
}

/// Why billing stopped. That Kafka or ClickHouse is away is none of these: requests that need it are answered with 503.
#[derive(Debug, ThisError)]
pub enum Error {
    /// The address cannot be listened on.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A metric's name is taken.
    #[error("the metrics of billing: {0}")]
    Metrics(#[from] metrics::Error),
    /// The settings make no Kafka client.
    #[error("the settings make no Kafka client: {0}; correct the properties in [kafka]")]
    Kafka(#[from] KafkaError),
    /// Control cannot be read.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The balances cannot be read.
    #[error(transparent)]
    Balances(#[from] BalancesError),
    /// A part of it failed.
    #[error(transparent)]
    Task(#[from] TaskError),
}

/// Serves the API and the console until shutdown.
///
/// # Errors
/// See [`Error`].
pub async fn run(settings: RunSettings, shutdown: Shutdown) -> Result<(), Error> {
    let RunSettings { billing, kafka, clickhouse } = settings;
    let (metrics, readiness) = (Metrics::new(), Readiness::new());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let file = |name: &str| billing.dir.as_ref().map(|dir| dir.join(name));
    let (control, view) = ControlReader::open(&kafka, file("control"), clock.clone())?;
    let (balances, balances_view) = BalancesReader::open(&kafka, file("balances"), Box::new(|_| {}))?;
    let writer = ControlWriter::new(&kafka, view.clone())?.with_clock(clock.clone());
    let clickhouse = ClickHouse::new(&clickhouse).reading_at_most(ANSWERS_WITHIN.as_secs());
    let app = App::new(Parts {
        control: Box::new(KafkaControl { view: view.clone(), writer }),
        balances: balances_view,
        clickhouse: clickhouse.clone(),
        kafka: kafka.clone(),
        clock: clock.clone(),
        metrics: metrics.clone(),
        admin_key_sha256: billing.admin_key_sha256.clone(),
        secure_cookie: billing.secure_cookie,
    })?;
    if billing.admin_key_sha256.is_none() {
        tracing::warn!("no admin_key_sha256 is set in [billing]: nothing can be written by the API");
    }
    let listener = runtime::http::bind(billing.listen).await?;
    tracing::info!(listen = %billing.listen, "billing serves");
    let tasks = Tasks::new(shutdown.clone());
    // Before anybody is served: without a condition there is nothing to wait for, and all would be ready.
    let control_read = readiness.condition("control", "tenants and keys are not read yet");
    let clickhouse_answers = readiness.condition("clickhouse", "ClickHouse was not asked yet");
    let router = server::router(app, metrics.clone(), readiness.clone());
    tasks.spawn("billing", DRAIN, runtime::http::serve(listener, router, shutdown.clone(), DRAIN / 2));
    tasks.spawn("control", DRAIN, control.with_metrics(&metrics)?.run(shutdown.clone()));
    tasks.spawn("balances", DRAIN, balances.with_metrics(&metrics)?.run(shutdown.clone()));
    tasks.spawn_finite("topics", DRAIN, make_topics(kafka, shutdown.clone()));
    tasks.spawn_finite("readiness of control", DRAIN, watch_control(view, control_read, shutdown.clone()));
    tasks.spawn("readiness of clickhouse", DRAIN, watch_clickhouse(clickhouse, clickhouse_answers, shutdown));
    tasks.run().await?;
    Ok(())
}

/// Creates the topics that are missing, as soon as Kafka answers: on a new machine billing is the first to need one.
async fn make_topics(kafka: KafkaSettings, shutdown: Shutdown) -> Result<(), topics::TopicsError> {
    while !shutdown.is_cancelled() {
        match topics::ensure(&kafka).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_transient() => tracing::debug!(%error, "the topics are not checked yet"),
            Err(error) => return Err(error),
        }
        shutdown.sleep(AGAIN).await;
    }
    Ok(())
}

/// Ready once there is a state to work from.
async fn watch_control(
    view: ControlView,
    condition: Condition,
    shutdown: Shutdown,
) -> Result<(), std::convert::Infallible> {
    tokio::select! {
        () = view.wait_loaded() => condition.ready(),
        () = shutdown.cancelled() => {}
    }
    let caught_up = tokio::time::timeout(CATCH_UP, view.wait_caught_up());
    let caught_up = tokio::select! {
        caught_up = caught_up => caught_up.is_ok(),
        () = shutdown.cancelled() => return Ok(()),
    };
    if !caught_up {
        let fresh_at = Micros(view.load().fresh_at.div_euclid(MICROS).saturating_mul(MICROS));
        tracing::warn!(%fresh_at, "working from the durable snapshot of control until Kafka answers");
    }
    Ok(())
}

/// Ready while ClickHouse answers.
async fn watch_clickhouse(
    clickhouse: ClickHouse,
    condition: Condition,
    shutdown: Shutdown,
) -> Result<(), std::convert::Infallible> {
    loop {
        match clickhouse.ping().await {
            Ok(()) => condition.ready(),
            Err(error) => condition.not_ready(error.to_string()),
        }
        if !shutdown.sleep(LOOK).await {
            return Ok(());
        }
    }
}
