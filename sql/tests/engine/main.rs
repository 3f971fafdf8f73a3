//! This crate on the real engine: what exactness rests on, and every figure beside the same one computed by hand.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

mod chunks;
mod engine;
mod figures;
mod log;
mod migrations;
mod parquet;
mod proofs;
mod requests;
mod seal;
mod trial;
