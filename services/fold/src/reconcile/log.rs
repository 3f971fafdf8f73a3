//! The events of a few offsets of the log, to name the requests of a chunk that differs.

use std::collections::BTreeSet;
use std::time::Duration;

use ledger::ids::{EventId, SourceId};
use schemas::codec;
use schemas::event::{Event, RequestFinished, TokensCounted};
use sql::{ChunkFault, ClickHouse, EventRow, QueryError, Table};
use stream::consume::{ConsumeError, PartitionConsumer};
use stream::kafka::KafkaSettings;

use super::compare::{self, Named};

/// How long reading a chunk again may take.
const LIMIT: Duration = Duration::from_secs(20);
/// A chunk of more offsets is not read again.
const OFFSETS_MAX: i64 = 600_000;

/// An event with its number in its source.
type Numbered = (EventRow, (SourceId, u64));

/// Reads the offsets of a chunk again, and says which events have no row, and which rows are no event. None if the log could
/// not be read.
pub(crate) async fn name(
    clickhouse: &ClickHouse,
    kafka: &KafkaSettings,
    table: Table,
    partition: i32,
    fault: &ChunkFault,
) -> Result<Option<Named>, QueryError> {
    let offsets = fault.chunk_first..fault.end;
    if offsets.is_empty() || offsets.end - offsets.start > OFFSETS_MAX {
        return Ok(None);
    }
    let read = match table {
        Table::Tokens => read::<TokensCounted>(kafka, table, partition, offsets, tokens).await,
        Table::Requests => read::<RequestFinished>(kafka, table, partition, offsets, requests).await,
    };
    let Some(read) = read else { return Ok(None) };
    let numbers: Vec<_> = read.iter().map(|(_, number)| *number).collect();
    let found = clickhouse.event_ids(table, partition, &numbers).await?;
    let known: BTreeSet<EventId> = found.into_iter().map(|event| event.event_id).collect();
    let rows = clickhouse.chunk_rows(table, partition, fault.chunk_first).await?;
    let log: Vec<_> = read.into_iter().map(|(event, _)| event).collect();
    Ok(Some(compare::name(&log, &rows, &known)))
}

async fn read<E: Event>(
    kafka: &KafkaSettings,
    table: Table,
    partition: i32,
    offsets: std::ops::Range<i64>,
    row: fn(i64, E) -> Numbered,
) -> Option<Vec<Numbered>> {
    let log = PartitionConsumer::open(kafka, "tollgate-reconcile", table.topic(), partition, offsets.start).ok()?;
    // Behind a hole at the end of the chunk comes no record of it.
    let end = offsets.end.min(log.bounds().await.ok()?.next);
    let reading = async {
        let mut events = Vec::new();
        loop {
            match log.next().await {
                Ok(record) if record.offset >= end => return Some(events),
                Ok(record) => {
                    let event = record.value.as_deref().and_then(|value| codec::decode::<E>(value).ok());
                    events.extend(event.map(|event| row(record.offset, event)));
                    if record.offset + 1 == end {
                        return Some(events);
                    }
                }
                Err(ConsumeError::Transient(_)) => {}
                Err(_) => return None,
            }
        }
    };
    tokio::time::timeout(LIMIT, reading).await.ok().flatten()
}

fn tokens(offset: i64, event: TokensCounted) -> Numbered {
    let number = (event.source, event.seq.unsigned_abs());
    let (event_id, request_id) = (event.event_id, event.request_id);
    (EventRow { offset, event_id, request_id, tenant: event.tenant_id }, number)
}

fn requests(offset: i64, event: RequestFinished) -> Numbered {
    let number = (event.source, event.seq.unsigned_abs());
    let (event_id, request_id) = (event.event_id, event.request_id);
    (EventRow { offset, event_id, request_id, tenant: event.tenant_id }, number)
}
