//! What Kafka holds and the archive lacks, written into files: each one read back before it gets its name.

use sql::Table;
use stream::consume::{ConsumeError, PartitionConsumer, Record};
use stream::kafka::KafkaSettings;

use super::folder::Folder;
use super::log::{bounds, patiently};
use super::manifest::{Manifest, Point};
use super::{Archive, ArchiveError, read};
use crate::audit::Progress;

/// The name under which the brokers see it.
const GROUP: &str = "tollgate-archive";

/// When a file is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSize {
    /// Records in it.
    pub records: usize,
    /// Bytes of keys and values, before they are packed.
    pub bytes: u64,
}

impl Default for FileSize {
    /// What lies in memory a few times while it is written and read.
    fn default() -> Self {
        Self { records: 200_000, bytes: 64 << 20 }
    }
}

/// What came of one line.
#[derive(Debug)]
pub struct Archived {
    /// Its topic.
    pub topic: &'static str,
    /// Its partition.
    pub partition: i32,
    /// Files that were written now.
    pub files: u64,
    /// Records in them.
    pub records: u64,
    /// The archive has everything before this offset; if nothing failed.
    pub end: i64,
    /// Why it was not archived to its end.
    pub failed: Option<ArchiveError>,
}

/// Offsets that no file holds.
#[derive(Debug, Clone, Copy)]
struct Hole {
    /// Where the files before it end.
    from: Point,
    /// Where the next file begins; none behind the last one.
    to: Option<Point>,
}

impl Archive {
    /// Archives what Kafka holds of these partitions of both topics, and the archive does not, up to what was there when it
    /// came to them. One line that fails keeps no other one from it. Safe to run again, after a kill at any moment too.
    ///
    /// # Errors
    /// The directory cannot be used, or another process archives into it.
    pub async fn write(
        &self,
        kafka: &KafkaSettings,
        partitions: &[i32],
        size: FileSize,
        mut progress: impl FnMut(Progress),
    ) -> Result<Vec<Archived>, ArchiveError> {
        let _lock = self.lock()?;
        let mut lines = Vec::new();
        for &partition in partitions {
            for topic in Table::ALL.map(Table::topic) {
                let mut line = Archived { topic, partition, files: 0, records: 0, end: 0, failed: None };
                line.failed = self.write_line(kafka, size, &mut line, &mut progress).await.err();
                lines.push(line);
            }
        }
        Ok(lines)
    }

    async fn write_line(
        &self,
        kafka: &KafkaSettings,
        size: FileSize,
        line: &mut Archived,
        progress: &mut impl FnMut(Progress),
    ) -> Result<(), ArchiveError> {
        let (topic, partition) = (line.topic, line.partition);
        let folder = Folder::read(self, topic, partition)?;
        let there = bounds(kafka, topic, partition).await.map_err(of_log(topic, partition))?;
        let holes = holes(&folder.files);
        let mut writing = Writing { archive: self, folder, size, line, progress, next: there.next };
        for hole in holes {
            let last = writing.folder.files.iter().find(|file| file.to == hole.from).cloned();
            // Where Kafka still has the last file, it is read once more: only the same log is gone on with.
            let again = last.map(|file| file.from).filter(|from| there.first <= from.offset);
            let begin = again.unwrap_or(hole.from);
            if there.first > begin.offset {
                let to = hole.to.map_or(there.first, |to| to.offset.min(there.first)) - 1;
                return Err(ArchiveError::Gap { topic, partition, from: begin.offset, to });
            }
            if there.next < hole.from.offset {
                let why = format!("it ends at offset {}, the archive at {}", there.next, hole.from.offset);
                return Err(ArchiveError::OtherLog { topic, partition, why });
            }
            writing.fill(kafka, begin, hole).await?;
        }
        Ok(())
    }
}

/// What no file holds, in order; the last one is open.
fn holes(files: &[Manifest]) -> Vec<Hole> {
    let mut holes = Vec::new();
    let mut from = Point::BEGINNING;
    for file in files {
        // Files that touch and do not go on with each other are an empty hole, which nothing can fill.
        if file.from != from {
            holes.push(Hole { from, to: Some(file.from) });
        }
        from = file.to;
    }
    holes.push(Hole { from, to: None });
    holes
}

struct Writing<'a, P> {
    archive: &'a Archive,
    folder: Folder,
    size: FileSize,
    line: &'a mut Archived,
    progress: &'a mut P,
    /// The end of the log when it was asked.
    next: i64,
}

