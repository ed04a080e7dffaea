//! What the provider's answers say about its limits.

use std::error::Error;
use std::time::{Duration, SystemTime};

use http::Response;
use tollway_core::{Fault, Phase, Scope, Verdict};

use crate::fields::{self, LATEST, Remainder};
use crate::lanes::Plan;
use crate::meter::{Meter, Role};
use crate::permit::Permit;
use crate::quota::Rate;
use crate::state::{State, Wakers};
use crate::time::{Nanos, nanos, now};

impl Permit {
    /// The attempt is over, with this answer. The limits learn from its
    /// [`Verdict`] (an extension, or else what status and `Retry-After` say)
    /// and from its rate-limit headers, which tighten what is believed to be
    /// left and never loosen it.
    #[inline]
    pub fn answered<B>(self, response: &Response<B>) {
        let verdict = Verdict::of_response(response);
        if fields::present(response.headers()) {
            let said = fields::read(response.headers(), SystemTime::now);
            self.over_with(now(), verdict, &said);
        } else {
            self.over(verdict);
        }
    }

    /// The attempt is over, with this error. One that was never sent (a connect
    /// error) goes back. One of unknown outcome may still be on its way; see
    /// [`CountFrom::Response`](crate::CountFrom::Response).
    pub fn failed(self, error: &(dyn Error + 'static)) {
        match Fault::find(error) {
            Some(fault) if was_never_sent(fault) => self.give_back(),
            Some(fault) if fault.verdict() != Verdict::Unknown => self.over(fault.verdict()),
            _ => self.abandon(),
        }
    }
}

/// Whether the provider certainly saw nothing of the attempt.
fn was_never_sent(fault: &Fault) -> bool {
    matches!(fault.verdict(), Verdict::NotExecuted { .. })
        && matches!(
            fault.phase(),
            Some(Phase::Permit | Phase::BackOff | Phase::Connect)
        )
}

/// Pauses what a refusal concerns, and refuses those who wait for it and whose
/// deadline comes before the end of the pause. Says how long the longest pause
/// is, if there is any.
pub(crate) fn pause(
    state: &mut State,
    plan: &Plan,
    retry_after: Option<Duration>,
    scope: Scope,
    now: Nanos,
    wakers: &mut Wakers,
) -> Option<Duration> {
    let mut longest = None;
    let suspected = suspects(state, plan);
    for &id in plan {
        let Some(meter) = state.meters.get_mut(id) else {
            continue;
        };
        let is_meant = match scope {
            Scope::Unspecified => suspected(meter),
            _ => concerns(scope, meter),
        };
        let asked = retry_after.map(|period| period.min(LATEST));
        let period = asked.or(meter.gauge.quota().penalty);
        let Some(period) = period.filter(|_| is_meant) else {
            continue;
        };
        meter.gauge.pause(now, nanos(period));
        let until = meter.gauge.paused_until();
        state.refuse_until(id, until, now, wakers);
        longest = longest.max(Some(period));
    }
    longest
}

/// Tightens the quotas that the provider's words are about: the one with that
/// window, or else that limit, or else the narrowest that covers the call,
/// since each answer comes with words of its own. Refuses those who wait for one of
/// which nothing is left until after their deadline.
pub(crate) fn tighten(
    state: &mut State,
    plan: &Plan,
    said: &[Remainder],
    now: Nanos,
    wakers: &mut Wakers,
) {
    for said in said {
        let find = |is: &dyn Fn(Rate) -> bool| {
            plan.iter().copied().find(|&id| {
                let meter = state.meters.get(id);
                meter.is_some_and(|meter| is(meter.gauge.quota().rate))
            })
        };
        let by_window = || {
            let window = said.window?;
            find(&|rate| match rate {
                Rate::Window { window: is, .. } | Rate::Bucket { per: is, .. } => is == window,
                Rate::Unlimited => false,
            })
        };
        let by_limit = || {
            let limit = said.limit?;
            find(&|rate| match rate {
                Rate::Window { limit: is, .. } | Rate::Bucket { limit: is, .. } => is == limit,
                Rate::Unlimited => false,
            })
        };
        let narrowest = || find(&|rate| rate != Rate::Unlimited).or(plan.first().copied());
        let Some(id) = by_window().or_else(by_limit).or_else(narrowest) else {
            continue;
        };
        if let Some(meter) = state.meters.get_mut(id) {
            meter.gauge.tighten(said.left, nanos(said.within), now);
            let until = meter.gauge.sends_from();
            if said.left == 0 {
                state.refuse_until(id, until, now, wakers);
            }
        }
    }
}

/// Where the provider doesn't say which limit was hit, it is one with a penalty, if
/// there is such a one; else any rate; else whatever there is.
fn suspects(state: &State, plan: &Plan) -> fn(&Meter) -> bool {
    let some = |is: &fn(&Meter) -> bool| {
        let mut meters = plan.iter().filter_map(|&id| state.meters.get(id));
        meters.any(is)
    };
    let has_penalty = |meter: &Meter| meter.gauge.quota().penalty.is_some();
    let likeliest: [fn(&Meter) -> bool; 2] = [has_penalty, rates];
    likeliest.into_iter().find(some).unwrap_or(|_| true)
}

/// Whether it is no limit on what is in flight alone.
fn rates(meter: &Meter) -> bool {
    meter.gauge.quota().rate != Rate::Unlimited || !flies(meter)
}

fn flies(meter: &Meter) -> bool {
    meter.gauge.quota().in_flight.is_some()
}

fn concerns(scope: Scope, meter: &Meter) -> bool {
    match scope {
        Scope::GlobalRate => meter.role == Role::EveryCall && rates(meter),
        Scope::EndpointRate => meter.role == Role::Endpoint && rates(meter),
        Scope::GlobalConcurrency => meter.role == Role::EveryCall && flies(meter),
        Scope::EndpointConcurrency => meter.role == Role::Endpoint && flies(meter),
        Scope::Resource => meter.role != Role::EveryCall,
        // The call alone; and a scope that is new to this version.
        _ => false,
    }
}
