//! The driver against a simulated ClickHouse and log: pauses, kills, zombies, late and torn inserts, dropped data.

mod engine;
mod log;

use std::collections::BTreeMap;

use ledger::ids::TenantId;
use ledger::time::Micros;
use proptest::prelude::*;
use schemas::event::TokensCounted;
use sql::{Position, Proof, TokenRow};
use stream::cut::CutPolicy;

use self::engine::{Engine, Insert};
use self::log::{Log, count};
use crate::balances::{Balances, Zones, horizon};
use crate::call::{Answer, Call, Refused, Standstill, StoreError, Taken};
use crate::driver::{Cuts, Driver};

const NOW: Micros = Micros(1_800_000_000_000_000);
const START_MS: i64 = 1_800_000_000_000;

struct Utc;

impl Zones for Utc {
    fn zone(&self, _: &TenantId) -> Option<chrono_tz::Tz> {
        Some(chrono_tz::UTC)
    }
}

/// A process that folds.
struct Fold {
    driver: Driver<TokensCounted>,
    balances: Option<Balances>,
    reads_from: i64,
    call: Option<Call<TokenRow>>,
    tables: u64,
}

impl Fold {
    fn new(max_offsets: u64) -> Self {
        let due = CutPolicy { max_age_ms: 300, max_offsets, max_bytes: 4096 };
        let block = CutPolicy { max_age_ms: u64::MAX, max_offsets: max_offsets * 3, max_bytes: 1 << 20 };
        let driver = Driver::new(0, Cuts { due, block });
        Self { driver, balances: None, reads_from: 0, call: None, tables: 0 }
    }

    fn read(&mut self, log: &Log, records: usize, now_ms: u64) {
        for _ in 0..records {
            let Some(record) = log.from(self.reads_from).filter(|_| self.driver.wants_records()) else { return };
            let (driver, balances) = (&mut self.driver, &mut self.balances);
            let taken = record.lend(|lent| {
                driver.take(lent, now_ms, |event: Option<&TokensCounted>| {
                    let used = event.and_then(crate::event::FoldEvent::counts);
                    balances.as_mut().unwrap().take(record.offset, used.as_ref(), &Utc);
                })
            });
            match taken {
                Taken::NoRoom => return,
                Taken::StoodStill => panic!("{:?}", self.driver.stands_still()),
                Taken::Stepped | Taken::Skipped => self.reads_from = record.offset + 1,
            }
        }
    }

    fn ask(&mut self, now_ms: u64) {
        if self.call.is_none() {
            self.call = self.driver.next(now_ms);
        }
    }

    /// The call ends, one way or another.
    fn answer(&mut self, engine: &mut Engine, fault: u8, now_ms: u64) {
        let Some(call) = self.call.take() else { return };
        let away = || StoreError::Unavailable("away".into());
        let answer = match call {
            Call::Prove { .. } if fault == 1 => Answer::Proof(Err(away())),
            Call::Prove { with_totals } => {
                let proof = engine.prove();
                self.tables = engine.made;
                if let Ok(proof) = &proof
                    && with_totals
                {
                    self.balances = Some(Balances::load(0, proof.position, horizon(NOW), &engine.totals(), &Utc));
                }
                Answer::Proof(proof)
            }
            Call::EventIds(_) if fault == 1 => Answer::EventIds(Err(away())),
            Call::EventIds(numbers) => Answer::EventIds(Ok(engine.event_ids(&numbers))),
            Call::Position if fault == 1 => Answer::Position(Err(away())),
            Call::Position => {
                let offsets = engine.chunks.iter().map(|chunk| chunk.end - chunk.first).sum();
                let (position, now_ms) = (engine.position(), engine.clock_ms);
                Answer::Position(Ok(Position { position, offsets, now_ms }))
            }
            Call::Insert { rows, retry, insert_before_ms } => {
                let insert = Insert { rows: (*rows).clone(), retry, insert_before_ms };
                Answer::Inserted(self.insert(engine, insert, fault))
            }
        };
        self.driver.on(answer, now_ms);
        if let Some(from) = self.driver.take_seek() {
            self.reads_from = (from - 1).max(0);
        }
    }

