//! Randomness: a seed per call, and a small generator from there.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Where the random seed of a call's back-off comes from.
///
/// It is asked once per call, and only by calls that retry. Any
/// `Fn() -> u64` is one, so a test can hand in its own numbers; nobody else
/// needs to know that it exists.
pub trait Seed {
    /// The next seed.
    fn seed(&self) -> u64;
}

impl<F: Fn() -> u64> Seed for F {
    fn seed(&self) -> u64 {
        self()
    }
}

/// Seeds from the standard library's source of unpredictable hash keys. Two
/// calls never share one, clones of the same layer included.
#[derive(Clone, Copy, Debug, Default)]
pub struct RandomSeed;

impl Seed for RandomSeed {
    fn seed(&self) -> u64 {
        // Every `RandomState` has keys of its own.
        RandomState::new().build_hasher().finish()
    }
}

/// `SplitMix64` (Steele, Lea, Flood 2014): one word of state, good enough to
/// spread delays, never for secrets.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
