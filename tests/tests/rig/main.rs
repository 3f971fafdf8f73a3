//! The fault rig: `make test-faults`. Real roles as processes against Apache Kafka and the ClickHouse engine, faults drawn by a
//! seed while clients send, and an oracle that holds what every client received. When the dust settles, the oracle, the rows, the
//! aggregates, the balances, the usage API and the invoice previews are the same.
//!
//! `FAULTS=200 SEED=7 make test-faults` draws so many, a thousand without; a failure says its seed, and the same seed draws the same faults.
//! `ONLY='disk full'` draws only those whose name has it.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a rig says how far it is, and fails by panicking"
)]

mod fault;
mod world;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fault::Fault;
use promises::traffic::Dice;
use world::World;

/// Faults of the short form, which runs with all tests.
const SHORT: u64 = 12;
/// After so many faults everything is waited for and compared.
const ROUND: u64 = 12;

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// How far it is.
struct Tally {
    began: Instant,
    of: u64,
    done: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn count(&self) -> u64 {
        self.done.values().sum()
    }

    fn tell(&self, requests: usize) {
        let (done, took) = (self.count(), self.began.elapsed());
        let left = took.mul_f64((self.of.saturating_sub(done)) as f64 / done.max(1) as f64);
        println!(
            "{done} of {} faults, {requests} requests, {:.1} faults per minute, {} min left",
            self.of,
            done as f64 * 60.0 / took.as_secs_f64(),
            left.as_secs().div_ceil(60)
        );
    }
}

async fn draw(partitions: i32, faults: u64, seed: u64, tally: &mut Tally) {
    println!("{partitions} partitions, {faults} faults, seed {seed}");
    let mut dice = Dice::new(seed);
    let mut world = World::new(partitions).await;
    let only = std::env::var("ONLY").unwrap_or_default();
    let mut left = faults;
    while left > 0 {
        for _ in 0..ROUND.min(left) {
            let fault = Fault::draw(&mut dice, &only);
            println!("  {fault:?}");
            world.suffer(fault, &mut dice).await;
            *tally.done.entry(fault.name()).or_default() += 1;
            left -= 1;
        }
        world.settle().await;
        tally.tell(world.requests());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_dies_each_token_is_counted_once() {
    let (faults, seed) = (variable("FAULTS", SHORT), variable("SEED", 1));
    let mut tally = Tally { began: Instant::now(), of: faults, done: BTreeMap::new() };
    for (part, partitions) in (0..).zip([1, 3, 12]) {
        draw(partitions, faults / 3 + u64::from(part < faults % 3), seed + part, &mut tally).await;
    }
    println!("\n| fault | times |\n|---|---|");
    tally.done.iter().for_each(|(fault, times)| println!("| {fault} | {times} |"));
    assert_eq!(tally.count(), faults);
}

/// What doubles when the window is far too small is found, and never passes in silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_window_that_is_absurdly_small_nothing_doubles_in_silence() {
    let seed = variable("SEED", 1);
    println!("a dedupe window of 1, seed {seed}");
    let mut dice = Dice::new(seed);
    let mut world = World::new(1).await;
    world.shrink_window().await;
    world.suffer(Fault::FoldTwice, &mut dice).await;
    for _ in 0..variable("FAULTS", SHORT).min(20) {
        let fault = if dice.below(3) == 0 { Fault::ClickHouse } else { Fault::FoldSleeps };
        println!("  {fault:?}");
        world.suffer(fault, &mut dice).await;
    }
    if let Some(why) = world.settles_or_stands_still(Duration::from_secs(120)).await {
        println!("a line stands still, as it must: {why}");
        world.drop_tables().await;
    }
    world.settle().await;
}
