//! Permits lent out beforehand, so that most are taken and given back without
//! the lock.
//!
//! As long as nobody waits for a quota, and it has room whatever the time,
//! whoever holds the lock lends what is left of it: it notes how many permits
//! may be taken, and until when answers may be noted. Both are counted in one
//! word, each by a single addition. Whoever looks at the quota next, with the
//! lock in hand, closes the word with a single swap, and counts what was taken
//! and what was answered before it decides anything.
//!
//! So the state under the lock is never out of date while it is looked at, and
//! nobody can start to wait unnoticed: an answer either is in the word that the
//! one who is about to wait has closed, or finds it closed and takes the lock.
//!
//! Each quota has several such words, its tills. A thread goes to its own, so
//! that threads which are after the same quota don't fetch one line of memory
//! from each other for each permit; only who finds its till empty takes the lock,
//! and lends anew what is left in all of them.

use std::fmt;
use std::sync::{Arc, Weak};

use crate::shared::Shared;
use crate::sync::{AtomicU64, Ordering, own_index};
use crate::time::{Clock, NANOS_PER_MILLI, Nanos, Origin};

/// So long after the lending answers are noted. They are counted at its end or
/// when it is recalled, whichever is earlier, so that much too late at most.
pub(crate) const PERIOD: Nanos = NANOS_PER_MILLI / 10;

/// How many tills a quota has. With more threads than that, some share one.
pub(crate) const TILLS: usize = if cfg!(loom) { 2 } else { 4 };

/// Fewer permits are lent in one till alone.
const FEW: u32 = if cfg!(loom) { 4 } else { 8 };

/// One permit taken, in the upper half of the word. It counts up to
/// [`EXHAUSTED`]. One answer, in the lower half, is 1.
const TAKEN: u64 = 1 << 32;
const EXHAUSTED: u64 = 1 << 62;
const CLOSED: u64 = 1 << 63;

/// The most that a till is lent at a time. What was taken is accounted for under
/// the lock, in one go.
const MOST: u32 = 1 << 16;

/// A quota's tills.
#[derive(Clone, Debug)]
pub(crate) struct Express {
    pub(crate) tills: [Arc<Till>; TILLS],
}

/// Where a thread takes permits of one quota, and notes answers.
///
/// The lender's side is called under the lock, the others without.
pub(crate) struct Till {
    word: AtomicU64,
    /// The word of this loan before anything was taken.
    untouched: AtomicU64,
    /// Only grows.
    until: AtomicU64,
    /// Whose permits they are.
    pub(crate) meter: u32,
    pub(crate) origin: Origin,
    /// Not held alive by those who hold permits: where nobody else is left,
    /// nobody minds what becomes of them.
    pub(crate) shared: Weak<Shared>,
    /// Keeps the next till's word off this one's line.
    _apart: [u64; 8],
}

/// A permit that was taken: the first of a loan, or another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    First,
    Later,
}

/// What is lent, for the lender to remember.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loan {
    lent: [u32; TILLS],
    until: Nanos,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    pub(crate) taken: u32,
    pub(crate) answered: u32,
}

impl Express {
    pub(crate) fn new(meter: u32, origin: Origin, shared: &Weak<Shared>) -> Self {
        let till = |_| {
            Arc::new(Till {
                word: AtomicU64::new(CLOSED),
                untouched: AtomicU64::new(CLOSED),
                until: AtomicU64::new(0),
                meter,
                origin,
                shared: Weak::clone(shared),
                _apart: [0; 8],
            })
        };
        Self {
            tills: std::array::from_fn(till),
        }
    }

    /// This thread's till.
    #[inline]
    pub(crate) fn till(&self) -> &Arc<Till> {
        &self.tills[own_index() % TILLS]
    }

