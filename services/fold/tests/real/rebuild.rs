//! A rebuild beside a running fold: stopped and gone on with, compared, held to the log, and switched to.

use std::cell::Cell;

use fold::archive::Log;
use fold::rebuild::Rebuilt;
use runtime::{Shutdown, Tasks};
use sql::{ClickHouse, ClickHouseSettings, Table};

use crate::servers::Servers;
use crate::{folded, is_folded, until};

pub(crate) const BLOCK: u64 = 40;

pub(crate) fn new_database(servers: &Servers) -> ClickHouseSettings {
    ClickHouseSettings { database: "tollgate_rebuild".into(), ..servers.clickhouse_settings() }
}

pub(crate) async fn rebuild(servers: &Servers) -> Vec<Rebuilt> {
    let (old, new) = (servers.clickhouse_settings(), new_database(servers));
    fold::rebuild::run(Log::kafka(&servers.kafka()), &old, &new, &[0, 1], BLOCK, |_| {}).await.unwrap()
}

/// Stops it after so many blocks, wherever it is then.
async fn stopped_after(servers: &Servers, blocks: u32) {
    let (old, new, kafka) = (servers.clickhouse_settings(), new_database(servers), servers.kafka());
    let (written, enough) = (Cell::new(0), tokio::sync::Notify::new());
    let counted = |_| {
        written.set(written.get() + 1);
        if written.get() == blocks {
            enough.notify_one();
        }
    };
    tokio::select! {
        biased;
        () = enough.notified() => {}
        done = fold::rebuild::run(Log::kafka(&kafka), &old, &new, &[0, 1], BLOCK, counted) => panic!("it ended before: {done:?}"),
    }
}

/// What all rows of a database say, but for where chunks were cut.
pub(crate) async fn rows(servers: &Servers, database: &str, table: Table) -> i64 {
    let sql = format!(
        "SELECT toInt64(sum(cityHash64(toString(tuple(* EXCEPT (insert_before, log_month, chunk_first))))) % 1000000000000) FROM {database}.{table} WHERE kind IN ('data', 'dead')"
    );
    servers.number(&sql).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_goes_on_after_a_stop_gives_the_same_rows_and_is_switched_to() {
    let servers = Servers::start().await;
    let tasks = Tasks::new(Shutdown::new());
    let (mut traffic, fold) = folded(&servers, &tasks, 250).await;

    stopped_after(&servers, 1).await;
    stopped_after(&servers, 2).await;
    let (lines, ()) = tokio::join!(rebuild(&servers), traffic.send(100));
    assert!(lines.iter().any(|line| line.from > 0), "it went on: {lines:#?}");
    assert!(lines.iter().all(|line| line.differences.is_empty() && line.compared > 0), "{lines:#?}");
    until!("all is folded", is_folded(&servers, &traffic).await);
    let lines = rebuild(&servers).await;
    assert!(lines.iter().all(|line| line.differences.is_empty() && line.summed), "{lines:#?}");
    for table in Table::ALL {
        assert_eq!(rows(&servers, "tollgate", table).await, rows(&servers, "tollgate_rebuild", table).await);
    }
    let audited =
        fold::audit::run(Log::kafka(&servers.kafka()), &new_database(&servers), &[0, 1], |_| {}).await.unwrap();
    assert!(audited.iter().all(|line| line.differences.is_empty() && line.offsets > 0), "{audited:#?}");

    // The switch: the old fold goes on for a while, the new one takes up where the rebuild stopped.
    let next = servers.fold_into("tollgate_rebuild", 40);
    traffic.send(100).await;
    until!("the old one goes on", is_folded(&servers, &traffic).await);
    fold.kill();
    servers.execute("DROP DATABASE tollgate SYNC").await;
    traffic.send(50).await;
    let new = ClickHouse::new(&new_database(&servers));
    for (partition, &end) in traffic.tokens.ends.iter().enumerate() {
        let at = i32::try_from(partition).unwrap();
        until!("the new one is at the end", new.position(Table::Tokens, at).await.unwrap().position == end);
    }
    let mut used = 0;
    for partition in 0..2 {
        let totals = new.partition_totals(partition, ledger::time::Slot(0)).await.unwrap();
        used += totals.totals.iter().map(|total| total.tokens.output as i64).sum::<i64>();
    }
    assert_eq!(used, traffic.output.values().sum::<i64>());
    next.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_names_what_the_old_database_has_otherwise() {
    let servers = Servers::start().await;
    let tasks = Tasks::new(Shutdown::new());
    let (_, fold) = folded(&servers, &tasks, 150).await;
    fold.kill();
    let change = |what: &str| format!("ALTER TABLE tollgate.tokens {what} SETTINGS mutations_sync = 2");
    let end = servers.number("SELECT max(chunk_end) FROM tollgate.tokens WHERE kafka_partition = 0").await;
    let chunk = format!("kafka_partition = 0 AND kind = 'chunk' AND chunk_end = {end}");
    servers.execute(&change(&format!("UPDATE chain = repeat('x', 32) WHERE {chunk}"))).await;
    servers.execute(&change("UPDATE output = output + 1 WHERE kafka_partition = 1 AND kind = 'data'")).await;

    let lines = rebuild(&servers).await;
    let said = |topic: &str, partition: i32| {
        let line = lines.iter().find(|line| line.topic == topic && line.partition == partition).unwrap();
        line.differences.join("\n")
    };
    let tokens = Table::Tokens.topic();
    assert_eq!(said(tokens, 0), format!("the chain of the old chunk that ends at offset {end} is not the log's"));
    assert!(said(tokens, 1).contains("the first sums that differ"), "{lines:#?}");
    assert_eq!(said(Table::Requests.topic(), 0) + &said(Table::Requests.topic(), 1), "");

    servers.execute(&change("DELETE WHERE kafka_partition = 1 AND kind = 'data'")).await;
    let lines = rebuild(&servers).await;
    let line = lines.iter().find(|line| line.topic == tokens && line.partition == 1).unwrap();
    assert!(line.differences.len() >= 2, "rows are missing, and their sums: {line:#?}");
}
