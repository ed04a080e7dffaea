//! The services.

use std::mem;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tokio::time::Instant;
use tollway_core::{BoxError, Deadline, Phase, recent};
use tower_service::Service;

use crate::error::{Limit, Start};
use crate::future::{Bounds, Readying};
use crate::timer::{RanOut, Wait};
use crate::{AttemptTimeout, TimeoutBody, TimeoutError, TimeoutFuture};

/// The service of [`DeadlineLayer`](crate::DeadlineLayer).
///
/// It is always ready, or failed: where the inner service isn't, the wait for
/// it is moved into the call, so that it counts against the deadline.
///
/// # Errors
///
/// A [`TimeoutError`] when the deadline passes, at once where it has passed
/// before the call; otherwise the inner service's own error.
///
/// # Panics
///
/// Outside a tokio runtime with its timer enabled, when a call has to wait.
#[derive(Clone, Debug)]
pub struct DeadlineService<S> {
    inner: Readied<S>,
    limit: Option<Duration>,
    shares_timers: bool,
}

impl<S> DeadlineService<S> {
    pub(crate) fn new(inner: S, limit: Option<Duration>, shares_timers: bool) -> Self {
        Self {
            inner: Readied::new(inner),
            limit,
            shares_timers,
        }
    }
}

impl<S, B, R> Service<Request<B>> for DeadlineService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
    S::Error: Into<BoxError>,
{
    type Response = Response<TimeoutBody<R>>;
    type Error = BoxError;
    type Future = TimeoutFuture<S, B>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        let inherited = Deadline::of(request.extensions());
        let now = Instant::now().into_std();
        let own = self.limit.and_then(|limit| Deadline::after(now, limit));
        let Some(deadline) = own.into_iter().chain(inherited).min() else {
            return self.inner.call(request, Phase::Permit, Bounds::NONE);
        };
        if deadline.has_passed(now) {
            return too_late(Start::Call);
        }
        let since = Instant::from_std(now);
        let end = Instant::from_std(deadline.instant());
        let bounds = Bounds {
            since: Some(since),
            shares_timers: self.shares_timers,
            ..Bounds::of_call(Wait::Deadline { end, since })
        };
        let _held = deadline.hold(Some(now));
        self.inner.call(request, Phase::Permit, bounds)
    }
}

/// The service of [`AttemptTimeoutLayer`](crate::AttemptTimeoutLayer).
///
/// It is always ready, or failed: where the inner service isn't, the wait for
/// it is moved into the call, so that it counts against the limit.
///
/// # Errors
///
/// A [`TimeoutError`] when the attempt's limit runs out, or the call's deadline
/// passes, whether its request carries that or a layer above holds it; otherwise
/// the inner service's own error.
///
/// # Panics
///
/// Outside a tokio runtime with its timer enabled, when a call has to wait.
#[derive(Clone, Debug)]
pub struct AttemptTimeoutService<S> {
    inner: Readied<S>,
    timeout: AttemptTimeout,
}

impl<S> AttemptTimeoutService<S> {
    pub(crate) fn new(inner: S, timeout: AttemptTimeout) -> Self {
        Self {
            inner: Readied::new(inner),
            timeout,
        }
    }
}

impl<S, B, R> Service<Request<B>> for AttemptTimeoutService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
    S::Error: Into<BoxError>,
{
    type Response = Response<TimeoutBody<R>>;
    type Error = BoxError;
    type Future = TimeoutFuture<S, B>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (limit, pause) = self.timeout.of(request.extensions());
        let (mut deadline, mut since) = (None, None);
        if let Some(end) = Deadline::of(request.extensions()) {
            // A request must not go out when nobody waits for its answer any
            // more: it would take effect for nobody. The layer above may be
            // about to say so, but it asks down here first.
            let now = recent(|| Instant::now().into_std());
            if end.has_passed(now) {
                return too_late(Start::Attempt);
            }
            deadline = Some(Instant::from_std(end.instant()));
            since = Some(Instant::from_std(now));
        }
        let bounds = Bounds {
            wait: Wait::Limit { limit, deadline },
            since,
            pause,
            shares_timers: false,
        };
        self.inner.call(request, Phase::Connect, bounds)
    }
}

/// The answer to a call after its deadline.
fn too_late<S: Service<Request<B>>, B>(start: Start) -> TimeoutFuture<S, B> {
    let ran_out = RanOut {
        limit: Limit::Deadline,
        counted_from: start,
        after: Duration::ZERO,
        of: Duration::ZERO,
    };
    TimeoutFuture::refused(TimeoutError::new(ran_out, Phase::Permit, false))
}

/// A service that is called at once where it is ready, and otherwise made
/// ready inside the call.
#[derive(Debug)]
struct Readied<S> {
    inner: S,
    /// Whether `inner` has said that it is ready, and wasn't called since.
    ready: bool,
}

impl<S> Readied<S> {
    fn new(inner: S) -> Self {
        Self {
            inner,
            ready: false,
        }
    }

    #[inline]
    fn poll_ready<B>(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>>
    where
        S: Service<Request<B>>,
        S::Error: Into<BoxError>,
    {
        self.ready = match self.inner.poll_ready(cx) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
            Poll::Pending => false,
        };
        Poll::Ready(Ok(()))
    }

    /// Calls the service, or has it made ready inside the call, where `phase`
    /// is what waiting for that means.
    #[inline]
    fn call<B>(&mut self, request: Request<B>, phase: Phase, bounds: Bounds) -> TimeoutFuture<S, B>
    where
        S: Service<Request<B>> + Clone,
    {
        if mem::take(&mut self.ready) {
            return TimeoutFuture::called(self.inner.call(request), bounds);
        }
        // The one that was asked goes into the call, and with it its place in
        // whatever queue it waits.
        let clone = self.inner.clone();
        let readying = Readying {
            service: mem::replace(&mut self.inner, clone),
            request,
            phase,
        };
        TimeoutFuture::readying(readying, bounds)
    }
}

impl<S: Clone> Clone for Readied<S> {
    fn clone(&self) -> Self {
        // Readiness belongs to the one that was asked, not to its clones.
        Self::new(self.inner.clone())
    }
}
