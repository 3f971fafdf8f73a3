//! The end of a run: faults are over, everything must come to rest, and what must hold then is looked at.

use stream::simulation::{PARTITIONS, leave_out};

use super::fold::{Fold, Line, Waiting};
use super::step::{Beyond, Outcome, Published};
use super::verdict::{Failure, Kind, reference};
use super::world::{World, place};
use crate::call::Standstill;

/// Rounds of 400 ms in which folds must come to rest: more than a deadline of a minute, and the longest wait after failures.
const ROUNDS: usize = 600;

impl World {
    /// Runs to the end; `rule` is left out all the while, but not in what it is compared with.
    pub(super) fn settle(&mut self, rule: Option<stream::simulation::Rule>) -> Result<(), Failure> {
        self.tell(|| "faults are over; everything ends, ships and is folded".into());
        let clocks: Vec<_> = self.gateways.iter().map(|gateway| runtime::Clock::now(&gateway.clock)).collect();
        self.settle_gateways()?;
        self.settle_folds()?;
        self.publish_all();
        leave_out(None);
        let verdict = self.verdict(&clocks);
        leave_out(rule);
        verdict
    }

    fn settle_gateways(&mut self) -> Result<(), Failure> {
        {
            let mut log = self.log.lock();
            (log.prompt, log.away, log.narrow) = (true, false, false);
            (log.failures, log.disconnects) = (0, 0);
        }
        self.pass(10_000);
        // Twice: what the first process was is closed by the second one.
        for _ in 0..2 {
            for g in 0..self.gateways.len() {
                self.settle_gateway(g)?;
            }
        }
        self.check_spools()
    }

    fn settle_gateway(&mut self, g: usize) -> Result<(), Failure> {
        let gateway = &mut self.gateways[g];
        gateway.disk.heal();
        gateway.disk.set_room(None);
        if gateway.spool().is_some_and(|spool| spool.watermark().is_err()) {
            // It was closed before: it stops, and another one starts.
            gateway.running = None;
        }
        for _ in 0..2 {
            self.start(g);
        }
        let gateway = &mut self.gateways[g];
        if gateway.running.is_none() {
            return Err(Failure::new(Kind::Refused, format!("gateway {g} does not start: {:?}", gateway.refused)));
        }
        // Heartbeats, before the end.
        (0..8).for_each(|_| {
            gateway.flush();
            gateway.ship();
        });
        let ended = gateway.end_all();
        self.check_spools()?;
        let gateway = &mut self.gateways[g];
        if !ended || !(0..200).any(|_| gateway.drain()) {
            let stats = gateway.spool().map(|spool| spool.stats());
            return Err(Failure::new(
                Kind::Stuck,
                format!("gateway {g} does not ship all: {:?} {stats:?}", gateway.broken),
            ));
        }
        Ok(())
    }

    pub(super) fn settle_folds(&mut self) -> Result<(), Failure> {
        for p in 0..PARTITIONS as usize {
            if (0..self.folds.len()).all(|f| self.folds[f].lines[p].is_none()) {
                self.folds[0].lines[p] = Some(Line::new(p as i32, 3));
            }
        }
        // Long enough for lines that have nothing to do to look at what they wrote.
        let mut quiet = 0;
        for _ in 0..ROUNDS {
            self.round()?;
            quiet = if self.at_rest() { quiet + 1 } else { 0 };
            if quiet > 60 || (quiet > 2 && self.scenario.beyond == Beyond::Nothing) {
                return Ok(());
            }
        }
        let at = |world: &Self, p: usize| {
            let next = world.log.lock().partitions.get(&place(p)).map_or(0, |partition| partition.next);
            format!("partition {p} is folded up to {} of {next}", world.engine.position(p as i32).position)
        };
        Err(Failure::new(Kind::Stuck, (0..PARTITIONS as usize).map(|p| at(self, p)).collect::<Vec<_>>().join(", ")))
    }

