//! The ids of events by source and number.

use clickhouse::Row;
use ledger::ids::{EventId, SourceId};
use serde::Deserialize;
use uuid::Uuid;

use crate::client::{ClickHouse, fetch};
use crate::error::QueryError;
use crate::table::Table;
use crate::wire::WireUuid;

const EVENT_IDS: &str = include_str!("../queries/event_ids.sql");
const CONFLICTS: &str = include_str!("../queries/conflicts.sql");
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
struct ConflictRow {
    ids: Vec<WireUuid>,
    number: u64,
}

impl ClickHouse {
    /// The events that have the numbers of dead letters of some offsets, as these say: where their rows are sealed, nothing else does.
    ///
    /// # Errors
    /// No answer.
    pub async fn conflicts(
        &self,
        table: Table,
        partition: i32,
        offsets: std::ops::Range<i64>,
    ) -> Result<Vec<EventAt>, QueryError> {
        let query = self.rows(CONFLICTS).param("table", table.name()).param("partition", partition);
        let query = query.param("from", offsets.start).param("before", offsets.end);
        let told = |row: ConflictRow| match row.ids[..] {
            [_, WireUuid(source), WireUuid(other)] => {
                Some(EventAt { source: SourceId(source), seq: row.number, event_id: EventId(other) })
            }
            _ => None,
        };
        Ok(fetch::<ConflictRow>(query).await?.into_iter().filter_map(told).collect())
    }

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
