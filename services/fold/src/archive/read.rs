//! A file read back: held to its digest, its count and the chain before any record of it is used.

use std::io::ErrorKind;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use sql::{LogRow, Table};
use stream::consume::Record;

use super::folder::Folder;
use super::manifest::{Manifest, Point};
use super::{Archive, ArchiveError, unusable};
use crate::audit::Progress;

/// What came of checking a line's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Its topic.
    pub topic: &'static str,
    /// Its partition.
    pub partition: i32,
    /// Files.
    pub files: usize,
    /// The offset behind the last file.
    pub end: i64,
    /// What is wrong, in words.
    pub faults: Vec<String>,
}

impl Archive {
    /// The records of a file, whole and as they were archived.
    pub(super) async fn load(&self, folder: &Folder, manifest: &Manifest) -> Result<Vec<Record>, ArchiveError> {
        let file = folder.file(manifest);
        let damaged = |why: &str| ArchiveError::Damaged { file: file.clone(), why: why.to_owned() };
        let parquet = match std::fs::read(&file) {
            Ok(parquet) => parquet,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(damaged("is missing")),
            Err(error) => return Err(unusable(&file)(error)),
        };
        if <[u8; 32]>::from(Sha256::digest(&parquet)) != manifest.sha256 {
            return Err(damaged("is damaged (its SHA-256 is not the one that is said of it)"));
        }
        let rows = self.table().await?.rows(Bytes::from(parquet)).await?;
        let records: Vec<Record> = rows.into_iter().map(record).collect();
        let ends =
            records.iter().try_fold(manifest.from, |at, record| (record.offset >= at.offset).then(|| at.after(record)));
        if ends != Some(manifest.to) || records.len() as u64 != manifest.records {
            return Err(damaged("does not hold the records that are said of it"));
        }
        Ok(records)
    }

    /// Reads every file of these partitions, and whether each goes on where the one before ends. Kafka is not asked.
    ///
    /// # Errors
    /// The directory or ClickHouse cannot be used; what is wrong with files is in the answer.
    pub async fn check(
        &self,
        partitions: &[i32],
        mut progress: impl FnMut(Progress),
    ) -> Result<Vec<Checked>, ArchiveError> {
        let mut lines = Vec::new();
        for &partition in partitions {
            for topic in Table::ALL.map(Table::topic) {
                lines.push(self.check_line(topic, partition, &mut progress).await?);
            }
        }
        Ok(lines)
    }

    async fn check_line(
        &self,
        topic: &'static str,
        partition: i32,
        progress: &mut impl FnMut(Progress),
    ) -> Result<Checked, ArchiveError> {
        let mut line = Checked { topic, partition, files: 0, end: 0, faults: Vec::new() };
        let folder = match Folder::read(self, topic, partition) {
            Ok(folder) => folder,
            Err(error @ ArchiveError::Damaged { .. }) => {
                line.faults.push(error.to_string());
                return Ok(line);
            }
            Err(error) => return Err(error),
        };
        let (mut at, of) = (Point::BEGINNING, folder.files.last().map_or(0, |last| last.to.offset));
        for manifest in &folder.files {
            if manifest.from.offset > at.offset {
                line.faults.push(format!("offsets {} to {} are missing", at.offset, manifest.from.offset - 1));
            } else if manifest.from != at {
                line.faults.push(format!("the file from offset {} does not go on with the chain", at.offset));
            }
            match self.load(&folder, manifest).await {
                Ok(_) => {}
                Err(error @ ArchiveError::Damaged { .. }) => line.faults.push(error.to_string()),
                Err(error) => return Err(error),
            }
            at = manifest.to;
            (line.files, line.end) = (line.files + 1, at.offset);
            progress(Progress { topic, partition, done: at.offset, of });
        }
        Ok(line)
    }
}

fn record(row: LogRow) -> Record {
    let LogRow { offset, log_time_ms, key, value, headers } = row;
    Record { offset, log_time_ms, key, value, headers }
}

pub(super) fn row(record: Record) -> LogRow {
    let Record { offset, log_time_ms, key, value, headers } = record;
    LogRow { offset, log_time_ms, key, value, headers }
}
