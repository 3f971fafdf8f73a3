//! The log folded once more, into a database beside the old one: chains are compared at the end of every old chunk, and sums.
//!
//! Each database is one whole folding by itself, and says itself how far it is. So nothing is handed over: fold and readers
//! are started with the new one, and the fold goes on where the rebuild stopped.

use std::collections::BTreeMap;

use ledger::time::Slot;
use schemas::event::{RequestFinished, TokensCounted};
use sql::{
    ChunkRows, ClickHouse, ClickHouseSettings, DataRow, InsertError, MigrateError, ProofError, QueryError, Table,
};
use stream::cut::CutPolicy;
use thiserror::Error;

use crate::archive::Log;
use crate::audit::replay::{Replay, Room, Unlike, settled};
use crate::audit::{AuditError, Progress};
use crate::chunk::proven;
use crate::driver::INSERT_WITHIN_MS;
use crate::event::FoldEvent;

/// Offsets in a block, if nothing else is said.
pub const BLOCK_OFFSETS: u64 = 200_000;
/// Bytes of records in a block.
const BLOCK_BYTES: u64 = 64 << 20;
/// Tokens that are tried for a chunk whose part the engine lost.
const RETRIES: u32 = 5;
/// So often what the old database has got meanwhile is folded too, so that sums can be compared.
const TRIES: u32 = 10;

/// Why it stopped. Run again, it goes on from what is there.
#[derive(Debug, Error)]
pub enum RebuildError {
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] AuditError),
    /// The log cannot be folded beyond this.
    #[error("{topic}/{partition} cannot be folded beyond offset {offset}: {why}")]
    Unlike {
        /// Which.
        topic: &'static str,
        /// Which.
        partition: i32,
        /// Where.
        offset: i64,
        /// Why.
        why: String,
    },
    /// A database was not read.
    #[error("ClickHouse cannot be read: {0}")]
    Query(#[from] QueryError),
    /// The new database is not to be built on.
    #[error("the new database is damaged, drop it and begin anew: {0}")]
    Damaged(ProofError),
    /// The new database was not made.
    #[error("the new database cannot be made: {0}")]
    Migrate(#[from] MigrateError),
    /// A chunk was not written.
    #[error("a chunk was not written: {0}")]
    Insert(#[from] InsertError),
    /// Somebody else is at it.
    #[error(
        "{table}/{partition} of the new database moved from {wanted} to {found}: another rebuild or a fold writes it"
    )]
    Beside {
        /// Which.
        table: Table,
        /// Which.
        partition: i32,
        /// Where it should be.
        wanted: i64,
        /// Where it is.
        found: i64,
    },
}

/// What came of one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilt {
    /// Its topic.
    pub topic: &'static str,
    /// Its partition.
    pub partition: i32,
    /// What was there when it began.
    pub from: i64,
    /// The next offset of the new database.
    pub offsets: i64,
    /// Chunk ends of the old database at which the chains were compared.
    pub compared: u64,
    /// Whether the sums were compared: not while the old database moves on faster than it is followed, nor if it lacks what only the
    /// archive has.
    pub summed: bool,
    /// In what the old database differs, in words.
    pub differences: Vec<String>,
}

/// Folds these partitions of both topics into the database of `new`, as far as that of `old` has come, and compares both. What Kafka
/// no longer has is folded from the archive even where the old one lacks it: a fold could not reach it. Neither balances nor copies of dead letters are written. `block_offsets` bounds what is inserted at once.
///
/// # Errors
/// See [`RebuildError`].
pub async fn run(
    log: Log<'_>,
    old: &ClickHouseSettings,
    new: &ClickHouseSettings,
    partitions: &[i32],
    block_offsets: u64,
    mut progress: impl FnMut(Progress),
) -> Result<Vec<Rebuilt>, RebuildError> {
    sql::migrate(new, |_| {}).await?;
    let room =
        CutPolicy { max_age_ms: u64::MAX, max_quiet_ms: u64::MAX, max_offsets: block_offsets, max_bytes: BLOCK_BYTES };
    let rebuild = Rebuild { log, old: ClickHouse::new(old), new: ClickHouse::new(new), room };
    let mut rebuilt = Vec::new();
    for &partition in partitions {
        rebuilt.push(rebuild.line::<TokensCounted>(partition, &mut progress).await?);
        rebuilt.push(rebuild.line::<RequestFinished>(partition, &mut progress).await?);
    }
    Ok(rebuilt)
}

struct Rebuild<'a> {
    log: Log<'a>,
    old: ClickHouse,
    new: ClickHouse,
    room: CutPolicy,
}

