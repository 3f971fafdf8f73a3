//! The log archived, deleted in Kafka, and audited and rebuilt all the same; and what is said of an archive that is not whole.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use fold::archive::{Archive, ArchiveError, Archived, FileSize, Log, Manifest, Point};
use fold::audit::AuditError;
use fold::rebuild::{RebuildError, Rebuilt};
use runtime::{Shutdown, Tasks};
use sql::{ClickHouse, ClickHouseSettings, Table};

use crate::rebuild::rows;
use crate::servers::Servers;
use crate::traffic::Traffic;
use crate::{folded, is_folded, until};

const SIZE: FileSize = FileSize { records: 60, bytes: 1 << 20 };

pub(crate) fn archive(servers: &Servers) -> Archive {
    Archive::new(servers.path("archive"), &servers.clickhouse_settings())
}

async fn write(servers: &Servers) -> Vec<Archived> {
    let archive = archive(servers);
    let lines = archive.write(&servers.kafka(), &[0, 1], SIZE, |_| {}).await.unwrap();
    archive.close().await.unwrap();
    lines
}

/// Writes what is missing; nothing fails.
pub(crate) async fn written(servers: &Servers) -> u64 {
    let lines = write(servers).await;
    assert!(lines.iter().all(|line| line.failed.is_none()), "{lines:#?}");
    lines.iter().map(|line| line.files).sum()
}

/// Stops it after so many files, wherever it is then.
async fn stopped_after(servers: &Servers, files: u32) {
    let (archive, kafka, seen) = (archive(servers), servers.kafka(), Cell::new(0));
    let enough = tokio::sync::Notify::new();
    let counted = |_| {
        seen.set(seen.get() + 1);
        if seen.get() == files {
            enough.notify_one();
        }
    };
    tokio::select! {
        biased;
        () = enough.notified() => {}
        done = archive.write(&kafka, &[0, 1], SIZE, counted) => panic!("it ended before: {done:?}"),
    }
}

async fn faults(servers: &Servers) -> Vec<String> {
    let archive = archive(servers);
    let lines = archive.check(&[0, 1], |_| {}).await.unwrap();
    archive.close().await.unwrap();
    lines.into_iter().flat_map(|line| line.faults).collect()
}

/// The manifests of a line and where they lie, by their offsets.
pub(crate) fn manifests(servers: &Servers, topic: &str, partition: i32) -> Vec<(PathBuf, Manifest)> {
    let folder = servers.path("archive").join(topic).join(partition.to_string());
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|kind| kind == "json"));
    files.sort();
    let manifest = |path: &Path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    files.into_iter().map(|path| (path.clone(), manifest(&path))).collect()
}

pub(crate) fn new_database(servers: &Servers, name: &str) -> ClickHouseSettings {
    ClickHouseSettings { database: name.into(), ..servers.clickhouse_settings() }
}

pub(crate) async fn rebuild(servers: &Servers, into: &str) -> Result<Vec<Rebuilt>, RebuildError> {
    let (archive, old) = (archive(servers), servers.clickhouse_settings());
    let log = Log { kafka: &servers.kafka(), archive: Some(&archive) };
    let rebuilt = fold::rebuild::run(log, &old, &new_database(servers, into), &[0, 1], 50, |_| {}).await;
    archive.close().await.unwrap();
    rebuilt
}

pub(crate) async fn audit(servers: &Servers, database: &str) -> Result<usize, AuditError> {
    let archive = archive(servers);
    let log = Log { kafka: &servers.kafka(), archive: Some(&archive) };
    let lines = fold::audit::run(log, &new_database(servers, database), &[0, 1], |_| {}).await;
    archive.close().await.unwrap();
    lines.map(|lines| {
        assert!(lines.iter().all(|line| line.offsets > 0), "{lines:#?}");
        lines.iter().map(|line| line.differences.len()).sum()
    })
}

