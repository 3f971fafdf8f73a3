//! A simulated ClickHouse: it keeps tokens, loses parts, forgets tokens, refuses what is late, runs statements that nobody
//! waits for, and can be put back to an older state.

use std::collections::BTreeMap;
use std::sync::Arc;

use ledger::ids::SourceId;
use ledger::time::{Micros, Slot};
use sql::{
    ChunkRows, EventAt, Folded, Group, Kind, OutcomeCounts, PartitionTotal, Position, Proof, SourceState, Table,
    TokenRow,
};
use stream::simulation::{Rule, left_out};
use uuid::Uuid;

use super::START_MS;
use crate::call::{Refused, StoreError};

/// Offsets that one block holds. A longer chunk would be several parts.
pub(super) const BLOCK: i64 = 12;
/// A statement that runs longer is ended (`max_execution_time`).
const LONGEST_MS: u64 = 30_000;

/// A statement on its way.
#[derive(Debug, Clone)]
pub(super) struct Insert {
    pub(super) rows: Arc<ChunkRows<TokenRow>>,
    pub(super) retry: u32,
    pub(super) insert_before_ms: i64,
    /// ClickHouse's clock when the statement began.
    pub(super) opened_ms: i64,
    /// How often the tables were made then.
    pub(super) tables: u64,
    /// When its block came, by a steady clock: its deadline was looked at then.
    pub(super) block_at: Option<u64>,
}

/// What is left of an insert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    All,
    /// Killed between the token and the part.
    TokenOnly,
    /// Killed after the first of several parts, or before the sums that lie elsewhere.
    First,
}

/// A part: some rows of a chunk, in one piece.
#[derive(Debug, Clone)]
struct Part {
    chunk: Arc<ChunkRows<TokenRow>>,
    /// Which of the data rows.
    data: std::ops::Range<usize>,
    /// Whether dead letters, sources and the chunk's own row are in it.
    figures: bool,
    /// Whether the aggregates know it.
    sums: bool,
}

/// What a token stands for.
#[derive(Debug, Clone, Copy)]
struct Token {
    partition: i32,
    first: i64,
    /// When it, or another one of the same chunk, was last written, by a steady clock.
    at: u64,
}

/// ClickHouse, as far as lines know it.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) clock_ms: i64,
    parts: Vec<Part>,
    tokens: BTreeMap<String, Token>,
    /// Statements that nobody waits for any more, and that may run yet.
    pub(super) late: Vec<Insert>,
    /// How often the tables were made.
    pub(super) made: u64,
    pub(super) torn: u64,
    pub(super) deduplicated: u64,
    pub(super) refused: u64,
}

impl Engine {
    pub(super) fn new() -> Self {
        let (parts, tokens, late) = (Vec::new(), BTreeMap::new(), Vec::new());
        Self { clock_ms: START_MS, parts, tokens, late, made: 0, torn: 0, deduplicated: 0, refused: 0 }
    }

    /// The block of a statement comes: its deadline is looked at. False if it is refused.
    pub(super) fn block(&mut self, insert: &mut Insert, now: u64) -> bool {
        let clock_ms = if left_out(Rule::FenceInBlock) { insert.opened_ms } else { self.clock_ms };
        if insert.insert_before_ms <= clock_ms && !left_out(Rule::Fence) {
            self.refused += 1;
            return false;
        }
        insert.block_at = Some(now);
        true
    }

