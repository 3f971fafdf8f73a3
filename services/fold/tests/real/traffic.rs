//! What gateways would write: counts, ends, heartbeats, resends; and what they never would.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use ledger::ids::{ApiKeyId, EventId, RequestId, SourceId, SpoolId};
use ledger::time::Micros;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use schemas::codec::encode;
use schemas::event::{BalanceUpdated, EndReason, Event, RequestFinished, TokensCounted};
use schemas::mark::Mark;
use schemas::topic;
use stream::consume::PartitionConsumer;
use stream::kafka::KafkaSettings;
use stream::line::LineState;
use stream::partition::partition_of;
use uuid::Uuid;

use crate::servers::SOON;

/// "acme" and "bolt" lie in different ones of two partitions; a test asserts it.
pub(crate) const TENANTS: [&str; 3] = ["acme", "bolt", "corp"];
pub(crate) const ZONE: chrono_tz::Tz = chrono_tz::Europe::Berlin;
/// 2026-10-31T23:30Z: already November in Berlin.
pub(crate) const NOW: Micros = Micros(1_793_489_400_000_000);

/// One topic.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// The next offset of each partition.
    pub(crate) ends: [i64; 2],
    pub(crate) folded: i64,
    pub(crate) duplicates: i64,
}

pub(crate) struct Traffic {
    kafka: KafkaSettings,
    producer: FutureProducer,
    seqs: HashMap<(&'static str, i32), i64>,
    source: SourceId,
    sent: u64,
    pub(crate) tokens: Sent,
    pub(crate) requests: Sent,
    pub(crate) output: BTreeMap<&'static str, i64>,
    pub(crate) counts: BTreeMap<&'static str, i64>,
    /// The reasons of what cannot count, by place.
    pub(crate) dead: BTreeMap<(i32, i64), &'static str>,
}

impl Traffic {
    pub(crate) fn new(kafka: &KafkaSettings) -> Self {
        let producer = kafka
            .client("test")
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            .create()
            .unwrap();
        assert!(
            TENANTS.iter().any(|tenant| partition_of(tenant.as_bytes(), 2) != partition_of(TENANTS[0].as_bytes(), 2))
        );
        Self {
            kafka: kafka.clone(),
            producer,
            seqs: HashMap::new(),
            source: SourceId(Uuid::from_u128(77)),
            sent: 0,
            tokens: Sent::default(),
            requests: Sent::default(),
            output: BTreeMap::new(),
            counts: BTreeMap::new(),
            dead: BTreeMap::new(),
        }
    }

    pub(crate) fn partition(&self, tenant: &str) -> i32 {
        partition_of(tenant.as_bytes(), 2)
    }

    fn seq(&mut self, topic: &'static str, tenant: &str) -> i64 {
        let seq = self.seqs.entry((topic, partition_of(tenant.as_bytes(), 2))).or_default();
        *seq += 1;
        *seq
    }

    /// A number that is never sent.
    pub(crate) fn lose(&mut self, tenant: &str) {
        self.seq(topic::TOKENS, tenant);
    }

    async fn put(
        &self,
        topic: &str,
        partition: i32,
        key: Option<&str>,
        value: Option<&[u8]>,
        mark: Option<Mark>,
    ) -> i64 {
        let mut record = FutureRecord::<str, [u8]>::to(topic).partition(partition);
        (record.key, record.payload) = (key, value);
        if let Some(mark) = mark {
            let headers = mark.headers().into_iter().fold(OwnedHeaders::new(), |headers, (name, text)| {
                headers.insert(Header { key: name, value: Some(&text) })
            });
            record = record.headers(headers);
        }
        self.producer.send(record, Duration::from_secs(30)).await.unwrap().offset + 1
    }

    /// Counts and ends of so many requests, with a resend, a heartbeat or a bad record now and then.
    pub(crate) async fn send(&mut self, requests: u64) {
        for _ in 0..requests {
            let tenant = TENANTS[(self.sent % 3) as usize];
            let event = self.count(tenant).await;
            let partition = self.partition(tenant);
            if self.sent.is_multiple_of(7) {
                self.tokens.ends[partition as usize] =
                    self.put(topic::TOKENS, partition, Some(tenant), Some(&encode(&event).unwrap()), None).await;
                self.tokens.duplicates += 1;
            }
            if self.sent.is_multiple_of(41) {
                let other = TokensCounted { event_id: EventId(Uuid::from_u128(1)), ..event };
                self.bad(partition, &encode(&other).unwrap(), "seq_conflict").await;
            }
            if self.sent.is_multiple_of(53) {
                self.bad(partition, b"not avro", "undecodable").await;
            }
            if self.sent.is_multiple_of(11) {
                let seq_high = self.seqs[&(topic::TOKENS, partition)] as u64;
                let mark =
                    Mark::Heartbeat { spool: SpoolId(Uuid::nil()), source: self.source, watermark: NOW, seq_high };
                self.tokens.ends[partition as usize] = self.put(topic::TOKENS, partition, None, None, Some(mark)).await;
            }
            self.end(tenant).await;
        }
    }

