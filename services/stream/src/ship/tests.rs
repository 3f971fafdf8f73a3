//! Spool, recovery, shipping and folding together, with a crash, an error or a full disk at every step.

mod world;

use std::time::Duration;

use ledger::ids::SourceId;
use proptest::prelude::*;
use schemas::mark::Mark;

use crate::simulation::Gateway;
use crate::simulation::disk::Fault;
use world::{Promises as _, fold, world};

/// A day of a small gateway: three tenants, checkpoints, segments that fill and go, shipping in between.
fn day(world: &mut Gateway) {
    world.start();
    for round in 0..4 {
        for tenant in ["a", "b", "c"] {
            world.admit(tenant);
        }
        for tokens in 1..4 {
            world.frame(0, tokens);
            world.frame(1, 2 * tokens);
            world.checkpoint(round);
            world.clock.advance(300_000);
        }
        world.flush();
        world.ship();
        world.finish(0, round);
        world.frame(0, 5);
        world.ship();
        world.finish(1, round + 1);
        world.flush();
        world.ship();
    }
}

/// All steps of the disk that a day takes.
fn steps_of_a_day() -> u64 {
    let mut world = world(1);
    day(&mut world);
    world.disk.steps()
}

#[test]
fn a_day_without_faults_is_counted_exactly_and_leaves_only_what_is_needed() {
    let mut world = world(1);
    day(&mut world);
    let before = world.spool().unwrap().stats();
    world.settle();
    world.check();
    assert_eq!(fold(&world.log).requests.len(), 12);
    let after = world.spool().unwrap().stats();
    assert!(before.segments > 2 && after.segments < 3, "{before:?} {after:?}");
    world.check_spend(true);
}

#[test]
fn a_kill_at_every_step_of_the_disk_loses_nothing_that_a_client_got_and_counts_nothing_twice() {
    for step in 0..steps_of_a_day() {
        for fault in [Fault::Crash(0), Fault::Crash(40), Fault::CrashAfter] {
            let mut world = world(1);
            world.disk.fail_at(step, fault);
            day(&mut world);
            assert!(world.disk.is_dead());
            world.settle();
            world.check();
            world.check_spend(false);
        }
    }
}

#[test]
fn a_crash_of_the_host_at_every_step_leaves_no_hole_and_bills_nothing_that_was_not_generated() {
    for step in 0..steps_of_a_day() {
        for seed in 0..3 {
            let mut world = world(step * 3 + seed);
            world.disk.fail_at(step, Fault::Crash(40));
            day(&mut world);
            world.crash_host();
            world.settle();
            world.check();
        }
    }
}

#[test]
fn any_one_failed_short_or_refused_call_of_the_disk_changes_nothing() {
    for step in 0..steps_of_a_day() {
        for fault in [Fault::Error, Fault::Short(30), Fault::Full(11)] {
            let mut world = world(step);
            world.disk.fail_at(step, fault);
            day(&mut world);
            // A start that failed is tried again; it was killed by nobody.
            world.start();
            world.settle();
            world.check();
        }
    }
}

#[test]
fn a_full_disk_loses_no_end_and_goes_on_when_there_is_room() {
    for room in (3_000..30_000).step_by(1_500) {
        let mut world = world(room);
        world.start();
        let used = world.disk.used();
        world.disk.set_room(Some(used + room));
        day(&mut world);
        world.clock.advance(1_000_000);
        world.settle();
        world.check();
    }
}

#[test]
fn one_record_that_fails_while_others_pass_holds_the_cursor_and_comes_again() {
    let mut world = world(5);
    world.start();
    for tenant in ["a", "b", "c"] {
        world.admit(tenant);
        world.frame(0, 3);
        world.finish(0, 0);
    }
    world.flush();
    let begin = world.spool().unwrap().cursor();
    world.log.lock().prompt = true;
    world.log.lock().failures = 1;
    world.ship();
    // Others were acknowledged, yet the cursor stands before the one that failed.
    let log = world.log.lock();
    assert!(log.partitions.values().any(|partition| !partition.records.is_empty()));
    drop(log);
    let (spool, shipper) = world.running.as_ref().unwrap();
    assert!(shipper.cursor().acked < spool.frontier());
    assert!(shipper.cursor().acked >= begin.acked);
    assert_eq!(world.log.lock().connections, 1);
    world.settle();
    assert_eq!(world.log.lock().connections, 2);
    world.check();
    assert!(fold(&world.log).duplicates > 0, "what had passed came again");
}

