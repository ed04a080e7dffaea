//! The state of one quota: what it has let through, and when it lets the next
//! through.

mod foretell;
mod shares;

use crate::pace::{Mean, Pace};
use crate::quota::{CountFrom, LEVELS, Quota, Rate, Shape};
use crate::time::{NANOS_PER_MILLI, NANOS_PER_SEC, Nanos, nanos};
use crate::window::{Pending, Window};

/// Why a gauge lets nothing through now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// Until then, unless something happens before.
    Until(Nanos),
    /// Until an attempt in flight is over.
    UntilEvent,
}

/// What the provider said is left, where that is less than we believed.
#[derive(Clone, Copy, Debug)]
struct Ceiling {
    left: u32,
    until: Nanos,
}

/// The state of one quota.
#[derive(Debug)]
pub(crate) struct Gauge {
    quota: Quota,
    /// The quota's window or period.
    window_nanos: Nanos,
    /// The quota's margin, where it counts from sending.
    margin: Option<Nanos>,
    /// Whether any share is reserved.
    has_shares: bool,
    /// Granted and not over, by level.
    in_flight: Tally,
    /// Of those, the ones that may still arrive at any time, by level.
    uncertain: Tally,
    pending: Pending,
    window: Window,
    /// A bucket's: when all that was counted has drained.
    drained_at: Nanos,
    pace: Pace,
    /// From the taking of a permit until it was counted.
    hold: Mean,
    paused_until: Nanos,
    /// Until then it goes gently, whatever its shape.
    gentle_until: Nanos,
    ceiling: Option<Ceiling>,
    /// When an attempt of a level was last about.
    seen: [Option<Nanos>; LEVELS],
    /// Waiting, by level.
    waiting: [u32; LEVELS],
}

/// So many by level, and in total.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    by_level: [u32; LEVELS],
    total: u32,
}

impl Tally {
    fn add(&mut self, level: usize) {
        self.by_level[level] += 1;
        self.total += 1;
    }

    fn remove(&mut self, level: usize) {
        if let Some(less) = self.by_level[level].checked_sub(1) {
            self.by_level[level] = less;
            self.total -= 1;
        }
    }
}

/// The spacing after a pause where a quota states no rate.
const GENTLE_INTERVAL: Nanos = 20 * NANOS_PER_MILLI;
/// For how long after a pause such a quota goes gently.
const GENTLE_PERIOD: Nanos = NANOS_PER_SEC;
impl Gauge {
    pub(crate) fn new(quota: Quota) -> Self {
        let mut gauge = Self {
            quota,
            window_nanos: 0,
            margin: None,
            has_shares: false,
            in_flight: Tally::default(),
            uncertain: Tally::default(),
            pending: Pending::default(),
            window: Window::default(),
            drained_at: 0,
            pace: Pace::default(),
            hold: Mean::default(),
            paused_until: 0,
            gentle_until: 0,
            ceiling: None,
            seen: [None; LEVELS],
            waiting: [0; LEVELS],
        };
        gauge.prepare();
        gauge
    }

    /// What is worth knowing of the quota beforehand.
    fn prepare(&mut self) {
        self.window_nanos = match self.quota.rate {
            Rate::Unlimited => GENTLE_PERIOD,
            Rate::Window { window, .. } => nanos(window),
            Rate::Bucket { per, .. } => nanos(per),
        };
        self.margin = match self.quota.count_from {
            CountFrom::Response => None,
            CountFrom::Sending { margin } => Some(nanos(margin)),
        };
        self.has_shares = self.quota.reserved != [0; LEVELS];
        self.set_interval();
    }

    pub(crate) fn quota(&self) -> &Quota {
        &self.quota
    }

    /// Applies another quota to what has been let through so far.
    pub(crate) fn set_quota(&mut self, quota: Quota, now: Nanos) {
        self.settle(now);
        let old = std::mem::replace(&mut self.quota, quota);
        if old.count_from != quota.count_from {
            // Everything in flight becomes uncertain until it is answered.
            self.pending.drain();
            self.uncertain = self.in_flight;
            if matches!(quota.count_from, CountFrom::Sending { .. }) {
                for level in 0..LEVELS {
                    for _ in 0..self.in_flight.by_level[level] {
                        self.pending.push(now, level);
                    }
                }
            }
        }
        // A place that was to be free after the old window is free after the
        // new one. A shorter window lets them run out as they stand.
        if let (Rate::Window { window: was, .. }, Rate::Window { window: is, .. }) =
            (old.rate, quota.rate)
        {
            self.window.delay(nanos(is.saturating_sub(was)));
        }
        self.prepare();
    }

    /// Limits nothing from now on.
    pub(crate) fn lift(&mut self, now: Nanos) {
        self.set_quota(Quota::unlimited(), now);
        self.window = Window::default();
        self.ceiling = None;
        self.drained_at = 0;
        self.paused_until = 0;
        self.gentle_until = 0;
        self.pace = Pace::default();
        self.set_interval();
    }

