//! What librdkafka says of its clients, for the log: that a broker is away is said once by whoever waits for it, not at every try.

use rdkafka::client::ClientContext;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// A client that does not fill the log while Kafka is away.
#[derive(Debug, Clone, Copy)]
pub struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        heard(&error, reason);
    }
}

impl ConsumerContext for Quiet {}

/// Logs an error of a client by what it means to people.
pub(crate) fn heard(error: &KafkaError, reason: &str) {
    match weight(error) {
        Weight::None => {}
        Weight::Outage => tracing::debug!(%error, reason, "a Kafka client has no connection, and tries again"),
        Weight::Fault => tracing::warn!(%error, reason, "a Kafka client met an error, and goes on"),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Weight {
    /// Asked for, and no error.
    None,
    /// A broker cannot be reached. Each client meets it again several times a second.
    Outage,
    /// Something that people may have to see to: a refused password, a certificate.
    Fault,
}

fn weight(error: &KafkaError) -> Weight {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut, PartitionEOF, Resolve};
    match error.rdkafka_error_code() {
        Some(PartitionEOF) => Weight::None,
        Some(AllBrokersDown | BrokerTransportFailure | OperationTimedOut | Resolve) => Weight::Outage,
        _ => Weight::Fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_people_can_mend_is_a_warning() {
        let of = |code| weight(&KafkaError::Global(code));
        assert_eq!(of(RDKafkaErrorCode::PartitionEOF), Weight::None);
        assert_eq!(of(RDKafkaErrorCode::AllBrokersDown), Weight::Outage);
        assert_eq!(of(RDKafkaErrorCode::BrokerTransportFailure), Weight::Outage);
        assert_eq!(of(RDKafkaErrorCode::Authentication), Weight::Fault);
        assert_eq!(of(RDKafkaErrorCode::SSL), Weight::Fault);
        assert_eq!(of(RDKafkaErrorCode::TopicAuthorizationFailed), Weight::Fault);
    }
}
