//! Dead letters as they lie in the tables, and what became of their replays.

use clickhouse::Row;
use ledger::ids::{EventId, SourceId};
use serde::Deserialize;
use uuid::Uuid;

use crate::client::{ClickHouse, fetch};
use crate::error::QueryError;
use crate::rows::DeadRow;
use crate::table::{Kind, Table};
use crate::wire::{OwnedBytes, WireUuid};

const DEAD_LETTERS: &str = include_str!("../queries/dead_letters.sql");
const REASONS: &str = include_str!("../queries/dead_letter_reasons.sql");
const REPLAYS: &str = include_str!("../queries/replays.sql");
/// Sources in one statement: ClickHouse takes values of parameters up to 128 KiB.
const SOURCES: usize = 1_000;

/// Which dead letters of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterQuery {
    /// Of which topic.
    pub table: Table,
    /// Of one partition alone.
    pub partition: Option<i32>,
    /// From this partition and offset on.
    pub from: (i32, i64),
    /// With this reason alone.
    pub reason: Option<String>,
    /// Taken by Kafka at this time or later: milliseconds since 1970.
    pub since_ms: i64,
    /// Taken by Kafka before this time.
    pub before_ms: i64,
    /// With keys and values; without them each is as short as its row in a list.
    pub whole: bool,
    /// No more than so many.
    pub limit: u64,
}

impl DeadLetterQuery {
    /// The first hundred of a topic, whole.
    pub const fn of(table: Table) -> Self {
        Self {
            table,
            partition: None,
            from: (0, 0),
            reason: None,
            since_ms: i64::MIN,
            before_ms: i64::MAX,
            whole: true,
            limit: 100,
        }
    }
}

/// A dead letter, with the partition that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its partition.
    pub partition: i32,
    /// How long its value is; absent for a mark, which has none.
    pub bytes: Option<u64>,
    /// All else; key and value are absent where they were not asked for.
    pub row: DeadRow,
}

/// What became of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// The source of the replay, which has this one record.
    pub source: SourceId,
    /// Where it stands now.
    pub partition: i32,
    /// Where it stands now; in a sealed month, a place not behind it.
    pub offset: i64,
    /// Whether it counts; it is dead again if not.
    pub folded: bool,
}

#[derive(Row, Deserialize)]
struct DeadLetterRow {
    line: i32,
    offset: i64,
    log_time_ms: i64,
    reason: String,
    detail: String,
    key: Option<OwnedBytes>,
    value: Option<OwnedBytes>,
    bytes: Option<u64>,
    source: WireUuid,
    seq: u64,
    event_id: WireUuid,
}

#[derive(Row, Deserialize)]
struct ReasonRow {
    reason: String,
    letters: u64,
}

#[derive(Row, Deserialize)]
struct ReplayRow {
    source: WireUuid,
    first: (u8, i32, i64, i8),
}

impl ClickHouse {
    /// Dead letters, in the order of partitions and offsets.
    ///
    /// # Errors
    /// No answer.
    pub async fn dead_letters(&self, asked: &DeadLetterQuery) -> Result<Vec<DeadLetter>, QueryError> {
        let only = asked.partition.filter(|&only| only >= asked.from.0);
        let (first, offset) = match only {
            Some(only) if only > asked.from.0 => (only, 0),
            _ => asked.from,
        };
        if asked.partition.is_some() && only.is_none() {
            return Ok(Vec::new());
        }
        let query = self
            .rows(DEAD_LETTERS)
            .param("table", asked.table.name())
            .param("from_partition", first)
            .param("from_offset", offset)
            .param("last_partition", only.unwrap_or(i32::MAX))
            .param("reason", asked.reason.as_deref().unwrap_or_default())
            .param("since_ms", asked.since_ms)
            .param("before_ms", asked.before_ms)
            .param("whole", asked.whole)
            .param("limit", asked.limit);
        Ok(fetch::<DeadLetterRow>(query).await?.into_iter().map(dead_letter).collect())
    }

    /// How many dead letters of a topic there are by reason, sorted by that: of the partition and the time that are asked for.
    ///
    /// # Errors
    /// No answer.
    pub async fn dead_letter_reasons(&self, asked: &DeadLetterQuery) -> Result<Vec<(String, u64)>, QueryError> {
        let query = self
            .rows(REASONS)
            .param("table", asked.table.name())
            .param("first_partition", asked.partition.unwrap_or(0))
            .param("last_partition", asked.partition.unwrap_or(i32::MAX))
            .param("since_ms", asked.since_ms)
            .param("before_ms", asked.before_ms);
        Ok(fetch::<ReasonRow>(query).await?.into_iter().map(|row| (row.reason, row.letters)).collect())
    }

    /// What became of the replays that have these sources. One that is not there was not folded yet, or never sent.
    ///
    /// # Errors
    /// No answer.
    pub async fn replays(&self, table: Table, sources: &[SourceId]) -> Result<Vec<Replayed>, QueryError> {
        let mut found = Vec::new();
        for sources in sources.chunks(SOURCES) {
            let ids = sources.iter().map(|source| source.0).collect::<Vec<Uuid>>();
            let query = self.rows(REPLAYS).param("table", table.name()).param("sources", ids);
            found.extend(fetch::<ReplayRow>(query).await?.into_iter().map(|row| {
                let (_, partition, offset, kind) = row.first;
                let folded = Kind::of(kind) != Some(Kind::Dead);
                Replayed { source: SourceId(row.source.0), partition, offset, folded }
            }));
        }
        Ok(found)
    }
}

fn dead_letter(row: DeadLetterRow) -> DeadLetter {
    let took = (row.seq > 0).then_some((SourceId(row.source.0), row.seq, EventId(row.event_id.0)));
    DeadLetter {
        partition: row.line,
        bytes: row.bytes,
        row: DeadRow {
            offset: row.offset,
            log_time_ms: row.log_time_ms,
            reason: row.reason,
            detail: row.detail,
            key: row.key.map(|bytes| bytes.0),
            value: row.value.map(|bytes| bytes.0),
            took,
        },
    }
}
