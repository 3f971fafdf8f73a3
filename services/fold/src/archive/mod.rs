//! An archive of the log: files that hold its records as they were, so that audit and rebuild outlive Kafka's retention.
//!
//! `DIR/TOPIC/PARTITION/FIRST-END.parquet` holds the records from offset FIRST to before END; `FIRST-END.json` beside it says what is
//! in it, with a digest, and where the chain stands at both ends. A file is written under another name, read back, synced and
//! renamed; the `.json` comes last, and without it a file is none. Nothing is ever changed or removed.

mod folder;
mod log;
mod manifest;
mod read;
mod write;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use sql::{ClickHouse, ClickHouseSettings, ParquetTable, QueryError};
use stream::consume::ConsumeError;
use thiserror::Error;
use tokio::sync::OnceCell;

pub use log::Log;
pub use manifest::{Manifest, Point};
pub use read::Checked;
pub use write::{Archived, FileSize};

pub(crate) use log::Records;

/// Why the archive is not written, or not read.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// A file or folder of it cannot be used.
    #[error("{path} of the archive cannot be read or written: {source}", path = path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process writes it.
    #[error("another tollgate archive writes {path}: wait until it has ended", path = path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// A file is not what was written.
    #[error(
        "{file} of the archive {why}: put a copy of it back; or, while Kafka still holds its records, remove it with its .json and run tollgate archive",
        file = file.display()
    )]
    Damaged {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Records that nobody has.
    #[error(
        "offsets {from} to {to} of {topic}/{partition} are neither in Kafka nor in the archive: put back the files of the archive that held them; without them nothing beyond can be proven"
    )]
    Gap {
        /// Which.
        topic: &'static str,
        /// Which.
        partition: i32,
        /// The first one.
        from: i64,
        /// The last one.
        to: i64,
    },
    /// The log is not the one of which the archive is.
    #[error(
        "{topic}/{partition} is not the log that was archived: {why}; archive it into another directory, or restore the topic"
    )]
    OtherLog {
        /// Which.
        topic: &'static str,
        /// Which.
        partition: i32,
        /// What shows it.
        why: String,
    },
    /// The log cannot be read.
    #[error("{topic}/{partition} cannot be archived: {source}")]
    Log {
        /// Which.
        topic: &'static str,
        /// Which.
        partition: i32,
        /// Why.
        source: ConsumeError,
    },
    /// ClickHouse, which writes and reads Parquet, does not.
    #[error("ClickHouse does not write or read Parquet: {0}")]
    ClickHouse(#[from] QueryError),
    /// What ClickHouse wrote is not what it was given.
    #[error("ClickHouse reads back other records of {topic}/{partition} from offset {from} on than it was given")]
    Unfaithful {
        /// Which.
        topic: &'static str,
        /// Which.
        partition: i32,
        /// Where.
        from: i64,
    },
}

/// A directory that holds an archive, or is to hold one.
#[derive(Debug)]
pub struct Archive {
    dir: PathBuf,
    clickhouse: ClickHouse,
    /// Made when the first file is written or read.
    table: OnceCell<ParquetTable>,
}

impl Archive {
    /// Nothing is read, written or asked yet. ClickHouse writes and reads the format, in a table that lives in its memory meanwhile.
    pub fn new(dir: impl Into<PathBuf>, clickhouse: &ClickHouseSettings) -> Self {
        Self { dir: dir.into(), clickhouse: ClickHouse::new(clickhouse), table: OnceCell::new() }
    }

    /// Removes the table from ClickHouse, if it was made.
    ///
    /// # Errors
    /// No answer; nothing of the archive depends on it.
    pub async fn close(self) -> Result<(), QueryError> {
        match self.table.into_inner() {
            Some(table) => table.drop_table().await,
            None => Ok(()),
        }
    }

    async fn table(&self) -> Result<&ParquetTable, QueryError> {
        self.table.get_or_try_init(|| self.clickhouse.parquet_table()).await
    }

    /// Keeps other writers out as long as it lives; the kernel gives it up when the process dies, however it dies.
    fn lock(&self) -> Result<File, ArchiveError> {
        std::fs::create_dir_all(&self.dir).map_err(unusable(&self.dir))?;
        let path = self.dir.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(unusable(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(ArchiveError::InUse { path: self.dir.clone() }),
            Err(TryLockError::Error(source)) => Err(ArchiveError::Folder { path, source }),
        }
    }
}

/// What makes an error of the file system into ours.
fn unusable(path: &Path) -> impl Fn(std::io::Error) -> ArchiveError {
    move |source| ArchiveError::Folder { path: path.to_owned(), source }
}
