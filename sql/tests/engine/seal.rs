//! Sealed months: every figure is the same to the last digit, killed at any moment, done twice or by two at once.

use ledger::ids::TenantId;
use ledger::time::{Micros, Slot};
use sql::{
    ChunkRows, ClickHouse, DataRow, DeadRow, Grain, Keys, LogHours, Month, RequestQuery, RequestRow, Scope, Span,
    Table, TokenRow, UsageQuery,
};

use crate::engine::Engine;
use crate::log::{at, chunk, insert, request, soon, source, tokens};

const PARTITIONS: i32 = 2;
const TENANTS: [&str; 3] = ["acme", "bolt", "corp"];
const CHUNK: usize = 40;

/// 300 records from September to November: some of the month before come late.
fn times() -> Vec<(i64, Micros)> {
    let begin = at("2026-09-28T00:00:00Z").0 / 1_000;
    let time = |n: i64| {
        let log = begin + n * 4 * 60 * 60 * 1_000;
        (log, Micros((log - if n % 17 == 0 { 9 * 86_400_000 } else { 5 }) * 1_000))
    };
    (0..300).map(time).collect()
}

fn token_rows(partition: i32) -> Vec<(i64, TokenRow)> {
    let row = |(n, (log, occurred)): (u64, (i64, Micros))| {
        let mut row = tokens(n + 1_000 * partition.unsigned_abs() as u64, TENANTS[n as usize % 3], occurred);
        row.replica = format!("r{}", n % 2);
        row.project_id = if n % 5 == 0 { "web" } else { "default" }.parse().unwrap();
        (log, row)
    };
    (0..).zip(times()).map(row).flat_map(|(log, row)| [(log, row.clone()), (log, row)]).collect()
}

fn request_rows(partition: i32) -> Vec<(i64, RequestRow)> {
    let row = |(n, (log, occurred)): (u64, (i64, Micros))| {
        let mut row = request(n + 1_000 * partition.unsigned_abs() as u64, TENANTS[n as usize % 3], occurred);
        (row.status, row.attempts) = if n % 4 == 0 { (503, 2) } else { (200, 1) };
        (log, row)
    };
    (0..).zip(times()).map(row).flat_map(|(log, row)| [(log, row.clone()), (log, row)]).collect()
}

/// Chunks with a dead letter and a second source now and then.
fn chunks<D: Clone>(partition: i32, rows: &[(i64, D)]) -> Vec<ChunkRows<D>> {
    let (mut first, mut chunks) = (0, Vec::new());
    for (n, part) in (0..).zip(rows.chunks(CHUNK)) {
        let mut one = chunk(partition, first, part);
        if n % 3 == 1 {
            let took = Some((source(7), n, ledger::ids::EventId(uuid::Uuid::from_u128(n.into()))));
            let (reason, value) = ("undecodable".to_owned(), Some(vec![0, 255]));
            let (key, detail) = (None, "no avro".to_owned());
            one.dead.push(DeadRow { offset: one.end, log_time_ms: one.log_time_ms, reason, detail, key, value, took });
            (one.end, one.counts.dead) = (one.end + 1, 1);
            let state = one.sources[&source(1)];
            one.sources.insert(source(7), state);
        }
        first = one.end;
        chunks.push(one);
    }
    chunks
}

async fn fill<D: DataRow + Clone>(clickhouse: &ClickHouse, chunks: &[ChunkRows<D>]) {
    for chunk in chunks {
        insert(clickhouse, chunk).await;
    }
}

async fn filled() -> Engine {
    let engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    for partition in 0..PARTITIONS {
        fill(&clickhouse, &chunks(partition, &token_rows(partition))).await;
        fill(&clickhouse, &chunks(partition, &request_rows(partition))).await;
    }
    engine.execute("SYSTEM START MERGES").await;
    engine
}