#[test]
fn acknowledged_out_of_order_then_killed_is_sent_again_and_counted_once() {
    let mut duplicates = 0;
    for seed in 0..40 {
        let mut world = world(seed);
        day(&mut world);
        world.kill();
        world.settle();
        world.check();
        duplicates += fold(&world.log).duplicates;
    }
    assert!(duplicates > 0);
}

#[test]
fn a_log_that_is_away_for_hours_delays_and_loses_nothing() {
    let mut world = world(9);
    world.log.lock().away = true;
    for _ in 0..5 {
        day(&mut world);
        world.clock.advance(3_600_000_000);
        for _ in 0..50 {
            world.ship();
            world.flush();
        }
    }
    assert_eq!(world.log.lock().connections, 1, "a producer that waits is kept");
    assert!(world.spool().unwrap().cursor().offsets.iter().flatten().all(|offset| *offset == -1));
    let stats = world.spool().unwrap().stats();
    assert!(stats.unshipped_records > 50 && stats.oldest_unshipped.is_some(), "{stats:?}");
    world.settle();
    world.check();
    world.check_spend(true);
}

#[test]
fn heartbeats_vouch_for_what_is_acknowledged_and_no_more() {
    let mut world = world(3);
    world.start();
    world.log.lock().prompt = true;
    world.admit("a");
    world.frame(0, 3);
    world.finish(0, 0);
    for _ in 0..8 {
        world.clock.advance(400_000);
        world.flush();
        world.ship();
    }
    let source = world.spool().unwrap().source();
    let folded = fold(&world.log);
    let heartbeats: Vec<_> = folded
        .marks
        .iter()
        .filter_map(|(topic, partition, mark)| match mark {
            Mark::Heartbeat { source: of, watermark, seq_high, .. } if *of == source => {
                Some((topic.clone(), *partition, *watermark, *seq_high))
            }
            _ => None,
        })
        .collect();
    let places: std::collections::BTreeSet<_> = heartbeats.iter().map(|(t, p, ..)| (t.clone(), *p)).collect();
    assert_eq!(places.len(), 4, "every partition of both topics");
    assert!(heartbeats.len() >= 8, "{}", heartbeats.len());
    assert_eq!(
        heartbeats
            .iter()
            .filter(|(.., high)| *high == 1)
            .map(|(t, p, ..)| (t, p))
            .collect::<std::collections::BTreeSet<_>>()
            .len(),
        2
    );
    // An hour back: watermarks and records stay where they were, none goes back.
    world.clock.advance(-3_600_000_000);
    world.admit("a");
    world.frame(0, 9);
    world.finish(0, 0);
    for _ in 0..8 {
        world.flush();
        world.ship();
    }
    world.settle();
    world.check();
}

#[test]
fn a_stop_ends_with_drained_and_the_next_start_closes_the_source_everywhere() {
    let mut world = world(3);
    day(&mut world);
    let first = world.spool().unwrap().source();
    world.settle();
    world.running = None;
    world.start();
    let second = world.spool().unwrap().source();
    world.settle();
    let folded = fold(&world.log);
    let count = |wanted: &dyn Fn(&Mark) -> bool| folded.marks.iter().filter(|(.., mark)| wanted(mark)).count();
    assert_eq!(count(&|mark| matches!(mark, Mark::SpoolDrained { source, .. } if *source == first)), 4);
    assert_eq!(
        count(&|mark| matches!(mark, Mark::SourceClosed { source, next, .. } if (*source, *next) == (first, second))),
        4
    );
    let other = |mark: &Mark| matches!(mark, Mark::SourceClosed { source, .. } if *source == SourceId(second.0));
    assert_eq!(count(&other), 0);
}

