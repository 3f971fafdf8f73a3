//! The connection to Kafka: one idempotent producer that keeps each partition's order without gaps.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};

use super::transport::{Connect, Outgoing, Refused, Report, Transport};
use crate::kafka::KafkaSettings;
use crate::quiet;

/// Makes producers.
#[derive(Debug, Clone)]
pub struct KafkaConnect(ClientConfig);

impl KafkaConnect {
    /// Producers for the cluster of `settings`; `role` names them in the brokers' logs.
    pub fn new(settings: &KafkaSettings, role: &str) -> Self {
        let mut config = settings.client(role);
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            // A record that fails takes all later ones of its partition with it, instead of leaving a hole.
            .set("enable.gapless.guarantee", "true")
            // A broker takes whatever number comes first from a producer that is new to a partition. Were the first batch
            // refused for the moment (too few replicas, another leader) with a second one behind it, that one would be
            // appended, and the library would report both as written: a hole in the log for ever.
            .set("max.in.flight.requests.per.connection", "1")
            // However long the brokers are away, a record waits: the spool is what bounds it.
            .set("message.timeout.ms", "0")
            .set("compression.type", "lz4")
            .set("linger.ms", "2")
            // More than is ever on its way at once.
            .set("queue.buffering.max.messages", (2 * super::WINDOW_RECORDS).to_string())
            .set("queue.buffering.max.kbytes", (2 * super::WINDOW_BYTES / 1024).to_string());
        Self(config)
    }
}

impl Connect for KafkaConnect {
    fn connect(&mut self) -> Result<Box<dyn Transport>, String> {
        let producer: BaseProducer<Reports> =
            self.0.create_with_context(Reports::default()).map_err(|error| error.to_string())?;
        Ok(Box::new(KafkaTransport(producer)))
    }
}

/// Delivery reports that nobody has asked for yet.
#[derive(Debug, Default)]
struct Reports(Mutex<Vec<Report>>);

impl ClientContext for Reports {
    fn error(&self, error: KafkaError, reason: &str) {
        quiet::heard(&error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, delivered: &DeliveryResult<'_>, id: usize) {
        let result = match delivered {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error.to_string()),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Report { id: id as u64, result });
    }
}

struct KafkaTransport(BaseProducer<Reports>);

impl std::fmt::Debug for KafkaTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaTransport").field("in_flight", &self.0.in_flight_count()).finish()
    }
}

impl Transport for KafkaTransport {
    fn send(&mut self, record: Outgoing<'_>) -> Result<(), Refused> {
        let mut message = BaseRecord::<[u8], [u8], usize>::with_opaque_to(record.topic, record.id as usize)
            .partition(record.partition);
        message.key = record.key;
        message.payload = record.value;
        if !record.headers.is_empty() {
            let empty = OwnedHeaders::new_with_capacity(record.headers.len());
            let headers = record
                .headers
                .iter()
                .fold(empty, |headers, (key, value)| headers.insert(Header { key, value: Some(value.as_slice()) }));
            message.headers = Some(headers);
        }
        match self.0.send(message) {
            Ok(()) => Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Err(Refused::Busy),
            Err((error, _)) => Err(Refused::Failed(error.to_string())),
        }
    }

    fn poll(&mut self, reports: &mut Vec<Report>) -> Result<(), String> {
        loop {
            // One event, of many records. Given a time, it would spin through the last millisecond of it.
            self.0.poll(Duration::ZERO);
            let mut heard = self.0.context().0.lock().unwrap_or_else(PoisonError::into_inner);
            if heard.is_empty() {
                break;
            }
            reports.append(&mut heard);
        }
        let client: &Client<Reports> = self.0.client();
        match client.fatal_error() {
            None => Ok(()),
            Some((code, reason)) => Err(format!("{code}: {reason}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use rdkafka::consumer::{BaseConsumer, Consumer as _};
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
    use rdkafka::{Offset, TopicPartitionList};

    use super::*;

    const TOPIC: &str = "tokens";

    /// Polls until so many records are acknowledged.
    fn acked(transport: &mut dyn Transport, count: usize) {
        let (mut reports, begun) = (Vec::new(), Instant::now());
        while reports.len() < count {
            assert!(begun.elapsed() < Duration::from_secs(30), "{reports:?}");
            transport.poll(&mut reports).unwrap();
            thread::park_timeout(Duration::from_millis(1));
        }
        assert!(reports.iter().all(|report: &Report| report.result.is_ok()), "{reports:?}");
    }

    /// All values of the partition, in order.
    fn log(settings: &KafkaSettings, count: usize) -> Vec<String> {
        let consumer: BaseConsumer = settings.client("test").set("group.id", "test").create().unwrap();
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(TOPIC, 0, Offset::Beginning).unwrap();
        consumer.assign(&from).unwrap();
        let (mut values, begun) = (Vec::new(), Instant::now());
        while values.len() < count {
            assert!(begun.elapsed() < Duration::from_secs(30), "{values:?}");
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                values.push(String::from_utf8(message.payload().unwrap().to_vec()).unwrap());
            }
        }
        values
    }

    fn send(transport: &mut dyn Transport, partition: i32, id: u64) {
        let value = id.to_string();
        let (key, value, headers) = (None, Some(value.as_bytes()), [].as_slice());
        transport.send(Outgoing { id, topic: TOPIC, partition, key, value, headers }).unwrap();
    }

    #[test]
    fn a_refusal_of_a_new_producers_first_batch_lets_no_later_one_pass() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(TOPIC, 2, 1).unwrap();
        let settings = KafkaSettings { brokers: cluster.bootstrap_servers(), ..KafkaSettings::default() };
        let mut transport = KafkaConnect::new(&settings, "test").connect().unwrap();
        send(&mut *transport, 1, 0);
        acked(&mut *transport, 1);
        // Connected, and new to the other partition. Long enough for several batches to be on their way.
        cluster.broker_round_trip_time(1, Duration::from_millis(250)).unwrap();
        cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS]);
        let mut reports = Vec::new();
        for id in 1..=4 {
            send(&mut *transport, 0, id);
            // Longer than batches are gathered, so that each record is a batch.
            let gathered = Instant::now() + Duration::from_millis(30);
            while Instant::now() < gathered {
                transport.poll(&mut reports).unwrap();
                thread::park_timeout(Duration::from_millis(1));
            }
        }
        acked(&mut *transport, 4);
        cluster.broker_round_trip_time(1, Duration::ZERO).unwrap();
        assert_eq!(log(&settings, 4), ["1", "2", "3", "4"]);
    }
}
