//! A world in one thread: gateways, a log, folds and a ClickHouse, moved step by step.

use std::collections::BTreeSet;

use ledger::time::Micros;
use schemas::event::BalanceUpdated;
use schemas::topic::TOKENS;
use stream::balances::BalancesView;
use stream::simulation::{Chance, Gateway, PARTITIONS, Place, Rule, SimLog, left_out, settings};

use super::START_MS;
use super::engine::{Engine, Insert, Kept};
use super::fold::{Fold, Line, Utc, Waiting};
use super::step::{Action, Beyond, Outcome, Published, Scenario, Step};
use super::verdict::{Failure, Kind};
use crate::balances::{Balances, horizon};
use crate::call::{Answer, Call, Event, Refused, Standstill, StoreError};

/// Tokens younger than this are never forgotten by a window that fits: a deadline, the slowest write, and some.
pub(super) const WINDOW_MS: u64 = 150_000;

/// See the module.
pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) gateways: Vec<Gateway>,
    /// Every source that each gateway began, in order.
    pub(super) sources: Vec<Vec<ledger::ids::SourceId>>,
    pub(super) log: SimLog,
    pub(super) folds: Vec<Fold>,
    pub(super) engine: Engine,
    /// By a steady clock.
    pub(super) now: u64,
    /// How far ClickHouse's clock is put back in this run, all in all: a window that fits outlasts that too, before and after.
    pub(super) put_back_ms: u64,
    pub(super) view: BalancesView,
    pub(super) held: Vec<BalanceUpdated>,
    /// Dead letters in their topic: partition and offset.
    pub(super) copies: BTreeSet<(i32, i64)>,
    /// Records that somebody else wrote.
    pub(super) garbage: BTreeSet<(i32, i64)>,
    /// How many numbers a source that is no gateway's has taken, per partition.
    pub(super) foreign: Vec<i64>,
    /// What happened, in words, if it is to be told.
    pub(super) story: Option<Vec<String>>,
    last_proof: Vec<Option<sql::Proof>>,
    /// Why lines of a partition stood still last, and when.
    pub(super) stood: Vec<Option<(Standstill, u64)>>,
    chance: Chance,
}

pub(super) fn place(partition: usize) -> Place {
    (TOKENS.to_owned(), partition as i32)
}

impl World {
    pub(super) fn new(scenario: Scenario) -> Self {
        stream::simulation::number_ids_from(1);
        let log = SimLog::new(1);
        let gateways = (0..scenario.gateways).map(|n| {
            let mut gateway = Gateway::new(n as u64, log.clone());
            let (max_bytes, segment_bytes) = (scenario.spool_bytes, scenario.segment_bytes);
            let slots = if max_bytes < 1 << 20 { 64 } else { 16 };
            gateway.settings = stream::spool::SpoolSettings { max_bytes, segment_bytes, slots, ..settings() };
            gateway
        });
        let mut world = Self {
            gateways: gateways.collect(),
            sources: vec![Vec::new(); scenario.gateways],
            log,
            folds: (0..scenario.folds).map(|n| Fold::new(PARTITIONS, 2 + 2 * (n as u64 % 2))).collect(),
            engine: Engine::new(),
            now: 0,
            put_back_ms: 0,
            view: BalancesView::of([]),
            held: Vec::new(),
            copies: BTreeSet::new(),
            garbage: BTreeSet::new(),
            foreign: vec![0; PARTITIONS as usize],
            story: None,
            last_proof: vec![None; PARTITIONS as usize],
            stood: vec![None; PARTITIONS as usize],
            chance: Chance(0),
            scenario,
        };
        (0..world.gateways.len()).for_each(|g| world.start(g));
        world
    }

    pub(super) fn micros(&self) -> Micros {
        Micros((START_MS + self.now as i64) * 1000)
    }