    /// The source says in both topics that nothing from before will come: nothing may be sent after it.
    pub(crate) async fn vouch(&mut self) {
        let watermark = Micros(NOW.0 + 1_000_000);
        for topic in [topic::TOKENS, topic::REQUESTS] {
            for partition in 0..2 {
                let seq_high = self.seqs.get(&(topic, partition)).map_or(0, |seq| seq.unsigned_abs());
                let mark = Mark::Heartbeat { spool: SpoolId(Uuid::nil()), source: self.source, watermark, seq_high };
                let end = self.put(topic, partition, None, None, Some(mark)).await;
                let sent = if topic == topic::TOKENS { &mut self.tokens } else { &mut self.requests };
                sent.ends[partition as usize] = end;
            }
        }
    }

    /// Publishes a balance, as a fold would.
    pub(crate) async fn publish(&self, balance: &BalanceUpdated) {
        let value = encode(balance).unwrap();
        self.put(topic::BALANCES, balance.partition, Some(&balance.key()), Some(&value), None).await;
    }

    async fn bad(&mut self, partition: i32, value: &[u8], reason: &'static str) {
        let end = self.put(topic::TOKENS, partition, Some("acme"), Some(value), None).await;
        self.tokens.ends[partition as usize] = end;
        self.dead.insert((partition, end - 1), reason);
    }

    /// A record that cannot count, in a transaction of its own: behind it there is an offset without a record.
    pub(crate) async fn in_transaction(&mut self, partition: i32) {
        let mut config = self.kafka.client("test");
        let producer: FutureProducer = config.set("transactional.id", "test").create().unwrap();
        producer.init_transactions(SOON).unwrap();
        producer.begin_transaction().unwrap();
        let record = FutureRecord::to(topic::TOKENS).partition(partition).key("acme").payload(b"not avro");
        let offset = producer.send(record, Duration::from_secs(30)).await.unwrap().offset;
        producer.commit_transaction(SOON).unwrap();
        self.tokens.ends[partition as usize] = offset + 1;
        self.dead.insert((partition, offset), "undecodable");
    }

    /// A count, and then one of a version that no build of today knows.
    pub(crate) async fn newer(&mut self, tenant: &'static str) {
        let event = self.count(tenant).await;
        let mut value = encode(&event).unwrap();
        value[4] += 1;
        self.put(topic::TOKENS, self.partition(tenant), Some(tenant), Some(&value), None).await;
    }

    /// One count.
    pub(crate) async fn count(&mut self, tenant: &'static str) -> TokensCounted {
        self.sent += 1;
        let output = self.sent as i64;
        let event = TokensCounted {
            event_id: EventId(Uuid::from_u128(1_000_000 + u128::from(self.sent))),
            source: self.source,
            seq: self.seq(topic::TOKENS, tenant),
            occurred_at: NOW,
            tenant_id: tenant.parse().unwrap(),
            request_id: RequestId(Uuid::from_u128(self.sent.into())),
            attempt: 0,
            project_id: "default".parse().unwrap(),
            api_key_id: ApiKeyId(Uuid::from_u128(4)),
            model: "llama-3.1-8b".parse().unwrap(),
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
        };
        let partition = self.partition(tenant);
        let end = self.put(topic::TOKENS, partition, Some(tenant), Some(&encode(&event).unwrap()), None).await;
        self.tokens.ends[partition as usize] = end;
        self.tokens.folded += 1;
        *self.output.entry(tenant).or_default() += output;
        *self.counts.entry(tenant).or_default() += 1;
        event
    }

    async fn end(&mut self, tenant: &'static str) {
        let event = RequestFinished {
            event_id: EventId(Uuid::from_u128(9_000_000 + u128::from(self.sent))),
            source: self.source,
            seq: self.seq(topic::REQUESTS, tenant),
            occurred_at: NOW,
            tenant_id: tenant.parse().unwrap(),
            request_id: RequestId(Uuid::from_u128(self.sent.into())),
            attempts: 1,
            project_id: "default".parse().unwrap(),
            api_key_id: ApiKeyId(Uuid::from_u128(4)),
            model: "llama-3.1-8b".parse().unwrap(),
            version: "v1".parse().unwrap(),
            replica: "gpu-1".into(),
            endpoint: "chat/completions".into(),
            stream: false,
            status: 200,
            end_reason: EndReason::Complete,
            error_code: None,
            received_at: NOW,
            dispatched_at: Some(NOW),
            first_byte_at: Some(NOW),
        };
        let partition = self.partition(tenant);
        let end = self.put(topic::REQUESTS, partition, Some(tenant), Some(&encode(&event).unwrap()), None).await;
        self.requests.ends[partition as usize] = end;
        self.requests.folded += 1;
    }
}

/// The state after the whole log, stepped through here.
pub(crate) async fn fold_alone<E: Event>(kafka: &KafkaSettings, topic: &str, partition: i32, end: i64) -> LineState {
    let mut line = LineState::default();
    let log = PartitionConsumer::open(kafka, "tollgate-test", topic, partition, 0).unwrap();
    while line.position < end {
        if let Ok(record) = tokio::time::timeout(SOON, log.next()).await.unwrap() {
            record.lend(|lent| line.step::<E>(lent).unwrap());
        }
    }
    line
}
