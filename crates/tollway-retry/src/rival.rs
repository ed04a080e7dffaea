//! The second attempt of a hedged call, beside the first.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use tokio::time::{Instant, Sleep, sleep_until};
use tollway_core::{BoxError, Phase};
use tower_service::Service;

use crate::budget::{Cost, Withdrawal};
use crate::call::{Call, Run};
use crate::resend::Kept;
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
}

/// Both attempts are pending, with these notes on what they wait for: that of
/// one which may have been sent stands, if there is such a one.
fn pending<T>(first: Option<Phase>, rival: Option<Phase>) -> Poll<T> {
    let unsent = |note: &Option<Phase>| note.is_some_and(Phase::is_before_sending);
    let sent = [first, rival].into_iter().find(|note| !unsent(note));
    sent.unwrap_or(first).unwrap_or(Phase::Head).pending()
}

/// What a race between two attempts has come to.
pub(crate) enum Raced<F, ResB> {
    /// The first attempt was answered before there was a rival.
    Plain(Response<ResB>),
    /// This came of the call, and the other attempt is of no more use.
    Over(Result<Response<ResB>, BoxError>),
    /// The first attempt has failed, and the rival goes on.
    Rival(Pin<Box<F>>),
}

impl<S, B, R: Seed> Call<S, B, R> {
    /// Whether the policy hedges calls, this one perhaps.
    #[inline]
    pub(crate) fn is_hedged(&self) -> bool {
        self.policy.settings().hedge.is_some()
    }

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

    /// Polls the first attempt, and then its rival.
    pub(crate) fn poll_race<ResB>(
        &mut self,
        first: Pin<&mut S::Future>,
        slot: &mut Option<Box<Rival<S::Future>>>,
        cx: &mut Context<'_>,
    ) -> Poll<Raced<S::Future, ResB>>
    where
        S: Service<Request<ReplayBody<B>>, Response = Response<ResB>>,
        S::Error: Into<BoxError>,
    {
        let (poll, note) = Phase::observe(|| first.poll(cx));
        if let Poll::Ready(outcome) = poll {
            let outcome = match outcome {
                Ok(response) if self.is_plain(&response) => {
                    return Poll::Ready(Raced::Plain(response));
                }
                outcome => outcome.map_err(Into::into),
            };
            let under_way = slot.take().and_then(|rival| rival.under_way());
            return Poll::Ready(match under_way {
                None => Raced::Over(outcome),
                Some((future, rival)) => {
                    let first = self.progress().0.run;
                    match self.decide_race(outcome, first, rival) {
                        Some(outcome) => Raced::Over(outcome),
                        None => Raced::Rival(future),
                    }
                }
            });
        }
        let Some(rival) = slot else {
            return note.unwrap_or(Phase::Head).pending();
        };
        let unsent = note.is_some_and(Phase::is_before_sending);
        let (poll, rival_note) = Phase::observe(|| self.poll_rival(rival, unsent, cx));
        let Poll::Ready(outcome) = poll else {
            let sent = matches!(rival.stage, Stage::UnderWay(_));
            return pending(note, if sent { rival_note } else { note });
        };
        let run = rival.run;
        *slot = None;
        let won = outcome.and_then(|outcome| {
            let first = self.progress().0.run;
            self.decide_race(outcome, run, first)
        });
        match won {
            Some(outcome) => Poll::Ready(Raced::Over(outcome)),
            // The first attempt goes on alone, and has been polled.
            None => note.unwrap_or(Phase::Head).pending(),
        }
    }

    /// Ready with what came of it, or with nothing if it isn't made after all:
    /// `unsent` says that the first attempt wasn't sent yet.
    fn poll_rival<ResB>(
        &mut self,
        rival: &mut Rival<S::Future>,
        unsent: bool,
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
                    // It isn't the provider that is slow, and a second one would
                    // only queue behind the first.
                    if unsent {
                        return Poll::Ready(None);
                    }
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
                    Stage::UnderWay(Box::pin(resend.send(attempt, max_attempts, None)))
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

    /// One of the two has ended while the other is under way. What settles the call
    /// for both wins, and comes back; anything else is noted, and the call goes on
    /// with the other: a rejection may be due to what that one did.
    fn decide_race<ResB>(
        &mut self,
        outcome: Result<Response<ResB>, BoxError>,
        ended: Run,
        other: Run,
    ) -> Option<Result<Response<ResB>, BoxError>> {
        let now = Instant::now();
        let status = outcome.as_ref().ok().map(Response::status);
        let started = self.started;
        let (progress, settings) = self.progress();
        let judgement = progress.judge(&outcome);
        let verdict = judgement.verdict;
        if !progress.evidence.is_settled_by(verdict, status, now) {
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
