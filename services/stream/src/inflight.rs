//! The in-flight table: running counts of open requests in shared memory, which a killed process leaves behind.
//!
//! A file of 512-byte slots, mapped. The first is the table's head (format, boot id, source); each other one belongs to at
//! most one open request and holds its id, its attempt with the replica's name, and its running counts, or what its end
//! settled while the disk refuses to take that. Counts and attempt are kept twice with an index that says which copy holds: the other copy is written first, then the index flips, so a
//! reader never meets a mixture, wherever the writer was killed. All stores are plain moves (release order only keeps them
//! in the order of the program), there is no system call. What the spool already says in the admission (tenant, key,
//! model, endpoint, partition) is not repeated here: both outlive the process alike, and after a reboot the table is ignored.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ledger::tokens::TokenCounts;
use uuid::Uuid;

use crate::spool::Settled;
use crate::spool::disk::{Disk, Memory, replace};
use crate::spool::frame::Tally;

/// The table's file in the spool's directory.
pub const TABLE_FILE: &str = "inflight.table";
/// Format of the table; another one is refused.
const FORMAT: u64 = 0x7467_696e_666c_0001;
/// Words (of 64 bits) of a slot.
const SLOT_WORDS: usize = 64;

// Words of a slot.
const USED: usize = 0;
const REQUEST: usize = 1; // 2 words
const TALLY_INDEX: usize = 3;
const ATTEMPT_INDEX: usize = 4;
const TALLY: [usize; 2] = [8, 16]; // 6 words each
const ATTEMPT: [usize; 2] = [24, 40]; // number, length of the name, 8 words of name

/// What a slot said when its process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotImage {
    /// Number of the attempt.
    pub attempt: u32,
    /// The replica's name; empty if none was chosen yet.
    pub replica: String,
    /// The running counts.
    pub tally: Tally,
    /// What its end settled, if it has one that was answered.
    pub end: Option<Settled>,
}

/// The table of a running process.
#[derive(Debug)]
pub struct Table {
    memory: Arc<dyn Memory>,
    free: Mutex<Vec<u32>>,
    slots: u32,
}

fn words_of(id: Uuid) -> [u64; 2] {
    let (high, low) = id.as_u64_pair();
    [high, low]
}

impl Table {
    /// A new table with so many slots, in the place of any old one.
    ///
    /// # Errors
    /// What the disk says.
    pub fn create(disk: &dyn Disk, boot: Uuid, source: Uuid, slots: u32) -> io::Result<Self> {
        let mut bytes = vec![0_u8; (slots as usize + 1) * SLOT_WORDS * 8];
        let (b, s) = (words_of(boot), words_of(source));
        for (i, word) in [FORMAT, b[0], b[1], s[0], s[1], u64::from(slots)].into_iter().enumerate() {
            bytes[i * 8..i * 8 + 8].copy_from_slice(&word.to_ne_bytes());
        }
        // All of it is written, so that no later store can meet a full disk.
        replace(disk, TABLE_FILE, &bytes)?;
        Ok(Self { memory: disk.map(TABLE_FILE)?, free: Mutex::new((0..slots).rev().collect()), slots })
    }

    /// Number of slots.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Takes a slot off the free list. It is not marked as used until [`Slot::begin`].
    pub fn take(self: &Arc<Self>) -> Option<Slot> {
        let index = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(Slot { table: Arc::clone(self), index, used: false, tally: 0, attempt: 0 })
    }

    fn word(&self, slot: u32, word: usize) -> &AtomicU64 {
        &self.memory.words()[(slot as usize + 1) * SLOT_WORDS + word]
    }
}

/// One slot, owned by one open request. Given back when dropped.
#[derive(Debug)]
pub struct Slot {
    table: Arc<Table>,
    index: u32,
    used: bool,
    /// Which copies hold; kept here too, so that a store reads nothing.
    tally: usize,
    attempt: usize,
}

impl Slot {
    /// The slot's number, as the admission names it.
    pub fn index(&self) -> u32 {
        self.index
    }

    fn store(&self, stores: impl IntoIterator<Item = (usize, u64)>) {
        for (word, value) in stores {
            #[cfg(any(test, feature = "simulation"))]
            if !crate::simulation::stores_on() {
                return;
            }
            self.table.word(self.index, word).store(value, Ordering::Release);
        }
    }

    /// Marks the slot as used by `request`, with no counts. To be called when the admission is written.
    pub fn begin(&mut self, request: Uuid) {
        let [high, low] = words_of(request);
        (self.tally, self.attempt) = (0, 0);
        self.store(tally_stores(1, Tally::default(), None));
        self.store(attempt_stores(1, 0, ""));
        self.store([(REQUEST, high), (REQUEST + 1, low), (USED, 1)]);
        self.used = true;
    }

