//! The bytes of a spool: frames with a length and a CRC32C, and the entries in them that stand or fall together.

use uuid::Uuid;

/// Bytes before a frame's payload: its length and its CRC32C, little-endian.
pub const FRAME_HEAD: usize = 8;
/// No frame's payload is longer; a longer length is damage.
pub const FRAME_MAX: usize = 16 << 20;
/// No record's key, value and headers together are longer, so that no broker refuses one.
pub const RECORD_MAX: usize = 64 << 10;

/// A place in a spool: a segment's number and an offset in bytes in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// The segment's number.
    pub segment: u64,
    /// Bytes from the segment's begin.
    pub offset: u64,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "segment {} offset {}", self.segment, self.offset)
    }
}

/// What goes to Kafka: final bytes, the partition included, so that a resend goes where the first went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whose numbering `seq` belongs to.
    pub source: Uuid,
    /// Index into the spool's list of topics.
    pub topic: u8,
    /// The partition.
    pub partition: i32,
    /// Counts from 1 per source, topic and partition; 0 on a mark.
    pub seq: u64,
    /// When it happened, microseconds since the Unix epoch; never below that of the record before.
    pub time: i64,
    /// The key; marks have none.
    pub key: Option<Vec<u8>>,
    /// The value; marks have none.
    pub value: Option<Vec<u8>>,
    /// Headers, in order.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Record {
    /// Bytes of key, value and headers.
    pub fn size(&self) -> usize {
        let optional = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        optional(&self.key) + optional(&self.value) + headers
    }
}

/// Tokens of an open request, as recovery needs them. Totals over the request's choices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Frames of the answer that carried counts or content; 0 means that the client got nothing yet.
    pub frames: u64,
    /// The whole prompt, cached or not.
    pub input: u64,
    /// Generated and visible.
    pub output: u64,
    /// Generated and not shown as the answer.
    pub reasoning: u64,
}

/// One entry of a frame. All but [`Entry::Record`] are local to the spool and never shipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// The first entry of a segment: JSON of its header.
    Header(Vec<u8>),
    /// To be shipped.
    Record(Record),
    /// A request was let in: its slot in the in-flight table, and JSON of what is known of it.
    Admitted {
        /// The request.
        request: Uuid,
        /// Its slot.
        slot: u32,
        /// JSON of the admission.
        admission: Vec<u8>,
    },
    /// What of an open request is billed so far (`output`, `reasoning`), and what is known of its input.
    Progress {
        /// The request.
        request: Uuid,
        /// Its attempt.
        attempt: u32,
        /// The replica that answers.
        replica: String,
        /// Cumulative.
        tally: Tally,
    },
    /// A request ended.
    Ended {
        /// The request.
        request: Uuid,
    },
    /// A promise: nothing of this source will be earlier. With the last `seq` per topic and partition at that moment.
    Watermark {
        /// The source.
        source: Uuid,
        /// Microseconds since the Unix epoch.
        time: i64,
        /// Last `seq` per topic, per partition.
        seqs: Vec<Vec<u64>>,
    },
    /// A new source begins, after the one before.
    Started {
        /// The new source.
        source: Uuid,
        /// The one before, if any.
        before: Option<Uuid>,
    },
}

/// Bytes that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than the head, or than the length says.
    #[error("the frame is cut off")]
    Short,
    /// A length of nothing, or beyond the limit.
    #[error("the frame's length {0} is impossible")]
    Length(u32),
    /// The checksum is another.
    #[error("the frame's checksum does not match")]
    Checksum,
    /// The checksum is right but the payload makes no sense: written by another version, or a bug.
    #[error("the frame's content cannot be read: {0}")]
    Content(&'static str),
}

/// Builds one frame.
#[derive(Debug)]
pub struct FrameBuilder {
    bytes: Vec<u8>,
}

impl Default for FrameBuilder {
    fn default() -> Self {
        Self { bytes: vec![0; FRAME_HEAD] }
    }
}

impl FrameBuilder {
    /// One that writes into `buffer`, whatever is in it.
    pub fn reusing(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.resize(FRAME_HEAD, 0);
        Self { bytes: buffer }
    }

    /// Appends an entry.
    pub fn push(&mut self, entry: &Entry) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[entry.kind(), 0, 0, 0, 0]);
        entry.write(&mut self.bytes);
        let length = (self.bytes.len() - start - 5) as u32;
        self.bytes[start + 1..start + 5].copy_from_slice(&length.to_le_bytes());
    }

    /// The frame's bytes.
    pub fn finish(mut self) -> Vec<u8> {
        let length = ((self.bytes.len() - FRAME_HEAD) as u32).to_le_bytes();
        self.bytes[..4].copy_from_slice(&length);
        let crc = checksum(length, &self.bytes[FRAME_HEAD..]);
        self.bytes[4..FRAME_HEAD].copy_from_slice(&crc.to_le_bytes());
        self.bytes
    }
}

