//! `tollgate doctor`: in plain words, what is wrong with settings and connections, and what to do.

#![expect(dead_code, reason = "the roles that these modules start are not built yet")]

mod clickhouse;
mod host;
mod kafka;
mod report;
