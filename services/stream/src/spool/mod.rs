//! The durable local log of a gateway: what was handed to clients is in it before they have it, and leaves it for Kafka.
//!
//! [`Spool::open`] takes the directory, finishes what the process before left open, and begins a new source.
//! [`Spool::admit`] → [`OpenRequest::received`] for each frame of an answer → [`OpenRequest::finish`] is the life of a
//! request. [`Flusher`] syncs in groups; [`crate::ship::Shipper`] sends what is synced.

mod book;
mod close;
pub mod cursor;
pub mod disk;
pub mod frame;
mod log;
mod open;
mod reader;
mod request;
mod scan;
pub mod segment;
pub mod sim_disk;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ledger::ids::{ModelId, SourceId, SpoolId, TenantId};
use ledger::time::{Micros, Slot};
use runtime::Clock;
use schemas::mark::Mark;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::inflight::Table;
use crate::spend::{Amount, OwnSpend, Spent};
use frame::{Entry, Position};
use log::{Draft, Log};

pub use book::CLOSING_ROOM;
pub use close::{Admission, Finish, Settled, Usage, settle};
pub use log::AppendError;
pub use open::{LostRequest, OpenError, Opened, Recovery};
pub use request::{AdmitError, Checkpoint, Finished, OpenRequest};
pub use scan::ScanError;
pub use segment::TopicSpec;

pub(crate) use reader::Reader;

/// Index of the tokens topic among the topics of a gateway's spool.
pub const TOKENS: u8 = 0;
/// Index of the requests topic among the topics of a gateway's spool.
pub const REQUESTS: u8 = 1;

/// When the end of an answer may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// When the end is written: a crash of the process loses nothing, one of the host at most what fsync had not covered.
    #[default]
    Process,
    /// When fsync has covered it: a crash of the host loses nothing either.
    Host,
}

/// `[spool]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpoolSettings {
    /// The directory; one process at a time.
    pub dir: PathBuf,
    /// No request is admitted that could take the spool beyond so many bytes.
    pub max_bytes: u64,
    /// A new segment is begun after so many bytes.
    pub segment_bytes: u64,
    /// Requests that can be open at once.
    pub slots: u32,
    /// Writes are gathered so long before an fsync, in milliseconds; at most 20.
    pub fsync_interval_ms: u64,
    /// See [`Durability`].
    pub durability: Durability,
    /// A running stream is billed again after so many milliseconds.
    pub checkpoint_interval_ms: u64,
    /// A running stream is billed again after so many tokens.
    pub checkpoint_tokens: u64,
    /// Every partition gets a heartbeat after so many milliseconds.
    pub heartbeat_interval_ms: u64,
}

impl Default for SpoolSettings {
    fn default() -> Self {
        Self {
            dir: PathBuf::from(".tollgate/spool"),
            max_bytes: 4 << 30,
            segment_bytes: 64 << 20,
            slots: 4096,
            fsync_interval_ms: 10,
            durability: Durability::Process,
            checkpoint_interval_ms: 2000,
            checkpoint_tokens: 256,
            heartbeat_interval_ms: 1000,
        }
    }
}

impl SpoolSettings {
    /// What is wrong with the settings; nothing if they can be used.
    pub fn validate(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |good: bool, said: &str| {
            if !good {
                wrong.push(format!("spool.{said}"));
            }
        };
        check(!self.dir.as_os_str().is_empty(), "dir must name a directory");
        check(self.segment_bytes >= 1 << 16, "segment_bytes must be at least 65536");
        check(self.segment_bytes <= 1 << 30, "segment_bytes must be at most 1073741824");
        check(
            self.max_bytes >= self.segment_bytes.saturating_mul(2),
            "max_bytes must be at least twice segment_bytes, so that a full segment can go while another fills",
        );
        check((1..=1 << 20).contains(&self.slots), "slots must be 1 to 1048576");
        check((1..=20).contains(&self.fsync_interval_ms), "fsync_interval_ms must be 1 to 20");
        check(self.checkpoint_interval_ms >= 100, "checkpoint_interval_ms must be at least 100");
        check(self.checkpoint_tokens >= 1, "checkpoint_tokens must be at least 1");
        check(
            (100..=60_000).contains(&self.heartbeat_interval_ms),
            "heartbeat_interval_ms must be 100 to 60000: periods close only when heartbeats come",
        );
        wrong
    }
}

/// The topics of a gateway's spool: tokens and requests, with so many partitions each.
pub fn gateway_topics(partitions: i32) -> Vec<TopicSpec> {
    let spec = |name: &str| TopicSpec { name: name.to_owned(), partitions };
    vec![spec(schemas::topic::TOKENS), spec(schemas::topic::REQUESTS)]
}

/// Figures of a spool, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolStats {
    /// Bytes written and not yet acknowledged by Kafka.
    pub unshipped_bytes: u64,
    /// Bytes of all segments.
    pub bytes: u64,
    /// The limit.
    pub max_bytes: u64,
    /// Room kept for the ends of open requests.
    pub reserved_bytes: u64,
    /// Open requests.
    pub open_requests: u64,
    /// Ends that wait for the disk to take them.
    pub delayed_ends: u64,
    /// When the oldest record that is not acknowledged occurred.
    pub oldest_unshipped: Option<Micros>,
    /// Writes and syncs that failed.
    pub disk_errors: u64,
}