/// The length is under the checksum, so that a run of zeros is no valid empty frame.
fn checksum(length: [u8; 4], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length), payload)
}

/// Checks the frame at the begin of `bytes`; returns its payload and its whole length.
///
/// # Errors
/// See [`FrameError`].
pub fn check(bytes: &[u8]) -> Result<(&[u8], usize), FrameError> {
    let head: &[u8; FRAME_HEAD] = bytes.first_chunk().ok_or(FrameError::Short)?;
    let length = [head[0], head[1], head[2], head[3]];
    let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    let size = u32::from_le_bytes(length);
    if size == 0 || size as usize > FRAME_MAX {
        return Err(FrameError::Length(size));
    }
    let end = FRAME_HEAD + size as usize;
    let payload = bytes.get(FRAME_HEAD..end).ok_or(FrameError::Short)?;
    if checksum(length, payload) != crc {
        return Err(FrameError::Checksum);
    }
    Ok((payload, end))
}

/// Length of the whole frame that a head announces, if it is possible.
pub fn announced(head: &[u8; FRAME_HEAD]) -> Option<usize> {
    let size = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    (size > 0 && size <= FRAME_MAX).then_some(FRAME_HEAD + size)
}

/// The entries of a checked payload.
///
/// # Errors
/// [`FrameError::Content`].
pub fn entries(mut payload: &[u8]) -> Result<Vec<Entry>, FrameError> {
    let mut found = Vec::new();
    while !payload.is_empty() {
        let mut reader = Reader(payload);
        let kind = reader.byte()?;
        let length = reader.u32()? as usize;
        let mut body = Reader(reader.take(length)?);
        found.push(Entry::read(kind, &mut body)?);
        if !body.0.is_empty() {
            return Err(FrameError::Content("an entry is longer than its fields"));
        }
        payload = reader.0;
    }
    Ok(found)
}

impl Entry {
    fn kind(&self) -> u8 {
        match self {
            Self::Header(_) => 1,
            Self::Record(_) => 2,
            Self::Admitted { .. } => 3,
            Self::Progress { .. } => 4,
            Self::Ended { .. } => 5,
            Self::Watermark { .. } => 6,
            Self::Started { .. } => 7,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Header(json) => out.extend_from_slice(json),
            Self::Record(record) => record.write(out),
            Self::Admitted { request, slot, admission } => {
                out.extend_from_slice(request.as_bytes());
                out.extend_from_slice(&slot.to_le_bytes());
                out.extend_from_slice(admission);
            }
            Self::Progress { request, attempt, replica, tally } => {
                out.extend_from_slice(request.as_bytes());
                out.extend_from_slice(&attempt.to_le_bytes());
                for n in [tally.frames, tally.input, tally.output, tally.reasoning] {
                    out.extend_from_slice(&n.to_le_bytes());
                }
                out.extend_from_slice(replica.as_bytes());
            }
            Self::Ended { request } => out.extend_from_slice(request.as_bytes()),
            Self::Watermark { source, time, seqs } => {
                out.extend_from_slice(source.as_bytes());
                out.extend_from_slice(&time.to_le_bytes());
                out.push(seqs.len() as u8);
                for topic in seqs {
                    out.extend_from_slice(&(topic.len() as u32).to_le_bytes());
                    topic.iter().for_each(|seq| out.extend_from_slice(&seq.to_le_bytes()));
                }
            }
            Self::Started { source, before } => {
                out.extend_from_slice(source.as_bytes());
                if let Some(before) = before {
                    out.extend_from_slice(before.as_bytes());
                }
            }
        }
    }

    fn read(kind: u8, body: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(match kind {
            1 => Self::Header(body.rest()),
            2 => Self::Record(Record::read(body)?),
            3 => Self::Admitted { request: body.uuid()?, slot: body.u32()?, admission: body.rest() },
            4 => Self::Progress {
                request: body.uuid()?,
                attempt: body.u32()?,
                tally: Tally { frames: body.u64()?, input: body.u64()?, output: body.u64()?, reasoning: body.u64()? },
                replica: text(body.rest())?,
            },
            5 => Self::Ended { request: body.uuid()? },
            6 => {
                let (source, time) = (body.uuid()?, body.u64()? as i64);
                let mut seqs = Vec::new();
                for _ in 0..body.byte()? {
                    let partitions = body.u32()?;
                    seqs.push((0..partitions).map(|_| body.u64()).collect::<Result<Vec<_>, _>>()?);
                }
                Self::Watermark { source, time, seqs }
            }
            7 => {
                let source = body.uuid()?;
                let before = if body.0.is_empty() { None } else { Some(body.uuid()?) };
                Self::Started { source, before }
            }
            _ => {
                return Err(FrameError::Content(
                    "an entry of an unknown kind; was the spool written by a newer version?",
                ));
            }
        })
    }
}

