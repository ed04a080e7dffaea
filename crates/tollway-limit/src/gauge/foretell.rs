//! How long a wait would be, at the least.

use super::Gauge;
use crate::quota::Rate;
use crate::time::Nanos;

impl Gauge {
    /// A time before which the attempt that comes after `ahead` others can't
    /// go, if the limits stay as they are. Attempts in flight are taken to be
    /// answered at once, so this is never too late.
    pub(crate) fn earliest(&mut self, ahead: u32, now: Nanos) -> Nanos {
        self.settle(now);
        let mut at = now.max(self.paused_until);
        at = at.max(self.ceilings.closed_until(ahead));
        let (interval, window) = (self.pace.interval(), self.window_nanos);
        let spacing = match self.quota.rate {
            // Round trips may get shorter: the window alone is sure.
            Rate::Window { limit, .. } => window / Nanos::from(limit),
            Rate::Bucket { .. } | Rate::Unlimited => interval,
        };
        at = at.max(self.paced_until(spacing.saturating_mul(Nanos::from(ahead))));
        match self.quota.rate {
            Rate::Unlimited => at,
            Rate::Window { limit, .. } => at.max(self.window_earliest(limit, window, ahead, now)),
            Rate::Bucket { burst, .. } => {
                let behind = Nanos::from(self.uncertain().total()) + Nanos::from(ahead) + 1;
                let level = self.drained_at.max(now);
                at.max(
                    level
                        .saturating_add(behind.saturating_mul(interval))
                        .saturating_sub(Nanos::from(burst).saturating_mul(interval)),
                )
            }
        }
    }

    fn window_earliest(&self, limit: u32, window: Nanos, ahead: u32, now: Nanos) -> Nanos {
        let (used, limit, ahead) = (
            u64::from(self.taken_places()),
            u64::from(limit),
            u64::from(ahead),
        );
        // The places come free one by one, and each comes free again a window
        // later at the earliest. More may be taken than there are, where the
        // limit was lowered.
        let rounds = (ahead / limit).saturating_mul(window);
        let first = match (used + ahead % limit).checked_sub(limit) {
            None => now,
            Some(index) => {
                let at = self.place_frees(usize::try_from(index).unwrap_or(usize::MAX));
                let answered = now.saturating_add(window);
                match at {
                    Some(at) if self.awaited().total() == 0 => at,
                    at => at.map_or(answered, |at| at.min(answered)),
                }
            }
        };
        first.saturating_add(rounds)
    }
}
