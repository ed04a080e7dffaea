//! What is known about one host's connections, and what is decided from it.
//!
//! A plain state machine: no I/O, no clock, no lock. Events come in with `now`,
//! decisions go out as return values and as [`Effects`], which the caller
//! carries out once it has let go of its lock.

mod calls;
mod refusals;
mod sockets;
mod time;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

use crate::arena::{Arena, Id};
use crate::queue::Queue;
use crate::stats::{CloseReason, Counters};
use refusals::Refusals;

/// How long a connection that was told to close may take to do so. A peer that
/// reads nothing could hold its place under the cap for ever otherwise.
pub(crate) const CLOSING: Duration = Duration::from_secs(5);

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
    /// Which of the connection's calls this one is, from 1.
    pub(crate) nth: u64,
    /// When it would have been idle for too long, if it was idle.
    pub(crate) rested: Option<Instant>,
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
    /// To be told of.
    pub(crate) closed: Vec<Closed>,
}

impl<K: Kind> Default for Effects<K> {
    fn default() -> Self {
        Self {
            wake: None,
            wake_more: Vec::new(),
            dropped: Vec::new(),
            abort: Vec::new(),
            dial: Vec::new(),
            closed: Vec::new(),
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
            && self.closed.is_empty()
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
    /// A call has it, until the response's body has been read.
    InUse,
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
    /// How many calls had ever waited when the attempt to open it began: those
    /// that came later didn't rely on it.
    relied: u64,
    uses: u64,
    /// When it is too old for another call.
    expires: Option<Instant>,
    /// Its streams whose call is over, and that go on because the request is still
    /// being sent: when that takes too long.
    lagging: Vec<Instant>,
    abort: Option<K::Abort>,
    reason: Option<CloseReason>,
}

impl<K: Kind> Entry<K> {
    /// Why it takes no further call, whether the reaper has been here or not: that
    /// may be late, and the peer's own timer isn't.
    fn is_stale(&self, limits: &Limits, now: Instant) -> Option<CloseReason> {
        match &self.stage {
            Stage::Idle { until, .. }
            | Stage::Shared {
                streams: 0, until, ..
            } if now >= *until => Some(CloseReason::Idle),
            _ => self.is_spent(limits, now),
        }
    }

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
#[derive(Debug)]
pub(crate) struct Closed {
    pub(crate) reason: CloseReason,
    pub(crate) uses: u64,
}

/// A connection that closed under calls, of which so many have yet to say how that
/// was for them. A peer that closes behind its last answer is often quicker than
/// whoever reads it.
#[derive(Debug)]
struct Parted {
    id: Id,
    uses: u64,
    calls: usize,
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
    parted: Vec<Parted>,
    refusals: Refusals,
    draining: bool,
    /// When something is next due.
    alarm: Option<Instant>,
    /// Whether the reaper has yet to hear of the alarm.
    news: bool,
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
            parted: Vec::new(),
            refusals: Refusals::default(),
            draining: false,
            alarm: None,
            news: false,
            counters: Counters::default(),
            effects: Effects::default(),
        }
    }

    // ===== What follows from every event =====

    /// Free connections go to those who wait, first come, first served. Those
    /// who are left have one to wait for: where the last HTTP/2 connection takes
    /// no further stream, that one may not close for as long as its streams run.
    pub(super) fn serve(&mut self, now: Instant) {
        while !self.queue.is_empty() {
            let Some(grant) = self.take(now) else {
                if self.shared.is_empty() {
                    self.dial_for_waiters();
                }
                return;
            };
            let waker = self.queue.serve(grant);
            self.effects.wake(waker);
        }
    }

    /// What nobody waits for is kept for a while, but not too many, and not
    /// while draining. The oldest go first.
    pub(super) fn trim(&mut self, now: Instant) {
        if self.draining {
            self.close_free(CloseReason::Drained, now);
        }
        if self.idle.len() + self.shared.len() > self.limits.idle {
            self.close_surplus(now);
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

    fn close_surplus(&mut self, now: Instant) {
        while self.idle.len() > self.limits.idle
            && let Some(&oldest) = self.idle.front()
        {
            self.close(oldest, CloseReason::Surplus, now);
        }
        // Whoever waits beside a free one waits for the peer to allow it calls.
        if !self.queue.is_empty() {
            return;
        }
        let mut kept = self.idle.len();
        let mut at = 0;
        // The first are filled first.
        while let Some(&id) = self.shared.get(at) {
            let stage = self.table.get(id).map(|entry| &entry.stage);
            let is_idle = matches!(stage, Some(Stage::Shared { streams: 0, .. }));
            if is_idle && kept >= self.limits.idle {
                self.close(id, CloseReason::Surplus, now);
            } else {
                kept += usize::from(is_idle);
                at += 1;
            }
        }
    }

    pub(super) fn close_free(&mut self, reason: CloseReason, now: Instant) {
        while let Some(&id) = self.idle.front() {
            self.close(id, reason, now);
        }
        if self.queue.is_empty() {
            while let Some(&id) = self.shared.first() {
                self.close(id, reason, now);
            }
        }
    }

    // ===== To look at =====

    /// Whether nothing is left: no socket, none to come, nobody waiting.
    pub(crate) fn is_vacant(&self) -> bool {
        self.table.is_empty() && self.queue.population() == 0
    }

    /// The same, once no further call gets in.
    pub(crate) fn is_drained(&self) -> bool {
        self.draining && self.is_vacant()
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
                Stage::InUse | Stage::Settling { .. } => {
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
