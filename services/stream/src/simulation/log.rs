//! A log in memory as Kafka is towards producers and consumers: order without gaps per partition, acknowledgements in any
//! order, failures, records of a dropped producer that arrive late, and offsets without a record.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::SimDisk;
use super::gateway::START;
use super::hooks::{Rule, left_out};
use crate::consume::Record;
use crate::ship::{Connect, Outgoing, Refused, Report, Transport};

/// Records that a producer takes before it is busy.
const ROOM: usize = 60;

/// Chance that can be repeated.
#[derive(Debug, Clone)]
pub struct Chance(pub u64);

impl Chance {
    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit.max(1)
    }
}

/// A record without its place.
#[derive(Debug, Clone)]
struct Unplaced {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
}

/// Topic and partition.
pub type Place = (String, i32);

/// The records of a partition.
#[derive(Debug, Clone, Default)]
pub struct Partition {
    /// By ascending offset.
    pub records: Vec<Record>,
    /// The next offset.
    pub next: i64,
}

impl Partition {
    /// The first record at this offset or after it.
    pub fn from(&self, offset: i64) -> Option<&Record> {
        self.records.get(self.records.partition_point(|record| record.offset < offset))
    }
}

/// See the module.
#[derive(Debug)]
pub struct LogState {
    /// What stands in the log.
    pub partitions: BTreeMap<Place, Partition>,
    /// What dropped producers had under way.
    limbo: Vec<(Place, VecDeque<Unplaced>)>,
    /// Decides what is left open.
    pub chance: Chance,
    /// The brokers' clock, milliseconds.
    pub now_ms: i64,
    /// Appends and acknowledges all there is at each poll, in order.
    pub prompt: bool,
    /// Takes nothing and answers nothing.
    pub away: bool,
    /// The next records that fail.
    pub failures: usize,
    /// The next polls that find their connection gone.
    pub disconnects: usize,
    /// Producers have room for a few records only.
    pub narrow: bool,
    /// Producers so far.
    pub connections: usize,
}

/// The log; clones are the same one.
#[derive(Debug, Clone)]
pub struct SimLog(pub Arc<Mutex<LogState>>);

impl SimLog {
    /// An empty one.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(LogState {
            partitions: BTreeMap::new(),
            limbo: Vec::new(),
            chance: Chance(seed),
            now_ms: START / 1000,
            prompt: false,
            away: false,
            failures: 0,
            disconnects: 0,
            narrow: false,
            connections: 0,
        })))
    }

    /// What it holds.
    pub fn lock(&self) -> MutexGuard<'_, LogState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogState {
    fn append(&mut self, place: &Place, record: Unplaced) -> i64 {
        let Unplaced { key, value, headers } = record;
        self.put(place, key, value, headers)
    }

    /// Appends a record, whoever sent it.
    pub fn put(
        &mut self,
        place: &Place,
        key: Option<Vec<u8>>,
        value: Option<Vec<u8>>,
        headers: Vec<(String, Vec<u8>)>,
    ) -> i64 {
        let log_time_ms = self.now_ms;
        let partition = self.partitions.entry(place.clone()).or_default();
        let offset = partition.next;
        partition.records.push(Record { offset, log_time_ms, key, value, headers });
        partition.next += 1;
        offset
    }

    /// The mark of a transaction: an offset without a record.
    pub fn hole(&mut self, place: &Place) {
        self.partitions.entry(place.clone()).or_default().next += 1;
    }

    /// Loses its last records, as brokers do that let a replica lead which had fallen behind.
    pub fn lose(&mut self, place: &Place, records: usize) {
        let Some(partition) = self.partitions.get_mut(place) else { return };
        let left = partition.records.len().saturating_sub(records);
        if let Some(first) = partition.records.get(left) {
            partition.next = first.offset;
            partition.records.truncate(left);
        }
    }

    /// Some of what dropped producers had under way arrives now; a part of it never does.
    pub fn stir(&mut self, all: bool) {
        for (place, mut waiting) in std::mem::take(&mut self.limbo) {
            while !waiting.is_empty() && (all || self.chance.below(2) == 0) {
                if let Some(record) = waiting.pop_front() {
                    self.append(&place, record);
                }
            }
            if self.chance.below(3) > 0 {
                self.limbo.push((place, waiting));
            }
        }
    }
}

