//! Where a line stands, by ClickHouse's own account, and whether that account holds.

use std::collections::BTreeMap;

use clickhouse::Row;
use ledger::ids::SourceId;
use ledger::time::Micros;
use serde::Deserialize;

use crate::client::{ClickHouse, fetch_row};
use crate::error::{ProofError, QueryError};
use crate::rows::{OutcomeCounts, SourceEnd, SourceState};
use crate::table::{Kind, Table};
use crate::wire::WireUuid;

const PROOF: &str = include_str!("../queries/proof.sql");
const BEFORE: &str = include_str!("../queries/proof_before.sql");
const POSITION: &str = include_str!("../queries/position.sql");

/// Where a line stands: all that its next chunk depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The next offset.
    pub position: i64,
    /// The running maximum of log time, milliseconds since 1970; [`i64::MIN`] before the first record.
    pub log_time_ms: i64,
    /// Over everything that was read; zeros before the first record.
    pub chain: [u8; 32],
    /// Every source that was seen.
    pub sources: BTreeMap<SourceId, SourceState>,
    /// What became of all offsets.
    pub counts: OutcomeCounts,
    /// ClickHouse's clock when the query began, milliseconds since 1970: deadlines are counted from it.
    pub now_ms: i64,
}

/// The next offset of a line, and ClickHouse's clock when it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Row, Deserialize)]
pub struct Position {
    /// The next offset; 0 where nothing is.
    pub position: i64,
    /// The offsets that its chunks hold: as many as the position, or what was proven before is not there any more.
    pub offsets: i64,
    /// Milliseconds since 1970: deadlines are counted from it.
    pub now_ms: i64,
}

/// One kind of rows of one source: kind, source, rows, first, end, lengths, squares, folded, duplicates, dead, marks, log
/// time, chain, and (last number, watermark, end, next source).
type WireGroup = (i8, WireUuid, u64, i64, i64, i64, i64, i64, i64, i64, i64, i64, [u8; 32], (u64, i64, i8, WireUuid));

#[derive(Row, Deserialize)]
struct Answer {
    now_ms: i64,
    groups: Vec<WireGroup>,
}

/// All rows of one kind and source of a line, summed up: what a proof is made of. A simulation of ClickHouse makes them too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Which rows.
    pub kind: Kind,
    /// Of which source; nil for chunks.
    pub source: SourceId,
    /// How many.
    pub rows: u64,
    /// The lowest first offset of their chunks.
    pub first: i64,
    /// The highest end.
    pub end: i64,
    /// Σ (end − first).
    pub lengths: i64,
    /// Σ (end² − first²).
    pub squares: i64,
    /// Σ of the chunks' counts.
    pub counts: OutcomeCounts,
    /// The highest log time, milliseconds.
    pub log_time_ms: i64,
    /// The chain of the row with the highest end.
    pub chain: [u8; 32],
    /// The state in the row with the highest first offset.
    pub state: SourceState,
}

fn group(wire: WireGroup) -> Result<Group, QueryError> {
    let (kind, source, rows, first, end, lengths, squares, folded, duplicates, dead, marks, log_time_ms, chain, state) =
        wire;
    Ok(Group {
        kind: Kind::of(kind).ok_or_else(|| QueryError::Mismatch(format!("rows of the unknown kind {kind}")))?,
        source: SourceId(source.0),
        rows,
        first,
        end,
        lengths,
        squares,
        counts: OutcomeCounts { folded, duplicates, dead, marks },
        log_time_ms,
        chain,
        state: source_state(state)?,
    })
}

impl Answer {
    fn read(self) -> Result<(i64, Vec<Group>), QueryError> {
        Ok((self.now_ms, self.groups.into_iter().map(group).collect::<Result<_, _>>()?))
    }
}

impl ClickHouse {
    /// Where the line of a partition stands, proven to be one whole folding from offset 0: one SELECT through the
    /// projection.
    ///
    /// # Errors
    /// No answer, or a damaged table, on which nothing must be built.
    pub async fn prove(&self, table: Table, partition: i32) -> Result<Proof, ProofError> {
        let (now_ms, groups) = self.groups(table, partition).await?;
        Proof::of(table, partition, now_ms, groups)
    }