/// Deletes the first records of both topics in Kafka, up to within the last file of each line.
async fn delete(servers: &Servers, traffic: &Traffic) {
    for (topic, ends) in [(Table::Tokens, &traffic.tokens.ends), (Table::Requests, &traffic.requests.ends)] {
        for (partition, end) in (0..).zip(ends) {
            servers.delete_records(topic.topic(), partition, end - 5).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kafka_deleted_is_audited_and_rebuilt_from_the_archive_to_the_same_bytes() {
    let servers = Servers::start().await;
    let tasks = Tasks::new(Shutdown::new());
    let (mut traffic, fold) = folded(&servers, &tasks, 150).await;
    // An offset without a record, in the log and at its end.
    traffic.in_transaction(0).await;
    traffic.send(50).await;
    traffic.in_transaction(1).await;
    until!("all is folded", is_folded(&servers, &traffic).await);

    stopped_after(&servers, 1).await;
    stopped_after(&servers, 3).await;
    assert!(written(&servers).await > 0, "it goes on");
    assert_eq!(written(&servers).await, 0, "nothing is new");
    traffic.send(40).await;
    assert!(written(&servers).await > 0);
    assert_eq!(faults(&servers).await, Vec::<String>::new());
    until!("all is folded", is_folded(&servers, &traffic).await);
    for table in Table::ALL {
        for partition in 0..2 {
            let files = manifests(&servers, table.topic(), partition);
            let proof = servers.clickhouse().prove(table, partition).await.unwrap();
            let Point { offset, log_time_ms, chain } = files.last().unwrap().1.to;
            assert_eq!((offset, log_time_ms, chain), (proof.position, proof.log_time_ms, proof.chain));
            assert!(files.len() > 1 && files.iter().all(|(_, file)| file.records <= 60), "{files:#?}");
        }
    }
    delete(&servers, &traffic).await;

    let deleted = fold::audit::run(Log::kafka(&servers.kafka()), &servers.clickhouse_settings(), &[0], |_| {}).await;
    let said = deleted.unwrap_err().to_string();
    assert!(said.contains("rebuild --archive"), "{said}");
    assert_eq!(audit(&servers, "tollgate").await.unwrap(), 0);
    let lines = rebuild(&servers, "tollgate_2").await.unwrap();
    assert!(lines.iter().all(|line| line.differences.is_empty() && line.compared > 0 && line.summed), "{lines:#?}");
    for table in Table::ALL {
        assert_eq!(rows(&servers, "tollgate", table).await, rows(&servers, "tollgate_2", table).await);
    }
    traffic.send(20).await;
    until!("all is folded", is_folded(&servers, &traffic).await);
    assert!(written(&servers).await > 0, "it goes on where the log was deleted");
    assert_eq!(audit(&servers, "tollgate").await.unwrap(), 0);

    // ClickHouse lost: what Kafka lacks comes from the archive, and a fold goes on from there.
    fold.kill();
    servers.execute("DROP DATABASE tollgate SYNC").await;
    sql::migrate(&servers.clickhouse_settings(), |_| {}).await.unwrap();
    let lines = rebuild(&servers, "tollgate_3").await.unwrap();
    assert!(lines.iter().all(|line| line.offsets > 0 && line.differences.is_empty()), "{lines:#?}");
    let next = servers.fold_into("tollgate_3", 40);
    traffic.send(30).await;
    let new = ClickHouse::new(&new_database(&servers, "tollgate_3"));
    let mut used = 0;
    for (partition, &end) in (0..).zip(&traffic.tokens.ends) {
        until!("the fold is at the end", new.position(Table::Tokens, partition).await.unwrap().position == end);
        let totals = new.partition_totals(partition, ledger::time::Slot(0)).await.unwrap();
        used += totals.totals.iter().map(|total| total.tokens.output as i64).sum::<i64>();
    }
    assert_eq!(used, traffic.output.values().sum::<i64>());
    next.kill();
    assert_eq!(audit(&servers, "tollgate_3").await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_is_not_whole_is_named_and_what_nobody_has_ends_with_an_error() {
    let servers = Servers::start().await;
    let tasks = Tasks::new(Shutdown::new());
    let (mut traffic, fold) = folded(&servers, &tasks, 150).await;
    written(&servers).await;
    let tokens = Table::Tokens.topic();
    let files = manifests(&servers, tokens, 0);
    let (json, second) = &files[1];
    let parquet = json.with_extension("parquet");
    let name = parquet.file_name().unwrap().to_str().unwrap();
    let whole = (std::fs::read(json).unwrap(), std::fs::read(&parquet).unwrap());

    // A file that is gone is written anew, while Kafka has its records.
    std::fs::remove_file(json).unwrap();
    std::fs::remove_file(&parquet).unwrap();
    let (from, to) = (second.from.offset, second.to.offset - 1);
    assert_eq!(faults(&servers).await, [format!("offsets {from} to {to} are missing")]);
    assert_eq!(written(&servers).await, 1);
    assert_eq!(faults(&servers).await, Vec::<String>::new());
    let again = &manifests(&servers, tokens, 0)[1].1;
    assert_eq!((again.from, again.to, again.records), (second.from, second.to, second.records));

    // Another log, as far as can be seen from here.
    let (last, manifest) = files.last().unwrap();
    let mut other = manifest.clone();
    other.to.chain = [7; 32];
    let said = std::fs::read(last).unwrap();
    std::fs::write(last, serde_json::to_vec(&other).unwrap()).unwrap();
    let failed = write(&servers).await.remove(0).failed;
    assert!(matches!(failed, Some(ArchiveError::OtherLog { .. })), "{failed:?}");
    assert!(faults(&servers).await[0].contains("does not hold the records"));
    std::fs::write(last, said).unwrap();

    let lock = std::fs::File::open(servers.path("archive").join("lock")).unwrap();
    lock.lock().unwrap();
    let archive = archive(&servers);
    let refused = archive.write(&servers.kafka(), &[0], SIZE, |_| {}).await.unwrap_err();
    assert!(matches!(refused, ArchiveError::InUse { .. }), "{refused}");
    drop(lock);

    delete(&servers, &traffic).await;
    let mut bytes = whole.1.clone();
    bytes[40] ^= 1;
    std::fs::write(&parquet, bytes).unwrap();
    let damaged = [
        audit(&servers, "tollgate").await.unwrap_err().to_string(),
        rebuild(&servers, "tollgate_2").await.unwrap_err().to_string(),
        faults(&servers).await.remove(0),
    ];
    assert!(damaged.iter().all(|said| said.contains(name) && said.contains("is damaged")), "{damaged:#?}");
    std::fs::remove_file(&parquet).unwrap();
    let missing = audit(&servers, "tollgate").await.unwrap_err().to_string();
    assert!(missing.contains(name) && missing.contains("is missing"), "{missing}");
    std::fs::remove_file(json).unwrap();
    let gap = format!("offsets {from} to {to} of {tokens}/0 are neither in Kafka nor in the archive");
    let said = rebuild(&servers, "tollgate_2").await.unwrap_err().to_string();
    assert!(said.starts_with(&gap), "{said}");
    let failed = write(&servers).await.remove(0).failed.unwrap().to_string();
    assert!(failed.starts_with(&gap), "{failed}");
    std::fs::write(&parquet, &whole.1).unwrap();
    std::fs::write(json, &whole.0).unwrap();
    assert_eq!(audit(&servers, "tollgate").await.unwrap(), 0);

    // What was deleted before it was archived.
    let end = files.last().unwrap().1.to.offset;
    traffic.send(40).await;
    until!("all is folded", is_folded(&servers, &traffic).await);
    fold.kill();
    delete(&servers, &traffic).await;
    let gap = format!("offsets {end} to {} of {tokens}/0 are neither", traffic.tokens.ends[0] - 6);
    let said = audit(&servers, "tollgate").await.unwrap_err().to_string();
    assert!(said.starts_with(&gap), "{said}, not {gap}");

    let nowhere = Archive::new(servers.path("nowhere"), &servers.clickhouse_settings());
    let log = Log { kafka: &servers.kafka(), archive: Some(&nowhere) };
    let refused = fold::audit::run(log, &servers.clickhouse_settings(), &[0], |_| {}).await.unwrap_err();
    assert!(refused.to_string().contains("nowhere"), "{refused}");
}
