//! Orders that are worth a test of their own, and the simulation itself.

use stream::simulation::Rule;

use super::fold::{Line, Waiting};
use super::scenario::{EVERYTHING, LOST_PARTS, LOST_RECORDS, OWNERS};
use super::search::{Met, first};
use super::step::{Action, Outcome, Scenario, Step};
use super::world::{World, place};
use crate::call::{Call, Standstill};

/// The partition of tenant a.
const P: usize = 0;

fn act(world: &mut World, step: Step) {
    world.act(&Action { step, chance: 1 }).unwrap();
}

/// A world whose line has written all that one gateway served.
fn folded(scenario: Scenario) -> World {
    let mut world = World::new(Scenario { gateways: 1, folds: 1, ..scenario });
    world.log.lock().prompt = true;
    for tokens in 1..6 {
        act(&mut world, Step::Serve(0, 0, tokens));
        act(&mut world, Step::Serve(0, 1, tokens));
    }
    world.settle_folds().unwrap();
    assert!(world.engine.data(P as i32).count() > 2);
    world
}

fn stands(world: &mut World) -> Option<Standstill> {
    world.line(0, P).unwrap().driver.stands_still().cloned()
}

#[test]
fn what_precedes_a_loss_is_folded_and_the_line_goes_on_when_it_is_mended() {
    let mut world = folded(LOST_RECORDS);
    let whole = world.engine.position(P as i32).position;
    (1..6).for_each(|tokens| act(&mut world, Step::Serve(0, 0, tokens)));
    let rows = |world: &World| world.engine.data(P as i32).count();
    let records = |world: &World| world.log.lock().partitions[&place(P)].records.clone();
    // A count that another one follows: a heartbeat that vouches for less would step over it.
    let counts = |pair: &[stream::consume::Record]| pair[0].offset >= whole && pair.iter().all(|r| r.value.is_some());
    let at = records(&world).windows(2).position(counts).unwrap();
    let lost = world.log.lock().partitions.get_mut(&place(P)).unwrap().records.remove(at);
    (0..40).for_each(|_| world.round().unwrap());
    let sound = records(&world).iter().filter(|r| r.offset < lost.offset && r.value.is_some()).count();
    assert_eq!(rows(&world), sound, "what came before the loss is written, and nothing after it");
    let why = world.stood[P].clone().unwrap().0;
    assert!(matches!(why, Standstill::Lost(_)), "{why}");
    // The topic is restored with what was lost.
    world.log.lock().partitions.get_mut(&place(P)).unwrap().records.insert(at, lost);
    (0..40).for_each(|_| world.round().unwrap());
    assert_eq!(stands(&mut world), None);
    world.settle(None).unwrap();
}

#[test]
fn a_record_of_a_newer_version_is_no_dead_letter_and_counts_after_the_upgrade() {
    let mut world = folded(LOST_RECORDS);
    let whole = world.engine.position(P as i32).position;
    act(&mut world, Step::Serve(0, 0, 7));
    let value = |world: &World, to: u8| {
        let mut log = world.log.lock();
        let records = &mut log.partitions.get_mut(&place(P)).unwrap().records;
        let count = records.iter_mut().find(|record| record.offset >= whole && record.value.is_some()).unwrap();
        count.value.as_mut().unwrap()[4] = to;
        count.offset
    };
    let known = schemas::registry::TOKENS_COUNTED_V1.to_be_bytes()[3];
    let at = value(&world, known + 1);
    (0..40).for_each(|_| world.round().unwrap());
    let why = world.stood[P].clone().unwrap().0;
    assert!(matches!(why, Standstill::Lost(_)) && why.to_string().contains("upgrade the fold"), "{why}");
    assert_eq!(world.engine.position(P as i32).position, at, "it has no outcome yet");
    // To a build that knows the version, the record is one like any other.
    value(&world, known);
    (0..40).for_each(|_| world.round().unwrap());
    assert_eq!(stands(&mut world), None);
    world.settle(None).unwrap();
}

#[test]
fn a_log_that_is_not_the_one_that_was_folded_is_not_built_on() {
    let mut world = folded(LOST_RECORDS);
    // The topic is made anew: its records are younger, and as many.
    world.log.lock().partitions.get_mut(&place(P)).unwrap().records.iter_mut().for_each(|r| r.log_time_ms += 600_000);
    world.folds[0].lines[P] = Some(Line::new(P as i32, 5));
    (0..3).for_each(|_| world.round().unwrap());
    assert!(matches!(stands(&mut world), Some(Standstill::OtherLog(_))));
}

#[test]
fn damaged_data_stop_the_line_and_are_looked_at_again() {
    let mut world = folded(LOST_PARTS);
    world.engine.double_first();
    world.folds[0].lines[P] = Some(Line::new(P as i32, 5));
    let mut line = Line::new(P as i32, 5);
    line.ask(world.now);
    world.folds[0].lines[P] = Some(line);
    world.answer(0, P, Outcome::Done).unwrap();
    assert!(matches!(stands(&mut world), Some(Standstill::Damaged(_))));
    let now = world.now;
    let driver = &mut world.line(0, P).unwrap().driver;
    assert!(driver.next(now + 100).is_none(), "it does not ask without pause");
    assert!(driver.next(now + crate::driver::STOPPED_MS).is_some());
}

#[test]
fn data_dropped_or_restored_between_two_inserts_are_folded_again() {
    for (lost, keeps_tokens) in (1..6).flat_map(|lost| [(lost, false), (lost, true)]) {
        let mut world = folded(LOST_PARTS);
        // Within a second, so that no insert fails and no proof is due.
        world.engine.lose(lost, keeps_tokens);
        act(&mut world, Step::Serve(0, 0, 9));
        act(&mut world, Step::Pass(700));
        world.settle_folds().unwrap();
        assert_eq!(stands(&mut world), None, "{lost}");
        world.settle(None).unwrap();
    }
}

#[test]
fn a_chunk_that_lands_in_data_restored_beneath_the_line_is_seen_at_once() {
    let mut world = folded(LOST_PARTS);
    act(&mut world, Step::Serve(0, 0, 9));
    for _ in 0..20 {
        world.read(0, P, 20).unwrap();
        world.ask(0, P);
        if let Waiting::Answer(Call::Insert { .. }) = world.line(0, P).unwrap().waits {
            // An older backup, after the last look.
            world.engine.lose(2, true);
        }
        world.answer(0, P, Outcome::Done).unwrap();
        if stands(&mut world).is_some() {
            break;
        }
        world.pass(100);
    }
    assert!(matches!(stands(&mut world), Some(Standstill::Damaged(_))));
}

#[test]
fn a_seed_gives_the_same_story_each_time_and_shrinking_leaves_what_matters() {
    let found = || first(0..200, &OWNERS, Some(Rule::Token), &mut Met::default()).unwrap();
    let (one, other) = (found(), found());
    assert_eq!(one.story(), other.story());
    let (long, short) = (one.actions.len(), one.shrunk());
    assert!(short.actions.len() < long / 3, "{}", short.story());
    assert!(short.story().contains("   1. "), "{}", short.story());
    assert_eq!(first(0..1, &EVERYTHING, None, &mut Met::default()).map(|found| found.story()), None);
}
