//! The chunk that is being filled: what each record of it writes, and how it closes.

use std::collections::{BTreeMap, HashMap};

use ledger::ids::{EventId, SourceId};
use schemas::codec;
use schemas::mark::Mark;
use sql::{ChunkRows, DeadRow, EventAt, Folded, OutcomeCounts};
use stream::cut::{CutPolicy, Pending};
use stream::line::{LineState, LogRecord, Outcome, SourceEnd, SourceState};

use crate::event::FoldEvent;

/// The stable code of an event whose number another one has.
pub(crate) const SEQ_CONFLICT: &str = "seq_conflict";

/// A resend. Whether it is the event that it repeats is asked when the chunk closes.
#[derive(Debug, Clone)]
pub(crate) struct Resend {
    offset: i64,
    log_time_ms: i64,
    source: SourceId,
    seq: u64,
    event_id: EventId,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
}

/// Records that wait to become a chunk.
#[derive(Debug)]
pub(crate) struct OpenChunk<E: FoldEvent> {
    pending: Pending,
    /// Whether nothing joins any more.
    ends: bool,
    first: i64,
    end: i64,
    first_log_time_ms: Option<i64>,
    counts: OutcomeCounts,
    data: Vec<Folded<E::Row>>,
    dead: Vec<DeadRow>,
    resends: Vec<Resend>,
    /// Every number that was taken here, with the event that took it.
    taken: Vec<(SourceId, u64, EventId)>,
    sources: BTreeMap<SourceId, sql::SourceState>,
}

/// A chunk that takes nothing more.
#[derive(Debug)]
pub(crate) struct ClosedChunk<D> {
    /// What is written, once the resends are settled.
    pub(crate) rows: ChunkRows<D>,
    resends: Vec<Resend>,
}

impl<E: FoldEvent> OpenChunk<E> {
    /// One that begins at this offset.
    pub(crate) fn at(first: i64) -> Self {
        Self {
            pending: Pending::default(),
            ends: false,
            first,
            end: first,
            first_log_time_ms: None,
            counts: OutcomeCounts::default(),
            data: Vec::new(),
            dead: Vec::new(),
            resends: Vec::new(),
            taken: Vec::new(),
            sources: BTreeMap::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first_log_time_ms.is_none()
    }

    /// Whether a record at this offset has to wait for the next chunk.
    pub(crate) fn is_full_for(&self, record: &LogRecord<'_>, policy: &CutPolicy) -> bool {
        self.pending.is_full_for(self.offsets(record), size(record), policy)
    }

    /// Whether a record lies in another month of the log than the first. No chunk is of two months, so that a month's rows, and what
    /// sealing makes of them, are the same however the log was cut. `line` is the state before it.
    pub(crate) fn is_of_another_month(&self, record: &LogRecord<'_>, line: &LineState) -> bool {
        let at = line.log_time_ms.max(record.log_time_ms);
        self.first_log_time_ms.is_some_and(|first| sql::log_month(first) != sql::log_month(at))
    }

    /// Ends it before its time.
    pub(crate) fn end_here(&mut self) {
        self.ends = !self.is_empty();
    }

    /// Milliseconds until it is to be closed; none while it is empty.
    pub(crate) fn due_in_ms(&self, now_ms: u64, policy: &CutPolicy) -> Option<u64> {
        if self.ends { Some(0) } else { self.pending.due_in_ms(now_ms, policy) }
    }

    /// Takes a record that the line has stepped over, with the holes before it. `line` is the state after it.
    pub(crate) fn put(&mut self, record: &LogRecord<'_>, outcome: Outcome<E>, line: &LineState, now_ms: u64) {
        let is_news = !matches!(outcome, Outcome::Mark(Mark::Heartbeat { .. }));
        self.pending.add(self.offsets(record), size(record), now_ms, is_news);
        if !left_out!(HolesAreMarks) {
            self.counts.marks += record.offset - self.end;
        }
        self.end = record.offset + 1;
        self.first_log_time_ms.get_or_insert(line.log_time_ms);
        match outcome {
            Outcome::Folded(event) => self.fold(record, event, line),
            Outcome::Duplicate { source, seq, event_id } => self.resent(record, source, seq, event_id, line),
            Outcome::Dead(reason) => self.bury(record, reason.code(), reason.to_string(), line),
            Outcome::Mark(mark) => {
                self.counts.marks += 1;
                self.touch(source_of(&mark), line);
            }
        }
    }

    fn fold(&mut self, record: &LogRecord<'_>, event: E, line: &LineState) {
        let envelope = event.envelope();
        let (source, seq, event_id) = (envelope.source, envelope.seq.unsigned_abs(), envelope.event_id);
        let row = match event.row() {
            Ok(row) => row,
            // The line's step has checked the same figures.
            Err(error) => return self.bury(record, "out_of_bounds", error.to_string(), line),
        };
        self.counts.folded += 1;
        self.taken.push((source, seq, event_id));
        self.touch(source, line);
        self.data.push(Folded { offset: record.offset, log_time_ms: line.log_time_ms, event: row });
    }

    fn resent(
        &mut self,
        record: &LogRecord<'_>,
        source: SourceId,
        seq: u64,
        event_id: Option<EventId>,
        line: &LineState,
    ) {
        self.counts.duplicates += 1;
        // A mark has no id: its number is all there is to compare.
        let Some(event_id) = event_id else { return };
        self.resends.push(Resend {
            offset: record.offset,
            log_time_ms: line.log_time_ms,
            source,
            seq,
            event_id,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
        });
    }

    fn bury(&mut self, record: &LogRecord<'_>, reason: &str, detail: String, line: &LineState) {
        self.counts.dead += 1;
        let event = record.value.and_then(|value| codec::decode::<E>(value).ok());
        // Of what can be read, the step has taken the number, or there is none above 0.
        let took = event.and_then(|event| {
            let envelope = event.envelope();
            let seq = u64::try_from(envelope.seq).ok().filter(|&seq| seq > 0)?;
            Some((envelope.source, seq, envelope.event_id))
        });
        if let Some((source, seq, event_id)) = took {
            self.taken.push((source, seq, event_id));
            self.touch(source, line);
        }
        self.dead.push(DeadRow {
            offset: record.offset,
            log_time_ms: line.log_time_ms,
            reason: reason.to_owned(),
            detail,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            took,
        });
    }

    fn touch(&mut self, source: SourceId, line: &LineState) {
        if let Some(state) = line.sources.get(&source).filter(|_| !left_out!(SourceRows)) {
            self.sources.insert(source, written(state));
        }
    }

    /// Takes nothing more. `line` is the state after its last record.
    pub(crate) fn close(self, partition: i32, line: &LineState) -> (ClosedChunk<E::Row>, Vec<(SourceId, u64)>) {
        let rows = ChunkRows {
            partition,
            first: self.first,
            end: self.end,
            first_log_time_ms: self.first_log_time_ms.unwrap_or(line.log_time_ms),
            log_time_ms: line.log_time_ms,
            counts: self.counts,
            chain: line.chain.0,
            data: self.data,
            dead: self.dead,
            sources: self.sources,
        };
        let mut closed = ClosedChunk { rows, resends: self.resends };
        if closed.resends.is_empty() {
            return (closed, Vec::new());
        }
        let here: HashMap<_, _> = self.taken.into_iter().map(|(source, seq, id)| ((source, seq), id)).collect();
        let elsewhere = closed.compare(&here);
        (closed, elsewhere)
    }

    /// Offsets that a record adds: itself and the holes before it.
    fn offsets(&self, record: &LogRecord<'_>) -> u64 {
        u64::try_from(record.offset.saturating_sub(self.end)).unwrap_or(0).saturating_add(1)
    }
}

impl<D> ClosedChunk<D> {
    /// Compares the resends with the rows that ClickHouse has for their numbers. A number without a row was a mark's.
    pub(crate) fn settle(&mut self, found: &[EventAt]) {
        let found: HashMap<_, _> = found.iter().map(|event| ((event.source, event.seq), event.event_id)).collect();
        self.compare(&found);
        self.resends.clear();
    }

