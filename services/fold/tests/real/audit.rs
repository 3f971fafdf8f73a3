//! What an audit says of tables that are whole, and of each way in which somebody may have changed them.

use fold::archive::Log;
use fold::audit::{Audited, Difference};
use ledger::tokens::TokenCounts;
use runtime::{Shutdown, Tasks};
use sql::{Kind, RowDifference, RowFault};

use crate::servers::Servers;
use crate::{folded, is_folded, until};

async fn audit(servers: &Servers) -> Vec<Audited> {
    fold::audit::run(Log::kafka(&servers.kafka()), &servers.clickhouse_settings(), &[0, 1], |_| {}).await.unwrap()
}

/// What differs in the tokens of partition 0; nothing else does.
async fn differences(servers: &Servers) -> Vec<Difference> {
    let mut lines = audit(servers).await;
    assert!(lines[1..].iter().all(|line| line.differences.is_empty()), "{lines:#?}");
    lines.remove(0).differences
}

/// The one row that differs; sums differ with it, and the proof may see that rows and outcomes do not add up.
fn only_row(differences: &[Difference]) -> &RowDifference {
    let others = |one: &&Difference| !matches!(one, Difference::Sum { .. } | Difference::Table(_));
    let rows: Vec<_> = differences.iter().filter(others).collect();
    match rows.as_slice() {
        [Difference::Row(row)] => row,
        other => panic!("{other:#?}"),
    }
}

fn sums(differences: &[Difference]) -> Vec<((TokenCounts, u64), (TokenCounts, u64))> {
    let sum = |one: &Difference| match one {
        Difference::Sum { wanted, found, .. } => Some((*wanted, *found)),
        _ => None,
    };
    differences.iter().filter_map(sum).collect()
}

/// Changes rows of partition 0 behind Tollgate's back.
async fn change(servers: &Servers, what: &str) {
    servers.execute(&format!("ALTER TABLE tollgate.tokens {what} SETTINGS mutations_sync = 2")).await;
}

/// An offset of partition 0 whose row is of a kind.
async fn some_offset(servers: &Servers, kind: &str) -> i64 {
    let sql = format!("SELECT max(kafka_offset) FROM tollgate.tokens WHERE kafka_partition = 0 AND kind = '{kind}'");
    servers.number(&sql).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_finds_nothing_in_whole_tables_and_names_each_row_that_was_changed() {
    let servers = Servers::start().await;
    let tasks = Tasks::new(Shutdown::new());
    let (mut traffic, fold) = folded(&servers, &tasks, 200).await;

    let lines = audit(&servers).await;
    for line in &lines {
        assert_eq!(line.differences, [], "{}/{}", line.topic, line.partition);
        assert_eq!(line.counts.total(), Some(line.offsets), "each offset has one outcome");
        assert!(line.chunks > 3, "{line:?}");
    }
    let ends: Vec<i64> = (0..2).flat_map(|at| [traffic.tokens.ends[at], traffic.requests.ends[at]]).collect();
    assert_eq!(lines.iter().map(|line| line.offsets).collect::<Vec<_>>(), ends);
    let output: u64 = lines.iter().flat_map(|line| line.sums.values()).map(|(tokens, _)| tokens.output).sum();
    assert_eq!(i64::try_from(output), Ok(traffic.output.values().sum()));
    let dead: i64 = lines.iter().map(|line| line.counts.dead).sum();
    assert_eq!(dead, i64::try_from(traffic.dead.len()).unwrap());

    // While the fold goes on, what is under way is no difference.
    let (lines, ()) = tokio::join!(audit(&servers), traffic.send(150));
    assert!(lines.iter().all(|line| line.differences.is_empty()), "{lines:#?}");
    until!("all is folded", is_folded(&servers, &traffic).await);
    fold.kill();

    // A count.
    let offset = some_offset(&servers, "data").await;
    let at = format!("kafka_partition = 0 AND kind = 'data' AND kafka_offset = {offset}");
    change(&servers, &format!("UPDATE output = output + 5 WHERE {at}")).await;
    let found = differences(&servers).await;
    let row = only_row(&found);
    assert_eq!((row.offset, row.kind), (offset, Kind::Data));
    assert!(row.request.is_some());
    let RowFault::Changed(field) = &row.fault else { panic!("{row:?}") };
    assert_eq!(field.name, "output");
    let [((wanted, _), (after, _))] = sums(&found)[..] else { panic!("{found:#?}") };
    assert_eq!(after.output, wanted.output + 5, "the aggregates follow the row");
    change(&servers, &format!("UPDATE output = output - 5 WHERE {at}")).await;
    assert_eq!(differences(&servers).await, []);

    // A row that is there twice.
    let again = "INSERT INTO tollgate.tokens SELECT * REPLACE (now64(3) + INTERVAL 1 HOUR AS insert_before) FROM tollgate.tokens";
    servers.execute(&format!("{again} WHERE {at}")).await;
    let found = differences(&servers).await;
    assert_eq!((only_row(&found).offset, &only_row(&found).fault), (offset, &RowFault::Added));
    assert_eq!(sums(&found).len(), 1);

    // Both of it gone.
    change(&servers, &format!("DELETE WHERE {at}")).await;
    let found = differences(&servers).await;
    let row = only_row(&found);
    assert_eq!((row.offset, &row.fault), (offset, &RowFault::Missing));
    assert!(row.request.is_some(), "a missing row is named by its request too");
    assert_eq!(sums(&found).len(), 1);

    // A dead letter whose bytes are others, a chunk with another chain: sums say nothing of them.
    let dead = some_offset(&servers, "dead").await;
    let at = format!("kafka_partition = 0 AND kind = 'dead' AND kafka_offset = {dead}");
    change(&servers, &format!("UPDATE dead_value = 'other bytes' WHERE {at}")).await;
    let chunk = some_offset(&servers, "chunk").await;
    let at = format!("kafka_partition = 0 AND kind = 'chunk' AND kafka_offset = {chunk}");
    change(&servers, &format!("UPDATE chain = unhex(repeat('ab', 32)) WHERE {at}")).await;
    let found = differences(&servers).await;
    let mut named: Vec<_> = found
        .iter()
        .filter_map(|one| match one {
            Difference::Row(RowDifference { offset, kind, fault: RowFault::Changed(field), .. }) => {
                Some((*kind, *offset, field.name))
            }
            _ => None,
        })
        .collect();
    named.sort_unstable();
    assert_eq!(named, [(Kind::Dead, dead, "dead_value"), (Kind::Chunk, chunk, "chain")]);

    // A chunk's own row gone: what it stood for is no whole folding any more.
    change(&servers, &format!("DELETE WHERE {at}")).await;
    let found = differences(&servers).await;
    assert!(matches!(&found[0], Difference::Table(_)), "{found:#?}");
    tasks.shutdown().trigger();
}
