//! What a reconciler remembers from run to run, so that no run asks for what is known. It is in memory alone: a restart asks anew.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};

use sql::{LogHour, Table};

use super::Reconciler;
use super::replicas::Settled;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Of each line: no chunk that ends in this hour or later begins before this offset.
    begins: HashMap<(Table, i32), (LogHour, i64)>,
    /// The lives of each engine, by its address, up to a sample at which both sides agreed.
    settled: HashMap<String, Vec<Settled>>,
}

impl Memory {
    /// Where the chunks of an hour and those after it begin at the earliest; 0 if that is not known.
    pub(crate) fn begin_of(&self, table: Table, partition: i32, hour: LogHour) -> i64 {
        let known = self.begins.get(&(table, partition)).filter(|(known, _)| *known <= hour);
        known.map_or(0, |(_, offset)| *offset)
    }

    pub(crate) fn keep_begin(&mut self, table: Table, partition: i32, hour: LogHour, offset: i64) {
        // Without a chunk there is nothing to hold on to.
        if offset != i64::MAX {
            self.begins.insert((table, partition), (hour, offset));
        }
    }

    /// What was settled of an engine. It is to be kept again.
    pub(crate) fn take_settled(&mut self, url: &str) -> Vec<Settled> {
        self.settled.remove(url).unwrap_or_default()
    }

    /// All engines that there are.
    pub(crate) fn keep_settled(&mut self, settled: HashMap<String, Vec<Settled>>) {
        self.settled = settled;
    }
}

impl Reconciler {
    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        // Whatever was remembered is true.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
