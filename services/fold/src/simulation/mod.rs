//! The protocol in one thread: real gateways' spools and shipping, real lines and balances, against a simulated log, disk,
//! clock and ClickHouse, in every order that a seed gives.
//!
//! A run draws its steps from a seed (`step`), takes them in a `world`, lets everything come to rest (`settle`) and looks at
//! what must hold (`verdict`). A run that fails is made as short as it can be and told in words (`search`). That each rule of
//! the protocol is needed is shown by leaving it out (`rules`). docs/exactly-once.md says what that proves.

mod directed;
mod engine;
mod fold;
mod outside;
mod rules;
mod scenario;
mod search;
mod settle;
mod step;
mod verdict;
mod world;

use std::time::Duration;

use self::scenario::ALL;
use self::search::{Met, first, long};
use self::step::Scenario;

pub(super) const START_MS: i64 = stream::simulation::START / 1000;

/// Seeds of each scenario in a normal run of the tests.
const SEEDS: u64 = 60;

fn holds(scenario: &Scenario) -> Met {
    let mut met = Met::default();
    if let Some(found) = first(0..SEEDS, scenario, None, &mut met) {
        panic!("{}", found.shrunk().story());
    }
    met
}

#[test]
fn whatever_fails_that_can_be_undone_each_token_is_counted_once() {
    let met = holds(&scenario::EVERYTHING);
    // It proves something only if it meets what it is for.
    assert!(met.torn > 10 && met.deduplicated > 20 && met.refused > 3 && met.rows > 200, "{met:?}");
}

#[test]
fn two_folds_on_all_partitions_throughout_count_each_token_once() {
    let met = holds(&scenario::OWNERS);
    assert!(met.deduplicated > 10, "{met:?}");
}

#[test]
fn a_group_that_divides_partitions_again_and_again_changes_no_figure() {
    holds(&scenario::GROUP);
}

#[test]
fn tables_dropped_beneath_a_fold_are_folded_again() {
    holds(&scenario::DROPPED);
}

#[test]
fn disks_hosts_and_brokers_that_fail_lose_nothing_that_was_durable() {
    holds(&scenario::GATEWAYS);
}

#[test]
fn a_host_that_crashes_leaves_no_hole() {
    holds(&scenario::HOSTS);
}

#[test]
fn folds_and_statements_that_wake_up_late_are_refused_or_deduplicated() {
    let met = holds(&scenario::ZOMBIES);
    assert!(met.deduplicated > 10 && met.refused > 3, "{met:?}");
}

#[test]
fn what_others_write_into_the_log_ends_dead_and_changes_no_figure() {
    holds(&scenario::FOREIGN);
}

#[test]
fn a_spool_without_room_loses_no_end_and_keeps_its_limit() {
    holds(&scenario::FULL);
}

#[test]
fn volumes_restored_copied_or_damaged_are_found_out() {
    holds(&scenario::VOLUMES);
}

#[test]
fn what_doubles_with_a_window_too_small_is_found_and_stops_the_line() {
    holds(&scenario::SMALL_WINDOW);
}

#[test]
fn parts_that_clickhouse_loses_are_folded_again_or_stop_the_line() {
    holds(&scenario::LOST_PARTS);
}

#[test]
fn records_that_brokers_lose_stop_the_line() {
    holds(&scenario::LOST_RECORDS);
}

/// Minutes: `make simulate`. `SIMULATE_SECONDS` says how long, `SIMULATE_FROM` the first seed, and `SIMULATE_ONE`
/// (scenario:seed) one run to be told.
#[test]
#[ignore = "as long as one likes: make simulate"]
fn as_long_as_one_likes() {
    let given = |name: &str| std::env::var(name).ok();
    if let Some(one) = given("SIMULATE_ONE") {
        let (name, seed) = one.split_once(':').expect("scenario:seed");
        let scenario = *ALL.iter().find(|scenario| scenario.name == name).expect("a scenario's name");
        let seed = seed.parse().expect("a seed");
        let found = first(seed..seed + 1, &scenario, None, &mut Met::default());
        return found.map_or((), |found| panic!("{}", found.shrunk().story()));
    }
    let number = |name: &str, default: u64| given(name).map_or(default, |text| text.parse().expect("a number"));
    let limit = Duration::from_secs(number("SIMULATE_SECONDS", 600));
    match long(number("SIMULATE_FROM", 1_000_000), &scenario::searched(), limit) {
        Ok(said) => println!("{said}"),
        Err(found) => panic!("{}", found.story()),
    }
}
