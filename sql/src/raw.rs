//! Rows as they lie in the raw tables: the columns that all kinds share, written once, and each table's own.

pub(crate) mod sealed;

use clickhouse::{Row, RowRead, RowWrite};
use ledger::time::{Micros, Slot};
use serde::{Deserialize, Serialize};

use crate::calendar::LogHour;
use crate::rows::{DeadRow, Folded, RequestRow, SourceEnd, SourceState, TokenRow};
use crate::table::{Kind, Table};
use crate::wire::{Bytes, WireUuid};

/// What all rows of a chunk have in common.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub(crate) partition: i32,
    pub(crate) month: u32,
    pub(crate) first: i64,
    pub(crate) log_time_ms: i64,
    pub(crate) insert_before_ms: i64,
}

/// The figures of a chunk.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    pub(crate) end: i64,
    pub(crate) counts: crate::rows::OutcomeCounts,
    pub(crate) chain: [u8; 32],
}

/// An event that has a raw table: [`TokenRow`] or [`RequestRow`].
pub trait DataRow: Send + Sync {
    /// Its table.
    const TABLE: Table;
    #[doc(hidden)]
    type Raw: RawRow;
    #[doc(hidden)]
    fn data<'a>(row: &'a Folded<Self>, place: Place) -> <Self::Raw as Row>::Value<'a>
    where
        Self: Sized;
}

/// A field that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its column.
    pub name: &'static str,
    /// What the log says.
    pub wanted: String,
    /// What ClickHouse holds.
    pub found: String,
}

/// What names a row within its partition.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowKey {
    pub(crate) offset: i64,
    pub(crate) kind: Kind,
    pub(crate) source: uuid::Uuid,
}

/// A row of a raw table on its way to ClickHouse, or back.
#[doc(hidden)]
pub trait RawRow: RowWrite + RowRead {
    fn key(row: &Self::Value<'_>) -> RowKey;
    fn request(row: &Self::Value<'_>) -> Option<uuid::Uuid>;
    /// The first field in which two rows differ that should be the same. Until when a row was to be written is its writer's own.
    fn difference(wanted: &Self::Value<'_>, found: &Self::Value<'_>) -> Option<Field>;
    fn dead<'a>(row: &'a DeadRow, place: Place) -> Self::Value<'a>;
    fn source<'a>(source: uuid::Uuid, state: &SourceState, place: Place) -> Self::Value<'a>;
    fn chunk<'a>(figures: Figures, place: Place) -> Self::Value<'a>;
    fn sealed_chunk<'a>(figures: Figures, chunks: u64, place: Place) -> Self::Value<'a>;
}

/// Returns with the first field that differs.
macro_rules! first_difference {
    ($wanted:ident, $found:ident, $($field:ident,)*) => {
        $(if $wanted.$field != $found.$field {
            let name = stringify!($field).trim_start_matches("r#");
            let (wanted, found) = (format!("{:?}", $wanted.$field), format!("{:?}", $found.$field));
            return Some(Field { name, wanted, found });
        })*
    };
}

macro_rules! raw_row {
    ($name:ident<$a:lifetime> { $($field:ident: $type:ty,)* }) => {
        #[doc(hidden)]
        #[derive(Default, Row, Serialize, Deserialize)]
        pub struct $name<$a> {
            kafka_partition: i32,
            log_month: u32,
            kind: Kind,
            kafka_offset: i64,
            log_time: i64,
            log_hour: i64,
            insert_before: i64,
            event_id: WireUuid,
            source: WireUuid,
            seq: u64,
            occurred_at: i64,
            slot: i64,
            tenant_id: &$a str,
            request_id: WireUuid,
            $($field: $type,)*
            dead_reason: &$a str,
            dead_detail: &$a str,
            #[serde(borrow)]
            dead_key: Option<Bytes<$a>>,
            #[serde(borrow)]
            dead_value: Option<Bytes<$a>>,
            last_seq: u64,
            watermark: i64,
            source_end: i8,
            next_source: WireUuid,
            chunk_first: i64,
            chunk_end: i64,
            folded: i64,
            duplicates: i64,
            dead: i64,
            marks: i64,
            chain: [u8; 32],
        }

        impl $name<'_> {
            fn at(kind: Kind, offset: i64, log_time_ms: i64, place: Place) -> Self {
                Self {
                    kafka_partition: place.partition,
                    log_month: place.month,
                    kind,
                    kafka_offset: offset,
                    log_time: log_time_ms,
                    log_hour: LogHour::of_ms(log_time_ms).0,
                    insert_before: place.insert_before_ms,
                    chunk_first: place.first,
                    ..Self::default()
                }
            }
        }

        impl RawRow for $name<'static> {
            fn key(row: &$name<'_>) -> RowKey {
                // Of data and dead letters there is one row for each offset; sources share that of their chunk.
                let source = if row.kind == Kind::Source { row.source.0 } else { uuid::Uuid::nil() };
                RowKey { offset: row.kafka_offset, kind: row.kind, source }
            }

            fn request(row: &$name<'_>) -> Option<uuid::Uuid> {
                Some(row.request_id.0).filter(|id| !id.is_nil())
            }

            fn difference(wanted: &$name<'_>, found: &$name<'_>) -> Option<Field> {
                first_difference!(
                    wanted, found, log_month, log_time, log_hour, event_id, source, seq, occurred_at, slot, tenant_id,
                    request_id, $($field,)* dead_reason, dead_detail, dead_key, dead_value, last_seq, watermark,
                    source_end, next_source, chunk_first, chunk_end, folded, duplicates, dead, marks, chain,
                );
                None
            }

            fn dead<'a>(row: &'a DeadRow, place: Place) -> $name<'a> {
                let (source, seq, event_id) = row.took.map_or_else(Default::default, |(source, seq, event_id)| {
                    (WireUuid(source.0), seq, WireUuid(event_id.0))
                });
                $name {
                    source,
                    seq,
                    event_id,
                    dead_reason: &row.reason,
                    dead_detail: &row.detail,
                    dead_key: row.key.as_deref().map(Bytes),
                    dead_value: row.value.as_deref().map(Bytes),
                    ..$name::at(Kind::Dead, row.offset, row.log_time_ms, place)
                }
            }

            fn source<'a>(source: uuid::Uuid, state: &SourceState, place: Place) -> $name<'a> {
                let (source_end, next_source) = match state.end {
                    None => (0, WireUuid::default()),
                    Some(SourceEnd::Closed { next }) => (1, WireUuid(next.0)),
                    Some(SourceEnd::Drained) => (2, WireUuid::default()),
                };
                $name {
                    source: WireUuid(source),
                    last_seq: state.last_seq,
                    watermark: state.watermark.0,
                    source_end,
                    next_source,
                    ..$name::at(Kind::Source, place.first, place.log_time_ms, place)
                }
            }

            fn chunk<'a>(figures: Figures, place: Place) -> $name<'a> {
                $name {
                    chunk_end: figures.end,
                    folded: figures.counts.folded,
                    duplicates: figures.counts.duplicates,
                    dead: figures.counts.dead,
                    marks: figures.counts.marks,
                    chain: figures.chain,
                    ..$name::at(Kind::Chunk, place.first, place.log_time_ms, place)
                }
            }

            fn sealed_chunk<'a>(figures: Figures, chunks: u64, place: Place) -> $name<'a> {
                $name { seq: chunks, ..<Self as RawRow>::chunk(figures, place) }
            }
        }
    };
}

