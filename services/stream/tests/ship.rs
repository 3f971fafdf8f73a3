//! A spool shipped to Apache Kafka itself, which is not there at first and killed in between.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::convert::Infallible;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use embedded::kafka::KafkaChild;
use ledger::ids::{ApiKeyId, RequestId};
use ledger::time::Micros;
use ledger::tokens::TokenCounts;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use runtime::clock::SystemClock;
use runtime::metrics::Metrics;
use runtime::{Shutdown, Tasks};
use schemas::event::{EndReason, Event, RequestFinished, TokensCounted};
use schemas::mark::Mark;
use stream::kafka::KafkaSettings;
use stream::line::{LineState, LogRecord, Outcome, SourceEnd};
use stream::ship::Shipper;
use stream::spool::{Admission, Finish, Opened, Spool, SpoolSettings, Usage, gateway_topics};
use uuid::Uuid;

const PARTITIONS: i32 = 2;
const DRAIN: Duration = Duration::from_secs(60);

fn kafka_at(port: u16) -> KafkaSettings {
    KafkaSettings {
        brokers: format!("127.0.0.1:{port}"),
        single_node: true,
        partitions: PARTITIONS,
        ..KafkaSettings::default()
    }
}

async fn broker(data: &Path, port: u16) -> KafkaChild {
    let tools = std::env::var_os("TOLLGATE_TOOLS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools"), PathBuf::from);
    KafkaChild::start(&embedded::kafka::KafkaSettings::new(data, tools, port)).await.unwrap()
}

/// A gateway's part of a process.
struct Process {
    spool: Spool,
    tasks: Tasks,
    metrics: Metrics,
}

fn process(dir: &Path, kafka: &KafkaSettings) -> Process {
    let settings = SpoolSettings { dir: dir.into(), heartbeat_interval_ms: 200, ..SpoolSettings::default() };
    let Opened { spool, flusher, .. } =
        Spool::open(&settings, gateway_topics(PARTITIONS), Arc::new(SystemClock)).unwrap();
    let (tasks, metrics) = (Tasks::new(Shutdown::new()), Metrics::new());
    let shipper = Shipper::to_kafka(spool.clone(), kafka, "gateway-spool", &metrics, DRAIN).unwrap();
    let shutdown = tasks.shutdown().clone();
    tasks.spawn_thread("shipper", DRAIN * 2, move || shipper.run(&shutdown)).unwrap();
    let flush = move || {
        flusher.run();
        Ok::<_, Infallible>(())
    };
    tasks.spawn_thread("flusher", DRAIN * 2, flush).unwrap();
    Process { spool, tasks, metrics }
}

impl Process {
    /// `count` requests from `first` on, of 3 + 4 tokens each.
    fn serve(&self, first: u128, count: u128) {
        for n in first..first + count {
            let mut request = self.spool.admit(admission(n)).unwrap();
            request.attempt(0, "replica-1");
            request.received(3, 1, 0);
            request.checkpoint().unwrap();
            request.received(3, 4, 0);
            let counts = TokenCounts { input: 1, cached_input: 2, output: 4, reasoning: 0 };
            request.finish(Finish {
                end_reason: EndReason::Complete,
                status: 200,
                error_code: None,
                usage: Usage::Final(counts),
                dispatched_at: None,
                first_byte_at: None,
            });
        }
    }

