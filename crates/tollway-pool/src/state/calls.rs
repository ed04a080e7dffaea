//! Calls come and go.

use std::task::{Poll, Waker};

use tokio::time::Instant;

use super::{CLOSING, CheckOut, Conn, Grant, Kind, Stage, State};
use crate::arena::Id;
use crate::stats::CloseReason;

impl<K: Kind> State<K> {
    /// A call wants a connection.
    ///
    /// There is never a free connection while somebody waits, so whoever finds
    /// one overtakes nobody.
    pub(crate) fn check_out(&mut self, now: Instant) -> CheckOut<K> {
        if self.draining {
            return CheckOut::Draining;
        }
        if let Some(grant) = self.take(now) {
            return CheckOut::Ready(grant);
        }
        // Whoever is the reason for a new connection doesn't wait for another
        // call's.
        let coming = self.opening + self.room();
        if self.queue.len() >= self.limits.waiting.saturating_add(coming) {
            return CheckOut::Full(self.queue.len());
        }
        let id = self.queue.join();
        self.counters.waited += 1;
        self.dial_for_waiters();
        CheckOut::Waiting(id)
    }

    /// A connection for a call that would rather not wait.
    pub(crate) fn take_free(&mut self, now: Instant) -> Option<Grant<K>> {
        if self.draining {
            return None;
        }
        self.take(now)
    }

    /// A free connection, counted as used once more.
    pub(super) fn take(&mut self, now: Instant) -> Option<Grant<K>> {
        if !self.shared.is_empty()
            && let Some(grant) = self.take_shared(now)
        {
            return Some(grant);
        }
        self.take_idle(now)
    }

    pub(super) fn take_shared(&mut self, now: Instant) -> Option<Grant<K>> {
        let mut at = 0;
        // The first with room, so that the later ones run empty and age out.
        while let Some(&id) = self.shared.get(at) {
            let Some(entry) = self.table.get_mut(id) else {
                self.shared.remove(at);
                continue;
            };
            if let Some(reason) = entry.is_stale(&self.limits, now) {
                self.close(id, reason, now);
                continue;
            }
            if let Stage::Shared {
                conn,
                streams,
                limit,
                ..
            } = &mut entry.stage
                && *streams < *limit
            {
                *streams += 1;
                let conn = Conn::Shared(conn.clone());
                return Some(self.grant(id, conn));
            }
            at += 1;
        }
        None
    }

    pub(super) fn take_idle(&mut self, now: Instant) -> Option<Grant<K>> {
        while let Some(id) = self.idle.pop_back() {
            let Some(entry) = self.table.get_mut(id) else {
                continue;
            };
            let Stage::Idle { .. } = &entry.stage else {
                continue;
            };
            if let Some(reason) = entry.is_stale(&self.limits, now) {
                self.close(id, reason, now);
                continue;
            }
            if let Stage::Idle { conn, until } = std::mem::replace(&mut entry.stage, Stage::InUse) {
                let mut grant = self.grant(id, Conn::Exclusive(conn));
                grant.rested = Some(until);
                return Some(grant);
            }
        }
        None
    }

    pub(super) fn grant(&mut self, id: Id, conn: Conn<K>) -> Grant<K> {
        let uses = self.table.get_mut(id).map_or(0, |entry| {
            entry.uses += 1;
            entry.uses
        });
        self.counters.requests += 1;
        self.counters.reused += u64::from(uses > 1);
        Grant {
            id,
            conn,
            nth: uses,
            rested: None,
        }
    }

    /// What has become of a waiter. `None` where it is not known (any more).
    pub(crate) fn poll_waiter(
        &mut self,
        id: Id,
        waker: &Waker,
    ) -> Poll<Option<Result<Grant<K>, K::Failure>>> {
        self.queue.poll(id, waker)
    }

    /// A waiter leaves. What it had been given goes to the next.
    pub(crate) fn cancel(&mut self, waiter: Id, now: Instant) {
        if let Some(Ok(grant)) = self.queue.leave(waiter) {
            self.give_back(grant, now);
        }
    }

    /// A connection comes back without having carried its call.
    pub(crate) fn give_back(&mut self, grant: Grant<K>, now: Instant) {
        self.counters.requests -= 1;
        self.counters.reused -= u64::from(grant.nth > 1);
        if let Some(entry) = self.table.get_mut(grant.id) {
            entry.uses -= 1;
        }
        match grant.conn {
            Conn::Exclusive(conn) => self.put_back(grant.id, conn, true, now),
            Conn::Shared(_) => self.release(grant.id, now),
        }
    }

