//! Figures: every sum beside the same one computed here, row by row, however the log was cut.

use std::collections::BTreeMap;

use ledger::ids::ApiKeyId;
use ledger::time::{Micros, Period, Slot};
use ledger::tokens::TokenCounts;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use sql::{ClickHouse, Grain, Keys, LogHour, LogHours, Scope, Span, TokenRow, UsageLine, UsageQuery};
use uuid::Uuid;

use crate::engine::Engine;
use crate::log::{at, chunk, insert, tokens};

/// 400 hours around the night in which New York's clocks go back.
const BEGIN: &str = "2026-10-25T00:00:00Z";

type Recorded = (i64, TokenRow);

fn any_row() -> impl Strategy<Value = (i64, i64, [usize; 5], [u64; 4])> {
    let keys = [0..3usize, 0..2, 0..2, 0..3, 0..2];
    (0..400 * 3_600_i64, 0..40 * 3_600_i64, keys, [0..1_000u64, 0..50, 0..2_000, 0..9])
}

/// Rows in the order of their log times, which run behind what they tell of.
fn recorded(rows: Vec<(i64, i64, [usize; 5], [u64; 4])>) -> Vec<Recorded> {
    let begin = at(BEGIN).0;
    let mut rows: Vec<_> = (0..)
        .zip(rows)
        .map(|(number, (second, lag, [tenant, project, key, model, replica], counts))| {
            let [input, cached_input, output, reasoning] = counts;
            let mut row = tokens(number, ["acme", "demo", "zoo"][tenant], Micros(begin + second * 1_000_000));
            row.project_id = ["default", "search"][project].parse().unwrap();
            row.api_key_id = ApiKeyId(Uuid::from_u128(0xC000 + key as u128));
            row.model = ["llama-3.1-8b", "mistral-7b", "phi"][model].parse().unwrap();
            row.replica = ["r1", "r2"][replica].to_owned();
            row.delta = TokenCounts { input, cached_input, output, reasoning };
            row.requests = number % 2;
            (begin / 1_000 + (second + lag) * 1_000, row)
        })
        .collect();
    rows.sort_by_key(|(log_time_ms, _)| *log_time_ms);
    rows
}

/// A random log, folded into partitions 0 and 1 by tenant, in random cuts.
async fn fold(clickhouse: &ClickHouse, seed: u8, count: usize) -> Vec<Recorded> {
    let mut runner = TestRunner::new_with_rng(
        ProptestConfig::default(),
        proptest::test_runner::TestRng::from_seed(proptest::test_runner::RngAlgorithm::ChaCha, &[seed; 32]),
    );
    let rows = recorded(prop::collection::vec(any_row(), count).new_tree(&mut runner).unwrap().current());
    let cuts = prop::collection::vec(1..400_usize, 200).new_tree(&mut runner).unwrap().current();
    for partition in 0..2 {
        let mut rest: Vec<_> = rows.iter().filter(|row| partition_of(row) == partition).cloned().collect();
        let (mut first, mut cuts) = (0, cuts.iter().cycle());
        while !rest.is_empty() {
            let length = (*cuts.next().unwrap()).min(rest.len());
            let taken: Vec<_> = rest.drain(..length).collect();
            insert(clickhouse, &chunk(partition, first, &taken)).await;
            first += i64::try_from(length).unwrap();
        }
    }
    rows
}

fn partition_of((_, row): &Recorded) -> i32 {
    i32::from(row.tenant_id.as_str() == "demo")
}

type Sums<K> = BTreeMap<K, (TokenCounts, u64)>;

fn sums<'a, K: Ord>(rows: impl IntoIterator<Item = &'a Recorded>, key: impl Fn(&Recorded) -> K) -> Sums<K> {
    let mut sums = Sums::new();
    for row in rows {
        let sum: &mut (TokenCounts, u64) = sums.entry(key(row)).or_default();
        *sum = (sum.0.checked_add(row.1.delta).unwrap(), sum.1 + row.1.requests);
    }
    sums
}

async fn usage(clickhouse: &ClickHouse, scope: Scope, keys: Keys, span: Option<Span>) -> Vec<UsageLine> {
    clickhouse.usage(&UsageQuery { scope, keys, span, late: Vec::new() }).await.unwrap()
}

fn everything() -> Scope {
    Scope::new(None, Slot::of(at(BEGIN)), Slot(Slot::of(at(BEGIN)).0 + 4 * 400))
}

