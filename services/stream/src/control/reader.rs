//! Reading the control log: applies its records to the state in memory, and keeps the state on disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ledger::control::Rejected;
use rdkafka::Message as _;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaErrorCode;
use runtime::metrics::{self, IntCounter, IntCounterVec, IntGauge, Name};
use runtime::{Clock, Metrics, Shutdown};
use schemas::codec::{self, CodecError};
use schemas::event::{ControlChanged, NotAWrite};
use schemas::topic::CONTROL;
use thiserror::Error;

use super::stored::{FORMAT, Stored};
use super::view::{ControlPublisher, ControlSnapshot, ControlView, Outcome};
use crate::chain::Chain;
use crate::follow::{self, AGAIN, Away, Follower, Outage, TICK};
use crate::kafka::KafkaSettings;
use crate::snapshot::SnapshotFile;

/// How often at most a new state is shown while records keep coming.
const SHOW: Duration = Duration::from_millis(50);
/// How often at most it is stored.
const STORE: Duration = Duration::from_millis(200);
/// How often the age of a state that does not change is stored.
const STORE_AGE: i64 = 60_000_000;
const MICROS: i64 = 1_000_000;

/// Why the control log cannot be read on. That Kafka is away is none of these: it is waited for.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The snapshot's folder cannot be made.
    #[error("the folder of the snapshot {path} cannot be made: {source}", path = .path.display())]
    Folder {
        /// The snapshot.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The log holds less than was read from it, or no longer the beginning.
    #[error(
        "the control log holds offsets {low} to {high}, but {offset} is the next to read: the topic was made anew or \
         records were deleted. Put the log back; or, if it is meant to be another one, delete the snapshot {snapshot}"
    )]
    Truncated {
        /// The next to read.
        offset: i64,
        /// The first that is there.
        low: i64,
        /// The one after the last.
        high: i64,
        /// The snapshot's file, if there is one.
        snapshot: String,
    },
    /// The last record that was applied is another one now.
    #[error(
        "the control log has another record at offset {offset} than the one that was applied: it is not the log that \
         this state was read from. Put the log back; or, if it is meant to be another one, delete the snapshot {snapshot}"
    )]
    OtherLog {
        /// Where.
        offset: i64,
        /// The snapshot's file, if there is one.
        snapshot: String,
    },
    /// Offsets that hold no record.
    #[error(
        "the control log has no record at offset {offset}, the next one is {found}: its topic must not be compacted"
    )]
    Hole {
        /// Where one should be.
        offset: i64,
        /// What came.
        found: i64,
    },
    /// A metric's name is taken.
    #[error("the metrics of the control log: {0}")]
    Metrics(#[from] metrics::Error),
    /// The thread that reads died.
    #[error("reading the control log stopped: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

/// Why one reading ended.
enum Ended {
    Away(Away),
    Broken(ControlError),
}

impl From<Away> for Ended {
    fn from(away: Away) -> Self {
        Self::Away(away)
    }
}

impl From<ControlError> for Ended {
    fn from(error: ControlError) -> Self {
        Self::Broken(error)
    }
}

struct Counters {
    offset: IntGauge,
    age: IntGauge,
    refused: IntCounterVec,
    snapshot_errors: IntCounter,
}

/// The one reader of the control log in a process.
pub struct ControlReader {
    settings: KafkaSettings,
    clock: Arc<dyn Clock>,
    file: Option<SnapshotFile>,
    publisher: ControlPublisher,
    now: ControlSnapshot,
    /// The hash of the last record that was applied, by which the log is known again.
    last: Option<Chain>,
    /// Whether the record before the next one was found to be the last that was applied.
    verified: bool,
    /// Whether the log has what only a newer build can read.
    unread: bool,
    /// The log is read once more up to this offset, where it must have this record: what an older build could not read is read
    /// now. Until then the state of the snapshot is shown.
    again: Option<(i64, Chain)>,
    shown: i64,
    shown_at: Instant,
    stored: i64,
    stored_at: Instant,
    stored_fresh_at: i64,
    told: Vec<(uuid::Uuid, Outcome)>,
    counters: Option<Counters>,
}

impl std::fmt::Debug for ControlReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlReader")
            .field("offset", &self.now.offset)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl ControlReader {
    /// Begins with the durable snapshot, if `snapshot` names a file and there is one: Kafka is not asked. A snapshot that
    /// cannot be used is an alarm, is put aside, and the log is read from its beginning.
    ///
    /// # Errors
    /// [`ControlError::Folder`].
    pub fn open(
        settings: &KafkaSettings,
        snapshot: Option<PathBuf>,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, ControlView), ControlError> {
        let file = match snapshot {
            Some(path) => match SnapshotFile::at(path.clone(), FORMAT) {
                Ok(file) => Some(file),
                Err(source) => return Err(ControlError::Folder { path, source }),
            },
            None => None,
        };
        let stored = file.as_ref().and_then(load);
        let loaded = stored.is_some();
        let unread = stored.as_ref().is_some_and(|stored| stored.unread);
        let (mut now, mut last) = stored.map(Stored::into_parts).unwrap_or_default();
        let (publisher, view) = ControlView::new(now.clone(), loaded);
        let (at, offset, fresh_at) = (Instant::now(), now.offset, now.fresh_at);
        let again = last.filter(|_| unread).map(|hash| (offset, hash));
        if again.is_some() {
            (now, last) = (ControlSnapshot { fresh_at, ..ControlSnapshot::default() }, None);
        }
        let reader = Self {
            settings: settings.clone(),
            clock,
            file,
            publisher,
            now,
            last,
            verified: false,
            unread: false,
            again,
            // What is read once more is shown as soon as it is as far.
            shown: if again.is_some() { offset - 1 } else { offset },
            shown_at: at,
            stored: if again.is_some() { -1 } else { offset },
            stored_at: at,
            stored_fresh_at: fresh_at,
            told: Vec::new(),
            counters: None,
        };
        Ok((reader, view))
    }

    /// Counts what it does in these metrics.
    ///
    /// # Errors
    /// [`ControlError::Metrics`] when the names are taken.
    pub fn with_metrics(mut self, metrics: &Metrics) -> Result<Self, ControlError> {
        self.counters = Some(Counters {
            offset: metrics.gauge(Name::ControlOffset)?,
            age: metrics.gauge(Name::ControlStale)?,
            refused: metrics.counters(Name::ControlRefused, &["reason"])?,
            snapshot_errors: metrics.counter(Name::ControlSnapshotErrors)?,
        });
        Ok(self)
    }

    /// Reads until shutdown. While Kafka is away, what is known stays, and is read on from there when it is back.
    ///
    /// # Errors
    /// When the log is not the one that the state was read from, or something of it is gone.
    pub async fn run(mut self, shutdown: Shutdown) -> Result<(), ControlError> {
        let mut outage = Outage::default();
        while !shutdown.is_cancelled() {
            let until = shutdown.clone();
            let reading = tokio::task::spawn_blocking(move || {
                let ended = self.read(&until, &mut outage);
                (self, outage, ended)
            });
            let ended;
            (self, outage, ended) = reading.await?;
            match ended {
                Ok(()) => break,
                Err(Ended::Away(away)) => outage.began(&away),
                Err(Ended::Broken(error)) => return Err(error),
            }
            self.measure(false);
            shutdown.sleep(AGAIN).await;
        }
        Ok(())
    }

    /// One reading: until shutdown, or until Kafka is away.
    fn read(&mut self, shutdown: &Shutdown, outage: &mut Outage) -> Result<(), Ended> {
        let consumer = follow::consumer(&self.settings, "control").map_err(Away::from(CONTROL))?;
        let bounds = follow::bounds(&consumer, CONTROL, 0)?;
        let from = self.place(&bounds)?;
        follow::assign(&consumer, CONTROL, [(0, from)])?;
        outage.ended(CONTROL);
        let ended = self.read_on(&consumer, bounds.end, shutdown);
        self.show();
        self.store();
        ended
    }

    fn read_on(&mut self, consumer: &Follower, end: i64, shutdown: &Shutdown) -> Result<(), Ended> {
        while !shutdown.is_cancelled() {
            let waiting = self.now.offset > self.shown;
            match consumer.poll(if waiting { Duration::ZERO } else { TICK }) {
                Some(Ok(message)) => self.take(&message)?,
                None | Some(Err(KafkaError::PartitionEOF(_))) => self.show(),
                Some(Err(error)) => return Err(self.error(consumer, error)),
            }
            if self.shown_at.elapsed() >= SHOW {
                self.show();
            }
            let all = self.verified && self.now.offset >= end;
            if all {
                self.now.fresh_at = self.clock.now();
                self.show();
                self.publisher.caught_up();
            }
            if self.stored_at.elapsed() >= STORE {
                self.store();
                self.measure(all);
            }
        }
        Ok(())
    }

    /// Where to begin: with the last record that was applied, to see that it is still the same.
    fn place(&mut self, bounds: &std::ops::Range<i64>) -> Result<i64, ControlError> {
        let from = if self.last.is_some() { self.now.offset - 1 } else { self.now.offset };
        let reached = self.again.map_or(self.now.offset, |(until, _)| until);
        if from < bounds.start || reached > bounds.end {
            return Err(self.truncated(bounds));
        }
        self.verified = self.last.is_none();
        Ok(from)
    }

    fn truncated(&self, bounds: &std::ops::Range<i64>) -> ControlError {
        let (low, high) = (bounds.start, bounds.end);
        ControlError::Truncated { offset: self.now.offset, low, high, snapshot: self.file_name() }
    }

    fn file_name(&self) -> String {
        self.file.as_ref().map_or_else(|| "(none)".to_owned(), |file| file.path().display().to_string())
    }

    /// What an error of the consumer means. That it reads beyond the log is asked again, of the log.
    fn error(&self, consumer: &Follower, error: KafkaError) -> Ended {
        let outside = [RDKafkaErrorCode::OffsetOutOfRange, RDKafkaErrorCode::AutoOffsetReset];
        if error.rdkafka_error_code().is_some_and(|code| outside.contains(&code)) {
            return match follow::bounds(consumer, CONTROL, 0) {
                Ok(bounds) => Ended::Broken(self.truncated(&bounds)),
                Err(away) => Ended::Away(away),
            };
        }
        Ended::Away(Away::from(CONTROL)(error))
    }

    fn take(&mut self, message: &BorrowedMessage<'_>) -> Result<(), ControlError> {
        let offset = message.offset();
        let log_time_ms = message.timestamp().to_millis().unwrap_or_default();
        let hash = Chain::default().after(offset, log_time_ms, message.key(), message.payload());
        if !self.verified {
            if offset + 1 != self.now.offset || self.last != Some(hash) {
                return Err(ControlError::OtherLog { offset: self.now.offset - 1, snapshot: self.file_name() });
            }
            self.verified = true;
            return Ok(());
        }
        if offset != self.now.offset {
            return Err(ControlError::Hole { offset: self.now.offset, found: offset });
        }
        if let Some((_, known)) = self.again.take_if(|(until, _)| *until == offset + 1)
            && known != hash
        {
            return Err(ControlError::OtherLog { offset, snapshot: self.file_name() });
        }
        self.apply(offset, message.payload());
        self.now.offset = offset + 1;
        self.last = Some(hash);
        Ok(())
    }

    /// What is refused is counted and changes nothing. Every reader refuses the same.
    fn apply(&mut self, offset: i64, value: Option<&[u8]>) {
        let record: ControlChanged = match codec::decode(value.unwrap_or_default()) {
            Ok(record) => record,
            Err(error @ CodecError::NewerSchema { .. }) => {
                self.unread = true;
                return self.refused(offset, "newer_schema", &error);
            }
            Err(error) => return self.refused(offset, "undecodable", &error),
        };
        let write = match record.to_write() {
            Ok(write) => write,
            Err(error) => {
                // A kind or a field that a newer build knows, perhaps.
                self.unread |= matches!(error, NotAWrite::Kind(_) | NotAWrite::Document(..));
                return self.refused(offset, "malformed", &error);
            }
        };
        let applied = self.now.state.apply(&write);
        if let Err(rejected) = &applied {
            self.refused(offset, code(rejected), rejected);
        }
        if self.publisher.is_expected(record.write_id) {
            self.told.push((record.write_id, (offset, applied)));
        }
    }

    fn refused(&self, offset: i64, reason: &'static str, error: &dyn std::fmt::Display) {
        if reason == "conflict" {
            // Of two that wrote at once one came later, and was told so: that is how it is meant to be.
            tracing::debug!(offset, reason, %error, "a record of the control log has no effect");
        } else {
            tracing::warn!(offset, reason, %error, "a record of the control log has no effect");
        }
        if let Some(counters) = &self.counters {
            counters.refused.with_label_values(&[reason]).inc();
        }
    }

    /// Shows the state, then tells the writers that wait for it.
    fn show(&mut self) {
        if self.now.offset > self.shown {
            self.publisher.publish(self.now.clone());
            (self.shown, self.shown_at) = (self.now.offset, Instant::now());
        }
        for (write, outcome) in self.told.drain(..) {
            self.publisher.tell(write, outcome);
        }
    }

    /// Stores the state if it changed, or if it is long since its age was stored. That it fails is an alarm; the state in
    /// memory is not touched by it.
    fn store(&mut self) {
        self.stored_at = Instant::now();
        let Some(file) = self.file.as_ref().filter(|_| self.again.is_none()) else { return };
        let aged = self.now.fresh_at.saturating_sub(self.stored_fresh_at) >= STORE_AGE;
        if self.now.offset == self.stored && !aged {
            return;
        }
        match file.store(&Stored::of(&self.now, self.last, self.unread)) {
            Ok(()) => (self.stored, self.stored_fresh_at) = (self.now.offset, self.now.fresh_at),
            Err(error) => {
                tracing::error!(file = %file.path().display(), %error, "the snapshot of the control log cannot be stored: a restart without Kafka would go back to the one before");
                if let Some(counters) = &self.counters {
                    counters.snapshot_errors.inc();
                }
            }
        }
    }

    fn measure(&self, fresh: bool) {
        let Some(counters) = &self.counters else { return };
        counters.offset.set(self.now.offset);
        let age = if fresh { 0 } else { self.clock.now().saturating_sub(self.now.fresh_at) / MICROS };
        counters.age.set(age);
    }
}

/// Reads the snapshot; what cannot be used is put aside.
fn load(file: &SnapshotFile) -> Option<Stored> {
    let error = match file.load() {
        Ok(stored) => return stored,
        Err(error) => error,
    };
    let path = file.path().display();
    tracing::error!(%path, %error, "the snapshot of the control log cannot be used: it is put aside, and the log is read from its beginning");
    if let Err(error) = file.put_aside() {
        tracing::error!(%path, %error, "the unusable snapshot cannot be put aside");
    }
    None
}

const fn code(rejected: &Rejected) -> &'static str {
    match rejected {
        Rejected::Conflict { .. } | Rejected::Overtaken { .. } => "conflict",
        Rejected::Missing(..) => "missing",
        Rejected::InUse(..) => "in_use",
        Rejected::Taken(..) => "taken",
        Rejected::Final => "final",
        Rejected::OtherKind(_)
        | Rejected::Id(_)
        | Rejected::NoUuid(_)
        | Rejected::Canaries(_)
        | Rejected::Base(_)
        | Rejected::Weight
        | Rejected::Adjustment(_)
        | Rejected::Price(_)
        | Rejected::Time(_) => "invalid",
    }
}
