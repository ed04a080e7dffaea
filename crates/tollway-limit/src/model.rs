//! The decisions against a naive model: any schedule of arrivals, cancellations,
//! answers, pauses and changes of quotas.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::needless_pass_by_value,
    reason = "a test"
)]

use std::task::Waker;

use proptest::collection::vec;
use proptest::prelude::*;
use smallvec::SmallVec;

use crate::gauge::Full;
use crate::lanes::{Fate, Plan};
use crate::meter::Role;
use crate::quota::{CountFrom, LEVELS, Quota, Rate, Shape};
use crate::state::{Admission, State, Wakers};
use crate::time::{NANOS_PER_MILLI, Nanos, nanos};

#[derive(Clone, Debug)]
enum Op {
    Advance(u8),
    Arrive {
        plan: usize,
        level: usize,
        patience: Option<u8>,
    },
    /// The nth of those in flight is answered.
    Answer(usize),
    /// The nth of those in flight was never sent.
    GiveBack(usize),
    /// The nth of the waiters goes away, granted or not.
    Cancel(usize),
    Pause(usize, u8),
    Change(usize, Quota),
    /// Asks how long it would be, and holds it to its word.
    Probe(usize),
}

fn ops(changes: bool) -> impl Strategy<Value = Vec<Op>> {
    let quota = if changes { 1 } else { 0 };
    vec(
        prop_oneof![
            6 => (0..60u8).prop_map(Op::Advance),
            9 => (0..3usize, 0..3usize, proptest::option::weighted(0.2, 1..200u8))
                .prop_map(|(plan, level, patience)| Op::Arrive { plan, level, patience }),
            5 => (0..8usize).prop_map(Op::Answer),
            1 => (0..8usize).prop_map(Op::GiveBack),
            2 => (0..8usize).prop_map(Op::Cancel),
            quota => (0..2usize, 0..80u8).prop_map(|(meter, time)| Op::Pause(meter, time)),
            quota => (0..2usize, burst_quota()).prop_map(|(meter, quota)| Op::Change(meter, quota)),
            1 => (0..3usize).prop_map(Op::Probe),
        ],
        1..150,
    )
}

fn millis(millis: u64) -> std::time::Duration {
    std::time::Duration::from_millis(millis)
}

fn burst_quota() -> impl Strategy<Value = Quota> {
    (
        1..6u32,
        1..100u64,
        proptest::option::weighted(0.3, 1..4u32),
        proptest::option::weighted(0.3, 0..60u64),
    )
        .prop_map(|(limit, window, in_flight, margin)| {
            let mut quota = Quota::new(limit, millis(window)).shape(Shape::Burst);
            if let Some(in_flight) = in_flight {
                quota = quota.in_flight(in_flight);
            }
            if let Some(margin) = margin {
                let margin = millis(margin);
                quota = quota.count_from(CountFrom::Sending { margin });
            }
            quota
        })
}

fn any_quota() -> impl Strategy<Value = Quota> {
    (burst_quota(), any::<bool>(), 0..3usize, 0..60u8).prop_map(
        |(quota, paced, level, reserved)| {
            let quota = match paced {
                true => quota.shape(Shape::Paced),
                false => quota,
            };
            let priority = tollway_core::Priority::ALL[level];
            quota.reserve(priority, reserved)
        },
    )
}

#[derive(Debug)]
struct Attempt {
    plan: usize,
    level: usize,
    sent: Nanos,
    over: Option<Nanos>,
}

#[derive(Debug)]
struct Waiter {
    id: u32,
    plan: usize,
    level: usize,
    order: u64,
}

struct World {
    state: State,
    quotas: Vec<Quota>,
    plans: Vec<Plan>,
    now: Nanos,
    attempts: Vec<Attempt>,
    waiters: Vec<Waiter>,
    arrivals: u64,
    /// Whether nothing but what the model knows limits the attempts.
    exact: bool,
}

impl World {
    fn new(quotas: [Quota; 2]) -> Self {
        let mut state = State::new(20);
        for quota in quotas {
            state.add_meter(quota, Role::EveryCall, 0);
        }
        let plans = [&[0u32][..], &[1], &[1, 0]];
        let is_plain = |quota: &Quota| quota.shape == Shape::Burst && quota.reserved == [0; 3];
        Self {
            state,
            exact: quotas.iter().all(is_plain),
            quotas: quotas.to_vec(),
            plans: plans.map(SmallVec::from_slice).to_vec(),
            now: 0,
            attempts: Vec::new(),
            waiters: Vec::new(),
            arrivals: 0,
        }
    }

    /// When the provider may have counted it at the latest, as far as `quota`
    /// goes.
    fn counted(attempt: &Attempt, quota: &Quota) -> Option<Nanos> {
        match quota.count_from {
            CountFrom::Response => attempt.over,
            CountFrom::Sending { margin } => {
                let margin = attempt.sent + nanos(margin);
                Some(attempt.over.map_or(margin, |over| over.min(margin)))
            }
        }
    }