    /// A line of the story, if it is told.
    pub(super) fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(line());
        }
    }

    /// One action, and what must hold after it.
    pub(super) fn act(&mut self, action: &Action) -> Result<(), Failure> {
        self.chance = Chance(action.chance);
        self.log.lock().chance = Chance(action.chance);
        self.tell(|| action.step.to_string());
        self.step(action.step)?;
        self.check_spools()
    }

    fn step(&mut self, step: Step) -> Result<(), Failure> {
        match step {
            Step::Read(f, p, records) => self.read(f, p, records)?,
            Step::Ask(f, p) => self.ask(f, p),
            Step::Answer(f, p, outcome) => self.answer(f, p, outcome)?,
            Step::Work(f, p) => {
                self.read(f, p, 20)?;
                self.pass(400);
                self.ask(f, p);
            }
            Step::Drive(f, p, outcome) => self.drive(f, p, outcome)?,
            Step::KillFold(f) => {
                let max_offsets = 2 + self.chance.below(3) as u64;
                (0..PARTITIONS as usize).for_each(|p| self.kill_line(f, p));
                let fold = &mut self.folds[f];
                *fold = Fold::new(PARTITIONS, max_offsets);
            }
            Step::Rebalance(_) => self.rebalance(),
            Step::Publish(f, p, how) => self.publish(f, p, how),
            Step::PublishHeld => {
                if !self.held.is_empty() {
                    let at = self.chance.below(self.held.len());
                    let held = self.held.swap_remove(at);
                    self.arrived(&held);
                }
            }
            Step::Block(nth) => self.block(nth),
            Step::Land(nth, whole) => self.land_late(nth, whole)?,
            Step::Forget => {
                let small = self.scenario.beyond == Beyond::SmallWindow;
                let age = if small { 0 } else { WINDOW_MS + self.put_back_ms };
                self.engine.forget(age, self.now);
            }
            Step::EngineClock(by) => self.engine.clock_ms += by,
            Step::EngineKill => self.kill_engine(),
            Step::Lose(parts, keeps_tokens) => {
                self.kill_engine();
                self.engine.lose(parts, keeps_tokens);
            }
            Step::Drop => {
                self.engine.drop_data();
                self.kill_engine();
            }
            Step::Pass(ms) => self.pass(ms),
            step => self.step_outside(step),
        }
        Ok(())
    }

    pub(super) fn pass(&mut self, ms: u64) {
        self.now += ms;
        self.engine.clock_ms += ms as i64;
        self.log.lock().now_ms += ms as i64;
        self.gateways.iter().for_each(|gateway| _ = gateway.clock.advance(ms as i64 * 1000));
    }

    pub(super) fn line(&mut self, f: usize, p: usize) -> Option<&mut Line> {
        self.folds[f].lines[p].as_mut()
    }

    pub(super) fn read(&mut self, f: usize, p: usize, records: usize) -> Result<(), Failure> {
        let (log, now) = (self.log.clone(), self.now);
        let log = log.lock();
        let empty = stream::simulation::Partition::default();
        let partition = log.partitions.get(&place(p)).unwrap_or(&empty);
        if let Some(line) = self.line(f, p) {
            line.read(partition, records, now);
        }
        drop(log);
        self.stands(f, p)
    }

    /// A line stands still only where something is beyond what can be undone.
    pub(super) fn stands(&mut self, f: usize, p: usize) -> Result<(), Failure> {
        let Some(why) = self.line(f, p).and_then(|line| line.driver.stands_still()).cloned() else { return Ok(()) };
        if self.stood[p].as_ref().is_none_or(|(before, _)| *before != why) {
            self.tell(|| format!("  fold {f} stands still at partition {p}: {why}"));
        }
        self.stood[p] = Some((why.clone(), self.now));
        match self.scenario.beyond {
            Beyond::Nothing => Err(Failure::new(Kind::Stopped, format!("fold {f}, partition {p}: {why}"))),
            _ => Ok(()),
        }
    }

    pub(super) fn ask(&mut self, f: usize, p: usize) {
        let now = self.now;
        if let Some(line) = self.line(f, p) {
            line.ask(now);
        }
    }

    /// The call of a line ends, one way or another.
    pub(super) fn answer(&mut self, f: usize, p: usize, outcome: Outcome) -> Result<(), Failure> {
        let Some(line) = self.line(f, p) else { return Ok(()) };
        let answer = match std::mem::replace(&mut line.waits, Waiting::Nothing) {
            Waiting::Nothing => return Ok(()),
            Waiting::Statement(insert) => Answer::Inserted(self.end_statement(insert, outcome)?),
            Waiting::Answer(Call::Insert { rows, retry, insert_before_ms }) => {
                if let Err(why) = rows.check() {
                    Answer::Inserted(Err(Refused::Malformed(why)))
                } else {
                    let tables = line.tables;
                    let opened_ms = self.engine.clock_ms;
                    let insert = Insert { rows, retry, insert_before_ms, opened_ms, tables, block_at: None };
                    self.tell(|| {
                        format!(
                            "  fold {f} inserts {}..{} of partition {p} (r{retry})",
                            insert.rows.first, insert.rows.end
                        )
                    });
                    if outcome == Outcome::Begun && tables == self.engine.made {
                        self.folds[f].lines[p]
                            .iter_mut()
                            .for_each(|line| line.waits = Waiting::Statement(insert.clone()));
                        return Ok(());
                    }
                    Answer::Inserted(self.end_statement(insert, outcome)?)
                }
            }
            Waiting::Answer(call) => self.other_call(f, p, call, outcome),
        };
        self.answered(f, p, answer)
    }

    /// Works on, until an insert has met `outcome` or there is nothing to insert.
    fn drive(&mut self, f: usize, p: usize, outcome: Outcome) -> Result<(), Failure> {
        for _ in 0..8 {
            self.read(f, p, 20)?;
            self.ask(f, p);
            let Some(line) = self.line(f, p) else { return Ok(()) };
            match &line.waits {
                Waiting::Nothing => self.pass(400),
                Waiting::Statement(_) => return Ok(()),
                Waiting::Answer(Call::Insert { .. }) => return self.answer(f, p, outcome),
                Waiting::Answer(Call::EventIds(_) | Call::Copy(_)) if outcome == Outcome::NeverThere => {
                    return self.answer(f, p, outcome);
                }
                Waiting::Answer(_) => self.answer(f, p, Outcome::Done)?,
            }
        }
        Ok(())
    }

    fn answered(&mut self, f: usize, p: usize, answer: Answer) -> Result<(), Failure> {
        let now = self.now;
        let Some(line) = self.line(f, p) else { return Ok(()) };
        let event = line.driver.on(answer, now);
        line.seek();
        self.tell(|| match event {
            Event::Nothing => format!("  fold {f} goes on"),
            Event::Proven(position) => format!("  fold {f}: partition {p} is proven up to {position}"),
            Event::Written(rows) => format!("  fold {f}: {}..{} of partition {p} is written", rows.first, rows.end),
            Event::Foreign(position) => format!("  fold {f}: another's chunk of partition {p} leads to {position}"),
            Event::Torn => format!("  fold {f}: the token was kept and the part lost"),
            Event::Failed(kind, why) => format!("  fold {f}: {kind}: {why}"),
        });
        self.stands(f, p)
    }

    fn other_call(&mut self, f: usize, p: usize, call: Call<sql::TokenRow>, outcome: Outcome) -> Answer {
        let away = || StoreError::Unavailable("away".into());
        let partition = p as i32;
        let heard = !matches!(outcome, Outcome::NeverThere | Outcome::DoneUnheard | Outcome::GivenUp);
        match call {
            Call::Prove { .. } if !heard => Answer::Proof(Err(away())),
            Call::Prove { with_totals } => {
                let (made, totals) = (self.engine.made, self.engine.totals(partition));
                let mut proof = self.engine.prove(partition);
                let is_new = self.line(f, p).is_some_and(|line| std::mem::replace(&mut line.is_new, false));
                if left_out(Rule::ProofAtStart)
                    && let (true, Some(last), Ok(_)) = (is_new, &self.last_proof[p], &proof)
                {
                    // What Kafka was told last.
                    proof = Ok(last.clone());
                } else if let Ok(proof) = &proof {
                    self.last_proof[p] = Some(proof.clone());
                }
                let from = horizon(self.micros());
                if let (Some(line), Ok(proof)) = (self.line(f, p), &proof) {
                    line.tables = made;
                    if with_totals {
                        line.balances = Some(Balances::load(partition, proof.position, from, &totals, &Utc));
                    }
                }
                Answer::Proof(proof)
            }
            Call::EventIds(_) if !heard => Answer::EventIds(Err(away())),
            Call::EventIds(numbers) => Answer::EventIds(Ok(self.engine.event_ids(partition, &numbers))),
            Call::Position if !heard => Answer::Position(Err(away())),
            Call::Position => Answer::Position(Ok(self.engine.position(partition))),
            Call::Copy(rows) => {
                // Where nobody waits for the copies, they are not there yet when the row is written.
                if outcome != Outcome::NeverThere && !left_out(Rule::CopyFirst) {
                    self.copies.extend(rows.dead.iter().map(|dead| (partition, dead.offset)));
                }
                Answer::Copied(if heard || left_out(Rule::CopyFirst) { Ok(()) } else { Err("away".into()) })
            }
            Call::Insert { .. } => Answer::Inserted(Err(Refused::Unknown("inserts end elsewhere".into()))),
        }
    }

    fn end_statement(&mut self, insert: Insert, outcome: Outcome) -> Result<Result<(), Refused>, Failure> {
        let unknown = || Err(Refused::Unknown("no answer".into()));
        let (partition, now) = (insert.rows.partition, self.now);
        let answer = match outcome {
            Outcome::Done | Outcome::Begun => self.engine.land(insert, now, Kept::All),
            Outcome::NeverThere => unknown(),
            Outcome::DoneUnheard => self.engine.land(insert, now, Kept::All).and_then(|()| unknown()),
            Outcome::Torn(first) => {
                let landed = self.engine.land(insert, now, if first { Kept::First } else { Kept::TokenOnly });
                self.kill_engine();
                landed
            }
            Outcome::GivenUp => {
                self.engine.late.push(insert);
                unknown()
            }
            Outcome::DoneAndLost(keeps_token) => {
                let before = self.engine.position(partition);
                let landed = self.engine.land(insert, now, Kept::All);
                if before.position != self.engine.position(partition).position {
                    self.engine.lose(1, keeps_token);
                }
                landed
            }
        };
        self.check_engine(partition)?;
        Ok(answer)
    }

    /// Where no fault is beyond what can be undone, what lies in ClickHouse is one whole folding at every moment.
    fn check_engine(&self, partition: i32) -> Result<(), Failure> {
        if self.scenario.beyond != Beyond::Nothing {
            return Ok(());
        }
        self.engine.prove(partition).map(drop).map_err(|error| Failure::new(Kind::Stopped, error.to_string()))
    }

    fn block(&mut self, nth: usize) {
        if self.engine.late.is_empty() {
            return;
        }
        let at = nth % self.engine.late.len();
        let mut insert = self.engine.late.swap_remove(at);
        if insert.block_at.is_some() || self.engine.block(&mut insert, self.now) {
            self.engine.late.push(insert);
        }
    }

    fn land_late(&mut self, nth: usize, whole: bool) -> Result<(), Failure> {
        if self.engine.late.is_empty() {
            return Ok(());
        }
        let insert = self.engine.late.swap_remove(nth % self.engine.late.len());
        let (partition, first, end) = (insert.rows.partition, insert.rows.first, insert.rows.end);
        let kept = if whole { Kept::All } else { Kept::TokenOnly };
        let landed = self.engine.land(insert, self.now, kept);
        if !whole {
            self.kill_engine();
        }
        self.tell(|| format!("  the statement of {first}..{end} of partition {partition}: {landed:?}"));
        self.check_engine(partition)
    }

    /// All statements end with it, and their callers hear nothing.
    fn kill_engine(&mut self) {
        self.engine.late.clear();
        for f in 0..self.folds.len() {
            for p in 0..PARTITIONS as usize {
                let Some(line) = self.line(f, p) else { continue };
                if matches!(line.waits, Waiting::Statement(_)) {
                    line.waits = Waiting::Nothing;
                    let _ = self.answered(f, p, Answer::Inserted(Err(Refused::Unknown("killed".into()))));
                }
            }
        }
    }

    /// What a line had sent may run yet.
    fn kill_line(&mut self, f: usize, p: usize) {
        let (made, opened_ms) = (self.engine.made, self.engine.clock_ms);
        let Some(line) = self.folds[f].lines[p].take() else { return };
        let late = match line.waits {
            Waiting::Statement(insert) => Some(insert),
            Waiting::Answer(Call::Insert { rows, retry, insert_before_ms }) if line.tables == made => {
                Some(Insert { rows, retry, insert_before_ms, opened_ms, tables: made, block_at: None })
            }
            _ => None,
        };
        self.engine.late.extend(late.filter(|insert| insert.rows.check().is_ok()));
    }

    /// The group gives each partition to a fold. The one before may not have heard of it.
    fn rebalance(&mut self) {
        for p in 0..PARTITIONS as usize {
            let owner = self.chance.below(self.folds.len());
            for f in (0..self.folds.len()).filter(|f| *f != owner) {
                if self.chance.below(2) == 0 {
                    self.kill_line(f, p);
                }
            }
            let max_offsets = self.folds[owner].max_offsets;
            self.folds[owner].lines[p].get_or_insert_with(|| Line::new(p as i32, max_offsets));
        }
    }

    pub(super) fn publish(&mut self, f: usize, p: usize, how: Published) {
        let now = self.micros();
        let Some(balances) = self.line(f, p).and_then(|line| line.balances.as_mut()) else { return };
        let updates = balances.take_dirty(0, now);
        match how {
            Published::Done => updates.iter().for_each(|update| self.arrived(update)),
            Published::Failed => balances.unpublished(&updates),
            Published::Held => {
                balances.unpublished(&updates);
                self.held.extend(updates);
            }
        }
    }

    pub(super) fn arrived(&mut self, update: &BalanceUpdated) {
        self.view.take(update);
    }
}
