//! Permits lent out beforehand, so that most are taken and given back without
//! the lock.
//!
//! As long as nobody waits, and a quota has room whatever the time, whoever
//! holds the lock lends what is left of it: it notes how many permits may be
//! taken, and until when answers may be noted. Both are counted in one word,
//! each by a single addition. Whoever takes the lock next closes the word with a
//! single swap, and counts what was taken and what was answered before it
//! decides anything.
//!
//! So the state under the lock is never out of date while it is looked at, and
//! nobody can start to wait unnoticed: an answer either is in the word that the
//! one who is about to wait has closed, or finds it closed and takes the lock.

use crate::sync::{AtomicU64, Ordering};
use crate::time::{NANOS_PER_MILLI, Nanos};

/// So long after the lending answers are noted. They are counted at its end or
/// when it is recalled, whichever is earlier, so that much too late at most.
const PERIOD: Nanos = if cfg!(loom) {
    // The same every time a model runs.
    u64::MAX
} else {
    NANOS_PER_MILLI / 10
};

/// One permit taken, in the upper half of the word. It counts up to
/// [`EXHAUSTED`]. One answer, in the lower half, is 1.
const TAKEN: u64 = 1 << 32;
const EXHAUSTED: u64 = 1 << 62;
const CLOSED: u64 = 1 << 63;

/// The most that is lent at a time. What was taken is accounted for under the
/// lock, in one go.
pub(crate) const MOST: u32 = 1 << 16;

/// The lender's side is called under the lock, the others without.
#[derive(Debug)]
pub(crate) struct Express {
    word: AtomicU64,
    /// Only grows.
    until: AtomicU64,
    /// Whose permits they are.
    pub(crate) meter: u32,
}

/// What is lent, for the lender to remember.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loan {
    lent: u32,
    pub(crate) until: Nanos,
}

/// What became of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    pub(crate) taken: u32,
    pub(crate) answered: u32,
}

impl Express {
    pub(crate) fn new(meter: Option<u32>) -> Self {
        Self {
            // Of the last of so many meters nothing will ever be lent.
            meter: meter.unwrap_or(u32::MAX),
            word: AtomicU64::new(CLOSED),
            until: AtomicU64::new(0),
        }
    }

    /// Takes a permit, if one is lent.
    #[inline]
    pub(crate) fn take(&self) -> bool {
        // Looking first leaves the word alone while nothing is lent.
        self.word.load(Ordering::Relaxed) < EXHAUSTED
            && self.word.fetch_add(TAKEN, Ordering::AcqRel) < EXHAUSTED
    }

    /// Whether anything may be noted. A hint.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.word.load(Ordering::Relaxed) < CLOSED
    }

    /// Notes that an attempt was answered at `now`, if that may be noted.
    #[inline]
    pub(crate) fn answer(&self, now: Nanos) -> bool {
        // Another loan may come in between, but then its end is later still.
        now <= self.until.load(Ordering::Acquire)
            && self.is_open()
            && self.word.fetch_add(1, Ordering::AcqRel) < CLOSED
    }

    /// Lends so many. Nothing may be lent already.
    pub(crate) fn lend(&self, count: u32, now: Nanos) -> Loan {
        let lent = count.min(MOST);
        let until = now.saturating_add(PERIOD);
        self.until.store(until, Ordering::Release);
        let word = EXHAUSTED - TAKEN * u64::from(lent);
        self.word.store(word, Ordering::Release);
        Loan { lent, until }
    }

    /// Ends a loan.
    pub(crate) fn recall(&self, loan: Loan) -> Used {
        let word = self.word.swap(CLOSED, Ordering::AcqRel);
        let low = |half: u64| u32::try_from(half % TAKEN).unwrap_or(0);
        // Beyond what was lent it counts those who got none.
        let left = low((EXHAUSTED / TAKEN).saturating_sub(word / TAKEN));
        Used {
            taken: loan.lent.saturating_sub(left),
            answered: low(word),
        }
    }
}
