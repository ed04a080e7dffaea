use std::fmt;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use tollway_core::BoxError;
use tower_service::Service;

use crate::call::Call;
use crate::future::RetryFuture;
use crate::{RandomSeed, ReplayBody, RetryError, RetryPolicy, Seed};

/// The service that a [`RetryLayer`](crate::RetryLayer) makes.
///
/// The service below is cloned once per call that may be retried. It is given a
/// [`ReplayBody`], and its response passes through untouched, but for what is
/// put into the extensions of an answer that isn't simply final:
/// [`Attempts`](crate::Attempts); the [`Verdict`](tollway_core::Verdict) on the
/// whole call where the answer alone says something else, and where the outcome
/// stays unknown, with the [`RetryAdvice`](tollway_core::RetryAdvice) that goes
/// with it; and then the [`IdempotencyKey`](tollway_core::IdempotencyKey).
///
/// # Cancellation
///
/// Dropping the future drops the attempt under way with it, and gives back the
/// token of a retry that wasn't sent.
///
/// # Panics
///
/// Outside a tokio runtime with its timer enabled, when a call waits between two
/// attempts or for its hedge.
pub struct RetryService<S, R = RandomSeed> {
    inner: S,
    policy: RetryPolicy<R>,
}

impl<S, R> RetryService<S, R> {
    /// Retries the calls of `inner`.
    #[must_use]
    pub const fn new(inner: S, policy: RetryPolicy<R>) -> Self {
        Self { inner, policy }
    }

    /// The service below.
    #[must_use]
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: Clone, R> Clone for RetryService<S, R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            policy: self.policy.clone(),
        }
    }
}

impl<S: fmt::Debug, R> fmt::Debug for RetryService<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryService")
            .field("inner", &self.inner)
            .field("policy", &self.policy)
            .finish()
    }
}

impl<S, B, ResB, R> Service<Request<B>> for RetryService<S, R>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<ResB>> + Clone,
    S::Error: Into<BoxError>,
    B: Body + Unpin,
    B::Error: Into<BoxError>,
    ResB: Body,
    R: Seed,
{
    type Response = Response<ResB>;
    type Error = RetryError;
    type Future = RetryFuture<S, B, ResB, R>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RetryError>> {
        self.inner
            .poll_ready(cx)
            .map_err(|error| RetryError::not_ready(error.into()))
    }

    #[inline]
    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // The service that was made ready takes the first attempt. Later ones
        // are sent by a clone, which is made ready by itself.
        let (call, opening) = Call::new(&self.policy, &self.inner, &mut request);
        match opening.whole() {
            // Taken apart and put together, it is moved once, but only if
            // nothing else happens in between, not even dropping what is left
            // of the caller's body.
            Ok(body) if !call.is_hedged() => {
                let (head, _rest) = request.into_parts();
                let future = self.inner.call(Request::from_parts(head, body));
                RetryFuture::new(call, future)
            }
            Ok(body) => self.call_slowly(call, request.map(|_rest| body)),
            Err(opening) => self.call_slowly(call, request.map(|body| opening.first(body))),
        }
    }
}

impl<S, R: Seed> RetryService<S, R> {
    #[cold]
    fn call_slowly<B, ResB>(
        &mut self,
        call: Call<S, B, R>,
        request: Request<ReplayBody<B>>,
    ) -> RetryFuture<S, B, ResB, R>
    where
        S: Service<Request<ReplayBody<B>>>,
    {
        let rival = call.plan_rival();
        RetryFuture::hedged(call, rival, self.inner.call(request))
    }
}
