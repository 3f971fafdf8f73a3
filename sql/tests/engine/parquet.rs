//! Records of a log as Parquet and back: every byte of them, whatever they are, and nothing is left behind.

use sql::{LogRow, QueryError};

use crate::engine::Engine;

fn rows() -> Vec<LogRow> {
    let row = |offset, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[(&str, &[u8])]| LogRow {
        offset,
        log_time_ms: 1_793_489_400_000 - offset,
        key: key.map(<[u8]>::to_vec),
        value: value.map(<[u8]>::to_vec),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect(),
    };
    let any: Vec<u8> = (0..=255).collect();
    vec![
        row(0, Some(b"acme"), Some(&any), &[]),
        row(1, None, None, &[("mark", b"heartbeat"), ("mark", b"\xff\0"), ("\u{e9}", b"")]),
        row(5, Some(b""), Some(b""), &[]),
        row(i64::MAX - 1, Some(&any), None, &[("", &any)]),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_become_parquet_and_come_back_to_the_last_byte() {
    let engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    engine.execute("CREATE TABLE log_rows_00000000000000000000000000000000 (n UInt8) ENGINE = Memory").await;
    let tables = "SELECT count() FROM system.tables WHERE database = 'tollgate' AND name LIKE 'log\\_rows%'";

    let table = clickhouse.parquet_table().await.unwrap();
    for rows in [rows(), rows()[1..3].to_vec(), rows()] {
        let parquet = table.parquet(&rows).await.unwrap();
        assert!(parquet.starts_with(b"PAR1") && parquet.ends_with(b"PAR1"));
        assert_eq!(table.rows(parquet).await.unwrap(), rows);
    }
    let mut other = engine.client("tollgate").query("SELECT 1 AS kafka_offset").fetch_bytes("Parquet").unwrap();
    let refused = table.rows(other.collect().await.unwrap()).await.unwrap_err();
    assert!(matches!(&refused, QueryError::Engine { .. }), "columns are missing: {refused}");
    let refused = table.rows(b"PAR1 is how it begins, PAR1".to_vec().into()).await.unwrap_err();
    assert!(matches!(&refused, QueryError::Engine { .. }), "{refused}");

    assert_eq!(engine.number(tables).await, 2, "what another process uses now is left alone");
    table.drop_table().await.unwrap();
    assert_eq!(engine.number(tables).await, 1);
}
