//! What a tenant has used in a period, as the fold publishes it.

use ledger::ids::{ModelId, TenantId};
use ledger::time::Micros;
use ledger::tokens::TokenCounts;
use serde::{Deserialize, Serialize};

use super::{CountOutOfBounds, Record};
use crate::registry::BALANCE_UPDATED_V1;

/// What a tenant has used in one of its periods. Absolute: the one with the highest `as_of` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each field is described in avro/balance_updated.v1.avsc")]
pub struct BalanceUpdated {
    pub tenant_id: TenantId,
    pub period_from: Micros,
    pub period_to: Micros,
    pub partition: i32,
    pub as_of: i64,
    pub control_offset: i64,
    pub published_at: Micros,
    pub usage: Vec<ModelUsage>,
}

/// What was used of one model. Sums: a count here may be above what one event can hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each field is described in avro/balance_updated.v1.avsc")]
pub struct ModelUsage {
    pub model: ModelId,
    pub input: i64,
    pub cached_input: i64,
    pub output: i64,
    pub reasoning: i64,
    pub requests: i64,
}

impl Record for BalanceUpdated {
    const SCHEMA_ID: u32 = BALANCE_UPDATED_V1;
}

impl BalanceUpdated {
    /// The key of the record: `tenant/period_from`, the period as micros.
    pub fn key(&self) -> String {
        format!("{}/{}", self.tenant_id, self.period_from.0)
    }
}

impl ModelUsage {
    /// The counts, if none is below zero.
    pub fn counts(&self) -> Result<TokenCounts, CountOutOfBounds> {
        let count = |n: i64| u64::try_from(n).map_err(|_| CountOutOfBounds(n));
        Ok(TokenCounts {
            input: count(self.input)?,
            cached_input: count(self.cached_input)?,
            output: count(self.output)?,
            reasoning: count(self.reasoning)?,
        })
    }
}
