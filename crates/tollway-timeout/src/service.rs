//! The services.

use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tokio::time::Instant;
use tollway_core::{BoxError, Deadline, Phase};
use tower_service::Service;

use crate::error::Limit;
use crate::timer::{Bounds, RanOut, Timer};
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
}

impl<S> DeadlineService<S> {
    pub(crate) fn new(inner: S, limit: Option<Duration>) -> Self {
        Self {
            inner: Readied::new(inner),
            limit,
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

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let inherited = Deadline::of(request.extensions());
        if inherited.is_none() && self.limit.is_none() {
            return self.inner.call(
                request,
                Phase::Permit,
                Bounds::default(),
                Bounds::default(),
                None,
            );
        }
        let now = Instant::now();
        let own = self.limit.and_then(|limit| Deadline::after(now, limit));
        let Some(deadline) = own.into_iter().chain(inherited).min() else {
            return self.inner.call(
                request,
                Phase::Permit,
                Bounds::default(),
                Bounds::default(),
                None,
            );
        };
        if deadline.has_passed(now) {
            let ran_out = RanOut {
                limit: Limit::Deadline,
                after: Duration::ZERO,
                of: Duration::ZERO,
            };
            return TimeoutFuture::refused(TimeoutError::new(ran_out, Phase::Permit, false));
        }
        // The first extension of a request costs three allocations, another
        // one; to overwrite costs none.
        match request.extensions_mut().get_mut::<Deadline>() {
            Some(carried) => *carried = deadline,
            None => {
                request.extensions_mut().insert(deadline);
            }
        }
        let bounds = Bounds {
            deadline: Some(deadline),
            wait: None,
        };
        self.inner
            .call(request, Phase::Permit, bounds, bounds, Some(now))
    }
}

/// The service of [`AttemptTimeoutLayer`](crate::AttemptTimeoutLayer).
///
/// It is always ready, or failed: where the inner service isn't, the wait for
/// it is moved into the call, so that it counts against the limit.
///
/// # Errors
///
/// A [`TimeoutError`] when the attempt's limit runs out, or the deadline in the
/// request's extensions passes; otherwise the inner service's own error.
///
/// # Panics
///
/// Outside a tokio runtime with its timer enabled, when a call has to wait.
#[derive(Clone, Debug)]
pub struct AttemptTimeoutService<S> {
    inner: Readied<S>,
    timeout: Arc<AttemptTimeout>,
}

impl<S> AttemptTimeoutService<S> {
    pub(crate) fn new(inner: S, timeout: Arc<AttemptTimeout>) -> Self {
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

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (head, body) = self.timeout.bounds(request.extensions());
        self.inner.call(request, Phase::Connect, head, body, None)
    }
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

    fn call<B>(
        &mut self,
        request: Request<B>,
        readying: Phase,
        head: Bounds,
        body: Bounds,
        since: Option<Instant>,
    ) -> TimeoutFuture<S, B>
    where
        S: Service<Request<B>> + Clone,
    {
        let timer = Timer::new(head, since);
        if mem::take(&mut self.ready) {
            return TimeoutFuture::called(self.inner.call(request), timer, body);
        }
        // The one that was asked goes into the call, and with it its place in
        // whatever queue it waits.
        let clone = self.inner.clone();
        let asked = mem::replace(&mut self.inner, clone);
        TimeoutFuture::readying(asked, request, readying, timer, body)
    }
}

impl<S: Clone> Clone for Readied<S> {
    fn clone(&self) -> Self {
        // Readiness belongs to the one that was asked, not to its clones.
        Self::new(self.inner.clone())
    }
}