    /// Buries the resends whose number another event has, drops those that repeat the same one, and gives the numbers of
    /// the others.
    fn compare(&mut self, known: &HashMap<(SourceId, u64), EventId>) -> Vec<(SourceId, u64)> {
        let mut unknown = Vec::new();
        let mut numbers = Vec::new();
        for resend in std::mem::take(&mut self.resends) {
            match known.get(&(resend.source, resend.seq)) {
                None => {
                    numbers.push((resend.source, resend.seq));
                    unknown.push(resend);
                }
                Some(id) if *id == resend.event_id || left_out!(SeqConflict) => {}
                Some(id) => self.conflict(resend, *id),
            }
        }
        self.resends = unknown;
        numbers
    }

    fn conflict(&mut self, resend: Resend, id: EventId) {
        self.rows.counts.duplicates -= 1;
        self.rows.counts.dead += 1;
        let Resend { offset, log_time_ms, source, seq, event_id, key, value } = resend;
        let detail = format!("event {event_id} has number {seq} of source {source}, which event {id} has");
        // Its number is the other event's, so it took none.
        let row = DeadRow { offset, log_time_ms, reason: SEQ_CONFLICT.to_owned(), detail, key, value, took: None };
        let at = self.rows.dead.partition_point(|dead| dead.offset < offset);
        self.rows.dead.insert(at, row);
    }
}

const fn source_of(mark: &Mark) -> SourceId {
    match mark {
        Mark::Heartbeat { source, .. } | Mark::SourceClosed { source, .. } | Mark::SpoolDrained { source, .. } => {
            *source
        }
    }
}

fn size(record: &LogRecord<'_>) -> u64 {
    let of = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len) as u64;
    of(record.key) + of(record.value)
}

/// A source's state as it is written.
fn written(state: &SourceState) -> sql::SourceState {
    let end = state.end.map(|end| match end {
        SourceEnd::Closed { next } => sql::SourceEnd::Closed { next },
        SourceEnd::Drained => sql::SourceEnd::Drained,
    });
    sql::SourceState { last_seq: state.last_seq, watermark: state.watermark, end }
}

/// A line's state as it was proven.
pub(crate) fn proven(proof: &sql::Proof) -> LineState {
    let read = |state: &sql::SourceState| SourceState {
        last_seq: state.last_seq,
        watermark: state.watermark,
        end: state.end.map(|end| match end {
            sql::SourceEnd::Closed { next } => SourceEnd::Closed { next },
            sql::SourceEnd::Drained => SourceEnd::Drained,
        }),
    };
    LineState {
        position: proof.position,
        log_time_ms: proof.log_time_ms,
        chain: stream::chain::Chain(proof.chain),
        sources: match left_out!(ProofOfSources) {
            true => BTreeMap::new(),
            false => proof.sources.iter().map(|(source, state)| (*source, read(state))).collect(),
        },
    }
}
