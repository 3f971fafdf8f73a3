//! A simulated process that folds: the real drivers and balances, with calls that a world answers.

use ledger::ids::TenantId;
use ledger::time::Micros;
use schemas::event::TokensCounted;
use sql::TokenRow;
use stream::cut::CutPolicy;
use stream::simulation::Partition;

use super::engine::Insert;
use crate::balances::{Balances, Zones};
use crate::call::{Call, Standstill, Taken};
use crate::driver::{Cuts, Driver};
use crate::event::FoldEvent as _;

/// All tenants live in UTC.
pub(super) struct Utc;

impl Zones for Utc {
    fn zone(&self, _: &TenantId) -> Option<chrono_tz::Tz> {
        Some(chrono_tz::UTC)
    }
}

/// What a line waits for.
#[derive(Debug)]
pub(super) enum Waiting {
    Nothing,
    /// An answer to a call that nobody has looked at yet.
    Answer(Call<TokenRow>),
    /// The end of a statement that has begun.
    Statement(Insert),
}

/// One line of a process.
pub(super) struct Line {
    pub(super) driver: Driver<TokensCounted>,
    pub(super) balances: Option<Balances>,
    pub(super) reads_from: i64,
    pub(super) waits: Waiting,
    pub(super) tables: u64,
    /// Nothing was ever proven for it.
    pub(super) is_new: bool,
}

impl Line {
    /// Chunks are due after `max_offsets`, and a block holds three times as many.
    pub(super) fn new(partition: i32, max_offsets: u64) -> Self {
        let due = CutPolicy { max_age_ms: 300, max_quiet_ms: 1_000, max_offsets, max_bytes: 16_384 };
        let block = CutPolicy {
            max_age_ms: u64::MAX,
            max_quiet_ms: u64::MAX,
            max_offsets: max_offsets * 3,
            max_bytes: 1 << 20,
        };
        Self {
            driver: Driver::new(partition, Cuts { due, block }),
            balances: None,
            reads_from: 0,
            waits: Waiting::Nothing,
            tables: 0,
            is_new: true,
        }
    }

    /// Takes at most so many records.
    pub(super) fn read(&mut self, log: &Partition, records: usize, now: u64) {
        if self.driver.wants_records() && self.driver.reads_from() > log.next {
            let why = format!("the log ends at {}, before {}", log.next, self.driver.reads_from());
            self.driver.stand_still(Standstill::OtherLog(why));
        }
        for _ in 0..records {
            let Some(record) = log.from(self.reads_from).filter(|_| self.driver.wants_records()) else { return };
            let (driver, balances) = (&mut self.driver, &mut self.balances);
            let taken = record.lend(|lent| {
                driver.take(lent, now, |event: Option<&TokensCounted>| {
                    let used = event.and_then(|event| event.counts());
                    if let Some(balances) = balances {
                        balances.take(record.offset, used.as_ref(), &Utc);
                    }
                })
            });
            match taken {
                Taken::NoRoom | Taken::StoodStill => return,
                Taken::Stepped | Taken::Skipped => self.reads_from = record.offset + 1,
            }
        }
    }

    /// Asks the next thing, if nothing is asked.
    pub(super) fn ask(&mut self, now: u64) {
        if matches!(self.waits, Waiting::Nothing)
            && let Some(call) = self.driver.next(now)
        {
            self.waits = Waiting::Answer(call);
        }
    }

    /// Follows the driver to where it reads on.
    pub(super) fn seek(&mut self) {
        if let Some(from) = self.driver.take_seek() {
            self.reads_from = (from - 1).max(0);
        }
    }

    /// The sum of all balances, once they are published anew.
    pub(super) fn sums(&mut self, now: Micros) -> i64 {
        let Some(balances) = &mut self.balances else { return 0 };
        balances.refresh(now);
        let updates = balances.take_dirty(0, now);
        updates.iter().flat_map(|update| &update.usage).map(|usage| usage.output + usage.reasoning).sum()
    }
}

/// A process: at most one line per partition.
pub(super) struct Fold {
    pub(super) lines: Vec<Option<Line>>,
    pub(super) max_offsets: u64,
}

impl Fold {
    pub(super) fn new(partitions: i32, max_offsets: u64) -> Self {
        let lines = (0..partitions).map(|partition| Some(Line::new(partition, max_offsets))).collect();
        Self { lines, max_offsets }
    }
}
