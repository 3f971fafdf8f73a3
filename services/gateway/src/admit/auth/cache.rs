//! Tokens that were verified already, by their hashes: a signature is checked once, not with every request.

use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use hashbrown::HashMap;
use ledger::time::Micros;

use super::KeyHash;
use super::claims::Verified;
use super::keys::Keys;

/// Parts with a lock each, so that few wait for each other.
const PARTS: usize = 16;
/// The most tokens of a part: 16,384 in all, some 4 MB.
const PART_MAX: usize = 1024;

/// A token, and by what it was verified.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub verified: Arc<Verified>,
    /// Which of the issuers made it.
    pub issuer: usize,
    /// The keys that the issuer had.
    pub keys: Arc<Keys>,
}

type Part = HashMap<KeyHash, Entry>;

/// See the module. Its size is bounded.
#[derive(Debug, Default)]
pub(crate) struct Cache([RwLock<Part>; PARTS]);

impl Cache {
    /// What is known of the token with this hash.
    pub(crate) fn get(&self, hash: &KeyHash) -> Option<Entry> {
        self.part(hash).read().unwrap_or_else(PoisonError::into_inner).get(hash).cloned()
    }

    /// Keeps a token. Where there is no room, those that have expired go, or else any one.
    pub(crate) fn put(&self, hash: KeyHash, entry: Entry, now: Micros) {
        let mut part = self.write(&hash);
        if part.len() >= PART_MAX && !part.contains_key(&hash) {
            part.retain(|_, entry| now < entry.verified.until);
            if part.len() >= PART_MAX
                && let Some(any) = part.keys().next().copied()
            {
                part.remove(&any);
            }
        }
        part.insert(hash, entry);
    }

    /// Forgets a token.
    pub(crate) fn forget(&self, hash: &KeyHash) {
        self.write(hash).remove(hash);
    }

    fn part(&self, hash: &KeyHash) -> &RwLock<Part> {
        &self.0[usize::from(hash[0]) % PARTS]
    }

    fn write(&self, hash: &KeyHash) -> RwLockWriteGuard<'_, Part> {
        self.part(hash).write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::caller::Scopes;

    fn entry(until: i64) -> Entry {
        let verified = Verified {
            tenant: "acme".parse().unwrap(),
            project: "search".parse().unwrap(),
            key: ledger::ids::ApiKeyId(uuid::Uuid::nil()),
            scopes: Scopes::all(),
            until: Micros(until),
        };
        let keys = Keys::of_secret(&[b'x'; 32]).unwrap();
        Entry { verified: Arc::new(verified), issuer: 0, keys: Arc::new(keys) }
    }

    fn hash(number: usize) -> KeyHash {
        let mut hash = KeyHash::default();
        hash[1..9].copy_from_slice(&number.to_be_bytes());
        hash
    }

    #[test]
    fn it_never_grows_beyond_its_bound_and_the_expired_go_first() {
        let cache = Cache::default();
        let size = |cache: &Cache| cache.0[0].read().unwrap().len();
        for number in 0..PART_MAX {
            cache.put(hash(number), entry(if number % 2 == 0 { 5 } else { 50 }), Micros(0));
        }
        assert_eq!(size(&cache), PART_MAX);
        cache.put(hash(PART_MAX), entry(50), Micros(10));
        assert_eq!(size(&cache), PART_MAX / 2 + 1, "those that have expired");
        for number in PART_MAX..3 * PART_MAX {
            cache.put(hash(number), entry(50), Micros(10));
            assert!(cache.get(&hash(number)).is_some());
        }
        assert_eq!(size(&cache), PART_MAX);
        let last = hash(3 * PART_MAX - 1);
        cache.forget(&last);
        assert!(cache.get(&last).is_none());
    }
}
