//! What a chunk writes, in plain Rust: its folded records, dead letters, sources and figures, and whether they agree.

use std::collections::BTreeMap;

use ledger::ids::{ApiKeyId, EventId, ModelId, ModelVersion, ProjectId, RequestId, SourceId, TenantId};
use ledger::time::Micros;
use ledger::tokens::TokenCounts;

/// A record of the tokens topic that was folded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields of the event, in its order")]
pub struct TokenRow {
    pub event_id: EventId,
    pub source: SourceId,
    pub seq: u64,
    pub occurred_at: Micros,
    pub tenant_id: TenantId,
    pub request_id: RequestId,
    pub attempt: i32,
    pub project_id: ProjectId,
    pub api_key_id: ApiKeyId,
    pub model: ModelId,
    pub version: ModelVersion,
    pub replica: String,
    pub endpoint: String,
    /// Since the count before: what bills.
    pub delta: TokenCounts,
    /// Of the attempt so far.
    pub cumulative: TokenCounts,
    pub requests: u64,
    /// Whether this is the last count of the request.
    pub last: bool,
    pub estimated: bool,
    /// Empty but on the last count.
    pub end_reason: &'static str,
}

/// A record of the requests topic that was folded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields of the event, in its order")]
pub struct RequestRow {
    pub event_id: EventId,
    pub source: SourceId,
    pub seq: u64,
    pub occurred_at: Micros,
    pub tenant_id: TenantId,
    pub request_id: RequestId,
    pub attempts: i32,
    pub project_id: ProjectId,
    pub api_key_id: ApiKeyId,
    pub model: ModelId,
    pub version: ModelVersion,
    pub replica: String,
    pub endpoint: String,
    pub stream: bool,
    pub status: i32,
    pub end_reason: &'static str,
    /// Empty when there was no error.
    pub error_code: String,
    pub received_at: Micros,
    pub dispatched_at: Option<Micros>,
    pub first_byte_at: Option<Micros>,
}

/// A record that counts, with its place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folded<D> {
    /// Its offset.
    pub offset: i64,
    /// Its log time made monotone, milliseconds since 1970.
    pub log_time_ms: i64,
    /// The event.
    pub event: D,
}

/// A record that cannot count. The row is the truth of it; the dead-letter topic is a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadRow {
    /// Its offset.
    pub offset: i64,
    /// Its log time made monotone, milliseconds since 1970.
    pub log_time_ms: i64,
    /// The stable code of the reason.
    pub reason: String,
    /// What exactly was wrong.
    pub detail: String,
    /// The record's key.
    pub key: Option<Vec<u8>>,
    /// The record's value.
    pub value: Option<Vec<u8>>,
    /// Whose number it took, which number and which event, when it took one: so that a resend of it is known.
    pub took: Option<(SourceId, u64, EventId)>,
}

/// How far one source is in a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceState {
    /// The last number that was read.
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

/// What became of offsets. Each has exactly one outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutcomeCounts {
    /// They count.
    pub folded: i64,
    /// They were read before.
    pub duplicates: i64,
    /// They cannot count.
    pub dead: i64,
    /// They say something of a source, or hold no record.
    pub marks: i64,
}

impl std::ops::AddAssign for OutcomeCounts {
    /// Offsets fit into an `i64`, and so do sums of what they became.
    fn add_assign(&mut self, other: Self) {
        self.folded += other.folded;
        self.duplicates += other.duplicates;
        self.dead += other.dead;
        self.marks += other.marks;
    }
}

impl OutcomeCounts {
    /// All of them; none if that overflows.
    pub fn total(&self) -> Option<i64> {
        self.folded.checked_add(self.duplicates)?.checked_add(self.dead)?.checked_add(self.marks)
    }
}

