//! Which partitions this process works on, as a consumer group divides them. The group only divides the work: nothing is read
//! through it, no offset is committed for it, and two members that work on one partition for a while do no harm.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use runtime::Shutdown;
use thiserror::Error;
use tokio::sync::watch;

use crate::kafka::KafkaSettings;
use crate::quiet;

/// A member that says nothing for so long has lost its partitions to the others.
const SESSION: Duration = Duration::from_secs(10);
/// The others join anew within so long when somebody comes or goes, and whoever asked to join waits no longer for the answer before it
/// asks again: a broker that loses its group meanwhile may never give it.
const REBALANCE: Duration = Duration::from_secs(20);
const HEARTBEAT: Duration = Duration::from_secs(1);
/// The group's client is served so often.
const POLL: Duration = Duration::from_millis(200);
/// A member that lost its place so often in turn, and never held it for [`HELD`], shares its name with another process. Once is
/// no proof: a request to join that was lost on the way, and arrives after the next one, takes the place of its own sender.
const LOST_PLACES: u32 = 3;
/// A place that was held for so long was this process's.
const HELD: Duration = Duration::from_secs(60);

/// Why a process is no member any more. That Kafka is away is none of these: what it had, it keeps.
#[derive(Debug, Error)]
pub enum GroupError {
    /// Another process has the same name in the group: its place was taken again and again.
    #[error("another process took the name {name:?} in the group {group:?}: give each process its own name")]
    NameTaken {
        /// The group.
        group: String,
        /// The name.
        name: String,
    },
    /// The group's client cannot be used any more, or could not be made.
    #[error("the process cannot be in the group {group:?}: {source}")]
    Failed {
        /// The group.
        group: String,
        /// What the client said.
        source: KafkaError,
    },
}

/// What the group gave this process; none until it was heard of for the first time.
pub type Given = watch::Receiver<Option<BTreeSet<i32>>>;

/// A place in a group, to be held by [`Member::run`].
pub struct Member {
    kafka: KafkaSettings,
    group: String,
    name: String,
    topic: String,
    given: watch::Sender<Option<BTreeSet<i32>>>,
    consumer: BaseConsumer<Division>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { group, name, topic, .. } = self;
        f.debug_struct("Member").field("group", group).field("name", name).field("topic", topic).finish_non_exhaustive()
    }
}

impl Member {
    /// A member called `name` of `group`, which divides the partitions of `topic`. A process that starts again under its name
    /// within ten seconds gets what it had, and nobody else notices.
    ///
    /// # Errors
    /// [`GroupError::Failed`] when the settings make no client.
    pub fn new(kafka: &KafkaSettings, group: &str, name: &str, topic: &str) -> Result<(Self, Given), GroupError> {
        let (given, partitions) = watch::channel(None);
        let consumer = client(kafka, group, name, Division::new(topic, &given))?;
        let (group, name, topic) = (group.to_owned(), name.to_owned(), topic.to_owned());
        Ok((Self { kafka: kafka.clone(), group, name, topic, given, consumer }, partitions))
    }

    /// Holds the place until shutdown. Blocks: to be run on a thread of its own. Who loses its place joins again, and goes on
    /// meanwhile with what it had.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub fn run(mut self, shutdown: &Shutdown) -> Result<(), GroupError> {
        let mut lost = 0;
        loop {
            let joined = Instant::now();
            let Err(error) = self.hold(shutdown) else { return Ok(()) };
            lost = if joined.elapsed() < HELD { lost + 1 } else { 1 };
            if !matches!(error, GroupError::NameTaken { .. }) || lost == LOST_PLACES {
                return Err(error);
            }
            tracing::warn!(group = self.group, name = self.name, lost, "the place in the group was taken: joins again");
            self.consumer = client(&self.kafka, &self.group, &self.name, Division::new(&self.topic, &self.given))?;
        }
    }

    /// Holds the place until shutdown, or until it is lost.
    fn hold(&self, shutdown: &Shutdown) -> Result<(), GroupError> {
        self.consumer.subscribe(&[&self.topic]).map_err(|source| failed(&self.group, source))?;
        while !shutdown.is_cancelled() {
            // Nothing is ever read: all that was given is paused.
            if let Some(Err(error)) = self.consumer.poll(POLL) {
                tracing::debug!(%error, group = self.group, "the group's client met an error, and goes on");
            }
            if let Some((code, reason)) = self.consumer.client().fatal_error() {
                return Err(match code {
                    RDKafkaErrorCode::FencedInstanceId => {
                        GroupError::NameTaken { group: self.group.clone(), name: self.name.clone() }
                    }
                    code => {
                        tracing::error!(%code, reason, "the group's client failed");
                        failed(&self.group, KafkaError::ConsumerQueueClose(code))
                    }
                });
            }
        }
        Ok(())
    }
}

fn client(
    kafka: &KafkaSettings,
    group: &str,
    name: &str,
    division: Division,
) -> Result<BaseConsumer<Division>, GroupError> {
    kafka
        .consumer(group, group)
        .set("group.instance.id", name)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", SESSION.as_millis().to_string())
        .set("max.poll.interval.ms", REBALANCE.as_millis().to_string())
        .set("heartbeat.interval.ms", HEARTBEAT.as_millis().to_string())
        .create_with_context(division)
        .map_err(|source| failed(group, source))
}

fn failed(group: &str, source: KafkaError) -> GroupError {
    GroupError::Failed { group: group.to_owned(), source }
}

/// Keeps what the group gives, and tells it.
struct Division {
    topic: String,
    /// What the group gave this client. The client itself is not asked: while it closes, it may never answer.
    has: Mutex<BTreeSet<i32>>,
    given: watch::Sender<Option<BTreeSet<i32>>>,
}

impl Division {
    fn new(topic: &str, given: &watch::Sender<Option<BTreeSet<i32>>>) -> Self {
        Self { topic: topic.to_owned(), has: Mutex::default(), given: given.clone() }
    }

    fn of(&self, list: &TopicPartitionList) -> BTreeSet<i32> {
        list.elements().iter().filter(|place| place.topic() == self.topic).map(|place| place.partition()).collect()
    }

    /// Adds what was given, or removes what was taken, and gives what there is now.
    fn changed(&self, is_given: bool, change: &BTreeSet<i32>) -> BTreeSet<i32> {
        let mut has = self.has.lock().unwrap_or_else(PoisonError::into_inner);
        *has = if is_given { &*has | change } else { &*has - change };
        has.clone()
    }
}

impl ClientContext for Division {
    fn error(&self, error: KafkaError, reason: &str) {
        quiet::heard(&error, reason);
    }
}

impl ConsumerContext for Division {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let change = self.of(list);
        // Away from Kafka for longer than its session: nobody has said that others work on it, and if they do, no harm is done.
        let lost = consumer.assignment_lost();
        let is_given = event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let done = match (is_given, cooperative) {
            (true, true) => consumer.incremental_assign(list),
            (true, false) => consumer.assign(list),
            (false, true) => consumer.incremental_unassign(list),
            (false, false) => consumer.unassign(),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "what the group gave was not taken");
        }
        let has = self.changed(is_given, &change);
        if is_given {
            if let Err(error) = consumer.pause(list) {
                tracing::warn!(%error, "what the group gave was not paused");
            }
            tracing::info!(given = ?change, ?has, "the group gave partitions");
        } else if lost {
            tracing::warn!(?change, "the group was lost: this process goes on with what it had");
            return;
        } else {
            tracing::info!(taken = ?change, ?has, "the group took partitions");
        }
        self.given.send_replace(Some(has));
    }
}
