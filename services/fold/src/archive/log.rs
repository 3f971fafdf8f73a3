//! The log from an offset on, for whoever replays it: what Kafka no longer has is read from the archive.

use std::time::Duration;

use stream::consume::{self, Bounds, ConsumeError, PartitionConsumer, Record};
use stream::kafka::KafkaSettings;
use tokio::time::Instant;

use super::folder::Folder;
use super::{Archive, ArchiveError};
use crate::audit::AuditError;

/// The name under which the brokers see it.
const GROUP: &str = "tollgate-audit";
/// So long Kafka may be away.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the log is.
#[derive(Debug, Clone, Copy)]
pub struct Log<'a> {
    /// Kafka, which has what comes.
    pub kafka: &'a KafkaSettings,
    /// What was deleted in Kafka, in an archive; without one, Kafka must still have the first record of all.
    pub archive: Option<&'a Archive>,
}

impl<'a> Log<'a> {
    /// In Kafka alone.
    pub const fn kafka(kafka: &'a KafkaSettings) -> Self {
        Self { kafka, archive: None }
    }

    /// Up to where a line must be folded from the archive, since a fold, which reads Kafka alone, could not go on from before: the
    /// end of the file that overlaps Kafka's first record. 0 where Kafka has the first record of all, and without an archive.
    pub(crate) async fn reach(&self, topic: &'static str, partition: i32) -> Result<i64, AuditError> {
        let Some(archive) = self.archive else { return Ok(0) };
        let first = bounds(self.kafka, topic, partition).await.map_err(of_log(topic, partition))?.first;
        if first == 0 {
            return Ok(0);
        }
        let folder = Folder::read(archive, topic, partition)?;
        Ok(folder.holding(first).map_or(first, |file| file.to.offset))
    }
}

/// The records of one line in their order, from an offset on, without end.
pub(crate) struct Records<'a> {
    kafka: &'a KafkaSettings,
    archive: Option<(&'a Archive, Folder)>,
    topic: &'static str,
    partition: i32,
    /// The next offset.
    position: i64,
    /// What is left of the file that is being read.
    file: std::vec::IntoIter<Record>,
    /// Kafka, once it is read.
    consumer: Option<PartitionConsumer>,
}

impl<'a> Records<'a> {
    pub(crate) fn open(log: Log<'a>, topic: &'static str, partition: i32, position: i64) -> Result<Self, AuditError> {
        let archive = match log.archive {
            Some(archive) => Some((archive, Folder::read(archive, topic, partition)?)),
            None => None,
        };
        let file = Vec::new().into_iter();
        Ok(Self { kafka: log.kafka, archive, topic, partition, position, file, consumer: None })
    }

    /// The next record; waits for it.
    ///
    /// # Errors
    /// Neither has it, or one cannot be read.
    pub(crate) async fn next(&mut self) -> Result<Record, AuditError> {
        loop {
            let record = match (self.file.next(), &self.consumer) {
                (Some(record), _) => record,
                (None, None) => {
                    self.find().await?;
                    continue;
                }
                (None, Some(consumer)) => match patiently(async || consumer.next().await).await {
                    Ok(record) => record,
                    // Kafka may delete what it had when the consumer was opened.
                    Err(error) if error.needs_a_person() && self.was_deleted().await? => {
                        self.consumer = None;
                        continue;
                    }
                    Err(error) => return Err(of_log(self.topic, self.partition)(error)),
                },
            };
            self.position = record.offset.saturating_add(1);
            return Ok(record);
        }
    }

    /// Whether the archive has to help out, because Kafka begins behind the next offset.
    async fn was_deleted(&self) -> Result<bool, AuditError> {
        Ok(self.archive.is_some() && self.bounds().await?.first > self.position)
    }

    /// Opens whoever has the next offset: Kafka, if it can.
    async fn find(&mut self) -> Result<(), AuditError> {
        let Self { topic, partition, position, .. } = *self;
        let first = if self.archive.is_some() { self.bounds().await?.first } else { 0 };
        let (archive, folder) = match &mut self.archive {
            Some(archive) if first > position => archive,
            _ => {
                let opened = PartitionConsumer::open(self.kafka, GROUP, topic, partition, position);
                self.consumer = Some(opened.map_err(of_log(topic, partition))?);
                return Ok(());
            }
        };
        if folder.holding(position).is_none() {
            // What Kafka deleted meanwhile may have been archived meanwhile.
            *folder = Folder::read(archive, topic, partition)?;
        }
        let Some(manifest) = folder.holding(position) else {
            let next = folder.next_held(position).map_or(first, |held| held.min(first));
            return Err(ArchiveError::Gap { topic, partition, from: position, to: next - 1 }.into());
        };
        let mut records = archive.load(folder, manifest).await?;
        records.retain(|record| record.offset >= position);
        self.file = records.into_iter();
        Ok(())
    }

    async fn bounds(&self) -> Result<Bounds, AuditError> {
        bounds(self.kafka, self.topic, self.partition).await.map_err(of_log(self.topic, self.partition))
    }
}

/// The offsets that Kafka has.
pub(super) async fn bounds(kafka: &KafkaSettings, topic: &'static str, partition: i32) -> Result<Bounds, ConsumeError> {
    patiently(async || consume::bounds(kafka, topic, partition).await).await
}

/// Asks again while Kafka is away, but not for ever.
pub(super) async fn patiently<T>(ask: impl AsyncFn() -> Result<T, ConsumeError>) -> Result<T, ConsumeError> {
    let until = Instant::now() + PATIENCE;
    loop {
        match tokio::time::timeout_at(until, ask()).await {
            Ok(Err(error)) if error.is_transient() && Instant::now() < until => {}
            Ok(answer) => return answer,
            Err(_) => return Err(ConsumeError::Transient(rdkafka::error::KafkaError::Canceled)),
        }
    }
}

fn of_log(topic: &'static str, partition: i32) -> impl Fn(ConsumeError) -> AuditError {
    move |source| AuditError::Log { topic, partition, source }
}
