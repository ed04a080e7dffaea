//! Attempts counted by level.

use crate::quota::LEVELS;

/// So many attempts of each level.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally([u32; LEVELS]);

impl Tally {
    pub(crate) fn add(&mut self, level: usize) {
        self.0[level] += 1;
    }

    pub(crate) fn remove(&mut self, level: usize) {
        self.0[level] = self.0[level].saturating_sub(1);
    }

    pub(crate) fn add_many(&mut self, level: usize, count: u32) {
        self.0[level] += count;
    }

    pub(crate) fn remove_many(&mut self, level: usize, count: u32) {
        self.0[level] = self.0[level].saturating_sub(count);
    }

    /// Both together.
    pub(crate) fn and(mut self, other: &Self) -> Self {
        for (count, other) in self.0.iter_mut().zip(other.0) {
            *count += other;
        }
        self
    }

    pub(crate) fn of(&self, level: usize) -> u32 {
        self.0[level]
    }

    pub(crate) fn total(&self) -> u32 {
        self.0.iter().sum()
    }
}
