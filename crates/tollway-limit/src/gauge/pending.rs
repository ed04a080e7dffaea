//! Attempts that are counted from sending plus a margin.

use std::collections::VecDeque;

use crate::tally::Tally;
use crate::time::Nanos;

/// Attempts that may still be on their way, in the order of sending: each is
/// counted a margin after that, unless it is answered before.
#[derive(Debug)]
pub(super) struct Pending {
    margin: Nanos,
    ring: VecDeque<Sent>,
    unanswered: Tally,
}

#[derive(Debug)]
struct Sent {
    at: Nanos,
    level: usize,
    answered: bool,
}

impl Pending {
    pub(super) fn new(margin: Nanos) -> Self {
        Self {
            margin,
            ring: VecDeque::new(),
            unanswered: Tally::default(),
        }
    }

    pub(super) fn push(&mut self, at: Nanos, level: usize) {
        self.unanswered.add(level);
        self.ring.push_back(Sent {
            at,
            level,
            answered: false,
        });
    }

    /// Marks an attempt sent at `at` as over, and says whether it was still
    /// pending. Two that were sent at once are the same to every rule.
    pub(super) fn answer(&mut self, at: Nanos, level: usize) -> bool {
        let start = self.ring.partition_point(|sent| sent.at < at);
        let found = self
            .ring
            .range_mut(start..)
            .take_while(|sent| sent.at == at)
            .find(|sent| sent.level == level && !sent.answered);
        match found {
            Some(sent) => {
                sent.answered = true;
                self.unanswered.remove(level);
                true
            }
            None => false,
        }
    }

    /// Takes out the first that is to be counted by `now` though it is
    /// unanswered: its sending, level, and when it counts.
    pub(super) fn overdue(&mut self, now: Nanos) -> Option<(Nanos, usize, Nanos)> {
        while let Some(sent) = self.ring.front() {
            let counts = sent.at.saturating_add(self.margin);
            if !sent.answered && counts > now {
                return None;
            }
            let sent = self.ring.pop_front()?;
            if !sent.answered {
                self.unanswered.remove(sent.level);
                return Some((sent.at, sent.level, counts));
            }
        }
        None
    }

    pub(super) fn unanswered(&self) -> &Tally {
        &self.unanswered
    }

    /// When one that was sent at `at` is counted at the latest.
    pub(super) fn latest(&self, at: Nanos) -> Nanos {
        at.saturating_add(self.margin)
    }

    /// When the first of those unanswered is counted at the latest.
    pub(super) fn first(&self) -> Option<Nanos> {
        let mut unanswered = self.ring.iter().filter(|sent| !sent.answered);
        unanswered
            .next()
            .map(|sent| sent.at.saturating_add(self.margin))
    }
}