    /// The running counts. To be called before what they count is handed on.
    pub fn count(&mut self, tally: Tally) {
        self.counts(tally, None);
    }

    /// What the end of an answered request settled, while the disk does not take it. To be called before the end is handed on.
    /// `tally` are the running counts.
    pub fn end(&mut self, tally: Tally, end: Settled) {
        self.counts(tally, Some(end));
    }

    fn counts(&mut self, tally: Tally, end: Option<Settled>) {
        if left_out!(TwoCopies) {
            return self.store(tally_stores(self.tally ^ 1, tally, end));
        }
        self.store(tally_stores(self.tally, tally, end));
        self.tally ^= 1;
    }

    /// The attempt and its replica (at most 64 bytes of its name are kept).
    pub fn attempt(&mut self, attempt: u32, replica: &str) {
        self.store(attempt_stores(self.attempt, attempt, replica));
        self.attempt ^= 1;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.used {
            self.store([(USED, 0)]);
        }
        self.table.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
    }
}

/// Words of a copy of the counts that say what the end settled: none, the engine's word, or an estimate.
const NO_END: u64 = 0;
const END: u64 = 1;
const ESTIMATED_END: u64 = 2;

/// The stores, in order, that change the counts when copy `holds` is the one that holds. Those of an end take the place of the
/// running ones: the input without what was cached, which has a word of its own.
fn tally_stores(holds: usize, tally: Tally, end: Option<Settled>) -> [(usize, u64); 7] {
    let other = (holds & 1) ^ 1;
    let at = TALLY[other];
    let (counts, kind) = match end {
        None => (
            TokenCounts { input: tally.input, cached_input: 0, output: tally.output, reasoning: tally.reasoning },
            NO_END,
        ),
        Some(Settled { counts, estimated, .. }) => (counts, if estimated { ESTIMATED_END } else { END }),
    };
    [
        (at, tally.frames),
        (at + 1, counts.input),
        (at + 2, counts.output),
        (at + 3, counts.reasoning),
        (at + 4, counts.cached_input),
        (at + 5, kind),
        (TALLY_INDEX, other as u64),
    ]
}

/// What [`tally_stores`] stored from this word on.
fn read_tally(words: &[u64]) -> (Tally, Option<Settled>) {
    let &[frames, input, output, reasoning, cached_input, kind, ..] = words else { return Default::default() };
    let end = matches!(kind, END | ESTIMATED_END).then_some(Settled {
        counts: TokenCounts { input, cached_input, output, reasoning },
        answered: true,
        estimated: kind == ESTIMATED_END,
    });
    (Tally { frames, input, output, reasoning }, end)
}

/// The stores, in order, that change the attempt when copy `holds` is the one that holds.
fn attempt_stores(holds: usize, attempt: u32, replica: &str) -> [(usize, u64); 11] {
    let other = (holds & 1) ^ 1;
    let at = ATTEMPT[other];
    let mut name = [0_u8; 64];
    let length = replica.len().min(name.len());
    name[..length].copy_from_slice(&replica.as_bytes()[..length]);
    let mut stores = [(0, 0); 11];
    stores[0] = (at, u64::from(attempt));
    stores[1] = (at + 1, length as u64);
    for (i, bytes) in name.as_chunks::<8>().0.iter().enumerate() {
        stores[2 + i] = (at + 2 + i, u64::from_ne_bytes(*bytes));
    }
    stores[10] = (ATTEMPT_INDEX, other as u64);
    stores
}

