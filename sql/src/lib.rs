//! Everything ClickHouse: migrations, row types, inserts and named queries. SQL stands in this crate and nowhere else.
//!
//! **Tables.** One per data topic, [`Table::Tokens`] and [`Table::Requests`], with four kinds of rows: `data` (one per
//! folded record), `dead` (one per dead letter), `source` (how far each source of a chunk is), `chunk` (its offsets, what
//! became of them, the chain). A chunk is one insert, one block, one part; its sums are projections, which live in that
//! same part: rows and sums are there together or not at all. `schema.sql` is what the migrations add up to.
//!
//! **Writing.** [`ClickHouse::prove`] says where a line stands, or that its table is damaged. [`ClickHouse::insert_chunk`]
//! writes what comes next under a token that names only the first offset, so the first of two writers wins, and under a
//! deadline by ClickHouse's own clock, so a writer that slept is refused. [`ClickHouse::position`] reads back whose rows
//! they are.
//!
//! **Reading.** Each figure is a file in `queries/` and a method here. Parameters are bound by ClickHouse; no value is
//! ever put into the text of a statement. Sums are asked so that a projection answers them ([`ClickHouse::strict`]
//! refuses otherwise). Spans of time are cut by the calendar of [`ledger`], not by ClickHouse's.
//!
//! Token counts are integers; there is no money here.

mod audit;
mod calendar;
mod client;
mod dead_letters;
mod error;
mod insert;
mod lookup;
mod migrate;
mod parquet;
mod proof;
mod raw;
mod reconcile;
mod reconciliations;
mod replica_counters;
mod requests;
mod rows;
mod seal;
mod settings;
mod status;
mod table;
mod trial;
mod usage;
mod wire;

pub use audit::{ChunkCut, RowDifference, RowFault};
pub use calendar::{CalendarError, Grain, LogHour, LogHours, SPANS_MAX, Span, log_month};
pub use client::ClickHouse;
pub use dead_letters::{DeadLetter, DeadLetterQuery, Replayed};
pub use error::{InsertError, ProofError, QueryError};
pub use lookup::EventAt;
pub use migrate::{MigrateError, Migration, Progress, Report, migrate, version};
pub use parquet::{LogRow, ParquetTable};
pub use proof::{Group, Position, Proof};
pub use raw::sealed::{SealedRow, SealedRows};
pub use raw::{DataRow, Field};
pub use reconcile::{LineOutcomes, ReplicaTotal, TrialBalance, TrialBalanceLine};
pub use reconciliations::Reconciliation;
pub use replica_counters::{ReplicaCounters, ReplicaUsage};
pub use requests::{Cursor, Endings, RequestLine, RequestQuery};
pub use rows::{ChunkRows, DeadRow, Folded, OutcomeCounts, RequestRow, SourceEnd, SourceState, TokenRow};
pub use seal::{Month, MonthFigures, MonthSize};
pub use settings::ClickHouseSettings;
pub use status::Status;
pub use table::{Kind, Table};
pub use trial::{BalanceSum, ChunkBreak, ChunkFault, ChunkSpan, EventRow, HourBegin, Uneven, Unmatched};
pub use usage::{Keys, PartitionTotal, PartitionTotals, RatingLine, Scope, UsageLine, UsageQuery};
