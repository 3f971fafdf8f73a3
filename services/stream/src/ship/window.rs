//! What is on its way, in the order of the spool: the cursor is the end of the acknowledged prefix, never the highest
//! acknowledgement.

use std::collections::VecDeque;

use hashbrown::HashMap;
use uuid::Uuid;

use crate::spool::TOKENS;
use crate::spool::cursor::Cursor;
use crate::spool::frame::{Entry, Position, Record};
use crate::spool::{ReadFrame, TopicSpec, Watermark};

/// A record of the window, without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    pub topic: u8,
    pub partition: i32,
    pub source: Uuid,
    pub seq: u64,
    pub time: i64,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Item {
    /// None if nothing is to be sent.
    record: Option<Sent>,
    /// Where it stands in the log; for an item without a record, anything.
    acked: Option<i64>,
    /// The frame's end, with its last item.
    end: Option<Position>,
    /// To be told once everything up to here is acknowledged.
    watermark: Option<Watermark>,
}

/// What an advance brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Advance {
    /// Records that are in the prefix now, per topic.
    pub records: Vec<u64>,
    /// The newest watermark that the prefix has passed.
    pub watermark: Option<Watermark>,
}

/// A record of the tokens topic that is acknowledged, and all before it in its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delivered {
    pub source: Uuid,
    pub partition: i32,
    pub seq: u64,
    pub offset: i64,
}

/// See the module. Pure.
#[derive(Debug)]
pub(super) struct Window {
    cursor: Cursor,
    /// The number of the first item.
    first: u64,
    items: VecDeque<Item>,
    /// Numbers of the tokens records on their way, per partition.
    lanes: HashMap<i32, VecDeque<u64>>,
    records: usize,
    bytes: usize,
}

impl Window {
    /// Nothing is on its way, and all before `cursor` is acknowledged.
    pub(super) fn new(mut cursor: Cursor, topics: &[TopicSpec]) -> Self {
        cursor.offsets.resize(topics.len(), Vec::new());
        for (offsets, topic) in cursor.offsets.iter_mut().zip(topics) {
            offsets.resize(topic.partitions.max(0) as usize, -1);
        }
        Self { cursor, first: 0, items: VecDeque::new(), lanes: HashMap::new(), records: 0, bytes: 0 }
    }

    /// Where shipping stands.
    pub(super) fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Records on their way.
    pub(super) fn records(&self) -> usize {
        self.records
    }

    /// Their bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the oldest record on its way occurred.
    pub(super) fn oldest(&self) -> Option<i64> {
        self.items.iter().find_map(|item| item.record).map(|sent| sent.time)
    }

    /// Forgets what is on its way: it comes again, from the cursor.
    pub(super) fn restart(&mut self) {
        // Numbers go on, so that no report of an old connection is taken for one of the new.
        self.first += self.items.len() as u64;
        self.items.clear();
        self.lanes.clear();
        (self.records, self.bytes) = (0, 0);
    }

    /// Takes the next frame of the spool; returns its records, numbered, to be sent in this order.
    pub(super) fn take(&mut self, frame: ReadFrame) -> Vec<(u64, Record)> {
        let mut records = Vec::new();
        for entry in frame.entries {
            match entry {
                Entry::Record(record) => {
                    let number = self.first + self.items.len() as u64;
                    let sent = Sent {
                        topic: record.topic,
                        partition: record.partition,
                        source: record.source,
                        seq: record.seq,
                        time: record.time,
                        bytes: record.size(),
                    };
                    if record.topic == TOKENS {
                        self.lanes.entry(record.partition).or_default().push_back(number);
                    }
                    self.records += 1;
                    self.bytes += sent.bytes;
                    self.items.push_back(Item { record: Some(sent), ..Item::default() });
                    records.push((number, record));
                }
                Entry::Watermark { source, time, seqs } => {
                    let watermark = Watermark { source, time, seqs };
                    self.items.push_back(Item { acked: Some(-1), watermark: Some(watermark), ..Item::default() });
                }
                _ => {}
            }
        }
        match self.items.back_mut() {
            // The frame's last item, or one before it with nothing between: nothing has to be acknowledged for the rest.
            Some(item) => item.end = Some(frame.end),
            None => self.cursor.acked = frame.end,
        }
        records
    }

    /// A record was acknowledged at `offset`. Returns which tokens records are delivered with it, in order.
    pub(super) fn acked(&mut self, number: u64, offset: i64) -> Vec<Delivered> {
        let mut delivered = Vec::new();
        let Some(item) = number.checked_sub(self.first).and_then(|at| self.items.get_mut(at as usize)) else {
            return delivered;
        };
        let (Some(sent), None) = (item.record, item.acked) else { return delivered };
        item.acked = Some(offset);
        if sent.topic != TOKENS {
            return delivered;
        }
        let Some(lane) = self.lanes.get_mut(&sent.partition) else { return delivered };
        while let Some(&next) = lane.front() {
            let item = next.checked_sub(self.first).and_then(|at| self.items.get(at as usize));
            match item.map(|item| (item.record, item.acked)) {
                Some((Some(Sent { source, partition, seq, .. }), Some(offset))) => {
                    delivered.push(Delivered { source, partition, seq, offset });
                }
                Some((_, None)) => break,
                // Passed by the prefix already.
                _ => {}
            }
            lane.pop_front();
        }
        delivered
    }

    /// Moves the cursor over what is acknowledged.
    pub(super) fn advance(&mut self) -> Advance {
        let mut advance = Advance { records: vec![0; self.cursor.offsets.len()], watermark: None };
        if left_out!(ContiguousCursor)
            && let Some(highest) = self.items.iter().rposition(|item| item.record.is_some() && item.acked.is_some())
        {
            self.items.iter_mut().take(highest).for_each(|item| _ = item.acked.get_or_insert(-1));
        }
        while let Some(Item { acked: Some(_), .. }) = self.items.front() {
            let Some(item) = self.items.pop_front() else { break };
            self.first += 1;
            if let (Some(sent), Some(offset)) = (item.record, item.acked) {
                self.records -= 1;
                self.bytes -= sent.bytes;
                advance.records[sent.topic as usize] += 1;
                let highest = &mut self.cursor.offsets[sent.topic as usize][sent.partition as usize];
                *highest = offset.max(*highest);
            }
            if let Some(end) = item.end {
                self.cursor.acked = end;
            }
            advance.watermark = item.watermark.or(advance.watermark);
        }
        advance
    }
}
