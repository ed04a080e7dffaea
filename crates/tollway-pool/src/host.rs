//! One host: the bookkeeping behind a lock, and what it decides carried out.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tollway_core::BoxError;

use crate::arena::Id;
use crate::builder::Config;
use crate::conn::{Abort, H1, Http};
use crate::dial::Dial;
use crate::error::{self, PoolError};
use crate::failure::Failure;
use crate::key::{BadUrl, Key};
use crate::service::Shared;
use crate::state::{CheckOut, Closed, Conn, Effects, Grant, State};
use crate::stats::{CloseReason, Stats};

/// One host of a pool.
pub(crate) struct Host<B: 'static> {
    pub(crate) key: Key,
    /// `api.example.com:443`, for errors and events.
    pub(crate) name: Arc<str>,
    pub(crate) scheme: Scheme,
    pub(crate) authority: Authority,
    pub(crate) header: HeaderValue,
    /// How long a call waits for a connection.
    pub(crate) acquire_timeout: Duration,
    /// Whether a stream that was refused wasn't processed for certain.
    pub(crate) trust_refused_stream: bool,
    /// Held for moments, and never across an await. Nothing is woken, spawned
    /// or dropped under it that could come back for it.
    state: Mutex<State<Http<B>>>,
    /// Told when an attempt to open a connection ends.
    attempted: Notify,
    dialer: Arc<dyn Dial<B>>,
    pub(crate) pool: Weak<Shared<B>>,
}

