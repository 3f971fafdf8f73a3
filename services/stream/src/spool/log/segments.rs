//! Whole segments: how one begins, there whole and durable or not at all, and how the last one of a lost process is kept.

use std::io;
use std::sync::Arc;

use uuid::Uuid;

use super::super::disk::{Disk, DiskFile, read_up_to, write_all};
use super::super::draft::Numbering;
use super::super::frame::{self, Entry, Position};
use super::super::segment::{FORMAT, Header, Previous, TopicSpec, name_of};

/// Makes the last segment of a process that is gone durable. Its bytes may be in memory only, and its last sync may have
/// failed, after which another one proves nothing; so they are written once more, in their place.
pub(super) fn make_durable(disk: &dyn Disk, number: u64, shipped: Position, length: u64) -> io::Result<()> {
    let file = disk.open(&name_of(number))?;
    let from = if shipped.segment == number { shipped.offset } else { 0 };
    let mut bytes = vec![0; usize::try_from(length.saturating_sub(from)).unwrap_or(0)];
    let read = read_up_to(&*file, &mut bytes, from)?;
    write_all(&*file, &bytes[..read], from)?;
    file.sync()
}

/// A new segment with these first bytes: there whole and durable, or not at all.
pub(super) fn place(disk: &dyn Disk, number: u64, bytes: &[u8]) -> io::Result<Arc<dyn DiskFile>> {
    let name = name_of(number);
    let temporary = format!("{name}.tmp");
    let file = disk.create(&temporary)?;
    let written = write_all(&*file, bytes, 0).and_then(|()| file.sync());
    if let Err(error) = written {
        let _ = disk.remove(&temporary);
        return Err(error);
    }
    disk.rename(&temporary, &name)?;
    disk.sync_dir()?;
    Ok(file)
}

/// The numbers as they stood before the records in `frames`.
pub(super) fn seqs_before(frames: &[u8], source: Uuid, mut seqs: Vec<Vec<u64>>) -> Vec<Vec<u64>> {
    let mut rest = frames;
    while let Ok((payload, end)) = frame::check(rest) {
        for entry in frame::entries(payload).unwrap_or_default() {
            if let Entry::Record(record) = entry
                && record.source == source
            {
                let seq = &mut seqs[record.topic as usize][record.partition as usize];
                *seq = (*seq).min(record.seq.saturating_sub(1));
            }
        }
        rest = &rest[end..];
    }
    seqs
}

impl Header {
    pub(super) fn new(
        spool: Uuid,
        boot: Uuid,
        numbering: &Numbering,
        topics: &[TopicSpec],
        previous: Option<Previous>,
    ) -> Self {
        let source = (!numbering.source.is_nil()).then_some(numbering.source);
        let Numbering { before, seqs, time, .. } = numbering.clone();
        Self { format: FORMAT, spool, boot, source, before, topics: topics.to_vec(), previous, seqs, time }
    }
}
