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

    fn poll(&mut self, limit: Duration, reports: &mut Vec<Report>) -> Result<(), String> {
        self.0.poll(limit);
        reports.append(&mut self.0.context().0.lock().unwrap_or_else(PoisonError::into_inner));
        let client: &Client<Reports> = self.0.client();
        match client.fatal_error() {
            None => Ok(()),
            Some((code, reason)) => Err(format!("{code}: {reason}")),
        }
    }
}
