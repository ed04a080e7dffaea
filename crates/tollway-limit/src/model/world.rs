//! The limiter's state in a world that a schedule drives, with what must hold
//! after each step.

mod arrivals;
mod checks;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use smallvec::SmallVec;

use super::Op;
use super::provider::{Attempt, Provider};
use crate::express::{Express, TILLS, Till};
use crate::lanes::{Fate, Plan};
use crate::meter::{Meters, Role};
use crate::quota::{LEVELS, Quota, Rate, Shape};
use crate::state::{State, Wakers};
use crate::time::{NANOS_PER_MILLI, Nanos, Origin};

#[derive(Debug)]
struct Waiter {
    id: u32,
    plan: usize,
    level: usize,
    order: u64,
}

pub(super) struct World {
    state: State,
    /// What the limiter reads.
    clock: Arc<AtomicU64>,
    providers: [Provider; 2],
    plans: Vec<Plan>,
    now: Nanos,
    attempts: Vec<Attempt>,
    waiters: Vec<Waiter>,
    arrivals: u64,
    /// Whether nothing but what the model knows limits the attempts.
    exact: bool,
    /// An attempt was lost, a quota has changed. After both, the model doesn't
    /// know what is taken off what a provider says is left.
    has_lost: bool,
    has_changed: bool,
}

impl World {
    pub(super) fn new(quotas: [Quota; 2]) -> Self {
        // Later than any window is long.
        let now = 1000 * NANOS_PER_MILLI;
        let clock = Arc::new(AtomicU64::new(now));
        let read = Arc::clone(&clock);
        let mut meters = Meters::new(move || read.load(Ordering::Relaxed));
        for quota in quotas {
            let id = meters.add(quota, Role::EveryCall, 0);
            meters.get_mut(id).unwrap().express =
                Some(Express::new(id, Origin::now(), &Weak::new()));
        }
        let plans = [&[0u32][..], &[1], &[1, 0]];
        let is_plain = |quota: &Quota| {
            let is_window = matches!(quota.rate, Rate::Window { .. });
            is_window && quota.shape == Shape::Burst && quota.reserved == [0; LEVELS]
        };
        Self {
            state: State::new(20, meters),
            clock,
            exact: quotas.iter().all(is_plain),
            has_lost: false,
            has_changed: false,
            providers: [0, 1].map(|meter| Provider::new(meter, quotas[meter])),
            plans: plans.map(SmallVec::from_slice).to_vec(),
            now,
            attempts: Vec::new(),
            waiters: Vec::new(),
            arrivals: 0,
        }
    }

    fn covered(&self, meter: usize) -> impl Iterator<Item = &Attempt> + Clone {
        self.attempts
            .iter()
            .filter(move |attempt| self.plans[attempt.plan].contains(&(meter as u32)))
    }

    /// Whether there is certainly room: answers that were noted may be counted
    /// late.
    fn has_room(&self, plan: usize) -> bool {
        self.has_room_beside(plan, |_| false)
    }

    /// The same, where some meters keep a place for somebody else.
    fn has_room_beside(&self, plan: usize, keeps: impl Fn(u32) -> bool) -> bool {
        self.plans[plan].iter().all(|&id| {
            let meter = id as usize;
            let late = self.covered(meter).cloned().map(Attempt::late);
            let kept = keeps(id).then(|| Attempt::new(plan, 0, None, self.now));
            let late: Vec<_> = late.chain(kept).collect();
            self.providers[meter].has_room(late.iter(), self.now)
        })
    }

    /// The till that the next call goes to, be it of whichever thread.
    fn till(&self, plan: usize) -> Option<Arc<Till>> {
        let &[id] = &*self.plans[plan] else {
            return None;
        };
        let express = self.state.meters.get(id)?.express.as_ref()?;
        Some(Arc::clone(&express.tills[self.attempts.len() % TILLS]))
    }

    fn sent(&mut self, plan: usize, level: usize, sent: Nanos, till: Option<Arc<Till>>) {
        for &meter in &self.plans[plan] {
            let meter = meter as usize;
            let has_room = self.providers[meter].has_room(self.covered(meter), self.now);
            let quota = &self.providers[meter].quota;
            assert!(has_room, "one too many at {} for {quota:?}", self.now);
            self.providers[meter].take(sent);
        }
        self.attempts.push(Attempt::new(plan, level, till, sent));
    }

