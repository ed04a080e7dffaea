//! The bookkeeping in a naive model of the world around it, with what must hold
//! after every event.

use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::super::{CLOSING, CheckOut, Conn, Grant, Kind, Limits, Spoken, Stage, State};
use crate::arena::Id;
use crate::stats::CloseReason;

#[derive(Debug)]
pub(super) struct Model;

impl Kind for Model {
    type Exclusive = u32;
    type Shared = u32;
    type Abort = ();
    type Failure = &'static str;
}

const IDLE: Duration = Duration::from_secs(15);

pub(super) fn limits(connections: usize) -> Limits {
    Limits {
        connections,
        idle: usize::MAX,
        waiting: usize::MAX,
        idle_timeout: IDLE,
        requests: u64::MAX,
    }
}

/// Everything that happens outside: attempts, sockets, calls.
pub(super) struct World {
    pub(super) state: State<Model>,
    pub(super) now: Instant,
    pub(super) cap: usize,
    pub(super) h2_limit: usize,
    pub(super) serial: u32,
    /// Attempts that have yet to report, and whether their socket exists.
    pub(super) attempts: Vec<(Id, bool)>,
    /// Sockets that exist, of reported connections.
    pub(super) sockets: Vec<Id>,
    pub(super) leases: Vec<Grant<Model>>,
    pub(super) reading: Vec<(Id, <Model as Kind>::Exclusive)>,
    pub(super) settling: Vec<Id>,
    /// Streams whose request is still being sent, though their call is over.
    pub(super) lagging: Vec<(Id, Instant)>,
    pub(super) waiters: Vec<Id>,
    /// Who waited when an attempt was begun.
    pub(super) relied: Vec<(Id, Vec<Id>)>,
}

impl World {
    pub(super) fn new(limits: Limits, spoken: Option<Spoken>, h2_limit: usize) -> Self {
        Self {
            cap: limits.connections,
            state: State::new(limits, spoken),
            now: Instant::now(),
            h2_limit,
            serial: 0,
            attempts: Vec::new(),
            sockets: Vec::new(),
            leases: Vec::new(),
            reading: Vec::new(),
            settling: Vec::new(),
            lagging: Vec::new(),
            waiters: Vec::new(),
            relied: Vec::new(),
        }
    }

    pub(super) fn carry_out(&mut self) {
        let effects = std::mem::take(&mut self.state.effects);
        for id in effects.dial {
            self.begin(id);
        }
        self.check();
    }

    fn begin(&mut self, attempt: Id) {
        self.attempts.push((attempt, false));
        self.relied.push((attempt, self.waiters.clone()));
    }

    pub(super) fn granted(&mut self, grant: Grant<Model>) {
        let on_it = self.leases.iter().filter(|other| other.id == grant.id);
        match &grant.conn {
            Conn::Exclusive(_) => {
                assert_eq!(on_it.count(), 0, "handed out twice");
                let mut read = self.reading.iter().map(|(id, _)| *id);
                assert!(!read.any(|id| id == grant.id), "handed out unread");
                assert!(!self.settling.contains(&grant.id), "handed out unready");
            }
            Conn::Shared(_) => {
                let lagging = self.lagging.iter().filter(|(id, _)| *id == grant.id);
                let streams = on_it.count() + lagging.count();
                assert!(streams < self.h2_limit, "one stream too many");
            }
        }
        self.leases.push(grant);
    }

    pub(super) fn check_out(&mut self) {
        match self.state.check_out(self.now) {
            CheckOut::Ready(grant) => {
                assert!(
                    !self.waiters.iter().any(|id| self.state.queue.waits(*id)),
                    "overtook a waiter"
                );
                self.granted(grant);
            }
            CheckOut::Waiting(id) => self.waiters.push(id),
            CheckOut::Full(_) | CheckOut::Draining => {}
        }
        self.carry_out();
    }

    pub(super) fn poll_waiter(&mut self, at: usize) {
        match self.state.poll_waiter(self.waiters[at], Waker::noop()) {
            Poll::Pending => {}
            Poll::Ready(outcome) => {
                self.waiters.remove(at);
                if let Ok(grant) = outcome.expect("a waiter was forgotten") {
                    self.granted(grant);
                }
            }
        }
        self.carry_out();
    }

