//! Months of the log sealed beside a running fold: nothing that is shown changes, and what was raw can be had again from archive and log.

use fold::archive::{Log, Point};
use fold::seal::{Outcome, Rules, SealError, Sealed};
use ledger::time::Slot;
use runtime::{Shutdown, Tasks};
use sha2::{Digest as _, Sha256};
use sql::{ClickHouse, DeadLetterQuery, Grain, Keys, LogHour, LogHours, Scope, Span, Table, UsageQuery};
use stream::chain::Chain;
use stream::topics;

use crate::archive::{archive, audit, manifests, new_database, rebuild, written};
use crate::servers::Servers;
use crate::traffic::{NOW, Traffic, ZONE};
use crate::{until, write_control};

const DAY_MS: i64 = 86_400_000;
/// The database that a rebuild made of the aged log, and a fold goes on with.
const AGED: &str = "aged";

/// A log whose first two thirds are months old: sent now, archived, and aged in the archive, which alone has them.
async fn aged(servers: &Servers, tasks: &Tasks) -> Traffic {
    topics::ensure(&servers.kafka()).await.unwrap();
    write_control(servers, tasks).await;
    sql::migrate(&servers.clickhouse_settings(), |_| {}).await.unwrap();
    let mut traffic = Traffic::new(&servers.kafka());
    traffic.send(200).await;
    written(servers).await;
    for (table, ends) in [(Table::Tokens, traffic.tokens.ends), (Table::Requests, traffic.requests.ends)] {
        for (partition, end) in (0..).zip(ends) {
            age(servers, table.topic(), partition, end).await;
            servers.delete_records(table.topic(), partition, end - 5).await;
        }
    }
    let lines = rebuild(servers, AGED).await.unwrap();
    assert!(lines.iter().all(|line| line.differences.is_empty() && line.offsets > 0), "{lines:#?}");
    traffic
}

/// Writes the files of a line anew: the first third was taken 130 days ago, the second one 80.
async fn age(servers: &Servers, topic: &str, partition: i32, end: i64) {
    let table = servers.clickhouse().parquet_table().await.unwrap();
    let mut at = Point::BEGINNING;
    for (json, mut manifest) in manifests(servers, topic, partition) {
        let parquet = json.with_extension("parquet");
        let mut rows = table.rows(std::fs::read(&parquet).unwrap().into()).await.unwrap();
        manifest.from = at;
        for row in &mut rows {
            row.log_time_ms -= match row.offset {
                offset if offset < end / 3 => 130 * DAY_MS,
                offset if offset < end * 2 / 3 => 80 * DAY_MS,
                _ => 0,
            };
            let log_time_ms = at.log_time_ms.max(row.log_time_ms);
            let (key, value) = (row.key.as_deref(), row.value.as_deref());
            let chain = Chain(at.chain).after(row.offset, log_time_ms, key, value).0;
            at = Point { offset: row.offset + 1, log_time_ms, chain };
        }
        let bytes = table.parquet(&rows).await.unwrap();
        (manifest.to, manifest.bytes, manifest.sha256) = (at, bytes.len() as u64, Sha256::digest(&bytes).into());
        std::fs::write(&parquet, &bytes).unwrap();
        std::fs::write(&json, serde_json::to_vec(&manifest).unwrap()).unwrap();
    }
    table.drop_table().await.unwrap();
}

async fn seal(servers: &Servers, database: &str, rules: Rules) -> Result<Vec<Sealed>, SealError> {
    let (archive, clickhouse) = (archive(servers), new_database(servers, database));
    let log = Log { kafka: &servers.kafka(), archive: Some(&archive) };
    let sealed = fold::seal::run(log, &clickhouse, &[0, 1], rules, |_| {}).await;
    archive.close().await.unwrap();
    sealed
}

/// Of each month: whether it is old, and what became of it.
fn outcomes(months: &[Sealed]) -> Vec<&Outcome> {
    months.iter().filter(|month| month.outcome != Outcome::Young).map(|month| &month.outcome).collect()
}

