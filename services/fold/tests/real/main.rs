//! The fold on a real Kafka and a real ClickHouse: killed, doubled, its database dropped; and what it does at a loss.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

mod archive;
mod audit;
mod killed;
mod rebuild;
mod reconcile;
mod seal;
mod servers;
mod traffic;

use std::time::Duration;

use ledger::control::{Document, Plan, Tenant, Write};
use ledger::time::Period;
use runtime::{Shutdown, Tasks};
use schemas::event::{DeadLettered, RequestFinished, TokensCounted};
use schemas::topic;
use sql::Table;
use stream::balances::BalancesReader;
use stream::consume::PartitionConsumer;
use stream::control::{ControlReader, ControlWriter};
use stream::topics;

use servers::{Fold, SOON, Servers};
use traffic::{NOW, TENANTS, Traffic, ZONE, fold_alone};

/// Waits for a condition, with a deadline.
macro_rules! until {
    ($what:expr, $holds:expr) => {{
        let deadline = tokio::time::Instant::now() + $crate::servers::SOON;
        while !$holds {
            assert!(tokio::time::Instant::now() < deadline, "{}", $what);
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }};
}
pub(crate) use until;

async fn write_control(servers: &Servers, tasks: &Tasks) {
    let clock = std::sync::Arc::new(runtime::SystemClock);
    let (reader, view) = ControlReader::open(&servers.kafka(), None, clock).unwrap();
    tasks.spawn("control", Duration::ZERO, reader.run(tasks.shutdown().clone()));
    let writer = ControlWriter::new(&servers.kafka(), view).unwrap();
    let plan = Document::Plan(Plan { name: "Free".into(), ..Plan::default() });
    let write = |id: &str, document: Document| Write {
        kind: document.kind(),
        id: id.to_owned(),
        expected_revision: 0,
        document: Some(document),
    };
    writer.write(write("free", plan), "test").await.unwrap();
    for tenant in TENANTS {
        let document = Document::Tenant(Tenant::new(tenant, "free".parse().unwrap(), "USD".parse().unwrap(), ZONE));
        writer.write(write(tenant, document), "test").await.unwrap();
    }
}

/// Traffic that a fold has folded.
async fn folded(servers: &Servers, tasks: &Tasks, requests: u64) -> (Traffic, Fold) {
    topics::ensure(&servers.kafka()).await.unwrap();
    write_control(servers, tasks).await;
    let mut traffic = Traffic::new(&servers.kafka());
    let fold = servers.fold(40);
    traffic.send(requests).await;
    until!("all is folded", is_folded(servers, &traffic).await);
    (traffic, fold)
}

/// Every line is at the end of its log, proven.
async fn is_folded(servers: &Servers, traffic: &Traffic) -> bool {
    for (table, ends) in [(Table::Tokens, &traffic.tokens.ends), (Table::Requests, &traffic.requests.ends)] {
        for (partition, &end) in ends.iter().enumerate() {
            match servers.clickhouse().position(table, partition as i32).await {
                Ok(position) if position.position == end => {}
                _ => return false,
            }
        }
    }
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_record_is_folded_once_through_kills_two_owners_and_a_dropped_database() {
    let mut servers = Servers::start().await;
    topics::ensure(&servers.kafka()).await.unwrap();
    let tasks = Tasks::new(Shutdown::new());
    write_control(&servers, &tasks).await;
    let mut traffic = Traffic::new(&servers.kafka());

    let first = servers.fold(50);
    traffic.send(150).await;
    first.says("/readyz", "200 OK").await;
    traffic.send(150).await;
    first.kill();
    traffic.send(100).await;
    let (one, two) = (servers.fold(60), servers.fold(210));
    traffic.send(100).await;
    until!("both are there", is_folded(&servers, &traffic).await);
    servers.kill_clickhouse().await;
    traffic.send(100).await;
    one.says("/readyz", "ClickHouse").await;
    servers.start_clickhouse().await;
    traffic.send(50).await;
    until!("ClickHouse is back", is_folded(&servers, &traffic).await);
    two.kill();
    servers.execute("DROP DATABASE tollgate SYNC").await;
    traffic.send(100).await;
    until!("folded again from the beginning", is_folded(&servers, &traffic).await);
    one.says("/readyz", "200 OK").await;

    check_rows(&servers, &traffic).await;
    check_balances(&servers, &traffic, &tasks).await;
    check_dead_letters(&servers, &traffic).await;
    tasks.shutdown().trigger();
}

async fn check_rows(servers: &Servers, traffic: &Traffic) {
    let clickhouse = servers.clickhouse();
    for partition in 0..2 {
        let alone = fold_alone::<TokensCounted>(
            &servers.kafka(),
            topic::TOKENS,
            partition,
            traffic.tokens.ends[partition as usize],
        )
        .await;
        let proof = clickhouse.prove(Table::Tokens, partition).await.unwrap();
        assert_eq!((proof.position, proof.chain), (alone.position, alone.chain.0));
        assert_eq!(proof.sources.len(), alone.sources.len());
        let alone = fold_alone::<RequestFinished>(
            &servers.kafka(),
            topic::REQUESTS,
            partition,
            traffic.requests.ends[partition as usize],
        )
        .await;
        let proof = clickhouse.prove(Table::Requests, partition).await.unwrap();
        assert_eq!((proof.position, proof.chain), (alone.position, alone.chain.0));
    }
    let outcomes = clickhouse.outcomes(Table::Tokens).await.unwrap();
    let sum = |of: fn(&sql::OutcomeCounts) -> i64| outcomes.values().map(|line| of(&line.counts)).sum::<i64>();
    assert_eq!(sum(|counts| counts.folded), traffic.tokens.folded);
    assert_eq!(sum(|counts| counts.duplicates), traffic.tokens.duplicates);
    assert_eq!(sum(|counts| counts.dead), traffic.dead.len() as i64);
    let balance = clickhouse.trial_balance(sql::LogHours::default()).await.unwrap();
    assert!(balance.balances(), "rows and their sums are the same");
    let mut used = 0;
    for partition in 0..2 {
        let totals = clickhouse.partition_totals(partition, ledger::time::Slot(0)).await.unwrap();
        used += totals.totals.iter().map(|total| total.tokens.output as i64).sum::<i64>();
    }
    assert_eq!(used, traffic.output.values().sum::<i64>());
}

async fn check_balances(servers: &Servers, traffic: &Traffic, tasks: &Tasks) {
    let (reader, view) = BalancesReader::open(&servers.kafka(), None, Box::new(|_| {})).unwrap();
    tasks.spawn("balances", Duration::ZERO, reader.run(tasks.shutdown().clone()));
    let period = Period::month_of(NOW, ZONE).unwrap();
    for tenant in TENANTS {
        let id = tenant.parse().unwrap();
        let is_right = || {
            let Some(balance) = view.get(&id, period) else { return false };
            let usage = &balance.usage[0];
            balance.usage.len() == 1
                && usage.output == traffic.output[tenant]
                && usage.requests == traffic.counts[tenant]
                && balance.as_of <= traffic.tokens.ends[balance.partition as usize]
        };
        until!(format!("{tenant}: {:?}, not {}", view.get(&id, period), traffic.output[tenant]), is_right());
    }
}

async fn check_dead_letters(servers: &Servers, traffic: &Traffic) {
    let letters = PartitionConsumer::open(&servers.kafka(), "tollgate-test", topic::DEAD_LETTERS, 0, 0).unwrap();
    let mut missing = traffic.dead.clone();
    while !missing.is_empty() {
        let record =
            tokio::time::timeout(SOON, letters.next()).await.unwrap_or_else(|_| panic!("missing: {missing:?}"));
        let Ok(record) = record else { continue };
        let letter: DeadLettered = schemas::codec::decode(record.value.as_deref().unwrap()).unwrap();
        assert_eq!(record.key.as_deref(), Some(letter.key().as_bytes()));
        let place = (letter.origin_partition, letter.origin_offset);
        assert_eq!(traffic.dead.get(&place), Some(&letter.reason.as_str()), "{letter:?}");
        missing.remove(&place);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_a_loss_the_line_stands_still_says_so_and_the_others_go_on() {
    let servers = Servers::start().await;
    let fold = servers.fold(50);
    fold.says("/readyz", "200 OK").await;
    let mut traffic = Traffic::new(&servers.kafka());
    traffic.send(40).await;
    until!("folded", is_folded(&servers, &traffic).await);
    fold.says("/metrics", "tollgate_fold_unknown_tenants_total").await;
    traffic.lose(TENANTS[0]);
    let at = traffic.partition(TENANTS[0]);
    let stood = traffic.tokens.ends[at as usize];
    traffic.count(TENANTS[0]).await;
    let ready = fold.says("/readyz", "records between them are lost").await;
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    let line = format!(r#"tollgate_fold_stopped{{partition="{at}",topic="tollgate.tokens.v1"}} 1"#);
    fold.says("/metrics", &line).await;
    let other = TENANTS.into_iter().find(|tenant| traffic.partition(tenant) != at).unwrap();
    traffic.count(other).await;
    let end = traffic.tokens.ends[traffic.partition(other) as usize];
    let clickhouse = servers.clickhouse();
    until!("the other line goes on", clickhouse.position(Table::Tokens, 1 - at).await.unwrap().position == end);
    assert_eq!(clickhouse.position(Table::Tokens, at).await.unwrap().position, stood);
    traffic.newer(other).await;
    fold.says("/readyz", "upgrade the fold").await;
    let end = traffic.tokens.ends[(1 - at) as usize];
    until!("what came before is folded", clickhouse.position(Table::Tokens, 1 - at).await.unwrap().position == end);
    let dead = clickhouse
        .dead_letters(&sql::DeadLetterQuery { from: (1 - at, end - 1), ..sql::DeadLetterQuery::of(Table::Tokens) })
        .await
        .unwrap();
    assert!(dead.is_empty(), "what a newer gateway wrote is no dead letter: {dead:?}");
}
