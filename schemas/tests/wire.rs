//! The wire as it was ever written: golden bytes decode, examples come back whole, foreign bytes are refused in words.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::path::Path;

use ledger::ids::{ApiKeyId, EventId, RequestId, SourceId};
use ledger::time::Micros;
use proptest::prelude::*;
use schemas::codec::{CodecError, decode, encode};
use schemas::event::{EndReason, Event, RequestFinished, TokensCounted};
use schemas::registry::SCHEMAS;
use uuid::Uuid;

fn tokens() -> TokensCounted {
    TokensCounted {
        event_id: EventId(Uuid::from_u128(1)),
        source: SourceId(Uuid::from_u128(2)),
        seq: 41,
        occurred_at: Micros(1_790_000_000_123_456),
        tenant_id: "acme".parse().unwrap(),
        request_id: RequestId(Uuid::from_u128(3)),
        attempt: 0,
        project_id: "search".parse().unwrap(),
        api_key_id: ApiKeyId(Uuid::from_u128(4)),
        model: "llama-3.1-8b".parse().unwrap(),
        version: "v1".parse().unwrap(),
        replica: "gpu-1".into(),
        endpoint: "chat/completions".into(),
        input: 17,
        cached_input: 128,
        output: 6,
        reasoning: 2,
        input_cumulative: 17,
        cached_input_cumulative: 128,
        output_cumulative: 262,
        reasoning_cumulative: 2,
        requests: 1,
        last: true,
        estimated: false,
        end_reason: Some(EndReason::Complete),
    }
}

fn request() -> RequestFinished {
    RequestFinished {
        event_id: EventId(Uuid::from_u128(5)),
        source: SourceId(Uuid::from_u128(2)),
        seq: 7,
        occurred_at: Micros(1_790_000_000_123_456),
        tenant_id: "acme".parse().unwrap(),
        request_id: RequestId(Uuid::from_u128(3)),
        attempts: 1,
        project_id: "search".parse().unwrap(),
        api_key_id: ApiKeyId(Uuid::from_u128(4)),
        model: "llama-3.1-8b".parse().unwrap(),
        version: "v1".parse().unwrap(),
        replica: "gpu-1".into(),
        endpoint: "chat/completions".into(),
        stream: true,
        status: 200,
        end_reason: EndReason::ClientCancelled,
        error_code: None,
        received_at: Micros(1_790_000_000_000_000),
        dispatched_at: Some(Micros(1_790_000_000_000_100)),
        first_byte_at: None,
    }
}

/// Holds an event to the bytes that were written on the first day. Set `TOLLGATE_WRITE_GOLDEN` to write those of a new version.
fn golden<E: Event + PartialEq + std::fmt::Debug>(name: &str, event: &E) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    let written = encode(event).unwrap();
    if std::env::var_os("TOLLGATE_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &written).unwrap();
    }
    let kept = std::fs::read(&path).unwrap();
    assert_eq!(&decode::<E>(&kept).unwrap(), event, "{name} decodes to something else");
    assert_eq!(written, kept, "{name} is written in other bytes");
}

#[test]
fn golden_bytes_are_read_and_written() {
    golden("tokens_counted.v1.bin", &tokens());
    golden("request_finished.v1.bin", &request());
}

#[test]
fn every_schema_parses_under_its_own_name_and_id() {
    for (at, known) in SCHEMAS.iter().enumerate() {
        let schema = apache_avro::Schema::parse_str(known.text).unwrap();
        assert_eq!(schema.name().unwrap().fullname(None).to_string(), known.name);
        assert!(SCHEMAS[..at].iter().all(|other| other.id != known.id), "id {} is given twice", known.id);
    }
}

#[test]
fn foreign_bytes_are_refused_in_words() {
    let good = encode(&tokens()).unwrap();
    assert!(matches!(decode::<TokensCounted>(b""), Err(CodecError::NotConfluent)));
    assert!(matches!(decode::<TokensCounted>(b"{\"a\":1}"), Err(CodecError::NotConfluent)));
    assert!(matches!(decode::<TokensCounted>(&[0, 0, 0, 0, 1]), Err(CodecError::UnknownSchema(1))));
    assert!(matches!(decode::<RequestFinished>(&good), Err(CodecError::OtherRecord { .. })));
    let longer = [good.as_slice(), b"x"].concat();
    assert!(matches!(decode::<TokensCounted>(&longer), Err(CodecError::TrailingBytes(1))));
    for cut in 0..good.len() {
        assert!(decode::<TokensCounted>(&good[..cut]).is_err(), "{cut} of {} bytes were taken", good.len());
    }
}

#[test]
fn a_count_out_of_bounds_is_an_error() {
    assert_eq!(tokens().delta().unwrap().total().unwrap(), 153);
    for bad in [-1, i64::MIN, i64::MAX, (1 << 40) + 1] {
        assert!(TokensCounted { output: bad, ..tokens() }.delta().is_err());
    }
}

proptest! {
    #[test]
    fn any_event_comes_back_whole(output in any::<i64>(), seq in any::<i64>(), at in any::<i64>(), replica in "\\PC{0,70}", last in any::<bool>()) {
        let event = TokensCounted { output, seq, occurred_at: Micros(at), replica, last, end_reason: None, ..tokens() };
        prop_assert_eq!(decode::<TokensCounted>(&encode(&event).unwrap()).unwrap(), event);
    }

    #[test]
    fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400), known in any::<bool>()) {
        if known && bytes.len() >= 5 {
            bytes[..5].copy_from_slice(&encode(&tokens()).unwrap()[..5]);
        }
        let _ = decode::<TokensCounted>(&bytes);
    }
}
