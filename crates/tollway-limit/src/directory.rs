//! The way from a key to the tills of its quota, without the lock.
//!
//! It knows some of the keys that are in use, and no key needs to be in it. What
//! is in it never changes, so who looks something up needs no lock. Once it is
//! half full, or far too large, all of it is replaced by an empty one, and keys
//! come back as they are used.
//!
//! An entry may outlive its key's quota. Then its tills are closed for good, and
//! lead to the lock.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::express::Express;
use crate::sync::OnceLock;

/// How many places a key may have.
const PLACES: usize = 8;
const FEWEST: usize = 64;
/// Half as many entries, with their tills and keys, are some 6 MB.
const MOST: usize = 1 << 14;

#[derive(Debug, Default)]
pub(crate) struct Directory {
    /// A power of two, or none.
    slots: Box<[OnceLock<Box<Entry>>]>,
    /// How many of them are taken. It changes under the lock.
    taken: AtomicUsize,
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
            taken: AtomicUsize::new(0),
            seed: match cfg!(loom) {
                // The same every time a model runs.
                true => 0,
                false => RandomState::new().hash_one(0),
            },
        }
    }

    /// Whether it is to be replaced: it is half full, or so few keys are left
    /// that a smaller one would do.
    pub(crate) fn is_unfit(&self, keys: usize) -> bool {
        let slots = self.slots.len();
        2 * self.taken.load(Ordering::Relaxed) > slots || slots > 16 * keys.max(FEWEST)
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
    /// for it: too many may have the same. To be called under the lock.
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
                    self.taken.fetch_add(1, Ordering::Relaxed);
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
    use std::sync::{Arc, Weak};

    use http::Method;

    use super::*;
    use crate::call::Call;
    use crate::key::Key;
    use crate::limits::Limits;
    use crate::permit::Permit;
    use crate::quota::Quota;
    use crate::time::{Origin, now};

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
    fn a_directory_that_is_half_full_says_so() {
        let express = Express::new(0, Origin::now(), &Weak::new());
        let directory = Directory::for_keys(0);
        let noted = (0..2 * FEWEST).take_while(|key| {
            directory.note(0, &key.to_string(), &express);
            !directory.is_unfit(0)
        });
        assert!((FEWEST / 2..FEWEST).contains(&noted.count()));
        assert!(!Directory::default().note(0, "key", &express));
        assert!(Directory::default().find(0, "key").is_none());
    }

    fn limits() -> Limits {
        let limits = Limits::builder().keyed(Key::path(), Quota::concurrent(4));
        limits.build().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Several permits at a time, so that the rest is lent.
    fn take(limits: &Limits, path: &str) -> [Option<Permit>; 4] {
        let call = Call::new(&Method::GET, path);
        [(); 4].map(|()| limits.try_acquire(&call, now()).ok())
    }

    #[test]
    fn keys_that_collide_go_by_the_lock_and_leave_the_others_alone() {
        let limits = limits();
        let way = || limits.shared.way.load_full();
        let first = way();
        let place = |path: &str| (first.directory.hash(0, path) >> 32) as usize % FEWEST;
        let paths = (0..).map(|number| format!("/{number}"));
        let colliding: Vec<_> = paths.filter(|path| place(path) == 0).take(20).collect();
        for path in &colliding {
            let permits = take(&limits, path);
            assert!(permits.iter().all(Option::is_some));
        }
        assert!(Arc::ptr_eq(&first, &way()));
        let found = colliding
            .iter()
            .filter(|path| first.directory.find(0, path).is_some());
        assert_eq!(found.count(), PLACES);
    }

    #[test]
    fn a_crowd_of_keys_leaves_no_large_directory_behind() {
        let limits = limits();
        let slots = || limits.shared.way.load().directory.slots.len();
        let crowd: Vec<_> = (0..1000)
            .map(|key| take(&limits, &format!("/{key}")))
            .collect();
        assert!(slots() > 1024);
        drop(crowd);
        for _ in 0..1000 {
            let _permits = take(&limits, "/one");
        }
        assert!(slots() <= 1024);
        assert!(limits.shared.way.load().directory.find(0, "/one").is_some());
    }
}
