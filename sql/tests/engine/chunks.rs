//! Chunks: one part each, the first of two wins, a late one is refused, and what was written is read back byte for byte.

use ledger::ids::EventId;
use ledger::time::Micros;
use sql::{DeadRow, EventAt, InsertError, OutcomeCounts, Table, TokenRow};
use uuid::Uuid;

use crate::engine::Engine;
use crate::log::{at, chunk, insert, marks, request, soon, source, tokens};

const PARTS: &str =
    "SELECT toUInt64(count()) FROM system.parts WHERE database = 'tollgate' AND table = 'tokens' AND active";
const ROWS: &str = "SELECT toUInt64(count()) FROM tokens";
const START_MS: i64 = 1_793_000_000_000;

fn many(count: u64) -> Vec<(i64, TokenRow)> {
    let time = |n: u64| START_MS + i64::try_from(n).unwrap();
    (0..count).map(|n| (time(n), tokens(n, &format!("t{}", n % 7), Micros(time(n) * 1_000)))).collect()
}

fn dead(offset: i64, log_time_ms: i64) -> DeadRow {
    DeadRow {
        offset,
        log_time_ms,
        reason: "undecodable".into(),
        detail: "no magic byte, 'quoted' \\ and\nbroken".into(),
        key: None,
        value: Some(vec![0, 255, b'\'', 0x80, b'\n']),
        took: None,
    }
}

#[tokio::test]
async fn a_chunk_is_one_part_however_large() {
    let engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    let large = chunk(3, 0, &many(120_000));
    insert(&clickhouse, &large).await;
    assert_eq!((engine.number(PARTS).await, engine.number(ROWS).await), (1, large.len() as u64));
    // The next one ends in another month: still one part, in the month in which it began.
    let mut rows = many(2);
    rows[1].0 += 40 * 86_400_000;
    insert(&clickhouse, &chunk(3, 120_000, &rows)).await;
    assert_eq!(engine.number(PARTS).await, 2);
    assert_eq!(clickhouse.position(Table::Tokens, 3).await.unwrap().position, 120_002);
    assert_eq!(clickhouse.prove(Table::Tokens, 3).await.unwrap().position, 120_002);
}

#[tokio::test]
async fn of_two_writers_the_first_wins_also_after_a_kill() {
    let mut engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    let deadline = soon(&clickhouse).await + 600_000;
    let (short, long) = (chunk(0, 0, &many(10)), chunk(0, 0, &many(500)));
    clickhouse.insert_chunk(&short, 0, deadline).await.unwrap();
    for _ in 0..2 {
        clickhouse.insert_chunk(&long, 0, deadline).await.unwrap();
        clickhouse.insert_chunk(&short, 0, deadline).await.unwrap();
        assert_eq!(clickhouse.position(Table::Tokens, 0).await.unwrap().position, 10);
        assert_eq!(engine.number(ROWS).await, short.len() as u64);
        engine.kill().await;
        engine.start_again().await;
    }
    // Another partition and another table have tokens of their own.
    insert(&clickhouse, &chunk(1, 0, &many(10))).await;
    insert(&clickhouse, &chunk(0, 0, &[(START_MS, request(1, "demo", at("2026-11-01T00:00:00Z")))])).await;
    assert_eq!(clickhouse.position(Table::Tokens, 1).await.unwrap().position, 10);
    assert_eq!(clickhouse.position(Table::Requests, 0).await.unwrap().position, 1);
}

#[tokio::test]
async fn two_writers_at_once_leave_one_chunk() {
    let engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    let deadline = soon(&clickhouse).await;
    for round in 0..10_i64 {
        let first = clickhouse.position(Table::Tokens, 0).await.unwrap().position;
        let (one, other) = (chunk(0, first, &many(5)), chunk(0, first, &many(8)));
        let both = tokio::join!(
            clickhouse.insert_chunk(&one, 0, deadline + round),
            clickhouse.insert_chunk(&other, 0, deadline + round)
        );
        both.0.unwrap();
        both.1.unwrap();
        let proof = clickhouse.prove(Table::Tokens, 0).await.unwrap();
        assert!([first + 5, first + 8].contains(&proof.position), "{proof:?}");
    }
}