impl Record {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.source.as_bytes());
        out.push(self.topic);
        out.extend_from_slice(&self.partition.to_le_bytes());
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.time.to_le_bytes());
        for optional in [&self.key, &self.value] {
            let length = optional.as_ref().map_or(u32::MAX, |bytes| bytes.len() as u32);
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(optional.as_deref().unwrap_or_default());
        }
        out.push(self.headers.len() as u8);
        for (name, value) in &self.headers {
            out.push(name.len() as u8);
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(&(value.len() as u32).to_le_bytes());
            out.extend_from_slice(value);
        }
    }

    fn read(body: &mut Reader<'_>) -> Result<Self, FrameError> {
        let (source, topic) = (body.uuid()?, body.byte()?);
        let (partition, seq, time) = (body.u32()? as i32, body.u64()?, body.u64()? as i64);
        let (key, value) = (body.optional()?, body.optional()?);
        let mut headers = Vec::new();
        for _ in 0..body.byte()? {
            let length = body.byte()? as usize;
            let name = text(body.take(length)?.to_vec())?;
            let length = body.u32()? as usize;
            headers.push((name, body.take(length)?.to_vec()));
        }
        Ok(Self { source, topic, partition, seq, time, key, value, headers })
    }
}

fn text(bytes: Vec<u8>) -> Result<String, FrameError> {
    String::from_utf8(bytes).map_err(|_| FrameError::Content("a text that is not UTF-8"))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(FrameError::Content("an entry is cut off"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        self.take(N)?.try_into().map_err(|_| FrameError::Content("an entry is cut off"))
    }

    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0).to_vec()
    }

    fn byte(&mut self) -> Result<u8, FrameError> {
        self.array::<1>().map(|[b]| b)
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_le_bytes)
    }

    fn uuid(&mut self) -> Result<Uuid, FrameError> {
        self.array().map(Uuid::from_bytes)
    }

    fn optional(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        match self.u32()? {
            u32::MAX => Ok(None),
            length => self.take(length as usize).map(|bytes| Some(bytes.to_vec())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn uuids() -> impl Strategy<Value = Uuid> {
        any::<u128>().prop_map(Uuid::from_u128)
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..40)
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let tally = any::<(u64, u64, u64, u64)>().prop_map(|(frames, input, output, reasoning)| Tally {
            frames,
            input,
            output,
            reasoning,
        });
        let headers = proptest::collection::vec(("[a-z_]{0,12}", bytes()), 0..4);
        let bodies = (proptest::option::of(bytes()), proptest::option::of(bytes()));
        let record = (uuids(), any::<(u8, i32, u64, i64)>(), bodies, headers).prop_map(
            |(source, (topic, partition, seq, time), (key, value), headers)| {
                Entry::Record(Record { source, topic, partition, seq, time, key, value, headers })
            },
        );
        let seqs = proptest::collection::vec(proptest::collection::vec(any::<u64>(), 0..5), 0..4);
        prop_oneof![
            bytes().prop_map(Entry::Header),
            record,
            (uuids(), any::<u32>(), bytes()).prop_map(|(request, slot, admission)| Entry::Admitted {
                request,
                slot,
                admission
            }),
            (uuids(), any::<u32>(), "[a-z0-9-]{0,64}", tally)
                .prop_map(|(request, attempt, replica, tally)| Entry::Progress { request, attempt, replica, tally }),
            uuids().prop_map(|request| Entry::Ended { request }),
            (uuids(), any::<i64>(), seqs).prop_map(|(source, time, seqs)| Entry::Watermark { source, time, seqs }),
            (uuids(), proptest::option::of(uuids())).prop_map(|(source, before)| Entry::Started { source, before }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(wanted in proptest::collection::vec(entry(), 1..6), tail in bytes()) {
            let mut builder = FrameBuilder::default();
            wanted.iter().for_each(|entry| builder.push(entry));
            let mut frame = builder.finish();
            let length = frame.len();
            frame.extend(tail);
            let (payload, end) = check(&frame).unwrap();
            prop_assert_eq!(end, length);
            prop_assert_eq!(entries(payload).unwrap(), wanted);
        }

        #[test]
        fn a_changed_byte_or_a_cut_is_noticed(wanted in entry(), at in any::<proptest::sample::Index>(), flip in 1..=255_u8) {
            let mut builder = FrameBuilder::default();
            builder.push(&wanted);
            let mut frame = builder.finish();
            let at = at.index(frame.len());
            prop_assert!(check(&frame[..at]).is_err());
            frame[at] ^= flip;
            prop_assert!(check(&frame).is_err());
        }

        #[test]
        fn foreign_bytes_never_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = entries(&payload);
            let _ = check(&payload);
        }
    }

    #[test]
    fn zeros_are_no_frame() {
        assert_eq!(check(&[0; 64]), Err(FrameError::Length(0)));
    }
}
