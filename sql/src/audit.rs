//! What a raw table holds of a range of offsets, held row by row to what the log says.

use std::collections::{BTreeMap, HashMap};

use clickhouse::Row;
use ledger::ids::{RequestId, SourceId};
use serde::Deserialize;

use crate::calendar::log_month;
use crate::client::{ClickHouse, fetch, within_deadline};
use crate::error::QueryError;
use crate::insert::place;
use crate::raw::sealed::{SealedRow, SealedRows};
use crate::raw::{DataRow, Field, Figures, Place, RawRow, RowKey};
use crate::rows::ChunkRows;
use crate::table::{Kind, Table};

const CUTS: &str = include_str!("../queries/cuts.sql");
const CHAINS: &str = include_str!("../queries/chains.sql");
const RAW_ROWS: &str = include_str!("../queries/raw_rows.sql");

/// A chunk as it was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Row, Deserialize)]
pub struct ChunkCut {
    /// Its first offset.
    #[serde(rename = "chunk_first")]
    pub first: i64,
    /// The offset after its last.
    #[serde(rename = "chunk_end")]
    pub end: i64,
}

#[derive(Row, Deserialize)]
struct ChainAt {
    chunk_end: i64,
    chain: [u8; 32],
}

/// A row that is not as the log says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowDifference {
    /// Where the row stands: of a source's or chunk's own row, the chunk's first offset.
    pub offset: i64,
    /// What it is.
    pub kind: Kind,
    /// The request that it is of, if it is of one.
    pub request: Option<RequestId>,
    /// What is wrong with it.
    pub fault: RowFault,
}

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowFault {
    /// The log says that it should be there, and it is not.
    Missing,
    /// It is there, or there once more, and the log knows nothing of it.
    Added,
    /// A field of it is another than the log says.
    Changed(Field),
}

/// Where in the chunks a row that should be there comes from.
#[derive(Clone, Copy)]
enum Wanted {
    Data(usize, usize),
    Dead(usize, usize),
    Source(usize, uuid::Uuid),
    Chunk(usize),
}

impl ClickHouse {
    /// The chunks of a line from an offset on, as they were cut.
    ///
    /// # Errors
    /// No answer.
    pub async fn cuts(&self, table: Table, partition: i32, from: i64) -> Result<Vec<ChunkCut>, QueryError> {
        let query = self.rows(CUTS).param("table", table.name()).param("partition", partition).param("from", from);
        fetch::<ChunkCut>(query).await
    }

    /// The chain of a line at the end of each of its chunks, beyond an offset.
    ///
    /// # Errors
    /// No answer.
    pub async fn chains(&self, table: Table, partition: i32, from: i64) -> Result<BTreeMap<i64, [u8; 32]>, QueryError> {
        let query = self.rows(CHAINS).param("table", table.name()).param("partition", partition).param("from", from);
        Ok(fetch::<ChainAt>(query).await?.into_iter().map(|at| (at.chunk_end, at.chain)).collect())
    }

    /// Holds what is in the table to what the log says of these chunks, which follow each other: every row of them, and no other
    /// in their offsets. The differences, sorted by offset; at most `most` of them.
    ///
    /// # Errors
    /// No answer, or chunks that cannot be written either.
    pub async fn differences<D: DataRow>(
        &self,
        chunks: &[ChunkRows<D>],
        most: usize,
    ) -> Result<Vec<RowDifference>, QueryError> {
        let (Some(first), Some(last)) = (chunks.first(), chunks.last()) else { return Ok(Vec::new()) };
        let places = chunks.iter().map(|chunk| place(chunk, 0)).collect::<Result<Vec<_>, _>>();
        let places = places.map_err(QueryError::Mismatch)?;
        let mut wanted = wanted(chunks);
        let month = |ms: i64| log_month(ms).unwrap_or_default();
        let query = self
            .rows(RAW_ROWS)
            .param("table", D::TABLE.name())
            .param("partition", first.partition)
            .param("month_from", month(first.first_log_time_ms))
            .param("month_to", month(last.log_time_ms))
            .param("from", first.first)
            .param("before", last.end);
        let mut different = Vec::new();
        let mut rows = query.fetch::<D::Raw>()?;
        while let Some(found) = within_deadline(rows.next()).await? {
            let key = D::Raw::key(&found);
            let fault = match wanted.remove(&key) {
                None => Some(RowFault::Added),
                Some(at) => compare::<D>(chunks, &places, at, &found).map(RowFault::Changed),
            };
            let request = D::Raw::request(&found).map(RequestId);
            different.extend(fault.map(|fault| RowDifference { offset: key.offset, kind: key.kind, request, fault }));
        }
        different.extend(wanted.into_iter().map(|(key, at)| RowDifference {
            offset: key.offset,
            kind: key.kind,
            request: request_of(chunks, &places, at),
            fault: RowFault::Missing,
        }));
        different.sort_by_key(|difference| (difference.offset, difference.kind));
        different.truncate(most);
        Ok(different)
    }
}