    /// Where the line stood before a month of the log, proven: of the parts of the months before.
    ///
    /// # Errors
    /// No answer, or a damaged table.
    pub async fn prove_before(&self, table: Table, partition: i32, month: u32) -> Result<Proof, ProofError> {
        let query = self.rows(BEFORE).param("table", table.name()).param("partition", partition).param("month", month);
        let (now_ms, groups) = fetch_row::<Answer>(query).await?.read()?;
        Proof::of(table, partition, now_ms, groups)
    }

    /// What a proof is made of, also where it is none: ClickHouse's clock, and the sums of each kind and source.
    ///
    /// # Errors
    /// No answer.
    pub async fn groups(&self, table: Table, partition: i32) -> Result<(i64, Vec<Group>), QueryError> {
        self.through_projection(PROOF, table, partition, |a: &Answer| a.groups.is_empty()).await?.read()
    }

    /// The next offset alone: the read-back after an insert.
    ///
    /// # Errors
    /// No answer.
    pub async fn position(&self, table: Table, partition: i32) -> Result<Position, QueryError> {
        self.through_projection(POSITION, table, partition, |p: &Position| p.position == 0).await
    }

    /// One row that a projection is to answer. Where nothing is, ClickHouse finds none to read; then, and if it is missing,
    /// the rows themselves answer, which is as right and slower.
    async fn through_projection<T>(
        &self,
        sql: &str,
        table: Table,
        partition: i32,
        nothing: fn(&T) -> bool,
    ) -> Result<T, QueryError>
    where
        T: clickhouse::RowOwned + clickhouse::RowRead,
    {
        let ask = async |force: &str| {
            let query = self.rows(sql).param("table", table.name()).param("partition", partition);
            let query = query.with_setting("optimize_use_projections", "1");
            fetch_row::<T>(query.with_setting("force_optimize_projection", force)).await
        };
        match ask("1").await {
            Err(error) if error.is_projection_not_used() => {
                let answer = ask("0").await?;
                if !nothing(&answer) {
                    tracing::warn!(%table, partition, "the position was read from all rows: a projection is missing");
                }
                Ok(answer)
            }
            answer => answer,
        }
    }
}

impl Proof {
    /// Checks what ClickHouse says of a line: each offset from 0 is there exactly once, with its outcome and its row.
    ///
    /// # Errors
    /// A damaged table, on which nothing must be built.
    pub fn of(
        table: Table,
        partition: i32,
        now_ms: i64,
        groups: impl IntoIterator<Item = Group>,
    ) -> Result<Self, ProofError> {
        let mut proof = Self {
            position: 0,
            log_time_ms: i64::MIN,
            chain: [0; 32],
            sources: BTreeMap::new(),
            counts: OutcomeCounts::default(),
            now_ms,
        };
        let (mut data_rows, mut dead_rows) = (0_u64, 0_u64);
        for Group { kind, source, rows, first, end, lengths, squares, counts, log_time_ms, chain, state } in groups {
            match kind {
                // A row of a sealed month says how many more it stands for.
                Kind::Data => data_rows = data_rows.saturating_add(rows).saturating_add_signed(counts.folded),
                Kind::Dead => dead_rows += rows,
                Kind::Source => {
                    proof.sources.insert(source, state);
                }
                Kind::Chunk => {
                    if first != 0 {
                        return Err(ProofError::NoBeginning { table, partition, first });
                    }
                    // A chunk too many and one too few may hide each other in the sum of lengths, not in that of squares.
                    if lengths != end || squares != end.wrapping_mul(end) {
                        return Err(ProofError::NotOnce { table, partition, position: end, lengths });
                    }
                    (proof.position, proof.log_time_ms, proof.chain, proof.counts) = (end, log_time_ms, chain, counts);
                }
            }
        }
        let unbalanced = |what| Err(ProofError::Unbalanced { table, partition, what });
        let counts = proof.counts;
        if counts.total() != Some(proof.position) {
            return unbalanced(format!("the outcomes {counts:?} do not add up to {} offsets", proof.position));
        }
        if (u64::try_from(counts.folded), u64::try_from(counts.dead)) != (Ok(data_rows), Ok(dead_rows)) {
            return unbalanced(format!("{data_rows} data rows and {dead_rows} dead rows for {counts:?}"));
        }
        Ok(proof)
    }
}

