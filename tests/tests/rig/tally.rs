//! Says how far the rig is, and how a failure is drawn again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::world::{Drawn, World};

/// See the module.
pub(crate) struct Tally {
    began: Instant,
    of: u64,
    done: BTreeMap<&'static str, u64>,
    /// Of the world that is on: partitions, seed, faults.
    world: (i32, u64, u64),
}

impl Tally {
    pub(crate) fn new(of: u64) -> Self {
        Self { began: Instant::now(), of, done: BTreeMap::new(), world: (0, 0, 0) }
    }

    /// A new world begins.
    pub(crate) fn enter(&mut self, partitions: i32, seed: u64) {
        self.world = (partitions, seed, 0);
        self.say(&format!("seed {seed}: {partitions} partitions"));
    }

    pub(crate) fn say(&self, text: &str) {
        println!("[{:5} s] {text}", self.began.elapsed().as_secs());
    }

    /// These faults at once, and how long it took until their parts were there again.
    pub(crate) async fn suffer(&mut self, world: &mut World, drawn: Vec<Drawn>) {
        let names: Vec<&str> = drawn.iter().map(|drawn| drawn.fault.name()).collect();
        self.world.2 += names.len() as u64;
        let began = Instant::now();
        let text = names.join(" + ");
        self.say(&format!("  {text}"));
        world.suffer(drawn).await;
        let took = began.elapsed();
        if took > Duration::from_secs(8) {
            self.say(&format!("  … {:.1} s", took.as_secs_f64()));
        }
        for name in names {
            *self.done.entry(name).or_default() += 1;
        }
    }

    /// The proof, and how fast all goes.
    pub(crate) async fn settle(&mut self, world: &World) {
        let began = Instant::now();
        world.settle().await;
        let (done, all) = (self.done.values().sum::<u64>(), self.began.elapsed());
        let left = all.mul_f64(self.of.saturating_sub(done) as f64 / done.max(1) as f64);
        self.say(&format!(
            "{done} of {} faults, {} requests, all figures agree after {:.1} s; {:.1} faults per minute, {} min left",
            self.of,
            world.requests(),
            began.elapsed().as_secs_f64(),
            done as f64 * 60.0 / all.as_secs_f64(),
            left.as_secs().div_ceil(60)
        ));
    }

    /// All of them.
    pub(crate) fn finish(&self) {
        println!("\n| fault | times |\n|---|---|");
        self.done.iter().for_each(|(fault, times)| println!("| {fault} | {times} |"));
        assert_eq!(self.done.values().sum::<u64>(), self.of);
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (partitions, seed, faults) = self.world;
            let only = std::env::var("ONLY").map(|only| format!("ONLY='{only}' ")).unwrap_or_default();
            self.say(&format!(
                "failed; the same faults again: {only}PARTITIONS={partitions} SEED={seed} FAULTS={faults} make test-faults"
            ));
        }
    }
}
