//! The limiter's decisions: who may go now, who waits, who is next. It is
//! handed the time, and neither sleeps nor locks.

pub(crate) mod arming;
mod at_once;
mod change;
mod serve;

use std::collections::BTreeSet;
use std::task::Waker;

use arming::Post;
use slab::Slab;
use smallvec::SmallVec;

use crate::gauge::{Full, Gauge};
use crate::lanes::{Fate, Lanes, Plan, Wish};
use crate::meter::Meters;
use crate::time::Nanos;

/// Wakers to be woken once the lock is released: a waker runs foreign code.
pub(crate) type Wakers = SmallVec<[Waker; 4]>;

/// What comes of asking for a permit.
#[derive(Debug)]
pub(crate) enum Admission {
    /// Go. The permit was taken at this time.
    Granted(Nanos),
    /// Wait: the waiter's index.
    Waits(u32),
    /// Not now, for one who can't wait: it would take so long, or longer.
    NotNow(Nanos),
    /// The deadline passes before that.
    TooLate(Nanos),
    /// Too many wait already.
    QueueFull(Nanos),
}

/// What is left of a waiter.
#[derive(Debug)]
pub(crate) struct Gone {
    pub(crate) plan: Plan,
    pub(crate) level: usize,
    pub(crate) fate: Fate,
    pub(crate) since: Nanos,
    pub(crate) ticket: u64,
    /// Of one that waited still, to be dropped once the lock is released.
    _waker: Option<Waker>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) meters: Meters,
    pub(crate) lanes: Lanes,
    /// When to look at which meter's line.
    timers: BTreeSet<(Nanos, u32)>,
    deadlines: BTreeSet<(Nanos, u32)>,
    pub(crate) max_waiting: usize,
    /// The runtimes of those who wait.
    posts: Slab<Post>,
}

impl State {
    pub(crate) fn new(max_waiting: usize, meters: Meters) -> Self {
        Self {
            meters,
            lanes: Lanes::default(),
            timers: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            max_waiting,
            posts: Slab::new(),
        }
    }

