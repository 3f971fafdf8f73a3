//! What the writer keeps about open requests: room for their ends, the segments they pin, ends that wait for a disk.

use std::collections::{BTreeMap, VecDeque};

use ledger::time::Micros;

use super::close::Closing;
use super::frame::Position;
use crate::inflight::Slot;
use crate::spend::Amount;

/// Room kept for the closing frame of each open request, in bytes: two records whose texts are all bounded, and some.
pub const CLOSING_ROOM: u64 = 4096;

/// An end that could not be written yet. Its slot stays in use, so a killed process leaves the counts behind.
#[derive(Debug)]
pub(crate) struct Delayed {
    pub closing: Closing,
    pub _slot: Option<Slot>,
    pub pin: u64,
    /// What quotas count for it meanwhile, and when.
    pub promised: (Micros, Amount),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Book {
    open: u64,
    pins: BTreeMap<u64, u64>,
    ended: VecDeque<(Position, u64)>,
    pub(crate) delayed: VecDeque<Delayed>,
    /// Ends that were delayed and are written now.
    late_ends: u64,
}

impl Book {
    /// A request was admitted into `segment`.
    pub(crate) fn admitted(&mut self, segment: u64) {
        self.open += 1;
        *self.pins.entry(segment).or_default() += 1;
    }

    /// The request admitted into `segment` has an end, whose frame ends at `end`.
    pub(crate) fn ended(&mut self, end: Position, segment: u64) {
        self.open = self.open.saturating_sub(1);
        self.ended.push_back((end, segment));
    }

    /// Forgets the pins of requests whose end is durable.
    pub(crate) fn unpin(&mut self, frontier: Position) {
        while let Some((end, segment)) = self.ended.front().copied() {
            if end > frontier {
                return;
            }
            self.ended.pop_front();
            if let Some(count) = self.pins.get_mut(&segment) {
                *count -= 1;
                if *count == 0 {
                    self.pins.remove(&segment);
                }
            }
        }
    }

    /// True if a request of this segment, or of one before it, is open.
    pub(crate) fn is_pinned(&self, segment: u64) -> bool {
        !left_out!(PinnedSegments) && self.pins.first_key_value().is_some_and(|(first, _)| *first <= segment)
    }

    /// Bytes kept for closing frames.
    pub(crate) fn reserved(&self) -> u64 {
        if left_out!(RoomForEnds) { 0 } else { self.open * CLOSING_ROOM }
    }

    /// Open requests.
    pub(crate) fn open(&self) -> u64 {
        self.open
    }

    /// Keeps an end that the disk refused; returns the number of late ends that tells when it is written.
    pub(crate) fn delay(&mut self, delayed: Delayed) -> u64 {
        self.delayed.push_back(delayed);
        self.late_ends + self.delayed.len() as u64 - 1
    }

    /// The first of the delayed ends is written.
    pub(crate) fn late_end(&mut self) {
        self.late_ends += 1;
    }

    /// How many delayed ends were written so far; they are in the order in which they came.
    pub(crate) fn late_ends(&self) -> u64 {
        self.late_ends
    }

    /// True if an end waits for a disk.
    pub(crate) fn has_delayed(&self) -> bool {
        !self.delayed.is_empty()
    }
}
