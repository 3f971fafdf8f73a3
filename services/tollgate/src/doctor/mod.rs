//! `tollgate doctor`: in plain words, what is wrong with settings and connections, and what to do.

mod clickhouse;
mod host;
mod kafka;
mod report;
