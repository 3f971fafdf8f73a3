//! A log in memory as Kafka is towards one producer: order without gaps per partition, acknowledgements in any order,
//! failures, and records of a dropped producer that arrive late.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::ship::{Connect, Outgoing, Refused, Report, Transport};
use crate::spool::sim_disk::SimDisk;

/// Chance that can be repeated.
#[derive(Debug, Clone)]
pub(crate) struct Chance(pub u64);

impl Chance {
    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit.max(1)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

pub(crate) type Place = (String, i32);

#[derive(Debug)]
pub(crate) struct LogState {
    pub partitions: BTreeMap<Place, Vec<Stored>>,
    /// What dropped producers had under way.
    limbo: Vec<(Place, VecDeque<Stored>)>,
    pub chance: Chance,
    /// Appends and acknowledges all there is at each poll, in order.
    pub prompt: bool,
    /// Takes nothing and answers nothing.
    pub away: bool,
    /// The next records that fail.
    pub failures: usize,
    pub connections: usize,
}

#[derive(Debug, Clone)]
pub(crate) struct SimLog(pub Arc<Mutex<LogState>>);

impl SimLog {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(LogState {
            partitions: BTreeMap::new(),
            limbo: Vec::new(),
            chance: Chance(seed),
            prompt: false,
            away: false,
            failures: 0,
            connections: 0,
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, LogState> {
        self.0.lock().unwrap()
    }
}

impl LogState {
    fn append(&mut self, place: &Place, record: Stored) -> i64 {
        let partition = self.partitions.entry(place.clone()).or_default();
        partition.push(record);
        partition.len() as i64 - 1
    }

    /// Some of what dropped producers had under way arrives now; a part of it never does.
    pub(crate) fn stir(&mut self, all: bool) {
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

/// Ends with the process that owns `disk`.
#[derive(Debug)]
pub(crate) struct SimConnect {
    pub log: SimLog,
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
        }))
    }
}

#[derive(Debug)]
struct SimTransport {
    log: SimLog,
    disk: SimDisk,
    queues: BTreeMap<Place, VecDeque<(u64, Stored)>>,
    answers: Vec<Report>,
    failed: BTreeSet<Place>,
}

impl Transport for SimTransport {
    fn send(&mut self, record: Outgoing<'_>) -> Result<(), Refused> {
        if self.disk.is_dead() || self.queues.values().map(VecDeque::len).sum::<usize>() > 60 {
            return Err(Refused::Busy);
        }
        let stored = Stored {
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers.to_vec(),
        };
        let place = (record.topic.to_owned(), record.partition);
        self.queues.entry(place).or_default().push_back((record.id, stored));
        Ok(())
    }

    fn poll(&mut self, _: Duration, reports: &mut Vec<Report>) -> Result<(), String> {
        let mut log = self.log.lock();
        if self.disk.is_dead() || log.away {
            return Ok(());
        }
        log.stir(false);
        for (place, queue) in &mut self.queues {
            while !queue.is_empty() && (log.prompt || log.chance.below(3) > 0) {
                let Some((id, record)) = queue.pop_front() else { break };
                if log.failures > 0 && id != u64::MAX && !self.failed.contains(place) {
                    log.failures -= 1;
                    self.failed.insert(place.clone());
                }
                if self.failed.contains(place) {
                    self.answers.push(Report { id, result: Err("refused".into()) });
                    continue;
                }
                let result = Ok(log.append(place, record));
                self.answers.push(Report { id, result });
            }
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
