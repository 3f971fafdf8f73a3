//! What could not count is written anew by command, and what was counted wrongly is corrected by the API: each once, and nothing changes.

use std::time::Duration;

use ledger::ids::{ApiKeyId, EventId, RequestId, SourceId};
use ledger::time::Micros;
use promises::figures::around_now;
use promises::system::{MODELS, Role, System};
use promises::tenants::{models, tenant};
use promises::wait::until;
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use runtime::{Clock as _, SystemClock};
use schemas::codec::encode;
use schemas::event::{EndReason, TokensCounted};
use schemas::topic::TOKENS;
use serde_json::{Value, json};
use stream::partition::partition_of;
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(180);
const TENANT: &str = "acme";

fn counted(seq: i64, output: i64) -> TokensCounted {
    let id = Uuid::from_u128(0x1000 + seq.unsigned_abs() as u128);
    TokensCounted {
        event_id: EventId(id),
        source: SourceId(Uuid::from_u128(7)),
        seq,
        occurred_at: Micros(SystemClock.now()),
        tenant_id: TENANT.parse().unwrap(),
        request_id: RequestId(id),
        attempt: 0,
        project_id: "default".parse().unwrap(),
        api_key_id: ApiKeyId(Uuid::from_u128(4)),
        model: MODELS[0].parse().unwrap(),
        version: "v1".parse().unwrap(),
        replica: "gpu-1".into(),
        endpoint: "chat/completions".into(),
        input: 0,
        cached_input: 0,
        output,
        reasoning: 0,
        input_cumulative: 0,
        cached_input_cumulative: 0,
        output_cumulative: output,
        reasoning_cumulative: 0,
        requests: 1,
        last: true,
        estimated: false,
        end_reason: Some(EndReason::Complete),
    }
}

/// Puts a record into the tenant's partition; gives its place.
async fn put(system: &System, key: &str, value: &[u8]) -> String {
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", system.brokers()).set("acks", "all").create().unwrap();
    let partition = partition_of(TENANT.as_bytes(), 4);
    let record = FutureRecord::to(TOKENS).partition(partition).key(key).payload(value);
    let put = producer.send(record, SOON).await.unwrap();
    format!("tokens/{partition}/{}", put.offset)
}

fn ok(system: &System, arguments: &[&str]) -> String {
    let (done, said) = system.run(&[&["dead-letters"], arguments].concat());
    assert!(done, "{arguments:?}: {said}");
    said
}

fn refused(system: &System, arguments: &[&str]) -> String {
    let (done, said) = system.run(&[&["dead-letters"], arguments].concat());
    assert!(!done, "{arguments:?}: {said}");
    said
}

/// A replay with who and why.
fn said_why<'a>(command: &'a str, place: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&[command, place, "--reason", "ticket 311", "--by", "ann"], more].concat()
}

async fn output(system: &System) -> i64 {
    let usage = system.api(&format!("usage?tenant={TENANT}&{}", around_now())).await;
    usage["data"].as_array().unwrap().iter().map(|row| row["output"].as_i64().unwrap()).sum()
}

/// Offsets of the tenant's line, its four counts, and how many are dead: the four add up.
async fn dead(system: &System) -> i64 {
    let clickhouse =
        sql::ClickHouse::new(&sql::ClickHouseSettings { url: system.clickhouse_url(), ..Default::default() });
    let lines = clickhouse.outcomes(sql::Table::Tokens).await.unwrap();
    let Some(line) = lines.get(&partition_of(TENANT.as_bytes(), 4)) else { return 0 };
    assert_eq!(line.counts.total(), Some(line.position), "each offset has one outcome");
    line.counts.dead
}

