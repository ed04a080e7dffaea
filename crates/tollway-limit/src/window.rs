//! Attempts that have been counted and are not yet a window old.

use std::collections::VecDeque;

use crate::quota::LEVELS;
use crate::tally::Tally;
use crate::time::Nanos;

/// An instant and a level in one word. The instant is rounded up to 4 ns: late
/// is safe.
#[derive(Clone, Copy, Debug)]
struct Stamp(u64);

impl Stamp {
    fn new(at: Nanos, level: usize) -> Self {
        Self((at.saturating_add(3) & !3) | level as u64)
    }

    fn at(self) -> Nanos {
        self.0 & !3
    }

    fn level(self) -> usize {
        // Two bits hold four values, and there are three levels.
        ((self.0 & 3) as usize).min(LEVELS - 1)
    }
}

/// The sliding window: for each attempt that has been counted, when its place
/// is free again. Attempts are counted in the order of time and the window is
/// one length, so the earliest is always at the front.
#[derive(Debug, Default)]
pub(crate) struct Window {
    ring: VecDeque<Stamp>,
    counted: Tally,
}

impl Window {
    /// Forgets the places that are free at `now`.
    pub(crate) fn expire(&mut self, now: Nanos) {
        while self.pop(now).is_some() {}
    }

    /// Forgets the first place if it is free at `now`: since when, and whose it
    /// was.
    #[inline]
    pub(crate) fn pop(&mut self, now: Nanos) -> Option<(Nanos, usize)> {
        let stamp = *self.ring.front()?;
        if stamp.at() > now {
            return None;
        }
        self.counted.remove(stamp.level());
        self.ring.pop_front();
        Some((stamp.at(), stamp.level()))
    }

    /// Counts attempts whose places are free at `free_at`.
    pub(crate) fn count_many(&mut self, free_at: Nanos, level: usize, count: u32) {
        let last = self.ring.back().map_or(0, |stamp| stamp.at());
        let stamp = Stamp::new(free_at.max(last), level);
        self.ring.extend(std::iter::repeat_n(stamp, count as usize));
        self.counted.add_many(level, count);
    }

    /// Counts an attempt whose place is free at `free_at`.
    pub(crate) fn count(&mut self, free_at: Nanos, level: usize) {
        // Only a window that was shortened meanwhile could be out of order;
        // then it waits for the one before it.
        let last = self.ring.back().map_or(0, |stamp| stamp.at());
        self.ring.push_back(Stamp::new(free_at.max(last), level));
        self.counted.add(level);
    }

    /// Counts one before those whose places are free later. Says when its own
    /// is.
    pub(crate) fn insert(&mut self, free_at: Nanos, level: usize) -> Nanos {
        let stamp = Stamp::new(free_at, level);
        let index = self.ring.partition_point(|other| other.at() <= stamp.at());
        self.ring.insert(index, stamp);
        self.counted.add(level);
        stamp.at()
    }

    /// When the `index`th of the counted attempts makes place.
    pub(crate) fn free_at(&self, index: usize) -> Option<Nanos> {
        self.ring.get(index).map(|stamp| stamp.at())
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.counted
    }

    pub(crate) fn len(&self) -> usize {
        self.ring.len()
    }

    /// Puts every place's release off by `by` (a longer window).
    pub(crate) fn delay(&mut self, by: Nanos) {
        for stamp in &mut self.ring {
            *stamp = Stamp::new(stamp.at().saturating_add(by), stamp.level());
        }
    }
}
