//! A line: what becomes of each record of one topic and partition, decided by its bytes, its log time and what came before.

use std::collections::BTreeMap;

use ledger::ids::{EventId, SourceId};
use ledger::time::Micros;
use schemas::codec::{self, CodecError};
use schemas::event::Event;
use schemas::mark::{Mark, MarkError};
use thiserror::Error;

use crate::chain::Chain;

/// A record as Kafka hands it over.
#[derive(Debug, Clone, Copy)]
pub struct LogRecord<'a> {
    /// Its offset.
    pub offset: i64,
    /// Kafka's LogAppendTime, milliseconds since 1970.
    pub log_time_ms: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; absent for a mark.
    pub value: Option<&'a [u8]>,
    /// Its headers.
    pub headers: &'a [(&'a str, &'a [u8])],
}

/// How far one source is in this line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceState {
    /// The last number that was read; the next must be one more.
    pub last_seq: u64,
    /// Nothing that occurred before it will come from this source.
    pub watermark: Micros,
    /// How it ended, if it did.
    pub end: Option<SourceEnd>,
}

/// How a source ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceEnd {
    /// Another one of the same spool follows.
    Closed {
        /// The one that follows.
        next: SourceId,
    },
    /// All was shipped and the process stopped.
    Drained,
}

/// Where a line stands: all that its next step depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineState {
    /// The next offset.
    pub position: i64,
    /// The running maximum of the log time, milliseconds.
    pub log_time_ms: i64,
    /// Over everything that was read.
    pub chain: Chain,
    /// Every source that was seen.
    pub sources: BTreeMap<SourceId, SourceState>,
}

impl Default for LineState {
    /// Before the first record.
    fn default() -> Self {
        Self { position: 0, log_time_ms: i64::MIN, chain: Chain::default(), sources: BTreeMap::new() }
    }
}

/// What became of a record. Each offset has exactly one of these.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<E> {
    /// It counts.
    Folded(E),
    /// A resend: its number was read before. That the event is the same one is asked of the rows.
    Duplicate {
        /// Whose.
        source: SourceId,
        /// Its number.
        seq: u64,
        /// Its id; absent for a mark.
        event_id: Option<EventId>,
    },
    /// It cannot count, and why.
    Dead(DeadReason),
    /// It says something of a source and counts nothing.
    Mark(Mark),
}

/// Why a record cannot count.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DeadReason {
    /// The value is no event of this topic.
    #[error("undecodable: {0}")]
    Undecodable(String),
    /// A record without a value that is no mark.
    #[error("unknown mark: {0}")]
    UnknownMark(#[from] MarkError),
    /// A figure outside of its bounds.
    #[error("out of bounds: {0}")]
    OutOfBounds(String),
    /// The record's key is not the tenant that it names.
    #[error("the record's key is not the one that its event names")]
    KeyMismatch,
}

impl DeadReason {
    /// The stable code of rows and metrics.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Undecodable(_) => "undecodable",
            Self::UnknownMark(_) => "unknown_mark",
            Self::OutOfBounds(_) => "out_of_bounds",
            Self::KeyMismatch => "key_mismatch",
        }
    }
}

/// Why a line goes no further: something was lost, or was read out of order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Stop {
    /// Numbers are missing.
    #[error(
        "at offset {offset}: source {source_id} went from {last} to {found}: records between them are lost: find them, or decide in control"
    )]
    Gap {
        /// Where.
        offset: i64,
        /// Whose.
        source_id: SourceId,
        /// The last number that was read.
        last: u64,
        /// The number that stands here.
        found: u64,
    },
    /// A record that only a newer Tollgate can read: as a dead letter it would be lost for good.
    #[error(
        "at offset {offset}: the record is of schema {found}, newer than {newest}, which is the newest that this Tollgate knows: upgrade the fold"
    )]
    NewerSchema {
        /// Where.
        offset: i64,
        /// What it is of.
        found: u32,
        /// The newest of this build.
        newest: u32,
    },
    /// An offset that was read before.
    #[error("offset {offset} was handed over when {position} was next")]
    Rewound {
        /// What came.
        offset: i64,
        /// What was next.
        position: i64,
    },
}

/// A step that was taken.
#[derive(Debug, PartialEq, Eq)]
pub struct Step<E> {
    /// Offsets before this one that hold no record (transaction marks, for one). They count as marks.
    pub holes: i64,
    /// The log time made monotone, milliseconds.
    pub log_time_ms: i64,
    /// What became of the record.
    pub outcome: Outcome<E>,
}