    pub(super) fn attempt_succeeds(&mut self, at: usize, h2: bool) {
        let (id, _) = self.attempts.remove(at);
        self.state.socket_opened(id);
        self.serial += 1;
        let conn = if h2 {
            Conn::Shared(self.serial)
        } else {
            Conn::Exclusive(self.serial)
        };
        let expires = Some(self.now + 4 * IDLE);
        let (limit, now) = (self.h2_limit, self.now);
        assert!(self.state.opened(id, conn, limit, expires, (), now));
        self.sockets.push(id);
        self.carry_out();
    }

    pub(super) fn attempt_fails(&mut self, at: usize) {
        let (id, socket) = self.attempts.remove(at);
        let waited = self.waiting();
        self.state.failed(id, &"refused", self.now);
        if socket {
            self.sockets.push(id);
        }
        if self.state.spoken == Some(Spoken::Http1) {
            let relied = self.relied.iter().find(|(attempt, _)| *attempt == id);
            let (_, relied) = relied.unwrap();
            let waiting = self.waiting();
            let mut failed = waited.iter().filter(|id| !waiting.contains(id));
            assert!(failed.all(|id| relied.contains(id)), "it wasn't theirs");
        }
        self.carry_out();
    }

    fn waiting(&self) -> Vec<Id> {
        let waiters = self.waiters.iter().copied();
        waiters.filter(|id| self.state.queue.waits(*id)).collect()
    }

    pub(super) fn socket_closes(&mut self, at: usize) {
        let id = self.sockets.remove(at);
        self.state.closed(id, self.now);
        self.settling.retain(|other| *other != id);
        self.carry_out();
    }

    pub(super) fn lease_ends(&mut self, at: usize, how: u8) {
        let Grant {
            id,
            conn,
            nth,
            rested,
        } = self.leases.remove(at);
        let now = self.now;
        match (conn, how % 5) {
            (Conn::Exclusive(conn), 0) => self.state.put_back(id, conn, true, now),
            (Conn::Exclusive(conn), 1) => {
                if self.sockets.contains(&id) {
                    self.settling.push(id);
                }
                self.state.put_back(id, conn, false, now);
            }
            (Conn::Exclusive(conn), 2) => self.reading.push((id, conn)),
            (Conn::Shared(_), 0..=1) => self.state.release(id, now),
            (Conn::Shared(_), 2) => self.lagging.push((id, self.state.lags(id, now))),
            (Conn::Exclusive(_), 3) => {
                if let Some(rested) = rested {
                    self.state.distrust(rested, now);
                }
                self.state.retire(id, CloseReason::Error, now);
            }
            (Conn::Shared(_), 3) => {
                self.state.retire(id, CloseReason::Error, now);
                self.state.release(id, now);
            }
            (conn, _) => self.state.give_back(
                Grant {
                    id,
                    conn,
                    nth,
                    rested,
                },
                now,
            ),
        }
        self.carry_out();
    }

    pub(super) fn read_out(&mut self, at: usize, ready: bool) {
        let (id, conn) = self.reading.remove(at);
        if !ready && self.sockets.contains(&id) {
            self.settling.push(id);
        }
        self.state.put_back(id, conn, ready, self.now);
        self.carry_out();
    }

    fn catches_up(&mut self, at: usize) {
        let (id, overdue) = self.lagging.remove(at);
        self.state.caught_up(id, overdue, self.now);
        self.carry_out();
    }

    pub(super) fn settles(&mut self, at: usize) {
        let id = self.settling.remove(at);
        assert!(self.state.settle(id, |_| true, self.now));
        self.carry_out();
    }

    /// A shared connection takes so many calls from now on, and none for now
    /// where that is zero.
    pub(super) fn limit_changes(&mut self, at: usize, to: usize) {
        let (id, to) = (self.sockets[at], to.min(self.h2_limit));
        assert!(self.state.limit_changed(id, to, self.now));
        self.carry_out();
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        while let Some(at) = self.state.alarm().filter(|at| *at <= self.now) {
            let next = self.state.reap(self.now);
            assert!(next.is_none_or(|next| next > at), "the reaper would spin");
            // Those that are closed by force do close.
            let aborted = std::mem::take(&mut self.state.effects.abort);
            self.carry_out();
            if !aborted.is_empty() {
                self.close_the_closing();
            }
        }
    }

