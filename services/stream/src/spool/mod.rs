//! The durable local log of a gateway: what was handed to clients is in it before they have it, and leaves it for Kafka.
//!
//! [`Spool::open`] takes the directory, finishes what the process before left open, and begins a new source.
//! [`Spool::admit`] → [`OpenRequest::received`] for each frame of an answer → [`OpenRequest::finish`] is the life of a
//! request. [`Flusher`] syncs in groups; [`crate::ship::Shipper`] sends what is synced.

mod book;
mod close;
pub mod cursor;
pub mod disk;
mod draft;
pub mod frame;
mod log;
mod meters;
mod open;
mod reader;
mod request;
mod scan;
pub mod segment;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ledger::ids::{ModelId, SourceId, SpoolId, TenantId};
use ledger::time::{Micros, Slot};
use runtime::Clock;
use runtime::metrics::{self, Metrics};
use schemas::mark::Mark;
use uuid::Uuid;

use crate::inflight::Table;
use crate::spend::{Amount, OwnSpend, Spent};
use cursor::Cursor;
use draft::Draft;
use frame::{Entry, Position};
use log::{Log, State};
use meters::Meters;

pub use book::CLOSING_ROOM;
pub use close::{Admission, Finish, Settled, Usage, settle};
pub use draft::AppendError;
pub use open::{LostRequest, OpenError, Opened, Recovery};
pub use request::{AdmitError, Checkpoint, Finished, OpenRequest};
pub use scan::ScanError;
pub use segment::TopicSpec;
pub use settings::{Durability, SpoolSettings};

pub(crate) use reader::{ReadFrame, Reader};

/// Index of the tokens topic among the topics of a gateway's spool.
pub const TOKENS: u8 = 0;
/// Index of the requests topic among the topics of a gateway's spool.
pub const REQUESTS: u8 = 1;

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
    /// Records written and not yet acknowledged by Kafka.
    pub unshipped_records: u64,
    /// Bytes of all segments.
    pub bytes: u64,
    /// The limit.
    pub max_bytes: u64,
    /// Room kept for the ends of open requests.
    pub reserved_bytes: u64,
    /// True if no request would be admitted now.
    pub full: bool,
    /// Segments.
    pub segments: u64,
    /// Open requests.
    pub open_requests: u64,
    /// Ends that wait for the disk to take them.
    pub delayed_ends: u64,
    /// When the oldest record that is not acknowledged occurred.
    pub oldest_unshipped: Option<Micros>,
    /// Writes and syncs that failed.
    pub disk_errors: u64,
}

/// Beyond everything.
pub(crate) const END: Position = Position { segment: u64::MAX, offset: 0 };