impl<B: 'static> Host<B> {
    pub(crate) fn new(
        key: Key,
        state: State<Http<B>>,
        config: &Config,
        dialer: Arc<dyn Dial<B>>,
        pool: Weak<Shared<B>>,
    ) -> Result<Self, BadUrl> {
        let authority = key.authority().ok_or(BadUrl::Relative)?;
        // Shared from the start, so that a request's copy is a count.
        let header = HeaderValue::from_maybe_shared(bytes::Bytes::from(authority.to_string()))
            .map_err(|_| BadUrl::Relative)?;
        Ok(Self {
            name: format!("{}:{}", key.host(), key.port()).into(),
            scheme: key.scheme(),
            authority,
            header,
            acquire_timeout: config.acquire_timeout,
            trust_refused_stream: config.trust_refused_stream,
            key,
            state: Mutex::new(state),
            attempted: Notify::new(),
            dialer,
            pool,
        })
    }

    /// The host's root, for connectors.
    pub(crate) fn uri(&self) -> Uri {
        self.absolute(PathAndQuery::from_static("/"))
    }

    /// The whole URL of a path on this host.
    pub(crate) fn absolute(&self, path: PathAndQuery) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(path);
        // All three parts are there, which is all that can be missing.
        Uri::from_parts(parts).unwrap_or_default()
    }

    /// An error of a call to this host.
    #[cold]
    pub(crate) fn error(&self, kind: error::Kind, cause: Option<BoxError>) -> PoolError {
        PoolError::new(kind, Some(self.name.clone()), cause)
    }

    fn lock(&self) -> MutexGuard<'_, State<Http<B>>> {
        // Nothing panics under it; if something did, the counts still hold.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there are neither connections nor calls. A look at it is no event,
    /// so that whoever waits for that isn't woken by looking.
    pub(crate) fn is_vacant(&self) -> bool {
        self.lock().is_vacant()
    }

    /// Tells the bookkeeping of an event, and carries out what it decides once
    /// the lock is free again.
    pub(crate) fn with<R>(self: &Arc<Self>, event: impl FnOnce(&mut State<Http<B>>) -> R) -> R {
        let (result, effects, alarm, drained) = {
            let mut state = self.lock();
            let result = event(&mut state);
            let alarm = state.take_news();
            let effects = (!state.effects.is_empty()).then(|| std::mem::take(&mut state.effects));
            (result, effects, alarm, state.is_drained())
        };
        if let Some(effects) = effects {
            self.carry_out(effects);
        }
        if (alarm || drained)
            && let Some(pool) = self.pool.upgrade()
        {
            self.tell(&pool, alarm, drained);
        }
        result
    }

    #[cold]
    fn tell(&self, pool: &Shared<B>, alarm: bool, drained: bool) {
        if alarm {
            self.dialer.ensure_reaper(pool);
            pool.bell.ring();
        }
        if drained {
            pool.vacated.notify_waiters();
        }
    }

    fn carry_out(self: &Arc<Self>, effects: Effects<Http<B>>) {
        for id in effects.dial {
            drop(self.dial(id));
        }
        for waker in effects.wake.into_iter().chain(effects.wake_more) {
            waker.wake();
        }
        for abort in effects.abort {
            abort.abort();
        }
        drop(effects.dropped);
        for closed in effects.closed {
            self.tell_closed(&closed);
        }
    }

    /// Opens a connection, in a task of its own: whoever asked for it may
    /// leave, it joins the pool all the same.
    pub(crate) fn dial(
        self: &Arc<Self>,
        id: Id,
    ) -> Result<JoinHandle<Result<(), Failure>>, Failure> {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            let failure = Failure::no_runtime();
            self.attempt_failed(id, &failure);
            return Err(failure);
        };
        Ok(runtime.spawn(self.dialer.dial(self.clone(), id)))
    }

    /// No connection comes of the attempt.
    pub(crate) fn attempt_failed(self: &Arc<Self>, id: Id, failure: &Failure) {
        self.with(|state| {
            if failure.is_orphaned() {
                state.orphaned(id, failure, Instant::now());
            } else {
                state.failed(id, failure, Instant::now());
            }
        });
        self.attempted.notify_waiters();
    }

    /// Waits until none of these attempts is under way any more.
    pub(crate) async fn attempted(&self, attempts: &[Id]) {
        for &id in attempts {
            loop {
                // It hears of what happens from here on, so that nothing is missed
                // between the look and the wait.
                let ended = self.attempted.notified();
                if !self.lock().is_under_way(id) {
                    break;
                }
                ended.await;
            }
        }
    }

    // ===== Calls =====

    pub(crate) fn take_free(self: &Arc<Self>, now: Instant) -> Option<Grant<Http<B>>> {
        self.with(|state| state.take_free(now))
    }

    pub(crate) fn check_out(self: &Arc<Self>, now: Instant) -> CheckOut<Http<B>> {
        self.with(|state| state.check_out(now))
    }

    pub(crate) fn poll_waiter(
        self: &Arc<Self>,
        id: Id,
        waker: &Waker,
    ) -> Poll<Option<Result<Grant<Http<B>>, Failure>>> {
        self.with(|state| state.poll_waiter(id, waker))
    }

    pub(crate) fn cancel(self: &Arc<Self>, waiter: Id) {
        self.with(|state| state.cancel(waiter, Instant::now()));
    }

    /// A call is over: the connection is free, as soon as hyper says so.
    pub(crate) fn put_back(self: &Arc<Self>, id: Id, conn: Box<H1<B>>) {
        let now = Instant::now();
        if conn.sender.is_ready() {
            self.with(|state| state.put_back(id, conn, true, now));
        } else {
            self.with(|state| {
                let wire = conn.wire.clone();
                state.put_back(id, conn, false, now);
                await_readiness(state, id, &wire, now);
            });
        }
    }

    /// The connection may have become ready for the next call. True once
    /// there is nothing left to wait for.
    pub(crate) fn settle(self: &Arc<Self>, id: Id) -> bool {
        self.with(|state| state.settle(id, |conn| conn.sender.is_ready(), Instant::now()))
    }

    pub(crate) fn retire(self: &Arc<Self>, id: Id, reason: CloseReason) {
        self.with(|state| state.retire(id, reason, Instant::now()));
    }

    // ===== Connections =====

    pub(crate) fn limit_changed(self: &Arc<Self>, id: Id, limit: usize) -> bool {
        self.with(|state| state.limit_changed(id, limit, Instant::now()))
    }

    pub(crate) fn opened(
        self: &Arc<Self>,
        id: Id,
        conn: Conn<Http<B>>,
        limit: usize,
        expires: Option<Instant>,
        abort: Abort,
        took: Duration,
    ) -> bool {
        let open = self.with(|state| {
            let now = Instant::now();
            let open = state.opened(id, conn, limit, expires, abort, now);
            if open {
                state.counters.handshakes.record(took, now);
            }
            open
        });
        self.attempted.notify_waiters();
        open
    }

    /// The socket is closed, and its place free.
    pub(crate) fn closed(self: &Arc<Self>, id: Id) {
        self.with(|state| state.closed(id, Instant::now()));
    }

    fn tell_closed(&self, closed: &Closed) {
        tracing::debug!(
            target: "tollway::pool",
            { server.address = self.key.address(),
            server.port = i64::from(self.key.port()),
            tollway.pool.reason = closed.reason.as_str(),
            tollway.pool.requests = i64::try_from(closed.uses).unwrap_or(i64::MAX) },
            "connection closed",
        );
    }

    pub(crate) fn stats(&self) -> Stats {
        let state = self.lock();
        Stats {
            gauges: state.gauges(),
            counters: state.counters,
        }
    }
}