    /// The sockets of connections that were told to close do so.
    pub(super) fn close_the_closing(&mut self) {
        let closing = |id: &Id, state: &State<Model>| {
            let entry = state.table.get(*id).unwrap();
            matches!(entry.stage, Stage::Closing { streams: 0, .. })
        };
        while let Some(at) = self.sockets.iter().position(|id| closing(id, &self.state)) {
            self.socket_closes(at);
        }
    }

    pub(super) fn step(&mut self, step: &Step) {
        let pick = |at: &usize, len: usize| at.checked_rem(len);
        match step {
            Step::CheckOut => self.check_out(),
            Step::Poll(at) => {
                if let Some(at) = pick(at, self.waiters.len()) {
                    self.poll_waiter(at);
                }
            }
            Step::Cancel(at) => {
                if let Some(at) = pick(at, self.waiters.len()) {
                    let id = self.waiters.remove(at);
                    self.state.cancel(id, self.now);
                    self.carry_out();
                }
            }
            Step::Connected(at) => {
                if let Some(at) = pick(at, self.attempts.len()) {
                    self.attempts[at].1 = true;
                    self.state.socket_opened(self.attempts[at].0);
                    self.carry_out();
                }
            }
            Step::Opened(at, h2) => {
                if let Some(at) = pick(at, self.attempts.len()) {
                    self.attempt_succeeds(at, *h2);
                }
            }
            Step::ClosedWhileOpening(at) => {
                let with_socket = self.attempts.iter().filter(|(_, socket)| *socket).count();
                if let Some(at) = pick(at, with_socket) {
                    let mut with_socket =
                        (0..self.attempts.len()).filter(|at| self.attempts[*at].1);
                    let at = with_socket.nth(at).unwrap();
                    let (id, _) = self.attempts.remove(at);
                    self.state.closed(id, self.now);
                    let conn = Conn::Exclusive(0);
                    assert!(!self.state.opened(id, conn, 1, None, (), self.now));
                    self.state.failed(id, &"closed", self.now);
                    self.carry_out();
                }
            }
            Step::Failed(at) => {
                if let Some(at) = pick(at, self.attempts.len()) {
                    self.attempt_fails(at);
                }
            }
            Step::Orphaned(at) => {
                if let Some(at) = pick(at, self.attempts.len()) {
                    let (id, socket) = self.attempts.remove(at);
                    self.state.orphaned(id, &"no runtime", self.now);
                    if socket {
                        self.sockets.push(id);
                    }
                    assert!(self.state.queue.is_empty(), "waits for nobody");
                    assert!(self.state.effects.dial.is_empty(), "dials from nowhere");
                    self.carry_out();
                }
            }
            Step::SocketCloses(at) => {
                if let Some(at) = pick(at, self.sockets.len()) {
                    self.socket_closes(at);
                }
            }
            Step::LeaseEnds(at, how) => {
                if let Some(at) = pick(at, self.leases.len()) {
                    self.lease_ends(at, *how);
                }
            }
            Step::ReadOut(at, ready) => {
                if let Some(at) = pick(at, self.reading.len()) {
                    self.read_out(at, *ready);
                }
            }
            Step::Settles(at) => {
                if let Some(at) = pick(at, self.settling.len()) {
                    self.settles(at);
                }
            }
            Step::CatchesUp(at) => {
                if let Some(at) = pick(at, self.lagging.len()) {
                    self.catches_up(at);
                }
            }
            Step::Limit(at, to) => {
                if let Some(at) = pick(at, self.sockets.len()) {
                    self.limit_changes(at, *to);
                }
            }
            Step::Pass(millis) => self.pass(Duration::from_millis(*millis)),
            Step::Warm(count) => {
                for id in self.state.warm(*count) {
                    self.begin(id);
                }
                self.carry_out();
            }
            Step::Drain => {
                self.state.drain(self.now);
                self.carry_out();
            }
        }
    }

