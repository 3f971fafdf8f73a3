//! Events per second of the fold, from Kafka to ClickHouse: a log is written first, then the fold is started on it.
//! `make bench` prints the figures that docs/benchmarks.md keeps.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and stops at what it did not expect"
)]

use std::time::{Duration, Instant};

use ledger::ids::{ApiKeyId, EventId, RequestId, SourceId, TenantId};
use ledger::time::Micros;
use promises::figures::select;
use promises::system::{MODELS, Role, System};
use promises::wait::until;
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};
use runtime::{Clock as _, SystemClock};
use schemas::codec::encode;
use schemas::event::{EndReason, TokensCounted};
use schemas::topic::TOKENS;
use stream::kafka::KafkaSettings;
use uuid::Uuid;

const EVENTS: u64 = 400_000;
const PARTITIONS: i32 = 4;
const TENANTS: u64 = 100;

fn event(number: u64, seq: i64, source: SourceId, tenant: &TenantId, now: i64) -> TokensCounted {
    TokensCounted {
        event_id: EventId(Uuid::from_u128(number.into())),
        source,
        seq,
        occurred_at: Micros(now + i64::try_from(number).unwrap()),
        tenant_id: tenant.clone(),
        request_id: RequestId(Uuid::from_u128(number.into())),
        attempt: 0,
        project_id: "default".parse().unwrap(),
        api_key_id: ApiKeyId(Uuid::from_u128(1)),
        model: MODELS[0].parse().unwrap(),
        version: "v1".parse().unwrap(),
        replica: "replica-1".into(),
        endpoint: "chat/completions".into(),
        input: 100,
        cached_input: 28,
        output: 250,
        reasoning: 0,
        input_cumulative: 100,
        cached_input_cumulative: 28,
        output_cumulative: 250,
        reasoning_cumulative: 0,
        requests: 1,
        last: true,
        estimated: false,
        end_reason: Some(EndReason::Complete),
    }
}

fn fill(kafka: &KafkaSettings) {
    let mut config = kafka.client("bench");
    config.set("acks", "all").set("enable.idempotence", "true").set("linger.ms", "20");
    let producer: ThreadedProducer<_> = config.create().unwrap();
    let source = SourceId(Uuid::from_u128(7));
    let now = SystemClock.now();
    let tenants: Vec<TenantId> = (0..TENANTS).map(|number| format!("tenant-{number}").parse().unwrap()).collect();
    let mut seqs = vec![0i64; usize::try_from(PARTITIONS).unwrap()];
    for number in 0..EVENTS {
        let tenant = &tenants[usize::try_from(number % TENANTS).unwrap()];
        let partition = stream::partition::partition_of(tenant.as_str().as_bytes(), PARTITIONS);
        let seq = &mut seqs[usize::try_from(partition).unwrap()];
        *seq += 1;
        let value = encode(&event(number, *seq, source, tenant, now)).unwrap();
        let mut record = BaseRecord::to(TOKENS).partition(partition).key(tenant.as_str()).payload(&value);
        while let Err((error, again)) = producer.send(record) {
            assert_eq!(error.rdkafka_error_code(), Some(rdkafka::types::RDKafkaErrorCode::QueueFull));
            producer.flush(Duration::from_millis(100)).ok();
            record = again;
        }
    }
    producer.flush(Duration::from_secs(60)).unwrap();
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut system = System::parts(0).await;
    let brokers = system.brokers();
    let kafka = KafkaSettings { brokers, single_node: true, partitions: PARTITIONS, ..KafkaSettings::default() };
    system.migrate();
    let began = Instant::now();
    fill(&kafka);
    println!("log written: {EVENTS} events in {:.1} s", began.elapsed().as_secs_f64());

    let began = Instant::now();
    system.start_role(Role::Fold).await;
    let started = began.elapsed();
    let (client, clickhouse) = (system.client.clone(), system.clickhouse_url());
    until("the fold", Duration::from_secs(300), async || {
        let rows = select(&client, &clickhouse, "SELECT count() AS rows FROM tokens WHERE kind = 'data'").await;
        if rows[0]["rows"].as_u64() == Some(EVENTS) { Ok(()) } else { Err(rows) }
    })
    .await;
    let folded = began.elapsed();
    println!("fold ready after {:.2} s, all folded after {:.2} s", started.as_secs_f64(), folded.as_secs_f64());
    println!("| events | partitions | tenants | events/s, start of the process included |");
    println!("|---|---|---|---|");
    println!("| {EVENTS} | {PARTITIONS} | {TENANTS} | {:.0} |", EVENTS as f64 / folded.as_secs_f64());
}