    /// The statement ends, one way or another.
    pub(super) fn land(&mut self, mut insert: Insert, now: u64, kept: Kept) -> Result<(), Refused> {
        if insert.tables != self.made {
            return Err(Refused::Unknown("the table is not there any more".into()));
        }
        if insert.block_at.is_none() && !self.block(&mut insert, now) {
            return Err(Refused::Fence);
        }
        if insert.block_at.is_some_and(|at| now.saturating_sub(at) > LONGEST_MS) {
            return Err(Refused::Unknown("it took too long".into()));
        }
        let blocks = self.blocks(&insert.rows);
        let several = blocks.len() > 1 || left_out(Rule::Projections);
        let kept = if kept == Kept::First && !several { Kept::TokenOnly } else { kept };
        for (at, (data, figures)) in blocks.into_iter().enumerate() {
            let mut token = Table::Tokens.token(insert.rows.partition, insert.rows.first, insert.retry);
            if left_out(Rule::TokenOfFirst) {
                token = format!("{token}-{}", insert.rows.end);
            }
            if self.tokens.contains_key(&format!("{token}#{at}")) && !left_out(Rule::Token) {
                self.deduplicated += 1;
                continue;
            }
            let (partition, first) = (insert.rows.partition, insert.rows.first);
            self.tokens.insert(format!("{token}#{at}"), Token { partition, first, at: now });
            if kept == Kept::TokenOnly {
                self.torn += 1;
                return Err(Refused::Unknown("killed".into()));
            }
            let same = |token: &&mut Token| (token.partition, token.first) == (partition, first);
            self.tokens.values_mut().filter(same).for_each(|token| token.at = now);
            let sums = kept == Kept::All || !left_out(Rule::Projections);
            self.parts.push(Part { chunk: insert.rows.clone(), data, figures, sums });
            if kept == Kept::First {
                return Err(Refused::Unknown("killed".into()));
            }
        }
        Ok(())
    }

    /// The parts that a chunk becomes: one, unless a rule is left out.
    fn blocks(&self, rows: &ChunkRows<TokenRow>) -> Vec<(std::ops::Range<usize>, bool)> {
        let all = rows.data.len();
        if all > 1 && (left_out(Rule::OnePart) || rows.end - rows.first > BLOCK) {
            return vec![(0..all / 2, false), (all / 2..all, true)];
        }
        vec![(0..all, true)]
    }

    /// Tokens that are older than `age` are forgotten: other parts drove them out. A window that fits outlasts the time
    /// between a token that lost its part and the write that makes up for it: those are as old as that write.
    pub(super) fn forget(&mut self, age: u64, now: u64) {
        let positions: Vec<_> = (0..stream::simulation::PARTITIONS).map(|p| self.position(p).position).collect();
        self.tokens.retain(|_, token| {
            let waits =
                age > 0 && positions.get(token.partition as usize).is_some_and(|&position| token.first >= position);
            waits || now.saturating_sub(token.at) < age
        });
    }

    /// The disk is put back to what it held before the last `parts` parts.
    pub(super) fn lose(&mut self, parts: usize, keeps_tokens: bool) {
        for _ in 0..parts {
            let Some(lost) = self.parts.pop() else { return };
            let of = (lost.chunk.partition, lost.chunk.first);
            if !keeps_tokens {
                self.tokens.retain(|_, token| (token.partition, token.first) != of);
            }
        }
    }

    /// The tables are dropped and made anew; what ran on them ends.
    pub(super) fn drop_data(&mut self) {
        self.parts.clear();
        self.tokens.clear();
        self.late.clear();
        self.made += 1;
    }

    /// A part is there twice.
    pub(super) fn double_first(&mut self) {
        let part = self.parts.first().cloned();
        self.parts.extend(part);
    }