raw_row!(RawTokens<'a> {
    attempt: i32,
    project_id: &'a str,
    api_key_id: WireUuid,
    model: &'a str,
    version: &'a str,
    replica: &'a str,
    endpoint: &'a str,
    input: u64,
    cached_input: u64,
    output: u64,
    reasoning: u64,
    input_cumulative: u64,
    cached_input_cumulative: u64,
    output_cumulative: u64,
    reasoning_cumulative: u64,
    requests: u64,
    r#final: bool,
    estimated: bool,
    end_reason: &'a str,
});

raw_row!(RawRequests<'a> {
    attempts: i32,
    project_id: &'a str,
    api_key_id: WireUuid,
    model: &'a str,
    version: &'a str,
    replica: &'a str,
    endpoint: &'a str,
    stream: bool,
    status: i32,
    end_reason: &'a str,
    error_code: &'a str,
    received_at: i64,
    dispatched_at: Option<i64>,
    first_byte_at: Option<i64>,
});

impl DataRow for TokenRow {
    const TABLE: Table = Table::Tokens;
    type Raw = RawTokens<'static>;

    fn data<'a>(row: &'a Folded<Self>, place: Place) -> RawTokens<'a> {
        let event = &row.event;
        RawTokens {
            event_id: WireUuid(event.event_id.0),
            source: WireUuid(event.source.0),
            seq: event.seq,
            occurred_at: event.occurred_at.0,
            slot: Slot::of(event.occurred_at).0,
            tenant_id: event.tenant_id.as_str(),
            request_id: WireUuid(event.request_id.0),
            attempt: event.attempt,
            project_id: event.project_id.as_str(),
            api_key_id: WireUuid(event.api_key_id.0),
            model: event.model.as_str(),
            version: event.version.as_str(),
            replica: &event.replica,
            endpoint: &event.endpoint,
            input: event.delta.input,
            cached_input: event.delta.cached_input,
            output: event.delta.output,
            reasoning: event.delta.reasoning,
            input_cumulative: event.cumulative.input,
            cached_input_cumulative: event.cumulative.cached_input,
            output_cumulative: event.cumulative.output,
            reasoning_cumulative: event.cumulative.reasoning,
            requests: event.requests,
            r#final: event.last,
            estimated: event.estimated,
            end_reason: event.end_reason,
            ..RawTokens::at(Kind::Data, row.offset, row.log_time_ms, place)
        }
    }
}

impl DataRow for RequestRow {
    const TABLE: Table = Table::Requests;
    type Raw = RawRequests<'static>;

    fn data<'a>(row: &'a Folded<Self>, place: Place) -> RawRequests<'a> {
        let event = &row.event;
        let micros = |time: Option<Micros>| time.map(|time| time.0);
        RawRequests {
            event_id: WireUuid(event.event_id.0),
            source: WireUuid(event.source.0),
            seq: event.seq,
            occurred_at: event.occurred_at.0,
            slot: Slot::of(event.occurred_at).0,
            tenant_id: event.tenant_id.as_str(),
            request_id: WireUuid(event.request_id.0),
            attempts: event.attempts,
            project_id: event.project_id.as_str(),
            api_key_id: WireUuid(event.api_key_id.0),
            model: event.model.as_str(),
            version: event.version.as_str(),
            replica: &event.replica,
            endpoint: &event.endpoint,
            stream: event.stream,
            status: event.status,
            end_reason: event.end_reason,
            error_code: &event.error_code,
            received_at: event.received_at.0,
            dispatched_at: micros(event.dispatched_at),
            first_byte_at: micros(event.first_byte_at),
            ..RawRequests::at(Kind::Data, row.offset, row.log_time_ms, place)
        }
    }
}
