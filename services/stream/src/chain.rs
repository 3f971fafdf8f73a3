//! The chain: a hash over everything that was read of a partition, so that two foldings can be compared at any offset.

use sha2::{Digest, Sha256};

/// SHA-256 over the chain before and one record, record by record; all zeros before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Chain(pub [u8; 32]);

impl Chain {
    /// The chain after a record. Lengths are hashed too, so that no two records have the same bytes; an absent key or
    /// value differs from an empty one.
    pub fn after(self, offset: i64, log_time_ms: i64, key: Option<&[u8]>, value: Option<&[u8]>) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(offset.to_be_bytes());
        hash.update(log_time_ms.to_be_bytes());
        for part in [key, value] {
            match part {
                Some(bytes) => {
                    hash.update((bytes.len() as u64).to_be_bytes());
                    hash.update(bytes);
                }
                None => hash.update(u64::MAX.to_be_bytes()),
            }
        }
        Self(hash.finalize().into())
    }
}