    /// How many arrivals there can be in the window that ends now, wherever
    /// between sending and answer the network delivers each.
    fn in_window(&self, meter: usize) -> usize {
        let quota = &self.quotas[meter];
        let Rate::Window { window, .. } = quota.rate else {
            return 0;
        };
        let window = nanos(window);
        self.covered(meter)
            .filter(|attempt| match Self::counted(attempt, quota) {
                Some(at) => at + window > self.now,
                None => true,
            })
            .count()
    }

    fn in_flight(&self, meter: usize) -> usize {
        self.covered(meter)
            .filter(|attempt| attempt.over.is_none())
            .count()
    }

    fn covered(&self, meter: usize) -> impl Iterator<Item = &Attempt> {
        self.attempts
            .iter()
            .filter(move |attempt| self.plans[attempt.plan].contains(&(meter as u32)))
    }

    fn has_room(&self, plan: usize) -> bool {
        self.plans[plan].iter().all(|&meter| {
            let meter = meter as usize;
            let quota = &self.quotas[meter];
            let Rate::Window { limit, .. } = quota.rate else {
                return true;
            };
            self.in_window(meter) < limit as usize
                && quota
                    .in_flight
                    .is_none_or(|limit| self.in_flight(meter) < limit as usize)
        })
    }

    fn sent(&mut self, plan: usize, level: usize, sent: Nanos) {
        self.attempts.push(Attempt {
            plan,
            level,
            sent,
            over: None,
        });
        for &meter in &self.plans[plan].clone() {
            let meter = meter as usize;
            let quota = self.quotas[meter];
            if let Rate::Window { limit, .. } = quota.rate {
                let used = self.in_window(meter);
                assert!(used <= limit as usize, "{used} in a window of {quota:?}");
            }
            if let Some(limit) = quota.in_flight {
                assert!(self.in_flight(meter) <= limit as usize);
            }
        }
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
                    self.state.drop_waiter(waiter.id, self.now, &mut wakers);
                    granted.push(waiter);
                }
                Fate::TooLate { .. } => {
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
            self.sent(granted.plan, granted.level, self.now);
        }
        // Whoever comes first of all isn't left waiting while there is room.
        if self.exact {
            let first = self
                .waiters
                .iter()
                .min_by_key(|waiter| (waiter.level, waiter.order));
            if let Some(first) = first {
                assert!(!self.has_room(first.plan), "{first:?} is forgotten");
            }
        }
    }

    /// Nobody is left standing in line where there is room, and whoever stands
    /// there waits for a time or for something that will happen.
    fn check_lines(&mut self) {
        for (id, meter) in &mut self.state.meters {
            for level in 0..LEVELS {
                if meter.line[level].is_empty() {
                    continue;
                }
                let room = meter.gauge.room(level, self.now);
                let is_watched = match room {
                    Ok(()) => meter.wake.is_some_and(|wake| wake <= self.now),
                    Err(Full::Until(_)) => meter.wake.is_some(),
                    Err(Full::UntilEvent) => {
                        let mut others = meter.gauge.waiting();
                        others[level] = 0;
                        meter.gauge.in_flight() > 0 || others != [0; LEVELS]
                    }
                };
                assert!(
                    is_watched,
                    "nobody looks at line {level} of meter {id}: {room:?} at {}, looks at {:?}",
                    self.now, meter.wake,
                );
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
            self.check_lines();
            if step == to {
                return;
            }
        }
    }

    fn pump(&mut self) {
        let mut wakers = Wakers::new();
        self.state.tick(self.now);
        self.state.pump(self.now, &mut wakers);
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
        let (plan, level, sent, now) = (attempt.plan, attempt.level, attempt.sent, self.now);
        self.change(plan, |gauge| gauge.finish(level, sent, now));
    }

    fn step(&mut self, op: Op) {
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
                    let counted =
                        |&meter: &u32| Self::counted(attempt, &self.quotas[meter as usize]);
                    let mut counted = self.plans[attempt.plan].iter().filter_map(counted);
                    counted.all(|at| at > self.now)
                };
                if let Some(index) = self.flying(nth).filter(fresh) {
                    let Attempt {
                        plan, level, sent, ..
                    } = self.attempts.remove(index);
                    let now = self.now;
                    self.change(plan, |gauge| gauge.give_back(level, sent, now));
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
                let gauge = &mut self.state.meters[meter].gauge;
                gauge.pause(now, period);
            }
            Op::Change(meter, quota) => {
                // What was sent under other numbers is no breach of the new.
                let strict = |quota: &Quota| match quota.rate {
                    Rate::Window { limit, window } => (limit, window),
                    _ => (0, millis(0)),
                };
                let (old, new) = (strict(&self.quotas[meter]), strict(&quota));
                let same = Quota {
                    rate: Rate::Window {
                        limit: old.0.max(new.0),
                        window: old.1.min(new.1),
                    },
                    ..self.quotas[meter]
                };
                self.exact = false;
                self.quotas[meter] = same;
                self.state.meters[meter].gauge.set_quota(same, self.now);
                self.state.look_at_all(self.now);
                self.pump();
            }
            Op::Probe(plan) => self.probe(plan),
        }
    }

    fn arrive(&mut self, plan: usize, level: usize, patience: Option<u8>) {
        let now = self.state.tick(self.now);
        let deadline = patience.map(|millis| now + Nanos::from(millis) * NANOS_PER_MILLI);
        let free = self.exact && self.waiters.is_empty() && self.has_room(plan);
        let waker = Waker::noop();
        let mut wakers = Wakers::new();
        let admission = self.state.admit(
            &self.plans[plan].clone(),
            level,
            deadline,
            now,
            Some(waker),
            &mut wakers,
        );
        self.collect();
        match admission {
            Admission::Granted(at) => self.sent(plan, level, at),
            _ if free => panic!("there is room, but {admission:?}"),
            Admission::Waits(id) => {
                self.waiters.push(Waiter {
                    id,
                    plan,
                    level,
                    order: self.arrivals,
                });
                self.arrivals += 1;
            }
            Admission::TooLate(wait) => assert!(now + wait >= deadline.unwrap()),
            Admission::QueueFull(_) => assert_eq!(self.waiters.len(), 20),
            Admission::NotNow(_) => unreachable!(),
        }
    }

    /// However soon everything in flight is answered, there is no permit before
    /// the wait that was foretold.
    fn probe(&mut self, plan: usize) {
        while let Some(waiter) = self.waiters.pop() {
            let mut wakers = Wakers::new();
            self.state.drop_waiter(waiter.id, self.now, &mut wakers);
            self.collect();
        }
        let ask = |world: &mut Self| {
            let plan = world.plans[plan].clone();
            let now = world.now;
            let mut wakers = Wakers::new();
            world.state.admit(&plan, 1, None, now, None, &mut wakers)
        };
        let wait = match ask(self) {
            Admission::Granted(at) => return self.sent(plan, 1, at),
            Admission::NotNow(wait) => wait,
            other => panic!("{other:?}"),
        };
        while let Some(index) = self.flying(0) {
            self.answer(index);
        }
        if wait > NANOS_PER_MILLI {
            self.advance(self.now + wait - NANOS_PER_MILLI);
            match ask(self) {
                Admission::NotNow(_) => {}
                other => panic!("the wait was to be {wait}, but {other:?}"),
            }
        }
    }

    /// Answers everything until nobody waits.
    fn drain(&mut self) {
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn bursts_are_exact_fair_and_never_stuck(
        a in burst_quota(),
        b in burst_quota(),
        ops in ops(false),
    ) {
        let mut world = World::new([a, b]);
        for op in ops {
            world.step(op);
        }
        world.drain();
    }

    #[test]
    fn shapes_shares_pauses_and_changes_never_break_the_rule(
        a in any_quota(),
        b in any_quota(),
        ops in ops(true),
    ) {
        let mut world = World::new([a, b]);
        for op in ops {
            world.step(op);
        }
        world.drain();
    }
}

