//! The instant that ends a wait.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tollway_core::Deadline;

use crate::error::Limit;

/// What may run out while something is awaited.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bounds {
    /// The instant that ends the whole call.
    pub(crate) deadline: Option<Deadline>,
    /// The longest that this one wait may take.
    pub(crate) wait: Option<(Limit, Duration)>,
}

impl Bounds {
    /// The instant that ends a wait begun at `since`, and whose it is. Where
    /// both fall together it is the deadline: the call is over, not only the
    /// attempt.
    fn end(self, since: Instant) -> Option<(Limit, Instant)> {
        let deadline = self
            .deadline
            .map(|at| (Limit::Deadline, Instant::from_std(at.instant())));
        // A wait that ends beyond what the clock can say never ends.
        let wait = self
            .wait
            .and_then(|(limit, wait)| Some((limit, since.checked_add(wait)?)));
        match (deadline, wait) {
            (Some(deadline), Some(wait)) if wait.1 < deadline.1 => Some(wait),
            (Some(deadline), _) => Some(deadline),
            (None, wait) => wait,
        }
    }
}

/// A wait that has ended, or will.
#[derive(Clone, Copy, Debug)]
struct Wait {
    since: Instant,
    end: Instant,
    limit: Limit,
}

impl Wait {
    fn ran_out(self, now: Instant) -> RanOut {
        RanOut {
            limit: self.limit,
            after: now.saturating_duration_since(self.since),
            of: self.end.saturating_duration_since(self.since),
        }
    }
}

/// Which limit ran out, after how long, of how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RanOut {
    pub(crate) limit: Limit,
    pub(crate) after: Duration,
    pub(crate) of: Duration,
}

pin_project! {
    /// The timer of one future or one body.
    ///
    /// It is asked only where the thing that it watches is pending, and only
    /// then reads the clock and registers with the runtime: what is answered
    /// at once pays for neither.
    #[derive(Debug)]
    pub(crate) struct Timer {
        bounds: Bounds,
        // When the wait began, where that is known before it is first asked.
        since: Option<Instant>,
        wait: Option<Wait>,
        #[pin]
        sleep: Option<Sleep>,
    }
}

impl Timer {
    /// A timer for a wait that began at `since`, or else begins when the timer
    /// is first asked.
    pub(crate) fn new(bounds: Bounds, since: Option<Instant>) -> Self {
        Self {
            bounds,
            since,
            wait: None,
            sleep: None,
        }
    }

    pub(crate) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// What was awaited has come. The next wait begins when the timer is asked
    /// again; the registration is kept for it.
    pub(crate) fn rewind(self: Pin<&mut Self>) {
        *self.project().wait = None;
    }

    /// Ready once the wait has outlasted its bounds.
    pub(crate) fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<RanOut> {
        let mut this = self.project();
        let now = Instant::now();
        let wait = match *this.wait {
            Some(wait) => wait,
            None => {
                let since = this.since.unwrap_or(now);
                let Some((limit, end)) = this.bounds.end(since) else {
                    return Poll::Pending;
                };
                match this.sleep.as_mut().as_pin_mut() {
                    Some(sleep) => sleep.reset(end),
                    None => this.sleep.set(Some(sleep_until(end))),
                }
                *this.wait.insert(Wait { since, end, limit })
            }
        };
        // The clock decides, and the runtime's timer only wakes. The timer can
        // say "pending" past its time: where the task has used up its budget,
        // and where the layer above waits for the same instant and its timer
        // fired a moment before. The error from down here says more than the
        // one from above, so it must not come second.
        if now >= wait.end {
            return Poll::Ready(wait.ran_out(now));
        }
        match this.sleep.as_pin_mut() {
            Some(sleep) => sleep.poll(cx).map(|()| wait.ran_out(Instant::now())),
            None => Poll::Pending,
        }
    }
}
