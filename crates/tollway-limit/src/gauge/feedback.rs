//! What the provider's answers change.

use super::Gauge;
use crate::time::{NANOS_PER_SEC, Nanos};

/// For no longer than this it goes gently after a pause. Over a day, few would go
/// in the time that their callers have.
const LONGEST_RESTART: Nanos = 60 * NANOS_PER_SEC;

impl Gauge {
    /// Lets nothing through for `period`, and goes gently after it.
    pub(crate) fn pause(&mut self, now: Nanos, period: Nanos) {
        let until = now.saturating_add(period);
        if until <= self.paused_until {
            return;
        }
        self.paused_until = until;
        // Attempts that nothing spaced are no reason to wait beyond the pause.
        let is_spaced = self.is_paced || now < self.gentle_until;
        // No sooner than the pause before said, even if the window is shorter
        // by now.
        let gently = self.window_nanos.min(LONGEST_RESTART);
        let gentle_until = until.saturating_add(gently);
        self.gentle_until = self.gentle_until.max(gentle_until);
        self.set_interval();
        if is_spaced {
            self.pace.rein_in(now);
        } else {
            self.pace.forget();
        }
        self.pace.hold_until(until);
    }

    /// The provider says that `left` more are allowed within `period`. What is
    /// in flight, or astray, may not be counted in that yet.
    pub(crate) fn tighten(&mut self, left: u32, period: Nanos, now: Nanos) {
        self.settle(now);
        let until = now.saturating_add(period);
        if left == 0 {
            self.spent_until = self.spent_until.max(until);
        }
        let under_way = self.in_flight.and(self.astray.tally()).total();
        let left = i64::from(left) - i64::from(under_way);
        self.ceilings.lower(left, until);
    }
}
