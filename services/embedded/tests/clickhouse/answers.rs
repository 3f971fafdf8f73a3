//! What the interface answers: status and code of errors, formats, large results, settings that do not leak.

use futures_util::future::join_all;

use crate::engine::Engine;

#[tokio::test]
async fn errors_have_status_code_and_text() {
    let engine = Engine::start().await;
    for (sql, status, code) in [
        ("SELEC 1", "400", "62"),
        ("SELECT nope", "404", "47"),
        ("SELECT * FROM nowhere", "404", "60"),
        ("INSERT INTO nowhere FORMAT JSONEachRow {}", "404", "60"),
        ("SELECT throwIf(1, 'now')", "500", "395"),
        ("SELECT 1 SETTINGS no_such_setting = 1", "404", "115"),
    ] {
        let answer = engine.post("/", "", sql).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{sql}: {answer}");
        assert!(answer.contains(&format!("x-clickhouse-exception-code: {code}\r\n")), "{sql}: {answer}");
        assert!(answer.contains(&format!("Code: {code}. DB::Exception")), "{sql}: {answer}");
    }
    let answer = engine.post("/?no_such_setting=1", "", "SELECT 1").await;
    assert!(answer.contains("exception-code: 115"), "{answer}");
    let answer = engine.post("/?database=nowhere", "", "SELECT 1").await;
    assert!(answer.contains("exception-code: 81"), "{answer}");
    let slow = engine.client().with_setting("max_execution_time", "1");
    let slow = slow.query("SELECT toUInt64(count()) FROM numbers(1000000000000) WHERE sipHash64(number) = 1");
    assert!(slow.fetch_one::<u64>().await.unwrap_err().to_string().contains("Code: 159"));
    assert_eq!(engine.number("SELECT toUInt64(1)").await, 1, "it goes on after all this");
}

#[tokio::test]
async fn health_gets_and_formats() {
    let engine = Engine::start().await;
    let get = async |path: &str| {
        engine.raw(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await
    };
    assert!(get("/ping").await.ends_with("\r\n\r\nOk.\n"));
    assert!(get("/").await.ends_with("\r\n\r\nOk.\n"));
    assert!(get("/?query=SELECT%207").await.ends_with("\r\n\r\n7\n"));
    let changed = get("/?query=CREATE%20DATABASE%20x").await;
    assert!(changed.contains("exception-code: 164"), "a GET changes nothing: {changed}");
    let answer = engine.post("/?default_format=JSONEachRow&query_id=q-1", "", "SELECT 1 AS a, 'x' AS b").await;
    assert!(
        answer.contains("x-clickhouse-query-id: q-1\r\n") && answer.contains("x-clickhouse-format: JSONEachRow\r\n")
    );
    assert!(
        answer.contains("content-type: application/x-ndjson") && answer.ends_with("{\"a\":1,\"b\":\"x\"}\n"),
        "{answer}"
    );
    let answer = engine.post("/", "", "SELECT number FROM numbers(3) FORMAT CSV").await;
    assert!(answer.ends_with("\r\n\r\n0\n1\n2\n"), "{answer}");
    let answer = engine.post("/?query=SELECT%201%20AS%20a", "", "FORMAT Parquet").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("PAR1"));
    let answer = engine.post("/", "", "SELECT 1 WHERE 0").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
    let zone = engine.post("/", "", "SELECT toString(toDateTime(0))").await;
    assert!(zone.ends_with("1970-01-01 00:00:00\n"), "{zone}");
}

#[tokio::test]
async fn parquet_goes_out_and_in() {
    let engine = Engine::start().await;
    engine.execute("CREATE TABLE p (a UInt64, b Decimal(38, 12)) ENGINE = MergeTree ORDER BY a").await;
    let file: Vec<u8> = {
        let mut bytes = Vec::new();
        let sql = "SELECT number AS a, toDecimal128(number, 12) / 8 AS b FROM numbers(1000)";
        let mut cursor = engine.client().query(sql).fetch_bytes("Parquet").unwrap();
        while let Some(piece) = cursor.next().await.unwrap() {
            bytes.extend_from_slice(&piece);
        }
        bytes
    };
    let mut insert = engine.client().insert_formatted_with("INSERT INTO p FORMAT Parquet");
    insert.send(file.into()).await.unwrap();
    insert.end().await.unwrap();
    assert_eq!(engine.number("SELECT toUInt64(sum(b * 8)) FROM p").await, 499_500);
}

#[tokio::test]
async fn large_results_are_sent_in_pieces_and_errors_in_them_are_seen() {
    let engine = Engine::start().await;
    let sql = "SELECT number, toString(number) AS text FROM numbers(1000000)";
    let mut cursor = engine.client().query(sql).fetch::<(u64, String)>().unwrap();
    let (mut rows, mut sum) = (0_u64, 0_u64);
    while let Some((number, text)) = cursor.next().await.unwrap() {
        assert_eq!(number.to_string(), text);
        (rows, sum) = (rows + 1, sum + number);
    }
    assert_eq!((rows, sum), (1_000_000, 499_999_500_000));
    let failing = "SELECT throwIf(number = 3000000, 'in the middle') FROM numbers(4000000)";
    let failed = engine.client().query(failing).fetch_all::<u8>().await.unwrap_err().to_string();
    assert!(failed.contains("in the middle") && failed.contains("Code: 395"), "{failed}");
    // A client that reads no further costs nothing for long.
    let mut cursor = engine.client().query("SELECT number FROM numbers(10000000000)").fetch::<u64>().unwrap();
    cursor.next().await.unwrap();
    drop(cursor);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while engine.number("SELECT toUInt64(count()) FROM system.processes WHERE query LIKE '%10000000000%' AND query NOT LIKE '%processes%'").await > 0 {
        assert!(std::time::Instant::now() < deadline, "the abandoned SELECT goes on");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn no_request_sees_the_settings_of_another() {
    let engine = Engine::start().await;
    let asked = |threads: u64| {
        let client = engine.client().with_setting("max_threads", threads.to_string());
        async move {
            let got: String = client.query("SELECT toString(getSetting('max_threads'))").fetch_one().await.unwrap();
            assert_eq!(got, threads.to_string());
        }
    };
    join_all((1..60).map(asked)).await;
    for database in ["one", "two"] {
        engine.execute(&format!("CREATE DATABASE {database}")).await;
    }
    let at_home = |i: usize| {
        let database = ["default", "one", "two"][i % 3];
        let client = engine.client().with_database(database);
        async move {
            let got: String = client.query("SELECT currentDatabase()").fetch_one().await.unwrap();
            assert_eq!(got, database);
        }
    };
    join_all((0..60).map(at_home)).await;
    let began = std::time::Instant::now();
    let client = engine.client();
    join_all((0..8).map(|_| client.query("SELECT sleep(1)").fetch_one::<u8>()))
        .await
        .into_iter()
        .for_each(|r| assert_eq!(r.unwrap(), 0));
    assert!(began.elapsed() < std::time::Duration::from_secs(6), "statements run beside each other");
}
