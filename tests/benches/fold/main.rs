//! How fast the log becomes figures: `make bench-fold` prints the tables that docs/benchmarks.md keeps.
//!
//! A log is written first, then read by each in turn, in one run on one machine: by a consumer that does nothing with it, by
//! nobody while ClickHouse is given rows that are ready (the two ceilings), by the fold as a process, and by a plain consumer in
//! Python as a user would write it. Then events come at a steady rate, and the age of the figures is measured.
//!
//! `ARGS='--phases speed --partitions 4 --events 400000'` measures a part.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark prints, and stops at what it did not expect"
)]

mod ceilings;
mod fresh;
mod log;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use log::{Log, fill};
use promises::arguments::Arguments;
use promises::figures::select;
use promises::process::{cpu_seconds, peak_memory_kib};
use promises::system::{Role, System, root};
use promises::wait::until;
use schemas::topic::TOKENS;
use stream::kafka::KafkaSettings;

/// The plain consumer is slow: it reads for so long.
const PLAIN_SECONDS: &str = "10";
const FOLDED: Duration = Duration::from_secs(300);

struct Options {
    phases: Vec<String>,
    partitions: Vec<i32>,
    tenants: Vec<u64>,
    events: u64,
    rate: u64,
    seconds: u64,
}

impl Options {
    fn read() -> Self {
        let arguments = Arguments::read();
        Self {
            phases: arguments.list("--phases", "speed,tenants,fresh"),
            partitions: arguments.list("--partitions", "1,2,3,4").iter().map(|n| n.parse().unwrap()).collect(),
            tenants: arguments.list("--tenants", "10,100000").iter().map(|n| n.parse().unwrap()).collect(),
            events: arguments.number("--events", 1_000_000),
            rate: arguments.number("--rate", 20_000),
            seconds: arguments.number("--seconds", 20),
        }
    }

    fn has(&self, phase: &str) -> bool {
        self.phases.iter().any(|wanted| wanted == phase)
    }
}

/// Kafka and ClickHouse with topics and tables, and nothing that folds.
async fn system(partitions: i32) -> (System, KafkaSettings) {
    let mut system = System::parts(0).await;
    system.set("KAFKA__PARTITIONS", &partitions.to_string());
    system.migrate();
    let kafka = KafkaSettings { brokers: system.brokers(), single_node: true, partitions, ..KafkaSettings::default() };
    (system, kafka)
}

/// What the fold did with a log that was there when it started.
struct Folded {
    /// Events per second, from when every line knew where it stands.
    rate: f64,
    /// The same, the start of the process included.
    rate_from_start: f64,
    cpu_us: f64,
    memory_mb: u64,
}

async fn fold(system: &mut System, partitions: i32, events: u64) -> Folded {
    let began = Instant::now();
    system.spawn(Role::Fold);
    let metrics = system.url(Role::Fold, "/metrics");
    let (client, clickhouse) = (system.client.clone(), system.clickhouse_url());
    until("the fold to know where it stands", FOLDED, async || {
        let Ok(answer) = client.get(&metrics, None).await else { return Err(0.0) };
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let proofs =
            text.lines().find_map(|line| line.strip_prefix("tollgate_fold_proofs_total ")?.parse::<f64>().ok());
        let proofs = proofs.unwrap_or(0.0);
        if proofs >= f64::from(2 * partitions) { Ok(()) } else { Err(proofs) }
    })
    .await;
    let proven = Instant::now();
    until("the fold", FOLDED, async || {
        let sql = "SELECT sum(folded) AS events FROM tokens WHERE kind = 'chunk'";
        let rows = select(&client, &clickhouse, sql).await;
        let done = rows[0]["events"].as_u64().unwrap_or(0);
        if done == events { Ok(()) } else { Err(done) }
    })
    .await;
    let pid = system.pid(Role::Fold);
    Folded {
        rate: events as f64 / proven.elapsed().as_secs_f64(),
        rate_from_start: events as f64 / began.elapsed().as_secs_f64(),
        cpu_us: cpu_seconds(pid) * 1e6 / events as f64,
        memory_mb: peak_memory_kib(pid) / 1024,
    }
}

