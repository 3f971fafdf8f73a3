//! Several folds share the partitions, come and go, die and sleep: each partition is folded by somebody, and counted once.

use std::time::Duration;

use promises::system::{Role, System};
use promises::tenants::shop;
use promises::traffic::{Seen, plan, run};
use promises::wait::until;

use crate::faults::check_all;

const FOLDS: [Role; 4] = [Role::Fold, Role::SharingFold(2), Role::SharingFold(3), Role::SharingFold(4)];
/// What the group takes until it knows that a member is gone, and more.
const DIVIDED: Duration = Duration::from_secs(180);

/// Returns when these folds have so many partitions each, in any order.
async fn divided(system: &System, folds: &[Role], shares: &[u32]) {
    until("the partitions to be divided", DIVIDED, async || {
        let mut has = Vec::new();
        for fold in folds {
            has.push(system.metric(*fold, "tollgate_fold_partitions").await as u32);
        }
        has.sort_unstable();
        if has == shares { Ok(()) } else { Err(has) }
    })
    .await;
}

async fn traffic(system: &System, keys: &[String], seed: u64) -> Vec<Seen> {
    run(&system.client, &system.url(Role::Gateway, ""), keys, plan(60, keys.len(), seed), 16).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_to_four_folds_share_the_partitions_and_what_is_folded_twice_counts_once() {
    let mut system = System::start(1000).await;
    let keys = shop(&system).await;
    let mut seen = traffic(&system, &keys, 21).await;
    divided(&system, &FOLDS[..1], &[4]).await;

    for fold in &FOLDS[1..] {
        system.spawn(*fold);
    }
    seen.extend(traffic(&system, &keys, 22).await);
    divided(&system, &FOLDS, &[1, 1, 1, 1]).await;
    seen.extend(traffic(&system, &keys, 23).await);
    check_all(&mut system, &seen).await;

    // One dies, one sleeps and does not know it: the two that are left fold everything.
    system.kill(FOLDS[1]);
    system.pause(FOLDS[2]);
    seen.extend(traffic(&system, &keys, 24).await);
    divided(&system, &[FOLDS[0], FOLDS[3]], &[2, 2]).await;
    check_all(&mut system, &seen).await;

    // It wakes up amid the traffic, with what it had, and folds it beside the one that has it now.
    system.resume(FOLDS[2]);
    seen.extend(traffic(&system, &keys, 25).await);
    divided(&system, &[FOLDS[0], FOLDS[2], FOLDS[3]], &[1, 1, 2]).await;
    for fold in [FOLDS[2], FOLDS[3]] {
        system.ready(fold).await;
    }
    check_all(&mut system, &seen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fold_that_is_one_too_many_is_ready_and_takes_over() {
    let mut system = System::parts(0).await;
    system.set("KAFKA__PARTITIONS", "1");
    system.start_all(&Role::ALL).await;
    let keys = shop(&system).await;
    system.start_role(FOLDS[1]).await;
    divided(&system, &FOLDS[..2], &[0, 1]).await;
    let busy = if system.metric(FOLDS[0], "tollgate_fold_partitions").await > 0.0 { FOLDS[0] } else { FOLDS[1] };
    system.kill(busy);
    let seen = traffic(&system, &keys, 26).await;
    let rest = if busy == FOLDS[0] { FOLDS[1] } else { FOLDS[0] };
    divided(&system, &[rest], &[1]).await;
    if busy == FOLDS[0] {
        system.spawn(FOLDS[0]);
    }
    check_all(&mut system, &seen).await;
}
