//! The one writer of a spool: appends frames, rolls segments, syncs in groups, and knows how far fsync has come.

mod segments;
mod state;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use uuid::Uuid;

use super::book::Book;
use super::disk::{Disk, DiskFile};
use super::draft::{AppendError, Draft, Drafted, Numbering};
use super::frame::Position;
use super::meters::Meters;
use super::segment::{Header, Previous, TopicSpec, name_of};
use segments::{make_durable, place, seqs_before};
use state::Active;
pub(crate) use state::State;

/// After a disk refused a write, this long nothing is tried, microseconds.
const RETRY_AFTER: u64 = 100_000;

pub(crate) type Guard<'a> = MutexGuard<'a, State>;

/// The writer. All of its methods may be called from any thread.
#[derive(Debug)]
pub(crate) struct Log {
    disk: Arc<dyn Disk>,
    spool: Uuid,
    boot: Uuid,
    topics: Vec<TopicSpec>,
    segment_bytes: u64,
    state: Mutex<State>,
    /// Something to sync, a sync ended, or the spool closed.
    changed: Condvar,
    frontier: watch::Sender<Position>,
    /// Records that are not acknowledged.
    pending: AtomicU64,
    pub(super) meters: OnceLock<Meters>,
}

/// What a new [`Log`] goes on from.
#[derive(Debug)]
pub(crate) struct Begin {
    pub spool: Uuid,
    pub boot: Uuid,
    pub topics: Vec<TopicSpec>,
    pub segment_bytes: u64,
    pub numbering: Numbering,
    /// Valid lengths of the segments that are there.
    pub segments: BTreeMap<u64, u64>,
    /// Records in them that are not acknowledged.
    pub pending: u64,
    /// What lies before it was shipped, so it was durable once.
    pub shipped: Position,
}

