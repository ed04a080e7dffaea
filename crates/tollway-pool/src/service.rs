//! The pool.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, Uri};
use http_body::Body;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinError;
use tokio::time::{Instant, timeout};
use tollway_core::BoxError;
use tower_service::Service;

use crate::body::PoolBody;
use crate::builder::{Config, PoolBuilder};
use crate::dial::Dial;
use crate::error::{Kind, PoolError};
use crate::failure::Failure;
use crate::future::PoolFuture;
use crate::host::Host;
use crate::hosts::Hosts;
use crate::key::Key;
use crate::reaper::{self, Bell};
use crate::state::State;
use crate::stats::{PoolStats, Stats};

/// How many hosts are remembered without a connection.
const HOSTS_KEPT: usize = 64;

/// A keep-alive connection pool: a tower service from requests to responses.
///
/// A clone is another handle to the same pool. `B` is the type of the
/// requests' bodies. When the last handle is dropped, idle connections are
/// closed; calls in flight finish. A call that waits for its connection is a
/// handle, too.
///
/// Over HTTP/1.1 hyper sends a body of unknown size along with a `GET`, `HEAD` or
/// `CONNECT` only where the request has a `Transfer-Encoding` or a
/// `Content-Length`, and otherwise leaves it out.
pub struct Pool<B: 'static> {
    shared: Arc<Shared<B>>,
}

/// What all handles of a pool share.
pub(crate) struct Shared<B: 'static> {
    hosts: RwLock<Hosts<B>>,
    pub(crate) config: Arc<Config>,
    dialer: Arc<dyn Dial<B>>,
    pub(crate) bell: Arc<Bell<B>>,
    /// Told when a host that is being drained has nothing left.
    pub(crate) vacated: Notify,
    /// Whether there is a reaper.
    reaping: AtomicBool,
    draining: AtomicBool,
    /// The numbers of hosts that have been forgotten.
    past: Mutex<Stats>,
    this: Weak<Self>,
}

impl<B> Pool<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    /// Everything that can be set, with its defaults.
    pub fn builder() -> PoolBuilder<B> {
        PoolBuilder::new()
    }

    /// Opens connections before they are needed, so that `count` are there:
    /// before a peak, or at start-up to see that a host can be reached at all.
    /// Returns how many connections there are then.
    ///
    /// `url` is any URL of the host. Over HTTP/2 one connection carries the
    /// calls of many, so one is opened whatever the count. No more are opened
    /// than the cap allows, and than are kept idle; those that are being opened
    /// already count, and are waited for. They age as all idle connections do: warm
    /// up less than the idle timeout ahead.
    ///
    /// Dropped, the connections that are being opened join the pool
    /// nonetheless.
    ///
    /// # Errors
    ///
    /// Where the URL can't be called, the pool is being drained, or no connection
    /// could be opened at all.
    pub async fn warm(&self, url: &Uri, count: usize) -> Result<usize, PoolError> {
        let host = self.shared.host(url)?;
        if self.shared.draining.load(Ordering::SeqCst) {
            return Err(host.error(Kind::Draining, None));
        }
        let mut failure = None;
        // The first handshake tells the protocol, and with it how many more
        // there are to be. If it is somebody else's, it may fail, which says
        // nothing of one's own: hence three times at the most.
        for _ in 0..3 {
            let (ids, others) = host.with(|state| {
                let others = state.under_way();
                (state.warm(count), others)
            });
            if ids.is_empty() && others.is_empty() {
                break;
            }
            let attempts: Vec<_> = ids.into_iter().map(|id| host.dial(id)).collect();
            for attempt in attempts {
                let ended = match attempt {
                    Ok(attempt) => {
                        let gone = |error: JoinError| Err(Failure::gone(error.is_panic()));
                        attempt.await.unwrap_or_else(gone)
                    }
                    Err(failure) => Err(failure),
                };
                failure = ended.err().or(failure);
            }
            if failure.is_some() {
                break;
            }
            host.attempted(&others).await;
        }
        match (host.stats().open(), failure) {
            (0, Some(failure)) => Err(host.error(Kind::Open(failure), None)),
            (open, _) => Ok(open),
        }
    }

    /// Ends the pool gracefully: new calls are refused from now on, those in
    /// flight (the waiting ones included) may finish within `limit`, idle
    /// connections are closed at once. What is left after that is cut off.
    /// Returns how many calls that was: zero is a clean end. A request that meets
    /// a dying connection meanwhile isn't sent again, but refused as new calls are.
    ///
    /// Dropped, the pool stays closed to new calls, and cuts nothing off.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.shared.draining.store(true, Ordering::SeqCst);
        let hosts = self.shared.all_hosts();
        for host in &hosts {
            host.with(|state| state.drain(Instant::now()));
        }
        let vacant = async {
            loop {
                // It hears of what happens from here on, so that nothing is missed
                // between the look and the wait.
                let vacated = self.shared.vacated.notified();
                if hosts.iter().all(|host| host.is_vacant()) {
                    return;
                }
                vacated.await;
            }
        };
        if timeout(limit, vacant).await.is_ok() {
            return 0;
        }
        let mut cut_off = 0;
        for host in &hosts {
            let stats = host.stats();
            cut_off += stats.calls() + stats.waiting();
            host.with(|state| state.abort(&Failure::drained(), Instant::now()));
        }
        cut_off
    }

    /// The numbers at this moment.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let hosts = &self.shared.hosts;
        let hosts = hosts.read().unwrap_or_else(PoisonError::into_inner);
        // Before a host is forgotten, or after: so it is counted once.
        let past = self.shared.past.lock();
        let mut stats = PoolStats {
            total: *past.unwrap_or_else(PoisonError::into_inner),
            hosts: Vec::new(),
        };
        for host in hosts.iter() {
            let of_host = host.stats();
            stats.total.add(&of_host);
            stats.hosts.push((host.key.to_string(), of_host));
        }
        stats.hosts.sort_by(|(a, _), (b, _)| a.cmp(b));
        stats
    }
}

