//! Rows as the fold writes them: a request each, with its tokens, a moment ago.

use std::collections::BTreeMap;

use ledger::ids::{ApiKeyId, EventId, RequestId, SourceId};
use ledger::time::Micros;
use ledger::tokens::TokenCounts;
use runtime::{Clock as _, SystemClock};
use sql::{ChunkRows, ClickHouse, DataRow, Folded, OutcomeCounts, RequestRow, SourceState, Table, TokenRow};
use uuid::Uuid;

/// What a request used: input, cached input, output, reasoning.
pub(crate) struct Used {
    pub(crate) tenant: &'static str,
    pub(crate) model: &'static str,
    pub(crate) tokens: [u64; 4],
}

/// Puts a request of each into one chunk of both tables, in their order.
pub(crate) async fn insert(clickhouse: &ClickHouse, used: &[Used]) {
    let now = SystemClock.now();
    let tokens: Vec<TokenRow> =
        (1..).zip(used).map(|(number, used)| tokens(number, used, Micros(now + number))).collect();
    let requests: Vec<RequestRow> = tokens.iter().map(request).collect();
    write(clickhouse, 0, tokens, now).await;
    write(clickhouse, 0, requests, now).await;
}

/// Puts tokens that were used long ago into the other partition, as if they had come only now.
pub(crate) async fn insert_late(clickhouse: &ClickHouse, used: &Used, occurred_at: Micros) {
    write(clickhouse, 1, vec![tokens(900, used, occurred_at)], SystemClock.now()).await;
}

fn tokens(number: i64, used: &Used, occurred_at: Micros) -> TokenRow {
    let [input, cached_input, output, reasoning] = used.tokens;
    let delta = TokenCounts { input, cached_input, output, reasoning };
    let id = |sort: u128| Uuid::from_u128(sort + u128::try_from(number).unwrap());
    TokenRow {
        event_id: EventId(id(0xE000)),
        source: SourceId(Uuid::from_u128(0x5000)),
        seq: u64::try_from(number).unwrap(),
        occurred_at,
        tenant_id: used.tenant.parse().unwrap(),
        request_id: RequestId(id(0xA000)),
        attempt: 0,
        project_id: "default".parse().unwrap(),
        api_key_id: ApiKeyId(Uuid::from_u128(0xC000)),
        model: used.model.parse().unwrap(),
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

fn request(count: &TokenRow) -> RequestRow {
    let count = count.clone();
    RequestRow {
        event_id: EventId(Uuid::from_u128(count.event_id.0.as_u128() + 0x1_0000)),
        source: count.source,
        seq: count.seq,
        occurred_at: count.occurred_at,
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
        received_at: Micros(count.occurred_at.0 - 1_000_000),
        dispatched_at: None,
        first_byte_at: None,
    }
}

async fn write<D: DataRow>(clickhouse: &ClickHouse, partition: i32, rows: Vec<D>, now: i64) {
    let count = i64::try_from(rows.len()).unwrap();
    let log_time_ms = now / 1000;
    let folded = |(offset, event)| Folded { offset, log_time_ms, event };
    let state = SourceState { last_seq: u64::try_from(count).unwrap(), watermark: Micros(now), end: None };
    let chunk = ChunkRows {
        partition,
        first: 0,
        end: count,
        first_log_time_ms: log_time_ms,
        log_time_ms,
        counts: OutcomeCounts { folded: count, ..OutcomeCounts::default() },
        chain: [1; 32],
        data: (0..).zip(rows).map(folded).collect(),
        dead: Vec::new(),
        sources: BTreeMap::from([(SourceId(Uuid::from_u128(0x5000)), state)]),
    };
    let deadline = clickhouse.position(Table::Tokens, partition).await.unwrap().now_ms + 60_000;
    clickhouse.insert_chunk(&chunk, 0, deadline).await.unwrap();
}
