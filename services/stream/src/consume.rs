//! Reading one partition from a given offset: no group decides what is read, and no offset is ever reset silently.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{CommitMode, Consumer as _, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::{ClientConfig, Offset, Timestamp, TopicPartitionList};
use thiserror::Error;

use crate::follow;
use crate::kafka::KafkaSettings;
use crate::line::LogRecord;
use crate::quiet::Quiet;

const LIMIT: Duration = Duration::from_secs(3);

/// Why a partition cannot be read on.
#[derive(Debug, Error)]
pub enum ConsumeError {
    /// The offset is not in the log: the log was truncated, or the topic was made anew. Waiting does not help.
    #[error(
        "offset {offset} of {topic}/{partition} is not in the log: records were deleted before they were read, or the topic was made anew; restore the topic, or rebuild from a log that is whole, or from an archive of it (tollgate rebuild --archive)"
    )]
    OutOfRange {
        /// Which.
        topic: String,
        /// Which.
        partition: i32,
        /// What was asked for.
        offset: i64,
    },
    /// The topic or the partition is not there.
    #[error("{topic}/{partition} is not there: create the topics again only if nothing of them was folded yet")]
    Missing {
        /// Which.
        topic: String,
        /// Which.
        partition: i32,
    },
    /// A record without Kafka's own time of appending.
    #[error(
        "the record at {topic}/{partition}, offset {offset}, has no LogAppendTime: set message.timestamp.type=LogAppendTime on the topic again"
    )]
    NoLogTime {
        /// Which.
        topic: String,
        /// Which.
        partition: i32,
        /// Where.
        offset: i64,
    },
    /// The broker or the connection failed. May pass, and the same consumer goes on by itself.
    #[error("Kafka cannot be read at the moment: {0}")]
    Transient(KafkaError),
    /// The consumer cannot be used any more. A new one may go on.
    #[error("the Kafka consumer failed: {0}")]
    Failed(KafkaError),
}

impl ConsumeError {
    /// Whether the log itself is not what was folded, so that only a person can help.
    pub const fn needs_a_person(&self) -> bool {
        matches!(self, Self::OutOfRange { .. } | Self::NoLogTime { .. })
    }

    /// Whether the same consumer goes on by itself.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Transient(_))
    }
}

/// A record, with everything that it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its offset.
    pub offset: i64,
    /// Kafka's LogAppendTime, milliseconds since 1970.
    pub log_time_ms: i64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value; absent for a mark.
    pub value: Option<Vec<u8>>,
    /// Its headers. One without a value has an empty one.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Record {
    /// Lends it to a line's step.
    pub fn lend<R>(&self, take: impl FnOnce(&LogRecord<'_>) -> R) -> R {
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        take(&LogRecord {
            offset: self.offset,
            log_time_ms: self.log_time_ms,
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            headers: &headers,
        })
    }

    /// Bytes of its key and value.
    pub fn size(&self) -> u64 {
        let of = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, Vec::len) as u64;
        of(&self.key) + of(&self.value)
    }
}

/// The offsets of a partition that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The first one.
    pub first: i64,
    /// The one after the last.
    pub next: i64,
}

/// The offsets of a partition that are there now, asked without reading it.
///
/// # Errors
/// As [`PartitionConsumer::bounds`].
pub async fn bounds(kafka: &KafkaSettings, topic: &str, partition: i32) -> Result<Bounds, ConsumeError> {
    let role = "tollgate-bounds";
    let consumer = kafka.consumer(role, role).create_with_context(Quiet).map_err(ConsumeError::Failed)?;
    PartitionConsumer { consumer: Arc::new(consumer), topic: topic.to_owned(), partition, from: 0 }.bounds().await
}

/// A consumer of one partition, from a given offset on.
#[derive(Clone)]
pub struct PartitionConsumer {
    consumer: Arc<StreamConsumer<Quiet>>,
    topic: String,
    partition: i32,
    from: i64,
}

impl std::fmt::Debug for PartitionConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { topic, partition, from, .. } = self;
        f.debug_struct("PartitionConsumer")
            .field("topic", topic)
            .field("partition", partition)
            .field("from", from)
            .finish()
    }
}

impl PartitionConsumer {
    /// Reads `topic`/`partition` from the offset `from` on. `group` only names a place for figures of lag: nobody joins it.
    /// Connects in the background; that the offset is not there shows at the first [`PartitionConsumer::next`].
    ///
    /// # Errors
    /// [`ConsumeError::Failed`] when the settings make no client.
    pub fn open(
        kafka: &KafkaSettings,
        group: &str,
        topic: &str,
        partition: i32,
        from: i64,
    ) -> Result<Self, ConsumeError> {
        Self::assigned(kafka.consumer(group, group), topic, partition, from)
    }