impl Rebuild<'_> {
    async fn line<E: FoldEvent>(
        &self,
        partition: i32,
        progress: &mut impl FnMut(Progress),
    ) -> Result<Rebuilt, RebuildError> {
        let table = E::Row::TABLE;
        let proof = self.new.prove(table, partition).await.map_err(|error| match error {
            ProofError::Query(error) => RebuildError::Query(error),
            damaged => RebuildError::Damaged(damaged),
        })?;
        let (topic, from) = (table.topic(), proof.position);
        let mut line =
            Rebuilt { topic, partition, from, offsets: from, compared: 0, summed: false, differences: Vec::new() };
        match self.old.prove(table, partition).await {
            Ok(_) => {}
            Err(ProofError::Query(error)) => return Err(error.into()),
            Err(damaged) => line.differences.push(damaged.to_string()),
        }
        let mut replay = Replay::<E>::open(self.log, partition, proven(&proof))?;
        for _ in 0..TRIES {
            self.fill(&mut replay, &mut line, progress).await?;
            line.summed = self.sums(table, &mut line).await?;
            if line.summed || self.old.position(table, partition).await?.position < line.offsets {
                break;
            }
        }
        Ok(line)
    }

    /// Folds what the old database has and the new one lacks, and what only the archive has.
    async fn fill<E: FoldEvent>(
        &self,
        replay: &mut Replay<'_, E>,
        line: &mut Rebuilt,
        progress: &mut impl FnMut(Progress),
    ) -> Result<(), RebuildError> {
        let (table, topic, partition) = (E::Row::TABLE, line.topic, line.partition);
        let old = self.old.position(table, partition).await?.position;
        let of = old.max(self.log.reach(topic, partition).await?);
        let chains = self.old.chains(table, partition, line.offsets).await?;
        while line.offsets < of {
            let cut = replay.cut(of, Room { block: &self.room, months: false }, |state| {
                compare(&chains, state.position, state.chain.0, line);
            });
            let chunk =
                cut.await?.map_err(|Unlike { offset, why }| RebuildError::Unlike { topic, partition, offset, why })?;
            for rows in settled(&self.new, table, partition, vec![chunk]).await? {
                self.write(&rows).await?;
                line.offsets = rows.end;
            }
            progress(Progress { topic, partition, done: line.offsets, of });
        }
        Ok(())
    }

    /// Writes a chunk under the rules of the fold: a token that names its begin, a deadline, and reading back.
    async fn write<D: DataRow>(&self, rows: &ChunkRows<D>) -> Result<(), RebuildError> {
        let (table, partition) = (D::TABLE, rows.partition);
        let beside = |wanted, found| RebuildError::Beside { table, partition, wanted, found };
        for retry in 0..RETRIES {
            let before = self.new.position(table, partition).await?;
            if (before.position, before.offsets) != (rows.first, rows.first) {
                return Err(beside(rows.first, before.position));
            }
            self.new.insert_chunk(rows, retry, before.now_ms + INSERT_WITHIN_MS).await?;
            let after = self.new.position(table, partition).await?;
            if (after.position, after.offsets) == (rows.end, rows.end) {
                return Ok(());
            }
        }
        Err(beside(rows.end, rows.first))
    }

    /// Compares the sums, if both are of one position. False if they are not.
    async fn sums(&self, table: Table, line: &mut Rebuilt) -> Result<bool, RebuildError> {
        if table != Table::Tokens {
            return Ok(true);
        }
        let of = async |database: &ClickHouse| match database.partition_totals(line.partition, Slot(0)).await {
            Ok(totals) => Ok(Some(totals)),
            Err(QueryError::Moving { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        let (Some(old), Some(new)) = (of(&self.old).await?, of(&self.new).await?) else { return Ok(false) };
        if old.position != new.position {
            return Ok(false);
        }
        if let Some((old, new)) = old.totals.iter().zip(&new.totals).find(|(old, new)| old != new) {
            line.differences
                .push(format!("the first sums that differ: the old database has {old:?}, the log says {new:?}"));
        } else if old.totals.len() != new.totals.len() {
            let (old, new) = (old.totals.len(), new.totals.len());
            line.differences
                .push(format!("the old database has {old} sums of tenant, model and slot, the log says {new}"));
        }
        Ok(true)
    }
}

fn compare(chains: &BTreeMap<i64, [u8; 32]>, end: i64, chain: [u8; 32], line: &mut Rebuilt) {
    let Some(old) = chains.get(&end) else { return };
    line.compared += 1;
    // A chain holds all that came before, so those behind the first that differs say no more.
    if *old != chain && !line.differences.iter().any(|said| said.contains("chain")) {
        line.differences.push(format!("the chain of the old chunk that ends at offset {end} is not the log's"));
    }
}
