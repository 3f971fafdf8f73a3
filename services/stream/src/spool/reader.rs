//! Reads a running spool from a place to the frontier, across segments.

use std::io;
use std::sync::Arc;

use super::disk::{DiskFile, read_up_to};
use super::frame::{self, Entry, FRAME_HEAD, Position};
use super::log::Log;
use super::segment::name_of;

/// Bytes read at once.
const CHUNK: usize = 256 << 10;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReadFrame {
    /// Where the next one begins.
    pub end: Position,
    /// What is in it.
    pub entries: Vec<Entry>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Reader {
    at: Position,
    file: Option<Arc<dyn DiskFile>>,
    /// Bytes of the file from `at` on.
    buffer: Vec<u8>,
    used: usize,
}

impl Reader {
    /// A reader that begins at `at`, which has to be the begin of a frame.
    pub(crate) fn new(at: Position) -> Self {
        Self { at, file: None, buffer: Vec::new(), used: 0 }
    }

    /// Where the next frame begins.
    pub(crate) fn position(&self) -> Position {
        self.at
    }

    /// The next frame, if it lies before the frontier.
    ///
    /// # Errors
    /// What the disk says; `InvalidData` if what was written is not there any more.
    pub(crate) fn next(&mut self, log: &Log) -> io::Result<Option<ReadFrame>> {
        loop {
            let Some((end, sealed)) = log.readable(self.at.segment) else {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{} of the spool is not there", self.at),
                ));
            };
            if self.at.offset < end {
                return self.frame(log, end).map(Some);
            }
            if !sealed {
                return Ok(None);
            }
            *self = Self::new(Position { segment: self.at.segment + 1, offset: 0 });
        }
    }

    fn frame(&mut self, log: &Log, end: u64) -> io::Result<ReadFrame> {
        let wanted = self.fill(log, end, FRAME_HEAD)?.first_chunk().and_then(frame::announced);
        let wanted = wanted.ok_or_else(|| self.damaged("no frame begins there"))?;
        let rest = self.fill(log, end, wanted)?;
        let read = frame::check(rest).and_then(|(payload, length)| Ok((frame::entries(payload)?, length)));
        let (entries, length) = read.map_err(|error| self.damaged(error))?;
        self.used += length;
        self.at.offset += length as u64;
        Ok(ReadFrame { end: self.at, entries })
    }

    fn damaged(&self, what: impl std::fmt::Display) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, format!("the spool is damaged at {}: {what}", self.at))
    }

    /// The bytes from `at` on, at least so many if there are so many before `end`.
    fn fill(&mut self, log: &Log, end: u64, wanted: usize) -> io::Result<&[u8]> {
        if self.buffer.len() - self.used < wanted {
            let file = match &self.file {
                Some(file) => Arc::clone(file),
                None => Arc::clone(self.file.insert(log.disk().open(&name_of(self.at.segment))?)),
            };
            let available = usize::try_from(end - self.at.offset).unwrap_or(usize::MAX);
            let mut buffer = vec![0; wanted.max(CHUNK).min(available)];
            let read = read_up_to(&*file, &mut buffer, self.at.offset)?;
            buffer.truncate(read);
            (self.buffer, self.used) = (buffer, 0);
        }
        Ok(&self.buffer[self.used..])
    }
}
