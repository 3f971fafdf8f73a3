//! The log replayed beside what ClickHouse holds: every chunk is cut as it was cut, and every row and every sum is compared.

pub(crate) mod replay;
mod sealed;

use std::collections::BTreeMap;

use ledger::ids::{ModelId, TenantId};
use ledger::time::Slot;
use ledger::tokens::TokenCounts;
use schemas::event::{RequestFinished, TokensCounted};
use sql::{
    ChunkCut, ClickHouse, ClickHouseSettings, DataRow as _, OutcomeCounts, ProofError, QueryError, RowDifference, Table,
};
use stream::consume::ConsumeError;
use stream::line::LineState;
use thiserror::Error;

use crate::archive::{ArchiveError, Log};
use crate::event::FoldEvent;
use replay::{Replay, Unlike};

/// Differences that are told of each line; the rest is only said to be there.
pub const TOLD: usize = 20;
/// Offsets that are compared at once.
const WINDOW: i64 = 200_000;
/// The sums are of one position; while the fold goes on, what it wrote meanwhile is replayed, so often at most.
const TRIES: u32 = 10;

/// Why it cannot be said whether anything differs.
#[derive(Debug, Error)]
pub enum AuditError {
    /// The log cannot be read, or does not begin at its beginning any more.
    #[error("{topic}/{partition} cannot be replayed: {source}")]
    Log {
        /// Which.
        topic: &'static str,
        /// Which.
        partition: i32,
        /// Why.
        source: ConsumeError,
    },
    /// The archive, which holds what Kafka no longer has, cannot be read either.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// ClickHouse was not read.
    #[error("ClickHouse cannot be read: {0}")]
    ClickHouse(#[from] QueryError),
}

/// Something that is not as the log says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// A row.
    Row(RowDifference),
    /// The chunks of the table are no whole folding.
    Table(String),
    /// The log itself is not the one that was folded.
    Log {
        /// From where on.
        offset: i64,
        /// What is wrong.
        why: String,
    },
    /// A sum of the aggregates is not that of the log.
    Sum {
        /// Whose.
        tenant: TenantId,
        /// Of which model.
        model: ModelId,
        /// In which quarter of an hour.
        slot: Slot,
        /// Tokens and requests by the log.
        wanted: (TokenCounts, u64),
        /// Tokens and requests by the aggregates.
        found: (TokenCounts, u64),
    },
}

/// Tokens and requests by tenant, model and slot.
pub type Sums = BTreeMap<(TenantId, ModelId, Slot), (TokenCounts, u64)>;

/// What came of one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audited {
    /// Its topic.
    pub topic: &'static str,
    /// Its partition.
    pub partition: i32,
    /// Up to which offset it was compared.
    pub offsets: i64,
    /// Chunks.
    pub chunks: u64,
    /// What became of the offsets, by the log.
    pub counts: OutcomeCounts,
    /// The chain at that offset, by the log.
    pub chain: [u8; 32],
    /// What differs, the first ones.
    pub differences: Vec<Difference>,
    /// What was used, by the log; of the tokens topic.
    pub sums: Sums,
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Which topic.
    pub topic: &'static str,
    /// Which partition.
    pub partition: i32,
    /// Offsets that are compared.
    pub done: i64,
    /// Of so many.
    pub of: i64,
}

/// Replays these partitions of both topics. Nothing is written, but for the table through which an archive is read.
///
/// # Errors
/// See [`AuditError`]: it is not known then whether anything differs.
pub async fn run(
    log: Log<'_>,
    clickhouse: &ClickHouseSettings,
    partitions: &[i32],
    mut progress: impl FnMut(Progress),
) -> Result<Vec<Audited>, AuditError> {
    let clickhouse = ClickHouse::new(clickhouse);
    let mut audited = Vec::new();
    for &partition in partitions {
        audited.push(line::<TokensCounted>(log, &clickhouse, partition, &mut progress).await?);
        audited.push(line::<RequestFinished>(log, &clickhouse, partition, &mut progress).await?);
    }
    Ok(audited)
}

async fn line<E: FoldEvent>(
    log: Log<'_>,
    clickhouse: &ClickHouse,
    partition: i32,
    progress: &mut impl FnMut(Progress),
) -> Result<Audited, AuditError> {
    let table = E::Row::TABLE;
    let mut audit = Audit::<E>::open(log, clickhouse, partition, LineState::default())?;
    match clickhouse.prove(table, partition).await {
        Ok(_) => {}
        Err(ProofError::Query(error)) => return Err(error.into()),
        Err(damaged) => audit.audited.differences.push(Difference::Table(damaged.to_string())),
    }
    for _ in 0..TRIES {
        if audit.follow(i64::MAX, progress).await?.is_break() || audit.sums(table).await? {
            break;
        }
    }
    audit.audited.sums = audit.replay.sums;
    Ok(audit.audited)
}

/// A line that is held to the log, from a state on.
pub(crate) struct Audit<'a, E: FoldEvent> {
    clickhouse: &'a ClickHouse,
    replay: Replay<'a, E>,
    pub(crate) audited: Audited,
}

impl<'a, E: FoldEvent> Audit<'a, E> {
    pub(crate) fn open(
        log: Log<'a>,
        clickhouse: &'a ClickHouse,
        partition: i32,
        state: LineState,
    ) -> Result<Self, AuditError> {
        let audited = Audited {
            topic: E::Row::TABLE.topic(),
            partition,
            offsets: state.position,
            chunks: 0,
            counts: OutcomeCounts::default(),
            chain: state.chain.0,
            differences: Vec::new(),
            sums: Sums::new(),
        };
        Ok(Self { clickhouse, replay: Replay::open(log, partition, state)?, audited })
    }
}