    pub(super) fn round(&mut self) -> Result<(), Failure> {
        self.pass(400);
        for f in 0..self.folds.len() {
            for p in 0..PARTITIONS as usize {
                self.read(f, p, 20)?;
                // Until it waits for time or records.
                for _ in 0..12 {
                    self.ask(f, p);
                    if self.line(f, p).is_none_or(|line| matches!(line.waits, Waiting::Nothing)) {
                        break;
                    }
                    self.answer(f, p, Outcome::Done)?;
                }
            }
        }
        Ok(())
    }

    /// Why a partition is folded no further. A line that stands still looks each 5 s whether it may go on.
    fn stopped(&self, p: usize) -> Option<Standstill> {
        let (why, at) = self.stood[p].clone()?;
        (self.now - at < 8_000).then_some(why)
    }

    /// Whether all lines have read and written all there is, or stand still.
    fn at_rest(&mut self) -> bool {
        for p in 0..PARTITIONS as usize {
            let next =
                self.log.lock().partitions.get(&place(p)).and_then(|log| log.records.last().map(|r| r.offset + 1));
            let next = next.unwrap_or(0);
            for f in 0..self.folds.len() {
                if self.stopped(p).is_some() {
                    continue;
                }
                let Some(line) = self.line(f, p) else { continue };
                let is_idle = matches!(line.waits, Waiting::Nothing) && line.driver.reads_from() >= next;
                let written = line.driver.position().is_some_and(|position| position >= next);
                if !(is_idle && written) {
                    return false;
                }
            }
        }
        true
    }

    fn verdict(&mut self, clocks: &[i64]) -> Result<(), Failure> {
        let mut whole = true;
        for p in 0..PARTITIONS as usize {
            match self.stopped(p) {
                // The log is not the one that was read: what clients got decides alone.
                None if self.scenario.beyond == Beyond::LostRecords => {}
                None => {
                    let reference = reference(self, p)?;
                    let checked = self.check_partition(p, &reference);
                    // What is beyond repair must not pass in silence.
                    checked.map_err(|failure| match self.scenario.beyond {
                        Beyond::Nothing => failure,
                        _ => Failure::new(Kind::Silent, format!("{:?}: {}", failure.kind, failure.what)),
                    })?;
                    self.check_sources(p, &reference, clocks)?;
                }
                Some(Standstill::Damaged(_)) => {
                    self.rebuild()?;
                    return self.verdict_of_rebuilt();
                }
                Some(_) => whole = false,
            }
        }
        if !whole {
            return Ok(());
        }
        if self.scenario.beyond == Beyond::LostRecords {
            return self.check_truth().map_err(|failure| Failure { kind: Kind::Silent, ..failure });
        }
        self.check_truth()?;
        self.check_balances()
    }

    fn publish_all(&mut self) {
        for f in 0..self.folds.len() {
            (0..PARTITIONS as usize).for_each(|p| self.publish(f, p, Published::Done));
        }
        // What a process that had stopped to work held back comes last.
        for held in std::mem::take(&mut self.held) {
            self.arrived(&held);
        }
    }

    /// What a person does: the tables are dropped, and the log is folded from its beginning.
    fn rebuild(&mut self) -> Result<(), Failure> {
        self.tell(|| "the tables are dropped, and the log is folded again".into());
        self.engine.drop_data();
        let folds = self.folds.len();
        self.folds = (0..folds).map(|_| Fold::new(PARTITIONS, 5)).collect();
        self.view = stream::balances::BalancesView::of([]);
        self.settle_folds()
    }

    fn verdict_of_rebuilt(&mut self) -> Result<(), Failure> {
        for p in 0..PARTITIONS as usize {
            if self.stopped(p).is_none() {
                let reference = reference(self, p)?;
                self.check_partition(p, &reference)?;
            }
        }
        self.check_truth()
    }
}
