//! A replay on its way to Kafka: the record, and when it is there, the end of its source.

use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use thiserror::Error;

use super::Replay;
use crate::kafka::KafkaSettings;
use crate::quiet::Quiet;

/// How long Kafka may take for a record.
const LIMIT: &str = "30000";
const QUEUE: Duration = Duration::from_secs(5);

/// The header that says who.
pub(super) const BY: &str = "tollgate-replay-by";
/// The header that says why.
pub(super) const REASON: &str = "tollgate-replay-reason";

/// Who replays, and why: kept in the record's headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Who.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// Why a replay is not known to be whole in the log. Send it again: what is there already is a duplicate.
#[derive(Debug, Error)]
#[error("Kafka did not take {what} of the replay of {of}: {source}; run the same again, it counts once")]
pub struct SendError {
    what: &'static str,
    of: String,
    source: KafkaError,
}

/// Sends a replay, and gives the offset of its record. The end of its source goes out after the record is acknowledged: the
/// other way round it would be a loss.
///
/// # Errors
/// Kafka did not take it in time.
pub async fn send(kafka: &KafkaSettings, replay: &Replay, note: &Note) -> Result<i64, SendError> {
    let failed = |what| move |source| SendError { what, of: replay.of.to_string(), source };
    let producer: FutureProducer<Quiet> = kafka
        .client("replay")
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("max.in.flight.requests.per.connection", "1")
        .set("message.timeout.ms", LIMIT)
        .create_with_context(Quiet)
        .map_err(failed("any record"))?;
    let of = replay.of.to_string();
    let notes = [("tollgate-replay-of", &of), (BY, &note.by), (REASON, &note.reason)];
    let record = FutureRecord::to(replay.of.topic)
        .partition(replay.partition)
        .key(&replay.key)
        .payload(&replay.value)
        .headers(headers(notes.iter().map(|(name, text)| (*name, text.as_str()))));
    let put = producer.send(record, QUEUE).await.map_err(|(source, _)| failed("the record")(source))?;
    let end = replay.end().headers();
    let mark = FutureRecord::<str, [u8]>::to(replay.of.topic)
        .partition(replay.partition)
        .headers(headers(end.iter().map(|(name, text)| (*name, text.as_str()))));
    producer.send(mark, QUEUE).await.map_err(|(source, _)| failed("the end")(source))?;
    Ok(put.offset)
}

fn headers<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> OwnedHeaders {
    pairs.fold(OwnedHeaders::new(), |headers, (key, text)| headers.insert(Header { key, value: Some(text) }))
}
