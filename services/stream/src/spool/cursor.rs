//! The small files beside the segments: how far shipping has come, and what removed segments had spent.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::disk::{Disk, read_all, replace};
use super::frame::Position;
use crate::spend::KeptSpend;

const CURSOR: &str = "cursor.json";
const KEPT: &str = "kept-spend.json";
const SPARE: &str = "spare-room";
/// Enough for a cursor and some sums.
const SPARE_BYTES: usize = 256 << 10;

/// How far shipping has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// All records before it are acknowledged.
    pub acked: Position,
    /// Per topic and partition: no record before `acked` has an offset above this one. -1: none has been acknowledged.
    pub offsets: Vec<Vec<i64>>,
}

/// What segments that are gone had spent and no balance had yet shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Holds for all segments up to this one.
    pub through: u64,
    /// Their spend.
    pub spend: Vec<KeptSpend>,
}

fn read<T: DeserializeOwned + Default>(disk: &dyn Disk, name: &str) -> io::Result<T> {
    let file = match disk.open(name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
        Err(error) => return Err(error),
    };
    serde_json::from_slice(&read_all(&*file)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{name} in the spool: {error}")))
}

fn write<T: Serialize>(disk: &dyn Disk, name: &str, value: &T) -> io::Result<()> {
    replace(disk, name, &serde_json::to_vec(value)?)
}

impl Cursor {
    /// The kept cursor; at the very begin if there is none.
    ///
    /// # Errors
    /// What the disk says, or `InvalidData`.
    pub fn read(disk: &dyn Disk) -> io::Result<Self> {
        read(disk, CURSOR)
    }

    /// Keeps it, whole or not at all.
    ///
    /// # Errors
    /// What the disk says; the one before is then still kept.
    pub fn write(&self, disk: &dyn Disk) -> io::Result<()> {
        write(disk, CURSOR, self)
    }

    /// The highest acknowledged offset of a partition; none if there is none.
    pub fn offset(&self, topic: u8, partition: i32) -> Option<i64> {
        let partitions = self.offsets.get(topic as usize)?;
        partitions.get(usize::try_from(partition).ok()?).copied().filter(|offset| *offset >= 0)
    }
}

impl Kept {
    pub(crate) fn read(disk: &dyn Disk) -> io::Result<Self> {
        read(disk, KEPT)
    }

    pub(crate) fn write(&self, disk: &dyn Disk) -> io::Result<()> {
        write(disk, KEPT, self)
    }
}

/// Gives the room of the spare file back to the disk, so that a cursor can be kept on a full one.
///
/// # Errors
/// What the disk says.
pub(crate) fn drop_spare(disk: &dyn Disk) -> io::Result<()> {
    match disk.remove(SPARE) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Sees to it that the spare file takes its room.
///
/// # Errors
/// What the disk says; a later call tries again.
pub(crate) fn keep_spare(disk: &dyn Disk) -> io::Result<()> {
    if disk.list()?.iter().any(|name| name == SPARE) {
        return Ok(());
    }
    // Not zeros: a file system may keep no blocks for those.
    replace(disk, SPARE, &[0x5a; SPARE_BYTES])
}
