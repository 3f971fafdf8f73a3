//! Writing to the control log: a write is answered when its own record has come back.

use std::sync::Arc;
use std::time::Duration;

use ledger::control::{Rejected, Write};
use ledger::time::Micros;
use rdkafka::error::KafkaError;
use rdkafka::producer::{FutureProducer, FutureRecord};
use runtime::{Clock, SystemClock};
use schemas::codec;
use schemas::event::ControlChanged;
use schemas::topic::CONTROL;
use thiserror::Error;
use uuid::Uuid;

use super::view::ControlView;
use crate::kafka::KafkaSettings;
use crate::quiet::Quiet;

/// How long the broker may take to acknowledge a write.
const DELIVERY_MS: &str = "5000";
/// How long a write may take until its record has come back.
const ANSWER: Duration = Duration::from_secs(8);

/// A write that has its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The revision after it.
    pub revision: u64,
    /// Its offset in the log. Who waits for its effect elsewhere waits for `offset + 1`.
    pub offset: i64,
}

/// Why a write was not answered with success.
#[derive(Debug, Error)]
pub enum WriteError {
    /// It has no effect: another one came first, or it is not valid.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// Kafka is away. The write may still come to the log: read the document again before trying once more. A repeated write
    /// with the same expected revision can have its effect only once.
    #[error("the control log does not answer: {0}; the write may or may not take effect, so read again before writing")]
    Unavailable(String),
    /// The document does not fit into a record.
    #[error("the document cannot be written: {0}")]
    Encode(String),
}

/// Writes to the control log. Its process must run the [`super::ControlReader`] of the same view.
#[derive(Clone)]
pub struct ControlWriter {
    producer: FutureProducer<Quiet>,
    view: ControlView,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for ControlWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlWriter").field("view", &self.view).finish_non_exhaustive()
    }
}

impl ControlWriter {
    /// Does not ask Kafka yet.
    ///
    /// # Errors
    /// When the settings cannot be used.
    pub fn new(settings: &KafkaSettings, view: ControlView) -> Result<Self, KafkaError> {
        let producer = settings
            .client("control-writer")
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", DELIVERY_MS)
            .set("linger.ms", "0")
            .create_with_context(Quiet)?;
        Ok(Self { producer, view, clock: Arc::new(SystemClock) })
    }

    /// Dates its writes by this clock.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// Writes, and returns when the record has been read back and its effect is in the view.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn write(&self, write: Write, actor: &str) -> Result<Written, WriteError> {
        if let Err(rejected) = self.view.load().state.check(&write)
            && for_ever(&rejected)
        {
            return Err(rejected.into());
        }
        let write_id = Uuid::now_v7();
        let record = ControlChanged::of(&write, write_id, Micros(self.clock.now()), actor)
            .map_err(|error| WriteError::Encode(error.to_string()))?;
        let value = codec::encode(&record).map_err(|error| WriteError::Encode(error.to_string()))?;
        let key = format!("{}/{}", write.kind.as_str(), write.id);
        let mut expected = self.view.expect(write_id);
        let record = FutureRecord::to(CONTROL).partition(0).key(&key).payload(&value);
        let delivery = self.producer.send_result(record).map_err(|(error, _)| unavailable(&error))?;
        let delivered = async {
            match delivery.await {
                Ok(Err((error, _))) => unavailable(&error),
                Err(_) => WriteError::Unavailable("the producer stopped".to_owned()),
                // It is in the log; what becomes of it says the log.
                Ok(Ok(_)) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            outcome = expected.outcome() => match outcome {
                Some((offset, revision)) => Ok(Written { revision: revision?, offset }),
                None => Err(WriteError::Unavailable("nobody reads the log in this process".to_owned())),
            },
            failed = delivered => Err(failed),
            () = tokio::time::sleep(ANSWER) => {
                Err(WriteError::Unavailable(format!("the record did not come back within {} s", ANSWER.as_secs())))
            }
        }
    }
}

fn unavailable(error: &KafkaError) -> WriteError {
    WriteError::Unavailable(error.to_string())
}

/// Whether no record that is still to be read could change the answer. All else is for the log to decide: what is missing
/// here may have been written elsewhere a moment ago.
const fn for_ever(rejected: &Rejected) -> bool {
    match rejected {
        Rejected::Conflict { expected, found } | Rejected::Overtaken { expected, found } => *expected < *found,
        Rejected::OtherKind(_)
        | Rejected::Id(_)
        | Rejected::NoUuid(_)
        | Rejected::Canaries(_)
        | Rejected::Weight
        | Rejected::Final
        | Rejected::Adjustment(_)
        | Rejected::Price(_)
        | Rejected::Time(_) => true,
        Rejected::Missing(..) | Rejected::InUse(..) | Rejected::Taken(..) | Rejected::Base(_) => false,
    }
}
