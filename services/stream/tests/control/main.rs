//! Control and balances, on a real broker: written, read back, kept over restarts and outages, and never another log unseen.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use embedded::kafka::{KafkaChild, KafkaSettings as Broker};
use ledger::control::{Document, Kind, Model, Plan, Rejected, Write};
use ledger::time::{Micros, Period, Slot};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::producer::{FutureProducer, FutureRecord};
use runtime::metrics::Name;
use runtime::{Metrics, Shutdown, SystemClock, Tasks};
use schemas::codec;
use schemas::event::{BalanceUpdated, ControlChanged, ModelUsage};
use schemas::topic;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use stream::balances::{BalancesReader, BalancesView};
use stream::control::{ControlError, ControlReader, ControlView, ControlWriter, WriteError, Written};
use stream::kafka::KafkaSettings;
use stream::topics;

const SOON: Duration = Duration::from_secs(180);

fn broker(folder: &Path) -> Broker {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools");
    assert!(tools.join("kafka/lib").is_dir(), "Kafka's jars are missing: run make setup");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    Broker::new(folder, tools, port)
}

fn settings(kafka: &KafkaChild) -> KafkaSettings {
    KafkaSettings { brokers: kafka.brokers(), single_node: true, partitions: 3, ..KafkaSettings::default() }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap()
}

/// Waits until it holds, for a limited time.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(began.elapsed() < SOON, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn model(version: &str, id: &str, expected_revision: u64) -> Write {
    let model = Model::new(version.parse().unwrap(), "served");
    Write { kind: Kind::Model, id: id.into(), expected_revision, document: Some(Document::Model(model)) }
}

/// A process that reads control, as a role would.
struct Process {
    view: ControlView,
    writer: ControlWriter,
    metrics: Metrics,
    tasks: Tasks,
}

impl Process {
    fn start(settings: &KafkaSettings, snapshot: Option<PathBuf>) -> Self {
        let (metrics, tasks) = (Metrics::new(), Tasks::new(Shutdown::new()));
        let (reader, view) = ControlReader::open(settings, snapshot, Arc::new(SystemClock)).unwrap();
        let reader = reader.with_metrics(&metrics).unwrap();
        let writer = ControlWriter::new(settings, view.clone()).unwrap();
        tasks.spawn("control", SOON, reader.run(tasks.shutdown().clone()));
        Self { view, writer, metrics, tasks }
    }

    async fn stop(self) {
        self.tasks.shutdown().trigger();
        self.tasks.run().await.unwrap();
    }