#[tokio::test]
async fn a_late_chunk_is_refused_and_its_token_stays_free() {
    let engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    let now = clickhouse.position(Table::Tokens, 0).await.unwrap().now_ms;
    let chunk = chunk(0, 0, &many(10));
    let late = clickhouse.insert_chunk(&chunk, 0, now - 1).await.unwrap_err();
    assert!(matches!(late, InsertError::Fence), "{late:?}");
    assert_eq!(engine.number(ROWS).await, 0);
    clickhouse.insert_chunk(&chunk, 0, now + 60_000).await.unwrap();
    assert_eq!(clickhouse.position(Table::Tokens, 0).await.unwrap().position, 10);
}

#[tokio::test]
async fn a_malformed_chunk_is_sent_nowhere_and_a_dead_server_leaves_the_outcome_unknown() {
    let mut engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    let deadline = soon(&clickhouse).await;
    let mut wrong = chunk(0, 0, &many(10));
    wrong.counts.marks = 1;
    let refused = clickhouse.insert_chunk(&wrong, 0, deadline).await.unwrap_err();
    assert!(matches!(refused, InsertError::Malformed(_)), "{refused:?}");
    engine.kill().await;
    let unknown = clickhouse.insert_chunk(&chunk(0, 0, &many(10)), 0, deadline).await.unwrap_err();
    assert!(matches!(unknown, InsertError::Unknown(_)), "{unknown:?}");
    engine.start_again().await;
    assert_eq!(clickhouse.prove(Table::Tokens, 0).await.unwrap().position, 0);
    engine.execute("DROP TABLE tokens").await;
    let gone = clickhouse.insert_chunk(&chunk(0, 0, &many(10)), 0, deadline).await.unwrap_err();
    assert!(matches!(gone, InsertError::Engine { code: 60, .. }), "{gone:?}");
}

