//! The names of the topics.

/// Requests that ended, keyed by tenant.
pub const REQUESTS: &str = "tollgate.requests.v1";
/// Tokens that were counted, keyed by tenant: what bills.
pub const TOKENS: &str = "tollgate.tokens.v1";
/// Samples of GPUs, keyed by GPU.
pub const GPU_SAMPLES: &str = "tollgate.gpu-samples.v1";
/// Tenants, keys, plans, prices, models: one partition, kept for ever.
pub const CONTROL: &str = "tollgate.control.v1";
/// What tenants have used in their period: compacted, keyed by tenant and period.
pub const BALANCES: &str = "tollgate.balances.v1";
/// Closed invoices.
pub const INVOICES: &str = "tollgate.invoices.v1";
/// Copies of records that could not be folded.
pub const DEAD_LETTERS: &str = "tollgate.dead-letters.v1";
