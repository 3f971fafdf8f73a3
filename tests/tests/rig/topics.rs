//! What an operator may do to the topics behind Tollgate's back: committed offsets reset, a topic deleted and made anew.

use std::time::Duration;

use promises::traffic::Dice;
use promises::wait::until;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::world::SOON;

/// The group that divides the partitions among folds.
const GROUP: &str = "tollgate-folds";
const TOKENS: &str = "tollgate.tokens.v1";
const REQUESTS: &str = "tollgate.requests.v1";
/// As far as an operator's hand may slip: beyond the end too.
const ANYWHERE: u64 = 100_000;

fn client(brokers: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", brokers);
    client
}

/// Commits offsets for the group of the folds, once it has no member.
pub(crate) async fn reset(brokers: &str, partitions: i32, dice: &mut Dice) {
    let mut offsets = TopicPartitionList::new();
    for topic in [TOKENS, REQUESTS] {
        for partition in 0..partitions {
            let offset = Offset::Offset(i64::try_from(dice.below(ANYWHERE)).unwrap());
            offsets.add_partition_offset(topic, partition, offset).unwrap();
        }
    }
    let consumer: BaseConsumer = client(brokers).set("group.id", GROUP).create().unwrap();
    tokio::task::spawn_blocking(move || {
        let began = std::time::Instant::now();
        // Those that were killed are members until their session ends.
        while let Err(error) = consumer.commit(&offsets, CommitMode::Sync) {
            assert!(began.elapsed() < SOON, "offsets are not reset: {error}");
            std::thread::park_timeout(Duration::from_millis(100));
        }
    })
    .await
    .unwrap();
}

/// Deletes the topic of the tokens. Whoever makes it again makes an empty one.
pub(crate) async fn delete(brokers: &str) {
    let admin: AdminClient<DefaultClientContext> = client(brokers).create().unwrap();
    let deleted = admin.delete_topics(&[TOKENS], &AdminOptions::new()).await.unwrap();
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    until("the topic to be gone", SOON, async || {
        let (client, ask) = (client(brokers).create::<BaseConsumer>().unwrap(), Duration::from_secs(5));
        let topics = tokio::task::spawn_blocking(move || client.fetch_metadata(None, ask)).await.unwrap();
        let topics = topics.map_err(|error| error.to_string())?;
        let there = topics.topics().iter().any(|topic| topic.name() == TOKENS && !topic.partitions().is_empty());
        if there { Err("it is there".to_owned()) } else { Ok(()) }
    })
    .await;
}
