//! Takes a spool directory: checks it, finishes what the process before left open, and begins a new source.
//!
//! Everything is derived from the spool alone, so this may be killed at any step and run again, and gives the same bytes
//! on a cloned volume (but for the random id of the new source). Steps: read all segments; begin a new one; close each
//! open request under the old source; one frame that closes the old source in every partition and begins the new one;
//! fsync; replace the in-flight table. Until that frame is durable the old source is the current one.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex};

use ledger::ids::{RequestId, SourceId, SpoolId, TenantId};
use runtime::Clock;
use schemas::codec::decode;
use schemas::event::{EndReason, TokensCounted};
use schemas::mark::Mark;
use uuid::Uuid;

use super::close::{Closing, Finish, Settled, Usage, close, settle};
use super::cursor::{Cursor, Kept, keep_spare};
use super::disk::{Disk, HostDisk};
use super::draft::{AppendError, Draft, Numbering};
use super::frame::{Entry, Position, Record, Tally};
use super::log::{Begin, Log};
use super::scan::{OpenEntry, Scan, ScanError, scan};
use super::{Flusher, Inner, Spool, SpoolSettings, TOKENS, TopicSpec, boot_id, for_each_partition, mark};
use crate::inflight::{self, SlotImage, Table};
use crate::spend::{OwnSpend, Spent};

const LOCK: &str = "lock";

/// Why a spool could not be taken into use.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The settings make no sense.
    #[error("the settings of the spool cannot be used: {}", .0.join("; "))]
    Settings(Vec<String>),
    /// Somebody else has it.
    #[error("the spool {} is in use by another process: each gateway needs a directory of its own", .0.display())]
    InUse(PathBuf),
    /// The disk.
    #[error("the spool {} cannot be used: {error}", dir.display())]
    Disk {
        /// The directory.
        dir: PathBuf,
        /// What the file system said.
        error: io::Error,
    },
    /// What lies in it is damaged or foreign.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// Recovery could not be written.
    #[error("what the process before left open could not be finished: {0}")]
    Recovery(#[from] AppendError),
    /// A count in it cannot be read.
    #[error("a count in the spool at {place} cannot be read: {what}")]
    Count {
        /// Where.
        place: Position,
        /// Why.
        what: String,
    },
}

/// A request that the process before left open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostRequest {
    /// The request.
    pub request: RequestId,
    /// Whose.
    pub tenant: TenantId,
    /// What was billed for it.
    pub settled: Settled,
}

/// What the start found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// True for a directory that never held a spool. A kill may come before the id is registered, so whether it is has to
    /// be asked of `control` at every start.
    pub first_start: bool,
    /// The source of the process before.
    pub before: Option<SourceId>,
    /// What it left open, in the order of admission; now finished as `gateway_lost`.
    pub lost: Vec<LostRequest>,
    /// Bytes of a torn tail that were left behind.
    pub torn_bytes: u64,
}

/// A spool in use.
#[derive(Debug)]
pub struct Opened {
    /// The spool.
    pub spool: Spool,
    /// To be run on a thread of its own.
    pub flusher: Flusher,
    /// What was found.
    pub recovery: Recovery,
}