/// Every figure that anybody is shown, in words.
async fn figures(clickhouse: &ClickHouse) -> Vec<String> {
    let (from, to) = (Slot::of(at("2026-08-01T00:00:00Z")), Slot::of(at("2027-01-01T00:00:00Z")));
    let span = Span { grain: Grain::Day, zone: chrono_tz::Europe::Berlin };
    let scope = Scope::new(None, from, to);
    let keys = Keys { tenant: true, project: true, api_key: true, model: true, version: true, endpoint: true };
    let late = vec![(from, sql::LogHour::of_ms(at("2026-10-05T00:00:00Z").0 / 1_000))];
    let query = UsageQuery { scope: scope.clone(), keys, span: Some(span), late };
    let mut said = vec![
        format!("{:?}", clickhouse.usage(&query).await.unwrap()),
        format!("{:?}", clickhouse.rating(&scope, true).await.unwrap()),
        format!("{:?}", clickhouse.rating_of_rows(&scope, 0).await.unwrap()),
        format!("{:?}", clickhouse.replica_totals(0, i64::MAX).await.unwrap()),
        format!("{:?}", clickhouse.endings(None, from, to, span).await.unwrap()),
    ];
    for tenant in TENANTS {
        said.push(format!("{:?}", clickhouse.last_used(&tenant.parse().unwrap()).await.unwrap()));
    }
    for partition in 0..PARTITIONS {
        said.push(format!("{:?}", clickhouse.partition_totals(partition, Slot(0)).await.unwrap()));
        for table in Table::ALL {
            let mut proof = clickhouse.prove(table, partition).await.unwrap();
            proof.now_ms = 0;
            said.push(format!("{proof:?}"));
        }
    }
    for table in Table::ALL {
        for (partition, mut line) in clickhouse.outcomes(table).await.unwrap() {
            assert!(line.balances(), "{line:?}");
            line.chunks = 0;
            said.push(format!("{partition} {line:?}"));
        }
        let letters = clickhouse.dead_letters(&sql::DeadLetterQuery::of(table)).await.unwrap();
        assert!(!letters.is_empty());
        said.push(format!("{letters:?}"));
    }
    assert!(clickhouse.trial_balance(LogHours::default()).await.unwrap().balances());
    said
}

async fn months(clickhouse: &ClickHouse, table: Table, partition: i32) -> Vec<Month> {
    clickhouse.months(table, partition).await.unwrap()
}

#[tokio::test]
async fn a_sealed_month_has_every_figure_to_the_last_digit_in_fewer_rows() {
    let engine = filled().await;
    let clickhouse = engine.clickhouse();
    let before = figures(&clickhouse).await;
    for table in Table::ALL {
        for partition in 0..PARTITIONS {
            let all = months(&clickhouse, table, partition).await;
            assert_eq!(all.iter().map(|month| month.month).collect::<Vec<_>>(), [202_609, 202_610, 202_611]);
            for month in &all[..2] {
                assert!(!month.sealed && month.end - month.first == month.lengths, "{month:?}");
                let number = month.month;
                let raw = clickhouse.month_figures(table, partition, number).await.unwrap();
                let size = clickhouse.month_size(table, partition, number).await.unwrap();
                clickhouse.seal(table, partition, month).await.unwrap();
                assert_eq!(clickhouse.month_figures(table, partition, number).await.unwrap(), raw);
                assert_eq!(
                    (Ok(raw.folded), Ok(raw.dead)),
                    (month.counts.folded.try_into(), month.counts.dead.try_into())
                );
                let small = clickhouse.month_size(table, partition, number).await.unwrap();
                assert!(small.parts == 1 && small.rows < size.rows, "{size:?} {small:?}");
            }
            let sealed = months(&clickhouse, table, partition).await;
            let expected: Vec<_> = all.iter().map(|month| Month { sealed: month.month < 202_611, ..*month }).collect();
            assert_eq!(sealed, expected);
            assert_eq!(clickhouse.chunk_faults(table, partition, span(&sealed)).await.unwrap(), []);
            assert_eq!(clickhouse.chunk_breaks(table, partition).await.unwrap(), []);
        }
    }
    assert_eq!(figures(&clickhouse).await, before);
    assert_eq!(engine.number("SELECT toUInt64(count()) FROM system.tables WHERE name LIKE 'sealing_%'").await, 0);

    // Requests of those months are none of their own any more; those of November are.
    let asked = RequestQuery { tenant: TENANTS[0].parse::<TenantId>().unwrap(), after: None, limit: 1_000 };
    let shown = clickhouse.latest_requests(&asked).await.unwrap();
    assert!(!shown.is_empty() && shown.iter().all(|line| line.tokens.is_some()), "{shown:?}");

    let until = clickhouse.requests_sealed_until(&asked.tenant).await.unwrap().unwrap();
    assert!(shown.iter().all(|line| line.occurred_at.0 > until.0 - 10 * 86_400_000_000), "{until}");
    assert_eq!(clickhouse.requests_sealed_until(&"nobody".parse().unwrap()).await.unwrap(), None);
    // Of sealed rows no number is known any more; of dead letters and of what is raw, each is.
    let known = async |source, seq| clickhouse.event_ids(Table::Tokens, 0, &[(source, seq)]).await.unwrap().len();
    assert_eq!((known(source(1), 1).await, known(source(7), 1).await, known(source(1), 300).await), (0, 1, 2));
    let mut replayed = clickhouse.replays(Table::Tokens, &[source(1), source(7)]).await.unwrap();
    replayed.sort_by_key(|one| one.source);
    assert_eq!(replayed.iter().map(|one| one.folded).collect::<Vec<_>>(), [true, false], "{replayed:?}");

    // Again, and twice at once, on rows that are sealed.
    let month = months(&clickhouse, Table::Tokens, 0).await[1];
    let (one, two) = tokio::join!(clickhouse.seal(Table::Tokens, 0, &month), clickhouse.seal(Table::Tokens, 0, &month));
    one.and(two).unwrap();
    assert_eq!(months(&clickhouse, Table::Tokens, 0).await[1], month);
    assert_eq!(figures(&clickhouse).await, before);
}

