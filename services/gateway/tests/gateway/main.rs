//! The gateway against simulated replicas in the same process: what clients get, and what the spool then holds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at what it did not expect")]

mod access;
mod answers;
mod collector;
mod cut;
mod failing;
mod isolation;
mod issuers;
mod limits;
mod manners;
mod outcomes;
mod queue;
mod redis;
mod refusals;
mod routing;
mod secure;
mod signer;
mod stub;
mod together;
mod tokens;
mod tracing;
mod world;
