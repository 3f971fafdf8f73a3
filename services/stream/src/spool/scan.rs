//! Reads a spool as its last process left it: checks every segment, and derives all that recovery needs.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use uuid::Uuid;

use super::close::Admission;
use super::disk::{Disk, read_all};
use super::draft::Numbering;
use super::frame::{self, Entry, Position, Record, Tally};
use super::segment::{FORMAT, Header, TopicSpec, name_of, number_of};

/// Why a spool cannot be used. Each is for a person to look at: going on could lose or double what was billed.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The disk.
    #[error("the spool cannot be read: {0}")]
    Disk(#[from] io::Error),
    /// Bytes that were whole once are not any more.
    #[error(
        "segment {segment} of the spool is damaged at byte {offset} ({what}). Records may be lost: restore the file, or \
         start with a new spool directory and retire this one"
    )]
    Damaged {
        /// The segment.
        segment: u64,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// A segment is not there.
    #[error("segment {0} of the spool is missing although a later one is there: restore it, or retire this spool")]
    Missing(u64),
    /// Written by another version.
    #[error("segment {segment} has format {found}, this version reads {FORMAT}")]
    Format {
        /// The segment.
        segment: u64,
        /// Its format.
        found: u32,
    },
    /// The number of partitions changed.
    #[error(
        "the spool was written for the topics {found}, the settings say {wanted}: partitions are fixed when a topic is created"
    )]
    Topics {
        /// In the spool.
        found: String,
        /// In the settings.
        wanted: String,
    },
}

/// A request without an end.
#[derive(Debug, Clone)]
pub(crate) struct OpenEntry {
    pub admission: Arc<Admission>,
    /// Admissions are closed in the order in which they were made.
    pub order: u64,
    /// Attempt, replica and counts of the last checkpoint; its output and reasoning are billed.
    pub progress: Option<(u32, String, Tally)>,
}

/// What a spool says.
#[derive(Debug)]
pub(crate) struct Scan {
    pub spool: Option<Uuid>,
    pub numbering: Numbering,
    pub open: BTreeMap<Uuid, OpenEntry>,
    /// Valid lengths.
    pub segments: BTreeMap<u64, u64>,
    /// Bytes of a torn tail that are left behind.
    pub torn: u64,
    order: u64,
}

/// Reads all segments. `floor` is a place up to which the last segment was durable and shipped: a damaged frame before it
/// is no torn tail. `visit` sees each record with the place where its frame begins.
///
/// # Errors
/// See [`ScanError`].
pub(crate) fn scan(
    disk: &dyn Disk,
    topics: &[TopicSpec],
    boot: Uuid,
    floor: Position,
    visit: &mut dyn FnMut(Position, &Record),
) -> Result<Scan, ScanError> {
    let mut numbers: Vec<u64> = disk.list()?.iter().filter_map(|name| number_of(name)).collect();
    numbers.sort_unstable();
    let seqs = topics.iter().map(|topic| vec![0; topic.partitions.max(0) as usize]).collect();
    let numbering = Numbering { source: Uuid::nil(), before: None, seqs, time: 0, made: 0 };
    let mut scan = Scan { spool: None, numbering, open: BTreeMap::new(), segments: BTreeMap::new(), torn: 0, order: 0 };
    let mut next: Option<(Vec<u8>, Header)> = None;
    for (i, &number) in numbers.iter().enumerate() {
        let (bytes, header) = match next.take() {
            Some(read) => read,
            None => load(disk, number, topics)?,
        };
        let limit = match numbers.get(i + 1) {
            None => None,
            Some(&following) => {
                if following != number + 1 {
                    return Err(ScanError::Missing(number + 1));
                }
                let (following_bytes, following_header) = load(disk, following, topics)?;
                let length = following_header.previous.filter(|p| p.segment == number).map(|p| p.length);
                next = Some((following_bytes, following_header));
                let missing = || damaged(number, 0, "the segment after it does not say how long it is");
                Some(length.ok_or_else(missing)?)
            }
        };
        scan.segment(number, &bytes, &header, limit, boot, floor, visit)?;
    }
    Ok(scan)
}

fn damaged(segment: u64, offset: usize, what: impl ToString) -> ScanError {
    ScanError::Damaged { segment, offset: offset as u64, what: what.to_string() }
}

fn load(disk: &dyn Disk, number: u64, topics: &[TopicSpec]) -> Result<(Vec<u8>, Header), ScanError> {
    let bytes = read_all(&*disk.open(&name_of(number))?)?;
    let (payload, _) = frame::check(&bytes).map_err(|error| damaged(number, 0, error))?;
    let entries = frame::entries(payload).map_err(|error| damaged(number, 0, error))?;
    let [Entry::Header(json)] = entries.as_slice() else {
        return Err(damaged(number, 0, "it does not begin with a header"));
    };
    // The format is looked at first: another one may have other fields.
    let value: serde_json::Value = serde_json::from_slice(json).map_err(|error| damaged(number, 0, error))?;
    let format = value.get("format").and_then(serde_json::Value::as_u64).unwrap_or(0) as u32;
    if format != FORMAT {
        return Err(ScanError::Format { segment: number, found: format });
    }
    let header: Header = serde_json::from_value(value).map_err(|error| damaged(number, 0, error))?;
    if header.topics != topics {
        let say = |topics: &[TopicSpec]| {
            topics.iter().map(|t| format!("{} ({} partitions)", t.name, t.partitions)).collect::<Vec<_>>().join(", ")
        };
        return Err(ScanError::Topics { found: say(&header.topics), wanted: say(topics) });
    }
    Ok((bytes, header))
}

