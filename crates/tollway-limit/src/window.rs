//! Attempts that have been counted and are not yet a window old, and attempts
//! that may not have arrived yet.

use std::collections::VecDeque;

use crate::quota::LEVELS;
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
    counted: [u32; LEVELS],
}

impl Window {
    /// Forgets the places that are free at `now`.
    pub(crate) fn expire(&mut self, now: Nanos) {
        while let Some(stamp) = self.ring.front() {
            if stamp.at() > now {
                break;
            }
            self.counted[stamp.level()] -= 1;
            self.ring.pop_front();
        }
    }

    /// Counts an attempt whose place is free at `free_at`.
    pub(crate) fn count(&mut self, free_at: Nanos, level: usize) {
        // Only a window that was shortened meanwhile could be out of order;
        // then it waits for the one before it.
        let last = self.ring.back().map_or(0, |stamp| stamp.at());
        self.ring.push_back(Stamp::new(free_at.max(last), level));
        self.counted[level] += 1;
    }

    /// When the `index`th of the counted attempts makes place.
    pub(crate) fn free_at(&self, index: usize) -> Option<Nanos> {
        self.ring.get(index).map(|stamp| stamp.at())
    }

    pub(crate) fn counted(&self, level: usize) -> u32 {
        self.counted[level]
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

/// Attempts that may still be on their way, in the order of sending: those
/// that are counted from sending plus a margin, until then or until answered.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    ring: VecDeque<Sent>,
}

#[derive(Debug)]
struct Sent {
    at: Nanos,
    level: usize,
    answered: bool,
}

impl Pending {
    pub(crate) fn push(&mut self, at: Nanos, level: usize) {
        self.ring.push_back(Sent {
            at,
            level,
            answered: false,
        });
    }

    /// Marks an attempt sent at `at` as over, and says whether it was still
    /// pending. Two that were sent at once are the same to every rule.
    pub(crate) fn answer(&mut self, at: Nanos, level: usize) -> bool {
        let start = self.ring.partition_point(|sent| sent.at < at);
        let found = self
            .ring
            .range_mut(start..)
            .take_while(|sent| sent.at == at)
            .find(|sent| sent.level == level && !sent.answered);
        match found {
            Some(sent) => {
                sent.answered = true;
                true
            }
            None => false,
        }
    }

    /// Takes out the first that was sent at `until` or before, if it is still
    /// unanswered: its sending and level.
    pub(crate) fn overdue(&mut self, until: Option<Nanos>) -> Option<(Nanos, usize)> {
        while let Some(sent) = self.ring.front() {
            if !sent.answered && until.is_none_or(|until| sent.at > until) {
                return None;
            }
            let sent = self.ring.pop_front()?;
            if !sent.answered {
                return Some((sent.at, sent.level));
            }
        }
        None
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// When the first of those unanswered was sent.
    pub(crate) fn first_sent(&self) -> Option<Nanos> {
        let mut unanswered = self.ring.iter().filter(|sent| !sent.answered);
        unanswered.next().map(|sent| sent.at)
    }

    pub(crate) fn drain(&mut self) {
        self.ring.clear();
    }
}
