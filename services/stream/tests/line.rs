//! A line's outcomes: resends drop out, losses stop it, bad records end dead, and every offset has one outcome.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use ledger::ids::{ApiKeyId, EventId, RequestId, SourceId, SpoolId};
use ledger::time::Micros;
use proptest::prelude::*;
use schemas::codec::encode;
use schemas::event::TokensCounted;
use schemas::mark::Mark;
use schemas::registry::TOKENS_COUNTED_V1;
use stream::line::{DeadReason, LineState, LogRecord, Outcome, SourceEnd, Step, Stop};
use uuid::Uuid;

fn source(n: u8) -> SourceId {
    SourceId(Uuid::from_u128(n.into()))
}

fn count(of: u8, seq: i64) -> TokensCounted {
    TokensCounted {
        event_id: EventId::of_recovery(source(of), "tollgate.tokens.v1", 0, seq as u64),
        source: source(of),
        seq,
        occurred_at: Micros(seq),
        tenant_id: "acme".parse().unwrap(),
        request_id: RequestId(Uuid::from_u128(9)),
        attempt: 0,
        project_id: "search".parse().unwrap(),
        api_key_id: ApiKeyId(Uuid::from_u128(4)),
        model: "llama".parse().unwrap(),
        version: "v1".parse().unwrap(),
        replica: "gpu-1".into(),
        endpoint: "completions".into(),
        input: 1,
        cached_input: 0,
        output: 2,
        reasoning: 0,
        input_cumulative: 1,
        cached_input_cumulative: 0,
        output_cumulative: 2,
        reasoning_cumulative: 0,
        requests: 0,
        last: false,
        estimated: false,
        end_reason: None,
    }
}

type Taken = Result<Step<TokensCounted>, Stop>;

fn put(line: &mut LineState, offset: i64, value: &[u8]) -> Taken {
    line.step(&LogRecord { offset, log_time_ms: offset, key: Some(b"acme"), value: Some(value), headers: &[] })
}

fn put_mark(line: &mut LineState, offset: i64, mark: Mark) -> Taken {
    let headers = mark.headers();
    let headers: Vec<_> = headers.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    line.step(&LogRecord { offset, log_time_ms: offset, key: None, value: None, headers: &headers })
}

#[test]
fn a_loss_stops_the_line_and_changes_nothing() {
    let mut line = LineState::default();
    put(&mut line, 0, &encode(&count(1, 1)).unwrap()).unwrap();
    let before = line.clone();
    let stop = put(&mut line, 1, &encode(&count(1, 3)).unwrap()).unwrap_err();
    assert_eq!(stop, Stop::Gap { offset: 1, source_id: source(1), last: 1, found: 3 });
    let spool = SpoolId(Uuid::nil());
    let heartbeat = Mark::Heartbeat { spool, source: source(1), watermark: Micros(5), seq_high: 2 };
    assert!(matches!(put_mark(&mut line, 1, heartbeat), Err(Stop::Gap { found: 2, .. })));
    let closed = Mark::SourceClosed { spool, source: source(1), next: source(2), seq: 4 };
    assert!(matches!(put_mark(&mut line, 1, closed), Err(Stop::Gap { found: 4, .. })));
    assert!(matches!(put(&mut line, 0, b""), Err(Stop::Rewound { offset: 0, position: 1 })));
    assert_eq!(line, before);
}

/// As a dead letter it would be lost for good, and a newer fold would count it: two foldings of one log.
#[test]
fn what_only_a_newer_tollgate_can_read_stops_the_line_and_what_nobody_can_is_dead() {
    let mut line = LineState::default();
    put(&mut line, 0, &encode(&count(1, 1)).unwrap()).unwrap();
    let before = line.clone();
    let with_id = |id: u32| [&[0], id.to_be_bytes().as_slice(), b"whatever it is"].concat();
    let newer = TOKENS_COUNTED_V1 + 1;
    let stop = put(&mut line, 1, &with_id(newer)).unwrap_err();
    assert_eq!(stop, Stop::NewerSchema { offset: 1, found: newer, newest: TOKENS_COUNTED_V1 });
    assert!(stop.to_string().contains("upgrade the fold"), "{stop}");
    assert_eq!(line, before);
    for (offset, id) in (1..).zip([0, 1, TOKENS_COUNTED_V1 - 1, TOKENS_COUNTED_V1 + 100]) {
        let outcome = put(&mut line, offset, &with_id(id)).unwrap().outcome;
        assert!(matches!(outcome, Outcome::Dead(DeadReason::Undecodable(_))), "{id}: {outcome:?}");
    }
}

