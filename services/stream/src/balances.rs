//! Reading the balances topic: what each tenant has used in its period, the newest of it, in memory and on disk.

use std::collections::BTreeMap;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use ledger::ids::TenantId;
use ledger::time::Period;
use rdkafka::Message as _;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use runtime::metrics::{self, IntCounter, IntCounterVec, Name};
use runtime::{Metrics, Shutdown};
use schemas::codec;
use schemas::event::BalanceUpdated;
use schemas::topic::BALANCES;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;

use crate::follow::{self, AGAIN, Away, Follower, Outage, TICK};
use crate::kafka::KafkaSettings;
use crate::snapshot::SnapshotFile;

/// The file's first words: kind and version.
const FORMAT: &str = "tollgate-balances 1";
/// How often at most the balances are stored.
const STORE: Duration = Duration::from_secs(1);

/// Why the balances cannot be read. That Kafka is away is none of these: it is waited for.
#[derive(Debug, Error)]
pub enum BalancesError {
    /// The snapshot's folder cannot be made.
    #[error("the folder of the snapshot {path} cannot be made: {source}", path = .path.display())]
    Folder {
        /// The snapshot.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A metric's name is taken.
    #[error("the metrics of the balances: {0}")]
    Metrics(#[from] metrics::Error),
    /// The thread that reads died.
    #[error("reading the balances stopped: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

/// A tenant and the first moment of its period, microseconds.
type Key = (TenantId, i64);

struct Shared {
    balances: RwLock<HashMap<Key, Arc<BalanceUpdated>>>,
    caught_up: watch::Sender<bool>,
}

/// The newest balances, for reading. Cheap to clone.
#[derive(Clone)]
pub struct BalancesView(Arc<Shared>);

impl std::fmt::Debug for BalancesView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BalancesView").finish_non_exhaustive()
    }
}

impl BalancesView {
    /// A view of these balances, that no topic stands behind: for a tool or a test.
    pub fn of(balances: impl IntoIterator<Item = BalanceUpdated>) -> Self {
        let keyed = balances.into_iter().map(|balance| (key(&balance), Arc::new(balance)));
        Self(Arc::new(Shared { balances: RwLock::new(keyed.collect()), caught_up: watch::Sender::new(true) }))
    }

    /// A tenant's balance of a period, if anything was ever published of it.
    pub fn get(&self, tenant: &TenantId, period: Period) -> Option<Arc<BalanceUpdated>> {
        let balances = self.0.balances.read().unwrap_or_else(PoisonError::into_inner);
        balances.get(&(tenant.clone(), period.from.start().0)).cloned()
    }

