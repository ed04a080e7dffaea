//! Shares of a quota that are kept for a priority.

use super::Gauge;
use crate::quota::{LEVELS, Rate};
use crate::time::{NANOS_PER_SEC, Nanos};

/// A share of a quota without a window is lent out after this long.
const LENT_AFTER: Nanos = NANOS_PER_SEC;

impl Gauge {
    /// Whether a share is kept for attempts of `level`.
    pub(crate) fn reserves(&self, level: usize) -> bool {
        self.quota.reserved[level] > 0
    }

    /// How much of `limit` is kept from `level`, for other levels that are
    /// about and have not used their share.
    #[inline]
    pub(super) fn kept_from(
        &self,
        level: usize,
        limit: u32,
        used: impl Fn(usize) -> u32,
        now: Nanos,
    ) -> u32 {
        match self.has_shares {
            true => self.shares_kept_from(level, limit, used, now),
            false => 0,
        }
    }

    #[inline(never)]
    fn shares_kept_from(
        &self,
        level: usize,
        limit: u32,
        used: impl Fn(usize) -> u32,
        now: Nanos,
    ) -> u32 {
        let mut kept = 0;
        for (other, &percent) in self.quota.reserved.iter().enumerate() {
            if percent > 0 && other != level && self.is_about(other, now) {
                kept += share(limit, percent).saturating_sub(used(other));
            }
        }
        // One is left for whoever comes: levels that each kept all of a quota
        // from the other would wait for each other for ever.
        kept.min(limit.saturating_sub(1))
    }

    fn is_about(&self, level: usize, now: Nanos) -> bool {
        self.in_flight.of(level) > 0
            || self.waiting[level] > 0
            || self.lent_out_at(level).is_some_and(|at| now < at)
    }

    /// When the share of a level of which none waits or flies is lent out.
    fn lent_out_at(&self, level: usize) -> Option<Nanos> {
        let memory = match self.quota.rate {
            Rate::Window { .. } => self.window_nanos,
            Rate::Bucket { .. } | Rate::Unlimited => LENT_AFTER,
        };
        self.seen[level].map(|seen| seen.saturating_add(memory))
    }

    /// When the first of the shares that are kept from `level` is lent out, if
    /// nothing happens before.
    pub(super) fn lapse(&self, level: usize, now: Nanos) -> Option<Nanos> {
        (0..LEVELS)
            .filter(|&other| other != level && self.quota.reserved[other] > 0)
            .filter(|&other| self.in_flight.of(other) == 0 && self.waiting[other] == 0)
            .filter_map(|other| self.lent_out_at(other))
            .filter(|&at| at > now)
            .min()
    }
}

/// So many percent of `limit`, rounded down.
fn share(limit: u32, percent: u8) -> u32 {
    let share = u64::from(limit) * u64::from(percent) / 100;
    u32::try_from(share).unwrap_or(limit)
}