impl Scan {
    #[allow(clippy::too_many_arguments)]
    fn segment(
        &mut self,
        number: u64,
        bytes: &[u8],
        header: &Header,
        limit: Option<u64>,
        boot: Uuid,
        floor: Position,
        visit: &mut dyn FnMut(Position, &Record),
    ) -> Result<(), ScanError> {
        self.header(number, header)?;
        let end = limit.map_or(bytes.len(), |limit| limit as usize);
        if end > bytes.len() {
            return Err(damaged(number, bytes.len(), "it is shorter than the segment after it says"));
        }
        let mut at = 0;
        while at < end {
            let (payload, length) = match frame::check(&bytes[at..end]) {
                Ok(checked) => checked,
                Err(error) => {
                    let shipped = Position { segment: number, offset: at as u64 } < floor;
                    // While the host is up, what was written is there: only the last frame can be torn.
                    let inside = header.boot == boot && holds_a_frame(&bytes[at + 1..end]);
                    if (limit.is_some() || shipped || inside) && !left_out!(DamageStops) {
                        return Err(damaged(number, at, error));
                    }
                    self.torn = (end - at) as u64;
                    break;
                }
            };
            let place = Position { segment: number, offset: at as u64 };
            for entry in frame::entries(payload).map_err(|error| damaged(number, at, error))? {
                if let Entry::Record(record) = &entry {
                    visit(place, record);
                }
                self.entry(entry).map_err(|what| damaged(number, at, what))?;
            }
            at += length;
        }
        self.segments.insert(number, at as u64);
        Ok(())
    }

    fn header(&mut self, number: u64, header: &Header) -> Result<(), ScanError> {
        if self.spool.is_some_and(|spool| spool != header.spool) {
            return Err(damaged(number, 0, "it belongs to another spool"));
        }
        self.spool = Some(header.spool);
        let source = header.source.unwrap_or(Uuid::nil());
        let first = self.segments.is_empty();
        if first {
            let Header { before, seqs, time, .. } = header.clone();
            self.numbering = Numbering { source, before, seqs, time, made: 0 };
        } else if source != self.numbering.source || header.seqs != self.numbering.seqs {
            return Err(damaged(number, 0, "its header does not go on where the segment before it ends"));
        }
        self.numbering.time = self.numbering.time.max(header.time);
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<(), &'static str> {
        match entry {
            Entry::Header(_) => {}
            Entry::Record(record) => {
                if record.source != self.numbering.source {
                    return Err("a record of a source that had not begun");
                }
                let seq = self
                    .numbering
                    .seqs
                    .get_mut(record.topic as usize)
                    .and_then(|topic| topic.get_mut(usize::try_from(record.partition).ok()?))
                    .ok_or("a record for a partition that is not there")?;
                if record.seq != *seq + 1 {
                    return Err("a hole in the numbers of its records");
                }
                *seq = record.seq;
                self.numbering.time = self.numbering.time.max(record.time);
            }
            Entry::Admitted { request, admission, .. } => {
                let admission = serde_json::from_slice(&admission).map_err(|_| "an admission that cannot be read")?;
                let admission = Arc::new(admission);
                match self.open.get_mut(&request) {
                    // Another version serves it than was thought at first.
                    Some(open) => open.admission = admission,
                    None => {
                        self.order += 1;
                        self.open.insert(request, OpenEntry { admission, order: self.order, progress: None });
                    }
                }
            }
            Entry::Progress { request, attempt, replica, tally } => {
                if let Some(open) = self.open.get_mut(&request) {
                    open.progress = Some((attempt, replica, tally));
                }
            }
            Entry::Ended { request } => {
                self.open.remove(&request);
            }
            Entry::Watermark { time, .. } => self.numbering.time = self.numbering.time.max(time),
            Entry::Started { source, .. } => {
                let before = Some(self.numbering.source).filter(|source| !source.is_nil());
                self.numbering.seqs.iter_mut().flatten().for_each(|seq| *seq = 0);
                (self.numbering.source, self.numbering.before) = (source, before);
            }
        }
        Ok(())
    }
}

/// True if a whole frame begins anywhere in `bytes`.
fn holds_a_frame(bytes: &[u8]) -> bool {
    (0..bytes.len()).any(|at| frame::check(&bytes[at..]).is_ok())
}
