//! The way from a key to the tills of its quota, without the lock.
//!
//! It knows some of the keys that are in use, and no key needs to be in it. What
//! is in it never changes, so who looks something up needs no lock. Where there
//! is no place for one more key, all of it is replaced by an empty one, and keys
//! come back as they are used.
//!
//! An entry may outlive its key's quota. Then its tills are closed for good, and
//! lead to the lock.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::express::Express;
use crate::sync::OnceLock;

/// How many places a key may have.
const PLACES: usize = 8;
const FEWEST: usize = 64;
/// So many entries, with their tills and keys, are some 10 MB.
const MOST: usize = 1 << 14;

#[derive(Debug, Default)]
pub(crate) struct Directory {
    /// A power of two, or none.
    slots: Box<[OnceLock<Box<Entry>>]>,
    seed: u64,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    home: usize,
    key: Box<str>,
    express: Express,
    /// The key has other tills by now.
    gone: AtomicBool,
}

impl Directory {
    /// An empty one, for about so many keys.
    pub(crate) fn for_keys(keys: usize) -> Self {
        let slots = keys.saturating_mul(4).clamp(FEWEST, MOST);
        Self {
            slots: (0..slots.next_power_of_two())
                .map(|_| OnceLock::new())
                .collect(),
            seed: match cfg!(loom) {
                // The same every time a model runs.
                true => 0,
                false => RandomState::new().hash_one(0),
            },
        }
    }

    /// Whether so few keys are left that a smaller one would do.
    pub(crate) fn is_too_large(&self, keys: usize) -> bool {
        self.slots.len() > 16 * keys.max(FEWEST)
    }

    /// Where to take a permit for this key of a rule.
    #[inline]
    pub(crate) fn find(&self, home: usize, key: &str) -> Option<&Express> {
        let hash = self.hash(home, key);
        self.places(hash)
            .map_while(OnceLock::get)
            .find(|entry| entry.is(hash, home, key))
            .map(|entry| &entry.express)
    }

    /// Notes where to take permits for a key. Says whether there was a place
    /// for it. To be called under the lock.
    pub(crate) fn note(&self, home: usize, key: &str, express: &Express) -> bool {
        let hash = self.hash(home, key);
        for slot in self.places(hash) {
            match slot.get() {
                Some(entry) if entry.is(hash, home, key) => {
                    if entry.express.is(express) {
                        return true;
                    }
                    entry.gone.store(true, Ordering::Relaxed);
                }
                Some(_) => {}
                None => {
                    let entry = Entry {
                        hash,
                        home,
                        key: key.into(),
                        express: express.clone(),
                        gone: AtomicBool::new(false),
                    };
                    return slot.set(Box::new(entry)).is_ok();
                }
            }
        }
        false
    }

    #[inline]
    fn places(&self, hash: u64) -> impl Iterator<Item = &OnceLock<Box<Entry>>> {
        let mask = self.slots.len().wrapping_sub(1);
        // The upper half is the better mixed. 32 bits fit.
        let first = (hash >> 32) as usize;
        (0..PLACES).map_while(move |place| self.slots.get((first + place) & mask))
    }

    /// Whoever finds keys that collide makes them go the way through the lock,
    /// no more; so it needn't be a good one, but quick.
    #[inline]
    fn hash(&self, home: usize, key: &str) -> u64 {
        let (words, rest) = key.as_bytes().as_chunks::<8>();
        let mix = |hash: u64, word: u64| {
            let hash = (hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            hash ^ (hash >> 32)
        };
        let hash = words.iter().fold(self.seed ^ home as u64, |hash, word| {
            mix(hash, u64::from_le_bytes(*word))
        });
        let rest = rest.iter().fold(key.len() as u64, |rest, &byte| {
            (rest << 8) | u64::from(byte)
        });
        mix(mix(hash, rest), 0)
    }
}

impl Entry {
    #[inline]
    fn is(&self, hash: u64, home: usize, key: &str) -> bool {
        self.hash == hash
            && self.home == home
            && *self.key == *key
            && !self.gone.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Weak;

    use super::*;
    use crate::time::Origin;

    #[test]
    fn a_key_is_found_with_its_own_tills_and_no_others() {
        let express = || Express::new(0, Origin::now(), &Weak::new());
        let directory = Directory::for_keys(0);
        let (first, second, other) = (express(), express(), express());
        assert!(directory.note(0, "key", &first));
        assert!(directory.note(1, "key", &other));
        assert!(directory.note(0, "key", &second));
        let is = |home, key, express: &Express| {
            directory
                .find(home, key)
                .is_some_and(|found| found.is(express))
        };
        assert!(is(0, "key", &second));
        assert!(is(1, "key", &other));
        assert!(directory.find(0, "Key").is_none());
        assert!(directory.find(2, "key").is_none());
        // Not even if the hash were the same.
        for entry in directory.slots.iter().filter_map(OnceLock::get) {
            assert!(!entry.is(entry.hash, entry.home, "other"));
            assert!(!entry.is(entry.hash, 2, "key"));
        }
    }

    #[test]
    fn a_directory_that_is_full_says_so() {
        let express = Express::new(0, Origin::now(), &Weak::new());
        let directory = Directory::for_keys(0);
        let mut keys = (0..=FEWEST).map(|key| key.to_string());
        assert!(!keys.all(|key| directory.note(0, &key, &express)));
        assert!(!Directory::default().note(0, "key", &express));
        assert!(Directory::default().find(0, "key").is_none());
    }
}