/// What the command shows, the API does: a page at a time without bytes, one with them, and who replayed it and why.
async fn the_api_says_the_same(system: &System, keyed: &str, torn: &str) {
    let listed = system.api("dead-letters").await;
    let data = listed["data"].as_array().unwrap();
    let counts: Vec<_> = listed["counts"].as_array().unwrap().iter().map(|count| count["reason"].as_str()).collect();
    assert_eq!(counts, ["key_mismatch", "out_of_bounds", "seq_conflict", "undecodable"].map(Some));
    assert!(data.len() == 4 && data.iter().all(|letter| letter["replay"]["state"] == "folded"), "{listed}");
    assert!(data.iter().all(|letter| letter.get("value").is_none() && letter.get("key").is_none()), "{listed}");
    let (mut cursor, mut paged) = (String::new(), Vec::new());
    while paged.len() < 4 {
        let page = system.api(&format!("dead-letters?limit=3{cursor}")).await;
        paged.extend(page["data"].as_array().unwrap().clone());
        cursor = page["next_cursor"].as_str().map_or_else(String::new, |next| format!("&cursor={next}"));
    }
    assert!(paged == *data && cursor.is_empty(), "{paged:?} {cursor}");
    let one = system.api("dead-letters?topic=tokens&reason=undecodable").await;
    assert_eq!((one["data"].as_array().unwrap().len(), &one["data"][0]["bytes"]), (1, &json!(8)), "{one}");
    let taken = one["data"][0]["taken_at"].as_str().unwrap();
    let since = system.api(&format!("dead-letters?reason=undecodable&from={taken}")).await;
    let before = system.api(&format!("dead-letters?reason=undecodable&to={taken}")).await;
    assert_eq!((since["data"].as_array().unwrap().len(), &before["data"]), (1, &json!([])));
    assert_eq!(system.api("dead-letters?topic=requests").await["data"], json!([]));

    for (place, bytes) in [(torn, Some("6e6f74206176726f")), (keyed, None)] {
        let whole = system.api(&format!("dead-letters/{place}")).await;
        let shown: Value = serde_json::from_str(&ok(system, &["show", place, "--json"])).unwrap();
        assert_eq!(whole, shown, "by command and by API");
        assert_eq!((&whole["replayed_by"], &whole["replay_reason"]), (&json!("ann"), &json!("ticket 311")), "{whole}");
        assert!(bytes.is_none_or(|bytes| whole["value"] == bytes), "{whole}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_found_corrected_and_counts_once_and_keeps_its_place() {
    let mut system = System::parts(0).await;
    system.start_all(&[Role::Fold, Role::Billing]).await;
    models(&system).await;
    tenant(&system, TENANT, &json!({"name": "Acme"})).await;
    assert_eq!(ok(&system, &["list"]).trim(), "no dead letters");

    let first = counted(1, 100);
    put(&system, TENANT, &encode(&first).unwrap()).await;
    let negative = put(&system, TENANT, &encode(&counted(2, -5)).unwrap()).await;
    let keyed = put(&system, "somebody", &encode(&counted(3, 20)).unwrap()).await;
    let torn = put(&system, TENANT, b"not avro").await;
    let other = TokensCounted { event_id: EventId(Uuid::from_u128(9)), ..counted(1, 7) };
    let conflict = put(&system, TENANT, &encode(&other).unwrap()).await;
    until("four dead letters", SOON, async || match dead(&system).await {
        4 => Ok(()),
        dead => Err(dead),
    })
    .await;
    assert_eq!(output(&system).await, 100);

    let listed = ok(&system, &["list", "--since", "1h"]);
    for (place, reason) in
        [(&negative, "out_of_bounds"), (&keyed, "key_mismatch"), (&torn, "undecodable"), (&conflict, "seq_conflict")]
    {
        let full = format!("tollgate.{}", place.replacen("tokens", "tokens.v1", 1));
        let line = listed.lines().find(|line| line.starts_with(&format!("{full} "))).unwrap();
        assert!(line.contains(reason) && line.ends_with("not replayed"), "{line}");
    }
    let one = ok(&system, &["list", "--reason", "undecodable", "--json"]);
    assert_eq!(one.lines().count(), 1, "{one}");
    let page = ok(&system, &["list", "--limit", "1"]);
    assert!(page.contains("go on with --from") && page.contains("out_of_bounds"), "{page}");
    let shown: Value = serde_json::from_str(&ok(&system, &["show", &torn, "--json"])).unwrap();
    assert_eq!((&shown["record"], &shown["value"]), (&Value::Null, &json!("6e6f74206176726f")));
    assert!(ok(&system, &["show", &negative]).contains("\"output\": -5"));
    assert!(refused(&system, &["show", "tokens/0/999999"]).contains("no dead letter at"));

    assert!(refused(&system, &said_why("replay", &negative, &[])).contains("dead letter again"));
    assert!(refused(&system, &said_why("replay", &torn, &[])).contains("no event of this topic"));
    let set = ["--set", "output=5", "--set", "output_cumulative=5"];
    let unknown = said_why("fix", &negative, &[&set[..], &["--set", "tenant_id=nobody"]].concat());
    assert!(refused(&system, &unknown).contains("control knows no tenant \"nobody\""));
    let dry = said_why("fix", &negative, &[&set[..], &["--dry-run"]].concat());
    assert!(ok(&system, &dry).contains("nothing was written"));
    let fix = said_why("fix", &negative, &set);
    assert!(ok(&system, &fix).contains("it counts at"));
    let again = refused(&system, &fix);
    assert!(again.contains("replayed, counts at"), "{again}");
    assert!(ok(&system, &said_why("replay", &keyed, &[])).contains("it counts at"));
    assert!(ok(&system, &said_why("replay", &conflict, &[])).contains("it counts at"));
    let whole = system.dir().join("corrected.json");
    std::fs::write(&whole, serde_json::to_vec(&counted(1, 3)).unwrap()).unwrap();
    let record = said_why("fix", &torn, &["--record", whole.to_str().unwrap(), "--json"]);
    let told: Value = serde_json::from_str(&ok(&system, &record)).unwrap();
    assert_eq!((&told["replay"]["state"], &told["record"]["seq"]), (&json!("folded"), &json!(1)));

    // 100 as it came; 5, 20, 7 and 3 anew. The letters are where they were.
    assert_eq!((output(&system).await, dead(&system).await), (135, 4));
    the_api_says_the_same(&system, &keyed, &torn).await;
    // The very bytes once more, as two people at once would send them: a duplicate.
    let bytes = |text: &str| text.parse::<stream::replay::Place>().unwrap();
    let replay = stream::replay::Replay::of(bytes(&torn), &serde_json::to_value(counted(1, 3)).unwrap(), 4).unwrap();
    let kafka = stream::kafka::KafkaSettings { brokers: system.brokers(), partitions: 4, ..Default::default() };
    let note = stream::replay::Note { by: "bob".into(), reason: "at the same time".into() };
    let place = stream::replay::send(&kafka, &replay, &note).await.unwrap();
    // Something else under the same letter: a dead letter of its own.
    let otherwise = stream::replay::Replay::of(bytes(&torn), &serde_json::to_value(counted(1, 4)).unwrap(), 4).unwrap();
    let conflict = stream::replay::send(&kafka, &otherwise, &note).await.unwrap();
    assert!(conflict > place);
    until("five dead letters", SOON, async || match dead(&system).await {
        5 => Ok(()),
        dead => Err(dead),
    })
    .await;
    assert_eq!(output(&system).await, 135);
    assert_eq!(ok(&system, &["list"]).matches("replayed, counts at").count(), 4);

    adjusted(&mut system, first.occurred_at).await;
}

/// A correction by the API is in every figure, and in the balance that gateways hold the tenant to; a fold that begins anew has it.
async fn adjusted(system: &mut System, at: Micros) {
    let balance = async |system: &System, wanted: u64| {
        until(&format!("a balance of {wanted}"), SOON, async || {
            let balance = system.api(&format!("balances/{TENANT}")).await;
            if balance["models"][0]["output"] == wanted { Ok(()) } else { Err(balance) }
        })
        .await;
    };
    balance(system, 135).await;
    let body = json!({
        "tenant": TENANT, "project": "default", "model": MODELS[0], "at": at.to_string(), "deltas": {"output": -35},
        "reason": "the engine counted its warm-up, ticket 312",
    });
    for _ in 0..2 {
        promises::tenants::put(system, "adjustments/8b0f6b3e-5b0e-4a53-9a3e-1f2d3c4b5a69", &body).await;
    }
    assert_eq!(output(system).await, 100);
    balance(system, 100).await;
    system.kill(Role::Fold);
    // Used while no fold runs.
    put(system, TENANT, &encode(&counted(4, 11)).unwrap()).await;
    system.start_role(Role::Fold).await;
    balance(system, 111).await;
    // Balances run ahead of rows: sums and rows are read one after the other, and compared when nothing is written between them.
    until("usage of 111", SOON, async || match output(system).await {
        111 => Ok(()),
        output => Err(output),
    })
    .await;
    let clickhouse =
        sql::ClickHouse::new(&sql::ClickHouseSettings { url: system.clickhouse_url(), ..Default::default() });
    assert!(clickhouse.trial_balance(sql::LogHours::default()).await.unwrap().balances());
}
