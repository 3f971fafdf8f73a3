//! The wire as it was ever written: golden bytes decode, examples come back whole, foreign bytes are refused in words.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::collections::BTreeSet;
use std::path::Path;

use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;
use ledger::control::Kind;
use ledger::time::Micros;
use proptest::prelude::*;
use schemas::codec::{CodecError, HEADER, decode, encode};
use schemas::event::{
    BalanceUpdated, ControlChanged, DeadLettered, Event, GpuSampled, ModelUsage, Record, RequestFinished, TokensCounted,
};
use schemas::registry::SCHEMAS;

/// An example, as `examples/` shows it to people.
fn example<R: Record>(name: &str) -> R {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(format!("{name}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn tokens() -> TokensCounted {
    example("tokens_counted.v1")
}

/// Holds an example to the bytes that were written on its first day. Set `TOLLGATE_WRITE_GOLDEN` to write those of a new version.
fn golden<R: Record + PartialEq + std::fmt::Debug>(name: &str) {
    let record: R = example(name);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{name}.bin"));
    let written = encode(&record).unwrap();
    if std::env::var_os("TOLLGATE_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &written).unwrap();
    }
    let kept = std::fs::read(&path).unwrap();
    assert_eq!(decode::<R>(&kept).unwrap(), record, "{name} decodes to something else");
    assert_eq!(written, kept, "{name} is written in other bytes");
}

#[test]
fn golden_bytes_are_read_and_written() {
    golden::<TokensCounted>("tokens_counted.v1");
    golden::<RequestFinished>("request_finished.v1");
    golden::<ControlChanged>("control_changed.v1");
    golden::<BalanceUpdated>("balance_updated.v1");
    golden::<DeadLettered>("dead_lettered.v1");
    golden::<GpuSampled>("gpu_sampled.v1");
}

/// A schema without an example, or bytes without a schema, would be held to nothing.
#[test]
fn every_schema_has_an_example_and_golden_bytes() {
    let names = |folder: &str| {
        let entries = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap();
        let stem = |entry: std::fs::DirEntry| entry.path().file_stem().unwrap().to_string_lossy().into_owned();
        entries.map(|entry| stem(entry.unwrap())).collect::<BTreeSet<_>>()
    };
    assert_eq!(names("avro").len(), SCHEMAS.len());
    assert_eq!(names("avro"), names("examples"));
    assert_eq!(names("avro"), names("golden"));
}

#[test]
fn examples_are_within_bounds_and_say_whose_they_are() {
    assert_eq!(tokens().check(), Ok(()));
    let sample: GpuSampled = example("gpu_sampled.v1");
    assert_eq!((sample.check(), sample.envelope().key), (Ok(()), "GPU-5f1c7c1e"));
    assert!(GpuSampled { engine_active_micros: 10_000_001, ..sample.clone() }.check().is_err(), "busier than the span");
    assert!(GpuSampled { kv_cache_usage_ppm: -1, ..sample }.check().is_err());
    let balance: BalanceUpdated = example("balance_updated.v1");
    assert_eq!(
        (balance.key(), balance.usage[0].counts().unwrap().total().unwrap()),
        ("acme/1788220800000000".into(), 409)
    );
}

#[test]
fn a_write_to_control_comes_back_as_it_was() {
    let change: ControlChanged = example("control_changed.v1");
    let write = change.to_write().unwrap();
    assert_eq!((write.kind, change.key()), (Kind::Plan, "plan/free".into()));
    assert_eq!(ControlChanged::of(&write, change.write_id, change.written_at, "admin").unwrap(), change);
    let refused = |change: ControlChanged| change.to_write().unwrap_err().to_string();
    assert!(refused(ControlChanged { kind: "coupon".into(), ..change.clone() }).contains("coupon"));
    assert!(refused(ControlChanged { expected_revision: -1, ..change.clone() }).contains("-1"));
    assert!(refused(ControlChanged { document: Some("{".into()), ..change }).contains("free"));
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

/// The bytes that the library makes of a record, by its schema.
fn by_library<R: Record>(record: &R) -> Vec<u8> {
    let known = SCHEMAS.iter().find(|known| known.id == R::SCHEMA_ID).unwrap();
    let schema = apache_avro::Schema::parse_str(known.text).unwrap();
    let writer = GenericDatumWriter::builder(&schema).human_readable(true).build().unwrap();
    [&[0], known.id.to_be_bytes().as_slice(), &writer.write_ser_to_vec(record).unwrap()].concat()
}

/// Whatever can be in a field of any record.
#[derive(Debug, Clone)]
struct Any {
    number: i64,
    small: i32,
    flag: bool,
    text: String,
    maybe: Option<String>,
    bytes: Option<Vec<u8>>,
    usage: Vec<i64>,
}

fn any_values() -> impl Strategy<Value = Any> {
    let optional = (prop::option::of("\\PC{0,70}"), prop::option::of(prop::collection::vec(any::<u8>(), 0..200)));
    let numbers = (prop_oneof![-70..70_i64, any::<i64>()], any::<i32>(), any::<bool>());
    (numbers, "\\PC{0,200}", optional, prop::collection::vec(any::<i64>(), 0..4)).prop_map(
        |((number, small, flag), text, (maybe, bytes), usage)| Any { number, small, flag, text, maybe, bytes, usage },
    )
}

/// What the library reads by its schema; none where the bytes are no record, or go on after it.
fn read_by_library<R: Record>(value: &[u8]) -> Option<R> {
    let known = SCHEMAS.iter().find(|known| known.id == R::SCHEMA_ID).unwrap();
    let schema = apache_avro::Schema::parse_str(known.text).unwrap();
    let reader = GenericDatumReader::builder(&schema).human_readable(true).build().unwrap();
    let mut rest = value.get(HEADER..)?;
    reader.read_deser(&mut rest).ok().filter(|_: &R| rest.is_empty())
}

fn read_alike<R: Record + PartialEq + std::fmt::Debug>(record: &R, at: prop::sample::Index, with: &[u8], cut: usize) {
    let whole = encode(record).unwrap();
    assert_eq!(decode::<R>(&whole).unwrap(), *record);
    let at = HEADER + at.index(whole.len() + 1 - HEADER);
    let mut bytes = whole[..at].to_vec();
    bytes.extend_from_slice(with);
    bytes.extend_from_slice(whole.get(at + cut..).unwrap_or_default());
    assert_eq!(decode(&bytes).ok(), read_by_library::<R>(&bytes), "{bytes:?}");
}

proptest! {
    #[test]
    fn whatever_the_bytes_a_record_is_read_as_the_library_reads_it(at in any::<prop::sample::Index>(), with in prop::collection::vec(any::<u8>(), 0..12), cut in 0_usize..12) {
        read_alike(&tokens(), at, &with, cut);
        read_alike(&example::<RequestFinished>("request_finished.v1"), at, &with, cut);
        read_alike(&example::<BalanceUpdated>("balance_updated.v1"), at, &with, cut);
        read_alike(&example::<ControlChanged>("control_changed.v1"), at, &with, cut);
        read_alike(&example::<DeadLettered>("dead_lettered.v1"), at, &with, cut);
        read_alike(&example::<GpuSampled>("gpu_sampled.v1"), at, &with, cut);
    }

    #[test]
    fn every_record_is_written_as_the_library_writes_it(with in any_values()) {
        let Any { number, small, flag, text, maybe, bytes, usage } = with;
        let counted = TokensCounted { output: number, attempt: small, last: flag, replica: text.clone(), ..tokens() };
        prop_assert_eq!(encode(&counted).unwrap(), by_library(&counted));
        let finished: RequestFinished = example("request_finished.v1");
        let at = flag.then_some(Micros(number));
        let finished = RequestFinished { stream: flag, status: small, error_code: maybe.clone(), dispatched_at: at, ..finished };
        prop_assert_eq!(encode(&finished).unwrap(), by_library(&finished));
        let balance: BalanceUpdated = example("balance_updated.v1");
        let usage = usage.into_iter().map(|output| ModelUsage { output, ..balance.usage[0].clone() }).collect();
        let balance = BalanceUpdated { as_of: number, partition: small, usage, ..balance };
        prop_assert_eq!(encode(&balance).unwrap(), by_library(&balance));
        let change = ControlChanged { id: text, document: maybe.clone(), ..example("control_changed.v1") };
        prop_assert_eq!(encode(&change).unwrap(), by_library(&change));
        let letter = DeadLettered { key: bytes.clone(), value: bytes, ..example("dead_lettered.v1") };
        prop_assert_eq!(encode(&letter).unwrap(), by_library(&letter));
        let sample = GpuSampled { replica: maybe, prompt_tokens_total: flag.then_some(number), ..example("gpu_sampled.v1") };
        prop_assert_eq!(encode(&sample).unwrap(), by_library(&sample));
    }

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
