//! What the provider's answers say about its limits.

use std::error::Error;
use std::time::Duration;

use http::Response;
use tollway_core::{Fault, Phase, Scope, Verdict};

use crate::gauge::Gauge;
use crate::lanes::Plan;
use crate::permit::Permit;
use crate::quota::Rate;
use crate::state::{Meter, Role, State};
use crate::time::{Nanos, nanos};

impl Permit {
    /// The attempt is over, with this answer. The limits learn from its
    /// `Verdict` (an extension, or else what the status says) and from its
    /// rate-limit headers.
    pub fn answered<B>(self, response: &Response<B>) {
        self.over(Verdict::of_response(response));
    }

    /// The attempt is over, with this error. One that was never sent (a connect
    /// error) goes back.
    pub fn failed(self, error: &(dyn Error + 'static)) {
        match Fault::find(error) {
            Some(fault) if was_never_sent(fault) => self.give_back(),
            Some(fault) => self.over(fault.verdict()),
            None => drop(self),
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

/// Pauses what a refusal concerns.
pub(crate) fn pause(
    state: &mut State,
    plan: &Plan,
    retry_after: Option<Duration>,
    scope: Scope,
    now: Nanos,
) -> Vec<(u32, Duration)> {
    let mut paused = Vec::new();
    // Where the provider doesn't say which limit was hit, it is one with a
    // penalty, if there is such a one; else it could be any.
    let punished = scope == Scope::Unspecified
        && plan
            .iter()
            .filter_map(|&meter| state.meters.get(meter as usize))
            .any(|meter| meter.gauge.quota().penalty.is_some());
    for &id in plan {
        let Some(meter) = state.meters.get_mut(id as usize) else {
            continue;
        };
        let penalty = meter.gauge.quota().penalty;
        if !concerns(scope, meter) || punished && penalty.is_none() {
            continue;
        }
        if let Some(period) = retry_after.or(penalty) {
            meter.gauge.pause(now, nanos(period));
            paused.push((id, period));
        }
    }
    paused
}

fn concerns(scope: Scope, meter: &Meter) -> bool {
    let flies = |gauge: &Gauge| gauge.quota().in_flight.is_some();
    let rates = |gauge: &Gauge| gauge.quota().rate != Rate::Unlimited || !flies(gauge);
    let gauge = &meter.gauge;
    match scope {
        Scope::Unspecified => rates(gauge),
        Scope::GlobalRate => meter.role == Role::EveryCall && rates(gauge),
        Scope::EndpointRate => meter.role == Role::Endpoint && rates(gauge),
        Scope::GlobalConcurrency => meter.role == Role::EveryCall && flies(gauge),
        Scope::EndpointConcurrency => meter.role == Role::Endpoint && flies(gauge),
        Scope::Resource => meter.role != Role::EveryCall,
        // The call alone; and a scope that is new to this version.
        _ => false,
    }
}
