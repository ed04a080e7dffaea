//! The decision: once more, or not.

use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;
use tollway_core::{Deadline, Judgement, RetryAdvice, Verdict};

use crate::Stop;
use crate::back_off::Delays;
use crate::evidence::Evidence;
use crate::policy::Settings;

/// What is known when an attempt has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation<'a> {
    pub(crate) now: Instant,
    /// The attempts made so far, at least one.
    pub(crate) made: u32,
    pub(crate) judgement: Judgement,
    /// It ended with an answer, and not with an error.
    pub(crate) answered: bool,
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

    /// What an answer of this status, or an error, means in this call, where
    /// that hangs on what else it has come to, or on what was asked.
    pub(crate) fn read(
        &self,
        judgement: Judgement,
        status: Option<StatusCode>,
        evidence: &Evidence,
    ) -> Judgement {
        match judgement.advice {
            // Done before: by the attempt in doubt, since the key is this call's.
            Some(RetryAdvice::DoneBefore) if self.unknown => Verdict::Done.into(),
            // A redirect may tell of an effect, but not of one that nobody asked
            // for.
            Some(RetryAdvice::Never)
                if evidence.safe && status.is_some_and(|status| status.is_redirection()) =>
            {
                Verdict::Rejected.into()
            }
            _ => judgement,
        }
    }

    /// What the call as a whole means, if it ends with this verdict, on an
    /// answer of this status or on an error. An attempt whose outcome is unknown
    /// stays so, unless the last answer speaks for it too.
    pub(crate) fn verdict(
        &self,
        last: Verdict,
        status: Option<StatusCode>,
        evidence: &Evidence,
        now: Instant,
    ) -> Verdict {
        if self.unknown && !evidence.is_settled_by(last, status, now) {
            Verdict::Unknown
        } else {
            last
        }
    }

    /// Whether an attempt that has ended may have had an effect.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.unknown
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
        let Judgement {
            verdict, advice, ..
        } = situation.judgement;
        self.note(verdict);

        if verdict.is_final() {
            return Decision::Stop(Stop::Final, None);
        }
        match advice {
            Some(RetryAdvice::Never | RetryAdvice::DoneBefore) => {
                return Decision::Stop(Stop::Advised, None);
            }
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
        // same. Only the first time, lest a server that is down be stormed. One
        // that answers, with a lock or a limit, needs time.
        let no_effect = situation.judgement.verdict == Verdict::NO_EFFECT;
        if no_effect && !situation.answered && retry == 1 {
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

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;
    use tollway_core::{IdempotencyKey, Scope};

    use super::*;
    use crate::{BackOff, RetryPolicy, RetryPolicyBuilder};

    const MILLI: Duration = Duration::from_millis(1);

    /// What one attempt came to, and when.
    #[derive(Clone, Debug)]
    struct Step {
        verdict: Verdict,
        advice: Option<RetryAdvice>,
        took: Duration,
        answered: bool,
        replayable: bool,
    }

    fn delay() -> impl Strategy<Value = Duration> {
        (0_u32..200_000).prop_map(|ms| MILLI * ms)
    }

    fn step() -> impl Strategy<Value = Step> {
        let verdict = prop_oneof![
            1 => Just(Verdict::Done),
            1 => Just(Verdict::Rejected),
            4 => Just(Verdict::Unknown),
            4 => (prop::option::of(delay()), prop_oneof![
                Just(Scope::Call), Just(Scope::Unspecified), Just(Scope::EndpointRate)
            ]).prop_map(|(retry_after, scope)| Verdict::NotExecuted { retry_after, scope }),
        ];
        let advice = prop_oneof![
            8 => Just(None),
            1 => Just(Some(RetryAdvice::Never)),
            1 => Just(Some(RetryAdvice::Once)),
            2 => delay().prop_map(|delay| Some(RetryAdvice::After(delay))),
        ];
        let replayable = prop::bool::weighted(0.95);
        (verdict, advice, delay(), any::<bool>(), replayable).prop_map(
            |(verdict, advice, took, answered, replayable)| Step {
                verdict,
                advice,
                took,
                answered,
                replayable,
            },
        )
    }

    fn policy() -> RetryPolicyBuilder {
        let back_off = BackOff::exponential(MILLI * 100, MILLI * 800).unwrap();
        RetryPolicy::builder().back_off(back_off)
    }

    proptest! {
        /// The law, said again in the plainest way: over whole calls, no
        /// attempt is made that the table forbids, none comes too early, none
        /// is left out that it asks for.
        #[test]
        fn a_call_keeps_the_law_from_its_first_attempt_to_its_last(
            steps in prop::collection::vec(step(), 1..12),
            idempotent: bool,
            safe: bool,
            life in prop::option::of(delay().prop_map(|life| life * 4)),
            deadline in prop::option::of(delay().prop_map(|limit| limit * 4)),
            max_attempts in 1_u32..8,
            seed: u64,
        ) {
            let policy = policy().max_attempts(max_attempts).build().unwrap();
            let settings = policy.settings();
            let start = Instant::now();
            let key = life.map(|life| {
                "k".parse::<IdempotencyKey>().unwrap().valid_until(start + life)
            });
            let idempotent = idempotent || safe;
            let evidence = Evidence { idempotent, safe, key: key.clone() };
            let mut course = Course::new(seed);
            let mut now = start;
            let mut unknown = false;
            let mut onces = 0;
            for (n, step) in (1_u32..).zip(steps) {
                now += step.took;
                let mut judgement = Judgement::from(step.verdict);
                judgement.advice = step.advice;
                let decision = course.decide(settings, &Situation {
                    now,
                    made: n,
                    judgement,
                    answered: step.answered,
                    evidence: &evidence,
                    replayable: step.replayable,
                    deadline: deadline.map(|limit| Deadline::at(start + limit)),
                    not_before: None,
                });
                unknown |= step.verdict == Verdict::Unknown;
                onces += u32::from(step.advice == Some(RetryAdvice::Once) && !step.verdict.is_final());
                let asked = asked_for(judgement);

                // Every reason not to go on that doesn't hang on the delay.
                let reasons = [
                    (Stop::Final, step.verdict.is_final()),
                    (Stop::Advised, step.advice == Some(RetryAdvice::Never)
                        || step.advice == Some(RetryAdvice::Once) && onces > 1),
                    (Stop::NoKey, unknown && !idempotent && key.is_none()),
                    (Stop::MaxAttempts, n >= max_attempts),
                    (Stop::NotReplayable, !step.replayable),
                    (Stop::DelayTooLong, asked > Some(Duration::from_secs(60))),
                ];
                if let Some((stop, _)) = reasons.into_iter().find(|(_, holds)| *holds) {
                    prop_assert!(matches!(decision, Decision::Stop(it, _) if it == stop), "{:?}", decision);
                    break;
                }
                let (delay, stopped) = match decision {
                    Decision::Retry { delay } => (Some(delay), None),
                    Decision::Stop(stop, delay) => (delay, Some(stop)),
                };
                // The delay lies between what was asked for, and one ceiling
                // more.
                let low = asked.unwrap_or_default();
                let high = low + MILLI * 800;
                let at_once = asked.is_none() && step.verdict == Verdict::NO_EFFECT
                    && !step.answered && n == 1;
                if let Some(delay) = delay {
                    let high = if at_once { low } else { high };
                    prop_assert!(delay >= low && delay <= high);
                }
                let dies = |at: Instant| unknown && !idempotent
                    && key.as_ref().is_some_and(|key| !key.is_valid(at));
                let late = |at: Instant| deadline.is_some_and(|limit| at >= start + limit);
                match stopped {
                    None => {
                        let at = now + delay.unwrap();
                        prop_assert!(!dies(at) && !late(at));
                        now = at;
                    }
                    Some(Stop::KeyExpired) => {
                        prop_assert!(dies(now + high));
                        break;
                    }
                    Some(Stop::Deadline) => {
                        prop_assert!(late(now + delay.unwrap()));
                        break;
                    }
                    stopped => prop_assert!(false, "{:?} without a reason", stopped),
                }
            }
            // What is unknown stays unknown, until an answer comes that speaks
            // for all attempts.
            let ends = |last, status: Option<u16>| {
                let status = status.map(|code| StatusCode::from_u16(code).unwrap());
                course.verdict(last, status, &evidence, now)
            };
            prop_assert_eq!(ends(Verdict::NO_EFFECT, None) == Verdict::Unknown, unknown);
            prop_assert_eq!(ends(Verdict::Done, Some(200)), Verdict::Done);
            let keyed = key.as_ref().is_some_and(|key| key.is_valid(now));
            for (status, settled) in [
                (Some(200), keyed), (Some(400), keyed), (Some(402), keyed), (Some(422), keyed),
                (Some(302), false), (Some(401), false), (Some(403), false),
                (Some(404), false), (Some(409), false), (Some(412), false), (None, false),
            ] {
                let doubtful = ends(Verdict::Rejected, status) == Verdict::Unknown;
                prop_assert_eq!(doubtful, unknown && !safe && !settled, "{:?}", status);
            }
        }
    }

    #[test]
    fn two_calls_never_share_their_delays() {
        let policy = policy().build().unwrap();
        let evidence = Evidence::of(&Request::new(()), policy.settings(), Instant::now());
        let delays = || {
            let mut course = Course::new(crate::Seed::seed(&policy.settings().seed));
            let now = Instant::now();
            [1, 2, 3].map(|made| {
                course.decide(
                    policy.settings(),
                    &Situation {
                        now,
                        made,
                        judgement: Verdict::Unknown.into(),
                        answered: true,
                        evidence: &evidence,
                        replayable: true,
                        deadline: None,
                        not_before: None,
                    },
                )
            })
        };
        assert_ne!(delays(), delays());
    }
}
