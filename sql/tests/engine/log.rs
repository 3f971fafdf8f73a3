//! A log to fold: chunks of tokens and requests whose figures are known because they were made here.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use ledger::ids::{ApiKeyId, EventId, RequestId, SourceId};
use ledger::time::Micros;
use ledger::tokens::TokenCounts;
use sql::{ChunkRows, ClickHouse, DataRow, Folded, OutcomeCounts, RequestRow, SourceState, Table, TokenRow};
use uuid::Uuid;

pub(crate) fn at(text: &str) -> Micros {
    text.parse::<DateTime<Utc>>().unwrap().into()
}

pub(crate) fn source(number: u128) -> SourceId {
    SourceId(Uuid::from_u128(0x5000 + number))
}

/// A count of some tokens: its number is in everything that tells it apart.
pub(crate) fn tokens(number: u64, tenant: &str, occurred_at: Micros) -> TokenRow {
    let delta = TokenCounts { input: 10 + number, cached_input: 5, output: 20, reasoning: number % 3 };
    TokenRow {
        event_id: EventId(Uuid::from_u128(0xE000_0000 + u128::from(number))),
        source: source(1),
        seq: number + 1,
        occurred_at,
        tenant_id: tenant.parse().unwrap(),
        request_id: RequestId(Uuid::from_u128(0xA000_0000 + u128::from(number))),
        attempt: 0,
        project_id: "default".parse().unwrap(),
        api_key_id: ApiKeyId(Uuid::from_u128(0xC000)),
        model: "llama-3.1-8b".parse().unwrap(),
        version: "v1".parse().unwrap(),
        replica: "r1".to_owned(),
        endpoint: "chat/completions".to_owned(),
        delta,
        cumulative: delta,
        requests: 1,
        last: true,
        estimated: false,
        end_reason: "complete",
    }
}

/// The end of the request with this number.
pub(crate) fn request(number: u64, tenant: &str, occurred_at: Micros) -> RequestRow {
    let count = tokens(number, tenant, occurred_at);
    RequestRow {
        event_id: EventId(Uuid::from_u128(0xF000_0000 + u128::from(number))),
        source: count.source,
        seq: count.seq,
        occurred_at,
        tenant_id: count.tenant_id,
        request_id: count.request_id,
        attempts: 1,
        project_id: count.project_id,
        api_key_id: count.api_key_id,
        model: count.model,
        version: count.version,
        replica: count.replica,
        endpoint: count.endpoint,
        stream: true,
        status: 200,
        end_reason: "complete",
        error_code: String::new(),
        received_at: Micros(occurred_at.0 - 1_000_000),
        dispatched_at: Some(Micros(occurred_at.0 - 900_000)),
        first_byte_at: None,
    }
}

/// A chunk of folded records and nothing else, from `first` on; each with its log time in milliseconds.
pub(crate) fn chunk<D: Clone>(partition: i32, first: i64, rows: &[(i64, D)]) -> ChunkRows<D> {
    let data: Vec<_> = (first..)
        .zip(rows)
        .map(|(offset, (log_time_ms, event))| Folded { offset, log_time_ms: *log_time_ms, event: event.clone() })
        .collect();
    let count = i64::try_from(data.len()).unwrap();
    ChunkRows {
        partition,
        first,
        end: first + count,
        first_log_time_ms: rows[0].0,
        log_time_ms: rows[rows.len() - 1].0,
        counts: OutcomeCounts { folded: count, ..OutcomeCounts::default() },
        chain: [u8::try_from(first % 251).unwrap(); 32],
        data,
        dead: Vec::new(),
        sources: BTreeMap::from([(
            source(1),
            SourceState { last_seq: u64::try_from(first + count).unwrap(), watermark: Micros(first), end: None },
        )]),
    }
}

/// A chunk of offsets that are all marks.
pub(crate) fn marks<D: Clone>(partition: i32, first: i64, end: i64) -> ChunkRows<D> {
    ChunkRows {
        partition,
        first,
        end,
        first_log_time_ms: 1_790_000_000_000 + first,
        log_time_ms: 1_790_000_000_000 + end,
        counts: OutcomeCounts { marks: end - first, ..OutcomeCounts::default() },
        chain: [9; 32],
        data: Vec::new(),
        dead: Vec::new(),
        sources: BTreeMap::new(),
    }
}

/// A deadline that a test does not meet: a minute from now, by ClickHouse's clock.
pub(crate) async fn soon(clickhouse: &ClickHouse) -> i64 {
    clickhouse.position(Table::Tokens, 0).await.unwrap().now_ms + 60_000
}

/// Inserts a chunk as the fold does.
pub(crate) async fn insert<D: DataRow>(clickhouse: &ClickHouse, chunk: &ChunkRows<D>) {
    clickhouse.insert_chunk(chunk, 0, soon(clickhouse).await).await.unwrap();
}