    fn insert(&self, engine: &mut Engine, insert: Insert, fault: u8) -> Result<(), Refused> {
        let unknown = || Err(Refused::Unknown("no answer".into()));
        if self.tables != engine.made {
            return unknown();
        }
        match fault {
            // It never came there.
            1 => unknown(),
            // It came there, its answer did not come back.
            2 => engine.insert(insert, true).and_then(|()| unknown()),
            3 => engine.insert(insert, false),
            // Nobody waits for it any more, and it runs later, if at all.
            4 => {
                engine.late.push(insert);
                unknown()
            }
            _ => engine.insert(insert, true),
        }
    }
}

struct World {
    log: Log,
    engine: Engine,
    folds: Vec<Fold>,
    now_ms: u64,
    drops: bool,
}

impl World {
    fn new(log: Log, folds: usize, drops: bool) -> Self {
        let folds = (0..folds).map(|n| Fold::new(3 + 4 * n as u64)).collect();
        Self { log, engine: Engine::new(), folds, now_ms: 0, drops }
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.engine.clock_ms += ms as i64;
    }

    fn step(&mut self, who: u8, what: u8, how: u8) {
        let who = usize::from(who) % self.folds.len();
        let fold = &mut self.folds[who];
        match what % 16 {
            0..=3 => fold.read(&self.log, usize::from(how % 9), self.now_ms),
            4..=6 => fold.ask(self.now_ms),
            7..=9 => fold.answer(&mut self.engine, how % 12, self.now_ms),
            10 => self.pass(u64::from(how) * 7),
            11 if how.is_multiple_of(8) => self.pass(70_000),
            12 if !self.engine.late.is_empty() => {
                let late = self.engine.late.remove(usize::from(how) % self.engine.late.len());
                let _ = self.engine.insert(late, !how.is_multiple_of(5));
            }
            13 if how.is_multiple_of(4) => self.kill(who, how),
            14 if how.is_multiple_of(8) && self.drops => self.drop_data(),
            15 => {
                fold.read(&self.log, 20, self.now_ms);
                self.pass(400);
                self.folds[who].ask(self.now_ms);
            }
            _ => {}
        }
    }

    /// What it had sent may run yet.
    fn kill(&mut self, who: usize, how: u8) {
        let fold = Fold::new(2 + u64::from(how % 7));
        let killed = std::mem::replace(&mut self.folds[who], fold);
        if let Some(Call::Insert { rows, retry, insert_before_ms }) = killed.call
            && killed.tables == self.engine.made
        {
            self.engine.late.push(Insert { rows: (*rows).clone(), retry, insert_before_ms });
        }
    }

    /// The database is dropped and made anew; what ran on it ends with it.
    fn drop_data(&mut self) {
        let Engine { chunks, tokens, late, made, .. } = &mut self.engine;
        chunks.clear();
        tokens.clear();
        late.clear();
        *made += 1;
    }

    /// No fault any more: everything must be folded after so many rounds.
    fn calm(&mut self) {
        for _ in 0..5_000 {
            let all = self.engine.position() == self.log.next;
            let idle = |fold: &Fold| fold.call.is_none() && fold.driver.reads_from() == self.log.next;
            if all && self.folds.iter().all(idle) {
                return;
            }
            self.pass(100);
            for fold in &mut self.folds {
                fold.read(&self.log, 5, self.now_ms);
                fold.ask(self.now_ms);
                fold.answer(&mut self.engine, 0, self.now_ms);
            }
        }
        let at: Vec<_> = self.folds.iter().map(|f| (f.driver.position(), f.driver.reads_from())).collect();
        panic!("at {} of {}: {at:?}", self.engine.position(), self.log.next);
    }

