//! What a fold writes to Kafka: balances, and copies of dead letters.

use std::time::Duration;

use futures_util::future::join_all;
use rdkafka::error::KafkaError;
use rdkafka::producer::{FutureProducer, FutureRecord};
use schemas::codec::{self, CodecError};
use schemas::event::{BalanceUpdated, DeadLettered};
use schemas::topic;
use sql::DeadRow;
use stream::kafka::KafkaSettings;
use stream::quiet::Quiet;
use thiserror::Error;

/// How long a record may wait for room in the client's queue.
const QUEUE: Duration = Duration::from_secs(5);
/// Kafka takes records of a megabyte: what is larger is named in the copy, and whole in the row.
const COPY_MAX: usize = 900_000;

/// Why something was not published.
#[derive(Debug, Error)]
pub(crate) enum PublishError {
    #[error("Kafka did not take the record: {0}")]
    Kafka(#[from] KafkaError),
    #[error("the record cannot be written: {0}")]
    Codec(#[from] CodecError),
}

/// A producer for records that may come twice: balances are absolute, and dead letters are copies.
#[derive(Clone)]
pub(crate) struct Publisher(FutureProducer<Quiet>);

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

impl Publisher {
    /// Connects in the background.
    pub(crate) fn new(kafka: &KafkaSettings) -> Result<Self, KafkaError> {
        let producer = kafka
            .client("fold")
            .set("acks", "all")
            // One request at a time keeps the order, so that the newest balance is also the last one.
            .set("max.in.flight.requests.per.connection", "1")
            .set("message.timeout.ms", "10000")
            .set("linger.ms", "5")
            .set("compression.type", "lz4")
            .create_with_context(Quiet)?;
        Ok(Self(producer))
    }

    /// Publishes balances to the partition that their tenants' tokens are in.
    pub(crate) async fn balances(&self, updates: &[BalanceUpdated]) -> Result<(), PublishError> {
        let sent = updates.iter().map(|update| async move {
            let value = codec::encode(update)?;
            self.send(topic::BALANCES, update.partition, &update.key(), &value).await
        });
        join_all(sent).await.into_iter().collect()
    }

    /// Copies dead letters: all of them are in the topic when this returns well.
    pub(crate) async fn dead_letters(&self, topic: &str, partition: i32, dead: &[DeadRow]) -> Result<(), PublishError> {
        let sent = dead.iter().map(|row| async move {
            let copy = copy_of(topic, partition, row);
            let value = codec::encode(&copy)?;
            self.send(topic::DEAD_LETTERS, 0, &copy.key(), &value).await
        });
        join_all(sent).await.into_iter().collect()
    }

    async fn send(&self, topic: &str, partition: i32, key: &str, value: &[u8]) -> Result<(), PublishError> {
        let record = FutureRecord::to(topic).partition(partition).key(key).payload(value);
        self.0.send(record, QUEUE).await.map(drop).map_err(|(error, _)| error.into())
    }
}

fn copy_of(topic: &str, partition: i32, row: &DeadRow) -> DeadLettered {
    let size = row.key.as_ref().map_or(0, Vec::len) + row.value.as_ref().map_or(0, Vec::len) + row.detail.len();
    let fits = size <= COPY_MAX;
    let detail = match fits {
        true => row.detail.clone(),
        false => format!("{size} bytes, too large for a copy: key and value are in the row only ({})", row.reason),
    };
    DeadLettered {
        origin_topic: topic.to_owned(),
        origin_partition: partition,
        origin_offset: row.offset,
        log_time_ms: row.log_time_ms,
        reason: row.reason.clone(),
        detail,
        key: row.key.clone().filter(|_| fits),
        value: row.value.clone().filter(|_| fits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_that_is_too_large_for_a_copy_is_named_all_the_same() {
        let mut row = DeadRow {
            offset: 7,
            log_time_ms: 5,
            reason: "undecodable".to_owned(),
            detail: "no".to_owned(),
            key: None,
            value: Some(vec![1; 10]),
            took: None,
        };
        let small = copy_of("t", 3, &row);
        assert_eq!((small.key().as_str(), small.value, small.detail.as_str()), ("t/3/7", Some(vec![1; 10]), "no"));
        row.value = Some(vec![1; COPY_MAX + 1]);
        let large = copy_of("t", 3, &row);
        assert!(large.value.is_none() && large.detail.contains("900003 bytes"), "{}", large.detail);
        assert!(codec::encode(&large).unwrap().len() < 1000);
    }
}