/// The used slots that a process of this boot and source left behind; none if there is no such table.
///
/// # Errors
/// What the disk says.
pub fn read(disk: &dyn Disk, boot: Uuid, source: Uuid) -> io::Result<HashMap<Uuid, SlotImage>> {
    let mut images = HashMap::new();
    let memory = match disk.map(TABLE_FILE) {
        Ok(memory) => memory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(images),
        Err(error) => return Err(error),
    };
    let words: Vec<u64> = memory.words().iter().map(|word| word.load(Ordering::Acquire)).collect();
    let (b, s) = (words_of(boot), words_of(source));
    let mut head = [FORMAT, b[0], b[1], s[0], s[1]];
    if left_out!(BootOfTable) && words.len() > 2 {
        head[1..3].copy_from_slice(&words[1..3]);
    }
    if words.get(..5) != Some(&head) {
        return Ok(images);
    }
    for slot in words[SLOT_WORDS..].chunks_exact(SLOT_WORDS).filter(|slot| slot[USED] == 1) {
        let (tally, end) = read_tally(&slot[TALLY[(slot[TALLY_INDEX] & 1) as usize]..]);
        let at = ATTEMPT[(slot[ATTEMPT_INDEX] & 1) as usize];
        let name: Vec<u8> = slot[at + 2..at + 10].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let length = (slot[at + 1] as usize).min(name.len());
        let replica = String::from_utf8_lossy(&name[..length]).into_owned();
        let image = SlotImage { attempt: slot[at] as u32, replica, tally, end };
        images.insert(Uuid::from_u64_pair(slot[REQUEST], slot[REQUEST + 1]), image);
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::disk::HostDisk;

    const BOOT: Uuid = Uuid::from_u128(1);
    const SOURCE: Uuid = Uuid::from_u128(2);

    fn tally(n: u64) -> Tally {
        Tally { frames: n, input: 7, output: 10 * n, reasoning: 100 * n }
    }

    fn one_slot() -> (tempfile::TempDir, HostDisk, Arc<Table>) {
        let dir = tempfile::tempdir().unwrap();
        let disk = HostDisk::open(dir.path()).unwrap();
        let table = Arc::new(Table::create(&disk, BOOT, SOURCE, 1).unwrap());
        (dir, disk, table)
    }

    #[test]
    fn what_is_stored_is_there_for_the_same_boot_and_source_only() {
        let dir = tempfile::tempdir().unwrap();
        let disk = HostDisk::open(dir.path()).unwrap();
        assert!(read(&disk, BOOT, SOURCE).unwrap().is_empty());
        let table = Arc::new(Table::create(&disk, BOOT, SOURCE, 2).unwrap());
        let request = Uuid::from_u128(3);
        let mut slot = table.take().unwrap();
        slot.begin(request);
        slot.attempt(0, "replica-a");
        slot.attempt(1, &"b".repeat(64));
        for n in 1..=5 {
            slot.count(tally(n));
        }
        let images = read(&disk, BOOT, SOURCE).unwrap();
        assert_eq!(images[&request], SlotImage { attempt: 1, replica: "b".repeat(64), tally: tally(5), end: None });
        assert!(read(&disk, Uuid::from_u128(9), SOURCE).unwrap().is_empty());
        assert!(read(&disk, BOOT, Uuid::from_u128(9)).unwrap().is_empty());

        let second = table.take().unwrap();
        assert!(table.take().is_none());
        drop(slot);
        assert!(read(&disk, BOOT, SOURCE).unwrap().is_empty());
        let mut third = table.take().unwrap();
        third.begin(Uuid::from_u128(4));
        let images = read(&disk, BOOT, SOURCE).unwrap();
        assert_eq!(
            images[&Uuid::from_u128(4)],
            SlotImage { attempt: 0, replica: String::new(), tally: Tally::default(), end: None }
        );
        drop(second);
    }

    #[test]
    fn an_end_is_there_with_its_classes_and_the_next_request_of_the_slot_has_none() {
        let (_dir, disk, table) = one_slot();
        let request = Uuid::from_u128(3);
        for (counted, estimated) in [(0, false), (1, true), (2, false)] {
            let mut slot = table.take().unwrap();
            slot.begin(request);
            assert_eq!(read(&disk, BOOT, SOURCE).unwrap()[&request].end, None);
            for n in 1..=counted {
                slot.count(tally(n));
                assert_eq!(read(&disk, BOOT, SOURCE).unwrap()[&request].end, None);
            }
            let end = Settled {
                counts: TokenCounts { input: 3, cached_input: 4, output: 50, reasoning: 6 },
                answered: true,
                estimated,
            };
            slot.end(tally(counted), end);
            assert_eq!(read(&disk, BOOT, SOURCE).unwrap()[&request].end, Some(end));
        }
    }

    #[test]
    fn killed_between_any_two_stores_the_old_or_the_new_counts_are_read_never_a_mixture() {
        let (_dir, disk, table) = one_slot();
        let request = Uuid::from_u128(3);
        let mut slot = table.take().unwrap();
        slot.begin(request);
        let mut before = SlotImage { attempt: 0, replica: String::new(), tally: Tally::default(), end: None };
        for n in 1..6 {
            let stores = tally_stores(slot.tally, tally(n), None);
            for cut in 0..stores.len() {
                slot.store(stores[..cut].iter().copied());
                assert_eq!(read(&disk, BOOT, SOURCE).unwrap()[&request], before);
            }
            slot.count(tally(n));
            before.tally = tally(n);
            let name = format!("replica-{n}");
            let stores = attempt_stores(slot.attempt, n as u32, &name);
            for cut in 0..stores.len() {
                slot.store(stores[..cut].iter().copied());
                assert_eq!(read(&disk, BOOT, SOURCE).unwrap()[&request], before);
            }
            slot.attempt(n as u32, &name);
            (before.attempt, before.replica) = (n as u32, name);
            assert_eq!(read(&disk, BOOT, SOURCE).unwrap()[&request], before);
        }
    }
}
