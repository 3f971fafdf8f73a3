//! What tollgate dev runs beside the roles: Apache Kafka, the ClickHouse engine, the registry's read API, a vLLM simulator.

pub mod vllm;
