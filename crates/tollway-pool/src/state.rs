//! What is known about one host's connections, and what is decided from it.
//!
//! A plain state machine: no I/O, no clock, no lock. Events come in with `now`,
//! decisions go out as return values and as [`Effects`], which the caller
//! carries out once it has let go of its lock.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use crate::arena::{Arena, Id};
use crate::queue::Queue;
use crate::stats::{CloseReason, Counters};

/// How long a connection that was told to close may take to do so. A peer that
/// reads nothing could hold its place under the cap for ever otherwise.
const CLOSING: Duration = Duration::from_secs(5);

/// What the machine moves around without looking inside.
pub(crate) trait Kind {
    /// A connection that carries one call at a time.
    type Exclusive: Debug;
    /// A connection that carries many.
    type Shared: Clone + Debug;
    /// Ends a connection by force.
    type Abort: Clone + Debug;
    /// Why a connection could not be opened.
    type Failure: Clone + Debug;
}

/// A connection, of either kind.
#[derive(Debug)]
pub(crate) enum Conn<K: Kind> {
    Exclusive(K::Exclusive),
    Shared(K::Shared),
}

/// What the peer has been seen to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    /// One call at a time: as many connections as calls, within the cap.
    Http1,
    /// Many calls at a time: one connection, until it is full.
    Http2,
}

/// The bounds, the same for every host of a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connections: usize,
    pub(crate) idle: usize,
    pub(crate) waiting: usize,
    pub(crate) idle_timeout: Duration,
    pub(crate) requests: u64,
}

/// A connection to use, for one call.
#[derive(Debug)]
pub(crate) struct Grant<K: Kind> {
    pub(crate) id: Id,
    pub(crate) conn: Conn<K>,
    /// Whether a call used it before.
    pub(crate) reused: bool,
}

/// The answer to a call that asks for a connection.
#[derive(Debug)]
pub(crate) enum CheckOut<K: Kind> {
    Ready(Grant<K>),
    Waiting(Id),
    /// As many wait already.
    Full(usize),
    /// The pool is being drained.
    Draining,
}

/// What is to be done outside of the lock.
#[derive(Debug)]
pub(crate) struct Effects<K: Kind> {
    pub(crate) wake: Option<Waker>,
    pub(crate) wake_more: Vec<Waker>,
    /// Connections to let go of.
    pub(crate) dropped: Vec<Conn<K>>,
    pub(crate) abort: Vec<K::Abort>,
    /// Connections to open, already counted.
    pub(crate) dial: Vec<Id>,
}

impl<K: Kind> Default for Effects<K> {
    fn default() -> Self {
        Self {
            wake: None,
            wake_more: Vec::new(),
            dropped: Vec::new(),
            abort: Vec::new(),
            dial: Vec::new(),
        }
    }
}

impl<K: Kind> Effects<K> {
    pub(crate) fn is_empty(&self) -> bool {
        self.wake.is_none()
            && self.wake_more.is_empty()
            && self.dropped.is_empty()
            && self.abort.is_empty()
            && self.dial.is_empty()
    }

    fn wake(&mut self, waker: Option<Waker>) {
        match (&self.wake, waker) {
            (None, waker) => self.wake = waker,
            (Some(_), Some(waker)) => self.wake_more.push(waker),
            (Some(_), None) => {}
        }
    }
}

/// Whether the socket of a connection that is being opened exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    None,
    Open,
    Gone,
}

#[derive(Debug)]
enum Stage<K: Kind> {
    Opening(Socket),
    /// Nobody uses it.
    Idle {
        conn: K::Exclusive,
        /// When it will have been idle for too long.
        until: Instant,
    },
    /// A call has it.
    InUse,
    /// Its call has the head of the response, and reads the body.
    Reading(K::Exclusive),
    /// Its call is over, but the connection is not ready for another: most
    /// often for a moment, but a request's body may still be on its way.
    Settling {
        conn: K::Exclusive,
        overdue: Instant,
    },
    Shared {
        conn: K::Shared,
        streams: usize,
        limit: usize,
        /// When it will have been without a stream for too long.
        until: Instant,
    },
    /// It takes no new call, and the socket is still to close: at the latest
    /// when it is overdue, unless streams are still on it.
    Closing {
        streams: usize,
        overdue: Option<Instant>,
    },
}

