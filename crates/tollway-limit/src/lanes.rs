//! Who waits for what: queues of waiters that need the same permits.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::task::Waker;

use slab::Slab;
use smallvec::SmallVec;

use crate::quota::LEVELS;
#[cfg(feature = "tokio")]
use crate::state::Wakers;
use crate::time::Nanos;

/// The quotas that cover a call, as indices of meters.
pub(crate) type Plan = SmallVec<[u32; 4]>;

/// The calls that wait for permits of one plan, first come, first served
/// within a priority.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) plan: Plan,
    queues: [Queue; LEVELS],
    /// The meter at which each queue's head stands in line.
    pub(crate) stands_at: [Option<u32>; LEVELS],
    /// How often each queue's head has had its turn at a meter in vain, since
    /// another had no room.
    pub(crate) in_vain: [u32; LEVELS],
    /// The waiters that name this lane, those included that have been served
    /// and don't know it yet.
    waiters: u32,
}

/// Waiters by their tickets.
type Queue = BTreeMap<u64, u32>;

#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) lane: u32,
    pub(crate) level: u8,
    pub(crate) ticket: u64,
    pub(crate) since: Nanos,
    /// Or [`NEVER`], which is shorter than an option.
    deadline: Nanos,
    pub(crate) fate: Fate,
    /// In which runtime it was polled, or [`NOWHERE`] as yet.
    pub(crate) post: u16,
}

const NEVER: Nanos = Nanos::MAX;
pub(crate) const NOWHERE: u16 = u16::MAX;

impl Waiter {
    pub(crate) fn deadline(&self) -> Option<Nanos> {
        (self.deadline != NEVER).then_some(self.deadline)
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    pub(crate) level: usize,
    pub(crate) deadline: Option<Nanos>,
    /// Of one who has waited, and is to ask again.
    pub(crate) ticket: Option<u64>,
}

/// What became of a waiter.
#[derive(Debug)]
pub(crate) enum Fate {
    Waiting(Waker),
    Granted {
        at: Nanos,
    },
    /// It would have to wait so much longer than its deadline allows.
    TooLate {
        wait: Nanos,
    },
    /// There are other rules now, and it is to ask again.
    Void,
}

/// All lanes and all waiters.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    lanes: Slab<Lane>,
    by_plan: HashMap<Plan, u32>,
    waiters: Slab<Waiter>,
    next_ticket: u64,
    waiting: usize,
    /// Of those who were sent away to ask again, how many have yet to do so.
    returning: usize,
}

/// Slabs are bounded by the length of the queue, which is far below 2³².
pub(crate) fn index(key: usize) -> u32 {
    u32::try_from(key).unwrap_or(u32::MAX)
}

impl Lanes {
    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many wait, or are about to again.
    pub(crate) fn expected(&self) -> usize {
        self.waiting + self.returning
    }

    /// How many of this plan and these levels wait.
    pub(crate) fn ahead(&self, plan: &Plan, levels: RangeInclusive<usize>) -> u32 {
        self.by_plan
            .get(plan)
            .and_then(|&lane| self.lanes.get(lane as usize))
            .map_or(0, |lane| {
                let queues = lane.queues[levels].iter();
                index(queues.map(Queue::len).sum())
            })
    }

    pub(crate) fn lane(&self, lane: u32) -> Option<&Lane> {
        self.lanes.get(lane as usize)
    }

    pub(crate) fn lane_mut(&mut self, lane: u32) -> Option<&mut Lane> {
        self.lanes.get_mut(lane as usize)
    }

    pub(crate) fn waiter(&self, waiter: u32) -> Option<&Waiter> {
        self.waiters.get(waiter as usize)
    }

    pub(crate) fn waiter_mut(&mut self, waiter: u32) -> Option<&mut Waiter> {
        self.waiters.get_mut(waiter as usize)
    }

    /// The wakers of all that wait there.
    #[cfg(feature = "tokio")]
    pub(crate) fn wakers(&self, post: u16) -> Wakers {
        let there = self.waiters.iter().map(|(_, waiter)| waiter);
        let there = there.filter(|waiter| waiter.post == post);
        let waker = |waiter: &Waiter| match &waiter.fate {
            Fate::Waiting(waker) => Some(waker.clone()),
            _ => None,
        };
        there.filter_map(waker).collect()
    }

    /// The first of a lane's queue, with its ticket.
    pub(crate) fn head(&self, lane: u32, level: usize) -> Option<(u32, u64)> {
        let (&ticket, &head) = self.lane(lane)?.queues[level].first_key_value()?;
        Some((head, ticket))
    }

    /// All that wait, in the order in which they came.
    pub(crate) fn all_waiting(&self) -> Vec<u32> {
        let waits = |&(_, waiter): &(usize, &Waiter)| matches!(waiter.fate, Fate::Waiting(_));
        let mut waiting: Vec<_> = self.waiters.iter().filter(waits).collect();
        waiting.sort_unstable_by_key(|(_, waiter)| waiter.ticket);
        waiting.into_iter().map(|(id, _)| index(id)).collect()
    }

