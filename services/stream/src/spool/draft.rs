//! One frame in the making: its records' numbers, ids and times, which count only if it is written.

use std::io;

use ledger::ids::EventId;
use schemas::codec::CodecError;
use uuid::Uuid;

use super::frame::{Entry, FrameBuilder, RECORD_MAX, Record};
use super::segment::TopicSpec;

/// Why a frame was not appended. The spool is then as if it had not been tried.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The disk refused, and a fresh segment as well.
    #[error("the spool's disk refused the write ({0}); is it full or failing?")]
    Disk(io::Error),
    /// An event could not be encoded.
    #[error("an event could not be encoded: {0}")]
    Encode(#[from] CodecError),
    /// A record above the limit that every broker takes.
    #[error("a record of {0} bytes is above the limit of {RECORD_MAX}")]
    TooLarge(usize),
    /// Counts that cannot be: negative deltas or above 2^40.
    #[error("the counts of a request are out of bounds: {0}")]
    Counts(#[from] ledger::tokens::TokenError),
    /// The spool was closed.
    #[error("the spool is closed: the process is stopping")]
    Closed,
}

impl AppendError {
    /// True if it is the disk's fault, so that the same frame may be written later.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Disk(_))
    }
}

/// Where the numbering of the current source stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Numbering {
    /// The source; nil before the first one.
    pub source: Uuid,
    /// The one before.
    pub before: Option<Uuid>,
    /// Last `seq` per topic, per partition.
    pub seqs: Vec<Vec<u64>>,
    /// No record may be earlier.
    pub time: i64,
    /// Events made, for their ids.
    pub made: u64,
}

/// A frame in the making: numbers that count only if the frame is written.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    numbering: &'a Numbering,
    topics: &'a [TopicSpec],
    time: i64,
    taken: Vec<(u8, i32)>,
    made: u64,
    frame: FrameBuilder,
}

/// What became of a draft: its frame, and the numbers that it takes if that is written.
pub(crate) struct Drafted {
    pub bytes: Vec<u8>,
    pub time: i64,
    /// Topic and partition of each record.
    pub taken: Vec<(u8, i32)>,
    pub made: u64,
}

impl<'a> Draft<'a> {
    /// An empty one at the time `now`, or the last one of `numbering` if that is later. Its bytes go into `buffer`.
    pub(crate) fn new(numbering: &'a Numbering, topics: &'a [TopicSpec], now: i64, buffer: Vec<u8>) -> Self {
        Self {
            numbering,
            topics,
            time: if left_out!(TimeForward) { now } else { now.max(numbering.time) },
            taken: Vec::new(),
            made: numbering.made,
            frame: FrameBuilder::reusing(buffer),
        }
    }

    /// The whole frame.
    pub(crate) fn done(self) -> Drafted {
        Drafted { bytes: self.frame.finish(), time: self.time, taken: self.taken, made: self.made }
    }
}

impl Draft<'_> {
    /// The source that numbers.
    pub(crate) fn source(&self) -> Uuid {
        self.numbering.source
    }

    /// When this frame's events occur.
    pub(crate) fn time(&self) -> i64 {
        self.time
    }

    /// The topics.
    pub(crate) fn topics(&self) -> &[TopicSpec] {
        self.topics
    }

    /// Last numbers of the source, without this draft's own.
    pub(crate) fn seqs(&self) -> &[Vec<u64>] {
        &self.numbering.seqs
    }

    /// The next number of a partition; it has to be used.
    pub(crate) fn seq(&mut self, topic: u8, partition: i32) -> u64 {
        self.taken.push((topic, partition));
        let own = self.taken.iter().filter(|&&taken| taken == (topic, partition)).count();
        self.numbering.seqs[topic as usize][partition as usize] + own as u64
    }

    /// The id of a new event: a UUIDv7 that is unique in its source, made without asking the host for chance. It differs
    /// from what recovery would give to a record with this number, so that a restored volume is found out.
    pub(crate) fn event_id(&mut self) -> EventId {
        self.made += 1;
        let (high, low) = self.numbering.source.as_u64_pair();
        let mixed = mix(high ^ mix(low.wrapping_add(self.made)));
        let mut random = [0; 10];
        random[..8].copy_from_slice(&mixed.to_be_bytes());
        random[8..].copy_from_slice(&(self.made as u16).to_be_bytes());
        let millis = u64::try_from(self.time / 1000).unwrap_or(0);
        EventId(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }

    /// Adds an entry.
    pub(crate) fn push(&mut self, entry: &Entry) {
        self.frame.push(entry);
    }

    /// Adds a record under the current source.
    pub(crate) fn record(
        &mut self,
        topic: u8,
        partition: i32,
        seq: u64,
        key: Option<Vec<u8>>,
        value: Option<Vec<u8>>,
        headers: Vec<(String, Vec<u8>)>,
    ) -> Result<(), AppendError> {
        let record =
            Record { source: self.numbering.source, topic, partition, seq, time: self.time, key, value, headers };
        if record.size() > RECORD_MAX {
            return Err(AppendError::TooLarge(record.size()));
        }
        self.frame.push(&Entry::Record(record));
        Ok(())
    }
}

/// SplitMix64's finisher: a bijection that spreads a counter over all bits.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