impl<E: FoldEvent> Audit<'_, E> {
    /// Replays and compares all chunks that are there and end before this offset or at it. Breaks off where the log itself is another.
    pub(crate) async fn follow(
        &mut self,
        until: i64,
        progress: &mut impl FnMut(Progress),
    ) -> Result<std::ops::ControlFlow<()>, AuditError> {
        let (table, topic, partition) = (E::Row::TABLE, self.audited.topic, self.audited.partition);
        let cuts = self.clickhouse.cuts(table, partition, self.audited.offsets).await?;
        let mut cuts = whole(&cuts, self.audited.offsets);
        cuts.retain(|cut| cut.end <= until);
        let of = cuts.last().map_or(self.audited.offsets, |cut| cut.end);
        let mut sealed = self.clickhouse.months(table, partition).await?;
        sealed.retain(|month| month.sealed);
        let mut window = Vec::new();
        for cut in cuts {
            if let Some(month) = sealed.iter().find(|month| (month.first, month.end) == (cut.first, cut.end)) {
                self.compare(std::mem::take(&mut window)).await?;
                if let Some(Unlike { offset, why }) = self.sealed(*month, of, progress).await? {
                    self.tell([Difference::Log { offset, why }]);
                    return Ok(std::ops::ControlFlow::Break(()));
                }
                continue;
            }
            match self.replay.chunk(cut.end).await? {
                Ok(chunk) => window.push(chunk),
                Err(Unlike { offset, why }) => {
                    self.compare(window).await?;
                    self.tell([Difference::Log { offset, why }]);
                    return Ok(std::ops::ControlFlow::Break(()));
                }
            }
            if cut.end - self.audited.offsets >= WINDOW {
                self.compare(std::mem::take(&mut window)).await?;
                progress(Progress { topic, partition, done: self.audited.offsets, of });
            }
        }
        self.compare(window).await?;
        progress(Progress { topic, partition, done: self.audited.offsets, of });
        Ok(std::ops::ControlFlow::Continue(()))
    }

    async fn compare(&mut self, window: Vec<replay::Replayed<E::Row>>) -> Result<(), AuditError> {
        let (table, partition) = (E::Row::TABLE, self.audited.partition);
        let chunks = replay::settled(self.clickhouse, table, partition, window).await?;
        let Some(last) = chunks.last() else { return Ok(()) };
        (self.audited.offsets, self.audited.chain) = (last.end, last.chain);
        self.audited.chunks += chunks.len() as u64;
        for chunk in &chunks {
            self.audited.counts += chunk.counts;
        }
        let different = self.clickhouse.differences(&chunks, TOLD).await?;
        self.tell(different.into_iter().map(Difference::Row));
        Ok(())
    }

    fn tell(&mut self, differences: impl IntoIterator<Item = Difference>) {
        let room = (TOLD + 1).saturating_sub(self.audited.differences.len());
        self.audited.differences.extend(differences.into_iter().take(room));
    }

    /// Compares the sums, if they are of the position that was replayed. False if the fold has gone on meanwhile.
    async fn sums(&mut self, table: Table) -> Result<bool, AuditError> {
        if table != Table::Tokens {
            return Ok(true);
        }
        let totals = match self.clickhouse.partition_totals(self.audited.partition, Slot(0)).await {
            Ok(totals) => totals,
            Err(QueryError::Moving { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if totals.position > self.audited.offsets {
            return Ok(false);
        }
        let found = totals.totals.into_iter().map(|total| {
            let key = (total.tenant, total.model, total.slot);
            (key, (total.tokens, total.requests))
        });
        let found: Sums = found.collect();
        let wanted = &self.replay.sums;
        let keys: std::collections::BTreeSet<_> = wanted.keys().chain(found.keys()).cloned().collect();
        let of = |sums: &Sums, key: &_| sums.get(key).copied().unwrap_or_default();
        let different: Vec<_> = keys
            .into_iter()
            .filter(|key| of(wanted, key) != of(&found, key))
            .map(|key| {
                let (wanted, found) = (of(wanted, &key), of(&found, &key));
                let (tenant, model, slot) = key;
                Difference::Sum { tenant, model, slot, wanted, found }
            })
            .collect();
        self.tell(different);
        Ok(true)
    }
}

/// The cuts with what is missing between them filled in. What lies over another one is none: its row is found as an added one.
fn whole(cuts: &[ChunkCut], from: i64) -> Vec<ChunkCut> {
    let mut whole = Vec::with_capacity(cuts.len());
    let mut at = from;
    for cut in cuts.iter().filter(|cut| cut.end > cut.first) {
        if cut.first < at {
            continue;
        }
        if cut.first > at {
            whole.push(ChunkCut { first: at, end: cut.first });
        }
        whole.push(*cut);
        at = cut.end;
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_between_chunks_are_replayed_and_overlaps_are_not_twice() {
        let cut = |first, end| ChunkCut { first, end };
        assert_eq!(whole(&[cut(0, 3), cut(3, 5)], 0), [cut(0, 3), cut(3, 5)]);
        assert_eq!(whole(&[cut(2, 3), cut(7, 8)], 0), [cut(0, 2), cut(2, 3), cut(3, 7), cut(7, 8)]);
        assert_eq!(whole(&[cut(0, 3), cut(0, 3), cut(1, 2), cut(3, 4), cut(9, 9)], 0), [cut(0, 3), cut(3, 4)]);
        assert_eq!(whole(&[cut(5, 6)], 5), [cut(5, 6)]);
        assert_eq!(whole(&[], 5), []);
    }
}