    /// Asks for a permit for an attempt. Without a `waker` it doesn't wait.
    pub(crate) fn admit(
        &mut self,
        plan: &Plan,
        wish: Wish,
        now: Nanos,
        waker: Option<&Waker>,
        wakers: &mut Wakers,
    ) -> Admission {
        let Wish {
            level,
            deadline,
            ticket,
        } = wish;
        // Those who wait and could go by now come first.
        if self.lanes.waiting() > 0 {
            self.pump(now, wakers);
        }
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Admission::TooLate(0);
        }
        let Some((meter, full)) = self.obstacle(plan, level, ticket.unwrap_or(u64::MAX), now)
        else {
            self.take(plan, level, now);
            if self.lanes.waiting() > 0 {
                self.reconsider(plan, level, now);
                self.pump(now, wakers);
            }
            return Admission::Granted(now);
        };
        let wait = self.least_wait(plan, wish, now);
        if deadline.is_some_and(|deadline| deadline <= now.saturating_add(wait)) {
            return Admission::TooLate(wait);
        }
        let Some(waker) = waker else {
            return Admission::NotNow(wait);
        };
        // Those who are to ask again have their places kept.
        if ticket.is_none() && self.lanes.expected() >= self.max_waiting {
            return Admission::QueueFull(wait);
        }
        let (waiter, lane, is_new) = self.lanes.push(plan, wish, now, waker.clone());
        for &meter in plan {
            if let Some(meter) = self.meters.get_mut(meter) {
                meter.gauge.wait(level);
                meter.lanes += u32::from(is_new);
            }
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, waiter));
        }
        let head = self.lanes.head(lane, level);
        if head.is_some_and(|(head, _)| head == waiter) {
            self.step_back(lane, level);
            self.stand(lane, level, meter, full);
        }
        Admission::Waits(waiter)
    }

    /// The first thing in the way of an attempt with this ticket: a gauge
    /// without room, or with someone in line who comes first.
    fn obstacle(
        &mut self,
        plan: &Plan,
        level: usize,
        ticket: u64,
        now: Nanos,
    ) -> Option<(u32, Full)> {
        let queued = self.lanes.waiting() > 0;
        for &id in plan {
            let Some(meter) = self.meters.get_mut(id) else {
                continue;
            };
            if let Err(full) = meter.room(level, ticket, now) {
                return Some((id, full));
            }
            if !queued {
                continue;
            }
            let behind = meter.line[level]
                .first()
                .is_some_and(|&(first, _)| first < ticket);
            let beneath = (0..level).any(|higher| {
                let first = meter.line[higher].first().copied();
                first.is_some_and(|(first, _)| meter.room(higher, first, now).is_ok())
            });
            if behind || beneath {
                return Some((id, Full::Until(now)));
            }
        }
        None
    }

    /// The least that a newcomer would have to wait. It counts those ahead with
    /// the same plan, for they need all that the newcomer needs; those of other
    /// plans might be held up elsewhere, and those of other levels by a share that
    /// is kept for the newcomer's. Who asks again may come before them all.
    fn least_wait(&mut self, plan: &Plan, wish: Wish, now: Nanos) -> Nanos {
        let level = wish.level;
        let meters = &self.meters;
        let reserves = |&id: &u32| {
            meters
                .get(id)
                .is_some_and(|meter| meter.gauge.reserves(level))
        };
        let highest = if plan.iter().any(reserves) { level } else { 0 };
        let ahead = match wish.ticket {
            None => self.lanes.ahead(plan, highest..=level),
            Some(_) => 0,
        };
        let mut at = now;
        for &meter in plan {
            if let Some(meter) = self.meters.get_mut(meter) {
                at = at.max(meter.gauge.earliest(ahead, now));
            }
        }
        at - now
    }

    /// Puts the head of a lane's queue in line at a meter.
    fn stand(&mut self, lane: u32, level: usize, at: u32, full: Full) {
        let Some((_, ticket)) = self.lanes.head(lane, level) else {
            return;
        };
        if let Some(lane) = self.lanes.lane_mut(lane) {
            lane.stands_at[level] = Some(at);
        }
        if let Some(meter) = self.meters.get_mut(at) {
            meter.line[level].insert((ticket, lane));
        }
        if let Full::Until(time) = full {
            self.look_at(at, time);
        }
    }

    /// Takes who stood in line for a lane's queue until now out of it, for one who
    /// comes before.
    fn step_back(&mut self, lane: u32, level: usize) {
        let lane_of = self.lanes.lane_mut(lane);
        let Some(at) = lane_of.and_then(|lane| lane.stands_at[level].take()) else {
            return;
        };
        if let Some(meter) = self.meters.get_mut(at) {
            meter.line[level].retain(|&(_, other)| other != lane);
        }
        self.look_away(at);
    }

    /// Sees to it that a meter's line is looked at no later than `time`.
    fn look_at(&mut self, id: u32, time: Nanos) {
        let Some(meter) = self.meters.get_mut(id) else {
            return;
        };
        match meter.wake {
            Some(wake) if wake <= time => return,
            Some(wake) => {
                self.timers.remove(&(wake, id));
            }
            None => {}
        }
        meter.wake = Some(time);
        self.timers.insert((time, id));
    }

    /// Looks at a meter no more, if nobody stands in line there.
    fn look_away(&mut self, id: u32) {
        let meter = self.meters.get_mut(id);
        let meter = meter.filter(|meter| !meter.has_line());
        if let Some(wake) = meter.and_then(|meter| meter.wake.take()) {
            self.timers.remove(&(wake, id));
        }
    }

    /// Undoes what a waiter has noted outside its queue.
    fn leave(&mut self, waiter: u32, plan: &Plan, level: usize, now: Nanos) {
        let Some(entry) = self.lanes.waiter(waiter) else {
            return;
        };
        let (ticket, post) = (entry.ticket, entry.post);
        if let Some(deadline) = entry.deadline() {
            self.deadlines.remove(&(deadline, waiter));
        }
        self.leaves(post);
        for &id in plan {
            let Some(meter) = self.meters.get_mut(id) else {
                continue;
            };
            meter.gauge.stop_waiting(level, now);
            if meter.let_go(level, ticket, now) && meter.has_line() {
                self.look_at(id, now);
            }
        }
        self.reconsider(plan, level, now);
    }

    /// Looks again at those who are held up by a share of `level`, now that an
    /// attempt of that level has gone or waits no longer. Its share was kept at
    /// every meter of its plan, wherever it stood itself.
    fn reconsider(&mut self, plan: &Plan, level: usize, now: Nanos) {
        for &id in plan {
            let meter = self.meters.get(id);
            if meter.is_some_and(|meter| meter.gauge.reserves(level) && meter.has_line()) {
                self.look_at(id, now);
            }
        }
    }

    /// Takes a waiter out of the queue before its turn. Hands back its waker.
    fn end_wait(&mut self, waiter: u32, now: Nanos, fate: Fate) -> Option<Waker> {
        let entry = self.lanes.waiter(waiter)?;
        let (lane, level) = (entry.lane, usize::from(entry.level));
        let plan = self.lanes.lane(lane)?.plan.clone();
        self.leave(waiter, &plan, level, now);
        let head = self
            .lanes
            .head(lane, level)
            .filter(|&(head, _)| head == waiter);
        let waker = self.lanes.settle(waiter, fate);
        let at = head.and_then(|_| self.lanes.lane_mut(lane)?.stands_at[level].take());
        if let (Some((_, ticket)), Some(at)) = (head, at) {
            if let Some(meter) = self.meters.get_mut(at) {
                meter.line[level].remove(&(ticket, lane));
            }
            // The next of the lane stands where the head stood. There is no more
            // room for them than there was, or `leave` has seen to it.
            self.stand(lane, level, at, Full::UntilEvent);
            self.look_away(at);
        }
        waker
    }

    /// A waiter is gone: it was told its fate, or stopped waiting.
    pub(crate) fn drop_waiter(
        &mut self,
        waiter: u32,
        now: Nanos,
        wakers: &mut Wakers,
    ) -> Option<Gone> {
        let mut waker = None;
        if let Fate::Waiting(_) = self.lanes.waiter(waiter)?.fate {
            waker = self.end_wait(waiter, now, Fate::TooLate { wait: 0 });
            self.pump(now, wakers);
        }
        let (entry, plan, last) = self.lanes.forget(waiter)?;
        if last {
            for &meter in &plan {
                if let Some(meter) = self.meters.get_mut(meter) {
                    meter.lanes -= 1;
                }
            }
            self.lanes.shrink();
        }
        Some(Gone {
            plan,
            level: usize::from(entry.level),
            fate: entry.fate,
            since: entry.since,
            ticket: entry.ticket,
            _waker: waker,
        })
    }

    /// A waiter hears of its fate, and is gone.
    pub(crate) fn collect(&mut self, waiter: u32, now: Nanos, wakers: &mut Wakers) -> Option<Gone> {
        let mut gone = self.drop_waiter(waiter, now, wakers)?;
        if let Fate::Granted { at } = gone.fate {
            gone.fate = self.hand_over(&gone.plan, gone.level, at, now, wakers);
        }
        Some(gone)
    }

    /// An attempt that was granted its permit at `granted` gets it only now, and is
    /// sent. Unless a quota has paused meanwhile: then it is to ask again.
    fn hand_over(
        &mut self,
        plan: &Plan,
        level: usize,
        granted: Nanos,
        now: Nanos,
        wakers: &mut Wakers,
    ) -> Fate {
        if self.is_paused(plan, now) {
            self.change(plan, now, wakers, |gauge| {
                gauge.give_back(level, Some(granted), true);
            });
            return Fate::Void;
        }
        let mut matters = false;
        for &id in plan {
            if let Some(meter) = self.meters.get_mut(id) {
                matters |= meter.gauge.resend(level, Some(granted), true, now);
            }
        }
        if !matters {
            return Fate::Granted { at: granted };
        }
        // Until now nobody knew when its places are free again.
        self.serve_plan(plan, now, wakers);
        Fate::Granted { at: now }
    }

    /// Applies `change` to each gauge of a plan, and serves those who wait.
    pub(crate) fn change(
        &mut self,
        plan: &Plan,
        now: Nanos,
        wakers: &mut Wakers,
        mut change: impl FnMut(&mut Gauge),
    ) {
        for &id in plan {
            if let Some(meter) = self.meters.get_mut(id) {
                change(&mut meter.gauge);
            }
        }
        self.serve_plan(plan, now, wakers);
    }
}
