//! Everything ClickHouse: migrations, row types, inserts and named queries.
