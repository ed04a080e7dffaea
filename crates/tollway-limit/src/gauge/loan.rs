//! Places that are lent out, to be taken without looking.

use super::Gauge;
use crate::quota::{CountFrom, Rate};
use crate::time::Nanos;

impl Gauge {
    /// Whether there is any use in lending: whoever is to be spread over time,
    /// or leaves a share to others, has to look each time.
    pub(super) fn may_lend(&self) -> bool {
        !self.is_paced && !self.has_shares && self.quota.count_from == CountFrom::Response
    }

    /// The same, worked out beforehand.
    #[inline]
    pub(crate) fn lends(&self) -> bool {
        self.lends
    }

    /// How many attempts may go from now on, whatever the time, if nothing
    /// happens meanwhile but answers.
    #[inline(never)]
    pub(crate) fn spare(&mut self, now: Nanos) -> u32 {
        let limit = match self.quota.rate {
            Rate::Unlimited => u32::MAX,
            Rate::Window { limit, .. } => limit,
            Rate::Bucket { burst, .. } => burst,
        };
        let places = limit.saturating_sub(self.taken(now));
        if !self.ceilings.is_empty() || now < self.paused_until.max(self.gentle_until) {
            return 0;
        }
        match self.quota.in_flight {
            Some(limit) => places.min(limit.saturating_sub(self.in_flight.total())),
            None => places,
        }
    }

    /// Accounts for attempts of `level` that took lent places by now.
    pub(crate) fn take_lent(&mut self, level: usize, count: u32, now: Nanos) {
        self.in_flight.add_many(level, count);
        self.pace.take_many(count, now);
    }

    /// Accounts for attempts of `level` that were over by `at`.
    pub(crate) fn finish_many(&mut self, level: usize, count: u32, at: Nanos) {
        self.count_overdue(at);
        self.in_flight.remove_many(level, count);
        match self.quota.rate {
            Rate::Unlimited => {}
            Rate::Window { .. } => {
                let free_at = at.saturating_add(self.window_nanos);
                self.window.count_many(free_at, level, count);
            }
            Rate::Bucket { .. } => {
                let span = self.pace.interval().saturating_mul(Nanos::from(count));
                self.drained_at = self.drained_at.max(at).saturating_add(span);
            }
        }
    }
}
