//! A call: what is kept of it, and what has come of it so far.

use std::mem;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use http::{Request, Response, StatusCode};
use http_body::Body;
use tokio::time::Instant;
use tollway_core::{Attempt, BoxError, Deadline, Fault, Judgement, Phase, Verdict};
use tower_service::Service;

use crate::budget::{Cost, Withdrawal};
use crate::decide::{Course, Decision, Situation, asked_for};
use crate::evidence::Evidence;
use crate::head::KeptHead;
use crate::policy::Settings;
use crate::replay::Opening;
use crate::resend::{Kept, Resend};
use crate::story::{AttemptRecord, Attempts, Outcome, Records, Stop};
use crate::{Budget, ReplayBody, RetryError, RetryPolicy, Seed, telemetry};

/// A call: what is kept of it, and what has come of it so far.
pub(crate) struct Call<S, B, R> {
    pub(crate) policy: RetryPolicy<R>,
    pub(crate) started: Instant,
    pub(crate) kept: Kept<S, B>,
    /// None until an attempt ends with anything but a final answer, so that
    /// most calls don't pay for it.
    progress: Option<Box<Progress>>,
}

/// A call's way after its first attempt.
pub(crate) struct Progress {
    course: Course,
    records: Records,
    pub(crate) evidence: Evidence,
    /// The number of the latest attempt.
    attempt: Attempt,
    /// The attempt that is waited for.
    pub(crate) run: Run,
    /// What the latest retry was paid with.
    paid: Option<Withdrawal>,
    /// What the answer to an attempt asked for that wasn't the last to end.
    not_before: Option<Instant>,
}

/// One attempt's place in time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// The wait before it.
    pub(crate) delay: Duration,
    pub(crate) since: Instant,
}

/// What happens after an attempt.
pub(crate) enum Next<ResB> {
    Return(Result<Response<ResB>, RetryError>),
    /// Another attempt, `at` an instant or at once. The body of the response to
    /// the last one is left to drain.
    Repeat {
        at: Option<Instant>,
        response: Option<ResB>,
    },
}

impl<S, B, R> Call<S, B, R>
where
    S: Clone,
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    /// A call with this request, and how its first attempt is made.
    #[inline]
    pub(crate) fn new(
        policy: &RetryPolicy<R>,
        service: &S,
        request: &mut Request<B>,
    ) -> (Self, Opening<B>) {
        let settings = policy.settings();
        let started = recent_now();
        let opening = Opening::of(request.body_mut(), settings.replay_bound);
        // Dropped, it ends the recording.
        let body = opening.replay();
        let kept = if settings.max_attempts == 1 {
            Kept::Nothing(Evidence::of(request, settings, started))
        } else {
            Kept::Resend(Resend {
                service: service.clone(),
                head: KeptHead::of(request),
                body,
            })
        };
        let call = Self {
            policy: policy.clone(),
            started,
            kept,
            progress: None,
        };
        (call, opening)
    }
}

impl<S, B, R: Seed> Call<S, B, R> {
    /// Whether this is the final answer to the only attempt: then there is
    /// nothing to decide, nor to tell.
    #[inline]
    pub(crate) fn is_plain<ResB>(&self, response: &Response<ResB>) -> bool {
        let plain = self.progress.is_none() && is_final(response);
        if plain {
            let settings = self.policy.settings();
            settings.budget.deposit_success();
            if let Some(hedge) = &settings.hedge {
                hedge.observe(self.started.elapsed());
            }
        }
        plain
    }

    /// Pending, with a note on what the call waits for.
    #[inline]
    pub(crate) fn pending<T>(&self) -> Poll<T> {
        if let Some(progress) = &self.progress
            && progress.course.is_in_doubt()
        {
            // The note that stands is about the latest attempt: it may wait for
            // a permit. That says nothing of the one before, which may have had
            // an effect.
            return Phase::Head.pending();
        }
        Poll::Pending
    }

    pub(crate) fn progress(&mut self) -> (&mut Progress, &Settings<R>) {
        let settings = self.policy.settings();
        let progress = self.progress.get_or_insert_with(|| {
            let evidence = match &self.kept {
                Kept::Resend(Resend { head, .. }) => head.evidence(settings, self.started),
                Kept::Nothing(evidence) => evidence.clone(),
            };
            Box::new(Progress {
                course: Course::new(settings.seed.seed()),
                records: Records::default(),
                evidence,
                attempt: Attempt::FIRST,
                run: Run {
                    delay: Duration::ZERO,
                    since: self.started,
                },
                paid: None,
                not_before: None,
            })
        });
        (progress, settings)
    }

