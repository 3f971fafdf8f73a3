//! Looks for a seed that fails, makes its run as short as it can be, and tells it.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use stream::simulation::{Rule, leave_out};

use super::step::{Action, Scenario, draw};
use super::verdict::{Failure, Kind};
use super::world::World;

/// Runs that shrinking may take.
const SHRINK: usize = 4_000;

/// Lines that are told of how everything comes to rest.
const REST: usize = 12;

/// How often something that a run is for was met.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Met {
    pub(super) torn: u64,
    pub(super) deduplicated: u64,
    pub(super) refused: u64,
    pub(super) records: u64,
    pub(super) rows: u64,
}

impl Met {
    fn add(&mut self, world: &World) {
        let engine = &world.engine;
        self.torn += engine.torn;
        self.deduplicated += engine.deduplicated;
        self.refused += engine.refused;
        self.records += world.log.lock().partitions.values().map(|p| p.records.len() as u64).sum::<u64>();
        self.rows += (0..stream::simulation::PARTITIONS).map(|p| engine.data(p).count() as u64).sum::<u64>();
    }
}

/// Runs these actions to the end.
pub(super) fn run(actions: &[Action], scenario: &Scenario, rule: Option<Rule>, met: &mut Met) -> Result<(), Failure> {
    play(actions, scenario, rule, &mut None, met)
}

fn play(
    actions: &[Action],
    scenario: &Scenario,
    rule: Option<Rule>,
    story: &mut Option<Vec<String>>,
    met: &mut Met,
) -> Result<(), Failure> {
    leave_out(rule);
    let mut world = World::new(*scenario);
    world.story = story.take();
    world.put_back_ms = actions.iter().map(|action| action.step.puts_clock_back_ms()).sum();
    let played = catch_unwind(AssertUnwindSafe(|| {
        actions.iter().try_for_each(|action| world.act(action))?;
        world.settle(rule)
    }));
    leave_out(None);
    *story = world.story.take();
    met.add(&world);
    played.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|&said| said.to_owned()));
        Err(Failure::new(Kind::Panicked, said.unwrap_or_default()))
    })
}

/// A failure, as short as it could be made.
pub(super) struct Found {
    pub(super) seed: u64,
    pub(super) scenario: Scenario,
    pub(super) rule: Option<Rule>,
    pub(super) failure: Failure,
    pub(super) actions: Vec<Action>,
}

impl Found {
    /// The same in as few steps as are needed to fail in the same way.
    pub(super) fn shrunk(self) -> Self {
        let Self { scenario, rule, .. } = self;
        let mut found = self;
        let mut budget = SHRINK;
        let mut size = found.actions.len().div_ceil(2);
        while size > 0 && budget > 0 {
            let mut at = 0;
            let mut shorter = false;
            while at < found.actions.len() && budget > 0 {
                let mut fewer = found.actions.clone();
                fewer.drain(at..(at + size).min(fewer.len()));
                budget -= 1;
                match run(&fewer, &scenario, rule, &mut Met::default()) {
                    Err(failure) if failure.kind == found.failure.kind => {
                        (found.actions, found.failure, shorter) = (fewer, failure, true);
                    }
                    _ => at += size,
                }
            }
            size = if size == 1 && shorter { 1 } else { size / 2 };
        }
        found
    }

    /// The run in words.
    pub(super) fn story(&self) -> String {
        let mut story = Some(Vec::new());
        let _ = play(&self.actions, &self.scenario, self.rule, &mut story, &mut Met::default());
        let without = self.rule.map_or(String::new(), |rule| format!(" without the rule {rule:?}"));
        let Failure { kind, what } = &self.failure;
        let mut told = format!("seed {} of `{}`{without}: {kind:?}\n", self.seed, self.scenario.name);
        let mut number = 0;
        let mut lines = story.unwrap_or_default();
        // Of how everything comes to rest, the end is enough.
        let rest = lines.iter().position(|line| line.starts_with("faults are over")).map_or(lines.len(), |at| at + 1);
        if lines.len() > rest + REST {
            lines.splice(rest..lines.len() - REST, ["  …".to_owned()]);
        }
        for line in lines {
            if line.starts_with(' ') {
                let _ = writeln!(told, "      {}", line.trim_start());
            } else {
                number += 1;
                let _ = writeln!(told, "{number:4}. {line}");
            }
        }
        let _ = writeln!(told, "      => {what}");
        told
    }
}

/// The first of these seeds that fails.
pub(super) fn first(
    seeds: std::ops::Range<u64>,
    scenario: &Scenario,
    rule: Option<Rule>,
    met: &mut Met,
) -> Option<Found> {
    for seed in seeds {
        let actions = draw(seed, scenario);
        if let Err(failure) = run(&actions, scenario, rule, met) {
            return Some(Found { seed, scenario: *scenario, rule, failure, actions });
        }
    }
    None
}

/// Runs seeds on all processors until the time is over or one fails. Says how it goes.
pub(super) fn long(from: u64, scenarios: &[Scenario], limit: Duration) -> Result<String, Box<Found>> {
    let (begun, next, steps) = (Instant::now(), AtomicU64::new(from), AtomicU64::new(0));
    let failed: Mutex<Option<(u64, Scenario, Failure)>> = Mutex::new(None);
    let total = Mutex::new(Met::default());
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let rate = || {
        let (runs, seconds) = (next.load(Ordering::Relaxed) - from, begun.elapsed().as_secs_f64());
        let steps = steps.load(Ordering::Relaxed);
        format!(
            "{runs} interleavings, {steps} steps in {seconds:.0} s: {:.0} interleavings/s, {:.0} steps/s; seeds from {from}",
            runs as f64 / seconds,
            steps as f64 / seconds
        )
    };
    std::thread::scope(|scope| {
        for worker in 0..processors {
            let (next, steps, failed, total, rate) = (&next, &steps, &failed, &total, &rate);
            scope.spawn(move || {
                let (mut met, mut said) = (Met::default(), Duration::ZERO);
                while begun.elapsed() < limit && failed.lock().unwrap().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let scenario = &scenarios[(seed % scenarios.len() as u64) as usize];
                    let actions = draw(seed, scenario);
                    steps.fetch_add(actions.len() as u64, Ordering::Relaxed);
                    if let Err(failure) = run(&actions, scenario, None, &mut met) {
                        failed.lock().unwrap().get_or_insert((seed, *scenario, failure));
                    }
                    if worker == 0 && begun.elapsed() - said > Duration::from_secs(10) {
                        said = begun.elapsed();
                        println!("{}", rate());
                    }
                }
                let mut total = total.lock().unwrap();
                total.torn += met.torn;
                total.deduplicated += met.deduplicated;
                total.refused += met.refused;
                total.records += met.records;
                total.rows += met.rows;
            });
        }
    });
    match failed.into_inner().unwrap() {
        Some((seed, scenario, failure)) => {
            let found = Found { seed, scenario, rule: None, failure, actions: draw(seed, &scenario) };
            Err(Box::new(found.shrunk()))
        }
        None => Ok(format!("{}; {:?}", rate(), total.into_inner().unwrap())),
    }
}