#[derive(Debug)]
struct Entry<K: Kind> {
    stage: Stage<K>,
    uses: u64,
    /// When it is too old for another call.
    expires: Option<Instant>,
    abort: Option<K::Abort>,
    reason: Option<CloseReason>,
}

impl<K: Kind> Entry<K> {
    fn is_spent(&self, limits: &Limits, now: Instant) -> Option<CloseReason> {
        if self.expires.is_some_and(|at| now >= at) {
            Some(CloseReason::Age)
        } else if self.uses >= limits.requests {
            Some(CloseReason::Requests)
        } else {
            None
        }
    }
}

/// A connection that is no more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) reason: CloseReason,
    pub(crate) uses: u64,
}

/// The numbers of one host at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gauges {
    pub(crate) opening: usize,
    pub(crate) idle: usize,
    pub(crate) in_use: usize,
    pub(crate) closing: usize,
    pub(crate) waiting: usize,
    pub(crate) calls: usize,
}

/// One host. Every socket that exists or is about to has an entry in `table`,
/// from the decision to open it until it is really closed: the size of the
/// table is what the cap bounds, and there is no second count to go astray.
#[derive(Debug)]
pub(crate) struct State<K: Kind> {
    limits: Limits,
    spoken: Option<Spoken>,
    table: Arena<Entry<K>>,
    opening: usize,
    /// Oldest at the front. Taken from the back, so that surplus ages out.
    idle: VecDeque<Id>,
    /// Those that may take a further stream, now or once one ends.
    shared: Vec<Id>,
    queue: Queue<Grant<K>, K::Failure>,
    draining: bool,
    /// When something is next due, as far as the reaper has been told.
    alarm: Option<Instant>,
    pub(crate) counters: Counters,
    pub(crate) effects: Effects<K>,
}

impl<K: Kind> State<K> {
    pub(crate) fn new(limits: Limits, spoken: Option<Spoken>) -> Self {
        Self {
            limits,
            spoken,
            table: Arena::new(),
            opening: 0,
            idle: VecDeque::new(),
            shared: Vec::new(),
            queue: Queue::new(),
            draining: false,
            alarm: None,
            counters: Counters::default(),
            effects: Effects::default(),
        }
    }