impl LineState {
    /// Takes the next record. On a [`Stop`] nothing has changed.
    pub fn step<E: Event>(&mut self, record: &LogRecord<'_>) -> Result<Step<E>, Stop> {
        let holes = record.offset - self.position;
        if holes < 0 {
            return Err(Stop::Rewound { offset: record.offset, position: self.position });
        }
        let outcome = match record.value {
            Some(value) => self.event(record, value)?,
            None => self.mark(record)?,
        };
        let before = if left_out!(MonotoneLogTime) { i64::MIN } else { self.log_time_ms };
        self.log_time_ms = before.max(record.log_time_ms);
        self.position = record.offset + 1;
        self.chain = self.chain.after(record.offset, self.log_time_ms, record.key, record.value);
        Ok(Step { holes, log_time_ms: self.log_time_ms, outcome })
    }

    fn event<E: Event>(&mut self, record: &LogRecord<'_>, value: &[u8]) -> Result<Outcome<E>, Stop> {
        let event: E = match codec::decode(value) {
            Ok(event) => event,
            Err(CodecError::NewerSchema { found, newest }) => {
                return Err(Stop::NewerSchema { offset: record.offset, found, newest });
            }
            Err(error) => return Ok(Outcome::Dead(DeadReason::Undecodable(error.to_string()))),
        };
        let envelope = event.envelope();
        let Some(seq) = u64::try_from(envelope.seq).ok().filter(|&seq| seq > 0) else {
            return Ok(Outcome::Dead(DeadReason::OutOfBounds(format!("the number {} is not above 0", envelope.seq))));
        };
        if !self.number(record.offset, envelope.source, seq)? {
            return Ok(Outcome::Duplicate { source: envelope.source, seq, event_id: Some(envelope.event_id) });
        }
        if record.key != Some(envelope.key.as_bytes()) {
            return Ok(Outcome::Dead(DeadReason::KeyMismatch));
        }
        match event.check() {
            Ok(()) => Ok(Outcome::Folded(event)),
            Err(error) => Ok(Outcome::Dead(DeadReason::OutOfBounds(error.to_string()))),
        }
    }

    fn mark<E>(&mut self, record: &LogRecord<'_>) -> Result<Outcome<E>, Stop> {
        let mark = match Mark::from_headers(record.headers) {
            Ok(mark) => mark,
            Err(error) => return Ok(Outcome::Dead(DeadReason::UnknownMark(error))),
        };
        let (source, seq, end) = match mark {
            Mark::Heartbeat { source, watermark, seq_high, .. } => {
                self.heartbeat(record.offset, source, watermark, seq_high)?;
                return Ok(Outcome::Mark(mark));
            }
            Mark::SourceClosed { source, next, seq, .. } => (source, seq, SourceEnd::Closed { next }),
            Mark::SpoolDrained { source, seq, .. } => (source, seq, SourceEnd::Drained),
        };
        if !self.number(record.offset, source, seq)? {
            return Ok(Outcome::Duplicate { source, seq, event_id: None });
        }
        self.source(source).end = Some(end);
        Ok(Outcome::Mark(mark))
    }

    /// A heartbeat vouches for numbers that must have come before it: a higher one is a loss that shows at once.
    fn heartbeat(&mut self, offset: i64, source_id: SourceId, watermark: Micros, high: u64) -> Result<(), Stop> {
        let last = self.sources.get(&source_id).map_or(0, |state| state.last_seq);
        if high > last {
            return Err(Stop::Gap { offset, source_id, last, found: high });
        }
        let state = self.source(source_id);
        state.watermark = state.watermark.max(watermark);
        Ok(())
    }

    /// Takes a number of a source: whether it is the next one, or one that was read before.
    fn number(&mut self, offset: i64, source_id: SourceId, found: u64) -> Result<bool, Stop> {
        let last = self.sources.get(&source_id).map_or(0, |state| state.last_seq);
        if found <= last && !left_out!(Duplicates) {
            return Ok(false);
        }
        if found > last + 1 && !left_out!(GapStops) {
            return Err(Stop::Gap { offset, source_id, last, found });
        }
        self.source(source_id).last_seq = found;
        Ok(true)
    }

    fn source(&mut self, source: SourceId) -> &mut SourceState {
        let new = SourceState { last_seq: 0, watermark: Micros(i64::MIN), end: None };
        self.sources.entry(source).or_insert(new)
    }
}
