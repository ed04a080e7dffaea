//! The layers.

use std::time::Duration;

use tower_layer::Layer;

use crate::{AttemptTimeout, AttemptTimeoutService, DeadlineService};

/// Gives each call one deadline, for everything under this layer.
///
/// What is called and polled under it finds the deadline with
/// [`Deadline::of`](tollway_core::Deadline::of).
///
/// See the [crate's documentation](crate) for what it covers and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct DeadlineLayer {
    limit: Option<Duration>,
    shares_timers: bool,
}

impl DeadlineLayer {
    /// Each call ends `limit` after it was made, or at the
    /// [`Deadline`](tollway_core::Deadline) that its request brings, whichever
    /// is earlier.
    ///
    /// Zero refuses every call. A limit beyond what the clock can say, such as
    /// [`Duration::MAX`], is none.
    #[must_use]
    pub const fn new(limit: Duration) -> Self {
        Self {
            limit: Some(limit),
            shares_timers: false,
        }
    }

    /// Each call ends at the [`Deadline`](tollway_core::Deadline) that its
    /// request brings. A call that brings none has none.
    #[must_use]
    pub const fn inherited() -> Self {
        Self {
            limit: None,
            shares_timers: false,
        }
    }

    /// While the timer of an attempt below, which ends no later, wakes the call's
    /// task, the deadline sets none of its own: a call that is answered in time
    /// registers one timer instead of two.
    ///
    /// Only for a stack in which every layer in between polls the one below
    /// within its own poll, and lets go of it only there, as Tollway's own do.
    /// Under a layer that spawns the call, or that drops it and goes on waiting,
    /// the deadline could pass unnoticed. So this is not the default.
    #[must_use]
    pub const fn sharing_timers(mut self) -> Self {
        self.shares_timers = true;
        self
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = DeadlineService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        DeadlineService::new(inner, self.limit, self.shares_timers)
    }
}

/// Limits the time of each attempt: up to the head of the response, and each
/// pause in its body.
///
/// See the [crate's documentation](crate) for what it covers and where it goes.
#[derive(Clone, Debug)]
pub struct AttemptTimeoutLayer {
    timeout: AttemptTimeout,
}

impl AttemptTimeoutLayer {
    /// Limits each attempt to `timeout`: a [`Duration`] for all alike, or an
    /// [`AttemptTimeout`] that tells them apart.
    #[must_use]
    pub fn new(timeout: impl Into<AttemptTimeout>) -> Self {
        Self {
            timeout: timeout.into(),
        }
    }
}

impl<S> Layer<S> for AttemptTimeoutLayer {
    type Service = AttemptTimeoutService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AttemptTimeoutService::new(inner, self.timeout.clone())
    }
}