    /// What holds after every event.
    pub(super) fn check(&self) {
        let state = &self.state;
        let alive = self.attempts.len() + self.sockets.len();
        assert_eq!(state.table.len(), alive, "a socket is counted wrongly");
        assert!(alive <= self.cap, "above the cap");
        assert_eq!(state.opening, self.attempts.len());

        let gauges = state.gauges();
        let sum = gauges.opening + gauges.idle + gauges.in_use + gauges.closing;
        assert_eq!(sum, alive);
        let waiting: Vec<_> = self
            .waiters
            .iter()
            .map(|id| state.queue.waits(*id))
            .collect();
        assert_eq!(
            gauges.waiting,
            waiting.iter().filter(|waits| **waits).count()
        );
        assert!(waiting.is_sorted(), "somebody was overtaken: {waiting:?}");

        let held_off = |id: &Id| {
            let stage = &state.table.get(*id).unwrap().stage;
            matches!(stage, Stage::Shared { limit: 0, .. })
        };
        let held_off = state.shared.iter().filter(|id| held_off(id)).count();
        if !state.queue.is_empty() {
            assert!(state.idle.is_empty(), "waits beside an idle connection");
            let roomy = |id: &Id| {
                let stage = &state.table.get(*id).unwrap().stage;
                matches!(stage, Stage::Shared { streams, limit, .. } if streams < limit)
            };
            assert!(
                !state.shared.iter().any(roomy),
                "waits beside a free stream"
            );
            let coming = gauges.opening + gauges.in_use + gauges.closing;
            assert!(coming > 0 || held_off > 0, "waits for nothing");
            // What closes comes round once its last stream has ended, and that
            // may take for ever.
            let opens = gauges.opening > 0 || !state.shared.is_empty();
            assert!(opens || alive == self.cap, "waits though there is room");
        }
        // Somebody may have waited for those that take no calls for now.
        assert!(
            gauges.idle <= state.limits.idle.saturating_add(held_off),
            "more are kept than may be"
        );
        assert!(state.counters.reused <= state.counters.requests);
        let closed = |reason: &CloseReason| state.counters.closed.of(*reason);
        let ever_open = |reason: &&CloseReason| **reason != CloseReason::Failed;
        let closed: u64 = CloseReason::ALL.iter().filter(ever_open).map(closed).sum();
        let failing = state.table.iter();
        let failing = failing.filter(|(_, entry)| entry.reason == Some(CloseReason::Failed));
        let open = alive - self.attempts.len() - failing.count() + state.parted.len();
        assert_eq!(state.counters.opened, closed + open as u64);
        for parted in &state.parted {
            let leases = self.leases.iter().map(|lease| lease.id);
            let calls = leases.chain(self.reading.iter().map(|(id, _)| *id));
            // Those who wait may have been served, and have yet to see it.
            assert!(calls.filter(|id| *id == parted.id).count() <= parted.calls);
        }
    }

    /// Everything that is under way ends well. Then nobody waits, and once
    /// idle for long enough, nothing is left.
    pub(super) fn finish(mut self) {
        for at in 0..self.sockets.len() {
            self.limit_changes(at, self.h2_limit);
        }
        for _ in 0..10_000 {
            if let Some((_, _)) = self.attempts.first() {
                self.attempt_succeeds(0, self.state.spoken == Some(Spoken::Http2));
            } else if !self.leases.is_empty() {
                self.lease_ends(0, 0);
            } else if !self.reading.is_empty() {
                self.read_out(0, true);
            } else if !self.settling.is_empty() {
                self.settles(0);
            } else if let Some(at) =
                (0..self.waiters.len()).find(|at| !self.state.queue.waits(self.waiters[*at]))
            {
                self.poll_waiter(at);
            } else {
                let before = self.sockets.len();
                self.close_the_closing();
                if self.sockets.len() != before || !self.attempts.is_empty() {
                    continue;
                }
                if self.lagging.is_empty() {
                    break;
                }
                // Those never catch up.
                self.lagging.clear();
                self.pass(CLOSING);
            }
        }
        assert!(self.waiters.is_empty(), "a waiter was forgotten");
        self.pass(IDLE);
        self.close_the_closing();
        assert!(self.state.is_vacant(), "left over: {:?}", self.state.table);
        assert_eq!(self.state.parted.len(), 0);
    }
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    CheckOut,
    Poll(usize),
    Cancel(usize),
    Connected(usize),
    Opened(usize, bool),
    ClosedWhileOpening(usize),
    Failed(usize),
    Orphaned(usize),
    SocketCloses(usize),
    LeaseEnds(usize, u8),
    ReadOut(usize, bool),
    Settles(usize),
    CatchesUp(usize),
    Limit(usize, usize),
    Pass(u64),
    Warm(usize),
    Drain,
}