    async fn shipped(&self) {
        let deadline = Instant::now() + Duration::from_secs(300);
        while self.spool.stats().unshipped_records > 0 {
            assert!(Instant::now() < deadline, "{:?}", self.spool.stats());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn stop(self) {
        self.tasks.shutdown().trigger();
        assert_eq!(self.spool.close().unwrap(), 0);
        self.tasks.run().await.unwrap();
        assert_eq!(self.spool.stats().unshipped_records, 0);
        assert_eq!(self.spool.cursor().acked, self.spool.frontier());
    }
}

fn admission(n: u128) -> Admission {
    Admission {
        request_id: RequestId(Uuid::from_u128(n)),
        tenant: format!("tenant-{}", n % 5).parse().unwrap(),
        project: "p".parse().unwrap(),
        api_key: ApiKeyId(Uuid::from_u128(1)),
        model: "m".parse().unwrap(),
        version: "v1".parse().unwrap(),
        endpoint: "/v1/completions".into(),
        received_at: Micros(0),
        stream: true,
    }
}

struct Read<E> {
    events: Vec<E>,
    heartbeats: usize,
    ends: Vec<Option<SourceEnd>>,
}

/// Reads one topic to its end, through the real line.
fn read<E: Event>(kafka: &KafkaSettings, topic: &str) -> Read<E> {
    let mut read = Read { events: Vec::new(), heartbeats: 0, ends: Vec::new() };
    for partition in 0..PARTITIONS {
        let mut config = kafka.client("test");
        let consumer: BaseConsumer = config.set("group.id", "test").create().unwrap();
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        consumer.assign(&from).unwrap();
        let (_, end) = consumer.fetch_watermarks(topic, partition, Duration::from_secs(30)).unwrap();
        let mut line = LineState::default();
        let deadline = Instant::now() + Duration::from_secs(120);
        while line.position < end {
            assert!(Instant::now() < deadline, "{topic}/{partition}: {} of {end}", line.position);
            let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
            let message = message.unwrap();
            let headers: Vec<_> = message.headers().into_iter().flat_map(|headers| headers.iter()).collect();
            let headers: Vec<_> = headers.iter().map(|header| (header.key, header.value.unwrap_or_default())).collect();
            let step = line.step::<E>(&LogRecord {
                offset: message.offset(),
                log_time_ms: message.timestamp().to_millis().unwrap(),
                key: message.key(),
                value: message.payload(),
                headers: &headers,
            });
            match step.unwrap().outcome {
                Outcome::Folded(event) => read.events.push(event),
                Outcome::Mark(Mark::Heartbeat { .. }) => read.heartbeats += 1,
                Outcome::Mark(_) | Outcome::Duplicate { .. } => {}
                Outcome::Dead(reason) => unreachable!("{reason}"),
            }
        }
        read.ends.extend(line.sources.values().map(|source| source.end));
    }
    read
}

#[tokio::test]
async fn kafka_gets_each_count_once_although_it_comes_late_and_is_killed_in_between() {
    let dir = tempfile::tempdir().unwrap();
    let (data, spool) = (dir.path().join("kafka"), dir.path().join("spool"));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let kafka = kafka_at(port);

    // Nobody listens yet: the gateway serves all the same.
    let gateway = process(&spool, &kafka);
    gateway.serve(1, 500);
    let child = broker(&data, port).await;
    stream::topics::ensure(&kafka).await.unwrap();
    gateway.serve(501, 500);
    gateway.shipped().await;

    gateway.serve(1001, 300);
    child.kill().await;
    gateway.serve(1301, 300);
    let child = broker(&data, port).await;
    gateway.serve(1601, 300);
    gateway.shipped().await;
    let text = gateway.metrics.text();
    assert!(text.contains("tollgate_ship_pending 0"), "{text}");
    gateway.stop().await;

    // A second start closes the source of the first.
    let gateway = process(&spool, &kafka);
    gateway.serve(1901, 100);
    gateway.stop().await;

    let tokens = read::<TokensCounted>(&kafka, schemas::topic::TOKENS);
    let requests = read::<RequestFinished>(&kafka, schemas::topic::REQUESTS);
    assert_eq!(requests.events.len(), 2000);
    assert_eq!(tokens.events.len(), 4000);
    let output: i64 = tokens.events.iter().map(|event| event.output).sum();
    let input: i64 = tokens.events.iter().map(|event| event.input + event.cached_input).sum();
    let answered: i64 = tokens.events.iter().map(|event| event.requests).sum();
    assert_eq!((output, input, answered), (8000, 6000, 2000));
    assert!(tokens.heartbeats > 0 && requests.heartbeats > 0);
    for ends in [tokens.ends, requests.ends] {
        let closed = ends.iter().filter(|end| matches!(end, Some(SourceEnd::Closed { .. }))).count();
        let drained = ends.iter().filter(|end| matches!(end, Some(SourceEnd::Drained))).count();
        assert_eq!((closed, drained), (2, 2), "in every partition: one source closed, the next drained");
    }
    child.stop(Duration::from_secs(20)).await;
}