#[test]
fn the_real_loop_ships_and_stops_when_all_is_shipped() {
    let mut world = world(3);
    day(&mut world);
    world.live.clear();
    world.log.lock().prompt = true;
    let (spool, shipper) = world.running.take().unwrap();
    spool.flush().unwrap();
    spool.close().unwrap();
    spool.flush().unwrap();
    let shutdown = runtime::Shutdown::new();
    shutdown.trigger();
    shipper.run(&shutdown).unwrap();
    assert_eq!(spool.stats().unshipped_records, 0);
    assert_eq!(spool.cursor().acked, spool.frontier(), "the cursor is kept at the stop");
}

#[derive(Debug, Clone)]
enum Op {
    Admit(usize),
    Frame(usize, u64),
    Checkpoint(usize),
    Finish(usize, usize),
    Flush,
    Ship,
    Clock(i64),
    FailRecord,
    Away(bool),
    Disk(u64, Fault),
    Room(Option<u64>),
    Kill,
    CrashHost,
    Start,
}

fn op() -> impl Strategy<Value = Op> {
    let fault = prop_oneof![
        Just(Fault::Error),
        (0..60_usize).prop_map(Fault::Short),
        (0..60_usize).prop_map(Fault::Full),
        (0..60_usize).prop_map(Fault::Crash),
        Just(Fault::CrashAfter),
    ];
    prop_oneof![
        6 => (0..3_usize).prop_map(Op::Admit),
        12 => (0..4_usize, 1..9_u64).prop_map(|(nth, tokens)| Op::Frame(nth, tokens)),
        4 => (0..4_usize).prop_map(Op::Checkpoint),
        6 => (0..4_usize, 0..4_usize).prop_map(|(nth, how)| Op::Finish(nth, how)),
        6 => Just(Op::Flush),
        8 => Just(Op::Ship),
        3 => (-3_600_000_000..600_000_000_i64).prop_map(Op::Clock),
        1 => Just(Op::FailRecord),
        1 => any::<bool>().prop_map(Op::Away),
        2 => (0..12_u64, fault).prop_map(|(step, fault)| Op::Disk(step, fault)),
        1 => proptest::option::of(0..8_000_u64).prop_map(Op::Room),
        1 => Just(Op::Kill),
        1 => Just(Op::CrashHost),
        3 => Just(Op::Start),
    ]
}

fn apply(world: &mut Gateway, op: &Op) {
    match *op {
        Op::Admit(tenant) => world.admit(["a", "b", "c"][tenant]),
        Op::Frame(nth, tokens) => world.frame(nth, tokens),
        Op::Checkpoint(nth) => world.checkpoint(nth),
        Op::Finish(nth, how) => world.finish(nth, how),
        Op::Flush => world.flush(),
        Op::Ship => world.ship(),
        Op::Clock(by) => drop(world.clock.advance(by)),
        Op::FailRecord => world.log.lock().failures += 1,
        Op::Away(away) => world.log.lock().away = away,
        Op::Disk(step, fault) => world.disk.fail_at(step, fault),
        Op::Room(room) => {
            let used = world.disk.used();
            world.disk.set_room(room.map(|room| used + room));
        }
        Op::Kill => world.kill(),
        Op::CrashHost => world.crash_host(),
        Op::Start => {
            if world.disk.is_dead() {
                world.kill();
            }
            world.start();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_in_whatever_order_each_token_is_counted_once(
        seed in any::<u64>(), ops in proptest::collection::vec(op(), 1..120)
    ) {
        let mut world = world(seed);
        world.start();
        for op in &ops {
            apply(&mut world, op);
        }
        world.settle();
        world.check();
        world.check_spend(false);
        // And once more from a fresh start: nothing is left open, nothing comes twice.
        let before = fold(&world.log).tokens.len();
        world.kill();
        world.settle();
        prop_assert_eq!(fold(&world.log).tokens.len(), before);
        world.now += Duration::from_secs(1);
    }
}
