//! What no fold can be faster than here: reading the log and doing nothing with it, and inserting rows that are ready.

use std::time::{Duration, Instant};

use promises::figures::select;
use promises::system::System;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use schemas::event::{EndReason, TokensCounted};
use schemas::topic::TOKENS;
use sql::{ChunkRows, ClickHouse, ClickHouseSettings, Folded, OutcomeCounts, TokenRow};
use stream::kafka::KafkaSettings;

use crate::log::Log;

/// Rows of a prepared chunk: about what the fold writes at once while it catches up.
const CHUNK: usize = 100_000;

/// Events per second of a consumer that reads every partition and looks at nothing.
pub(crate) fn consume(kafka: &KafkaSettings, partitions: i32, events: u64) -> f64 {
    let consumer: BaseConsumer = kafka.consumer("bench", "bench-ceiling").create().unwrap();
    let mut from = TopicPartitionList::new();
    for partition in 0..partitions {
        from.add_partition_offset(TOKENS, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&from).unwrap();
    let (mut began, mut read) = (None, 0);
    while read < events {
        let Some(record) = consumer.poll(Duration::from_secs(30)) else { panic!("{read} of {events} records came") };
        // From the first record on: connecting is no part of a rate.
        began.get_or_insert_with(Instant::now);
        if record.unwrap().payload().is_some() {
            read += 1;
        }
    }
    events as f64 / began.unwrap().elapsed().as_secs_f64()
}

fn row(event: TokensCounted) -> TokenRow {
    TokenRow {
        delta: event.delta().unwrap(),
        cumulative: event.cumulative().unwrap(),
        event_id: event.event_id,
        source: event.source,
        seq: event.seq.try_into().unwrap(),
        occurred_at: event.occurred_at,
        tenant_id: event.tenant_id,
        request_id: event.request_id,
        attempt: event.attempt,
        project_id: event.project_id,
        api_key_id: event.api_key_id,
        model: event.model,
        version: event.version,
        replica: event.replica,
        endpoint: event.endpoint,
        requests: event.requests.try_into().unwrap(),
        last: event.last,
        estimated: event.estimated,
        end_reason: EndReason::Complete.as_str(),
    }
}

fn chunk(partition: i32, first: i64, rows: Vec<TokenRow>) -> ChunkRows<TokenRow> {
    let end = first + i64::try_from(rows.len()).unwrap();
    let log_time_ms = rows[0].occurred_at.0 / 1000;
    let data = (first..).zip(rows).map(|(offset, event)| Folded { offset, log_time_ms, event }).collect();
    let counts = OutcomeCounts { folded: end - first, ..OutcomeCounts::default() };
    ChunkRows {
        partition,
        first,
        end,
        first_log_time_ms: log_time_ms,
        log_time_ms,
        counts,
        chain: [0; 32],
        data,
        dead: Vec::new(),
        sources: std::iter::empty().collect(),
    }
}

fn clickhouse(system: &System) -> ClickHouse {
    ClickHouse::new(&ClickHouseSettings {
        url: system.clickhouse_url(),
        database: "tollgate".into(),
        ..ClickHouseSettings::default()
    })
}

/// Rows per second that ClickHouse takes when nothing is to be done but to send them: a task for each partition, through the
/// fold's own insert. Empties the table again.
pub(crate) async fn insert(system: &System, partitions: i32, tenants: u64, events: u64) -> f64 {
    let mut of: Vec<Vec<TokenRow>> = (0..partitions).map(|_| Vec::new()).collect();
    let mut log = Log::new(partitions, tenants);
    for _ in 0..events {
        let (partition, event) = log.next();
        of[usize::try_from(partition).unwrap()].push(row(event));
    }
    let mut lines: Vec<Vec<ChunkRows<TokenRow>>> = Vec::new();
    for (partition, mut rows) in (0..).zip(of) {
        let (mut chunks, mut first) = (Vec::new(), 0);
        while !rows.is_empty() {
            let rest = rows.split_off(rows.len().min(CHUNK));
            let taken = std::mem::replace(&mut rows, rest);
            let length = i64::try_from(taken.len()).unwrap();
            chunks.push(chunk(partition, first, taken));
            first += length;
        }
        lines.push(chunks);
    }
    let store = clickhouse(system);
    let began = Instant::now();
    let mut inserting = tokio::task::JoinSet::new();
    for chunks in lines {
        let store = store.clone();
        // A benchmark ends with its process.
        inserting.spawn(async move {
            for chunk in chunks {
                let now_ms = i64::try_from(began.elapsed().as_millis()).unwrap() + chunk.log_time_ms;
                store.insert_chunk(&chunk, 0, now_ms + 600_000).await.unwrap();
            }
        });
    }
    while let Some(done) = inserting.join_next().await {
        done.unwrap();
    }
    let rate = events as f64 / began.elapsed().as_secs_f64();
    select(&system.client, &system.clickhouse_url(), "TRUNCATE TABLE tokens").await;
    rate
}