fn source_state((last_seq, watermark, end, next): (u64, i64, i8, WireUuid)) -> Result<SourceState, QueryError> {
    let end = match end {
        0 => None,
        1 => Some(SourceEnd::Closed { next: SourceId(next.0) }),
        2 => Some(SourceEnd::Drained),
        unknown => return Err(QueryError::Mismatch(format!("a source that ended in the unknown way {unknown}"))),
    };
    Ok(SourceState { last_seq, watermark: Micros(watermark), end })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the projection would say of these chunks, all of whose offsets are marks.
    fn said(chunks: &[(i64, i64)]) -> Vec<Group> {
        let sum = |of: fn(&(i64, i64)) -> i64| chunks.iter().map(of).sum::<i64>();
        let lengths = sum(|(first, end)| end - first);
        vec![Group {
            kind: Kind::Chunk,
            source: SourceId(uuid::Uuid::nil()),
            rows: chunks.len() as u64,
            first: chunks.iter().map(|c| c.0).min().unwrap(),
            end: chunks.iter().map(|c| c.1).max().unwrap(),
            lengths,
            squares: sum(|(first, end)| end * end - first * first),
            counts: OutcomeCounts { marks: lengths, ..OutcomeCounts::default() },
            log_time_ms: 5,
            chain: [9; 32],
            state: SourceState { last_seq: 0, watermark: Micros(0), end: None },
        }]
    }

    fn examine(table: Table, partition: i32, groups: Vec<Group>) -> Result<Proof, ProofError> {
        Proof::of(table, partition, 1, groups)
    }

    #[test]
    fn a_chunk_too_many_does_not_hide_one_too_few() {
        let table = Table::Tokens;
        assert_eq!(examine(table, 0, said(&[(0, 10), (10, 30)])).unwrap().position, 30);
        let hidden = examine(table, 0, said(&[(0, 10), (0, 10), (20, 30)])).unwrap_err();
        assert!(matches!(hidden, ProofError::NotOnce { position: 30, lengths: 30, .. }), "{hidden}");
        let hole = examine(table, 0, said(&[(0, 10), (20, 30)])).unwrap_err();
        assert!(matches!(hole, ProofError::NotOnce { .. }), "{hole}");
        let late = examine(table, 0, said(&[(10, 20)])).unwrap_err();
        assert!(matches!(late, ProofError::NoBeginning { first: 10, .. }), "{late}");
        assert_eq!(examine(table, 0, vec![]).unwrap().position, 0);
    }

    proptest! {
        #[test]
        fn any_cut_of_the_log_is_proven_and_any_one_change_is_not(cuts in prop::collection::btree_set(1i64..1_000, 2..12), at in any::<prop::sample::Index>()) {
            let ends: Vec<i64> = cuts.into_iter().collect();
            let starts = std::iter::once(0).chain(ends.iter().copied());
            let chunks: Vec<(i64, i64)> = starts.zip(ends.iter().copied()).collect();
            prop_assert_eq!(examine(Table::Tokens, 1, said(&chunks)).unwrap().position, *ends.last().unwrap());
            let at = at.index(chunks.len());
            let mut doubled = chunks.clone();
            doubled.push(chunks[at]);
            prop_assert!(examine(Table::Tokens, 1, said(&doubled)).is_err());
            let mut holed = chunks.clone();
            holed.remove(at);
            // Without its last chunk a line is only shorter.
            prop_assert_eq!(examine(Table::Tokens, 1, said(&holed)).is_err(), at + 1 < chunks.len());
        }
    }
}
