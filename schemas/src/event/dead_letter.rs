//! The copy of a record that could not count.

use apache_avro::serde::bytes_opt;
use serde::{Deserialize, Serialize};

use super::Record;
use crate::registry::DEAD_LETTERED_V1;

/// A copy of a record that could not count. The row in ClickHouse is the truth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each field is described in avro/dead_lettered.v1.avsc")]
pub struct DeadLettered {
    pub origin_topic: String,
    pub origin_partition: i32,
    pub origin_offset: i64,
    /// Milliseconds since 1970.
    #[serde(rename = "log_time")]
    pub log_time_ms: i64,
    pub reason: String,
    pub detail: String,
    #[serde(with = "bytes_opt")]
    pub key: Option<Vec<u8>>,
    #[serde(with = "bytes_opt")]
    pub value: Option<Vec<u8>>,
}

impl Record for DeadLettered {
    const SCHEMA_ID: u32 = DEAD_LETTERED_V1;
}

impl DeadLettered {
    /// The key of the record: `topic/partition/offset` of where it stands.
    pub fn key(&self) -> String {
        format!("{}/{}/{}", self.origin_topic, self.origin_partition, self.origin_offset)
    }
}
