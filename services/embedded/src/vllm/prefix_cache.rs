//! The prefix cache: full blocks of prompt tokens, found again by the hash of all that comes before them.

use std::collections::{BTreeMap, HashMap};

use super::tokens::mix;

/// What a prompt found in the cache and what it left there, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CacheUse {
    pub(super) cached: u32,
    pub(super) created: u32,
}

/// Least recently used out, as in vLLM. Only prompt blocks are kept, not generated ones.
#[derive(Debug)]
pub(super) struct PrefixCache {
    block_size: u32,
    capacity: usize,
    clock: u64,
    used: HashMap<u64, u64>,
    order: BTreeMap<u64, u64>,
}

impl PrefixCache {
    pub(super) fn new(block_size: u32, capacity: usize) -> Self {
        Self { block_size: block_size.max(1), capacity, clock: 0, used: HashMap::new(), order: BTreeMap::new() }
    }

    /// Looks a prompt up and stores its full blocks. At least one token is always computed anew, as in vLLM.
    pub(super) fn admit(&mut self, salt: u64, prompt: &[u32]) -> CacheUse {
        let size = usize::try_from(self.block_size).unwrap_or(usize::MAX);
        let reusable = prompt.len().saturating_sub(1) / size;
        let (mut hash, mut hits, mut created, mut hitting) = (mix(salt), 0, 0, true);
        for (index, block) in prompt.chunks_exact(size).enumerate() {
            hash = block.iter().fold(hash, |hash, id| mix(hash ^ u64::from(*id)));
            let known = self.touch(hash);
            hitting &= known && index < reusable;
            hits += u32::from(hitting);
            created += u32::from(!known);
        }
        CacheUse { cached: hits.saturating_mul(self.block_size), created: created.saturating_mul(self.block_size) }
    }

    /// Marks a block as just used; tells whether it was there.
    fn touch(&mut self, hash: u64) -> bool {
        self.clock += 1;
        let before = self.used.insert(hash, self.clock);
        if let Some(old) = before {
            self.order.remove(&old);
        }
        self.order.insert(self.clock, hash);
        while self.used.len() > self.capacity {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.used.remove(&oldest);
        }
        before.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_blocks_are_found_again_and_one_token_is_always_computed() {
        let mut cache = PrefixCache::new(128, 100);
        let prompt: Vec<u32> = (0..372).collect();
        assert_eq!(cache.admit(0, &prompt), CacheUse { cached: 0, created: 256 });
        assert_eq!(cache.admit(0, &prompt), CacheUse { cached: 256, created: 0 });
        assert_eq!(cache.admit(0, &prompt[..256]), CacheUse { cached: 128, created: 0 });
        assert_eq!(cache.admit(1, &prompt), CacheUse { cached: 0, created: 256 });
        let other: Vec<u32> = prompt[..130].iter().copied().chain(900..1100).collect();
        assert_eq!(cache.admit(0, &other), CacheUse { cached: 128, created: 128 });
    }

    #[test]
    fn the_least_recently_used_block_goes_first() {
        let mut cache = PrefixCache::new(2, 2);
        cache.admit(0, &[1, 2, 3]);
        cache.admit(0, &[5, 6, 7]);
        cache.admit(0, &[1, 2, 3]);
        cache.admit(0, &[8, 9, 10]);
        assert_eq!(cache.admit(0, &[1, 2, 3]).cached, 2);
        assert_eq!(cache.admit(0, &[5, 6, 7]).cached, 0);
    }
}