/// What the last watermark promised, as a frame of the spool says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watermark {
    /// The source.
    pub source: SourceId,
    /// Nothing of it will be earlier.
    pub time: Micros,
    /// Its last `seq` per topic, per partition, at that moment.
    pub seqs: Vec<Vec<u64>>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) log: Log,
    table: Arc<Table>,
    spend: Mutex<OwnSpend>,
    settings: SpoolSettings,
    source: SourceId,
    clock: Arc<dyn Clock>,
    /// Where shipping stands, as `cursor.json` says.
    cursor: Mutex<cursor::Cursor>,
    oldest_unshipped: AtomicI64,
    disk_errors: AtomicU64,
    /// The lock of the directory: given back with the last handle.
    _lock: Option<File>,
}

/// A spool in use. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spool(pub(crate) Arc<Inner>);

impl Spool {
    /// The spool's id, made at its first start and registered in `control`.
    pub fn id(&self) -> SpoolId {
        SpoolId(self.0.log.spool())
    }

    /// This start's source.
    pub fn source(&self) -> SourceId {
        self.0.source
    }

    /// The settings.
    pub fn settings(&self) -> &SpoolSettings {
        &self.0.settings
    }

    /// The topics.
    pub fn topics(&self) -> &[TopicSpec] {
        self.0.log.topics()
    }

    /// The time of this spool's clock.
    pub fn now(&self) -> Micros {
        Micros(self.0.clock.now())
    }

    pub(crate) fn own_spend(&self) -> MutexGuard<'_, OwnSpend> {
        self.0.spend.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A balance was seen: see [`OwnSpend::balance_seen`].
    pub fn balance_seen(&self, tenant: &TenantId, from: Slot, to: Slot, as_of: i64) {
        self.own_spend().balance_seen(tenant, from, to, as_of);
    }

    /// What `tenant` spent here over `[from, to)` and no balance has shown, per model.
    pub fn spend(&self, tenant: &TenantId, from: Slot, to: Slot) -> BTreeMap<ModelId, Amount> {
        self.own_spend().spend(tenant, from, to)
    }

    /// The same over all models.
    pub fn total_spend(&self, tenant: &TenantId, from: Slot, to: Slot) -> Amount {
        self.own_spend().total(tenant, from, to)
    }

    /// Makes durable what is written; [`Flusher`] does so by itself.
    ///
    /// # Errors
    /// When the disk refuses. Nothing is lost: it is tried again.
    pub fn flush(&self) -> io::Result<Position> {
        let result = self.0.log.flush();
        if result.is_err() {
            self.0.disk_errors.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    /// Up to here everything survives a crash of the host.
    pub fn frontier(&self) -> Position {
        self.0.log.lock().frontier()
    }

    /// Returns when the spool is durable up to `position`.
    pub async fn durable(&self, position: Position) {
        let mut frontier = self.0.log.watch();
        // The sender lives as long as `self`.
        let _ = frontier.wait_for(|frontier| *frontier >= position).await;
    }

    /// What [`Durability`] asks for before the end of an answer leaves.
    pub async fn settled(&self, finished: &Finished) {
        if self.0.settings.durability == Durability::Host {
            self.durable(finished.position).await;
        }
    }

    /// Figures for metrics.
    pub fn stats(&self) -> SpoolStats {
        let acked = self.cursor().acked;
        let state = self.0.log.lock();
        let oldest = self.0.oldest_unshipped.load(Ordering::Relaxed);
        SpoolStats {
            unshipped_bytes: state.bytes_since(acked.max(Position { segment: state.oldest(), offset: 0 })),
            bytes: state.bytes(),
            max_bytes: self.0.settings.max_bytes,
            reserved_bytes: state.book.reserved(),
            open_requests: state.book.open(),
            delayed_ends: state.book.delayed.len() as u64,
            oldest_unshipped: (oldest != i64::MAX).then_some(Micros(oldest)),
            disk_errors: self.0.disk_errors.load(Ordering::Relaxed),
        }
    }

    /// Appends a watermark: from now on nothing is earlier. It may be told to anybody once it is durable.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub fn watermark(&self) -> Result<Position, AppendError> {
        let now = self.0.clock.now();
        let state = self.0.log.lock();
        if state.closed {
            return Err(AppendError::Closed);
        }
        let build = &mut |draft: &mut Draft<'_>| {
            let entry = Entry::Watermark { source: draft.source(), time: draft.time(), seqs: draft.seqs().to_vec() };
            draft.push(&entry);
            Ok(())
        };
        self.0.log.append(state, now, build).1
    }

