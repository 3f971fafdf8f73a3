//! Spool, recovery, shipping, and the step functions that turn a log into outcomes.

pub mod balances;
pub mod chain;
pub mod consume;
pub mod control;
pub mod cut;
mod follow;
pub mod inflight;
pub mod kafka;
pub mod line;
pub mod partition;
pub mod quiet;
pub mod ship;
mod snapshot;
pub mod spend;
pub mod spool;
pub mod topics;