/// Whoever drives the connection is asked to say when it is ready, and then it
/// is looked at once more: it may have become so just before.
fn await_readiness<B: 'static>(
    state: &mut State<Http<B>>,
    id: Id,
    wire: &crate::wire::Wire,
    now: Instant,
) {
    wire.settling.store(true, Ordering::SeqCst);
    if state.settle(id, |conn| conn.sender.is_ready(), now) {
        wire.settling.store(false, Ordering::SeqCst);
    }
}

/// What the body of a response over HTTP/2 needs of its host, whatever the
/// request's body was.
pub(crate) trait Release: Send + Sync {
    /// The stream is over.
    fn release(self: Arc<Self>, id: Id);
    /// The call is over, and the stream will be once the request has been sent, or
    /// when this is overdue.
    fn lags(self: Arc<Self>, id: Id) -> Instant;
    /// It has been sent.
    fn caught_up(self: Arc<Self>, id: Id, overdue: Instant);
    /// The connection isn't fit for another call.
    fn discard(self: Arc<Self>, id: Id, reason: CloseReason);
    /// For errors.
    fn name(&self) -> &Arc<str>;
}

impl<B: Send + 'static> Release for Host<B> {
    fn release(self: Arc<Self>, id: Id) {
        self.with(|state| state.release(id, Instant::now()));
    }

    fn lags(self: Arc<Self>, id: Id) -> Instant {
        self.with(|state| state.lags(id, Instant::now()))
    }

    fn caught_up(self: Arc<Self>, id: Id, overdue: Instant) {
        self.with(|state| state.caught_up(id, overdue, Instant::now()));
    }

    fn discard(self: Arc<Self>, id: Id, reason: CloseReason) {
        self.retire(id, reason);
    }

    fn name(&self) -> &Arc<str> {
        &self.name
    }
}

impl<B> fmt::Debug for Host<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
impl Host<()> {
    /// A host to which nobody opens connections.
    pub(crate) fn unconnected(key: Key) -> Result<Self, BadUrl> {
        use crate::dial::Dialing;

        struct Nobody;

        impl Dial<()> for Nobody {
            fn dial(&self, _: Arc<Host<()>>, _: Id) -> Dialing {
                Box::pin(async { Ok(()) })
            }

            fn ensure_reaper(&self, _: &Shared<()>) {}
        }

        let config = Config::default();
        let state = State::new(config.limits, None);
        Self::new(key, state, &config, Arc::new(Nobody), Weak::new())
    }
}
