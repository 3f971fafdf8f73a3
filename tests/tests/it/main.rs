//! The promises, one module each: real broker, real engine, real processes.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, its helpers too")]

mod adds_up;
mod audit;
mod canary;
mod clients;
mod corrections;
mod faults;
mod folds;
mod limits;
mod operations;
mod reconcile;
mod refusals;
mod together;
