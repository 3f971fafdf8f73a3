//! The events as Rust sees them: field for field the Avro records, in their order.

mod balance;
mod control;
mod dead_letter;
mod gpu;

pub use balance::{BalanceUpdated, ModelUsage};
pub use control::{ControlChanged, NotAWrite};
pub use dead_letter::DeadLettered;
pub use gpu::GpuSampled;

use ledger::ids::{ApiKeyId, EventId, ModelId, ModelVersion, ProjectId, RequestId, SourceId, TenantId};
use ledger::time::Micros;
use ledger::tokens::TokenCounts;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::registry::{REQUEST_FINISHED_V1, TOKENS_COUNTED_V1};

/// A text that is no end reason.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no end reason")]
pub struct UnknownEndReason(pub String);

/// Why a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum EndReason {
    /// The answer went to its end.
    Complete,
    /// The replica failed.
    UpstreamError,
    /// The client hung up.
    ClientCancelled,
    /// A deadline passed.
    Deadline,
    /// The gateway died; its successor finished the request.
    GatewayLost,
    /// The gateway was stopped before the answer's end.
    Drained,
}

impl EndReason {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Complete, Self::UpstreamError, Self::ClientCancelled, Self::Deadline, Self::GatewayLost, Self::Drained];

    /// The name in events, tables and interfaces.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::UpstreamError => "upstream_error",
            Self::ClientCancelled => "client_cancelled",
            Self::Deadline => "deadline",
            Self::GatewayLost => "gateway_lost",
            Self::Drained => "drained",
        }
    }
}

impl From<EndReason> for String {
    fn from(reason: EndReason) -> Self {
        reason.as_str().to_owned()
    }
}

impl TryFrom<String> for EndReason {
    type Error = UnknownEndReason;
    fn try_from(text: String) -> Result<Self, UnknownEndReason> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text).ok_or(UnknownEndReason(text))
    }
}

/// What every spooled event carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The same on every resend.
    pub event_id: EventId,
    /// The start of the process that wrote it.
    pub source: SourceId,
    /// Its number in its source, topic and partition, from 1.
    pub seq: i64,
    /// When it happened.
    pub occurred_at: Micros,
    /// The key of the record.
    pub key: &'a str,
}

/// A record that has a schema.
pub trait Record: Serialize + serde::de::DeserializeOwned {
    /// The id of the schema that is written today.
    const SCHEMA_ID: u32;
}

/// A record that a spool writes.
pub trait Event: Record {
    /// What every spooled event carries.
    fn envelope(&self) -> Envelope<'_>;

    /// Whether its figures are within their bounds.
    fn check(&self) -> Result<(), CountOutOfBounds>;
}

/// Tokens handed to a client since the count before, and their running count in the attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each field is described in avro/tokens_counted.v1.avsc")]
pub struct TokensCounted {
    pub event_id: EventId,
    pub source: SourceId,
    pub seq: i64,
    pub occurred_at: Micros,
    pub tenant_id: TenantId,
    pub request_id: RequestId,
    pub attempt: i32,
    pub project_id: ProjectId,
    pub api_key_id: ApiKeyId,
    pub model: ModelId,
    pub version: ModelVersion,
    pub replica: String,
    pub endpoint: String,
    pub input: i64,
    pub cached_input: i64,
    pub output: i64,
    pub reasoning: i64,
    pub input_cumulative: i64,
    pub cached_input_cumulative: i64,
    pub output_cumulative: i64,
    pub reasoning_cumulative: i64,
    pub requests: i64,
    #[serde(rename = "final")]
    pub last: bool,
    pub estimated: bool,
    pub end_reason: Option<EndReason>,
}

/// A count in an event that is negative or too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a count of {0} is out of bounds (tokens: 0 to 2^40; requests: 0 or 1; nothing is below 0)")]
pub struct CountOutOfBounds(pub i64);

fn counts([input, cached_input, output, reasoning]: [i64; 4]) -> Result<TokenCounts, CountOutOfBounds> {
    let count = |n: i64| match u64::try_from(n) {
        Ok(tokens) if tokens <= ledger::tokens::TOKENS_MAX => Ok(tokens),
        _ => Err(CountOutOfBounds(n)),
    };
    Ok(TokenCounts {
        input: count(input)?,
        cached_input: count(cached_input)?,
        output: count(output)?,
        reasoning: count(reasoning)?,
    })
}

impl TokensCounted {
    /// What this event bills.
    pub fn delta(&self) -> Result<TokenCounts, CountOutOfBounds> {
        counts([self.input, self.cached_input, self.output, self.reasoning])
    }

    /// The running count of the attempt, this event included.
    pub fn cumulative(&self) -> Result<TokenCounts, CountOutOfBounds> {
        counts([self.input_cumulative, self.cached_input_cumulative, self.output_cumulative, self.reasoning_cumulative])
    }
}

impl Record for TokensCounted {
    const SCHEMA_ID: u32 = TOKENS_COUNTED_V1;
}

impl Event for TokensCounted {
    fn envelope(&self) -> Envelope<'_> {
        Envelope {
            event_id: self.event_id,
            source: self.source,
            seq: self.seq,
            occurred_at: self.occurred_at,
            key: self.tenant_id.as_str(),
        }
    }

    fn check(&self) -> Result<(), CountOutOfBounds> {
        let known = matches!(self.requests, 0 | 1);
        self.delta()?;
        self.cumulative()?;
        if known { Ok(()) } else { Err(CountOutOfBounds(self.requests)) }
    }
}

/// A request that ended. Explains; never bills.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each field is described in avro/request_finished.v1.avsc")]
pub struct RequestFinished {
    pub event_id: EventId,
    pub source: SourceId,
    pub seq: i64,
    pub occurred_at: Micros,
    pub tenant_id: TenantId,
    pub request_id: RequestId,
    pub attempts: i32,
    pub project_id: ProjectId,
    pub api_key_id: ApiKeyId,
    pub model: ModelId,
    pub version: ModelVersion,
    pub replica: String,
    pub endpoint: String,
    pub stream: bool,
    pub status: i32,
    pub end_reason: EndReason,
    pub error_code: Option<String>,
    pub received_at: Micros,
    pub dispatched_at: Option<Micros>,
    pub first_byte_at: Option<Micros>,
}

impl Record for RequestFinished {
    const SCHEMA_ID: u32 = REQUEST_FINISHED_V1;
}

impl Event for RequestFinished {
    fn envelope(&self) -> Envelope<'_> {
        Envelope {
            event_id: self.event_id,
            source: self.source,
            seq: self.seq,
            occurred_at: self.occurred_at,
            key: self.tenant_id.as_str(),
        }
    }

    fn check(&self) -> Result<(), CountOutOfBounds> {
        Ok(())
    }
}
