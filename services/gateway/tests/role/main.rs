//! The role on a real broker: its first start, what reaches the log, and serving and restarting while Kafka is away.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at what it did not expect")]

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use embedded::kafka::{KafkaChild, KafkaSettings as Broker};
use embedded::vllm::{Simulator, SimulatorSettings};
use gateway::{RunSettings, Settings};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use ledger::control::{ApiKey, Document, Kind, Model, Plan, Replica, Tenant, Write};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Message, Offset, TopicPartitionList};
use runtime::{Shutdown, SystemClock, Tasks};
use schemas::event::TokensCounted;
use sha2::{Digest, Sha256};
use stream::control::{ControlReader, ControlView, ControlWriter};
use stream::kafka::KafkaSettings;
use stream::spool::SpoolSettings;
use stream::topics;
use tokio::task::JoinSet;
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(180);
const KEY: &str = "tg_role";
const KEY_ID: Uuid = Uuid::from_u128(7);

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn broker(folder: &Path) -> Broker {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools");
    assert!(tools.join("kafka/lib").is_dir(), "Kafka's jars are missing: run make setup");
    Broker::new(folder, tools, free_port())
}

/// Whoever writes control: billing, in life.
struct Operator {
    view: ControlView,
    writer: ControlWriter,
    tasks: Tasks,
}

impl Operator {
    fn start(settings: &KafkaSettings) -> Self {
        let tasks = Tasks::new(Shutdown::new());
        let (reader, view) = ControlReader::open(settings, None, Arc::new(SystemClock)).unwrap();
        let writer = ControlWriter::new(settings, view.clone()).unwrap();
        tasks.spawn("control", SOON, reader.run(tasks.shutdown().clone()));
        Self { view, writer, tasks }
    }

    async fn put(&self, id: &str, document: Document) {
        let kind = document.kind();
        let expected_revision = self.view.load().state.revision(kind, id);
        let write = Write { kind, id: id.into(), expected_revision, document: Some(document) };
        self.writer.write(write, "a person").await.unwrap();
    }

    async fn key(&self, revoked: bool) {
        let sha256 = Sha256::digest(KEY.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let (tenant, project) = ("acme".parse().unwrap(), "search".parse().unwrap());
        let key = ApiKey { revoked, ..ApiKey::new(tenant, project, sha256) };
        self.put(&KEY_ID.to_string(), Document::ApiKey(key)).await;
    }

    async fn set_up(&self, replica: &Simulator) {
        let model = Model::new("v1".parse().unwrap(), "llama-3.1-8b");
        self.put("llama", Document::Model(model)).await;
        self.put("r0", Document::Replica(Replica::new("llama".parse().unwrap(), replica.url()))).await;
        let plan = Plan { name: "Test".into(), tokens_per_period: Some(1_000_000), ..Plan::default() };
        self.put("plan", Document::Plan(plan)).await;
        let tenant = Tenant::new("Acme", "plan".parse().unwrap(), "USD".parse().unwrap(), chrono_tz::UTC);
        self.put("acme", Document::Tenant(tenant)).await;
        self.key(false).await;
    }

    async fn stop(self) {
        self.tasks.shutdown().trigger();
        self.tasks.run().await.unwrap();
    }
}

/// A gateway as the binary runs it.
struct Running {
    addr: SocketAddr,
    shutdown: Shutdown,
    role: JoinSet<Result<(), gateway::Error>>,
    client: Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>,
}

impl Running {
    fn start(kafka: &KafkaSettings, dir: &Path) -> Self {
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let gateway = Settings { listen: addr, ..Settings::default() };
        let spool = SpoolSettings { dir: dir.to_owned(), ..SpoolSettings::default() };
        let (shutdown, mut role) = (Shutdown::new(), JoinSet::new());
        role.spawn(gateway::run(
            RunSettings { gateway, spool, kafka: kafka.clone(), ..RunSettings::default() },
            shutdown.clone(),
        ));
        Self { addr, shutdown, role, client: Client::builder(TokioExecutor::new()).build_http() }
    }

    async fn ask(&self, path: &str, body: Option<serde_json::Value>) -> Option<(StatusCode, String)> {
        let request = Request::builder().uri(format!("http://{}{path}", self.addr)).header("x-api-key", KEY);
        let request = match body {
            Some(body) => request.method("POST").body(Full::from(body.to_string())),
            None => request.body(Full::default()),
        };
        let response = self.client.request(request.unwrap()).await.ok()?;
        let status = response.status();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, String::from_utf8(body.to_vec()).unwrap()))
    }

    async fn ready(&self) {
        let began = Instant::now();
        let mut last = None;
        while !matches!(last, Some((StatusCode::OK, _))) {
            assert!(began.elapsed() < SOON, "never ready: {last:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
            last = self.ask("/readyz", None).await;
        }
    }

    async fn chat(&self, stream: bool) -> Option<StatusCode> {
        let body = serde_json::json!({
            "model": "llama", "stream": stream, "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]
        });
        Some(self.ask("/v1/chat/completions", Some(body)).await?.0)
    }

    async fn stop(mut self) {
        self.shutdown.trigger();
        self.role.join_next().await.unwrap().unwrap().unwrap();
    }
}

