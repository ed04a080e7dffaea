//! The service.

use std::convert::Infallible;
use std::mem;
use std::task::{Context, Poll, Waker};

use http::{Request, Response};
use tollway_core::{BoxError, Fault};
use tower_service::Service;

use crate::call::Call;
use crate::future::RateLimitFuture;
use crate::limits::Limits;

/// Lets each attempt through when every quota that covers it has room.
///
/// It is always ready. The inner service's readiness is asked for only once a
/// permit is held, so that a call that waits for a quota can't keep another from
/// its connection.
///
/// Where the same quotas cover every call, count from the response, and have
/// room, an inner service that is ready is called within `call`. Otherwise both
/// are asked for, and waited for, in the future, with a clone of the inner
/// service.
///
/// A permit is held while the inner service isn't ready. Where its quota pauses
/// meanwhile, the call gives it up with its clone, and asks again. Where the inner
/// service fails to get ready, the permit goes back, and a [`Fault`] before the error
/// says that the call had no effect.
#[derive(Clone, Debug)]
pub struct RateLimitService<S> {
    limits: Limits,
    inner: S,
}

impl<S> RateLimitService<S> {
    /// `inner`, held to `limits`.
    pub fn new(limits: Limits, inner: S) -> Self {
        Self { limits, inner }
    }

    /// The limits that it is held to.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, B, R> Service<Request<B>> for RateLimitService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
    S::Error: Into<BoxError>,
{
    type Response = Response<R>;
    type Error = BoxError;
    type Future = RateLimitFuture<S, B>;

    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let ready: Result<(), Infallible> = Ok(());
        Poll::Ready(ready.map_err(Into::into))
    }

    #[inline]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Some(mut permit) = self.limits.shared.ask_early(&Call::of(&request)) else {
            return RateLimitFuture::asking(&self.limits, self.inner.clone(), request);
        };
        permit.hold_back();
        // This wakes nobody. Who isn't ready is asked again, in the future.
        let mut cx = Context::from_waker(Waker::noop());
        match self.inner.poll_ready(&mut cx) {
            Poll::Ready(Ok(())) => {
                permit.send();
                RateLimitFuture::sent(permit, self.inner.call(request))
            }
            Poll::Ready(Err(error)) => RateLimitFuture::failed(Fault::not_ready(error)),
            Poll::Pending => {
                // The one that was asked goes into the call, and with it its
                // place in whatever queue it waits.
                let clone = self.inner.clone();
                let inner = mem::replace(&mut self.inner, clone);
                RateLimitFuture::waiting(permit, inner, request)
            }
        }
    }
}