    /// Puts a newcomer at the end of its queue, and who has a ticket where it was.
    /// Says who it is, in which lane, and whether the lane is new.
    pub(crate) fn push(
        &mut self,
        plan: &Plan,
        wish: Wish,
        now: Nanos,
        waker: Waker,
    ) -> (u32, u32, bool) {
        let (lane, is_new) = match self.by_plan.get(plan) {
            Some(&lane) => (lane, false),
            None => {
                let lane = index(self.lanes.insert(Lane {
                    plan: plan.clone(),
                    queues: Default::default(),
                    stands_at: [None; LEVELS],
                    in_vain: [0; LEVELS],
                    waiters: 0,
                }));
                self.by_plan.insert(plan.clone(), lane);
                (lane, true)
            }
        };
        let ticket = wish.ticket.unwrap_or(self.next_ticket);
        self.next_ticket += u64::from(wish.ticket.is_none());
        let waiter = index(self.waiters.insert(Waiter {
            lane,
            // There are three.
            level: u8::try_from(wish.level).unwrap_or(u8::MAX),
            ticket,
            since: now,
            deadline: wish.deadline.unwrap_or(NEVER),
            fate: Fate::Waiting(waker),
            post: NOWHERE,
        }));
        self.lanes[lane as usize].queues[wish.level].insert(ticket, waiter);
        self.lanes[lane as usize].waiters += 1;
        self.waiting += 1;
        (waiter, lane, is_new)
    }

    /// Takes a waiter out of its queue and notes what became of it. Hands back
    /// its waker.
    pub(crate) fn settle(&mut self, waiter: u32, fate: Fate) -> Option<Waker> {
        let entry = self.waiters.get_mut(waiter as usize)?;
        if !matches!(entry.fate, Fate::Waiting(_)) {
            return None;
        }
        let Fate::Waiting(waker) = std::mem::replace(&mut entry.fate, fate) else {
            return None;
        };
        if let Fate::Void = entry.fate {
            self.returning += 1;
        }
        let (lane, level) = (entry.lane, usize::from(entry.level));
        let ticket = entry.ticket;
        let lane = &mut self.lanes[lane as usize];
        let queue = &mut lane.queues[level];
        if queue
            .first_key_value()
            .is_some_and(|(&first, _)| first == ticket)
        {
            lane.in_vain[level] = 0;
        }
        queue.remove(&ticket);
        self.waiting -= 1;
        Some(waker)
    }

    /// Forgets a waiter that has been taken out of its queue. Hands it back,
    /// with its plan, and whether the lane went with it.
    pub(crate) fn forget(&mut self, waiter: u32) -> Option<(Waiter, Plan, bool)> {
        let waiter = self.waiters.try_remove(waiter as usize)?;
        if let Fate::Void = waiter.fate {
            self.returning -= 1;
        }
        let lane = self.lanes.get_mut(waiter.lane as usize)?;
        lane.waiters -= 1;
        if lane.waiters > 0 {
            return Some((waiter, lane.plan.clone(), false));
        }
        let lane = self.lanes.remove(waiter.lane as usize);
        self.by_plan.remove(&lane.plan);
        Some((waiter, lane.plan, true))
    }

    /// Gives back what memory a crowd took, once it is gone.
    pub(crate) fn shrink(&mut self) {
        const KEPT: usize = 1024;
        if self.waiters.is_empty() && self.waiters.capacity() > KEPT {
            self.waiters = Slab::new();
            self.lanes = Slab::new();
            self.by_plan = HashMap::new();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// A slab has up to twice as much room as it needs.
    #[test]
    fn a_waiter_is_small() {
        assert!(size_of::<Waiter>() <= 56);
    }

    #[test]
    fn a_crowd_leaves_no_memory_behind() {
        let mut lanes = Lanes::default();
        let push = |lanes: &mut Lanes, meter| {
            let plan = Plan::from_slice(&[meter]);
            let wish = Wish {
                level: 0,
                deadline: None,
                ticket: None,
            };
            lanes.push(&plan, wish, 0, Waker::noop().clone()).0
        };
        let crowd: Vec<_> = (0..5000).map(|meter| push(&mut lanes, meter)).collect();
        for waiter in crowd {
            lanes.settle(waiter, Fate::Void);
            lanes.forget(waiter);
            lanes.shrink();
        }
        assert!(lanes.waiters.capacity() + lanes.lanes.capacity() <= 2048);
        assert!(lanes.by_plan.capacity() <= 2048);
        // A few are no reason to ask for memory again and again.
        let few = push(&mut lanes, 0);
        lanes.settle(few, Fate::Void);
        lanes.forget(few);
        let kept = lanes.waiters.capacity();
        lanes.shrink();
        assert_eq!(lanes.waiters.capacity(), kept);
    }
}
