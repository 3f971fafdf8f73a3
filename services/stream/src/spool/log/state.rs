//! What a spool's writer knows under its lock: the segment that is appended to, what fsync has not covered, and the others.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::book::Book;
use super::super::disk::DiskFile;
use super::super::draft::Numbering;
use super::super::frame::Position;

#[derive(Debug)]
pub(super) struct Active {
    pub number: u64,
    pub file: Arc<dyn DiskFile>,
    /// Bytes of whole frames.
    pub len: u64,
    /// A write failed: nothing more may be appended here.
    pub broken: bool,
    /// A sync failed: a later one proves nothing.
    pub suspect: bool,
}

/// Everything under the one lock.
#[derive(Debug)]
pub(crate) struct State {
    pub numbering: Numbering,
    pub book: Book,
    pub closed: bool,
    pub(super) active: Active,
    /// Frames of the active segment beyond the frontier, kept until fsync covers them.
    pub(super) unsynced: Vec<u8>,
    /// The bytes of the last frame, kept so that the next one needs no allocation.
    pub(super) scratch: Vec<u8>,
    pub(super) frontier: Position,
    pub(super) syncing: bool,
    /// Lengths of the segments before the active one.
    pub(super) sealed: BTreeMap<u64, u64>,
    pub(super) failed_at: Option<i64>,
}

impl State {
    /// Number of segments.
    pub(crate) fn segments(&self) -> u64 {
        self.sealed.len() as u64 + 1
    }

    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.sealed.values().sum::<u64>() + self.active.len
    }

    /// The number of the segment that is appended to.
    pub(crate) fn active_segment(&self) -> u64 {
        self.active.number
    }

    /// Up to here fsync has come.
    pub(crate) fn frontier(&self) -> Position {
        self.frontier
    }

    /// The end of what is written, synced or not.
    pub(crate) fn head(&self) -> Position {
        Position { segment: self.active.number, offset: self.active.len }
    }

    /// Bytes from `from` to the end of what is written.
    pub(crate) fn bytes_since(&self, from: Position) -> u64 {
        let sealed: u64 = self.sealed.range(from.segment..).map(|(_, len)| len).sum();
        (sealed + self.active.len).saturating_sub(from.offset)
    }

    /// The oldest segment.
    pub(crate) fn oldest(&self) -> u64 {
        self.sealed.keys().next().copied().unwrap_or(self.active.number)
    }
}
