//! What the reconciler asks: of a few hours the same as of all, out of few rows; balances exactly up to their offset; the requests of
//! an engine piece by piece as at once.

use std::collections::BTreeMap;

use ledger::ids::{RequestId, TenantId};
use ledger::time::{Micros, Period, Slot};
use ledger::tokens::TokenCounts;
use sql::{ChunkSpan, ClickHouse, HourBegin, LogHour, LogHours, ReplicaUsage, RequestRow, Scope, Table, TokenRow};
use uuid::Uuid;

use crate::engine::Engine;
use crate::log::{at, chunk, insert, request, tokens};

const HOUR_MS: i64 = 3_600_000;
/// Chunks of five hours and a half each, so that they begin and end within hours.
const CHUNKS: u64 = 12;
/// Enough that the rows of a tenant are many granules.
const MANY: u64 = 10_000;
const FEW: u64 = 100;

fn begin_ms() -> i64 {
    at("2026-11-01T00:00:00Z").0 / 1_000
}

/// Chunks of so many rows, of three tenants.
fn rows(chunk: u64) -> Vec<(i64, TokenRow)> {
    let step = 11 * HOUR_MS / 2 / i64::try_from(chunk).unwrap();
    let time = |n: u64| begin_ms() + i64::try_from(n).unwrap() * step;
    (0..CHUNKS * chunk).map(|n| (time(n), tokens(n, &format!("t{}", n % 3), Micros(time(n) * 1_000)))).collect()
}

async fn filled(engine: &Engine, each: u64) -> Vec<(i64, TokenRow)> {
    let clickhouse = engine.clickhouse();
    let rows = rows(each);
    for (n, part) in (0..).zip(rows.chunks(each as usize)) {
        insert(&clickhouse, &chunk(0, n * each as i64, part)).await;
        let ends: Vec<(i64, RequestRow)> = part
            .iter()
            .map(|(log, row)| (*log, request(row.seq - 1, row.tenant_id.as_str(), row.occurred_at)))
            .collect();
        insert(&clickhouse, &chunk(0, n * each as i64, &ends)).await;
    }
    // The whole month is one part, as it is when nothing is written any more.
    engine.execute("SYSTEM START MERGES").await;
    for table in Table::ALL {
        engine.execute(&format!("OPTIMIZE TABLE {table} FINAL")).await;
    }
    rows
}

/// The rows that ClickHouse has read up to now.
async fn read(engine: &Engine) -> u64 {
    engine.number("SELECT toUInt64(value) FROM system.events WHERE event = 'SelectedRows'").await
}