#[test]
fn marks_carry_watermarks_and_ends() {
    let mut line = LineState::default();
    let spool = SpoolId(Uuid::nil());
    put(&mut line, 0, &encode(&count(1, 1)).unwrap()).unwrap();
    for (offset, watermark) in [(1, 50), (2, 40)] {
        let mark = Mark::Heartbeat { spool, source: source(1), watermark: Micros(watermark), seq_high: 1 };
        assert!(matches!(put_mark(&mut line, offset, mark).unwrap().outcome, Outcome::Mark(_)));
    }
    assert_eq!(line.sources[&source(1)].watermark, Micros(50), "a watermark never goes back");
    let closed = Mark::SourceClosed { spool, source: source(1), next: source(2), seq: 2 };
    put_mark(&mut line, 3, closed).unwrap();
    assert_eq!(line.sources[&source(1)].end, Some(SourceEnd::Closed { next: source(2) }));
    let again = put_mark(&mut line, 4, closed).unwrap().outcome;
    assert_eq!(again, Outcome::Duplicate { source: source(1), seq: 2, event_id: None });
}

#[test]
fn what_cannot_count_ends_dead_and_keeps_its_place() {
    let mut line = LineState::default();
    let dead = |taken: Taken| match taken.unwrap().outcome {
        Outcome::Dead(reason) => reason.code(),
        other => panic!("{other:?}"),
    };
    assert_eq!(dead(put(&mut line, 0, b"not avro")), "undecodable");
    let minus = encode(&TokensCounted { output: -5, ..count(1, 1) }).unwrap();
    assert_eq!(dead(put(&mut line, 1, &minus)), "out_of_bounds");
    let value = encode(&count(1, 2)).unwrap();
    let other_key = LogRecord { offset: 2, log_time_ms: 0, key: Some(b"other"), value: Some(&value), headers: &[] };
    assert_eq!(line.step::<TokensCounted>(&other_key).unwrap().outcome, Outcome::Dead(DeadReason::KeyMismatch));
    assert_eq!(dead(put(&mut line, 3, &encode(&count(1, 0)).unwrap())), "out_of_bounds");
    let no_mark = LogRecord { offset: 4, log_time_ms: 0, key: None, value: None, headers: &[] };
    assert_eq!(dead(line.step(&no_mark)), "unknown_mark");
    assert!(matches!(put(&mut line, 5, &encode(&count(1, 3)).unwrap()).unwrap().outcome, Outcome::Folded(_)));
}

#[test]
fn the_log_time_is_made_monotone() {
    let mut line = LineState::default();
    for (offset, log_time_ms, monotone) in [(0, 100, 100), (1, 40, 100), (2, 130, 130)] {
        let record = LogRecord { offset, log_time_ms, key: None, value: Some(b"x"), headers: &[] };
        assert_eq!(line.step::<TokensCounted>(&record).unwrap().log_time_ms, monotone);
    }
}

proptest! {
    /// Two sources, interleaved at will; after any record a source may resend from any earlier number, as a crash does.
    #[test]
    fn resends_and_holes_leave_every_event_once(plan in prop::collection::vec((1u8..3, 0u64..6, 0i64..3), 1..60)) {
        let mut line = LineState::default();
        let (mut offset, mut sent) = (0i64, [0u64; 3]);
        let mut seen = Vec::new();
        let (mut folded, mut duplicates, mut holes) = (0i64, 0i64, 0i64);
        for (of, back, hole) in plan {
            let last = &mut sent[usize::from(of)];
            let from = (*last + 1).saturating_sub(back).max(1);
            *last += 1;
            for seq in from..=*last {
                offset += hole;
                let step = put(&mut line, offset, &encode(&count(of, seq as i64)).unwrap()).unwrap();
                holes += step.holes;
                match step.outcome {
                    Outcome::Folded(event) => { folded += 1; seen.push((event.source, event.seq)); }
                    Outcome::Duplicate { .. } => duplicates += 1,
                    other => prop_assert!(false, "{other:?}"),
                }
                offset += 1;
            }
        }
        prop_assert_eq!(folded + duplicates + holes, line.position);
        prop_assert_eq!(folded as u64, sent.iter().sum::<u64>());
        let all = seen.len();
        seen.sort_unstable();
        seen.dedup();
        prop_assert_eq!(seen.len(), all, "an event was folded twice");
    }

    #[test]
    fn the_chain_tells_any_two_logs_apart(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 1..12), at in any::<prop::sample::Index>()) {
        let chain = |values: &[Vec<u8>]| {
            let mut line = LineState::default();
            for (offset, value) in (0i64..).zip(values) {
                put(&mut line, offset, value).unwrap();
            }
            line.chain
        };
        let mut changed = values.clone();
        changed[at.index(values.len())].push(0);
        prop_assert_eq!(chain(&values), chain(&values.clone()));
        prop_assert_ne!(chain(&values), chain(&changed));
        prop_assert_ne!(chain(&values), chain(&values[1..]));
    }
}
