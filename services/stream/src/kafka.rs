//! How every role reaches Kafka: one section of settings, and the client configuration that all of its clients begin with.

use std::collections::BTreeMap;

use rdkafka::ClientConfig;
use serde::{Deserialize, Serialize};

/// `[kafka]` of the configuration.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaSettings {
    /// `host:port`, several with commas.
    pub brokers: String,
    /// Says in words that one broker without replicas is meant: topics then have one replica, and a lost disk loses the log.
    pub single_node: bool,
    /// Partitions of the data topics. Fixed once the topics are there: the order of each tenant's records rests on it.
    pub partitions: i32,
    /// Says in words that `tollgate archive` runs regularly: the tokens and requests topics may then have a retention, longer than the
    /// time between two runs.
    pub archived: bool,
    /// librdkafka's own properties, for TLS and SASL. Those that exactness rests on cannot be set here.
    pub properties: BTreeMap<String, String>,
}

impl Default for KafkaSettings {
    fn default() -> Self {
        Self {
            brokers: "127.0.0.1:9092".to_owned(),
            single_node: false,
            partitions: 12,
            archived: false,
            properties: BTreeMap::new(),
        }
    }
}

/// The values of properties may be secrets.
impl std::fmt::Debug for KafkaSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSettings")
            .field("brokers", &self.brokers)
            .field("single_node", &self.single_node)
            .field("partitions", &self.partitions)
            .field("archived", &self.archived)
            .field("properties", &self.properties.keys())
            .finish()
    }
}

/// What the order and the completeness of the log rest on, and how the clients are named.
const OURS: [&str; 18] = [
    "acks",
    "auto.offset.reset",
    "bootstrap.servers",
    "check.crcs",
    "client.id",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "group.id",
    "isolation.level",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "message.timeout.ms",
    "partitioner",
    "request.required.acks",
    "retries",
    "transactional.id",
];

impl KafkaSettings {
    /// What is wrong with the settings; nothing if they can be used.
    pub fn validate(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let host_and_port = |broker: &str| {
            broker.trim().rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        if !self.brokers.split(',').all(host_and_port) {
            wrong.push(format!("kafka.brokers must be host:port, several with commas, not {:?}", self.brokers));
        }
        if !(1..=1024).contains(&self.partitions) {
            wrong.push("kafka.partitions must be 1 to 1024".to_owned());
        }
        for name in self.properties.keys().filter(|name| OURS.contains(&name.as_str())) {
            wrong.push(format!("kafka.properties must not set {name}: exact counting rests on the value it has"));
        }
        wrong
    }

    /// The configuration that every client begins with. `role` names the client in the broker's log.
    pub fn client(&self, role: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", format!("tollgate-{role}"))
            .set("allow.auto.create.topics", "false")
            .set("broker.address.family", "any")
            .set("socket.nagle.disable", "true")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000");
        config
    }

    /// The configuration of every consumer: offsets are never committed or reset behind its back, and only what Kafka holds
    /// whole is handed over. Who reads what is never a group's decision; `group` is the name under which a place is shown.
    pub fn consumer(&self, role: &str, group: &str) -> ClientConfig {
        let mut config = self.client(role);
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("check.crcs", "true")
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.wait.max.ms", "100");
        config
    }

    /// How many copies of a partition there are: three, of which two must answer; or one where that was said in words.
    pub const fn replicas(&self) -> i32 {
        if self.single_node { 1 } else { 3 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exactness_rests_on_cannot_be_set() {
        let mut settings = KafkaSettings::default();
        assert_eq!(settings.validate(), Vec::<String>::new());
        settings.properties.insert("acks".into(), "1".into());
        settings.properties.insert("security.protocol".into(), "ssl".into());
        settings.brokers = "localhost".into();
        settings.partitions = 0;
        let wrong = settings.validate();
        assert_eq!(wrong.len(), 3, "{wrong:?}");
        assert!(wrong[2].contains("acks"), "{wrong:?}");
    }

    #[test]
    fn the_values_of_properties_are_not_shown() {
        let mut settings = KafkaSettings::default();
        settings.properties.insert("sasl.password".into(), "hunter2".into());
        let shown = format!("{settings:?}");
        assert!(shown.contains("sasl.password") && !shown.contains("hunter2"), "{shown}");
    }
}