#[tokio::test]
async fn of_the_last_hours_no_rows_of_the_month_before_are_read() {
    let engine = Engine::start().await;
    let rows = filled(&engine, MANY).await;
    let clickhouse = engine.clickhouse();
    let last = LogHour::of_ms(rows[rows.len() - 1].0);
    let hours = LogHours { from: LogHour(last.0 - 1), before: LogHour(last.0 + 1) };
    let spans = async |since| {
        let tokens = clickhouse.chunk_span(Table::Tokens, 0, hours, since).await.unwrap();
        (tokens, clickhouse.chunk_span(Table::Requests, 0, hours, since).await.unwrap())
    };
    let (span, ends) = spans(0).await;
    assert_eq!((span.chunks, span.first, span.end), (1, 110_000, 120_000));
    assert_eq!((span.rows_from, span.wide_from, span), (span.first, span.first, ends));

    let before = read(&engine).await;
    assert_eq!(spans(span.wide_from).await, (span, ends), "by what was known");
    assert_eq!(clickhouse.chunk_faults(Table::Tokens, 0, span).await.unwrap(), []);
    assert_eq!(clickhouse.uneven_requests(0, span, hours).await.unwrap(), []);
    for table in Table::ALL {
        assert_eq!(clickhouse.unmatched(table, 0, hours, span, span).await.unwrap(), []);
    }
    let sums = clickhouse.hour_sums_of_rows(0, span, hours).await.unwrap();
    assert_eq!(sums, clickhouse.hour_sums(hours).await.unwrap());
    let begins = clickhouse.hour_begins(0, span.wide_from).await.unwrap();
    let month = Period::month_of(rows[0].1.occurred_at, chrono_tz::UTC).unwrap();
    let as_of = [("t1".parse().unwrap(), 120_000)];
    clickhouse.balance_sums(0, month, begins.last().copied(), &as_of).await.unwrap();
    let scope = Scope { log_hours: LogHours::since(hours.from), ..Scope::new(None, month.from, month.to) };
    clickhouse.rating_of_rows(&scope, span.rows_from).await.unwrap();
    let few = read(&engine).await - before;

    let before = read(&engine).await;
    clickhouse.trial_balance(LogHours::default()).await.unwrap();
    let once = read(&engine).await - before;
    assert!(once >= rows.len() as u64, "the measure is none: {once}");
    // Thirteen readings, each of the last chunk and the granules around it.
    assert!(few < 13 * once / 2, "{few} rows were read, {once} by one question for all");

    // What is missing beyond is found all the same: a count in the hours, whose end was logged long before.
    engine.execute("ALTER TABLE tokens DELETE WHERE kafka_offset = 119999 SETTINGS mutations_sync = 2").await;
    let missing = clickhouse.unmatched(Table::Requests, 0, hours, span, span).await.unwrap();
    assert_eq!(missing.iter().map(|one| one.request_id).collect::<Vec<_>>(), [rows[119_999].1.request_id]);
    let faults = clickhouse.chunk_faults(Table::Tokens, 0, span).await.unwrap();
    assert_eq!(faults.iter().map(|fault| (fault.chunk_first, fault.data_rows)).collect::<Vec<_>>(), [(110_000, 9_999)]);
    // Where the chunk is gone that something was known by, all is looked at again.
    engine.execute("ALTER TABLE tokens DELETE WHERE chunk_first = 110000 SETTINGS mutations_sync = 2").await;
    let found =
        clickhouse.chunk_span(Table::Tokens, 0, LogHours { from: LogHour(last.0 - 8), ..hours }, span.wide_from);
    assert_eq!(found.await.unwrap().chunks, 1);
}

#[tokio::test]
async fn balances_are_summed_exactly_up_to_their_offset_wherever_an_hour_begins() {
    let engine = Engine::start().await;
    let rows = filled(&engine, FEW).await;
    let clickhouse = engine.clickhouse();
    let month = Period::month_of(rows[0].1.occurred_at, chrono_tz::UTC).unwrap();
    let begins = clickhouse.hour_begins(0, 0).await.unwrap();
    assert_eq!(begins.iter().map(|begin| begin.end).collect::<Vec<_>>(), (1..=12).map(|n| n * 100).collect::<Vec<_>>());
    let tenants: Vec<TenantId> = (0..3).map(|n| format!("t{n}").parse().unwrap()).collect();
    for as_of in [0, 1, 99, 100, 101, 154, 200, 999, 1_000, 1_199, 1_200] {
        let begin = begins.iter().rev().find(|begin| begin.end <= as_of).copied();
        assert_eq!(begin.is_none(), as_of < 100);
        // One of them is of an offset further on.
        let as_of: Vec<_> = tenants.iter().cloned().zip([as_of, as_of, 1_200]).collect();
        assert_eq!(sums(&clickhouse, month, begin, &as_of).await, by_hand(&rows, &as_of), "{as_of:?}");
    }
}

type Sums = BTreeMap<TenantId, (TokenCounts, u64)>;

async fn sums(clickhouse: &ClickHouse, month: Period, begin: Option<HourBegin>, as_of: &[(TenantId, i64)]) -> Sums {
    let mut sums = Sums::new();
    for sum in clickhouse.balance_sums(0, month, begin, as_of).await.unwrap() {
        let (tokens, requests) = sums.entry(sum.tenant).or_default();
        *tokens = tokens.checked_add(sum.tokens).unwrap();
        *requests += sum.requests;
    }
    sums
}

fn by_hand(rows: &[(i64, TokenRow)], as_of: &[(TenantId, i64)]) -> Sums {
    let mut sums = Sums::new();
    for (offset, (_, row)) in (0..).zip(rows) {
        if as_of.iter().any(|(tenant, as_of)| *tenant == row.tenant_id && offset < *as_of) {
            let (tokens, requests) = sums.entry(row.tenant_id.clone()).or_default();
            *tokens = tokens.checked_add(row.delta).unwrap();
            *requests += row.requests;
        }
    }
    sums
}

