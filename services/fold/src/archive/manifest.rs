//! What is said of a file: which records it holds, its digest, and where the chain stands at both of its ends.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use stream::chain::Chain;
use stream::consume::Record;

/// The form of file and manifest that this binary writes, and the only one that it reads.
const FORMAT: u32 = 1;

/// Where a line of the log stands: the next offset, and what the chain needs to go on from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// The next offset.
    pub offset: i64,
    /// The running maximum of log time, milliseconds since 1970.
    pub log_time_ms: i64,
    /// Over everything before.
    #[serde(with = "hex")]
    pub chain: [u8; 32],
}

impl Point {
    /// Before the first record.
    pub const BEGINNING: Self = Self { offset: 0, log_time_ms: i64::MIN, chain: [0; 32] };

    /// Behind a record: the chain is the fold's.
    pub(super) fn after(self, record: &Record) -> Self {
        let log_time_ms = self.log_time_ms.max(record.log_time_ms);
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        let chain = Chain(self.chain).after(record.offset, log_time_ms, key, value).0;
        Self { offset: record.offset.saturating_add(1), log_time_ms, chain }
    }
}

/// What lies beside a file, under its name, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// Of which topic.
    pub topic: String,
    /// Of which partition.
    pub partition: i32,
    /// Where it begins.
    pub from: Point,
    /// Where it ends: behind its last record.
    pub to: Point,
    /// Records in it; fewer than offsets, where the log has holes.
    pub records: u64,
    /// Its size.
    pub bytes: u64,
    /// Of the whole file.
    #[serde(with = "hex")]
    pub sha256: [u8; 32],
}

impl Manifest {
    pub(super) fn new(topic: &str, partition: i32, from: Point, to: Point, records: usize, parquet: &[u8]) -> Self {
        Self {
            format: FORMAT,
            topic: topic.to_owned(),
            partition,
            from,
            to,
            records: records as u64,
            bytes: parquet.len() as u64,
            sha256: Sha256::digest(parquet).into(),
        }
    }

    /// Its name and its file's, without what follows the dot: sorted by name is sorted by offset.
    pub(super) fn stem(&self) -> String {
        format!("{:020}-{:020}", self.from.offset, self.to.offset)
    }

    /// What is wrong with it, found under this name.
    pub(super) fn wrong(&self, topic: &str, partition: i32, stem: &str) -> Option<String> {
        if self.format != FORMAT {
            return Some(format!("is of form {}, this Tollgate reads form {FORMAT}", self.format));
        }
        let ours = (self.topic.as_str(), self.partition, self.stem().as_str()) == (topic, partition, stem);
        let sound = 0 <= self.from.offset && self.from.offset < self.to.offset && self.records > 0;
        (!ours || !sound).then(|| "says another topic, partition or range than its name".to_owned())
    }
}

/// Digests as people and `sha256sum` write them.
mod hex {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits: Option<Vec<u8>> = text.chars().map(|digit| digit.to_digit(16).map(|value| value as u8)).collect();
        let bytes = digits.filter(|digits| digits.len() == 64).and_then(|digits| {
            digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect::<Vec<u8>>().try_into().ok()
        });
        bytes.ok_or_else(|| D::Error::custom("a digest is 64 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_comes_back_as_it_was_and_only_under_its_own_name() {
        let to = Point { offset: 12, log_time_ms: -3, chain: std::array::from_fn(|at| at as u8 * 7) };
        let manifest = Manifest::new("t", 3, Point::BEGINNING, to, 9, b"the file");
        let text = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest);
        assert!(text.contains("00070e151c"), "{text}");
        let stem = "00000000000000000000-00000000000000000012";
        assert_eq!(manifest.stem(), stem);
        assert_eq!(manifest.wrong("t", 3, stem), None);
        for (topic, partition, stem) in [("u", 3, stem), ("t", 4, stem), ("t", 3, &stem[1..])] {
            assert!(manifest.wrong(topic, partition, stem).is_some());
        }
        assert!(Manifest { format: 2, ..manifest }.wrong("t", 3, stem).unwrap().contains("form 2"));
        for bad in [text.replace("070e", "07"), text.replace("070e", "zz0e"), text.replace("\"bytes\"", "\"size\"")] {
            assert!(serde_json::from_str::<Manifest>(&bad).is_err(), "{bad}");
        }
    }
}
