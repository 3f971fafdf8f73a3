//! kill -9 of each part in the middle of the traffic, ClickHouse's data lost and folded again, a broker that is away.

use std::time::Duration;

use promises::system::{Role, System};
use promises::traffic::{Planned, Seen, plan, run};
use promises::wait::until;

use crate::adds_up::{admitted, check_figures, check_money, check_requests};
use crate::tenants::shop;

/// What happens while a wave of requests is on its way.
#[derive(Debug, Clone, Copy)]
enum Blow {
    Gateway,
    Fold,
    Broker,
    ClickHouse,
    ClickHouseLosesItsDisk,
}

impl Blow {
    async fn strike(self, system: &mut System) {
        match self {
            Self::Gateway => {
                system.kill(Role::Gateway);
                system.start_role(Role::Gateway).await;
            }
            Self::Fold => {
                system.kill(Role::Fold);
                system.spawn(Role::Fold);
            }
            Self::Broker => {
                system.kill_kafka().await;
                system.start_kafka().await;
            }
            Self::ClickHouse => {
                system.kill_clickhouse().await;
                system.start_clickhouse().await;
            }
            Self::ClickHouseLosesItsDisk => {
                system.kill_clickhouse().await;
                system.drop_clickhouse_data();
                system.start_clickhouse().await;
            }
        }
    }
}

fn served(system: &System) -> usize {
    system.simulators.values().map(|simulator| simulator.requests().len()).sum()
}

/// Sends a wave, and does something once the engines have seen a part of it.
async fn wave(system: &mut System, keys: &[String], plans: Vec<Planned>, blow: Blow) -> Vec<Seen> {
    let (client, gateway) = (system.client.clone(), system.url(Role::Gateway, ""));
    let middle = served(system) + plans.len() / 3;
    let strike = async {
        until("the middle of a wave", Duration::from_secs(60), async || {
            if served(system) >= middle { Ok(()) } else { Err(served(system)) }
        })
        .await;
        blow.strike(system).await;
    };
    let (seen, ()) = tokio::join!(run(&client, &gateway, keys, plans, 16), strike);
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_each_part_loses_nothing_and_counts_nothing_twice() {
    let mut system = System::start(2000).await;
    let keys = shop(&system).await;
    let mut plans = plan(500, keys.len(), 2);
    let mut seen = Vec::new();
    for blow in [Blow::Gateway, Blow::Fold, Blow::Broker, Blow::ClickHouse, Blow::ClickHouseLosesItsDisk] {
        let rest = plans.split_off(100.min(plans.len()));
        seen.extend(wave(&mut system, &keys, std::mem::replace(&mut plans, rest), blow).await);
    }
    for role in Role::ALL {
        system.ready(role).await;
    }
    assert!(seen.iter().any(|seen| seen.status.is_none() || !seen.whole), "the gateway was killed under open requests");
    system.settled(&admitted(&seen)).await;
    check_requests(&system, &seen).await;
    let usage = check_figures(&system).await;
    check_money(&system, &usage).await;
    let lost = system.endings().await.values().flatten().filter(|reason| *reason == "gateway_lost").count();
    assert!(lost > 0, "requests were open when the gateway was killed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_serves_and_restarts_while_the_broker_is_away() {
    let mut system = System::start(1000).await;
    let keys = shop(&system).await;
    system.kill_kafka().await;
    let (first, second) = (plan(60, keys.len(), 3), plan(60, keys.len(), 4));
    let mut seen = wave(&mut system, &keys, first, Blow::Gateway).await;
    seen.extend(run(&system.client, &system.url(Role::Gateway, ""), &keys, second, 16).await);
    system.stop(Role::Gateway).await;
    system.start_role(Role::Gateway).await;
    assert!(system.raw().await.is_empty(), "no broker, no log, no rows");

    system.start_kafka().await;
    system.settled(&admitted(&seen)).await;
    check_requests(&system, &seen).await;
    let usage = check_figures(&system).await;
    check_money(&system, &usage).await;
}