/// Every line of a database is at the end of its log.
async fn is_at_end(clickhouse: &ClickHouse, traffic: &Traffic) -> bool {
    for (table, ends) in [(Table::Tokens, traffic.tokens.ends), (Table::Requests, traffic.requests.ends)] {
        for (partition, end) in (0..).zip(ends) {
            if clickhouse.position(table, partition).await.unwrap().position != end {
                return false;
            }
        }
    }
    true
}

/// What a database shows of all that was used, in words.
async fn figures(clickhouse: &ClickHouse) -> Vec<String> {
    let (from, to) = (Slot(Slot::of(NOW).0 - 4), Slot(Slot::of(NOW).0 + 4));
    let span = Span { grain: Grain::Day, zone: ZONE };
    let keys = Keys { tenant: true, project: true, api_key: true, model: true, version: true, endpoint: true };
    let scope = Scope::new(None, from, to);
    let late = vec![(from, LogHour::of_ms(NOW.0 / 1_000 - 50 * DAY_MS))];
    let query = UsageQuery { scope: scope.clone(), keys, span: Some(span), late };
    let mut said = vec![
        format!("{:?}", clickhouse.usage(&query).await.unwrap()),
        format!("{:?}", clickhouse.rating(&scope, true).await.unwrap()),
        format!("{:?}", clickhouse.endings(None, from, to, span).await.unwrap()),
        format!("{:?}", clickhouse.replica_totals(0, i64::MAX).await.unwrap()),
        format!("{:?}", clickhouse.dead_letters(&DeadLetterQuery::of(Table::Tokens)).await.unwrap()),
    ];
    for table in Table::ALL {
        for partition in 0..2 {
            let proof = clickhouse.prove(table, partition).await.unwrap();
            said.push(format!("{:?}", sql::Proof { now_ms: 0, ..proof }));
        }
    }
    assert!(clickhouse.trial_balance(LogHours::default()).await.unwrap().balances());
    said
}

