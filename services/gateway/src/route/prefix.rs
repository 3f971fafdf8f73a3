//! Which replicas have read the beginning of a prompt before: an approximate memory of bounded size.
//!
//! A prompt is cut into blocks, and each block is known by a hash over it and all before it. Blocks grow with what lies
//! before them, so that a long prompt has few. What replicas evict from their caches is not told, so old beginnings are
//! forgotten here in the same manner: those that were not asked for again.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use hashbrown::HashMap;

/// The shortest block, in bytes. A shorter prompt is not worth a memory.
const BLOCK: usize = 256;
/// A block is such a part of what lies before it.
const GROWTH: usize = 8;
/// Of the replicas that have read a beginning, so many are known: the latest.
const KNOWN: usize = 8;
/// Locks, so that requests seldom wait for each other.
const SHARDS: usize = 16;

/// A replica's number, given anew at each start.
pub(super) type Number = u16;

/// The text of a prompt as routing sees it, with its hashes once they are asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prefix {
    salt: u64,
    /// In the order in which the engine's template puts them.
    pieces: Vec<Bytes>,
    tokens: u64,
    chain: OnceLock<Vec<Block>>,
}

/// The beginning of a prompt up to some place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    hash: u64,
    end: usize,
}

impl Prefix {
    /// Of a prompt of about so many tokens. Beginnings with other salts are other ones, whatever their text.
    pub(crate) fn new(salt: &[&str], pieces: Vec<Bytes>, tokens: u64) -> Self {
        let salt = salt.iter().fold(0, |hash, part| chained(hash, part.as_bytes()));
        Self { salt, pieces, tokens, chain: OnceLock::new() }
    }

    /// Its tokens beyond the first so many bytes.
    pub(super) fn tokens_beyond(&self, bytes: usize) -> u64 {
        let all = self.pieces.iter().map(Bytes::len).sum::<usize>().max(1);
        let beyond = all.saturating_sub(bytes) as u128;
        u64::try_from(u128::from(self.tokens) * beyond / all as u128).unwrap_or(self.tokens)
    }

    /// Where the last whole block ends; 0 if it has none.
    fn blocks_end(&self) -> usize {
        self.chain().last().map_or(0, |block| block.end)
    }

    fn chain(&self) -> &[Block] {
        self.chain.get_or_init(|| {
            let (mut chain, mut hash, mut end) = (Vec::new(), self.salt, 0);
            let mut left = BLOCK;
            for mut piece in self.pieces.iter().map(Bytes::as_ref) {
                while piece.len() >= left {
                    let (block, rest) = piece.split_at(left);
                    (hash, end, piece) = (chained(hash, block), end + left, rest);
                    chain.push(Block { hash, end });
                    left = BLOCK.max(end / GROWTH);
                }
                // A block may span pieces; where they meet is part of it.
                hash = chained(hash, piece);
                (end, left) = (end + piece.len(), left - piece.len());
            }
            chain
        })
    }
}

