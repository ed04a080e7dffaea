//! Each kind of rule, saturated: the default shape everywhere, and what a client
//! configures who knows the kind.

use std::time::Duration;

use tollway_benches::Report;
use tollway_limit::{CountFrom, Quota, Shape};
use tollway_sim::rule::{Rule, RuleKind};

use super::SPAN;
use super::provider::Delays;
use super::run::Run;

const RATES: [(u32, u64); 3] = [(1000, 10), (100, 1), (25, 1)];

pub(crate) fn report(report: &mut Report) {
    for (limit, seconds) in RATES {
        for delays in [Delays::SHORT, Delays::LONG] {
            for kind in RuleKind::ALL {
                for harsh in [false, true] {
                    Setting {
                        limit,
                        window: Duration::from_secs(seconds),
                        delays,
                        kind,
                        harsh,
                    }
                    .report(report);
                }
            }
        }
    }
}

/// A provider's rule, and how its requests travel.
pub(crate) struct Setting {
    pub(crate) limit: u32,
    pub(crate) window: Duration,
    pub(crate) delays: Delays,
    pub(crate) kind: RuleKind,
    /// Whether rejected requests count.
    pub(crate) harsh: bool,
}

impl Setting {
    fn report(&self, report: &mut Report) {
        let run = Run::new(self.rule(), self.delays, SPAN);
        let case = self.name();
        let yardsticks = self.yardsticks();
        let (seen, _) = run.tollway(self.quota());
        run.report(report, &case, "tollway", seen, &yardsticks);
        if let Some((who, quota)) = self.informed() {
            let (seen, _) = run.tollway(quota);
            run.report(report, &case, who, seen, &yardsticks);
        }
    }

    pub(crate) fn name(&self) -> String {
        format!(
            "{}/{} s {} {}{}",
            self.limit,
            self.window.as_secs(),
            self.kind,
            self.delays.name(),
            if self.harsh { ", rejected count" } else { "" },
        )
    }

    /// A leaky bucket gets the smallest burst with which a client can promise the
    /// full rate at these delays: N/W × J.
    pub(crate) fn rule(&self) -> Rule {
        let rule = Rule::new(self.kind, self.limit, self.window).penalty(self.window);
        let rule = match self.kind {
            RuleKind::LeakyBucket => {
                let rate = f64::from(self.limit) / self.window.as_secs_f64();
                rule.burst((rate * self.delays.spread()).ceil() as u32)
            }
            _ => rule,
        };
        rule.rejected_count(self.harsh)
    }

    /// What a client can promise who knows the kind, and who doesn't.
    fn yardsticks(&self) -> [(&'static str, f64); 2] {
        let (n, w, j) = (
            f64::from(self.limit),
            self.window.as_secs_f64(),
            self.delays.spread(),
        );
        let known = match self.kind {
            RuleKind::SlidingLog | RuleKind::FixedWindow => n / (w + j),
            RuleKind::SlidingCounter => (n - 1.0) / (w + j),
            RuleKind::TokenBucket | RuleKind::LeakyBucket => n / w,
        };
        let unknown = (n - 1.0) / (w + j);
        [
            ("of what can be promised", known),
            ("kind unknown", unknown),
        ]
    }

    /// The quota of a client who doesn't know the kind.
    pub(crate) const fn quota(&self) -> Quota {
        Quota::new(self.limit, self.window)
    }

    /// The quota of one who does, where it is another.
    fn informed(&self) -> Option<(&'static str, Quota)> {
        let rate = Quota::rate(self.limit, self.window);
        match self.kind {
            RuleKind::SlidingLog | RuleKind::FixedWindow => {
                Some(("tollway burst", self.quota().shape(Shape::Burst)))
            }
            RuleKind::TokenBucket => Some(("tollway rate", rate.burst(self.limit))),
            RuleKind::LeakyBucket => {
                // Evenly, from sending: a clump of J is what the bucket holds.
                let margin = Duration::ZERO;
                let evenly = rate.count_from(CountFrom::Sending { margin });
                Some(("tollway rate", evenly))
            }
            RuleKind::SlidingCounter => None,
        }
    }
}
