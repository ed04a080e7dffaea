//! Connections come and go.

use tokio::time::Instant;

use super::{CLOSING, Closed, Conn, Entry, Kind, Parted, Socket, Spoken, Stage, State};
use crate::arena::Id;
use crate::stats::CloseReason;

impl<K: Kind> State<K> {
    /// Opens further connections for those who wait, within the cap.
    pub(super) fn dial_for_waiters(&mut self) {
        let wanted = match self.spoken {
            Some(Spoken::Http1) => self.queue.len().saturating_sub(self.opening),
            // One at a time. While the protocol is unknown, the first
            // handshake tells whether all of them need more than one; where it
            // is HTTP/2, the one will carry them all.
            Some(Spoken::Http2) | None => {
                usize::from(self.opening == 0 && !self.queue.is_empty() && !self.is_held_off())
            }
        };
        self.dial(wanted);
    }

    /// The peer takes no call on a connection that is new, so it would take none
    /// on a further one.
    fn is_held_off(&self) -> bool {
        self.shared.iter().any(|id| {
            let entry = self.table.get(*id);
            entry.is_some_and(|entry| {
                entry.uses == 0 && matches!(entry.stage, Stage::Shared { limit: 0, .. })
            })
        })
    }

    /// How many connections more there may be.
    pub(super) fn room(&self) -> usize {
        self.limits.connections.saturating_sub(self.table.len())
    }

