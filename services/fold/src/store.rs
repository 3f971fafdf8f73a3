//! The calls of a line, made to ClickHouse: which errors may pass, which need a person, and when tables are made anew.

use std::sync::Arc;

use ledger::time::Slot;
use sql::{
    ChunkRows, ClickHouse, ClickHouseSettings, DataRow, EventAt, InsertError, MigrateError, PartitionTotal, Position,
    Proof, ProofError, QueryError, Table,
};
use tokio::sync::RwLock;

use crate::call::{Refused, StoreError};

/// ClickHouse's numbers of "no such table" and "no such database".
const NO_TABLE: [i32; 2] = [60, 81];
/// How often totals and proof are read until both are of one position, while another process folds the same line.
const TRIES: u32 = 5;

/// One database. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    clickhouse: ClickHouse,
    settings: Arc<ClickHouseSettings>,
    /// How often the tables were made since the start. They are made only while nothing is inserted, and what was proven
    /// of tables from before is inserted nowhere: a chunk that lands in an empty table would be a hole.
    made: Arc<RwLock<u64>>,
}

/// What was proven, and of which tables.
#[derive(Debug)]
pub(crate) struct Proven {
    pub(crate) proof: Proof,
    /// With what the balances begin, if it was asked for.
    pub(crate) totals: Option<Vec<PartitionTotal>>,
    /// To be given with each insert that builds on it.
    pub(crate) tables: u64,
}

impl Store {
    pub(crate) fn new(settings: &ClickHouseSettings) -> Self {
        Self { clickhouse: ClickHouse::new(settings), settings: Arc::new(settings.clone()), made: Arc::default() }
    }

    /// Brings the tables to this binary's version.
    pub(crate) async fn migrate(&self) -> Result<(), StoreError> {
        let mut made = self.made.write().await;
        *made += 1;
        match sql::migrate(&self.settings, |_| {}).await {
            Ok(report) => {
                for migration in &report.applied {
                    tracing::info!(number = migration.number, name = migration.name, "migrated");
                }
                Ok(())
            }
            Err(MigrateError::Query(error)) => Err(StoreError::Unavailable(error.to_string())),
            Err(error) => Err(StoreError::Damaged(error.to_string())),
        }
    }

    /// Where a line stands; with the totals of that very position from a slot on, if asked for. Tables that are missing are
    /// made, and the proof is to be asked for again.
    pub(crate) async fn prove(
        &self,
        table: Table,
        partition: i32,
        totals_from: Option<Slot>,
    ) -> Result<Proven, StoreError> {
        let tables = *self.made.read().await;
        let proven = match totals_from {
            None => self.clickhouse.prove(table, partition).await.map(|proof| (proof, None)),
            Some(from) => self.prove_with_totals(table, partition, from).await,
        };
        match proven {
            Ok((proof, totals)) => Ok(Proven { proof, totals, tables }),
            Err(ProofError::Query(QueryError::Engine { code, .. })) if NO_TABLE.contains(&code) => {
                tracing::warn!(%table, partition, "the table is not there: it is made, and the log folded from its beginning");
                self.migrate().await?;
                Err(StoreError::Unavailable("the tables were missing and have been made".to_owned()))
            }
            Err(ProofError::Query(error)) => Err(passing(&error)),
            Err(error) => Err(StoreError::Damaged(error.to_string())),
        }
    }

    async fn prove_with_totals(
        &self,
        table: Table,
        partition: i32,
        from: Slot,
    ) -> Result<(Proof, Option<Vec<PartitionTotal>>), ProofError> {
        for _ in 0..TRIES {
            let totals = self.clickhouse.partition_totals(partition, from).await?;
            let proof = self.clickhouse.prove(table, partition).await?;
            if proof.position == totals.position {
                return Ok((proof, Some(totals.totals)));
            }
        }
        Err(ProofError::Query(QueryError::Moving { table, partition, tries: TRIES }))
    }

    pub(crate) async fn position(&self, table: Table, partition: i32) -> Result<Position, StoreError> {
        self.clickhouse.position(table, partition).await.map_err(|error| passing(&error))
    }

    pub(crate) async fn event_ids(
        &self,
        table: Table,
        partition: i32,
        numbers: &[(ledger::ids::SourceId, u64)],
    ) -> Result<Vec<EventAt>, StoreError> {
        self.clickhouse.event_ids(table, partition, numbers).await.map_err(|error| passing(&error))
    }

    pub(crate) async fn insert<D: DataRow>(
        &self,
        rows: &ChunkRows<D>,
        retry: u32,
        insert_before_ms: i64,
        tables: u64,
    ) -> Result<(), Refused> {
        let made = self.made.read().await;
        if *made != tables {
            return Err(Refused::Unknown("the tables were made anew since the position was proven".to_owned()));
        }
        self.clickhouse.insert_chunk(rows, retry, insert_before_ms).await.map_err(|error| match error {
            InsertError::Fence => Refused::Fence,
            InsertError::Malformed(why) => Refused::Malformed(why),
            other => Refused::Unknown(other.to_string()),
        })
    }
}

/// What is not read may be read later: ClickHouse restarts, or is migrated by a newer Tollgate.
fn passing(error: &QueryError) -> StoreError {
    StoreError::Unavailable(error.to_string())
}
