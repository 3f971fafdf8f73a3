//! Spool, recovery, shipping, and the step functions that turn a log into outcomes.

pub mod chain;
pub mod consume;
pub mod cut;
pub mod inflight;
pub mod kafka;
pub mod line;
pub mod partition;
pub mod spend;
pub mod spool;
pub mod topics;
