//! The log that is folded: events of tenants in turn, written as a gateway writes them.

use std::time::Duration;

use ledger::ids::{ApiKeyId, EventId, RequestId, SourceId, TenantId};
use ledger::time::Micros;
use promises::system::MODELS;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};
use runtime::{Clock as _, SystemClock};
use schemas::codec::encode;
use schemas::event::{EndReason, TokensCounted};
use schemas::topic::TOKENS;
use stream::kafka::KafkaSettings;
use uuid::Uuid;

pub(crate) type Producer = ThreadedProducer<rdkafka::producer::DefaultProducerContext>;

/// What is written: so many tenants in turn, over so many partitions, numbered as one source numbers its records.
pub(crate) struct Log {
    tenants: Vec<TenantId>,
    seqs: Vec<i64>,
    number: u64,
    began: i64,
}

impl Log {
    pub(crate) fn new(partitions: i32, tenants: u64) -> Self {
        Self {
            tenants: (0..tenants).map(|number| format!("tenant-{number}").parse().unwrap()).collect(),
            seqs: vec![0; usize::try_from(partitions).unwrap()],
            number: 0,
            began: SystemClock.now(),
        }
    }

    /// The next event, with the partition that its tenant's records lie in.
    pub(crate) fn next(&mut self) -> (i32, TokensCounted) {
        let tenant = self.tenants[usize::try_from(self.number).unwrap() % self.tenants.len()].clone();
        let partitions = i32::try_from(self.seqs.len()).unwrap();
        let partition = stream::partition::partition_of(tenant.as_str().as_bytes(), partitions);
        let seq = &mut self.seqs[usize::try_from(partition).unwrap()];
        *seq += 1;
        let event = event(self.number, *seq, &tenant, self.began);
        self.number += 1;
        (partition, event)
    }
}

fn event(number: u64, seq: i64, tenant: &TenantId, began: i64) -> TokensCounted {
    TokensCounted {
        event_id: EventId(Uuid::from_u128(number.into())),
        source: SourceId(Uuid::from_u128(7)),
        seq,
        occurred_at: Micros(began + i64::try_from(number).unwrap()),
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

pub(crate) fn producer(kafka: &KafkaSettings) -> Producer {
    let mut config = kafka.client("bench");
    config.set("acks", "all").set("enable.idempotence", "true").set("linger.ms", "5").set("compression.type", "lz4");
    config.create().unwrap()
}

pub(crate) fn send(producer: &Producer, partition: i32, event: &TokensCounted) {
    let value = encode(event).unwrap();
    let mut record = BaseRecord::to(TOKENS).partition(partition).key(event.tenant_id.as_str()).payload(&value);
    while let Err((error, again)) = producer.send(record) {
        assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::QueueFull));
        producer.flush(Duration::from_millis(100)).ok();
        record = again;
    }
}

/// Writes so many events.
pub(crate) fn fill(kafka: &KafkaSettings, log: &mut Log, events: u64) {
    let producer = producer(kafka);
    for _ in 0..events {
        let (partition, event) = log.next();
        send(&producer, partition, &event);
    }
    producer.flush(Duration::from_secs(120)).unwrap();
}
