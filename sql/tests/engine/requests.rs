//! Requests: pages that leave nothing out, each request with its tokens, and how they ended.

use ledger::time::{Micros, Slot};
use sql::{ClickHouse, Grain, RequestQuery, RequestRow, Span};

use crate::engine::Engine;
use crate::log::{at, chunk, insert, request, tokens};

#[tokio::test]
async fn pages_hold_every_request_once_the_latest_first_with_its_tokens() {
    let engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    // Seven requests at each instant: a page may end between two of the same instant.
    let begin = at("2026-11-20T10:00:00Z");
    let rows: Vec<(i64, RequestRow)> = (0..100_u64)
        .map(|n| {
            let time = Micros(begin.0 + i64::try_from(n / 7).unwrap());
            let mut row = request(n, if n % 10 == 9 { "other" } else { "demo" }, time);
            row.error_code = if n == 3 { "model_overloaded".into() } else { String::new() };
            (begin.0 / 1_000, row)
        })
        .collect();
    for (first, part) in (0..).step_by(30).zip(rows.chunks(30)) {
        insert(&clickhouse, &chunk(0, first, part)).await;
    }
    // Two counts of each but the last, which is not folded yet.
    let counts: Vec<_> = rows[..98]
        .iter()
        .zip(0..)
        .flat_map(|((log_time_ms, row), n)| {
            let count = tokens(n, row.tenant_id.as_str(), row.occurred_at);
            [(*log_time_ms, count.clone()), (*log_time_ms, count)]
        })
        .collect();
    insert(&clickhouse, &chunk(0, 0, &counts)).await;

    let mine: Vec<_> = rows.iter().rev().filter(|(_, row)| row.tenant_id.as_str() == "demo").map(|(_, r)| r).collect();
    for limit in [1, 4, 7, 100] {
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let asked = RequestQuery { tenant: "demo".parse().unwrap(), after, limit };
            let page = clickhouse.latest_requests(&asked).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.cursor.to_string().parse().unwrap());
            assert!(page.len() as u64 <= limit);
            seen.extend(page);
            if limit == 1 && seen.len() > 9 {
                break;
            }
        }
        let expected = if limit == 1 { &mine[..10] } else { &mine[..] };
        assert_eq!(
            seen.iter().map(|line| line.request_id).collect::<Vec<_>>(),
            expected.iter().map(|r| r.request_id).collect::<Vec<_>>()
        );
        for (line, row) in seen.iter().zip(expected) {
            assert_eq!(
                (line.occurred_at, line.received_at, line.dispatched_at),
                (row.occurred_at, row.received_at, row.dispatched_at)
            );
            assert_eq!((line.first_byte_at, line.status, line.stream), (None, 200, true));
            assert_eq!(line.error_code.as_deref().unwrap_or_default(), row.error_code);
            let number = row.seq - 1;
            let once = tokens(number, "demo", row.occurred_at).delta;
            let both = once.checked_add(once).unwrap();
            assert_eq!(line.tokens, (number < 98).then_some(both), "request {number}");
        }
    }
}

#[tokio::test]
async fn endings_are_counted_by_span_and_reason_through_the_projection() {
    let engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    let begin = at("2026-11-20T23:00:00Z");
    let rows: Vec<(i64, RequestRow)> = (0..120_u64)
        .map(|n| {
            let time = Micros(begin.0 + i64::try_from(n).unwrap() * 60_000_000);
            let mut row = request(n, "demo", time);
            (row.status, row.end_reason) = if n % 4 == 0 { (0, "client_cancelled") } else { (200, "complete") };
            row.attempts = 2;
            (begin.0 / 1_000, row)
        })
        .collect();
    insert(&clickhouse, &chunk(0, 0, &rows)).await;
    let span = Span { grain: Grain::Day, zone: chrono_tz::UTC };
    let (from, to) = (Slot::of(begin), Slot(Slot::of(begin).0 + 8));
    let demo = "demo".parse().unwrap();
    for tenant in [Some(&demo), None] {
        let found = clickhouse.endings(tenant, from, to, span).await.unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|e| (e.span.start().to_string(), e.status, &*e.end_reason, e.requests, e.attempts))
            .collect();
        let (one, two) = ("2026-11-20T23:00:00Z".to_owned(), "2026-11-21T00:00:00Z".to_owned());
        let expected = [
            (one.clone(), 0, "client_cancelled", 15, 30),
            (one, 200, "complete", 45, 90),
            (two.clone(), 0, "client_cancelled", 15, 30),
            (two, 200, "complete", 45, 90),
        ];
        assert_eq!(found, expected);
    }
    assert_eq!(clickhouse.endings(None, to, from, span).await.unwrap(), []);
    // No part holds this tenant, so there is nothing that a projection could answer.
    let clickhouse = ClickHouse::new(&engine.settings("tollgate"));
    let other = "nobody".parse().unwrap();
    assert_eq!(clickhouse.endings(Some(&other), from, to, span).await.unwrap(), []);
}