    fn of(&self, partition: i32) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(move |part| part.chunk.partition == partition)
    }

    pub(super) fn position(&self, partition: i32) -> Position {
        let chunks = || self.of(partition).filter(|part| part.figures).map(|part| &part.chunk);
        let position = chunks().map(|chunk| chunk.end).max().unwrap_or(0);
        let offsets = chunks().map(|chunk| chunk.end - chunk.first).sum();
        let offsets = if left_out(Rule::ProofSums) { position } else { offsets };
        Position { position, offsets, now_ms: self.clock_ms }
    }

    /// What the proof's query says, checked as `sql` checks it.
    pub(super) fn prove(&self, partition: i32) -> Result<Proof, StoreError> {
        let groups = self.groups(partition);
        Proof::of(Table::Tokens, partition, self.clock_ms, groups)
            .map_err(|error| StoreError::Damaged(error.to_string()))
    }

    fn groups(&self, partition: i32) -> Vec<Group> {
        let nobody = SourceId(Uuid::nil());
        let state = SourceState { last_seq: 0, watermark: Micros(0), end: None };
        let counts = OutcomeCounts::default();
        let empty = |kind, source| Group {
            kind,
            source,
            rows: 0,
            first: i64::MAX,
            end: 0,
            lengths: 0,
            squares: 0,
            counts,
            log_time_ms: i64::MIN,
            chain: [0; 32],
            state,
        };
        let (mut data, mut dead) = (empty(Kind::Data, nobody), empty(Kind::Dead, nobody));
        let mut chunk = empty(Kind::Chunk, nobody);
        let mut sources: BTreeMap<SourceId, Group> = BTreeMap::new();
        for Part { chunk: rows, data: range, figures, .. } in self.of(partition) {
            data.rows += range.len() as u64;
            if !figures {
                continue;
            }
            dead.rows += rows.dead.len() as u64;
            for (source, state) in &rows.sources {
                let group = sources.entry(*source).or_insert_with(|| empty(Kind::Source, *source));
                // The highest first offset so far is kept in `end`.
                if group.rows == 0 || rows.first >= group.end {
                    (group.state, group.end) = (*state, rows.first);
                }
                group.rows += 1;
            }
            if rows.end > chunk.end {
                (chunk.end, chunk.chain) = (rows.end, rows.chain);
            }
            chunk.rows += 1;
            chunk.first = chunk.first.min(rows.first);
            chunk.lengths += rows.end - rows.first;
            chunk.squares += rows.end * rows.end - rows.first * rows.first;
            chunk.log_time_ms = chunk.log_time_ms.max(rows.log_time_ms);
            chunk.counts.folded += rows.counts.folded;
            chunk.counts.duplicates += rows.counts.duplicates;
            chunk.counts.dead += rows.counts.dead;
            chunk.counts.marks += rows.counts.marks;
        }
        if left_out(Rule::ProofSums) {
            (chunk.first, chunk.lengths, chunk.squares) = (0, chunk.end, chunk.end * chunk.end);
            chunk.counts = OutcomeCounts { folded: chunk.end, ..counts };
            (data.rows, dead.rows) = (chunk.end as u64, 0);
        }
        let whole = [data, dead, chunk].into_iter().filter(|group| group.rows > 0);
        whole.chain(sources.into_values()).collect()
    }

    pub(super) fn event_ids(&self, partition: i32, numbers: &[(SourceId, u64)]) -> Vec<EventAt> {
        let data = self.data(partition).map(|row| (row.event.source, row.event.seq, row.event.event_id));
        let chunks = self.of(partition).filter(|part| part.figures);
        let dead = chunks.flat_map(|part| &part.chunk.dead).filter_map(|dead| dead.took);
        data.chain(dead)
            .filter(|(source, seq, _)| numbers.contains(&(*source, *seq)))
            .map(|(source, seq, event_id)| EventAt { source, seq, event_id })
            .collect()
    }

    /// All data rows of a partition.
    pub(super) fn data(&self, partition: i32) -> impl Iterator<Item = &Folded<TokenRow>> {
        self.of(partition).flat_map(|part| part.chunk.data.get(part.data.clone()).unwrap_or_default())
    }

    /// All dead letters of a partition: offset and reason.
    pub(super) fn dead(&self, partition: i32) -> BTreeMap<i64, String> {
        let chunks = self.of(partition).filter(|part| part.figures);
        chunks.flat_map(|part| &part.chunk.dead).map(|dead| (dead.offset, dead.reason.clone())).collect()
    }

    /// What the aggregates hold of a partition.
    pub(super) fn totals(&self, partition: i32) -> Vec<PartitionTotal> {
        let parts = self.of(partition).filter(|part| part.sums);
        let rows = parts.flat_map(|part| part.chunk.data.get(part.data.clone()).unwrap_or_default());
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