    /// A call is over, and has left its connection clean.
    pub(crate) fn put_back(&mut self, id: Id, conn: K::Exclusive, ready: bool, now: Instant) {
        let Some(entry) = self.table.get_mut(id) else {
            // The socket closed meanwhile.
            self.effects.dropped.push(Conn::Exclusive(conn));
            return self.call_ended(id, None);
        };
        match entry.stage {
            Stage::InUse if ready => {
                let until = now + self.limits.idle_timeout;
                entry.stage = Stage::Idle { conn, until };
                if let Some(reason) = entry.is_spent(&self.limits, now) {
                    self.close(id, reason, now);
                    return;
                }
                self.idle.push_back(id);
                self.serve(now);
                self.trim(now);
            }
            Stage::InUse => {
                let overdue = now + CLOSING;
                entry.stage = Stage::Settling { conn, overdue };
                self.due(overdue);
            }
            // It was told to close while the call had it.
            _ => self.effects.dropped.push(Conn::Exclusive(conn)),
        }
    }

    /// A connection may have become ready after its call. True once there is
    /// nothing left to wait for.
    pub(crate) fn settle(
        &mut self,
        id: Id,
        is_ready: impl FnOnce(&K::Exclusive) -> bool,
        now: Instant,
    ) -> bool {
        let Some(entry) = self.table.get_mut(id) else {
            return true;
        };
        match std::mem::replace(&mut entry.stage, Stage::InUse) {
            Stage::Settling { conn, .. } if is_ready(&conn) => {
                self.put_back(id, conn, true, now);
                true
            }
            stage @ Stage::Settling { .. } => {
                entry.stage = stage;
                false
            }
            stage => {
                entry.stage = stage;
                true
            }
        }
    }

    /// A call on a shared connection is over.
    pub(crate) fn release(&mut self, id: Id, now: Instant) {
        let Some(entry) = self.table.get_mut(id) else {
            return self.call_ended(id, None);
        };
        match &mut entry.stage {
            Stage::Shared { streams, until, .. } => {
                *streams = streams.saturating_sub(1);
                *until = now + self.limits.idle_timeout;
                self.serve(now);
                self.trim(now);
            }
            Stage::Closing { streams, overdue } => {
                *streams = streams.saturating_sub(1);
                if *streams == 0 {
                    let due = now + CLOSING;
                    *overdue = Some(due);
                    self.due(due);
                }
            }
            _ => {}
        }
    }

    /// A call on a shared connection is over, but its request is still being
    /// sent, as where the peer answers before it has read it. So the stream isn't
    /// over, unless that takes too long. Returns when that is.
    pub(crate) fn lags(&mut self, id: Id, now: Instant) -> Instant {
        let overdue = now + CLOSING;
        match self.table.get_mut(id) {
            Some(entry) => {
                entry.lagging.push(overdue);
                self.due(overdue);
            }
            None => self.call_ended(id, None),
        }
        overdue
    }

    /// The request of a stream that was to be over by `overdue` has been sent.
    pub(crate) fn caught_up(&mut self, id: Id, overdue: Instant, now: Instant) {
        if let Some(entry) = self.table.get_mut(id)
            && let Some(at) = entry.lagging.iter().position(|at| *at == overdue)
        {
            entry.lagging.swap_remove(at);
            self.release(id, now);
        }
    }

    /// Streams that lag for too long cost their connection: the peer may have
    /// forgotten them. They aren't waited for.
    pub(super) fn give_up_lagging(&mut self, id: Id, now: Instant) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        let before = entry.lagging.len();
        entry.lagging.retain(|overdue| now < *overdue);
        let given_up = before - entry.lagging.len();
        if let Some(next) = entry.lagging.iter().min().copied() {
            self.due(next);
        }
        self.close(id, CloseReason::Unread, now);
        for _ in 0..given_up {
            self.release(id, now);
        }
    }

    /// A connection that would have been idle for too long at `rested` turned
    /// out to be dead when a call took it. Those that have been idle for as long
    /// are likely to be, too: a call that is repeated, perhaps at once, must not
    /// meet one of them after the other.
    pub(crate) fn distrust(&mut self, rested: Instant, now: Instant) {
        while let Some(&id) = self.idle.front() {
            match self.table.get_mut(id).map(|entry| &entry.stage) {
                Some(Stage::Idle { until, .. }) if *until > rested => return,
                Some(Stage::Idle { .. }) => self.close(id, CloseReason::Idle, now),
                _ => _ = self.idle.pop_front(),
            }
        }
    }

    /// A connection is not to be used again, as a call has found. Its streams, if it
    /// has any, finish.
    pub(crate) fn retire(&mut self, id: Id, reason: CloseReason, now: Instant) {
        if self.table.get(id).is_none() {
            return self.call_ended(id, Some(reason));
        }
        self.close(id, reason, now);
        self.serve(now);
    }
}
