//! The topics and their settings: what is missing is created, and settings that exact counting cannot rest on are refused.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use schemas::topic;
use thiserror::Error;
use tokio::time::Instant;

use crate::kafka::KafkaSettings;

const LIMIT: Duration = Duration::from_secs(10);
/// What `tollgate archive` keeps.
const ARCHIVED: [&str; 2] = [topic::REQUESTS, topic::TOKENS];

/// Why the topics cannot be used.
#[derive(Debug, Error)]
pub enum TopicsError {
    /// No broker answered in time. May pass.
    #[error("Kafka at {brokers} does not answer: {source}; start it, or correct brokers and properties in [kafka]")]
    Unreachable {
        /// What was tried.
        brokers: String,
        /// What the client said.
        source: KafkaError,
    },
    /// A topic could not be created.
    #[error("topic {topic} could not be created: {code}; create it by hand, or correct what Kafka complains of")]
    Refused {
        /// Which.
        topic: String,
        /// What Kafka said.
        code: RDKafkaErrorCode,
    },
    /// Topics are missing, or exactness cannot rest on their settings. Each line says what to do.
    #[error("Kafka's topics cannot be used:\n{}", .0.join("\n"))]
    Wrong(Vec<String>),
}

impl TopicsError {
    /// Whether waiting may help.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// A topic as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPlan {
    /// Its name.
    pub name: &'static str,
    /// How many partitions, no more and no fewer.
    pub partitions: i32,
    /// What Kafka's own settings have to be.
    pub settings: Vec<(&'static str, String)>,
    /// Whether its retention may be another: it is archived before it ends.
    pub may_expire: bool,
}

/// Every topic that is in use. Data topics and balances have the same number of partitions, `control` has one.
pub fn plans(kafka: &KafkaSettings) -> Vec<TopicPlan> {
    let one_answers = kafka.replicas().min(2).to_string();
    let plan = |name, partitions, compacted: bool| {
        let mut settings = vec![
            ("message.timestamp.type", "LogAppendTime".to_owned()),
            ("min.insync.replicas", one_answers.clone()),
            ("unclean.leader.election.enable", "false".to_owned()),
        ];
        if compacted {
            settings.push(("cleanup.policy", "compact".to_owned()));
        } else {
            settings.push(("cleanup.policy", "delete".to_owned()));
            settings.push(("retention.ms", "-1".to_owned()));
            settings.push(("retention.bytes", "-1".to_owned()));
        }
        TopicPlan { name, partitions, settings, may_expire: kafka.archived && ARCHIVED.contains(&name) }
    };
    vec![
        plan(topic::REQUESTS, kafka.partitions, false),
        plan(topic::TOKENS, kafka.partitions, false),
        plan(topic::CONTROL, 1, false),
        plan(topic::BALANCES, kafka.partitions, true),
        plan(topic::DEAD_LETTERS, 1, false),
    ]
}

/// A topic as Kafka says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    partitions: i32,
    /// The fewest copies of any partition.
    replicas: i32,
    /// Whether each partition has a leader.
    led: bool,
}

