//! How old figures are while events come at a steady rate: from the hand-over to Kafka's client until a balance counts the event,
//! and until ClickHouse's aggregates do.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use promises::figures::select;
use promises::system::System;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::Producer as _;
use rdkafka::{Message as _, Offset, TopicPartitionList};
use schemas::codec::decode;
use schemas::event::BalanceUpdated;
use schemas::topic::BALANCES;
use stream::kafka::KafkaSettings;

use crate::log::{Log, producer, send};

/// Events are handed over in groups of so long.
const BEAT: Duration = Duration::from_millis(5);
/// ClickHouse is asked so often how far it is: by so much an aggregate may seem older than it is. Each answer costs it some 15 ms of a
/// processor, which the fold's inserts lack.
const ASK: Duration = Duration::from_millis(200);
/// So long events come before any is measured.
const WARM: Duration = Duration::from_secs(20);
/// So long figures may take to be whole after the last event.
const SETTLE: Duration = Duration::from_secs(30);

/// What was handed over and is in no figure yet, by what waits for it: offset and time.
#[derive(Default)]
struct Waiting<K>(HashMap<K, VecDeque<(i64, Instant)>>);

impl<K: std::hash::Hash + Eq> Waiting<K> {
    fn add(&mut self, key: K, offset: i64, at: Instant) {
        self.0.entry(key).or_default().push_back((offset, at));
    }

    /// Everything of `key` below `next` is in the figures now. What was handed over before `from` is of the time to warm up.
    fn counted(&mut self, key: &K, next: i64, from: Instant, ages: &mut Vec<Duration>) {
        let Some(waiting) = self.0.get_mut(key) else { return };
        let now = Instant::now();
        while let Some((_, at)) = waiting.pop_front_if(|(offset, _)| *offset < next) {
            if at >= from {
                ages.push(now - at);
            }
        }
    }

    fn left(&self) -> usize {
        self.0.values().map(VecDeque::len).sum()
    }
}

/// Ages of every event, sorted.
pub(crate) struct Ages {
    pub(crate) balances: Vec<Duration>,
    pub(crate) aggregates: Vec<Duration>,
    /// Events per second that were really handed over.
    pub(crate) rate: f64,
}

fn follow_balances(
    kafka: &KafkaSettings,
    partitions: i32,
    waiting: &Mutex<Waiting<String>>,
    from: Instant,
    stop: &AtomicBool,
) -> Vec<Duration> {
    let consumer: BaseConsumer = kafka.consumer("bench", "bench-balances").create().unwrap();
    let mut topic = TopicPartitionList::new();
    for partition in 0..partitions {
        topic.add_partition_offset(BALANCES, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&topic).unwrap();
    let mut ages = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Some(Ok(record)) = consumer.poll(Duration::from_millis(20)) else { continue };
        let Some(value) = record.payload() else { continue };
        let balance: BalanceUpdated = decode(value).unwrap();
        waiting.lock().unwrap().counted(&balance.tenant_id.as_str().to_owned(), balance.as_of, from, &mut ages);
    }
    ages
}

fn hand_over(
    kafka: &KafkaSettings,
    log: &mut Log,
    rate: u64,
    time: Duration,
    tenants: &Mutex<Waiting<String>>,
    lines: &Mutex<Waiting<i32>>,
) -> f64 {
    let producer = producer(kafka);
    let began = Instant::now();
    let mut done = 0u64;
    while began.elapsed() < time {
        let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
        while done < due {
            let (partition, event) = log.next();
            let (at, offset) = (Instant::now(), event.seq - 1);
            tenants.lock().unwrap().add(event.tenant_id.as_str().to_owned(), offset, at);
            lines.lock().unwrap().add(partition, offset, at);
            send(&producer, partition, &event);
            done += 1;
        }
        std::thread::park_timeout(BEAT);
    }
    let took = began.elapsed();
    producer.flush(SETTLE).unwrap();
    done as f64 / took.as_secs_f64()
}

/// Hands over `rate` events per second to a fold that runs: until all is warm, Java's compiler above all, and for so long after that.
pub(crate) async fn measure(system: &System, kafka: &KafkaSettings, tenants: u64, rate: u64, time: Duration) -> Ages {
    let (from, time) = (Instant::now() + WARM, WARM + time);
    let (by_tenant, by_line) = (Arc::new(Mutex::default()), Arc::new(Mutex::<Waiting<i32>>::default()));
    let (stop, partitions) = (Arc::new(AtomicBool::new(false)), kafka.partitions);
    let balances = {
        let (kafka, waiting, stop) = (kafka.clone(), Arc::clone(&by_tenant), Arc::clone(&stop));
        tokio::task::spawn_blocking(move || follow_balances(&kafka, partitions, &waiting, from, &stop))
    };
    let sending = {
        let (kafka, by_tenant, by_line) = (kafka.clone(), Arc::clone(&by_tenant), Arc::clone(&by_line));
        tokio::task::spawn_blocking(move || {
            hand_over(&kafka, &mut Log::new(partitions, tenants), rate, time, &by_tenant, &by_line)
        })
    };
    let mut aggregates = Vec::new();
    let (began, url) = (Instant::now(), system.clickhouse_url());
    loop {
        let sql = "SELECT kafka_partition, max(chunk_end) AS position FROM tokens WHERE kind = 'chunk' GROUP BY kafka_partition";
        for row in select(&system.client, &url, sql).await {
            let partition = i32::try_from(row["kafka_partition"].as_i64().unwrap()).unwrap();
            by_line.lock().unwrap().counted(&partition, row["position"].as_i64().unwrap(), from, &mut aggregates);
        }
        if sending.is_finished() && by_line.lock().unwrap().left() + by_tenant.lock().unwrap().left() == 0 {
            break;
        }
        assert!(began.elapsed() < time + SETTLE, "not all events came into the figures");
        tokio::time::sleep(ASK).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut balances = balances.await.unwrap();
    balances.sort_unstable();
    aggregates.sort_unstable();
    Ages { balances, aggregates, rate: sending.await.unwrap() }
}
