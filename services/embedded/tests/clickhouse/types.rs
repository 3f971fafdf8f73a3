//! Every column type that Tollgate uses, there and back through the official crate, with and without compression.

use clickhouse::{Compression, Row};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::engine::Engine;

#[derive(Debug, Clone, PartialEq, Row, Serialize, Deserialize)]
struct Everything {
    millis: i64,
    micros: i64,
    #[serde(with = "clickhouse::serde::uuid")]
    id: Uuid,
    money: i128,
    model: String,
    text: String,
    hash: [u8; 32],
    tokens: u64,
    delta: i64,
    small: u8,
    count: u32,
    kind: i8,
    last: bool,
    maybe: Option<String>,
    maybe_number: Option<i64>,
    #[serde(with = "clickhouse::serde::uuid::option")]
    maybe_id: Option<Uuid>,
    list: Vec<u64>,
}

fn rows() -> Vec<Everything> {
    let low = Everything {
        millis: 0,
        micros: -1,
        id: Uuid::nil(),
        money: -(10_i128.pow(38) - 1),
        model: String::new(),
        text: "zero \0, quote ', tab \t, ünï".to_owned(),
        hash: [0; 32],
        tokens: 0,
        delta: i64::MIN,
        small: 0,
        count: 0,
        kind: 1,
        last: false,
        maybe: None,
        maybe_number: None,
        maybe_id: None,
        list: Vec::new(),
    };
    let high = Everything {
        millis: 1_795_478_400_123,
        micros: 1_795_478_400_123_456,
        id: Uuid::now_v7(),
        money: 10_i128.pow(38) - 1,
        model: "llama-3.1-8b".to_owned(),
        text: "x".repeat(70_000),
        hash: [255; 32],
        tokens: u64::MAX,
        delta: i64::MAX,
        small: 255,
        count: u32::MAX,
        kind: 4,
        last: true,
        maybe: Some(String::new()),
        maybe_number: Some(-5),
        maybe_id: Some(Uuid::new_v4()),
        list: vec![1, u64::MAX],
    };
    vec![low, high]
}

#[tokio::test]
async fn every_type_comes_back_as_it_went() {
    let engine = Engine::start().await;
    engine.execute("CREATE DATABASE `odd-name`").await;
    let table = "CREATE TABLE `odd-name`.everything (
        millis DateTime64(3, 'UTC'), micros DateTime64(6, 'UTC'), id UUID, money Decimal(38, 12), model LowCardinality(String),
        text String, hash FixedString(32), tokens UInt64, delta Int64, small UInt8, count UInt32,
        kind Enum8('data' = 1, 'dead' = 2, 'source' = 3, 'chunk' = 4), last Bool, maybe Nullable(String),
        maybe_number Nullable(Int64), maybe_id Nullable(UUID), list Array(UInt64)
        ) ENGINE = MergeTree ORDER BY (model, micros)";
    engine.execute(table).await;
    let rows = rows();
    for compression in [Compression::Lz4, Compression::None] {
        let client = engine.client().with_database("odd-name").with_compression(compression);
        client.query("TRUNCATE TABLE everything").execute().await.unwrap();
        let mut insert = client.insert::<Everything>("everything").await.unwrap();
        for row in &rows {
            insert.write(row).await.unwrap();
        }
        insert.end().await.unwrap();
        // Asking for lz4 frames as ClickHouse's interface offers them, and without.
        for packed in ["1", "0"] {
            let query = client
                .query("SELECT ?fields FROM everything ORDER BY micros")
                .with_setting("enable_http_compression", packed);
            let back = query.fetch_all::<Everything>().await.unwrap();
            assert!(back == rows, "a value changed on its way (not printed: it is long)");
        }
    }
}

#[tokio::test]
async fn parameters_arrive_as_they_were_given() {
    let engine = Engine::start().await;
    for text in ["plain", "it's", "tab\tnew\nline", "back\\slash", "ünï €", "", "{a:String}", "\\N"] {
        let client = engine.client();
        let got: String = client.query("SELECT {a:String}").param("a", text).fetch_one().await.unwrap();
        assert_eq!(got, text);
        let got: String = client.query("SELECT ?").bind(text).fetch_one().await.unwrap();
        assert_eq!(got, text);
    }
    // From the URL too, also beside data; ClickHouse's own escapes mean what they mean there.
    engine.execute("CREATE TABLE named (a String) ENGINE = MergeTree ORDER BY a").await;
    let insert = "/?param_t=named&async_insert=0&query=INSERT%20INTO%20%7Bt:Identifier%7D%20FORMAT%20CSV";
    let answer = engine.post(insert, "", "\"a,b\"\nc\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(engine.number("SELECT toUInt64(count()) FROM named WHERE a IN ('a,b', 'c')").await, 2);
    let answer = engine.post("/?param_a=x%5Cty&query=SELECT%20hex(%7Ba:String%7D)", "", "").await;
    assert!(answer.ends_with("\r\n\r\n780979\n"), "{answer}");
    let sum = engine.client().query("SELECT {a:UInt64} + {b:Int64}").param("a", 40_u64).param("b", 2_i64);
    assert_eq!(sum.fetch_one::<i64>().await.unwrap(), 42);
    let of = engine.client().query("SELECT toUInt64(count()) FROM numbers(10) WHERE number IN {list:Array(UInt64)}");
    assert_eq!(of.param("list", vec![1_u64, 3, 50]).fetch_one::<u64>().await.unwrap(), 2);
}