/// A hash of `bytes` after what `before` stands for. It need not resist anybody: a wrong hit costs its own tenant a cold cache.
fn chained(before: u64, bytes: &[u8]) -> u64 {
    let mixed = (before ^ u64::from(crc32c::crc32c(bytes))).wrapping_add(0x9e37_79b9_7f4a_7c15 ^ bytes.len() as u64);
    // The finisher of SplitMix64.
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// How much of a prompt replicas have read, in bytes.
#[derive(Debug, Default)]
pub(super) struct Warmth {
    read: [(Number, usize); 2 * KNOWN],
    known: usize,
    blocks_end: usize,
}

impl Warmth {
    /// Bytes that this replica has read.
    pub(super) fn of(&self, replica: Number) -> usize {
        self.read.iter().take(self.known).find(|(number, _)| *number == replica).map_or(0, |(_, end)| *end)
    }

    /// Whether it has read such a share of what could be known of it.
    pub(super) fn is_warm(&self, replica: Number, percent: u8) -> bool {
        let read = self.of(replica);
        read > 0 && read * 100 >= self.blocks_end * usize::from(percent)
    }

    fn note(&mut self, replicas: &[Number; KNOWN], end: usize) {
        for replica in replicas.iter().filter(|number| **number != 0) {
            match self.read.iter_mut().take(self.known).find(|(number, _)| number == replica) {
                Some((_, read)) => *read = end,
                None => {
                    if let Some(place) = self.read.get_mut(self.known) {
                        (*place, self.known) = ((*replica, end), self.known + 1);
                    }
                }
            }
        }
    }
}

type Generation = HashMap<u64, [Number; KNOWN]>;

/// Two generations: what is not asked for while the young one fills up is forgotten with the old one.
#[derive(Debug, Default)]
struct Shard {
    young: Generation,
    old: Generation,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Memory {
    shards: Vec<Mutex<Shard>>,
    /// Of one generation of a shard.
    most: usize,
}

impl Memory {
    /// One that remembers about `entries` beginnings, and never more than that.
    pub(super) fn new(entries: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, most: (entries / SHARDS / 2).max(1) }
    }

    /// Who has read the beginning of this prompt.
    pub(super) fn read(&self, prefix: &Prefix) -> Warmth {
        let mut warmth = Warmth { blocks_end: prefix.blocks_end(), ..Warmth::default() };
        if warmth.blocks_end == 0 {
            return warmth;
        }
        let shard = self.shard(prefix);
        for block in prefix.chain() {
            match shard.young.get(&block.hash).or_else(|| shard.old.get(&block.hash)) {
                Some(replicas) => warmth.note(replicas, block.end),
                // What lies beyond was not read either, or is forgotten soon.
                None => break,
            }
        }
        warmth
    }

    /// This replica is about to read it.
    pub(super) fn note(&self, prefix: &Prefix, replica: Number) {
        if prefix.chain().is_empty() {
            return;
        }
        let mut shard = self.shard(prefix);
        for block in prefix.chain() {
            let Shard { young, old } = &mut *shard;
            let replicas = young.entry(block.hash).or_insert_with(|| old.remove(&block.hash).unwrap_or_default());
            let place = replicas.iter().position(|number| *number == replica).unwrap_or(KNOWN - 1);
            replicas[..=place].rotate_right(1);
            replicas[0] = replica;
            if young.len() >= self.most {
                *old = std::mem::take(young);
            }
        }
    }

    /// All blocks of a prompt lie in one shard.
    fn shard(&self, prefix: &Prefix) -> MutexGuard<'_, Shard> {
        let first = prefix.chain().first().map_or(0, |block| block.hash);
        let at = usize::try_from(first % SHARDS as u64).unwrap_or(0);
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn entries(&self) -> usize {
        let of = |shard: &Mutex<Shard>| {
            let shard = shard.lock().unwrap();
            shard.young.len() + shard.old.len()
        };
        self.shards.iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(tenant: &str, text: &str) -> Prefix {
        Prefix::new(&[tenant], vec![Bytes::copy_from_slice(text.as_bytes())], text.len() as u64 / 4)
    }

    #[test]
    fn who_has_read_a_beginning_is_known_as_far_as_it_is_the_same() {
        let memory = Memory::new(10_000);
        let system = "You are helpful. ".repeat(100);
        let first = prefix("a", &format!("{system}first question"));
        assert_eq!(memory.read(&first).of(1), 0);
        memory.note(&first, 1);
        memory.note(&prefix("a", &"something else ".repeat(100)), 2);
        assert!(memory.read(&first).is_warm(1, 100) && !memory.read(&first).is_warm(2, 1));
        let second = prefix("a", &format!("{system}{}", "a long second question ".repeat(200)));
        let warmth = memory.read(&second);
        assert!((system.len() - 256..=system.len()).contains(&warmth.of(1)), "{}", warmth.of(1));
        assert!(warmth.is_warm(1, 20) && !warmth.is_warm(1, 80));
        assert!(second.tokens_beyond(warmth.of(1)) < second.tokens && second.tokens_beyond(usize::MAX) == 0);
        assert_eq!(
            memory.read(&prefix("b", &format!("{system}first question"))).of(1),
            0,
            "another tenant's is another"
        );
        let short = prefix("a", "Hi");
        memory.note(&short, 1);
        assert!(!memory.read(&short).is_warm(1, 0), "too short to be worth it");
    }

    #[test]
    fn the_latest_readers_are_known() {
        let (memory, text) = (Memory::new(1000), prefix("a", &"text ".repeat(100)));
        (1..=20).for_each(|replica| memory.note(&text, replica));
        memory.note(&text, 13);
        let warmth = memory.read(&text);
        let known: Vec<_> = (1..=20).filter(|replica| warmth.is_warm(*replica, 100)).collect();
        assert_eq!(known, [13, 14, 15, 16, 17, 18, 19, 20]);
    }

    #[test]
    fn old_beginnings_are_forgotten_and_those_in_use_are_not() {
        let memory = Memory::new(1600);
        let used = prefix("a", &"in use ".repeat(60));
        for n in 0..20_000 {
            memory.note(&prefix("a", &format!("{n} {}", "text ".repeat(60))), 2);
            if n % 20 == 0 {
                memory.note(&used, 1);
            }
            assert!(memory.entries() <= 1600);
        }
        assert!(memory.read(&used).is_warm(1, 100));
        assert_eq!(memory.read(&prefix("a", &format!("7 {}", "text ".repeat(60)))).of(2), 0);
    }

    #[test]
    fn a_long_prompt_has_few_blocks() {
        assert!(prefix("a", &"x".repeat(1 << 20)).chain().len() < 100);
    }

    proptest! {
        /// Two prompts share exactly the blocks that lie wholly in what is the same, however they are cut into pieces.
        #[test]
        fn blocks_are_shared_as_far_as_texts_are(same in 0usize..3000, rest in 1usize..2000, cut in any::<prop::sample::Index>()) {
            let common = "abcdefg".repeat(same / 7 + 1);
            let text = |end: char| format!("{}{}", &common[..same], end.to_string().repeat(rest));
            let (a, b) = (text('x'), text('y'));
            let at = cut.index(a.len());
            let pieces = [&a[..at], &a[at..]].map(|piece| Bytes::copy_from_slice(piece.as_bytes())).to_vec();
            let (a, again, b) = (prefix("t", &a), Prefix::new(&["t"], pieces, 0), prefix("t", &b));
            let ends = |prefix: &Prefix| prefix.chain().iter().map(|block| block.end).collect::<Vec<_>>();
            prop_assert_eq!(ends(&a), ends(&b));
            prop_assert_eq!(ends(&a), ends(&again));
            let shared = a.chain().iter().zip(b.chain()).take_while(|(a, b)| a == b).count();
            prop_assert_eq!(shared, a.chain().iter().filter(|block| block.end <= same).count());
        }
    }
}
