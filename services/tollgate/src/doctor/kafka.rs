//! What doctor says of Kafka itself: whether it answers, and how far its clock is off.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use runtime::Clock;

use super::clickhouse::skew;
use super::report::Report;

const LIMIT: Duration = Duration::from_secs(5);
/// Heartbeats come each second: a newest record older than this means that no gateway writes.
const SILENCE_MICROS: i64 = 10_000_000;

/// Whether a broker answers. True when it does. Blocks for up to five seconds.
pub(crate) fn check(report: &mut Report, config: &ClientConfig, brokers: &str) -> bool {
    let found = config
        .create::<BaseConsumer>()
        .and_then(|consumer| consumer.fetch_metadata(None, LIMIT))
        .map(|metadata| (metadata.brokers().len(), metadata.topics().len()));
    match found {
        Ok((brokers_found, topics)) => {
            report.ok(format!("Kafka answers at {brokers}: {brokers_found} broker(s), {topics} topics"));
            true
        }
        Err(error) => {
            report.fail(
                format!("Kafka at {brokers} does not answer: {error}"),
                "start it, or correct brokers and properties in [kafka]; the gateway serves without it as long as its spool has room",
            );
            false
        }
    }
}

/// The broker's clock against this host's, by the time that the broker gave to the newest record. Blocks for seconds.
pub(crate) fn clock(report: &mut Report, config: &ClientConfig, topic: &str, partitions: i32, clock: &dyn Clock) {
    let newest = (0..partitions).filter_map(|partition| newest_record(config, topic, partition)).max();
    let now = clock.now();
    match newest {
        // Ahead is certain, however old the record is.
        Some(newest) if newest > now => skew(report, "Kafka's broker", newest - now, 0),
        Some(newest) if now - newest < SILENCE_MICROS => skew(report, "Kafka's broker", 0, 0),
        _ => report.warn(
            "no gateway has written in the last ten seconds, so the clock of Kafka's broker cannot be compared",
            "start a gateway and ask again; if one runs, its broker's clock is behind, or it cannot ship: see its /readyz",
        ),
    }
}

/// The broker's time of the last record, microseconds UTC.
fn newest_record(config: &ClientConfig, topic: &str, partition: i32) -> Option<i64> {
    // A group is only named: nothing is committed, and nobody joins.
    let mut config = config.clone();
    config.set("group.id", "tollgate-doctor").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().ok()?;
    let (first, next) = consumer.fetch_watermarks(topic, partition, LIMIT).ok()?;
    if next <= first {
        return None;
    }
    let mut assigned = TopicPartitionList::new();
    assigned.add_partition_offset(topic, partition, Offset::Offset(next - 1)).ok()?;
    consumer.assign(&assigned).ok()?;
    let millis = consumer.poll(LIMIT)?.ok()?.timestamp().to_millis()?;
    Some(millis * 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_is_not_there_is_said_with_its_address() {
        let mut report = Report::quiet();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1").set("log_level", "0");
        assert!(!check(&mut report, &config, "127.0.0.1:1"));
        assert!(report.text().contains("127.0.0.1:1 does not answer"), "{}", report.text());
    }
}
