//! Requests per second and CPU per request through the gateway with everything on, beside the same requests straight to the
//! simulator: rounds of both, one after the other, in one run. `make bench` prints the table that docs/benchmarks.md keeps.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and stops at what it did not expect"
)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::BodyExt as _;
use hyper::Method;
use promises::client::Client;
use promises::process::cpu_seconds;
use promises::shop;
use promises::system::{MODELS, Role, System};
use promises::wait::until;
use serde_json::{Value, json};

const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(3);
const WARM_UP: Duration = Duration::from_millis(500);
/// Requests that are followed until the API shows them.
const FRESH: u64 = 50;

struct Load {
    name: &'static str,
    at_once: usize,
    body: Value,
}

#[derive(Default)]
struct Measured {
    requests: u64,
    seconds: f64,
    cpu_seconds: f64,
    latencies_us: Vec<u64>,
}

impl Measured {
    fn per_second(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    fn percentile(&mut self, percent: usize) -> f64 {
        self.latencies_us.sort_unstable();
        let at = (self.latencies_us.len() * percent / 100).min(self.latencies_us.len().saturating_sub(1));
        self.latencies_us.get(at).copied().unwrap_or(0) as f64 / 1000.0
    }
}

async fn one(client: &Client, url: &str, key: &str, body: &Bytes) -> u64 {
    let began = Instant::now();
    let answer = client.open(Method::POST, url, Some(key), Some(body.clone())).await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    answer.into_body().collect().await.unwrap();
    u64::try_from(began.elapsed().as_micros()).unwrap()
}

async fn round(client: &Client, url: &str, key: &str, load: &Load, time: Duration) -> Measured {
    let body = Bytes::from(load.body.to_string());
    let began = Instant::now();
    let worker = async || {
        let mut latencies = Vec::new();
        while began.elapsed() < time {
            latencies.push(one(client, url, key, &body).await);
        }
        latencies
    };
    let latencies_us: Vec<u64> = join_all((0..load.at_once).map(|_| worker())).await.concat();
    let seconds = began.elapsed().as_secs_f64();
    Measured { requests: latencies_us.len() as u64, seconds, cpu_seconds: 0.0, latencies_us }
}

fn add(into: &mut Measured, other: Measured) {
    into.requests += other.requests;
    into.seconds += other.seconds;
    into.cpu_seconds += other.cpu_seconds;
    into.latencies_us.extend(other.latencies_us);
}

async fn compare(system: &System, key: &str, load: &Load) {
    let path = "/v1/chat/completions";
    let direct_url = format!("{}{path}", system.simulators[MODELS[0]].url());
    let gateway_url = system.url(Role::Gateway, path);
    let pid = system.pid(Role::Gateway);
    let (mut direct, mut through) = (Measured::default(), Measured::default());
    round(&system.client, &direct_url, key, load, WARM_UP).await;
    round(&system.client, &gateway_url, key, load, WARM_UP).await;
    for _ in 0..ROUNDS {
        add(&mut direct, round(&system.client, &direct_url, key, load, ROUND).await);
        let before = cpu_seconds(pid);
        let mut measured = round(&system.client, &gateway_url, key, load, ROUND).await;
        measured.cpu_seconds = cpu_seconds(pid) - before;
        add(&mut through, measured);
    }
    println!(
        "| {} | {} | {:.0} | {:.0} | {:.2} | {:.0} | {:.2} / {:.2} | {:.2} / {:.2} |",
        load.name,
        load.at_once,
        direct.per_second(),
        through.per_second(),
        through.per_second() / direct.per_second(),
        through.cpu_seconds * 1e6 / through.requests as f64,
        direct.percentile(50),
        direct.percentile(99),
        through.percentile(50),
        through.percentile(99),
    );
}

async fn counted(system: &System, path: &str, requests: impl Fn(&Value) -> Option<u64>) -> u64 {
    requests(&system.api(path).await).unwrap_or(0)
}

/// From the end of an answer until the API shows it, one request at a time.
async fn freshness(system: &System, key: &str, body: &Value) {
    let usage = "usage?tenant=bench";
    let in_usage = |answer: &Value| answer["data"][0]["requests"].as_u64();
    let balance = "balances/bench";
    let in_balance = |answer: &Value| answer["requests"].as_u64();
    let url = system.url(Role::Gateway, "/v1/chat/completions");
    let body = Bytes::from(body.to_string());
    let (mut usage_us, mut balance_us) = (Measured::default(), Measured::default());
    let settled = until("all requests to be counted", Duration::from_secs(60), async || {
        let (usage, balance) = (counted(system, usage, in_usage).await, counted(system, balance, in_balance).await);
        if usage == balance { Ok(usage) } else { Err((usage, balance)) }
    })
    .await;
    for more in 1..=FRESH {
        one(&system.client, &url, key, &body).await;
        let ended = Instant::now();
        let elapsed = || u64::try_from(ended.elapsed().as_micros()).unwrap();
        while counted(system, balance, in_balance).await < settled + more {}
        balance_us.latencies_us.push(elapsed());
        while counted(system, usage, in_usage).await < settled + more {}
        usage_us.latencies_us.push(elapsed());
    }
    println!("\n| from the end of an answer until | p50 ms | p99 ms |");
    println!("|---|---|---|");
    for (name, mut measured) in [("the balance has it", balance_us), ("the usage API has it", usage_us)] {
        println!("| {name} | {:.0} | {:.0} |", measured.percentile(50), measured.percentile(99));
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let system = System::start(0).await;
    let key = shop::open(&system, |model| system.simulators[model].url()).await;
    let messages = json!([{"role": "user", "content": "tell me a story"}]);
    let plain = json!({"model": MODELS[0], "max_tokens": 8, "messages": messages});
    let stream = json!({"model": MODELS[0], "max_tokens": 20, "messages": messages, "stream": true});
    println!(
        "| requests | at once | direct /s | gateway /s | ratio | gateway CPU µs each | direct p50 / p99 ms | gateway p50 / p99 ms |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for at_once in [1, 16, 64] {
        compare(&system, &key, &Load { name: "plain", at_once, body: plain.clone() }).await;
        compare(&system, &key, &Load { name: "stream of 20", at_once, body: stream.clone() }).await;
    }
    freshness(&system, &key, &plain).await;
}
