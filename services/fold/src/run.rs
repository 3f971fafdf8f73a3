//! The role: what it needs before it folds, and a line for each topic and partition.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use runtime::http::HttpError;
use runtime::metrics::Name;
use runtime::{Clock, Condition, Metrics, Readiness, Shutdown, SystemClock, TaskError, Tasks, metrics};
use schemas::topic::TOKENS;
use sql::ClickHouseSettings;
use stream::balances::{BalancesError, BalancesReader};
use stream::control::{ControlError, ControlReader, ControlView};
use stream::group::{Given, GroupError, Member};
use stream::kafka::KafkaSettings;
use stream::topics::{self, TopicsError};
use thiserror::Error;
use tokio::sync::watch;

use crate::call::StoreError;
use crate::line::Shared;
use crate::lines::{self, Lines};
use crate::meters::Meters;
use crate::publish::Publisher;
use crate::reconcile::{Reconciler, Watch, WatchMeters};
use crate::settings::{Partitions, Settings};
use crate::store::Store;

/// How long a line may take to stop. What is on its way is found out at the next start.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);
/// The group that divides the partitions among the folds.
const GROUP: &str = "tollgate-folds";
/// How long to wait before Kafka or ClickHouse is tried again at the start.
const AGAIN: Duration = Duration::from_millis(500);

/// The sections that the role uses.
#[derive(Debug, Clone, Default)]
pub struct RunSettings {
    /// `[fold]`
    pub fold: Settings,
    /// `[kafka]`
    pub kafka: KafkaSettings,
    /// `[clickhouse]`
    pub clickhouse: ClickHouseSettings,
}