#[tokio::test]
async fn dead_letters_and_the_ids_of_events_come_back_as_they_were_written() {
    let engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    let mut first = chunk(2, 0, &many(10));
    first.counts.dead = 2;
    first.end = 12;
    let took = (source(7), 4, EventId(Uuid::from_u128(0xDEAD)));
    let numbered = DeadRow {
        reason: "key_mismatch".into(),
        key: Some(vec![]),
        value: None,
        took: Some(took),
        ..dead(11, first.log_time_ms)
    };
    first.dead = vec![dead(10, first.log_time_ms), numbered];
    insert(&clickhouse, &first).await;
    insert(&clickhouse, &marks::<TokenRow>(1, 0, 5)).await;
    let asked = |partition, offset, limit| sql::DeadLetterQuery {
        partition: Some(partition),
        from: (partition, offset),
        limit,
        ..sql::DeadLetterQuery::of(Table::Tokens)
    };
    let rows = async |asked: &sql::DeadLetterQuery| {
        let letters = clickhouse.dead_letters(asked).await.unwrap();
        letters.into_iter().map(|letter| letter.row).collect::<Vec<_>>()
    };
    assert_eq!(rows(&asked(2, 0, 10)).await, first.dead);
    assert_eq!(rows(&asked(2, 11, 10)).await, first.dead[1..]);
    assert_eq!(rows(&asked(2, 0, 1)).await, first.dead[..1]);
    assert_eq!(rows(&asked(1, 0, 10)).await, []);
    let of = sql::DeadLetterQuery::of;
    assert_eq!(rows(&of(Table::Tokens)).await, first.dead, "of all partitions");
    assert_eq!(rows(&sql::DeadLetterQuery { from: (2, 11), ..of(Table::Tokens) }).await, first.dead[1..]);
    assert_eq!(rows(&sql::DeadLetterQuery { from: (1, 900), ..of(Table::Tokens) }).await, first.dead);
    let reason = Some(first.dead[0].reason.clone());
    let some: Vec<_> = first.dead.iter().filter(|dead| Some(&dead.reason) == reason.as_ref()).cloned().collect();
    assert_eq!(rows(&sql::DeadLetterQuery { reason, ..of(Table::Tokens) }).await, some);
    let since_ms = first.dead[1].log_time_ms + 1;
    assert_eq!(rows(&sql::DeadLetterQuery { since_ms, ..of(Table::Tokens) }).await, []);
    let before_ms = since_ms;
    assert_eq!(rows(&sql::DeadLetterQuery { before_ms, ..of(Table::Tokens) }).await, first.dead);
    let before_ms = first.dead[0].log_time_ms;
    assert_eq!(rows(&sql::DeadLetterQuery { before_ms, ..of(Table::Tokens) }).await, []);
    assert_eq!(rows(&of(Table::Requests)).await, []);
    let short = clickhouse.dead_letters(&sql::DeadLetterQuery { whole: false, ..of(Table::Tokens) }).await.unwrap();
    let length = first.dead[0].value.as_ref().map(|value| value.len() as u64);
    assert_eq!(short.iter().map(|letter| letter.bytes).collect::<Vec<_>>(), [length, None], "a mark has no value");
    assert!(length > Some(0) && short.iter().all(|letter| letter.row.key.is_none() && letter.row.value.is_none()));
    let reasons = async |asked: sql::DeadLetterQuery| clickhouse.dead_letter_reasons(&asked).await.unwrap();
    let mut counts = [(first.dead[0].reason.clone(), 1), ("key_mismatch".to_owned(), 1)];
    counts.sort();
    assert_eq!(reasons(of(Table::Tokens)).await, counts);
    assert_eq!(reasons(sql::DeadLetterQuery { partition: Some(1), ..of(Table::Tokens) }).await, []);
    assert_eq!(reasons(sql::DeadLetterQuery { before_ms, ..of(Table::Tokens) }).await, []);

    let asked: Vec<_> = [(1, 3), (1, 4), (1, 9), (1, 11), (7, 4), (7, 5), (8, 1)].map(|(s, n)| (source(s), n)).into();
    let found = clickhouse.event_ids(Table::Tokens, 2, &asked).await.unwrap();
    let data = [3, 4, 9].map(|seq| {
        let row = &first.data[seq as usize - 1].event;
        EventAt { source: row.source, seq, event_id: row.event_id }
    });
    let mut expected = data.to_vec();
    expected.push(EventAt { source: took.0, seq: took.1, event_id: took.2 });
    assert_eq!(found, expected);
    assert_eq!(clickhouse.event_ids(Table::Tokens, 1, &asked).await.unwrap(), []);
    assert_eq!(clickhouse.event_ids(Table::Tokens, 2, &[]).await.unwrap(), []);
}

#[tokio::test]
async fn a_thousand_runs_of_numbers_are_asked_in_pieces() {
    let engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    insert(&clickhouse, &chunk(0, 0, &many(3_000))).await;
    let asked: Vec<_> = (1..=3_000).step_by(2).map(|seq| (source(1), seq)).collect();
    let found = clickhouse.event_ids(Table::Tokens, 0, &asked).await.unwrap();
    assert_eq!(found.iter().map(|event| (event.source, event.seq)).collect::<Vec<_>>(), asked);
}

#[tokio::test]
async fn times_outside_of_any_calendar_change_no_sum() {
    let engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    let times = [i64::MIN, -1, 0, 1, 253_402_300_800_000_000, i64::MAX];
    let rows: Vec<_> = (0..).zip(times).map(|(n, time)| (START_MS, tokens(n, "demo", Micros(time)))).collect();
    insert(&clickhouse, &chunk(0, 0, &rows)).await;
    let totals = clickhouse.partition_totals(0, ledger::time::Slot(i64::MIN)).await.unwrap();
    assert_eq!(totals.totals.iter().map(|t| t.requests).sum::<u64>(), 6);
    let mut slots: Vec<_> = times.map(|time| ledger::time::Slot::of(Micros(time))).into();
    slots.dedup();
    assert_eq!(totals.totals.iter().map(|t| t.slot).collect::<Vec<_>>(), slots);
    let proof = clickhouse.prove(Table::Tokens, 0).await.unwrap();
    assert_eq!(proof.counts, OutcomeCounts { folded: 6, ..OutcomeCounts::default() });
    assert!(clickhouse.trial_balance(sql::LogHours::default()).await.unwrap().balances());
}
