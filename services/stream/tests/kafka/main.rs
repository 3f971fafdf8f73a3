//! Topics, consuming and a place in a group, on a real broker.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use embedded::kafka::{KafkaChild, KafkaSettings as Broker};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use runtime::Shutdown;
use schemas::topic;
use stream::consume::{Bounds, ConsumeError, PartitionConsumer};
use stream::group::{Given, GroupError, Member};
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

type Held = tokio::task::JoinHandle<Result<(), GroupError>>;

/// A process called "one", which holds its place.
fn one(settings: &KafkaSettings, shutdown: &Shutdown) -> (Held, Given) {
    let (member, given) = Member::new(settings, "tollgate-test", "one", topic::TOKENS).unwrap();
    let shutdown = shutdown.clone();
    (tokio::task::spawn_blocking(move || member.run(&shutdown)), given)
}

async fn has_all(mut given: Given) {
    let all = Some((0..3).collect());
    tokio::time::timeout(SOON, given.wait_for(|given| *given == all)).await.unwrap().unwrap();
}

async fn ended(held: Held) -> Result<(), GroupError> {
    tokio::time::timeout(SOON, held).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_place_in_the_group_is_taken_back_unless_another_process_has_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let (kafka, settings) = broker(folder.path()).await;
    topics::ensure(&settings).await.unwrap();
    let (shutdown, other) = (Shutdown::new(), Shutdown::new());
    let (first, given) = one(&settings, &shutdown);
    has_all(given).await;

    // As by a request to join that was lost on the way and arrives late: it takes the place, and nobody is there.
    {
        let (late, given) = one(&settings, &other);
        has_all(given).await;
        other.trigger();
        ended(late).await.unwrap();
    }
    assert!(!first.is_finished(), "it has joined again");

    // Another process, which stays: the one that was there first gives up.
    let (second, given) = one(&settings, &shutdown);
    let said = ended(first).await.unwrap_err().to_string();
    assert!(said.contains("another process took the name \"one\" in the group \"tollgate-test\""), "{said}");
    has_all(given).await;
    assert!(!second.is_finished());
    shutdown.trigger();
    ended(second).await.unwrap();
    kafka.kill().await;
}