impl Spool {
    /// Takes the directory of `settings` into use, recovery included.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(settings: &SpoolSettings, topics: Vec<TopicSpec>, clock: Arc<dyn Clock>) -> Result<Opened, OpenError> {
        let wrong = settings.validate();
        if !wrong.is_empty() {
            return Err(OpenError::Settings(wrong));
        }
        let of = |error| OpenError::Disk { dir: settings.dir.clone(), error };
        let disk = HostDisk::open(&settings.dir).map_err(of)?;
        let path = settings.dir.join(LOCK);
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(of)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(settings.dir.clone())),
            Err(TryLockError::Error(error)) => return Err(of(error)),
        }
        let boot = boot_id().map_err(of)?;
        Self::open_on(Arc::new(disk), boot, settings, topics, clock, Some(lock))
    }

    /// The same on any disk, for tests and simulations: the caller sees to it that nobody else uses it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_on(
        disk: Arc<dyn Disk>,
        boot: Uuid,
        settings: &SpoolSettings,
        topics: Vec<TopicSpec>,
        clock: Arc<dyn Clock>,
        lock: Option<File>,
    ) -> Result<Opened, OpenError> {
        let of = |error| OpenError::Disk { dir: settings.dir.clone(), error };
        let kept = Kept::read(&*disk).map_err(of)?;
        let mut cursor = Cursor::read(&*disk).map_err(of)?;
        let mut spend = OwnSpend::default();
        kept.spend.iter().for_each(|kept| spend.kept(kept));
        let (found, pending) = read(&*disk, &topics, boot, &cursor, kept.through, &mut spend)?;
        remove_leftovers(&*disk).map_err(of)?;

        let first_start = found.spool.is_none();
        let old = found.numbering.source;
        let begin = Begin {
            spool: found.spool.unwrap_or_else(new_id),
            boot,
            topics,
            segment_bytes: settings.segment_bytes,
            numbering: found.numbering.clone(),
            segments: found.segments.clone(),
            pending,
            shipped: cursor.acked,
        };
        let log = Log::begin(Arc::clone(&disk), begin).map_err(of)?;
        let images = if old.is_nil() { Default::default() } else { inflight::read(&*disk, boot, old).map_err(of)? };
        let mut lost = Vec::new();
        let mut open: Vec<_> = found.open.into_iter().collect();
        open.sort_by_key(|(_, entry)| entry.order);
        if left_out!(EndsWhatWasOpen) {
            open.clear();
        }
        for (request, entry) in open {
            lost.push(finish_lost(&log, &mut spend, &entry, images.get(&request))?);
        }
        let source = start(&log, &clock, of)?;
        let table = Table::create(&*disk, boot, source, settings.slots).map_err(of)?;
        keep_spare(&*disk).map_err(of)?;

        cursor.acked = cursor.acked.max(Position { segment: log.lock().oldest(), offset: 0 });
        let recovered = lost.len();
        let recovery =
            Recovery { first_start, before: (!old.is_nil()).then_some(SourceId(old)), lost, torn_bytes: found.torn };
        let spool = Self(Arc::new(Inner {
            log,
            table: Arc::new(table),
            spend: Mutex::new(spend),
            settings: settings.clone(),
            source: SourceId(source),
            clock,
            cursor: Mutex::new(cursor),
            oldest_unshipped: AtomicI64::new(i64::MAX),
            disk_errors: AtomicU64::new(0),
            recovered,
            _lock: lock,
        }));
        Ok(Opened { flusher: Flusher::new(spool.clone()), spool, recovery })
    }
}

/// Reads all segments, what they spent, and how many of their records are not acknowledged.
fn read(
    disk: &dyn Disk,
    topics: &[TopicSpec],
    boot: Uuid,
    cursor: &Cursor,
    kept_through: u64,
    spend: &mut OwnSpend,
) -> Result<(Scan, u64), OpenError> {
    let (mut unreadable, mut pending) = (None, 0);
    let found = scan(disk, topics, boot, cursor.acked, &mut |place, record| {
        pending += u64::from(place >= cursor.acked);
        if record.topic != TOKENS || place.segment <= kept_through {
            return;
        }
        match spent_in(record) {
            Ok(None) => {}
            Ok(Some(spent)) => {
                spend.appended(&spent, place.segment);
                if place < cursor.acked {
                    let bound = cursor.offset(TOKENS, record.partition).unwrap_or(i64::MAX);
                    spend.acknowledged(record.source, record.partition, record.seq, bound);
                }
            }
            Err(what) => unreadable = Some(OpenError::Count { place, what }),
        }
    })?;
    let acked = cursor.acked;
    if found.segments.get(&acked.segment).is_some_and(|length| *length < acked.offset)
        || found.segments.last_key_value().is_some_and(|(last, _)| *last < acked.segment)
    {
        let what = "it is shorter than what was shipped from it".to_owned();
        return Err(ScanError::Damaged { segment: acked.segment, offset: acked.offset, what }.into());
    }
    // A segment goes only when a kept cursor says that it was shipped.
    let first = acked.segment.max(1);
    if found.segments.first_key_value().is_some_and(|(oldest, _)| *oldest > first) {
        return Err(ScanError::Missing(first).into());
    }
    unreadable.map_or(Ok((found, pending)), Err)
}

/// What a record of the tokens topic spent; none for a mark.
fn spent_in(record: &Record) -> Result<Option<Spent>, String> {
    let Some(value) = &record.value else { return Ok(None) };
    let event: TokensCounted = decode(value).map_err(|error| error.to_string())?;
    let counts = event.delta().map_err(|error| error.to_string())?;
    Ok(Some(Spent {
        counts,
        requests: u64::try_from(event.requests).unwrap_or(0),
        tenant: event.tenant_id,
        model: event.model,
        occurred_at: event.occurred_at,
        partition: record.partition,
        source: record.source,
        seq: record.seq,
    }))
}