/// All rows of sealed months but where the rows of sources stand, which depends on how the month was cut.
async fn sealed_rows(servers: &Servers, database: &str, table: Table) -> (i64, i64) {
    let of = |what: &str| {
        format!(
            "SELECT toInt64({what}) FROM {database}.{table} WHERE kind != 'source' AND log_month IN \
             (SELECT log_month FROM {database}.{table} WHERE kind = 'chunk' AND seq > 0)"
        )
    };
    let row = "cityHash64(toString(tuple(* EXCEPT (insert_before, seq))))";
    (servers.number(&of("count()")).await, servers.number(&of(&format!("groupBitXor({row}) % 1000000000000"))).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn months_are_sealed_beside_a_fold_and_every_figure_is_that_of_the_raw_rows() {
    let servers = Servers::start().await;
    let tasks = Tasks::new(Shutdown::new());
    let mut traffic = aged(&servers, &tasks).await;
    let (kafka, database) = (servers.kafka(), new_database(&servers, AGED));
    let clickhouse = ClickHouse::new(&database);
    let fold = servers.fold_into(AGED, 40);
    traffic.send(30).await;
    until!("the fold is at the end", is_at_end(&clickhouse, &traffic).await);

    let would = seal(&servers, AGED, Rules { dry_run: true, ..Rules::default() }).await.unwrap();
    assert!(outcomes(&would).len() >= 8 && outcomes(&would).iter().all(|one| **one == Outcome::Would), "{would:#?}");
    // What no log and no archive has cannot be held to it, and is not sealed.
    let nobody = fold::seal::run(Log::kafka(&kafka), &database, &[0, 1], Rules::default(), |_| {}).await;
    let said = nobody.unwrap_err().to_string();
    assert!(said.contains("tollgate archive"), "{said}");
    assert_eq!(clickhouse.sealed_until(Table::Tokens, 0).await.unwrap(), None);

    let (sealed, ()) = tokio::join!(seal(&servers, AGED, Rules::default()), traffic.send(30));
    let sealed = sealed.unwrap();
    for month in &sealed {
        match &month.outcome {
            Outcome::Sealed(now) => assert!(now.parts == 1 && now.rows < month.size.rows, "{month:?}"),
            outcome => assert_eq!(*outcome, Outcome::Young, "{month:?}"),
        }
    }
    assert_eq!(outcomes(&sealed).len(), outcomes(&would).len());
    let again = seal(&servers, AGED, Rules::default()).await.unwrap();
    assert!(outcomes(&again).iter().all(|one| **one == Outcome::Already), "{again:#?}");
    until!("the fold is at the end", is_at_end(&clickhouse, &traffic).await);
    fold.says("/readyz", "200 OK").await;

    // Raw rows again, from archive and log: what the sealed ones say.
    assert_eq!(audit(&servers, AGED).await.unwrap(), 0);
    let report = fold::reconcile::reconcile(&kafka, &database, LogHours::default()).await.unwrap();
    assert_eq!(report.differences, [], "{report:#?}");
    let raw = ClickHouse::new(&new_database(&servers, "raw"));
    let old = new_database(&servers, AGED);
    let archive = archive(&servers);
    let log = Log { kafka: &servers.kafka(), archive: Some(&archive) };
    let lines = fold::rebuild::run(log, &old, &new_database(&servers, "raw"), &[0, 1], 50, |_| {}).await.unwrap();
    archive.close().await.unwrap();
    assert!(lines.iter().all(|line| line.differences.is_empty() && line.summed && line.compared > 0), "{lines:#?}");
    assert_eq!(figures(&clickhouse).await, figures(&raw).await);

    for table in Table::ALL {
        let crossing = format!("SELECT toInt64(count()) FROM raw.{table} WHERE toYYYYMM(log_time) != log_month");
        assert_eq!(servers.number(&crossing).await, 0, "no chunk is of two months");
    }

    // A raw row that was changed is found before it is sealed; the months of other lines are sealed all the same.
    let change =
        |database: &str, what: &str| format!("ALTER TABLE {database}.tokens UPDATE {what} SETTINGS mutations_sync = 2");
    let first = "kafka_partition = 1 AND kind = 'data' AND kafka_offset = 0";
    servers.execute(&change("raw", &format!("output = output + 5 WHERE {first}"))).await;
    let refused = seal(&servers, "raw", Rules::default()).await.unwrap();
    let said: Vec<_> = refused.iter().filter(|month| matches!(month.outcome, Outcome::Refused(_))).collect();
    let [Sealed { partition: 1, topic: "tollgate.tokens.v1", outcome: Outcome::Refused(found), .. }] = said[..] else {
        panic!("{refused:#?}")
    };
    assert!(format!("{found:?}").contains("\"output\""), "{found:#?}");
    servers.execute(&change("raw", &format!("output = output - 5 WHERE {first}"))).await;
    seal(&servers, "raw", Rules::default()).await.unwrap();
    for table in Table::ALL {
        let rows = sealed_rows(&servers, "raw", table).await;
        assert!(rows.0 > 0);
        assert_eq!(rows, sealed_rows(&servers, AGED, table).await, "{table}: sealed anew, it is the same");
    }
    assert_eq!(audit(&servers, "raw").await.unwrap(), 0);

    // A sealed row that was changed is the audit's to name.
    servers.execute(&change(AGED, &format!("output = output + 5 WHERE {first}"))).await;
    servers
        .execute(&change(AGED, "chain = unhex(repeat('ab', 32)) WHERE kind = 'chunk' AND seq > 0 AND chunk_first = 0"))
        .await;
    let archive = crate::archive::archive(&servers);
    let log = Log { kafka: &servers.kafka(), archive: Some(&archive) };
    let lines = fold::audit::run(log, &new_database(&servers, AGED), &[1], |_| {}).await.unwrap();
    archive.close().await.unwrap();
    let said = format!("{:#?}", lines[0].differences);
    assert!(said.contains("\"output\"") && said.contains("\"chain\""), "{said}");
    tasks.shutdown().trigger();
    fold.kill();
}
