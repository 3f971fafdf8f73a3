//! What can go wrong with ClickHouse, told apart by what the caller must do about it.

use clickhouse::error::Error;
use thiserror::Error as ThisError;

/// The number of "a constraint is violated": in our tables that is the fence.
const VIOLATED_CONSTRAINT: i32 = 469;
/// The number of "no projection answers this", where one was demanded.
const PROJECTION_NOT_USED: i32 = 584;

/// Why a statement was not answered. The texts are for logs: they may quote SQL.
#[derive(Debug, ThisError)]
pub enum QueryError {
    /// ClickHouse refused it.
    #[error("ClickHouse refused the statement with code {code}: {message}")]
    Engine {
        /// ClickHouse's number of the error.
        code: i32,
        /// Its whole text.
        message: String,
    },
    /// No answer came.
    #[error("ClickHouse does not answer: {0}")]
    Unreachable(String),
    /// What came is not what this binary reads.
    #[error("what ClickHouse holds is not what this binary reads: {0}; run `tollgate migrate`, or look who wrote it")]
    Mismatch(String),
    /// More was asked than can be answered.
    #[error(transparent)]
    Calendar(#[from] crate::calendar::CalendarError),
    /// Inserts went on throughout, so that no reading of several statements held together.
    #[error("partition {partition} of {table} moved on during each of {tries} readings: another process folds it")]
    Moving {
        /// Which table.
        table: crate::Table,
        /// Which partition.
        partition: i32,
        /// How often it was tried.
        tries: u32,
    },
}

impl QueryError {
    /// Whether no projection could answer, because there is nothing to read or because it is missing.
    pub(crate) fn is_projection_not_used(&self) -> bool {
        matches!(self, Self::Engine { code: PROJECTION_NOT_USED, .. })
    }

    /// An id that was read from a table and is none.
    pub(crate) fn not_an_id(what: &str, error: impl std::fmt::Display) -> Self {
        Self::Mismatch(format!("{what}: {error}"))
    }
}

/// The number in `Code: 469. DB::Exception: …`.
fn exception_code(text: &str) -> Option<i32> {
    let (_, rest) = text.split_once("Code: ")?;
    rest.split_once('.').and_then(|(digits, _)| digits.trim().parse().ok())
}

impl From<Error> for QueryError {
    fn from(error: Error) -> Self {
        match error {
            Error::BadResponse(text) => match exception_code(&text) {
                Some(code) => Self::Engine { code, message: text },
                None => Self::Unreachable(text),
            },
            Error::Network(_) | Error::TimedOut | Error::Compression(_) | Error::Decompression(_) => {
                Self::Unreachable(with_sources(&error))
            }
            Error::NotEnoughData => Self::Unreachable("the answer ended before its end".to_owned()),
            error => Self::Mismatch(with_sources(&error)),
        }
    }
}

/// An error with the ones behind it: "network error" alone says nothing.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    text
}

/// Why a chunk was not written, or may not have been. After any of these but [`InsertError::Malformed`], ask for a proof.
#[derive(Debug, ThisError)]
pub enum InsertError {
    /// The rows contradict themselves; nothing was sent.
    #[error("the chunk was not sent: {0}")]
    Malformed(String),
    /// The deadline had passed by ClickHouse's clock: the writer was too slow, or slept. Nothing was written.
    #[error("ClickHouse refused the chunk: its deadline had passed")]
    Fence,
    /// ClickHouse refused or failed.
    #[error("ClickHouse refused the chunk with code {code}: {message}")]
    Engine {
        /// ClickHouse's number of the error.
        code: i32,
        /// Its whole text.
        message: String,
    },
    /// The table does not have the columns that this binary writes. Nothing was written.
    #[error("the table is not what this binary writes: {0}; run `tollgate migrate`")]
    Mismatch(String),
    /// Nobody knows whether the chunk was written.
    #[error("whether the chunk was written is unknown: {0}")]
    Unknown(String),
}

impl From<Error> for InsertError {
    fn from(error: Error) -> Self {
        match QueryError::from(error) {
            QueryError::Engine { code: VIOLATED_CONSTRAINT, .. } => Self::Fence,
            QueryError::Engine { code, message } => Self::Engine { code, message },
            QueryError::Mismatch(what) => Self::Mismatch(what),
            other => Self::Unknown(other.to_string()),
        }
    }
}

/// Why a line must not go on: its rows in ClickHouse are not one folding of the log from its beginning.
#[derive(Debug, ThisError)]
pub enum ProofError {
    /// No answer, or none that can be read.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// The first offsets are not there.
    #[error(
        "partition {partition} of {table} begins at offset {first}: what came before it is gone; drop the table, and \
         the fold writes it anew from the log"
    )]
    NoBeginning {
        /// Which table.
        table: crate::Table,
        /// Which partition.
        partition: i32,
        /// The lowest offset that is there.
        first: i64,
    },
    /// A chunk is there twice or not at all.
    #[error(
        "partition {partition} of {table} ends before offset {position}, but its chunks hold {lengths} offsets: a chunk \
         is there twice, or is missing, or both; drop the table, and the fold writes it anew from the log"
    )]
    NotOnce {
        /// Which table.
        table: crate::Table,
        /// Which partition.
        partition: i32,
        /// The highest end of a chunk.
        position: i64,
        /// The sum of all chunks' lengths.
        lengths: i64,
    },
    /// The outcomes do not add up to the offsets, or not to the rows.
    #[error("partition {partition} of {table}: {what}; drop the table, and the fold writes it anew from the log")]
    Unbalanced {
        /// Which table.
        table: crate::Table,
        /// Which partition.
        partition: i32,
        /// Which figures differ.
        what: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart_by_what_must_follow() {
        let engine = |text: &str| InsertError::from(Error::BadResponse(text.to_owned()));
        assert!(matches!(engine("Code: 469. DB::Exception: Constraint `fence`"), InsertError::Fence));
        assert!(matches!(engine("Code: 252. DB::Exception: Too many parts"), InsertError::Engine { code: 252, .. }));
        assert!(matches!(engine("502 Bad Gateway"), InsertError::Unknown(_)));
        assert!(matches!(InsertError::from(Error::TimedOut), InsertError::Unknown(_)));
        assert!(matches!(InsertError::from(Error::SchemaMismatch("x".into())), InsertError::Mismatch(_)));
        assert!(
            QueryError::from(Error::BadResponse("Code: 584. DB::Exception: No projection".into()))
                .is_projection_not_used()
        );
    }
}
