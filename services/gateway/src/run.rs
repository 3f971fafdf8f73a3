//! The role: spool and views first, from the disk alone where they were before; then it listens.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ledger::control::{Document, Kind, Spool as SpoolDocument, Write};
use ledger::ids::SpoolId;
use rdkafka::error::KafkaError;
use runtime::http::{HttpError, Listener};
use runtime::tls::{Tls, TlsError};
use runtime::{Clock, Condition, Metrics, Readiness, Shutdown, SystemClock, TaskError, Tasks, metrics};
use stream::balances::{BalancesError, BalancesReader, BalancesView};
use stream::control::{ControlError, ControlReader, ControlView, ControlWriter, WriteError};
use stream::kafka::KafkaSettings;
use stream::ship::Shipper;
use stream::spool::{Flusher, OpenError, Opened, Spool, SpoolSettings, gateway_topics};
use stream::topics::{self, TopicsError};

use crate::gateway::Gateway;
use crate::parts::{BuildError, Parts};
use crate::serve;
use crate::settings::Settings;

/// Where the durable snapshots of control and balances lie, in the spool's directory.
const VIEWS: &str = "views";
/// How long readers may take to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// What is in the spool at a stop is shipped for so long; the next start ships the rest.
const SHIP: Duration = Duration::from_secs(5);
/// How long to wait before Kafka is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// A start with snapshots waits so long for what Kafka holds beyond them: keys that were revoked, what was spent elsewhere.
const CATCH_UP: Duration = Duration::from_secs(2);
/// Who writes to control.
const ACTOR: &str = "gateway";

/// The sections that the role uses.
#[derive(Debug, Clone, Default)]
pub struct RunSettings {
    /// `[gateway]`
    pub gateway: Settings,
    /// `[telemetry]`
    pub telemetry: runtime::traces::Settings,
    /// `[spool]`
    pub spool: SpoolSettings,
    /// `[kafka]`
    pub kafka: KafkaSettings,
}

/// Why the gateway stopped. That Kafka is away is none of these.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A part of it failed.
    #[error(transparent)]
    Task(#[from] TaskError),
}

