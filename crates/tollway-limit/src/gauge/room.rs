//! Whether an attempt may go now, and if not, when.

use super::pending::Pending;
use super::{Full, Gauge};
use crate::quota::Rate;
use crate::time::Nanos;

impl Gauge {
    /// Whether an attempt of `level` may go now.
    pub(crate) fn room(&mut self, level: usize, now: Nanos) -> Result<(), Full> {
        self.settle(now);
        match self.frees(level, now) {
            Some(at) if at <= now => Ok(()),
            at => Err(self.full(at, level, now)),
        }
    }

    /// The same, where one place is kept for somebody else `until` then, and with
    /// it the next in the schedule.
    pub(crate) fn room_but_one(
        &mut self,
        until: Nanos,
        level: usize,
        now: Nanos,
    ) -> Result<(), Full> {
        self.kept = 1;
        let room = self.room(level, now);
        self.kept = 0;
        match room {
            Ok(()) if self.is_paced => Err(Full::Until(until)),
            Ok(()) => Ok(()),
            Err(Full::Until(at)) => Err(Full::Until(at.min(until))),
            Err(Full::UntilEvent) => Err(Full::Until(until)),
        }
    }

    /// For so long one place may be kept at the cost of one attempt, about.
    pub(crate) fn worth(&self) -> Nanos {
        match self.is_paced {
            true => self.pace.interval(),
            false => self.window_nanos,
        }
    }

    /// Why there is no room, where there is some at `at`.
    #[cold]
    fn full(&self, at: Option<Nanos>, level: usize, now: Nanos) -> Full {
        let full = match at {
            Some(at) => Full::Until(at),
            // When to look again, where places hang on attempts in flight.
            None => {
                let pending = self.pending.as_ref().and_then(Pending::first);
                let first = pending.into_iter().chain(self.astray.free_at(0)).min();
                first.map_or(Full::UntilEvent, Full::Until)
            }
        };
        // What is kept for others may be lent out again before that.
        let lapse = if self.has_shares {
            self.lapse(level, now)
        } else {
            None
        };
        match (lapse, full) {
            (Some(lapse), Full::Until(at)) => Full::Until(at.min(lapse)),
            (Some(lapse), Full::UntilEvent) => Full::Until(lapse),
            (None, full) => full,
        }
    }

    /// When there is room for an attempt of `level`, if nothing happens before.
    /// `None` where that hangs on an attempt in flight.
    pub(crate) fn free_at(&mut self, level: usize, now: Nanos) -> Option<Nanos> {
        self.settle(now);
        let mut from = now;
        loop {
            let at = self.frees(level, from);
            // What is kept for others may be lent out again before that.
            match self.lapse(level, from) {
                Some(lapse) if at.is_none_or(|at| lapse < at) => from = lapse,
                _ => return at,
            }
        }
    }

    /// When an attempt of `level` may go: the past, a time, or `None` where
    /// that hangs on an attempt in flight.
    fn frees(&self, level: usize, now: Nanos) -> Option<Nanos> {
        let mut at = now.max(self.paused_until);
        at = at.max(self.ceilings.closed_until(0));
        at = at.max(self.paced_until(0));
        at = at.max(match self.quota.rate {
            Rate::Unlimited => now,
            Rate::Window { limit, .. } => self.window_frees(limit, level, now)?,
            Rate::Bucket { burst, .. } => self.bucket_frees(burst, level, now)?,
        });
        if let Some(limit) = self.quota.in_flight {
            let used = |other: usize| self.in_flight.of(other);
            let kept = self.kept + self.kept_from(level, limit, used, now);
            if self.in_flight.total() + kept >= limit {
                return None;
            }
        }
        Some(at)
    }

    /// When the window has a place for `level`: the past, a time, or `None`
    /// where that hangs on an attempt in flight.
    fn window_frees(&self, limit: u32, level: usize, now: Nanos) -> Option<Nanos> {
        let kept = self.kept_from(level, limit, |other| self.used(other), now);
        // The pace fills one place less than the limit; a share of what it
        // leaves empty would be no share.
        let idle = u32::from(kept > 0 && kept + 1 < limit && self.is_paced);
        let short = (self.taken_places() + self.kept + kept + 1 + idle).saturating_sub(limit);
        match short.checked_sub(1) {
            None => Some(now),
            Some(index) => self.place_frees(index as usize),
        }
    }

    /// The same for a bucket. What is in flight may all arrive at once, so it
    /// takes its full part of the burst.
    fn bucket_frees(&self, burst: u32, level: usize, now: Nanos) -> Option<Nanos> {
        let uncertain = self.uncertain();
        let kept = self.kept_from(level, burst, |other| uncertain.of(other), now);
        let taken = uncertain.total() + self.kept + kept + 1;
        let Some(left) = burst.checked_sub(taken) else {
            return self.drops_drain(taken - burst);
        };
        let slack = self.pace.interval().saturating_mul(Nanos::from(left));
        Some(self.drained_at.saturating_sub(slack))
    }

    /// Before when the pace lets nothing through, with so much `more` of the
    /// schedule ahead: it binds for good, or for a while after a pause.
    pub(super) fn paced_until(&self, more: Nanos) -> Nanos {
        let next = self.pace.next().saturating_add(more);
        if self.is_paced {
            next
        } else {
            next.min(self.gentle_until)
        }
    }
}