/// Makes producers. They end with the process that owns `disk`.
#[derive(Debug)]
pub struct SimConnect {
    /// Where they send to.
    pub log: SimLog,
    /// Dead when their process is.
    pub disk: SimDisk,
}

impl Connect for SimConnect {
    fn connect(&mut self) -> Result<Box<dyn Transport>, String> {
        self.log.lock().connections += 1;
        Ok(Box::new(SimTransport {
            log: self.log.clone(),
            disk: self.disk.clone(),
            queues: BTreeMap::new(),
            answers: Vec::new(),
            failed: BTreeSet::new(),
            known: BTreeSet::new(),
        }))
    }
}

#[derive(Debug)]
struct SimTransport {
    log: SimLog,
    disk: SimDisk,
    queues: BTreeMap<Place, VecDeque<(u64, Unplaced)>>,
    answers: Vec<Report>,
    failed: BTreeSet<Place>,
    /// Partitions that it has appended to.
    known: BTreeSet<Place>,
}

impl SimTransport {
    /// What becomes of the next record of a partition.
    fn deliver(&mut self, log: &mut LogState, place: &Place, id: u64, record: Unplaced) -> Result<i64, String> {
        let fails = log.failures > 0 && id != u64::MAX && !self.failed.contains(place);
        if fails {
            log.failures -= 1;
            if left_out(Rule::OneOnItsWay) && !self.known.contains(place) {
                // The library takes the refused batch for written, since the one behind it was.
                return Ok(log.partitions.get(place).map_or(0, |partition| partition.next));
            }
            if left_out(Rule::Gapless) {
                return Err("refused".into());
            }
            self.failed.insert(place.clone());
        }
        if self.failed.contains(place) {
            return Err("refused".into());
        }
        self.known.insert(place.clone());
        Ok(log.append(place, record))
    }
}

impl Transport for SimTransport {
    fn send(&mut self, record: Outgoing<'_>) -> Result<(), Refused> {
        let room = if self.log.lock().narrow { 3 } else { ROOM };
        if self.disk.is_dead() || self.queues.values().map(VecDeque::len).sum::<usize>() >= room {
            return Err(Refused::Busy);
        }
        let unplaced = Unplaced {
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers.to_vec(),
        };
        let place = (record.topic.to_owned(), record.partition);
        self.queues.entry(place).or_default().push_back((record.id, unplaced));
        Ok(())
    }

    fn poll(&mut self, reports: &mut Vec<Report>) -> Result<(), String> {
        let log = self.log.clone();
        let mut log = log.lock();
        if self.disk.is_dead() || log.away {
            return Ok(());
        }
        log.stir(false);
        let places: Vec<_> = self.queues.keys().cloned().collect();
        for place in places {
            while log.prompt || log.chance.below(3) > 0 {
                let Some((id, record)) = self.queues.get_mut(&place).and_then(VecDeque::pop_front) else { break };
                let result = self.deliver(&mut log, &place, id, record);
                self.answers.push(Report { id, result });
            }
        }
        if log.disconnects > 0 {
            // What was appended is, and nobody is told.
            log.disconnects -= 1;
            return Err("disconnected".into());
        }
        while !self.answers.is_empty() && (log.prompt || log.chance.below(4) > 0) {
            let at = if log.prompt { 0 } else { log.chance.below(self.answers.len()) };
            reports.push(self.answers.remove(at));
        }
        Ok(())
    }
}

impl Drop for SimTransport {
    fn drop(&mut self) {
        let mut log = self.log.lock();
        for (place, queue) in std::mem::take(&mut self.queues) {
            if !self.failed.contains(&place) {
                let records = queue.into_iter().map(|(_, record)| record).collect();
                log.limbo.push((place, records));
            }
        }
    }
}