    /// All of them, in no order.
    pub fn all(&self) -> Vec<Arc<BalanceUpdated>> {
        self.0.balances.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Whether, at least once since the start, everything was read that the topic held when its reading began.
    pub fn caught_up(&self) -> bool {
        *self.0.caught_up.borrow()
    }

    /// Returns once [`BalancesView::caught_up`].
    pub async fn wait_caught_up(&self) {
        // The sender lives as long as this view: it cannot be closed.
        let _ = self.0.caught_up.subscribe().wait_for(|caught_up| *caught_up).await;
    }

    /// Keeps the balance with the highest `as_of`; of two with the same one, which count the same, the later published.
    /// False: what is there is newer.
    pub fn take(&self, balance: &BalanceUpdated) -> bool {
        let mut balances = self.0.balances.write().unwrap_or_else(PoisonError::into_inner);
        let order = |balance: &BalanceUpdated| (balance.as_of, balance.control_offset, balance.published_at);
        let newer = balances.get(&key(balance)).is_none_or(|known| order(balance) >= order(known));
        if newer || left_out!(HighestBalance) {
            balances.insert(key(balance), Arc::new(balance.clone()));
        }
        newer
    }
}

fn key(balance: &BalanceUpdated) -> Key {
    (balance.tenant_id.clone(), balance.period_from.0)
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    offsets: BTreeMap<i32, i64>,
    balances: Vec<BalanceUpdated>,
}

struct Counters {
    read: IntCounterVec,
    snapshot_errors: IntCounter,
}

/// What is told of each balance that is newer than what was known.
pub type OnUpdate = Box<dyn FnMut(&BalanceUpdated) + Send>;

/// The one reader of the balances in a process.
pub struct BalancesReader {
    settings: KafkaSettings,
    file: Option<SnapshotFile>,
    view: BalancesView,
    on_update: OnUpdate,
    offsets: BTreeMap<i32, i64>,
    changed: bool,
    stored_at: Instant,
    counters: Option<Counters>,
}

impl std::fmt::Debug for BalancesReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BalancesReader")
            .field("offsets", &self.offsets)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl BalancesReader {
    /// Begins with the durable snapshot, if `snapshot` names a file and there is one: Kafka is not asked. `on_update` is
    /// called for each balance of it at once, and later for each newer one, from the thread that reads. A snapshot that
    /// cannot be used is an alarm, is put aside, and the topic is read from its beginning.
    ///
    /// # Errors
    /// [`BalancesError::Folder`].
    pub fn open(
        settings: &KafkaSettings,
        snapshot: Option<PathBuf>,
        mut on_update: OnUpdate,
    ) -> Result<(Self, BalancesView), BalancesError> {
        let file = match snapshot {
            Some(path) => match SnapshotFile::at(path.clone(), FORMAT) {
                Ok(file) => Some(file),
                Err(source) => return Err(BalancesError::Folder { path, source }),
            },
            None => None,
        };
        let stored = file.as_ref().map(load).unwrap_or_default();
        stored.balances.iter().for_each(&mut on_update);
        let view = BalancesView::of(stored.balances);
        view.0.caught_up.send_replace(false);
        let reader = Self {
            settings: settings.clone(),
            file,
            view: view.clone(),
            on_update,
            offsets: stored.offsets,
            changed: false,
            stored_at: Instant::now(),
            counters: None,
        };
        Ok((reader, view))
    }

    /// Counts what it does in these metrics.
    ///
    /// # Errors
    /// [`BalancesError::Metrics`] when the names are taken.
    pub fn with_metrics(mut self, metrics: &Metrics) -> Result<Self, BalancesError> {
        self.counters = Some(Counters {
            read: metrics.counters(Name::BalancesRead, &["outcome"])?,
            snapshot_errors: metrics.counter(Name::BalancesSnapshotErrors)?,
        });
        Ok(self)
    }

    /// Reads until shutdown. While Kafka is away, what is known stays, and is read on from there when it is back.
    ///
    /// # Errors
    /// [`BalancesError::Thread`].
    pub async fn run(mut self, shutdown: Shutdown) -> Result<(), BalancesError> {
        let mut outage = Outage::default();
        while !shutdown.is_cancelled() {
            let until = shutdown.clone();
            let reading = tokio::task::spawn_blocking(move || {
                let ended = self.read(&until, &mut outage);
                self.store();
                (self, outage, ended)
            });
            let ended;
            (self, outage, ended) = reading.await?;
            match ended {
                Ok(()) => break,
                Err(away) => outage.began(&away),
            }
            shutdown.sleep(AGAIN).await;
        }
        Ok(())
    }

    /// One reading: until shutdown, or until Kafka is away.
    fn read(&mut self, shutdown: &Shutdown, outage: &mut Outage) -> Result<(), Away> {
        let consumer = follow::consumer(&self.settings, "balances").map_err(Away::from(BALANCES))?;
        let mut ends = BTreeMap::new();
        for partition in 0..self.settings.partitions {
            let bounds = follow::bounds(&consumer, BALANCES, partition)?;
            let next = self.offsets.entry(partition).or_insert(bounds.start);
            // A balance is absolute, and the highest `as_of` is kept: reading the topic again does no harm.
            if !(bounds.start..=bounds.end).contains(next) {
                tracing::warn!(
                    partition,
                    next = *next,
                    ?bounds,
                    "the balances topic was made anew or cut: reading it from its beginning"
                );
                *next = bounds.start;
            }
            ends.insert(partition, bounds.end);
        }
        follow::assign(&consumer, BALANCES, self.offsets.iter().map(|(&partition, &next)| (partition, next)))?;
        outage.ended(BALANCES);
        self.read_on(&consumer, &ends, shutdown)
    }

    fn read_on(&mut self, consumer: &Follower, ends: &BTreeMap<i32, i64>, shutdown: &Shutdown) -> Result<(), Away> {
        let mut caught_up = false;
        while !shutdown.is_cancelled() {
            match consumer.poll(TICK) {
                Some(Ok(message)) => self.take(&message),
                // Compaction leaves holes, also right before the end: only the broker knows that it is reached.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    if let (Some(next), Some(end)) = (self.offsets.get_mut(&partition), ends.get(&partition)) {
                        *next = (*next).max(*end);
                    }
                }
                Some(Err(error)) => return Err(Away::from(BALANCES)(error)),
                None => {}
            }
            if !caught_up && ends.iter().all(|(partition, end)| self.offsets.get(partition) >= Some(end)) {
                caught_up = true;
                self.view.0.caught_up.send_if_modified(|flag| !std::mem::replace(flag, true));
            }
            if self.stored_at.elapsed() >= STORE {
                self.store();
            }
        }
        Ok(())
    }

    fn take(&mut self, message: &BorrowedMessage<'_>) {
        self.offsets.insert(message.partition(), message.offset() + 1);
        self.changed = true;
        // A tombstone takes a period out of the topic; what is known of it does no harm.
        let Some(value) = message.payload() else { return };
        let outcome = match codec::decode::<BalanceUpdated>(value) {
            Ok(balance) if self.view.take(&balance) => {
                (self.on_update)(&balance);
                "taken"
            }
            Ok(_) => "older",
            Err(error) => {
                let (partition, offset) = (message.partition(), message.offset());
                tracing::warn!(partition, offset, %error, "a record of the balances topic is no balance");
                "undecodable"
            }
        };
        if let Some(counters) = &self.counters {
            counters.read.with_label_values(&[outcome]).inc();
        }
    }

    fn store(&mut self) {
        self.stored_at = Instant::now();
        let Some(file) = self.file.as_ref().filter(|_| self.changed) else { return };
        let balances = self.view.all().iter().map(|balance| (**balance).clone()).collect();
        match file.store(&Stored { offsets: self.offsets.clone(), balances }) {
            Ok(()) => self.changed = false,
            Err(error) => {
                tracing::error!(file = %file.path().display(), %error, "the snapshot of the balances cannot be stored");
                if let Some(counters) = &self.counters {
                    counters.snapshot_errors.inc();
                }
            }
        }
    }
}

/// Reads the snapshot; what cannot be used is put aside.
fn load(file: &SnapshotFile) -> Stored {
    let error = match file.load() {
        Ok(stored) => return stored.unwrap_or_default(),
        Err(error) => error,
    };
    let path = file.path().display();
    tracing::error!(%path, %error, "the snapshot of the balances cannot be used: it is put aside, and the topic is read from its beginning");
    if let Err(error) = file.put_aside() {
        tracing::error!(%path, %error, "the unusable snapshot cannot be put aside");
    }
    Stored::default()
}
