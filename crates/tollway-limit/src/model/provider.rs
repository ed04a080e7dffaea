//! What the provider may have seen of one quota's attempts, at the worst.

use std::sync::Arc;

use crate::express::{PERIOD, Till};
use crate::quota::{CountFrom, Quota, Rate};
use crate::time::{Nanos, nanos};

#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) plan: usize,
    pub(super) level: usize,
    /// Where its permit was lent, if it was.
    pub(super) till: Option<Arc<Till>>,
    /// Its answer was noted there.
    pub(super) noted: bool,
    pub(super) sent: Nanos,
    pub(super) over: Option<Nanos>,
    /// What each provider makes of it.
    pub(super) marks: [Mark; 2],
}

/// What changes of a quota have left of an attempt.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    /// The margin counts from here, if not from the sending.
    since: Nanos,
    /// It was counted then, before the quota changed.
    counted: Option<Nanos>,
    /// It was over and done with before the quota changed.
    forgotten: bool,
}

impl Attempt {
    pub(super) fn new(plan: usize, level: usize, till: Option<Arc<Till>>, sent: Nanos) -> Self {
        Self {
            plan,
            level,
            till,
            noted: false,
            sent,
            over: None,
            marks: Default::default(),
        }
    }

    /// What the limiter knows for certain of the time: when it was sent.
    pub(super) fn known(&self) -> Option<Nanos> {
        self.till.is_none().then_some(self.sent)
    }

    /// The same, counted as late as the limiter may count it.
    pub(super) fn late(mut self) -> Self {
        if self.noted {
            self.over = self.over.map(|over| over + PERIOD);
        }
        self
    }
}

/// The provider's side of one quota.
#[derive(Debug)]
pub(super) struct Provider {
    pub(super) meter: usize,
    pub(super) quota: Quota,
    /// All that it said: so many are left, and until when that holds. Fewer than
    /// none where more are under way than it said.
    said: Vec<(i64, Nanos)>,
}

impl Provider {
    pub(super) fn new(meter: usize, quota: Quota) -> Self {
        Self {
            meter,
            quota,
            said: Vec::new(),
        }
    }

    /// When it may have counted the attempt at the latest; `None` while that is
    /// open.
    pub(super) fn counted(&self, attempt: &Attempt) -> Option<Nanos> {
        let mark = &attempt.marks[self.meter];
        match self.quota.count_from {
            _ if mark.counted.is_some() => mark.counted,
            CountFrom::Response => attempt.over,
            CountFrom::Sending { margin } => {
                let since = attempt.sent.max(mark.since);
                let margin = since + nanos(margin);
                Some(attempt.over.map_or(margin, |over| over.min(margin)))
            }
        }
    }

    /// Whether the attempt can still arrive, or has arrived after `since`.
    fn may_be_after(&self, attempt: &Attempt, since: Nanos, now: Nanos) -> bool {
        match self.counted(attempt) {
            Some(at) if at <= now => !attempt.marks[self.meter].forgotten && at > since,
            _ => true,
        }
    }

    /// Whether one more is allowed, wherever between sending and answer the
    /// network delivers each.
    pub(super) fn has_room<'a>(
        &self,
        attempts: impl Iterator<Item = &'a Attempt> + Clone,
        now: Nanos,
    ) -> bool {
        let fly = attempts.clone().filter(|a| a.over.is_none()).count();
        let is_free = |used: usize, limit: u32| used < limit as usize;
        self.quota.in_flight.is_none_or(|limit| is_free(fly, limit))
            && match self.quota.rate {
                Rate::Unlimited => true,
                Rate::Window { limit, window } => {
                    let since = now - nanos(window);
                    let used = attempts
                        .filter(|a| self.may_be_after(a, since, now))
                        .count();
                    is_free(used, limit)
                }
                Rate::Bucket { limit, per, burst } => {
                    let interval = nanos(per).div_ceil(Nanos::from(limit));
                    let starts = attempts.clone().filter_map(|a| self.counted(a));
                    // In any time up to now, at most the burst and what has
                    // drained meanwhile.
                    starts
                        .chain([now])
                        .filter(|&start| start <= now)
                        .all(|start| {
                            let used = attempts.clone();
                            let used = used
                                .filter(|a| self.may_be_after(a, start - 1, now))
                                .count();
                            let drained = (now - start) / interval;
                            (used as Nanos) < Nanos::from(burst) + drained
                        })
                }
            }
    }

    /// Notes an attempt. Nothing that the provider said was left must be exceeded.
    pub(super) fn take(&mut self, now: Nanos) {
        for (left, _) in self.said.iter_mut().filter(|(_, until)| *until > now) {
            assert!(*left > 0, "the provider said that none is left");
            *left -= 1;
        }
    }

    /// Whether an attempt may be under way: in flight, or lost.
    pub(super) fn is_under_way(&self, attempt: &Attempt, now: Nanos) -> bool {
        let arrives = attempt.marks[self.meter].counted;
        attempt.over.is_none() || arrives.is_some_and(|at| at > now)
    }

    /// Nobody awaits an attempt any more, and it may be under way until it
    /// `arrives`, or as long as the margin says.
    pub(super) fn lose(&self, attempt: &mut Attempt, arrives: Nanos) {
        let counted = self.counted(attempt).unwrap_or(arrives);
        attempt.marks[self.meter].counted = Some(counted);
    }

    pub(super) fn give_back(&mut self) {
        for (left, _) in &mut self.said {
            *left += 1;
        }
    }

    /// So many are left, those under way not yet taken off.
    pub(super) fn say(&mut self, left: u32, until: Nanos, under_way: usize) {
        self.said.push((i64::from(left) - under_way as i64, until));
    }

    /// The quota changes. What is over and done with under the old numbers is no
    /// breach of the new, nor is what a bucket has counted; for what is under
    /// way the new margin counts from now.
    pub(super) fn change<'a>(
        &mut self,
        quota: Quota,
        attempts: impl Iterator<Item = &'a mut Attempt>,
        now: Nanos,
    ) {
        let drops = |rate| matches!(rate, Rate::Bucket { .. });
        let drained = drops(self.quota.rate) || drops(quota.rate);
        for attempt in attempts {
            let stays = match self.quota.rate {
                Rate::Window { window, .. } => self.may_be_after(attempt, now - nanos(window), now),
                _ => true,
            };
            let counted = self.counted(attempt).filter(|&at| at <= now);
            let mark = &mut attempt.marks[self.meter];
            if self.quota.count_from != quota.count_from && attempt.over.is_none() {
                *mark = Mark {
                    since: now,
                    ..Mark::default()
                };
            } else {
                mark.counted = mark.counted.or(counted);
                mark.forgotten |= !stays || drained && counted.is_some();
            }
        }
        self.quota = quota;
    }
}
