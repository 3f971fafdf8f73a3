//! The trial balance on real servers: nothing false in the midst of traffic and behind it, and all that is tampered with.

use std::sync::Arc;
use std::time::Duration;

use fold::reconcile::{Check, Reconciler, Report};
use runtime::{ManualClock, Shutdown, Tasks};
use schemas::event::BalanceUpdated;
use sql::{LogHour, LogHours};
use stream::balances::{BalancesReader, BalancesView};
use stream::control::ControlReader;
use stream::topics;

use crate::servers::{Fold, Servers};
use crate::traffic::{NOW, Traffic};
use crate::{is_folded, until, write_control};

struct World {
    servers: Servers,
    traffic: Traffic,
    balances: BalancesView,
    reconciler: Reconciler,
    tasks: Tasks,
}

impl World {
    async fn start() -> Self {
        let servers = Servers::start().await;
        topics::ensure(&servers.kafka()).await.unwrap();
        let tasks = Tasks::new(Shutdown::new());
        write_control(&servers, &tasks).await;
        let clock = Arc::new(ManualClock::at(NOW.0));
        let (reader, control) = ControlReader::open(&servers.kafka(), None, clock.clone()).unwrap();
        tasks.spawn("control of the reconciler", Duration::ZERO, reader.run(tasks.shutdown().clone()));
        let (reader, balances) = BalancesReader::open(&servers.kafka(), None, Box::new(|_| {})).unwrap();
        tasks.spawn("balances of the reconciler", Duration::ZERO, reader.run(tasks.shutdown().clone()));
        tokio::join!(control.wait_caught_up(), balances.wait_caught_up());
        let (kafka, clickhouse) = (servers.kafka(), servers.clickhouse_settings());
        let reconciler = Reconciler::new(&kafka, &clickhouse, control, balances.clone(), clock);
        let traffic = Traffic::new(&kafka);
        Self { servers, traffic, balances, reconciler, tasks }
    }

    async fn report(&self) -> Report {
        self.reconciler.run(LogHours::default()).await.unwrap()
    }

    /// A report, and how many rows ClickHouse read for it: nobody else asks.
    async fn measured(&self, hours: LogHours) -> (Report, i64) {
        const READ: &str = "SELECT toInt64(value) FROM system.events WHERE event = 'SelectedRows'";
        let before = self.servers.number(READ).await;
        let report = self.reconciler.run(hours).await.unwrap();
        (report, self.servers.number(READ).await - before)
    }

    /// Every tenant's balance is of all that was counted.
    fn balances_are_there(&self) -> bool {
        let sum = |of: fn(&BalanceUpdated) -> i64| self.balances.all().iter().map(|one| of(one)).sum::<i64>();
        let output = sum(|one| one.usage.iter().map(|usage| usage.output).sum());
        output == self.traffic.output.values().sum::<i64>()
    }

    async fn mutate(&self, sql: &str) {
        self.servers.execute(&format!("ALTER TABLE tollgate.tokens {sql} SETTINGS mutations_sync = 2")).await;
    }
}

fn uuid(request: u128) -> String {
    uuid::Uuid::from_u128(request).to_string()
}