impl<P: FnMut(Progress)> Writing<'_, P> {
    /// Reads from `begin`, which may lie before the hole, and writes what lies in the hole.
    async fn fill(&mut self, kafka: &KafkaSettings, begin: Point, hole: Hole) -> Result<(), ArchiveError> {
        let (topic, partition) = (self.line.topic, self.line.partition);
        let consumer = PartitionConsumer::open_to_end(kafka, GROUP, topic, partition, begin.offset);
        let consumer = consumer.map_err(of_log(topic, partition))?;
        let mut reading = Reading { consumer, topic, partition, at: begin, held: None };
        while reading.next_before(hole.from.offset).await?.is_some() {}
        self.same(reading.at, hole.from)?;
        let end = hole.to.map_or(self.next, |to| to.offset);
        let (mut from, mut waiting, mut bytes) = (hole.from, Vec::new(), 0);
        while let Some(record) = reading.next_before(end).await? {
            bytes += record.size();
            waiting.push(record);
            if waiting.len() >= self.size.records || bytes >= self.size.bytes {
                self.keep(from, reading.at, std::mem::take(&mut waiting)).await?;
                (from, bytes) = (reading.at, 0);
            }
        }
        if let Some(to) = hole.to {
            self.same(reading.at, to)?;
        }
        if !waiting.is_empty() {
            self.keep(from, reading.at, waiting).await?;
        }
        self.line.end = reading.at.offset;
        Ok(())
    }

    fn same(&self, at: Point, wanted: Point) -> Result<(), ArchiveError> {
        if at == wanted {
            return Ok(());
        }
        let why = format!("up to offset {} it holds other records", wanted.offset);
        Err(ArchiveError::OtherLog { topic: self.line.topic, partition: self.line.partition, why })
    }

    /// Writes records as a file.
    async fn keep(&mut self, from: Point, to: Point, records: Vec<Record>) -> Result<(), ArchiveError> {
        let (topic, partition) = (self.line.topic, self.line.partition);
        let rows: Vec<_> = records.into_iter().map(read::row).collect();
        let table = self.archive.table().await?;
        let parquet = table.parquet(&rows).await?;
        // A file that does not say what it was given is found now, and not when Kafka has forgotten it.
        if table.rows(parquet.clone()).await? != rows {
            return Err(ArchiveError::Unfaithful { topic, partition, from: from.offset });
        }
        self.folder.keep(Manifest::new(topic, partition, from, to, rows.len(), &parquet), &parquet)?;
        self.line.files += 1;
        self.line.records += rows.len() as u64;
        (self.progress)(Progress { topic, partition, done: to.offset, of: self.next });
        Ok(())
    }
}

/// The log as it is read, with the chain as far as it was.
struct Reading {
    consumer: PartitionConsumer,
    topic: &'static str,
    partition: i32,
    at: Point,
    /// A record beyond the limit that was asked for.
    held: Option<Record>,
}

impl Reading {
    /// The next record, if there is one before this offset.
    async fn next_before(&mut self, limit: i64) -> Result<Option<Record>, ArchiveError> {
        if self.at.offset >= limit {
            return Ok(None);
        }
        let next = match self.held.take() {
            Some(held) => Some(held),
            None => {
                let read = patiently(async || self.consumer.next_or_end().await).await;
                read.map_err(of_log(self.topic, self.partition))?
            }
        };
        match next {
            Some(record) if record.offset < limit => {
                self.at = self.at.after(&record);
                Ok(Some(record))
            }
            beyond => {
                self.held = beyond;
                Ok(None)
            }
        }
    }
}

fn of_log(topic: &'static str, partition: i32) -> impl Fn(ConsumeError) -> ArchiveError {
    move |source| ArchiveError::Log { topic, partition, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(offset: i64) -> Point {
        Point { offset, log_time_ms: offset, chain: [offset as u8; 32] }
    }

    fn file(from: Point, to: i64) -> Manifest {
        Manifest::new("t", 0, from, point(to), 1, b"")
    }

    #[test]
    fn what_no_file_holds_is_a_hole_and_so_is_a_chain_that_does_not_go_on() {
        let ranges = |files: &[Manifest]| {
            holes(files).iter().map(|hole| (hole.from.offset, hole.to.map(|to| to.offset))).collect::<Vec<_>>()
        };
        assert_eq!(ranges(&[]), [(0, None)]);
        assert_eq!(ranges(&[file(Point::BEGINNING, 5), file(point(5), 9)]), [(9, None)]);
        assert_eq!(ranges(&[file(point(3), 5), file(point(7), 9)]), [(0, Some(3)), (5, Some(7)), (9, None)]);
        let other = Point { chain: [9; 32], ..point(5) };
        assert_eq!(ranges(&[file(Point::BEGINNING, 5), file(other, 9)]), [(5, Some(5)), (9, None)]);
    }
}
