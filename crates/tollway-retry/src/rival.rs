//! The second attempt of a hedged call, beside the first.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use tokio::time::{Instant, Sleep, sleep_until};
use tollway_core::{BoxError, Phase};
use tower_service::Service;

use crate::budget::{Cost, Withdrawal};
use crate::call::{Call, Kept, Run, judge_outcome};
use crate::{ReplayBody, Seed};

/// The second attempt of a hedged call. In a box, since only calls that are
/// hedged have one.
pub(crate) struct Rival<F> {
    stage: Stage<F>,
    run: Run,
}

enum Stage<F> {
    /// No timer yet: a call may be made outside of the runtime that polls it.
    Planned,
    Waiting(Pin<Box<Sleep>>),
    /// It is paid for, and the service gets ready.
    Readying(Withdrawal),
    UnderWay(Pin<Box<F>>),
}

impl<F> Rival<F> {
    /// The attempt, if it is under way.
    pub(crate) fn under_way(self) -> Option<(Pin<Box<F>>, Run)> {
        match self.stage {
            Stage::UnderWay(future) => Some((future, self.run)),
            _ => None,
        }
    }

    pub(crate) fn run(&self) -> Run {
        self.run
    }

    /// Both attempts are pending, with these notes: that of the one which may
    /// have been sent stands, if there is such a one.
    pub(crate) fn pending_beside<T>(&self, first: Option<Phase>, own: Option<Phase>) -> Poll<T> {
        let own = match self.stage {
            Stage::UnderWay(_) => own,
            // Nothing of it was sent.
            _ => first,
        };
        let before_sending = |note: &Option<Phase>| note.is_some_and(Phase::is_before_sending);
        match [first, own].into_iter().find(|note| !before_sending(note)) {
            Some(sent) => sent.unwrap_or(Phase::Head).pending(),
            None => first.unwrap_or(Phase::Head).pending(),
        }
    }
}

impl<S, B, R: Seed> Call<S, B, R> {
    /// The second attempt, if the call is to be hedged.
    pub(crate) fn plan_rival<F>(&self) -> Option<Box<Rival<F>>> {
        let hedge = self.policy.settings().hedge.as_ref()?;
        let Kept::Resend(resend) = &self.kept else {
            return None;
        };
        if !(resend.head.is_idempotent() && resend.body.is_shared()) {
            return None;
        }
        Some(Box::new(Rival {
            stage: Stage::Planned,
            run: Run {
                delay: hedge.delay()?,
                since: self.started,
            },
        }))
    }

    /// Ready with what came of it, or with nothing if it isn't made after all.
    pub(crate) fn poll_rival<ResB>(
        &mut self,
        rival: &mut Rival<S::Future>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Response<ResB>, BoxError>>>
    where
        S: Service<Request<ReplayBody<B>>, Response = Response<ResB>>,
        S::Error: Into<BoxError>,
    {
        loop {
            rival.stage = match &mut rival.stage {
                Stage::Planned => match self.started.checked_add(rival.run.delay) {
                    Some(at) => Stage::Waiting(Box::pin(sleep_until(at))),
                    None => return Poll::Ready(None),
                },
                Stage::Waiting(sleep) => {
                    ready!(sleep.as_mut().poll(cx));
                    let budget = self.policy.budget();
                    match budget.withdraw(Instant::now(), Cost::Transient) {
                        Some(paid) => Stage::Readying(paid),
                        None => return Poll::Ready(None),
                    }
                }
                Stage::Readying(paid) => {
                    let Kept::Resend(resend) = &mut self.kept else {
                        return Poll::Ready(None);
                    };
                    if ready!(resend.service.poll_ready(cx)).is_err() {
                        // The first attempt is under way still; what comes of
                        // it is a better answer than this error.
                        return Poll::Ready(None);
                    }
                    paid.sent();
                    rival.run.since = Instant::now();
                    let attempt = self.progress().0.next_attempt();
                    let max_attempts = self.policy.settings().max_attempts;
                    let Kept::Resend(resend) = &mut self.kept else {
                        return Poll::Ready(None);
                    };
                    Stage::UnderWay(Box::pin(resend.send(attempt, max_attempts)))
                }
                Stage::UnderWay(future) => {
                    return future
                        .as_mut()
                        .poll(cx)
                        .map(|outcome| Some(outcome.map_err(Into::into)));
                }
            };
        }
    }

    /// The first attempt has ended while the rival is under way.
    pub(crate) fn first_ended<ResB>(
        &mut self,
        outcome: Result<Response<ResB>, BoxError>,
        rival: Run,
    ) -> Option<Result<Response<ResB>, BoxError>> {
        let first = self.progress().0.run;
        self.decide_race(outcome, first, rival)
    }

    /// The rival has ended while the first attempt is under way.
    pub(crate) fn rival_ended<ResB>(
        &mut self,
        outcome: Result<Response<ResB>, BoxError>,
        rival: Run,
    ) -> Option<Result<Response<ResB>, BoxError>> {
        let first = self.progress().0.run;
        self.decide_race(outcome, rival, first)
    }

    /// A final answer wins, and comes back; anything else is noted, and the call
    /// goes on with the other attempt.
    fn decide_race<ResB>(
        &mut self,
        outcome: Result<Response<ResB>, BoxError>,
        ended: Run,
        other: Run,
    ) -> Option<Result<Response<ResB>, BoxError>> {
        let now = Instant::now();
        let judgement = judge_outcome(&outcome);
        let started = self.started;
        let (progress, settings) = self.progress();
        if !judgement.verdict.is_final() {
            progress.run = ended;
            progress.note(&outcome, judgement, now);
            progress.run = other;
            return None;
        }
        // Where the first attempt lost, it would have taken longer still.
        if let Some(hedge) = &settings.hedge {
            hedge.observe(now.saturating_duration_since(started));
        }
        progress.run = other;
        progress.record_cancelled(now);
        progress.run = ended;
        Some(outcome)
    }
}