/// Creates the topics that are missing, with the settings that [`verify`] asks for, and waits until they have leaders. What
/// is there is left as it is. Safe to run from several places at once.
///
/// # Errors
/// [`TopicsError::Unreachable`], or [`TopicsError::Refused`] when Kafka will not make one.
pub async fn ensure(kafka: &KafkaSettings) -> Result<(), TopicsError> {
    let plans = plans(kafka);
    let there = found(kafka, &plans).await?;
    let missing: Vec<_> = plans.iter().zip(&there).filter(|(_, found)| found.is_none()).map(|(plan, _)| plan).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let unreachable = |source| TopicsError::Unreachable { brokers: kafka.brokers.clone(), source };
    let wanted: Vec<_> = missing.iter().map(|plan| new_topic(plan, kafka.replicas())).collect();
    for made in admin(kafka)?.create_topics(&wanted, &options()).await.map_err(unreachable)? {
        match made {
            Ok(name) => tracing::info!(topic = name, "created"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(TopicsError::Refused { topic, code }),
        }
    }
    let deadline = Instant::now() + LIMIT;
    loop {
        let there = found(kafka, &plans).await?;
        if there.iter().all(|found| found.is_some_and(|topic| topic.led)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(unreachable(KafkaError::AdminOp(RDKafkaErrorCode::LeaderNotAvailable)));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Asks Kafka whether every topic is there with the partitions, copies and settings that exactness rests on.
///
/// # Errors
/// [`TopicsError::Wrong`] with one line per thing that is wrong, or [`TopicsError::Unreachable`].
pub async fn verify(kafka: &KafkaSettings) -> Result<(), TopicsError> {
    let plans = plans(kafka);
    let there = found(kafka, &plans).await?;
    let asked: Vec<_> = plans.iter().map(|plan| ResourceSpecifier::Topic(plan.name)).collect();
    let configs = admin(kafka)?
        .describe_configs(&asked, &options())
        .await
        .map_err(|source| TopicsError::Unreachable { brokers: kafka.brokers.clone(), source })?;
    let mut wrong = Vec::new();
    for ((plan, found), config) in plans.iter().zip(there).zip(configs) {
        match found {
            Some(found) => wrong.extend(differences(plan, found, kafka.replicas(), config.ok().as_ref())),
            None => wrong.push(format!("topic {} is missing: `tollgate migrate` and fold create it", plan.name)),
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(TopicsError::Wrong(wrong)) }
}

fn differences(plan: &TopicPlan, found: Found, replicas: i32, config: Option<&ConfigResource>) -> Vec<String> {
    let name = plan.name;
    let mut wrong = Vec::new();
    if found.partitions != plan.partitions {
        wrong.push(format!(
            "topic {name} has {} partitions, {} are configured: set kafka.partitions to what the topic has had since it was \
             created (the order of each tenant's records rests on it; partitions must never be added)",
            found.partitions, plan.partitions
        ));
    }
    if found.replicas < replicas {
        wrong.push(format!(
            "topic {name} has {} copies of a partition, {replicas} are needed: reassign its replicas, or say \
             kafka.single_node = true and mean that a lost disk loses the log",
            found.replicas
        ));
    }
    let Some(config) = config else {
        wrong.push(format!("Kafka does not say the settings of topic {name}: allow DescribeConfigs to this client"));
        return wrong;
    };
    for (key, wanted) in plan.settings.iter().filter(|(key, _)| !plan.may_expire || !key.starts_with("retention.")) {
        let is = config.get(key).and_then(|entry| entry.value.as_deref()).unwrap_or_default();
        if !is_enough(key, is, wanted) {
            let or = if key.starts_with("retention.") && ARCHIVED.contains(&name) {
                ", or run tollgate archive regularly and say kafka.archived = true"
            } else {
                ""
            };
            wrong.push(format!(
                "topic {name} has {key}={is}, it must be {wanted}: set it with kafka-configs.sh --alter{or}"
            ));
        }
    }
    wrong
}

/// More copies in sync than needed are as good.
fn is_enough(key: &str, is: &str, wanted: &str) -> bool {
    match (key, is.parse::<i32>(), wanted.parse::<i32>()) {
        ("min.insync.replicas", Ok(is), Ok(wanted)) => is >= wanted,
        _ => is == wanted,
    }
}

async fn found(kafka: &KafkaSettings, plans: &[TopicPlan]) -> Result<Vec<Option<Found>>, TopicsError> {
    let unreachable = |source| TopicsError::Unreachable { brokers: kafka.brokers.clone(), source };
    let config = kafka.client("topics");
    // The client's call blocks.
    let asked = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = config.create()?;
        consumer.fetch_metadata(None, LIMIT)
    });
    let metadata = asked.await.map_err(|_| unreachable(KafkaError::Canceled))?.map_err(unreachable)?;
    let of = |plan: &TopicPlan| {
        let topic = metadata.topics().iter().find(|topic| topic.name() == plan.name)?;
        let partitions = topic.partitions();
        (topic.error().is_none() && !partitions.is_empty()).then(|| Found {
            partitions: i32::try_from(partitions.len()).unwrap_or(i32::MAX),
            replicas: partitions.iter().map(|p| i32::try_from(p.replicas().len()).unwrap_or(0)).min().unwrap_or(0),
            led: partitions.iter().all(|partition| partition.leader() >= 0),
        })
    };
    Ok(plans.iter().map(of).collect())
}

fn new_topic(plan: &TopicPlan, replicas: i32) -> NewTopic<'_> {
    let topic = NewTopic::new(plan.name, plan.partitions, TopicReplication::Fixed(replicas));
    plan.settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
}

fn admin(kafka: &KafkaSettings) -> Result<AdminClient<DefaultClientContext>, TopicsError> {
    kafka
        .client("topics")
        .create()
        .map_err(|source| TopicsError::Unreachable { brokers: kafka.brokers.clone(), source })
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(LIMIT)).operation_timeout(Some(LIMIT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::admin::{ConfigEntry, ConfigSource, OwnedResourceSpecifier};

    fn config(plan: &TopicPlan) -> ConfigResource {
        let entry = |(name, value): &(&str, String)| ConfigEntry {
            name: (*name).to_owned(),
            value: Some(value.clone()),
            source: ConfigSource::DynamicTopic,
            is_read_only: false,
            is_default: false,
            is_sensitive: false,
        };
        let entries = plan.settings.iter().map(entry).collect();
        ConfigResource { specifier: OwnedResourceSpecifier::Topic(plan.name.to_owned()), entries }
    }

    #[test]
    fn each_wrong_setting_is_said() {
        let kafka = KafkaSettings::default();
        let plan = plans(&kafka).remove(1);
        let good = Found { partitions: 12, replicas: 3, led: true };
        assert_eq!(differences(&plan, good, 3, Some(&config(&plan))), Vec::<String>::new());
        for at in 0..plan.settings.len() {
            let mut other = config(&plan);
            other.entries[at].value = Some("0".to_owned());
            let said = differences(&plan, good, 3, Some(&other));
            assert!(said.len() == 1 && said[0].contains(plan.settings[at].0), "{said:?}");
        }
        let bad = Found { partitions: 13, replicas: 1, led: true };
        let said = differences(&plan, bad, 3, None);
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].contains("13 partitions") && said[1].contains("single_node"), "{said:?}");
    }

    #[test]
    fn only_what_is_archived_may_expire() {
        let expires = |archived| {
            let kafka = KafkaSettings { archived, ..KafkaSettings::default() };
            let wrong = plans(&kafka).into_iter().filter(|plan| {
                let mut config = config(plan);
                for entry in config.entries.iter_mut().filter(|entry| entry.name == "retention.ms") {
                    entry.value = Some("604800000".to_owned());
                }
                let found = Found { partitions: plan.partitions, replicas: 3, led: true };
                !differences(plan, found, 3, Some(&config)).is_empty()
            });
            wrong.map(|plan| plan.name).collect::<Vec<_>>()
        };
        // Balances are compacted and have no retention.
        let others = [topic::CONTROL, topic::DEAD_LETTERS];
        assert_eq!(expires(true), others);
        assert_eq!(expires(false), [ARCHIVED.as_slice(), &others].concat());
    }

    #[test]
    fn only_balances_are_compacted_and_a_single_node_is_said_in_words() {
        let mut kafka = KafkaSettings { partitions: 4, ..KafkaSettings::default() };
        let compacted: Vec<_> = plans(&kafka)
            .into_iter()
            .filter(|plan| plan.settings.contains(&("cleanup.policy", "compact".to_owned())))
            .map(|plan| (plan.name, plan.partitions))
            .collect();
        assert_eq!(compacted, [(topic::BALANCES, 4)]);
        let in_sync = |kafka: &KafkaSettings| plans(kafka)[0].settings[1].clone();
        assert_eq!(in_sync(&kafka), ("min.insync.replicas", "2".to_owned()));
        kafka.single_node = true;
        assert_eq!(in_sync(&kafka), ("min.insync.replicas", "1".to_owned()));
        assert!(is_enough("min.insync.replicas", "2", "1") && !is_enough("min.insync.replicas", "1", "2"));
    }
}