    /// Ends a clean stop: nothing is admitted any more, and every partition gets the mark `SpoolDrained`. Returns how many
    /// requests are still open; the next start finishes them as `gateway_lost`. Harmless to repeat.
    ///
    /// # Errors
    /// See [`AppendError`]; the next start then finds the source as after a crash, which is just as good.
    pub fn close(&self) -> Result<u64, AppendError> {
        self.retry_delayed();
        let now = self.0.clock.now();
        let state = self.0.log.lock();
        let open = state.book.open();
        if state.closed {
            return Ok(open);
        }
        let (spool, source) = (self.id(), self.0.source);
        let build = &mut |draft: &mut Draft<'_>| {
            for_each_partition(draft, |draft, topic, partition| {
                let seq = draft.seq(topic, partition);
                mark(draft, topic, partition, seq, &Mark::SpoolDrained { spool, source, seq })
            })
        };
        let (mut state, result) =
            if open == 0 { self.0.log.append(state, now, build) } else { (state, Ok(Position::default())) };
        state.closed = true;
        drop(state);
        self.0.log.wake();
        result.map(|_| open)
    }

    /// Tries again to write ends that the disk refused.
    pub fn retry_delayed(&self) {
        let mut state = self.0.log.lock();
        while let Some(delayed) = state.book.delayed.pop_front() {
            let (tenant, model) = (&delayed.closing.admission.tenant, &delayed.closing.admission.model);
            let (again, result) = self.append_closing(state, &delayed.closing);
            state = again;
            match result {
                Ok(position) => {
                    state.book.ended(position, delayed.pin);
                    let (at, amount) = delayed.promised;
                    self.own_spend().withdrawn(tenant, model, at, amount);
                }
                Err(_) => {
                    state.book.delayed.push_front(delayed);
                    return;
                }
            }
        }
    }

    /// A cursor's copy.
    pub fn cursor(&self) -> cursor::Cursor {
        self.0.cursor.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps a new cursor, then lets segments go that nobody needs any more.
    ///
    /// # Errors
    /// What the disk says; the old cursor then stands, and some records would be sent again.
    pub(crate) fn advance(&self, cursor: &cursor::Cursor) -> io::Result<()> {
        let disk = self.0.log.disk();
        cursor.write(disk)?;
        *self.0.cursor.lock().unwrap_or_else(PoisonError::into_inner) = cursor.clone();
        while let Some(number) = self.0.log.removable(cursor.acked) {
            let offset_of = |partition| cursor.offset(TOKENS, partition).unwrap_or(-1);
            let spend = self.own_spend().keep(number, offset_of);
            cursor::Kept { through: number, spend }.write(disk)?;
            self.0.log.remove_oldest(cursor.acked)?;
        }
        Ok(())
    }

    pub(crate) fn set_oldest_unshipped(&self, time: Option<i64>) {
        self.0.oldest_unshipped.store(time.unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn spent(&self, spent: &Spent, segment: u64) {
        self.own_spend().appended(spent, segment);
    }
}

/// Does `each` for every partition of every topic.
fn for_each_partition<E>(
    draft: &mut Draft<'_>,
    mut each: impl FnMut(&mut Draft<'_>, u8, i32) -> Result<(), E>,
) -> Result<(), E> {
    let partitions: Vec<i32> = draft.topics().iter().map(|topic| topic.partitions).collect();
    for (topic, partitions) in partitions.into_iter().enumerate() {
        for partition in 0..partitions {
            each(draft, topic as u8, partition)?;
        }
    }
    Ok(())
}

/// Adds a mark as a numbered record.
fn mark(draft: &mut Draft<'_>, topic: u8, partition: i32, seq: u64, mark: &Mark) -> Result<(), AppendError> {
    draft.record(topic, partition, seq, None, None, headers_of(mark))
}

/// A mark's headers as the spool keeps them.
pub(crate) fn headers_of(mark: &Mark) -> Vec<(String, Vec<u8>)> {
    mark.headers().into_iter().map(|(name, value)| (name.to_owned(), value.into_bytes())).collect()
}

/// Syncs in groups. To be run on a thread of its own for as long as the spool is in use.
#[must_use = "without it nothing becomes durable and nothing is shipped"]
#[derive(Debug)]
pub struct Flusher(Spool);

impl Flusher {
    pub(crate) fn new(spool: Spool) -> Self {
        Self(spool)
    }

    /// Runs until [`Spool::close`] was called and everything is durable.
    pub fn run(self) {
        let spool = self.0;
        let interval = Duration::from_millis(spool.0.settings.fsync_interval_ms);
        while spool.0.log.wait_for_work(Duration::from_millis(100)) {
            // Gather what comes meanwhile; the frontier does not move by itself, so this waits its full time.
            spool.0.log.wait_for_frontier(Position { segment: u64::MAX, offset: 0 }, interval);
            if let Err(error) = spool.flush() {
                tracing::error!(%error, "the spool cannot be made durable; nothing is shipped until it can");
                spool.0.log.wait_for_frontier(Position { segment: u64::MAX, offset: 0 }, interval * 10);
            }
            spool.retry_delayed();
        }
    }
}

/// The id of this host's boot.
///
/// # Errors
/// When the kernel does not tell.
fn boot_id() -> io::Result<Uuid> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    text.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("the boot id: {error}")))
}
