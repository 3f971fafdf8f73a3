//! Where a chunk ends: by age, by offsets, or by bytes. The owner's choice alone; no figure depends on it.

/// When a chunk is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutPolicy {
    /// Milliseconds that the first record may wait.
    pub max_age_ms: u64,
    /// Milliseconds that heartbeats may wait while there is nothing else.
    pub max_quiet_ms: u64,
    /// Offsets in one chunk, holes included.
    pub max_offsets: u64,
    /// Bytes of keys and values in one chunk.
    pub max_bytes: u64,
}

impl Default for CutPolicy {
    /// For a line that keeps up: fresh within 300 ms, a block that ClickHouse takes in one part. A part costs the same however
    /// little is in it, and heartbeats come each second from each gateway for ever.
    fn default() -> Self {
        Self { max_age_ms: 300, max_quiet_ms: 5_000, max_offsets: 100_000, max_bytes: 64 << 20 }
    }
}

/// What waits to become a chunk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pending {
    first_at_ms: Option<u64>,
    /// The first that is no heartbeat.
    news_at_ms: Option<u64>,
    offsets: u64,
    bytes: u64,
}

impl Pending {
    /// A record joined: `offsets` with the holes before it, `bytes` of key and value, at `now_ms` of a steady clock; whether it
    /// is more than a heartbeat.
    pub fn add(&mut self, offsets: u64, bytes: u64, now_ms: u64, is_news: bool) {
        self.first_at_ms.get_or_insert(now_ms);
        if is_news {
            self.news_at_ms.get_or_insert(now_ms);
        }
        self.offsets = self.offsets.saturating_add(offsets);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Whether the chunk ends before a record of this size: what does not fit waits for the next one. A record larger
    /// than a whole chunk is a chunk by itself.
    pub fn is_full_for(&self, offsets: u64, bytes: u64, policy: &CutPolicy) -> bool {
        self.first_at_ms.is_some()
            && (self.offsets.saturating_add(offsets) > policy.max_offsets
                || self.bytes.saturating_add(bytes) > policy.max_bytes)
    }

    /// Whether the chunk ends now.
    pub fn is_due(&self, now_ms: u64, policy: &CutPolicy) -> bool {
        self.due_in_ms(now_ms, policy) == Some(0)
    }

    /// Milliseconds until the chunk ends if nothing joins; none while nothing waits.
    pub fn due_in_ms(&self, now_ms: u64, policy: &CutPolicy) -> Option<u64> {
        let quiet = self.first_at_ms?.saturating_add(policy.max_quiet_ms);
        let news = self.news_at_ms.map_or(u64::MAX, |at| at.saturating_add(policy.max_age_ms));
        let full = self.offsets >= policy.max_offsets || self.bytes >= policy.max_bytes;
        let left = quiet.min(news).saturating_sub(now_ms);
        Some(if full { 0 } else { left })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: CutPolicy = CutPolicy { max_age_ms: 300, max_quiet_ms: 5_000, max_offsets: 10, max_bytes: 1000 };

    #[test]
    fn the_first_record_sets_the_age() {
        let mut pending = Pending::default();
        assert_eq!(pending.due_in_ms(0, &POLICY), None);
        pending.add(1, 10, 1000, true);
        pending.add(1, 10, 1200, true);
        assert_eq!(pending.due_in_ms(1250, &POLICY), Some(50));
        assert!(!pending.is_due(1299, &POLICY));
        assert!(pending.is_due(1300, &POLICY));
        assert!(!pending.is_due(900, &POLICY), "a clock that went back only waits longer");
    }

    #[test]
    fn heartbeats_wait_longer_and_until_there_is_news() {
        let mut pending = Pending::default();
        pending.add(1, 10, 1000, false);
        pending.add(1, 10, 2000, false);
        assert_eq!(pending.due_in_ms(2000, &POLICY), Some(4000));
        pending.add(1, 10, 3000, true);
        assert_eq!(pending.due_in_ms(3000, &POLICY), Some(300));
        let mut late = Pending::default();
        late.add(1, 10, 0, false);
        late.add(1, 10, 4_900, true);
        assert_eq!(late.due_in_ms(4_900, &POLICY), Some(100), "nothing waits longer for what joins it");
    }

    #[test]
    fn a_record_larger_than_a_chunk_is_one_by_itself() {
        let mut pending = Pending::default();
        assert!(!pending.is_full_for(1, 5000, &POLICY));
        pending.add(1, 5000, 0, true);
        assert!(pending.is_due(0, &POLICY));
    }

    proptest! {
        #[test]
        fn no_chunk_passes_its_bounds(records in prop::collection::vec((1u64..4, 0u64..400), 1..60)) {
            let (mut pending, mut offsets, mut bytes) = (Pending::default(), 0, 0);
            for (holes, size) in records {
                if pending.is_full_for(holes, size, &POLICY) || pending.is_due(0, &POLICY) {
                    (pending, offsets, bytes) = (Pending::default(), 0, 0);
                }
                pending.add(holes, size, 0, true);
                offsets += holes;
                bytes += size;
                prop_assert!(offsets <= POLICY.max_offsets && bytes <= POLICY.max_bytes);
            }
        }
    }
}
