//! The instant that ends a wait.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};
use tollway_core::Deadline;

use crate::error::Limit;

/// One wait after the other, and the instant that ends each. Only a state
/// machine: it is told the time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    /// Ends every wait.
    deadline: Option<Instant>,
    /// Ends a wait that takes longer.
    limit: Option<Duration>,
    /// When the wait began, and when it ends: unknown until somebody waits.
    since: Option<Instant>,
    end: Option<Instant>,
}

/// Where a wait stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing ends it.
    Endless,
    /// It goes on until then. `new` on the first time that this is said.
    Until { end: Instant, new: bool },
    /// It is over.
    Over(RanOut),
}

/// What ran out, after how long, of how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RanOut {
    pub(crate) limit: Limit,
    pub(crate) after: Duration,
    pub(crate) of: Duration,
}

impl Wait {
    pub(crate) const ENDLESS: Self = Self::new(None, None, None);

    /// A wait that began at `since`, or else begins when it is first asked
    /// about.
    pub(crate) const fn new(
        deadline: Option<Instant>,
        limit: Option<Duration>,
        since: Option<Instant>,
    ) -> Self {
        Self {
            deadline,
            limit,
            since,
            end: None,
        }
    }

    /// The deadline that all below are to know of: one that is the only end of
    /// this wait. Where there is a limit too, a layer above holds it.
    #[inline]
    pub(crate) fn held(&self) -> Option<Deadline> {
        let end = self.deadline.filter(|_| self.limit.is_none())?;
        Some(Deadline::at(end))
    }

    /// The same deadline, and another limit, for the waits that follow this
    /// one. The time until a deadline alone goes on counting.
    #[inline]
    pub(crate) fn followed_by(self, limit: Option<Duration>) -> Self {
        let since = match limit {
            Some(_) => None,
            None => self.since,
        };
        Self::new(self.deadline, limit, since)
    }

    /// What was awaited has come; the next wait begins when it is asked about.
    pub(crate) fn rewind(&mut self) {
        if self.limit.is_some() {
            self.since = None;
            self.end = None;
        }
    }

    /// Where the wait stands at `now`. `limit` is the name of its limit.
    pub(crate) fn at(&mut self, now: Instant, limit: Limit) -> Progress {
        let since = *self.since.get_or_insert(now);
        let (end, new) = match self.end {
            Some(end) => (end, false),
            None => {
                // A wait that ends beyond what the clock can say never ends.
                let own = self.limit.and_then(|limit| since.checked_add(limit));
                match own.into_iter().chain(self.deadline).min() {
                    Some(end) => (*self.end.insert(end), true),
                    None => return Progress::Endless,
                }
            }
        };
        if now < end {
            return Progress::Until { end, new };
        }
        Progress::Over(RanOut {
            // Where both fall together it is the deadline: the call is over,
            // not only the attempt.
            limit: if self.deadline == Some(end) {
                Limit::Deadline
            } else {
                limit
            },
            after: now.saturating_duration_since(since),
            of: end.saturating_duration_since(since),
        })
    }

    /// Drives the wait on the runtime's timer. `sleep` hands out the timer,
    /// made for the instant it is given or made before.
    ///
    /// It is asked only where the thing awaited is pending, and only then reads
    /// the clock and registers with the runtime: what is answered at once pays
    /// for neither.
    pub(crate) fn poll<'a>(
        &mut self,
        limit: Limit,
        cx: &mut Context<'_>,
        sleep: impl FnOnce(Instant) -> Pin<&'a mut Sleep>,
    ) -> Poll<RanOut> {
        // The clock decides, and the timer only wakes. A timer can say
        // "pending" past its time: where the task has used up its budget, and
        // where the layer above waits for the same instant and its timer fired
        // a moment before. The error from down here says more than the one
        // from above, so it must not come second.
        match self.at(Instant::now(), limit) {
            Progress::Endless => Poll::Pending,
            Progress::Over(ran_out) => Poll::Ready(ran_out),
            Progress::Until { end, new } => {
                let mut sleep = sleep(end);
                if new && sleep.deadline() != end {
                    sleep.as_mut().reset(end);
                }
                match sleep.poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => match self.at(Instant::now().max(end), limit) {
                        Progress::Over(ran_out) => Poll::Ready(ran_out),
                        Progress::Endless | Progress::Until { .. } => Poll::Pending,
                    },
                }
            }
        }
    }
}