#[tokio::test]
async fn every_sum_is_the_sum_of_its_rows_through_the_projection() {
    let engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    let rows = fold(&clickhouse, 1, 6_000).await;
    for merged in [false, true] {
        if merged {
            engine.execute("SYSTEM START MERGES").await;
            engine.execute("OPTIMIZE TABLE tokens FINAL").await;
        }
        check_usage(&clickhouse, &rows).await;
        check_late(&clickhouse, &rows).await;
        check_rating(&clickhouse, &rows).await;
        check_totals(&clickhouse, &rows).await;
        check_last_used(&clickhouse, &rows).await;
    }
}

async fn check_usage(clickhouse: &ClickHouse, rows: &[Recorded]) {
    let all = usage(clickhouse, everything(), Keys::default(), None).await;
    assert_eq!(all.iter().map(|line| (line.tokens, line.requests)).collect::<Vec<_>>(), [sums(rows, |_| ())[&()]]);
    assert_eq!((&all[0].tenant, &all[0].api_key, all[0].span), (&None, &None, None));

    let keys = Keys { tenant: true, project: true, api_key: true, model: true, version: true, endpoint: true };
    let found: Sums<_> = usage(clickhouse, everything(), keys, None)
        .await
        .into_iter()
        .map(|line| {
            let key = (line.tenant.unwrap(), line.project.unwrap(), line.api_key.unwrap(), line.model.unwrap());
            assert_eq!((line.version.unwrap().as_str(), line.endpoint.as_deref()), ("v1", Some("chat/completions")));
            (key, (line.tokens, line.requests))
        })
        .collect();
    let key = |(_, r): &Recorded| (r.tenant_id.clone(), r.project_id.clone(), r.api_key_id, r.model.clone());
    assert_eq!(found, sums(rows, key));

    // One tenant, part of the time, spans of every grain in zones with half hours and with a night of 25 hours.
    let (from, to) = (at("2026-10-31T20:15:00Z"), at("2026-11-03T07:45:00Z"));
    let scope = Scope::new(Some("acme".parse().unwrap()), Slot::of(from), Slot::of(to));
    let inside = |row: &&Recorded| row.1.tenant_id.as_str() == "acme" && (from..to).contains(&row.1.occurred_at);
    for zone in
        [chrono_tz::UTC, chrono_tz::Asia::Kolkata, chrono_tz::America::New_York, chrono_tz::Australia::Lord_Howe]
    {
        for grain in [Grain::Hour, Grain::Day, Grain::Month] {
            let span = Span { grain, zone };
            let starts = span.starts(scope.from, scope.to).unwrap();
            let of = |row: &Recorded| *starts.iter().rfind(|start| **start <= Slot::of(row.1.occurred_at)).unwrap();
            let lines = usage(clickhouse, scope.clone(), Keys { model: true, ..Keys::default() }, Some(span)).await;
            let found: Sums<_> =
                lines.into_iter().map(|l| ((l.span.unwrap(), l.model.unwrap()), (l.tokens, l.requests))).collect();
            assert_eq!(found, sums(rows.iter().filter(inside), |row| (of(row), row.1.model.clone())), "{span:?}");
        }
    }
}

/// What came too late for its month, beside all else; the time begins and ends within a month.
async fn check_late(clickhouse: &ClickHouse, rows: &[Recorded]) {
    let scope = everything();
    let november = Slot::of(at("2026-11-01T00:00:00Z"));
    let late_from = |slot: Slot| {
        let month = Period::month_of(slot.start(), chrono_tz::UTC).unwrap();
        LogHour(month.late_from_hour())
    };
    let late = [scope.from, november].map(|slot| (slot, late_from(slot))).to_vec();
    let keys = Keys { model: true, ..Keys::default() };
    let lines = clickhouse.usage(&UsageQuery { scope, keys, span: None, late }).await.unwrap();
    let found: Sums<_> =
        lines.into_iter().map(|l| ((l.late.unwrap(), l.model.unwrap()), (l.tokens, l.requests))).collect();
    let of = |(log_time_ms, row): &Recorded| {
        (LogHour::of_ms(*log_time_ms) >= late_from(Slot::of(row.occurred_at)), row.model.clone())
    };
    let expected = sums(rows, of);
    assert!(expected.keys().any(|(late, _)| *late), "some of it is late");
    assert_eq!(found, expected);
}

