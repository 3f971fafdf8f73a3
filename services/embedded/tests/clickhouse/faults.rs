//! Clients that vanish, a process that is killed, a folder that is taken: nothing half done is kept.

use std::process::Command;
use std::time::{Duration, Instant};

use embedded::clickhouse::{ClickHouseChild, ClickHouseError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::engine::{Engine, command, settings};
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
        let mut socket = TcpStream::connect(engine.address()).await.unwrap();
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
        let pid = engine.pid().to_string();
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
async fn a_body_that_breaks_in_the_middle_inserts_nothing() {
    let engine = Engine::start().await;
    engine.execute(TABLE).await;
    let lines = LINE.repeat(5_000);
    // Rows that end in nonsense; a compressed block that is none.
    let broken = engine.post(INSERT, "", &format!("{lines}{{\"partition\":")).await;
    assert!(broken.starts_with("HTTP/1.1 4") || broken.starts_with("HTTP/1.1 5"), "{broken}");
    assert!(broken.contains("x-clickhouse-exception-code: "), "{broken}");
    let broken = engine.post(&format!("{INSERT}&decompress=1"), "", &lines).await;
    assert!(broken.contains("x-clickhouse-exception-code: "), "{broken}");
    // A client that stops sending, but stays: it is told so, and its place is free again.
    let mut socket = TcpStream::connect(engine.address()).await.unwrap();
    let head =
        format!("POST {INSERT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 9999999\r\n\r\n{lines}");
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("x-clickhouse-exception-code: 209"), "{answer}");
    idle(&engine).await;
    assert_eq!(engine.number("SELECT toUInt64(count()) FROM counts").await, 0);
}

#[tokio::test]
async fn a_reader_that_stalls_is_given_up_and_cannot_take_the_rest_for_the_whole() {
    let engine = Engine::start().await;
    let sql = "SELECT number FROM numbers(100000000)";
    let mut socket = TcpStream::connect(engine.address()).await.unwrap();
    let request =
        format!("POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{sql}", sql.len());
    socket.write_all(request.as_bytes()).await.unwrap();
    // Until the statement has ended, because nobody reads.
    let mut first = [0; 1];
    socket.read_exact(&mut first).await.unwrap();
    idle(&engine).await;
    let (mut rest, mut end) = (Vec::new(), Vec::new());
    let read = socket.read_to_end(&mut rest).await;
    end.extend_from_slice(&rest[rest.len().saturating_sub(5)..]);
    assert!(read.is_err() || end != b"0\r\n\r\n", "the last chunk of a whole answer");
}

#[tokio::test]
async fn a_term_signal_ends_it_cleanly_and_soon_whatever_is_open() {
    let mut engine = Engine::start().await;
    engine.execute(TABLE).await;
    let client = engine.client();
    put(as_fold(client.clone(), "a"), counts(3, LATER)).await.unwrap();
    // Half an insert, and a statement that never ends.
    let mut half = TcpStream::connect(engine.address()).await.unwrap();
    let lines = LINE.repeat(1_000);
    let head = format!("POST {INSERT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{lines}", lines.len() + 1);
    half.write_all(head.as_bytes()).await.unwrap();
    let mut endless = TcpStream::connect(engine.address()).await.unwrap();
    let get = "GET /?query=SELECT%20count()%20FROM%20system.numbers HTTP/1.1\r\nhost: x\r\n\r\n";
    endless.write_all(get.as_bytes()).await.unwrap();
    let running =
        "SELECT toUInt64(count()) FROM system.processes WHERE query LIKE '%system.numbers' OR query LIKE 'INSERT%'";
    let deadline = Instant::now() + Duration::from_secs(20);
    while engine.number(running).await < 2 {
        assert!(Instant::now() < deadline, "they do not run");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(engine.stop(Duration::from_secs(6)).await, "a clean stop");
    engine.start_again().await;
    assert_eq!(engine.number("SELECT toUInt64(count()) FROM counts").await, 3);
    drop((half, endless, client));
}

#[tokio::test]
async fn what_keeps_it_from_starting_is_said() {
    let engine = Engine::start().await;
    let same_data = settings(&engine.settings.data_dir);
    let said = ClickHouseChild::start(&same_data, command(&same_data)).await.unwrap_err().to_string();
    assert!(said.contains("If another process has it open") && said.contains("server.log"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    let mut same_port = settings(folder.path());
    same_port.listen = engine.address();
    let refused = ClickHouseChild::start(&same_port, command(&same_port)).await.unwrap_err();
    assert!(matches!(refused, ClickHouseError::PortTaken(taken) if taken == engine.address()), "{refused}");
    let mut no_library = settings(folder.path());
    no_library.library = folder.path().join("libchdb.so");
    let refused = ClickHouseChild::start(&no_library, command(&no_library)).await.unwrap_err().to_string();
    assert!(refused.contains("make setup"), "{refused}");
    let no_program = settings(folder.path());
    let refused = ClickHouseChild::start(&no_program, no_program.command("/nowhere/tollgate")).await.unwrap_err();
    assert!(matches!(refused, ClickHouseError::Program { .. }), "{refused}");
    assert_eq!(engine.number("SELECT toUInt64(1)").await, 1);
}
