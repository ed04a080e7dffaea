//! Closes idle and old connections by time, whether anyone calls or not.

use std::sync::{Arc, Weak};

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::service::Shared;

/// The one task of a pool. It sleeps until something is due, or until the bell
/// says that something is due earlier, and ends with the pool.
pub(crate) async fn run<B: Send + 'static>(pool: Weak<Shared<B>>, bell: Arc<Notify>) {
    loop {
        let next = match pool.upgrade() {
            Some(pool) => pool.reap(Instant::now()),
            None => return,
        };
        match next {
            // Either the time has come, or the bell rang: look again.
            Some(at) => drop(timeout_at(at, bell.notified()).await),
            None => bell.notified().await,
        }
    }
}
