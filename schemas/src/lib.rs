//! The wire: Avro schemas, the Confluent wire format, topics and marks.
