//! What tollgate dev runs beside the roles: Apache Kafka, the ClickHouse engine, the registry's read API, a vLLM simulator.

pub mod clickhouse;
pub mod kafka;
mod port;
mod process;
pub mod registry;
pub mod vllm;

pub use process::{die_with_parent, signal_with_parent};
