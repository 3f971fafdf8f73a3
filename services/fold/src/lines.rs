//! The lines of a process: one for each topic of each partition that it is given, started and stopped as the group divides.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use runtime::metrics::IntGauge;
use runtime::{Condition, Readiness, Shutdown, Tasks};
use schemas::event::{RequestFinished, TokensCounted};
use sql::DataRow as _;
use stream::group::Given;

use crate::event::FoldEvent;
use crate::line::{Line, Shared};
use crate::meters::Meters;
use crate::run::DRAIN;

/// What every line is made of.
pub(crate) struct Lines {
    pub(crate) shared: Shared,
    pub(crate) meters: Meters,
    pub(crate) readiness: Readiness,
    pub(crate) tasks: Tasks,
    /// How many partitions this process has.
    pub(crate) partitions: IntGauge,
}

/// The lines of one partition.
struct Running {
    stop: Shutdown,
    conditions: Vec<Condition>,
    ended: Vec<Shutdown>,
}

/// Whether it is known which partitions are folded here.
pub(crate) fn divided(readiness: &Readiness) -> Condition {
    readiness.condition("partitions", "the group of folds has not said yet which partitions are folded here")
}

impl Lines {
    /// Keeps lines for what is given, until shutdown.
    pub(crate) async fn follow(self, mut given: Given, shutdown: Shutdown) -> Result<(), Infallible> {
        let condition = divided(&self.readiness);
        let mut running = BTreeMap::new();
        loop {
            let wanted = given.borrow_and_update().clone();
            if let Some(wanted) = wanted {
                self.divide(&mut running, &wanted).await;
                self.partitions.set(i64::try_from(wanted.len()).unwrap_or(i64::MAX));
                condition.ready();
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                changed = given.changed() => if changed.is_err() {
                    // Whoever gave is gone: what was given stays.
                    shutdown.cancelled().await;
                    return Ok(());
                },
            }
        }
    }

    async fn divide(&self, running: &mut BTreeMap<i32, Running>, wanted: &BTreeSet<i32>) {
        let taken: Vec<i32> = running.keys().filter(|partition| !wanted.contains(partition)).copied().collect();
        let stopped: Vec<(i32, Running)> = taken.iter().filter_map(|at| running.remove_entry(at)).collect();
        stopped.iter().for_each(|(_, lines)| lines.stop.trigger());
        for (partition, lines) in stopped {
            for ended in lines.ended {
                ended.cancelled().await;
            }
            // What it said of itself is another process's to say now.
            lines.conditions.iter().for_each(Condition::remove);
            self.meters.forget(partition);
        }
        for &partition in wanted {
            running.entry(partition).or_insert_with(|| self.start(partition));
        }
    }

    fn start(&self, partition: i32) -> Running {
        let stop = self.tasks.shutdown().child();
        let lines = [self.line::<TokensCounted>(partition, &stop), self.line::<RequestFinished>(partition, &stop)];
        let (conditions, ended) = lines.into_iter().unzip();
        Running { stop, conditions, ended }
    }

    /// Starts a line. It ends when it is told to, and says so.
    fn line<E: FoldEvent>(&self, partition: i32, stop: &Shutdown) -> (Condition, Shutdown) {
        let topic = E::Row::TABLE.topic();
        let condition = self.readiness.condition(format!("{topic}/{partition}"), "the position is not proven yet");
        let line =
            Line::<E>::new(self.shared.clone(), partition, self.meters.line(topic, partition), condition.clone());
        let (stop, ended) = (stop.clone(), Shutdown::new());
        let guard = ended.drop_guard();
        self.tasks.spawn_finite(format!("fold {topic}/{partition}"), DRAIN, async move {
            let _guard = guard;
            line.run(stop).await
        });
        (condition, ended)
    }
}
