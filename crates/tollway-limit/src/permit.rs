//! The right to send one attempt.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tollway_core::Verdict;

use crate::express::Till;
use crate::feedback;
use crate::fields::Remainder;
use crate::lanes::Plan;
use crate::quota::EXPRESS;
use crate::shared::Shared;
use crate::time::{Nanos, now};

/// The right to send one attempt now, taken from every quota that covers it.
///
/// Hold it until the attempt is over. Dropping it says that it is: the attempt
/// is counted from then on, since it may have been sent. One that was certainly
/// not sent goes back with [`give_back`](Self::give_back).
#[must_use = "dropping a permit says that the attempt is over"]
pub struct Permit {
    kind: Kind,
    stage: Stage,
    /// When it was taken, if that is known.
    sent: Option<Nanos>,
}

/// How it came about.
enum Kind {
    /// It was granted under the lock.
    Granted {
        shared: Arc<Shared>,
        plan: Plan,
        level: u8,
    },
    /// It was lent.
    Lent(Arc<Till>),
}

/// What dropping a permit says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The attempt was certainly not sent.
    Unsent,
    /// The same, and the quotas know.
    Held,
    /// It may have been sent, and is over.
    Sent,
    /// It was handed on and may have been sent, and whoever awaited its answer
    /// doesn't any more.
    Abandoned,
    /// The same, and it may have been sent for all that is known below.
    Away,
    /// Nothing any more.
    Over,
}

impl Permit {
    pub(crate) fn taken(shared: Arc<Shared>, plan: Plan, level: usize, at: Nanos) -> Self {
        Self {
            kind: Kind::Granted {
                shared,
                plan,
                // There are three.
                level: u8::try_from(level).unwrap_or(u8::MAX),
            },
            sent: Some(at),
            stage: Stage::Sent,
        }
    }

    /// One that was taken from a till, and when, if that is known.
    #[inline]
    pub(crate) fn lent(till: &Arc<Till>, sent: Option<Nanos>) -> Self {
        Self {
            kind: Kind::Lent(Arc::clone(till)),
            sent,
            stage: Stage::Sent,
        }
    }

    /// Runs `tell` with the limiter, where there is still one who could ask.
    fn tell<R>(&self, tell: impl FnOnce(&Arc<Shared>, &Plan, usize) -> R) -> Option<R> {
        match &self.kind {
            Kind::Granted {
                shared,
                plan,
                level,
            } => Some(tell(shared, plan, usize::from(*level))),
            Kind::Lent(till) => {
                let shared = till.shared.upgrade()?;
                Some(tell(&shared, &Plan::from_slice(&[till.meter]), EXPRESS))
            }
        }
    }

    /// From now on until [`send`](Self::send), the attempt is certainly not
    /// sent.
    #[inline]
    pub(crate) fn hold_back(&mut self) {
        self.stage = Stage::Unsent;
    }

    /// It will take a while until the attempt is sent: until
    /// [`resume`](Self::resume) or [`leave`](Self::leave). Once it has left there is
    /// no way back: what waits then is another request, of a redirect that is
    /// followed below or of a hidden retry.
    #[cold]
    pub(crate) fn wait(&mut self) {
        if matches!(self.stage, Stage::Unsent | Stage::Abandoned) {
            self.stage = Stage::Held;
            let sent = self.sent;
            self.tell(|shared, plan, level| {
                shared.change(plan, shared.nanos(now()), |gauge, _| {
                    gauge.hold_back(level, sent);
                });
            });
        }
    }

    /// Whether it had to [`wait`](Self::wait), and still does.
    #[inline]
    pub(crate) fn has_waited(&self) -> bool {
        self.stage == Stage::Held
    }

    /// The wait is over. Unless a quota has paused meanwhile: then the attempt
    /// mustn't be sent, and this is whom to ask again.
    #[cold]
    pub(crate) fn resume(&mut self) -> Result<(), Arc<Shared>> {
        let sent = self.sent;
        let resumed = self.tell(|shared, plan, level| {
            let resumed = shared.with(shared.nanos(now()), |core, now, wakers| {
                let state = &mut core.state;
                let is_paused = state.is_paused(plan, now);
                (!is_paused).then(|| {
                    state.change(plan, now, wakers, |gauge| {
                        gauge.resend(level, sent, true, now);
                    });
                    now
                })
            });
            resumed.ok_or_else(|| Arc::clone(shared))
        });
        // By the latest time that anybody has seen it is found again.
        self.sent = resumed.transpose()?;
        self.stage = Stage::Unsent;
        Ok(())
    }

    /// For how long it mustn't be sent yet, if a quota has paused while it had to
    /// [`wait`](Self::wait).
    #[cold]
    pub(crate) fn pause(&self) -> Option<Duration> {
        let left = self.tell(|shared, plan, _| {
            shared.with(shared.nanos(now()), |core, now, _| {
                core.state.paused_until(plan).saturating_sub(now)
            })
        });
        left.filter(|&left| left > 0).map(Duration::from_nanos)
    }

