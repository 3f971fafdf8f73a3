//! What the fold rests on: one insert is one part, tokens, the fence, projections that come with their rows.

use clickhouse::{Client, Row};
use serde::{Deserialize, Serialize};

use crate::engine::Engine;

#[derive(Debug, Clone, PartialEq, Row, Serialize, Deserialize)]
pub(crate) struct Count {
    pub(crate) partition: u32,
    pub(crate) tenant: String,
    pub(crate) tokens: u64,
    pub(crate) insert_before: i64,
}

/// In the far future: the fence lets it through.
pub(crate) const LATER: i64 = 4_000_000_000_000;

pub(crate) const TABLE: &str = "CREATE TABLE counts (
    partition UInt32, tenant LowCardinality(String), tokens UInt64, insert_before DateTime64(3, 'UTC'),
    CONSTRAINT fence CHECK insert_before > nowInBlock64(3),
    PROJECTION sums (SELECT tenant, sum(tokens), count() GROUP BY tenant)
    ) ENGINE = MergeTree PARTITION BY partition ORDER BY tenant
    SETTINGS non_replicated_deduplication_window = 100000, fsync_after_insert = 1, fsync_part_directory = 1";

/// The settings of the fold's inserts.
pub(crate) fn as_fold(client: Client, token: &str) -> Client {
    client
        .with_setting("insert_deduplication_token", token)
        .with_setting("async_insert", "0")
        .with_setting("max_insert_block_size", "10000000")
        .with_setting("max_insert_block_size_bytes", "0")
        .with_setting("min_insert_block_size_rows", "10000000")
        .with_setting("min_insert_block_size_bytes", "1000000000")
        .with_setting("max_execution_time", "30")
}

pub(crate) async fn put(client: Client, rows: impl Iterator<Item = Count>) -> Result<(), clickhouse::error::Error> {
    let mut insert = client.insert::<Count>("counts").await?;
    for row in rows {
        insert.write(&row).await?;
    }
    insert.end().await
}

pub(crate) fn counts(rows: u64, insert_before: i64) -> impl Iterator<Item = Count> {
    (0..rows).map(move |i| Count { partition: 3, tenant: format!("tenant-{}", i % 7), tokens: i, insert_before })
}

const PARTS: &str = "SELECT toUInt64(count()) FROM system.parts WHERE table = 'counts' AND active";
const ROWS: &str = "SELECT toUInt64(count()) FROM counts";

#[tokio::test]
async fn one_insert_is_one_part_with_its_projection() {
    let engine = Engine::start().await;
    engine.execute(TABLE).await;
    engine.execute("SYSTEM STOP MERGES").await;
    // More than ClickHouse's default block of 1,048,449 rows would hold.
    put(as_fold(engine.client(), "t/0/0"), counts(1_200_000, LATER)).await.unwrap();
    assert_eq!(engine.number(PARTS).await, 1);
    assert_eq!(engine.number(ROWS).await, 1_200_000);
    let through = "SELECT sum(tokens) FROM counts WHERE tenant = 'tenant-1' SETTINGS force_optimize_projection = 1, optimize_use_projections = 1";
    let expected: u64 = (0..1_200_000_u64).filter(|i| i % 7 == 1).sum();
    assert_eq!(engine.number(through).await, expected);
    // The same as a setting of the client, and a query that no projection can answer.
    let strict = engine.client().with_setting("force_optimize_projection", "1");
    assert_eq!(
        strict.query("SELECT sum(tokens) FROM counts WHERE tenant = 'tenant-1'").fetch_one::<u64>().await.unwrap(),
        expected
    );
    let refused = strict.query("SELECT max(tokens) FROM counts").fetch_one::<u64>().await.unwrap_err();
    assert!(refused.to_string().contains("Code: 584"), "{refused}");
}

#[tokio::test]
async fn a_token_is_taken_once_also_after_a_kill() {
    let mut engine = Engine::start().await;
    engine.execute(TABLE).await;
    for _ in 0..2 {
        put(as_fold(engine.client(), "t/0/0"), counts(1_000, LATER)).await.unwrap();
        // Another's cut of the same beginning: the first won.
        put(as_fold(engine.client(), "t/0/0"), counts(500, LATER)).await.unwrap();
        assert_eq!(engine.number(ROWS).await, 1_000);
        engine.crash_and_restart().await;
    }
    put(as_fold(engine.client(), "t/0/1000"), counts(1_000, LATER)).await.unwrap();
    assert_eq!(engine.number(ROWS).await, 2_000);
}

#[tokio::test]
async fn the_fence_refuses_what_comes_late() {
    let engine = Engine::start().await;
    engine.execute(TABLE).await;
    let now: i64 = engine.client().query("SELECT toUnixTimestamp64Milli(now64(3))").fetch_one().await.unwrap();
    let late = put(as_fold(engine.client(), "t/0/0"), counts(10, now - 1)).await.unwrap_err().to_string();
    assert!(late.contains("Code: 469") && late.contains("fence"), "{late}");
    assert_eq!(engine.number(ROWS).await, 0);
    // Refused is not taken: the same token passes with a deadline ahead.
    put(as_fold(engine.client(), "t/0/0"), counts(10, now + 60_000)).await.unwrap();
    assert_eq!(engine.number(ROWS).await, 10);
}

#[tokio::test]
async fn the_fence_looks_at_the_clock_when_the_rows_come_not_when_the_stream_opens() {
    let engine = Engine::start().await;
    engine.execute(TABLE).await;
    let now: i64 = engine.client().query("SELECT toUnixTimestamp64Milli(now64(3))").fetch_one().await.unwrap();
    let deadline = now + 1_500;
    let client = as_fold(engine.client(), "t/0/0");
    let mut insert = client.insert::<Count>("counts").await.unwrap();
    // Enough to open the stream before the deadline (the crate sends at 256 KiB).
    for row in counts(20_000, deadline) {
        insert.write(&row).await.unwrap();
    }
    let clock = engine.client();
    while clock.query("SELECT toUnixTimestamp64Milli(now64(3))").fetch_one::<i64>().await.unwrap() <= deadline {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    insert.write(&counts(1, deadline).next().unwrap()).await.unwrap();
    let late = insert.end().await.unwrap_err().to_string();
    assert!(late.contains("Code: 469"), "{late}");
    assert_eq!(engine.number(ROWS).await, 0);
}