    /// As [`PartitionConsumer::open`], for [`PartitionConsumer::next_or_end`].
    ///
    /// # Errors
    /// [`ConsumeError::Failed`] when the settings make no client.
    pub fn open_to_end(
        kafka: &KafkaSettings,
        group: &str,
        topic: &str,
        partition: i32,
        from: i64,
    ) -> Result<Self, ConsumeError> {
        let mut config = kafka.consumer(group, group);
        config.set("enable.partition.eof", "true");
        Self::assigned(config, topic, partition, from)
    }

    fn assigned(mut config: ClientConfig, topic: &str, partition: i32, from: i64) -> Result<Self, ConsumeError> {
        let consumer: StreamConsumer<Quiet> = config
            .set("queued.max.messages.kbytes", "16384")
            .create_with_context(Quiet)
            .map_err(ConsumeError::Failed)?;
        let mut opened = Self { consumer: Arc::new(consumer), topic: topic.to_owned(), partition, from };
        opened.restart(from)?;
        Ok(opened)
    }

    /// Reads on from another offset. What was fetched before is dropped.
    ///
    /// # Errors
    /// [`ConsumeError::Failed`].
    pub fn restart(&mut self, from: i64) -> Result<(), ConsumeError> {
        let mut assigned = TopicPartitionList::new();
        assigned
            .add_partition_offset(&self.topic, self.partition, Offset::Offset(from))
            .and_then(|()| self.consumer.assign(&assigned))
            .map_err(ConsumeError::Failed)?;
        self.from = from;
        Ok(())
    }

    /// The next record; waits for it. Dropping the future loses nothing.
    ///
    /// # Errors
    /// See [`ConsumeError`]. After a transient one call it again; after any other the consumer is of no more use.
    pub async fn next(&self) -> Result<Record, ConsumeError> {
        match self.consumer.recv().await {
            Ok(message) => self.record(&message),
            Err(error) => Err(self.error(error)),
        }
    }

    /// The next record, or none where the log ends: of a consumer that was opened with [`PartitionConsumer::open_to_end`].
    ///
    /// # Errors
    /// As [`PartitionConsumer::next`].
    pub async fn next_or_end(&self) -> Result<Option<Record>, ConsumeError> {
        match self.consumer.recv().await {
            Ok(message) => self.record(&message).map(Some),
            Err(KafkaError::PartitionEOF(_)) => Ok(None),
            Err(error) => Err(self.error(error)),
        }
    }

    /// Topic and partition.
    pub fn place(&self) -> (String, i32) {
        (self.topic.clone(), self.partition)
    }

    /// The offsets that are there now, as the broker says.
    ///
    /// # Errors
    /// [`ConsumeError::Transient`] when it does not answer in time, [`ConsumeError::Missing`].
    pub async fn bounds(&self) -> Result<Bounds, ConsumeError> {
        let (consumer, topic, partition) = (self.consumer.clone(), self.topic.clone(), self.partition);
        // The client's call blocks.
        let asked = tokio::task::spawn_blocking(move || follow::watermarks(&*consumer, &topic, partition, LIMIT));
        match asked.await {
            Ok(Ok((first, next))) => Ok(Bounds { first, next }),
            Ok(Err(error)) => match self.error(error) {
                ConsumeError::Failed(error) => Err(ConsumeError::Transient(error)),
                other => Err(other),
            },
            Err(_) => Err(ConsumeError::Transient(KafkaError::Canceled)),
        }
    }

    /// Commits `next` for the group: a figure of lag for people and their tools, which nothing here ever reads.
    pub fn commit_figure(&self, next: i64) {
        let mut position = TopicPartitionList::new();
        let committed = position
            .add_partition_offset(&self.topic, self.partition, Offset::Offset(next))
            .and_then(|()| self.consumer.commit(&position, CommitMode::Async));
        if let Err(error) = committed {
            tracing::debug!(%error, topic = self.topic, partition = self.partition, "the figure of lag was not committed");
        }
    }

    fn record(&self, message: &BorrowedMessage<'_>) -> Result<Record, ConsumeError> {
        let Timestamp::LogAppendTime(log_time_ms) = message.timestamp() else {
            let (topic, partition) = (self.topic.clone(), self.partition);
            return Err(ConsumeError::NoLogTime { topic, partition, offset: message.offset() });
        };
        let headers = message.headers().map_or_else(Vec::new, |headers| {
            headers.iter().map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec())).collect()
        });
        Ok(Record {
            offset: message.offset(),
            log_time_ms,
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers,
        })
    }

    fn error(&self, error: KafkaError) -> ConsumeError {
        use RDKafkaErrorCode as Code;
        let (topic, partition) = (self.topic.clone(), self.partition);
        match error.rdkafka_error_code() {
            Some(Code::OffsetOutOfRange | Code::AutoOffsetReset | Code::LogTruncation) => {
                ConsumeError::OutOfRange { topic, partition, offset: self.from }
            }
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) => {
                ConsumeError::Missing { topic, partition }
            }
            _ if matches!(error, KafkaError::MessageConsumptionFatal(_)) => ConsumeError::Failed(error),
            _ => ConsumeError::Transient(error),
        }
    }
}
