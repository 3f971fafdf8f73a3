//! The embedded Kafka: produce and consume, kill -9 and go on, stop cleanly, die with its parent.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use embedded::kafka::{KafkaChild, KafkaError, KafkaSettings, prepare, probe};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};

const FOLDER: &str = "TOLLGATE_TEST_FOLDER";

fn tools() -> PathBuf {
    std::env::var_os("TOLLGATE_TOOLS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools"), PathBuf::from)
}

fn settings(data: &Path) -> KafkaSettings {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    KafkaSettings::new(data, tools(), port)
}

async fn create_topic(brokers: &str) {
    let admin: AdminClient<_> = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let topic = NewTopic::new("t", 1, TopicReplication::Fixed(1)).set("message.timestamp.type", "LogAppendTime");
    let made = admin.create_topics(&[topic], &AdminOptions::new()).await.unwrap();
    made.into_iter().for_each(|topic| assert_eq!(topic.unwrap(), "t"));
}

fn producer(brokers: &str) -> FutureProducer {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .create()
        .unwrap()
}

async fn produce(producer: &FutureProducer, from: u32, to: u32) {
    let acks = (from..to).map(|i| {
        let payload = i.to_string();
        async move {
            producer
                .send(FutureRecord::<(), _>::to("t").partition(0).payload(&payload), Duration::from_secs(30))
                .await
                .unwrap();
        }
    });
    futures_util::future::join_all(acks).await;
}

fn consume(brokers: &str, count: usize) -> Vec<String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "g")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut from = TopicPartitionList::new();
    from.add_partition_offset("t", 0, Offset::Beginning).unwrap();
    consumer.assign(&from).unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut got = Vec::new();
    while got.len() < count {
        assert!(Instant::now() < deadline, "{} of {count}", got.len());
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            got.push(String::from_utf8(message.unwrap().payload().unwrap().to_vec()).unwrap());
        }
    }
    got
}

#[tokio::test]
async fn what_was_acknowledged_outlives_a_kill_and_a_stop() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder.path().join("data"));
    let began = Instant::now();
    let kafka = KafkaChild::start(&settings).await.unwrap();
    println!("first start {:?}", began.elapsed());
    probe(settings.listen).await.unwrap();
    let brokers = kafka.brokers();
    create_topic(&brokers).await;
    let producer = producer(&brokers);
    produce(&producer, 0, 1000).await;

    assert!(Command::new("kill").args(["-9", &kafka.pid().to_string()]).status().unwrap().success());
    assert!(kafka.wait().await.is_some_and(|status| !status.success()));
    assert!(!kafka.is_running() && probe(settings.listen).await.is_err());
    let began = Instant::now();
    let kafka = KafkaChild::start(&settings).await.unwrap();
    println!("start after a kill {:?}", began.elapsed());
    // The same producer goes on: same topic, same cluster, no gap.
    produce(&producer, 1000, 1100).await;

    let began = Instant::now();
    assert!(kafka.stop(Duration::from_secs(30)).await, "a clean stop");
    println!("clean stop {:?}", began.elapsed());
    let began = Instant::now();
    let kafka = KafkaChild::start(&settings).await.unwrap();
    println!("start after a clean stop {:?}", began.elapsed());
    let expected: Vec<_> = (0..1100).map(|i: u32| i.to_string()).collect();
    assert_eq!(consume(&brokers, 1100), expected);

    let mut other = settings.clone();
    other.data_dir = folder.path().join("other");
    assert!(matches!(KafkaChild::start(&other).await, Err(KafkaError::PortTaken(taken)) if taken == settings.listen));
    kafka.kill().await;
}

#[tokio::test]
async fn a_broker_that_cannot_start_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path());
    settings.properties.insert("num.io.threads".to_owned(), "none".to_owned());
    let error = KafkaChild::start(&settings).await.unwrap_err().to_string();
    assert!(error.contains("num.io.threads"), "{error}");
}

/// kill -9 of whoever starts Kafka for the first time, while the store is being made.
#[tokio::test]
async fn a_store_that_was_cut_off_half_made_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let mut parent = parent(folder.path());
    let deadline = Instant::now() + Duration::from_secs(300);
    while !folder.path().join("log.new").exists() {
        assert!(Instant::now() < deadline && parent.try_wait().unwrap().is_none());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert!(!folder.path().join("log").exists(), "the store appears whole or not at all");
    // What a worse moment could leave behind.
    std::fs::create_dir_all(folder.path().join("log.new/rest")).unwrap();
    std::fs::write(folder.path().join("log.new/meta.properties"), "cut o").unwrap();
    let kafka = KafkaChild::start(&settings(folder.path())).await.unwrap();
    create_topic(&kafka.brokers()).await;
    assert!(!folder.path().join("log.new").exists());
    kafka.kill().await;
}

/// The archive of loaded classes only saves time.
#[tokio::test]
async fn kafka_starts_with_an_archive_of_classes_and_with_none_and_with_one_that_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(&folder.path().join("data"));
    settings.tools_dir = folder.path().join("tools");
    let kafka = settings.tools_dir.join("kafka");
    std::fs::create_dir_all(&kafka).unwrap();
    std::os::unix::fs::symlink(std::path::absolute(tools().join("kafka/lib")).unwrap(), kafka.join("lib")).unwrap();
    prepare(&settings).await.unwrap();
    let archives = || std::fs::read_dir(&kafka).unwrap().map(|f| f.unwrap().path()).filter(|f| !f.ends_with("lib"));
    let [archive] = archives().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(archive.extension().unwrap(), "jsa");
    let made = std::fs::read(&archive).unwrap();
    for bytes in [Some(made), Some(b"no archive".to_vec()), None] {
        std::fs::remove_file(&archive).unwrap();
        if let Some(bytes) = &bytes {
            std::fs::write(&archive, bytes).unwrap();
        }
        let kafka = KafkaChild::start(&settings).await.unwrap();
        assert!(kafka.stop(Duration::from_secs(30)).await);
        assert_eq!(archive.exists(), bytes.is_some(), "a broker makes none: that would hold up its stop");
    }
}

fn parent(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "parent_process"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Not a test: a parent that starts Kafka and is killed.
#[tokio::test]
#[ignore = "the parent process of other tests"]
async fn parent_process() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let kafka = KafkaChild::start(&settings(&folder)).await.unwrap();
    std::fs::write(folder.join("pid.part"), format!("{} {}", kafka.pid(), kafka.brokers())).unwrap();
    std::fs::rename(folder.join("pid.part"), folder.join("pid")).unwrap();
    std::future::pending().await
}

#[tokio::test]
async fn it_dies_with_its_parent() {
    let folder = tempfile::tempdir().unwrap();
    let mut parent = parent(folder.path());
    let deadline = Instant::now() + Duration::from_secs(300);
    let line = loop {
        match std::fs::read_to_string(folder.path().join("pid")) {
            Ok(line) => break line,
            Err(_) => assert!(Instant::now() < deadline && parent.try_wait().unwrap().is_none()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let (pid, brokers) = line.split_once(' ').unwrap();
    probe(brokers.parse().unwrap()).await.unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    // Gone, or a zombie that nobody reaps.
    while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < deadline, "Kafka outlived its parent");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