async fn check_last_used(clickhouse: &ClickHouse, rows: &[Recorded]) {
    for tenant in ["acme", "demo", "zoo", "nobody"] {
        let own = rows.iter().map(|(_, row)| row).filter(|row| row.tenant_id.as_str() == tenant);
        let mut expected = BTreeMap::new();
        for row in own {
            let last = expected.entry(row.api_key_id).or_insert(Slot(i64::MIN));
            *last = (*last).max(Slot::of(row.occurred_at));
        }
        let found = clickhouse.last_used(&tenant.parse().unwrap()).await.unwrap();
        assert_eq!(found.into_iter().collect::<BTreeMap<_, _>>(), expected, "{tenant}");
    }
}

async fn check_rating(clickhouse: &ClickHouse, rows: &[Recorded]) {
    let found: Sums<_> = clickhouse
        .rating(&everything(), true)
        .await
        .unwrap()
        .into_iter()
        .map(|line| {
            (
                (line.tenant, line.project, line.api_key, line.model, line.slot, line.log_hour),
                (line.tokens, line.requests),
            )
        })
        .collect();
    let expected = sums(rows, |(log_time_ms, r)| {
        let hour = Some(LogHour::of_ms(*log_time_ms));
        (r.tenant_id.clone(), r.project_id.clone(), r.api_key_id, r.model.clone(), Slot::of(r.occurred_at), hour)
    });
    assert_eq!(found, expected);
    let scope = Scope { tenant: Some("zoo".parse().unwrap()), ..everything() };
    let lines = clickhouse.rating(&scope, false).await.unwrap();
    assert!(lines.iter().all(|line| line.log_hour.is_none() && line.tenant.as_str() == "zoo"));
    let found: Sums<_> =
        lines.into_iter().map(|l| ((l.project, l.api_key, l.model, l.slot), (l.tokens, l.requests))).collect();
    let zoo = rows.iter().filter(|row| row.1.tenant_id.as_str() == "zoo");
    assert_eq!(
        found,
        sums(zoo, |(_, r)| (r.project_id.clone(), r.api_key_id, r.model.clone(), Slot::of(r.occurred_at)))
    );
}

async fn check_totals(clickhouse: &ClickHouse, rows: &[Recorded]) {
    let from = Slot::of(at("2026-11-01T00:00:00Z"));
    for partition in 0..2 {
        let mine: Vec<_> = rows.iter().filter(|row| partition_of(row) == partition).cloned().collect();
        let totals = clickhouse.partition_totals(partition, from).await.unwrap();
        assert_eq!(totals.position, i64::try_from(mine.len()).unwrap());
        let found: Sums<_> =
            totals.totals.into_iter().map(|t| ((t.tenant, t.model, t.slot), (t.tokens, t.requests))).collect();
        let later = mine.iter().filter(|row| row.1.occurred_at >= from.start());
        assert_eq!(found, sums(later, |(_, r)| (r.tenant_id.clone(), r.model.clone(), Slot::of(r.occurred_at))));
    }
    let replicas = clickhouse.replica_totals(0, i64::MAX).await.unwrap();
    let found: Sums<_> = replicas.into_iter().map(|t| ((t.replica, t.model, t.hour), (t.tokens, t.requests))).collect();
    assert_eq!(
        found,
        sums(rows, |(_, r)| (r.replica.clone(), r.model.clone(), r.occurred_at.0.div_euclid(3_600_000_000)))
    );

    let balance = clickhouse.trial_balance(LogHours::default()).await.unwrap();
    assert!(balance.balances());
    let found: Sums<_> = balance.raw.iter().map(|l| ((l.partition, l.log_hour), (l.tokens, l.requests))).collect();
    assert_eq!(found, sums(rows, |row| (partition_of(row), LogHour::of_ms(row.0))));
    assert_eq!(balance.raw.iter().map(|line| line.rows).sum::<u64>(), rows.len() as u64);
}

