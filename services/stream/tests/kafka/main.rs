//! Topics and consuming, on a real broker.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use embedded::kafka::{KafkaChild, KafkaSettings as Broker};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use schemas::topic;
use stream::consume::{Bounds, ConsumeError, PartitionConsumer};
use stream::kafka::KafkaSettings;
use stream::topics::{self, TopicsError};

const SOON: Duration = Duration::from_secs(180);

async fn broker(folder: &Path) -> (KafkaChild, KafkaSettings) {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools");
    assert!(tools.join("kafka/lib").is_dir(), "Kafka's jars are missing: run make setup");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let kafka = KafkaChild::start(&Broker::new(folder, tools, port)).await.unwrap();
    let settings =
        KafkaSettings { brokers: kafka.brokers(), single_node: true, partitions: 3, ..KafkaSettings::default() };
    (kafka, settings)
}

async fn next(consumer: &PartitionConsumer) -> Result<stream::consume::Record, ConsumeError> {
    loop {
        match tokio::time::timeout(SOON, consumer.next()).await.unwrap() {
            Err(error) if error.is_transient() => {}
            other => return other,
        }
    }
}

#[tokio::test]
async fn topics_are_created_as_they_must_be_and_read_from_any_offset_that_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let (kafka, settings) = broker(folder.path()).await;
    let TopicsError::Wrong(missing) = topics::verify(&settings).await.unwrap_err() else { panic!("they are missing") };
    assert_eq!(missing.len(), topics::plans(&settings).len(), "{missing:?}");
    topics::ensure(&settings).await.unwrap();
    topics::ensure(&settings).await.unwrap();
    topics::verify(&settings).await.unwrap();
    refuses_what_exactness_cannot_rest_on(&settings).await;

    let producer: FutureProducer = settings.client("test").create().unwrap();
    for n in 0..5 {
        let value = format!("value {n}");
        let headers = OwnedHeaders::new().insert(Header { key: "n", value: Some(&n.to_string()) });
        let record = FutureRecord::to(topic::TOKENS).partition(1).key("acme").payload(&value).headers(headers);
        producer.send(record, SOON).await.unwrap();
    }
    let mut consumer = PartitionConsumer::open(&settings, "tollgate-test", topic::TOKENS, 1, 3).unwrap();
    let record = next(&consumer).await.unwrap();
    assert_eq!((record.offset, record.key.as_deref()), (3, Some(b"acme".as_slice())));
    assert_eq!(record.value.as_deref(), Some(b"value 3".as_slice()));
    assert_eq!(record.headers, [("n".to_owned(), b"3".to_vec())]);
    assert!(record.log_time_ms > 1_600_000_000_000);
    assert_eq!(next(&consumer).await.unwrap().offset, 4);
    assert_eq!(consumer.bounds().await.unwrap(), Bounds { first: 0, next: 5 });
    consumer.restart(1).unwrap();
    for offset in 1..5 {
        assert_eq!(next(&consumer).await.unwrap().offset, offset);
    }

    let beyond = PartitionConsumer::open(&settings, "tollgate-test", topic::TOKENS, 1, 9).unwrap();
    let said = next(&beyond).await.unwrap_err();
    assert!(matches!(said, ConsumeError::OutOfRange { offset: 9, .. }), "{said}");
    let nowhere = PartitionConsumer::open(&settings, "tollgate-test", topic::TOKENS, 7, 0).unwrap();
    let said = next(&nowhere).await.unwrap_err();
    assert!(matches!(said, ConsumeError::Missing { partition: 7, .. }), "{said}");
    kafka.kill().await;
}

async fn refuses_what_exactness_cannot_rest_on(settings: &KafkaSettings) {
    let more = KafkaSettings { partitions: 4, ..settings.clone() };
    let said = topics::verify(&more).await.unwrap_err().to_string();
    assert!(said.contains("tollgate.tokens.v1 has 3 partitions, 4 are configured"), "{said}");
    let cluster = KafkaSettings { single_node: false, ..settings.clone() };
    let said = topics::verify(&cluster).await.unwrap_err().to_string();
    assert!(said.contains("1 copies") && said.contains("min.insync.replicas=1, it must be 2"), "{said}");

    let admin: AdminClient<_> = settings.client("test").create().unwrap();
    let kept = [("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")];
    let kept = kept.into_iter().chain([("message.timestamp.type", "LogAppendTime"), ("min.insync.replicas", "1")]);
    let whole = |retention| {
        kept.clone().fold(AlterConfig::new(ResourceSpecifier::Topic(topic::TOKENS)), |config, (key, value)| {
            config.set(key, if key == "retention.ms" { retention } else { value })
        })
    };
    for (retention, good) in [("86400000", false), ("-1", true)] {
        let config = whole(retention).set("unclean.leader.election.enable", "false");
        admin.alter_configs(&[config], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
        assert_eq!(topics::verify(settings).await.is_ok(), good, "retention.ms={retention}");
    }
}