    /// Collects what became of the waiters, and checks the order.
    fn collect(&mut self) {
        let mut granted = Vec::new();
        let mut wakers = Wakers::new();
        let mut index = 0;
        while index < self.waiters.len() {
            let waiter = &self.waiters[index];
            match self.state.lanes.waiter(waiter.id).unwrap().fate {
                Fate::Waiting(_) => index += 1,
                Fate::Granted { at } => {
                    assert_eq!(at, self.now);
                    let waiter = self.waiters.remove(index);
                    let gone = self.state.collect(waiter.id, self.now, &mut wakers);
                    assert!(matches!(gone.unwrap().fate, Fate::Granted { .. }));
                    granted.push(waiter);
                    // Others may have been granted theirs by that.
                    index = 0;
                }
                Fate::TooLate { .. } | Fate::Void => {
                    let waiter = self.waiters.remove(index);
                    self.state.drop_waiter(waiter.id, self.now, &mut wakers);
                }
            }
        }
        for granted in granted {
            // Nobody of the same plan and priority came before.
            let overtaken = self.waiters.iter().find(|waiter| {
                (waiter.plan, waiter.level) == (granted.plan, granted.level)
                    && waiter.order < granted.order
            });
            assert!(overtaken.is_none(), "{granted:?} overtook {overtaken:?}");
            self.sent(granted.plan, granted.level, self.now, None);
        }
        // Nobody is left waiting while there is room, but for a place that is
        // kept for one who comes before.
        if self.exact {
            for waiter in &self.waiters {
                let ticket = self.state.lanes.waiter(waiter.id).unwrap().ticket;
                let rank = |waiter: &Waiter| (waiter.level, waiter.order);
                let keeps = |id| {
                    let meter = self.state.meters.get(id).unwrap();
                    let until = meter.keeps_from(waiter.level, ticket, self.now);
                    let mut others = self.waiters.iter();
                    let is_before = |other: &Waiter| {
                        let plan = &self.plans[other.plan];
                        rank(other) < rank(waiter) && plan.len() > 1 && plan.contains(&id)
                    };
                    until.is_some() && others.any(is_before)
                };
                let has_room = self.has_room_beside(waiter.plan, keeps);
                assert!(!has_room, "{waiter:?} is forgotten");
            }
        }
    }

    /// Moves on, stopping wherever the timer would fire.
    fn advance(&mut self, to: Nanos) {
        loop {
            // Each millisecond of a short while; a long one at once.
            let step = match to - self.now > 100 * NANOS_PER_MILLI {
                true => to,
                false => to.min(self.now + NANOS_PER_MILLI),
            };
            while let Some(wake) = self.state.next_wake().filter(|&wake| wake <= step) {
                self.now = self.now.max(wake);
                self.pump();
            }
            self.now = step;
            self.set_clock();
            self.check_lines();
            if step == to {
                return;
            }
        }
    }

    fn set_clock(&self) {
        self.clock.store(self.now, Ordering::Relaxed);
    }

    fn pump(&mut self) {
        let mut wakers = Wakers::new();
        self.set_clock();
        self.state.meters.tick(self.now);
        self.state.pump(self.now, &mut wakers);
        // All that was due is done, and what came of it.
        let next = self.state.next_wake();
        assert!(next.is_none_or(|wake| wake > self.now), "due at {next:?}");
        self.collect();
        self.check_lines();
    }

    fn change(&mut self, plan: usize, change: impl FnMut(&mut crate::gauge::Gauge)) {
        let mut wakers = Wakers::new();
        let plan = self.plans[plan].clone();
        self.state.change(&plan, self.now, &mut wakers, change);
        self.collect();
    }

    fn flying(&self, nth: usize) -> Option<usize> {
        let flying = || (0..self.attempts.len()).filter(|&i| self.attempts[i].over.is_none());
        flying().nth(nth % flying().count().max(1))
    }

    fn answer(&mut self, index: usize) {
        let attempt = &mut self.attempts[index];
        attempt.over = Some(self.now);
        let (plan, level, sent, now) = (attempt.plan, attempt.level, attempt.known(), self.now);
        attempt.noted = attempt.till.as_ref().is_some_and(|till| till.answer(now));
        if !attempt.noted {
            self.state.meters.tick(now);
            self.change(plan, |gauge| gauge.finish(level, sent, now));
            self.state.lend(&self.plans[plan], now);
        }
    }