#[tokio::test]
async fn a_late_row_is_known_by_its_log_hour() {
    let engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    // October closes at 02:00; a spool that was away brings one more request of October at 05:30.
    let ended = at("2026-10-31T23:59:59.999999Z");
    let ms = |text: &str| at(text).0 / 1_000;
    let rows = [
        (ms("2026-11-01T00:00:01Z"), tokens(0, "demo", ended)),
        (ms("2026-11-01T01:59:59.999Z"), tokens(1, "demo", ended)),
        (ms("2026-11-01T05:30:00Z"), tokens(2, "demo", ended)),
    ];
    insert(&clickhouse, &chunk(0, 0, &rows)).await;
    let month = Period::month_of(ended, chrono_tz::UTC).unwrap();
    let cut_off = LogHour::of_ms(ms("2026-11-01T02:00:00Z"));
    assert_eq!(cut_off.start(), at("2026-11-01T02:00:00Z"));
    let october = |log_hours| Scope { log_hours, ..Scope::new(Some("demo".parse().unwrap()), month.from, month.to) };
    let requests = async |log_hours| clickhouse.rating(&october(log_hours), false).await.unwrap()[0].requests;
    assert_eq!(requests(LogHours::before(cut_off)).await, 2);
    assert_eq!(requests(LogHours::since(cut_off)).await, 1);
    assert_eq!(requests(LogHours::default()).await, 3);
    let late = clickhouse.rating(&october(LogHours::since(cut_off)), true).await.unwrap();
    assert_eq!(late[0].log_hour, Some(LogHour::of_ms(ms("2026-11-01T05:00:00Z"))));
    let line = usage(&clickhouse, october(LogHours::before(cut_off)), Keys::default(), None).await;
    assert_eq!(line[0].requests, 2);
}

#[tokio::test]
async fn a_day_is_the_tenants_own_also_when_clocks_change() {
    let engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    // One request each quarter of an hour of five days; New York goes back on 1 November, Kolkata never does.
    let begin = at("2026-10-30T00:00:00Z");
    let time = |quarter: u64| Micros(begin.0 + i64::try_from(quarter).unwrap() * 900_000_000);
    let rows: Vec<_> = (0..480).map(|n| (time(n).0 / 1_000, tokens(n, "demo", time(n)))).collect();
    insert(&clickhouse, &chunk(0, 0, &rows)).await;
    let scope = Scope::new(Some("demo".parse().unwrap()), Slot::of(begin), Slot(Slot::of(begin).0 + 480));
    let days = async |grain, zone| {
        let lines = usage(&clickhouse, scope.clone(), Keys::default(), Some(Span { grain, zone })).await;
        lines.iter().map(|l| (l.span.unwrap().start().to_string(), l.requests)).collect::<Vec<_>>()
    };
    let expect = |lines: &[(&str, u64)]| lines.iter().map(|(day, n)| ((*day).to_owned(), *n)).collect::<Vec<_>>();
    let new_york = [
        ("2026-10-30T00:00:00Z", 16),
        ("2026-10-30T04:00:00Z", 96),
        ("2026-10-31T04:00:00Z", 96),
        ("2026-11-01T04:00:00Z", 100),
        ("2026-11-02T05:00:00Z", 96),
        ("2026-11-03T05:00:00Z", 76),
    ];
    assert_eq!(days(Grain::Day, chrono_tz::America::New_York).await, expect(&new_york));
    let kolkata = [("2026-10-30T00:00:00Z", 170), ("2026-10-31T18:30:00Z", 310)];
    assert_eq!(days(Grain::Month, chrono_tz::Asia::Kolkata).await, expect(&kolkata));
    assert_eq!(
        days(Grain::Hour, chrono_tz::Asia::Kolkata).await[..2],
        expect(&[("2026-10-30T00:00:00Z", 2), ("2026-10-30T00:30:00Z", 4)])
    );
}

#[tokio::test]
async fn where_nothing_is_the_answer_is_nothing() {
    let engine = Engine::start().await;
    let clickhouse = ClickHouse::new(&engine.settings("tollgate"));
    for keys in [Keys::default(), Keys { model: true, ..Keys::default() }] {
        let lines =
            usage(&clickhouse, everything(), keys, Some(Span { grain: Grain::Day, zone: chrono_tz::UTC })).await;
        assert_eq!(lines, []);
        assert_eq!(usage(&clickhouse, everything(), keys, None).await, []);
        let backwards = Scope { to: Slot(0), ..everything() };
        assert_eq!(usage(&clickhouse, backwards, keys, None).await, []);
    }
    assert_eq!(clickhouse.rating(&everything(), true).await.unwrap(), []);
    let totals = clickhouse.partition_totals(0, Slot(0)).await.unwrap();
    assert_eq!((totals.position, totals.totals.len()), (0, 0));
    assert_eq!(clickhouse.replica_totals(0, i64::MAX).await.unwrap(), []);
    assert_eq!(clickhouse.outcomes(sql::Table::Tokens).await.unwrap().len(), 0);
    assert!(clickhouse.trial_balance(LogHours::default()).await.unwrap().raw.is_empty());
}