/// All that one chunk writes: offsets `first` to `end` (not in it) of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRows<D> {
    /// Which partition.
    pub partition: i32,
    /// The first offset: the position before.
    pub first: i64,
    /// The next offset after it: the position that it leads to.
    pub end: i64,
    /// The log time of its first record made monotone, milliseconds since 1970: it chooses the month.
    pub first_log_time_ms: i64,
    /// The running maximum of log time at its end.
    pub log_time_ms: i64,
    /// What became of its offsets.
    pub counts: OutcomeCounts,
    /// The chain at its end.
    pub chain: [u8; 32],
    /// The folded records, by ascending offset.
    pub data: Vec<Folded<D>>,
    /// The dead letters, by ascending offset.
    pub dead: Vec<DeadRow>,
    /// The sources that were seen in it, as they stand at its end.
    pub sources: BTreeMap<SourceId, SourceState>,
}

impl<D> ChunkRows<D> {
    /// Rows in all.
    pub fn len(&self) -> usize {
        self.data.len() + self.dead.len() + self.sources.len() + 1
    }

    /// Never: the chunk itself is a row.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether its parts agree: what is wrong is written nowhere.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn check(&self) -> Result<(), String> {
        let Self { partition, first, end, counts, .. } = self;
        if *partition < 0 || *first < 0 || end <= first {
            return Err(format!("offsets {first} to {end} of partition {partition} are no chunk"));
        }
        let each = [counts.folded, counts.duplicates, counts.dead, counts.marks];
        if each.iter().any(|&n| n < 0) || counts.total() != end.checked_sub(*first) {
            return Err(format!("the outcomes {counts:?} do not add up to offsets {first} to {end}"));
        }
        let rows = (i64::try_from(self.data.len()), i64::try_from(self.dead.len()));
        if rows != (Ok(counts.folded), Ok(counts.dead)) {
            return Err(format!("{} data rows and {} dead rows for {counts:?}", self.data.len(), self.dead.len()));
        }
        self.check_places()
    }

    /// Whether every row has a place of its own inside of the chunk.
    fn check_places(&self) -> Result<(), String> {
        let data = self.data.iter().map(|row| (row.offset, row.log_time_ms));
        let mut places: Vec<_> = data.chain(self.dead.iter().map(|row| (row.offset, row.log_time_ms))).collect();
        places.sort_unstable();
        let inside = |&(offset, time): &(i64, i64)| {
            (self.first..self.end).contains(&offset) && (self.first_log_time_ms..=self.log_time_ms).contains(&time)
        };
        if let Some((offset, time)) = places.iter().find(|place| !inside(place)) {
            return Err(format!("offset {offset} at log time {time} ms lies outside of its chunk"));
        }
        match places.windows(2).find(|pair| pair[0].0 == pair[1].0 || pair[0].1 > pair[1].1) {
            Some(pair) => Err(format!("{:?} and {:?} cannot both be in one chunk", pair[0], pair[1])),
            None if self.first_log_time_ms > self.log_time_ms => Err("log time goes back".to_owned()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk() -> ChunkRows<()> {
        ChunkRows {
            partition: 0,
            first: 10,
            end: 14,
            first_log_time_ms: 1_000,
            log_time_ms: 2_000,
            counts: OutcomeCounts { folded: 2, duplicates: 1, dead: 0, marks: 1 },
            chain: [7; 32],
            data: vec![
                Folded { offset: 10, log_time_ms: 1_000, event: () },
                Folded { offset: 13, log_time_ms: 2_000, event: () },
            ],
            dead: vec![],
            sources: BTreeMap::new(),
        }
    }

    #[test]
    fn rows_that_contradict_themselves_are_written_nowhere() {
        assert_eq!(chunk().check(), Ok(()));
        type Change = fn(&mut ChunkRows<()>);
        let changes: [Change; 9] = [
            |c| c.end = 10,
            |c| c.first = -1,
            |c| c.counts.marks += 1,
            |c| c.counts = OutcomeCounts { folded: 3, duplicates: 0, ..c.counts },
            |c| c.counts = OutcomeCounts { duplicates: -1, marks: 3, ..c.counts },
            |c| c.data[0].offset = 9,
            |c| c.data[0].offset = 13,
            |c| c.data[1].log_time_ms = 2_001,
            |c| c.data[0].log_time_ms = 999,
        ];
        for (at, change) in changes.into_iter().enumerate() {
            let mut wrong = chunk();
            change(&mut wrong);
            assert!(wrong.check().is_err(), "change {at}");
        }
    }
}
