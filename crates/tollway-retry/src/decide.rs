//! The decision: once more, or not.

use std::time::Duration;

use tokio::time::Instant;
use tollway_core::{Deadline, Judgement, RetryAdvice, Verdict};

use crate::Stop;
use crate::back_off::Delays;
use crate::head::Evidence;
use crate::policy::Settings;

/// What is known when an attempt has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation<'a> {
    pub(crate) now: Instant,
    /// The attempts made so far, at least one.
    pub(crate) made: u32,
    pub(crate) judgement: Judgement,
    pub(crate) evidence: &'a Evidence,
    pub(crate) replayable: bool,
    pub(crate) deadline: Option<Deadline>,
    /// What a hedging attempt's answer asked for.
    pub(crate) not_before: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Once more, after this delay, if the budget allows it.
    Retry { delay: Duration },
    /// No more, and how long the wait would have been if that is the reason.
    Stop(Stop, Option<Duration>),
}

/// What the decisions of one call remember.
#[derive(Debug)]
pub(crate) struct Course {
    delays: Delays,
    /// The one retry of [`RetryAdvice::Once`] was made.
    once_spent: bool,
    /// An attempt's outcome is unknown, whatever came of the later ones.
    unknown: bool,
}

impl Course {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            delays: Delays::new(seed),
            once_spent: false,
            unknown: false,
        }
    }

    /// An attempt has ended that isn't decided upon, since another one is under
    /// way.
    pub(crate) fn note(&mut self, verdict: Verdict) {
        self.unknown |= verdict == Verdict::Unknown;
    }

    /// What the call as a whole means, if it ends with this verdict: an attempt
    /// that was not executed says nothing about one before it whose outcome is
    /// unknown; a final answer does.
    pub(crate) fn verdict(&self, last: Verdict) -> Verdict {
        match last {
            Verdict::NotExecuted { .. } if self.unknown => Verdict::Unknown,
            last => last,
        }
    }

    /// Whether another attempt would repeat one that may have had an effect,
    /// so that only a key makes it safe: every later one would, even after an
    /// answer that says "not executed".
    pub(crate) fn repeats(&self, evidence: &Evidence) -> bool {
        self.unknown && !evidence.idempotent
    }

    /// Decides by the verdict table. The reasons to stop come in the order of
    /// weight, so that the one reported is the one to act upon: what would not
    /// be safe, before what would not be possible, before what would not be
    /// worth it.
    pub(crate) fn decide<R>(
        &mut self,
        settings: &Settings<R>,
        situation: &Situation<'_>,
    ) -> Decision {
        let Judgement { verdict, advice } = situation.judgement;
        self.note(verdict);

        if verdict.is_final() {
            return Decision::Stop(Stop::Final, None);
        }
        match advice {
            Some(RetryAdvice::Never) => return Decision::Stop(Stop::Advised, None),
            Some(RetryAdvice::Once) if std::mem::replace(&mut self.once_spent, true) => {
                return Decision::Stop(Stop::Advised, None);
            }
            _ => {}
        }
        let repeats = self.repeats(situation.evidence);
        if repeats && situation.evidence.key.is_none() {
            return Decision::Stop(Stop::NoKey, None);
        }
        if situation.made >= settings.max_attempts {
            return Decision::Stop(Stop::MaxAttempts, None);
        }
        if !situation.replayable {
            return Decision::Stop(Stop::NotReplayable, None);
        }

        let earlier = situation
            .not_before
            .map(|at| at.saturating_duration_since(situation.now));
        let asked = asked_for(situation.judgement).max(earlier.filter(|delay| !delay.is_zero()));
        if let Some(asked) = asked.filter(|asked| *asked > settings.max_retry_after) {
            return Decision::Stop(Stop::DelayTooLong, Some(asked));
        }
        let delay = self.delay(settings, situation, asked);
        let Some(at) = situation.now.checked_add(delay) else {
            return Decision::Stop(Stop::DelayTooLong, Some(delay));
        };
        if let Some(key) = situation.evidence.key.as_ref().filter(|_| repeats)
            && !key.is_valid(at)
        {
            return Decision::Stop(Stop::KeyExpired, None);
        }
        if situation.deadline.is_some_and(|end| end.has_passed(at)) {
            return Decision::Stop(Stop::Deadline, Some(delay));
        }
        Decision::Retry { delay }
    }

    fn delay<R>(
        &mut self,
        settings: &Settings<R>,
        situation: &Situation<'_>,
        asked: Option<Duration>,
    ) -> Duration {
        let retry = situation.made;
        if let Some(asked) = asked {
            let on_top = self.delays.on_top(&settings.back_off, retry);
            return asked.saturating_add(on_top);
        }
        // A connection that died idle, most often: another one won't be the
        // same. Only the first time, lest a server that is down be stormed.
        let no_effect = situation.judgement.verdict == Verdict::NO_EFFECT;
        if no_effect && retry == 1 {
            return Duration::ZERO;
        }
        self.delays.next(&settings.back_off, retry)
    }
}

/// The delay that the provider asks for, whichever way it says so.
pub(crate) fn asked_for(judgement: Judgement) -> Option<Duration> {
    let by_verdict = match judgement.verdict {
        Verdict::NotExecuted { retry_after, .. } => retry_after,
        _ => None,
    };
    let by_advice = match judgement.advice {
        Some(RetryAdvice::After(delay)) => Some(delay),
        _ => None,
    };
    by_verdict.max(by_advice)
}
