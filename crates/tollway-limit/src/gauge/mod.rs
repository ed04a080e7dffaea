//! The state of one quota: what it has let through, and when it lets the next
//! through.

mod astray;
mod ceilings;
mod feedback;
mod foretell;
mod held;
mod loan;
mod pending;
mod room;
mod shares;

use crate::pace::{Mean, Pace};
use crate::quota::{CountFrom, LEVELS, Quota, Rate, Shape};
use crate::tally::Tally;
use crate::time::{NANOS_PER_MILLI, NANOS_PER_SEC, Nanos, nanos};
use crate::window::Window;
use ceilings::Ceilings;
use pending::Pending;

/// Why a gauge lets nothing through now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// Until then, unless something happens before.
    Until(Nanos),
    /// Until an attempt in flight is over.
    UntilEvent,
}

/// The state of one quota.
#[derive(Debug)]
pub(crate) struct Gauge {
    quota: Quota,
    /// The quota's window or period.
    window_nanos: Nanos,
    /// Whether the shape, rather than a pause, spreads the attempts.
    is_paced: bool,
    /// Whether any share is reserved.
    has_shares: bool,
    /// Whether places may be lent out.
    lends: bool,
    /// So many places are kept for somebody else, as it is looked at.
    kept: u32,
    /// Granted and not over, by level.
    in_flight: Tally,
    /// Those of them that are certainly not sent yet.
    held: Tally,
    /// Those that may not have arrived yet, where the quota counts from sending.
    pending: Option<Pending>,
    /// Those whose answer nobody awaits any more, until when they may be on
    /// their way.
    astray: Window,
    window: Window,
    /// A bucket's: when all that was counted has drained.
    drained_at: Nanos,
    pace: Pace,
    /// From the taking of a permit until it was counted.
    hold: Mean,
    /// The one that the pace was set by.
    paced_by: Nanos,
    paused_until: Nanos,
    /// Until then nothing is left, as the provider says: not even for those that
    /// have a permit and aren't sent yet.
    spent_until: Nanos,
    /// Until then it goes gently, whatever its shape.
    gentle_until: Nanos,
    ceilings: Ceilings,
    /// When an attempt of a level was last about.
    seen: [Option<Nanos>; LEVELS],
    /// Waiting, by level.
    waiting: [u32; LEVELS],
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
            is_paced: false,
            has_shares: false,
            lends: false,
            kept: 0,
            in_flight: Tally::default(),
            held: Tally::default(),
            pending: None,
            astray: Window::default(),
            window: Window::default(),
            drained_at: 0,
            pace: Pace::default(),
            hold: Mean::default(),
            paced_by: 0,
            paused_until: 0,
            spent_until: 0,
            gentle_until: 0,
            ceilings: Ceilings::default(),
            seen: [None; LEVELS],
            waiting: [0; LEVELS],
        };
        gauge.prepare();
        gauge.count_from(quota.count_from, 0);
        gauge
    }

    /// What is worth knowing of the quota beforehand.
    fn prepare(&mut self) {
        self.window_nanos = match self.quota.rate {
            Rate::Unlimited => GENTLE_PERIOD,
            Rate::Window { window, .. } => nanos(window),
            Rate::Bucket { per, .. } => nanos(per),
        };
        self.is_paced = self.quota.shape == Shape::Paced && self.quota.rate != Rate::Unlimited;
        self.has_shares = self.quota.reserved != [0; LEVELS];
        self.lends = self.may_lend();
        self.set_interval();
    }

    pub(crate) fn quota(&self) -> &Quota {
        &self.quota
    }

    /// Applies another quota to what has been let through so far.
    pub(crate) fn set_quota(&mut self, quota: Quota, now: Nanos) {
        self.settle(now);
        if self.quota.count_from != quota.count_from {
            self.count_from(quota.count_from, now);
        }
        let old = std::mem::replace(&mut self.quota, quota);
        // A place that was to be free after the old window is free after the
        // new one. A shorter window lets them run out as they stand.
        if let (Rate::Window { window: was, .. }, Rate::Window { window: is, .. }) =
            (old.rate, quota.rate)
        {
            self.window.delay(nanos(is.saturating_sub(was)));
        }
        let interval = self.pace.interval();
        self.prepare();
        self.pace.rein_in(now);
        // What the bucket holds drains at its new rate.
        let ahead = u128::from(self.drained_at.saturating_sub(now));
        let drops = ahead.div_ceil(u128::from(interval.max(1)));
        let span = drops.saturating_mul(u128::from(self.pace.interval()));
        self.drained_at = now.saturating_add(Nanos::try_from(span).unwrap_or(Nanos::MAX));
    }

    /// Counts from there from now on, attempts in flight among the rest.
    fn count_from(&mut self, from: CountFrom, now: Nanos) {
        // Whoever was taken before the last such change and answered after it
        // was not found, and is counted as it would have been.
        if let Some(pending) = &self.pending {
            for level in 0..LEVELS {
                for _ in self.sent(level)..pending.unanswered().of(level) {
                    self.astray.insert(pending.latest(now), level);
                }
            }
        }
        self.pending = match from {
            CountFrom::Response => None,
            CountFrom::Sending { margin } => {
                let mut pending = Pending::new(nanos(margin));
                for level in 0..LEVELS {
                    for _ in 0..self.sent(level) {
                        pending.push(now, level);
                    }
                }
                Some(pending)
            }
        };
    }

    /// Attempts that may still arrive at any time.
    fn uncertain(&self) -> Tally {
        self.awaited().and(self.astray.tally())
    }

    /// Those of them whose answer somebody awaits.
    fn awaited(&self) -> Tally {
        match &self.pending {
            Some(pending) => pending.unanswered().and(&self.held),
            None => self.in_flight,
        }
    }

    fn set_interval(&mut self) {
        let window = self.window_nanos;
        self.paced_by = self.hold.nanos();
        self.pace.set_interval(match self.quota.rate {
            Rate::Unlimited => GENTLE_INTERVAL,
            // One less than the limit, over the window and the time that a
            // place is held beyond it: see `goodput`.
            Rate::Window { limit, .. } => {
                let cycle = window.saturating_add(self.paced_by);
                cycle.div_ceil(Nanos::from(limit.saturating_sub(1).max(1)))
            }
            Rate::Bucket { limit, .. } => window.div_ceil(Nanos::from(limit.max(1))),
        });
    }

    /// Takes an attempt of `level` if it may go now.
    #[inline]
    pub(crate) fn take_if_room(&mut self, level: usize, now: Nanos) -> bool {
        let has_room = self.room(level, now).is_ok();
        if has_room {
            self.take(level, now);
        }
        has_room
    }

    /// Takes an attempt of `level`. There must be room.
    pub(crate) fn take(&mut self, level: usize, now: Nanos) {
        self.in_flight.add(level);
        if let Some(pending) = &mut self.pending {
            pending.push(now, level);
        }
        self.pace.take(now);
        self.ceilings.take();
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

    /// An attempt that was taken at `sent` is over: answered or failed. Of one
    /// that was lent that time may not be known.
    #[inline]
    pub(crate) fn finish(&mut self, level: usize, sent: Option<Nanos>, now: Nanos) {
        self.count_overdue(now);
        self.in_flight.remove(level);
        self.saw(level, now);
        if self.answer(level, sent) {
            self.count(level, sent, now);
        }
    }

    /// Notes that an attempt is over, and says whether it is yet to be counted.
    fn answer(&mut self, level: usize, sent: Option<Nanos>) -> bool {
        match &mut self.pending {
            // Of one whose time isn't known no more than that it was in flight
            // when this quota came.
            Some(pending) => sent.is_some_and(|sent| pending.answer(sent, level)),
            None => true,
        }
    }

    /// Brings the state up to `now`.
    #[inline]
    fn settle(&mut self, now: Nanos) {
        self.count_overdue(now);
        self.window.expire(now);
        self.ceilings.expire(now);
    }

    /// Counts those that were sent a margin ago, and those astray that have
    /// arrived.
    #[inline]
    fn count_overdue(&mut self, now: Nanos) {
        while let Some(pending) = &mut self.pending
            && let Some((sent, level, counts)) = pending.overdue(now)
        {
            self.count(level, Some(sent), counts);
        }
        self.count_astray(now);
    }

    /// Counts an attempt as having arrived at `at`, at the latest.
    fn count(&mut self, level: usize, sent: Option<Nanos>, at: Nanos) {
        self.place(level, at);
        if let Some(sent) = sent {
            self.hold.add(at.saturating_sub(sent));
            // A division each time would be dear, and so fine a pace idle.
            let change = self.hold.nanos().abs_diff(self.paced_by);
            if self.is_paced && change > self.window_nanos >> 16 {
                self.set_interval();
            }
        }
    }

    /// Takes the place of an attempt that arrived at `at`, at the latest.
    #[inline]
    fn place(&mut self, level: usize, at: Nanos) {
        match self.quota.rate {
            Rate::Unlimited => {}
            Rate::Window { .. } => {
                let free_at = at.saturating_add(self.window_nanos);
                self.window.count(free_at, level);
            }
            Rate::Bucket { .. } => {
                let interval = self.pace.interval();
                self.drained_at = self.drained_at.max(at).saturating_add(interval);
            }
        }
    }

    /// Whether nothing would be lost by forgetting it.
    pub(crate) fn is_idle(&mut self, now: Nanos) -> bool {
        self.settle(now);
        self.in_flight.total() == 0
            && self.uncertain().total() == 0
            && self.waiting == [0; LEVELS]
            && self.window.len() == 0
            && self.ceilings.is_empty()
            && self
                .drained_at
                .max(self.paused_until)
                .max(self.gentle_until)
                .max(self.paced_until(0))
                <= now
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.total()
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
                let drops = u32::try_from(drops).unwrap_or(u32::MAX);
                self.uncertain().total().saturating_add(drops)
            }
        }
    }

    pub(crate) fn paused_until(&self) -> Nanos {
        self.paused_until
    }

    /// Until when nothing is to be sent, permit or not.
    pub(crate) fn sends_from(&self) -> Nanos {
        self.paused_until.max(self.spent_until)
    }

    /// How many places of the window attempts of a level take.
    fn used(&self, level: usize) -> u32 {
        self.uncertain().of(level) + self.window.tally().of(level)
    }

    /// How many places of the window are taken in all.
    fn taken_places(&self) -> u32 {
        let counted = u32::try_from(self.window.len()).unwrap_or(u32::MAX);
        self.uncertain().total().saturating_add(counted)
    }
}
