//! Who waits for a connection, in order.

use std::collections::VecDeque;
use std::task::{Poll, Waker};

use crate::arena::{Arena, Id};

/// What becomes of a waiter.
#[derive(Debug)]
enum Waiter<G, F> {
    Waiting(Option<Waker>),
    Served(G),
    Failed(F),
}

/// First come, first served. Joining, leaving and being served are O(1)
/// amortised, and each wakes at most the one whom it concerns.
#[derive(Debug)]
pub(crate) struct Queue<G, F> {
    waiters: Arena<Waiter<G, F>>,
    /// The order of arrival. Names of waiters who left stay until they are
    /// met, or until they outnumber the others.
    order: VecDeque<Id>,
    /// How many of the order still wait.
    waiting: usize,
}

impl<G, F> Queue<G, F> {
    pub(crate) const fn new() -> Self {
        Self {
            waiters: Arena::new(),
            order: VecDeque::new(),
            waiting: 0,
        }
    }

    /// How many wait, those served or failed who have yet to hear of it not
    /// included.
    pub(crate) fn len(&self) -> usize {
        self.waiting
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// How many have ever joined.
    pub(crate) fn joined(&self) -> u64 {
        self.waiters.named()
    }

    /// Whether the front was among the first so many who joined. False where
    /// nobody waits.
    pub(crate) fn front_is_among_first(&mut self, joined: u64) -> bool {
        while let Some(&id) = self.order.front() {
            if let Some(Waiter::Waiting(_)) = self.waiters.get(id) {
                return id.is_among_first(joined);
            }
            self.order.pop_front();
        }
        false
    }

    /// How many there are in any state.
    pub(crate) fn population(&self) -> usize {
        self.waiters.len()
    }

    #[cfg(test)]
    pub(crate) fn waits(&self, id: Id) -> bool {
        matches!(self.waiters.get(id), Some(Waiter::Waiting(_)))
    }

    pub(crate) fn join(&mut self) -> Id {
        // Leavers are swept once they outnumber the others, so that one
        // waiter at the front doesn't let the order grow for ever.
        if self.order.len() > 2 * self.waiting + 32 {
            let waiters = &self.waiters;
            self.order
                .retain(|id| matches!(waiters.get(*id), Some(Waiter::Waiting(_))));
        }
        let id = self.waiters.insert(Waiter::Waiting(None));
        self.order.push_back(id);
        self.waiting += 1;
        id
    }

    /// The waiter at the front gets what `outcome` makes of it. Its waker, if
    /// it has polled, is the caller's to wake.
    fn settle_front(&mut self, outcome: impl FnOnce() -> Waiter<G, F>) -> Option<Waker> {
        while let Some(id) = self.order.pop_front() {
            let Some(waiter) = self.waiters.get_mut(id) else {
                continue;
            };
            let Waiter::Waiting(waker) = waiter else {
                continue;
            };
            let waker = waker.take();
            *waiter = outcome();
            self.waiting -= 1;
            return waker;
        }
        None
    }

    /// Serves the front. Only to be called while somebody waits.
    pub(crate) fn serve(&mut self, grant: G) -> Option<Waker> {
        debug_assert!(!self.is_empty(), "nobody waits");
        self.settle_front(|| Waiter::Served(grant))
    }

    /// Fails the front, if somebody waits.
    pub(crate) fn fail(&mut self, failure: F) -> Option<Waker> {
        self.settle_front(|| Waiter::Failed(failure))
    }

    /// The outcome of a waiter, who is forgotten with it.
    pub(crate) fn poll(&mut self, id: Id, waker: &Waker) -> Poll<Option<Result<G, F>>> {
        if let Some(Waiter::Waiting(stored)) = self.waiters.get_mut(id) {
            match stored {
                Some(stored) => stored.clone_from(waker),
                None => *stored = Some(waker.clone()),
            }
            return Poll::Pending;
        }
        Poll::Ready(self.leave(id))
    }

    /// A waiter leaves. What it had been served is the caller's to hand on.
    pub(crate) fn leave(&mut self, id: Id) -> Option<Result<G, F>> {
        match self.waiters.remove(id)? {
            Waiter::Waiting(_) => {
                self.waiting -= 1;
                None
            }
            Waiter::Served(grant) => Some(Ok(grant)),
            Waiter::Failed(failure) => Some(Err(failure)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Poll, Waker};

    use super::Queue;

    #[test]
    fn first_come_first_served_whoever_leaves_between() {
        let mut queue = Queue::<u32, ()>::new();
        let ids: Vec<_> = (0..4).map(|_| queue.join()).collect();
        assert!(queue.leave(ids[1]).is_none());
        queue.serve(10);
        queue.serve(20);
        assert_eq!(queue.len(), 1);
        assert_eq!(queue.poll(ids[0], Waker::noop()), Poll::Ready(Some(Ok(10))));
        assert_eq!(queue.poll(ids[2], Waker::noop()), Poll::Ready(Some(Ok(20))));
        assert_eq!(queue.poll(ids[3], Waker::noop()), Poll::Pending);
    }

    #[test]
    fn waiters_who_come_and_go_behind_a_stuck_one_leave_nothing_behind() {
        let mut queue = Queue::<u32, ()>::new();
        let stuck = queue.join();
        for _ in 0..10_000 {
            let id = queue.join();
            queue.leave(id);
        }
        assert!(queue.order.len() <= 64, "{}", queue.order.len());
        assert_eq!(queue.len(), 1);
        queue.serve(1);
        assert_eq!(queue.leave(stuck), Some(Ok(1)));
        assert_eq!(queue.population(), 0);
    }
}