impl ClickHouse {
    /// Holds a sealed month to what the log says of it: every row of its part, and no other. Where its sources' rows stand depends on
    /// how it was cut. The differences, sorted by offset; at most `most` of them.
    ///
    /// # Errors
    /// No answer.
    pub async fn sealed_differences<D: SealedRow>(
        &self,
        wanted: &SealedRows<D>,
        partition: i32,
        most: usize,
    ) -> Result<Vec<RowDifference>, QueryError> {
        let month = wanted.month;
        let query = self
            .rows(RAW_ROWS)
            .param("table", D::TABLE.name())
            .param("partition", partition)
            .param("month_from", month.month)
            .param("month_to", month.month)
            .param("from", i64::MIN)
            .param("before", i64::MAX);
        let (mut data, mut dead) = (wanted.by_offset(), wanted.dead().collect::<BTreeMap<_, _>>());
        let (mut sources, mut chunk) = (wanted.sources().clone(), Some(()));
        let mut different = Vec::new();
        let mut rows = query.fetch::<D::Raw>()?;
        while let Some(found) = within_deadline(rows.next()).await? {
            let key = D::Raw::key(&found);
            let field = match key.kind {
                Kind::Data => data.remove(&key.offset).map(|row| wanted.data_difference(row, &found)),
                Kind::Dead => dead.remove(&key.offset).map(|row| wanted.dead_difference(row, &found)),
                Kind::Source => {
                    let source = SourceId(key.source);
                    sources.remove(&source).map(|state| wanted.source_difference(source, &state, &found))
                }
                Kind::Chunk => chunk.take().map(|()| wanted.chunk_difference(&found)),
            };
            let fault = field.map_or(Some(RowFault::Added), |field| field.map(RowFault::Changed));
            different.extend(fault.map(|fault| differs(key.offset, key.kind, fault)));
        }
        let missing = data.into_keys().map(|offset| (offset, Kind::Data));
        let missing = missing.chain(dead.into_keys().map(|offset| (offset, Kind::Dead)));
        let missing = missing.chain(sources.into_keys().map(|_| (month.first, Kind::Source)));
        let missing = missing.chain(chunk.map(|()| (month.first, Kind::Chunk)));
        different.extend(missing.map(|(offset, kind)| differs(offset, kind, RowFault::Missing)));
        different.sort_by_key(|difference| (difference.offset, difference.kind));
        different.truncate(most);
        Ok(different)
    }
}

/// A row of a sealed month, which is of no request.
fn differs(offset: i64, kind: Kind, fault: RowFault) -> RowDifference {
    RowDifference { offset, kind, request: None, fault }
}

fn wanted<D: DataRow>(chunks: &[ChunkRows<D>]) -> HashMap<RowKey, Wanted> {
    let mut wanted = HashMap::new();
    let none = uuid::Uuid::nil();
    for (at, chunk) in chunks.iter().enumerate() {
        let data =
            chunk.data.iter().enumerate().map(|(row, data)| {
                (RowKey { offset: data.offset, kind: Kind::Data, source: none }, Wanted::Data(at, row))
            });
        let dead =
            chunk.dead.iter().enumerate().map(|(row, dead)| {
                (RowKey { offset: dead.offset, kind: Kind::Dead, source: none }, Wanted::Dead(at, row))
            });
        let sources = chunk.sources.keys().map(|source| {
            (RowKey { offset: chunk.first, kind: Kind::Source, source: source.0 }, Wanted::Source(at, source.0))
        });
        let own = (RowKey { offset: chunk.first, kind: Kind::Chunk, source: none }, Wanted::Chunk(at));
        wanted.extend(data.chain(dead).chain(sources).chain([own]));
    }
    wanted
}

/// Hands the row that should be there to `look`, if there is one.
fn with<D: DataRow, T>(
    chunks: &[ChunkRows<D>],
    places: &[Place],
    at: Wanted,
    look: impl FnOnce(&<D::Raw as Row>::Value<'_>) -> Option<T>,
) -> Option<T> {
    let of = |at: usize| Some((chunks.get(at)?, *places.get(at)?));
    match at {
        Wanted::Data(at, row) => of(at).and_then(|(chunk, place)| look(&D::data(chunk.data.get(row)?, place))),
        Wanted::Dead(at, row) => of(at).and_then(|(chunk, place)| look(&D::Raw::dead(chunk.dead.get(row)?, place))),
        Wanted::Source(at, source) => of(at).and_then(|(chunk, place)| {
            let state = chunk.sources.get(&ledger::ids::SourceId(source))?;
            look(&D::Raw::source(source, state, place))
        }),
        Wanted::Chunk(at) => of(at).and_then(|(chunk, place)| {
            let figures = Figures { end: chunk.end, counts: chunk.counts, chain: chunk.chain };
            look(&D::Raw::chunk(figures, place))
        }),
    }
}

fn compare<D: DataRow>(
    chunks: &[ChunkRows<D>],
    places: &[Place],
    at: Wanted,
    found: &<D::Raw as Row>::Value<'_>,
) -> Option<Field> {
    with::<D, _>(chunks, places, at, |wanted| D::Raw::difference(wanted, found))
}

fn request_of<D: DataRow>(chunks: &[ChunkRows<D>], places: &[Place], at: Wanted) -> Option<RequestId> {
    with::<D, _>(chunks, places, at, |wanted| D::Raw::request(wanted)).map(RequestId)
}