#[tokio::test]
async fn a_request_that_began_before_the_hours_is_even_and_one_that_lost_a_count_is_not() {
    let engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    let hours = |n: i64| begin_ms() + n * HOUR_MS;
    // One request with a count in hour 0, one in hour 2 and one in hour 5; another one whose first count is lost.
    let count = |number: u64, of: u128, hour: i64, share: u64| {
        let mut row = tokens(number, "t", Micros(hours(hour) * 1_000));
        row.request_id = RequestId(Uuid::from_u128(of));
        row.delta = TokenCounts { output: 10, ..TokenCounts::default() };
        row.cumulative = TokenCounts { output: 10 * share, ..TokenCounts::default() };
        (hours(hour), row)
    };
    let counts = [count(0, 1, 0, 1), count(1, 1, 2, 2), count(2, 2, 2, 2), count(3, 1, 5, 3), count(4, 2, 5, 3)];
    for (first, row) in (0..).zip(counts) {
        insert(&clickhouse, &chunk(0, first, &[row])).await;
    }
    for from in 0..6 {
        let of = LogHours { from: LogHour::of_ms(hours(from)), ..LogHours::default() };
        let span = clickhouse.chunk_span(Table::Tokens, 0, of, 0).await.unwrap();
        assert_eq!(span.rows_from, [0, 1, 1, 3, 3, 3][from as usize]);
        let uneven = clickhouse.uneven_requests(0, span, of).await.unwrap();
        let found: Vec<_> = uneven.iter().map(|one| (one.request_id.0.as_u128(), one.counted.output)).collect();
        assert_eq!(found, [(2, 20)], "from hour {from} on");
    }
    let none = LogHours { from: LogHour::of_ms(hours(9)), ..LogHours::default() };
    let span = clickhouse.chunk_span(Table::Tokens, 0, none, 0).await.unwrap();
    assert_eq!((span.chunks, span.rows_from, span.wide_from), (0, i64::MAX, i64::MAX));
    assert_eq!(clickhouse.uneven_requests(0, span, none).await.unwrap(), []);
    assert_eq!(clickhouse.chunk_faults(Table::Tokens, 0, ChunkSpan::ALL).await.unwrap(), []);
}

#[tokio::test]
async fn an_engines_requests_are_the_same_piece_by_piece_as_at_once() {
    let engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    let second = |n: i64| Micros((begin_ms() + n * 1_000) * 1_000);
    // Requests of 1 to 40 s, one each second, some cut, some estimated.
    let (mut counts, mut ends) = (Vec::new(), Vec::new());
    for n in 0..300_u64 {
        let (from, took) = (i64::try_from(n).unwrap(), i64::try_from(n * 7 % 40 + 1).unwrap());
        let ended = second(from + took);
        counts.push(TokenRow { estimated: n % 11 == 0, ..tokens(n, "t", ended) });
        let cut = if n % 13 == 0 { "client_cancelled" } else { "complete" };
        ends.push(RequestRow { end_reason: cut, dispatched_at: Some(second(from)), ..request(n, "t", ended) });
    }
    let logged = |at: usize| begin_ms() + 1_000 * i64::try_from(at).unwrap();
    let counts: Vec<_> = counts.into_iter().enumerate().map(|(at, row)| (logged(at), row)).collect();
    let ends: Vec<_> = ends.into_iter().enumerate().map(|(at, row)| (logged(at), row)).collect();
    insert(&clickhouse, &chunk(0, 0, &counts)).await;
    insert(&clickhouse, &chunk(0, 0, &ends)).await;
    const SKEW: i64 = 5_000_000;
    let replicas = ["r1".to_owned()];
    let ask = async |to: i64, from: i64| {
        let ended_from = Micros(second(from).0 - SKEW);
        clickhouse.replica_usage(&replicas, (second(20), second(to)), ended_from, SKEW).await.unwrap()
    };
    let mut known: Option<(i64, ReplicaUsage)> = None;
    for to in [60, 61, 100, 180, 181, 240, 299] {
        let whole = ask(to, 20).await;
        let usage = match known {
            Some((upto, usage)) => ask(to, upto).await.after(&usage),
            None => whole,
        };
        assert_eq!(usage, whole, "up to {to}");
        assert!(whole.requests > 0 && whole.cuts > 0 && whole.estimates > 0 && whole.sure_prompt < whole.maybe_prompt);
        known = Some((to, usage));
    }
    assert!(Slot::of(second(0)) < Slot::of(second(1_000)));
}