    fn check(&self) {
        let proof = self.engine.prove().unwrap();
        assert_eq!(proof.position, self.log.next);
        let mut data: Vec<_> = self.engine.chunks.iter().flat_map(|c| &c.data).map(|row| row.offset).collect();
        data.sort_unstable();
        assert_eq!(data, self.log.folded.iter().copied().collect::<Vec<_>>());
        let dead: BTreeMap<_, _> =
            self.engine.chunks.iter().flat_map(|c| &c.dead).map(|row| (row.offset, row.reason.as_str())).collect();
        assert_eq!(dead, self.log.dead);
        assert_eq!(proof.counts.total(), Some(self.log.next));
        let alone = alone(&self.log);
        assert_eq!(proof.chain, alone.chain, "the chain does not depend on the cuts");
        assert_eq!((proof.sources, proof.counts), (alone.sources, alone.counts));
    }

    /// Every process has the same balances: the sums of all.
    fn check_balances(&mut self) {
        for fold in &mut self.folds {
            let balances = fold.balances.as_mut().unwrap();
            balances.refresh(NOW);
            let updates = balances.take_dirty(0, NOW);
            let sum: i64 = updates.iter().flat_map(|update| &update.usage).map(|usage| usage.output).sum();
            assert_eq!(sum, self.log.output);
            assert!(updates.iter().all(|update| update.as_of == self.log.next));
        }
    }
}

/// The same log, folded by one process that nothing happens to.
fn alone(log: &Log) -> Proof {
    let mut world = World::new(log.clone(), 1, false);
    world.calm();
    world.engine.prove().unwrap()
}

fn steps() -> impl Strategy<Value = Vec<(u8, u8)>> {
    prop::collection::vec((any::<u8>(), any::<u8>()), 1..60)
}

fn faults() -> impl Strategy<Value = Vec<(u8, u8, u8)>> {
    prop::collection::vec((any::<u8>(), any::<u8>(), any::<u8>()), 0..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn each_offset_is_folded_once_whatever_fails_and_however_often_it_is_dropped(steps in steps(), faults in faults()) {
        let mut world = World::new(Log::of(&steps), 1, true);
        faults.iter().for_each(|&(who, what, how)| world.step(who, what, how));
        world.calm();
        world.check();
        world.check_balances();
    }

    #[test]
    fn two_owners_of_one_line_throughout_fold_each_offset_once(steps in steps(), faults in faults()) {
        let mut world = World::new(Log::of(&steps), 2, false);
        faults.iter().for_each(|&(who, what, how)| world.step(who, what, how));
        world.calm();
        world.check();
        world.check_balances();
    }
}

/// The runs above prove something only if they meet what they are for.
#[test]
fn the_simulation_meets_torn_deduplicated_and_refused_inserts() {
    let mut seen = [0; 3];
    let mut random = 1u64;
    let mut byte = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 40) as u8
    };
    for _ in 0..160 {
        let steps: Vec<_> = (0..60).map(|_| (byte(), byte())).collect();
        let mut world = World::new(Log::of(&steps), 2, false);
        for _ in 0..400 {
            let (who, what, how) = (byte(), byte(), byte());
            world.step(who, what, how);
        }
        world.calm();
        world.check();
        seen = [seen[0] + world.engine.torn, seen[1] + world.engine.deduplicated, seen[2] + world.engine.refused];
    }
    assert!(seen.iter().all(|&times| times >= 20), "torn, deduplicated, refused: {seen:?}");
}

#[test]
fn what_precedes_a_loss_is_folded_and_the_line_goes_on_when_it_is_mended() {
    let mut log = Log::default();
    for seq in [1, 2, 4] {
        log.put(&count(0, seq, seq as u128, 1));
    }
    let mut world = World::new(log, 1, false);
    let mut rounds = 0;
    while world.engine.position() < 2 || world.folds[0].driver.stands_still().is_none() {
        rounds += 1;
        assert!(rounds < 100);
        world.pass(100);
        let (fold, now_ms) = (&mut world.folds[0], world.now_ms);
        let record = world.log.from(fold.reads_from).cloned();
        if let Some(record) = record.filter(|_| fold.driver.wants_records())
            && record.lend(|lent| fold.driver.take(lent, now_ms, |_: Option<&TokensCounted>| {})) == Taken::Stepped
        {
            fold.reads_from = record.offset + 1;
        }
        fold.ask(now_ms);
        fold.answer(&mut world.engine, 0, now_ms);
    }
    assert_eq!(world.engine.position(), 2, "what came before the loss is written, and nothing after it");
    let why = world.folds[0].driver.stands_still().cloned().unwrap();
    assert!(matches!(why, Standstill::Lost(_)) && why.to_string().contains("from 2 to 4"), "{why}");
    // The topic is restored with what was lost.
    let mut mended = Log::default();
    for seq in 1..=4 {
        let offset = mended.put(&count(0, seq, seq as u128, 1));
        mended.folded.insert(offset);
    }
    world.log = mended;
    world.calm();
    world.check();
}

