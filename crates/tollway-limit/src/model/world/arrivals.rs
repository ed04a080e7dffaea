//! Calls that ask for a permit.

use std::task::Waker;

use super::{Waiter, World};
use crate::lanes::Wish;
use crate::quota::EXPRESS;
use crate::state::{Admission, Wakers};
use crate::time::{NANOS_PER_MILLI, Nanos};

impl World {
    pub(super) fn arrive(&mut self, plan: usize, level: usize, patience: Option<u8>) {
        let till = self.till(plan).filter(|_| level == EXPRESS);
        if let Some(till) = till.filter(|till| till.take().is_some()) {
            assert!(self.waiters.iter().all(|waiter| {
                let waits_for = &self.plans[waiter.plan];
                !waits_for.contains(&till.meter)
            }));
            return self.sent(plan, level, self.now, Some(till));
        }
        let now = self.state.meters.tick(self.now);
        let free = self.exact && self.waiters.is_empty() && self.has_room(plan);
        let wish = Wish {
            level,
            deadline: patience.map(|millis| now + Nanos::from(millis) * NANOS_PER_MILLI),
            ticket: None,
        };
        self.arrivals += 1;
        let waits = self.ask(plan, wish, self.arrivals);
        assert!(!(waits && free), "there is room");
    }

    /// Says whether it waits, or is refused.
    fn ask(&mut self, plan: usize, wish: Wish, order: u64) -> bool {
        let (now, level) = (self.now, wish.level);
        let mut wakers = Wakers::new();
        let asks = self.plans[plan].clone();
        let waker = Some(Waker::noop());
        let admission = self.state.admit(&asks, wish, now, waker, &mut wakers);
        self.collect();
        match admission {
            Admission::Granted(at) => {
                self.sent(plan, level, at, None);
                self.state.lend(&asks, now);
                return false;
            }
            Admission::Waits(id) => self.waiters.push(Waiter {
                id,
                plan,
                level,
                order,
            }),
            Admission::TooLate(wait) => assert!(now + wait >= wish.deadline.unwrap()),
            Admission::QueueFull(_) => {
                assert_eq!((self.waiters.len(), wish.ticket), (20, None));
            }
            Admission::NotNow(_) => unreachable!(),
        }
        true
    }

    /// All who wait ask again, after one who comes for the first time.
    pub(super) fn ask_again(&mut self, newcomer: usize) {
        let mut wakers = Wakers::new();
        self.state.void_all(self.now, &mut wakers);
        let waiters = std::mem::take(&mut self.waiters);
        if waiters.len() < 20 {
            self.arrive(newcomer, EXPRESS, None);
        }
        for waiter in waiters {
            let deadline = self.state.lanes.waiter(waiter.id).unwrap().deadline();
            let gone = self.state.collect(waiter.id, self.now, &mut wakers);
            let wish = Wish {
                level: waiter.level,
                deadline,
                ticket: Some(gone.unwrap().ticket),
            };
            self.ask(waiter.plan, wish, waiter.order);
        }
    }
}
