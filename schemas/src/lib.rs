//! The wire: Avro schemas with constant ids, the Confluent wire format, topics and events.

mod binary;
pub mod codec;
pub mod compatibility;
pub mod event;
pub mod mark;
pub mod registry;
pub mod topic;
