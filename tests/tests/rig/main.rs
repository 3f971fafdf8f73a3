//! The fault rig: `make test-faults`. Real roles as processes against Apache Kafka and the ClickHouse engine, faults drawn by a
//! seed while clients send, and an oracle that holds what every client received. When the dust settles, the oracle, the rows, the
//! aggregates, the balances, the usage API and the invoice previews are the same.
//!
//! `FAULTS=200 SEED=7 make test-faults` draws so many, a thousand without; the same seed draws the same faults, and a failure says
//! with which words it is drawn again. `ONLY='disk full|owner'` draws only those whose name has one of these.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a rig says how far it is, and fails by panicking"
)]

mod fault;
mod strike;
mod tally;
mod topics;
mod world;

use fault::{Deck, Fault};
use promises::traffic::Dice;
use tally::Tally;
use world::{Drawn, World};

/// Faults of the short form, which runs with all tests.
const SHORT: u64 = 12;
/// After so many faults everything is waited for and compared.
const ROUND: u64 = 12;
/// Faults that strike together, at most.
const TOGETHER: u64 = 4;
/// A world has seen enough after so many.
const WORLD: u64 = 400;
/// Partitions of a world of the short form, and of the worlds of the long one in turn.
const SHORT_PARTITIONS: i32 = 3;
const PARTITIONS: [i32; 3] = [1, 3, 12];
/// Faults with a window that is far too small, at most, until a line stands still.
const SMALL_WINDOW: u64 = 20;

/// A setting of the rig, if it is there.
fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// The worlds of a run: partitions, faults and seed of each.
fn worlds() -> Vec<(i32, u64, u64)> {
    let (faults, seed) = (variable("FAULTS").unwrap_or(SHORT), variable("SEED").unwrap_or(1));
    if faults <= SHORT || variable::<i32>("PARTITIONS").is_some() {
        return vec![(variable("PARTITIONS").unwrap_or(SHORT_PARTITIONS), faults, seed)];
    }
    let count = faults.div_ceil(WORLD).max(PARTITIONS.len() as u64);
    let partitions = PARTITIONS.into_iter().cycle();
    (0..count).zip(partitions).map(|(n, p)| (p, faults / count + u64::from(n < faults % count), seed + n)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_dies_each_token_is_counted_once() {
    let worlds = worlds();
    let mut tally = Tally::new(worlds.iter().map(|(_, faults, _)| faults).sum());
    for (partitions, faults, seed) in worlds {
        tally.enter(partitions, seed);
        let (mut dice, mut deck) = (Dice::new(seed), Deck::of(&std::env::var("ONLY").unwrap_or_default()));
        let mut world = World::new(partitions, seed).await;
        let mut left = faults;
        while left > 0 {
            let mut round = ROUND.min(left);
            left -= round;
            while round > 0 {
                let together = (1 + dice.below(TOGETHER)).min(round);
                round -= together;
                let drawn = (0..together).map(|_| Drawn::new(deck.draw(&mut dice), &mut dice)).collect();
                tally.suffer(&mut world, drawn).await;
            }
            tally.settle(&world).await;
        }
        a_small_window(&mut world, &mut dice, &mut tally).await;
        let why = world.lose_the_log().await;
        tally.say(&format!("the log was deleted; a line stands still, as it must: {why}"));
    }
    tally.finish();
}

/// With a dedupe window that is absurdly small chunks double. It is found, and never passes in silence.
async fn a_small_window(world: &mut World, dice: &mut Dice, tally: &mut Tally) {
    tally.say("the dedupe window is one token from now on");
    world.shrink_window().await;
    world.two_owners().await;
    let mut why = None;
    for _ in 0..SMALL_WINDOW {
        let fault = if dice.below(3) == 0 { Fault::ClickHouse } else { Fault::FoldSleeps };
        world.suffer(vec![Drawn::new(fault, dice)]).await;
        why = world.stands_still().await;
        if why.is_some() {
            break;
        }
    }
    if why.is_none() {
        why = world.settles_or_stands_still().await;
    }
    if let Some(why) = why {
        tally.say(&format!("a line stands still, as it must: {why}"));
        world.drop_tables().await;
    }
    tally.settle(world).await;
}
