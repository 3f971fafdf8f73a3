//! The embedded ClickHouse as its clients meet it: in a process of its own, through the official crate, with kill -9.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

mod answers;
mod engine;
mod faults;
mod inserts;
mod types;