/// Counts in the log, each resend once, when there are so many requests.
async fn counted(kafka: &KafkaSettings, requests: i64) -> Vec<TokensCounted> {
    let mut config = kafka.client("test");
    let consumer: BaseConsumer = config.set("group.id", "test").set("auto.offset.reset", "error").create().unwrap();
    let mut all = TopicPartitionList::new();
    for partition in 0..kafka.partitions {
        all.add_partition_offset(schemas::topic::TOKENS, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&all).unwrap();
    let (mut seen, mut counts) = (BTreeSet::new(), Vec::<TokensCounted>::new());
    let began = Instant::now();
    while counts.iter().map(|count| count.requests).sum::<i64>() < requests {
        assert!(began.elapsed() < SOON, "only {counts:?}");
        // A poll that waits would hold the thread that the gateway runs on too.
        match consumer.poll(Duration::ZERO) {
            Some(message) => {
                let message = message.unwrap();
                let Some(value) = message.payload() else { continue };
                let count: TokensCounted = schemas::codec::decode(value).unwrap();
                if seen.insert((count.source.0, message.partition(), count.seq)) {
                    counts.push(count);
                }
            }
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn after_its_first_start_a_gateway_needs_no_kafka_to_start_and_serve_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, dir) = (broker(&folder.path().join("kafka")), folder.path().join("spool"));
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let replica = Simulator::start(SimulatorSettings { listen, ..SimulatorSettings::default() }).await.unwrap();
    let brokers = broker.listen.to_string();
    let kafka = KafkaSettings { brokers, single_node: true, partitions: 3, ..KafkaSettings::default() };

    // The first start ever waits for Kafka, and says so.
    let first = Running::start(&kafka, &dir);
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < SOON, "it never said that it waits");
        match first.ask("/readyz", None).await {
            Some((StatusCode::SERVICE_UNAVAILABLE, said)) if said.contains("needs Kafka") => break,
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    assert_eq!(first.chat(false).await, Some(StatusCode::SERVICE_UNAVAILABLE));
    assert!(!dir.join("inflight.table").exists(), "there is no spool before its topics are checked");

    let child = KafkaChild::start(&broker).await.unwrap();
    topics::ensure(&kafka).await.unwrap();
    let operator = Operator::start(&kafka);
    operator.set_up(&replica).await;
    first.ready().await;
    let registered = |view: &ControlView| {
        let state = view.load().state.clone();
        state.iter().filter(|(_, document)| document.kind() == Kind::Spool).count()
    };
    assert_eq!(registered(&operator.view), 1);
    let began = Instant::now();
    while first.chat(false).await != Some(StatusCode::OK) {
        assert!(began.elapsed() < SOON, "what control says never arrived");
    }
    assert_eq!(first.chat(true).await, Some(StatusCode::OK));
    let counts = counted(&kafka, 2).await;
    assert_eq!(counts.iter().map(|count| count.output).sum::<i64>(), 10);

    // A revoked key is refused as soon as control says so.
    operator.key(true).await;
    let began = Instant::now();
    while first.chat(false).await != Some(StatusCode::UNAUTHORIZED) {
        assert!(began.elapsed() < SOON, "the key still opens");
    }
    operator.key(false).await;
    while first.chat(false).await != Some(StatusCode::OK) {
        assert!(began.elapsed() < SOON, "the key does not open again");
    }
    let before = replica.requests().len();
    first.stop().await;

    // Without Kafka: serves, stops, starts again, serves.
    operator.stop().await;
    child.kill().await;
    for _ in 0..2 {
        let alone = Running::start(&kafka, &dir);
        alone.ready().await;
        for stream in [false, true] {
            assert_eq!(alone.chat(stream).await, Some(StatusCode::OK));
        }
        alone.stop().await;
    }

    // Kafka is back: all of it arrives, once, and the spool is still one.
    let child = KafkaChild::start(&broker).await.unwrap();
    let last = Running::start(&kafka, &dir);
    last.ready().await;
    let requests = (before + 4) as i64;
    let counts = counted(&kafka, requests).await;
    assert_eq!(counts.iter().map(|count| count.requests).sum::<i64>(), requests);
    assert_eq!(counts.iter().map(|count| count.output).sum::<i64>(), 5 * requests);
    assert!(counts.iter().all(|count| !count.estimated));
    let operator = Operator::start(&kafka);
    operator.view.wait_caught_up().await;
    assert_eq!(registered(&operator.view), 1);
    operator.stop().await;
    last.stop().await;
    child.kill().await;
}
