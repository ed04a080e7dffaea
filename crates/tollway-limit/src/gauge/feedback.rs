//! What the provider's answers change.

use super::Gauge;
use crate::time::Nanos;

impl Gauge {
    /// Lets nothing through for `period`, and goes gently after it.
    pub(crate) fn pause(&mut self, now: Nanos, period: Nanos) {
        let until = now.saturating_add(period);
        if until <= self.paused_until {
            return;
        }
        self.paused_until = until;
        // No sooner than the pause before said, even if the window is shorter
        // by now.
        let gentle_until = until.saturating_add(self.window_nanos);
        self.gentle_until = self.gentle_until.max(gentle_until);
        self.set_interval();
        self.pace.rein_in(now);
        self.pace.hold_until(until);
    }

    /// The provider says that `left` more are allowed within `period`. What is
    /// in flight, or astray, may not be counted in that yet.
    pub(crate) fn tighten(&mut self, left: u32, period: Nanos, now: Nanos) {
        self.settle(now);
        let under_way = self.in_flight.and(self.astray.tally()).total();
        let left = i64::from(left) - i64::from(under_way);
        self.ceilings.lower(left, now.saturating_add(period));
    }
}