    fn set_interval(&mut self) {
        let window = self.window_nanos;
        self.pace.set_interval(match self.quota.rate {
            Rate::Unlimited => GENTLE_INTERVAL,
            // One less than the limit, over the window and the time that a
            // place is held beyond it: see `goodput`.
            Rate::Window { limit, .. } => {
                let cycle = window.saturating_add(self.hold.nanos());
                cycle.div_ceil(Nanos::from(limit.saturating_sub(1).max(1)))
            }
            Rate::Bucket { limit, .. } => window.div_ceil(Nanos::from(limit.max(1))),
        });
    }

    /// Whether an attempt of `level` may go now.
    pub(crate) fn room(&mut self, level: usize, now: Nanos) -> Result<(), Full> {
        self.settle(now);
        let full = match self.frees(level, now) {
            Some(at) if at <= now => return Ok(()),
            Some(at) => Full::Until(at),
            None => self.uncertain_until(),
        };
        // What is kept for others may be lent out again before that.
        let lapse = if self.has_shares {
            self.lapse(level, now)
        } else {
            None
        };
        Err(match (lapse, full) {
            (Some(lapse), Full::Until(at)) => Full::Until(at.min(lapse)),
            (Some(lapse), Full::UntilEvent) => Full::Until(lapse),
            (None, full) => full,
        })
    }

    /// When an attempt of `level` may go: the past, a time, or `None` where
    /// that hangs on an attempt in flight.
    fn frees(&self, level: usize, now: Nanos) -> Option<Nanos> {
        let mut at = now.max(self.paused_until);
        if let Some(ceiling) = self.ceiling
            && ceiling.left == 0
        {
            at = at.max(ceiling.until);
        }
        at = at.max(self.paced_until(0));
        at = at.max(match self.quota.rate {
            Rate::Unlimited => now,
            Rate::Window { limit, .. } => self.window_frees(limit, level, now)?,
            Rate::Bucket { burst, .. } => self.bucket_frees(burst, level, now)?,
        });
        if let Some(limit) = self.quota.in_flight {
            let used = |other: usize| self.in_flight.by_level[other];
            let kept = self.kept_from(level, limit, used, now);
            if self.in_flight.total + kept >= limit {
                return None;
            }
        }
        Some(at)
    }

    /// Takes an attempt of `level`. There must be room.
    pub(crate) fn take(&mut self, level: usize, now: Nanos) {
        self.in_flight.add(level);
        self.uncertain.add(level);
        if self.margin.is_some() {
            self.pending.push(now, level);
        }
        self.pace.take(now);
        if let Some(ceiling) = &mut self.ceiling {
            ceiling.left = ceiling.left.saturating_sub(1);
        }
        self.saw(level, now);
    }

    /// Notes that an attempt of `level` waits.
    pub(crate) fn wait(&mut self, level: usize) {
        self.waiting[level] += 1;
    }

    /// Notes that one waits no longer.
    pub(crate) fn stop_waiting(&mut self, level: usize, now: Nanos) {
        self.waiting[level] = self.waiting[level].saturating_sub(1);
        self.saw(level, now);
    }

    pub(crate) fn waiting(&self) -> [u32; LEVELS] {
        self.waiting
    }

    /// Notes that an attempt of `level` is about.
    fn saw(&mut self, level: usize, now: Nanos) {
        if self.reserves(level) {
            self.seen[level] = Some(now);
        }
    }

    /// An attempt that was taken at `sent` is over: answered or failed.
    pub(crate) fn finish(&mut self, level: usize, sent: Nanos, now: Nanos) {
        self.settle(now);
        self.in_flight.remove(level);
        self.saw(level, now);
        if self.was_uncertain(level, sent) {
            self.count(level, sent, now);
        }
    }

    /// An attempt that was taken at `sent` was never sent.
    pub(crate) fn give_back(&mut self, level: usize, sent: Nanos, now: Nanos) {
        self.settle(now);
        self.in_flight.remove(level);
        if self.was_uncertain(level, sent) {
            self.uncertain.remove(level);
        }
        self.pace.give_back(sent);
        if let Some(ceiling) = &mut self.ceiling {
            ceiling.left = ceiling.left.saturating_add(1);
        }
    }

    /// An attempt that was taken at `sent` is sent only now.
    pub(crate) fn resend(&mut self, level: usize, sent: Nanos, now: Nanos) {
        self.settle(now);
        if self.margin.is_none() {
            return;
        }
        if !self.pending.answer(sent, level) {
            // It was counted as sent long ago, and is counted again: too much
            // is safe, too little isn't.
            self.uncertain.add(level);
        }
        self.pending.push(now, level);
    }

    fn was_uncertain(&mut self, level: usize, sent: Nanos) -> bool {
        self.margin.is_none() || self.pending.answer(sent, level)
    }