/// A share is kept for a call that waits at another quota; when that call gives
/// up, those who wait for the share must hear of it.
#[test]
fn whoever_waits_for_a_share_is_told_when_its_owner_gives_up_elsewhere() {
    let busy = Quota::new(1, millis(3)).in_flight(1);
    let shared = Quota::new(2, millis(6))
        .count_from(CountFrom::Sending { margin: millis(24) })
        .reserve(tollway_core::Priority::Normal, 50);
    let arrive = |plan, level, patience| Op::Arrive {
        plan,
        level,
        patience,
    };
    let mut world = World::new([busy, shared]);
    for op in [
        arrive(2, 0, None),
        Op::Advance(79),
        Op::Pause(1, 10),
        arrive(0, 0, None),
        // Held up by the pause first, and then by the quota that is busy.
        arrive(2, 1, Some(38)),
        // Needs the share that is kept for the one before.
        arrive(1, 2, None),
    ] {
        world.step(op);
    }
    world.drain();
}

#[test]
fn levels_that_each_keep_half_do_not_wait_for_each_other_for_ever() {
    use std::time::Duration;

    use tollway_core::Priority;

    let halves = Quota::new(2, Duration::from_millis(10))
        .reserve(Priority::High, 50)
        .reserve(Priority::Normal, 50);
    let arrive = |level| Op::Arrive {
        plan: 0,
        level,
        patience: None,
    };
    let mut world = World::new([halves, Quota::new(5, Duration::from_millis(1))]);
    for level in [2, 0, 1] {
        world.step(arrive(level));
    }
    world.drain();
}
