//! The instant that ends a wait.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};
use tollway_core::{Deadline, recent};

use crate::error::{Limit, Start};

/// What ends a wait. Every layer above moves it with the response.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    /// Nothing.
    Endless,
    /// The deadline of a call that began at `since`.
    Deadline { end: Instant, since: Instant },
    /// A limit to each wait, and the call's deadline if it has one.
    Limit {
        limit: Duration,
        deadline: Option<Instant>,
    },
}

/// Where a wait stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing ends it.
    Endless,
    /// It goes on until then.
    Until(Instant),
    /// It is over.
    Over(RanOut),
}

/// What ran out, after how long, of how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RanOut {
    pub(crate) limit: Limit,
    pub(crate) counted_from: Start,
    pub(crate) after: Duration,
    pub(crate) of: Duration,
}

impl Wait {
    /// The deadline that all below are to know of: one that is the only end of
    /// this wait. Where there is a limit too, a layer above holds it.
    #[inline]
    pub(crate) fn held(&self) -> Option<Deadline> {
        match *self {
            Self::Deadline { end, .. } => Some(Deadline::at(end)),
            Self::Endless | Self::Limit { .. } => None,
        }
    }

    /// The deadline, if there is one.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match *self {
            Self::Endless => None,
            Self::Deadline { end, .. } => Some(end),
            Self::Limit { deadline, .. } => deadline,
        }
    }

    /// The same deadline, and another limit, for the waits that follow this
    /// one. The time until a deadline alone goes on counting.
    #[inline]
    pub(crate) fn followed_by(self, pause: Duration) -> Self {
        match self {
            Self::Endless | Self::Deadline { .. } => self,
            Self::Limit { deadline, .. } => Self::Limit {
                limit: pause,
                deadline,
            },
        }
    }

    /// What it comes to where it began at `began`. `None` where nothing ends it.
    fn term(&self, began: Instant) -> Option<Term> {
        let (since, own, deadline) = match *self {
            Self::Endless => return None,
            Self::Deadline { end, since } => (since, None, Some(end)),
            // A wait that ends beyond what the clock can say never ends.
            Self::Limit { limit, deadline } => (began, began.checked_add(limit), deadline),
        };
        let end = own.into_iter().chain(deadline).min()?;
        Some(Term {
            since,
            end,
            is_deadline: deadline == Some(end),
        })
    }

    /// Where the wait stands at `now`, if it began at `began`. `limit` is the
    /// name of its limit. Only a state machine: it is told the time.
    pub(crate) fn at(&self, now: Instant, began: Instant, limit: Limit) -> Progress {
        let Some(term) = self.term(began) else {
            return Progress::Endless;
        };
        if now < term.end {
            return Progress::Until(term.end);
        }
        Progress::Over(RanOut {
            // Where both fall together it is the deadline: the call is over,
            // not only the attempt.
            limit: if term.is_deadline {
                Limit::Deadline
            } else {
                limit
            },
            counted_from: match (self, limit) {
                (Self::Deadline { .. }, _) => Start::Call,
                (_, Limit::BodyPause) => Start::LastPiece,
                _ => Start::Attempt,
            },
            after: now.saturating_duration_since(term.since),
            of: term.end.saturating_duration_since(term.since),
        })
    }
}

/// From when until when a wait goes on.
struct Term {
    since: Instant,
    end: Instant,
    is_deadline: bool,
}

/// A wait under way, on the runtime's timer.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// When a wait with a limit began: unknown until somebody waits.
    since: Option<Instant>,
    /// Boxed: a timer is as large as what it waits for, and every layer above
    /// moves this future, before it is first polled. With the timer in it, 64
    /// callers of the client got 2 % fewer calls done.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Waiting {
    /// A wait that began at `since`, or else begins when it is first polled.
    #[inline]
    pub(crate) fn new(since: Option<Instant>) -> Self {
        Self { since, sleep: None }
    }

    /// When the timer that was set last fires.
    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        self.sleep.as_ref().map(|sleep| sleep.deadline())
    }

    /// What was awaited has come; the next wait begins when it is polled.
    pub(crate) fn rewind(&mut self) {
        self.since = None;
    }

    /// Ready once the wait is over. `limit` is the name of its limit.
    ///
    /// It is polled only where the thing awaited is pending, and only then
    /// registers with the runtime: what is answered at once doesn't pay for it.
    pub(crate) fn poll(&mut self, wait: &Wait, limit: Limit, cx: &mut Context<'_>) -> Poll<RanOut> {
        // Where it is known when the wait began, the first look at the clock is
        // left to the timer: one that is set to the past is over at once.
        if self.sleep.is_none()
            && let Some(began) = self.since
            && let Some(Term { end, .. }) = wait.term(began)
            && self.sleep_until(end, cx).is_pending()
        {
            return Poll::Pending;
        }
        // The clock decides, and the timer only wakes. A timer can say
        // "pending" past its time: where the task has used up its budget, and
        // where the layer above waits for the same instant and its timer fired
        // a moment before. The error from down here says more than the one
        // from above, so it must not come second.
        let now = Instant::from_std(recent(|| Instant::now().into_std()));
        let began = *self.since.get_or_insert(now);
        let end = match wait.at(now, began, limit) {
            Progress::Endless => return Poll::Pending,
            Progress::Over(ran_out) => return Poll::Ready(ran_out),
            Progress::Until(end) => end,
        };
        if self.sleep_until(end, cx).is_pending() {
            return Poll::Pending;
        }
        match wait.at(Instant::now().max(end), began, limit) {
            Progress::Over(ran_out) => Poll::Ready(ran_out),
            Progress::Endless | Progress::Until(_) => Poll::Pending,
        }
    }

    /// Has the runtime's timer wake the task at `end`.
    fn sleep_until(&mut self, end: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if sleep.deadline() != end {
            sleep.as_mut().reset(end);
        }
        sleep.as_mut().poll(cx)
    }
}