fn span(months: &[Month]) -> sql::ChunkSpan {
    let (first, last) = (months[0], months[months.len() - 1]);
    sql::ChunkSpan { chunks: 1, first: first.first, end: last.end, ..sql::ChunkSpan::ALL }
}

#[tokio::test]
async fn a_zombie_writes_nothing_into_a_sealed_month_and_the_line_goes_on() {
    let engine = filled().await;
    let clickhouse = engine.clickhouse();
    let rows = chunks(0, &token_rows(0));
    let before = figures(&clickhouse).await;
    let month = months(&clickhouse, Table::Tokens, 0).await[0];
    let asleep = soon(&clickhouse).await - 120_000;
    clickhouse.seal(Table::Tokens, 0, &month).await.unwrap();
    // Its deadline passed long ago; and where it had not, its token is known.
    assert!(matches!(clickhouse.insert_chunk(&rows[0], 0, asleep).await, Err(sql::InsertError::Fence)));
    insert(&clickhouse, &rows[0]).await;
    assert_eq!(figures(&clickhouse).await, before);
    let last = rows.last().unwrap();
    let next = chunk(0, last.end, &[(last.log_time_ms + 1, tokens(9_000, "acme", Micros(last.log_time_ms * 1_000)))]);
    insert(&clickhouse, &next).await;
    assert_eq!(clickhouse.prove(Table::Tokens, 0).await.unwrap().position, next.end);
}

#[tokio::test]
async fn killed_at_any_moment_a_month_is_sealed_or_raw_and_the_next_run_ends_it() {
    let mut engine = filled().await;
    let before = figures(&engine.clickhouse()).await;
    for (partition, pause) in [(0, 2), (0, 60), (1, 120)] {
        let clickhouse = engine.clickhouse();
        let month = months(&clickhouse, Table::Tokens, partition).await[1];
        let kill = async {
            tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
            engine.kill().await;
        };
        let (sealed, ()) = tokio::join!(clickhouse.seal(Table::Tokens, partition, &month), kill);
        drop(sealed);
        engine.start_again().await;
        let clickhouse = engine.clickhouse();
        assert_eq!(figures(&clickhouse).await, before, "killed after {pause} ms");
        clickhouse.finish_sealing(Table::Tokens).await.unwrap();
        let found = months(&clickhouse, Table::Tokens, partition).await[1];
        assert_eq!(Month { sealed: month.sealed, ..found }, month);
        if pause > 30 {
            clickhouse.seal(Table::Tokens, partition, &found).await.unwrap();
            assert!(months(&clickhouse, Table::Tokens, partition).await[1].sealed);
            assert_eq!(figures(&clickhouse).await, before);
        }
    }
}
