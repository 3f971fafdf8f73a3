//! Who wrote a dead letter anew, and why: out of the headers of the record in the log.

use std::time::Duration;

use thiserror::Error;

use super::Place;
use super::send::{BY, Note, REASON};
use crate::consume::{ConsumeError, PartitionConsumer};
use crate::kafka::KafkaSettings;

/// How long the log may take to show one record.
const LIMIT: Duration = Duration::from_secs(3);

/// Why a note cannot be read.
#[derive(Debug, Error)]
pub enum NoteError {
    /// Kafka refuses it.
    #[error(transparent)]
    Consume(#[from] ConsumeError),
    /// Kafka does not answer.
    #[error("Kafka did not show the record within {} s", LIMIT.as_secs())]
    Slow,
}

/// Who sent the replay that stands there, and why. None if it is no replay, or is not in the log any more.
///
/// # Errors
/// Kafka does not answer.
pub async fn note(kafka: &KafkaSettings, at: &Place) -> Result<Option<Note>, NoteError> {
    let log = PartitionConsumer::open_to_end(kafka, "tollgate-replay-note", at.topic, at.partition, at.offset)?;
    let record = match tokio::time::timeout(LIMIT, log.next_or_end()).await.map_err(|_| NoteError::Slow)? {
        Err(ConsumeError::OutOfRange { .. }) => None,
        read => read?,
    };
    let Some(record) = record.filter(|record| record.offset == at.offset) else { return Ok(None) };
    let text = |name: &str| {
        let header = record.headers.iter().find(|(key, _)| key == name)?;
        Some(String::from_utf8_lossy(&header.1).into_owned())
    };
    Ok(text(BY).zip(text(REASON)).map(|(by, reason)| Note { by, reason }))
}
