//! What a driver asks of ClickHouse, what comes of it, and what it tells the line.

use std::sync::Arc;

use ledger::ids::SourceId;
use sql::{ChunkRows, EventAt, Position, Proof};
use stream::line::Stop;
use thiserror::Error;

/// Why ClickHouse could not be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum StoreError {
    /// May pass.
    #[error("{0}")]
    Unavailable(String),
    /// What is there is damaged, or not ours: only a person can help.
    #[error("{0}")]
    Damaged(String),
}

/// Why a chunk was not written, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Refused {
    /// Its deadline had passed.
    #[error("the chunk's deadline had passed by ClickHouse's clock")]
    Fence,
    /// Nobody knows whether it was written.
    #[error("{0}")]
    Unknown(String),
    /// It contradicts itself.
    #[error("{0}")]
    Malformed(String),
}

/// Why a line stands still.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Standstill {
    /// Records are missing, or cannot be read by this build.
    #[error("{0}; the line stands still so that nothing is billed wrongly")]
    Lost(#[from] Stop),
    /// The log is not the one that was folded, or ends before the position.
    #[error("{0}")]
    OtherLog(String),
    /// ClickHouse holds what cannot be built on.
    #[error("{0}")]
    Damaged(String),
}

/// What is to be asked of ClickHouse. One at a time.
#[derive(Debug)]
pub(crate) enum Call<D> {
    /// A full proof; with what the balances begin with, of the same position, if so asked.
    Prove { with_totals: bool },
    /// The ids of the events with these numbers.
    EventIds(Vec<(SourceId, u64)>),
    /// Its dead letters, to the topic of their copies.
    Copy(Arc<ChunkRows<D>>),
    /// A chunk under its token and deadline.
    Insert { rows: Arc<ChunkRows<D>>, retry: u32, insert_before_ms: i64 },
    /// The position alone.
    Position,
}

/// What came of a [`Call`].
#[derive(Debug)]
pub(crate) enum Answer {
    Proof(Result<Proof, StoreError>),
    EventIds(Result<Vec<EventAt>, StoreError>),
    Copied(Result<(), String>),
    Inserted(Result<(), Refused>),
    Position(Result<Position, StoreError>),
}

/// What an answer meant, for metrics and the log.
#[derive(Debug)]
pub(crate) enum Event<D> {
    /// Nothing to tell.
    Nothing,
    /// The position is proven; the log is read from here if it was not.
    Proven(i64),
    /// A chunk is in ClickHouse.
    Written(Arc<ChunkRows<D>>),
    /// Another owner's cut won.
    Foreign(i64),
    /// The token was kept and the part lost: it is sent again under another token.
    Torn,
    /// Something failed and is tried again.
    Failed(&'static str, String),
}

/// What became of a record that was offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The line has stepped over it.
    Stepped,
    /// It was read before.
    Skipped,
    /// There is no room until a chunk is written: offer it again.
    NoRoom,
    /// The line stands still before it.
    StoodStill,
}