/// Why it cannot begin.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Topics(#[from] TopicsError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Balances(#[from] BalancesError),
    #[error(transparent)]
    Spool(#[from] OpenError),
    #[error("the metrics of the gateway: {0}")]
    Metrics(#[from] metrics::Error),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error("[gateway.tls]: {0}")]
    Tls(#[from] TlsError),
    #[error("the settings make no Kafka client: {0}; correct the properties in [kafka]")]
    Kafka(#[from] KafkaError),
    #[error("a thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
    #[error("opening the spool stopped: {0}")]
    Opening(#[from] tokio::task::JoinError),
    #[error("the spool cannot be registered: {0}")]
    Register(#[source] WriteError),
    #[error("the spool {0} was retired ({1}): periods have closed without it. Give the gateway a new spool directory")]
    Retired(SpoolId, String),
}

/// Serves until shutdown. At its first start ever it needs Kafka: to check the topics, to read control and balances, and to
/// register its spool. After that it starts and serves without, from what lies in the spool's directory.
///
/// # Errors
/// See [`Error`].
pub async fn run(settings: RunSettings, shutdown: Shutdown) -> Result<(), Error> {
    let listener = runtime::http::bind(settings.gateway.listen).await?;
    let admin = match settings.gateway.admin_listen {
        Some(address) => Some(runtime::http::bind(address).await?),
        None => None,
    };
    let tasks = Tasks::new(shutdown);
    let open = settings.gateway.drain_notice + settings.gateway.drain() + DRAIN;
    let role = Role {
        settings,
        clock: Arc::new(SystemClock),
        metrics: Metrics::new(),
        readiness: Readiness::new(),
        tasks: tasks.clone(),
        open,
        ship_stop: Shutdown::new(),
        served: Shutdown::new(),
    };
    // Before anybody can ask: where there is no condition yet, all would be ready.
    role.starting();
    serve::serving(&role.readiness);
    if let Some(admin) = admin {
        // To the end of the drain: who watches it wants to see that it stops.
        let routes = runtime::http::routes(role.metrics.clone(), role.readiness.clone());
        let serving = runtime::http::serve(admin, routes, role.served.clone(), DRAIN / 5);
        tasks.spawn_finite("admin", open + DRAIN, serving);
    }
    tasks.spawn("gateway", open, role.run(listener.into()));
    tasks.run().await?;
    Ok(())
}

struct Role {
    settings: RunSettings,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    readiness: Readiness,
    tasks: Tasks,
    /// How long requests may still be open after a stop.
    open: Duration,
    /// The shipper goes on until the spool is closed.
    ship_stop: Shutdown,
    /// Triggered when no client is served any more.
    served: Shutdown,
}

/// Closes the spool when nothing can be written to it any more, however that came about.
struct Close {
    spool: Spool,
    ship_stop: Shutdown,
}

impl Drop for Close {
    fn drop(&mut self) {
        match self.spool.close() {
            Ok(0) => {}
            Ok(open) => tracing::warn!(open, "requests are open still: the next start finishes them"),
            Err(error) => tracing::warn!(%error, "the spool could not be closed: the next start recovers it"),
        }
        self.ship_stop.trigger();
    }
}

impl Role {
    async fn run(self, listener: Listener) -> Result<(), StartError> {
        // However it ends.
        let _served = self.served.drop_guard();
        let listener = listener.with_tls(self.tls().await?);
        let here = self.settings.gateway.admin_listen.is_none();
        let own = here.then(|| runtime::http::routes(self.metrics.clone(), self.readiness.clone()));
        let prepared = tokio::select! {
            prepared = self.prepare() => prepared?,
            () = serve::starting(&listener, own) => None,
        };
        let Some((gateway, close)) = prepared else { return Ok(()) };
        let shutdown = self.tasks.shutdown().clone();
        gateway.serve(listener, self.metrics, self.readiness, shutdown).await?;
        drop(close);
        Ok(())
    }

    /// The certificate that clients are shown, which is followed from then on.
    async fn tls(&self) -> Result<Option<Tls>, StartError> {
        let Some(settings) = self.settings.gateway.tls.clone() else { return Ok(None) };
        let tls = Tls::open(settings).await?;
        self.tasks.spawn("certificate", DRAIN, tls.clone().watch(self.tasks.shutdown().clone()));
        Ok(Some(tls))
    }

    fn starting(&self) -> Condition {
        self.readiness.condition("start", "the spool and the views are being opened")
    }

    /// All that must be there before requests are. None on shutdown.
    async fn prepare(&self) -> Result<Option<(Gateway, Close)>, StartError> {
        let condition = self.starting();
        let views = self.settings.spool.dir.join(VIEWS);
        let kafka = &self.settings.kafka;
        let (reader, control) = ControlReader::open(kafka, Some(views.join("control")), self.clock.clone())?;
        let first = !control.is_loaded();
        // A new spool keeps the partitions it begins with, so they are checked before there is one.
        if first && !self.topics(&condition).await? {
            return Ok(None);
        }
        let Opened { spool, flusher, recovery } = self.open_spool().await?;
        tracing::info!(spool = %spool.id(), source = %spool.source(), finished = recovery.lost.len(), torn_bytes = recovery.torn_bytes, "the spool is open");
        let close = self.ship(spool.clone(), flusher)?;
        self.tasks.spawn("control", DRAIN, reader.with_metrics(&self.metrics)?.run(self.tasks.shutdown().clone()));
        let gateway = Gateway::new(Parts {
            settings: self.settings.gateway.clone(),
            telemetry: self.settings.telemetry.clone(),
            control: control.clone(),
            spool: spool.clone(),
            metrics: self.metrics.clone(),
            clock: self.clock.clone(),
        })?;
        let balances = self.balances(&gateway, &views)?;
        if !self.views(&condition, &control, &balances, first).await
            || !self.register(&condition, &spool, &control).await?
        {
            return Ok(None);
        }
        gateway.follow(&self.tasks);
        condition.remove();
        Ok(Some((gateway, close)))
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
                Ok(()) => return Ok(true),
                Err(error) if error.is_transient() => {
                    condition.not_ready(format!("the first start of a gateway needs Kafka: {error}"));
                }
                Err(error) => return Err(error.into()),
            }
            if !self.tasks.shutdown().sleep(AGAIN).await {
                return Ok(false);
            }
        }
    }

    /// Takes the spool into use: what the process before left open gets its end here, before anything is served.
    async fn open_spool(&self) -> Result<Opened, StartError> {
        let (settings, clock) = (self.settings.spool.clone(), self.clock.clone());
        let topics = gateway_topics(self.settings.kafka.partitions);
        Ok(tokio::task::spawn_blocking(move || Spool::open(&settings, topics, clock)).await??)
    }

    /// Starts the threads that sync the spool and ship it.
    fn ship(&self, spool: Spool, flusher: Flusher) -> Result<Close, StartError> {
        let shipper = Shipper::to_kafka(spool.clone(), &self.settings.kafka, "gateway", &self.metrics, SHIP)?;
        let close = Close { spool, ship_stop: self.ship_stop.clone() };
        let (drain, ship_stop) = (self.open + SHIP + DRAIN, self.ship_stop.clone());
        self.tasks.spawn_thread("spool flusher", drain, move || {
            flusher.run();
            Ok::<_, std::convert::Infallible>(())
        })?;
        self.tasks.spawn_thread("spool shipper", drain, move || shipper.run(&ship_stop))?;
        Ok(close)
    }

    /// Reads balances into the gateway: those of the snapshot at once, those of Kafka as they come.
    fn balances(&self, gateway: &Gateway, views: &Path) -> Result<BalancesView, StartError> {
        let told = gateway.clone();
        let on_update = Box::new(move |balance: &_| told.balance(balance));
        let path = Some(views.join("balances"));
        let (reader, view) = BalancesReader::open(&self.settings.kafka, path, on_update)?;
        self.tasks.spawn("balances", DRAIN, reader.with_metrics(&self.metrics)?.run(self.tasks.shutdown().clone()));
        Ok(view)
    }

    /// Waits until there is a state to work from. False on shutdown.
    async fn views(&self, condition: &Condition, control: &ControlView, balances: &BalancesView, first: bool) -> bool {
        condition.not_ready("control is not read yet");
        let read = async {
            control.wait_loaded().await;
            condition.not_ready("balances are not read yet");
            let caught_up = async { tokio::join!(control.wait_caught_up(), balances.wait_caught_up()) };
            // Without a snapshot nothing is known of what tenants have used.
            if first {
                caught_up.await;
            } else if tokio::time::timeout(CATCH_UP, caught_up).await.is_err() {
                tracing::warn!("Kafka does not answer: serving with what was known of keys, plans and balances");
            }
        };
        tokio::select! {
            () = self.tasks.shutdown().cancelled() => false,
            () = read => true,
        }
    }

    /// Registers the spool in control, once. False on shutdown.
    async fn register(&self, condition: &Condition, spool: &Spool, control: &ControlView) -> Result<bool, StartError> {
        let id = spool.id().to_string();
        let known = || control.load().state.get(Kind::Spool, &id).cloned();
        let mut writer = None;
        loop {
            match known() {
                Some(Document::Spool(SpoolDocument { retired: Some(why), .. })) => {
                    return Err(StartError::Retired(spool.id(), why));
                }
                Some(_) => return Ok(true),
                None => condition.not_ready("the spool is not registered in control yet: its first start needs Kafka"),
            }
            if writer.is_none() {
                writer = Some(ControlWriter::new(&self.settings.kafka, control.clone())?);
            }
            let document =
                SpoolDocument { role: ACTOR.into(), name: self.settings.gateway.name.clone(), retired: None };
            let expected_revision = control.load().state.revision(Kind::Spool, &id);
            let document = Some(Document::Spool(document));
            let write = Write { kind: Kind::Spool, id: id.clone(), expected_revision, document };
            let Some(writer) = &writer else { continue };
            let written = tokio::select! {
                () = self.tasks.shutdown().cancelled() => return Ok(false),
                written = writer.write(write, ACTOR) => written,
            };
            match written {
                Ok(_) => tracing::info!(spool = %id, "the spool is registered"),
                Err(WriteError::Unavailable(why)) => {
                    tracing::warn!(why, "the spool could not be registered yet");
                    if !self.tasks.shutdown().sleep(AGAIN).await {
                        return Ok(false);
                    }
                }
                // A write of ours that took its effect after all: the next look says so.
                Err(error) if known().is_none() => return Err(StartError::Register(error)),
                Err(_) => {}
            }
        }
    }
}
