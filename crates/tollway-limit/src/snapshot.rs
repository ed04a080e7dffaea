//! How things stand, for dashboards.

use std::time::Instant;

use tollway_core::Priority;

use crate::limits::Limits;
use crate::quota::{Quota, level};
use crate::time::now;

/// How the quotas stood at one instant.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// When that was.
    pub at: Instant,
    /// Every quota, in the order of the rules. A rule for each endpoint
    /// has one for each that is known, or was carried by a call; a rule for each
    /// key as many as have been seen and not forgotten.
    pub quotas: Vec<QuotaState>,
    /// How many calls wait.
    pub waiting: usize,
}

/// How one quota stood.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct QuotaState {
    /// What the rule covers: `every call`, `POST /v1/payouts`.
    pub rule: String,
    /// The endpoint or key, where the rule has a quota for each.
    pub key: Option<String>,
    /// The quota.
    pub quota: Quota,
    /// How many of its places are taken: by attempts of the last window, or by
    /// those that the bucket holds. Attempts in flight are among them.
    pub used: u32,
    /// Attempts sent and neither answered nor failed.
    pub in_flight: u32,
    /// When it has room for an attempt of normal priority: `at`, or later. A
    /// share that is kept for others may put it off. `None` where that hangs on an
    /// attempt in flight.
    pub free_at: Option<Instant>,
    /// Until when an answer of the provider has paused it, if it has.
    pub paused_until: Option<Instant>,
    waiting: [u32; crate::quota::LEVELS],
}

impl QuotaState {
    /// How many calls of this priority wait that need this quota, be it this or
    /// another that holds them up.
    #[must_use]
    pub fn waiting(&self, priority: Priority) -> u32 {
        self.waiting[level(priority)]
    }
}

impl Limits {
    /// How the quotas stand. It takes the limiter's lock for as long as it
    /// takes to copy the numbers of all of them.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let at = now();
        let origin = self.shared.origin;
        let instant = |nanos| origin.instant(nanos).unwrap_or(at);
        self.shared.with(origin.nanos(at), |core, now, _| {
            let way = self.shared.way.load();
            let rules = &way.routes.builder.rules;
            let mut quotas = Vec::new();
            for (rule, home) in rules.iter().zip(&core.homes) {
                for (key, meter) in home.meters() {
                    let Some(meter) = core.state.meters.get_mut(meter) else {
                        continue;
                    };
                    let gauge = &mut meter.gauge;
                    let free_at = gauge.free_at(level(Priority::Normal), now);
                    let paused = Some(gauge.paused_until()).filter(|&until| until > now);
                    quotas.push(QuotaState {
                        rule: rule.target.name(),
                        key,
                        quota: *gauge.quota(),
                        used: gauge.taken(now),
                        in_flight: gauge.in_flight(),
                        free_at: free_at.map(|free| instant(free).max(at)),
                        paused_until: paused.map(instant),
                        waiting: gauge.waiting(),
                    });
                }
            }
            Snapshot {
                at,
                quotas,
                waiting: core.state.lanes.waiting(),
            }
        })
    }
}
