//! The embedded Kafka, for real: it serves, keeps what it acknowledged through a kill, and says what is wrong.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use embedded::kafka::{KafkaChild, KafkaError, KafkaSettings};
use rdkafka::ClientConfig;
use rdkafka::Message as _;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn settings(data: PathBuf) -> KafkaSettings {
    let tools = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.tools");
    KafkaSettings::new(data, tools, free_port())
}

fn client(kafka: &KafkaChild) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.brokers());
    config
}

async fn produce(kafka: &KafkaChild, values: std::ops::Range<u32>) {
    let producer: FutureProducer = client(kafka).set("acks", "all").set("enable.idempotence", "true").create().unwrap();
    for value in values {
        let text = value.to_string();
        let record = FutureRecord::<(), _>::to("kept").payload(&text).partition(0);
        producer.send(record, Duration::from_secs(20)).await.unwrap();
    }
}

fn read_all(kafka: &KafkaChild, count: usize) -> Vec<String> {
    let consumer: BaseConsumer = client(kafka).set("group.id", "reader").create().unwrap();
    let mut from = TopicPartitionList::new();
    from.add_partition_offset("kept", 0, Offset::Beginning).unwrap();
    consumer.assign(&from).unwrap();
    let (mut values, began) = (Vec::new(), Instant::now());
    while values.len() < count && began.elapsed() < Duration::from_secs(30) {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            values.push(String::from_utf8(message.payload().unwrap().to_vec()).unwrap());
        }
    }
    values
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path().to_owned());
    let kafka = KafkaChild::start(&settings).await.unwrap();
    let admin: AdminClient<_> = client(&kafka).create().unwrap();
    let topic = NewTopic::new("kept", 1, TopicReplication::Fixed(1));
    admin.create_topics([&topic], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    produce(&kafka, 0..50).await;
    kafka.kill().await;

    let kafka = KafkaChild::start(&settings).await.unwrap();
    produce(&kafka, 50..60).await;
    let expected: Vec<_> = (0..60).map(|value: u32| value.to_string()).collect();
    assert_eq!(read_all(&kafka, 60), expected);
    kafka.stop(Duration::from_secs(20)).await;
}

#[tokio::test]
async fn missing_jars_are_named_with_the_script_that_brings_them() {
    let folder = tempfile::tempdir().unwrap();
    let settings = KafkaSettings::new(folder.path().join("data"), folder.path().join("no-tools"), free_port());
    let error = KafkaChild::start(&settings).await.unwrap_err();
    assert!(!matches!(error, KafkaError::Died { .. }), "{error}");
    assert!(error.to_string().contains("kafka.sh"), "{error}");
}
