//! Gateways side by side, in one run on one machine: `make bench-gateway` prints the tables that docs/benchmarks.md keeps.
//!
//! Kafka, ClickHouse and billing run as in the tests, and Tollgate meters, limits, spools and ships all that it serves. What is
//! done with the log is no gateway's work, and would take the processors from all of them here: the fold begins when the
//! rounds are over, and must find what was answered. The upstream and the clients are one thread each of this process. Each gateway has one worker. Rounds are interleaved, so that
//! what else the machine does meets all of them alike.
//!
//! `ARGS='--only nginx,tollgate --rounds 2 --seconds 1 --at-once 16 --phases plain,stream'` measures a part.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark prints, and stops at what it did not expect"
)]

mod contender;
mod idle;
mod load;
mod report;
mod upstream;

use std::collections::BTreeMap;
use std::time::Duration;

use contender::Contender;
use load::Kind;
use promises::arguments::Arguments;
use promises::process::{cpu_seconds, memory_kib, raise_open_files};
use promises::shop;
use promises::system::{Role, System};
use promises::wait::until;
use report::{Measured, Round};

const WARM_UP: Duration = Duration::from_millis(700);
/// So long the fold may take for all that was served.
const FOLDED: Duration = Duration::from_secs(120);
/// LiteLLM answers so few that its rounds are longer.
const SLOW: &str = "litellm";

struct Options {
    only: Vec<&'static str>,
    rounds: usize,
    time: Duration,
    at_once: Vec<usize>,
    phases: Vec<String>,
    streams: usize,
}

impl Options {
    fn read() -> Self {
        let arguments = Arguments::read();
        let only = arguments.of("--only").map(|_| arguments.list("--only", ""));
        let wanted = |name: &&str| only.as_ref().is_none_or(|only| only.iter().any(|one| one == name));
        Self {
            only: contender::ALL.into_iter().filter(|name| *name == "direct" || wanted(name)).collect(),
            rounds: arguments.number("--rounds", 5),
            time: Duration::from_secs_f64(arguments.number("--seconds", 2.0)),
            at_once: arguments.list("--at-once", "1,16,64").iter().map(|n| n.parse().unwrap()).collect(),
            phases: arguments.list("--phases", "plain,stream,paced,idle"),
            streams: arguments.number("--streams", 10_000),
        }
    }

    fn has(&self, phase: &str) -> bool {
        self.phases.iter().any(|wanted| wanted == phase)
    }
}

async fn round(contender: &Contender, kind: Kind, at_once: usize, time: Duration) -> Round {
    let (address, request) = (contender.address, contender.request(kind));
    let cpu = || contender.pid.map_or(0.0, cpu_seconds);
    let before = cpu();
    let seen = tokio::task::spawn_blocking(move || load::run(address, &request, kind, at_once, time)).await.unwrap();
    let cpu_us = (cpu() - before) * 1e6 / seen.requests.max(1) as f64;
    Round { seen, cpu_us }
}

async fn measure(contenders: &[Contender], kind: Kind, options: &Options) -> Measured {
    let mut measured: Measured = BTreeMap::new();
    for number in 1..=options.rounds {
        println!("{kind:?}: round {number} of {} ...", options.rounds);
        for &at_once in &options.at_once {
            for contender in contenders {
                let time = if contender.name == SLOW { options.time * 3 } else { options.time };
                let round = round(contender, kind, at_once, time).await;
                measured.entry((at_once, contender.name)).or_default().push(round);
            }
        }
    }
    measured
}

/// Folds what was served, which is to be all that was answered.
async fn folded(system: &mut System, (answered, failed): (u64, u64)) {
    println!("\nfolding what was served ...");
    system.start_role(Role::Fold).await;
    let system = &*system;
    until("all that was answered to be billed", FOLDED, async || {
        let billed: u64 = system.aggregates().await.values().map(|counts| counts.requests).sum();
        if billed >= answered { Ok(()) } else { Err(format!("{billed} of {answered} are billed")) }
    })
    .await;
    let billed: u64 = system.aggregates().await.values().map(|counts| counts.requests).sum();
    println!("Tollgate answered {answered} requests ({failed} of them not whole), and billed {billed}.");
    assert!(failed > 0 || billed == answered, "each answer is billed once");
}

/// Kafka, ClickHouse and Tollgate's roles, ready for many open streams.
async fn system() -> System {
    let mut system = System::parts(0).await;
    system.set("SPOOL__SLOTS", "16384");
    system.set("GATEWAY__THREADS", "1");
    // The upstream takes all that there is: nothing is to wait for it.
    system.set("GATEWAY__ROUTING__MAX_CONCURRENT_REQUESTS", "16384");
    system.migrate();
    for role in [Role::Billing, Role::Gateway] {
        system.start_role(role).await;
    }
    system
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    let options = Options::read();
    let open_files = raise_open_files();
    let upstream = upstream::start();
    println!("starting Kafka, ClickHouse and Tollgate ...");
    let mut system = system().await;
    let key = shop::open(&system, |_| format!("http://{upstream}")).await;
    let mut contenders = Vec::new();
    for name in &options.only {
        contenders.push(contender::start(name, &system, upstream, &key).await);
    }
    let at_start: Vec<_> = contenders.iter().map(|one| one.pid.map_or(0, memory_kib)).collect();
    let mut answered = (0, 0);
    for contender in &contenders {
        for kind in [Kind::Plain, Kind::Stream] {
            let round = round(contender, kind, 4, WARM_UP).await;
            if contender.name == "tollgate" {
                answered = (answered.0 + round.seen.requests, answered.1 + round.seen.failed);
            }
        }
    }
    for (phase, kind) in [("plain", Kind::Plain), ("stream", Kind::Stream), ("paced", Kind::Paced)] {
        if options.has(phase) {
            let measured = measure(&contenders, kind, &options).await;
            for ((_, _), rounds) in measured.iter().filter(|((_, name), _)| *name == "tollgate") {
                let (whole, failed) = rounds.answers();
                answered = (answered.0 + whole, answered.1 + failed);
            }
            match kind {
                Kind::Paced => report::paced(&options.at_once, &options.only, &measured),
                _ => report::full_speed(kind, &options.at_once, &options.only, &measured),
            }
        }
    }
    println!("\n| gateway | memory at the start, MB | after the load, MB |\n|---|---|---|");
    for (contender, at_start) in contenders.iter().zip(at_start) {
        let Some(pid) = contender.pid else { continue };
        println!("| {} | {:.0} | {:.0} |", contender.name, at_start as f64 / 1024.0, memory_kib(pid) as f64 / 1024.0);
    }
    if answered.0 > 0 {
        folded(&mut system, answered).await;
        system.stop(Role::Fold).await;
    }
    if options.has("idle") {
        idle::measure(&contenders, options.streams, open_files).await;
    }
}