/// Events per second of the plain consumer.
fn plain(system: &System) -> f64 {
    let python = root().join(".tools/bench/consumer/bin/python");
    assert!(python.exists(), "no plain consumer in .tools/bench: run deploy/local/consumer.sh");
    let port = system.clickhouse_url().rsplit(':').next().unwrap().to_owned();
    let done = Command::new(python)
        .arg(root().join("tests/benches/fold/plain_consumer.py"))
        .args([&system.brokers(), &port])
        .arg(root().join("schemas/avro/tokens_counted.v1.avsc"))
        .args([TOKENS, PLAIN_SECONDS])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "the plain consumer: {}{}", said(&done.stdout), said(&done.stderr));
    said(&done.stdout).trim().parse().unwrap()
}

async fn speed(options: &Options) {
    let mut table = Vec::new();
    for &partitions in &options.partitions {
        let events = options.events;
        println!("{partitions} partitions: writing {events} events ...");
        let (mut system, kafka) = system(partitions).await;
        fill(&kafka, &mut Log::new(partitions, 100), events);
        println!("{partitions} partitions: reading, inserting ...");
        let consume = {
            let kafka = kafka.clone();
            tokio::task::spawn_blocking(move || ceilings::consume(&kafka, partitions, events)).await.unwrap()
        };
        let insert = ceilings::insert(&system, partitions, 100, events).await;
        println!("{partitions} partitions: the plain consumer ...");
        let plain = plain(&system);
        println!("{partitions} partitions: folding ...");
        let Folded { rate, rate_from_start, cpu_us, memory_mb } = fold(&mut system, partitions, events).await;
        let lower = consume.min(insert);
        table.push(format!(
            "| {partitions} | {consume:.0} | {insert:.0} | {rate:.0} | {rate_from_start:.0} | {:.2} | {plain:.0} | {:.1} | {cpu_us:.1} | {memory_mb} |",
            rate / lower,
            rate / plain
        ));
    }
    println!("\n{} events, 100 tenants:\n", options.events);
    println!(
        "| partitions | reads only /s | inserts only /s | fold /s | with its start /s | ÷ lower ceiling | plain consumer /s | fold ÷ plain | CPU µs each | peak memory MB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    table.iter().for_each(|line| println!("{line}"));
}

async fn tenants(options: &Options) {
    let mut table = Vec::new();
    for &tenants in &options.tenants {
        for events in [options.events / 4, options.events] {
            println!("{tenants} tenants: {events} events ...");
            let (mut system, kafka) = system(4).await;
            fill(&kafka, &mut Log::new(4, tenants), events);
            let Folded { rate, cpu_us, memory_mb, .. } = fold(&mut system, 4, events).await;
            table.push(format!("| {tenants} | {events} | {rate:.0} | {cpu_us:.1} | {memory_mb} |"));
        }
    }
    println!("\n4 partitions:\n\n| tenants | events | fold /s | CPU µs each | peak memory MB |\n|---|---|---|---|---|");
    table.iter().for_each(|line| println!("{line}"));
}

async fn fresh(options: &Options) {
    println!("{} events per second, to warm up and for {} s ...", options.rate, options.seconds);
    let (system, kafka) = system(4).await;
    system.start_role(Role::Fold).await;
    let time = Duration::from_secs(options.seconds);
    let ages = fresh::measure(&system, &kafka, 100, options.rate, time).await;
    println!("\n{:.0} events per second, 4 partitions, 100 tenants:\n", ages.rate);
    println!("| from the hand-over to Kafka's client until | p50 ms | p99 ms | longest ms |\n|---|---|---|---|");
    for (what, ages) in [("a balance counts it", ages.balances), ("the aggregates count it", ages.aggregates)] {
        let at = |share: f64| ages[((ages.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        println!("| {what} | {:.0} | {:.0} | {:.0} |", at(0.5), at(0.99), at(1.0));
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let options = Options::read();
    if options.has("speed") {
        speed(&options).await;
    }
    if options.has("tenants") {
        tenants(&options).await;
    }
    if options.has("fresh") {
        fresh(&options).await;
    }
}
