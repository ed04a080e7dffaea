//! Closes idle and old connections by time, whether anyone calls or not.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use crate::host::Host;
use crate::service::Shared;
use crate::state::CLOSING;

/// What the pool and its reaper tell each other.
pub(crate) struct Bell<B: 'static> {
    rung: Notify,
    /// The hosts, once the pool is gone.
    left: Mutex<Option<Vec<Arc<Host<B>>>>>,
}

impl<B: 'static> Bell<B> {
    pub(crate) fn new() -> Self {
        Self {
            rung: Notify::new(),
            left: Mutex::new(None),
        }
    }

    /// Something is due earlier than the reaper knows.
    pub(crate) fn ring(&self) {
        self.rung.notify_one();
    }

    /// The pool ends, and leaves its hosts to the reaper.
    pub(crate) fn leave(&self, hosts: Vec<Arc<Host<B>>>) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(hosts);
        self.ring();
    }

    fn take_left(&self) -> Option<Vec<Arc<Host<B>>>> {
        self.left
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// Dropped with the reaper, be it by a runtime that ends.
struct Ended<B: 'static>(Weak<Shared<B>>);

impl<B: 'static> Drop for Ended<B> {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.reaper_ended();
        }
    }
}

/// The one task of a pool. It sleeps until something is due, or until the bell
/// says that something is due earlier, and ends with the pool's last
/// connection, once the pool is gone.
pub(crate) fn run<B: Send + 'static>(
    pool: Weak<Shared<B>>,
    bell: Arc<Bell<B>>,
) -> impl Future<Output = ()> + Send {
    let ended = Ended(pool.clone());
    async move {
        let _ended = ended;
        reap(pool, bell).await;
    }
}

async fn reap<B: Send + 'static>(pool: Weak<Shared<B>>, bell: Arc<Bell<B>>) {
    while let Some(pool) = pool.upgrade() {
        let next = pool.reap(Instant::now());
        drop(pool);
        match next {
            // Either the time has come, or the bell rang: look again.
            Some(at) => drop(timeout_at(at, bell.rung.notified()).await),
            None => bell.rung.notified().await,
        }
    }
    let mut hosts = loop {
        match bell.take_left() {
            Some(hosts) => break hosts,
            // The pool is just about to say.
            None => bell.rung.notified().await,
        }
    };
    // Nobody cares for the cap any more, but a peer that neither reads nor
    // closes must not hold a socket and a task for ever.
    loop {
        hosts.retain(|host| {
            host.with(|state| state.reap(Instant::now()));
            !host.is_vacant()
        });
        if hosts.is_empty() {
            return;
        }
        sleep(CLOSING).await;
    }
}