impl Log {
    /// Opens a new segment after those that are there, which are made durable first.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn begin(disk: Arc<dyn Disk>, begin: Begin) -> io::Result<Self> {
        let Begin { spool, boot, topics, segment_bytes, numbering, segments, pending, shipped } = begin;
        let last = segments.last_key_value().map(|(number, length)| (*number, *length));
        if let Some((number, length)) = last {
            make_durable(&*disk, number, shipped, length)?;
        }
        let number = last.map_or(1, |(number, _)| number + 1);
        let previous = last.map(|(segment, length)| Previous { segment, length });
        let header = Header::new(spool, boot, &numbering, &topics, previous);
        let bytes = header.frame();
        let file = place(&*disk, number, &bytes)?;
        let frontier = Position { segment: number, offset: bytes.len() as u64 };
        let state = State {
            numbering,
            book: Book::default(),
            closed: false,
            active: Active { number, file, len: bytes.len() as u64, broken: false, suspect: false },
            unsynced: Vec::new(),
            scratch: Vec::new(),
            frontier,
            syncing: false,
            sealed: segments,
            failed_at: None,
        };
        Ok(Self {
            disk,
            spool,
            boot,
            topics,
            segment_bytes,
            state: Mutex::new(state),
            changed: Condvar::new(),
            frontier: watch::Sender::new(frontier),
            pending: AtomicU64::new(pending),
            meters: OnceLock::new(),
        })
    }

    /// The lock. Nobody leaves the state half changed, so a panic elsewhere does not spoil it.
    pub(crate) fn lock(&self) -> Guard<'_> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&'a self, guard: Guard<'a>) -> Guard<'a> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    pub(crate) fn topics(&self) -> &[TopicSpec] {
        &self.topics
    }

    pub(crate) fn spool(&self) -> Uuid {
        self.spool
    }

    /// Tells who waits for the frontier.
    pub(crate) fn watch(&self) -> watch::Receiver<Position> {
        self.frontier.subscribe()
    }

    /// Appends the frame that `build` makes (it may be called again after a failed write) and returns its end. What the
    /// caller does with the guard afterwards happens together with the append.
    pub(crate) fn append<'a>(
        &'a self,
        mut state: Guard<'a>,
        now: i64,
        build: &mut dyn FnMut(&mut Draft<'_>) -> Result<(), AppendError>,
    ) -> (Guard<'a>, Result<Position, AppendError>) {
        if state.active.broken && state.failed_at.is_some_and(|at| now.abs_diff(at) < RETRY_AFTER) {
            return (state, Err(AppendError::Disk(io::ErrorKind::StorageFull.into())));
        }
        let mut tries = 0;
        loop {
            // The flusher rolls at the limit, so that a request seldom has to wait for it.
            if state.active.broken || state.active.len >= self.segment_bytes + self.segment_bytes / 4 {
                if state.syncing {
                    state = self.wait(state);
                    continue;
                }
                if let Err(error) = self.roll(&mut state) {
                    state.failed_at = Some(now);
                    return (state, Err(AppendError::Disk(error)));
                }
                continue;
            }
            let buffer = std::mem::take(&mut state.scratch);
            let mut draft = Draft::new(&state.numbering, &self.topics, now, buffer);
            if let Err(error) = build(&mut draft) {
                return (state, Err(error));
            }
            let Drafted { bytes, time, taken, made } = draft.done();
            let result = self.write(&mut state, &bytes);
            state.scratch = bytes;
            match result {
                Ok(end) => {
                    for &(topic, partition) in &taken {
                        state.numbering.seqs[topic as usize][partition as usize] += 1;
                    }
                    (state.numbering.time, state.numbering.made, state.failed_at) = (time, made, None);
                    self.pending.fetch_add(taken.len() as u64, Ordering::Relaxed);
                    if let Some(meters) = self.meters.get() {
                        taken.iter().for_each(|&(topic, _)| meters.record(topic));
                    }
                    return (state, Ok(end));
                }
                Err(error) => {
                    if left_out!(NumberWithFrame) {
                        taken.iter().for_each(|&(topic, partition)| {
                            state.numbering.seqs[topic as usize][partition as usize] += 1;
                        });
                    }
                    self.failed("write");
                    tracing::warn!(segment = state.active.number, %error, "a write to the spool failed; going on in a new segment");
                    state.active.broken = true;
                    tries += 1;
                    if tries == 2 {
                        state.failed_at = Some(now);
                        return (state, Err(AppendError::Disk(error)));
                    }
                }
            }
        }
    }

    /// One write(2) of a whole frame. A short one is a failure: what it left is beyond the valid length.
    fn write(&self, state: &mut State, frame: &[u8]) -> io::Result<Position> {
        let active = &mut state.active;
        loop {
            match active.file.write_at(frame, active.len) {
                Ok(n) if n == frame.len() => break,
                Ok(n) => {
                    let said = format!("only {n} of {} bytes were written", frame.len());
                    return Err(io::Error::new(io::ErrorKind::StorageFull, said));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        active.len += frame.len() as u64;
        // Whoever syncs needs to be woken by the first frame only.
        if state.unsynced.is_empty() {
            self.changed.notify_all();
        }
        state.unsynced.extend_from_slice(frame);
        Ok(state.head())
    }

    fn failed(&self, kind: &str) {
        if let Some(meters) = self.meters.get() {
            meters.error(kind);
        }
    }

    fn sync(&self, file: &dyn DiskFile) -> io::Result<()> {
        let begun = Instant::now();
        let result = file.sync();
        match (&result, self.meters.get()) {
            (Ok(()), Some(meters)) => meters.synced(begun.elapsed()),
            (Err(_), Some(meters)) => meters.error("fsync"),
            (_, None) => {}
        }
        result
    }

    /// Goes on in a new segment. What fsync has not covered is made durable in the old one, or written again in the new
    /// one, which appears whole or not at all. On an error nothing has changed but that the old segment takes no more.
    fn roll(&self, state: &mut State) -> io::Result<()> {
        state.active.broken = true;
        if !state.active.suspect && !state.unsynced.is_empty() {
            match self.sync(&*state.active.file) {
                Ok(()) => {
                    state.unsynced.clear();
                    state.frontier = state.head();
                    self.publish(state);
                }
                Err(error) => {
                    tracing::error!(segment = state.active.number, %error, "a sync of the spool failed; writing again what it should have covered");
                    state.active.suspect = true;
                }
            }
        }
        let old = state.active.number;
        let previous = Previous { segment: old, length: state.frontier.offset };
        let mut numbering = state.numbering.clone();
        numbering.seqs = seqs_before(&state.unsynced, numbering.source, numbering.seqs);
        let mut bytes = Header::new(self.spool, self.boot, &numbering, &self.topics, Some(previous)).frame();
        bytes.extend_from_slice(&state.unsynced);
        let file = place(&*self.disk, old + 1, &bytes)?;
        state.sealed.insert(old, state.frontier.offset);
        state.active = Active { number: old + 1, file, len: bytes.len() as u64, broken: false, suspect: false };
        state.unsynced.clear();
        state.frontier = state.head();
        self.publish(state);
        Ok(())
    }

    fn publish(&self, state: &State) {
        self.frontier.send_replace(state.frontier);
        self.changed.notify_all();
    }

    /// Makes durable what is written and moves the frontier. After a failed sync everything since the last good one is
    /// written again, in a new segment.
    ///
    /// # Errors
    /// When the disk refuses that too: the frontier stays, and nothing is appended until a later call succeeds.
    pub(crate) fn flush(&self) -> io::Result<Position> {
        self.sync_written(true)
    }

    /// The same, without a new segment unless the disk forces one: for the frame that ends a numbering.
    pub(crate) fn flush_in_place(&self) -> io::Result<Position> {
        self.sync_written(false)
    }

    fn sync_written(&self, may_roll: bool) -> io::Result<Position> {
        let mut state = self.lock();
        while state.syncing {
            state = self.wait(state);
        }
        if state.unsynced.is_empty() {
            return Ok(state.frontier);
        }
        if state.active.suspect {
            self.roll(&mut state)?;
            return Ok(state.frontier);
        }
        let (file, end, covered) = (Arc::clone(&state.active.file), state.head(), state.unsynced.len());
        state.syncing = true;
        drop(state);
        let result = self.sync(&*file);
        let mut state = self.lock();
        state.syncing = false;
        match result {
            Ok(()) => {
                state.unsynced.drain(..covered);
                state.frontier = end;
                self.publish(&state);
                if state.active.len < self.segment_bytes || !may_roll {
                    return Ok(state.frontier);
                }
            }
            Err(error) if left_out!(WriteAgain) => return Err(error),
            Err(error) => {
                tracing::error!(segment = state.active.number, %error, "a sync of the spool failed; writing again what it should have covered");
                state.active.suspect = true;
            }
        }
        let rolled = self.roll(&mut state);
        self.changed.notify_all();
        rolled.map(|()| state.frontier)
    }

    /// Waits until there is something to sync (true), or the spool is closed and all is synced (false).
    pub(crate) fn wait_for_work(&self, limit: Duration) -> bool {
        let mut state = self.lock();
        loop {
            if !state.unsynced.is_empty() || state.book.has_delayed() {
                return true;
            }
            if state.closed {
                return false;
            }
            let (again, _) = self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner);
            state = again;
        }
    }

    /// Waits for the frontier to pass `beyond`, at most so long.
    pub(crate) fn wait_for_frontier(&self, beyond: Position, limit: Duration) {
        let state = self.lock();
        if state.frontier <= beyond {
            let waiting = |state: &mut State| state.frontier <= beyond;
            drop(self.changed.wait_timeout_while(state, limit, waiting));
        }
    }

    /// Records that are not acknowledged.
    pub(crate) fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// So many of them are now.
    pub(crate) fn acknowledged(&self, records: u64) {
        self.pending.fetch_sub(records.min(self.pending()), Ordering::Relaxed);
    }

    /// Wakes whoever waits.
    pub(crate) fn wake(&self) {
        self.changed.notify_all();
    }

    /// How far a segment may be read, and whether another follows; none if it is not there.
    pub(crate) fn readable(&self, segment: u64) -> Option<(u64, bool)> {
        let state = self.lock();
        match state.sealed.get(&segment) {
            Some(length) => Some((*length, true)),
            None if left_out!(Frontier) => (segment == state.active.number).then_some((state.active.len, false)),
            None => (segment == state.active.number).then_some((state.frontier.offset, false)),
        }
    }

    /// The oldest segment, if it lies before `acked` and nothing in it is still open.
    pub(crate) fn removable(&self, acked: Position) -> Option<u64> {
        let mut state = self.lock();
        let frontier = state.frontier;
        state.book.unpin(frontier);
        let number = *state.sealed.keys().next()?;
        (number < acked.segment && !state.book.is_pinned(number)).then_some(number)
    }

    /// Removes a segment that [`Log::removable`] named.
    ///
    /// # Errors
    /// What the disk says; the segment then counts as still there.
    pub(crate) fn remove(&self, number: u64) -> io::Result<()> {
        match self.disk.remove(&name_of(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.lock().sealed.remove(&number);
        Ok(())
    }
}
