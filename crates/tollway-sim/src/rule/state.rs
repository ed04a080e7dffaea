//! One counter: a meter of the rule's kind, and the penalty around it.

use std::time::Duration;

use super::{Rule, RuleError, RuleKind, bucket, counter, fixed, leaky, log};

/// What a rule says about one arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Within the rule.
    Accepted,
    /// Beyond the rule. Where the rule has a penalty, its block starts here.
    Rejected {
        /// How long until a request would be accepted, if none comes before.
        retry_after: Duration,
    },
    /// Inside the block that an earlier arrival brought about.
    Blocked {
        /// When the block ends, on the clock of the arrivals.
        until: Duration,
    },
}

impl Decision {
    /// Whether the request may pass.
    #[must_use]
    pub const fn is_accepted(&self) -> bool {
        matches!(self, Self::Accepted)
    }
}

/// The arithmetic of one kind. Time is in nanoseconds and never goes back.
pub(super) trait Meter {
    /// `None` if a request would fit now, otherwise how long until one does.
    fn wait(&mut self, now: u128) -> Option<u128>;
    /// Counts an arrival, which may be one that didn't fit.
    fn count(&mut self, now: u128);
    /// Whether the meter is as good as new.
    fn at_rest(&mut self, now: u128) -> bool;
}

#[derive(Clone, Debug)]
enum AnyMeter {
    Log(log::Log),
    Fixed(fixed::Fixed),
    Counter(counter::Counter),
    Bucket(bucket::Bucket),
    Leaky(leaky::Leaky),
}

impl AnyMeter {
    fn new(rule: &Rule) -> Self {
        let (limit, window) = (u128::from(rule.limit()), rule.window().as_nanos());
        let burst = u128::from(rule.capacity());
        match rule.kind() {
            RuleKind::SlidingLog => Self::Log(log::Log::new(rule.limit(), window)),
            RuleKind::FixedWindow => Self::Fixed(fixed::Fixed::new(limit, window)),
            RuleKind::SlidingCounter => Self::Counter(counter::Counter::new(limit, window)),
            RuleKind::TokenBucket => Self::Bucket(bucket::Bucket::new(limit, window, burst)),
            RuleKind::LeakyBucket => Self::Leaky(leaky::Leaky::new(limit, window, burst)),
        }
    }

    fn as_meter(&mut self) -> &mut dyn Meter {
        match self {
            Self::Log(meter) => meter,
            Self::Fixed(meter) => meter,
            Self::Counter(meter) => meter,
            Self::Bucket(meter) => meter,
            Self::Leaky(meter) => meter,
        }
    }
}

/// One counter that enforces a [`Rule`].
#[derive(Clone, Debug)]
pub struct RuleState {
    rule: Rule,
    meter: AnyMeter,
    blocked_until: Duration,
    /// The latest time seen: a clock that went back is taken to have stood still.
    latest: Duration,
}

impl RuleState {
    /// A counter at rest, at time zero.
    ///
    /// # Errors
    ///
    /// When the rule can't be put to use; see [`Rule::check`].
    pub fn new(rule: Rule) -> Result<Self, RuleError> {
        rule.check()?;
        Ok(Self {
            rule,
            meter: AnyMeter::new(&rule),
            blocked_until: Duration::ZERO,
            latest: Duration::ZERO,
        })
    }

    /// The rule that is enforced.
    #[must_use]
    pub const fn rule(&self) -> &Rule {
        &self.rule
    }

    /// Counts one arrival at `now`, which is measured from the start.
    pub fn arrive(&mut self, now: Duration) -> Decision {
        let decision = self.peek(now);
        let now = self.latest;
        if decision.is_accepted() || self.rule.counts_rejected() {
            self.meter.as_meter().count(now.as_nanos());
        }
        match (decision, self.rule.penalty_after_breach()) {
            (Decision::Rejected { .. }, penalty) => {
                self.blocked_until = now.saturating_add(penalty.unwrap_or_default());
                // Asked again, since the refusal itself may have been counted.
                Decision::Rejected {
                    retry_after: self.wait(now).unwrap_or_default(),
                }
            }
            (decision, _) => decision,
        }
    }

    /// What [`arrive`](Self::arrive) would say at `now`, without an arrival.
    pub fn peek(&mut self, now: Duration) -> Decision {
        self.latest = self.latest.max(now);
        let now = self.latest;
        if now < self.blocked_until {
            return Decision::Blocked {
                until: self.blocked_until,
            };
        }
        match self.wait(now) {
            None => Decision::Accepted,
            Some(wait) => Decision::Rejected {
                retry_after: wait.max(self.rule.penalty_after_breach().unwrap_or_default()),
            },
        }
    }

    /// Whether the counter could be thrown away and made anew without a difference.
    #[must_use]
    pub fn at_rest(&mut self, now: Duration) -> bool {
        let now = self.latest.max(now);
        now >= self.blocked_until && self.meter.as_meter().at_rest(now.as_nanos())
    }

    /// How long until a request fits, past the block if there is one.
    fn wait(&mut self, now: Duration) -> Option<Duration> {
        let wait = self.meter.as_meter().wait(now.as_nanos());
        let block = self.blocked_until.saturating_sub(now);
        match wait {
            None if block.is_zero() => None,
            None => Some(block),
            Some(wait) => Some(from_nanos(wait).max(block)),
        }
    }
}

fn from_nanos(nanos: u128) -> Duration {
    u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos)
}
