//! Single rows of a line: the ids of events by source and number, and dead letters.

use clickhouse::Row;
use ledger::ids::{EventId, SourceId};
use serde::Deserialize;
use uuid::Uuid;

use crate::client::{ClickHouse, fetch};
use crate::error::QueryError;
use crate::rows::DeadRow;
use crate::table::Table;
use crate::wire::{OwnedBytes, WireUuid};

const EVENT_IDS: &str = include_str!("../queries/event_ids.sql");
const DEAD_LETTERS: &str = include_str!("../queries/dead_letters.sql");
/// Runs of numbers in one statement: ClickHouse takes values of parameters up to 128 KiB.
const RUNS: usize = 500;

/// An event that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventAt {
    /// Whose.
    pub source: SourceId,
    /// Its number.
    pub seq: u64,
    /// Its id.
    pub event_id: EventId,
}

/// Numbers of one source without a hole: both ends are in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    source: SourceId,
    first: u64,
    last: u64,
}

/// The fewest runs that hold these numbers and no other: what is sent again comes in runs.
fn runs(numbers: &[(SourceId, u64)]) -> Vec<Run> {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut runs: Vec<Run> = Vec::new();
    for (source, seq) in sorted {
        match runs.last_mut() {
            Some(run) if run.source == source && run.last.checked_add(1) == Some(seq) => run.last = seq,
            _ => runs.push(Run { source, first: seq, last: seq }),
        }
    }
    runs
}

#[derive(Row, Deserialize)]
struct EventRow {
    source: WireUuid,
    seq: u64,
    event_id: WireUuid,
}

#[derive(Row, Deserialize)]
struct DeadLetterRow {
    offset: i64,
    log_time_ms: i64,
    reason: String,
    detail: String,
    key: Option<OwnedBytes>,
    value: Option<OwnedBytes>,
    source: WireUuid,
    seq: u64,
    event_id: WireUuid,
}

impl ClickHouse {
    /// The ids of the events with these numbers, as far as they have a row (marks have none), sorted. A resend must have
    /// the id that is there.
    ///
    /// # Errors
    /// No answer.
    pub async fn event_ids(
        &self,
        table: Table,
        partition: i32,
        numbers: &[(SourceId, u64)],
    ) -> Result<Vec<EventAt>, QueryError> {
        let mut found = Vec::new();
        for runs in runs(numbers).chunks(RUNS) {
            let query = self
                .rows(EVENT_IDS)
                .param("table", table.name())
                .param("partition", partition)
                .param("sources", runs.iter().map(|run| run.source.0).collect::<Vec<Uuid>>())
                .param("firsts", runs.iter().map(|run| run.first).collect::<Vec<u64>>())
                .param("lasts", runs.iter().map(|run| run.last).collect::<Vec<u64>>());
            found.extend(fetch::<EventRow>(query).await?.into_iter().map(|row| EventAt {
                source: SourceId(row.source.0),
                seq: row.seq,
                event_id: EventId(row.event_id.0),
            }));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// At most `limit` dead letters of a line from an offset on, in the order of the log.
    ///
    /// # Errors
    /// No answer.
    pub async fn dead_letters(
        &self,
        table: Table,
        partition: i32,
        from_offset: i64,
        limit: u64,
    ) -> Result<Vec<DeadRow>, QueryError> {
        let query = self
            .rows(DEAD_LETTERS)
            .param("table", table.name())
            .param("partition", partition)
            .param("from", from_offset)
            .param("limit", limit);
        let rows = fetch::<DeadLetterRow>(query).await?;
        Ok(rows.into_iter().map(dead_letter).collect())
    }
}

fn dead_letter(row: DeadLetterRow) -> DeadRow {
    let took = (row.seq > 0).then_some((SourceId(row.source.0), row.seq, EventId(row.event_id.0)));
    DeadRow {
        offset: row.offset,
        log_time_ms: row.log_time_ms,
        reason: row.reason,
        detail: row.detail,
        key: row.key.map(|bytes| bytes.0),
        value: row.value.map(|bytes| bytes.0),
        took,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_hold_what_was_asked_and_nothing_else(numbers in prop::collection::vec((0u128..3, 0u64..40), 0..60)) {
            let numbers: Vec<_> = numbers.into_iter().map(|(s, n)| (SourceId(Uuid::from_u128(s)), n)).collect();
            let runs = runs(&numbers);
            let held: Vec<_> = runs.iter().flat_map(|run| (run.first..=run.last).map(|n| (run.source, n))).collect();
            let mut asked = numbers;
            asked.sort_unstable();
            asked.dedup();
            prop_assert_eq!(held, asked);
            for pair in runs.windows(2) {
                prop_assert!(pair[0].source < pair[1].source || pair[0].last + 1 < pair[1].first);
            }
        }
    }

    #[test]
    fn the_largest_number_ends_a_run() {
        let source = SourceId(Uuid::nil());
        assert_eq!(runs(&[(source, u64::MAX), (source, u64::MAX - 1)]).len(), 1);
    }
}
