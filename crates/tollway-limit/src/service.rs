//! The service.

use std::convert::Infallible;
use std::task::{Context, Poll};

use http::{Request, Response};
use tollway_core::BoxError;
use tower_service::Service;

use crate::future::ResponseFuture;
use crate::limits::Limits;

/// Lets each attempt through when every quota that covers it has room.
///
/// It is always ready. The inner service's readiness is asked for only once a
/// permit is held, so that a call that waits for a quota can't keep another from
/// its connection; so the inner service is cloned for each call.
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
    type Future = ResponseFuture<S, Request<B>>;

    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let ready: Result<(), Infallible> = Ok(());
        Poll::Ready(ready.map_err(Into::into))
    }

    #[inline]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        ResponseFuture::new(&self.limits, self.inner.clone(), request)
    }
}