    fn refused(&self, reason: &str) -> bool {
        self.metrics.text().contains(&format!("{}{{reason=\"{reason}\"}} 1\n", Name::ControlRefused.as_str()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_answered_when_its_record_has_come_back_and_the_first_of_two_wins() {
    let folder = tempfile::tempdir().unwrap();
    let kafka = KafkaChild::start(&broker(folder.path())).await.unwrap();
    let settings = settings(&kafka);
    topics::ensure(&settings).await.unwrap();
    let one = Process::start(&settings, None);
    let two = Process::start(&settings, None);
    soon(one.view.wait_caught_up()).await;

    let written = one.writer.write(model("v1", "llama", 0), "a person").await.unwrap();
    assert_eq!(written, Written { revision: 1, offset: 0 });
    assert_eq!(one.view.load().state.revision(Kind::Model, "llama"), 1, "who is answered reads what it wrote");
    soon(two.view.wait_for(written.offset + 1)).await;
    assert_eq!(two.view.load().state, one.view.load().state);

    // Both believe to be first. One of them is, for every reader.
    let (a, b) = tokio::join!(
        one.writer.write(model("v2", "llama", 1), "a person"),
        two.writer.write(model("v3", "llama", 1), "another")
    );
    let conflict = |result: &Result<Written, WriteError>| {
        matches!(result, Err(WriteError::Rejected(Rejected::Conflict { expected: 1, found: 2 })))
    };
    assert!(a.is_ok() && conflict(&b) || b.is_ok() && conflict(&a), "{a:?} {b:?}");

    // What is refused changes nothing, and is counted.
    let plan = Plan { name: "Free".into(), models: Some(vec!["nowhere".parse().unwrap()]), ..Plan::default() };
    let plan =
        Write { kind: Kind::Plan, id: "free".into(), expected_revision: 0, document: Some(Document::Plan(plan)) };
    let refused = one.writer.write(plan, "a person").await;
    assert!(matches!(refused, Err(WriteError::Rejected(Rejected::Missing(Kind::Model, _)))), "{refused:?}");
    let producer: FutureProducer = settings.client("test").create().unwrap();
    producer.send(FutureRecord::<(), _>::to(topic::CONTROL).partition(0).payload("noise"), SOON).await.unwrap();
    let last = one.writer.write(model("v1", "mistral", 0), "a person").await.unwrap();
    assert!(one.refused("missing") && one.refused("undecodable"), "{}", one.metrics.text());
    soon(two.view.wait_for(last.offset + 1)).await;
    assert_eq!(two.view.load().state, one.view.load().state, "all readers refuse the same");

    one.stop().await;
    two.stop().await;
    kafka.stop(SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_outlives_the_process_and_an_outage_of_the_broker() {
    let folder = tempfile::tempdir().unwrap();
    let broker = broker(&folder.path().join("kafka"));
    let snapshot = folder.path().join("state/control");
    let kafka = KafkaChild::start(&broker).await.unwrap();
    let settings = settings(&kafka);
    topics::ensure(&settings).await.unwrap();
    let process = Process::start(&settings, Some(snapshot.clone()));
    assert!(!process.view.is_loaded());
    process.writer.write(model("v1", "llama", 0), "a person").await.unwrap();
    process.stop().await;

    // Without Kafka a new process works from the snapshot, and cannot write.
    kafka.kill().await;
    let process = Process::start(&settings, Some(snapshot.clone()));
    assert!(process.view.is_loaded() && !process.view.caught_up());
    assert_eq!(process.view.load().state.revision(Kind::Model, "llama"), 1);
    let refused = process.writer.write(model("v2", "llama", 1), "a person").await;
    assert!(matches!(refused, Err(WriteError::Unavailable(_))), "{refused:?}");
    let known = process.writer.write(model("v2", "llama", 0), "a person").await;
    assert!(matches!(known, Err(WriteError::Rejected(Rejected::Conflict { .. }))), "{known:?}");

    // When it is back, reading and writing go on.
    let kafka = KafkaChild::start(&broker).await.unwrap();
    soon(process.view.wait_caught_up()).await;
    let revision = process.view.load().state.revision(Kind::Model, "llama");
    let written = process.writer.write(model("v3", "llama", revision), "a person").await.unwrap();
    assert_eq!(written.revision, revision + 1);
    let state = process.view.load().state.clone();
    process.stop().await;

    // A damaged snapshot is put aside, and the log says the same.
    let mut bytes = std::fs::read(&snapshot).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::write(&snapshot, bytes).unwrap();
    let process = Process::start(&settings, Some(snapshot.clone()));
    assert!(!process.view.is_loaded() && snapshot.with_extension("unusable").exists());
    soon(process.view.wait_caught_up()).await;
    assert_eq!(process.view.load().state, state);
    process.stop().await;
    kafka.stop(SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_log_in_the_place_of_this_one_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let kafka = KafkaChild::start(&broker(&folder.path().join("kafka"))).await.unwrap();
    let settings = settings(&kafka);
    topics::ensure(&settings).await.unwrap();
    let snapshot = folder.path().join("control");
    let process = Process::start(&settings, Some(snapshot.clone()));
    for id in ["a", "b", "c"] {
        process.writer.write(model("v1", id, 0), "a person").await.unwrap();
    }
    process.stop().await;

    let run = async || {
        let (reader, _) = ControlReader::open(&settings, Some(snapshot.clone()), Arc::new(SystemClock)).unwrap();
        soon(reader.run(Shutdown::new())).await.unwrap_err()
    };
    made_anew(&settings).await;
    let error = run().await;
    assert!(matches!(error, ControlError::Truncated { offset: 3, high: 0, .. }), "{error}");

    // Even when it has grown as long as the first one.
    let other = Process::start(&settings, None);
    for id in ["a", "b", "c", "d"] {
        other.writer.write(model("v9", id, 0), "a person").await.unwrap();
    }
    let error = run().await;
    assert!(matches!(error, ControlError::OtherLog { offset: 2, .. }), "{error}");
    assert!(error.to_string().contains("delete the snapshot"), "{error}");
    other.stop().await;
    kafka.stop(SOON).await;
}

/// Deletes the control topic and creates it again.
async fn made_anew(settings: &KafkaSettings) {
    let admin: AdminClient<_> = settings.client("test").create().unwrap();
    admin.delete_topics(&[topic::CONTROL], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
    let began = std::time::Instant::now();
    // The broker forgets it a moment after it has answered.
    while topics::ensure(settings).await.is_err() || topics::verify(settings).await.is_err() {
        assert!(began.elapsed() < SOON, "the topic does not come back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn period() -> Period {
    Period { from: Slot(0), to: Slot(31 * 96) }
}

fn balance(tenant: &str, as_of: i64, input: i64) -> BalanceUpdated {
    let usage =
        ModelUsage { model: "llama".parse().unwrap(), input, cached_input: 0, output: 0, reasoning: 0, requests: 1 };
    BalanceUpdated {
        tenant_id: tenant.parse().unwrap(),
        period_from: period().from.start(),
        period_to: period().to.start(),
        partition: 0,
        as_of,
        control_offset: 0,
        published_at: Micros(as_of),
        usage: vec![usage],
    }
}

fn input_of(view: &BalancesView, tenant: &str) -> Option<i64> {
    Some(view.get(&tenant.parse().unwrap(), period())?.usage[0].input)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_balance_holds_whatever_comes_last() {
    let folder = tempfile::tempdir().unwrap();
    let kafka = KafkaChild::start(&broker(&folder.path().join("kafka"))).await.unwrap();
    let settings = settings(&kafka);
    topics::ensure(&settings).await.unwrap();
    let snapshot = folder.path().join("balances");
    let producer: FutureProducer = settings.client("test").create().unwrap();
    let publish = async |balance: BalanceUpdated| {
        let (key, value) = (balance.key(), codec::encode(&balance).unwrap());
        producer.send(FutureRecord::to(topic::BALANCES).partition(1).key(&key).payload(&value), SOON).await.unwrap();
    };
    publish(balance("acme", 10, 100)).await;
    publish(balance("acme", 5, 50)).await;

    let told = Arc::new(AtomicU64::new(0));
    let start = || {
        let told = told.clone();
        let count = Box::new(move |_: &BalanceUpdated| {
            told.fetch_add(1, Ordering::Relaxed);
        });
        let (reader, view) = BalancesReader::open(&settings, Some(snapshot.clone()), count).unwrap();
        let tasks = Tasks::new(Shutdown::new());
        tasks.spawn("balances", SOON, reader.run(tasks.shutdown().clone()));
        (tasks, view)
    };
    let (tasks, view) = start();
    soon(view.wait_caught_up()).await;
    assert_eq!(
        (input_of(&view, "acme"), told.load(Ordering::Relaxed)),
        (Some(100), 1),
        "an older one is told to nobody"
    );
    publish(balance("acme", 20, 300)).await;
    publish(balance("other", 1, 7)).await;
    until("the newer ones are there", || input_of(&view, "acme") == Some(300) && input_of(&view, "other") == Some(7))
        .await;
    tasks.shutdown().trigger();
    tasks.run().await.unwrap();

    kafka.kill().await;
    told.store(0, Ordering::Relaxed);
    let (tasks, view) = start();
    assert_eq!((input_of(&view, "acme"), told.load(Ordering::Relaxed)), (Some(300), 2), "kept without Kafka");
    assert!(!view.caught_up());
    tasks.shutdown().trigger();
    tasks.run().await.unwrap();
}

/// A snapshot's content as JSON.
fn content(snapshot: &Path) -> Value {
    let bytes = std::fs::read(snapshot).unwrap();
    let end = bytes.iter().position(|&byte| byte == b'\n').unwrap();
    serde_json::from_slice(&bytes[end + 1..]).unwrap()
}

/// An old process skips what a newer one wrote, and goes on. The newer process that comes after it must not.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_build_could_not_read_is_read_again_by_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let kafka = KafkaChild::start(&broker(&folder.path().join("kafka"))).await.unwrap();
    let settings = settings(&kafka);
    topics::ensure(&settings).await.unwrap();
    let snapshot = folder.path().join("control");
    let old = Process::start(&settings, Some(snapshot.clone()));
    soon(old.view.wait_caught_up()).await;
    old.writer.write(model("v1", "llama", 0), "a person").await.unwrap();
    let change = ControlChanged {
        write_id: uuid::Uuid::from_u128(1),
        written_at: Micros(1),
        actor: "a newer Tollgate".into(),
        kind: "coupon".into(),
        id: "spring".into(),
        expected_revision: 0,
        document: Some("{}".into()),
    };
    let producer: FutureProducer = settings.client("test").create().unwrap();
    let value = codec::encode(&change).unwrap();
    producer.send(FutureRecord::<(), _>::to(topic::CONTROL).partition(0).payload(&value), SOON).await.unwrap();
    let last = old.writer.write(model("v1", "mistral", 0), "a person").await.unwrap();
    let whole = old.view.load().state.clone();
    old.stop().await;

    let mut stored = content(&snapshot);
    assert_eq!(stored["unread"], true, "{stored}");
    // As if the first record had been the one that the old build could not read.
    stored["entries"].as_array_mut().unwrap().retain(|entry| entry["id"] != "llama");
    let body = serde_json::to_vec(&stored).unwrap();
    let hash: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(&snapshot, [format!("tollgate-control 1 {hash}\n").as_bytes(), &body].concat()).unwrap();

    let new = Process::start(&settings, Some(snapshot.clone()));
    assert_eq!(new.view.load().offset, last.offset + 1, "what was known serves at once");
    until("the log is read once more", || new.view.load().state == whole).await;
    new.stop().await;
    let kept = content(&snapshot);
    assert_eq!((&kept["offset"], kept["entries"].as_array().unwrap().len()), (&Value::from(last.offset + 1), 2));

    // Another log in its place is seen all the same.
    let mut other = content(&snapshot);
    other["last"][0] = Value::from(other["last"][0].as_u64().unwrap() ^ 1);
    let body = serde_json::to_vec(&other).unwrap();
    let hash: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(&snapshot, [format!("tollgate-control 1 {hash}\n").as_bytes(), &body].concat()).unwrap();
    let (reader, _) = ControlReader::open(&settings, Some(snapshot), Arc::new(SystemClock)).unwrap();
    let ended = soon(reader.run(Shutdown::new())).await;
    assert!(matches!(ended, Err(ControlError::OtherLog { .. })), "{ended:?}");
}
