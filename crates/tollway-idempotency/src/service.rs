//! The service.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use http::{Request, Response};
use http_body::Body;
use tollway_core::BoxError;
use tower_service::Service;

use crate::dialect::{Dialect, Place};
use crate::gather::Gather;
use crate::keys::{Chosen, Keys};
use crate::prepare::Rest;
use crate::{IdempotencyKeyFuture, KeyBody, KeyGenerator, UuidV7};

/// The service of [`IdempotencyKeyLayer`](crate::IdempotencyKeyLayer).
///
/// It is ready when the inner service is. A call whose body is read first, and
/// isn't all there, takes that readiness along, and asks again once it has the
/// body.
///
/// # Errors
///
/// A [`KeyError`](crate::KeyError), boxed, for a call that has a key or ought
/// to have one; the inner service's own error for other calls.
pub struct IdempotencyKeyService<S, G = UuidV7> {
    inner: S,
    keys: Arc<Keys<G>>,
}

impl<S, G> IdempotencyKeyService<S, G> {
    pub(crate) fn new(inner: S, keys: Keys<G>) -> Self {
        Self {
            inner,
            keys: Arc::new(keys),
        }
    }
}

impl<S, G, B, R> Service<Request<B>> for IdempotencyKeyService<S, G>
where
    S: Service<Request<KeyBody<B>>, Response = Response<R>> + Clone,
    S::Error: Into<BoxError>,
    G: KeyGenerator,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = IdempotencyKeyFuture<S, G, B>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let keys = &self.keys;
        let outcome = if keys
            .dialect
            .applies_to(request.method(), request.uri().path())
        {
            let fresh = keys.fresh(&mut request);
            if fresh.is_none() {
                return self.call_slowly(request);
            }
            fresh
        } else {
            keys.disown(&mut request);
            None
        };
        let request = request.map(KeyBody::untouched);
        IdempotencyKeyFuture::called(self.inner.call(request), outcome)
    }
}

impl<S, G> IdempotencyKeyService<S, G> {
    /// A call whose key isn't as simple as a new UUID in a header.
    #[cold]
    fn call_slowly<B, R>(&mut self, mut request: Request<B>) -> IdempotencyKeyFuture<S, G, B>
    where
        S: Service<Request<KeyBody<B>>, Response = Response<R>> + Clone,
        S::Error: Into<BoxError>,
        G: KeyGenerator,
        B: Body,
        B::Error: Into<BoxError>,
    {
        let keys = &self.keys;
        let admitted = match keys.choose(&mut request) {
            Ok(Some(chosen)) if !must_read(keys, &chosen, request.body()) => keys
                .admit(chosen, &mut request, None)
                .map(|outcome| (request.map(KeyBody::untouched), outcome)),
            Ok(chosen) => {
                let (head, body) = request.into_parts();
                let rest = Rest {
                    head: Request::from_parts(head, ()),
                    chosen,
                    sized: body.size_hint().exact().is_some(),
                };
                let mut body = Box::pin(Gather::new(body));
                // Most have it all at hand. One that hasn't is asked again, with a
                // real waker, when the future is polled.
                match body.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(read) => rest
                        .with(read, keys)
                        .and_then(|prepared| prepared.admit(keys)),
                    Poll::Pending => return self.read(body, rest),
                }
            }
            Err(error) => Err(error),
        };
        match admitted {
            Ok((request, outcome)) => {
                IdempotencyKeyFuture::called(self.inner.call(request), Some(outcome))
            }
            Err(error) => IdempotencyKeyFuture::refused(error),
        }
    }

    /// A call whose body isn't all there yet.
    fn read<B, R>(&mut self, body: Pin<Box<Gather<B>>>, rest: Rest) -> IdempotencyKeyFuture<S, G, B>
    where
        S: Service<Request<KeyBody<B>>, Response = Response<R>> + Clone,
        B: Body,
        B::Error: Into<BoxError>,
    {
        // The one that was asked goes into the call: what it holds by being
        // ready, nobody else can have.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        IdempotencyKeyFuture::reading(inner, Arc::clone(&self.keys), body, rest)
    }
}

/// Whether the body must be read before the call may go: where the key stands
/// in it, and where the key is to be remembered with its payload and the body
/// says that it is small. A body that doesn't say how long it is, or is long,
/// is never held back; its key stands for the method and the path alone.
fn must_read<G: KeyGenerator, B: Body>(keys: &Keys<G>, chosen: &Chosen, body: &B) -> bool {
    match &keys.dialect.place {
        Place::Field { .. } => true,
        Place::Header { .. } => {
            let small = body
                .size_hint()
                .exact()
                .is_some_and(|len| len <= Dialect::MAX_BODY as u64);
            small && keys.remembers(chosen)
        }
    }
}

impl<S: Clone, G> Clone for IdempotencyKeyService<S, G> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            keys: Arc::clone(&self.keys),
        }
    }
}

impl<S: fmt::Debug, G> fmt::Debug for IdempotencyKeyService<S, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyKeyService")
            .field("inner", &self.inner)
            .field("dialect", &self.keys.dialect)
            .finish_non_exhaustive()
    }
}