/// A new spool's or source's id.
fn new_id() -> Uuid {
    #[cfg(any(test, feature = "simulation"))]
    if let Some(id) = crate::simulation::next_id() {
        return id;
    }
    Uuid::new_v4()
}

/// Files that a killed process was about to put into place.
fn remove_leftovers(disk: &dyn Disk) -> io::Result<()> {
    disk.list()?.iter().filter(|name| name.ends_with(".tmp")).try_for_each(|name| disk.remove(name))
}

/// Closes one open request under the old source, at the time of its last record or watermark.
fn finish_lost(
    log: &Log,
    own_spend: &mut OwnSpend,
    entry: &OpenEntry,
    image: Option<&SlotImage>,
) -> Result<LostRequest, OpenError> {
    let (progress_attempt, progress_replica, billed) = entry.progress.clone().unwrap_or_default();
    let (attempt, replica, tally, end) = match image {
        Some(image) => (image.attempt, image.replica.clone(), image.tally, image.end),
        None => (progress_attempt, progress_replica, billed, None),
    };
    let mut settled = settle(end.map_or(Usage::Running, |end| Usage::Final(end.counts)), tally, billed);
    settled.estimated |= end.is_some_and(|end| end.estimated);
    let closing = Closing {
        admission: Arc::clone(&entry.admission),
        attempt,
        attempts: if replica.is_empty() { 0 } else { attempt + 1 },
        replica,
        finish: Finish {
            end_reason: EndReason::GatewayLost,
            status: if settled.answered { 200 } else { 0 },
            error_code: None,
            usage: Usage::Running,
            dispatched_at: None,
            first_byte_at: None,
        },
        settled,
        billed: if left_out!(DeltaOfRecovery) { Tally::default() } else { Tally { input: 0, ..billed } },
        recovered: true,
    };
    let mut spent = None;
    let build = &mut |draft: &mut Draft<'_>| {
        spent = Some(close(draft, &closing)?);
        Ok(())
    };
    let (state, result) = log.append(log.lock(), i64::MIN, build);
    let Closing { admission, .. } = &closing;
    match result {
        Ok(_) => spent.iter().for_each(|spent| own_spend.appended(spent, state.active_segment())),
        Err(error) if error.is_passing() => return Err(error.into()),
        // It could never be written; a gateway that does not start because of it would lose more.
        Err(error) => {
            tracing::error!(request = %admission.request_id, tenant = %admission.tenant, %error, "the usage of a request is lost");
            let request = admission.request_id.0;
            let build = &mut |draft: &mut Draft<'_>| {
                draft.push(&Entry::Ended { request });
                Ok(())
            };
            log.append(state, i64::MIN, build).1?;
        }
    }
    Ok(LostRequest { request: admission.request_id, tenant: admission.tenant.clone(), settled })
}

/// Closes the old source everywhere and begins a new one, in one frame, durably; returns the new source.
fn start(log: &Log, clock: &Arc<dyn Clock>, of: impl Fn(io::Error) -> OpenError) -> Result<Uuid, OpenError> {
    let source = new_id();
    let mut time = 0;
    let before = log.lock().numbering.source;
    if left_out!(NewSource) && !before.is_nil() {
        log.flush_in_place().map_err(of)?;
        return Ok(before);
    }
    let build = &mut |draft: &mut Draft<'_>| {
        let old = draft.source();
        if !old.is_nil() && !left_out!(SourceClosed) {
            let (spool, old, next) = (SpoolId(log.spool()), SourceId(old), SourceId(source));
            for_each_partition(draft, |draft, topic, partition| {
                let seq = draft.seq(topic, partition);
                mark(draft, topic, partition, seq, &Mark::SourceClosed { spool, source: old, next, seq })
            })?;
        }
        time = draft.time();
        draft.push(&Entry::Started { source, before: Some(old).filter(|old| !old.is_nil()) });
        // The first watermark of the source: nothing that recovery ever finishes is earlier than its start.
        let seqs = draft.seqs().iter().map(|topic| vec![0; topic.len()]).collect();
        draft.push(&Entry::Watermark { source, time, seqs });
        Ok(())
    };
    let (state, result) = log.append(log.lock(), clock.now(), build);
    drop(state);
    result?;
    log.flush_in_place().map_err(of)?;
    let mut state = log.lock();
    let Numbering { source: old, seqs, .. } = state.numbering.clone();
    let seqs = seqs.into_iter().map(|topic| vec![0; topic.len()]).collect();
    let before = Some(old).filter(|old| !old.is_nil());
    state.numbering = Numbering { source, before, seqs, time, made: 0 };
    Ok(source)
}