    /// An attempt has ended with anything else, and no other is under way.
    #[cold]
    pub(crate) fn settle<ResB>(&mut self, outcome: Result<Response<ResB>, BoxError>) -> Next<ResB> {
        let now = Instant::now();
        let (replayable, deadline) = match &self.kept {
            Kept::Resend(resend) => (resend.body.is_possible(), resend.head.deadline()),
            Kept::Nothing(_) => (false, None),
        };
        let (progress, settings) = self.progress();
        let judgement = progress.judge(&outcome);
        progress.record(&outcome, judgement.verdict, now);
        if judgement.verdict.is_final() {
            match progress.paid.take() {
                Some(paid) => paid.pay_back(),
                None => settings.budget.deposit_success(),
            }
        }
        let made = progress.records.made();
        let situation = Situation {
            now,
            made,
            judgement,
            answered: outcome.is_ok(),
            evidence: &progress.evidence,
            replayable,
            deadline,
            not_before: progress.not_before,
        };
        let (stop, wait) = match progress.course.decide(settings, &situation) {
            Decision::Stop(stop, wait) => (stop, wait),
            Decision::Retry { delay } => {
                // The budget is asked last: nothing is taken for a retry that
                // isn't made.
                if progress.pay(&settings.budget, &outcome, judgement.verdict, now) {
                    progress.run.delay = delay;
                    if !self.kept.claim() {
                        // It was still being sent, and has outgrown its bound
                        // since it was asked.
                        let (progress, _) = self.progress();
                        progress.paid = None;
                        let ended = progress.end(outcome, judgement, Stop::NotReplayable, None);
                        return Next::Return(ended);
                    }
                    telemetry::retry(made, judgement.verdict, delay, &outcome);
                    return Next::Repeat {
                        at: (!delay.is_zero()).then(|| now + delay),
                        response: outcome.ok().map(Response::into_body),
                    };
                }
                (Stop::Budget, None)
            }
        };
        Next::Return(progress.end(outcome, judgement, stop, wait))
    }

    /// Hands the next attempt to the service, once it is ready.
    pub(crate) fn poll_resend<ResB>(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<S::Future, RetryError>>
    where
        S: Service<Request<ReplayBody<B>>, Response = Response<ResB>>,
        S::Error: Into<BoxError>,
    {
        let (Kept::Resend(resend), Some(progress)) = (&mut self.kept, &mut self.progress) else {
            unreachable!("a call is repeated only once it has ended, and while it is kept");
        };
        if let Err(error) = ready!(resend.service.poll_ready(cx)) {
            let error = error.into();
            // It was never handed the request.
            let last = Fault::find(&*error).map_or(Verdict::NO_EFFECT, Fault::verdict);
            return Poll::Ready(Err(progress.fail(error, last, Stop::NotReady, None)));
        }
        let now = Instant::now();
        if progress.key_has_expired(now) {
            // It was valid when the wait began, but the service took its time
            // to get ready.
            let fault = Fault::new(Verdict::Unknown).in_phase(Phase::BackOff);
            let error = progress.fail(fault.into(), Verdict::Unknown, Stop::KeyExpired, None);
            return Poll::Ready(Err(error));
        }
        progress.run.since = now;
        if let Some(paid) = &mut progress.paid {
            paid.sent();
        }
        let max_attempts = self.policy.settings().max_attempts;
        let (attempt, until) = (progress.next_attempt(), progress.key_is_lost_at());
        Poll::Ready(Ok(resend.send(attempt, max_attempts, until)))
    }
}

impl Progress {
    /// What an attempt's outcome means in this call.
    pub(crate) fn judge<B>(&self, outcome: &Result<Response<B>, BoxError>) -> Judgement {
        let (judgement, status) = match outcome {
            Ok(response) => (
                Judgement::of_response(response, SystemTime::now()),
                Some(response.status()),
            ),
            Err(error) => (Judgement::of_error(&**error), None),
        };
        self.course.read(judgement, status, &self.evidence)
    }

    /// Puts an attempt that has ended into the story.
    fn record<B>(
        &mut self,
        outcome: &Result<Response<B>, BoxError>,
        verdict: Verdict,
        now: Instant,
    ) {
        self.records.push(AttemptRecord {
            verdict,
            outcome: match outcome {
                Ok(response) => Outcome::Status(response.status()),
                Err(error) => Outcome::of_error(&**error),
            },
            delay: self.run.delay,
            duration: now.saturating_duration_since(self.run.since),
        });
    }

    /// The same of an attempt that wasn't the last to end.
    pub(crate) fn note<B>(
        &mut self,
        outcome: &Result<Response<B>, BoxError>,
        judgement: Judgement,
        now: Instant,
    ) {
        self.record(outcome, judgement.verdict, now);
        self.course.note(judgement.verdict);
        let asked = asked_for(judgement).and_then(|delay| now.checked_add(delay));
        self.not_before = self.not_before.max(asked);
    }

