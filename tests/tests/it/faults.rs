//! kill -9 of each part in the middle of the traffic, ClickHouse's data lost and folded again, a broker that is away, two
//! folds at once.

use std::time::Duration;

use promises::figures::execute;
use promises::host::{CLICKHOUSE, Host, Room};
use promises::system::{ADMIN, Role, System};
use promises::traffic::{Planned, Seen, plan, run};
use promises::wait::until;

use promises::oracle::{admitted, check_figures, check_money, check_requests};
use promises::tenants::{TENANTS, new_key, shop, usable};

/// What happens while a wave of requests is on its way.
#[derive(Debug, Clone, Copy)]
enum Blow {
    Gateway,
    Fold,
    Broker,
    ClickHouse,
    ClickHouseLosesItsDisk,
    /// Killed while it recovers, and while it recovers from that, with a broker that comes back in between.
    GatewayAgainAndAgain,
    /// A clean stop with requests open, while the broker is away.
    GatewayStopsWithoutBroker,
    /// Another process folds everything too; this one sleeps a while and does not know it.
    SecondFold,
    /// One table is dropped, and the book of migrations says that it was made.
    TableDropped,
    /// ClickHouse comes back with what it held some requests ago.
    ClickHouseRestored,
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
            Self::GatewayAgainAndAgain => {
                system.kill_kafka().await;
                for n in 0..8 {
                    system.kill(Role::Gateway);
                    system.spawn(Role::Gateway);
                    tokio::time::sleep(Duration::from_millis(n * 37)).await;
                    if n == 4 {
                        system.start_kafka().await;
                    }
                }
                system.ready(Role::Gateway).await;
            }
            Self::GatewayStopsWithoutBroker => {
                system.kill_kafka().await;
                system.stop(Role::Gateway).await;
                system.start_role(Role::Gateway).await;
                system.start_kafka().await;
            }
            Self::SecondFold => {
                system.pause(Role::Fold);
                system.start_role(Role::SecondFold).await;
                system.resume(Role::Fold);
            }
            Self::TableDropped => execute(&system.client, &system.clickhouse_url(), "DROP TABLE requests").await,
            Self::ClickHouseRestored => {
                system.kill_clickhouse().await;
                system.restore_clickhouse();
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
        until("the middle of a wave", Duration::from_secs(180), async || {
            if served(system) >= middle { Ok(()) } else { Err(served(system)) }
        })
        .await;
        blow.strike(system).await;
    };
    let (seen, ()) = tokio::join!(run(&client, &gateway, keys, plans, 16), strike);
    seen
}

/// Every part comes back by itself, and every figure is what was seen.
pub(crate) async fn check_all(system: &mut System, seen: &[Seen]) {
    for role in Role::ALL {
        system.ready(role).await;
    }
    system.settled(&admitted(seen)).await;
    check_requests(system, seen).await;
    let usage = check_figures(system).await;
    check_money(system, &usage).await;
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
    assert!(seen.iter().any(|seen| seen.status.is_none() || !seen.whole), "the gateway was killed under open requests");
    check_all(&mut system, &seen).await;
    let lost = system.endings().await.values().flatten().filter(|reason| *reason == "gateway_lost").count();
    assert!(lost > 0, "requests were open when the gateway was killed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_killed_again_and_again_and_stopped_without_a_broker_loses_nothing() {
    let mut system = System::start(2000).await;
    let keys = shop(&system).await;
    let mut seen = Vec::new();
    for (blow, seed) in [(Blow::GatewayAgainAndAgain, 5), (Blow::GatewayStopsWithoutBroker, 6)] {
        seen.extend(wave(&mut system, &keys, plan(80, keys.len(), seed), blow).await);
    }
    check_all(&mut system, &seen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_folds_at_once_count_once_although_their_data_are_dropped_and_restored() {
    let mut system = System::start(1000).await;
    let keys = shop(&system).await;
    let mut seen = wave(&mut system, &keys, plan(60, keys.len(), 7), Blow::TableDropped).await;
    system.kill_clickhouse().await;
    system.back_up_clickhouse();
    system.start_clickhouse().await;
    for (blow, seed) in [(Blow::SecondFold, 8), (Blow::ClickHouseRestored, 9)] {
        seen.extend(wave(&mut system, &keys, plan(60, keys.len(), seed), blow).await);
    }
    system.ready(Role::SecondFold).await;
    check_all(&mut system, &seen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clickhouse_is_written_nothing_while_its_disk_is_almost_full() {
    let mut system = System::parts_on_hosts(0, |_| {}).await;
    system.start_all(&Role::ALL).await;
    let keys = shop(&system).await;
    system.turn_host(CLICKHOUSE, Host { room: Room::Little, ..Host::default() });
    let seen = run(&system.client, &system.url(Role::Gateway, ""), &keys, plan(60, keys.len(), 10), 16).await;
    until("the fold to say why it does not go on", Duration::from_secs(180), async || {
        let ready = system.client.get(&system.url(Role::Fold, "/readyz"), None).await.unwrap();
        let said = String::from_utf8_lossy(&ready.body).into_owned();
        if said.contains("enough free space") { Ok(()) } else { Err(said) }
    })
    .await;
    assert!(system.raw().await.is_empty(), "nothing was written");
    system.turn_host(CLICKHOUSE, Host::default());
    check_all(&mut system, &seen).await;
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
    check_all(&mut system, &seen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_was_away_begins_with_what_changed_meanwhile() {
    let system = System::start(0).await;
    let keys = shop(&system).await;
    for round in 0..3 {
        let (id, before) = new_key(&system, TENANTS[0]).await;
        usable(&system, std::slice::from_ref(&before)).await;
        system.kill(Role::Gateway);
        let url = system.url(Role::Billing, &format!("/api/v1/tenants/{}/keys/{id}", TENANTS[0]));
        system.client.send(hyper::Method::DELETE, &url, Some(ADMIN), None).await.unwrap().ok();
        let (_, since) = new_key(&system, TENANTS[0]).await;
        system.start_role(Role::Gateway).await;
        for (key, status) in [(&before, 401), (&since, 200), (&keys[1], 200)] {
            let url = system.url(Role::Gateway, "/v1/models");
            let answer = system.client.get(&url, Some(key)).await.unwrap();
            assert_eq!(answer.status.as_u16(), status, "round {round}: {}", String::from_utf8_lossy(&answer.body));
        }
    }
}