/// Why the fold stopped. That Kafka or ClickHouse is away is none of these: it is waited for.
#[derive(Debug, Error)]
pub enum Error {
    /// The address of `/readyz` cannot be listened on.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A metric's name is taken.
    #[error("the metrics of the fold: {0}")]
    Metrics(#[from] metrics::Error),
    /// The settings make no Kafka client.
    #[error("the settings make no Kafka client: {0}; correct the properties in [kafka]")]
    Kafka(#[from] KafkaError),
    /// A part of it failed.
    #[error(transparent)]
    Task(#[from] TaskError),
}

/// Why it cannot begin, although everything answers.
#[derive(Debug, Error)]
enum StartError {
    #[error(transparent)]
    Topics(#[from] TopicsError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("{0}")]
    Store(String),
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error(transparent)]
    Balances(#[from] BalancesError),
    #[error("the metrics of the fold: {0}")]
    Metrics(#[from] metrics::Error),
    #[error("the host has no thread left for the group: {0}")]
    Thread(#[from] std::io::Error),
}

/// Folds until shutdown: the partitions of the tokens and the requests topic that the group of folds gives to this process, or
/// all of them. Of two processes that fold one line, ClickHouse takes the chunks of the first.
///
/// # Errors
/// See [`enum@Error`].
pub async fn run(settings: RunSettings, shutdown: Shutdown) -> Result<(), Error> {
    let (metrics, readiness) = (Metrics::new(), Readiness::new());
    let meters = Meters::new(&metrics)?;
    let publisher = Publisher::new(&settings.kafka)?;
    let listener = runtime::http::bind(settings.fold.listen).await?;
    let tasks = Tasks::new(shutdown.clone());
    // The last one to hold, before anybody can ask: where there is no condition yet, all would be ready.
    lines::divided(&readiness);
    let routes = runtime::http::routes(metrics.clone(), readiness.clone());
    tasks.spawn("health", DRAIN, runtime::http::serve(listener, routes, shutdown, DRAIN));
    let start = Start { settings, metrics, readiness, meters, publisher, tasks: tasks.clone() };
    tasks.spawn_finite("start", DRAIN, start.run());
    tasks.run().await?;
    Ok(())
}

/// What is there before the lines are.
struct Start {
    settings: RunSettings,
    metrics: Metrics,
    readiness: Readiness,
    meters: Meters,
    publisher: Publisher,
    tasks: Tasks,
}

impl Start {
    async fn run(self) -> Result<(), StartError> {
        let kafka = self.readiness.condition("kafka", "the topics are not checked yet");
        if !self.topics(&kafka).await? {
            return Ok(());
        }
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let Some(control) = self.control(&clock).await? else { return Ok(()) };
        let store = Store::new(&self.settings.clickhouse);
        if !self.tables(&store).await? {
            return Ok(());
        }
        // Of each partition two: its tokens and its requests.
        let lines = 2 * u64::from(self.settings.kafka.partitions.unsigned_abs());
        let shared = Shared {
            kafka: self.settings.kafka.clone(),
            store,
            publisher: self.publisher.clone(),
            control,
            clock,
            cuts: self.settings.fold.cuts(lines),
            stall: self.settings.fold.stall(),
        };
        let given = self.given()?;
        self.reconcile(&shared, given.clone())?;
        let Self { metrics, readiness, meters, tasks, .. } = self;
        let partitions = metrics.gauge(Name::FoldPartitions)?;
        let lines = Lines { shared, meters, readiness, tasks: tasks.clone(), partitions };
        tasks.spawn("lines", DRAIN, lines.follow(given, tasks.shutdown().clone()));
        Ok(())
    }

    /// Starts the reconciler, if it is wanted.
    fn reconcile(&self, shared: &Shared, given: Given) -> Result<(), StartError> {
        let RunSettings { fold, kafka, clickhouse } = &self.settings;
        if fold.reconcile_seconds == 0 {
            return Ok(());
        }
        let shutdown = self.tasks.shutdown();
        let (reader, balances) = BalancesReader::open(kafka, None, Box::new(|_| {}))?;
        self.tasks.spawn("balances", DRAIN, reader.run(shutdown.clone()));
        let reconciler = Reconciler::new(kafka, clickhouse, shared.control.clone(), balances, shared.clock.clone());
        let watch = Arc::new(Watch {
            reconciler,
            given,
            every: Duration::from_secs(fold.reconcile_seconds),
            hours: fold.reconcile_hours,
            meters: WatchMeters::new(&self.metrics)?,
        });
        self.tasks.spawn("counters of replicas", DRAIN, watch.clone().sample(shutdown.clone()));
        self.tasks.spawn("reconciler", DRAIN, watch.run(shutdown.clone()));
        Ok(())
    }

    /// The partitions to fold, and how they change.
    fn given(&self) -> Result<Given, StartError> {
        let (fold, kafka) = (&self.settings.fold, &self.settings.kafka);
        if fold.partitions == Partitions::All {
            // The sender may go: nothing changes.
            return Ok(watch::channel(Some((0..kafka.partitions).collect())).1);
        }
        let (member, given) = Member::new(kafka, GROUP, &fold.name(), TOKENS)?;
        let shutdown = self.tasks.shutdown().clone();
        self.tasks.spawn_thread("group", DRAIN, move || member.run(&shutdown))?;
        Ok(given)
    }

    /// Waits for Kafka, and creates and checks the topics. False on shutdown.
    async fn topics(&self, condition: &Condition) -> Result<bool, StartError> {
        let kafka = &self.settings.kafka;
        loop {
            let checked = async {
                topics::ensure(kafka).await?;
                topics::verify(kafka).await
            };
            match checked.await {
                Ok(()) => {
                    condition.ready();
                    return Ok(true);
                }
                Err(error) if error.is_transient() => condition.not_ready(error.to_string()),
                Err(error) => return Err(error.into()),
            }
            if !self.tasks.shutdown().sleep(AGAIN).await {
                return Ok(false);
            }
        }
    }

    /// Reads control to its end: balances need the tenants' time zones. None on shutdown.
    async fn control(&self, clock: &Arc<dyn Clock>) -> Result<Option<ControlView>, StartError> {
        let condition = self.readiness.condition("control", "the control log is not read yet");
        let (reader, view) = ControlReader::open(&self.settings.kafka, None, clock.clone())?;
        let shutdown = self.tasks.shutdown().clone();
        self.tasks.spawn("control", DRAIN, reader.with_metrics(&self.metrics)?.run(shutdown.clone()));
        tokio::select! {
            () = shutdown.cancelled() => Ok(None),
            () = view.wait_caught_up() => {
                condition.ready();
                Ok(Some(view))
            }
        }
    }

    /// Waits for ClickHouse, and brings the tables to this binary's version. False on shutdown.
    async fn tables(&self, store: &Store) -> Result<bool, StartError> {
        let condition = self.readiness.condition("clickhouse", "the tables are not checked yet");
        loop {
            match store.migrate().await {
                Ok(()) => {
                    condition.ready();
                    return Ok(true);
                }
                Err(StoreError::Unavailable(why)) => condition.not_ready(why),
                Err(StoreError::Damaged(why)) => return Err(StartError::Store(why)),
            }
            if !self.tasks.shutdown().sleep(AGAIN).await {
                return Ok(false);
            }
        }
    }
}