    /// Brings the state up to `now`.
    fn settle(&mut self, now: Nanos) {
        if let Some(margin) = self.margin {
            let until = now.checked_sub(margin);
            while let Some((sent, level)) = self.pending.overdue(until) {
                self.count(level, sent, sent.saturating_add(margin));
            }
        }
        self.window.expire(now);
        if self.ceiling.is_some_and(|ceiling| ceiling.until <= now) {
            self.ceiling = None;
        }
    }

    /// Counts an attempt as having arrived at `at`, at the latest.
    fn count(&mut self, level: usize, sent: Nanos, at: Nanos) {
        self.uncertain.remove(level);
        match self.quota.rate {
            Rate::Unlimited => {}
            Rate::Window { .. } => {
                let free_at = at.saturating_add(self.window_nanos);
                self.window.count(free_at, level);
                self.hold.add(at.saturating_sub(sent));
                if self.is_always_paced() {
                    self.set_interval();
                }
            }
            Rate::Bucket { .. } => {
                let interval = self.pace.interval();
                self.drained_at = self.drained_at.max(at).saturating_add(interval);
            }
        }
    }

    /// When the window has a place for `level`: the past, a time, or `None`
    /// where that hangs on an attempt in flight.
    fn window_frees(&self, limit: u32, level: usize, now: Nanos) -> Option<Nanos> {
        let kept = self.kept_from(level, limit, |other| self.used(other), now);
        // The pace fills one place less than the limit; a share of what it
        // leaves empty would be no share.
        let idle = u32::from(kept > 0 && kept + 1 < limit && self.is_always_paced());
        let short = (self.taken_places() + kept + 1 + idle).saturating_sub(limit);
        match short.checked_sub(1) {
            None => Some(now),
            Some(index) => self.window.free_at(index as usize),
        }
    }

    /// The same for a bucket. What is in flight may all arrive at once, so it
    /// takes its full part of the burst.
    fn bucket_frees(&self, burst: u32, level: usize, now: Nanos) -> Option<Nanos> {
        let used = |other: usize| self.uncertain.by_level[other];
        let kept = self.kept_from(level, burst, used, now);
        let left = burst.checked_sub(self.uncertain.total + kept + 1)?;
        let slack = self.pace.interval().saturating_mul(Nanos::from(left));
        Some(self.drained_at.saturating_sub(slack))
    }

    /// When to look again, where places hang on attempts in flight.
    fn uncertain_until(&self) -> Full {
        match (self.margin, self.pending.first_sent()) {
            (Some(margin), Some(sent)) => Full::Until(sent.saturating_add(margin)),
            _ => Full::UntilEvent,
        }
    }

    fn is_always_paced(&self) -> bool {
        self.quota.shape == Shape::Paced && self.quota.rate != Rate::Unlimited
    }

    /// Before when the pace lets nothing through, with so much `more` of the
    /// schedule ahead: it binds for good, or for a while after a pause.
    fn paced_until(&self, more: Nanos) -> Nanos {
        let next = self.pace.next().saturating_add(more);
        if self.is_always_paced() {
            next
        } else {
            next.min(self.gentle_until)
        }
    }

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
        self.pace.hold_until(until);
    }

    /// The provider says that `left` more are allowed within `period`. What is
    /// in flight may not be counted in that yet.
    pub(crate) fn tighten(&mut self, left: u32, period: Nanos, now: Nanos) {
        self.settle(now);
        let left = left.saturating_sub(self.in_flight.total);
        if self.ceiling.is_none_or(|ceiling| left < ceiling.left) {
            self.ceiling = Some(Ceiling {
                left,
                until: now.saturating_add(period),
            });
        }
    }

    /// Whether nothing would be lost by forgetting it.
    pub(crate) fn is_idle(&mut self, now: Nanos) -> bool {
        self.settle(now);
        self.in_flight.total == 0
            && self.uncertain.total == 0
            && self.waiting == [0; LEVELS]
            && self.window.len() == 0
            && self.pending.is_empty()
            && self.ceiling.is_none()
            && self
                .drained_at
                .max(self.paused_until)
                .max(self.gentle_until)
                .max(self.pace.next())
                <= now
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.total
    }

    /// How many of the limit's places are taken.
    pub(crate) fn taken(&mut self, now: Nanos) -> u32 {
        self.settle(now);
        match self.quota.rate {
            Rate::Unlimited => 0,
            Rate::Window { .. } => self.taken_places(),
            Rate::Bucket { .. } => {
                let level = self.drained_at.saturating_sub(now);
                let drops = level.div_ceil(self.pace.interval().max(1));
                self.uncertain
                    .total
                    .saturating_add(u32::try_from(drops).unwrap_or(u32::MAX))
            }
        }
    }

    pub(crate) fn paused_until(&self) -> Nanos {
        self.paused_until
    }

    /// How many places of the window attempts of a level take.
    fn used(&self, level: usize) -> u32 {
        self.uncertain.by_level[level] + self.window.counted(level)
    }

    /// How many places of the window are taken in all.
    fn taken_places(&self) -> u32 {
        let counted = u32::try_from(self.window.len()).unwrap_or(u32::MAX);
        self.uncertain.total.saturating_add(counted)
    }
}