    /// The attempt is sent.
    #[inline]
    pub(crate) fn send(&mut self) {
        self.stage = Stage::Abandoned;
    }

    /// The attempt may have been sent by now, even if it had to
    /// [`wait`](Self::wait).
    #[inline]
    pub(crate) fn leave(&mut self) {
        if self.has_waited() {
            self.sent();
        }
        self.stage = Stage::Away;
    }

    /// The attempt is sent only now, not when the permit was given. It matters
    /// to quotas that [count from sending](crate::CountFrom::Sending) alone: their
    /// margin starts now. It has run since the permit was given, though, so by the
    /// end of margin and window its place may be another's; don't send then.
    pub fn sent(&mut self) {
        let (now, sent) = (now(), self.sent);
        let was_held = self.has_waited();
        self.stage = Stage::Sent;
        self.sent = self.tell(|shared, plan, level| {
            let mut at = shared.nanos(now);
            shared.change(plan, at, |gauge, now| {
                gauge.resend(level, sent, was_held, now);
                // The latest time that anybody has seen: by that it is found
                // again.
                at = now;
            });
            at
        });
    }

    /// The attempt is over, and this is what its answer means.
    ///
    /// [`Verdict::NotExecuted`] pauses the quotas that its scope names, for
    /// everybody who shares them: for the delay that the provider asks for, or
    /// else for the quota's own [`penalty`](crate::Quota::penalty); without
    /// either, not at all.
    #[inline]
    pub fn over(mut self, verdict: Verdict) {
        match verdict {
            Verdict::NotExecuted { .. } => self.over_with(now(), verdict, &[]),
            _ => self.stage = Stage::Sent,
        }
    }

    /// The same, at a time that the caller knows: for code that makes up its
    /// own, as [`Limits::try_acquire`](crate::Limits::try_acquire) allows.
    pub fn over_at(self, now: impl Into<Instant>, verdict: Verdict) {
        self.over_with(now.into(), verdict, &[]);
    }

    pub(crate) fn over_with(mut self, now: Instant, verdict: Verdict, said: &[Remainder]) {
        self.stage = Stage::Over;
        let sent = self.sent;
        let refused = match verdict {
            Verdict::NotExecuted { retry_after, scope } => Some((retry_after, scope)),
            _ => None,
        };
        let paused = self.tell(|shared, plan, level| {
            shared.with(shared.nanos(now), |core, now, wakers| {
                let state = &mut core.state;
                let valid = state.valid(plan);
                let paused = refused.and_then(|(retry_after, scope)| {
                    feedback::pause(state, &valid, retry_after, scope, now, wakers)
                });
                // It is over before what is left is reckoned: the provider has
                // counted it, and those still in flight perhaps not.
                state.finish(plan, level, sent, now);
                feedback::tighten(state, &valid, said, now, wakers);
                state.serve_plan(plan, now, wakers);
                core.sweep(plan, now);
                paused
            })
        });
        let paused = paused.flatten();
        if let Some((retry_after, scope)) = refused {
            tracing::info!(
                target: "tollway::limit",
                {
                    tollway.limit.scope = scope.as_str(),
                    tollway.limit.retry_after = retry_after.map(|after| after.as_secs_f64()),
                    tollway.limit.pause = paused.map(|pause| pause.as_secs_f64()),
                },
                "the provider refused an attempt"
            );
        }
    }

    fn finish(&self) {
        let now = now();
        let till = match &self.kind {
            Kind::Granted { .. } => None,
            Kind::Lent(till) => Some(&**till),
        };
        if till.is_some_and(|till| till.answer(till.origin.nanos(now))) {
            return;
        }
        let sent = self.sent;
        self.tell(|shared, plan, level| {
            shared.finish(plan, level, sent, shared.nanos(now), till);
        });
    }

    /// The attempt was certainly never sent: its place is free again.
    pub fn give_back(mut self) {
        self.stage = Stage::Unsent;
    }

    /// There is no answer, and none to come: it may still be on its way.
    pub(crate) fn abandon(mut self) {
        self.stage = Stage::Abandoned;
    }

    #[cold]
    fn lose(&self) {
        let sent = self.sent;
        self.tell(|shared, plan, level| {
            shared.change(plan, shared.nanos(now()), |gauge, now| {
                gauge.lose(level, sent, now);
            });
        });
    }

    #[cold]
    fn undo(&self) {
        let (sent, was_held) = (self.sent, self.stage == Stage::Held);
        self.tell(|shared, plan, level| {
            shared.change(plan, shared.nanos(now()), |gauge, _| {
                gauge.give_back(level, sent, was_held);
            });
        });
    }
}

impl Drop for Permit {
    #[inline]
    fn drop(&mut self) {
        match self.stage {
            Stage::Unsent | Stage::Held => self.undo(),
            Stage::Sent => self.finish(),
            Stage::Abandoned | Stage::Away => self.lose(),
            Stage::Over => {}
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}