    // ===== Calls come and go =====

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
        if self.queue.len() >= self.limits.waiting {
            return CheckOut::Full(self.queue.len());
        }
        let id = self.queue.join();
        self.counters.waited += 1;
        self.dial_for_waiters();
        CheckOut::Waiting(id)
    }

    /// A free connection, counted as used once more.
    fn take(&mut self, now: Instant) -> Option<Grant<K>> {
        if !self.shared.is_empty()
            && let Some(grant) = self.take_shared(now)
        {
            return Some(grant);
        }
        self.take_idle(now)
    }

    fn take_shared(&mut self, now: Instant) -> Option<Grant<K>> {
        let mut at = 0;
        // The first with room, so that the later ones run empty and age out.
        while let Some(&id) = self.shared.get(at) {
            let Some(entry) = self.table.get_mut(id) else {
                self.shared.remove(at);
                continue;
            };
            if let Some(reason) = entry.is_spent(&self.limits, now) {
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

    fn take_idle(&mut self, now: Instant) -> Option<Grant<K>> {
        while let Some(id) = self.idle.pop_back() {
            let Some(entry) = self.table.get_mut(id) else {
                continue;
            };
            let Stage::Idle { until, .. } = &entry.stage else {
                continue;
            };
            // The reaper is a timer tick late at the most; the peer's own
            // timer isn't.
            let reason = if now >= *until {
                Some(CloseReason::Idle)
            } else {
                entry.is_spent(&self.limits, now)
            };
            if let Some(reason) = reason {
                self.close(id, reason, now);
                continue;
            }
            if let Stage::Idle { conn, .. } = std::mem::replace(&mut entry.stage, Stage::InUse) {
                return Some(self.grant(id, Conn::Exclusive(conn)));
            }
        }
        None
    }

    fn grant(&mut self, id: Id, conn: Conn<K>) -> Grant<K> {
        let uses = self.table.get_mut(id).map_or(0, |entry| {
            entry.uses += 1;
            entry.uses
        });
        let reused = uses > 1;
        self.counters.requests += 1;
        self.counters.reused += u64::from(reused);
        Grant { id, conn, reused }
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
        self.counters.reused -= u64::from(grant.reused);
        if let Some(entry) = self.table.get_mut(grant.id) {
            entry.uses -= 1;
        }
        match grant.conn {
            Conn::Exclusive(conn) => self.put_back(grant.id, conn, true, now),
            Conn::Shared(_) => self.release(grant.id, now),
        }
    }

    /// The head of the response has come, and its body is being read. The
    /// connection is kept here meanwhile.
    pub(crate) fn reading(&mut self, id: Id, conn: K::Exclusive) {
        match self.table.get_mut(id) {
            Some(entry) if matches!(entry.stage, Stage::InUse) => {
                entry.stage = Stage::Reading(conn);
            }
            _ => self.effects.dropped.push(Conn::Exclusive(conn)),
        }
    }

    /// The body has been read to its end. True where the connection is still
    /// to [`settle`](Self::settle).
    pub(crate) fn read_out(
        &mut self,
        id: Id,
        is_ready: impl FnOnce(&K::Exclusive) -> bool,
        now: Instant,
    ) -> bool {
        let Some(entry) = self.table.get_mut(id) else {
            return false;
        };
        match std::mem::replace(&mut entry.stage, Stage::InUse) {
            Stage::Reading(conn) => {
                let ready = is_ready(&conn);
                self.put_back(id, conn, ready, now);
                !ready
            }
            stage => {
                entry.stage = stage;
                false
            }
        }
    }

    /// A call is over, and has left its connection clean.
    pub(crate) fn put_back(&mut self, id: Id, conn: K::Exclusive, ready: bool, now: Instant) {
        let Some(entry) = self.table.get_mut(id) else {
            // The socket closed meanwhile.
            self.effects.dropped.push(Conn::Exclusive(conn));
            return;
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
            return;
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

    /// A connection is not to be used again. Its streams, if it has any,
    /// finish.
    pub(crate) fn retire(&mut self, id: Id, reason: CloseReason, now: Instant) {
        self.close(id, reason, now);
        self.serve(now);
    }

    // ===== Connections come and go =====

    /// Opens further connections for those who wait, within the cap.
    fn dial_for_waiters(&mut self) {
        let wanted = match self.spoken {
            Some(Spoken::Http1) => self.queue.len().saturating_sub(self.opening),
            // One at a time. While the protocol is unknown, the first
            // handshake tells whether all of them need more than one; where it
            // is HTTP/2, the one will carry them all.
            Some(Spoken::Http2) | None => usize::from(self.opening == 0 && !self.queue.is_empty()),
        };
        self.dial(wanted);
    }

    fn dial(&mut self, wanted: usize) {
        let room = self.limits.connections.saturating_sub(self.table.len());
        for _ in 0..wanted.min(room) {
            let id = self.table.insert(Entry {
                stage: Stage::Opening(Socket::None),
                uses: 0,
                expires: None,
                abort: None,
                reason: None,
            });
            self.opening += 1;
            self.effects.dial.push(id);
        }
    }

    /// Connections to open so that `count` are there before a peak: those
    /// which are there already count. The caller carries them out.
    pub(crate) fn warm(&mut self, count: usize) -> Vec<Id> {
        if self.draining {
            return Vec::new();
        }
        let usable = self
            .table
            .iter()
            .filter(|(_, entry)| !matches!(entry.stage, Stage::Closing { .. }))
            .count();
        let count = match self.spoken {
            // More than are kept idle would be closed at once.
            Some(Spoken::Http1) => count.min(self.limits.idle.max(1)),
            Some(Spoken::Http2) | None => count.min(1),
        };
        let before = self.effects.dial.len();
        self.dial(count.saturating_sub(usable));
        self.effects.dial.split_off(before)
    }

    /// What the peer speaks, once it is known.
    pub(crate) fn spoken(&self) -> Option<Spoken> {
        self.spoken
    }

    /// The socket of a connection that is being opened exists from now on, and
    /// [`closed`](Self::closed) will be told of its end.
    pub(crate) fn socket_opened(&mut self, id: Id) {
        if let Some(entry) = self.table.get_mut(id)
            && entry.stage_is_opening()
        {
            entry.stage = Stage::Opening(Socket::Open);
        }
    }

    /// A connection is open and ready. `limit` is how many calls it carries at
    /// once, if shared. False where its socket has closed already: then its
    /// failure is still to be told with [`failed`](Self::failed).
    pub(crate) fn opened(
        &mut self,
        id: Id,
        conn: Conn<K>,
        limit: usize,
        expires: Option<Instant>,
        abort: K::Abort,
        now: Instant,
    ) -> bool {
        let Some(entry) = self.table.get_mut(id) else {
            self.effects.dropped.push(conn);
            return false;
        };
        if !matches!(entry.stage, Stage::Opening(Socket::Open)) {
            self.effects.dropped.push(conn);
            return false;
        }
        self.opening -= 1;
        self.counters.opened += 1;
        entry.expires = expires;
        entry.abort = Some(abort);
        let until = now + self.limits.idle_timeout;
        match conn {
            Conn::Exclusive(conn) => {
                self.spoken = Some(Spoken::Http1);
                entry.stage = Stage::Idle { conn, until };
                self.idle.push_back(id);
            }
            Conn::Shared(conn) => {
                self.spoken = Some(Spoken::Http2);
                entry.stage = Stage::Shared {
                    conn,
                    streams: 0,
                    limit: limit.max(1),
                    until,
                };
                self.shared.push(id);
            }
        }
        self.serve(now);
        self.trim(now);
        self.dial_for_waiters();
        true
    }

    /// A connection could not be opened.
    ///
    /// Those who relied on it share the failure. On HTTP/1.1 that is the first
    /// in the queue, unless the other attempts suffice for all; else it is
    /// everybody, unless a connection lives that will come round to them. So
    /// nobody waits for an attempt that nobody makes.
    pub(crate) fn failed(&mut self, id: Id, failure: &K::Failure, now: Instant) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        let Stage::Opening(socket) = entry.stage else {
            return;
        };
        self.opening -= 1;
        self.counters.failed += 1;
        if socket == Socket::Open {
            entry.reason = Some(CloseReason::Failed);
            self.closing(id, 0, now);
        } else {
            self.table.remove(id);
        }
        let victims = match self.spoken {
            Some(Spoken::Http1) => usize::from(self.queue.len() > self.opening),
            _ if self.opening > 0 || !self.shared.is_empty() => 0,
            _ => self.queue.len(),
        };
        for _ in 0..victims {
            let waker = self.queue.fail(failure.clone());
            self.effects.wake(waker);
        }
        if self.spoken == Some(Spoken::Http1) {
            self.dial_for_waiters();
        }
    }

    /// The peer allows another number of streams than it did.
    pub(crate) fn limit_changed(&mut self, id: Id, to: usize, now: Instant) {
        if let Some(Entry {
            stage: Stage::Shared { limit, .. },
            ..
        }) = self.table.get_mut(id)
        {
            *limit = to.max(1);
            self.serve(now);
        }
    }

    /// A socket is closed.
    pub(crate) fn closed(&mut self, id: Id, now: Instant) -> Option<Closed> {
        let entry = self.table.get_mut(id)?;
        if entry.stage_is_opening() {
            // The attempt is still to report.
            entry.stage = Stage::Opening(Socket::Gone);
            return None;
        }
        let entry = self.table.remove(id)?;
        let reason = match (entry.reason, &entry.stage) {
            (Some(reason), _) => reason,
            (
                None,
                Stage::Idle { .. } | Stage::Settling { .. } | Stage::Shared { streams: 0, .. },
            ) => CloseReason::Peer,
            (None, _) => CloseReason::Error,
        };
        self.counters.closed(reason);
        match entry.stage {
            Stage::Idle { conn, .. } => {
                self.idle.retain(|other| *other != id);
                self.effects.dropped.push(Conn::Exclusive(conn));
            }
            Stage::Reading(conn) | Stage::Settling { conn, .. } => {
                self.effects.dropped.push(Conn::Exclusive(conn));
            }
            Stage::Shared { conn, .. } => {
                self.shared.retain(|other| *other != id);
                self.effects.dropped.push(Conn::Shared(conn));
            }
            Stage::Opening(_) | Stage::InUse | Stage::Closing { .. } => {}
        }
        self.serve(now);
        self.dial_for_waiters();
        Some(Closed {
            reason,
            uses: entry.uses,
        })
    }

    /// Lets go of a connection. It keeps its place in the table until its
    /// socket is closed.
    fn close(&mut self, id: Id, reason: CloseReason, now: Instant) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        if matches!(entry.stage, Stage::Opening(_) | Stage::Closing { .. }) {
            return;
        }
        entry.reason.get_or_insert(reason);
        match std::mem::replace(&mut entry.stage, Stage::InUse) {
            Stage::Idle { conn, .. } => {
                self.idle.retain(|other| *other != id);
                self.effects.dropped.push(Conn::Exclusive(conn));
                self.closing(id, 0, now);
            }
            Stage::Reading(conn) | Stage::Settling { conn, .. } => {
                self.effects.dropped.push(Conn::Exclusive(conn));
                self.closing(id, 0, now);
            }
            Stage::Shared { conn, streams, .. } => {
                self.shared.retain(|other| *other != id);
                self.effects.dropped.push(Conn::Shared(conn));
                self.closing(id, streams, now);
            }
            Stage::Opening(_) | Stage::InUse | Stage::Closing { .. } => self.closing(id, 0, now),
        }
    }

    fn closing(&mut self, id: Id, streams: usize, now: Instant) {
        let overdue = (streams == 0).then(|| now + CLOSING);
        if let Some(entry) = self.table.get_mut(id) {
            entry.stage = Stage::Closing { streams, overdue };
        }
        if let Some(overdue) = overdue {
            self.due(overdue);
        }
    }

    // ===== What follows from every event =====

    /// Free connections go to those who wait, first come, first served.
    fn serve(&mut self, now: Instant) {
        while !self.queue.is_empty() {
            let Some(grant) = self.take(now) else {
                return;
            };
            let waker = self.queue.serve(grant);
            self.effects.wake(waker);
        }
    }

    /// What nobody waits for is kept for a while, but not too many, and not
    /// while draining. The oldest go first.
    fn trim(&mut self, now: Instant) {
        if self.draining {
            self.close_free(CloseReason::Drained, now);
        }
        while self.idle.len() > self.limits.idle
            && let Some(&oldest) = self.idle.front()
        {
            self.close(oldest, CloseReason::Surplus, now);
        }
        let idle_until = now + self.limits.idle_timeout;
        if !self.idle.is_empty() || !self.shared.is_empty() {
            self.due(idle_until);
            let expires = [self.idle.back(), self.shared.last()]
                .into_iter()
                .flatten()
                .filter_map(|id| self.table.get(*id)?.expires)
                .min();
            if let Some(expires) = expires {
                self.due(expires);
            }
        }
    }

    fn close_free(&mut self, reason: CloseReason, now: Instant) {
        while let Some(&id) = self.idle.front() {
            self.close(id, reason, now);
        }
        if self.queue.is_empty() {
            while let Some(&id) = self.shared.first() {
                self.close(id, reason, now);
            }
        }
    }

    // ===== Time =====

    /// Something is due then.
    fn due(&mut self, at: Instant) {
        if self.alarm.is_none_or(|alarm| at < alarm) {
            self.alarm = Some(at);
        }
    }

    /// When the reaper is to come, as far as is known.
    pub(crate) fn alarm(&self) -> Option<Instant> {
        self.alarm
    }

    /// Closes what has been idle for too long or is too old, and by force what
    /// should have closed long ago. Returns when to come again.
    pub(crate) fn reap(&mut self, now: Instant) -> Option<Instant> {
        let idle_timeout = self.limits.idle_timeout;
        // Whatever is in use now can't have been idle for too long before
        // then. So a busy connection that comes back never has to ring the
        // bell: the reaper is about already.
        let mut next = (!self.table.is_empty()).then(|| now + idle_timeout);
        let mut at_last = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        let mut done = Vec::new();
        for (id, entry) in self.table.iter() {
            let idle_until = match &entry.stage {
                Stage::Idle { until, .. }
                | Stage::Shared {
                    streams: 0, until, ..
                } => *until,
                // Its streams go on, but it takes no new ones once too old.
                Stage::Shared { .. } => match entry.expires {
                    Some(expires) => expires,
                    None => continue,
                },
                Stage::Closing {
                    overdue: Some(overdue),
                    ..
                } => {
                    if now < *overdue {
                        at_last(*overdue);
                    } else if let Some(abort) = &entry.abort {
                        self.effects.abort.push(abort.clone());
                    }
                    continue;
                }
                Stage::Settling { overdue, .. } => {
                    if now < *overdue {
                        at_last(*overdue);
                    } else {
                        done.push((id, CloseReason::Unread));
                    }
                    continue;
                }
                Stage::InUse | Stage::Reading(_) => {
                    if let Some(expires) = entry.expires.filter(|at| now < *at) {
                        at_last(expires);
                    }
                    continue;
                }
                Stage::Opening(_) | Stage::Closing { .. } => continue,
            };
            let until = entry.expires.map_or(idle_until, |at| at.min(idle_until));
            if now < until {
                at_last(until);
            } else if now < idle_until || matches!(entry.stage, Stage::Shared { streams: 1.., .. })
            {
                done.push((id, CloseReason::Age));
            } else {
                done.push((id, CloseReason::Idle));
            }
        }
        self.alarm = next;
        for (id, reason) in done {
            self.close(id, reason, now);
        }
        self.alarm
    }

    /// No further call gets in. Those that wait are still served, and what is
    /// free closes.
    pub(crate) fn drain(&mut self, now: Instant) {
        self.draining = true;
        self.trim(now);
    }

    /// Everything ends now, by force. Those who wait are told `failure`.
    pub(crate) fn abort(&mut self, failure: &K::Failure, now: Instant) {
        self.draining = true;
        while !self.queue.is_empty() {
            let waker = self.queue.fail(failure.clone());
            self.effects.wake(waker);
        }
        let ids: Vec<_> = self.table.iter().map(|(id, _)| id).collect();
        for id in ids {
            self.close(id, CloseReason::Drained, now);
            if let Some(abort) = self.table.get(id).and_then(|entry| entry.abort.clone()) {
                self.effects.abort.push(abort);
            }
        }
    }

    /// Whether nothing is left: no socket, none to come, nobody waiting.
    pub(crate) fn is_vacant(&self) -> bool {
        self.table.is_empty() && self.queue.population() == 0
    }

    pub(crate) fn gauges(&self) -> Gauges {
        let mut gauges = Gauges {
            waiting: self.queue.len(),
            ..Gauges::default()
        };
        for (_, entry) in self.table.iter() {
            match &entry.stage {
                Stage::Opening(_) => gauges.opening += 1,
                Stage::Idle { .. } | Stage::Shared { streams: 0, .. } => gauges.idle += 1,
                Stage::InUse | Stage::Reading(_) | Stage::Settling { .. } => {
                    gauges.in_use += 1;
                    gauges.calls += 1;
                }
                Stage::Shared { streams, .. } => {
                    gauges.in_use += 1;
                    gauges.calls += streams;
                }
                Stage::Closing { streams, .. } => {
                    gauges.closing += 1;
                    gauges.calls += streams;
                }
            }
        }
        gauges
    }
}

impl<K: Kind> Entry<K> {
    fn stage_is_opening(&self) -> bool {
        matches!(self.stage, Stage::Opening(_))
    }
}

#[cfg(test)]
mod tests;
