//! A simulated ClickHouse: it keeps tokens, loses parts, refuses what is late, and runs statements nobody waits for.

use std::collections::{BTreeMap, BTreeSet};

use ledger::ids::SourceId;
use ledger::time::Slot;
use sql::{ChunkRows, EventAt, OutcomeCounts, PartitionTotal, Proof, Table, TokenRow};

use super::START_MS;
use crate::call::{Refused, StoreError};

pub(super) struct Insert {
    pub(super) rows: ChunkRows<TokenRow>,
    pub(super) retry: u32,
    pub(super) insert_before_ms: i64,
}

/// ClickHouse, as far as a line knows it.
pub(super) struct Engine {
    pub(super) clock_ms: i64,
    pub(super) chunks: Vec<ChunkRows<TokenRow>>,
    pub(super) tokens: BTreeSet<String>,
    /// Statements that nobody waits for any more, and that may run yet.
    pub(super) late: Vec<Insert>,
    /// How often the tables were made.
    pub(super) made: u64,
    pub(super) torn: u32,
    pub(super) deduplicated: u32,
    pub(super) refused: u32,
}

impl Engine {
    pub(super) fn new() -> Self {
        let (chunks, tokens, late) = (Vec::new(), BTreeSet::new(), Vec::new());
        Self { clock_ms: START_MS, chunks, tokens, late, made: 0, torn: 0, deduplicated: 0, refused: 0 }
    }

    /// `keeps_part` is false when it is killed between the token and the part.
    pub(super) fn insert(&mut self, insert: Insert, keeps_part: bool) -> Result<(), Refused> {
        insert.rows.check().unwrap();
        if insert.insert_before_ms <= self.clock_ms {
            self.refused += 1;
            return Err(Refused::Fence);
        }
        if !self.tokens.insert(Table::Tokens.token(0, insert.rows.first, insert.retry)) {
            self.deduplicated += 1;
            return Ok(());
        }
        if keeps_part {
            self.chunks.push(insert.rows);
            return Ok(());
        }
        self.torn += 1;
        Err(Refused::Unknown("killed".into()))
    }

    pub(super) fn position(&self) -> i64 {
        self.chunks.iter().map(|chunk| chunk.end).max().unwrap_or(0)
    }

    pub(super) fn prove(&self) -> Result<Proof, StoreError> {
        let mut chunks: Vec<_> = self.chunks.iter().collect();
        chunks.sort_by_key(|chunk| chunk.first);
        let mut proof = Proof {
            position: 0,
            log_time_ms: i64::MIN,
            chain: [0; 32],
            sources: BTreeMap::new(),
            counts: OutcomeCounts::default(),
            now_ms: self.clock_ms,
        };
        for chunk in chunks {
            if chunk.first != proof.position {
                return Err(StoreError::Damaged(format!("{} after {}", chunk.first, proof.position)));
            }
            (proof.position, proof.log_time_ms, proof.chain) = (chunk.end, chunk.log_time_ms, chunk.chain);
            proof.sources.extend(chunk.sources.iter().map(|(source, state)| (*source, *state)));
            proof.counts.folded += chunk.counts.folded;
            proof.counts.duplicates += chunk.counts.duplicates;
            proof.counts.dead += chunk.counts.dead;
            proof.counts.marks += chunk.counts.marks;
        }
        Ok(proof)
    }

    pub(super) fn event_ids(&self, numbers: &[(SourceId, u64)]) -> Vec<EventAt> {
        let rows = self.chunks.iter().flat_map(|chunk| &chunk.data);
        let data = rows.map(|row| (row.event.source, row.event.seq, row.event.event_id));
        let dead = self.chunks.iter().flat_map(|chunk| &chunk.dead).filter_map(|dead| dead.took);
        data.chain(dead)
            .filter(|(source, seq, _)| numbers.contains(&(*source, *seq)))
            .map(|(source, seq, event_id)| EventAt { source, seq, event_id })
            .collect()
    }

    pub(super) fn totals(&self) -> Vec<PartitionTotal> {
        let rows = self.chunks.iter().flat_map(|chunk| &chunk.data);
        rows.map(|row| PartitionTotal {
            tenant: row.event.tenant_id.clone(),
            model: row.event.model.clone(),
            slot: Slot::of(row.event.occurred_at),
            tokens: row.event.delta,
            requests: row.event.requests,
        })
        .collect()
    }
}