/// What a watermark promised when it was appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Watermark {
    /// The source.
    pub source: Uuid,
    /// Nothing of it will be earlier, microseconds since the Unix epoch.
    pub time: i64,
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
    cursor: Mutex<Cursor>,
    oldest_unshipped: AtomicI64,
    disk_errors: AtomicU64,
    /// Requests of the process before that were finished at the start.
    recovered: usize,
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
        if self.0.settings.durability == Durability::Process || finished.lost {
            return;
        }
        let mut frontier = self.0.log.watch();
        // The frontier moves after every end that was written late; the sender lives as long as `self`.
        while finished.delayed && self.0.log.lock().book.late_ends() <= finished.ticket {
            if frontier.changed().await.is_err() {
                return;
            }
        }
        let written = if finished.delayed { self.0.log.lock().head() } else { finished.position };
        self.durable(written).await;
    }

    /// Figures for metrics.
    pub fn stats(&self) -> SpoolStats {
        let acked = self.cursor().acked;
        let state = self.0.log.lock();
        let oldest = self.0.oldest_unshipped.load(Ordering::Relaxed);
        SpoolStats {
            unshipped_bytes: state.bytes_since(acked.max(Position { segment: state.oldest(), offset: 0 })),
            unshipped_records: self.0.log.pending(),
            bytes: state.bytes(),
            max_bytes: self.0.settings.max_bytes,
            reserved_bytes: state.book.reserved(),
            full: !self.has_room(&state, CLOSING_ROOM),
            segments: state.segments(),
            open_requests: state.book.open(),
            delayed_ends: state.book.delayed.len() as u64,
            oldest_unshipped: (oldest != i64::MAX).then_some(Micros(oldest)),
            disk_errors: self.0.disk_errors.load(Ordering::Relaxed),
        }
    }

    /// Counts from now on in `metrics`, what the start recovered included. Once per registry.
    ///
    /// # Errors
    /// When the names are taken in this registry.
    pub fn meter(&self, metrics: &Metrics) -> Result<(), metrics::Error> {
        let made = Meters::new(metrics, self.topics(), self.0.settings.max_bytes, self.0.recovered)?;
        // A spool that is metered already stays with its first registry.
        let _ = self.0.log.meters.set(made);
        self.observe();
        Ok(())
    }

    /// Brings the gauges up to date.
    pub(crate) fn observe(&self) {
        if let Some(meters) = self.0.log.meters.get() {
            let stats = self.stats();
            meters.stand(stats.bytes, stats.segments, stats.full);
        }
    }

    /// Room that is always left for the marks of a stop and of the start after it, in bytes.
    fn stop_room(&self) -> u64 {
        let partitions: u64 = self.topics().iter().map(|topic| topic.partitions.max(0) as u64).sum();
        (partitions * 512 + 4096) * 2
    }

    /// Bytes that are used or spoken for.
    fn taken(&self, state: &State) -> u64 {
        state.bytes() + state.book.reserved() + self.stop_room()
    }

    fn has_room(&self, state: &State, bytes: u64) -> bool {
        self.taken(state) + bytes <= self.0.settings.max_bytes
    }

    /// Appends a watermark: from now on nothing is earlier. It may be told to anybody once it is durable. None if there
    /// is no room to spare.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub fn watermark(&self) -> Result<Option<Position>, AppendError> {
        let now = self.0.clock.now();
        let state = self.0.log.lock();
        if state.closed {
            return Err(AppendError::Closed);
        }
        let numbers: usize = state.numbering.seqs.iter().map(Vec::len).sum();
        if !self.has_room(&state, 64 + 8 * numbers as u64) {
            return Ok(None);
        }
        let build = &mut |draft: &mut Draft<'_>| {
            let entry = Entry::Watermark { source: draft.source(), time: draft.time(), seqs: draft.seqs().to_vec() };
            draft.push(&entry);
            Ok(())
        };
        self.0.log.append(state, now, build).1.map(Some)
    }

    /// Ends a clean stop: nothing is admitted any more, and every partition gets the mark `SpoolDrained`. Returns how many
    /// requests are still open; the next start finishes them as `gateway_lost`. Harmless to repeat.
    ///
    /// # Errors
    /// See [`AppendError`]; the next start then finds the source as after a crash, which is just as good.
    pub fn close(&self) -> Result<u64, AppendError> {
        self.retry_delayed();
        let now = self.0.clock.now();
        let mut state = self.0.log.lock();
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
        // Nobody is let in while the frame waits for the disk.
        state.closed = true;
        let (state, result) =
            if open == 0 { self.0.log.append(state, now, build) } else { (state, Ok(Position::default())) };
        drop(state);
        self.0.log.wake();
        result.map(|_| open)
    }

    /// Tries again to write ends that the disk refused.
    pub fn retry_delayed(&self) {
        let mut state = self.0.log.lock();
        while let Some(delayed) = state.book.delayed.pop_front() {
            let (again, result) = self.append_closing(state, &delayed.closing);
            state = again;
            let position = match result {
                Ok(position) => position,
                Err(error) if error.is_passing() => {
                    state.book.delayed.push_front(delayed);
                    return;
                }
                Err(error) => {
                    let (again, position) = self.write_off(state, &delayed.closing, &error);
                    state = again;
                    position
                }
            };
            state.book.ended(position, delayed.pin);
            state.book.late_end();
            let a = &delayed.closing.admission;
            let (at, amount) = delayed.promised;
            self.own_spend().withdrawn(&a.tenant, &a.model, at, amount);
        }
    }

    /// A cursor's copy.
    pub fn cursor(&self) -> Cursor {
        self.0.cursor.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps a new cursor.
    ///
    /// # Errors
    /// What the disk says; the old cursor then stands, and some records would be sent again.
    pub(crate) fn advance(&self, cursor: &Cursor) -> io::Result<()> {
        let disk = self.0.log.disk();
        if let Err(error) = cursor.write(disk) {
            // Only a kept cursor lets segments go, and only that makes room on a full disk: the room kept for this is
            // used, and nobody else may take it meanwhile.
            let state = self.0.log.lock();
            tracing::warn!(%error, "the spool's cursor could not be kept; trying with the room kept for it");
            cursor::drop_spare(disk)?;
            cursor.write(disk)?;
            drop(state);
        }
        *self.0.cursor.lock().unwrap_or_else(PoisonError::into_inner) = cursor.clone();
        Ok(())
    }

    /// Lets segments go that nobody needs any more: shipped as a whole, and nothing admitted in them is open.
    ///
    /// # Errors
    /// What the disk says; some of them are then still there.
    pub(crate) fn reclaim(&self) -> io::Result<()> {
        let (disk, cursor) = (self.0.log.disk(), self.cursor());
        let mut removed = false;
        while let Some(number) = self.0.log.removable(cursor.acked) {
            let offset_of = |partition| cursor.offset(TOKENS, partition).unwrap_or(-1);
            let spend = self.own_spend().keep(number, offset_of);
            let kept = cursor::Kept { through: number, spend };
            if kept.write(disk).is_err() {
                cursor::drop_spare(disk)?;
                kept.write(disk)?;
            }
            self.0.log.remove(number)?;
            removed = true;
        }
        if removed { cursor::keep_spare(disk) } else { Ok(()) }
    }

    /// The next durable frame of a reader.
    ///
    /// # Errors
    /// What the disk says; `InvalidData` if what was durable is not there any more.
    pub(crate) fn read(&self, reader: &mut Reader) -> io::Result<Option<ReadFrame>> {
        reader.next(&self.0.log)
    }

    /// True if something durable lies beyond `position`.
    pub(crate) fn is_beyond(&self, position: Position) -> bool {
        self.frontier() > position
    }

    /// Waits until something durable lies beyond `position`, at most so long.
    pub(crate) fn wait_beyond(&self, position: Position, limit: Duration) {
        self.0.log.wait_for_frontier(position, limit);
    }

    /// Records that are not acknowledged.
    pub(crate) fn pending(&self) -> u64 {
        self.0.log.pending()
    }

    pub(crate) fn acknowledged(&self, records: u64) {
        self.0.log.acknowledged(records);
    }

    /// True once [`Spool::close`] was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.log.lock().closed
    }

    /// True if everything that was written is durable.
    pub(crate) fn is_flushed(&self) -> bool {
        let state = self.0.log.lock();
        state.frontier() == state.head() && !state.book.has_delayed()
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
            spool.0.log.wait_for_frontier(END, interval);
            if let Err(error) = spool.flush() {
                tracing::error!(%error, "the spool cannot be made durable; nothing is shipped until it can");
                spool.0.log.wait_for_frontier(END, interval * 10);
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
