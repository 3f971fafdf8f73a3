//! The log folded into ClickHouse, and balances out of memory.
