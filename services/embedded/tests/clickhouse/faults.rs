//! Clients that vanish, a process that is killed, a folder that is taken: nothing half done is kept.

use std::io::Read as _;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::engine::{Engine, free_port, process};
use crate::inserts::{LATER, TABLE, as_fold, counts, put};

const LINE: &str = "{\"partition\":1,\"tenant\":\"a\",\"tokens\":1,\"insert_before\":\"2090-01-01 00:00:00.000\"}\n";
const INSERT: &str = "/?async_insert=0&query=INSERT%20INTO%20counts%20FORMAT%20JSONEachRow";

/// Waits until no statement runs, so that a cancelled one has really ended.
async fn idle(engine: &Engine) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while engine
        .number("SELECT toUInt64(count()) FROM system.processes WHERE query NOT LIKE '%system.processes%'")
        .await
        > 0
    {
        assert!(Instant::now() < deadline, "a statement goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_client_that_vanishes_inserts_nothing() {
    let engine = Engine::start().await;
    engine.execute(TABLE).await;
    let lines = LINE.repeat(5_000);
    for head in [
        format!("content-length: {}\r\n\r\n", lines.len() + 1),
        format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n", lines.len()),
    ] {
        let mut socket = TcpStream::connect(engine.address).await.unwrap();
        let request = format!("POST {INSERT} HTTP/1.1\r\nhost: x\r\n{head}{lines}");
        socket.write_all(request.as_bytes()).await.unwrap();
        drop(socket);
        idle(&engine).await;
        assert_eq!(engine.number("SELECT toUInt64(count()) FROM counts").await, 0);
    }
    // The same with its end is kept.
    let answer = engine.post(INSERT, "", &lines).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(engine.number("SELECT toUInt64(count()) FROM counts").await, 5_000);
}

#[tokio::test]
async fn an_insert_that_the_crate_aborts_is_not_kept() {
    let engine = Engine::start().await;
    engine.execute(TABLE).await;
    let mut insert = as_fold(engine.client(), "a").insert::<crate::inserts::Count>("counts").await.unwrap();
    for row in counts(100_000, LATER) {
        insert.write(&row).await.unwrap();
    }
    drop(insert);
    idle(&engine).await;
    assert_eq!(engine.number("SELECT toUInt64(count()) FROM counts").await, 0);
    put(as_fold(engine.client(), "a"), counts(3, LATER)).await.unwrap();
    assert_eq!(engine.number("SELECT toUInt64(count()) FROM counts").await, 3, "its token is still free");
}

#[tokio::test]
async fn what_was_acknowledged_outlives_a_kill_and_nothing_is_torn() {
    let mut engine = Engine::start().await;
    engine.execute(TABLE).await;
    let mut acknowledged = 0_u64;
    for round in 0..3 {
        // Killed in the middle of a run of inserts, after a few more of them each time.
        let client = engine.client();
        let pid = engine.process.id().to_string();
        let inserts = async {
            for i in 0.. {
                if put(as_fold(client.clone(), &format!("{round}/{i}")), counts(2_000, LATER)).await.is_err() {
                    return i;
                }
            }
            0
        };
        let kill = async {
            tokio::time::sleep(Duration::from_millis(300 + 100 * round)).await;
            assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        };
        let (done, ()) = tokio::join!(inserts, kill);
        acknowledged += done;
        engine.crash_and_restart().await;
        let rows = engine.number("SELECT toUInt64(count()) FROM counts").await;
        let sums = "SELECT toUInt64(sum(n)) FROM (SELECT tenant, count() AS n FROM counts GROUP BY tenant) SETTINGS force_optimize_projection = 1";
        assert_eq!(rows % 2_000, 0, "parts are whole");
        assert_eq!(engine.number(sums).await, rows, "projection = rows");
        assert!(rows / 2_000 >= acknowledged, "{} parts, {acknowledged} acknowledged", rows / 2_000);
        // At most the one that was under way may be there without its answer.
        assert!(rows / 2_000 <= acknowledged + round + 1);
        acknowledged = rows / 2_000;
    }
    assert!(acknowledged > 0);
}

#[tokio::test]
async fn a_term_signal_ends_it_cleanly_and_soon() {
    let mut engine = Engine::start().await;
    engine.execute(TABLE).await;
    put(as_fold(engine.client(), "a"), counts(3, LATER)).await.unwrap();
    let began = Instant::now();
    assert!(Command::new("kill").arg(engine.process.id().to_string()).status().unwrap().success());
    let status = engine.process.wait().unwrap();
    assert!(status.success() && began.elapsed() < Duration::from_secs(8), "{status} after {:?}", began.elapsed());
    engine.process = process(engine.folder.path(), engine.address.port());
    embedded::clickhouse::until_ready(engine.address, Duration::from_secs(60)).await.unwrap();
    assert_eq!(engine.number("SELECT toUInt64(count()) FROM counts").await, 3);
}

#[tokio::test]
async fn a_second_process_on_the_same_data_is_refused_with_words() {
    let engine = Engine::start().await;
    let mut second = process(engine.folder.path(), free_port());
    let mut said = String::new();
    second.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    second.wait().unwrap();
    assert!(said.contains("If another process has it open"), "{said}");
    let mut third = process(tempfile::tempdir().unwrap().path(), engine.address.port());
    said.clear();
    third.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    third.wait().unwrap();
    assert!(said.contains("cannot listen on"), "{said}");
    assert_eq!(engine.number("SELECT toUInt64(1)").await, 1);
}