#[test]
fn a_log_that_is_not_the_one_that_was_folded_is_not_built_on() {
    let mut log = Log::default();
    (1..=3).for_each(|seq| _ = log.put(&count(0, seq, seq as u128, 1)));
    let mut world = World::new(log, 1, false);
    world.calm();
    // The topic is made anew: its records are younger, and as many.
    let (fold, now_ms) = (&mut Fold::new(5), 1);
    fold.ask(now_ms);
    fold.answer(&mut world.engine, 0, now_ms);
    assert_eq!(fold.reads_from, 2, "one record early");
    let mut other = world.log.from(2).cloned().unwrap();
    other.log_time_ms += 60_000;
    let taken = other.lend(|lent| fold.driver.take(lent, now_ms, |_: Option<&TokensCounted>| {}));
    assert_eq!(taken, Taken::StoodStill);
    assert!(matches!(fold.driver.stands_still(), Some(Standstill::OtherLog(_))));
}

#[test]
fn damaged_data_stop_the_line_and_are_looked_at_again() {
    let mut log = Log::default();
    (1..=3).for_each(|seq| _ = log.put(&count(0, seq, seq as u128, 1)));
    let mut world = World::new(log, 1, false);
    world.calm();
    let whole = world.engine.chunks.clone();
    let twice = whole[0].clone();
    world.engine.chunks.push(twice);
    let mut fold = Fold::new(5);
    fold.ask(0);
    fold.answer(&mut world.engine, 0, 0);
    assert!(matches!(fold.driver.stands_still(), Some(Standstill::Damaged(_))));
    assert!(fold.driver.next(100).is_none(), "it does not ask without pause");
    assert!(fold.driver.next(crate::driver::STOPPED_MS).is_some());
}

/// A line that has written all of a log of nine records.
fn nine() -> World {
    let mut log = Log::default();
    for seq in 1..=9 {
        let offset = log.put(&count(0, seq, seq as u128, 1));
        log.folded.insert(offset);
    }
    let mut world = World::new(log, 1, false);
    world.calm();
    while world.folds[0].driver.position() != Some(9) {
        world.folds[0].ask(world.now_ms);
        world.folds[0].answer(&mut world.engine, 0, world.now_ms);
    }
    world
}

#[test]
fn data_dropped_or_restored_between_two_inserts_are_folded_again() {
    for left in 0..nine().engine.chunks.len() {
        let mut world = nine();
        // Within a second, so that no insert fails and no proof is due.
        world.engine.chunks.truncate(left);
        if left == 0 {
            world.engine.tokens.clear();
        }
        let offset = world.log.put(&count(0, 10, 10, 1));
        world.log.folded.insert(offset);
        world.log.output = 10;
        world.pass(700);
        world.calm();
        world.check();
        world.check_balances();
    }
}

#[test]
fn a_chunk_that_lands_in_data_restored_beneath_the_line_is_seen_at_once() {
    let mut world = nine();
    world.log.put(&count(0, 10, 10, 1));
    for _ in 0..20 {
        world.pass(100);
        let fold = &mut world.folds[0];
        if fold.driver.stands_still().is_none() {
            fold.read(&world.log, 5, world.now_ms);
            fold.ask(world.now_ms);
            if matches!(fold.call, Some(Call::Insert { .. })) {
                // An older backup, after the last look.
                world.engine.chunks.pop();
            }
            fold.answer(&mut world.engine, 0, world.now_ms);
        }
    }
    assert!(matches!(world.folds[0].driver.stands_still(), Some(Standstill::Damaged(_))));
}