    pub(super) fn dial(&mut self, wanted: usize) {
        for _ in 0..wanted.min(self.room()) {
            let id = self.table.insert(Entry {
                stage: Stage::Opening(Socket::None),
                relied: self.queue.joined(),
                uses: 0,
                expires: None,
                lagging: Vec::new(),
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

    /// Connections that are being opened.
    pub(crate) fn under_way(&self) -> Vec<Id> {
        let opening = self.table.iter();
        let opening = opening.filter(|(_, entry)| entry.stage_is_opening());
        opening.map(|(id, _)| id).collect()
    }

    /// Whether this one still is.
    pub(crate) fn is_under_way(&self, id: Id) -> bool {
        self.table.get(id).is_some_and(Entry::stage_is_opening)
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
                    limit,
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
    /// in the queue, unless the other attempts suffice for all, or it came while
    /// this one was under way: then another is made for it. Busy connections
    /// don't count, since they may be busy for long, while the call can be
    /// repeated at once. Else it is everybody, unless a connection lives that
    /// will come round to them. So nobody waits for an attempt that nobody makes.
    pub(crate) fn failed(&mut self, id: Id, failure: &K::Failure, now: Instant) {
        let Some(relied) = self.attempt_ended(id, now) else {
            return;
        };
        let victims = match self.spoken {
            Some(Spoken::Http1) => usize::from(
                self.queue.len() > self.opening && self.queue.front_is_among_first(relied),
            ),
            _ if self.opening > 0 || !self.shared.is_empty() => 0,
            _ => self.queue.len(),
        };
        self.fail_waiters(victims, failure);
        if self.spoken == Some(Spoken::Http1) {
            self.dial_for_waiters();
        }
    }

    /// Nobody is there to open a connection: the runtime that was to do so has
    /// ended, or there never was one. The next attempt from here would fare no
    /// better, so none is made: those who wait are all told, and may ask again
    /// from where they are.
    pub(crate) fn orphaned(&mut self, id: Id, failure: &K::Failure, now: Instant) {
        if self.attempt_ended(id, now).is_some() {
            self.fail_waiters(self.queue.len(), failure);
        }
    }

    /// Nothing comes of an attempt. Returns who relied on it, or `None` where
    /// it had ended before.
    fn attempt_ended(&mut self, id: Id, now: Instant) -> Option<u64> {
        let entry = self.table.get_mut(id)?;
        let Stage::Opening(socket) = entry.stage else {
            return None;
        };
        let relied = entry.relied;
        self.opening -= 1;
        self.counters.failed += 1;
        if socket == Socket::Open {
            entry.reason = Some(CloseReason::Failed);
            self.closing(id, 0, now);
        } else {
            self.table.remove(id);
        }
        Some(relied)
    }

    /// The first so many of those who wait.
    pub(super) fn fail_waiters(&mut self, count: usize, failure: &K::Failure) {
        for _ in 0..count {
            let waker = self.queue.fail(failure.clone());
            self.effects.wake(waker);
        }
    }

    /// The peer allows another number of streams than it did, perhaps none for
    /// now. False where the connection has yet to be reported as
    /// [`opened`](Self::opened).
    pub(crate) fn limit_changed(&mut self, id: Id, to: usize, now: Instant) -> bool {
        match self.table.get_mut(id).map(|entry| &mut entry.stage) {
            Some(Stage::Opening(_)) => return false,
            Some(Stage::Shared { limit, .. }) => {
                *limit = to;
                self.serve(now);
                self.trim(now);
                self.dial_for_waiters();
            }
            _ => {}
        }
        true
    }

    /// A socket is closed.
    pub(crate) fn closed(&mut self, id: Id, now: Instant) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        if entry.stage_is_opening() {
            // The attempt is still to report.
            entry.stage = Stage::Opening(Socket::Gone);
            return;
        }
        let Some(entry) = self.table.remove(id) else {
            return;
        };
        let uses = entry.uses;
        let calls = match &entry.stage {
            Stage::InUse => 1,
            Stage::Shared { streams, .. } => streams.saturating_sub(entry.lagging.len()),
            _ => 0,
        };
        match entry.reason {
            None if calls > 0 => self.parted.push(Parted { id, uses, calls }),
            reason => self.tell_closed(reason.unwrap_or(CloseReason::Peer), uses),
        }
        match entry.stage {
            Stage::Idle { conn, .. } => {
                self.idle.retain(|other| *other != id);
                self.effects.dropped.push(Conn::Exclusive(conn));
            }
            Stage::Settling { conn, .. } => self.effects.dropped.push(Conn::Exclusive(conn)),
            Stage::Shared { conn, .. } => {
                self.shared.retain(|other| *other != id);
                self.effects.dropped.push(Conn::Shared(conn));
            }
            Stage::Opening(_) | Stage::InUse | Stage::Closing { .. } => {}
        }
        self.serve(now);
        self.dial_for_waiters();
    }

    /// A call is over whose connection has closed meanwhile: in order, unless it
    /// says otherwise.
    #[cold]
    pub(super) fn call_ended(&mut self, id: Id, otherwise: Option<CloseReason>) {
        let Some(at) = self.parted.iter().position(|parted| parted.id == id) else {
            return;
        };
        let parted = &mut self.parted[at];
        parted.calls -= 1;
        if parted.calls == 0 || otherwise.is_some() {
            let Parted { uses, .. } = self.parted.swap_remove(at);
            self.tell_closed(otherwise.unwrap_or(CloseReason::Peer), uses);
        }
    }

    fn tell_closed(&mut self, reason: CloseReason, uses: u64) {
        self.counters.closed(reason);
        self.effects.closed.push(Closed { reason, uses });
    }

    /// Lets go of a connection. It keeps its place in the table until its
    /// socket is closed.
    pub(super) fn close(&mut self, id: Id, reason: CloseReason, now: Instant) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        if matches!(entry.stage, Stage::Opening(_) | Stage::Closing { .. }) {
            return;
        }
        entry.reason = Some(reason);
        match std::mem::replace(&mut entry.stage, Stage::InUse) {
            Stage::Idle { conn, .. } => {
                self.idle.retain(|other| *other != id);
                self.effects.dropped.push(Conn::Exclusive(conn));
                self.closing(id, 0, now);
            }
            Stage::Settling { conn, .. } => {
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

    pub(super) fn closing(&mut self, id: Id, streams: usize, now: Instant) {
        let overdue = (streams == 0).then(|| now + CLOSING);
        if let Some(entry) = self.table.get_mut(id) {
            entry.stage = Stage::Closing { streams, overdue };
        }
        if let Some(overdue) = overdue {
            self.due(overdue);
        }
    }
}
