//! What a segment begins with, and its name.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::frame::{Entry, FrameBuilder};

/// Version of the format of segments.
pub const FORMAT: u32 = 1;

/// A topic that the spool feeds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// Its partitions: fixed when it is created.
    pub partitions: i32,
}

/// The segment before, and how many bytes of it are valid: beyond that lies what a failed write left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// Its number.
    pub segment: u64,
    /// Its valid length in bytes.
    pub length: u64,
}

/// The first entry of a segment: enough to go on when all segments before it are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// See [`FORMAT`].
    pub format: u32,
    /// The spool.
    pub spool: Uuid,
    /// The boot of the host that wrote this.
    pub boot: Uuid,
    /// The source whose numbering stands when the segment begins; none in the first one.
    pub source: Option<Uuid>,
    /// The source before that.
    pub before: Option<Uuid>,
    /// The topics, by index.
    pub topics: Vec<TopicSpec>,
    /// The segment before.
    pub previous: Option<Previous>,
    /// Last `seq` of the source per topic, per partition.
    pub seqs: Vec<Vec<u64>>,
    /// No later record is earlier, microseconds since the Unix epoch.
    pub time: i64,
}

impl Header {
    /// As a frame.
    pub fn frame(&self) -> Vec<u8> {
        // A struct of numbers, texts and lists of them always has a JSON form.
        let json = serde_json::to_vec(self).unwrap_or_default();
        let mut builder = FrameBuilder::default();
        builder.push(&Entry::Header(json));
        builder.finish()
    }
}

/// The name of a segment's file.
pub fn name_of(number: u64) -> String {
    format!("segment-{number:020}.spool")
}

/// The number in the name of a segment's file.
pub fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-")?.strip_suffix(".spool")?;
    (digits.len() == 20).then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree() {
        for number in [1, 42, u64::MAX] {
            assert_eq!(number_of(&name_of(number)), Some(number));
        }
        for other in ["segment-1.spool", "segment-00000000000000000001.spool.tmp", "lock"] {
            assert_eq!(number_of(other), None);
        }
    }
}
