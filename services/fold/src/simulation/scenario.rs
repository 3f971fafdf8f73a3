//! The worlds that are searched.

use super::step::{Beyond, Scenario};

const NORMAL: Scenario = Scenario {
    name: "everything",
    gateways: 2,
    folds: 2,
    length: 90,
    spool_bytes: 4 << 20,
    segment_bytes: 4_000,
    disks: 8,
    volumes: 0,
    brokers: 10,
    clocks: 4,
    fold_faults: 16,
    engine_faults: 8,
    rebalances: 2,
    drops: 0,
    beyond: Beyond::Nothing,
};

/// Gateways, log, folds and ClickHouse with all faults that the protocol undoes.
pub(super) const EVERYTHING: Scenario = NORMAL;

/// Two folds work on all partitions throughout: nobody takes any from them.
pub(super) const OWNERS: Scenario =
    Scenario { name: "owners", gateways: 1, disks: 0, brokers: 4, fold_faults: 30, rebalances: 0, ..NORMAL };

/// Partitions are divided again and again, and the owner before does not always hear of it.
pub(super) const GROUP: Scenario =
    Scenario { name: "group", gateways: 1, folds: 3, disks: 0, rebalances: 12, ..NORMAL };

/// One fold, whose tables are dropped beneath it.
pub(super) const DROPPED: Scenario =
    Scenario { name: "dropped", gateways: 1, folds: 1, disks: 0, drops: 4, rebalances: 0, ..NORMAL };

/// Gateways alone: disks that fail, crashes of hosts, brokers that refuse.
pub(super) const GATEWAYS: Scenario = Scenario {
    name: "gateways",
    folds: 1,
    segment_bytes: 1_500,
    disks: 24,
    brokers: 20,
    fold_faults: 0,
    engine_faults: 0,
    rebalances: 0,
    ..NORMAL
};

/// A host that crashes, and a disk whose syncs fail.
pub(super) const HOSTS: Scenario = Scenario {
    name: "hosts",
    gateways: 1,
    folds: 1,
    disks: 50,
    brokers: 0,
    clocks: 0,
    fold_faults: 0,
    engine_faults: 0,
    rebalances: 0,
    ..NORMAL
};

/// Folds that stop for minutes and wake up, and statements that run late.
pub(super) const ZOMBIES: Scenario = Scenario {
    name: "zombies",
    gateways: 1,
    disks: 0,
    brokers: 0,
    clocks: 0,
    fold_faults: 30,
    engine_faults: 50,
    rebalances: 0,
    ..NORMAL
};

/// Others write into the log too.
pub(super) const FOREIGN: Scenario =
    Scenario { name: "foreign", gateways: 1, disks: 0, brokers: 40, clocks: 0, fold_faults: 30, ..NORMAL };

/// A spool with little room, and brokers that are often away.
pub(super) const FULL: Scenario = Scenario {
    name: "full",
    gateways: 1,
    folds: 1,
    spool_bytes: 40_000,
    disks: 4,
    brokers: 30,
    fold_faults: 0,
    engine_faults: 0,
    ..NORMAL
};

/// Volumes that are copied, restored, lost, attached twice and damaged.
pub(super) const VOLUMES: Scenario =
    Scenario { name: "volumes", volumes: 10, folds: 1, fold_faults: 6, rebalances: 0, ..NORMAL };

/// The window of tokens is absurdly small.
pub(super) const SMALL_WINDOW: Scenario =
    Scenario { name: "small-window", disks: 0, fold_faults: 30, beyond: Beyond::SmallWindow, ..NORMAL };

/// ClickHouse loses parts, with their tokens or without.
pub(super) const LOST_PARTS: Scenario = Scenario { name: "lost-parts", disks: 0, beyond: Beyond::LostParts, ..NORMAL };

/// Brokers lose records.
pub(super) const LOST_RECORDS: Scenario =
    Scenario { name: "lost-records", disks: 0, beyond: Beyond::LostRecords, ..NORMAL };

/// Those that are searched for as long as one likes. Not so [`LOST_RECORDS`]: that a fold reads on over a log that was cut and
/// grew again beneath it is for Kafka's own check of truncation to find, which the simulation has not.
pub(super) fn searched() -> Vec<Scenario> {
    ALL.into_iter().filter(|scenario| scenario.name != LOST_RECORDS.name).collect()
}

/// All of them.
pub(super) const ALL: [Scenario; 13] = [
    EVERYTHING,
    OWNERS,
    GROUP,
    DROPPED,
    GATEWAYS,
    HOSTS,
    ZOMBIES,
    FOREIGN,
    FULL,
    VOLUMES,
    SMALL_WINDOW,
    LOST_PARTS,
    LOST_RECORDS,
];
