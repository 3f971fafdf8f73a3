//! Replays of dead letters: the same twice counts once, something else under the same letter is no silence, the source ends.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use proptest::prelude::*;
use schemas::codec::{decode, encode};
use schemas::event::TokensCounted;
use schemas::topic;
use serde_json::{Value, json};
use stream::line::{LineState, LogRecord, Outcome, SourceEnd};
use stream::replay::{Place, Replay, ReplayError, read, set};

fn record() -> Value {
    serde_json::from_str(include_str!("../../../schemas/examples/tokens_counted.v1.json")).unwrap()
}

fn at(offset: i64) -> Place {
    Place { topic: topic::TOKENS, partition: 1, offset }
}

/// Puts a replay and the end of its source at the next offsets of a line.
fn put(line: &mut LineState, replay: &Replay) -> Outcome<TokensCounted> {
    let log =
        |offset, value| LogRecord { offset, log_time_ms: 0, key: Some(replay.key.as_bytes()), value, headers: &[] };
    let outcome = line.step(&log(line.position, Some(replay.value.as_slice()))).unwrap().outcome;
    let headers = replay.end().headers();
    let headers: Vec<_> = headers.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    line.step::<TokensCounted>(&LogRecord { headers: &headers, ..log(line.position, None) }).unwrap();
    outcome
}

#[test]
fn a_replay_counts_once_and_its_source_has_ended() {
    let mut line = LineState::default();
    let replay = Replay::of(at(7), &record(), 4).unwrap();
    assert!(matches!(put(&mut line, &replay), Outcome::Folded(event) if event.output == record()["output"]));
    assert_eq!(line.sources[&replay.source].end, Some(SourceEnd::Drained), "no period waits for it");
    let again = Replay::of(at(7), &record(), 4).unwrap();
    let Outcome::Duplicate { event_id, .. } = put(&mut line, &again) else { panic!("it counts twice") };
    assert_eq!(event_id.unwrap().to_string(), replay.record["event_id"].as_str().unwrap());
    let other = Replay::of(at(8), &record(), 4).unwrap();
    assert!(matches!(put(&mut line, &other), Outcome::Folded(_)), "another letter is another record");
}

#[test]
fn a_second_replay_that_says_something_else_is_told_from_the_first() {
    let mut line = LineState::default();
    let first = Replay::of(at(7), &record(), 4).unwrap();
    put(&mut line, &first);
    let mut changed = record();
    set(&mut changed, "output", "12").unwrap();
    let second = Replay::of(at(7), &changed, 4).unwrap();
    let Outcome::Duplicate { event_id, .. } = put(&mut line, &second) else { panic!("it counts twice") };
    assert_ne!(event_id.unwrap().to_string(), first.record["event_id"].as_str().unwrap(), "a conflict, by rule 11");
}

#[test]
fn fields_are_set_by_name_and_what_cannot_be_is_said() {
    let mut changed = record();
    for (name, text) in [("output", "12"), ("tenant_id", "bolt"), ("end_reason", "drained"), ("final", "true")] {
        set(&mut changed, name, text).unwrap();
    }
    let replay = Replay::of(at(7), &changed, 4).unwrap();
    let event: TokensCounted = decode(&replay.value).unwrap();
    assert_eq!((event.output, event.tenant_id.as_str(), event.last), (12, "bolt", true));
    assert_eq!((replay.key.as_str(), event.seq), ("bolt", 1));
    let said = |outcome: Result<(), ReplayError>| outcome.unwrap_err().to_string();
    assert!(said(set(&mut changed, "outptu", "1")).contains("output, output_cumulative"));
    assert!(said(set(&mut changed, "seq", "9")).contains("derived"));
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut changed = record();
        change(&mut changed);
        Replay::of(at(7), &changed, 4).unwrap_err().to_string()
    };
    assert!(refused(&|record| record["output"] = json!(-5)).contains("dead letter again"));
    assert!(refused(&|record| record["tenant_id"] = json!("a b")).contains("no event of the topic"));
    assert!(refused(&|record| record["more"] = json!(1)).contains("no field \"more\""));
    assert!(refused(&|record| record["occurred_at"] = json!(i64::MAX)).contains("calendar"));
    assert!(refused(&|record| *record = json!([])).contains("no object"));
}

#[test]
fn a_place_is_read_in_full_and_in_short() {
    let place: Place = "tokens/1/7".parse().unwrap();
    assert_eq!((place, place.to_string().parse()), (at(7), Ok(at(7))));
    for wrong in ["", "tokens/1", "tokens/1/7/8", "control/0/1", "tokens/-1/7", "tokens/1/-7", "tokens/x/7"] {
        assert!(wrong.parse::<Place>().is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn what_can_be_read_can_be_replayed_or_says_why(output in any::<i64>(), bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let event: TokensCounted = serde_json::from_value(record()).unwrap();
        let value = encode(&TokensCounted { output, ..event }).unwrap();
        let replay = Replay::of(at(1), &read(topic::TOKENS, &value).unwrap(), 3);
        prop_assert_eq!(replay.is_ok(), (0..=1i64 << 40).contains(&output));
        prop_assert!(read(topic::TOKENS, &bytes).is_err());
    }
}