/// The checks that found something, and the requests that they name.
fn found(report: &Report) -> Vec<(Check, Vec<u128>)> {
    let ids = |difference: &fold::reconcile::Difference| {
        difference.request_ids.iter().map(|id| id.0.as_u128()).collect::<Vec<_>>()
    };
    let mut found: Vec<_> = report.differences.iter().map(|found| (found.check, ids(found))).collect();
    found.dedup();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_under_way_is_no_difference_and_what_is_tampered_with_is_named() {
    let mut world = World::start().await;
    let fold = world.servers.fold(60);
    fold.says("/readyz", "200 OK").await;
    in_the_midst_of_traffic(&mut world).await;

    world.traffic.vouch().await;
    until!("all is folded", is_folded(&world.servers, &world.traffic).await);
    until!("all is published", world.balances_are_there());
    let report = world.report().await;
    assert!(report.agrees() && report.pending.is_empty(), "{report:#?}");
    // There are no engines here.
    let compared = report.compared.iter().filter(|(check, _)| **check != Check::Replicas);
    assert!(compared.into_iter().all(|(_, compared)| *compared > 0), "{report:#?}");

    watched(&world, &fold).await;
    fold.kill();
    tampered_with(&world).await;
    behind(&mut world).await;
    world.tasks.shutdown().trigger();
}

async fn in_the_midst_of_traffic(world: &mut World) {
    let World { traffic, reconciler, .. } = world;
    let reconciling = async {
        let mut reports = Vec::new();
        for _ in 0..4 {
            reports.push(reconciler.run(LogHours::default()).await.unwrap());
        }
        reports
    };
    let (reports, ()) = tokio::join!(reconciling, traffic.send(200));
    assert!(reports.iter().all(Report::agrees), "{reports:#?}");
}

/// The fold is dead, and the log goes on: not folded yet is no difference beyond those that are there.
async fn behind(world: &mut World) {
    let before = found(&world.report().await);
    world.traffic.send(20).await;
    let report = world.report().await;
    assert_eq!(found(&report), before, "{report:#?}");
    assert!(report.pending.iter().any(|pending| pending.check == Check::Log), "{report:#?}");
}

/// The fold itself finds it, says it as a metric, and keeps it for billing.
async fn watched(world: &World, fold: &Fold) {
    let says = |differences: u64| format!("tollgate_reconciliation_differences{{check=\"counts\"}} {differences}\n");
    fold.says("/metrics", &says(0)).await;
    world.mutate(&format!("UPDATE output = output + 5 WHERE request_id = '{}'", uuid(5))).await;
    fold.says("/metrics", &says(1)).await;
    let clickhouse = world.servers.clickhouse();
    let named = async || {
        let runs = clickhouse.reconciliations(9).await.unwrap();
        runs.first().is_some_and(|run| run.differences > 0 && run.report.contains(&uuid(5)))
    };
    until!("it is kept", named().await);
    world.mutate(&format!("UPDATE output = output - 5 WHERE request_id = '{}'", uuid(5))).await;
    fold.says("/metrics", &says(0)).await;
    let metrics = fold.says("/metrics", "tollgate_reconciliation_last_success_timestamp_seconds").await;
    assert!(metrics.contains("tollgate_reconciliation_errors_total 0"), "{metrics}");
}

async fn tampered_with(world: &World) {
    // A count is changed, and changed back.
    world.mutate(&format!("UPDATE output = output + 5 WHERE request_id = '{}'", uuid(5))).await;
    let report = world.report().await;
    assert_eq!(found(&report), [(Check::Counts, vec![5]), (Check::Balances, vec![])], "{report:#?}");
    assert!(report.differences.iter().all(|found| found.figure == "output" && found.by.abs() == 5), "{report:#?}");
    world.mutate(&format!("UPDATE output = output - 5 WHERE request_id = '{}'", uuid(5))).await;
    assert!(world.report().await.agrees());

    // A row is there twice, and is taken away with the other one.
    let columns = "* REPLACE (now64(3) + 60 AS insert_before)";
    let twice = format!("SELECT {columns} FROM tollgate.tokens WHERE request_id = '{}'", uuid(8));
    world.servers.execute(&format!("INSERT INTO tollgate.tokens {twice}")).await;
    let report = world.report().await;
    let doubled = [(Check::Rows, vec![8]), (Check::Counts, vec![8]), (Check::Balances, vec![])];
    assert_eq!(found(&report), doubled, "{report:#?}");
    world.mutate(&format!("DELETE WHERE request_id = '{}'", uuid(8))).await;
    let report = world.report().await;
    let gone = [(Check::Rows, vec![8]), (Check::Ends, vec![8]), (Check::Balances, vec![])];
    assert_eq!(found(&report), gone, "{report:#?}");
    assert!(report.differences[0].said.contains("is missing"), "{report:#?}");

    // A balance says what was never used.
    let balance = world.balances.all()[0].as_ref().clone();
    let mut usage = balance.usage.clone();
    usage[0].input += 1_000_000;
    let wrong = BalanceUpdated { usage, published_at: ledger::time::Micros(i64::MAX), ..balance };
    world.traffic.publish(&wrong).await;
    until!("it is read", world.balances.all().iter().any(|one| one.published_at == wrong.published_at));
    let report = world.report().await;
    let input: Vec<_> = report.differences.iter().filter(|found| found.figure == "input").collect();
    assert_eq!(input.len(), 1, "{report:#?}");
    assert_eq!((input[0].check, input[0].by), (Check::Balances, 1_000_000), "{report:#?}");
    assert_eq!(input[0].place.tenant.as_ref(), Some(&wrong.tenant_id));

    // A chunk is lost, with its rows.
    let second =
        "SELECT min(chunk_first) FROM tollgate.tokens WHERE kind = 'chunk' AND kafka_partition = 1 AND chunk_first > 0";
    let second: i64 = world.servers.number(second).await;
    world.mutate(&format!("DELETE WHERE kafka_partition = 1 AND chunk_first = {second}")).await;
    let report = world.report().await;
    let gap = report.differences.iter().find(|found| found.check == Check::Chunks).unwrap();
    assert_eq!(gap.one.is, second, "{gap}");
    assert!(gap.said.contains("are in no chunk") && gap.place.hour.is_some(), "{gap}");
}

/// Of a month that is over but for its last hours, a run reads those alone; and finds what differs in either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_reads_the_rows_of_its_hours_and_not_of_the_month() {
    let mut world = World::start().await;
    let fold = world.servers.fold(300);
    world.traffic.send(1_500).await;
    until!("all is folded", is_folded(&world.servers, &world.traffic).await);
    let (tokens, requests) = (world.traffic.tokens.ends, world.traffic.requests.ends);
    for table in ["tokens", "requests"] {
        // What comes is not merged with what is there, which is one part of each partition.
        let apart = "max_bytes_to_merge_at_max_space_in_pool = 1, max_bytes_to_merge_at_min_space_in_pool = 1";
        world.servers.execute(&format!("OPTIMIZE TABLE tollgate.{table} FINAL")).await;
        world.servers.execute(&format!("ALTER TABLE tollgate.{table} MODIFY SETTING {apart}")).await;
    }
    world.traffic.send(40).await;
    world.traffic.vouch().await;
    until!("all is folded", is_folded(&world.servers, &world.traffic).await);
    until!("all is published", world.balances_are_there());
    fold.kill();
    for (table, ends) in [("tokens", tokens), ("requests", requests)] {
        for (partition, end) in ends.into_iter().enumerate() {
            // As if it had been logged days ago.
            let earlier = "log_hour = log_hour - 100, log_time = log_time - toIntervalHour(100)";
            let earlier = format!("{earlier} WHERE kafka_partition = {partition} AND chunk_first < {end}");
            let earlier = format!("ALTER TABLE tollgate.{table} UPDATE {earlier} SETTINGS mutations_sync = 2");
            world.servers.execute(&earlier).await;
        }
    }

    let now = "SELECT max(log_hour) FROM tollgate.tokens";
    let hours = LogHours { from: LogHour(world.servers.number(now).await - 2), ..LogHours::default() };
    let (report, _) = world.measured(hours).await;
    assert!(report.agrees() && report.pending.is_empty(), "{report:#?}");
    let (report, few) = world.measured(hours).await;
    assert!(report.agrees() && report.pending.is_empty(), "{report:#?}");
    let (report, all) = world.measured(LogHours::default()).await;
    assert!(report.agrees() && report.pending.is_empty(), "{report:#?}");
    assert!(all > 10 * 1_500, "the measure is none: {all}");
    assert!(few < all / 5, "{few} rows were read, and {all} for all hours");

    // A row that was logged in an hour before, and one of the hours that are looked at.
    for (request, checks) in [(5, vec![Check::Balances]), (1_530, vec![Check::Counts, Check::Balances])] {
        let change = async |by: &str| {
            world.mutate(&format!("UPDATE output = output {by} WHERE request_id = '{}'", uuid(request))).await
        };
        change("+ 5").await;
        let (report, _) = world.measured(hours).await;
        assert_eq!(found(&report).into_iter().map(|(check, _)| check).collect::<Vec<_>>(), checks, "{report:#?}");
        change("- 5").await;
    }
    assert!(world.measured(hours).await.0.agrees());
    world.tasks.shutdown().trigger();
}