    pub(crate) fn meter(&self) -> u32 {
        self.tills[0].meter
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.tills[0], &other.tills[0])
    }

    /// Lends so many. Nothing may be lent already.
    pub(crate) fn lend(&self, count: u32, now: Nanos) -> Loan {
        // Most to this thread, which is at it: alone, it soon comes to the last
        // ones. With few, only that till is to be closed again.
        let mut lent = [count / FEW; TILLS];
        let others: u32 = lent[1..].iter().sum();
        lent[own_index() % TILLS] = count - others;
        let lent = lent.map(|lent| lent.min(MOST));
        let until = now.saturating_add(PERIOD);
        for (till, &lent) in self.tills.iter().zip(&lent) {
            if lent > 0 {
                till.open(lent, until);
            }
        }
        Loan { lent, until }
    }

    /// Ends a loan.
    pub(crate) fn recall(&self, loan: Loan) -> Used {
        let mut used = Used::default();
        for (till, &lent) in self.tills.iter().zip(&loan.lent) {
            if lent > 0 {
                let (left, answered) = till.close();
                used.taken += lent.saturating_sub(left);
                used.answered += answered;
            }
        }
        used
    }
}

impl Loan {
    /// When answers are counted that were noted by `now`: none was noted after
    /// the end of the loan. Where times are made up, ahead of the clock that is
    /// read, no earlier than at the latest time that was seen before this.
    pub(crate) fn counted_at(&self, now: Nanos, clock: Clock) -> Nanos {
        let at = now.min(self.until);
        match now < clock.latest {
            true => at.max(clock.before),
            false => at,
        }
    }

    /// Whether answers may still be noted. In a model, where time stands still,
    /// they would be for ever.
    pub(crate) fn is_fresh(&self, now: Nanos) -> bool {
        now < self.until && !cfg!(loom)
    }
}

impl Till {
    /// Takes a permit, if one is lent.
    #[inline]
    pub(crate) fn take(&self) -> Option<Taken> {
        // Looking first leaves the word alone while nothing is lent.
        if self.word.load(Ordering::Relaxed) >= EXHAUSTED {
            return None;
        }
        match self.word.fetch_add(TAKEN, Ordering::AcqRel) {
            word if word >= EXHAUSTED => None,
            word if word == self.untouched.load(Ordering::Relaxed) => Some(Taken::First),
            _ => Some(Taken::Later),
        }
    }

    /// Whether the limiter was told of this time, or nearly, when it lent.
    pub(crate) fn is_told(&self, now: Nanos) -> bool {
        now <= self.until.load(Ordering::Relaxed)
    }

    /// Notes that an attempt was answered at `now`, if that may be noted.
    #[inline]
    pub(crate) fn answer(&self, now: Nanos) -> bool {
        // Another loan may come in between, but then its end is later still.
        now <= self.until.load(Ordering::Acquire)
            && self.word.load(Ordering::Relaxed) < CLOSED
            && self.word.fetch_add(1, Ordering::AcqRel) < CLOSED
    }

    fn open(&self, lent: u32, until: Nanos) {
        let word = EXHAUSTED - TAKEN * u64::from(lent);
        self.until.store(until, Ordering::Release);
        self.untouched.store(word, Ordering::Relaxed);
        // A swap, though nobody asks what was there (additions of those who came
        // too late): a model can't order a store among additions.
        self.word.swap(word, Ordering::AcqRel);
    }

    /// Says how many are left, and how many answers were noted.
    fn close(&self) -> (u32, u32) {
        let word = self.word.swap(CLOSED, Ordering::AcqRel);
        let low = |half: u64| u32::try_from(half % TAKEN).unwrap_or(0);
        // Beyond what was lent it counts those who got none.
        let left = (EXHAUSTED / TAKEN).saturating_sub(word / TAKEN);
        (low(left), low(word))
    }
}

impl fmt::Debug for Till {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Till").field("meter", &self.meter).finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_left_is_lent_and_no_more() {
        let express = Express::new(0, Origin::now(), &Weak::new());
        for count in [1, 2, 7, 8, 9, 31, 32, 33, 100] {
            let loan = express.lend(count, 0);
            let taken = |till: &Arc<Till>| std::iter::from_fn(|| till.take()).count();
            let taken: usize = express.tills.iter().map(taken).sum();
            assert_eq!(taken, count as usize);
            let answered = express.tills.iter().filter(|till| till.answer(0));
            assert!(answered.count() > 0);
            let used = express.recall(loan);
            assert_eq!(used.taken, count);
            let lent = express.lend(count, 0).lent;
            assert_eq!(lent, loan.lent);
            let closed = |used: Used| (used.taken, used.answered);
            assert_eq!(closed(express.recall(loan)), (0, 0));
        }
    }
}
