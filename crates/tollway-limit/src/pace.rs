//! Even spacing against absolute instants.

use crate::time::{NANOS_PER_MILLI, Nanos};

/// How late an attempt may be sent without losing its place in the schedule.
///
/// Timers of tokio fire on whole milliseconds, up to one late, and a busy
/// machine adds to it. Within this much the schedule is caught up with,
/// several permits at a time if need be; beyond it the time is lost, because
/// catching up more would be a burst.
pub(crate) const CATCH_UP: Nanos = 5 * NANOS_PER_MILLI;

/// A schedule of attempts, evenly spaced.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    interval: Nanos,
    next: Nanos,
    /// What `next` was before the last attempt, and when that was taken: so
    /// that it can be given back.
    undo: Option<(Nanos, Nanos)>,
}

impl Pace {
    pub(crate) fn set_interval(&mut self, interval: Nanos) {
        self.interval = interval;
    }

    /// When the next attempt may go.
    pub(crate) fn next(&self) -> Nanos {
        self.next
    }

    pub(crate) fn interval(&self) -> Nanos {
        self.interval
    }

    pub(crate) fn take(&mut self, now: Nanos) {
        self.undo = Some((now, self.next));
        self.next = self
            .next
            .max(now.saturating_sub(CATCH_UP))
            .saturating_add(self.interval);
    }

    /// Takes so many at once.
    pub(crate) fn take_many(&mut self, count: u32, now: Nanos) {
        self.undo = None;
        let span = self.interval.saturating_mul(Nanos::from(count));
        self.next = self
            .next
            .max(now.saturating_sub(CATCH_UP))
            .saturating_add(span);
    }

    /// Gives back the attempt that was taken at `at`, unless another was taken
    /// since: then its place in the schedule is gone.
    pub(crate) fn give_back(&mut self, at: Nanos) {
        if let Some((taken, next)) = self.undo.take_if(|(taken, _)| *taken == at) {
            debug_assert_eq!(taken, at);
            self.next = next;
        }
    }

    /// Forgets how far ahead attempts have got that nothing spaced, or that were
    /// spaced more widely.
    pub(crate) fn rein_in(&mut self, now: Nanos) {
        self.next = self.next.min(now.saturating_add(self.interval));
    }

    /// Starts afresh.
    pub(crate) fn forget(&mut self) {
        self.next = 0;
    }

    /// Lets nothing go before `at`.
    pub(crate) fn hold_until(&mut self, at: Nanos) {
        self.undo = None;
        self.next = self.next.max(at);
    }
}

/// The mean of a stream of durations, weighted towards the last few hundred.
#[derive(Debug, Default)]
pub(crate) struct Mean {
    /// The mean, [`MEMORY`] times.
    total: Nanos,
    seen: u32,
}

/// How many samples the mean remembers, about.
const MEMORY: u32 = 256;

impl Mean {
    pub(crate) fn add(&mut self, sample: Nanos) {
        if self.seen < MEMORY {
            self.seen += 1;
            let sample = sample.saturating_mul(Nanos::from(MEMORY));
            let count = Nanos::from(self.seen);
            // What the first few make up is their plain mean.
            self.total = self.total - self.total / count + sample / count;
        } else {
            self.total = (self.total - self.nanos()).saturating_add(sample);
        }
    }

    pub(crate) fn nanos(&self) -> Nanos {
        self.total / Nanos::from(MEMORY)
    }
}