    /// The same of an attempt that is dropped, since another one was answered.
    pub(crate) fn record_cancelled(&mut self, now: Instant) {
        self.records.push(AttemptRecord {
            verdict: Verdict::Unknown,
            outcome: Outcome::Cancelled,
            delay: self.run.delay,
            duration: now.saturating_duration_since(self.run.since),
        });
    }

    /// Pays for another attempt, if there is enough. One that got no permit was
    /// never sent, so that what was paid for it, if anything, pays for the next.
    fn pay<B>(
        &mut self,
        budget: &Budget,
        outcome: &Result<Response<B>, BoxError>,
        verdict: Verdict,
        now: Instant,
    ) -> bool {
        let fault = outcome
            .as_ref()
            .err()
            .and_then(|error| Fault::find(&**error));
        let is_refused = matches!(verdict, Verdict::NotExecuted { .. })
            && fault.and_then(Fault::phase) == Some(Phase::Permit);
        if is_refused {
            if let Some(paid) = &mut self.paid {
                paid.unsent();
            }
            return true;
        }
        self.paid = budget.withdraw(now, Cost::of(verdict));
        self.paid.is_some()
    }

    /// The number of an attempt that is about to be made.
    pub(crate) fn next_attempt(&mut self) -> Attempt {
        self.attempt = self.attempt.next();
        self.attempt
    }

    /// From when on another attempt could take effect a second time.
    fn key_is_lost_at(&self) -> Option<Deadline> {
        let key = self.evidence.key.as_ref()?;
        let repeats = self.course.repeats(&self.evidence);
        key.forgotten_at().filter(|_| repeats).map(Deadline::at)
    }

    fn key_has_expired(&self, now: Instant) -> bool {
        self.course.repeats(&self.evidence)
            && self
                .evidence
                .key
                .as_ref()
                .is_none_or(|key| !key.is_valid(now))
    }

    /// Ends the call with the outcome of its last attempt.
    fn end<B>(
        &mut self,
        outcome: Result<Response<B>, BoxError>,
        last: Judgement,
        stop: Stop,
        would_have_waited: Option<Duration>,
    ) -> Result<Response<B>, RetryError> {
        let mut response = match outcome {
            Ok(response) => response,
            Err(error) => return Err(self.fail(error, last.verdict, stop, would_have_waited)),
        };
        let status = Some(response.status());
        let verdict = self.verdict(last.verdict, status);
        let (made, safe) = (self.records.made(), self.evidence.safe);
        telemetry::stop(made, verdict, safe, stop, status, None);
        let unknown = verdict == Verdict::Unknown;
        // Whoever reads the answer further up is to read the same.
        let is_read_so = Verdict::of_response(&response) == verdict;
        let extensions = response.extensions_mut();
        if unknown || !is_read_so {
            let marked = if last.verdict == verdict {
                last
            } else {
                last.in_doubt()
            };
            marked.insert_into(extensions);
        }
        if let Some(key) = self.evidence.key.take().filter(|_| unknown) {
            extensions.insert(key);
        }
        extensions.insert(self.story(stop, would_have_waited));
        Ok(response)
    }

    /// Ends the call with an error.
    fn fail(
        &mut self,
        error: BoxError,
        last: Verdict,
        stop: Stop,
        would_have_waited: Option<Duration>,
    ) -> RetryError {
        let verdict = self.verdict(last, None);
        let (made, safe) = (self.records.made(), self.evidence.safe);
        telemetry::stop(made, verdict, safe, stop, None, Some(&*error));
        let story = self.story(stop, would_have_waited);
        RetryError::new(error, verdict, safe, self.evidence.key.take(), story)
    }

    /// What the call as a whole means.
    fn verdict(&self, last: Verdict, status: Option<StatusCode>) -> Verdict {
        let now = Instant::now();
        self.course.verdict(last, status, &self.evidence, now)
    }

    fn story(&mut self, stop: Stop, would_have_waited: Option<Duration>) -> Attempts {
        Attempts::new(mem::take(&mut self.records), stop, would_have_waited)
    }
}

/// The time of the poll under way: good enough for when an attempt began.
#[inline]
fn recent_now() -> Instant {
    tollway_core::recent(|| Instant::now().into_std()).into()
}

/// Whether the answer is final, at the price of one look.
fn is_final<B>(response: &Response<B>) -> bool {
    match Verdict::of(response.extensions()) {
        Some(verdict) => verdict.is_final(),
        None => Verdict::of_status(response.status()).is_final(),
    }
}
