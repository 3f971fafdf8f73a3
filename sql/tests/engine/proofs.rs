//! Proofs: they say all that the next chunk depends on, and refuse a table that is not one whole folding.

use ledger::time::Micros;
use sql::{OutcomeCounts, Proof, ProofError, SourceEnd, SourceState, Table, TokenRow};

use crate::engine::Engine;
use crate::log::{chunk, insert, marks, soon, source, tokens};

const T: Table = Table::Tokens;

#[tokio::test]
async fn a_proof_says_all_that_the_next_chunk_depends_on() {
    let engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    let empty = clickhouse.prove(T, 5).await.unwrap();
    assert!(empty.now_ms > 1_700_000_000_000, "{empty:?}");
    let nothing = Proof {
        position: 0,
        log_time_ms: i64::MIN,
        chain: [0; 32],
        sources: Default::default(),
        counts: OutcomeCounts::default(),
        now_ms: empty.now_ms,
    };
    assert_eq!(empty, nothing);

    let rows = [(1_000, tokens(0, "a", Micros(1))), (2_000, tokens(1, "b", Micros(2)))];
    let mut first = chunk(5, 0, &rows);
    let ended =
        SourceState { last_seq: 9, watermark: Micros(i64::MIN), end: Some(SourceEnd::Closed { next: source(2) }) };
    first.sources.insert(source(3), ended);
    first.sources.insert(source(4), SourceState { end: Some(SourceEnd::Drained), ..ended });
    insert(&clickhouse, &first).await;
    let mut second = marks::<TokenRow>(5, 2, 300);
    second.counts = OutcomeCounts { marks: 297, duplicates: 1, ..second.counts };
    let later = SourceState { last_seq: 40, watermark: Micros(77), end: None };
    second.sources.insert(source(2), later);
    insert(&clickhouse, &second).await;
    // Another partition, and the other table, are lines of their own.
    insert(&clickhouse, &marks::<TokenRow>(6, 0, 7)).await;

    let proof = clickhouse.prove(T, 5).await.unwrap();
    let mut sources = first.sources.clone();
    sources.insert(source(2), later);
    let expected = Proof {
        position: 300,
        log_time_ms: second.log_time_ms,
        chain: second.chain,
        sources,
        counts: OutcomeCounts { folded: 2, duplicates: 1, dead: 0, marks: 297 },
        now_ms: proof.now_ms,
    };
    assert_eq!(proof, expected);
    assert!(proof.now_ms >= empty.now_ms);
    engine.execute("SYSTEM START MERGES").await;
    engine.execute("OPTIMIZE TABLE tokens FINAL").await;
    let merged = clickhouse.prove(T, 5).await.unwrap();
    assert_eq!(merged, Proof { now_ms: merged.now_ms, ..expected });
    assert_eq!(clickhouse.prove(Table::Requests, 5).await.unwrap().position, 0);

    let outcomes = clickhouse.outcomes(T).await.unwrap();
    assert!(outcomes.values().all(|line| line.balances()), "{outcomes:?}");
    assert_eq!(
        outcomes.iter().map(|(p, line)| (*p, line.position, line.chunks)).collect::<Vec<_>>(),
        [(5, 300, 2), (6, 7, 1)]
    );
}

#[tokio::test]
async fn a_damaged_table_is_no_ground_to_build_on() {
    let engine = Engine::start().await;
    let clickhouse = engine.clickhouse();
    let deadline = soon(&clickhouse).await;
    // Each partition has its own damage.
    for (partition, chunks) in [
        (0, vec![(0, 10, 0), (0, 10, 1)]),
        (1, vec![(0, 10, 0), (20, 30, 0)]),
        (2, vec![(0, 10, 0), (0, 10, 1), (20, 30, 0)]),
        (3, vec![(10, 20, 0)]),
        (4, vec![(0, 10, 0), (5, 15, 0)]),
    ] {
        for (first, end, retry) in chunks {
            clickhouse.insert_chunk(&marks::<TokenRow>(partition, first, end), retry, deadline).await.unwrap();
        }
    }
    for partition in [0, 1, 2, 4] {
        let error = clickhouse.prove(T, partition).await.unwrap_err();
        assert!(matches!(error, ProofError::NotOnce { .. }), "partition {partition}: {error}");
    }
    let error = clickhouse.prove(T, 3).await.unwrap_err();
    assert!(matches!(error, ProofError::NoBeginning { first: 10, .. }), "{error}");

    let rows: Vec<_> = (0..5).map(|n| (1_000, tokens(n, "a", Micros(1)))).collect();
    clickhouse.insert_chunk(&chunk(7, 0, &rows), 0, deadline).await.unwrap();
    assert_eq!(clickhouse.prove(T, 7).await.unwrap().position, 5);
    let delete = "ALTER TABLE tokens DELETE WHERE kafka_partition = 7 AND kind = 'data' AND kafka_offset = 3 \
                  SETTINGS mutations_sync = 1";
    engine.execute("SYSTEM START MERGES").await;
    engine.execute(delete).await;
    let error = clickhouse.prove(T, 7).await.unwrap_err();
    assert!(matches!(error, ProofError::Unbalanced { .. }) && error.to_string().contains("4 data rows"), "{error}");
}