impl<B: 'static> Pool<B> {
    pub(crate) fn new(config: Arc<Config>, dialer: Arc<dyn Dial<B>>) -> Self {
        Self {
            shared: Arc::new_cyclic(|this| Shared {
                hosts: RwLock::new(Hosts::new()),
                config,
                dialer,
                bell: Arc::new(Bell::new()),
                vacated: Notify::new(),
                reaping: false.into(),
                draining: false.into(),
                past: Mutex::default(),
                this: this.clone(),
            }),
        }
    }
}

impl<B: 'static> Shared<B> {
    /// The host that `uri` names, if it may be called.
    fn host(&self, uri: &Uri) -> Result<Arc<Host<B>>, PoolError> {
        let hosts = self.hosts.read().unwrap_or_else(PoisonError::into_inner);
        match hosts.get(uri) {
            Ok(Some(host)) => Ok(host.clone()),
            Ok(None) => {
                drop(hosts);
                self.add(uri)
            }
            Err(bad) => Err(PoolError::new(Kind::Url(bad), None, None)),
        }
    }

    #[cold]
    fn add(&self, uri: &Uri) -> Result<Arc<Host<B>>, PoolError> {
        let bad = |bad| PoolError::new(Kind::Url(bad), None, None);
        let key = Key::of(uri).map_err(bad)?;
        if !key.https() && !self.config.plain_http {
            let name = format!("{}:{}", key.host(), key.port()).into();
            return Err(PoolError::new(Kind::PlainHttp, Some(name), None));
        }
        let make = || {
            let state = State::new(self.config.limits, self.config.spoken(key.https()));
            Host::new(
                key.clone(),
                state,
                &self.config,
                self.dialer.clone(),
                self.this.clone(),
            )
        };
        let mut hosts = self.hosts.write().unwrap_or_else(PoisonError::into_inner);
        let host = hosts.get_or_insert(uri, &key, make).map_err(bad)?;
        // Hosts to which no connection ever opens bring the reaper no news.
        if hosts.len() > HOSTS_KEPT {
            self.bell.ring();
        }
        // A drain under way has its list of hosts; this one is late for it.
        if self.draining.load(Ordering::SeqCst) {
            host.with(|state| state.drain(Instant::now()));
        }
        Ok(host)
    }

    fn all_hosts(&self) -> Vec<Arc<Host<B>>> {
        let hosts = self.hosts.read().unwrap_or_else(PoisonError::into_inner);
        hosts.iter().cloned().collect()
    }

    /// Closes what is due to close. Returns when to come again.
    pub(crate) fn reap(&self, now: Instant) -> Option<Instant> {
        let mut next = None;
        for host in self.all_hosts() {
            let due = host.with(|state| state.reap(now));
            next = match (next, due) {
                (Some(next), Some(due)) => Some(std::cmp::min::<Instant>(next, due)),
                (next, due) => next.or(due),
            };
        }
        self.forget_hosts();
        next
    }

    /// The reaper's runtime has ended. Whatever is due next is news to another.
    pub(crate) fn reaper_ended(&self) {
        self.reaping.store(false, Ordering::SeqCst);
        for host in self.all_hosts() {
            host.with(|state| state.forget_alarm());
        }
    }

    /// Forgets hosts without connections, so that a crawler's pool doesn't
    /// grow for ever. What a few hosts are known to speak is worth keeping.
    fn forget_hosts(&self) {
        let mut hosts = self.hosts.write().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() <= HOSTS_KEPT {
            return;
        }
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.forget(|host| {
            let unused = host.is_vacant();
            if unused {
                past.add_past(&host.stats().counters);
            }
            unused
        });
    }
}

impl<B: Send + 'static> Shared<B> {
    /// Starts the reaper, unless it runs. It begins with the first connection,
    /// since a pool may be built outside of a runtime, and anew with the next
    /// event should its runtime have ended.
    pub(crate) fn ensure_reaper(&self) {
        if let Ok(runtime) = Handle::try_current()
            && !self.reaping.swap(true, Ordering::SeqCst)
        {
            runtime.spawn(reaper::run(self.this.clone(), self.bell.clone()));
        }
    }
}

impl<B: 'static> Drop for Shared<B> {
    fn drop(&mut self) {
        // Connections hold their host, so it falls to the pool to end the idle
        // ones.
        let hosts = self.all_hosts();
        for host in &hosts {
            host.with(|state| state.drain(Instant::now()));
        }
        self.bell.leave(hosts);
    }
}

impl<B> Service<Request<B>> for Pool<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Response = Response<PoolBody>;
    type Error = PoolError;
    type Future = PoolFuture<B>;

    /// Always ready: a call waits for its connection in its future, since only
    /// its request tells the host.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    /// Where a connection is free, the request is on its way when this returns,
    /// and dropping the future cancels it. Else nothing is done before the
    /// future is polled.
    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.shared.host(request.uri()) {
            Ok(host) => PoolFuture::new(host, request),
            Err(error) => PoolFuture::refused(error),
        }
    }
}

impl<B> Clone for Pool<B> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<B> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}
