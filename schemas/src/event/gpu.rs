//! What a GPU did over a span of time.

use ledger::ids::{EventId, SourceId};
use ledger::time::Micros;
use serde::{Deserialize, Serialize};

use super::{CountOutOfBounds, Envelope, Event, Record};
use crate::registry::GPU_SAMPLED_V1;

/// What one GPU, and the replica on it, did over a span of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each field is described in avro/gpu_sampled.v1.avsc")]
pub struct GpuSampled {
    pub event_id: EventId,
    pub source: SourceId,
    pub seq: i64,
    pub occurred_at: Micros,
    pub gpu_id: String,
    pub gpu_class: String,
    pub host: String,
    pub replica: Option<String>,
    pub model: Option<String>,
    pub from: Micros,
    pub to: Micros,
    pub engine_active_micros: i64,
    pub memory_used_bytes: i64,
    pub energy_millijoules: i64,
    pub requests_running: i64,
    pub requests_waiting: i64,
    pub kv_cache_usage_ppm: i64,
    pub prompt_tokens_total: Option<i64>,
    pub generation_tokens_total: Option<i64>,
}

impl Record for GpuSampled {
    const SCHEMA_ID: u32 = GPU_SAMPLED_V1;
}

impl Event for GpuSampled {
    fn envelope(&self) -> Envelope<'_> {
        Envelope {
            event_id: self.event_id,
            source: self.source,
            seq: self.seq,
            occurred_at: self.occurred_at,
            key: &self.gpu_id,
        }
    }

    fn check(&self) -> Result<(), CountOutOfBounds> {
        let span = self.to.0.saturating_sub(self.from.0);
        let sums = [self.memory_used_bytes, self.energy_millijoules, self.requests_running, self.requests_waiting];
        let totals = [self.prompt_tokens_total, self.generation_tokens_total];
        let busy = self.engine_active_micros;
        if !(0..=span).contains(&busy) {
            return Err(CountOutOfBounds(busy));
        }
        if !(0..=1_000_000).contains(&self.kv_cache_usage_ppm) {
            return Err(CountOutOfBounds(self.kv_cache_usage_ppm));
        }
        match sums.into_iter().chain(totals.into_iter().flatten()).find(|count| *count < 0) {
            Some(count) => Err(CountOutOfBounds(count)),
            None => Ok(()),
        }
    }
}