    fn lose(&mut self, index: usize) {
        self.has_lost = true;
        let attempt = &mut self.attempts[index];
        let (plan, level, sent, now) = (attempt.plan, attempt.level, attempt.known(), self.now);
        for &meter in &self.plans[plan] {
            let gauge = &mut self.state.meters.get_mut(meter).unwrap().gauge;
            let arrives = gauge.lose(level, sent, now);
            self.providers[meter as usize].lose(attempt, arrives);
        }
        attempt.over = Some(now);
        self.change(plan, |_| ());
    }

    pub(super) fn step(&mut self, op: Op) {
        self.apply(op);
        self.check_lines();
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Advance(millis) => {
                self.advance(self.now + Nanos::from(millis) * NANOS_PER_MILLI);
            }
            Op::Arrive {
                plan,
                level,
                patience,
            } => self.arrive(plan, level, patience),
            Op::Answer(nth) => {
                if let Some(index) = self.flying(nth) {
                    self.answer(index);
                }
            }
            Op::GiveBack(nth) => {
                // One that was held beyond the margin was counted meanwhile, and
                // stays so.
                let fresh = |index: &usize| {
                    let attempt = &self.attempts[*index];
                    let plan = self.plans[attempt.plan].iter();
                    plan.filter_map(|&meter| self.providers[meter as usize].counted(attempt))
                        .all(|at| at > self.now)
                };
                if let Some(index) = self.flying(nth).filter(fresh) {
                    let attempt = self.attempts.remove(index);
                    let (plan, level, sent) = (attempt.plan, attempt.level, attempt.known());
                    for &meter in &self.plans[plan] {
                        self.providers[meter as usize].give_back();
                    }
                    self.change(plan, |gauge| gauge.give_back(level, sent, false));
                }
            }
            Op::Lose(nth) => {
                if let Some(index) = self.flying(nth) {
                    self.lose(index);
                }
            }
            Op::Cancel(nth) => {
                if self.waiters.is_empty() {
                    return;
                }
                let waiter = self.waiters.remove(nth % self.waiters.len());
                let mut wakers = Wakers::new();
                self.state.drop_waiter(waiter.id, self.now, &mut wakers);
                self.collect();
            }
            Op::Pause(meter, millis) => {
                self.exact = false;
                let period = Nanos::from(millis) * NANOS_PER_MILLI;
                let now = self.now;
                self.change(meter, |gauge| gauge.pause(now, period));
            }
            Op::Tighten(..) if self.has_lost && self.has_changed => {}
            Op::Tighten(meter, left, millis) => {
                self.exact = false;
                let (now, period) = (self.now, Nanos::from(millis) * NANOS_PER_MILLI);
                let provider = &self.providers[meter];
                let under_way = self.covered(meter);
                let under_way = under_way.filter(|a| provider.is_under_way(a, now));
                let under_way = under_way.count();
                self.providers[meter].say(left, now + period, under_way);
                let gauge = &mut self.state.meters.get_mut(meter as u32).unwrap().gauge;
                gauge.tighten(left, period, now);
            }
            Op::Change(meter, quota) => {
                self.exact = false;
                self.has_changed = true;
                let covered =
                    |attempt: &&mut Attempt| self.plans[attempt.plan].contains(&(meter as u32));
                let attempts = self.attempts.iter_mut().filter(covered);
                self.providers[meter].change(quota, attempts, self.now);
                self.state
                    .meters
                    .get_mut(meter as u32)
                    .unwrap()
                    .gauge
                    .set_quota(quota, self.now);
                self.state.look_at_all(self.now);
                self.pump();
            }
            Op::Again(plan) => self.ask_again(plan),
            Op::Probe(plan) => self.probe(plan),
            Op::Foretell(meter) => self.foretell(meter),
        }
    }

    fn send_away(&mut self) {
        while let Some(waiter) = self.waiters.pop() {
            let mut wakers = Wakers::new();
            self.state.drop_waiter(waiter.id, self.now, &mut wakers);
            self.collect();
        }
    }

    /// Answers everything until nobody waits.
    pub(super) fn drain(&mut self) {
        for _ in 0..10_000 {
            while let Some(index) = self.flying(0) {
                self.answer(index);
            }
            if self.waiters.is_empty() {
                return;
            }
            let wake = self.state.next_wake().expect("a waiter is forgotten");
            self.advance(wake.max(self.now));
        }
        panic!("{:?} wait for ever", self.waiters);
    }
}
