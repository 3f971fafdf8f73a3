//! What tollgate dev runs beside the roles: Apache Kafka, a vLLM simulator; later the ClickHouse engine and the registry's read API.

pub mod kafka;
mod process;
pub mod vllm;
