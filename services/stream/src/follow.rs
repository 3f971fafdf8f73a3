//! Following a topic from an offset on, outside of any consumer group: the consumer, its place, and what its errors mean.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use thiserror::Error;

use crate::kafka::KafkaSettings;
use crate::quiet::Quiet;

/// How long one question to the broker may take. Half of what a role gives its readers to stop: nobody may be stuck in one
/// for longer.
const ASK: Duration = Duration::from_millis(2500);

/// How long a consumer that has read everything waits for more before it looks whether it should stop.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// How long to wait before the broker is tried again.
pub(crate) const AGAIN: Duration = Duration::from_millis(250);

/// A log that seems to have lost all its records is asked so often whether it is so.
const SEEMS_EMPTY: u32 = 8;

/// Kafka does not answer now, or not yet. Worth another try.
#[derive(Debug, Error)]
#[error("{topic}: {source}")]
pub(crate) struct Away {
    topic: &'static str,
    source: KafkaError,
}

impl Away {
    /// What makes any error of Kafka into this one.
    pub(crate) fn from(topic: &'static str) -> impl Fn(KafkaError) -> Self {
        move |source| Self { topic, source }
    }
}

/// What follows.
pub(crate) type Follower = BaseConsumer<Quiet>;

/// A consumer that reads what it is told to and never commits. It is a member of no group: the name of one is only asked
/// for by the library.
pub(crate) fn consumer(settings: &KafkaSettings, role: &str) -> Result<Follower, KafkaError> {
    settings.consumer(role, &format!("tollgate-{role}")).set("enable.partition.eof", "true").create_with_context(Quiet)
}

/// The first offset that a partition still holds, and the one after its last.
pub(crate) fn bounds(consumer: &Follower, topic: &'static str, partition: i32) -> Result<std::ops::Range<i64>, Away> {
    let (low, high) = watermarks(consumer, topic, partition, ASK).map_err(Away::from(topic))?;
    Ok(low..high)
}

/// The same for any consumer, each question within `limit`. It blocks.
pub(crate) fn watermarks(
    consumer: &impl Consumer<Quiet>,
    topic: &str,
    partition: i32,
    limit: Duration,
) -> Result<(i64, i64), KafkaError> {
    beyond_doubt(|| consumer.fetch_watermarks(topic, partition, limit), || std::thread::park_timeout(AGAIN))
}

/// A broker that is starting, or has no room, may name no first offset for a moment. The client then gives the last one in its
/// place, as if all records were gone: it is asked again.
fn beyond_doubt<E>(mut ask: impl FnMut() -> Result<(i64, i64), E>, pause: impl Fn()) -> Result<(i64, i64), E> {
    let mut said = ask()?;
    for _ in 0..SEEMS_EMPTY {
        if said.0 != said.1 || said.1 == 0 {
            break;
        }
        pause();
        said = ask()?;
    }
    Ok(said)
}

/// Begins to read the partitions at these offsets.
pub(crate) fn assign(
    consumer: &Follower,
    topic: &'static str,
    places: impl IntoIterator<Item = (i32, i64)>,
) -> Result<(), Away> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in places {
        list.add_partition_offset(topic, partition, Offset::Offset(offset)).map_err(Away::from(topic))?;
    }
    consumer.assign(&list).map_err(Away::from(topic))
}

/// Says once that the broker is away, and once that it is back.
#[derive(Debug, Default)]
pub(crate) struct Outage(bool);

impl Outage {
    pub(crate) fn began(&mut self, away: &Away) {
        if !std::mem::replace(&mut self.0, true) {
            tracing::warn!(error = %away, "Kafka does not answer: going on with what is known until it does");
        }
    }

    pub(crate) fn ended(&mut self, topic: &str) {
        if std::mem::take(&mut self.0) {
            tracing::info!(topic, "Kafka answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_lost_its_records_only_if_that_is_said_again_and_again() {
        let asked = |answers: &[(i64, i64)]| {
            let mut times = 0;
            let ask = || {
                times += 1;
                Ok::<_, ()>(*answers.get(times - 1).or(answers.last()).unwrap())
            };
            (beyond_doubt(ask, || ()).unwrap(), times)
        };
        assert_eq!(asked(&[(23, 23), (23, 23), (0, 23)]), ((0, 23), 3));
        assert_eq!(asked(&[(23, 23)]), ((23, 23), 9));
        assert_eq!(asked(&[(0, 0)]), ((0, 0), 1));
        assert_eq!(asked(&[(5, 23)]), ((5, 23), 1));
    }
}
